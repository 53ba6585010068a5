//! The file system of an image being built: what is in it so far, and the layers that make it up.
//!
//! Layers of copied files are compressed at the end, several at once, because only then is it known that the recipe has
//! no other mistake; layers of RUN at once, because the next RUN works in the same folder.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use clusterfile::Env;
use clusterfile::kubefile::{AddFlags, Command, CopyFlags, is_url};
use oci::{Descriptor, Digest, Platform};

use crate::apps::{self, AppSource};
use crate::context::Contexts;
use crate::download::{self, Fetched};
use crate::error::Error;
use crate::extract::Staging;
use crate::layer::{Layer, layer_changes, store_layer};
use crate::manifest::{fits, host_platform, platform_text};
use crate::progress::Progress;
use crate::run;
use crate::store::Store;
use crate::tree::{Change, Changes, Entry, Kind, Source, Tree, follow, normalize};
use crate::unpack::{self, Unpacked};
use crate::walk::join;

/// How many layers are compressed at once; each uses several threads itself.
const PARALLEL_LAYERS: usize = 2;

/// Folders of a rootfs that mean something to whoever uses the image. A file in such a place would mean nothing.
pub(crate) const FOLDERS: [&str; 22] = [
    "application",
    "application/apps",
    "bin",
    "charts",
    "cni",
    "etc",
    "etc/cni",
    "etc/containerd",
    "etc/kubelet",
    "etc/kubernetes",
    "etc/kubernetes/manifests",
    "lib",
    "manifests",
    "opt",
    "plugins",
    "scripts",
    "systemd",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/local",
    "usr/local/bin",
];

/// Whether a path of a rootfs is always a folder: one of [`FOLDERS`], or that of an application.
fn is_rootfs_folder(path: &str) -> bool {
    let is_app = path.strip_prefix(apps::FOLDER).is_some_and(|name| !name.contains('/'));
    FOLDERS.contains(&path) || is_app
}

pub(crate) struct FileSystem<'a> {
    store: &'a Store,
    contexts: &'a Contexts,
    platform: &'a Platform,
    progress: &'a dyn Progress,
    tree: Tree,
    /// Layers of the base image, by digest: where inherited content is read.
    base: BTreeMap<Digest, Descriptor>,
    staging: Option<Staging>,
    slots: Vec<Slot>,
    /// Whether a path is a folder by its name, whatever is copied to it.
    is_folder_by_name: fn(&str) -> bool,
}

/// What a source stands for: a file or a folder with everything in it.
struct Found {
    written: String,
    name: String,
    is_folder: bool,
    /// Whether it was an archive.
    unpacked: bool,
    /// Below the folder, or one under the empty path.
    entries: Vec<(String, Change)>,
}

/// A source of APP.
pub(crate) enum AppFile<'a> {
    /// A path of the context.
    Context(&'a str),
    /// A URL, and the file that it gave.
    Fetched(&'a str, &'a Fetched),
}

enum Slot {
    /// The instruction changed nothing.
    Empty,
    Ready(Layer),
    Pending(Changes),
}

impl<'a> FileSystem<'a> {
    pub(crate) fn new(
        store: &'a Store,
        contexts: &'a Contexts,
        platform: &'a Platform,
        progress: &'a dyn Progress,
    ) -> Self {
        let (tree, base) = (Tree::default(), BTreeMap::new());
        FileSystem {
            store,
            contexts,
            platform,
            progress,
            tree,
            base,
            staging: None,
            slots: Vec::new(),
            is_folder_by_name: |_| false,
        }
    }

    /// The same for the rootfs of a cluster image, where [`FOLDERS`] mean something.
    pub(crate) fn of_rootfs(mut self) -> Self {
        self.is_folder_by_name = is_rootfs_folder;
        self
    }

