//! Archives given to `installer load`.

use std::fs;

use image::{NoProgress, Store};
use oci::Digest;

use crate::{Input, tarball};

/// Even first byte: the rest is an archive. Odd: it describes one, in which the name `@` stands for that of a blob with its right
/// digest.
///
/// What is refused leaves nothing; what is taken is whole.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let bytes = match input.byte() % 2 {
        0 => input.0.to_vec(),
        _ => tarball::build(&mut input, |name, content| {
            let name = match name {
                b"@" => format!("blobs/sha256/{}", Digest::of(content).hex()).into_bytes(),
                name => name.to_vec(),
            };
            (name, content.to_vec())
        }),
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(&dir.path().join("store")).expect("a store");
    let file = dir.path().join("a.tar");
    fs::write(&file, bytes).expect("a file");
    let tag = "x:1".parse().ok();
    let loaded = image::load(&store, &file, tag.as_ref(), &NoProgress);
    let blobs = store.blobs().list().expect("the store's blobs");
    for digest in &blobs {
        let size = store.blobs().size(digest).unwrap_or_default();
        store.blobs().verify(digest, size).expect("every blob has its digest");
    }
    match loaded {
        Ok(loaded) => {
            assert!(!loaded.images.is_empty());
            for image in store.list().expect("what was taken can be listed") {
                let index = store.resolve(&image.name).expect("a named image");
                store.attached(&index).expect("what was taken can be read");
            }
        }
        Err(_) => {
            assert!(blobs.is_empty(), "a refused archive left blobs");
            assert!(
                store.list().expect("a list").is_empty(),
                "a refused archive left a name"
            );
        }
    }
    assert_eq!(fs::read_dir(store.root().join("tmp")).expect("a folder").count(), 0);
}
