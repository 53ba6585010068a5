//! An ordinary container image from a folder with a Containerfile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clusterfile::kubefile::{Command, Dialect, Evaluator, Instruction, Line, lines};
use clusterfile::{Env, Problem};
use oci::{Descriptor, Digest, Platform, media_type};

use crate::config::ImageConfig;
use crate::context::Contexts;
use crate::download::Fetched;
use crate::error::Error;
use crate::filesystem::FileSystem;
use crate::manifest::Manifest;
use crate::mistakes::Mistakes;
use crate::progress::Progress;
use crate::recipe::{download, given, read_text};
use crate::store::Store;

/// Names of the recipe, the first that exists.
const RECIPES: [&str; 2] = ["Containerfile", "Dockerfile"];

/// A Containerfile with everything replaced, for one platform.
pub(crate) struct ContainerRecipe {
    /// As it is shown.
    file: String,
    pub(crate) steps: Vec<ContainerStep>,
    /// The names that ARG declares.
    pub(crate) declared: BTreeSet<String>,
    /// What may not be meant as it is written.
    pub(crate) warnings: Vec<Problem>,
}

/// One instruction.
pub(crate) struct ContainerStep {
    line: Line,
    pub(crate) instruction: Instruction,
    /// ARG and ENV after this instruction.
    variables: Env,
    /// ENV alone.
    env: Env,
}

impl ContainerRecipe {
    /// Reads the recipe of the folder at `path`, which is shown as `folder`.
    pub(crate) fn read(path: &Path, folder: &str, build_args: &Env, platform: &Platform) -> Result<Self, Error> {
        let recipe = RECIPES.iter().map(|name| path.join(name)).find(|path| path.is_file());
        let recipe = recipe.ok_or_else(|| Error::path(folder, format!("the folder has no {}", RECIPES[0])))?;
        let name = recipe.file_name().unwrap_or_default().to_string_lossy();
        let file = match folder {
            "." => name.into_owned(),
            folder => format!("{}/{name}", folder.trim_end_matches('/')),
        };
        let mut evaluator = Evaluator::new(&file, Dialect::Containerfile, build_args).with_given(&given(platform));
        let found = lines(&read_text(&recipe)?, &file, Dialect::Containerfile);
        let mut mistakes = Mistakes::default();
        let mut steps = Vec::new();
        for line in found.lines {
            let Some(instruction) = evaluator.instruction(&line) else {
                continue;
            };
            if let Instruction::From { base } = &instruction
                && base != "scratch"
            {
                mistakes.add(only_scratch(base).at(&file, &line));
                evaluator.env_is_unknown();
            }
            steps.push(ContainerStep {
                instruction,
                line,
                variables: evaluator.variables(),
                env: evaluator.env().clone(),
            });
        }
        mistakes.extend(found.problems.into_iter().chain(evaluator.take_problems()));
        mistakes.none(&file)?;
        Ok(ContainerRecipe {
            declared: evaluator.declared().clone(),
            warnings: found.warnings,
            file,
            steps,
        })
    }
}

fn only_scratch(base: &str) -> Error {
    Error::Refused(format!(
        "FROM {base}: only scratch is supported in a Containerfile for now"
    ))
}

/// What images are built from folders with.
pub(crate) struct Workshop<'a> {
    pub(crate) store: &'a Store,
    pub(crate) contexts: &'a Contexts,
    pub(crate) fetched: &'a BTreeMap<Digest, Fetched>,
    pub(crate) platform: &'a Platform,
    pub(crate) progress: &'a dyn Progress,
}

impl Workshop<'_> {
    /// Builds the image of the folder at `path`, which is its main context, and gives its manifest.
    pub(crate) fn build(&self, path: &Path, recipe: &ContainerRecipe) -> Result<Descriptor, Error> {
        let contexts = self.contexts.with_main(self.store, path)?;
        let built = self.build_in(&contexts, recipe);
        contexts.remember(self.store);
        built
    }

    fn build_in(&self, contexts: &Contexts, recipe: &ContainerRecipe) -> Result<Descriptor, Error> {
        let mut files = FileSystem::new(self.store, contexts, self.platform, self.progress);
        let mut config = ImageConfig::new(self.platform);
        let mut history = Vec::new();
        for step in &recipe.steps {
            let made = self.apply(&mut files, &mut config, step);
            let made = made.map_err(|error| error.at(&recipe.file, &step.line))?;
            if !matches!(step.line.keyword, "FROM" | "ARG") {
                history.push((step.line.text(), made));
            }
        }
        let mut made = files.finish()?.into_iter();
        let mut layers = Vec::new();
        for (text, makes_layer) in history {
            let layer = if makes_layer { made.next().flatten() } else { None };
            config.record(text, layer.as_ref().map(|layer| layer.diff_id.clone()));
            layers.extend(layer.map(|layer| layer.descriptor));
        }
        let config = self.store.put_json(media_type::CONFIG, &config)?;
        let mut manifest = self
            .store
            .put_json(media_type::MANIFEST, &Manifest::new(config, layers))?;
        manifest.platform = Some(self.platform.clone());
        Ok(manifest)
    }

    /// Applies one instruction; true if it is one that may make a layer.
    fn apply(&self, files: &mut FileSystem<'_>, config: &mut ImageConfig, step: &ContainerStep) -> Result<bool, Error> {
        let run = &mut config.config;
        match &step.instruction {
            Instruction::From { base } if base == "scratch" => {}
            Instruction::From { base } => {
                return Err(only_scratch(base));
            }
            Instruction::Copy {
                flags,
                sources,
                destination,
            } => {
                files.copy(flags, sources, destination)?;
                return Ok(true);
            }
            Instruction::Add {
                flags,
                sources,
                destination,
            } => {
                files.add(
                    flags,
                    sources,
                    destination,
                    fetched_for(&step.instruction, self.fetched),
                )?;
                return Ok(true);
            }
            Instruction::Run(command) => {
                files.run(command, &step.variables)?;
                return Ok(true);
            }
            Instruction::Env(_) => config.set_env(&step.env),
            Instruction::Label(labels) => run.labels.get_or_insert_default().extend(labels.iter().cloned()),
            Instruction::WorkDir(path) => run.working_dir.clone_from(path),
            Instruction::User(user) => run.user.clone_from(user),
            Instruction::Expose(ports) => {
                let exposed = run.exposed_ports.get_or_insert_default();
                exposed.extend(ports.iter().map(|port| (port.clone(), Default::default())));
            }
            Instruction::Entrypoint(command) => run.entrypoint = Some(words(command)),
            Instruction::Cmd(command) => run.cmd = Some(words(command)),
            Instruction::Arg => {}
            other => return Err(Error::Refused(format!("{other:?} has no meaning in a container image"))),
        }
        Ok(false)
    }
}

/// What was fetched for an instruction.
pub(crate) fn fetched_for<'f>(
    instruction: &Instruction,
    fetched: &'f BTreeMap<Digest, Fetched>,
) -> Option<&'f Fetched> {
    let (_, checksum) = download(instruction)?;
    fetched.get(&checksum.parse().ok()?)
}

fn words(command: &Command) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(line) => vec!["/bin/sh".to_string(), "-c".to_string(), line.clone()],
    }
}
