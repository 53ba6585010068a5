//! Helm charts at build: the real `helm template` shows which objects, and so which images, a chart will bring.
//!
//! Helm runs with an empty home and without repositories, so a chart must have all its subcharts with it; nothing that is rendered
//! becomes part of the image.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clusterfile::{Env, yaml};
use oci::Platform;

use crate::apps::{self, CHART};
use crate::closure::{self, UNKNOWN};
use crate::config::{AppKind, AppMeta, ClusterConfig};
use crate::error::Error;
use crate::extract::Staging;
use crate::filesystem::FileSystem;
use crate::manifest::{fits, host_platform};
use crate::tree::{Kind, Tree, follow, parent_of};
use run::{Chart, render};

pub(crate) use run::Rendered;

mod run;

/// Where a rootfs has its own helm.
const OWN: &str = "bin/helm";
/// Where charts lie that are no applications: they are installed by commands, with their own values.
const LOOSE: &str = "charts/";

/// The program, looked for once for all platforms of a build.
pub(crate) struct Helm {
    program: Option<Program>,
}

enum Program {
    /// Of this machine.
    Installed(PathBuf),
    /// Of the rootfs: where that is laid out, and the path there.
    Own(Staging, String),
}

/// A chart of the rootfs: an application, or one below `charts/`.
struct Place {
    shown: String,
    release: String,
    /// Folder or packed chart in the rootfs.
    path: String,
    /// Files of values in the rootfs.
    values: Vec<String>,
    /// What templates of values see.
    env: Env,
    /// An application's own variables, which are values too.
    own: Env,
}

impl Helm {
    /// The helm given, or the one on the search path; that there may be none matters only to charts.
    pub(crate) fn find(given: Option<&Path>) -> Result<Helm, Error> {
        let found = find(given, std::env::var_os("PATH").as_deref())?;
        Ok(Helm {
            program: found.map(Program::Installed),
        })
    }

    /// Renders every chart of a rootfs as it would be launched.
    pub(crate) fn render_all(
        &mut self,
        files: &FileSystem<'_>,
        config: &ClusterConfig,
        platform: &Platform,
    ) -> Result<Vec<Rendered>, Error> {
        let mut rendered = Vec::new();
        for place in places(files.tree(), config) {
            let staging = files.materialize(&place.folder())?;
            let root = staging.path();
            let helm = self.program(files, platform, &place.shown)?;
            let work = files.work_folder()?;
            let mut values = Vec::new();
            for (index, path) in place.values.iter().enumerate() {
                let file = root.join(path);
                values.push(match path.ends_with(".tmpl") {
                    true => fill_in(&file, &format!("{}: {path}", place.shown), &place.env, &work, index)?,
                    false => file,
                });
            }
            if !place.own.is_empty() {
                let file = work.path().join("own.json");
                let text = serde_json::Value::Object(chart_values(&place.own)).to_string();
                std::fs::write(&file, text).map_err(Error::io("cannot write", &file))?;
                values.push(file);
            }
            let chart = Chart {
                shown: place.named(&root)?,
                release: &place.release,
                path: root.join(&place.path),
                values,
            };
            rendered.extend(render(&helm, &chart, work.path())?);
        }
        Ok(rendered)
    }

    fn program(&mut self, files: &FileSystem<'_>, platform: &Platform, shown: &str) -> Result<PathBuf, Error> {
        match &self.program {
            Some(Program::Installed(program)) => return Ok(program.clone()),
            Some(Program::Own(staging, path)) => return Ok(staging.path().join(path)),
            None => {}
        }
        let own = follow(files.tree(), OWN)?;
        let is_file = matches!(
            files.tree().0.get(&own).map(|entry| &entry.kind),
            Some(Kind::File { .. })
        );
        if !is_file || !fits(&host_platform(), platform) {
            return Err(Error::Chart {
                shown: shown.to_string(),
                reason: format!(
                    "finding a chart's images needs helm: put it on PATH, name it with --helm, or have it in the rootfs as {OWN}"
                ),
            });
        }
        let staging = files.materialize(&own)?;
        let program = staging.path().join(&own);
        self.program = Some(Program::Own(staging, own));
        Ok(program)
    }
}

