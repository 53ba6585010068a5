//! The instructions that speak of applications and plugins.

use clusterfile::kubefile::{CopyFlags, Instruction, is_url};

use super::Build;
use crate::apps;
use crate::config::{AppKind, AppMeta, ClusterConfig};
use crate::container::fetched_for;
use crate::error::Error;
use crate::filesystem::AppFile;
use crate::io::read_text;
use crate::plugin;
use crate::recipe::{Step, unknown_launch};
use crate::tree::Kind;

impl Build<'_> {
    /// CNI and CSI: manifests that are applied as soon as the control plane answers.
    pub(super) fn plugin(
        &mut self,
        keyword: &str,
        name: &str,
        sources: &[String],
        list: impl Fn(&mut ClusterConfig) -> &mut Vec<String>,
    ) -> Result<bool, Error> {
        plugin::check(self.contexts(), keyword, name, sources)?;
        self.files.copy(&CopyFlags::default(), sources, "manifests/")?;
        let list = list(&mut self.config);
        if !list.iter().any(|known| known == name) {
            list.push(name.to_string());
        }
        Ok(true)
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
                let apps = self.config.apps.keys().map(String::as_str);
                let plugins = self.config.cni.iter().chain(&self.config.csi).map(String::as_str);
                return Err(at("LAUNCH", name, unknown_launch(name, apps, plugins)));
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
