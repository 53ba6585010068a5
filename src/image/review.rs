//! What can be known to be wrong with a recipe before any of it is carried out.

use std::collections::{BTreeMap, BTreeSet};

use clusterfile::kubefile::{ImageSource, Instruction, is_url};
use oci::Reference;

use crate::context::Contexts;
use crate::error::Error;
use crate::mistakes::Mistakes;
use crate::plugin;
use crate::recipe::{Recipe, Step, unknown_app, unknown_launch};

/// A look at every instruction; the same is looked at again when it is carried out.
pub(crate) struct Review<'a> {
    recipe: &'a Recipe,
    contexts: &'a Contexts,
    /// Applications there are so far; none if some may be missing, because a line could not be understood.
    apps: Option<BTreeSet<&'a str>>,
    /// Network and storage plugins of the whole recipe.
    plugins: BTreeSet<&'a str>,
}

impl<'a> Review<'a> {
    /// `is_whole` says that every line of the recipe was understood to be some instruction.
    pub(crate) fn of(recipe: &'a Recipe, contexts: &'a Contexts, is_whole: bool) -> Review<'a> {
        let is_from_scratch =
            |step: &Step| matches!(&step.instruction, Instruction::From { base } if base == "scratch");
        let base = recipe
            .base
            .as_ref()
            .map(|base| base.config.apps.keys().map(String::as_str).collect());
        let none = recipe.steps.iter().any(is_from_scratch).then(BTreeSet::new);
        let own = recipe.steps.iter().filter_map(|step| match &step.instruction {
            Instruction::Cni { name, .. } | Instruction::Csi { name, .. } => Some(name),
            _ => None,
        });
        let inherited = recipe
            .base
            .iter()
            .flat_map(|base| base.config.cni.iter().chain(&base.config.csi));
        Review {
            recipe,
            contexts,
            apps: base.or(none).filter(|_| is_whole),
            plugins: own.chain(inherited).map(String::as_str).collect(),
        }
    }

    /// Adds what is wrong.
    pub(crate) fn run(mut self, mistakes: &mut Mistakes) {
        let mut seen = BTreeMap::new();
        // What RUN does to the context is not known.
        let mut context_is_known = true;
        for step in &self.recipe.steps {
            let mut check = |result: Result<(), Error>| {
                mistakes.value(result.map_err(|error| error.at(&self.recipe.file, &step.line)));
            };
            check(self.check_once(step, &mut seen));
            check(references(&step.instruction));
            context_is_known &= !matches!(step.instruction, Instruction::Run(_));
            if context_is_known {
                self.check_sources(&step.instruction, &mut check);
            }
            check(check_app(&mut self.apps, &step.instruction));
        }
        // APP may follow LAUNCH.
        for step in &self.recipe.steps {
            if let (Instruction::Launch(launch), Some(apps)) = (&step.instruction, &self.apps) {
                for name in launch.iter().filter(|name| !apps.contains(name.as_str())) {
                    let plugins = self.plugins.iter().copied();
                    let error = unknown_launch(name, apps.iter().copied(), plugins);
                    mistakes.add(error.at(&self.recipe.file, &step.line));
                }
            }
        }
    }

    /// What an instruction reads from a context is there, and can be what it is to be.
    fn check_sources(&self, instruction: &Instruction, check: &mut impl FnMut(Result<(), Error>)) {
        let plugin = |keyword, name, sources| plugin::check(self.contexts, keyword, name, sources);
        match instruction {
            Instruction::Cni { name, sources } => check(plugin("CNI", name, sources)),
            Instruction::Csi { name, sources } => check(plugin("CSI", name, sources)),
            Instruction::Image { source, from, .. } => {
                if let Some(path) = source.path() {
                    check(self.contexts.inside(from.as_deref(), path).map(drop));
                }
            }
            other => {
                for (from, source) in sources(other) {
                    check(self.contexts.find(from, source).map(drop));
                }
            }
        }
    }

    /// Of some instructions a second one would silently take the first one's place.
    fn check_once(&self, step: &Step, seen: &mut BTreeMap<String, u64>) -> Result<(), Error> {
        let what = match &step.instruction {
            Instruction::Launch(_) => "LAUNCH".to_string(),
            Instruction::Commands(_) | Instruction::OneCommand(_) => "CMDS".to_string(),
            Instruction::KubeVersion(_) => "KUBEVERSION".to_string(),
            Instruction::App { name, .. } => format!("APP {name}"),
            Instruction::AppCmds { name, .. } => format!("APPCMDS {name}"),
            _ => return Ok(()),
        };
        // Several CMD make a list, as in Sealer.
        let is_one_more = matches!(step.instruction, Instruction::OneCommand(_));
        let mut steps = self.recipe.steps.iter();
        let mut mixed = || steps.any(|step| matches!(step.instruction, Instruction::Commands(_)));
        match seen.insert(what.clone(), step.line.number) {
            Some(first) if !is_one_more || mixed() => {
                Err(Error::Refused(format!("{what} stands in line {first} already")))
            }
            _ => Ok(()),
        }
    }
}

/// The references of IMAGE are well-formed.
fn references(instruction: &Instruction) -> Result<(), Error> {
    let Instruction::Image { reference, source, .. } = instruction else {
        return Ok(());
    };
    reference.parse::<Reference>()?;
    if let ImageSource::Docker(remote) = source {
        remote.parse::<Reference>()?;
    }
    Ok(())
}

/// Files and folders that COPY, ADD or APP reads from a context, and from which.
fn sources(instruction: &Instruction) -> Vec<(Option<&str>, &str)> {
    match instruction {
        Instruction::Copy { flags, sources, .. } => {
            let from = flags.from.as_deref();
            sources.iter().map(|source| (from, source.as_str())).collect()
        }
        Instruction::Add { sources, .. } => {
            let local = sources.iter().filter(|source| !is_url(source));
            local.map(|source| (None, source.as_str())).collect()
        }
        Instruction::App { sources, values, .. } => {
            let local = sources.iter().filter(|source| !is_url(source));
            local.chain(values).map(|source| (None, source.as_str())).collect()
        }
        _ => Vec::new(),
    }
}

/// APPENV and APPCMDS speak of an application that is there.
fn check_app<'a>(apps: &mut Option<BTreeSet<&'a str>>, instruction: &'a Instruction) -> Result<(), Error> {
    let Some(apps) = apps else { return Ok(()) };
    match instruction {
        Instruction::App { name, .. } => drop(apps.insert(name)),
        Instruction::AppEnv { name, .. } | Instruction::AppCmds { name, .. } if !apps.contains(name.as_str()) => {
            return Err(unknown_app(name, apps.iter().copied()));
        }
        _ => {}
    }
    Ok(())
}
