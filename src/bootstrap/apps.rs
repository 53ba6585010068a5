//! Applications of the image as this cluster launches them: which, of what kind, with which settings and files. Pure.
//!
//! | in `application/apps/NAME/` lies | it is | launching means |
//! | --- | --- | --- |
//! | anything, and APPCMDS or the Clusterfile give commands | commands | running them |
//! | `Chart.yaml`, here or one folder below, or a `*.tgz` | a chart | `helm upgrade --install` |
//! | `*.sh`, or something executable | scripts | running them in the order of their names |
//! | `*.yaml`, `*.json` | manifests | applying them, and taking away what an earlier version had |

use crate::{
    Error, Result, overlay,
    paths::source,
    render,
    site::{Image, Site},
};
use clusterfile::{AppConfig, Clusterfile, Config, Env};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Namespace of a chart for which nobody names one.
pub const NAMESPACE: &str = "default";

/// An application to launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// Its name: that of its folder, and of a chart's release.
    pub name: String,
    /// APPENV, overlaid by the Clusterfile's.
    pub env: Env,
    /// Where a chart is installed.
    pub namespace: String,
    /// How it is launched.
    pub kind: Kind,
}

/// How an application is launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// By these lines for a shell.
    Commands(Vec<String>),
    /// By helm; where the chart lies in the application's folder, empty if it is the folder itself.
    Chart(String),
    /// By running these files of its folder.
    Scripts(Vec<String>),
    /// By applying its manifests.
    Manifests,
}

impl Kind {
    /// In one word, for people and for the record.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Commands(_) => "commands",
            Self::Chart(_) => "chart",
            Self::Scripts(_) => "scripts",
            Self::Manifests => "manifests",
        }
    }
}

/// The folder of an application below the rootfs, with a slash at its end.
pub fn folder(name: &str) -> String {
    format!("{}{name}/", source::APPLICATIONS)
}

/// The applications to launch, in order: the Clusterfile's choice, else the image's.
///
/// # Errors
/// When the image has no such application, it cannot be told how one is launched, or the Clusterfile's settings mean nothing.
pub fn launched(clusterfile: &Clusterfile, image: &Image) -> Result<Vec<App>> {
    if image.content.is_empty() {
        // The image is not here, so nothing is launched either.
        return Ok(Vec::new());
    }
    let bad = |message: String| Error::Image {
        image: image.reference.clone(),
        message,
    };
    let names = names(clusterfile, image);
    let mut settings = clusterfile.applications.iter().flat_map(|a| a.configs.keys());
    let known = known(image);
    let unknown: Vec<&String> = names.iter().filter(|name| !known.contains(name.as_str())).collect();
    if !unknown.is_empty() {
        return Err(Error::Wish(no_such_apps(clusterfile, image, &unknown, &known)));
    }
    if let Some(name) = settings.find(|name| !names.contains(name)) {
        let place = clusterfile
            .place_of_app(name)
            .unwrap_or_else(|| "the Clusterfile".to_owned());
        let hint = clusterfile::names::did_you_mean(name, names.iter().map(String::as_str));
        return Err(Error::Wish(format!(
            "{place} has settings for the application {name:?}, which is not launched{hint}; add it to launchApps or appNames, or remove them"
        )));
    }
    let app = |name: &String| self::app(clusterfile, image, name).map_err(bad);
    names.iter().map(app).collect()
}

/// All applications that are to be launched and are in no image, each with its place and the name it was probably meant to be.
fn no_such_apps(clusterfile: &Clusterfile, image: &Image, unknown: &[&String], known: &BTreeSet<&str>) -> String {
    let line = |name: &&String| {
        // What no Clusterfile names the image itself wants to launch.
        let place = clusterfile
            .place_of_app(name)
            .map_or_else(String::new, |place| format!("{place}: "));
        let hint = clusterfile::names::did_you_mean(name, known.iter().copied());
        format!(
            "{place}the cluster image {} has no application {name:?}{hint}",
            image.reference
        )
    };
    let mut lines: Vec<String> = unknown.iter().map(line).collect();
    lines.push(match known.is_empty() {
        true => "it has none at all".to_owned(),
        false => format!("it has: {}", known.iter().copied().collect::<Vec<_>>().join(", ")),
    });
    lines.join("\n")
}

