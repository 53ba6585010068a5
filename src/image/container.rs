//! An ordinary container image from a folder with a Containerfile.

use std::path::Path;

use clusterfile::Env;
use clusterfile::kubefile::{Command, Dialect, Evaluator, Instruction, lines};
use oci::{Descriptor, Platform, media_type};

use crate::config::ImageConfig;
use crate::context::Contexts;
use crate::error::Error;
use crate::filesystem::FileSystem;
use crate::manifest::Manifest;
use crate::progress::Progress;
use crate::store::Store;

/// Names of the recipe, the first that exists.
const RECIPES: [&str; 2] = ["Containerfile", "Dockerfile"];

/// Builds the image of `folder`, whose main context it is, and returns its manifest.
pub(crate) fn build_folder(
    store: &Store,
    contexts: &Contexts,
    folder: &str,
    build_args: &Env,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<Descriptor, Error> {
    let path = contexts.inside(folder)?;
    let recipe = RECIPES.iter().map(|name| path.join(name)).find(|path| path.is_file());
    let recipe = recipe.ok_or_else(|| Error::path(folder, format!("the folder has no {}", RECIPES[0])))?;
    let name = recipe.file_name().unwrap_or_default().to_string_lossy();
    let file = if folder == "." {
        name.into_owned()
    } else {
        format!("{}/{name}", folder.trim_end_matches('/'))
    };
    let contexts = contexts.with_main(path);
    build_recipe(store, &contexts, &recipe, &file, build_args, platform, progress)
}

fn build_recipe(
    store: &Store,
    contexts: &Contexts,
    recipe: &Path,
    file: &str,
    build_args: &Env,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<Descriptor, Error> {
    let text = std::fs::read_to_string(recipe).map_err(Error::io("cannot read", recipe))?;
    let lines = lines(&text, file, Dialect::Containerfile)?;
    let mut evaluator = Evaluator::new(file, Dialect::Containerfile, build_args);
    let mut files = FileSystem::new(store, contexts, progress);
    let mut config = ImageConfig::new(platform);
    let mut history = Vec::new();
    for line in &lines {
        let instruction = evaluator.instruction(line)?;
        let made =
            apply(&mut files, &mut config, &evaluator, instruction).map_err(|error| error.at(file, line.number))?;
        if !matches!(line.keyword, "FROM" | "ARG") {
            history.push((line.text(), made));
        }
    }
    let mut made = files.finish()?.into_iter();
    let mut layers = Vec::new();
    for (text, makes_layer) in history {
        let layer = if makes_layer { made.next().flatten() } else { None };
        config.record(text, layer.as_ref().map(|layer| layer.diff_id.clone()));
        layers.extend(layer.map(|layer| layer.descriptor));
    }
    let config = store.put_json(media_type::CONFIG, &config)?;
    let mut manifest = store.put_json(media_type::MANIFEST, &Manifest::new(config, layers))?;
    manifest.platform = Some(platform.clone());
    Ok(manifest)
}

/// Applies one instruction; true if it is one that may make a layer.
fn apply(
    files: &mut FileSystem<'_>,
    config: &mut ImageConfig,
    evaluator: &Evaluator,
    instruction: Instruction,
) -> Result<bool, Error> {
    let run = &mut config.config;
    match instruction {
        Instruction::From { base } if base == "scratch" => {}
        Instruction::From { base } => {
            return Err(Error::Refused(format!(
                "FROM {base}: only scratch is supported in a Containerfile for now"
            )));
        }
        Instruction::Copy {
            flags,
            sources,
            destination,
        } => {
            files.copy(&flags, &sources, &destination)?;
            return Ok(true);
        }
        Instruction::Run(command) => {
            files.run(&command, &evaluator.variables())?;
            return Ok(true);
        }
        Instruction::Env(_) => config.set_env(evaluator.env()),
        Instruction::Label(labels) => run.labels.get_or_insert_default().extend(labels),
        Instruction::WorkDir(path) => run.working_dir = path,
        Instruction::User(user) => run.user = user,
        Instruction::Expose(ports) => {
            let exposed = run.exposed_ports.get_or_insert_default();
            exposed.extend(ports.into_iter().map(|port| (port, Default::default())));
        }
        Instruction::Entrypoint(command) => run.entrypoint = Some(words(command)),
        Instruction::Cmd(command) => run.cmd = Some(words(command)),
        Instruction::Arg => {}
        other => return Err(Error::Refused(format!("{other:?} has no meaning in a container image"))),
    }
    Ok(false)
}

fn words(command: Command) -> Vec<String> {
    match command {
        Command::Exec(words) => words,
        Command::Shell(line) => vec!["/bin/sh".to_string(), "-c".to_string(), line],
    }
}
