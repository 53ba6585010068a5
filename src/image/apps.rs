//! What kind an application is: decided from its files, so that launching it needs no guess.

use std::ops::ControlFlow;
use std::path::Path;

use clusterfile::{Env, yaml};

use crate::config::{AppKind, ClusterConfig};
use crate::error::Error;
use crate::unpack;

/// Where applications lie, each in a folder of its name.
pub(crate) const FOLDER: &str = "application/apps/";
/// The file that makes a folder a chart.
pub(crate) const CHART: &str = "Chart.yaml";
/// A chart's own values as a template.
const VALUES_TEMPLATE: &str = "values.yaml.tmpl";
const VALUES: &str = "values.yaml";

/// A source of APP, as it came to lie in the application's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppSource {
    /// As it was written.
    pub(crate) written: String,
    pub(crate) is_folder: bool,
    /// Its files' paths below the application's folder; one for a file.
    pub(crate) files: Vec<String>,
    /// Files that are charts packed by helm.
    pub(crate) packed_charts: Vec<String>,
}

/// What an application is, and what of it is launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) kind: AppKind,
    pub(crate) files: Vec<String>,
    /// Values that the chart brings along as a template.
    pub(crate) values: Vec<String>,
}

/// Judges an application by its sources and its files of values; the error is why it can't be one.
pub(crate) fn judge(sources: &[AppSource], values: &[AppSource]) -> Result<Judged, Error> {
    let mut judged = judge_sources(sources)?;
    match values.first() {
        Some(first) if judged.kind != AppKind::Chart => Err(Error::path(
            &first.written,
            "--values is for a helm chart, but the application has none",
        )),
        _ => {
            judged.values.extend(value_files(sources, values)?);
            Ok(judged)
        }
    }
}

/// The names of files of values; none may take the place of another file.
fn value_files(sources: &[AppSource], values: &[AppSource]) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = Vec::new();
    for file in values {
        let [name] = file.files.as_slice() else {
            return Err(Error::path(&file.written, "--values takes a file"));
        };
        let is_same = |source: &AppSource| format!("{}/{name}", source.written.trim_end_matches('/')) == file.written;
        let taken = sources
            .iter()
            .any(|source| source.files.contains(name) && !is_same(source));
        if file.is_folder || taken || names.contains(name) {
            let why =
                format!("it would lie beside the chart as {name}, where there is another file of this name; rename it");
            return Err(Error::path(&file.written, why));
        }
        names.push(name.clone());
    }
    Ok(names)
}

fn judge_sources(sources: &[AppSource]) -> Result<Judged, Error> {
    let whole = |source: &AppSource| source.is_folder && source.files.iter().any(|file| file == CHART);
    let packed = |source: &AppSource| !source.is_folder && !source.packed_charts.is_empty();
    if let Some(chart) = sources.iter().find(|source| whole(source) || packed(source)) {
        return chart_alone(chart, sources);
    }
    for source in sources {
        let inner = source
            .files
            .iter()
            .find(|file| name_of(file) == CHART)
            .or(source.packed_charts.first());
        if let Some(inner) = inner {
            let why = format!(
                "it has the helm chart {inner} inside; an application is one chart, so name that one as its source"
            );
            return Err(Error::path(&source.written, why));
        }
    }
    let all = || sources.iter().flat_map(|source| &source.files);
    let manifests: Vec<String> = all().filter(|file| is_manifest(file)).cloned().collect();
    let scripts: Vec<String> = all().filter(|file| file.ends_with(".sh")).cloned().collect();
    let kustomized =
        all().any(|file| ["kustomization.yaml", "kustomization.yml", "Kustomization"].contains(&name_of(file)));
    let (kind, files) = match (manifests.is_empty(), scripts.is_empty()) {
        (false, true) if !kustomized => (AppKind::Manifests, manifests),
        (true, false) => (AppKind::Scripts, scripts),
        _ => (AppKind::Files, Vec::new()),
    };
    Ok(Judged {
        kind,
        files,
        values: Vec::new(),
    })
}

