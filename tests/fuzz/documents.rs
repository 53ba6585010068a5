//! The JSON of images: indexes, manifests, configurations, artifacts.

use image::{ClusterImage, Store};
use oci::{Descriptor, Index, media_type};

use crate::Input;

/// The first byte says in which document's place the rest stands; the others are good ones.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let which = input.byte() % 5;
    let bytes = input.0;
    if let Ok(index) = serde_json::from_slice::<Index>(bytes) {
        let again = serde_json::to_vec(&index).expect("it was JSON");
        assert_eq!(serde_json::from_slice::<Index>(&again).expect("our own words"), index);
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(dir.path()).expect("a store");
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = store.blobs().put(bytes).expect("a blob");
        Descriptor::new(media_type, digest, bytes.len() as u64)
    };
    let good = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config = put(media_type::CONFIG, if which == 0 { bytes } else { good });
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": []}).to_string();
    let mut rootfs = put(
        media_type::MANIFEST,
        if which == 1 { bytes } else { manifest.as_bytes() },
    );
    rootfs
        .annotations
        .insert("installer.internal/content".into(), "rootfs".into());
    let index = Index {
        manifests: vec![rootfs],
        ..Index::default()
    };
    let index = serde_json::to_vec(&index).expect("an index");
    let index = put(media_type::INDEX, if which == 2 { bytes } else { &index });
    if store.tag(&"x:1".parse().expect("a name"), &index).is_err() {
        // What the store refuses may still be there, from a program that did not look.
        let mut entry = index.clone();
        entry.annotations.insert(oci::REF_NAME.into(), "x:1".into());
        let list = Index {
            manifests: vec![entry],
            ..Index::default()
        };
        let written = oci::Layout::open(dir.path()).write_index(&list);
        written.expect("a list");
    }
    match which {
        3 => {
            let artifact = put(media_type::MANIFEST, bytes);
            if store.keep_artifact(&artifact).is_ok() {
                let _ = store.read_artifact(&artifact);
            }
        }
        4 => std::fs::write(store.root().join("index.json"), bytes).expect("a file"),
        _ => {}
    }
    look(&store, &index);
}

/// Everything that is done with an image in a store. It may be refused; it may not panic.
fn look(store: &Store, index: &Descriptor) {
    let _ = store.list();
    let _ = store.referrers(index);
    let _ = store.attached(index);
    if let Ok(image) = ClusterImage::open(store, "x:1", &image::host_platform()) {
        let blobs = image.all_blobs();
        assert!(blobs.iter().any(|blob| blob.digest == image.index.digest));
        let _ = image.describe();
        let _ = image.list("");
        let _ = image.verify(true);
    }
    let removed = store.remove("x:1");
    if removed.is_ok() && store.list().is_ok_and(|images| images.is_empty()) {
        let left = store.blobs().list().expect("the store's blobs");
        assert!(left.is_empty(), "{left:?} stay though nothing names them");
    }
}
