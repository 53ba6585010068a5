//! The instructions that speak of applications and plugins.

use std::path::Path;

use clusterfile::kubefile::{CopyFlags, Instruction, is_url};

use super::Build;
use crate::apps;
use crate::closure::IMAGE_LIST;
use crate::config::{AppKind, AppMeta, ClusterConfig};
use crate::container::fetched_for;
use crate::error::Error;
use crate::filesystem::AppFile;
use crate::io::read_text;
use crate::recipe::Step;
use crate::tree::{Entry, Kind};

impl Build<'_> {
    /// CNI and CSI: manifests that are applied as soon as the control plane answers.
    pub(super) fn plugin(
        &mut self,
        keyword: &str,
        name: &str,
        sources: &[String],
        list: impl Fn(&mut ClusterConfig) -> &mut Vec<String>,
    ) -> Result<bool, Error> {
        for source in sources {
            for (_, path) in self.contexts().find(None, source)? {
                self.check_plugin_source(keyword, name, source, &path)?;
            }
        }
        self.files.copy(&CopyFlags::default(), sources, "manifests/")?;
        let list = list(&mut self.config);
        if !list.iter().any(|known| known == name) {
            list.push(name.to_string());
        }
        Ok(true)
    }

    /// Everything that CNI or CSI brings is of use: only manifests are applied.
    fn check_plugin_source(&self, keyword: &str, name: &str, source: &str, path: &Path) -> Result<(), Error> {
        let is_chart =
            path.is_file() && apps::may_be_packed_chart(&path.to_string_lossy()) && apps::is_packed_chart(path)?;
        if is_chart || path.join(apps::CHART).exists() {
            let why = "it is a helm chart; the network and storage of a cluster are manifests here: render it with \
                       `helm template` first, or make it an APP";
            return Err(Error::path(source, why));
        }
        let entries = self.contexts().walk(None, path)?;
        let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let is_file = |entry: &Entry| !matches!(entry.kind, Kind::Dir);
        let files = entries.iter().filter(|(_, entry)| is_file(entry));
        let files: Vec<&str> = files
            .map(|(below, _)| {
                if below.is_empty() {
                    file_name.as_deref().unwrap_or_default()
                } else {
                    below
                }
            })
            .collect();
        if let Some(script) = files.iter().find(|file| file.ends_with(".sh")) {
            let why = format!(
                "{script} is a script, and nobody runs what {keyword} brings: bring the manifests that it applies; or make it an \
                 application that is launched when the cluster is up (APP {name} {source}, LAUNCH [\"{name}\"])"
            );
            return Err(Error::path(source, why));
        }
        match files.iter().any(|file| apps::is_manifest(file) || *file == IMAGE_LIST) {
            true => Ok(()),
            false => {
                let why = format!("{keyword} brings manifests (.yaml, .yml or .json, also as .tmpl), and it has none");
                Err(Error::path(source, why))
            }
        }
    }

    /// Scripts among the manifests, which nobody runs.
    pub(super) fn unused_scripts(&self) -> impl Iterator<Item = String> {
        let files = self
            .files
            .tree()
            .0
            .iter()
            .filter(|(_, entry)| !matches!(entry.kind, Kind::Dir));
        let scripts = files.filter(|(path, _)| path.starts_with("manifests/") && path.ends_with(".sh"));
        scripts.map(|(path, _)| {
            format!(
                "{path}: nobody runs scripts that lie in manifests/; make it an APP, or run it by CMDS [\"sh {path}\"]"
            )
        })
    }

    /// APP: replaces an application that the base image has under this name.
    pub(super) fn new_app(&mut self, instruction: &Instruction) -> Result<bool, Error> {
        let Instruction::App {
            name, sources, values, ..
        } = instruction
        else {
            return Ok(false);
        };
        let fetched = fetched_for(instruction, self.supplies.fetched);
        let sources: Vec<AppFile<'_>> = sources
            .iter()
            .map(|source| match fetched.filter(|_| is_url(source)) {
                Some(fetched) => AppFile::Fetched(source, fetched),
                None => AppFile::Context(source),
            })
            .collect();
        let values: Vec<AppFile<'_>> = values.iter().map(|values| AppFile::Context(values)).collect();
        let folder = format!("{}{name}", apps::FOLDER);
        let (sources, values) = self.files.replace(&folder, &sources, &values)?;
        let judged = apps::judge(&sources, &values)?;
        self.config.apps.insert(
            name.clone(),
            AppMeta {
                kind: judged.kind,
                files: judged.files,
                values: judged.values,
                ..AppMeta::default()
            },
        );
        Ok(true)
    }

    /// Every application can be launched, and what is to be launched is there.
    pub(super) fn check_apps(&self) -> Result<(), Error> {
        let at = |keyword: &str, name: &str, error: Error| {
            let names = |step: &&Step| step.line.keyword == keyword && step.line.rest.contains(name);
            match self.recipe.steps.iter().rfind(names) {
                Some(step) => error.at(&self.recipe.file, &step.line),
                None => error,
            }
        };
        for name in &self.config.launch {
            if !self.config.apps.contains_key(name) {
                let hint = clusterfile::names::did_you_mean(name, self.config.apps.keys().map(String::as_str));
                return Err(at(
                    "LAUNCH",
                    name,
                    Error::Refused(format!("LAUNCH: the image has no APP {name:?}{hint}")),
                ));
            }
        }
        for (name, app) in &self.config.apps {
            if app.kind == AppKind::Files && app.commands.is_empty() {
                let why = format!(
                    "APP {name}: its files are not just manifests, not just scripts and no helm chart; say with APPCMDS how it is \
                     launched"
                );
                return Err(at("APP", name, Error::Refused(why)));
            }
            let folder = format!("{}{name}", apps::FOLDER);
            let there = |file: &&String| match file.as_str() {
                "." => self.files.tree().0.contains_key(&format!("{folder}/{}", apps::CHART)),
                file => self.files.tree().0.contains_key(&format!("{folder}/{file}")),
            };
            if let Some(gone) = app.files.iter().chain(&app.values).find(|file| !there(file)) {
                let why = format!("APP {name}: {folder}/{gone} is not there any more when the recipe ends");
                return Err(at("APP", name, Error::Refused(why)));
            }
            if app.kind == AppKind::Manifests && app.commands.is_empty() {
                self.check_manifests(&folder, &app.files)?;
            }
        }
        Ok(())
    }

    /// What will be applied is made of Kubernetes objects. A template is not looked at, an inherited file was when its image was built.
    fn check_manifests(&self, folder: &str, files: &[String]) -> Result<(), Error> {
        for file in files.iter().filter(|file| !file.ends_with(".tmpl")) {
            let path = format!("{folder}/{file}");
            let Some(Kind::File { source, .. }) = self.files.tree().0.get(&path).map(|entry| &entry.kind) else {
                continue;
            };
            if let Some(from) = source.file()? {
                let opened = std::fs::File::open(&from).map_err(Error::io("cannot read", &from))?;
                apps::check_objects(&self.shown(&path, &from), &read_text(&path, opened)?)?;
            }
        }
        Ok(())
    }
}
