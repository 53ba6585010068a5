use std::io::Write as _;

use super::*;
use crate::manifest::host_platform;
use crate::progress::NoProgress;

/// An archive of a file tree in a tar, and what it must give.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

/// Path, and content or where a link leads.
type Part<'a> = (&'a str, Result<&'a [u8], &'a str>);

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Bench { dir, store }
    }

    fn archive(&self, parts: &[Part<'_>]) -> std::path::PathBuf {
        let path = self.dir.path().join("x.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        for (name, content) in parts {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.map_or(0, |bytes| bytes.len() as u64));
            match content {
                Ok(bytes) => builder.append_data(&mut header, name, *bytes).unwrap(),
                Err(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    builder.append_link(&mut header, name, target).unwrap();
                }
            }
        }
        builder.into_inner().unwrap();
        path
    }

    fn import(&self, path: &Path, name: Option<&str>) -> Result<Descriptor, String> {
        assert!(Formats::of(path).unwrap().docker);
        let imported = import(&self.store, path, name, &host_platform(), &NoProgress);
        imported.map_err(|error| error.to_string())
    }
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let platform = host_platform();
    let config = serde_json::json!({
        "architecture": platform.architecture, "os": platform.os, "container": "kept", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    serde_json::to_vec_pretty(&config).unwrap()
}

const LISTED: &str = r#"[{"Config": "c.json", "RepoTags": ["a.b/c:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]"#;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_image_keeps_its_configuration_and_layers_whatever_their_order_packing_and_links() {
    let bench = Bench::new();
    let config = config(&[b"one", b"two"]);
    let parts: [Part<'_>; 5] = [
        ("./2/layer.tar", Err("../l/two.tar")),
        ("c.json", Ok(&config)),
        ("l/two.tar", Ok(&gzip(b"two"))),
        ("1/layer.tar", Ok(b"one")),
        ("manifest.json", Ok(LISTED.as_bytes())),
    ];
    let path = bench.archive(&parts);
    let entry = bench.import(&path, None).unwrap();
    let manifest: Manifest = bench.store.read_json(&entry).unwrap();
    assert_eq!(
        bench.store.blobs().read(&manifest.config.digest, MAX_JSON).unwrap(),
        config
    );
    let layers: Vec<Vec<u8>> = manifest
        .layers
        .iter()
        .map(|layer| zstd::decode_all(bench.store.blobs().open(&layer.digest).unwrap()).unwrap())
        .collect();
    assert_eq!(layers, [b"one", b"two"]);
    for name in ["a.b/c:1", "a.b/c:2"] {
        assert_eq!(bench.import(&path, Some(name)).is_ok(), name == "a.b/c:1");
    }
    let other = Bench::new();
    let packed = other.dir.path().join("x.tar.gz");
    std::fs::write(&packed, gzip(&std::fs::read(&path).unwrap())).unwrap();
    assert_eq!(other.import(&packed, None).unwrap(), entry, "the same image, packed");
}

#[test]
fn bad_archives_are_refused_by_name() {
    let good = config(&[b"one", b"two"]);
    let other = String::from_utf8(good.clone())
        .unwrap()
        .replace(&host_platform().architecture, "s390x");
    let list = |text: &str| text.as_bytes().to_vec();
    for (changed, content, expected) in [
        (
            "manifest.json",
            Ok(list("[]")),
            "exactly one image must fit, here none does",
        ),
        ("manifest.json", Ok(list("{}")), "manifest.json: "),
        (
            "manifest.json",
            Ok(list(&LISTED.replace("c.json", "../../etc/passwd"))),
            "../../etc/passwd is missing",
        ),
        (
            "manifest.json",
            Ok(list(&LISTED.replace("\"2/layer.tar\"", "\"1/layer.tar\""))),
            "is two different layers",
        ),
        (
            "manifest.json",
            Ok(list(&LISTED.replace(", \"2/layer.tar\"", ""))),
            "1 layer, its configuration 2",
        ),
        (
            "manifest.json",
            Ok(list(&LISTED.replace("2/layer", "3/layer"))),
            "3/layer.tar is missing",
        ),
        ("c.json", Ok(list("[")), "c.json: "),
        ("c.json", Ok(list(&other)), "not for linux/"),
        ("1/layer.tar", Ok(list("0ne")), "1/layer.tar is corrupt"),
        ("1/layer.tar", Err("../../../etc/passwd"), "leads out of the archive"),
        ("1/layer.tar", Err("layer.tar"), "too many links"),
        ("1/layer.tar", Err("../gone"), "gone is missing"),
    ] {
        let bench = Bench::new();
        let mut parts: Vec<Part<'_>> = vec![
            ("manifest.json", Ok(LISTED.as_bytes())),
            ("c.json", Ok(&good)),
            ("1/layer.tar", Ok(b"one")),
            ("2/layer.tar", Ok(b"two")),
        ];
        let part = parts.iter_mut().find(|(name, _)| *name == changed).unwrap();
        part.1 = content.as_ref().map(Vec::as_slice).map_err(|link| *link);
        let error = bench.import(&bench.archive(&parts), None).unwrap_err();
        assert!(
            error.contains(expected) && error.contains("x.tar"),
            "{changed} {expected}: {error}"
        );
        assert_eq!(std::fs::read_dir(bench.store.root().join("tmp")).unwrap().count(), 0);
    }
}

#[test]
fn a_damaged_archive_is_refused_wherever_it_is_cut() {
    let config = config(&[b"one", b"two"]);
    let bench = Bench::new();
    let path = bench.archive(&[
        ("1/layer.tar", Ok(b"one")),
        ("2/layer.tar", Ok(b"two")),
        ("c.json", Ok(&config)),
        ("manifest.json", Ok(LISTED.as_bytes())),
    ]);
    let whole = std::fs::read(&path).unwrap();
    bench.import(&path, None).unwrap();
    // From here on every content is there.
    let end = whole
        .windows(LISTED.len())
        .position(|window| window == LISTED.as_bytes())
        .unwrap()
        + LISTED.len();
    for cut in (0..end).step_by(97) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let taken = Formats::of(&path).and_then(|formats| match formats.docker {
            true => import(&bench.store, &path, None, &host_platform(), &NoProgress).map(|_| ()),
            false => Err(Error::Refused("no list".to_string())),
        });
        assert!(taken.is_err(), "cut at {cut}");
    }
}