fn chart_alone(chart: &AppSource, sources: &[AppSource]) -> Result<Judged, Error> {
    if let Some(other) = sources.iter().find(|source| *source != chart) {
        let why = format!(
            "{} is a helm chart, which must be the application's only source; values for it come with --values",
            chart.written
        );
        return Err(Error::path(&other.written, why));
    }
    let has = |name: &str| chart.is_folder && chart.files.iter().any(|file| file == name);
    if has(VALUES) && has(VALUES_TEMPLATE) {
        let why =
            format!("the chart has both {VALUES} and {VALUES_TEMPLATE}; rendering the one would replace the other");
        return Err(Error::path(&chart.written, why));
    }
    let folder = || vec![".".to_string()];
    Ok(Judged {
        kind: AppKind::Chart,
        files: if chart.is_folder {
            folder()
        } else {
            chart.packed_charts.clone()
        },
        values: has(VALUES_TEMPLATE)
            .then(|| VALUES_TEMPLATE.to_string())
            .into_iter()
            .collect(),
    })
}

/// An application's name and the rest of the path, for a path in its folder.
fn split(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix(FOLDER)?.split_once('/')
}

/// Whether a file of the rootfs belongs to an application's chart, and so means nothing before helm has rendered it.
pub(crate) fn is_in_chart(config: &ClusterConfig, path: &str) -> bool {
    let app = split(path).and_then(|(name, _)| config.apps.get(name));
    app.is_some_and(|app| app.kind == AppKind::Chart)
}

/// The variables that templates at a path of the rootfs see before there is a cluster: an application's own count most.
pub(crate) fn env_of(config: &ClusterConfig, path: &str) -> Env {
    let mut env = config.env.clone();
    if let Some(app) = split(path).and_then(|(name, _)| config.apps.get(name)) {
        env.extend(app.env.clone());
    }
    env
}

