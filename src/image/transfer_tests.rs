//! Push and pull against a registry that has bad moments, and against Debian's docker-registry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clusterfile::Secret;
use oci::{Descriptor, Digest, Reference, media_type};

use crate::registry_double::{Double, Kind, Trouble};
use crate::tests::{Bench, KUBEFILE};
use crate::{
    Artifact, ClusterImage, Credentials, Document, Error, Login, NoProgress, PulledImage, Pushed, Remote,
    RemoteOptions, Retry, Store, host_platform, pull, push,
};

/// Bytes of each piece of an upload.
const CHUNK: u64 = 4096;

struct Known(&'static str);

impl Credentials for Known {
    fn login(&self, repository: &str) -> Result<Option<Login>, Error> {
        assert!(repository.contains('/'), "{repository}");
        Ok(Some(Login::Password {
            user: "me".to_string(),
            password: Secret::new(self.0),
        }))
    }
}

fn options(registry: &str) -> RemoteOptions {
    RemoteOptions {
        insecure: vec![registry.to_string()],
        retry: Retry {
            tries: 6,
            first: Duration::from_millis(1),
            longest: Duration::from_millis(5),
        },
        chunk: CHUNK,
        ..RemoteOptions::default()
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

pub(crate) fn reference(registry: &str, name: &str) -> Reference {
    format!("{registry}/{name}").parse().unwrap()
}

pub(crate) fn push_to(store: &Store, image: &str, registry: &str, name: &str) -> Result<Pushed, Error> {
    let remote = Remote::new(options(registry))?;
    run(push(
        store,
        image,
        &reference(registry, name),
        &[],
        &remote,
        Arc::new(NoProgress),
    ))
}

pub(crate) fn pull_from(store: &Store, registry: &str, name: &str) -> Result<PulledImage, Error> {
    let remote = Remote::new(options(registry))?;
    run(pull(
        store,
        &reference(registry, name),
        None,
        &remote,
        Arc::new(NoProgress),
    ))
}

/// A store with the image `app:1`, which has a layer of several pieces, and a second, empty store.
pub(crate) fn bench() -> (Bench, Store, ClusterImage) {
    let bench = Bench::new();
    bench.write("bin/big", &noise(40_000));
    let image = bench.build("app:1", KUBEFILE);
    let other = Store::open(&bench.dir.path().join("other")).unwrap();
    (bench, other, image)
}

/// Text that doesn't compress well.
pub(crate) fn noise(length: usize) -> String {
    let mut text = String::new();
    let mut seed = Digest::of(b"seed");
    while text.len() < length {
        text.push_str(seed.hex());
        seed = Digest::of(seed.as_str().as_bytes());
    }
    text
}

pub(crate) fn same(image: &ClusterImage, store: &Store) {
    let copy = ClusterImage::open(store, image.index.digest.as_str(), &host_platform()).unwrap();
    assert_eq!(copy.all_blobs(), image.all_blobs());
    assert_eq!(copy.verify(true).problems, Vec::<String>::new());
}

#[test]
fn an_image_goes_through_a_registry_unchanged_and_goes_only_once() {
    let (bench, other, image) = bench();
    let registry = Double::start(Kind::default());
    let pushed = push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
    let total: u64 = image.all_blobs().iter().map(|blob| blob.size).sum();
    assert_eq!((pushed.sent, pushed.bytes), (image.all_blobs().len(), total));
    assert_eq!(registry.state().received, total);
    let patches = registry
        .state()
        .log
        .iter()
        .filter(|line| line.starts_with("PATCH"))
        .count() as u64;
    let large = image.all_blobs().into_iter().filter(|blob| blob.size > CHUNK);
    assert_eq!(patches, large.map(|blob| blob.size.div_ceil(CHUNK)).sum::<u64>());
    registry.reset();
    let again = push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
    assert_eq!((again.sent, again.bytes, registry.state().received), (0, 0, 0));
    let renamed = push_to(&bench.store, "app:1", &registry.address, "team/app:2").unwrap();
    assert_eq!(renamed.bytes, image.index.size, "a second tag costs the index alone");
    registry.reset();
    let pulled = pull_from(&other, &registry.address, "team/app:1").unwrap();
    assert_eq!((pulled.digest, pulled.new_bytes), (image.index.digest.clone(), total));
    assert_eq!(registry.state().sent, total);
    same(&image, &other);
    registry.reset();
    let again = pull_from(&other, &registry.address, &format!("team/app@{}", image.index.digest)).unwrap();
    assert_eq!((again.new_blobs, again.new_bytes), (0, 0));
    assert_eq!(registry.state().sent, image.index.size);
}

#[test]
fn a_changed_manifest_sends_its_layer_and_the_documents_above_it_and_nothing_else() {
    let (bench, _, old) = bench();
    let registry = Double::start(Kind::default());
    push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
    bench.write("manifests/pod.yaml", &format!("{}# changed\n", crate::tests::MANIFEST));
    let new = bench.build("app:2", KUBEFILE);
    let known: Vec<Digest> = old.all_blobs().into_iter().map(|blob| blob.digest).collect();
    let fresh: Vec<Descriptor> = new
        .all_blobs()
        .into_iter()
        .filter(|blob| !known.contains(&blob.digest))
        .collect();
    assert_eq!(fresh.len(), 4, "index, rootfs manifest, configuration, one layer");
    let bytes: u64 = fresh.iter().map(|blob| blob.size).sum();
    registry.reset();
    let pushed = push_to(&bench.store, "app:2", &registry.address, "team/app:2").unwrap();
    assert_eq!((pushed.sent, pushed.bytes), (4, bytes));
    assert_eq!(registry.state().received, bytes);
    assert!(
        bytes < old.all_blobs().iter().map(|blob| blob.size).sum::<u64>() / 3,
        "{bytes}"
    );
}

#[test]
fn bad_moments_of_the_registry_are_survived() {
    let (bench, other, image) = bench();
    let registry = Double::start(Kind::default());
    for fault in [
        ("POST uploads", Trouble::Status(503)),
        ("HEAD blobs", Trouble::Status(429)),
        ("PUT uploads", Trouble::Status(500)),
        ("PUT uploads", Trouble::CutRequest(10)),
        ("PUT uploads", Trouble::LoseAnswer),
        ("PATCH uploads", Trouble::CutRequest(1000)),
        ("PATCH uploads", Trouble::LoseAnswer),
        ("PATCH uploads", Trouble::Status(502)),
        ("PUT manifests", Trouble::Status(504)),
        ("PUT manifests", Trouble::LoseAnswer),
    ] {
        registry.fault(fault.0, fault.1);
    }
    let pushed = push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
    assert_eq!(pushed.digest, image.index.digest);
    assert_eq!(registry.state().faults.len(), 0, "every fault happened");
    for fault in [
        ("GET manifests", Trouble::Status(503)),
        ("GET manifests", Trouble::CutAnswer(20)),
        ("GET blobs", Trouble::Status(500)),
        ("GET blobs", Trouble::CutAnswer(1)),
        ("GET blobs", Trouble::CutAnswer(7)),
        ("GET referrers", Trouble::Status(500)),
    ] {
        registry.fault(fault.0, fault.1);
    }
    pull_from(&other, &registry.address, "team/app:1").unwrap();
    assert_eq!(registry.state().faults.len(), 0, "every fault happened");
    same(&image, &other);
}

#[test]
fn a_registry_that_falls_silent_is_left_and_asked_again() {
    let (bench, other, image) = bench();
    let registry = Double::start(Kind::default());
    let remote = Remote::new(RemoteOptions {
        stall: Duration::from_millis(300),
        ..options(&registry.address)
    })
    .unwrap();
    let name = reference(&registry.address, "team/app:1");
    registry.fault("HEAD blobs", Trouble::Hang);
    registry.fault("POST uploads", Trouble::Hang);
    run(push(&bench.store, "app:1", &name, &[], &remote, Arc::new(NoProgress))).unwrap();
    registry.fault("GET manifests", Trouble::Hang);
    registry.fault("GET blobs", Trouble::Hang);
    registry.fault("GET blobs", Trouble::HangAnswer(1));
    run(pull(&other, &name, None, &remote, Arc::new(NoProgress))).unwrap();
    assert_eq!(registry.state().faults.len(), 0, "every fault happened");
    same(&image, &other);
}

#[test]
fn a_broken_upload_goes_on_where_the_registry_has_got_to() {
    let (bench, _, image) = bench();
    let registry = Double::start(Kind::default());
    registry.fault("PATCH uploads", Trouble::CutRequest(1000));
    push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
    let total: u64 = image.all_blobs().iter().map(|blob| blob.size).sum();
    assert_eq!(
        registry.state().received,
        total,
        "the thousand bytes that arrived were not sent again"
    );
    let asked = registry
        .state()
        .log
        .iter()
        .any(|line| line.starts_with("GET /v2/team/app/blobs/uploads/"));
    assert!(asked, "{:?}", registry.state().log);
}

#[test]
fn a_registry_that_takes_no_pieces_or_only_large_ones_is_obeyed() {
    for (kind, patches) in [
        (
            Kind {
                pieces: false,
                ..Kind::default()
            },
            0,
        ),
        (
            Kind {
                smallest_piece: 1 << 20,
                ..Kind::default()
            },
            1,
        ),
    ] {
        let (bench, other, image) = bench();
        let registry = Double::start(kind.clone());
        push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
        pull_from(&other, &registry.address, "team/app:1").unwrap();
        same(&image, &other);
        if kind.pieces {
            let log = registry.state().log.clone();
            assert_eq!(
                log.iter().filter(|line| line.starts_with("PATCH")).count(),
                patches,
                "{log:?}"
            );
        }
    }
}

#[test]
fn a_pull_that_failed_goes_on_in_the_next_process() {
    let (bench, other, image) = bench();
    let registry = Double::start(Kind::default());
    push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
    let layer = image.rootfs.layers.iter().max_by_key(|layer| layer.size).unwrap();
    let path: &'static str = Box::leak(format!("GET {}", layer.digest).into_boxed_str());
    registry.fault(path, Trouble::CutAnswer(15_000));
    for _ in 0..6 {
        registry.fault(path, Trouble::Status(503));
    }
    let error = pull_from(&other, &registry.address, "team/app:1")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(layer.digest.as_str()) && error.contains("503"),
        "{error}"
    );
    assert!(other.list().unwrap().is_empty(), "nothing is named before it is whole");
    assert_eq!(other.blobs().partial_size(&layer.digest), 15_000);
    registry.reset();
    pull_from(&other, &registry.address, "team/app:1").unwrap();
    let resumed = format!("GET /v2/team/app/blobs/{} bytes=15000-", layer.digest);
    assert!(registry.state().log.contains(&resumed), "{:?}", registry.state().log);
    same(&image, &other);
}

#[test]
fn what_was_damaged_while_it_waited_is_fetched_again() {
    for ranges in [true, false] {
        let (bench, other, image) = bench();
        let registry = Double::start(Kind {
            ranges,
            ..Kind::default()
        });
        push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
        let layer = image.rootfs.layers.iter().max_by_key(|layer| layer.size).unwrap();
        let mut partial = other.blobs().writer(&layer.digest, layer.size, false).unwrap();
        partial.write(&[7; 10_000]).unwrap();
        drop(partial);
        pull_from(&other, &registry.address, "team/app:1").unwrap();
        same(&image, &other);
    }
}

#[test]
fn blobs_are_taken_over_from_other_repositories_of_the_registry() {
    for (mounts, explicit) in [(true, false), (true, true), (false, true)] {
        let (bench, _, image) = bench();
        let registry = Double::start(Kind {
            mounts,
            ..Kind::default()
        });
        push_to(&bench.store, "app:1", &registry.address, "team/base:1").unwrap();
        registry.reset();
        let mut from = vec!["team/none".to_string()];
        if explicit {
            from.push("team/base".to_string());
        } else {
            // The store knows by itself where the image is.
            let name = reference(&registry.address, "team/base:1");
            bench.store.tag(&name, &image.index).unwrap();
            from.clear();
        }
        let remote = Remote::new(options(&registry.address)).unwrap();
        let to = reference(&registry.address, "team/app:1");
        let pushed = run(push(&bench.store, "app:1", &to, &from, &remote, Arc::new(NoProgress))).unwrap();
        let blobs = image.all_blobs();
        let documents: u64 = blobs
            .iter()
            .filter(|blob| crate::manifest::is_document(blob))
            .map(|blob| blob.size)
            .sum();
        let received = registry.state().received;
        match mounts {
            true => assert_eq!(
                (pushed.mounted > 0, received),
                (true, documents),
                "only manifests are sent"
            ),
            false => assert_eq!(
                (pushed.mounted, received),
                (0, blobs.iter().map(|blob| blob.size).sum())
            ),
        }
    }
}

#[test]
fn logins_are_used_where_they_are_asked_for_and_expired_tokens_are_renewed() {
    for (basic, token_uses) in [(true, 0), (false, usize::MAX), (false, 2)] {
        let (bench, other, image) = bench();
        let login = Some(("me", "secret"));
        let registry = Double::start(Kind {
            login,
            basic,
            token_uses,
            ..Kind::default()
        });
        let remote = |password| {
            let credentials = Arc::new(Known(password));
            Remote::new(RemoteOptions {
                credentials,
                ..options(&registry.address)
            })
            .unwrap()
        };
        let to = reference(&registry.address, "team/app:1");
        let send = |password| {
            run(push(
                &bench.store,
                "app:1",
                &to,
                &[],
                &remote(password),
                Arc::new(NoProgress),
            ))
        };
        let error = send("wrong").unwrap_err().to_string();
        assert!(
            error.contains("401") && error.contains("the login of me was refused"),
            "{error}"
        );
        assert!(!error.contains("wrong"), "{error}");
        let error = push_to(&bench.store, "app:1", &registry.address, "team/app:1")
            .unwrap_err()
            .to_string();
        assert!(error.contains("401"), "{error}");
        send("secret").unwrap();
        run(pull(&other, &to, None, &remote("secret"), Arc::new(NoProgress))).unwrap();
        same(&image, &other);
    }
}

#[test]
fn whatever_byte_a_registry_changes_is_refused_and_nothing_is_named() {
    let (bench, _, _) = bench();
    let registry = Double::start(Kind::default());
    push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
    let blobs = registry.state().blobs["team/app"].clone();
    let manifests = registry.state().manifests["team/app"].clone();
    let mut number = 0;
    let mut refused = |name: &str| {
        number += 1;
        let store = Store::open(&bench.dir.path().join(format!("other{number}"))).unwrap();
        let error = pull_from(&store, &registry.address, "team/app:1")
            .unwrap_err()
            .to_string();
        assert!(error.contains(name), "{name}: {error}");
        assert!(store.list().unwrap().is_empty());
        for digest in store.blobs().list().unwrap() {
            store
                .blobs()
                .verify(&digest, store.blobs().size(&digest).unwrap())
                .unwrap();
        }
    };
    for (digest, content) in &blobs {
        for at in [0, content.len() / 2, content.len() - 1] {
            let mut damaged = content.clone();
            damaged[at] ^= 1;
            registry
                .state()
                .blobs
                .get_mut("team/app")
                .unwrap()
                .insert(digest.clone(), damaged);
            refused(digest.as_str());
        }
        let mut longer = content.clone();
        longer.push(0);
        registry
            .state()
            .blobs
            .get_mut("team/app")
            .unwrap()
            .insert(digest.clone(), longer);
        refused(digest.as_str());
        registry
            .state()
            .blobs
            .get_mut("team/app")
            .unwrap()
            .insert(digest.clone(), content.clone());
    }
    for (name, (kind, content)) in manifests.iter().filter(|(name, _)| name.starts_with("sha256:")) {
        if manifests["1"].1 == *content {
            continue;
        }
        for at in (0..content.len()).step_by(37) {
            let mut damaged = content.clone();
            damaged[at] ^= 1;
            registry
                .state()
                .manifests
                .get_mut("team/app")
                .unwrap()
                .insert(name.clone(), (kind.clone(), damaged));
            refused(name);
        }
        registry
            .state()
            .manifests
            .get_mut("team/app")
            .unwrap()
            .insert(name.clone(), (kind.clone(), content.clone()));
    }
}

#[test]
fn a_damaged_store_is_not_pushed_and_the_blob_is_named() {
    let (bench, _, image) = bench();
    for blob in image.all_blobs() {
        let registry = Double::start(Kind::default());
        let path = bench.store.blobs().path(&blob.digest);
        let good = std::fs::read(&path).unwrap();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut damaged = good.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            let error = push_to(&bench.store, "app:1", &registry.address, "team/app:1")
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(blob.digest.as_str()) && error.contains("corrupt"),
                "{error}"
            );
            assert!(!registry.state().manifests.contains_key("1"));
        }
        std::fs::write(&path, good).unwrap();
    }
}

