//! The store: what it lists, frees, keeps and repairs.

use std::fs;

use oci::{Digest, Reference};

use crate::tests::{Bench, KUBEFILE};
use crate::{ClusterImage, Error, NoProgress, PruneOptions, Store, host_platform, load, save};

const DRY: PruneOptions = PruneOptions {
    dry_run: true,
    damaged: false,
    cache: false,
};
const WET: PruneOptions = PruneOptions {
    dry_run: false,
    damaged: false,
    cache: false,
};

/// A store with `base:1` and `child:1`, which shares its layers.
fn bench() -> (Bench, ClusterImage, ClusterImage) {
    let bench = Bench::new();
    let base = bench.build("base:1", KUBEFILE);
    let child = bench.build("child:1", "FROM base:1\nCOPY web/x extra\n");
    (bench, base, child)
}

fn bytes(image: &ClusterImage) -> u64 {
    image.all_blobs().iter().map(|blob| blob.size).sum()
}

#[test]
fn what_an_image_costs_alone_is_told_from_what_it_shares() {
    let (bench, base, child) = bench();
    let index = bench.store.resolve("base:1").unwrap();
    bench.store.tag(&"alias:1".parse().unwrap(), &index).unwrap();
    let listed = bench.store.list().unwrap();
    let names: Vec<&str> = listed.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["alias:1", "base:1", "child:1"]);
    for image in &listed {
        assert_eq!(image.unique + image.shared, image.size);
        assert_eq!(image.problem, None);
    }
    let has = |image: &ClusterImage, digest: &Digest| image.all_blobs().iter().any(|blob| blob.digest == *digest);
    let alone = |one: &ClusterImage, other: &ClusterImage| -> u64 {
        one.all_blobs()
            .iter()
            .filter(|blob| !has(other, &blob.digest))
            .map(|blob| blob.size)
            .sum()
    };
    assert_eq!((listed[1].size, listed[1].unique), (bytes(&base), alone(&base, &child)));
    assert_eq!(
        listed[0].unique, listed[1].unique,
        "two names of one image share nothing away"
    );
    assert_eq!(
        (listed[2].size, listed[2].unique),
        (bytes(&child), alone(&child, &base))
    );
    assert_eq!(listed[2].blobs, child.all_blobs().len());
    drop((base, child));
    let unique = listed[2].unique;
    let removed = bench.store.remove("child:1").unwrap();
    assert_eq!((removed.bytes, removed.later), (unique, false), "it frees what it said");
}

#[test]
fn prune_frees_what_it_says_and_only_that() {
    let (bench, base, child) = bench();
    let keep: Vec<Digest> = base
        .all_blobs()
        .into_iter()
        .chain(child.all_blobs())
        .map(|blob| blob.digest)
        .collect();
    let store = &bench.store;
    // What failed builds and killed processes leave.
    let garbage = store.put(b"garbage").unwrap();
    let lost = Digest::of(b"lost");
    store.blobs().writer(&lost, 100, false).unwrap().write(b"some").unwrap();
    fs::create_dir(store.root().join("tmp/work")).unwrap();
    fs::write(store.root().join("tmp/work/file"), "12345").unwrap();
    fs::write(store.root().join("index.tmp77"), "123").unwrap();
    let dry = store.prune(DRY, &NoProgress).unwrap();
    assert_eq!(
        dry.blobs
            .iter()
            .map(|blob| (&blob.digest, blob.size))
            .collect::<Vec<_>>(),
        [(&garbage, 7)]
    );
    assert_eq!(
        dry.partial
            .iter()
            .map(|blob| (&blob.digest, blob.size))
            .collect::<Vec<_>>(),
        [(&lost, 4)]
    );
    assert_eq!((dry.temporary, dry.bytes), (8, 7 + 4 + 8));
    assert!(store.blobs().size(&garbage).is_some() && store.root().join("tmp/work/file").exists());
    assert_eq!(store.prune(WET, &NoProgress).unwrap(), dry);
    assert_eq!(store.prune(WET, &NoProgress).unwrap().bytes, 0);
    let mut left = store.blobs().list().unwrap();
    left.retain(|digest| !keep.contains(digest));
    assert!(left.is_empty(), "{left:?}");
    for image in [base, child] {
        assert!(image.verify(true).problems.is_empty());
    }
    let cache = PruneOptions { cache: true, ..WET };
    assert!(store.prune(cache, &NoProgress).unwrap().cache > 0);
    let digest = store.resolve("base:1").unwrap().digest;
    bench.write("Kubefile", KUBEFILE);
    assert_eq!(
        bench.try_build("base:1").unwrap().digest,
        digest,
        "what was forgotten is made again"
    );
}

