//! The one writer of a store's `index.json`.
//!
//! Pushes that come together are written together: one sync to disk serves them all. Everything that takes content away goes
//! through here too, one at a time, so that nothing is removed which a push has just been promised.

use std::{sync::Arc, time::Duration};

use oci::{Descriptor, Digest};
use tokio::{
    sync::{RwLock, mpsc, oneshot},
    task::spawn_blocking,
};

use super::{editing::Editing, links::Links, manifest::Part, removal::take_away};
use crate::{
    answer::{Code, Refusal},
    catalog::{Id, is_pushed},
    index,
    store::Store,
};

/// Most pushes that are written together.
const MOST_TOGETHER: usize = 64;

/// A change of the store.
#[derive(Debug)]
pub enum Change {
    /// A manifest becomes known, under tags or only by its digest.
    Put(Box<Put>),
    /// A tag goes; its manifest stays.
    Untag {
        /// The full name of the repository.
        repository: String,
        /// The tag.
        tag: String,
    },
    /// A manifest goes, and all tags that name it.
    Remove {
        /// The full name of the repository.
        repository: String,
        /// The manifest.
        digest: Digest,
    },
    /// A blob that no manifest of the repository needs goes.
    DropBlob {
        /// The full name of the repository.
        repository: String,
        /// The blob.
        digest: Digest,
    },
    /// What was pushed and never used goes, when it is older than this.
    Sweep(Duration),
}

/// A manifest that is stored already and is to become known.
#[derive(Debug)]
pub struct Put {
    /// The full name of the repository.
    pub repository: String,
    /// The tags that shall name it.
    pub tags: Vec<String>,
    /// The manifest.
    pub manifest: Descriptor,
    /// Blobs that must be there.
    pub blobs: Vec<Part>,
    /// Manifests that must be in the repository.
    pub manifests: Vec<Part>,
}

/// What the writer works on.
#[derive(Debug)]
pub struct Desk {
    /// What is served.
    pub store: Arc<Store>,
    /// Blobs that no manifest names.
    pub links: Links,
    /// Held for reading while a blob becomes visible, for writing while blobs are removed.
    pub content: Arc<RwLock<()>>,
}

type Job = (Change, oneshot::Sender<Result<(), Refusal>>);

/// Asks the writer.
#[derive(Debug, Clone)]
pub struct Writer(mpsc::Sender<Job>);

impl Writer {
    /// Starts the writer of a store; it ends when nobody can ask it any more.
    pub fn start(desk: Arc<Desk>) -> Self {
        let (sender, jobs) = mpsc::channel(MOST_TOGETHER);
        tokio::spawn(work(desk, jobs));
        Self(sender)
    }

    /// Makes a change, and returns when it is on disk.
    ///
    /// # Errors
    /// When the change is refused, or the disk refuses.
    pub async fn change(&self, change: Change) -> Result<(), Refusal> {
        let (answer, answered) = oneshot::channel();
        // Nobody to take it drops the answer, and that is noticed.
        let _ = self.0.send((change, answer)).await;
        answered.await?
    }
}

