//! Removing what nothing needs: names, then blobs that no name needs, then what killed processes left.
//!
//! Blobs go only while nobody uses the store: a running build's fresh blobs have no name yet. So [`Store::remove`] takes
//! a name away at once, and leaves the blobs to the next removal or [`Store::prune`] if the store is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use oci::{Digest, REF_NAME, Reference};
use serde::Serialize;

use crate::error::Error;
use crate::layer::Layer;
use crate::progress::{Event, Progress};
use crate::referrers::{is_artifact_entry, retain_artifacts};
use crate::store::{FORGOTTEN_AFTER, Store};

/// What removing an image freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// How many blobs went.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Set if the store is in use: the blobs stay until the next removal or prune.
    pub later: bool,
}

/// What [`Store::prune`] looks for besides blobs without a name and what killed processes left.
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneOptions {
    /// Only say what would go.
    pub dry_run: bool,
    /// Read every blob, and remove those whose content isn't what their digest says; and take away the names of images that
    /// can never be used, because they contradict themselves.
    pub damaged: bool,
    /// Forget what is remembered of layers, so that the next build makes them again.
    pub cache: bool,
}

/// What a prune freed, or would free.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// Blobs that no image needs.
    pub blobs: Vec<Freed>,
    /// Downloads that didn't end.
    pub partial: Vec<Freed>,
    /// Damaged blobs that images need.
    pub damaged: Vec<Damaged>,
    /// Images that can never be used; their names go.
    pub unusable: Vec<Unusable>,
    /// Bytes of temporary files.
    pub temporary: u64,
    /// Bytes of what is remembered of layers.
    pub cache: u64,
    /// All of it, in bytes.
    pub bytes: u64,
}

/// A blob that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// Which one.
    pub digest: Digest,
    /// Its bytes on disk.
    pub size: u64,
}

/// An image whose documents say of its content what is not so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unusable {
    /// Its name in its short form.
    pub name: String,
    /// The index digest.
    pub digest: Digest,
    /// The contradiction.
    pub problem: String,
}

/// A damaged blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// Which one.
    pub digest: Digest,
    /// Its bytes on disk.
    pub size: u64,
    /// What is wrong with it.
    pub problem: String,
    /// The images that need it, and must be pulled, loaded or built again.
    pub images: Vec<String>,
}

impl Pruned {
    fn add_up(&mut self) {
        let blobs = self.blobs.iter().chain(&self.partial).map(|blob| blob.size);
        let damaged = self.damaged.iter().map(|blob| blob.size);
        self.bytes = blobs.chain(damaged).sum::<u64>() + self.temporary + self.cache;
    }
}

impl Store {
    /// Takes a name away, or every name of a digest, and every blob that no remaining name needs.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when something can't be removed.
    pub fn remove(&self, name: &str) -> Result<Removed, Error> {
        let target = self.resolve(name)?;
        let reference = name.parse::<Reference>().ok();
        self.change_index(|root| {
            let named = reference.is_some() && root.manifests.iter().any(|entry| entry.reference() == reference);
            root.manifests.retain(|entry| match named {
                true => entry.reference() != reference,
                false => entry.digest != target.digest,
            });
        })?;
        let Some(_alone) = self.try_lock_alone()? else {
            return Ok(Removed {
                later: true,
                ..Removed::default()
            });
        };
        let wanted = self.wanted(true, &[])?;
        let mut removed = Removed::default();
        for (digest, size) in self.unwanted(&wanted)? {
            self.blobs().remove(&digest)?;
            removed.blobs += 1;
            removed.bytes += size;
        }
        self.forget_lost_blobs();
        self.forget_unused();
        for path in self.leftovers()? {
            // A failure only leaves it for the next time.
            let _ = remove_any(&path);
        }
        Ok(removed)
    }