/// Refuses documents that could not be applied.
pub(crate) fn check_objects(shown: &str, text: &str) -> Result<(), Error> {
    let documents = yaml::parse(text);
    let documents = documents.map_err(|error| clusterfile::Problems::one(shown, error.at, error.message))?;
    let is_object = |node: &yaml::Node| node.get("kind").is_some() && node.get("apiVersion").is_some();
    match documents.iter().find(|node| !is_object(node)) {
        None => Ok(()),
        Some(node) => {
            let why = "it is no Kubernetes object, which has apiVersion and kind; if it is not meant to be applied, say with APPCMDS \
                       how the application is launched";
            Err(clusterfile::Problems::one(shown, node.at, why).into())
        }
    }
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Whether a file holds Kubernetes objects, or becomes one that does.
pub(crate) fn is_manifest(path: &str) -> bool {
    let plain = path.strip_suffix(".tmpl").unwrap_or(path);
    [".yaml", ".yml", ".json"].iter().any(|ending| plain.ends_with(ending))
}

/// Whether a file may be a chart packed by helm.
pub(crate) fn may_be_packed_chart(path: &str) -> bool {
    path.ends_with(".tgz") || path.ends_with(".tar.gz")
}

/// Whether an archive is a chart packed by helm: its only folder has a `Chart.yaml`.
pub(crate) fn is_packed_chart(file: &Path) -> Result<bool, Error> {
    if unpack::packing(file)?.is_none() {
        return Ok(false);
    }
    let mut found = false;
    unpack::visit(file, |item, _| {
        let mut parts = item
            .path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".");
        found = parts.nth(1) == Some(CHART.as_bytes()) && parts.next().is_none();
        Ok(match found {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(written: &str, files: &[&str]) -> AppSource {
        AppSource {
            written: written.into(),
            is_folder: true,
            files: files.iter().map(ToString::to_string).collect(),
            packed_charts: Vec::new(),
        }
    }

    fn file(path: &str) -> AppSource {
        let packed = path.ends_with(".tgz").then(|| path.to_string());
        AppSource {
            written: format!("src/{path}"),
            is_folder: false,
            files: vec![path.to_string()],
            packed_charts: packed.into_iter().collect(),
        }
    }

    #[test]
    fn the_kind_follows_from_the_files() {
        for (sources, kind, files) in [
            (
                vec![folder(
                    "c",
                    &["Chart.yaml", "templates/a.yaml", "charts/sub/Chart.yaml"],
                )],
                AppKind::Chart,
                vec!["."],
            ),
            (vec![file("web-1.tgz")], AppKind::Chart, vec!["web-1.tgz"]),
            (
                vec![
                    folder("m", &["README.md", "a.yaml", "b.json", "c.yml.tmpl"]),
                    file("z.yaml"),
                ],
                AppKind::Manifests,
                vec!["a.yaml", "b.json", "c.yml.tmpl", "z.yaml"],
            ),
            (
                vec![file("b.sh"), file("a.sh"), file("x.txt")],
                AppKind::Scripts,
                vec!["b.sh", "a.sh"],
            ),
            (vec![file("a.sh"), file("a.yaml")], AppKind::Files, vec![]),
            (
                vec![folder("k", &["kustomization.yaml", "a.yaml"])],
                AppKind::Files,
                vec![],
            ),
            (vec![file("x.bin")], AppKind::Files, vec![]),
        ] {
            let judged = judge(&sources, &[]).unwrap();
            assert_eq!(
                (judged.kind, judged.files.iter().map(String::as_str).collect::<Vec<_>>()),
                (kind, files),
                "{sources:?}"
            );
        }
        let judged = judge(&[folder("c", &["Chart.yaml", "values.yaml.tmpl"])], &[]).unwrap();
        assert_eq!(judged.values, ["values.yaml.tmpl"]);
    }

    #[test]
    fn a_chart_stands_alone() {
        let chart = folder("c", &["Chart.yaml"]);
        for (sources, expected) in [
            (
                vec![chart.clone(), file("a.yaml")],
                "src/a.yaml: c is a helm chart, which must be",
            ),
            (
                vec![file("a.yaml"), file("w.tgz")],
                "src/a.yaml: src/w.tgz is a helm chart",
            ),
            (
                vec![folder("charts", &["web/Chart.yaml", "web/templates/x.yaml"])],
                "charts: it has the helm chart web/Chart.yaml inside",
            ),
            (
                vec![AppSource {
                    packed_charts: vec!["sub/w.tgz".into()],
                    ..folder("f", &["sub/w.tgz"])
                }],
                "f: it has the helm chart sub/w.tgz inside",
            ),
            (
                vec![folder("c", &["Chart.yaml", "values.yaml", "values.yaml.tmpl"])],
                "c: the chart has both values.yaml and values.yaml.tmpl",
            ),
        ] {
            let error = judge(&sources, &[]).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn values_lie_beside_the_chart_under_their_own_names() {
        let chart = [folder("c/", &["Chart.yaml", "values.yaml", "prod.yaml"])];
        let values = |written: &str| AppSource {
            written: written.into(),
            ..file(name_of(written))
        };
        let judged = judge(&chart, &[values("v/a.yaml"), values("c/prod.yaml")]).unwrap();
        assert_eq!(judged.values, ["a.yaml", "prod.yaml"]);
        for (values, expected) in [
            (
                vec![values("v/values.yaml")],
                "v/values.yaml: it would lie beside the chart as values.yaml",
            ),
            (vec![values("v/a.yaml"), values("w/a.yaml")], "w/a.yaml: it would lie"),
            (vec![folder("v", &["a.yaml", "b.yaml"])], "v: --values takes a file"),
        ] {
            let error = judge(&chart, &values).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = judge(&[file("a.yaml")], &[values("v/a.yaml")]).unwrap_err().to_string();
        assert!(error.contains("--values is for a helm chart"), "{error}");
    }

    #[test]
    fn what_is_applied_must_be_objects() {
        assert!(check_objects("f", "apiVersion: v1\nkind: Pod\n---\n# nothing\n").is_ok());
        for (text, expected) in [
            (
                "apiVersion: v1\nkind: Pod\n---\nreplicas: 1\n",
                "f:4:1: it is no Kubernetes object",
            ),
            ("- a\n", "f:1:1: it is no Kubernetes object"),
            ("a: [\n", "f:"),
        ] {
            let error = check_objects("f", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