#[test]
fn what_is_no_cluster_image_is_refused_with_its_reason() {
    let (_bench, other, image) = bench();
    let registry = Double::start(Kind::default());
    let put = |tag: &str, kind: &str, body: Vec<u8>| {
        let mut state = registry.state();
        let manifests = state.manifests.entry("team/bad".to_string()).or_default();
        manifests.insert(tag.to_string(), (kind.to_string(), body));
    };
    let rootfs = &image.rootfs.manifest;
    let carried = |name: &str, content: &str| {
        let mut entry = Descriptor::of(media_type::MANIFEST, content.as_bytes());
        entry.annotations.insert(oci::REF_NAME.into(), name.into());
        entry
    };
    let index = |entries: Vec<Descriptor>| {
        let index = oci::Index {
            manifests: entries,
            ..oci::Index::default()
        };
        serde_json::to_vec(&index).unwrap()
    };
    put(
        "container",
        media_type::MANIFEST,
        br#"{"schemaVersion":2,"config":{},"layers":[]}"#.to_vec(),
    );
    put("list", media_type::INDEX, index(vec![]));
    put(
        "twice",
        media_type::INDEX,
        index(vec![rootfs.clone(), carried("a.b/c:1", "x"), carried("a.b/c:1", "y")]),
    );
    put("lost", media_type::INDEX, index(vec![rootfs.clone()]));
    put("html", "text/html", b"<html>please log in</html>".to_vec());
    put(
        "huge",
        media_type::INDEX,
        vec![b' '; (crate::manifest::MAX_JSON + 1) as usize],
    );
    for (tag, expected) in [
        ("container", "it is a container image, not a cluster image"),
        ("list", "it has no rootfs"),
        ("twice", "two images have one name: a.b/c:1"),
        ("lost", "the registry lacks a manifest that the image lists"),
        ("html", "it is no manifest"),
        ("huge", "more than the 16777216 bytes allowed"),
        ("none", "the registry has no such image"),
    ] {
        let error = pull_from(&other, &registry.address, &format!("team/bad:{tag}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected) && error.contains("team/bad"), "{tag}: {error}");
    }
    assert!(other.list().unwrap().is_empty());
}

#[test]
fn artifacts_about_an_image_travel_with_it() {
    for referrers in [true, false] {
        let (bench, other, image) = bench();
        let registry = Double::start(Kind {
            referrers,
            ..Kind::default()
        });
        let artifact = Artifact {
            artifact_type: "application/vnd.test.note".to_string(),
            documents: vec![Document {
                media_type: "text/plain".to_string(),
                title: "note".to_string(),
                bytes: b"about it".to_vec(),
            }],
            annotations: BTreeMap::new(),
        };
        let first = bench.store.attach(&image.index, &artifact).unwrap();
        let about = Artifact {
            artifact_type: "application/vnd.test.about".to_string(),
            ..artifact.clone()
        };
        bench.store.attach(&first, &about).unwrap();
        let pushed = push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
        assert_eq!(pushed.artifacts, 2);
        push_to(&bench.store, "app:1", &registry.address, "team/app:1").unwrap();
        let pulled = pull_from(&other, &registry.address, "team/app:1").unwrap();
        assert_eq!(pulled.artifacts, 2, "with referrers: {referrers}");
        let found = other.attached(&image.index).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(other.read_artifact(&found[0].manifest).unwrap(), artifact);
        assert!(
            other
                .list()
                .unwrap()
                .iter()
                .all(|listed| listed.digest == image.index.digest)
        );
    }
}

#[test]
fn an_unreachable_registry_is_named_and_given_up() {
    let (bench, _, _) = bench();
    let error = push_to(&bench.store, "app:1", "127.0.0.1:1", "team/app:1")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("127.0.0.1:1/team/app") && error.contains("onnection refused"),
        "{error}"
    );
}
