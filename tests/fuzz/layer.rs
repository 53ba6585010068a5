//! Layers: unpacked on a host as root, and read by the operator's program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::AtomicBool;

use image::{ClusterImage, FileKind, Store};
use oci::{BlobStore, Descriptor, Index, media_type};

use crate::{Input, tarball};

/// How far below the temporary folder things happen, so that `..` has somewhere to lead to.
const DEPTH: &str = "a/b/c/d/e";

/// Even first byte: the rest is an archive. Odd: it describes one (see [`tarball`]).
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let bytes = match input.byte() % 2 {
        0 => input.0.to_vec(),
        _ => tarball::build(&mut input, |name, content| (name.to_vec(), content.to_vec())),
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let base = dir.path().join(DEPTH);
    fs::create_dir_all(&base).expect("a folder");
    let store = Store::open(&base.join("store")).expect("a store");
    let layer = put(store.blobs(), media_type::LAYER_TAR, &bytes);
    let before = outside(dir.path());
    let unpacked = host::unpack::rootfs(
        store.blobs(),
        std::slice::from_ref(&layer),
        &base.join("rootfs"),
        &AtomicBool::new(false),
    );
    assert_eq!(outside(dir.path()), before, "something outside was touched");
    let found = match &unpacked {
        Ok(()) => Some(inside(&base.join("rootfs"))),
        Err(_) => {
            assert!(!base.join("rootfs").exists(), "a part of a rootfs became visible");
            None
        }
    };
    let listed = operators_view(&store, layer);
    if let (Some(found), Some(listed)) = (found, listed) {
        assert_eq!(found, listed, "the host has something else than the operator was told");
    }
}

fn put(blobs: &BlobStore, media_type: &str, bytes: &[u8]) -> Descriptor {
    let digest = blobs.put(bytes).expect("a blob");
    Descriptor::new(media_type, digest, bytes.len() as u64)
}

/// What lies in the temporary folder but not in the unpacked rootfs, with the sizes of files.
fn outside(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    walk(root, &mut |path, meta| {
        let below = path.strip_prefix(root).unwrap_or(path).to_path_buf();
        let ours = below.strip_prefix(DEPTH).is_ok_and(|rest| {
            let first = rest.components().next();
            first.is_some_and(|first| first.as_os_str().to_string_lossy().contains("rootfs"))
        });
        if !ours {
            found.insert(below, if meta.is_file() { meta.len() } else { 0 });
        }
        !ours
    });
    found
}

/// Calls `see` with everything below a folder; it says whether to go into what it sees.
fn walk(dir: &Path, see: &mut impl FnMut(&Path, &fs::Metadata) -> bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = path.symlink_metadata() else { continue };
        if see(&path, &meta) && meta.is_dir() {
            walk(&path, see);
        }
    }
}

/// Files and links of a rootfs, with their sizes and targets. Every link stays inside.
///
/// Folders are left out: one that only stands in the path of a file is made on the host and not told by the operator's program.
fn inside(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(root, &mut |path, meta| {
        let below = path.strip_prefix(root).unwrap_or(path).to_path_buf();
        let what = if meta.is_symlink() {
            let target = fs::read_link(path).expect("a link");
            assert!(
                stays(&below, &target),
                "{} → {} leads out",
                below.display(),
                target.display()
            );
            target.display().to_string()
        } else if meta.is_file() {
            meta.len().to_string()
        } else {
            assert!(meta.is_dir(), "{} is neither file nor folder nor link", below.display());
            return true;
        };
        found.insert(below.display().to_string(), what);
        true
    });
    found
}

/// Written anew, not called from the code that is judged.
fn stays(at: &Path, target: &Path) -> bool {
    if let Ok(rest) = target.strip_prefix("/opt/installer") {
        return rest.components().all(|part| matches!(part, Component::Normal(_)));
    }
    let mut stack: Vec<_> = at.parent().into_iter().flat_map(Path::components).collect();
    for part in target.components() {
        match part {
            Component::ParentDir if stack.pop().is_none() => return false,
            Component::ParentDir | Component::CurDir => {}
            Component::Normal(_) => stack.push(part),
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

/// The same layer as the rootfs of a cluster image, as `installer inspect --files` shows it.
fn operators_view(store: &Store, layer: Descriptor) -> Option<BTreeMap<String, String>> {
    let config = put(
        store.blobs(),
        media_type::CONFIG,
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
    );
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
    let mut rootfs = put(store.blobs(), media_type::MANIFEST, manifest.as_bytes());
    rootfs
        .annotations
        .insert("installer.internal/content".into(), "rootfs".into());
    let index = Index {
        manifests: vec![rootfs],
        ..Index::default()
    };
    let index = serde_json::to_vec(&index).expect("an index");
    let index = put(store.blobs(), media_type::INDEX, &index);
    store.tag(&"x:1".parse().expect("a name"), &index).expect("a name");
    let image = ClusterImage::open(store, "x:1", &image::host_platform()).expect("an image");
    let entries = image.list("").ok()?;
    let listed = entries.into_iter().filter_map(|entry| match entry.kind {
        FileKind::Folder => None,
        FileKind::File { size, .. } => Some((entry.path, size.to_string())),
        FileKind::Link { target } => Some((entry.path, target)),
    });
    let _ = image.read_files(&mut |_, reader| {
        std::io::copy(reader, &mut std::io::sink())
            .map(drop)
            .map_err(|source| image::Error::Io {
                what: "cannot read",
                path: PathBuf::new(),
                source,
            })
    });
    Some(listed.collect())
}
