//! Processes that are killed at any moment: the store stays whole, and the next process goes on.
//!
//! The killed process is this test program itself, told by its environment what to do.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use oci::Digest;
use proptest::prelude::*;

use crate::layer::Layer;
use crate::registry_double::{Double, Kind};
use crate::tests::{Bench, KUBEFILE, options_in};
use crate::transfer_tests::noise;
use crate::{Event, NoProgress, Progress, PruneOptions, Remote, RemoteOptions, Save, Store, build, load, pull, push};

const DIR: &str = "INSTALLER_TEST_CRASH_DIR";
const STORE: &str = "INSTALLER_TEST_CRASH_STORE";
const WORK: &str = "INSTALLER_TEST_CRASH_WORK";

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

#[test]
#[ignore = "what the tests below kill"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(DIR).unwrap());
    let store = Store::open(Path::new(&std::env::var_os(STORE).unwrap())).unwrap();
    let work = std::env::var(WORK).unwrap();
    match work.split_once(' ').unwrap_or((&work, "")) {
        ("build", _) => {
            block_on(build(&store, options_in(&dir, "app:1"), Arc::new(NoProgress))).unwrap();
        }
        ("load", file) => {
            load(&store, Path::new(file), None, &NoProgress).unwrap();
        }
        ("pull", registry) => {
            let remote = remote(registry);
            let name = format!("{registry}/team/app:1").parse().unwrap();
            block_on(pull(&store, &name, None, &remote, Arc::new(NoProgress))).unwrap();
        }
        ("remove", name) => {
            store.remove(name).unwrap();
            store.prune(PruneOptions::default(), &NoProgress).unwrap();
        }
        ("save", file) => {
            Save::new(&store, "app:1", &[])
                .unwrap()
                .to_parts(Path::new(file), 20_000, &NoProgress)
                .unwrap();
        }
        other => panic!("{other:?}"),
    }
}

fn remote(registry: &str) -> Arc<Remote> {
    Remote::new(RemoteOptions {
        insecure: vec![registry.to_string()],
        ..RemoteOptions::default()
    })
    .unwrap()
}

