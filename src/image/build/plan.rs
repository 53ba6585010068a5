//! What a build knows before it makes anything: its recipes, and what they need from registries and URLs.

use std::collections::{BTreeMap, BTreeSet};

use oci::{Descriptor, Digest, Platform};

use super::BuildOptions;
use crate::context::Contexts;
use crate::download::{self, Fetched};
use crate::error::Error;
use crate::manifest::{host_platform, platform_text};
use crate::progress::Progress;
use crate::pull::Puller;
use crate::recipe::{Recipe, given};
use crate::store::Store;

/// Everything that can be known before something is fetched or made.
pub(super) struct Plan {
    pub(super) recipes: Vec<Recipe>,
    pub(super) contexts: Contexts,
    wanted: download::Wanted,
}

impl Plan {
    /// What recipes may not mean as it is written is added to `warnings`.
    ///
    /// # Errors
    /// Everything that is wrong with the recipes for one platform.
    pub(super) fn read(store: &Store, options: &BuildOptions, warnings: &mut BTreeSet<String>) -> Result<Plan, Error> {
        let contexts = Contexts::new(store, &options.context, &options.build_contexts)?;
        let mut plan = Plan {
            recipes: Vec::new(),
            contexts,
            wanted: download::Wanted::new(),
        };
        for platform in options.ordered()? {
            let recipe = Recipe::read(store, options, &plan.contexts, &platform, warnings);
            let mut recipe = recipe.map_err(options.error_on(&platform))?;
            plan.wanted.append(&mut recipe.wanted);
            plan.recipes.push(recipe);
        }
        Ok(plan)
    }
}

impl BuildOptions {
    /// The platforms in the order they are built: this machine's own first, because its rootfs may hold a helm for all.
    pub(super) fn ordered(&self) -> Result<Vec<Platform>, Error> {
        let mut platforms = self.platforms.clone();
        platforms.sort_by_cached_key(|platform| (*platform != host_platform(), platform_text(platform)));
        if platforms.is_empty() {
            return Err(Error::Refused("a build needs a platform".to_string()));
        }
        if let Some(twice) = platforms.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Refused(format!(
                "the platform {} is given twice",
                platform_text(&twice[0])
            )));
        }
        let given = given(&platforms[0]);
        match self.build_args.keys().find(|name| given.contains_key(*name)) {
            Some(name) => Err(Error::Refused(format!(
                "--build-arg {name}: the build's platform decides what {name} is"
            ))),
            None => Ok(platforms),
        }
    }

    /// Says for which platform something failed, where there are several.
    pub(super) fn error_on(&self, platform: &Platform) -> impl Fn(Error) -> Error {
        let platform = (self.platforms.len() > 1).then(|| platform.clone());
        move |error| match &platform {
            Some(platform) => error.building_for(platform),
            None => error,
        }
    }
}

/// Manifests of pulled images by recipe and step.
pub(super) type Pulled = BTreeMap<(usize, usize), Descriptor>;

pub(super) async fn pull_images(
    store: &Store,
    puller: &Puller,
    plan: &Plan,
    options: &BuildOptions,
) -> Result<Pulled, Error> {
    let mut manifests = Pulled::new();
    for (number, recipe) in plan.recipes.iter().enumerate() {
        let asked = recipe.pulls()?;
        let references = asked.iter().map(|(_, reference)| reference.clone()).collect();
        let pulled = puller.pull_all(store, references, &recipe.platform).await;
        for ((index, _), pulled) in asked.into_iter().zip(pulled) {
            let manifest = pulled.map_err(|error| {
                let error = error.at(&recipe.file, &recipe.steps[index].line);
                options.error_on(&recipe.platform)(error)
            })?;
            manifests.insert((number, index), manifest);
        }
    }
    Ok(manifests)
}

pub(super) async fn fetch_files(
    store: &Store,
    plan: &Plan,
    progress: &dyn Progress,
) -> Result<BTreeMap<Digest, Fetched>, Error> {
    let fetched = download::fetch_all(store, plan.wanted.clone(), progress).await;
    fetched.map_err(|error| match (&error, plan.recipes.first()) {
        (Error::Fetch { url, .. }, Some(recipe)) => match recipe.place_of_url(url) {
            Some(line) => error.at(&recipe.file, line),
            None => error,
        },
        _ => error,
    })
}
