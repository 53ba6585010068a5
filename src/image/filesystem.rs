//! The file system of an image being built: what is in it so far, and the layers that make it up.
//!
//! Layers of copied files are compressed at the end, several at once, because only then is it known that the recipe has
//! no other mistake; layers of RUN at once, because the next RUN works in the same folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clusterfile::Env;
use clusterfile::kubefile::{Command, CopyFlags};
use oci::{Descriptor, Digest};

use crate::context::{self, Contexts, Links, Modes};
use crate::error::Error;
use crate::extract::Staging;
use crate::layer::{Layer, layer_changes, store_layer};
use crate::progress::Progress;
use crate::run;
use crate::store::Store;
use crate::tree::{Changes, Entry, Kind, Tree, normalize};

/// How many layers are compressed at once; each uses several threads itself.
const PARALLEL_LAYERS: usize = 2;

pub(crate) struct FileSystem<'a> {
    store: &'a Store,
    contexts: &'a Contexts,
    progress: &'a dyn Progress,
    tree: Tree,
    /// Layers of the base image, by digest: where inherited content is read.
    base: BTreeMap<Digest, Descriptor>,
    staging: Option<Staging>,
    slots: Vec<Slot>,
}

enum Slot {
    /// The instruction changed nothing.
    Empty,
    Ready(Layer),
    Pending(Changes),
}

impl<'a> FileSystem<'a> {
    pub(crate) fn new(store: &'a Store, contexts: &'a Contexts, progress: &'a dyn Progress) -> Self {
        let (tree, base) = (Tree::default(), BTreeMap::new());
        FileSystem {
            store,
            contexts,
            progress,
            tree,
            base,
            staging: None,
            slots: Vec::new(),
        }
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
        let target = normalize(destination)?;
        let mut found = Vec::new();
        for source in sources {
            found.extend(self.contexts.find(flags.from.as_deref(), source)?);
        }
        let existing_folder = matches!(self.tree.0.get(&target), Some(Entry { kind: Kind::Dir, .. }));
        let into = destination.ends_with('/') || target.is_empty() || existing_folder || found.len() > 1;
        let mut changes = Changes::default();
        for (name, path) in &found {
            self.copy_one(&mut changes, flags, name, path, &target, into)?;
        }
        self.commit(changes);
        Ok(())
    }

    fn copy_one(
        &self,
        changes: &mut Changes,
        flags: &CopyFlags,
        name: &str,
        path: &Path,
        target: &str,
        into: bool,
    ) -> Result<(), Error> {
        let is_folder = path.is_dir();
        if is_folder && !target.is_empty() {
            changes.put(&self.tree, target, Entry::dir(0o755))?;
        }
        for (relative, mut entry) in context::walk(path, Modes::Reduced, Links::Inside)? {
            let below = if is_folder { relative.as_str() } else { name };
            let to = match (is_folder || into, target.is_empty()) {
                (true, true) => below.to_string(),
                (true, false) => format!("{target}/{below}"),
                (false, _) => target.to_string(),
            };
            if let (Some(mode), Kind::File { .. }) = (flags.chmod, &entry.kind) {
                entry.mode = mode;
            }
            changes.put(&self.tree, &to, entry)?;
        }
        Ok(())
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
