//! Building a cluster image: Kubefile and contexts in, one index digest out.
//!
//! ```text
//! read and check the whole Kubefile → pull what comes from registries → run the instructions → build carried images
//!   → closure proof → compress layers → write config, manifest, index → tag
//! ```
//! The name is given only at the very end: a build that fails leaves nothing but unnamed blobs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clusterfile::Env;
use clusterfile::kubefile::{CopyFlags, Dialect, Evaluator, ImageSource, Instruction, Line, lines};
use oci::{Descriptor, Digest, Index, Platform, REF_NAME, Reference, media_type};

use crate::config::{ClusterConfig, ImageConfig};
use crate::container::build_folder;
use crate::context::Contexts;
use crate::error::Error;
use crate::filesystem::FileSystem;
use crate::import::import;
use crate::manifest::{CLUSTER_IMAGE, CONTENT, Manifest, ROOTFS, has_digest};
use crate::progress::{Event, Progress};
use crate::proof::{Origins, Proof};
use crate::pull::{PullOptions, Puller};
use crate::store::Store;
use crate::view::ClusterImage;

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The recipe.
    pub kubefile: PathBuf,
    /// The folder COPY, CNI, APP and IMAGE read from.
    pub context: PathBuf,
    /// More folders, for `COPY --from=NAME`.
    pub build_contexts: BTreeMap<String, PathBuf>,
    /// Values for ARG.
    pub build_args: Env,
    /// The image's name.
    pub tag: Reference,
    /// What the image is for.
    pub platform: Platform,
    /// How images are pulled, if at all.
    pub pull: PullOptions,
}

/// What came out of a build.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Built {
    /// The image's name.
    pub reference: Reference,
    /// The index digest: same inputs, same digest.
    pub digest: Digest,
    /// How many container images it carries.
    pub carried: usize,
    /// Bytes of all its blobs, each counted once.
    pub size: u64,
}

/// Builds a cluster image into the store and names it.
///
/// # Errors
/// What is wrong, with the recipe's file and line.
pub async fn build(store: &Store, options: BuildOptions, progress: Arc<dyn Progress>) -> Result<Built, Error> {
    let _lock = store.lock_shared()?;
    let (kept, shown) = (store.clone(), options.clone());
    let recipe = blocking(move || Recipe::read(&kept, &shown)).await??;
    let puller = Puller::new(&options.pull, Arc::clone(&progress))?;
    let pulled = pull_images(store, &puller, &recipe, &options.platform).await?;
    let store = store.clone();
    blocking(move || Build::new(&store, &options, &recipe, &puller, pulled, progress.as_ref())?.run()).await?
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Refused(format!("the build was interrupted: {error}")))
}

/// A recipe with everything replaced, and the image it starts from.
struct Recipe {
    file: String,
    steps: Vec<Step>,
    base: Option<ClusterImage>,
    contexts: Contexts,
}

struct Step {
    line: Line,
    instruction: Instruction,
    /// ARG and ENV after this instruction.
    variables: Env,
}

impl Recipe {
    fn read(store: &Store, options: &BuildOptions) -> Result<Recipe, Error> {
        let file = options.kubefile.display().to_string();
        let text = std::fs::read_to_string(&options.kubefile).map_err(Error::io("cannot read", &options.kubefile))?;
        let mut evaluator = Evaluator::new(&file, Dialect::Kubefile, &options.build_args);
        let mut steps = Vec::new();
        let mut base = None;
        for line in lines(&text, &file, Dialect::Kubefile)? {
            let instruction = evaluator.instruction(&line)?;
            if let Instruction::From { base: name } = &instruction
                && name != "scratch"
            {
                let image = ClusterImage::open(store, name, &options.platform);
                let image = image.map_err(|error| error.at(&file, line.number))?;
                evaluator.inherit_env(&image.config.env);
                base = Some(image);
            }
            steps.push(Step {
                line,
                instruction,
                variables: evaluator.variables(),
            });
        }
        let contexts = Contexts::new(&options.context, &options.build_contexts)?;
        Ok(Recipe {
            file,
            steps,
            base,
            contexts,
        })
    }

    /// The images that come from registries: step, and the reference to pull.
    fn pulls(&self) -> Result<Vec<(usize, Reference)>, Error> {
        let mut pulls = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            if let Instruction::Image { reference, source } = &step.instruction {
                let remote = match source {
                    ImageSource::Registry => reference,
                    ImageSource::Docker(remote) => remote,
                    _ => continue,
                };
                let at = |error: oci::Error| Error::from(error).at(&self.file, step.line.number);
                pulls.push((index, remote.parse().map_err(at)?));
            }
        }
        Ok(pulls)
    }
}

/// Manifests of pulled images by step.
type Pulled = BTreeMap<usize, Descriptor>;

