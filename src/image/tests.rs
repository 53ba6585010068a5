//! The crate as its callers use it: whole builds in temporary folders, and what comes out of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::{
    BuildOptions, Built, ClusterImage, Error, Event, FileKind, NoProgress, Progress, Store, build, host_platform, load,
    save,
};

pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

pub(crate) const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: a.b/web:v1\n";
pub(crate) const KUBEFILE: &str = "FROM scratch\nENV A=1\nLABEL vendor=me\nCOPY bin bin\nCOPY --from=more m.txt etc/\nCOPY manifests manifests\n\
                        APP web app.yaml\nAPPENV web X=1\nLAUNCH [\"web\"]\nIMAGE a.b/web:v1 FROM web\n";

impl Bench {
    /// A context that builds, as [`KUBEFILE`] describes.
    pub(crate) fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let bench = Bench { dir, store };
        bench.write("Kubefile", KUBEFILE);
        bench.write("bin/tool", "#!/bin/sh\n");
        fs::set_permissions(bench.path("bin/tool"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("tool", bench.path("bin/link")).unwrap();
        bench.write("../more/m.txt", "more");
        bench.write("manifests/pod.yaml", MANIFEST);
        bench.write("app.yaml", "apiVersion: v1\nkind: ConfigMap\n");
        bench.write(
            "web/Containerfile",
            "FROM scratch\nCOPY x /srv/x\nWORKDIR /srv\nEXPOSE 80\nCMD [\"/srv/x\"]\n",
        );
        bench.write("web/x", "x");
        bench
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.context().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(self.context()).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn options(&self, tag: &str) -> BuildOptions {
        options_in(self.dir.path(), tag)
    }

    pub(crate) fn try_build(&self, tag: &str) -> Result<Built, Error> {
        self.try_build_with(self.options(tag))
    }

    pub(crate) fn try_build_with(&self, options: BuildOptions) -> Result<Built, Error> {
        self.try_build_told(options, Arc::new(NoProgress))
    }

    fn try_build_told(&self, options: BuildOptions, progress: Arc<dyn Progress>) -> Result<Built, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(build(&self.store, options, progress))
    }

    /// An image, and what the build warned of, with the context's own path taken out.
    pub(crate) fn build_warned(&self, kubefile: &str) -> (ClusterImage, Vec<String>) {
        struct Warned(Mutex<Vec<String>>);
        impl Progress for Warned {
            fn event(&self, event: Event) {
                if let Event::Warning(text) = event {
                    self.0.lock().unwrap().push(text);
                }
            }
        }
        self.write("Kubefile", kubefile);
        let warned = Arc::new(Warned(Mutex::default()));
        self.try_build_told(self.options("t:1"), Arc::clone(&warned) as Arc<dyn Progress>)
            .unwrap();
        let warnings = std::mem::take(&mut *warned.0.lock().unwrap());
        let context = format!("{}/", self.context().display());
        let plain = warnings.into_iter().map(|text| text.replace(&context, ""));
        (self.open("t:1"), plain.collect())
    }

    pub(crate) fn try_build_from(&self, kubefile: &str) -> Result<Built, Error> {
        self.write("Kubefile", kubefile);
        self.try_build("t:1")
    }

    pub(crate) fn build(&self, tag: &str, kubefile: &str) -> ClusterImage {
        self.write("Kubefile", kubefile);
        self.try_build(tag).unwrap();
        self.open(tag)
    }

    pub(crate) fn open(&self, tag: &str) -> ClusterImage {
        ClusterImage::open(&self.store, tag, &host_platform()).unwrap()
    }

    /// The build's error, with the context's own path taken out.
    pub(crate) fn refusal(&self, kubefile: &str) -> String {
        self.write("Kubefile", kubefile);
        let text = self.try_build("t:1").unwrap_err().to_string();
        text.replace(&format!("{}/", self.context().display()), "")
    }
}

/// What to build in the folder of a bench, for processes that don't own it.
pub(crate) fn options_in(dir: &Path, tag: &str) -> BuildOptions {
    BuildOptions {
        kubefile: dir.join("context/Kubefile"),
        context: dir.join("context"),
        build_contexts: BTreeMap::from([("more".to_string(), dir.join("more"))]),
        build_args: BTreeMap::new(),
        tag: tag.parse().unwrap(),
        platforms: vec![host_platform()],
        pull: crate::PullOptions {
            offline: true,
            ..Default::default()
        },
        helm: None,
    }
}

pub(crate) fn text(image: &ClusterImage, path: &str) -> String {
    String::from_utf8(image.read_file(path).unwrap().to_vec()).unwrap()
}

#[test]
fn same_inputs_give_the_same_digest_whatever_the_checkout() {
    let (one, two) = (Bench::new(), Bench::new());
    // Another umask, other times, other order of creation.
    fs::set_permissions(two.path("manifests/pod.yaml"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(two.path("bin"), fs::Permissions::from_mode(0o700)).unwrap();
    let old = fs::File::options().write(true).open(two.path("bin/tool")).unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let kubefile = format!("{KUBEFILE}RUN date +%Y > now; umask > mask; mkdir -p d; echo $A > d/a\n");
    one.write("Kubefile", &kubefile);
    two.write("Kubefile", &kubefile);
    let (first, second) = (one.try_build("t:1").unwrap(), two.try_build("t:1").unwrap());
    assert_eq!(first.digest, second.digest);
    assert_eq!(
        one.try_build("t:2").unwrap().digest,
        first.digest,
        "and again from what is remembered"
    );
    fs::remove_dir_all(one.store.root().join("cache")).unwrap();
    let store = Store::open(one.store.root()).unwrap();
    assert_eq!(
        store.resolve("t:1").unwrap().digest,
        one.try_build("t:3").unwrap().digest,
        "and without it"
    );
}

#[test]
fn an_image_says_what_its_kubefile_said() {
    let bench = Bench::new();
    let image = bench.build("local/x:1", KUBEFILE);
    assert_eq!(image.config.env["A"], "1");
    assert_eq!(image.config.labels["vendor"], "me");
    assert_eq!(image.config.launch, ["web"]);
    assert_eq!(image.config.apps["web"].env["X"], "1");
    assert_eq!(text(&image, "etc/m.txt"), "more");
    assert_eq!(text(&image, "manifests/pod.yaml"), MANIFEST);
    let listed: Vec<_> = image
        .list("bin")
        .unwrap()
        .into_iter()
        .map(|e| (e.path, e.mode, e.kind))
        .collect();
    assert_eq!(listed[0], ("bin".into(), 0o755, FileKind::Folder));
    assert_eq!(
        listed[1],
        ("bin/link".into(), 0o777, FileKind::Link { target: "tool".into() })
    );
    assert_eq!((listed[2].0.as_str(), listed[2].1), ("bin/tool", 0o755));
    let mut content = Vec::new();
    image.copy_file("bin/link", &mut content).unwrap();
    assert_eq!(content, b"#!/bin/sh\n");
    assert_eq!(image.carried.len(), 1);
    assert_eq!(image.carried[0].reference.to_string(), "a.b/web:v1");
    assert_eq!(image.carried[0].blobs.len(), 3, "manifest, configuration, one layer");
    let report = image.verify(true);
    assert_eq!((report.blobs, report.problems.len()), (image.all_blobs().len(), 0));
    assert!(
        image
            .read_file("bin/none")
            .unwrap_err()
            .to_string()
            .contains("no such file")
    );
}

#[test]
fn a_run_layer_holds_only_what_changed_and_removals_are_honoured() {
    let bench = Bench::new();
    let base = bench.build("base:1", KUBEFILE);
    let run = "FROM base:1\nRUN rm -r bin/link etc; echo new > bin/new; chmod 0640 bin/new; touch bin/tool\n";
    let image = bench.build("child:1", run);
    assert_eq!(
        image.rootfs.layers[..base.rootfs.layers.len()],
        base.rootfs.layers,
        "layers are shared"
    );
    assert_eq!(image.rootfs.layers.len(), base.rootfs.layers.len() + 1);
    let top = crate::layer::read_records(bench.store.blobs(), image.rootfs.layers.last().unwrap()).unwrap();
    assert_eq!(top.len(), 3, "{top:?}");
    let listed: Vec<_> = image.list("").unwrap().into_iter().map(|e| e.path).collect();
    assert!(
        !listed.iter().any(|path| path == "bin/link" || path.starts_with("etc")),
        "{listed:?}"
    );
    assert_eq!(text(&image, "bin/new"), "new\n");
    assert_eq!(image.list("bin/new").unwrap()[0].mode, 0o640);
    assert_eq!(image.carried.len(), 1, "carried images are inherited");
    assert_eq!(image.config.env["A"], "1");
    let same = bench.build("same:1", "FROM base:1\nCOPY bin bin\n");
    assert_eq!(
        same.rootfs.layers, base.rootfs.layers,
        "copying what is there makes no layer"
    );
}

#[test]
fn paths_out_of_the_context_and_special_files_are_refused() {
    let bench = Bench::new();
    bench.write("../outside", "secret");
    symlink("../../outside", bench.path("web/link")).unwrap();
    symlink("/etc/hostname", bench.path("abs")).unwrap();
    let fifo = bench.path("pipes/p");
    fs::create_dir(bench.path("pipes")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    for (line, expected) in [
        (
            "COPY ../outside x",
            "Kubefile:2:6: ../outside: it leads out of the build context",
        ),
        (
            "COPY web w",
            "Kubefile:2:1: web/link: the symbolic link to ../../outside leads out of its folder",
        ),
        (
            "COPY abs x",
            "Kubefile:2:6: abs: it leads out of the build context by a symbolic link",
        ),
        (
            "COPY pipes x",
            "Kubefile:2:1: pipes/p: only files, folders and symbolic links are allowed",
        ),
        ("COPY app.yaml ../x", "Kubefile:2:15: ../x: `..` is not allowed"),
        (
            "COPY bin/none x",
            "Kubefile:2:6: bin/none: there is no such file in the build context",
        ),
        (
            "COPY --from=moer m.txt x",
            "Kubefile:2:1: there is no build context \"moer\", did you mean \"more\"?",
        ),
        ("RUN mkfifo p", "Kubefile:2:1: "),
        (
            "RUN echo because; false",
            "Kubefile:2:1: the command failed (exit status: 1)\n  because",
        ),
        (
            "IMAGE a.b/c:1 FROM bin",
            "Kubefile:2:20: bin: the folder has no Containerfile",
        ),
        ("IMAGE a.b/c:1 FROM ../web", "Kubefile:2:20: ../web: it leads out"),
        ("LAUNCH web", "Kubefile:2:1: LAUNCH: the image has no APP \"web\""),
        (
            "APPENV web A=1",
            "Kubefile:2:1: there is no APP \"web\" before this line",
        ),
        (
            "FRMO x",
            "Kubefile:2:1: unknown instruction \"FRMO\", did you mean \"FROM\"?",
        ),
    ] {
        let error = bench.refusal(&format!("FROM scratch\n{line}\n"));
        assert!(error.starts_with(expected), "{line}\n{error}");
    }
    assert!(
        bench
            .refusal("FROM local/no:1\n")
            .starts_with("Kubefile:1:6: image local/no:1 is not in the store")
    );
    assert!(bench.store.list().unwrap().is_empty(), "a failed build names nothing");
}

#[test]
fn an_image_that_is_not_carried_fails_the_build_with_its_place() {
    let bench = Bench::new();
    bench.write("manifests/pod.yaml", &MANIFEST.replace("web:v1", "web:v2"));
    bench.write(
        "etc/containerd/config.toml.tmpl",
        "version = 2\nsandbox_image = \"a.b/pause:1\"\n",
    );
    bench.write("bad/x.yaml", "kind: Pod\nspec: [\n");
    let error = bench.refusal(&format!("{KUBEFILE}COPY etc etc\n"));
    let offline = "and cannot be pulled: --no-pull is set, and no cluster image of the store carries it";
    let expected = format!(
        "etc/containerd/config.toml.tmpl:2: the image a.b/pause:1 is not carried {offline}\n\
         manifests/pod.yaml:5: the image a.b/web:v2 is not carried {offline}, nearest carried one: a.b/web:v1\n\
         every image a cluster needs must be inside its cluster image."
    );
    assert!(error.starts_with(&expected), "{error}");
    let error = bench.refusal("FROM scratch\nCNI x bad/x.yaml\n");
    assert!(error.starts_with("bad/x.yaml:"), "{error}");
}

#[test]
fn inherited_manifests_are_proved_too_and_run_cannot_hide_images() {
    let bench = Bench::new();
    bench.build("base:1", KUBEFILE);
    let error = bench.refusal("FROM base:1\nRUN sed -i s/web:v1/web:v9/ manifests/pod.yaml\n");
    assert!(
        error.starts_with("manifests/pod.yaml:5: the image a.b/web:v9 is not carried"),
        "{error}"
    );
    let image = bench.build("child:1", "FROM base:1\nIMAGE a.b/other:1 FROM web\n");
    assert_eq!(image.carried.len(), 2);
    assert_eq!(image.carried[0].manifest.digest, image.carried[1].manifest.digest);
}

#[test]
fn save_and_load_give_the_same_image_and_the_same_bytes() {
    let bench = Bench::new();
    let image = bench.build("local/x:1", KUBEFILE);
    let (one, two) = (bench.path("one.tar"), bench.path("two.tar"));
    save(&bench.store, "local/x:1", &one, &NoProgress).unwrap();
    let other = Store::open(&bench.dir.path().join("other")).unwrap();
    let loaded = load(&other, &one, None, &NoProgress).unwrap();
    assert_eq!(loaded.images[0].1, image.index.digest);
    assert_eq!(loaded.new_blobs, image.all_blobs().len());
    let again = load(&other, &one, None, &NoProgress).unwrap();
    assert_eq!((again.new_blobs, again.new_bytes), (0, 0));
    save(&other, "local/x:1", &two, &NoProgress).unwrap();
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    let copy = ClusterImage::open(&other, "local/x:1", &host_platform()).unwrap();
    assert_eq!(text(&copy, "manifests/pod.yaml"), MANIFEST);
    // The archive of a container image can be carried, but isn't a cluster image.
    let kubefile = "FROM scratch\nIMAGE a.b/nested:1 FROM oci-archive:one.tar\n";
    let nested = bench.build("nested:1", kubefile);
    assert_eq!(nested.carried.len(), 1);
}

/// One entry of an archive to be made.
pub(crate) struct Entry<'a>(pub(crate) &'a str, pub(crate) tar::EntryType, pub(crate) &'a [u8]);

pub(crate) fn archive(path: &Path, entries: &[Entry<'_>]) {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    for Entry(name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        // set_path refuses what an attacker would write.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.finish().unwrap();
}

#[test]
fn bad_archives_are_refused_by_name_and_leave_nothing() {
    use tar::EntryType::{Block, Directory, Fifo, Link, Regular, Symlink};
    let bench = Bench::new();
    let store = Store::open(&bench.dir.path().join("target")).unwrap();
    let file = bench.path("bad.tar");
    let layout = Entry("oci-layout", Regular, b"{}");
    let hex = "a".repeat(64);
    let blob = format!("blobs/sha256/{hex}");
    let empty = br#"{"schemaVersion":2,"manifests":[]}"#;
    let dangling = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:{hex}",
           "size":3,"annotations":{{"org.opencontainers.image.ref.name":"x:1"}}}}]}}"#
    );
    for (entries, expected) in [
        (
            vec![Entry("../evil", Regular, b"x")],
            "the entry \"../evil\" leads out of the archive",
        ),
        (vec![Entry("/etc/passwd", Regular, b"x")], "leads out of the archive"),
        (
            vec![Entry("blobs/sha256/../../x", Regular, b"x")],
            "leads out of the archive",
        ),
        (
            vec![Entry("index.json", Symlink, b"")],
            "the entry \"index.json\" is a link",
        ),
        (vec![Entry(&blob, Link, b"")], "is a link"),
        (vec![Entry("dev", Block, b"")], "is of the type Block"),
        (vec![Entry("p", Fifo, b"")], "is of the type Fifo"),
        (
            vec![Entry("other", Directory, b"")],
            "the folder \"other\" has no place",
        ),
        (
            vec![Entry("readme", Regular, b"x")],
            "the entry \"readme\" has no place",
        ),
        (
            vec![Entry(&blob, Regular, b"x")],
            "is corrupt: its content has the digest",
        ),
        (vec![Entry("index.json", Regular, empty)], "it has no oci-layout"),
        (vec![Entry("oci-layout", Regular, b"{}")], "it has no index.json"),
        (vec![layout, Entry("index.json", Regular, b"{")], "index.json: "),
        (
            vec![Entry("oci-layout", Regular, b"{}"), Entry("index.json", Regular, empty)],
            "lists no image",
        ),
        (
            vec![
                Entry("oci-layout", Regular, b"{}"),
                Entry("index.json", Regular, dangling.as_bytes()),
            ],
            "blob sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa is missing",
        ),
    ] {
        archive(&file, &entries);
        let error = load(&store, &file, None, &NoProgress).unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected}\ngot {error}");
        assert!(error.contains("bad.tar"), "{error}");
    }
    assert!(store.list().unwrap().is_empty());
    assert!(store.blobs().list().unwrap().is_empty());
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_damaged_or_cut_archive_is_refused_wherever_the_damage_is() {
    let bench = Bench::new();
    bench.build("local/x:1", KUBEFILE);
    let good = bench.path("good.tar");
    save(&bench.store, "local/x:1", &good, &NoProgress).unwrap();
    let bytes = fs::read(&good).unwrap();
    let store = Store::open(&bench.dir.path().join("target")).unwrap();
    let bad = bench.path("bad.tar");
    for cut in [0, 100, 512, bytes.len() / 2, bytes.len() - 3000] {
        fs::write(&bad, &bytes[..cut]).unwrap();
        assert!(
            matches!(load(&store, &bad, None, &NoProgress), Err(Error::Archive { .. })),
            "cut at {cut}"
        );
    }
    for at in (0..bytes.len() - 1024).step_by(487) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        fs::write(&bad, &damaged).unwrap();
        // Padding and header fields that mean nothing may differ; content may not.
        if let Ok(loaded) = load(&store, &bad, None, &NoProgress) {
            let image = ClusterImage::open(&store, loaded.images[0].1.as_str(), &host_platform()).unwrap();
            assert!(image.verify(true).problems.is_empty(), "damage at {at}");
            let name = loaded.images[0].0.to_string();
            store.remove(&name).unwrap();
        }
    }
    assert!(store.list().unwrap().is_empty());
    fs::write(&bad, b"no archive at all, but long enough".repeat(40)).unwrap();
    assert!(
        load(&store, &bad, None, &NoProgress)
            .unwrap_err()
            .to_string()
            .contains("no oci-archive")
    );
}

