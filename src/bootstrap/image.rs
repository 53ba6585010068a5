//! The cluster image as [`site::Image`]: what hosts get, and the text files that become configuration.
//!
//! Reading those means unpacking layers in memory, so what was read is kept beside the store, named by the rootfs' digest: the same
//! digest is the same content for ever.

use crate::{Error, Result, paths::source, session::Program, signed, site};
use clusterfile::Trust;
use host::proto::Blob;
use image::{ClusterImage, FileKind, Store};
use oci::{Descriptor, Digest, Index, Platform};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Where the rootfs has what is put on hosts first: the part of `clusterd` that this takes, or in images without it the whole.
const CLUSTERD: [&str; 2] = ["bin/clusterd-host", "bin/clusterd"];
/// Folders of the rootfs whose text files become configuration.
pub(crate) const TEXTS: [&str; 7] = [
    "etc",
    "systemd",
    "manifests",
    "application",
    "plugins",
    "charts",
    "scripts",
];
/// Larger files are no configuration.
const TEXT_LIMIT: u64 = 1 << 20;

/// What was read from an image's layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Extract {
    files: BTreeMap<String, String>,
    content: BTreeMap<String, site::Entry>,
    clusterd: Option<(String, Digest)>,
}

/// An image, and the program that hosts run to be talked to.
#[derive(Debug)]
pub struct Opened {
    /// What hosts get.
    pub image: site::Image,
    /// [`CLUSTERD`] of the image, or the `clusterd` beside this program.
    pub program: Program,
    /// The store's blobs.
    pub blobs: oci::BlobStore,
    /// The store itself.
    pub store: Store,
    /// Keeps them there meanwhile, whoever removes images.
    pub in_use: image::InUse,
    /// What the operator should know about it though it stops nothing.
    pub warnings: Vec<String>,
}

/// Opens an image of the store for hosts of `platform`; one that somebody must vouch for is judged before anything of it is used.
///
/// # Errors
/// When it is not there, is not trusted, lacks blobs, or holds no `clusterd`.
pub fn open(store_dir: &Path, reference: &str, platform: &Platform, trust: Option<&Trust>) -> Result<Opened> {
    let bad = |message: String| Error::Image {
        image: reference.to_owned(),
        message,
    };
    let store = Store::open(store_dir).map_err(|e| bad(e.to_string()))?;
    let in_use = store.hold().map_err(|e| bad(e.to_string()))?;
    let image = ClusterImage::open(&store, reference, platform).map_err(|e| bad(e.to_string()))?;
    let warnings = match trust {
        Some(trust) => signed::check(&image, reference, trust)?,
        None => Vec::new(),
    };
    // What is vouched for is compared byte by byte: the signature covers digests.
    let report = image.verify(trust.is_some());
    if !report.problems.is_empty() {
        return Err(bad(format!(
            "it is damaged: {}; build or load it again",
            report.problems.join("; ")
        )));
    }
    let problems = image.check_closure();
    if !problems.is_empty() {
        return Err(bad(format!(
            "its images are not what its lock says: {}",
            problems.join("; ")
        )));
    }
    let cache = store_dir.join("cache");
    let fresh = trust.is_some();
    let extract = extract(&image, &cache, fresh).map_err(|e| bad(e.to_string()))?;
    let program = program(&image, &cache, extract.clusterd.as_ref(), fresh).map_err(|e| bad(e.to_string()))?;
    let opened = site::Image {
        reference: reference.to_owned(),
        digest: image.index.digest.clone(),
        arch: image.platform.architecture.clone(),
        env: image.config.env.clone(),
        rootfs: host::effect::Rootfs {
            content: rootfs_content(&image.rootfs.layers),
            layers: image.rootfs.layers.clone(),
            switch: true,
        },
        host_blobs: image.rootfs.layers.iter().map(blob).collect(),
        registry_blobs: registry_blobs(&image),
        layout: layout(&image),
        files: extract.files,
        content: extract.content,
        carried: image.carried.clone(),
        apps: image.config.apps.clone(),
        launch: site::Launch {
            apps: image.config.launch.clone(),
            commands: image.config.commands.clone(),
        },
        kube_version: image.config.kube_version.clone(),
    };
    Ok(Opened {
        image: opened,
        program,
        blobs: store.blobs().clone(),
        store,
        in_use,
        warnings,
    })
}

/// Names what is unpacked of these layers. The manifest would not do: it names the lock of the carried images as well, so an image of
/// which only these were built anew would seem to be another rootfs on every host.
fn rootfs_content(layers: &[Descriptor]) -> Digest {
    let names: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    Digest::of(names.join("\n").as_bytes())
}

fn blob(descriptor: &Descriptor) -> Blob {
    Blob {
        digest: descriptor.digest.clone(),
        size: descriptor.size,
    }
}

/// All of the carried images, each blob once.
fn registry_blobs(image: &ClusterImage) -> Vec<Blob> {
    let mut seen = BTreeSet::new();
    let all = image.carried.iter().flat_map(|carried| &carried.blobs);
    all.filter(|descriptor| seen.insert(descriptor.digest.clone()))
        .map(blob)
        .collect()
}

/// The list of images a registry host serves.
fn layout(image: &ClusterImage) -> Index {
    Index {
        manifests: image.carried.iter().map(|carried| carried.served()).collect(),
        ..Index::default()
    }
}

