//! Container images from registries into the store: for one platform, several at once.
//!
//! Of an index only the platform's manifest is taken. Where the reference is pinned to the index, that is remembered with the
//! manifest, because the runtime will ask for it by this name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use oci::{Descriptor, Digest, Index, Platform, Reference};

use crate::error::Error;
use crate::manifest::{MAX_JSON, Manifest, PINNED_INDEX, check_described, check_platform, choose, parse, pin};
use crate::progress::{Event, Progress};
use crate::remote::{Access, Meter, Remote, RemoteOptions, Repository, UNREACHABLE, manifest_kind};
use crate::store::Store;

/// Images pulled at once.
const PARALLEL_IMAGES: usize = 3;
/// Blobs of one image fetched at once.
const PARALLEL_BLOBS: usize = 4;

/// How images are pulled, if at all.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Registries, logins and retries.
    pub remote: RemoteOptions,
    /// No registry is asked: only images that cluster images of the store carry are found.
    pub offline: bool,
}

impl fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The rest knows logins.
        write!(f, "PullOptions {{ offline: {} }}", self.offline)
    }
}

/// Pulls images; one for a whole build, so that connections and tokens are reused.
pub(crate) struct Puller {
    remote: Arc<Remote>,
    offline: bool,
    progress: Arc<dyn Progress>,
    /// Registries that did not answer, and why: waiting for each of their images again helps nobody.
    silent: Mutex<BTreeMap<String, String>>,
}

/// Tells the bytes of one image among several.
struct OfImage {
    image: String,
    progress: Arc<dyn Progress>,
}

impl Progress for OfImage {
    fn event(&self, event: Event) {
        self.progress.event(match event {
            Event::Bytes { done, total } => Event::Pulled {
                image: self.image.clone(),
                done,
                total,
            },
            other => other,
        });
    }
}

impl Puller {
    /// # Errors
    /// When certificates of the options can't be read.
    pub(crate) fn new(options: &PullOptions, progress: Arc<dyn Progress>) -> Result<Puller, Error> {
        Ok(Puller {
            remote: Remote::new(options.remote.clone())?,
            offline: options.offline,
            progress,
            silent: Mutex::default(),
        })
    }

    /// Puts images into the store. The results, each a manifest, are in the order of the references; what a
    /// registry is to blame for is an [`Error::Pull`].
    pub(crate) async fn pull_all(
        &self,
        store: &Store,
        references: Vec<Reference>,
        platform: &Platform,
    ) -> Vec<Result<Descriptor, Error>> {
        let pull = async |reference: Reference| self.pull(store, &reference, platform).await;
        let pulls = futures::stream::iter(references).map(pull);
        pulls.buffered(PARALLEL_IMAGES).collect().await
    }

    fn silent(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pull(&self, store: &Store, reference: &Reference, platform: &Platform) -> Result<Descriptor, Error> {
        self.progress.event(Event::Image(reference.to_string()));
        let pull = Pull {
            repository: self.remote.repository(reference, Access::Pull),
            store,
            reference,
            platform,
        };
        if self.offline {
            return pull.find_carried();
        }
        let progress = Arc::new(OfImage {
            image: reference.familiar(),
            progress: Arc::clone(&self.progress),
        });
        let domain = reference.domain();
        if let Some(reason) = self.silent().get(domain) {
            return Err(pull.failed(reason));
        }
        let result = pull.run(progress).await;
        if let Err(Error::Pull { reason, .. }) = &result
            && reason.starts_with(UNREACHABLE)
        {
            self.silent().insert(domain.to_string(), reason.clone());
        }
        result
    }
}

/// One image on its way.
struct Pull<'a> {
    repository: Repository,
    store: &'a Store,
    reference: &'a Reference,
    platform: &'a Platform,
}

/// A manifest or index, byte for byte.
struct Document {
    descriptor: Descriptor,
    bytes: Bytes,
}