async fn pull_images(store: &Store, puller: &Puller, recipe: &Recipe, platform: &Platform) -> Result<Pulled, Error> {
    let asked = recipe.pulls()?;
    let references = asked.iter().map(|(_, reference)| reference.clone()).collect();
    let pulled = puller.pull_all(store, references, platform).await;
    let manifest = |((index, _), pulled): ((usize, Reference), Result<Descriptor, Error>)| {
        let number = recipe.steps[index].line.number;
        Ok((index, pulled.map_err(|error| error.at(&recipe.file, number))?))
    };
    asked.into_iter().zip(pulled).map(manifest).collect()
}

struct Build<'a> {
    store: &'a Store,
    options: &'a BuildOptions,
    recipe: &'a Recipe,
    puller: &'a Puller,
    pulled: Pulled,
    progress: &'a dyn Progress,
    files: FileSystem<'a>,
    config: ClusterConfig,
    carried: BTreeMap<Reference, Descriptor>,
    /// Texts of the history, and whether the instruction made a slot for a layer.
    history: Vec<(String, bool)>,
}

impl<'a> Build<'a> {
    fn new(
        store: &'a Store,
        options: &'a BuildOptions,
        recipe: &'a Recipe,
        puller: &'a Puller,
        pulled: Pulled,
        progress: &'a dyn Progress,
    ) -> Result<Self, Error> {
        let mut files = FileSystem::new(store, &recipe.contexts, progress);
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
        Ok(Build {
            store,
            options,
            recipe,
            puller,
            pulled,
            progress,
            files,
            config,
            carried,
            history: Vec::new(),
        })
    }

    fn run(mut self) -> Result<Built, Error> {
        let total = self.recipe.steps.len();
        for (index, step) in self.recipe.steps.iter().enumerate() {
            self.progress.event(Event::Step {
                number: index + 1,
                total,
                text: step.line.text(),
            });
            let made = self
                .step(index, step)
                .map_err(|error| error.at(&self.recipe.file, step.line.number))?;
            if !matches!(step.line.keyword, "FROM" | "ARG" | "IMAGE") {
                self.history.push((step.line.text(), made));
            }
        }
        self.check_apps()?;
        self.prove_closure()?;
        let index = self.write()?;
        self.store.tag(&self.options.tag, &index)?;
        let blobs: BTreeMap<_, _> = self
            .store
            .reachable(&index)?
            .into_iter()
            .map(|blob| (blob.digest, blob.size))
            .collect();
        let (reference, carried) = (self.options.tag.clone(), self.carried.len());
        Ok(Built {
            reference,
            digest: index.digest,
            carried,
            size: blobs.values().sum(),
        })
    }