impl Place {
    /// What has to be there for helm.
    fn folder(&self) -> String {
        match self.values.is_empty() {
            true => self.path.clone(),
            false => parent_of(&self.values[0]).unwrap_or_default().to_string(),
        }
    }

    /// The name in messages with the chart's own, which is in it.
    fn named(&self, root: &Path) -> Result<String, Error> {
        let file = root.join(&self.path).join(CHART);
        let name = match std::fs::File::open(&file) {
            Ok(file) => {
                let text = crate::io::read_text(&self.shown, file)?;
                let documents = yaml::parse(&text).unwrap_or_default();
                documents
                    .first()
                    .and_then(|chart| chart.get("name")?.as_str().map(str::to_string))
            }
            Err(_) => self.path.rsplit('/').next().map(str::to_string),
        };
        Ok(match (self.shown.starts_with("APP "), name) {
            (true, Some(name)) => format!("{}: chart {name}", self.shown),
            _ => self.shown.clone(),
        })
    }
}

/// The charts of a rootfs, applications first.
fn places(tree: &Tree, config: &ClusterConfig) -> Vec<Place> {
    let charts = config.apps.iter().filter(|(_, app)| app.kind == AppKind::Chart);
    let mut places: Vec<Place> = charts
        .map(|(name, app)| {
            let folder = format!("{}{name}", apps::FOLDER);
            let path = match app.files.first().map(String::as_str) {
                None | Some(".") => folder.clone(),
                Some(file) => format!("{folder}/{file}"),
            };
            Place {
                shown: format!("APP {name}"),
                release: name.clone(),
                path,
                values: app_values(tree, &folder, app),
                env: apps::env_of(config, &format!("{folder}/")),
                own: app.env.clone(),
            }
        })
        .collect();
    let loose = tree.0.keys().filter_map(|path| {
        let (name, inner) = path
            .strip_prefix(LOOSE)?
            .split_once('/')
            .unwrap_or((path.strip_prefix(LOOSE)?, ""));
        let is_chart = inner == CHART || (inner.is_empty() && apps::may_be_packed_chart(name));
        is_chart.then(|| format!("{LOOSE}{name}"))
    });
    places.extend(loose.map(|path| {
        let template = format!("{path}/values.yaml.tmpl");
        Place {
            shown: path.clone(),
            release: "release".to_string(),
            values: tree.0.contains_key(&template).then_some(template).into_iter().collect(),
            env: config.env.clone(),
            own: Env::new(),
            path,
        }
    }));
    places
}

/// An application's files of values, as its launch gives them to helm: one called `values.yaml` that lies beside a packed chart,
/// then those of `--values`.
fn app_values(tree: &Tree, folder: &str, app: &AppMeta) -> Vec<String> {
    let is_packed = app.files.first().is_some_and(|file| file != ".");
    let beside = ["values.yaml", "values.yaml.tmpl"].into_iter().filter(|_| is_packed);
    let beside = beside.filter(|name| !app.values.iter().any(|file| file == name));
    let all = beside.chain(app.values.iter().map(String::as_str));
    let all = all.map(|file| format!("{folder}/{file}"));
    all.filter(|path| tree.0.contains_key(path)).collect()
}

/// The values that an application's environment stands for, as helm's `--set` would read them. They count more than any file.
#[must_use]
pub fn chart_values(env: &Env) -> serde_json::Map<String, serde_json::Value> {
    let value = |text: &str| match text {
        "true" => true.into(),
        "false" => false.into(),
        "null" => serde_json::Value::Null,
        _ => match text.parse::<i64>() {
            // Not `007`, and nothing else that would come back as another text.
            Ok(number) if number.to_string() == text => number.into(),
            _ => text.into(),
        },
    };
    env.iter().map(|(name, text)| (name.clone(), value(text))).collect()
}

/// Writes a template of values with what is known.
fn fill_in(file: &Path, shown: &str, env: &Env, work: &tempfile::TempDir, index: usize) -> Result<PathBuf, Error> {
    let opened = std::fs::File::open(file).map_err(Error::io("cannot read", file))?;
    let text = crate::io::read_text(shown, opened)?;
    let filled = render_values(shown, &text, |name| closure::known_value(name, env))?;
    let target = work.path().join(format!("values-{index}.yaml"));
    std::fs::write(&target, filled).map_err(Error::io("cannot write", &target))?;
    Ok(target)
}

