//! A Kubefile with everything replaced, for one platform, and what has to be fetched for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use clusterfile::Env;
use clusterfile::kubefile::{Dialect, Evaluator, ImageSource, Instruction, Line, is_url, lines};
use oci::{Digest, Platform, Reference};

use crate::build::BuildOptions;
use crate::carried;
use crate::container::ContainerRecipe;
use crate::context::Contexts;
use crate::download::Wanted;
use crate::error::Error;
use crate::manifest::{host_platform, platform_text};
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
}

/// One instruction.
pub(crate) struct Step {
    pub(crate) line: Line,
    pub(crate) instruction: Instruction,
    /// ARG and ENV after this instruction.
    pub(crate) variables: Env,
}

impl Recipe {
    pub(crate) fn read(store: &Store, options: &BuildOptions, platform: &Platform) -> Result<Recipe, Error> {
        let file = options.kubefile.display().to_string();
        let text = read_text(&options.kubefile)?;
        let given = given(platform);
        let mut evaluator = Evaluator::new(&file, Dialect::Kubefile, &options.build_args).with_given(&given);
        let mut steps = Vec::new();
        let mut base = None;
        for line in lines(&text, &file, Dialect::Kubefile)? {
            let instruction = evaluator.instruction(&line)?;
            if let Instruction::From { base: name } = &instruction
                && name != "scratch"
            {
                let image = ClusterImage::open(store, name, platform).map_err(|error| error.at(&file, &line))?;
                evaluator.inherit_env(&image.config.env);
                base = Some(image);
            }
            steps.push(Step {
                line,
                instruction,
                variables: evaluator.variables(),
            });
        }
        let recipe = Recipe {
            file,
            platform: platform.clone(),
            steps,
            base,
            declared: evaluator.declared().clone(),
        };
        recipe.check_once()?;
        Ok(recipe)
    }

    /// Of some instructions a second one would silently take the first one's place.
    fn check_once(&self) -> Result<(), Error> {
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        for step in &self.steps {
            let what = match &step.instruction {
                Instruction::Launch(_) => "LAUNCH".to_string(),
                Instruction::Commands(_) | Instruction::OneCommand(_) => "CMDS".to_string(),
                Instruction::KubeVersion(_) => "KUBEVERSION".to_string(),
                Instruction::App { name, .. } => format!("APP {name}"),
                Instruction::AppCmds { name, .. } => format!("APPCMDS {name}"),
                _ => continue,
            };
            let first = seen.get(&what).copied();
            // Several CMD make a list, as in Sealer.
            let is_one_more = matches!(step.instruction, Instruction::OneCommand(_));
            let mixed = || {
                self.steps
                    .iter()
                    .any(|step| matches!(step.instruction, Instruction::Commands(_)))
            };
            if let Some(first) = first
                && (!is_one_more || mixed())
            {
                let error = Error::Refused(format!("{what} stands in line {first} already"));
                return Err(error.at(&self.file, &step.line));
            }
            seen.insert(what, step.line.number);
        }
        Ok(())
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

    /// What comes from URLs, for the rootfs and for images built from folders.
    pub(crate) fn downloads(&self, contexts: &Contexts, build_args: &Env) -> Result<Wanted, Error> {
        let mut wanted = Wanted::new();
        for step in &self.steps {
            let at = |error: Error| error.at(&self.file, &step.line);
            if let Instruction::Image {
                source: ImageSource::Folder(folder),
                from,
                ..
            } = &step.instruction
            {
                let path = contexts.inside(from.as_deref(), folder).map_err(at)?;
                if !carried::is_layout(&path) {
                    let inner = ContainerRecipe::read(&path, folder, build_args, &self.platform).map_err(at)?;
                    inner
                        .steps
                        .iter()
                        .try_for_each(|step| want(&mut wanted, &step.instruction))
                        .map_err(at)?;
                }
            }
            want(&mut wanted, &step.instruction).map_err(at)?;
        }
        Ok(wanted)
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
