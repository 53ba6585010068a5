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
    if let Some(name) = settings.find(|name| !names.contains(name)) {
        let hint = clusterfile::names::did_you_mean(name, names.iter().map(String::as_str));
        return Err(Error::Wish(format!(
            "the Clusterfile has settings for the application {name:?}, which is not launched{hint}; add it to launchApps or appNames, or remove them"
        )));
    }
    let known = known(image);
    let app = |name: &String| {
        if !known.contains(name.as_str()) {
            let hint = clusterfile::names::did_you_mean(name, known.iter().copied());
            return Err(bad(format!("it has no application {name:?}{hint}")));
        }
        self::app(clusterfile, image, name).map_err(bad)
    };
    names.iter().map(app).collect()
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
mod tests {
    use super::*;
    use crate::testing::{add_file, clusterfile, site};

    fn with(files: &[(&str, bool)]) -> Site {
        let mut site = site();
        for (path, executable) in files {
            add_file(&mut site, &format!("application/apps/{path}"), "text", *executable);
        }
        site
    }

    fn kind_of(files: &[(&str, bool)]) -> Result<Kind, String> {
        kind(&with(files).image, "web", Vec::new())
    }

    #[test]
    fn what_lies_in_its_folder_tells_how_an_application_is_launched() {
        let chart = |path: &str| Ok(Kind::Chart(path.into()));
        let scripts = |names: &[&str]| Ok(Kind::Scripts(names.iter().map(|name| (*name).into()).collect()));
        for (files, expected) in [
            (
                &[
                    ("web/Chart.yaml", false),
                    ("web/x.sh", true),
                    ("web/sub/Chart.yaml", false),
                ][..],
                chart(""),
            ),
            (
                &[("web/c/Chart.yaml", false), ("web/c/charts/d/Chart.yaml", false)],
                chart("c"),
            ),
            (&[("web/c-1.tgz", false), ("web/values.yaml", false)], chart("c-1.tgz")),
            (
                &[("web/b.sh.tmpl", false), ("web/a", true), ("web/x.yaml", false)],
                scripts(&["a", "b.sh"]),
            ),
            (&[("web/sub/x.yaml", false), ("web/README", false)], Ok(Kind::Manifests)),
        ] {
            assert_eq!(kind_of(files), expected, "{files:?}");
        }
        let commands = kind(&with(&[("web/Chart.yaml", false)]).image, "web", vec!["go".into()]);
        assert_eq!(commands, Ok(Kind::Commands(vec!["go".into()])));
        for (files, why) in [
            (
                &[("web/README", false), ("other/x.yaml", false)][..],
                "nothing can be launched",
            ),
            (
                &[("web/a.tgz", false), ("web/b/Chart.yaml", false)],
                "several charts (a.tgz, b)",
            ),
        ] {
            let error = kind_of(files).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_clusterfile_chooses_and_sets_and_what_means_nothing_is_refused() {
        let mut site = with(&[("web/Chart.yaml", false), ("db/x.yaml", false), ("job/x.sh", true)]);
        site.image.launch.apps = vec!["web".into(), "job".into()];
        let env = |text: &str| Env::from([("A".to_owned(), text.to_owned())]);
        site.image.apps.insert(
            "web".into(),
            image::AppMeta {
                env: env("image"),
                ..Default::default()
            },
        );
        let launched = |more: &str| launched(&clusterfile(more), &site.image).map_err(|e| e.to_string());
        let names = |more: &str| -> Vec<String> { launched(more).unwrap().into_iter().map(|app| app.name).collect() };
        let doc = |spec: &str| {
            format!("---\napiVersion: sealer.io/v2\nkind: Application\nmetadata: {{name: a}}\nspec: {spec}\n")
        };
        assert_eq!(names(""), ["web", "job"]);
        assert_eq!(names("  appNames: [db]\n"), ["db"]);
        assert_eq!(names("  appNames: ['']\n"), [""; 0]);
        assert_eq!(names(&doc("{launchApps: [job, db]}")), ["job", "db"]);
        let web = launched(&doc("{configs: [{name: web, env: [A=own, B=2], namespace: shop}]}"))
            .unwrap()
            .remove(0);
        assert_eq!(
            (web.namespace.as_str(), web.env["A"].as_str(), web.env["B"].as_str()),
            ("shop", "own", "2")
        );
        let job = launched(&doc("{configs: [{name: job, launch: {cmds: [x]}}]}"))
            .unwrap()
            .remove(1);
        assert_eq!(job.kind, Kind::Commands(vec!["x".into()]));
        for (more, why) in [
            (
                "  appNames: [wbe]\n".to_owned(),
                "has no application \"wbe\", did you mean \"web\"?",
            ),
            (
                doc("{configs: [{name: db, env: [A=1]}]}"),
                "settings for the application \"db\", which is not launched",
            ),
            (
                doc("{configs: [{name: job, namespace: x}]}"),
                "\"job\" is no helm chart but scripts",
            ),
        ] {
            let error = launched(&more).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn files_of_applications_are_files_of_the_rootfs() {
        let more = "---\napiVersion: sealer.io/v2\nkind: Config\nmetadata: {name: c}\nspec: {path: ./etc//x, data: d}\n---\napiVersion: sealer.io/v2\nkind: Config\nmetadata: {name: v}\nspec: {appName: db, path: v.yaml, data: d}\n---\napiVersion: sealer.io/v2\nkind: Application\nmetadata: {name: a}\nspec: {configs: [{name: web, files: [{path: values.yaml, strategy: merge, data: 'a: 1'}]}]}\n";
        let paths: Vec<String> = configs(&clusterfile(more))
            .into_iter()
            .map(|config| config.path)
            .collect();
        assert_eq!(
            paths,
            [
                "etc/x",
                "application/apps/db/v.yaml",
                "application/apps/web/values.yaml"
            ]
        );
    }

    fn chart_site(chart: &str) -> (Site, App) {
        let mut site = with(&[(&format!("web/{chart}"), false), ("web/values.yaml", false)]);
        let app = App {
            name: "web".into(),
            env: Env::from([
                ("replicas".into(), "3".into()),
                ("tag".into(), "007".into()),
                ("on".into(), "true".into()),
            ]),
            namespace: "default".into(),
            kind: kind(&site.image, "web", Vec::new()).unwrap(),
        };
        site.apps.push(app.clone());
        (site, app)
    }

    #[test]
    fn values_come_from_the_environment_and_from_a_file_beside_the_chart() {
        let (site, app) = chart_site("c.tgz");
        let (beside, values) = values(&site, &app, "c.tgz");
        assert_eq!(beside, ["/opt/installer/application/apps/web/values.yaml"]);
        assert_eq!(
            values.unwrap(),
            serde_json::json!({"replicas": 3, "tag": "007", "on": true})
        );
        let (site, app) = chart_site("Chart.yaml");
        assert!(
            super::values(&site, &app, "").0.is_empty(),
            "a chart's own values are read by helm itself"
        );
        let mut site = site;
        let meta = image::AppMeta {
            values: vec!["values.yaml.tmpl".into(), "a.yaml".into(), "prod.yaml.tmpl".into()],
            ..image::AppMeta::default()
        };
        site.image.apps.insert("web".into(), meta);
        assert_eq!(
            super::values(&site, &app, "").0,
            [
                "/opt/installer/application/apps/web/a.yaml",
                "/opt/installer/application/apps/web/prod.yaml"
            ],
            "those of --values follow in their order, as they are once rendered"
        );
    }

    #[test]
    fn an_application_is_another_one_when_anything_that_matters_differs() {
        let (site, app) = chart_site("Chart.yaml");
        let first = digest(&site, &app).unwrap();
        assert_eq!(digest(&site, &app).unwrap(), first);
        let differs = |change: &dyn Fn(&mut Site, &mut App)| {
            let (mut site, mut app) = (site.clone(), app.clone());
            change(&mut site, &mut app);
            digest(&site, &app).unwrap() != first
        };
        assert!(differs(&|_, app| drop(app.env.insert("x".into(), "1".into()))));
        assert!(differs(&|_, app| app.namespace = "shop".into()));
        assert!(differs(&|site, _| add_file(
            site,
            "application/apps/web/templates/a.yaml",
            "new",
            false
        )));
        assert!(differs(&|site, _| site.configs.push(Config {
            name: "c".into(),
            path: "application/apps/web/values.yaml".into(),
            strategy: clusterfile::Strategy::Overwrite,
            data: "a: 1".into(),
        })));
        assert!(!differs(&|site, _| add_file(
            site,
            "application/apps/other/a.yaml",
            "new",
            false
        )));
        assert!(!differs(&|site, _| drop(site.image.env.insert("x".into(), "1".into()))));
        assert!(differs(&|_, app| app.kind = Kind::Scripts(vec!["x".into()])));
    }
}