impl Pull<'_> {
    /// The image as a cluster image of the store carries it for this platform.
    fn find_carried(&self) -> Result<Descriptor, Error> {
        let found: BTreeMap<Digest, Descriptor> = self
            .store
            .carried(self.reference, self.platform)?
            .into_iter()
            .map(|entry| (entry.digest.clone(), entry))
            .collect();
        let count = found.len();
        match found.into_values().next() {
            Some(mut entry) if count == 1 => {
                entry.annotations.retain(|name, _| name == PINNED_INDEX);
                Ok(entry)
            }
            Some(_) => Err(self.failed(format!("{count} images of the store carry different ones by this name"))),
            None => Err(self.failed("--no-pull is set, and no cluster image of the store carries it")),
        }
    }

    async fn run(&self, progress: Arc<dyn Progress>) -> Result<Descriptor, Error> {
        let top = self.document(self.reference.tag_or_digest()).await?;
        if !top.descriptor.is_index() {
            self.fetch(&top, progress).await?;
            self.check_platform(&top)?;
            self.store.put(&top.bytes)?;
            return Ok(Descriptor {
                platform: Some(self.platform.clone()),
                ..top.descriptor
            });
        }
        let list: Index = parse(&top.descriptor, &top.bytes).map_err(|error| self.failed(error))?;
        let mut entry = choose(&list, self.platform).map_err(|why| self.failed(why))?;
        let manifest = self.document(entry.digest.as_str()).await?;
        check_described(&entry, &manifest.descriptor).map_err(|why| self.failed(why))?;
        self.fetch(&manifest, progress).await?;
        self.store.put(&manifest.bytes)?;
        if self.reference.digest() == Some(&top.descriptor.digest) {
            pin(&mut entry, top.bytes.to_vec()).map_err(|why| self.failed(why))?;
        }
        Ok(entry)
    }

    /// A manifest or index by tag or digest; one that the store has is not fetched again.
    async fn document(&self, name: &str) -> Result<Document, Error> {
        if let Ok(digest) = name.parse::<Digest>()
            && self.store.blobs().size(&digest).is_some_and(|size| size <= MAX_JSON)
        {
            let bytes = Bytes::from(self.store.blobs().read(&digest, MAX_JSON)?);
            if let Ok(kind) = manifest_kind(&bytes, None) {
                let descriptor = Descriptor::of(kind, &bytes);
                return Ok(Document { descriptor, bytes });
            }
        }
        let found = self
            .repository
            .manifest(name)
            .await
            .map_err(|error| self.blame(error, None))?;
        let Some(found) = found else {
            let why = format!("{} has no such image ({name} is not found)", self.reference.domain());
            return Err(self.failed(why));
        };
        Ok(Document {
            descriptor: found.descriptor,
            bytes: found.bytes,
        })
    }

    /// Every blob of the manifest that the store lacks, several at once.
    async fn fetch(&self, document: &Document, progress: Arc<dyn Progress>) -> Result<(), Error> {
        let manifest: Manifest = parse(&document.descriptor, &document.bytes).map_err(|error| self.failed(error))?;
        let blobs = std::iter::once(manifest.config).chain(manifest.layers);
        let absent = blobs.filter(|blob| !self.store.blobs().has(&blob.digest, blob.size));
        let missing: BTreeMap<Digest, Descriptor> = absent.map(|blob| (blob.digest.clone(), blob)).collect();
        let total = missing.values().fold(0u64, |sum, blob| sum.saturating_add(blob.size));
        let meter = Meter::new(progress, total);
        let blobs = self.store.blobs();
        let fetch = async |blob: Descriptor| {
            let fetched = self.repository.fetch_blob(blobs, &blob, &meter).await;
            fetched.map_err(|error| self.blame(error, Some(&blob.digest)))
        };
        let fetches = futures::stream::iter(missing.into_values()).map(fetch);
        fetches
            .buffer_unordered(PARALLEL_BLOBS)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    /// A manifest that no index described may be for any platform; its configuration says for which.
    fn check_platform(&self, document: &Document) -> Result<(), Error> {
        let manifest: Manifest = parse(&document.descriptor, &document.bytes).map_err(|error| self.failed(error))?;
        let config = self
            .store
            .blobs()
            .read(&manifest.config.digest, MAX_JSON)
            .map_err(|error| self.failed(error))?;
        check_platform(&config, self.platform).map_err(|why| self.failed(why))
    }

    fn failed(&self, reason: impl fmt::Display) -> Error {
        Error::Pull {
            reference: self.reference.to_string(),
            reason: reason.to_string(),
        }
    }

    /// What the registry is to blame for, as an error of this pull; what happened here stays as it is.
    fn blame(&self, error: Error, blob: Option<&Digest>) -> Error {
        let of = blob.map(|digest| format!("blob {digest}: ")).unwrap_or_default();
        match error {
            Error::Remote { reason, .. } => self.failed(format!("{of}{reason}")),
            Error::Oci(
                error @ (oci::Error::Corrupt { .. } | oci::Error::TooLarge { .. } | oci::Error::Json { .. }),
            ) => self.failed(error),
            other => other,
        }
    }
}