    /// Begins on top of the layers of another image.
    pub(crate) fn inherit(&mut self, layers: &[Descriptor]) -> Result<(), Error> {
        for layer in layers {
            self.tree.apply(&layer_changes(self.store, layer)?);
            self.base.insert(layer.digest.clone(), layer.clone());
        }
        Ok(())
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(crate) fn base_layers(&self) -> &BTreeMap<Digest, Descriptor> {
        &self.base
    }

    /// COPY.
    pub(crate) fn copy(&mut self, flags: &CopyFlags, sources: &[String], destination: &str) -> Result<(), Error> {
        let mut found = Vec::new();
        for source in sources {
            found.extend(self.find(flags.from.as_deref(), source)?);
        }
        let changes = self.lay(&self.tree, &found, destination, flags.chmod)?;
        self.commit(changes);
        Ok(())
    }

    /// ADD, with what was fetched for its URL.
    pub(crate) fn add(
        &mut self,
        flags: &AddFlags,
        sources: &[String],
        destination: &str,
        fetched: Option<&Fetched>,
    ) -> Result<(), Error> {
        let mut found = Vec::new();
        for source in sources {
            match fetched.filter(|_| is_url(source)) {
                Some(fetched) => {
                    let unpack = flags.unpack.unwrap_or(false);
                    // What is unpacked needs no name.
                    let below = if unpack { "" } else { destination };
                    found.push(self.archive_or_file(fetched_file(source, fetched, below)?, unpack)?);
                }
                None => {
                    for one in self.find(None, source)? {
                        if let Some(checksum) = &flags.checksum {
                            check(&one, source, checksum)?;
                        }
                        found.push(self.archive_or_file(one, flags.unpack.unwrap_or(true))?);
                    }
                }
            }
        }
        if let (Some(true), Some(plain)) = (flags.unpack, found.iter().find(|one| !one.unpacked)) {
            return Err(Error::path(&plain.written, "it is no archive, but --unpack wants one"));
        }
        let changes = self.lay(&self.tree, &found, destination, flags.chmod)?;
        self.commit(changes);
        Ok(())
    }

    /// APP: the folder holds the sources and values afterwards, and nothing else. What came to lie there is the result.
    pub(crate) fn replace(
        &mut self,
        folder: &str,
        sources: &[AppFile<'_>],
        values: &[AppFile<'_>],
    ) -> Result<(Vec<AppSource>, Vec<AppSource>), Error> {
        let sources = self.find_all(sources)?;
        let values = self.find_all(values)?;
        let laid = |found: &[Found]| found.iter().map(app_source).collect::<Result<Vec<_>, _>>();
        let result = (laid(&sources)?, laid(&values)?);
        let found: Vec<Found> = sources.into_iter().chain(values).collect();
        let mut tree = self.tree.without(folder);
        let changes = self.lay(&tree, &found, &format!("{folder}/"), None)?;
        tree.apply(&changes);
        let changes = self.tree.difference(&tree);
        self.commit(changes);
        Ok(result)
    }

    fn find_all(&self, files: &[AppFile<'_>]) -> Result<Vec<Found>, Error> {
        let mut found = Vec::new();
        for file in files {
            match file {
                AppFile::Context(written) => found.extend(self.find(None, written)?),
                AppFile::Fetched(url, fetched) => found.push(fetched_file(url, fetched, "/")?),
            }
        }
        Ok(found)
    }

    fn find(&self, context: Option<&str>, source: &str) -> Result<Vec<Found>, Error> {
        let found = self.contexts.find(context, source)?.into_iter();
        let walk = |(name, path): (String, PathBuf)| {
            let entries = self.contexts.walk(context, &path)?;
            Ok(Found {
                written: source.to_string(),
                name,
                is_folder: path.is_dir(),
                unpacked: false,
                entries: entries
                    .into_iter()
                    .map(|(path, entry)| (path, Change::Put(entry)))
                    .collect(),
            })
        };
        found.map(walk).collect()
    }

    /// The content of an archive instead of the archive.
    fn archive_or_file(&self, found: Found, unpack: bool) -> Result<Found, Error> {
        let [
            (
                _,
                Change::Put(Entry {
                    kind: Kind::File { digest, source, .. },
                    ..
                }),
            ),
        ] = found.entries.as_slice()
        else {
            return Ok(found);
        };
        let (Some(path), true) = (source.file()?, unpack && !found.is_folder) else {
            return Ok(found);
        };
        let Some(packing) = unpack::packing(&path)? else {
            return Ok(found);
        };
        let archive = Arc::new(Unpacked::new(self.store, &path, packing, digest.clone()));
        Ok(Found {
            is_folder: true,
            unpacked: true,
            entries: unpack::changes(&archive)?,
            ..found
        })
    }

    /// What lays the found below a destination.
    fn lay(&self, tree: &Tree, found: &[Found], destination: &str, chmod: Option<u32>) -> Result<Changes, Error> {
        let target = normalize(destination)?;
        let existing_folder = matches!(tree.0.get(&target), Some(Entry { kind: Kind::Dir, .. }));
        let named_folder = (self.is_folder_by_name)(&target);
        let into =
            destination.ends_with('/') || target.is_empty() || existing_folder || named_folder || found.len() > 1;
        let mut changes = Changes::default();
        for one in found {
            if one.is_folder && !target.is_empty() {
                changes.put(tree, &target, Entry::dir(0o755))?;
            }
            for (relative, change) in &one.entries {
                let Change::Put(entry) = change else { continue };
                let to = match (one.is_folder, into) {
                    (true, _) => join(&target, relative),
                    (false, true) => join(&target, &one.name),
                    (false, false) => target.clone(),
                };
                let mut entry = entry.clone();
                if let (Some(mode), Kind::File { .. }, false) = (chmod, &entry.kind, one.unpacked) {
                    entry.mode = mode;
                }
                changes.put(tree, &to, entry)?;
            }
        }
        Ok(changes)
    }

    /// What means something as a folder is one, or a link to one, if it is there at all.
    ///
    /// # Errors
    /// The first that is not.
    pub(crate) fn check_folders(&self) -> Result<(), Error> {
        for folder in FOLDERS.into_iter().filter(|folder| self.tree.0.contains_key(*folder)) {
            let target = follow(&self.tree, folder)?;
            let is_folder = matches!(self.tree.0.get(&target), Some(Entry { kind: Kind::Dir, .. }));
            if !is_folder {
                let why = format!(
                    "it must be a folder, or nothing in it would be found; to put a file into it write {folder}/"
                );
                return Err(Error::path(folder, why));
            }
        }
        Ok(())
    }

    /// An empty folder for somebody's work.
    pub(crate) fn work_folder(&self) -> Result<tempfile::TempDir, Error> {
        self.store.work_folder()
    }

    /// A folder on this machine that has a file or folder of the tree, with what is below it, under the same path.
    pub(crate) fn materialize(&self, path: &str) -> Result<Staging, Error> {
        let mut staging = Staging::new(self.store)?;
        staging.fill(self.store, &self.base, &self.tree.part(path))?;
        Ok(staging)
    }

    fn commit(&mut self, changes: Changes) {
        let changes = changes.without_same(&self.tree);
        self.tree.apply(&changes);
        self.slots.push(if changes.0.is_empty() {
            Slot::Empty
        } else {
            Slot::Pending(changes)
        });
    }

    /// RUN.
    pub(crate) fn run(&mut self, command: &Command, variables: &Env) -> Result<(), Error> {
        let host = host_platform();
        if !fits(&host, self.platform) {
            let (host, platform) = (platform_text(&host), platform_text(self.platform));
            return Err(Error::Refused(format!(
                "RUN works with the programs of this machine, which is {host}, so what it makes can't be trusted on {platform}: \
                 COPY files that are ready, from a folder named by ${{TARGETARCH}}"
            )));
        }
        let mut staging = match self.staging.take() {
            Some(staging) => staging,
            None => Staging::new(self.store)?,
        };
        staging.fill(self.store, &self.base, &self.tree)?;
        run::run(command, &staging.path(), self.contexts.main(), variables, self.progress)?;
        let changes = staging.changes()?;
        self.tree.apply(&changes);
        let slot = match changes.0.is_empty() {
            true => Slot::Empty,
            false => Slot::Ready(store_layer(self.store, &changes, self.progress)?),
        };
        self.slots.push(slot);
        self.staging = Some(staging);
        Ok(())
    }

    /// Compresses what is left. One result per [`FileSystem::copy`] and [`FileSystem::run`], in their order.
    pub(crate) fn finish(&self) -> Result<Vec<Option<Layer>>, Error> {
        let results: Vec<Mutex<Option<Result<Layer, Error>>>> = self.slots.iter().map(|_| Mutex::new(None)).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(slot) = self.slots.get(index) else { break };
                let result = match slot {
                    Slot::Empty => None,
                    Slot::Ready(layer) => Some(Ok(layer.clone())),
                    Slot::Pending(changes) => Some(store_layer(self.store, changes, self.progress)),
                };
                if let Ok(mut place) = results[index].lock() {
                    *place = result;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..PARALLEL_LAYERS {
                scope.spawn(work);
            }
            work();
        });
        let take = |result: Mutex<Option<Result<Layer, Error>>>| result.into_inner().ok().flatten().transpose();
        results.into_iter().map(take).collect()
    }
}

/// A fetched file under the name its URL gives it; without a folder to lie in, the name doesn't matter.
fn fetched_file(url: &str, fetched: &Fetched, destination: &str) -> Result<Found, Error> {
    let source = Source::Disk {
        path: fetched.path.clone(),
        stamp: fetched.stamp,
    };
    let kind = Kind::File {
        digest: fetched.digest.clone(),
        size: fetched.size,
        source,
    };
    let entry = Entry { mode: 0o644, kind };
    Ok(Found {
        written: url.to_string(),
        name: match download::name_of(url) {
            Err(error) if destination.ends_with('/') || destination == "." => return Err(error),
            named => named.unwrap_or_default(),
        },
        is_folder: false,
        unpacked: false,
        entries: vec![(String::new(), Change::Put(entry))],
    })
}

/// Compares a file with the digest its recipe expects.
fn check(found: &Found, source: &str, checksum: &str) -> Result<(), Error> {
    match found.entries.as_slice() {
        [
            (
                _,
                Change::Put(Entry {
                    kind: Kind::File { digest, .. },
                    ..
                }),
            ),
        ] if !found.is_folder => match digest.as_str() == checksum {
            true => Ok(()),
            false => Err(Error::path(
                source,
                format!("it has the digest {digest}, not {checksum}"),
            )),
        },
        _ => Err(Error::path(source, "--checksum is for a file")),
    }
}

/// What APP has to know of a source to judge the application.
fn app_source(found: &Found) -> Result<AppSource, Error> {
    let mut files = Vec::new();
    let mut packed_charts = Vec::new();
    // A chart's subcharts are its own affair.
    let is_chart = found.is_folder && found.entries.iter().any(|(path, _)| path == apps::CHART);
    for (path, change) in &found.entries {
        let Change::Put(Entry {
            kind: Kind::File { source, .. },
            ..
        }) = change
        else {
            continue;
        };
        let name = if found.is_folder { path } else { &found.name };
        files.push(name.clone());
        if !is_chart
            && apps::may_be_packed_chart(name)
            && let Some(file) = source.file()?
            && apps::is_packed_chart(&file)?
        {
            packed_charts.push(name.clone());
        }
    }
    Ok(AppSource {
        written: found.written.clone(),
        is_folder: found.is_folder,
        files,
        packed_charts,
    })
}
