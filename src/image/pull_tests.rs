//! Pulling from a registry that answers as it should, and from one that does not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use clusterfile::Secret;
use oci::{Descriptor, Digest, Index, Reference, media_type};

use crate::manifest::pinned;
use crate::progress::{Event, NoProgress, Progress};
use crate::pull::{PullOptions, Puller};
use crate::registry_double::{Double, Kind, Stored, Trouble};
use crate::remote::{Credentials, Login, RemoteOptions, Retry};
use crate::{Error, Store, host_platform};

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    registry: Double,
    image: Stored,
    options: PullOptions,
}

/// One login for everything.
struct Known(&'static str, &'static str);

impl Credentials for Known {
    fn login(&self, _: &str) -> Result<Option<Login>, Error> {
        Ok(Some(Login::Password {
            user: self.0.to_string(),
            password: Secret::new(self.1),
        }))
    }
}

const LAYER: &[u8] = b"a layer of some length";

impl Bench {
    /// A registry with `team/app:v1`, and an empty store.
    fn new() -> Bench {
        Bench::with(Kind::default())
    }

    fn with(kind: Kind) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let registry = Double::start(kind);
        let image = registry.image("team/app", "v1", LAYER);
        let options = PullOptions {
            remote: RemoteOptions {
                insecure: vec![registry.address.clone()],
                retry: Retry {
                    tries: 3,
                    first: Duration::from_millis(1),
                    longest: Duration::from_millis(5),
                },
                ..RemoteOptions::default()
            },
            offline: false,
        };
        Bench {
            dir,
            store,
            registry,
            image,
            options,
        }
    }

    fn with_login(mut self, user: &'static str, password: &'static str) -> Bench {
        self.options.remote.credentials = Arc::new(Known(user, password));
        self
    }

    fn pull(&self, name: &str) -> Result<Descriptor, String> {
        let pulled = self.pull_all(&[name], Arc::new(NoProgress)).remove(0);
        pulled.map_err(|error| error.to_string())
    }

    fn pull_all(&self, names: &[&str], progress: Arc<dyn Progress>) -> Vec<Result<Descriptor, Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let name = |name: &&str| {
            format!("{}/{name}", self.registry.address)
                .parse::<Reference>()
                .unwrap()
        };
        let references = names.iter().map(name).collect();
        let puller = Puller::new(&self.options, progress).unwrap();
        runtime.block_on(puller.pull_all(&self.store, references, &host_platform()))
    }

    /// The next answers to requests for this fail like this.
    fn fail(&self, on: &str, troubles: &[Trouble]) {
        self.registry.state().faults.clear();
        let on: &'static str = format!("GET {on}").leak();
        troubles.iter().for_each(|what| self.registry.fault(on, what.clone()));
    }

    fn blob(&self) -> String {
        format!("/v2/team/app/blobs/{}", self.image.layer)
    }

    /// Requests for this, without their method.
    fn requests(&self, on: &str) -> Vec<String> {
        let state = self.registry.state();
        let gets = state.log.iter().filter_map(|line| line.strip_prefix("GET "));
        gets.filter(|line| line.starts_with(on)).map(str::to_string).collect()
    }

    fn has_layer(&self) -> bool {
        self.store.blobs().verify(&self.image.layer, LAYER.len() as u64).is_ok()
    }

    /// The pull is refused for this reason, and nothing of a layer is visible.
    fn refused(&self, name: &str, expected: &str) {
        let error = self.pull(name).unwrap_err();
        let begin = format!("cannot pull {}/{name}: ", self.registry.address);
        assert!(
            error.starts_with(&begin) && error.contains(expected),
            "{expected:?} is not in {error:?}"
        );
        assert!(!self.has_layer());
        assert_eq!(std::fs::read_dir(self.dir.path().join("tmp")).unwrap().count(), 0);
    }
}

