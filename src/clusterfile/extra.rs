//! The kinds beside `Cluster`: `Config`, `Plugin` and `Application`.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Serialize;

use crate::cluster::{Env, Role};
use crate::decode::{Decoder, Object, pick};
use crate::read::{env_entries, metadata_name};
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

/// Kind `Plugin`: a script run at a certain moment.
#[derive(Debug, Clone, Serialize)]
pub struct Plugin {
    /// `metadata.name`.
    pub name: String,
    /// When it runs.
    pub action: PluginAction,
    /// On hosts of which roles; empty means all.
    pub scope: Vec<Role>,
    /// The shell script.
    pub data: String,
}

/// When a [`Plugin`] runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginAction {
    /// Before the first master is set up.
    PreInstall,
    /// After the cluster has been verified.
    PostInstall,
    /// Before a cluster is removed.
    PreUninstall,
    /// After a cluster was removed.
    PostUninstall,
    /// Before a host is prepared.
    PreInitHost,
    /// After a host was prepared.
    PostInitHost,
    /// Before hosts join a cluster that exists.
    PreJoin,
    /// After hosts joined a cluster that exists.
    PostJoin,
    /// Before a host is reset.
    PreCleanHost,
    /// After a host was reset.
    PostCleanHost,
    /// When the cluster is upgraded.
    UpgradeCluster,
    /// When an upgrade is taken back.
    RollbackCluster,
    /// When a host is upgraded.
    UpgradeHost,
}

const ACTIONS: &[(&str, PluginAction)] = &[
    ("pre-install", PluginAction::PreInstall),
    ("post-install", PluginAction::PostInstall),
    ("pre-uninstall", PluginAction::PreUninstall),
    ("post-uninstall", PluginAction::PostUninstall),
    ("pre-init-host", PluginAction::PreInitHost),
    ("post-init-host", PluginAction::PostInitHost),
    ("pre-join", PluginAction::PreJoin),
    ("post-join", PluginAction::PostJoin),
    // Sealer's names of the same two moments.
    ("pre-scaleup", PluginAction::PreJoin),
    ("post-scaleup", PluginAction::PostJoin),
    ("pre-clean-host", PluginAction::PreCleanHost),
    ("post-clean-host", PluginAction::PostCleanHost),
    ("upgrade-cluster", PluginAction::UpgradeCluster),
    ("rollback-cluster", PluginAction::RollbackCluster),
    ("upgrade-host", PluginAction::UpgradeHost),
];

/// Kind `Application`: which of the image's applications run, and how.
#[derive(Debug, Clone, Serialize)]
pub struct Application {
    /// `metadata.name`.
    pub name: String,
    /// Applications to launch; empty means the image's own choice.
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
    /// Overrides its launch commands if not empty.
    pub launch_cmds: Vec<String>,
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
        let (path, strategy, data) = file_fields(decoder, &mut spec);
        config.path = match app {
            Some(app) => format!("application/apps/{app}/{path}"),
            None => path,
        };
        (config.strategy, config.data) = (strategy, data);
        spec.finish(decoder);
    }
    document.finish(decoder);
    config
}

fn required_spec<'n>(decoder: &mut Decoder, document: &mut Object<'n>) -> Option<Object<'n>> {
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
    (path, strategy, required_string(decoder, object, "data"))
}

fn required_string(decoder: &mut Decoder, object: &mut Object<'_>, field: &'static str) -> String {
    if object.get(field).is_none() {
        decoder.problem(object.at(), format!("{} is missing", object.name(field)));
    }
    object.string(decoder, field).unwrap_or_default()
}

fn stays_inside(path: &str) -> bool {
    Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

pub(crate) fn plugin(decoder: &mut Decoder, mut document: Object<'_>) -> Plugin {
    let name = metadata_name(decoder, &mut document);
    let mut plugin = Plugin {
        name,
        action: PluginAction::PreInstall,
        scope: Vec::new(),
        data: String::new(),
    };
    if let Some(mut spec) = required_spec(decoder, &mut document) {
        spec.word(decoder, "type", &[("SHELL", ())]);
        if spec.get("action").is_none() {
            decoder.problem(spec.at(), "spec.action is missing");
        }
        plugin.action = spec
            .word(decoder, "action", ACTIONS)
            .unwrap_or(PluginAction::PreInstall);
        let (at, scope) = (spec.at(), spec.string(decoder, "scope"));
        plugin.scope = roles(decoder, at, scope.as_deref().unwrap_or_default());
        plugin.data = required_string(decoder, &mut spec, "data");
        spec.finish(decoder);
    }
    document.finish(decoder);
    plugin
}

fn roles(decoder: &mut Decoder, at: Position, scope: &str) -> Vec<Role> {
    let words = scope.split([',', '|']).map(str::trim).filter(|word| !word.is_empty());
    let known = [("master", Role::Master), ("node", Role::Node)];
    words
        .filter_map(|word| pick(decoder, at, "spec.scope", word, &known))
        .collect()
}

pub(crate) fn application(decoder: &mut Decoder, mut document: Object<'_>) -> Application {
    let name = metadata_name(decoder, &mut document);
    let mut application = Application {
        name,
        launch_apps: Vec::new(),
        configs: BTreeMap::new(),
    };
    if let Some(mut spec) = required_spec(decoder, &mut document) {
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
    object.finish(decoder);
    (!name.is_empty()).then_some((name, config))
}

fn texts(list: Vec<(String, Position)>) -> Vec<String> {
    list.into_iter().map(|(text, _)| text).collect()
}
