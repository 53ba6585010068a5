//! Cluster images to and from OCI registries, blob by blob: only what the other side lacks moves.
//!
//! ```text
//! push   blobs (mounted or sent, several at once) → manifests → index, by its tag → artifacts about it
//! pull   index → manifests → blobs (several at once, continued where they stopped) → name → artifacts about it
//! ```
//! A registry takes a manifest only when it has what that names, and the name is given last: whoever pulls sees the old
//! image or the whole new one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use oci::{Descriptor, Digest, Index, Reference, media_type};
use serde::Serialize;

use crate::error::Error;
use crate::manifest::{self, MAX_JSON, Manifest, is_document};
use crate::progress::Progress;
use crate::referrers::Attached;
use crate::remote::{Access, Meter, Remote, Repository, Sent, fallback_tag};
use crate::store::Store;
use crate::verify::check_index;
use crate::view::Carried;

/// Blobs that move at once.
const PARALLEL: usize = 4;
/// Repositories of the registry that are asked for a blob before it's sent.
const MOST_MOUNTS: usize = 2;
/// Artifacts about an image that are followed, and artifacts about those.
const MOST_ARTIFACTS: usize = 64;

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pushed {
    /// The name in the registry.
    pub reference: Reference,
    /// The index digest.
    pub digest: Digest,
    /// Blobs the repository had.
    pub present: usize,
    /// Blobs the registry took over from other repositories.
    pub mounted: usize,
    /// Blobs and manifests that were sent.
    pub sent: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Artifacts about the image that went with it.
    pub artifacts: usize,
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PulledImage {
    /// The name in the store.
    pub reference: Reference,
    /// The index digest.
    pub digest: Digest,
    /// Blobs and manifests the store didn't have.
    pub new_blobs: usize,
    /// Their bytes.
    pub new_bytes: u64,
    /// Artifacts about the image that came with it.
    pub artifacts: usize,
}

/// Sends an image of the store to a registry, and the artifacts about it. `mount_from` names repositories of the same
/// registry that may have some of its blobs, besides those the store's names tell.
///
/// # Errors
/// If the store doesn't have the image or something of it is damaged, or the registry can't be reached or refuses.
pub async fn push(
    store: &Store,
    name: &str,
    to: &Reference,
    mount_from: &[String],
    remote: &Arc<Remote>,
    progress: Arc<dyn Progress>,
) -> Result<Pushed, Error> {
    let _in_use = store.hold()?;
    let work = Plan::new(store, name, to, mount_from)?;
    let repository = remote.repository(to, Access::Push);
    let meter = Meter::new(progress, work.blobs.iter().map(|blob| blob.size).sum());
    let mut pushed = Pushed {
        reference: to.clone(),
        digest: work.index.digest.clone(),
        present: 0,
        mounted: 0,
        sent: 0,
        bytes: 0,
        artifacts: work.artifacts.len(),
    };
    let send = async |blob: &Descriptor| {
        let mounts = work.mounts.get(&blob.digest).map_or(&[][..], Vec::as_slice);
        let sent = repository.push_blob(store.blobs(), blob, mounts, &meter).await?;
        Ok::<_, Error>((sent, blob.size))
    };
    // A repository that has the index has all that it names.
    let there = repository.has_manifest(&work.index.digest).await?;
    let blobs: &[Descriptor] = if there { &[] } else { &work.blobs };
    let mut sending = futures::stream::iter(blobs).map(send).buffer_unordered(PARALLEL);
    while let Some((sent, size)) = sending.try_next().await? {
        pushed.count(sent, size);
    }
    drop(sending);
    if there {
        pushed.present = work.blobs.len();
    } else {
        for documents in &work.documents {
            let put = async |document: &Descriptor| put_missing(store, &repository, document).await;
            let mut putting = futures::stream::iter(documents).map(put).buffer_unordered(PARALLEL);
            while let Some((sent, size)) = putting.try_next().await? {
                pushed.count(sent, size);
            }
        }
    }
    let bytes = read(store, &work.index)?;
    let size = bytes.len() as u64;
    let tagged = match there {
        true => repository.manifest(to.tag_or_digest()).await?,
        false => None,
    };
    if tagged.is_none_or(|found| found.descriptor.digest != work.index.digest) {
        repository
            .put_manifest(to.tag_or_digest(), &work.index.media_type, bytes)
            .await?;
        pushed.count(Sent::Uploaded, size);
    }
    for artifact in &work.artifacts {
        push_artifact(store, &repository, artifact, &meter, &mut pushed).await?;
    }
    Ok(pushed)
}

/// Sends one carried image to a repository of its own, without the cluster image around it. `mounts` names, by blob,
/// repositories of the same registry that may have it.
///
/// # Errors
/// If something of the image is missing or damaged, or the registry can't be reached or refuses.
pub async fn push_carried(
    store: &Store,
    carried: &Carried,
    to: &Reference,
    mounts: &BTreeMap<Digest, Vec<String>>,
    remote: &Arc<Remote>,
    progress: Arc<dyn Progress>,
) -> Result<Pushed, Error> {
    let _in_use = store.hold()?;
    let repository = remote.repository(to, Access::Push);
    let top = &carried.served();
    let mut seen = BTreeSet::from([top.digest.clone()]);
    let parts = carried.blobs.iter().filter(|blob| seen.insert(blob.digest.clone()));
    let (documents, blobs): (Vec<&Descriptor>, Vec<&Descriptor>) = parts.partition(|part| is_document(part));
    let meter = Meter::new(progress, blobs.iter().map(|blob| blob.size).sum());
    let mut pushed = Pushed {
        reference: to.clone(),
        digest: top.digest.clone(),
        present: 0,
        mounted: 0,
        sent: 0,
        bytes: 0,
        artifacts: 0,
    };
    let send = async |blob: &Descriptor| {
        let mounts = mounts.get(&blob.digest).map_or(&[][..], Vec::as_slice);
        let mounts = &mounts[..mounts.len().min(MOST_MOUNTS)];
        let sent = repository.push_blob(store.blobs(), blob, mounts, &meter).await?;
        Ok::<_, Error>((sent, blob.size))
    };
    let mut sending = futures::stream::iter(blobs).map(send).buffer_unordered(PARALLEL);
    while let Some((sent, size)) = sending.try_next().await? {
        pushed.count(sent, size);
    }
    drop(sending);
    // What an index lists comes after it in `reachable`, and must be there before.
    for document in documents.into_iter().rev() {
        let (sent, size) = put_missing(store, &repository, document).await?;
        pushed.count(sent, size);
    }
    let bytes = read(store, top)?;
    repository
        .put_manifest(to.tag_or_digest(), &top.media_type, bytes)
        .await?;
    pushed.count(Sent::Uploaded, top.size);
    Ok(pushed)
}

impl Pushed {
    fn count(&mut self, sent: Sent, size: u64) {
        match sent {
            Sent::Present => self.present += 1,
            Sent::Mounted => self.mounted += 1,
            Sent::Uploaded => {
                self.sent += 1;
                self.bytes += size;
            }
        }
    }
}

/// What a push has to bring.
struct Plan {
    index: Descriptor,
    blobs: Vec<Descriptor>,
    /// Manifests, then the indexes that list them, without the image's own.
    documents: Vec<Vec<Descriptor>>,
    /// Repositories that may have a blob.
    mounts: BTreeMap<Digest, Vec<String>>,
    artifacts: Vec<Attached>,
}

impl Plan {
    fn new(store: &Store, name: &str, to: &Reference, mount_from: &[String]) -> Result<Plan, Error> {
        let index = store.resolve(name)?;
        if let Some(wanted) = to.digest().filter(|wanted| **wanted != index.digest) {
            let found = &index.digest;
            return Err(Error::Refused(format!(
                "{to}: the image has the digest {found}, not {wanted}"
            )));
        }
        let mut seen = BTreeSet::new();
        let mut all = store.reachable(&index)?;
        all.retain(|blob| seen.insert(blob.digest.clone()));
        let (documents, blobs): (Vec<_>, Vec<_>) = all.into_iter().partition(is_document);
        let documents = documents.into_iter().filter(|document| document.digest != index.digest);
        let (mut indexes, manifests): (Vec<_>, Vec<_>) = documents.partition(Descriptor::is_index);
        // The listing index comes before the listed one in `reachable`.
        indexes.reverse();
        let mut documents = vec![manifests];
        documents.extend(indexes.into_iter().map(|index| vec![index]));
        Ok(Plan {
            mounts: mounts(store, &index, to, mount_from)?,
            artifacts: store.attached(&index)?,
            index,
            blobs,
            documents,
        })
    }
}

/// Where in the registry blobs may be already: images and carried images that the store knows by a name there.
fn mounts(
    store: &Store,
    index: &Descriptor,
    to: &Reference,
    mount_from: &[String],
) -> Result<BTreeMap<Digest, Vec<String>>, Error> {
    let there = |reference: &Reference| reference.domain() == to.domain() && reference.path() != to.path();
    let mut found: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    let mut add = |path: &str, blobs: &[Descriptor]| {
        for blob in blobs.iter().filter(|blob| !is_document(blob)) {
            let paths = found.entry(blob.digest.clone()).or_default();
            if paths.len() < MOST_MOUNTS && !paths.iter().any(|known| known == path) {
                paths.push(path.to_string());
            }
        }
    };
    let all = store.reachable(index)?;
    for path in mount_from {
        add(path, &all);
    }
    for entry in store.read_index(index)?.manifests {
        if let Some(reference) = entry.reference().filter(there) {
            add(reference.path(), &store.reachable(&entry)?);
        }
    }
    for entry in store.layout().read_index()?.manifests {
        if let Some(reference) = entry.reference().filter(there) {
            // A damaged image elsewhere in the store is no reason not to send this one.
            add(reference.path(), &store.reachable(&entry).unwrap_or_default());
        }
    }
    Ok(found)
}

fn read(store: &Store, document: &Descriptor) -> Result<Bytes, Error> {
    Ok(store.blobs().read(&document.digest, MAX_JSON)?.into())
}

async fn put_missing(store: &Store, repository: &Repository, document: &Descriptor) -> Result<(Sent, u64), Error> {
    if repository.has_manifest(&document.digest).await? {
        return Ok((Sent::Present, document.size));
    }
    let bytes = read(store, document)?;
    repository
        .put_manifest(document.digest.as_str(), &document.media_type, bytes)
        .await?;
    Ok((Sent::Uploaded, document.size))
}

async fn push_artifact(
    store: &Store,
    repository: &Repository,
    artifact: &Attached,
    meter: &Meter,
    pushed: &mut Pushed,
) -> Result<(), Error> {
    let manifest = &artifact.manifest;
    for blob in artifact.blobs.iter().filter(|blob| blob.digest != manifest.digest) {
        let sent = repository.push_blob(store.blobs(), blob, &[], meter).await?;
        pushed.count(sent, blob.size);
    }
    // Not only where it's missing: only the answer tells whether the registry lists it.
    let bytes = read(store, manifest)?;
    let listed = repository
        .put_manifest(manifest.digest.as_str(), &manifest.media_type, bytes)
        .await?;
    pushed.count(Sent::Uploaded, manifest.size);
    if listed {
        return Ok(());
    }
    let mut described = manifest.clone();
    let document: Manifest = store.read_json(manifest)?;
    described.artifact_type = Some(document.artifact_type());
    described.annotations = document.annotations;
    list_artifact(repository, &artifact.subject, described).await
}

/// Adds an artifact to the list that registries without the referrers interface keep under a tag.
async fn list_artifact(repository: &Repository, subject: &Digest, artifact: Descriptor) -> Result<(), Error> {
    let tag = fallback_tag(subject);
    let mut list = match repository.manifest(&tag).await? {
        Some(found) if found.descriptor.is_index() => manifest::parse(&found.descriptor, &found.bytes)?,
        _ => Index::default(),
    };
    if list.manifests.iter().any(|entry| entry.digest == artifact.digest) {
        return Ok(());
    }
    list.manifests.push(artifact);
    let bytes = serde_json::to_vec(&list).map_err(|source| oci::Error::Json {
        path: tag.clone(),
        source,
    })?;
    repository.put_manifest(&tag, media_type::INDEX, bytes.into()).await?;
    Ok(())
}

/// Brings an image from a registry into the store, and the artifacts about it, and names it `name` or as it was asked for.
///
/// # Errors
/// If the registry doesn't have it, can't be reached or refuses, if it's no cluster image, or the disk refuses.
pub async fn pull(
    store: &Store,
    from: &Reference,
    name: Option<&Reference>,
    remote: &Arc<Remote>,
    progress: Arc<dyn Progress>,
) -> Result<PulledImage, Error> {
    let _in_use = store.hold()?;
    let repository = remote.repository(from, Access::Pull);
    let failed = |reason: String| Error::Pull {
        reference: from.to_string(),
        reason,
    };
    let found = repository.manifest(from.tag_or_digest()).await?;
    let found = found.ok_or_else(|| failed("the registry has no such image".to_string()))?;
    let index = found.descriptor;
    if !index.is_index() {
        return Err(failed("it is a container image, not a cluster image".to_string()));
    }
    manifest::check_cluster_index(&manifest::parse(&index, &found.bytes)?).map_err(failed)?;
    let mut new = New::default();
    new.put(store, &index, &found.bytes)?;
    let blobs = documents(store, &repository, vec![index.clone()], &mut new).await?;
    fetch(store, &repository, blobs, progress, &mut new).await?;
    let list = manifest::parse(&index, &found.bytes)?;
    let read = |document: &Descriptor| Ok(store.blobs().read(&document.digest, manifest::MAX_JSON)?);
    let problems = check_index(&list, &read)?;
    if !problems.is_empty() {
        return Err(failed(format!(
            "its images are not what its lock says: {}",
            problems.join("; ")
        )));
    }
    let reference = name.unwrap_or(from).clone();
    let artifacts = pull_artifacts(store, &repository, &index, &mut new).await?;
    store.tag(&reference, &index)?;
    for artifact in &artifacts {
        store.keep_artifact(artifact)?;
    }
    Ok(PulledImage {
        reference,
        digest: index.digest,
        new_blobs: new.blobs,
        new_bytes: new.bytes,
        artifacts: artifacts.len(),
    })
}

/// Counts what the store didn't have.
#[derive(Default)]
struct New {
    blobs: usize,
    bytes: u64,
}

impl New {
    fn put(&mut self, store: &Store, document: &Descriptor, bytes: &[u8]) -> Result<(), Error> {
        if !store.blobs().has(&document.digest, document.size) {
            store.put(bytes)?;
            self.blobs += 1;
            self.bytes += document.size;
        }
        Ok(())
    }
}

/// Fetches the documents below `level`, and gives the blobs that they name, each once.
async fn documents(
    store: &Store,
    repository: &Repository,
    mut level: Vec<Descriptor>,
    new: &mut New,
) -> Result<Vec<Descriptor>, Error> {
    let mut blobs = Vec::new();
    let mut seen = BTreeSet::new();
    for _ in 0..=manifest::DEEPEST {
        let get = async |document: &Descriptor| {
            let bytes = get_document(store, repository, document).await?;
            Ok::<_, Error>((document.clone(), bytes))
        };
        let mut getting = futures::stream::iter(&level).map(get).buffered(PARALLEL);
        let mut next = Vec::new();
        while let Some((document, bytes)) = getting.try_next().await? {
            let below = manifest::children(&document, &bytes)?;
            new.put(store, &document, &bytes)?;
            let fresh = below.into_iter().filter(|child| seen.insert(child.digest.clone()));
            let (deeper, leaves): (Vec<_>, Vec<_>) = fresh.partition(is_document);
            next.extend(deeper);
            blobs.extend(leaves);
        }
        drop(getting);
        if next.is_empty() {
            return Ok(blobs);
        }
        level = next;
    }
    let digest = level
        .first()
        .map(|document| document.digest.to_string())
        .unwrap_or_default();
    Err(Error::Refused(format!(
        "{digest}: indexes that list indexes too deeply"
    )))
}

async fn get_document(store: &Store, repository: &Repository, document: &Descriptor) -> Result<Bytes, Error> {
    if store.blobs().has(&document.digest, document.size)
        && let Ok(bytes) = store.blobs().read(&document.digest, MAX_JSON)
    {
        return Ok(bytes.into());
    }
    let found = repository.manifest(document.digest.as_str()).await?;
    let missing = || Error::Pull {
        reference: format!("{}@{}", repository.name(), document.digest),
        reason: "the registry lacks a manifest that the image lists".to_string(),
    };
    Ok(found.ok_or_else(missing)?.bytes)
}

async fn fetch(
    store: &Store,
    repository: &Repository,
    mut blobs: Vec<Descriptor>,
    progress: Arc<dyn Progress>,
    new: &mut New,
) -> Result<(), Error> {
    blobs.retain(|blob| !store.blobs().has(&blob.digest, blob.size));
    let total = blobs.iter().map(|blob| blob.size).sum();
    let partial = blobs
        .iter()
        .map(|blob| store.blobs().partial_size(&blob.digest).min(blob.size));
    store.check_room(total - partial.sum::<u64>())?;
    let meter = Meter::new(progress, total);
    let fetch = async |blob: &Descriptor| repository.fetch_blob(store.blobs(), blob, &meter).await;
    let mut fetching = futures::stream::iter(&blobs).map(fetch).buffer_unordered(PARALLEL);
    while fetching.try_next().await?.is_some() {}
    drop(fetching);
    new.blobs += blobs.len();
    new.bytes += total;
    Ok(())
}

/// Fetches the artifacts about the image, and those about them.
async fn pull_artifacts(
    store: &Store,
    repository: &Repository,
    index: &Descriptor,
    new: &mut New,
) -> Result<Vec<Descriptor>, Error> {
    let mut found: Vec<Descriptor> = Vec::new();
    let mut waiting = vec![index.digest.clone()];
    while let Some(subject) = waiting.pop() {
        for entry in repository.referrers(&subject).await? {
            let known = found.iter().any(|artifact| artifact.digest == entry.digest);
            if entry.media_type != media_type::MANIFEST || known {
                continue;
            }
            if found.len() == MOST_ARTIFACTS {
                let why = format!("{}: more than {MOST_ARTIFACTS} artifacts about it", index.digest);
                return Err(Error::Refused(why));
            }
            let bytes = get_document(store, repository, &entry).await?;
            let manifest: Manifest = manifest::parse(&entry, &bytes)?;
            if manifest.subject.as_ref().is_none_or(|about| about.digest != subject) {
                // The list under a tag is anybody's: what it says of others isn't taken for true.
                continue;
            }
            let artifact = Descriptor::new(entry.media_type, entry.digest, bytes.len() as u64);
            let blobs = manifest::children(&artifact, &bytes)?;
            fetch(store, repository, blobs, Arc::new(crate::progress::NoProgress), new).await?;
            new.put(store, &artifact, &bytes)?;
            waiting.push(artifact.digest.clone());
            found.push(artifact);
        }
    }
    Ok(found)
}
