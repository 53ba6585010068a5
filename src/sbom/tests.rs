//! Bills of materials of images that were built, judged by the rules of the specification.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use image::{BuildOptions, ClusterImage, NoProgress, Store, build, host_platform};
use serde_json::{Value, json};

use crate::rules::broken;
use crate::{DEBIAN, Error, document};

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
}

const KUBEFILE: &str = "FROM scratch\nCOPY --from=debian rootfs ./\nCOPY etc etc\nIMAGE a.b/etcd:v1 FROM etcd\n\
                        IMAGE a.b/plain:v1 FROM plain\n";

fn provenance(packages: &Value) -> String {
    json!({"format": "installer.internal/debian-provenance/v1", "distribution": "debian-12", "packages": packages})
        .to_string()
}

fn package(name: &str, version: &str, licenses: &[&str], files: &[&str]) -> Value {
    let files: Vec<Value> = files
        .iter()
        .map(|path| json!({"path": path, "from": format!("usr/{path}")}))
        .collect();
    json!({"name": name, "version": version, "architecture": "amd64", "source": "src", "sourceVersion": "1",
           "licenses": licenses, "sha256": "ab".repeat(32), "files": files})
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let bench = Bench { dir, store };
        let libc = package("libc6", "2.36-9+deb12u14", &["GPL-2", "LGPL-2.1"], &["lib/libc.so.6"]);
        let runc = package(
            "runc",
            "1:1.1.5+ds1",
            &["GPL-3+ or Apache-2.0", "custom"],
            &["bin/runc", "bin/gone"],
        );
        bench.write("debian/rootfs/bin/runc", "runc");
        bench.write("debian/rootfs/lib/libc.so.6", "libc");
        bench.write(&format!("debian/rootfs/{DEBIAN}"), &provenance(&json!([libc, runc])));
        bench.write("debian/etcd/usr/bin/etcd", "etcd");
        let etcd = package("etcd-server", "3.4.23-4+b4", &[], &["usr/bin/etcd"]);
        bench.write(&format!("debian/etcd/{DEBIAN}"), &provenance(&json!([libc, etcd])));
        bench.write("context/etc/x.conf", "x");
        bench.write(
            "context/etcd/Containerfile",
            "FROM scratch\nCOPY --from=debian etcd ./\n",
        );
        bench.write("context/plain/Containerfile", "FROM scratch\nCOPY f f\n");
        bench.write("context/plain/f", "f");
        bench
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn build(&self, kubefile: &str) -> ClusterImage {
        self.write("context/Kubefile", kubefile);
        let folder = |name: &str| -> PathBuf { self.dir.path().join(name) };
        let options = BuildOptions {
            kubefile: folder("context/Kubefile"),
            context: folder("context"),
            build_contexts: BTreeMap::from([("debian".to_string(), folder("debian"))]),
            build_args: BTreeMap::new(),
            tag: "local/x:1".parse().unwrap(),
            platforms: vec![host_platform()],
            helm: None,
            pull: image::PullOptions::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime
            .block_on(build(&self.store, options, Arc::new(NoProgress)))
            .unwrap();
        ClusterImage::open(&self.store, "local/x:1", &host_platform()).unwrap()
    }
}

fn told(image: &ClusterImage) -> Value {
    let name = "local/x:1".parse().unwrap();
    serde_json::to_value(document(image, Some(&name), 0).unwrap()).unwrap()
}

fn ids<'a>(document: &'a Value, list: &str, field: &str) -> BTreeMap<&'a str, &'a str> {
    let elements = document[list].as_array().unwrap().iter();
    elements
        .map(|element| (element["SPDXID"].as_str().unwrap(), element[field].as_str().unwrap()))
        .collect()
}