#[test]
fn nothing_is_removed_while_somebody_uses_the_store() {
    let (bench, base, _) = bench();
    let held = bench.store.hold().unwrap();
    // What a running build has written has no name yet.
    let fresh = bench.store.put(b"of a running build").unwrap();
    let removed = bench.store.remove("base:1").unwrap();
    assert_eq!((removed.later, removed.blobs), (true, 0));
    assert!(bench.store.blobs().size(&fresh).is_some());
    assert!(base.verify(true).problems.is_empty(), "whoever uses the image goes on");
    assert!(matches!(bench.store.resolve("base:1"), Err(Error::NotFound { .. })));
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        struct Told(std::sync::Mutex<std::sync::mpsc::Sender<()>>);
        impl crate::Progress for Told {
            fn event(&self, event: crate::Event) {
                if let crate::Event::Waiting(_) = event {
                    self.0.lock().unwrap().send(()).unwrap();
                }
            }
        }
        let told = Told(std::sync::Mutex::new(sender));
        let pruning = scope.spawn(move || bench.store.prune(WET, &told).unwrap());
        receiver.recv().unwrap();
        assert!(base.verify(false).problems.is_empty(), "prune waits");
        drop(held);
        assert!(pruning.join().unwrap().blobs.iter().any(|blob| blob.digest == fresh));
    });
}

#[test]
fn a_damaged_image_is_listed_with_its_problem_and_repaired_by_loading_it_again() {
    let (bench, base, child) = bench();
    let file = bench.path("child.tar");
    save(&bench.store, "child:1", &file, &NoProgress).unwrap();
    let own = child.rootfs.layers.last().unwrap().digest.clone();
    for digest in [own, child.rootfs.manifest.digest.clone(), child.index.digest.clone()] {
        let path = bench.store.blobs().path(&digest);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        let report = bench.store.verify("child:1", &NoProgress).unwrap();
        assert!(
            report.problems.len() == 1 && report.problems[0].contains(digest.as_str()),
            "{report:?}"
        );
        let options = PruneOptions { damaged: true, ..WET };
        let dry = bench
            .store
            .prune(
                PruneOptions {
                    dry_run: true,
                    ..options
                },
                &NoProgress,
            )
            .unwrap();
        assert!(bench.store.blobs().size(&digest).is_some());
        let pruned = bench.store.prune(options, &NoProgress).unwrap();
        assert_eq!(pruned.damaged, dry.damaged);
        assert_eq!(pruned.damaged.len(), 1);
        assert_eq!(
            (&pruned.damaged[0].digest, pruned.damaged[0].images.as_slice()),
            (&digest, &["child:1".to_string()][..])
        );
        let listed = bench.store.list().unwrap();
        assert_eq!(listed[0].problem, None);
        assert!(
            listed[1].problem.as_ref().unwrap().contains(digest.as_str()),
            "{listed:?}"
        );
        assert!(base.verify(true).problems.is_empty());
        load(&bench.store, &file, None, &NoProgress).unwrap();
        assert!(child.verify(true).problems.is_empty());
    }
}