async fn work(desk: Arc<Desk>, mut jobs: mpsc::Receiver<Job>) {
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(job) => job,
            None => match jobs.recv().await {
                Some(job) => job,
                None => return,
            },
        };
        let mut puts = Vec::new();
        let mut job = Some(first);
        while let Some((change, answer)) = job.take() {
            match change {
                Change::Put(put) => {
                    puts.push((put, answer));
                    job = (puts.len() < MOST_TOGETHER).then(|| jobs.try_recv().ok()).flatten();
                }
                other if puts.is_empty() => {
                    let desk = Arc::clone(&desk);
                    let alone = desk.content.write().await;
                    let result = blocking(&desk, move |desk| take_away(desk, &other)).await;
                    drop(alone);
                    // Who asked may have gone.
                    let _ = answer.send(result);
                }
                other => next = Some((other, answer)),
            }
        }
        if !puts.is_empty() {
            let (puts, answers): (Vec<_>, Vec<_>) = puts.into_iter().unzip();
            let results = blocking(&desk, move |desk| put_all(desk, &puts)).await;
            let results = results.unwrap_or_else(|refusal| vec![Err(refusal); answers.len()]);
            for (result, answer) in results.into_iter().zip(answers) {
                let _ = answer.send(result);
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    desk: &Arc<Desk>,
    work: impl FnOnce(&Desk) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let desk = Arc::clone(desk);
    spawn_blocking(move || work(&desk)).await?
}

fn put_all(desk: &Desk, puts: &[Box<Put>]) -> Result<Vec<Result<(), Refusal>>, Refusal> {
    let mut editing = Editing::begin(desk)?;
    let mut changed = false;
    let mut results = Vec::with_capacity(puts.len());
    for put in puts {
        let result = check(desk, &editing, put);
        if result.is_ok() {
            index::put(&mut editing.index, &put.repository, &put.tags, &put.manifest);
            changed = true;
        }
        results.push(result);
    }
    if !changed {
        return Ok(results);
    }
    editing.save()?;
    for (put, _) in puts.iter().zip(&results).filter(|(_, result)| result.is_ok()) {
        unlink(&desk.links, put);
    }
    Ok(results)
}

/// What a manifest names needs no links any more.
fn unlink(links: &Links, put: &Put) {
    let blobs = put.blobs.iter().map(|part| &part.digest);
    for digest in blobs.chain([&put.manifest.digest]) {
        if let Err(error) = links.remove(&Id::from(digest), &put.repository) {
            tracing::warn!(%digest, %error, "a link stays until it is old");
        }
    }
}

/// Whether a manifest may become known: all it needs is there, and its tags are not names of something else.
fn check(desk: &Desk, editing: &Editing<'_>, put: &Put) -> Result<(), Refusal> {
    let blobs = editing.layout().blobs();
    let repository = editing.catalog.repositories.get(&put.repository);
    let mut unknown = Vec::new();
    for part in &put.blobs {
        let id = Id::from(&part.digest);
        let is_known = repository.is_some_and(|repository| repository.has_blob(&id))
            || desk.links.has(&id, &put.repository)
            || editing.catalog.has_blob(&id);
        match blobs.size(&part.digest).filter(|_| is_known) {
            None => unknown.push(part.digest.to_string()),
            Some(size) => has_size(part, size)?,
        }
    }
    for part in &put.manifests {
        let found = repository.and_then(|repository| repository.manifest(part.digest.as_str()));
        match found {
            None => unknown.push(part.digest.to_string()),
            Some(document) => has_size(part, document.size)?,
        }
    }
    if !unknown.is_empty() {
        let message = "the manifest needs content that is not in this repository: push that first";
        return Err(Refusal::of_many(Code::ManifestBlobUnknown, message, unknown));
    }
    match put.tags.iter().find(|tag| is_taken(editing, &put.repository, tag)) {
        None => Ok(()),
        Some(tag) => {
            let message = "the name belongs to a cluster image of this store";
            Err(Refusal::new(
                Code::Denied,
                message,
                &format!("{}:{tag}", put.repository),
            ))
        }
    }
}

fn has_size(part: &Part, size: u64) -> Result<(), Refusal> {
    if part.size == size {
        return Ok(());
    }
    let detail = format!(
        "{} has {}, the manifest says {}",
        part.digest,
        oci::counted(size, "byte"),
        part.size
    );
    Err(Refusal::new(
        Code::ManifestInvalid,
        "a size in the manifest is wrong",
        &detail,
    ))
}

/// Whether a tag is the name of something that is not served, such as a cluster image: taking it would lose that.
fn is_taken(editing: &Editing<'_>, repository: &str, tag: &str) -> bool {
    let served = editing
        .catalog
        .repositories
        .get(repository)
        .and_then(|repository| repository.manifest(tag));
    editing.index.manifests.iter().any(|entry| {
        !is_pushed(entry)
            && served.is_none_or(|document| document.digest != entry.digest)
            && editing.layout().blobs().size(&entry.digest).is_some()
            && entry
                .reference()
                .is_some_and(|reference| reference.repository() == repository && reference.tag() == Some(tag))
    })
}
