//! A Kubefile with everything replaced, for one platform, and what has to be fetched for it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use clusterfile::kubefile::{Dialect, Evaluator, ImageSource, Instruction, Line, is_url, lines};
use clusterfile::{Env, Problem};
use oci::{Digest, Platform, Reference};

use crate::build::BuildOptions;
use crate::carried;
use crate::closure::known_value;
use crate::commands::{self, variables_run_as_programs};
use crate::container::ContainerRecipe;
use crate::context::Contexts;
use crate::download::Wanted;
use crate::error::Error;
use crate::manifest::{host_platform, platform_text};
use crate::mistakes::Mistakes;
use crate::review::Review;
use crate::store::Store;
use crate::view::ClusterImage;

/// A recipe larger than this is none, in bytes.
const LARGEST: u64 = 1 << 20;

/// A recipe for one platform, and the image it starts from.
pub(crate) struct Recipe {
    pub(crate) file: String,
    pub(crate) platform: Platform,
    pub(crate) steps: Vec<Step>,
    pub(crate) base: Option<ClusterImage>,
    /// The names that ARG declares.
    pub(crate) declared: BTreeSet<String>,
    /// What comes from URLs, for the rootfs and for images built from folders.
    pub(crate) wanted: Wanted,
}

/// One instruction.
pub(crate) struct Step {
    pub(crate) line: Line,
    pub(crate) instruction: Instruction,
    /// ARG and ENV after this instruction.
    pub(crate) variables: Env,
}

impl Recipe {
    /// Reads a recipe and everything that can be known of it before something is fetched or made. What may not be meant as it is
    /// written is added to `warnings`, also where something is wrong.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn read(
        store: &Store,
        options: &BuildOptions,
        contexts: &Contexts,
        platform: &Platform,
        warnings: &mut BTreeSet<String>,
    ) -> Result<Recipe, Error> {
        let file = options.kubefile.display().to_string();
        let found = lines(&read_text(&options.kubefile)?, &file, Dialect::Kubefile);
        let given = given(platform);
        let mut evaluator = Evaluator::new(&file, Dialect::Kubefile, &options.build_args).with_given(&given);
        let mut mistakes = Mistakes::default();
        let mut steps = Vec::new();
        let mut base = None;
        for line in found.lines {
            let Some(instruction) = evaluator.instruction(&line) else {
                continue;
            };
            if let Instruction::From { base: name } = &instruction
                && name != "scratch"
            {
                let image = ClusterImage::open(store, name, platform).map_err(|error| error.at(&file, &line));
                base = mistakes.value(image);
                match &base {
                    Some(image) => evaluator.inherit_env(&image.config.env),
                    None => evaluator.env_is_unknown(),
                }
            }
            steps.push(Step {
                line,
                instruction,
                variables: evaluator.variables(),
            });
        }
        let is_whole = found.problems.is_empty();
        mistakes.extend(found.problems.into_iter().chain(evaluator.take_problems()));
        let mut recipe = Recipe {
            file,
            platform: platform.clone(),
            steps,
            base,
            declared: evaluator.declared().clone(),
            wanted: Wanted::new(),
        };
        warnings.extend(found.warnings.iter().map(ToString::to_string));
        warnings.extend(recipe.command_warnings().iter().map(ToString::to_string));
        Review::of(&recipe, contexts, is_whole).run(&mut mistakes);
        recipe.plan_downloads(contexts, &options.build_args, &mut mistakes, warnings);
        mistakes.none(&recipe.file)?;
        Ok(recipe)
    }

    /// Launch commands in which a variable is run as a program.
    fn command_warnings(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let last = self.steps.last().map(|step| &step.variables);
        let mut known: BTreeSet<String> = last
            .into_iter()
            .flat_map(|variables| variables.keys().cloned())
            .collect();
        for step in &self.steps {
            if let Instruction::AppEnv { env, .. } = &step.instruction {
                known.extend(env.iter().map(|(name, _)| name.clone()));
            }
        }
        for step in &self.steps {
            let (Instruction::Commands(commands)
            | Instruction::OneCommand(commands)
            | Instruction::AppCmds { commands, .. }) = &step.instruction
            else {
                continue;
            };
            let is_variable = |name: &str| known.contains(name) || known_value(name, &Env::new()).is_some();
            for name in commands
                .iter()
                .flat_map(|text| variables_run_as_programs(text, is_variable))
            {
                found.push(Problem {
                    file: self.file.clone(),
                    at: step.line.place_of(&format!("$({name})")),
                    message: format!("{}: {}", step.line.keyword, commands::told(&name)),
                });
            }
        }
        found
    }

    /// The images that come from registries: step, and the reference to pull.
    pub(crate) fn pulls(&self) -> Result<Vec<(usize, Reference)>, Error> {
        let mut pulls = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            if let Instruction::Image { reference, source, .. } = &step.instruction {
                let remote = match source {
                    ImageSource::Registry => reference,
                    ImageSource::Docker(remote) => remote,
                    _ => continue,
                };
                let at = |error: oci::Error| Error::from(error).at(&self.file, &step.line);
                pulls.push((index, remote.parse().map_err(at)?));
            }
        }
        Ok(pulls)
    }

    /// The line of the first instruction that fetches this URL.
    pub(crate) fn place_of_url(&self, url: &str) -> Option<&Line> {
        let fetches = |step: &&Step| download(&step.instruction).is_some_and(|(other, _)| other == url);
        self.steps.iter().find(fetches).map(|step| &step.line)
    }

    fn plan_downloads(
        &mut self,
        contexts: &Contexts,
        build_args: &Env,
        mistakes: &mut Mistakes,
        warnings: &mut BTreeSet<String>,
    ) {
        let mut wanted = Wanted::new();
        for step in &self.steps {
            let at = |error: Error| error.at(&self.file, &step.line);
            if let Instruction::Image {
                source: ImageSource::Folder(folder),
                from,
                ..
            } = &step.instruction
                && let Ok(path) = contexts.inside(from.as_deref(), folder)
                && !carried::is_layout(&path)
            {
                let inner = ContainerRecipe::read(&path, folder, build_args, &self.platform).map_err(at);
                let Some(inner) = mistakes.value(inner) else { continue };
                warnings.extend(inner.warnings.iter().map(ToString::to_string));
                for step in &inner.steps {
                    mistakes.value(want(&mut wanted, &step.instruction).map_err(at));
                }
            }
            mistakes.value(want(&mut wanted, &step.instruction).map_err(at));
        }
        self.wanted = wanted;
    }
}