#[test]
fn nothing_is_freed_while_it_is_unknown_what_an_image_needs() {
    let (bench, base, child) = bench();
    fs::write(bench.store.blobs().path(&child.index.digest), "{").unwrap();
    let before = bench.store.blobs().list().unwrap();
    let error = bench.store.prune(WET, &NoProgress).unwrap_err().to_string();
    assert!(
        error.contains("what image child:1 needs") && error.contains("nothing is removed"),
        "{error}"
    );
    drop(base);
    assert!(bench.store.remove("base:1").is_err());
    assert_eq!(bench.store.blobs().list().unwrap(), before);
    bench.store.remove("child:1").unwrap();
    assert!(bench.store.blobs().list().unwrap().is_empty());
}

/// An index that lists the child's content, changed by `change`.
fn changed(bench: &Bench, child: &ClusterImage, change: impl Fn(&mut oci::Index)) -> oci::Descriptor {
    let mut index = bench.store.read_index(&child.index).unwrap();
    change(&mut index);
    bench.store.put_json(oci::media_type::INDEX, &index).unwrap()
}

#[test]
fn what_has_not_the_size_that_is_said_of_it_gets_no_name() {
    let (bench, _base, child) = bench();
    let config: oci::Descriptor = child.rootfs.config.clone();
    let manifest: serde_json::Value = bench.store.read_json(&child.rootfs.manifest).unwrap();
    let mut lying = manifest.clone();
    lying["config"]["size"] = serde_json::json!(config.size + 1);
    let lying = bench.store.put_json(oci::media_type::MANIFEST, &lying).unwrap();
    for (index, expected) in [
        (
            changed(&bench, &child, |index| index.manifests[0].size += 100),
            "instead of",
        ),
        (
            changed(&bench, &child, |index| {
                index.manifests[0].digest.clone_from(&lying.digest);
                index.manifests[0].size = lying.size;
            }),
            "instead of",
        ),
        (
            changed(&bench, &child, |index| {
                index.manifests[0].digest = Digest::of(b"nowhere")
            }),
            "missing",
        ),
    ] {
        let error = bench
            .store
            .tag(&"lies:1".parse().unwrap(), &index)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert!(bench.store.resolve("lies:1").is_err(), "it has no name");
    }
}

#[test]
fn an_image_that_can_never_be_used_is_told_with_what_to_do_and_goes_with_the_damaged() {
    let (bench, base, child) = bench();
    let lies = changed(&bench, &child, |index| index.manifests[0].size += 100);
    // As a program without the check has left it.
    bench
        .store
        .change_index(|root| {
            let mut entry = lies.clone();
            entry.annotations.insert(oci::REF_NAME.into(), "lies:1".into());
            root.manifests.push(entry);
        })
        .unwrap();
    let problem = |name: &str| {
        let listed = bench.store.list().unwrap();
        listed.into_iter().find(|image| image.name == name).unwrap().problem
    };
    let told = problem("lies:1").unwrap();
    assert!(
        told.contains("can never be used") && told.contains("prune --damaged") && told.contains("rmi lies:1"),
        "{told}"
    );
    let error = bench.store.prune(WET, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("prune --damaged"), "{error}");
    for dry_run in [true, false] {
        let options = PruneOptions {
            damaged: true,
            dry_run,
            ..WET
        };
        let pruned = bench.store.prune(options, &NoProgress).unwrap();
        let names: Vec<&str> = pruned.unusable.iter().map(|image| image.name.as_str()).collect();
        assert_eq!(names, ["lies:1"]);
        let freed: Vec<&Digest> = pruned.blobs.iter().map(|blob| &blob.digest).collect();
        assert_eq!(freed, [&lies.digest], "what other images need stays");
    }
    assert!(bench.store.list().unwrap().iter().all(|image| image.problem.is_none()));
    for image in [base, child] {
        assert!(image.verify(true).problems.is_empty());
    }
    // What is only damaged can be repaired, and keeps its name.
    let layer = bench.open("child:1").rootfs.layers.pop().unwrap();
    fs::write(bench.store.blobs().path(&layer.digest), "x").unwrap();
    assert!(problem("child:1").unwrap().contains("build, load or pull it again"));
    let options = PruneOptions { damaged: true, ..WET };
    assert!(bench.store.prune(options, &NoProgress).unwrap().unusable.is_empty());
    assert!(bench.store.resolve("child:1").is_ok());
}

