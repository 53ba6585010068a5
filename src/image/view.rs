//! A cluster image as bootstrap sees it: what to send, what to render, what the image says about itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read as _, Write};
use std::sync::{Arc, Mutex};

use oci::{Descriptor, Digest, Index, Platform, Reference, UNCOMPRESSED_SIZE, media_type};
use serde::Serialize;

use crate::config::{ClusterConfig, ImageConfig};
use crate::error::Error;
use crate::extract::files_of_layer;
use crate::layer::layer_changes;
use crate::manifest::{Manifest, PINNED_INDEX, fits, is_rootfs, pinned, platform_text};
use crate::store::Store;
use crate::tree::{Kind, Source, Tree, follow, normalize};

/// Largest file [`ClusterImage::read_file`] gives, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// One platform of a cluster image in the store.
#[derive(Debug)]
pub struct ClusterImage {
    /// The index: its digest names the whole image.
    pub index: Descriptor,
    /// The platform seen.
    pub platform: Platform,
    /// What the image says about itself.
    pub config: ClusterConfig,
    /// The files a host gets.
    pub rootfs: Rootfs,
    /// The container images it carries, sorted by reference.
    pub carried: Vec<Carried>,
    store: Store,
    tree: Mutex<Option<Arc<Tree>>>,
    files: Mutex<HashMap<String, Arc<[u8]>>>,
}

/// The manifest that holds the rootfs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rootfs {
    /// The manifest; its digest names the unpacked folder.
    pub manifest: Descriptor,
    /// The image configuration.
    pub config: Descriptor,
    /// Layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Bytes of all layers' archives before compression.
    pub uncompressed_size: u64,
}

/// A container image the cluster pulls from the private registry.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Carried {
    /// Its full name.
    pub reference: Reference,
    /// Its manifest, annotated with the name.
    pub manifest: Descriptor,
    /// The index that the name is pinned to, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<Descriptor>,
    /// Every blob it needs: manifest, configuration, layers.
    pub blobs: Vec<Descriptor>,
}

/// A file of the rootfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Path below the rootfs.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub kind: FileKind,
}

/// What a [`FileEntry`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FileKind {
    /// A folder.
    Folder,
    /// A regular file.
    File {
        /// Digest of its content.
        digest: Digest,
        /// Bytes.
        size: u64,
    },
    /// A symbolic link.
    Link {
        /// Where it points.
        target: String,
    },
}

/// What [`ClusterImage::verify`] found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VerifyReport {
    /// Blobs looked at.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Missing and corrupt ones, in words.
    pub problems: Vec<String>,
}

impl Carried {
    fn read(store: &Store, reference: Reference, entry: &Descriptor) -> Result<Carried, Error> {
        let mut manifest = entry.clone();
        let mut blobs = store.reachable(entry)?;
        let mut index = None;
        if let Some(bytes) = pinned(entry) {
            let found = Descriptor::of(media_type::INDEX, bytes);
            let wanted = reference.digest().filter(|wanted| **wanted != found.digest);
            if let Some(wanted) = wanted {
                let what = format!("{reference} comes with the index {}", found.digest);
                let digest = wanted.clone();
                return Err(oci::Error::Corrupt { digest, what }.into());
            }
            // Hosts get it as the blob that it is.
            store.put(bytes)?;
            blobs.push(found.clone());
            index = Some(found);
        }
        manifest.annotations.remove(PINNED_INDEX);
        Ok(Carried {
            reference,
            manifest,
            index,
            blobs,
        })
    }

    /// What a registry serves by the image's name, annotated with it: the manifest, or the index that the name is pinned to.
    #[must_use]
    pub fn served(&self) -> Descriptor {
        let Some(index) = &self.index else {
            return self.manifest.clone();
        };
        let name = (oci::REF_NAME.to_string(), self.reference.to_string());
        Descriptor {
            annotations: BTreeMap::from([name]),
            ..index.clone()
        }
    }
}

