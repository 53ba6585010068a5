//! Building a cluster image: Kubefile and contexts in, one index digest out.
//!
//! ```text
//! for each platform: read and check the whole Kubefile
//!   → fetch what comes from registries and URLs
//!   → for each platform: run the instructions → build carried images → closure proof → compress layers → config, manifest
//!   → index → tag
//! ```
//! The name is given only at the very end: a build that fails leaves nothing but unnamed blobs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clusterfile::Env;
use clusterfile::kubefile::{ImageSource, Instruction};
use oci::{Descriptor, Digest, Index, Platform, REF_NAME, Reference, media_type};

use crate::carried;
use crate::config::{AppMeta, ClusterConfig, ImageConfig};
use crate::container::{Workshop, fetched_for};
use crate::context::Contexts;
use crate::download::Fetched;
use crate::error::Error;
use crate::filesystem::FileSystem;
use crate::helm::{Helm, Rendered};
use crate::manifest::{CLUSTER_IMAGE, CONTENT, Manifest, ROOTFS, has_digest, platform_text};
use crate::progress::{Event, Progress};
use crate::proof::{Origins, Proof};
use crate::pull::{PullOptions, Puller};
use crate::recipe::{Recipe, Step, unknown_app};
use crate::store::Store;

mod applications;
mod plan;

use plan::{Plan, Pulled, fetch_files, pull_images};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The recipe.
    pub kubefile: PathBuf,
    /// The folder COPY, ADD, CNI, CSI, APP and IMAGE read from.
    pub context: PathBuf,
    /// More folders, for `--from=NAME`.
    pub build_contexts: BTreeMap<String, PathBuf>,
    /// Values for ARG.
    pub build_args: Env,
    /// The image's name.
    pub tag: Reference,
    /// What the image is for: one index holds all of them.
    pub platforms: Vec<Platform>,
    /// How images are pulled, if at all.
    pub pull: PullOptions,
    /// The helm that renders charts; none means the first on the search path, else `bin/helm` of the rootfs.
    pub helm: Option<PathBuf>,
}

/// What came out of a build.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Built {
    /// The image's name.
    pub reference: Reference,
    /// The index digest: same inputs, same digest.
    pub digest: Digest,
    /// What it is for, as `os/architecture`.
    pub platforms: Vec<String>,
    /// How many container images it carries.
    pub carried: usize,
    /// Bytes of all its blobs, each counted once.
    pub size: u64,
}

/// Builds a cluster image into the store and names it.
///
/// # Errors
/// What is wrong, with the recipe's file, line and column.
pub async fn build(store: &Store, options: BuildOptions, progress: Arc<dyn Progress>) -> Result<Built, Error> {
    let _lock = store.lock_shared()?;
    let kept = store.clone();
    let read = move || {
        let mut warnings = BTreeSet::new();
        let plan = Plan::read(&kept, &options, &mut warnings);
        (options, plan, warnings)
    };
    let (options, plan, warnings) = blocking(read).await?;
    warn(progress.as_ref(), warnings);
    let plan = plan?;
    let puller = Puller::new(&options.pull, Arc::clone(&progress))?;
    let pulled = pull_images(store, &puller, &plan, &options).await?;
    let fetched = fetch_files(store, &plan, progress.as_ref()).await?;
    let store = store.clone();
    blocking(move || {
        let supplies = Supplies {
            store: &store,
            options: &options,
            plan: &plan,
            puller: &puller,
            fetched: &fetched,
            progress: progress.as_ref(),
        };
        let built = build_all(&supplies, pulled);
        // What was read is known also if the build failed.
        plan.contexts.remember(&store);
        built
    })
    .await?
}

fn warn(progress: &dyn Progress, warnings: BTreeSet<String>) {
    warnings
        .into_iter()
        .map(Event::Warning)
        .for_each(|event| progress.event(event));
}

/// What every platform's build works with.
#[derive(Clone, Copy)]
struct Supplies<'a> {
    store: &'a Store,
    options: &'a BuildOptions,
    plan: &'a Plan,
    puller: &'a Puller,
    fetched: &'a BTreeMap<Digest, Fetched>,
    progress: &'a dyn Progress,
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Refused(format!("the build was interrupted: {error}")))
}

/// What one platform contributes to the index.
struct Part {
    rootfs: Descriptor,
    carried: BTreeMap<Reference, Descriptor>,
    /// What may not be meant as it is.
    warnings: BTreeSet<String>,
}

