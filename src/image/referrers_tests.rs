//! Artifacts beside images: where they go, and when they go away.

use std::fs;
use std::path::Path;

use oci::{Descriptor, Index, media_type};

use crate::{Artifact, Document, Error, NoProgress, Store, load, save};

fn store(root: &Path) -> Store {
    Store::open(root).unwrap()
}

/// A smallest cluster image of the name, different for each.
fn image(store: &Store, name: &str) -> Descriptor {
    let put = |media_type: &str, text: &str| {
        Descriptor::new(
            media_type,
            store.blobs().put(text.as_bytes()).unwrap(),
            text.len() as u64,
        )
    };
    let config = put(
        media_type::CONFIG,
        r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
    );
    let manifest = crate::manifest::Manifest::new(config, Vec::new());
    let mut rootfs = store.put_json(media_type::MANIFEST, &manifest).unwrap();
    rootfs
        .annotations
        .insert(crate::manifest::CONTENT.into(), crate::manifest::ROOTFS.into());
    let mut index = Index {
        manifests: vec![rootfs],
        ..Index::default()
    };
    index.annotations.insert("name".into(), name.into());
    let index = store.put_json(media_type::INDEX, &index).unwrap();
    store.tag(&name.parse().unwrap(), &index).unwrap();
    index
}

fn note(text: &str) -> Artifact {
    Artifact {
        artifact_type: "application/vnd.test.note".into(),
        documents: vec![Document {
            media_type: "text/plain".into(),
            title: "note.txt".into(),
            bytes: text.into(),
        }],
        annotations: [("who".to_string(), "me".to_string())].into(),
    }
}

#[test]
fn an_artifact_is_found_by_its_subject_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (one, two) = (image(&store, "one:1"), image(&store, "two:1"));
    let attached = store.attach(&one, &note("hello")).unwrap();
    assert_eq!(
        store.attach(&one, &note("hello")).unwrap(),
        attached,
        "the same again is the same"
    );
    let found = store.referrers(&one).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].digest, attached.digest);
    assert_eq!(found[0].artifact_type.as_deref(), Some("application/vnd.test.note"));
    assert_eq!(found[0].annotations["who"], "me");
    assert_eq!(store.read_artifact(&found[0]).unwrap(), note("hello"));
    assert!(store.referrers(&two).unwrap().is_empty());
    let names: Vec<_> = store.list().unwrap().into_iter().map(|image| image.name).collect();
    assert_eq!(names, ["one:1", "two:1"], "an artifact is no image");
    assert!(matches!(
        store.resolve(attached.digest.as_str()),
        Err(Error::NotFound { .. })
    ));
    let nothing = Descriptor::of(media_type::INDEX, b"nothing");
    assert!(store.attach(&nothing, &note("x")).is_err(), "about what is not there");
}

#[test]
fn artifacts_stay_as_long_as_what_they_are_about() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (one, two) = (image(&store, "one:1"), image(&store, "two:1"));
    let about_image = store.attach(&one, &note("about the image")).unwrap();
    let about_note = store.attach(&about_image, &note("about the note")).unwrap();
    let carried: Index = store.read_json(&two).unwrap();
    let about_part = store.attach(&carried.manifests[0], &note("about a part")).unwrap();
    store.remove("two:1").unwrap();
    // Both images have the same rootfs, so what is about it stays too.
    let kept: Vec<_> = store
        .attached(&one)
        .unwrap()
        .into_iter()
        .map(|a| a.manifest.digest)
        .collect();
    for artifact in [&about_image, &about_note, &about_part] {
        assert!(kept.contains(&artifact.digest), "{kept:?}");
        assert!(store.blobs().has(&artifact.digest, artifact.size));
        assert!(!store.read_artifact(artifact).unwrap().documents.is_empty());
    }
    store.remove("one:1").unwrap();
    assert!(store.layout().read_index().unwrap().manifests.is_empty());
    assert!(store.blobs().list().unwrap().is_empty());
}

#[test]
fn a_damaged_artifact_is_named_and_does_not_stop_cleaning_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (one, _) = (image(&store, "one:1"), image(&store, "two:1"));
    let artifact = store.attach(&one, &note("x")).unwrap();
    fs::write(store.blobs().path(&artifact.digest), "{}").unwrap();
    let error = store.referrers(&one).unwrap_err().to_string();
    assert!(
        error.contains(artifact.digest.as_str()) && error.contains("corrupt"),
        "{error}"
    );
    store.remove("two:1").unwrap();
    assert!(store.referrers(&one).unwrap().is_empty());
    assert!(!store.blobs().has(&artifact.digest, 2));
}

#[test]
fn detached_artifacts_are_no_longer_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let one = image(&store, "one:1");
    let (first, second) = (
        store.attach(&one, &note("1")).unwrap(),
        store.attach(&one, &note("2")).unwrap(),
    );
    store.detach(&[first.digest, one.digest.clone()]).unwrap();
    let left: Vec<_> = store.referrers(&one).unwrap().into_iter().map(|a| a.digest).collect();
    assert_eq!(left, [second.digest]);
    assert_eq!(
        store.resolve("one:1").unwrap().digest,
        one.digest,
        "images are not detached"
    );
}

#[test]
fn artifacts_travel_with_saved_images() {
    let dir = tempfile::tempdir().unwrap();
    let from = store(&dir.path().join("from"));
    let (one, other) = (image(&from, "one:1"), image(&from, "other:1"));
    let first = from.attach(&one, &note("about the image")).unwrap();
    let second = from.attach(&first, &note("about the note")).unwrap();
    from.attach(&other, &note("about the other")).unwrap();
    let (file, again) = (dir.path().join("one.tar"), dir.path().join("again.tar"));
    save(&from, "one:1", &file, &NoProgress).unwrap();
    let to = store(&dir.path().join("to"));
    let loaded = load(&to, &file, None, &NoProgress).unwrap();
    assert_eq!(loaded.images.len(), 1);
    let digests = |store: &Store| -> Vec<_> {
        let attached = store.attached(&one).unwrap().into_iter();
        attached.map(|artifact| artifact.manifest.digest).collect()
    };
    let mut expected = vec![first.digest.clone(), second.digest.clone()];
    expected.sort();
    let mut found = digests(&to);
    found.sort();
    assert_eq!(found, expected, "and not what is about other images");
    assert_eq!(
        to.read_artifact(&to.referrers(&first).unwrap()[0]).unwrap(),
        note("about the note")
    );
    save(&to, "one:1", &again, &NoProgress).unwrap();
    assert_eq!(fs::read(&file).unwrap(), fs::read(&again).unwrap());
}

#[test]
fn what_has_no_subject_is_not_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let index = image(&store, "one:1");
    let rootfs = store.read_index(&index).unwrap().manifests[0].clone();
    let error = store.keep_artifact(&rootfs).unwrap_err().to_string();
    assert!(error.contains("no subject"), "{error}");
}
