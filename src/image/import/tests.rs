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
        self.import_as(Format::Oci, from, name, pinned)
    }

    fn import_as(
        &self,
        format: Format,
        from: &Path,
        name: Option<&str>,
        pinned: Option<&Digest>,
    ) -> Result<Descriptor, String> {
        let platform = &host_platform();
        let wanted = Wanted { name, pinned, platform };
        let imported = import(&self.store, from, format, wanted, &NoProgress);
        imported.map_err(|error| error.to_string().replace(&self.dir.path().display().to_string(), ""))
    }

    /// Makes the layout what Docker 25 and later writes of an image for several platforms: an index whose other manifests are not
    /// there, an attestation among them, and the same in Docker's own words. Gives the index.
    fn as_docker_saves(&self) -> Descriptor {
        let layout = oci::Layout::open(&self.layout);
        let platform = |os: &str, architecture: &str| Platform {
            architecture: architecture.into(),
            os: os.into(),
            variant: None,
        };
        let absent = |content: &str, platform: Platform| {
            let mut entry = Descriptor::of(oci::media_type::MANIFEST, content.as_bytes());
            entry.platform = Some(platform);
            entry
        };
        let mut here = self.manifest.clone();
        here.platform = Some(host_platform());
        let mut attestation = absent("attestation", platform("unknown", "unknown"));
        let kind = (
            "vnd.docker.reference.type".to_string(),
            "attestation-manifest".to_string(),
        );
        attestation.annotations.extend([kind]);
        let list = Index {
            manifests: vec![absent("other", platform("linux", "s390x")), here, attestation],
            ..Index::default()
        };
        let bytes = serde_json::to_vec_pretty(&list).unwrap();
        layout.blobs().put(&bytes).unwrap();
        let index = Descriptor::of(oci::media_type::INDEX, &bytes);
        let mut named = index.clone();
        named.annotations.extend([
            (CONTAINERD_NAME.to_string(), "docker.io/team/app:1".to_string()),
            (REF_NAME.to_string(), "1".to_string()),
        ]);
        // Another image by the same tag, whose content is not there either.
        let mut other = absent("gone", host_platform());
        other.annotations.extend([
            (CONTAINERD_NAME.to_string(), "docker.io/team/other:1".to_string()),
            (REF_NAME.to_string(), "1".to_string()),
        ]);
        let manifests = vec![named, other];
        layout
            .write_index(&Index {
                manifests,
                ..Index::default()
            })
            .unwrap();
        let manifest: Manifest =
            serde_json::from_slice(&layout.blobs().read(&self.manifest.digest, 1 << 20).unwrap()).unwrap();
        let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let list = serde_json::json!([{
            "Config": path(&manifest.config.digest), "RepoTags": ["team/app:1"], "Layers": [path(&manifest.layers[0].digest)],
        }]);
        std::fs::write(self.layout.join("manifest.json"), list.to_string()).unwrap();
        index
    }

    /// The layout as an archive.
    fn packed(&self) -> PathBuf {
        let path = self.dir.path().join("x.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
        tar.append_dir_all(".", &self.layout).unwrap();
        tar.into_inner().unwrap();
        path
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
    assert!(
        error.contains("here none does") && error.contains("it has: x"),
        "{error}"
    );
    let error = Bench::new("s390x")
        .import(&Bench::new("s390x").layout, None, None)
        .unwrap_err();
    assert!(error.contains("an image for linux/s390x"), "{error}");
}

#[test]
fn an_index_is_remembered_only_where_it_is_asked_for_by_its_digest() {
    let bench = Bench::here();
    let index = bench.as_docker_saves();
    let bytes = oci::Layout::open(&bench.layout)
        .blobs()
        .read(&index.digest, 1 << 20)
        .unwrap();
    let archive = bench.packed();
    let by_tag = bench.import(&archive, Some("team/app:1"), None).unwrap();
    assert_eq!(by_tag.digest, bench.manifest.digest);
    assert_eq!(crate::manifest::pinned(&by_tag), None);
    let pinned = bench.import(&archive, None, Some(&index.digest)).unwrap();
    assert_eq!(pinned.digest, bench.manifest.digest);
    assert_eq!(crate::manifest::pinned(&pinned), Some(bytes.as_slice()));
}

#[test]
fn what_docker_saves_is_taken_as_what_the_recipe_says() {
    let bench = Bench::here();
    let index = bench.as_docker_saves();
    let archive = bench.packed();
    let packed = bench.dir.path().join("x.tar.gz");
    std::fs::write(&packed, crate::build_tests::gzip(&std::fs::read(&archive).unwrap())).unwrap();
    for from in [&archive, &packed, &bench.layout] {
        // By its digest, or by its name: the only tag of both images is the same.
        for (name, pinned) in [
            (None, Some(&index.digest)),
            (Some("team/app:1"), Some(&index.digest)),
            (Some("docker.io/team/app:1"), None),
        ] {
            let store = Bench::here();
            let entry = store.import(from, name, pinned).unwrap();
            assert_eq!(entry.digest, bench.manifest.digest, "it keeps its bytes");
            assert_eq!(crate::manifest::pinned(&entry).is_some(), pinned.is_some());
            store.store.check_complete(&entry).unwrap();
        }
        let error = Bench::here().import(from, None, None).unwrap_err();
        assert!(
            error.contains("here 2 do") && error.contains("docker.io/team/app:1"),
            "{error}"
        );
        let error = Bench::here().import(from, Some("team/other:1"), None).unwrap_err();
        assert!(error.contains("missing") || error.contains("not here"), "{error}");
    }
    // Docker's own list gives the same image with another manifest, since that list keeps none.
    let entry = bench.import_as(Format::Docker, &packed, None, None).unwrap();
    assert_eq!(bench.content(&entry), bench.layer);
    let error = bench
        .import_as(Format::Docker, &archive, None, Some(&index.digest))
        .unwrap_err();
    assert!(
        error.contains("does not keep digests") && error.contains("say oci-archive: instead"),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(bench.store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn what_only_docker_could_read_is_refused_where_a_digest_is_wanted() {
    let bench = Bench::here();
    bench.as_docker_saves();
    std::fs::remove_file(bench.layout.join("index.json")).unwrap();
    let archive = bench.packed();
    for format in [Format::Oci, Format::Docker] {
        let error = bench
            .import_as(format, &archive, None, Some(&bench.manifest.digest))
            .unwrap_err();
        assert!(error.contains("skopeo copy"), "{error}");
        assert_eq!(
            bench.content(&bench.import_as(format, &archive, None, None).unwrap()),
            bench.layer
        );
    }
}

#[test]
fn archives_that_others_write_wrongly_are_told_how_to_be_written() {
    let bench = Bench::here();
    let archive = bench.dir.path().join("x.tar");
    let twice = format!("blobs/sha256/blobs/sha256/{}", bench.manifest.digest.hex());
    std::fs::write(&archive, crate::build_tests::tar(&[(&twice, 0o644, b"x")])).unwrap();
    let error = bench.import(&archive, None, None).unwrap_err();
    assert!(
        error.contains("names its folder twice") && error.contains("skopeo copy"),
        "{error}"
    );
    for (magic, program) in [(&b"BZh91AY"[..], "bzip2"), (b"\xfd7zXZ\0\0", "xz")] {
        std::fs::write(&archive, magic).unwrap();
        let error = bench.import(&archive, None, None).unwrap_err();
        assert!(error.contains(&format!("compressed by {program}")), "{error}");
        assert!(!error.contains("installer load"), "{error}");
    }
}