/// An empty name means none, as in Sealer.
fn names(clusterfile: &Clusterfile, image: &Image) -> Vec<String> {
    let mut names = &image.launch.apps;
    let documents = clusterfile.applications.iter().map(|a| &a.launch_apps);
    for wished in std::iter::once(&clusterfile.cluster.app_names).chain(documents) {
        if !wished.is_empty() {
            names = wished;
        }
    }
    names.iter().filter(|name| !name.is_empty()).cloned().collect()
}

fn known(image: &Image) -> BTreeSet<&str> {
    let folders = image.content.keys().filter_map(|path| {
        let rest = path.strip_prefix(source::APPLICATIONS)?;
        rest.split_once('/').map(|(name, _)| name)
    });
    folders.chain(image.apps.keys().map(String::as_str)).collect()
}

fn app(clusterfile: &Clusterfile, image: &Image, name: &str) -> Result<App, String> {
    let meta = image.apps.get(name).cloned().unwrap_or_default();
    let (mut env, mut commands, mut namespace) = (meta.env, meta.commands, None);
    for AppConfig {
        env: own,
        launch_cmds,
        namespace: place,
        ..
    } in clusterfile.applications.iter().filter_map(|a| a.configs.get(name))
    {
        env.extend(own.clone());
        if !launch_cmds.is_empty() {
            commands.clone_from(launch_cmds);
        }
        namespace = place.clone().or(namespace);
    }
    let kind = kind(image, name, commands)?;
    if namespace.is_some() && !matches!(kind, Kind::Chart(_)) {
        return Err(format!(
            "its application {name:?} is no helm chart but {}: a namespace of the Clusterfile means nothing to it",
            kind.word()
        ));
    }
    Ok(App {
        name: name.to_owned(),
        env,
        namespace: namespace.unwrap_or_else(|| NAMESPACE.to_owned()),
        kind,
    })
}

fn kind(image: &Image, name: &str, commands: Vec<String>) -> Result<Kind, String> {
    if !commands.is_empty() {
        return Ok(Kind::Commands(commands));
    }
    let folder = folder(name);
    let files: BTreeMap<&str, bool> = image
        .content
        .iter()
        .filter_map(|(path, entry)| Some((path.strip_prefix(&folder)?, entry.executable)))
        .collect();
    if files.contains_key("Chart.yaml") {
        return Ok(Kind::Chart(String::new()));
    }
    let beside = |path: &&str| !path.contains('/');
    let charts: Vec<&str> = files
        .keys()
        .filter_map(|path| match path.strip_suffix("/Chart.yaml") {
            Some(folder) => Some(folder).filter(beside),
            None => Some(*path).filter(|path| path.ends_with(".tgz") && beside(path)),
        })
        .collect();
    let scripts = files.iter().filter(|(path, executable)| {
        let plain = path.strip_suffix(".tmpl").unwrap_or(path);
        beside(path) && (plain.ends_with(".sh") || **executable)
    });
    let scripts: Vec<String> = scripts
        .map(|(path, _)| path.strip_suffix(".tmpl").unwrap_or(path).to_owned())
        .collect();
    match charts.as_slice() {
        [] if !scripts.is_empty() => Ok(Kind::Scripts(scripts)),
        [] if files.keys().any(|path| crate::cluster::objects::is_manifest(path)) => Ok(Kind::Manifests),
        [] => Err(format!(
            "its application {name:?} has neither a chart nor scripts nor manifests nor commands, so nothing can be launched"
        )),
        [chart] => Ok(Kind::Chart((*chart).to_owned())),
        several => Err(format!(
            "its application {name:?} has several charts ({}); give each an application of its own",
            several.join(", ")
        )),
    }
}