#[test]
fn the_document_keeps_every_rule_and_names_all_there_is() {
    let bench = Bench::new();
    let image = bench.build(KUBEFILE);
    let document = told(&image);
    assert_eq!(broken(&document), [""; 0]);
    let (packages, files) = (ids(&document, "packages", "name"), ids(&document, "files", "fileName"));
    let names: Vec<&str> = {
        let mut names: Vec<_> = packages.values().copied().collect();
        names.sort_unstable();
        names
    };
    assert_eq!(
        names,
        [
            "a.b/etcd",
            "a.b/plain",
            "docker.io/local/x",
            "etcd-server",
            "libc6",
            "rootfs",
            "runc"
        ],
        "each package once, wherever it is"
    );
    let named: BTreeSet<&str> = files.values().copied().collect();
    let debian = format!("./{DEBIAN}");
    assert_eq!(
        named,
        BTreeSet::from(["./bin/runc", "./etc/x.conf", "./lib/libc.so.6", debian.as_str()])
    );
    let related: BTreeSet<(&str, &str, &str)> = document["relationships"]
        .as_array()
        .unwrap()
        .iter()
        .map(|relationship| {
            let name = |field: &str| {
                let id = relationship[field].as_str().unwrap();
                packages.get(id).or(files.get(id)).copied().unwrap_or(id)
            };
            (
                name("spdxElementId"),
                relationship["relationshipType"].as_str().unwrap(),
                name("relatedSpdxElement"),
            )
        })
        .collect();
    for expected in [
        ("SPDXRef-DOCUMENT", "DESCRIBES", "docker.io/local/x"),
        ("docker.io/local/x", "CONTAINS", "rootfs"),
        ("docker.io/local/x", "CONTAINS", "a.b/plain"),
        ("rootfs", "CONTAINS", "./etc/x.conf"),
        ("rootfs", "CONTAINS", "runc"),
        ("a.b/etcd", "CONTAINS", "etcd-server"),
        ("a.b/etcd", "CONTAINS", "libc6"),
        ("./bin/runc", "GENERATED_FROM", "runc"),
        ("./lib/libc.so.6", "GENERATED_FROM", "libc6"),
    ] {
        assert!(related.contains(&expected), "{expected:?} is not in {related:#?}");
    }
    let about = |name: &str| {
        document["packages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["name"] == name)
            .unwrap()
    };
    let runc = about("runc");
    assert_eq!(runc["versionInfo"], "1:1.1.5+ds1");
    assert_eq!(
        runc["licenseDeclared"],
        "(GPL-3.0-or-later OR Apache-2.0) AND LicenseRef-Debian-runc-custom"
    );
    assert_eq!(
        runc["externalRefs"][0]["referenceLocator"],
        "pkg:deb/debian/runc@1%3A1.1.5%2Bds1?arch=amd64&distro=debian-12"
    );
    let carried = &image.carried[1];
    assert_eq!(
        about("a.b/plain")["checksums"][0]["checksumValue"],
        carried.manifest.digest.hex()
    );
    assert_eq!(
        about("docker.io/local/x")["checksums"][0]["checksumValue"],
        image.index.digest.hex()
    );
}

#[test]
fn the_same_image_gives_the_same_bytes_and_time_is_what_was_asked_for() {
    let (one, two) = (Bench::new(), Bench::new());
    let name = "local/x:1".parse().unwrap();
    let text = |bench: &Bench, created: i64| {
        let image = bench.build(KUBEFILE);
        serde_json::to_string_pretty(&document(&image, Some(&name), created).unwrap()).unwrap()
    };
    assert_eq!(text(&one, 0), text(&two, 0));
    let later = text(&one, 1_764_000_000);
    assert!(later.contains("\"created\": \"2025-11-24T16:00:00Z\""));
    assert_ne!(later, text(&one, 0));
    assert!(matches!(
        document(&one.build(KUBEFILE), None, i64::MAX),
        Err(Error::Time(_))
    ));
}

#[test]
fn an_image_without_debian_packages_is_told_too() {
    let bench = Bench::new();
    let image = bench.build("FROM scratch\nCOPY etc etc\n");
    let document = serde_json::to_value(document(&image, None, 0).unwrap()).unwrap();
    assert_eq!(broken(&document), [""; 0]);
    assert_eq!(document["name"], image.index.digest.as_str());
    assert_eq!(document["files"].as_array().unwrap().len(), 1);
}

#[test]
fn the_highest_layer_decides_whether_a_carried_image_has_a_record() {
    let bench = Bench::new();
    bench.write(
        "context/etcd/Containerfile",
        "FROM scratch\nCOPY --from=debian etcd ./\nRUN rm -r usr/share\n",
    );
    let document = told(&bench.build(KUBEFILE));
    assert!(
        !ids(&document, "packages", "name")
            .values()
            .any(|name| *name == "etcd-server")
    );
}

#[test]
fn a_damaged_record_is_refused_with_its_place() {
    let bad = [
        "{".to_string(),
        provenance(&json!([])).replace("/v1", "/v2"),
        provenance(&json!([package("x", "1", &[], &[])])).replace("abab", "xyxy"),
        provenance(&json!([])).replace("distribution", "distro"),
    ];
    for text in bad {
        let bench = Bench::new();
        bench.write(&format!("debian/rootfs/{DEBIAN}"), &text);
        let error = document(&bench.build(KUBEFILE), None, 0).unwrap_err();
        assert!(
            matches!(&error, Error::Provenance { place, .. } if place.contains("rootfs")),
            "{text}: {error}"
        );
        bench.write(&format!("debian/rootfs/{DEBIAN}"), &provenance(&json!([])));
        bench.write(&format!("debian/etcd/{DEBIAN}"), &text);
        let error = document(&bench.build(KUBEFILE), None, 0).unwrap_err();
        assert!(
            matches!(&error, Error::Provenance { place, .. } if place.contains("a.b/etcd:v1")),
            "{text}: {error}"
        );
    }
}

/// The judge itself: what it must not let pass.
#[test]
fn broken_documents_are_found() {
    let bench = Bench::new();
    let good = told(&bench.build(KUBEFILE));
    let find = |name: &str| {
        good["packages"]
            .as_array()
            .unwrap()
            .iter()
            .position(|p| p["name"] == name)
            .unwrap()
    };
    let (rootfs, runc) = (find("rootfs"), find("runc"));
    type Edit = Box<dyn Fn(&mut Value)>;
    let edits: Vec<(&str, Edit)> = vec![
        ("6.1", Box::new(|d| d["spdxVersion"] = json!("SPDX-2.2"))),
        ("6.5", Box::new(|d| d["documentNamespace"] = json!("https://x/#y"))),
        ("6.9", Box::new(|d| d["creationInfo"]["created"] = json!("2026-01-01"))),
        ("6.8", Box::new(|d| d["creationInfo"]["creators"] = json!(["me"]))),
        ("6:", Box::new(|d| d["extra"] = json!(1))),
        ("3.2", Box::new(|d| d["files"][0]["SPDXID"] = json!("SPDXRef-a_b"))),
        (
            "3.2",
            Box::new(|d| d["files"][0]["SPDXID"] = d["files"][1]["SPDXID"].clone()),
        ),
        (
            "7.9",
            Box::new(|d| d["files"][0]["checksums"][0]["checksumValue"] = json!("0".repeat(40))),
        ),
        (
            "7.8",
            Box::new(move |d| d["packages"][rootfs]["filesAnalyzed"] = json!(false)),
        ),
        (
            "7.10",
            Box::new(move |d| d["packages"][runc]["checksums"][0]["checksumValue"] = json!("xy")),
        ),
        (
            "annex D",
            Box::new(move |d| d["packages"][runc]["licenseDeclared"] = json!("GPL AND")),
        ),
        (
            "annex D",
            Box::new(move |d| d["packages"][runc]["licenseDeclared"] = json!("(MIT")),
        ),
        (
            "10.1",
            Box::new(move |d| d["packages"][runc]["licenseDeclared"] = json!("MIT")),
        ),
        ("8.1", Box::new(|d| d["files"][0]["fileName"] = json!("/bin/runc"))),
        (
            "8.4",
            Box::new(|d| drop(d["files"][0]["checksums"].as_array_mut().unwrap().remove(0))),
        ),
        (
            "11.1",
            Box::new(|d| {
                d["relationships"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|r| r["relationshipType"] != "DESCRIBES")
            }),
        ),
        (
            "11.1",
            Box::new(|d| d["relationships"][1]["relatedSpdxElement"] = json!("SPDXRef-none")),
        ),
    ];
    for (clause, edit) in edits {
        let mut bad = good.clone();
        edit(&mut bad);
        let found = broken(&bad);
        assert!(found.iter().any(|rule| rule.starts_with(clause)), "{clause}: {found:?}");
    }
}