#[test]
fn names_stand_for_what_they_say() {
    let (bench, base, child) = bench();
    let pinned: Reference = format!("x:1@{}", child.index.digest).parse().unwrap();
    let error = bench.store.tag(&pinned, &base.index).unwrap_err().to_string();
    assert!(
        error.contains(base.index.digest.as_str()) && error.contains(child.index.digest.as_str()),
        "{error}"
    );
    bench.store.tag(&pinned, &child.index).unwrap();
    let short = &base.index.digest.hex()[..8];
    assert_eq!(bench.store.resolve(short).unwrap().digest, base.index.digest);
    assert_eq!(
        bench.store.resolve(base.index.digest.as_str()).unwrap().digest,
        base.index.digest
    );
    let removed = bench.store.remove(base.index.digest.as_str()).unwrap();
    assert!(removed.blobs > 0);
    assert!(bench.store.resolve("base:1").is_err(), "all names of a digest go");
}

#[test]
fn an_image_is_described_platform_by_platform() {
    let (bench, base, child) = bench();
    let description = bench.store.describe("child:1", true).unwrap();
    assert_eq!(
        (description.names.as_slice(), &description.digest),
        (&["child:1".to_string()][..], &child.index.digest)
    );
    assert_eq!(
        (description.size, description.blobs),
        (bytes(&child), child.all_blobs().len())
    );
    assert_eq!(description.created, None, "1970 is no date");
    let platform = &description.platforms[0];
    assert_eq!(platform.config.launch, ["web"]);
    assert_eq!(platform.images[0].reference, "a.b/web:v1");
    assert!(platform.files.iter().any(|file| file.path == "extra"));
    let json = serde_json::to_value(&description).unwrap();
    assert_eq!(json["platforms"][0]["config"]["env"]["A"], "1");
    let history = &bench.store.history("child:1").unwrap()[0];
    assert_eq!(history.steps.last().unwrap().created_by, "COPY web/x extra");
    let layers: Vec<_> = history.steps.iter().filter_map(|step| step.layer.clone()).collect();
    assert_eq!(
        layers,
        child
            .rootfs
            .layers
            .iter()
            .map(|layer| layer.digest.clone())
            .collect::<Vec<_>>()
    );
    assert_eq!(base.platform, host_platform());
}

#[test]
fn a_store_made_by_somebody_else_at_the_same_time_is_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let path = dir.path().join("store");
            scope.spawn(move || {
                let store = Store::open(&path).unwrap();
                let index = store.put_json(oci::media_type::INDEX, &oci::Index::default()).unwrap();
                store.tag(&format!("x:{number}").parse().unwrap(), &index).unwrap();
            });
        }
    });
    assert_eq!(Store::open(&dir.path().join("store")).unwrap().list().unwrap().len(), 8);
}

#[test]
fn builds_and_removals_at_the_same_time_leave_whole_images() {
    let bench = Bench::new();
    bench.try_build("kept:1").unwrap();
    std::thread::scope(|scope| {
        for number in 0..3 {
            let bench = &bench;
            scope.spawn(move || {
                for _ in 0..8 {
                    let name = format!("x:{number}");
                    bench.try_build(&name).unwrap();
                    assert_eq!(
                        bench.store.verify(&name, &NoProgress).unwrap().problems,
                        Vec::<String>::new()
                    );
                    bench.store.remove(&name).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..16 {
                bench.store.prune(WET, &NoProgress).unwrap();
            }
        });
    });
    assert_eq!(
        bench.store.verify("kept:1", &NoProgress).unwrap().problems,
        Vec::<String>::new()
    );
    bench.store.prune(WET, &NoProgress).unwrap();
    let listed = bench.store.list().unwrap();
    assert_eq!(
        (listed.len(), listed[0].blobs),
        (1, bench.store.blobs().list().unwrap().len())
    );
}