    /// Carries out one instruction; true if it made a slot for a layer.
    fn step(&mut self, index: usize, step: &Step) -> Result<bool, Error> {
        let copy = |files: &mut FileSystem<'_>, sources: &[String], to: &str| {
            files.copy(&CopyFlags::default(), sources, to).map(|()| true)
        };
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
            Instruction::Run(command) => {
                self.files.run(command, &step.variables)?;
                return Ok(true);
            }
            Instruction::Cni { name, sources } => {
                self.refuse_charts(sources)?;
                self.config.cni.push(name.clone());
                self.config.cni.dedup();
                return copy(&mut self.files, sources, "manifests/");
            }
            Instruction::App { name, sources } => {
                self.refuse_charts(sources)?;
                self.config.apps.entry(name.clone()).or_default();
                return copy(&mut self.files, sources, &format!("application/apps/{name}/"));
            }
            Instruction::Image { reference, source } => self.image(index, reference, source)?,
            Instruction::Env(pairs) => self.config.env.extend(pairs.iter().cloned()),
            Instruction::Label(pairs) => self.label(pairs)?,
            Instruction::AppEnv { name, env } => self.app(name)?.env.extend(env.iter().cloned()),
            Instruction::AppCmds { name, commands } => self.app(name)?.commands = commands.clone(),
            Instruction::Launch(apps) => self.config.launch = apps.clone(),
            Instruction::Commands(commands) => self.config.commands = commands.clone(),
            Instruction::KubeVersion(range) => self.config.kube_version = Some(range.clone()),
            other => return Err(Error::Refused(format!("{other:?} has no meaning in a cluster image"))),
        }
        Ok(false)
    }

    fn app(&mut self, name: &str) -> Result<&mut crate::config::AppMeta, Error> {
        let hint = clusterfile::names::did_you_mean(name, self.config.apps.keys().map(String::as_str));
        let unknown = || Error::Refused(format!("there is no APP {name:?} before this line{hint}"));
        self.config.apps.get_mut(name).ok_or_else(unknown)
    }

    fn label(&mut self, pairs: &[(String, String)]) -> Result<(), Error> {
        if let Some((name, _)) = pairs.iter().find(|(name, _)| name.starts_with("installer.internal/")) {
            return Err(Error::Refused(format!("the label {name:?} is reserved")));
        }
        self.config.labels.extend(pairs.iter().cloned());
        Ok(())
    }

    fn refuse_charts(&self, sources: &[String]) -> Result<(), Error> {
        for source in sources {
            for (_, path) in self.recipe.contexts.find(None, source)? {
                let packed = path.extension().is_some_and(|extension| extension == "tgz");
                if packed || path.join("Chart.yaml").exists() {
                    let why = "it is a helm chart, which is not supported yet; render it with `helm template` first";
                    return Err(Error::path(source, why));
                }
            }
        }
        Ok(())
    }

    fn image(&mut self, index: usize, reference: &str, source: &ImageSource) -> Result<(), Error> {
        let reference: Reference = reference.parse()?;
        self.progress.event(Event::Image(reference.to_string()));
        let (contexts, platform) = (&self.recipe.contexts, &self.options.platform);
        let manifest = match source {
            ImageSource::Registry | ImageSource::Docker(_) => {
                let pulled = self.pulled.remove(&index);
                pulled.ok_or_else(|| Error::Refused(format!("{reference} was not pulled")))?
            }
            ImageSource::Folder(folder) => {
                let args = &self.options.build_args;
                build_folder(self.store, contexts, folder, args, platform, self.progress)?
            }
            ImageSource::OciArchive { file, name } => {
                let (file, pinned) = (contexts.inside(file)?, reference.digest());
                import(self.store, &file, name.as_deref(), pinned, platform, self.progress)?
            }
        };
        if let Some(wanted) = reference.digest().filter(|wanted| !has_digest(&manifest, wanted)) {
            let found = &manifest.digest;
            return Err(Error::Refused(format!(
                "{reference}: the image has the digest {found}, not {wanted}"
            )));
        }
        self.carry(reference, manifest);
        Ok(())
    }

    fn check_apps(&self) -> Result<(), Error> {
        for name in &self.config.launch {
            if !self.config.apps.contains_key(name) {
                let hint = clusterfile::names::did_you_mean(name, self.config.apps.keys().map(String::as_str));
                let step = self.recipe.steps.iter().rfind(|step| step.line.keyword == "LAUNCH");
                let number = step.map_or(0, |step| step.line.number);
                let error = Error::Refused(format!("LAUNCH: the image has no APP {name:?}{hint}"));
                return Err(error.at(&self.recipe.file, number));
            }
        }
        Ok(())
    }

    /// Every image that the rootfs names must be carried; what a registry has is pulled.
    fn prove_closure(&mut self) -> Result<(), Error> {
        let mut proof = Proof {
            store: self.store,
            puller: self.puller,
            platform: &self.options.platform,
            origins: self.origins(),
            survey: Proof::begin(self.recipe.contexts.main(), &self.config)?,
        };
        let (tree, layers) = (self.files.tree(), self.files.base_layers());
        let shown = |path: &str, from: &Path| self.shown(path, from);
        proof.survey.tree(tree, self.store.blobs(), layers, shown)?;
        let (lock, pulled) = proof.run(&self.carried)?;
        self.config.lock = Some(lock);
        pulled
            .into_iter()
            .for_each(|(reference, manifest)| self.carry(reference, manifest));
        Ok(())
    }

    fn carry(&mut self, reference: Reference, mut manifest: Descriptor) {
        let name = (REF_NAME.to_string(), reference.to_string());
        manifest.annotations.extend([name]);
        self.carried.insert(reference, manifest);
    }

    /// The lines of the recipe that ask for images: IMAGE, and FROM for all that is inherited.
    fn origins(&self) -> Origins {
        let mut origins = Origins::of(&self.options.kubefile, self.recipe.contexts.main());
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
        let in_context = from.strip_prefix(self.recipe.contexts.main()).ok();
        in_context.map_or_else(|| path.to_string(), |inside| inside.display().to_string())
    }

    fn write(&self) -> Result<Descriptor, Error> {
        let mut config = ImageConfig::new(&self.options.platform);
        let mut layers = Vec::new();
        if let Some(base) = &self.recipe.base {
            let inherited: ImageConfig = self.store.read_json(&base.rootfs.config)?;
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
        let config = self.store.put_json(media_type::CONFIG, &config)?;
        let mut rootfs = self
            .store
            .put_json(media_type::MANIFEST, &Manifest::new(config, layers))?;
        rootfs.platform = Some(self.options.platform.clone());
        rootfs.annotations.insert(CONTENT.to_string(), ROOTFS.to_string());
        let mut index = Index {
            artifact_type: Some(CLUSTER_IMAGE.to_string()),
            ..Index::default()
        };
        index.manifests.push(rootfs);
        index.manifests.extend(self.carried.values().cloned());
        self.store.put_json(media_type::INDEX, &index)
    }
}