#[test]
fn removing_an_image_keeps_what_others_share() {
    let bench = Bench::new();
    bench.build("base:1", KUBEFILE);
    bench.build("child:1", "FROM base:1\nCOPY web/x extra\n");
    fs::write(bench.store.root().join("tmp/left"), "by a crash").unwrap();
    let removed = bench.store.remove("base:1").unwrap();
    assert!(removed.blobs > 0);
    assert!(bench.open("child:1").verify(true).problems.is_empty());
    assert!(!bench.store.root().join("tmp/left").exists());
    let error = bench.store.remove("chld:1").unwrap_err().to_string();
    assert!(
        error.contains("did you mean \"docker.io/library/child:1\"") || error.contains("did you mean \"child:1\""),
        "{error}"
    );
    bench.store.remove("child:1").unwrap();
    assert!(bench.store.blobs().list().unwrap().is_empty());
    assert_eq!(
        fs::read_dir(bench.store.root().join("cache/layers")).unwrap().count(),
        0
    );
}

#[test]
fn a_flipped_bit_in_the_store_is_found_and_named() {
    let bench = Bench::new();
    let image = bench.build("x:1", KUBEFILE);
    let layer = &image.rootfs.layers[0];
    let path = bench.store.blobs().path(&layer.digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(image.verify(false).problems.is_empty(), "sizes are the same");
    let report = image.verify(true);
    assert_eq!(report.problems.len(), 1);
    assert!(report.problems[0].contains(layer.digest.as_str()), "{report:?}");
    fs::remove_file(&path).unwrap();
    assert!(image.verify(false).problems[0].ends_with("is missing"));
}

#[test]
fn builds_at_the_same_time_do_not_disturb_each_other() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let bench = &bench;
            scope.spawn(move || bench.try_build(&format!("x:{number}")).unwrap());
        }
    });
    let images = bench.store.list().unwrap();
    assert_eq!(images.len(), 4);
    assert!(images.iter().all(|image| image.digest == images[0].digest));
}

#[test]
fn other_tools_read_the_store() {
    let bench = Bench::new();
    let image = bench.build("local/x:1", KUBEFILE);
    let skopeo = |args: &[&str]| std::process::Command::new("skopeo").args(args).output();
    let source = format!("oci:{}:local/x:1", bench.store.root().display());
    let Ok(inspected) = skopeo(&["inspect", &source]) else {
        eprintln!("skopeo is not installed; not compared");
        return;
    };
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["Digest"], image.index.digest.as_str());
    assert_eq!(inspected["Env"][0], "A=1");
    let copy = format!("oci:{}:x", bench.path("copy").display());
    let output = skopeo(&["--insecure-policy", "copy", "--all", &source, &copy]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