/// The helm to use: the one given, else the first on the search path.
fn find(given: Option<&Path>, search: Option<&OsStr>) -> Result<Option<PathBuf>, Error> {
    if let Some(given) = given {
        let real = given.canonicalize().map_err(Error::io("cannot use as helm", given))?;
        return match is_program(&real) {
            true => Ok(Some(real)),
            false => Err(Error::path(given.display().to_string(), "--helm must name a program")),
        };
    }
    let folders = search.map(std::env::split_paths).into_iter().flatten();
    Ok(folders
        .map(|folder| folder.join("helm"))
        .find(|path| path.is_absolute() && is_program(path)))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A template of values as far as it's known before there is a cluster; the rest becomes a mark that no image has in its name.
///
/// `{{ .NAME }}` is all that templates of a rootfs understand.
fn render_values(shown: &str, text: &str, known: impl Fn(&str) -> Option<String>) -> Result<String, Error> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        result.push_str(before);
        let line = text[..text.len() - after.len()].matches('\n').count() + 1;
        let wrong = |why: &str| Error::path(format!("{shown}:{line}"), why);
        let (action, tail) = after.split_once("}}").ok_or_else(|| wrong("{{ is not closed"))?;
        let name = action
            .trim()
            .strip_prefix('.')
            .filter(|name| clusterfile::names::is_env_name(name));
        let name = name.ok_or_else(|| wrong("only {{ .NAME }} is understood, no other template construct"))?;
        result.push_str(&known(name).unwrap_or_else(|| UNKNOWN.to_string()));
        rest = tail;
    }
    result.push_str(rest);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn values_are_filled_in_as_far_as_they_are_known() {
        let known = |name: &str| (name == "Tag").then(|| "v1".to_string());
        let text = "image: a:{{ .Tag }}\nhost: {{.HostIP}}\n";
        assert_eq!(
            render_values("v", text, known).unwrap(),
            "image: a:v1\nhost: template-value\n"
        );
        for (bad, expected) in [
            ("a\n{{ if .X }}", "v:2: only {{ .NAME }}"),
            ("{{ .X", "v:1: {{ is not closed"),
            ("{{ .X | quote }}", "v:1: only"),
        ] {
            assert!(
                render_values("v", bad, known)
                    .unwrap_err()
                    .to_string()
                    .starts_with(expected),
                "{bad}"
            );
        }
    }

    #[test]
    fn helm_is_the_one_given_or_the_first_on_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.canonicalize().unwrap()
        };
        let (plain, real) = (program("one/helm", 0o644), program("two/helm", 0o755));
        let search =
            std::env::join_paths([Path::new("relative"), plain.parent().unwrap(), real.parent().unwrap()]).unwrap();
        assert_eq!(find(None, Some(&search)).unwrap(), Some(real.clone()));
        assert_eq!(find(Some(&real), None).unwrap(), Some(real));
        assert_eq!(find(None, None).unwrap(), None);
        assert_eq!(find(None, Some(OsStr::new(""))).unwrap(), None);
        assert!(
            find(Some(&plain), Some(&search))
                .unwrap_err()
                .to_string()
                .contains("must name a program")
        );
        assert!(find(Some(&dir.path().join("none")), Some(&search)).is_err());
    }

    /// A rootfs of files, some of which may be run.
    fn rootfs<T>(
        files: &[(&str, &str)],
        config: &ClusterConfig,
        test: impl FnOnce(&FileSystem<'_>, &ClusterConfig) -> T,
    ) -> T {
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().join("context");
        for (name, text) in files {
            let path = context.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let store = crate::Store::open(&dir.path().join("store")).unwrap();
        let contexts = crate::context::Contexts::new(&store, &context, &Default::default()).unwrap();
        let platform = host_platform();
        let mut tree = FileSystem::new(&store, &contexts, &platform, &crate::NoProgress);
        tree.copy(&Default::default(), &[".".to_string()], ".").unwrap();
        test(&tree, config)
    }

    fn chart_app(values: &[&str]) -> ClusterConfig {
        let mut config = ClusterConfig::default();
        config.env.insert("Tag".into(), "of-the-image".into());
        let app = crate::AppMeta {
            kind: AppKind::Chart,
            files: vec![".".into()],
            values: values.iter().map(ToString::to_string).collect(),
            env: Env::from([("Tag".to_string(), "of-the-app".to_string())]),
            ..Default::default()
        };
        config.apps.insert("web".into(), app);
        config
    }

    const CHART_FILE: (&str, &str) = ("application/apps/web/Chart.yaml", "name: shop\n");

    #[test]
    fn without_helm_a_chart_is_refused_and_nothing_else_is() {
        let mut helm = Helm { program: None };
        let error = rootfs(&[CHART_FILE], &chart_app(&[]), |files, config| {
            helm.render_all(files, config, &host_platform())
                .unwrap_err()
                .to_string()
        });
        assert_eq!(
            error,
            "APP web: finding a chart's images needs helm: put it on PATH, name it with --helm, or have it in the rootfs as bin/helm"
        );
        let rendered = rootfs(&[("etc/x", "y")], &ClusterConfig::default(), |files, config| {
            helm.render_all(files, config, &host_platform()).unwrap()
        });
        assert_eq!(rendered, []);
    }

    #[test]
    fn the_rootfs_own_helm_renders_with_the_values_of_the_launch() {
        let script = "#!/bin/sh\nfor a in \"$@\"; do case $a in */values-0.yaml|*/plain.yaml) while read -r l; do echo \"$l\"; done <$a;; esac; done\n";
        let files = [
            CHART_FILE,
            ("application/apps/web/own.yaml.tmpl", "tag: {{ .Tag }}\n"),
            ("application/apps/web/plain.yaml", "plain: {{ .Tag }}\n"),
            ("usr/bin/real-helm", script),
        ];
        let config = chart_app(&["own.yaml.tmpl", "plain.yaml"]);
        let (rendered, elsewhere) = rootfs(&files, &config, |tree, config| {
            let mut helm = Helm { program: None };
            let other = Platform {
                architecture: "other".into(),
                ..host_platform()
            };
            assert!(
                helm.render_all(tree, config, &other).is_err(),
                "a program for another machine is none"
            );
            // As a link, too.
            let staging = tree.materialize("usr/bin/real-helm").unwrap();
            let mut helm = Helm {
                program: Some(Program::Own(staging, "usr/bin/real-helm".into())),
            };
            let rendered = helm.render_all(tree, config, &host_platform()).unwrap();
            (rendered, helm.render_all(tree, config, &other).is_ok())
        });
        assert_eq!(rendered[0].shown, "APP web: chart shop");
        assert_eq!(
            rendered[0].text, "tag: of-the-app\nplain: {{ .Tag }}\n",
            "templates only are filled in"
        );
        assert!(elsewhere, "once found it renders for all platforms");
    }

    #[test]
    fn variables_become_values_as_with_set() {
        let env = [
            ("replicas", "3"),
            ("tag", "007"),
            ("on", "true"),
            ("none", "null"),
            ("name", "x y"),
        ];
        let env = env.map(|(name, text)| (name.to_string(), text.to_string())).into();
        assert_eq!(
            serde_json::Value::Object(chart_values(&env)),
            serde_json::json!({"replicas": 3, "tag": "007", "on": true, "none": null, "name": "x y"})
        );
    }

    #[test]
    fn loose_charts_are_found_too() {
        let config = chart_app(&[]);
        let found = rootfs(
            &[
                CHART_FILE,
                ("charts/one/Chart.yaml", ""),
                ("charts/two-1.tgz", ""),
                ("charts/one/charts/sub/Chart.yaml", ""),
                ("charts/x.txt", ""),
            ],
            &config,
            |files, config| {
                places(files.tree(), config)
                    .into_iter()
                    .map(|place| place.path)
                    .collect::<Vec<_>>()
            },
        );
        assert_eq!(found, ["application/apps/web", "charts/one", "charts/two-1.tgz"]);
    }
}