/// The Clusterfile's files: those of kind Config, and those of applications, which are files of the rootfs too.
pub fn configs(clusterfile: &Clusterfile) -> Vec<Config> {
    let mut configs = clusterfile.configs.clone();
    for application in &clusterfile.applications {
        for (name, settings) in &application.configs {
            configs.extend(settings.files.iter().map(|file| Config {
                name: format!("{} of application {name}", application.name),
                path: format!("{}{}", folder(name), file.path),
                strategy: file.strategy,
                data: file.data.clone(),
            }));
        }
    }
    for config in &mut configs {
        let parts = config.path.split('/').filter(|part| !part.is_empty() && *part != ".");
        config.path = parts.collect::<Vec<_>>().join("/");
    }
    configs
}

/// What is given to helm besides the chart's own values, lowest first: files on the host (a `values.yaml` that lies beside the chart
/// and not in it, then those that APP names with `--values`), and the application's environment (a document).
pub fn values(site: &Site, app: &App, chart: &str) -> (Vec<String>, Option<Value>) {
    let folder = folder(&app.name);
    let paths = render::paths(site, &folder);
    let there = |name: &str| paths.iter().any(|path| plain(path).strip_prefix(&folder) == Some(name));
    let beside = (!chart.is_empty() && there("values.yaml")).then(|| "values.yaml".to_owned());
    let mut files: Vec<String> = beside.into_iter().collect();
    let meta = site.image.apps.get(&app.name);
    for file in meta.into_iter().flat_map(|meta| &meta.values).map(|file| plain(file)) {
        // A chart that is the folder itself reads its own values without being told.
        let own = chart.is_empty() && file == "values.yaml";
        if !own && !files.iter().any(|known| known == file) {
            files.push(file.to_owned());
        }
    }
    let files = files
        .iter()
        .map(|file| format!("{}/{folder}{file}", host::CURRENT))
        .collect();
    let values = image::chart_values(&app.env);
    (files, (!values.is_empty()).then_some(Value::Object(values)))
}

/// The path a template has once it is rendered.
fn plain(path: &str) -> &str {
    path.strip_suffix(".tmpl").unwrap_or(path)
}

/// Names all that decides what launching an application does: when it is another one than last time, the application is launched
/// again.
///
/// # Errors
/// When one of its files cannot be rendered.
pub fn digest(site: &Site, app: &App) -> Result<oci::Digest> {
    let folder = folder(&app.name);
    let seat = &site.seats[site.first_master()];
    let mut files: BTreeMap<&str, String> = site
        .image
        .content
        .iter()
        .filter_map(|(path, entry)| Some((path.strip_prefix(&folder)?, entry.content.clone())))
        .collect();
    let changed = overlay::files(site, seat)?;
    for (path, text) in &changed {
        if let Some(name) = path.strip_prefix(&folder) {
            files.insert(name, oci::Digest::of(text.as_bytes()).to_string());
        }
    }
    // A chart sees nothing of the cluster's environment but what its templates took from it.
    let env = match app.kind {
        Kind::Chart(_) => app.env.clone(),
        _ => environment(site, app),
    };
    let parts = serde_json::json!([app.kind.word(), &app.namespace, lines(&app.kind), files, env]);
    Ok(oci::Digest::of(parts.to_string().as_bytes()))
}

fn lines(kind: &Kind) -> &[String] {
    match kind {
        Kind::Commands(lines) | Kind::Scripts(lines) => lines,
        Kind::Chart(_) | Kind::Manifests => &[],
    }
}

/// What is declared as environment for an application's processes: image < cluster < host < application.
fn environment(site: &Site, app: &App) -> Env {
    let mut env = site.image.env.clone();
    env.extend(site.seats[site.first_master()].env.clone());
    env.extend(app.env.clone());
    env
}

/// Names all that decides what the launch commands do; they are files of the image.
pub fn commands_digest(site: &Site) -> oci::Digest {
    let mut env = site.image.env.clone();
    env.extend(site.seats[site.first_master()].env.clone());
    let parts = serde_json::json!([&site.commands, site.image.rootfs.content, env]);
    oci::Digest::of(parts.to_string().as_bytes())
}

#[cfg(test)]
mod tests;
