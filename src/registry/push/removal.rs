//! Taking content away: tags, manifests, blobs, and what was pushed and never used.
//!
//! A blob leaves the disk with the last repository that has it, unless something else in the store's index leads to it. All of
//! this is done by the writer, while no blob becomes visible.

use std::{sync::Arc, time::Duration};

use oci::Digest;

use super::{
    editing::Editing,
    links::Linked,
    writer::{Change, Desk},
};
use crate::{
    answer::{Code, Refusal},
    catalog::Id,
    index,
};

/// The repository of what belongs to none any more and is still to be removed: no real one has this name.
const NOBODY: &str = "";

/// Makes a change that takes something away.
///
/// # Errors
/// When there is nothing of the kind, or something needs it.
pub fn take_away(desk: &Desk, change: &Change) -> Result<(), Refusal> {
    match change {
        Change::Put(_) => Ok(()),
        Change::Untag { repository, tag } => untag(desk, repository, tag),
        Change::Remove { repository, digest } => remove(desk, repository, digest),
        Change::DropBlob { repository, digest } => drop_blob(desk, repository, digest),
        Change::Sweep(age) => sweep(desk, *age),
    }
}

fn untag(desk: &Desk, repository: &str, tag: &str) -> Result<(), Refusal> {
    let mut editing = Editing::begin(desk)?;
    let found = editing
        .catalog
        .repositories
        .get(repository)
        .and_then(|found| found.manifest(tag));
    if found.is_none() {
        return Err(unknown(repository, tag));
    }
    if !index::untag(&mut editing.index, repository, tag) {
        return Err(carried(tag));
    }
    editing.look();
    let repositories = &editing.catalog.repositories;
    if repositories
        .get(repository)
        .is_some_and(|found| found.tags.contains_key(tag))
    {
        return Err(carried(tag));
    }
    editing.save()
}

fn remove(desk: &Desk, repository: &str, digest: &Digest) -> Result<(), Refusal> {
    let mut editing = Editing::begin_alone(desk)?;
    let id = Id::from(digest);
    let Some(found) = editing.catalog.repositories.get(repository) else {
        return Err(unknown(repository, digest.as_str()));
    };
    let Some(document) = found.manifest(digest.as_str()).map(Arc::clone) else {
        return Err(unknown(repository, digest.as_str()));
    };
    if let Some(parent) = found.needing(&id) {
        let message = "an index of this repository needs the manifest: delete that first";
        return Err(Refusal::new(Code::Unsupported, message, parent.digest.as_str()));
    }
    index::remove(&mut editing.index, repository, digest);
    editing.look();
    let repositories = &editing.catalog.repositories;
    if repositories
        .get(repository)
        .is_some_and(|found| found.has_manifest(&id))
    {
        return Err(carried(digest.as_str()));
    }
    // Its blobs stay in the repository for a while, as if they had just been pushed.
    for blob in &document.blobs {
        desk.links.add(blob, repository)?;
    }
    let needed = editing.catalog.reachable(editing.layout(), &editing.index)?;
    editing.save()?;
    if needed.contains(&id) {
        return Ok(());
    }
    discard(desk, &editing, digest)
}

fn drop_blob(desk: &Desk, repository: &str, digest: &Digest) -> Result<(), Refusal> {
    let editing = Editing::begin_alone(desk)?;
    let id = Id::from(digest);
    let parent = editing
        .catalog
        .repositories
        .get(repository)
        .and_then(|found| found.needing(&id));
    if let Some(parent) = parent {
        let message = "a manifest of this repository needs the blob: delete that first";
        return Err(Refusal::new(Code::Unsupported, message, parent.digest.as_str()));
    }
    let was_linked = desk.links.remove(&id, repository)?;
    if !was_linked {
        let message = "the blob is not in this repository";
        return Err(Refusal::new(Code::BlobUnknown, message, digest.as_str()));
    }
    let needed = editing.catalog.reachable(editing.layout(), &editing.index)?;
    if needed.contains(&id) {
        return Ok(());
    }
    discard(desk, &editing, digest)
}

fn sweep(desk: &Desk, age: Duration) -> Result<(), Refusal> {
    let editing = Editing::begin_alone(desk)?;
    let all = desk.links.list()?;
    let has_old = |linked: &Linked| linked.ages.is_empty() || linked.ages.iter().any(|(_, of_link)| *of_link >= age);
    // Somebody who is adding blobs may count on those that are there: then the next turn sweeps.
    if !editing.alone || !all.iter().any(has_old) {
        return Ok(());
    }
    let needed = editing.catalog.reachable(editing.layout(), &editing.index)?;
    let mut removed = 0;
    for linked in all.into_iter().filter(has_old) {
        let old = linked.ages.iter().filter(|(_, of_link)| *of_link >= age);
        for (link, _) in old {
            desk.links.unlink(link)?;
        }
        let id = Id::from(&linked.digest);
        if desk.links.tidy(&id) && !needed.contains(&id) {
            editing.layout().blobs().remove(&linked.digest)?;
            removed += 1;
        }
    }
    if removed > 0 {
        tracing::info!(blobs = removed, "removed what was pushed and never used");
    }
    Ok(())
}

/// Removes a blob that no repository has any more; while others add blobs it is left to a later sweep.
fn discard(desk: &Desk, editing: &Editing<'_>, digest: &Digest) -> Result<(), Refusal> {
    let id = Id::from(digest);
    if !editing.alone {
        desk.links.add(&id, NOBODY)?;
    } else if desk.links.tidy(&id) {
        editing.layout().blobs().remove(digest)?;
    }
    Ok(())
}

fn unknown(repository: &str, reference: &str) -> Refusal {
    let message = "no such manifest in this repository";
    Refusal::new(Code::ManifestUnknown, message, &format!("{repository}:{reference}"))
}

fn carried(reference: &str) -> Refusal {
    let message = "the image belongs to a cluster image of this store and goes with that";
    Refusal::new(Code::Unsupported, message, reference)
}