/// `fresh`: what is kept beside the store is not believed, since no signature covers it.
fn extract(image: &ClusterImage, cache: &Path, fresh: bool) -> Result<Extract, image::Error> {
    let path = cache.join(format!("{}.json", image.rootfs.manifest.digest.short()));
    let kept = std::fs::read(&path)
        .ok()
        .filter(|_| !fresh)
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(extract) = kept {
        return Ok(extract);
    }
    let mut files = BTreeMap::new();
    let mut content = BTreeMap::new();
    for entry in image.list("")? {
        let names = match &entry.kind {
            FileKind::Folder => continue,
            FileKind::File { digest, .. } => digest.to_string(),
            FileKind::Link { target } => format!("link to {target}"),
        };
        if let FileKind::File { size, .. } = entry.kind
            && size <= TEXT_LIMIT
            && TEXTS.iter().any(|folder| is_below(&entry.path, folder))
            && let Ok(text) = String::from_utf8(image.read_file(&entry.path)?.to_vec())
        {
            files.insert(entry.path.clone(), text);
        }
        let executable = entry.mode & 0o111 != 0;
        content.insert(
            entry.path,
            site::Entry {
                content: names,
                executable,
            },
        );
    }
    let clusterd = clusterd(image)?;
    let extract = Extract {
        files,
        content,
        clusterd,
    };
    // Only a shortcut for the next time.
    let _ = std::fs::create_dir_all(cache)
        .and_then(|()| std::fs::write(&path, serde_json::to_vec(&extract).unwrap_or_default()));
    Ok(extract)
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// Where in the rootfs [`CLUSTERD`] lies, and its digest.
fn clusterd(image: &ClusterImage) -> Result<Option<(String, Digest)>, image::Error> {
    for path in CLUSTERD {
        if let Some(found) = file(image, path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A file of the rootfs, and its digest; one link on the way is followed.
fn file(image: &ClusterImage, path: &str) -> Result<Option<(String, Digest)>, image::Error> {
    let find = |path: &str| Ok::<_, image::Error>(image.list(path)?.into_iter().find(|entry| entry.path == path));
    let entry = match find(path)? {
        Some(entry) => match &entry.kind {
            FileKind::Link { target } => find(&resolve(path, target))?,
            _ => Some(entry),
        },
        None => None,
    };
    Ok(entry.and_then(|entry| match entry.kind {
        FileKind::File { digest, .. } => Some((entry.path, digest)),
        _ => None,
    }))
}

/// Where a link at `path` leads, below the same root.
pub(crate) fn resolve(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        parts.clear();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// What the image has for it, else the `clusterd` beside this program.
fn program(
    image: &ClusterImage,
    cache: &Path,
    clusterd: Option<&(String, Digest)>,
    fresh: bool,
) -> Result<Program, image::Error> {
    let Some((source, digest)) = clusterd else {
        return beside_us();
    };
    let path = cache.join(format!("clusterd-{}", digest.short()));
    if fresh || !path.exists() {
        let partial = cache.join(format!("clusterd-{}.{}", digest.short(), std::process::id()));
        let io = |source| image::Error::Io {
            what: "cannot write",
            path: partial.clone(),
            source,
        };
        std::fs::create_dir_all(cache).map_err(io)?;
        let mut file = std::fs::File::create(&partial).map_err(io)?;
        image.copy_file(source, &mut file)?;
        std::fs::rename(&partial, &path).map_err(io)?;
    }
    Ok(Program {
        path,
        digest: digest.clone(),
    })
}

fn beside_us() -> Result<Program, image::Error> {
    let io = |path: &Path, source| image::Error::Io {
        what: "cannot read",
        path: path.to_path_buf(),
        source,
    };
    let own = std::env::current_exe().map_err(|e| io(Path::new("installer"), e))?;
    let path: PathBuf = own.with_file_name("clusterd");
    let mut file = std::fs::File::open(&path).map_err(|e| io(&path, e))?;
    let (digest, _) = Digest::of_reader(&mut file).map_err(|e| io(&path, e))?;
    Ok(Program { path, digest })
}

/// Whether the image brings what the private registry and the runtime's sandbox need; said once, before any host is touched.
///
/// # Errors
/// Names the files that lack.
pub fn check(image: &site::Image) -> Result<()> {
    let needed = [source::CONTAINERD, source::KUBELET, source::SYSCTL, source::MODULES];
    let units = crate::paths::unit::ALL.map(|unit| format!("{}{unit}.tmpl", source::UNITS));
    let needed = needed.iter().map(|path| (*path).to_owned()).chain(units);
    let lacking: Vec<String> = needed.filter(|path| !image.files.contains_key(path)).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(Error::Image {
        image: image.reference.clone(),
        message: format!(
            "its rootfs lacks {}; build it FROM an image that has them",
            lacking.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::resolve;

    #[test]
    fn links_lead_to_files_of_the_same_root() {
        assert_eq!(
            resolve("bin/clusterd", "../usr/local/bin/clusterd"),
            "usr/local/bin/clusterd"
        );
        assert_eq!(resolve("bin/clusterd", "/usr/bin/clusterd"), "usr/bin/clusterd");
        assert_eq!(resolve("bin/clusterd", "x"), "bin/x");
    }
}