#[test]
fn an_image_is_pulled_through_its_index_byte_for_byte() {
    let bench = Bench::new();
    let manifest = bench.pull("team/app:v1").unwrap();
    assert_eq!(
        (&manifest.digest, &manifest.platform),
        (&bench.image.manifest, &Some(host_platform()))
    );
    let blobs = bench.store.reachable(&manifest).unwrap();
    assert_eq!(blobs.len(), 3);
    for blob in blobs {
        bench.store.blobs().verify(&blob.digest, blob.size).unwrap();
    }
    let text = bench.store.blobs().read(&manifest.digest, 10_000).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("\"keep\""), "foreign bytes are kept as they are");
}

#[test]
fn an_image_pinned_to_an_index_remembers_that() {
    let bench = Bench::new();
    let entry = bench.pull(&format!("team/app@{}", bench.image.index)).unwrap();
    assert_eq!(entry.digest, bench.image.manifest);
    assert_eq!(Digest::of(pinned(&entry).unwrap()), bench.image.index);
    assert_eq!(bench.store.reachable(&entry).unwrap().len(), 3);
    for name in ["team/app:v1".to_string(), format!("team/app@{}", bench.image.manifest)] {
        let entry = bench.pull(&name).unwrap();
        assert_eq!((&entry.digest, pinned(&entry)), (&bench.image.manifest, None));
    }
    let path = format!("/v2/team/app/manifests/{}", bench.image.manifest);
    assert_eq!(
        bench.requests(&path).len(),
        1,
        "a digest can't mean anything else than before"
    );
}

#[test]
fn images_share_blobs_and_tell_how_far_they_are() {
    #[derive(Default)]
    struct Seen(Mutex<Vec<(String, u64, u64)>>);
    impl Progress for Seen {
        fn event(&self, event: Event) {
            if let Event::Pulled { image, done, total } = event {
                self.0.lock().unwrap().push((image, done, total));
            }
        }
    }
    let bench = Bench::new();
    for number in 1..=4 {
        bench.registry.image(&format!("team/x{number}"), "v1", LAYER);
    }
    let seen = Arc::new(Seen::default());
    let names = ["team/x1:v1", "team/none:v1", "team/x2:v1", "team/x3:v1", "team/x4:v1"];
    let results = bench.pull_all(&names, Arc::clone(&seen) as Arc<dyn Progress>);
    let good: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(
        good,
        [true, false, true, true, true],
        "one that fails does not stop the others"
    );
    assert!(bench.has_layer());
    let seen = seen.0.lock().unwrap();
    let first = format!("{}/team/x1:v1", bench.registry.address);
    assert!(
        seen.iter()
            .any(|(image, done, total)| *image == first && done == total && *done > 0),
        "{seen:?}"
    );
}

#[test]
fn what_a_registry_refuses_is_told_with_its_reason_and_what_to_do() {
    let manifest = "/v2/team/app/manifests/v1";
    let bench = Bench::new();
    bench.refused("team/none:v1", "has no such image");
    for (status, tries, expected) in [
        (
            403,
            1,
            "403 Forbidden: bad_moment (BAD_MOMENT); there is no login for it: use `installer login",
        ),
        (429, 3, "429 Too Many Requests: bad_moment"),
        (500, 3, "500 Internal Server Error: bad_moment"),
        (400, 1, "400 Bad Request: bad_moment"),
    ] {
        bench.registry.reset();
        bench.fail(manifest, &vec![Trouble::Status(status); 9]);
        bench.refused("team/app:v1", expected);
        assert_eq!(bench.requests(manifest).len(), tries, "{status}");
    }
    bench.fail(&bench.blob(), &[Trouble::Status(404)]);
    bench.refused("team/app:v1", &format!("blob {}: 404", bench.image.layer));
    for basic in [true, false] {
        let login = Some(("me", "secret"));
        let bench = Bench::with(Kind {
            login,
            basic,
            ..Kind::default()
        });
        bench.refused("team/app:v1", &format!("installer login {}", bench.registry.address));
    }
}

