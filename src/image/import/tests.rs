//! Archives that skopeo writes, where it is installed.

use std::path::PathBuf;
use std::process::Command;

use oci::Index;

use super::*;
use crate::manifest::host_platform;

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    /// A layout with one image, called `x`, and its manifest.
    layout: PathBuf,
    manifest: Descriptor,
    layer: Vec<u8>,
}

impl Bench {
    fn new(architecture: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let layout = dir.path().join("layout");
        let made = oci::Layout::create(&layout).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        builder.append_data(&mut header, "file", &b"hello"[..]).unwrap();
        let layer = builder.into_inner().unwrap();
        let put = |kind: &str, bytes: &[u8]| {
            made.blobs().put(bytes).unwrap();
            Descriptor::of(kind, bytes)
        };
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": {}, "history": [{"created_by": "me"}],
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer)]},
        });
        let config = put(oci::media_type::CONFIG, &serde_json::to_vec(&config).unwrap());
        let tar = put(oci::media_type::LAYER_TAR, &layer);
        let manifest = serde_json::to_vec(&Manifest::new(config, vec![tar])).unwrap();
        let manifest = put(oci::media_type::MANIFEST, &manifest);
        let mut entry = manifest.clone();
        entry.annotations.insert(REF_NAME.into(), "x".into());
        made.write_index(&Index {
            manifests: vec![entry],
            ..Index::default()
        })
        .unwrap();
        Bench {
            dir,
            store,
            layout,
            manifest,
            layer,
        }
    }

    fn here() -> Bench {
        Bench::new(&host_platform().architecture)
    }

    fn import(&self, from: &Path, name: Option<&str>, pinned: Option<&Digest>) -> Result<Descriptor, String> {
        let imported = import(&self.store, from, name, pinned, &host_platform(), &NoProgress);
        imported.map_err(|error| error.to_string())
    }

    /// The image copied by skopeo; none if that isn't installed.
    fn copied(&self, to: &str) -> Option<PathBuf> {
        let path = self.dir.path().join("copy");
        let from = format!("oci:{}:x", self.layout.display());
        let to = to.replace("{}", &path.display().to_string());
        let mut skopeo = Command::new("skopeo");
        let ran = skopeo
            .args(["--insecure-policy", "copy", "--quiet", &from, &to])
            .output();
        let Ok(output) = ran else {
            eprintln!("SKIPPED: skopeo is not installed");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(path)
    }

    /// The only layer's content, unpacked.
    fn content(&self, entry: &Descriptor) -> Vec<u8> {
        let manifest: Manifest = self.store.read_json(entry).unwrap();
        let [layer] = manifest.layers.as_slice() else {
            panic!("one layer is expected")
        };
        let mut content = Vec::new();
        let mut reader = crate::layer::open_layer(self.store.blobs(), layer).unwrap();
        std::io::Read::read_to_end(&mut reader, &mut content).unwrap();
        content
    }
}

#[test]
fn what_skopeo_writes_is_understood_in_every_format() {
    for to in ["oci:{}:y", "oci-archive:{}:y", "docker-archive:{}:a.b/c:1"] {
        let bench = Bench::here();
        let Some(path) = bench.copied(to) else { return };
        let entry = bench.import(&path, None, None).unwrap();
        assert_eq!(bench.content(&entry), bench.layer, "{to}");
        assert_eq!((entry.platform, entry.annotations.len()), (Some(host_platform()), 0));
    }
}

#[test]
fn an_image_in_a_folder_is_taken_by_its_name_and_keeps_its_bytes() {
    let bench = Bench::here();
    for name in [None, Some("x")] {
        let entry = bench.import(&bench.layout, name, None).unwrap();
        assert_eq!(entry.digest, bench.manifest.digest);
    }
    let error = bench.import(&bench.layout, Some("y"), None).unwrap_err();
    assert!(error.contains("0 images fit") && error.contains("it has: x"), "{error}");
    let error = Bench::new("s390x")
        .import(&Bench::new("s390x").layout, None, None)
        .unwrap_err();
    assert!(error.contains("an image for linux/s390x"), "{error}");
}

#[test]
fn an_index_is_remembered_only_where_it_is_asked_for_by_its_digest() {
    let bench = Bench::here();
    let layout = oci::Layout::open(&bench.layout);
    let mut here = bench.manifest.clone();
    here.platform = Some(host_platform());
    let mut absent = Descriptor::of(oci::media_type::MANIFEST, b"never stored");
    absent.platform = Some(Platform {
        architecture: "s390x".into(),
        os: "linux".into(),
        variant: None,
    });
    let index = Index {
        manifests: vec![absent, here],
        ..Index::default()
    };
    let bytes = serde_json::to_vec(&index).unwrap();
    layout.blobs().put(&bytes).unwrap();
    let index = Descriptor::of(oci::media_type::INDEX, &bytes);
    layout
        .write_index(&Index {
            manifests: vec![index.clone()],
            ..Index::default()
        })
        .unwrap();
    // The folder reader asks for all that an index lists, as it does for images that are loaded.
    let archive = bench.dir.path().join("x.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&archive).unwrap());
    tar.append_dir_all(".", &bench.layout).unwrap();
    tar.into_inner().unwrap();
    let by_tag = bench.import(&archive, None, None).unwrap();
    assert_eq!(by_tag.digest, bench.manifest.digest);
    assert_eq!(crate::manifest::pinned(&by_tag), None);
    let pinned = bench.import(&archive, None, Some(&index.digest)).unwrap();
    assert_eq!(pinned.digest, bench.manifest.digest);
    assert_eq!(crate::manifest::pinned(&pinned), Some(bytes.as_slice()));
}
