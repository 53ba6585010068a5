//! Proving a finished image: every blob is there and has its digest, and every image name in its files means what the lock
//! says and is carried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use oci::{Descriptor, Digest, Index, Platform, Reference};
use serde::Serialize;

use crate::closure::Survey;
use crate::config::{ClusterConfig, ImageConfig};
use crate::error::Error;
use crate::lock::check;
use crate::manifest::{Manifest, fits, is_rootfs, parse, platform_text};
use crate::progress::{Event, Progress};
use crate::store::Store;
use crate::view::ClusterImage;

/// What was found out about an image.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// The index digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Blobs read and compared with their digests, each once.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What holds for each platform.
    pub platforms: Vec<PlatformVerification>,
    /// Blobs that are missing or damaged, in words.
    pub problems: Vec<String>,
}

/// What was found out about one platform of an image.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlatformVerification {
    /// `os/architecture`.
    pub platform: String,
    /// Container images carried.
    pub carried: usize,
    /// Image names in the rootfs' files, each counted once.
    pub named: usize,
    /// What contradicts the lock, can't be proved, or can't be applied, in words.
    pub problems: Vec<String>,
    /// Objects that this version's API server may not serve, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What the files of a rootfs tell.
#[derive(Debug, Default)]
struct Looked {
    /// Images that they name.
    named: usize,
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Verification {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && self.platforms.iter().all(|platform| platform.problems.is_empty())
    }
}

/// Verifies an image of the store for all its platforms.
///
/// # Errors
/// If the store doesn't have it, or so much of it is damaged that its content can't be listed.
pub fn verify(store: &Store, name: &str, progress: &dyn Progress) -> Result<Verification, Error> {
    let _in_use = store.hold()?;
    let mut found = Verification::default();
    let index = store.resolve(name)?;
    let list: Index = store.read_index(&index)?;
    let mut blobs: BTreeMap<Digest, Descriptor> = BTreeMap::new();
    let mut images = Vec::new();
    for platform in platforms(&list) {
        let image = ClusterImage::open(store, index.digest.as_str(), &platform)?;
        blobs.extend(image.all_blobs().into_iter().map(|blob| (blob.digest.clone(), blob)));
        images.push(image);
    }
    found.digest = Some(index.digest);
    found.blobs = blobs.len();
    found.bytes = blobs.values().map(|blob| blob.size).sum();
    found.problems = damaged(store, &blobs.into_values().collect::<Vec<_>>(), progress);
    for image in &images {
        let mut problems = image.check_closure();
        let looked = match image.look_again() {
            Ok(looked) => looked,
            Err(error) => {
                problems.push(format!("its files can't be looked at: {error}"));
                Looked::default()
            }
        };
        problems.extend(looked.problems);
        found.platforms.push(PlatformVerification {
            platform: platform_text(&image.platform),
            carried: image.carried.len(),
            named: looked.named,
            problems,
            warnings: looked.warnings,
        });
    }
    Ok(found)
}

/// The platforms that an image has a rootfs for, in its order.
pub(crate) fn platforms(index: &Index) -> Vec<Platform> {
    let rootfs = index.manifests.iter().filter(|entry| is_rootfs(entry));
    rootfs.filter_map(|entry| entry.platform.clone()).collect()
}

/// Reads every blob, several at once.
fn damaged(store: &Store, blobs: &[Descriptor], progress: &dyn Progress) -> Vec<String> {
    let total = blobs.iter().map(|blob| blob.size).sum();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let problems = Mutex::new(BTreeSet::new());
    let work = || {
        while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = store.blobs().verify(&blob.digest, blob.size)
                && let Ok(mut problems) = problems.lock()
            {
                problems.insert(error.to_string());
            }
            let done = done.fetch_add(blob.size, Ordering::Relaxed) + blob.size;
            progress.event(Event::Bytes { done, total });
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
        work();
    });
    problems.into_inner().unwrap_or_default().into_iter().collect()
}

impl ClusterImage {
    /// Compares what is carried with the lock: every contradiction, in words. Cheap, for use before every apply: no blob is
    /// read.
    #[must_use]
    pub fn check_closure(&self) -> Vec<String> {
        let carried = self.carried.iter();
        let carried = carried.map(|image| (image.reference.clone(), image.manifest.digest.clone()));
        let platform = self.rootfs.manifest.platform.as_ref().unwrap_or(&self.platform);
        check(self.config.lock.as_ref(), &platform_text(platform), &carried.collect())
    }

    /// Looks at the rootfs' files as the build did: how many images they name, which the lock doesn't know, and what can't be
    /// applied.
    fn look_again(&self) -> Result<Looked, Error> {
        let Some(lock) = &self.config.lock else {
            return Ok(Looked::default());
        };
        let mut survey = Survey::new(lock.rules.clone(), &self.config);
        let layers = self
            .rootfs
            .layers
            .iter()
            .map(|layer| (layer.digest.clone(), layer.clone()));
        let tree = self.tree()?;
        survey.tree(&tree, self.store().blobs(), &layers.collect(), |path, _| {
            path.to_string()
        })?;
        let (named, faults, warnings) = survey.finish();
        let unknown = named
            .iter()
            .filter(|(reference, _)| !lock.images.contains_key(reference));
        let unknown = unknown.flat_map(|(reference, places)| {
            let text = move |place| format!("{place}: names {reference}, which the lock does not know");
            places.iter().map(text)
        });
        let faults = faults.iter().map(|fault| {
            let why = fault.malformed.as_deref().unwrap_or_default();
            format!("{}:{}: {why}", fault.file, fault.line)
        });
        Ok(Looked {
            named: named.len(),
            problems: unknown.chain(faults).collect(),
            warnings,
        })
    }
}

/// Compares the locks of an image that is not in the store yet with its index, for every platform. `read` gives documents.
///
/// # Errors
/// When a document can't be read.
pub(crate) fn check_index(
    index: &Index,
    read: &dyn Fn(&Descriptor) -> Result<Vec<u8>, Error>,
) -> Result<Vec<String>, Error> {
    let mut problems = Vec::new();
    for rootfs in index.manifests.iter().filter(|entry| is_rootfs(entry)) {
        let manifest: Manifest = parse(rootfs, &read(rootfs)?)?;
        let config: ImageConfig = parse(&manifest.config, &read(&manifest.config)?)?;
        let lock = ClusterConfig::from_image(&config)?.lock;
        let Some(platform) = &rootfs.platform else { continue };
        let offers = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|offered| fits(offered, platform));
        let carried = index.manifests.iter().filter(|entry| !is_rootfs(entry)).filter(offers);
        let carried: BTreeMap<Reference, Digest> = carried
            .filter_map(|entry| Some((entry.reference()?, entry.digest.clone())))
            .collect();
        problems.extend(check(lock.as_ref(), &platform_text(platform), &carried));
    }
    Ok(problems)
}