#[test]
fn logins_are_shown_to_who_asks_for_them_and_never_told() {
    let login = Some(("me", "s:ecret"));
    for kind in [
        Kind {
            login,
            basic: true,
            ..Kind::default()
        },
        Kind {
            login,
            ..Kind::default()
        },
        Kind {
            login,
            token_uses: 1,
            ..Kind::default()
        },
    ] {
        let bench = Bench::with(kind).with_login("me", "s:ecret");
        bench.pull("team/app:v1").unwrap();
        assert!(bench.has_layer());
    }
    let bench = Bench::with(Kind {
        open: true,
        ..Kind::default()
    });
    bench.pull("team/app:v1").unwrap();
    assert!(
        bench.has_layer(),
        "some registries give a token to everybody, but want one"
    );
    for basic in [true, false] {
        let bench = Bench::with(Kind {
            login,
            basic,
            ..Kind::default()
        })
        .with_login("me", "hunter2");
        bench.refused(
            "team/app:v1",
            "the login of me was refused: log in again with `installer login",
        );
        let error = bench.pull("team/app:v1").unwrap_err();
        assert!(error.contains("401") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_passing_failure_is_waited_out() {
    let bench = Bench::new();
    for on in ["/v2/team/app/manifests/v1".to_string(), bench.blob()] {
        bench.fail(&on, &[Trouble::Status(429), Trouble::Status(503)]);
        bench.pull("team/app:v1").unwrap();
        assert_eq!(bench.requests(&on).len(), if on == bench.blob() { 1 } else { 3 });
    }
    assert!(bench.has_layer());
    let bench = Bench::new();
    bench.fail(&bench.blob(), &[Trouble::Status(429), Trouble::Status(503)]);
    bench.pull("team/app:v1").unwrap();
    assert_eq!(bench.requests(&bench.blob()).len(), 3);
}

#[test]
fn a_broken_blob_goes_on_where_it_stopped_even_in_another_run() {
    let ranges = |bench: &Bench| -> Vec<String> {
        let requests = bench.requests(&bench.blob());
        requests
            .iter()
            .map(|line| line.replace(&bench.blob(), "").trim().to_string())
            .collect()
    };
    let bench = Bench::new();
    bench.fail(&bench.blob(), &[Trouble::CutAnswer(5), Trouble::CutAnswer(4)]);
    bench.pull("team/app:v1").unwrap();
    assert_eq!(ranges(&bench), ["", "bytes=5-", "bytes=9-"]);

    let bench = Bench::new();
    bench.fail(&bench.blob(), &[Trouble::CutAnswer(7), Trouble::Status(403)]);
    assert!(bench.pull("team/app:v1").is_err());
    bench.registry.reset();
    bench.pull("team/app:v1").unwrap();
    assert_eq!(ranges(&bench), ["bytes=7-"]);

    let bench = Bench::with(Kind {
        ranges: false,
        ..Kind::default()
    });
    bench.fail(&bench.blob(), &[Trouble::CutAnswer(5)]);
    bench.pull("team/app:v1").unwrap();
    assert!(bench.has_layer(), "a registry without ranges begins again");
}

#[test]
fn damage_on_the_disk_or_on_the_way_is_never_visible() {
    let bench = Bench::new();
    let size = LAYER.len() as u64;
    let mut writer = bench.store.blobs().writer(&bench.image.layer, size, false).unwrap();
    writer.write(b"xxxxx").unwrap();
    drop(writer);
    bench.pull("team/app:v1").unwrap();
    assert!(bench.has_layer(), "what was damaged here is fetched again");

    for body in [&b"a l4yer of some length"[..], b"a layer of some length and more", b""] {
        let bench = Bench::new();
        let digest = bench.image.layer.clone();
        if let Some(blobs) = bench.registry.state().blobs.get_mut("team/app") {
            blobs.insert(digest.clone(), body.to_vec());
        }
        bench.refused("team/app:v1", digest.as_str());
    }
    let bench = Bench::new();
    bench.fail(&bench.blob(), &[Trouble::Endless(1 << 20)]);
    bench.refused("team/app:v1", bench.image.layer.as_str());
}

#[test]
fn manifests_are_judged_before_they_are_believed() {
    let bench = Bench::new();
    let manifest = |architecture: &str| {
        let config = serde_json::json!({"architecture": architecture, "os": "linux"}).to_string();
        let descriptor = Descriptor::of(media_type::CONFIG, config.as_bytes());
        if let Some(blobs) = bench.registry.state().blobs.get_mut("team/app") {
            blobs.insert(descriptor.digest.clone(), config.into_bytes());
        }
        serde_json::json!({"schemaVersion": 2, "config": descriptor, "layers": []}).to_string()
    };
    let (ours, other) = (manifest(&host_platform().architecture), manifest("s390x"));
    for (kind, body, expected) in [
        ("text/html", "<html>login</html>", "it is no manifest"),
        (media_type::MANIFEST, "{}", "schemaVersion"),
        (
            media_type::MANIFEST,
            r#"{"mediaType": "application/vnd.docker.distribution.manifest.v1+json"}"#,
            "unsupported type",
        ),
        (
            media_type::INDEX,
            r#"{"schemaVersion": 2, "manifests": []}"#,
            "no content for linux/",
        ),
        (media_type::MANIFEST, other.as_str(), "an image for linux/s390x"),
    ] {
        bench.registry.put("team/app", "v1", kind, body.as_bytes());
        bench.refused("team/app:v1", expected);
    }
    bench
        .registry
        .put("team/app", "v1", media_type::MANIFEST, ours.as_bytes());
    assert!(bench.pull("team/app:v1").is_ok());
    bench.fail("/v2/team/app/manifests/v1", &[Trouble::Endless(20 << 20)]);
    bench.refused("team/app:v1", "more than");
    let wanted = Digest::of(b"something");
    bench
        .registry
        .put("team/app", wanted.as_str(), media_type::MANIFEST, ours.as_bytes());
    bench.refused(&format!("team/app@{wanted}"), "corrupt");
}

#[test]
fn an_index_that_lies_about_its_manifest_is_refused_before_anything_is_kept() {
    let bench = Bench::new();
    let list = |change: &dyn Fn(&mut Descriptor)| {
        let found = bench.registry.state().manifests["team/app"][bench.image.manifest.as_str()].clone();
        let mut entry = Descriptor::of(found.0, &found.1);
        entry.platform = Some(host_platform());
        change(&mut entry);
        let index = Index {
            manifests: vec![entry],
            ..Index::default()
        };
        serde_json::to_vec(&index).unwrap()
    };
    type Change<'a> = (&'a dyn Fn(&mut Descriptor), &'a str);
    let lies: [Change<'_>; 3] = [
        (&|entry| entry.size -= 100, "its index says that sha256:"),
        (&|entry| entry.size += 1, "bytes, but it has"),
        (
            &|entry| entry.media_type = "text/plain".into(),
            "no type of image manifests",
        ),
    ];
    for (lie, expected) in lies {
        bench.registry.put("team/app", "v1", media_type::INDEX, &list(lie));
        bench.refused("team/app:v1", expected);
    }
    bench.registry.put("team/app", "v1", media_type::INDEX, &list(&|_| {}));
    bench.pull("team/app:v1").unwrap();
}

#[test]
fn nobody_is_asked_where_that_is_forbidden() {
    let mut bench = Bench::new();
    bench.options.offline = true;
    bench.refused("team/app:v1", "--no-pull");
    assert!(bench.requests("/v2/team/app/manifests/v1").is_empty());
}

#[test]
fn a_registry_that_cannot_be_reached_is_named_and_not_waited_for_twice() {
    let mut bench = Bench::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap().to_string();
    drop(listener);
    bench.options.remote.insecure.push(closed.clone());
    // Long enough that every image of its own would be seen in the time it takes.
    bench.options.remote.retry.first = Duration::from_millis(200);
    bench.options.remote.retry.longest = Duration::from_millis(200);
    bench.registry.address.clone_from(&closed);
    let start = std::time::Instant::now();
    for error in bench.pull_all(&["team/app:v1"; 60], Arc::new(NoProgress)) {
        let error = error.unwrap_err().to_string();
        let expected = format!("cannot pull {closed}/team/app:v1: cannot connect: ");
        assert!(error.starts_with(&expected) && error.contains("refused"), "{error}");
    }
    // Two waits for the three that begin together.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    bench.options.remote.insecure.clear();
    let plain = Bench::new();
    bench.registry.address.clone_from(&plain.registry.address);
    let error = bench.pull("team/app:v1").unwrap_err();
    assert!(error.contains("--insecure-registry"), "{error}");
}