fn spawn(dir: &Path, store: &Path, work: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash_tests::child", "--ignored", "--test-threads=1"]);
    command.env(DIR, dir).env(STORE, store).env(WORK, work);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// How long the work takes when nobody kills it.
fn whole_run(dir: &Path, store: &Path, work: &str) -> Duration {
    let start = Instant::now();
    assert!(spawn(dir, store, work).wait().unwrap().success(), "{work}");
    start.elapsed()
}

/// Runs the work and kills it after `delay`.
fn kill_after(dir: &Path, store: &Path, work: &str, delay: Duration) {
    let mut child = spawn(dir, store, work);
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Every blob that can be seen is whole, and so is every image that has a name.
fn is_sound(store: &Store) {
    for digest in store.blobs().list().unwrap() {
        store
            .blobs()
            .verify(&digest, store.blobs().size(&digest).unwrap())
            .unwrap();
    }
    for image in store.list().unwrap() {
        assert_eq!(image.problem, None);
        assert_eq!(
            store.verify(&image.name, &NoProgress).unwrap().problems,
            Vec::<String>::new(),
            "{}",
            image.name
        );
    }
}

/// The layers that a store remembers and has.
fn remembered(store: &Store) -> BTreeSet<Digest> {
    let entries = fs::read_dir(store.root().join("cache/layers")).unwrap().flatten();
    let layers = entries.filter_map(|entry| serde_json::from_slice::<Layer>(&fs::read(entry.path()).unwrap()).ok());
    let there = layers.filter(|layer| store.blobs().has(&layer.descriptor.digest, layer.descriptor.size));
    there.map(|layer| layer.descriptor.digest).collect()
}

/// Remembers which layers were made anew.
#[derive(Default)]
struct Made(Mutex<BTreeSet<Digest>>);

impl Progress for Made {
    fn event(&self, event: Event) {
        if let Event::Layer {
            digest, cached: false, ..
        } = event
        {
            self.0.lock().unwrap().insert(digest);
        }
    }
}

fn bench() -> Bench {
    let bench = Bench::new();
    for number in 0..4 {
        bench.write(&format!("big/{number}/file"), &noise(150_000 + number));
    }
    let steps: String = (0..4)
        .map(|number| format!("COPY big/{number} data{number}\n"))
        .collect();
    bench.write("Kubefile", &format!("{KUBEFILE}{steps}RUN echo x > bin/made\n"));
    bench
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        // The moment of the kill is not exactly repeatable.
        max_shrink_iters: 0,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn a_build_killed_at_any_moment_leaves_a_sound_store_and_the_next_one_goes_on_to_the_same_digest() {
    let bench = bench();
    let dir = bench.dir.path();
    let expected = bench.try_build("app:1").unwrap().digest;
    let whole = whole_run(dir, &dir.join("timed"), "build");
    let number = std::cell::Cell::new(0);
    proptest!(config(48), |(part in 0.0..1.05f64)| {
        number.set(number.get() + 1);
        let path = dir.join(format!("killed{}", number.get()));
        let store = Store::open(&path).unwrap();
        // The second process meets what the first one left.
        for share in [part, 1.05 - part] {
            kill_after(dir, &path, "build", whole.mul_f64(share.max(0.0)));
            is_sound(&store);
        }
        let known = remembered(&store);
        let made = Arc::new(Made::default());
        let built = block_on(build(&store, options_in(dir, "app:1"), made.clone())).unwrap();
        prop_assert_eq!(&built.digest, &expected);
        let again: Vec<_> = made.0.lock().unwrap().intersection(&known).cloned().collect();
        prop_assert!(again.is_empty(), "made again: {:?}", again);
        is_sound(&store);
        store.prune(PruneOptions::default(), &NoProgress).unwrap();
        prop_assert_eq!(fs::read_dir(path.join("tmp")).unwrap().count(), 0);
        is_sound(&store);
        fs::remove_dir_all(&path).unwrap();
    });
}

#[test]
fn a_load_or_pull_killed_at_any_moment_names_nothing_half_and_the_next_one_ends_it() {
    let bench = bench();
    let dir = bench.dir.path();
    let expected = bench.try_build("app:1").unwrap().digest;
    let file = dir.join("app.tar");
    crate::save(&bench.store, "app:1", &file, &NoProgress).unwrap();
    let registry = Double::start(Kind::default());
    let name = format!("{}/team/app:1", registry.address).parse().unwrap();
    block_on(push(
        &bench.store,
        "app:1",
        &name,
        &[],
        &remote(&registry.address),
        Arc::new(NoProgress),
    ))
    .unwrap();
    let number = std::cell::Cell::new(0);
    for work in [format!("load {}", file.display()), format!("pull {}", registry.address)] {
        let whole = whole_run(dir, &dir.join(format!("timed{}", number.get())), &work);
        proptest!(config(24), |(part in 0.0..1.05f64)| {
            number.set(number.get() + 1);
            let path = dir.join(format!("killed{}", number.get()));
            let store = Store::open(&path).unwrap();
            kill_after(dir, &path, &work, whole.mul_f64(part));
            is_sound(&store);
            whole_run(dir, &path, &work);
            is_sound(&store);
            let digests: Vec<Digest> = store.list().unwrap().into_iter().map(|image| image.digest).collect();
            prop_assert_eq!(digests, vec![expected.clone()]);
            prop_assert!(store.blobs().list_partial().unwrap().is_empty());
            fs::remove_dir_all(&path).unwrap();
        });
    }
}

#[test]
fn a_removal_killed_at_any_moment_takes_nothing_from_other_images() {
    let bench = bench();
    let dir = bench.dir.path();
    bench.try_build("app:1").unwrap();
    let archive = dir.join("app.tar");
    crate::save(&bench.store, "app:1", &archive, &NoProgress).unwrap();
    bench.write("Kubefile", "FROM app:1\nCOPY web/x extra\n");
    let child = bench.try_build("child:1").unwrap();
    let work = "remove app:1";
    let other = Store::open(&dir.join("timed")).unwrap();
    load(&other, &archive, None, &NoProgress).unwrap();
    let whole = whole_run(dir, &dir.join("timed"), work);
    assert!(other.list().unwrap().is_empty());
    proptest!(config(24), |(part in 0.0..1.05f64)| {
        load(&bench.store, &archive, None, &NoProgress).unwrap();
        bench.store.put(format!("garbage {part}").as_bytes()).unwrap();
        kill_after(dir, bench.store.root(), work, whole.mul_f64(part));
        is_sound(&bench.store);
        let names: Vec<String> = bench.store.list().unwrap().into_iter().map(|image| image.name).collect();
        prop_assert!(names.contains(&"child:1".to_string()), "{:?}", names);
        bench.store.prune(PruneOptions::default(), &NoProgress).unwrap();
        is_sound(&bench.store);
        prop_assert_eq!(bench.store.resolve("child:1").unwrap().digest, child.digest.clone());
    });
}

#[test]
fn a_save_killed_at_any_moment_leaves_no_list_of_parts_that_are_not_whole() {
    let bench = bench();
    let dir = bench.dir.path();
    bench.try_build("app:1").unwrap();
    let media = dir.join("media");
    fs::create_dir(&media).unwrap();
    let (base, list) = (media.join("app.tar"), media.join("app.tar.sha256"));
    let work = format!("save {}", base.display());
    let whole = whole_run(dir, bench.store.root(), &work);
    proptest!(config(24), |(part in 0.0..1.05f64)| {
        kill_after(dir, bench.store.root(), &work, whole.mul_f64(part));
        if list.exists() {
            let other = Store::open(&dir.join("other")).unwrap();
            load(&other, &list, None, &NoProgress).unwrap();
            is_sound(&other);
        }
    });
    whole_run(dir, bench.store.root(), &work);
    let other = Store::open(&dir.join("last")).unwrap();
    load(&other, &media.join("app.tar.000"), None, &NoProgress).unwrap();
}