impl ClusterImage {
    /// Opens an image by name or digest.
    ///
    /// # Errors
    /// If the store doesn't have it, or has it for other platforms only, or can't be read.
    pub fn open(store: &Store, name: &str, platform: &Platform) -> Result<ClusterImage, Error> {
        let index = store.resolve(name)?;
        let list: Index = store.read_index(&index)?;
        let offers = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|offered| fits(offered, platform));
        let Some(rootfs) = list.manifests.iter().filter(|entry| is_rootfs(entry)).find(offers) else {
            let offered = list.manifests.iter().filter(|entry| is_rootfs(entry));
            let available: Vec<_> = offered
                .filter_map(|entry| entry.platform.as_ref())
                .map(platform_text)
                .collect();
            let (reference, platform) = (name.to_string(), platform_text(platform));
            return Err(Error::NoPlatform {
                reference,
                platform,
                available: available.join(", "),
            });
        };
        let manifest: Manifest = store.read_json(rootfs)?;
        let config: ImageConfig = store.read_json(&manifest.config)?;
        let mut carried = Vec::new();
        for entry in list.manifests.iter().filter(|entry| !is_rootfs(entry)).filter(offers) {
            if let Some(reference) = entry.reference() {
                carried.push(Carried::read(store, reference, entry)?);
            }
        }
        carried.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(ClusterImage {
            index,
            platform: platform.clone(),
            config: ClusterConfig::from_image(&config)?,
            rootfs: Rootfs {
                manifest: rootfs.clone(),
                config: manifest.config,
                uncompressed_size: manifest.layers.iter().map(uncompressed_size).sum(),
                layers: manifest.layers,
            },
            carried,
            store: store.clone(),
            tree: Mutex::new(None),
            files: Mutex::new(HashMap::new()),
        })
    }

    /// The store the image lies in.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Every blob a host of this platform needs to serve and run the image, each once: documents first, then layers,
    /// small before large.
    #[must_use]
    pub fn all_blobs(&self) -> Vec<Descriptor> {
        let documents = [&self.index, &self.rootfs.manifest, &self.rootfs.config].into_iter();
        let carried = self.carried.iter().flat_map(|image| &image.blobs);
        let mut seen = BTreeSet::new();
        let all = documents.chain(&self.rootfs.layers).chain(carried);
        let mut blobs: Vec<Descriptor> = all.filter(|blob| seen.insert(blob.digest.clone())).cloned().collect();
        let is_layer = |blob: &Descriptor| !blob.media_type.ends_with("+json");
        blobs.sort_by_cached_key(|blob| (is_layer(blob), blob.size, blob.digest.clone()));
        blobs
    }

    /// The carried image of this name.
    #[must_use]
    pub fn carried(&self, reference: &Reference) -> Option<&Carried> {
        self.carried.iter().find(|image| image.reference == *reference)
    }

    pub(crate) fn tree(&self) -> Result<Arc<Tree>, Error> {
        let poisoned = |_| Error::Refused("another reader of the image failed".to_string());
        let mut place = self.tree.lock().map_err(poisoned)?;
        if let Some(tree) = &*place {
            return Ok(Arc::clone(tree));
        }
        let mut tree = Tree::default();
        for layer in &self.rootfs.layers {
            tree.apply(&layer_changes(&self.store, layer)?);
        }
        let tree = Arc::new(tree);
        *place = Some(Arc::clone(&tree));
        Ok(tree)
    }

    /// The rootfs' entries whose path is `prefix` or below it, sorted; an empty prefix means all.
    ///
    /// # Errors
    /// If a layer can't be read.
    pub fn list(&self, prefix: &str) -> Result<Vec<FileEntry>, Error> {
        let prefix = normalize(prefix)?;
        let below = format!("{prefix}/");
        let wanted = |path: &str| prefix.is_empty() || path == prefix || path.starts_with(&below);
        let tree = self.tree()?;
        let entries = tree
            .0
            .iter()
            .filter(|(path, _)| wanted(path))
            .map(|(path, entry)| FileEntry {
                path: path.clone(),
                mode: entry.mode,
                kind: match &entry.kind {
                    Kind::Dir => FileKind::Folder,
                    Kind::File { digest, size, .. } => FileKind::File {
                        digest: digest.clone(),
                        size: *size,
                    },
                    Kind::Link { target } => FileKind::Link { target: target.clone() },
                },
            });
        Ok(entries.collect())
    }

    /// The content of a small file of the rootfs (at most 1 MiB).
    ///
    /// The other small files of its layer are kept in memory too, since they're asked for next.
    ///
    /// # Errors
    /// If there is no such file, it is too large or a link, or its layer can't be read.
    pub fn read_file(&self, path: &str) -> Result<Arc<[u8]>, Error> {
        let path = normalize(path)?;
        let tree = self.tree()?;
        let missing = || Error::path(&path, format!("image {} has no such file", self.index.digest));
        let Kind::File {
            size,
            source: Source::Layer(digest),
            ..
        } = &tree.0.get(&path).ok_or_else(missing)?.kind
        else {
            return Err(Error::path(&path, "is no regular file"));
        };
        if *size > LARGEST_FILE {
            return Err(Error::path(&path, format!("is larger than {LARGEST_FILE} bytes")));
        }
        let poisoned = |_| Error::Refused("another reader of the image failed".to_string());
        let mut files = self.files.lock().map_err(poisoned)?;
        if !files.contains_key(&path) {
            let layer = self.rootfs.layers.iter().find(|layer| layer.digest == *digest);
            let layer = layer.ok_or_else(|| oci::Error::Missing(digest.clone()))?;
            self.remember(layer, &tree, &mut files)?;
        }
        files.get(&path).cloned().ok_or_else(missing)
    }

    /// Writes the content of a file of any size to `writer`, following symbolic links within the rootfs.
    ///
    /// # Errors
    /// If there is no such file, a link leads out of the rootfs, or reading or writing fails.
    pub fn copy_file(&self, path: &str, writer: &mut dyn Write) -> Result<u64, Error> {
        let tree = self.tree()?;
        let path = follow(&tree, &normalize(path)?)?;
        let missing = || Error::path(&path, format!("image {} has no such file", self.index.digest));
        let Kind::File {
            source: Source::Layer(digest),
            ..
        } = &tree.0.get(&path).ok_or_else(missing)?.kind
        else {
            return Err(Error::path(&path, "is no regular file"));
        };
        let layer = self
            .rootfs
            .layers
            .iter()
            .find(|layer| layer.digest == *digest)
            .ok_or_else(missing)?;
        let mut size = 0;
        let mut writer = writer;
        files_of_layer(
            self.store.blobs(),
            layer,
            &BTreeSet::from([path.clone()]),
            |path, reader| {
                size = crate::io::copy(reader, &mut writer).map_err(Error::io("cannot copy", path))?;
                Ok(())
            },
        )?;
        Ok(size)
    }

    fn remember(&self, layer: &Descriptor, tree: &Tree, files: &mut HashMap<String, Arc<[u8]>>) -> Result<(), Error> {
        let small = tree.0.iter().filter_map(|(path, entry)| match &entry.kind {
            Kind::File {
                size,
                source: Source::Layer(from),
                ..
            } if *from == layer.digest && *size <= LARGEST_FILE => Some(path.clone()),
            _ => None,
        });
        let wanted: BTreeSet<String> = small.collect();
        files_of_layer(self.store.blobs(), layer, &wanted, |path, reader| {
            let mut content = Vec::new();
            reader
                .take(LARGEST_FILE + 1)
                .read_to_end(&mut content)
                .map_err(Error::io("cannot read", path))?;
            files.insert(path.to_string(), content.into());
            Ok(())
        })
    }

    /// Checks that every blob is there with its size, and if `fully` that its content has its digest.
    #[must_use]
    pub fn verify(&self, fully: bool) -> VerifyReport {
        let mut report = VerifyReport::default();
        for blob in self.all_blobs() {
            report.blobs += 1;
            report.bytes += blob.size;
            let blobs = self.store.blobs();
            let problem = match fully {
                true => blobs
                    .verify(&blob.digest, blob.size)
                    .err()
                    .map(|error| error.to_string()),
                false => match blobs.size(&blob.digest) {
                    None => Some(format!("blob {} is missing", blob.digest)),
                    Some(size) if size != blob.size => Some(format!(
                        "blob {} is corrupt: it has {} instead of {}",
                        blob.digest,
                        oci::counted(size, "byte"),
                        blob.size
                    )),
                    Some(_) => None,
                },
            };
            report.problems.extend(problem);
        }
        report
    }

    /// Everything about the image but its files, for `installer inspect`.
    #[must_use]
    pub fn describe(&self) -> serde_json::Value {
        let sizes: BTreeMap<_, _> = self
            .all_blobs()
            .into_iter()
            .map(|blob| (blob.digest, blob.size))
            .collect();
        serde_json::json!({
            "digest": self.index.digest,
            "platform": platform_text(&self.platform),
            "size": sizes.values().sum::<u64>(),
            "config": self.config,
            "lock": self.config.lock,
            "rootfs": self.rootfs,
            "images": self.carried,
        })
    }
}

fn uncompressed_size(layer: &Descriptor) -> u64 {
    layer
        .annotations
        .get(UNCOMPRESSED_SIZE)
        .and_then(|size| size.parse().ok())
        .unwrap_or(layer.size)
}
