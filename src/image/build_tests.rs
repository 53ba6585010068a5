//! Whole builds again: ADD, applications, several platforms, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use oci::Digest;

use crate::tests::{Bench, KUBEFILE, text};
use crate::{AppKind, ClusterImage, FileKind, Store};

/// Files by the path they are asked for.
type Content = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Serves what `content` holds, until the process ends; gives `host:port`.
fn serve(content: &Content) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let content = Arc::clone(content);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let content = Arc::clone(&content);
            std::thread::spawn(move || answer(stream, &content));
        }
    });
    address
}

fn answer(mut stream: TcpStream, content: &Content) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut request, mut header) = (String::new(), String::new());
    reader.read_line(&mut request).unwrap();
    while reader.read_line(&mut header).is_ok_and(|read| read > 2) {
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let found = content.lock().unwrap().get(path).cloned();
    let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
    let body = found.unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// A tar archive of regular files.
pub(crate) fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn put(bench: &Bench, name: &str, bytes: &[u8]) {
    bench.write(name, "");
    fs::write(bench.path(name), bytes).unwrap();
}

fn listed(image: &ClusterImage, prefix: &str) -> Vec<String> {
    image
        .list(prefix)
        .unwrap()
        .into_iter()
        .map(|entry| entry.path)
        .collect()
}

fn mode(image: &ClusterImage, path: &str) -> u32 {
    image.list(path).unwrap()[0].mode
}

#[test]
fn local_archives_are_unpacked_and_other_files_are_copied() {
    let bench = Bench::new();
    let archive = tar(&[("d/tool", 0o750, b"tool"), ("d/sub/x", 0o600, b"x")]);
    put(&bench, "a.tar", &archive);
    put(&bench, "a.tgz", &gzip(&archive));
    put(&bench, "a.tar.zst", &zstd::encode_all(archive.as_slice(), 3).unwrap());
    put(
        &bench,
        "one.gz",
        &gzip(b"no archive, only compressed, and longer than nothing"),
    );
    put(&bench, "a.tar.xz", b"\xfd7zXZ\0 and so on");
    let kubefile = "FROM scratch\nADD a.tar one/\nADD --chmod=0777 a.tgz two\nADD a.tar.zst one.gz three/\nADD --unpack=false a.tgz four/\n\
                    ADD --chmod=0700 bin/tool five/\nADD manifests six\nIMAGE a.b/web:v1 FROM web\n";
    let image = bench.build("t:1", kubefile);
    for folder in ["one", "two", "three"] {
        assert_eq!(
            mode(&image, &format!("{folder}/d/tool")),
            0o750,
            "{folder}: an archive's own modes"
        );
        assert_eq!(mode(&image, &format!("{folder}/d/sub/x")), 0o600);
        assert_eq!(text(&image, &format!("{folder}/d/tool")), "tool");
    }
    assert!(listed(&image, "three").contains(&"three/one.gz".to_string()));
    assert_eq!(listed(&image, "four"), ["four", "four/a.tgz"]);
    assert_eq!(mode(&image, "five/tool"), 0o700);
    assert_eq!(listed(&image, "six"), ["six", "six/pod.yaml"]);
    // What is remembered of an archive gives the same image, with its content or without, and so does nothing remembered.
    assert_eq!(bench.try_build("t:2").unwrap().digest, image.index.digest);
    let with_run = bench.build("t:3", &format!("{kubefile}RUN cat one/d/tool > seen\n"));
    assert_eq!(text(&with_run, "seen"), "tool");
    for folder in ["archives", "layers", "digests"] {
        fs::remove_dir_all(bench.store.root().join("cache").join(folder)).unwrap();
    }
    Store::open(bench.store.root()).unwrap();
    assert_eq!(bench.build("t:4", kubefile).index.digest, image.index.digest);
    let wrong = format!("sha256:{}", "0".repeat(64));
    for (line, expected) in [
        (
            "ADD a.tar.xz x/".to_string(),
            "Kubefile:2:1: a.tar.xz: xz archives can't be unpacked",
        ),
        (
            "ADD --unpack one.gz x/".to_string(),
            "Kubefile:2:14: one.gz: it is no archive, but --unpack wants one",
        ),
        (
            format!("ADD --checksum={wrong} a.tar x/"),
            "Kubefile:2:88: a.tar: it has the digest sha256:",
        ),
        (
            format!("ADD --checksum={wrong} bin x/"),
            "Kubefile:2:88: bin: --checksum is for a file",
        ),
    ] {
        let error = bench.refusal(&format!("FROM scratch\n{line}\n"));
        assert!(error.starts_with(expected), "{line}\n{error}");
    }
    bench.build(
        "t:5",
        &format!("FROM scratch\nADD --checksum={} a.tar x/\n", Digest::of(&archive)),
    );
}

#[test]
fn archives_cannot_hide_images_from_the_proof() {
    let bench = Bench::new();
    let manifest = b"apiVersion: v1\nkind: Pod\nspec: {containers: [{image: a.b/hidden:1}]}\n";
    put(&bench, "m.tar", &tar(&[("x.yaml", 0o644, manifest)]));
    let error = bench.refusal("FROM scratch\nADD m.tar manifests/\n");
    assert!(
        error.starts_with("manifests/x.yaml:3: the image a.b/hidden:1 is not carried"),
        "{error}"
    );
    // The second time its content is only remembered.
    let again = bench.refusal("FROM scratch\nADD m.tar manifests/\n");
    assert_eq!(again, error);
}

#[test]
fn what_was_fetched_once_needs_no_network_again() {
    let bench = Bench::new();
    let content = Content::default();
    let host = serve(&content);
    let archive = gzip(&tar(&[("d/tool", 0o755, b"tool")]));
    let serve = |path: &str, body: &[u8]| {
        content.lock().unwrap().insert(path.to_string(), body.to_vec());
    };
    serve("/f/tools%201.tgz?x=1", &archive);
    serve("/app.yaml", b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n");
    let app = Digest::of(&content.lock().unwrap()["/app.yaml"]);
    let url = format!("http://{host}/f/tools%201.tgz?x=1");
    let sum = Digest::of(&archive);
    let kubefile = format!(
        "FROM scratch\nADD --checksum={sum} {url} as-it-is/\nADD --checksum={sum} --unpack {url} .\nADD --checksum={sum} {url} named\n\
         APP web --checksum={app} http://{host}/app.yaml\n"
    );
    let image = bench.build("t:1", &kubefile);
    assert_eq!(listed(&image, "as-it-is"), ["as-it-is", "as-it-is/tools 1.tgz"]);
    assert_eq!(
        (text(&image, "d/tool").as_str(), mode(&image, "d/tool")),
        ("tool", 0o755)
    );
    assert_eq!(mode(&image, "named"), 0o644);
    assert_eq!(image.config.apps["web"].files, ["app.yaml"]);
    content.lock().unwrap().clear();
    assert_eq!(bench.try_build("t:2").unwrap().digest, image.index.digest);
    // What is used stays however old it is; what isn't goes with the next image that is removed.
    let downloads = bench.store.root().join("cache/downloads");
    let aged = |name: &str, days: u64| {
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(downloads.join(name))
            .unwrap();
        let age = std::time::Duration::from_secs(days * 86_400);
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    };
    aged(sum.hex(), 29);
    aged("unused", 31);
    bench.try_build("t:2").unwrap();
    aged("recent", 29);
    bench.store.remove("t:2").unwrap();
    let mut left: Vec<_> = fs::read_dir(&downloads)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let mut expected = vec![sum.hex().to_string(), app.hex().to_string(), "recent".to_string()];
    expected.sort();
    assert_eq!(left, expected);
    let renewed = fs::metadata(downloads.join(sum.hex())).unwrap().modified().unwrap();
    assert!(renewed.elapsed().unwrap() < std::time::Duration::from_secs(86_400));
    // A file that was damaged where it is kept is no file.
    let kept = bench.store.root().join("cache/downloads").join(sum.hex());
    fs::write(&kept, "damaged").unwrap();
    let error = bench.try_build("t:3").unwrap_err().to_string();
    assert!(error.contains("the server answered 404"), "{error}");
    serve("/f/tools%201.tgz?x=1", &archive);
    assert_eq!(bench.try_build("t:3").unwrap().digest, image.index.digest);
    fs::remove_file(&kept).unwrap();
    serve("/f/tools%201.tgz?x=1", b"something else");
    let error = bench.refusal(&kubefile);
    let place = format!(
        "Kubefile:2:{}: cannot fetch {url}: what came (14 bytes) has the digest sha256:",
        6 + 11 + sum.as_str().len()
    );
    assert!(error.starts_with(&place), "{error}");
    assert!(
        error.contains(&format!("not {sum}; if the new content is right")),
        "{error}"
    );
    assert!(!kept.exists());
}

#[test]
fn a_containerfile_may_fetch_too() {
    let bench = Bench::new();
    let content = Content::default();
    let host = serve(&content);
    let body = b"program".to_vec();
    content.lock().unwrap().insert("/p".to_string(), body.clone());
    let sum = Digest::of(&body);
    bench.write(
        "web/Containerfile",
        &format!("FROM scratch\nADD --checksum={sum} --chmod=0755 http://{host}/p /bin/\nENTRYPOINT [\"/bin/p\"]\n"),
    );
    let first = bench.build("t:1", "FROM scratch\nIMAGE a.b/web:v1 FROM web\n");
    content.lock().unwrap().clear();
    assert_eq!(bench.try_build("t:1").unwrap().digest, first.index.digest);
}

#[test]
fn applications_are_recorded_with_their_kind() {
    let bench = Bench::new();
    bench.write("dep/b.yaml", "apiVersion: v1\nkind: ConfigMap\n");
    bench.write("dep/a.yaml.tmpl", "{{ if .X }}\n");
    bench.write("dep/README.md", "text");
    bench.write("s/run.sh", "true\n");
    bench.write("data.bin", "x");
    let image = bench.build(
        "t:1",
        "FROM scratch\nAPP web local://app.yaml dep\nAPP job s\nAPP raw data.bin\nAPPCMDS raw [\"ls\"]\nAPPENV web A=1\nAPPENV web B=2 A=3\n\
         CNI net app.yaml\nCNI net dep\nCSI disk dep\nKUBEVERSION '>=1.30, <1.38'\nCMD one\nCMD two three\n",
    );
    let app = |name: &str| image.config.apps[name].clone();
    assert_eq!(
        (app("web").kind, app("web").files),
        (
            AppKind::Manifests,
            vec!["app.yaml".into(), "a.yaml.tmpl".into(), "b.yaml".into()]
        )
    );
    assert_eq!(
        (app("job").kind, app("job").files),
        (AppKind::Scripts, vec!["run.sh".to_string()])
    );
    assert_eq!(
        (app("raw").kind, app("raw").commands),
        (AppKind::Files, vec!["ls".to_string()])
    );
    assert_eq!(
        app("web").env.into_iter().collect::<Vec<_>>(),
        [("A".into(), "3".into()), ("B".into(), "2".into())]
    );
    assert_eq!(
        (image.config.cni.clone(), image.config.csi.clone()),
        (vec!["net".to_string()], vec!["disk".to_string()])
    );
    assert_eq!(image.config.kube_version.as_deref(), Some(">=1.30, <1.38"));
    assert_eq!(image.config.commands, ["one", "two three"]);
    assert!(listed(&image, "manifests").contains(&"manifests/app.yaml".to_string()));
    // An image on top may replace an application; nothing of the old one stays.
    let child = bench.build("t:2", "FROM t:1\nAPP web s\nCMD three\n");
    assert_eq!(
        (child.config.apps["web"].kind, child.config.apps["web"].env.len()),
        (AppKind::Scripts, 0)
    );
    assert_eq!(
        listed(&child, "application/apps/web"),
        ["application/apps/web", "application/apps/web/run.sh"]
    );
    assert_eq!(child.config.commands, ["three"]);
    assert_eq!(child.config.apps["job"], app("job"));
}

#[test]
fn an_application_that_cannot_be_launched_is_refused() {
    let bench = Bench::new();
    bench.write("data.bin", "x");
    bench.write("values.yaml", "replicas: 1\n");
    bench.write(
        "kust/kustomization.yaml",
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n",
    );
    for (lines, expected) in [
        (
            "APP raw data.bin",
            "Kubefile:2:1: APP raw: its files are not just manifests",
        ),
        ("APP k kust", "Kubefile:2:1: APP k: its files"),
        ("APP v values.yaml", "values.yaml:1:1: it is no Kubernetes object"),
        (
            "APP a app.yaml --values values.yaml",
            "Kubefile:2:25: values.yaml: --values is for a helm chart",
        ),
        (
            "APP a app.yaml\nAPP a app.yaml",
            "Kubefile:3:1: APP a stands in line 2 already",
        ),
        (
            "APP a app.yaml\nRUN rm application/apps/a/app.yaml",
            "Kubefile:2:1: APP a: application/apps/a/app.yaml is not there any more",
        ),
        (
            "APP web app.yaml\nLAUNCH wbe",
            "Kubefile:3:1: LAUNCH: the image has no APP \"wbe\", did you mean \"web\"?",
        ),
        (
            "APP a app.yaml\nLAUNCH a\nLAUNCH a",
            "Kubefile:4:1: LAUNCH stands in line 3 already",
        ),
        (
            "CMDS [\"a\"]\nCMDS [\"b\"]",
            "Kubefile:3:1: CMDS stands in line 2 already",
        ),
        ("CMD a\nCMDS [\"b\"]", "Kubefile:3:1: CMDS stands in line 2 already"),
        ("APP a none.yaml", "Kubefile:2:7: none.yaml: there is no such file"),
    ] {
        let error = bench.refusal(&format!("FROM scratch\n{lines}\n"));
        assert!(error.starts_with(expected), "{lines}\n{error}");
    }
    bench.build("t:1", "FROM scratch\nAPP v values.yaml\nAPPCMDS v [\"true\"]\n");
}

#[test]
fn an_image_may_be_built_from_itself() {
    let bench = Bench::new();
    let first = bench.build("local/x:1", KUBEFILE);
    let second = bench.build("local/x:1", "FROM local/x:1\nCOPY web/x extra\n");
    assert_ne!(first.index.digest, second.index.digest);
    assert_eq!(second.rootfs.layers[..first.rootfs.layers.len()], first.rootfs.layers);
    assert_eq!(bench.store.list().unwrap().len(), 1, "the name moved on");
    let third = bench.build("local/x:1", "FROM local/x:1\nCOPY web/x extra\nAPP web app.yaml\n");
    assert_eq!(
        third.rootfs.layers, second.rootfs.layers,
        "what is there already is not there twice"
    );
}

#[test]
fn one_name_is_one_image_and_arguments_are_for_somebody() {
    let bench = Bench::new();
    bench.write("other/Containerfile", "ARG WHO=me\nFROM scratch\nLABEL who=$WHO\n");
    let error = bench.refusal("FROM scratch\nIMAGE a.b/c:1 FROM web\nIMAGE a.b/c:1 FROM other\n");
    assert!(
        error.starts_with("Kubefile:3:1: a.b/c:1 stands in line 2 already, with the digest sha256:"),
        "{error}"
    );
    bench.build("t:1", "FROM scratch\nIMAGE a.b/c:1 FROM web\nIMAGE a.b/c:1 FROM web\n");
    let child = bench.build("t:2", "FROM t:1\nIMAGE a.b/c:1 FROM other\n");
    assert_eq!(child.carried.len(), 1, "a base's image may be replaced");
    let with = |name: &str| {
        let mut options = bench.options("t:3");
        options.build_args.insert(name.to_string(), "v".to_string());
        bench.try_build_with(options).map_err(|error| error.to_string())
    };
    assert_eq!(
        with("WOH").unwrap_err(),
        "--build-arg WOH: no ARG of the recipes has this name, did you mean \"WHO\"?"
    );
    with("WHO").unwrap();
    assert_eq!(
        with("TARGETARCH").unwrap_err(),
        "--build-arg TARGETARCH: the build's platform decides what TARGETARCH is"
    );
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    let bench = Bench::new();
    let file = fs::File::create(bench.path("manifests/large.yaml")).unwrap();
    file.set_len((16 << 20) + 1).unwrap();
    let error = bench.refusal("FROM scratch\nCOPY manifests manifests\n");
    assert!(
        error.starts_with("manifests/large.yaml: a text of more than 16 MiB is not read"),
        "{error}"
    );
    fs::File::create(bench.path("Kubefile"))
        .unwrap()
        .set_len((1 << 20) + 1)
        .unwrap();
    let error = bench.try_build("t:1").unwrap_err().to_string();
    assert!(error.contains("a recipe has at most 1048576 bytes"), "{error}");
    fs::remove_file(bench.path("Kubefile")).unwrap();
    assert!(
        bench
            .try_build("t:1")
            .unwrap_err()
            .to_string()
            .starts_with("cannot read ")
    );
    fs::create_dir(bench.path("Kubefile")).unwrap();
    assert!(
        bench
            .try_build("t:1")
            .unwrap_err()
            .to_string()
            .starts_with("cannot read ")
    );
}

#[test]
fn files_that_are_left_out_change_nothing() {
    let bench = Bench::new();
    bench.write("tree/keep", "k");
    bench.write(".kubefileignore", "tree/*.log\n**/*.tmp\n");
    let kubefile = "FROM scratch\nCOPY tree tree\nCOPY . all\n";
    bench.write("web/Containerfile", "FROM scratch\nCOPY . /\n");
    bench.write("web/.dockerignore", "Containerfile\n.dockerignore\n*.tmp\n");
    let kubefile = format!("{kubefile}IMAGE a.b/web:v1 FROM web\n");
    let first = bench.build("t:1", &kubefile);
    for left_out in ["tree/a.log", "tree/d/x.tmp", "web/y.tmp"] {
        bench.write(left_out, "changes every time");
    }
    fs::remove_dir(bench.path("tree/d")).unwrap_err();
    fs::remove_file(bench.path("tree/d/x.tmp")).unwrap();
    fs::remove_dir(bench.path("tree/d")).unwrap();
    assert_eq!(bench.build("t:2", &kubefile).index.digest, first.index.digest);
    let files = first.list("tree").unwrap();
    assert!(
        matches!(files[1].kind, FileKind::File { .. }) && files.len() == 2,
        "{files:?}"
    );
    assert!(Path::new(&bench.path("tree/a.log")).exists());
}

#[test]
fn an_image_of_a_file_may_lie_in_another_context_and_is_read_once() {
    let bench = Bench::new();
    let image = bench.build("t:1", "FROM scratch\nIMAGE a.b/web:v1 FROM web\n");
    let carried = &image.carried[0];
    let layout = oci::Layout::create(bench.path("layout")).unwrap();
    for blob in &carried.blobs {
        let (from, to) = (bench.store.blobs(), layout.blobs());
        fs::copy(from.path(&blob.digest), to.path(&blob.digest)).unwrap();
    }
    let index = oci::Index {
        manifests: vec![carried.manifest.clone()],
        ..oci::Index::default()
    };
    layout.write_index(&index).unwrap();
    let packed = std::process::Command::new("tar")
        .args(["-C", "layout", "-cf", "image.tar", "oci-layout", "index.json", "blobs"])
        .current_dir(bench.context())
        .status();
    assert!(packed.unwrap().success());
    for (number, source) in ["layout", "oci:layout", "oci-archive:image.tar"]
        .into_iter()
        .enumerate()
    {
        let kubefile = format!("FROM scratch\nIMAGE --from=more a.b/web:v1 FROM {source}\n");
        bench.write("Kubefile", &kubefile);
        let mut options = bench.options(&format!("t:{number}"));
        options.build_contexts.insert("more".to_string(), bench.context());
        let built = bench.try_build_with(options.clone()).unwrap();
        assert_eq!(
            bench.open(&options.tag.familiar()).carried[0].manifest.digest,
            carried.manifest.digest
        );
        assert_eq!(
            bench.try_build_with(options).unwrap().digest,
            built.digest,
            "and from what is remembered"
        );
    }
    let error = bench.refusal("FROM scratch\nIMAGE a.b/web:v1 FROM docker-archive:app.yaml\n");
    assert!(
        error.starts_with("Kubefile:2:") && error.contains("app.yaml"),
        "{error}"
    );
}
