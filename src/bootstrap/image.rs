//! The cluster image as [`site::Image`]: what hosts get, and the text files that become configuration.
//!
//! Reading those means unpacking layers in memory, so what was read is kept beside the store, named by the rootfs' digest: the same
//! digest is the same content for ever.

use crate::{Error, Result, paths::source, render, session::Program, signed, site};
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
/// Largest file that is read as configuration unless it is a manifest or a template, in bytes. Those may have as many as the build
/// reads ([`image::LARGEST_TEXT`]).
const TEXT_LIMIT: u64 = 1 << 20;
/// Most bytes of texts beyond [`TEXT_LIMIT`], all together.
const LARGE_TEXTS_LIMIT: u64 = 128 << 20;
/// Part of the name of what is kept of an extract: another format, or another rule what is read, has another one.
const EXTRACT_FORMAT: &str = "2";

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

/// What is said of the image is said once: some errors name it themselves.
fn unusable(reference: &str, error: &image::Error) -> Error {
    let message = error.to_string();
    match message.starts_with(&format!("image {reference} ")) {
        true => Error::Wish(format!("cluster {message}")),
        false => Error::Image {
            image: reference.to_owned(),
            message,
        },
    }
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
    let image = ClusterImage::open(&store, reference, platform).map_err(|e| unusable(reference, &e))?;
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
    let name = image.rootfs.manifest.digest.short();
    let path = cache.join(format!("{name}-{EXTRACT_FORMAT}.json"));
    let kept = std::fs::read(&path)
        .ok()
        .filter(|_| !fresh)
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(extract) = kept {
        return Ok(extract);
    }
    let mut content = BTreeMap::new();
    for entry in image.list("")? {
        let names = match &entry.kind {
            FileKind::Folder => continue,
            FileKind::File { digest, .. } => digest.to_string(),
            FileKind::Link { target } => format!("link to {target}"),
        };
        let executable = entry.mode & 0o111 != 0;
        content.insert(
            entry.path,
            site::Entry {
                content: names,
                executable,
            },
        );
    }
    let files = texts(image, content.keys())?;
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

/// The texts that become configuration, links followed. What is too large or no text is left out: whoever needs such a file refuses it
/// by name ([`crate::render::file`]).
fn texts<'p>(
    image: &ClusterImage,
    paths: impl Iterator<Item = &'p String>,
) -> Result<BTreeMap<String, String>, image::Error> {
    let mut wanted: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut large = 0;
    for path in paths.filter(|path| is_configuration(path)) {
        // A link that leads nowhere, or out of the rootfs, is no text either.
        let Ok(Some((target, size))) = image.leads_to(path) else {
            continue;
        };
        let is_large = size > TEXT_LIMIT;
        let limit = match render::may_be_large(path) {
            true => image::LARGEST_TEXT.min(LARGE_TEXTS_LIMIT - large),
            false => TEXT_LIMIT,
        };
        if !is_large || size <= limit {
            large += if is_large { size } else { 0 };
            wanted.entry(target).or_default().push(path);
        }
    }
    let mut files = BTreeMap::new();
    image.read_some_files(&|path| wanted.contains_key(path), &mut |path, reader| {
        let mut bytes = Vec::new();
        let read = reader.read_to_end(&mut bytes);
        read.map_err(|source| image::Error::Io {
            what: "cannot read",
            path: path.into(),
            source,
        })?;
        if let Ok(text) = String::from_utf8(bytes) {
            let under = wanted.get(path).into_iter().flatten();
            files.extend(under.map(|path| ((*path).to_owned(), text.clone())));
        }
        Ok(())
    })?;
    Ok(files)
}

/// Whether a file lies where configuration does.
pub(crate) fn is_configuration(path: &str) -> bool {
    TEXTS.iter().any(|folder| is_below(path, folder))
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
    use super::*;
    use crate::testing;
    use std::sync::Arc;

    /// Builds an image with files of these sizes and contents and opens it, the second time from what is kept.
    fn opened(files: &[(&str, Vec<u8>)]) -> site::Image {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            let path = dir.path().join("context").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        put("Kubefile", b"FROM scratch\nCOPY rootfs .\n");
        put("rootfs/bin/clusterd", b"program");
        files
            .iter()
            .for_each(|(path, bytes)| put(&format!("rootfs/{path}"), bytes));
        std::os::unix::fs::symlink(
            "../data/linked.yaml",
            dir.path().join("context/rootfs/manifests/linked.yaml"),
        )
        .unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let options = image::BuildOptions {
            kubefile: dir.path().join("context/Kubefile"),
            context: dir.path().join("context"),
            build_contexts: BTreeMap::new(),
            build_args: BTreeMap::new(),
            tag: "local/x:1".parse().unwrap(),
            platforms: vec![image::host_platform()],
            helm: None,
            pull: image::PullOptions::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime
            .block_on(image::build(&store, options, Arc::new(image::NoProgress)))
            .unwrap();
        let open = || {
            open(&dir.path().join("store"), "local/x:1", &image::host_platform(), None)
                .unwrap()
                .image
        };
        let first = open();
        assert_eq!(first.files, open().files);
        first
    }

    #[test]
    fn a_large_manifest_is_taken_whole_and_what_cannot_be_taken_is_refused_by_name() {
        let map = |name: &str, size: usize| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: {}}}\n",
                "x".repeat(size)
            )
        };
        let large = format!(
            "{}---\n{}---\n{}",
            map("a", 700 << 10),
            map("b", 700 << 10),
            map("c", 1)
        );
        let image = opened(&[
            ("manifests/large.yaml", large.into_bytes()),
            ("data/linked.yaml", map("linked", 1).into_bytes()),
            ("scripts/data.bin", vec![b'x'; 2 << 20]),
            ("etc/big.conf.tmpl", vec![b'x'; 2 << 20]),
        ]);
        let mut site = testing::site();
        site.image.files.extend(image.files.clone());
        site.image.content.extend(image.content.clone());
        let objects = crate::cluster::objects::system(&site).unwrap();
        let names: Vec<&str> = objects
            .iter()
            .filter_map(|object| object["metadata"]["name"].as_str())
            .collect();
        assert_eq!(names, ["a", "b", "c", "linked"]);
        assert_eq!(image.files["etc/big.conf.tmpl"].len(), 2 << 20);
        assert!(!image.files.contains_key("scripts/data.bin"));

        // Images that were not built here may have anything.
        for path in [
            "manifests/huge.yaml",
            "etc/huge.conf.tmpl",
            "etc/kubernetes/manifests/huge",
        ] {
            let mut site = site.clone();
            let content = site.image.content["manifests/large.yaml"].clone();
            site.image.content.insert(path.to_owned(), content);
            let refused = [
                crate::cluster::manifest_check::check(&site).err(),
                crate::overlay::files(&site, &site.seats[0]).err(),
                crate::effects::static_pods(&site, &site.seats[0]).err(),
            ];
            let refused: Vec<String> = refused.into_iter().flatten().map(|error| error.to_string()).collect();
            assert!(refused.len() == 1 && refused[0].contains(path), "{refused:?}");
        }
    }

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
