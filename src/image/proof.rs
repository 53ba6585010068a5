//! The closure proof of one platform's rootfs while it is built: what is named, pulls of what no instruction asked for, and
//! the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use oci::{Descriptor, Platform, Reference};

use crate::closure::{Rules, Survey};
use crate::config::ClusterConfig;
use crate::error::Error;
use crate::lock::{Lock, Place};
use crate::manifest::platform_text;
use crate::pull::Puller;
use crate::store::Store;

/// The lines of a recipe that ask for images.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    /// The recipe's name as the lock shows it.
    recipe: String,
    places: BTreeMap<Reference, BTreeSet<Place>>,
}

impl Origins {
    /// For a recipe, which is named from the context if it lies there: where the context lies must not matter.
    pub(crate) fn of(recipe: &Path, context: &Path) -> Origins {
        let real = recipe.canonicalize().unwrap_or_else(|_| recipe.to_path_buf());
        let name = real
            .strip_prefix(context)
            .ok()
            .or_else(|| real.file_name().map(Path::new));
        Origins {
            recipe: name.unwrap_or(&real).display().to_string(),
            places: BTreeMap::new(),
        }
    }

    /// An instruction in this line asks for an image; the last one to do so holds.
    pub(crate) fn add(&mut self, reference: Reference, line: u64) {
        let place = Place::new(&self.recipe, line);
        self.places.insert(reference, BTreeSet::from([place]));
    }
}

/// See the head of this file.
pub(crate) struct Proof<'a> {
    pub(crate) store: &'a Store,
    pub(crate) puller: &'a Puller,
    pub(crate) platform: &'a Platform,
    pub(crate) origins: Origins,
    /// What is named; the caller shows it the rootfs and whatever else names images.
    pub(crate) survey: Survey,
}

/// What a proof gives.
pub(crate) struct Proved {
    pub(crate) lock: Lock,
    /// What was pulled, because it is named and was not carried.
    pub(crate) pulled: BTreeMap<Reference, Descriptor>,
    /// What may be an image's name and is not carried.
    pub(crate) warnings: BTreeSet<String>,
}

impl Proof<'_> {
    /// A survey that knows the rules of the context and of the base image, whose configuration `config` still is.
    pub(crate) fn begin(context: &Path, config: &ClusterConfig) -> Result<Survey, Error> {
        let inherited = config.lock.as_ref().map(|lock| lock.rules.clone());
        let mut rules = inherited.unwrap_or_default();
        rules.extend(Rules::of_context(context)?);
        Ok(Survey::new(rules, config))
    }

    /// Pulls what is named and not carried, and proves that then all is. Must run in a runtime's thread for blocking work.
    ///
    /// # Errors
    /// [`Error::NotClosed`] with everything that is missing or can't be understood; what went wrong on this machine.
    pub(crate) fn run(self, carried: &BTreeMap<Reference, Descriptor>) -> Result<Proved, Error> {
        let wanted: Vec<Reference> = self.survey.wanted(carried).into_iter().collect();
        let pulls = self.puller.pull_all(self.store, wanted.clone(), self.platform);
        let results = tokio::runtime::Handle::current().block_on(pulls);
        let (mut pulled, mut failed) = (BTreeMap::new(), BTreeMap::new());
        for (reference, result) in wanted.into_iter().zip(results) {
            match result {
                Ok(manifest) => drop(pulled.insert(reference, manifest)),
                Err(Error::Pull { reason, .. }) => drop(failed.insert(reference, reason)),
                Err(other) => return Err(other),
            }
        }
        let all = carried.iter().chain(&pulled);
        let all = all.map(|(name, manifest)| (name.clone(), manifest.clone())).collect();
        let platform = platform_text(self.platform);
        let warnings = self.survey.warnings(&all);
        let lock = self.survey.prove(&platform, &all, &self.origins.places, &failed)?;
        Ok(Proved { lock, pulled, warnings })
    }
}