    /// Removes whatever no named image needs. Waits until nobody uses the store, and says so.
    ///
    /// # Errors
    /// When a document of a named image can't be read, so that it isn't known what the image needs, or when something
    /// can't be removed.
    pub fn prune(&self, options: PruneOptions, progress: &dyn Progress) -> Result<Pruned, Error> {
        let _alone = match self.try_lock_alone()? {
            Some(alone) => alone,
            None => {
                progress.event(Event::Waiting(
                    "the store is in use; waiting until that ends".to_string(),
                ));
                self.lock_alone()?
            }
        };
        let mut pruned = Pruned::default();
        if options.damaged {
            self.prune_damaged(options.dry_run, &mut pruned, progress)?;
        }
        let lost: BTreeSet<&Digest> = pruned.damaged.iter().map(|blob| &blob.digest).collect();
        let keep_unknown = !lost.is_empty();
        let wanted = match self.wanted(!options.dry_run, &pruned.unusable) {
            Ok(wanted) => Some(wanted),
            // A document was among the damaged: what its image needs isn't known, so all of that stays for now.
            Err(_) if keep_unknown => None,
            Err(error) => return Err(error),
        };
        let freed = |(digest, size)| Freed { digest, size };
        if let Some(wanted) = &wanted {
            let unwanted = self.unwanted(wanted)?.into_iter();
            pruned.blobs = unwanted
                .filter(|(digest, _)| !lost.contains(digest))
                .map(freed)
                .collect();
        }
        pruned.partial = self.blobs().list_partial()?.into_iter().map(freed).collect();
        let leftovers = self.leftovers()?;
        pruned.temporary = leftovers.iter().map(|path| bytes_below(path)).sum();
        let cache = self.root().join("cache");
        pruned.cache = if options.cache { bytes_below(&cache) } else { 0 };
        pruned.add_up();
        if !options.dry_run {
            self.sweep(&pruned, &leftovers)?;
            if options.cache {
                remove_any(&cache).map_err(Error::io("cannot remove", &cache))?;
                Store::open(self.root())?;
            }
            self.forget_lost_blobs();
        }
        Ok(pruned)
    }

    /// What can never be used, and what isn't what it should be. The caller holds the store alone.
    fn prune_damaged(&self, dry_run: bool, pruned: &mut Pruned, progress: &dyn Progress) -> Result<(), Error> {
        pruned.unusable = self.unusable()?;
        pruned.damaged = self.damaged(progress)?;
        if dry_run {
            return Ok(());
        }
        if !pruned.unusable.is_empty() {
            let is_gone = |digest: &Digest| pruned.unusable.iter().any(|image| image.digest == *digest);
            self.change_index(|root| root.manifests.retain(|entry| !is_gone(&entry.digest)))?;
        }
        for blob in &pruned.damaged {
            self.blobs().remove(&blob.digest)?;
        }
        Ok(())
    }

    fn sweep(&self, pruned: &Pruned, leftovers: &[PathBuf]) -> Result<(), Error> {
        for blob in &pruned.blobs {
            self.blobs().remove(&blob.digest)?;
        }
        for blob in &pruned.partial {
            self.blobs().remove_partial(&blob.digest)?;
        }
        for path in leftovers {
            remove_any(path).map_err(Error::io("cannot remove", path))?;
        }
        Ok(())
    }

    /// Every blob that a name needs, and artifacts about those; `unusable` images need nothing. `tidy` drops artifacts that are
    /// about nothing any more from the list. The caller holds the store alone.
    fn wanted(&self, tidy: bool, unusable: &[Unusable]) -> Result<BTreeSet<Digest>, Error> {
        let mut wanted = BTreeSet::new();
        let root = self.layout().read_index()?;
        let is_unusable = |entry: &oci::Descriptor| unusable.iter().any(|image| image.digest == entry.digest);
        let images = root.manifests.iter().filter(|entry| !is_artifact_entry(entry));
        for entry in images.filter(|entry| !is_unusable(entry)) {
            let needed = self.reachable(entry).map_err(|error| {
                let name = entry.annotations.get(REF_NAME).cloned();
                let name = name.unwrap_or_else(|| entry.digest.to_string());
                let remedy = match self.contradiction(entry) {
                    Some(_) => "it can never be used: `installer prune --damaged` takes its name away",
                    None => "pull, load or build it again, or remove it",
                };
                Error::Refused(format!(
                    "it can't be told what image {name} needs, so nothing is removed: {error}; {remedy}"
                ))
            })?;
            wanted.extend(needed.into_iter().map(|blob| blob.digest));
        }
        let attached = self.attached_or_lost(wanted.clone())?;
        if tidy {
            let manifests = attached.iter().map(|artifact| artifact.manifest.digest.clone());
            let kept: BTreeSet<Digest> = manifests.collect();
            let is_lost = |entry: &oci::Descriptor| is_artifact_entry(entry) && !kept.contains(&entry.digest);
            if root.manifests.iter().any(is_lost) {
                self.change_index(|root| retain_artifacts(root, &kept))?;
            }
        }
        let blobs = attached.into_iter().flat_map(|artifact| artifact.blobs);
        wanted.extend(blobs.map(|blob| blob.digest));
        Ok(wanted)
    }

    /// Images that contradict themselves. Their content may be fine, and is freed as what nobody needs.
    fn unusable(&self) -> Result<Vec<Unusable>, Error> {
        let root = self.layout().read_index()?.manifests;
        let images = root.iter().filter(|entry| !is_artifact_entry(entry));
        let found = images.filter_map(|entry| {
            Some(Unusable {
                problem: self.contradiction(entry)?,
                name: entry.annotations.get(REF_NAME).cloned().unwrap_or_default(),
                digest: entry.digest.clone(),
            })
        });
        Ok(found.collect())
    }