fn build_all(supplies: &Supplies<'_>, mut pulled: Pulled) -> Result<Built, Error> {
    let (store, options) = (supplies.store, supplies.options);
    let mut helm = Helm::find(options.helm.as_deref())?;
    let mut parts = Vec::new();
    let mut declared = BTreeSet::new();
    for (number, recipe) in supplies.plan.recipes.iter().enumerate() {
        let own = pulled.extract_if(.., |place, _| place.0 == number);
        let own = own.map(|((_, index), descriptor)| (index, descriptor)).collect();
        let build = Build::new(*supplies, recipe, own);
        let part = build.and_then(|build| build.run(&mut helm, &mut declared));
        parts.push(part.map_err(options.error_on(&recipe.platform))?);
    }
    if let Some(name) = options.build_args.keys().find(|name| !declared.contains(*name)) {
        let hint = clusterfile::names::did_you_mean(name, declared.iter().map(String::as_str));
        return Err(Error::Refused(format!(
            "--build-arg {name}: no ARG of the recipes has this name{hint}"
        )));
    }
    let warnings: BTreeSet<String> = parts.iter().flat_map(|part| part.warnings.iter().cloned()).collect();
    warn(supplies.progress, warnings);
    let index = write_index(store, parts)?;
    store.tag(&options.tag, &index)?;
    summary(store, options, &index)
}

/// Lists the parts in an order that doesn't depend on the order of the platforms on the command line.
fn write_index(store: &Store, mut parts: Vec<Part>) -> Result<Descriptor, Error> {
    let platform = |descriptor: &Descriptor| descriptor.platform.as_ref().map(platform_text);
    parts.sort_by_cached_key(|part| platform(&part.rootfs));
    let mut index = Index {
        artifact_type: Some(CLUSTER_IMAGE.to_string()),
        ..Index::default()
    };
    index.manifests.extend(parts.iter().map(|part| part.rootfs.clone()));
    let names: BTreeSet<&Reference> = parts.iter().flat_map(|part| part.carried.keys()).collect();
    for name in names {
        index
            .manifests
            .extend(parts.iter().filter_map(|part| part.carried.get(name)).cloned());
    }
    store.put_json(media_type::INDEX, &index)
}

fn summary(store: &Store, options: &BuildOptions, index: &Descriptor) -> Result<Built, Error> {
    let blobs: BTreeMap<_, _> = store
        .reachable(index)?
        .into_iter()
        .map(|blob| (blob.digest, blob.size))
        .collect();
    let list: Index = store.read_json(index)?;
    let rootfs = list.manifests.iter().filter(|entry| crate::manifest::is_rootfs(entry));
    let carried: BTreeSet<_> = list.manifests.iter().filter_map(Descriptor::reference).collect();
    Ok(Built {
        reference: options.tag.clone(),
        digest: index.digest.clone(),
        platforms: rootfs
            .filter_map(|entry| entry.platform.as_ref())
            .map(platform_text)
            .collect(),
        carried: carried.len(),
        size: blobs.values().sum(),
    })
}

/// The build for one platform.
struct Build<'a> {
    supplies: Supplies<'a>,
    recipe: &'a Recipe,
    pulled: BTreeMap<usize, Descriptor>,
    files: FileSystem<'a>,
    config: ClusterConfig,
    carried: BTreeMap<Reference, Descriptor>,
    /// The line of the IMAGE that brought a carried image.
    carried_at: BTreeMap<Reference, u64>,
    /// The names that the ARG of images' recipes declare.
    declared: BTreeSet<String>,
    /// Texts of the history, and whether the instruction made a slot for a layer.
    history: Vec<(String, bool)>,
}

impl<'a> Build<'a> {
    fn new(supplies: Supplies<'a>, recipe: &'a Recipe, pulled: BTreeMap<usize, Descriptor>) -> Result<Self, Error> {
        let Supplies { store, progress, .. } = supplies;
        let mut files = FileSystem::new(store, &supplies.plan.contexts, &recipe.platform, progress).of_rootfs();
        let (mut config, mut carried) = (ClusterConfig::default(), BTreeMap::new());
        if let Some(base) = &recipe.base {
            files.inherit(&base.rootfs.layers)?;
            config = base.config.clone();
            carried.extend(
                base.carried
                    .iter()
                    .map(|image| (image.reference.clone(), image.manifest.clone())),
            );
        }
        // A list of commands is the recipe's own or the base's, never half of each.
        if recipe
            .steps
            .iter()
            .any(|step| matches!(step.instruction, Instruction::OneCommand(_)))
        {
            config.commands.clear();
        }
        Ok(Build {
            supplies,
            recipe,
            pulled,
            files,
            config,
            carried,
            carried_at: BTreeMap::new(),
            declared: recipe.declared.clone(),
            history: Vec::new(),
        })
    }