fn want(wanted: &mut Wanted, instruction: &Instruction) -> Result<(), Error> {
    if let Some((url, checksum)) = download(instruction) {
        wanted.insert(checksum.parse::<Digest>()?, url.to_string());
    }
    Ok(())
}

/// The URL that an instruction needs to be fetched, and its digest.
pub(crate) fn download(instruction: &Instruction) -> Option<(&str, &str)> {
    let (sources, checksum) = match instruction {
        Instruction::Add { flags, sources, .. } => (sources, &flags.checksum),
        Instruction::App { sources, checksum, .. } => (sources, checksum),
        _ => return None,
    };
    let url = sources.iter().find(|source| is_url(source))?;
    Some((url, checksum.as_deref()?))
}

/// The text of a recipe.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    let cannot = |error| Error::io("cannot read", path)(error);
    let mut text = String::new();
    let mut file = File::open(path).map_err(cannot)?.take(LARGEST + 1);
    file.read_to_string(&mut text).map_err(cannot)?;
    match text.len() as u64 > LARGEST {
        true => Err(Error::path(
            path.display().to_string(),
            format!("a recipe has at most {LARGEST} bytes"),
        )),
        false => Ok(text),
    }
}

/// The variables that say what a build is for, as Docker names them; `ARCH` is Sealer's name.
pub(crate) fn given(platform: &Platform) -> Env {
    let host = host_platform();
    let variant = |platform: &Platform| platform.variant.clone().unwrap_or_default();
    let variables = [
        ("TARGETPLATFORM", platform_text(platform)),
        ("TARGETOS", platform.os.clone()),
        ("TARGETARCH", platform.architecture.clone()),
        ("TARGETVARIANT", variant(platform)),
        ("BUILDPLATFORM", platform_text(&host)),
        ("BUILDOS", host.os.clone()),
        ("BUILDARCH", host.architecture.clone()),
        ("BUILDVARIANT", variant(&host)),
        ("ARCH", platform.architecture.clone()),
    ];
    variables
        .into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect()
}

/// An instruction names an application that no APP has made.
pub(crate) fn unknown_app<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let hint = clusterfile::names::did_you_mean(name, known);
    Error::Refused(format!("there is no APP {name:?} before this line{hint}"))
}

/// LAUNCH names what is no application.
pub(crate) fn unknown_launch<'a>(
    name: &str,
    apps: impl Iterator<Item = &'a str>,
    mut plugins: impl Iterator<Item = &'a str>,
) -> Error {
    if plugins.any(|plugin| plugin == name) {
        let why = "its manifests are applied in any case, only what APP brings is launched; take it out";
        return Error::Refused(format!("LAUNCH: {name} is a network or storage plugin: {why}"));
    }
    let hint = clusterfile::names::did_you_mean(name, apps);
    Error::Refused(format!("LAUNCH: the image has no APP {name:?}{hint}"))
}
