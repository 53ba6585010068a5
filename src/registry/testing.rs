//! A small store for tests.

use oci::{Descriptor, Index, Layout, REF_NAME, media_type};

pub struct Store {
    pub layout: Layout,
    _dir: tempfile::TempDir,
}

impl Store {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            layout: Layout::create(dir.path()).unwrap(),
            _dir: dir,
        }
    }

    fn put(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        self.layout.blobs().put(bytes).unwrap();
        Descriptor::of(media_type, bytes)
    }

    /// An image whose only layer is `layer`.
    pub fn image(&self, layer: &[u8]) -> Descriptor {
        let config = self.put(
            media_type::CONFIG,
            format!(
                r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
                oci::Digest::of(layer)
            )
            .as_bytes(),
        );
        let layer = self.put(media_type::LAYER_TAR, layer);
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": config, "layers": [layer],
        });
        self.put(media_type::MANIFEST, manifest.to_string().as_bytes())
    }

    pub fn index(&self, index: &Index) -> Descriptor {
        self.put(media_type::INDEX, &serde_json::to_vec(index).unwrap())
    }

    pub fn named(descriptor: &Descriptor, reference: &str) -> Descriptor {
        let mut named = descriptor.clone();
        named.annotations.insert(REF_NAME.to_owned(), reference.to_owned());
        named
    }

    pub fn list(&self, manifests: Vec<Descriptor>) {
        self.layout
            .write_index(&Index {
                manifests,
                ..Index::default()
            })
            .unwrap();
    }
}
