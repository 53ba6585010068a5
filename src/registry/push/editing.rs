//! `index.json` while nobody else changes it.

use std::fs::{File, TryLockError};

use oci::{Index, Layout};

use super::writer::Desk;
use crate::{answer::Refusal, catalog::Catalog};

/// Held shared by who adds blobs, alone by who removes blobs that nothing names. The installer's own store has the same lock.
const CONTENT_LOCK: &str = ".lock";
/// Held by who changes `index.json`.
const INDEX_LOCK: &str = ".index.lock";

/// A change of `index.json` under way.
pub struct Editing<'a> {
    desk: &'a Desk,
    /// The index, to be changed.
    pub index: Index,
    /// What it leads to, since [`Editing::look`].
    pub catalog: Catalog,
    /// Whether blobs may be removed: nobody else is adding any.
    pub alone: bool,
    _locks: [File; 2],
}

impl<'a> Editing<'a> {
    /// Waits until nobody else changes the index.
    ///
    /// # Errors
    /// When the locks cannot be taken or the index cannot be read.
    pub fn begin(desk: &'a Desk) -> Result<Self, Refusal> {
        Self::holding(desk, |lock| lock.lock_shared().map(|()| false))
    }

    /// The same, and keeps others from adding blobs if nobody is adding any just now.
    ///
    /// # Errors
    /// When the locks cannot be taken or the index cannot be read.
    pub fn begin_alone(desk: &'a Desk) -> Result<Self, Refusal> {
        Self::holding(desk, |lock| match lock.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => lock.lock_shared().map(|()| false),
            Err(TryLockError::Error(error)) => Err(error),
        })
    }

    fn holding(desk: &'a Desk, hold: impl FnOnce(&File) -> std::io::Result<bool>) -> Result<Self, Refusal> {
        let layout = desk.store.layout();
        let content = open(layout, CONTENT_LOCK)?;
        let alone = hold(&content)?;
        let index_lock = open(layout, INDEX_LOCK)?;
        index_lock.lock()?;
        let index = layout.read_index()?;
        let catalog = Catalog::of(layout, &index, &desk.store.last());
        Ok(Self {
            desk,
            index,
            catalog,
            alone,
            _locks: [content, index_lock],
        })
    }

    /// The layout on disk.
    pub fn layout(&self) -> &Layout {
        self.desk.store.layout()
    }

    /// Looks at the catalogue as it is after the changes so far.
    pub fn look(&mut self) {
        self.catalog = Catalog::of(self.layout(), &self.index, &self.catalog);
    }

    /// Writes the index and serves what it leads to; goes on holding the locks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&mut self) -> Result<(), Refusal> {
        self.layout().write_index(&self.index)?;
        self.look();
        self.desk.store.publish(std::mem::take(&mut self.catalog));
        Ok(())
    }
}

fn open(layout: &Layout, name: &str) -> Result<File, oci::Error> {
    let path = layout.root().join(name);
    let file = File::options().create(true).append(true).open(&path);
    file.map_err(|error| oci::Error::io(&path, error))
}
