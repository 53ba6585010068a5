//! The kinds `Config` and `Application`: files of the image that a Clusterfile changes, and what is launched how.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Serialize;

use crate::cluster::Env;
use crate::decode::{Decoder, Object};
use crate::names::is_dns_label;
use crate::read::{env_entries, metadata_name};
use crate::sealer;
use crate::yaml::Position;

/// Kind `Config`: a file of the rootfs replaced or merged.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// `metadata.name`.
    pub name: String,
    /// File below the rootfs, relative and without `..`.
    pub path: String,
    /// What happens to a file that is there already.
    pub strategy: Strategy,
    /// The content, or for merging a YAML or JSON document to lay over the file.
    pub data: String,
}

/// What a [`Config`] does to an existing file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The file's documents are kept where the data says nothing.
    Merge,
    /// The file is replaced.
    Overwrite,
}

/// Kind `Application`: which of the image's applications run, and how.
#[derive(Debug, Clone, Serialize)]
pub struct Application {
    /// `metadata.name`.
    pub name: String,
    /// Commands run when the cluster is up, instead of the image's own; empty means the image's own.
    pub cmds: Vec<String>,
    /// Applications to launch; empty means the image's own choice, a single empty name means none.
    pub launch_apps: Vec<String>,
    /// Settings by application name.
    pub configs: BTreeMap<String, AppConfig>,
}

/// Settings of one application.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AppConfig {
    /// Its environment.
    pub env: Env,
    /// Its files to replace or merge.
    pub files: Vec<AppFile>,
    /// Run instead of what its kind does, if not empty.
    pub launch_cmds: Vec<String>,
    /// The namespace a chart is installed into; a field of ours that Sealer does not have.
    pub namespace: Option<String>,
}

/// A file of an application.
#[derive(Debug, Clone, Serialize)]
pub struct AppFile {
    /// Below the application's folder, relative and without `..`.
    pub path: String,
    /// What happens to a file that is there already.
    pub strategy: Strategy,
    /// The content.
    pub data: String,
}

pub(crate) fn config(decoder: &mut Decoder, mut document: Object<'_>) -> Config {
    let name = metadata_name(decoder, &mut document);
    let mut config = Config {
        name,
        path: String::new(),
        strategy: Strategy::Overwrite,
        data: String::new(),
    };
    if let Some(mut spec) = required_spec(decoder, &mut document) {
        let app = spec.string(decoder, "appName");
        spec.refuse(decoder, &sealer::CONFIG);
        let (path, strategy, data) = file_fields(decoder, &mut spec);
        config.path = match app.filter(|app| app_name(decoder, spec.at(), app)) {
            Some(app) => format!("application/apps/{app}/{path}"),
            None => path,
        };
        (config.strategy, config.data) = (strategy, data);
        if let Some((file, why)) = sealer::FILES.iter().find(|(file, _)| *file == config.path) {
            let message = format!("spec.path: {file} means nothing to the native distribution: {why}");
            decoder.warning(spec.at(), message);
        }
        spec.finish(decoder);
    }
    document.finish(decoder);
    config
}

/// An application's name is a folder's.
fn app_name(decoder: &mut Decoder, at: Position, name: &str) -> bool {
    let good = is_dns_label(name);
    if !good {
        decoder.problem(at, format!("spec.appName {name:?} is no application's name"));
    }
    good
}

pub(crate) fn required_spec<'n>(decoder: &mut Decoder, document: &mut Object<'n>) -> Option<Object<'n>> {
    let spec = document.object(decoder, "spec");
    if spec.is_none() {
        decoder.problem(document.at(), "spec is missing");
    }
    spec
}

fn file_fields(decoder: &mut Decoder, object: &mut Object<'_>) -> (String, Strategy, String) {
    let path = required_string(decoder, object, "path");
    if !path.is_empty() && !stays_inside(&path) {
        decoder.problem(
            object.at(),
            format!("{} {path:?} must be relative and without ..", object.name("path")),
        );
    }
    let strategies = [("merge", Strategy::Merge), ("overwrite", Strategy::Overwrite)];
    let strategy = object
        .word(decoder, "strategy", &strategies)
        .unwrap_or(Strategy::Overwrite);
    if let Some(data) = object.get("data").filter(|data| data.as_str().is_none()) {
        let message = format!(
            "{} must be a string, not {}: write it as the text of the file (data: |)",
            object.name("data"),
            data.kind()
        );
        decoder.problem(data.at, message);
        return (path, strategy, String::new());
    }
    (path, strategy, required_string(decoder, object, "data"))
}

pub(crate) fn required_string(decoder: &mut Decoder, object: &mut Object<'_>, field: &'static str) -> String {
    if object.lacks(field) {
        decoder.problem(object.at(), format!("{} is missing", object.name(field)));
    }
    object.string(decoder, field).unwrap_or_default()
}

fn stays_inside(path: &str) -> bool {
    Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

pub(crate) fn application(decoder: &mut Decoder, mut document: Object<'_>) -> Application {
    let name = metadata_name(decoder, &mut document);
    let mut application = Application {
        name,
        cmds: Vec::new(),
        launch_apps: Vec::new(),
        configs: BTreeMap::new(),
    };
    if let Some(mut spec) = required_spec(decoder, &mut document) {
        application.cmds = texts(spec.strings(decoder, "cmds"));
        application.launch_apps = texts(spec.strings(decoder, "launchApps"));
        for (index, node) in spec.list(decoder, "configs").iter().enumerate() {
            let object = Object::new(decoder, node, format!("spec.configs[{index}]"));
            if let Some((name, config)) = app_config(decoder, object)
                && application.configs.insert(name.clone(), config).is_some()
            {
                decoder.problem(node.at, format!("spec.configs names the application {name:?} twice"));
            }
        }
        spec.finish(decoder);
    }
    document.finish(decoder);
    application
}

fn app_config(decoder: &mut Decoder, mut object: Object<'_>) -> Option<(String, AppConfig)> {
    let name = required_string(decoder, &mut object, "name");
    let mut config = AppConfig {
        env: env_entries(decoder, &mut object),
        ..AppConfig::default()
    };
    let path = object.name("files");
    for (index, node) in object.list(decoder, "files").iter().enumerate() {
        let mut file = Object::new(decoder, node, format!("{path}[{index}]"));
        let (path, strategy, data) = file_fields(decoder, &mut file);
        file.finish(decoder);
        config.files.push(AppFile { path, strategy, data });
    }
    if let Some(mut launch) = object.object(decoder, "launch") {
        config.launch_cmds = texts(launch.strings(decoder, "cmds"));
        launch.finish(decoder);
    }
    config.namespace = object.string(decoder, "namespace");
    if let Some(bad) = config.namespace.as_ref().filter(|name| !is_dns_label(name)) {
        decoder.problem(
            object.at(),
            format!("{} {bad:?} is no namespace's name", object.name("namespace")),
        );
    }
    object.finish(decoder);
    (!name.is_empty()).then_some((name, config))
}

fn texts(list: Vec<(String, Position)>) -> Vec<String> {
    list.into_iter().map(|(text, _)| text).collect()
}