    fn contexts(&self) -> &'a Contexts {
        &self.supplies.plan.contexts
    }

    fn run(mut self, helm: &mut Helm, declared: &mut BTreeSet<String>) -> Result<Part, Error> {
        let total = self.recipe.steps.len();
        for (index, step) in self.recipe.steps.iter().enumerate() {
            let text = match self.supplies.options.platforms.len() {
                1 => step.line.text(),
                _ => format!("{} {}", platform_text(&self.recipe.platform), step.line.text()),
            };
            self.supplies.progress.event(Event::Step {
                number: index + 1,
                total,
                text,
            });
            let made = self
                .step(index, step)
                .and_then(|made| self.files.check_folders().map(|()| made));
            let made = made.map_err(|error| error.at(&self.recipe.file, &step.line))?;
            if !matches!(step.line.keyword, "FROM" | "ARG" | "IMAGE") {
                self.history.push((step.line.text(), made));
            }
        }
        self.check_apps()?;
        let charts = helm.render_all(&self.files, &self.config, &self.recipe.platform)?;
        let mut warnings = self.prove_closure(&charts)?;
        declared.append(&mut self.declared);
        warnings.extend(self.unused_scripts());
        let rootfs = self.write()?;
        Ok(Part {
            rootfs,
            carried: self.carried,
            warnings,
        })
    }

    /// Carries out one instruction; true if it made a slot for a layer.
    fn step(&mut self, index: usize, step: &Step) -> Result<bool, Error> {
        match &step.instruction {
            Instruction::From { .. } | Instruction::Arg => {}
            Instruction::Copy {
                flags,
                sources,
                destination,
            } => {
                self.files.copy(flags, sources, destination)?;
                return Ok(true);
            }
            Instruction::Add {
                flags,
                sources,
                destination,
            } => {
                let fetched = fetched_for(&step.instruction, self.supplies.fetched);
                self.files.add(flags, sources, destination, fetched)?;
                return Ok(true);
            }
            Instruction::Run(command) => {
                self.files.run(command, &step.variables)?;
                return Ok(true);
            }
            Instruction::Cni { name, sources } => return self.plugin("CNI", name, sources, |config| &mut config.cni),
            Instruction::Csi { name, sources } => return self.plugin("CSI", name, sources, |config| &mut config.csi),
            Instruction::App { .. } => return self.new_app(&step.instruction),
            Instruction::Image {
                reference,
                source,
                from,
            } => self.image(index, reference, source, from.as_deref())?,
            Instruction::Env(pairs) => self.config.env.extend(pairs.iter().cloned()),
            Instruction::Label(pairs) => self.label(pairs)?,
            Instruction::AppEnv { name, env } => self.app(name)?.env.extend(env.iter().cloned()),
            Instruction::AppCmds { name, commands } => self.app(name)?.commands = commands.clone(),
            Instruction::Launch(apps) => self.config.launch = apps.clone(),
            Instruction::Commands(commands) => self.config.commands = commands.clone(),
            Instruction::OneCommand(command) => self.config.commands.extend(command.iter().cloned()),
            Instruction::KubeVersion(range) => self.config.kube_version = Some(range.to_string()),
            other => return Err(Error::Refused(format!("{other:?} has no meaning in a cluster image"))),
        }
        Ok(false)
    }

    fn app(&mut self, name: &str) -> Result<&mut AppMeta, Error> {
        let unknown = unknown_app(name, self.config.apps.keys().map(String::as_str));
        self.config.apps.get_mut(name).ok_or(unknown)
    }

    fn label(&mut self, pairs: &[(String, String)]) -> Result<(), Error> {
        if let Some((name, _)) = pairs.iter().find(|(name, _)| name.starts_with("installer.internal/")) {
            return Err(Error::Refused(format!("the label {name:?} is reserved")));
        }
        self.config.labels.extend(pairs.iter().cloned());
        Ok(())
    }

    fn image(&mut self, index: usize, reference: &str, source: &ImageSource, from: Option<&str>) -> Result<(), Error> {
        let reference: Reference = reference.parse()?;
        self.supplies.progress.event(Event::Image(reference.to_string()));
        let manifest = match source {
            ImageSource::Registry | ImageSource::Docker(_) => {
                let pulled = self.pulled.remove(&index);
                pulled.ok_or_else(|| Error::Refused(format!("{reference} was not pulled")))?
            }
            local => {
                let workshop = Workshop {
                    store: self.supplies.store,
                    contexts: self.contexts(),
                    fetched: self.supplies.fetched,
                    platform: &self.recipe.platform,
                    progress: self.supplies.progress,
                };
                carried::local(
                    &workshop,
                    local,
                    from,
                    reference.digest(),
                    &self.supplies.options.build_args,
                    &mut self.declared,
                )?
            }
        };
        if let Some(wanted) = reference.digest().filter(|wanted| !has_digest(&manifest, wanted)) {
            let found = &manifest.digest;
            return Err(Error::Refused(format!(
                "{reference}: the image has the digest {found}, not {wanted}"
            )));
        }
        let line = self.recipe.steps[index].line.number;
        if let (Some(first), Some(old)) = (
            self.carried_at.insert(reference.clone(), line),
            self.carried.get(&reference),
        ) && old.digest != manifest.digest
        {
            return Err(Error::Refused(format!(
                "{reference} stands in line {first} already, with the digest {} instead of {}",
                old.digest, manifest.digest
            )));
        }
        self.carry(reference, manifest);
        Ok(())
    }

    /// Every image that the rootfs names must be carried; what a registry has is pulled. `charts` are what helm made of charts.
    /// Gives what may be meant as an image, and is not carried.
    fn prove_closure(&mut self, charts: &[Rendered]) -> Result<BTreeSet<String>, Error> {
        let Supplies { store, puller, .. } = self.supplies;
        let mut proof = Proof {
            store,
            puller,
            platform: &self.recipe.platform,
            origins: self.origins(),
            survey: Proof::begin(self.contexts().main(), &self.config)?,
        };
        let (tree, layers) = (self.files.tree(), self.files.base_layers());
        let shown = |path: &str, from: &Path| self.shown(path, from);
        proof.survey.tree(tree, store.blobs(), layers, shown)?;
        for chart in charts {
            proof.survey.document(&chart.shown, &chart.text);
        }
        let proved = proof.run(&self.carried)?;
        self.config.lock = Some(proved.lock);
        let pulled = proved.pulled.into_iter();
        pulled.for_each(|(reference, manifest)| self.carry(reference, manifest));
        Ok(proved.warnings)
    }

    fn carry(&mut self, reference: Reference, mut manifest: Descriptor) {
        let name = (REF_NAME.to_string(), reference.to_string());
        manifest.annotations.extend([name]);
        self.carried.insert(reference, manifest);
    }

    /// The lines of the recipe that ask for images: IMAGE, and FROM for all that is inherited.
    fn origins(&self) -> Origins {
        let mut origins = Origins::of(&self.supplies.options.kubefile, self.contexts().main());
        for step in &self.recipe.steps {
            match (&step.instruction, &self.recipe.base) {
                (Instruction::From { .. }, Some(base)) => {
                    let carried = base.carried.iter().map(|image| &image.reference);
                    carried.for_each(|reference| origins.add(reference.clone(), step.line.number));
                }
                (Instruction::Image { reference, .. }, _) => {
                    reference
                        .parse()
                        .into_iter()
                        .for_each(|reference| origins.add(reference, step.line.number));
                }
                _ => {}
            }
        }
        origins
    }

    /// The name of a file as its author knows it: in the context if it came from there.
    fn shown(&self, path: &str, from: &Path) -> String {
        let in_context = from.strip_prefix(self.contexts().main()).ok();
        in_context.map_or_else(|| path.to_string(), |inside| inside.display().to_string())
    }

    fn write(&self) -> Result<Descriptor, Error> {
        let mut config = ImageConfig::new(&self.recipe.platform);
        let mut layers = Vec::new();
        if let Some(base) = &self.recipe.base {
            let inherited: ImageConfig = self.supplies.store.read_json(&base.rootfs.config)?;
            config.rootfs = inherited.rootfs;
            config.history = inherited.history;
            layers.extend(base.rootfs.layers.iter().cloned());
        }
        let mut made = self.files.finish()?.into_iter();
        for (text, makes_layer) in &self.history {
            let layer = if *makes_layer { made.next().flatten() } else { None };
            config.record(text.clone(), layer.as_ref().map(|layer| layer.diff_id.clone()));
            layers.extend(layer.map(|layer| layer.descriptor));
        }
        self.config.write_to(&mut config)?;
        let config = self.supplies.store.put_json(media_type::CONFIG, &config)?;
        let mut rootfs = self
            .supplies
            .store
            .put_json(media_type::MANIFEST, &Manifest::new(config, layers))?;
        rootfs.platform = Some(self.recipe.platform.clone());
        rootfs.annotations.insert(CONTENT.to_string(), ROOTFS.to_string());
        Ok(rootfs)
    }
}