    fn unwanted(&self, wanted: &BTreeSet<Digest>) -> Result<Vec<(Digest, u64)>, Error> {
        let all = self.blobs().list()?.into_iter();
        let unwanted = all.filter(|digest| !wanted.contains(digest));
        Ok(unwanted
            .map(|digest| {
                let size = self.blobs().size(&digest).unwrap_or(0);
                (digest, size)
            })
            .collect())
    }

    /// Blobs whose content isn't what their digest says, and who needs them.
    fn damaged(&self, progress: &dyn Progress) -> Result<Vec<Damaged>, Error> {
        let needs = self.needs()?;
        let digests = self.blobs().list()?;
        let total = digests.iter().filter_map(|digest| self.blobs().size(digest)).sum();
        let (mut found, mut done) = (Vec::new(), 0);
        for digest in digests {
            let size = self.blobs().size(&digest).unwrap_or(0);
            if let Err(problem) = self.blobs().verify(&digest, size) {
                found.push(Damaged {
                    images: needs.get(&digest).cloned().unwrap_or_default(),
                    problem: problem.to_string(),
                    size,
                    digest,
                });
            }
            done += size;
            progress.event(Event::Bytes { done, total });
        }
        Ok(found)
    }

    /// Which images need a blob, as far as their documents can be read.
    fn needs(&self) -> Result<BTreeMap<Digest, Vec<String>>, Error> {
        let mut needs: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for entry in self.layout().read_index()?.manifests {
            let Some(name) = entry.annotations.get(REF_NAME) else {
                continue;
            };
            // A damaged document names itself: whatever else its image needs can't be known.
            let reachable = self.reachable(&entry);
            let damaged = match &reachable {
                Err(Error::Oci(oci::Error::Corrupt { digest, .. })) => Some(digest.clone()),
                _ => None,
            };
            let blobs = reachable.unwrap_or_default().into_iter().map(|blob| blob.digest);
            for digest in blobs.chain(damaged).collect::<BTreeSet<_>>() {
                needs.entry(digest).or_default().push(name.clone());
            }
        }
        Ok(needs)
    }

    /// Drops what no build has asked for in a long time: what was fetched, and what is remembered of archives and contexts.
    fn forget_unused(&self) {
        for kind in ["downloads", "archives", "digests"] {
            let Ok(entries) = fs::read_dir(self.root().join("cache").join(kind)) else {
                continue;
            };
            for entry in entries.flatten() {
                let used = entry.metadata().and_then(|meta| meta.modified());
                let age = used.ok().and_then(|used| used.elapsed().ok());
                if age.is_some_and(|age| age > FORGOTTEN_AFTER) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }

    /// Drops what is remembered of blobs that are gone; what can't be dropped is only ignored later.
    fn forget_lost_blobs(&self) {
        let lost = |digest: &Digest| self.blobs().size(digest).is_none();
        for path in entries(&self.root().join("cache/layers")) {
            let bytes = fs::read(&path).ok();
            let layer = bytes.and_then(|bytes| serde_json::from_slice::<Layer>(&bytes).ok());
            if layer.is_none_or(|layer| lost(&layer.descriptor.digest)) {
                let _ = fs::remove_file(path);
            }
        }
        for path in entries(&self.root().join("cache/files")) {
            let hex = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let digest: Option<Digest> = hex.and_then(|hex| format!("sha256:{hex}").parse().ok());
            if digest.is_none_or(|digest| lost(&digest)) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// What killed processes left: temporary files. The caller holds the store alone, so nobody needs them.
    fn leftovers(&self) -> Result<Vec<PathBuf>, Error> {
        // Whoever removes a name replaces `index.json` without holding the store.
        let _index = self.lock_index()?;
        let mut found = entries(&self.root().join("tmp"));
        let is_ours = |path: &PathBuf| {
            let extension = path
                .extension()
                .map(|extension| extension.to_string_lossy().into_owned());
            extension.is_some_and(|extension| extension.starts_with("tmp"))
        };
        found.extend(entries(self.root()).into_iter().filter(is_ours));
        Ok(found)
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn is_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

fn bytes_below(path: &Path) -> u64 {
    match is_folder(path) {
        true => entries(path).iter().map(|path| bytes_below(path)).sum(),
        false => path.symlink_metadata().map_or(0, |meta| meta.len()),
    }
}

fn remove_any(path: &Path) -> std::io::Result<()> {
    match is_folder(path) {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}
