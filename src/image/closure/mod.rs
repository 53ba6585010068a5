//! The closure proof: every image that a cluster will ask for must be carried.
//!
//! ```text
//! rootfs files, charts' documents ─► Survey (what is named, and where) ─► wanted: what must still be pulled
//!                                                                     └─► prove: the lock, or everything that is missing
//! ```
//! Looked at are the objects in `manifests/`, `application/apps/` and `etc/kubernetes/`, lists called `imageList`, and
//! containerd's configuration; templates included. Images inside other strings are seen only where an annotation names
//! them (`document`). Nothing here pulls or writes.

mod document;
mod list;
mod path;
mod rules;
mod runtime;
mod served;
mod suspect;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clusterfile::names::nearest;
use clusterfile::{DEFAULT_REGISTRY_DOMAIN, DEFAULT_REGISTRY_PORT, yaml};
use oci::{BlobStore, Descriptor, Digest, Reference};

use crate::apps;
use crate::config::{AppKind, ClusterConfig};
use crate::error::{Error, MissingImage};
use crate::extract::files_of_layer;
use crate::io;
use crate::lock::{Lock, Locked, Place};
use crate::tree::{Kind, Source, Tree, follow};

pub(crate) use list::NAME as IMAGE_LIST;
pub(crate) use rules::Rules;
use served::Use;
use suspect::Suspect;
pub(crate) use template::{UNKNOWN, known_value};

/// A place in a file that names an image, or should and doesn't.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    line: u64,
    /// The reference as written, or what is wrong.
    what: Result<String, String>,
}

impl Found {
    fn of(line: u64, what: Result<String, String>) -> Found {
        Found { line, what }
    }

    fn image(line: u64, reference: &str) -> Found {
        Found::of(line, Ok(reference.to_string()))
    }

    fn fault(line: u64, why: impl Into<String>) -> Found {
        Found::of(line, Err(why.into()))
    }
}

/// Folders whose objects are looked at.
const FOLDERS: [&str; 3] = ["manifests/", "application/apps/", "etc/kubernetes/"];
const OBJECTS: [&str; 3] = [".yaml", ".yml", ".json"];

/// What a file is to the survey.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Objects,
    List,
    Runtime,
}

/// The role of a rootfs file by its path; none if it can't name images.
fn role(path: &str) -> Option<Role> {
    let plain = path.strip_suffix(".tmpl").unwrap_or(path);
    let name = plain.rsplit('/').next().unwrap_or(plain);
    if plain.starts_with("etc/containerd/") && name.ends_with(".toml") {
        return Some(Role::Runtime);
    }
    if !FOLDERS.iter().any(|folder| plain.starts_with(folder)) {
        return None;
    }
    // The agent reads every file of this folder that is not hidden, whatever it is called.
    let is_static_pod = plain.starts_with("etc/kubernetes/manifests/") && !name.starts_with('.');
    match name {
        list::NAME => Some(Role::List),
        _ if is_static_pod || OBJECTS.iter().any(|suffix| name.ends_with(suffix)) => Some(Role::Objects),
        _ => None,
    }
}

/// What a rootfs names, gathered file by file, for one platform.
#[derive(Debug)]
pub(crate) struct Survey {
    rules: Rules,
    config: ClusterConfig,
    named: BTreeMap<Reference, BTreeSet<Place>>,
    faults: Vec<MissingImage>,
    /// What may be an image's name, and in which file.
    suspects: Vec<(String, Suspect)>,
    /// Objects that are not served, but that not every apply needs: file, version and kind, and how it is told.
    unserved: BTreeMap<(String, String), String>,
}

impl Survey {
    /// Begins with nothing named. `config` says what templates see, and which applications are charts.
    pub(crate) fn new(rules: Rules, config: &ClusterConfig) -> Survey {
        Survey {
            rules,
            config: config.clone(),
            named: BTreeMap::new(),
            faults: Vec::new(),
            suspects: Vec::new(),
            unserved: BTreeMap::new(),
        }
    }

    /// Looks at every file of a tree that can name images, links followed. `shown` gives the name of a file on disk as its
    /// author knows it.
    ///
    /// # Errors
    /// When a file can't be read. What is wrong in it is a finding of [`Survey::prove`].
    pub(crate) fn tree(
        &mut self,
        tree: &Tree,
        blobs: &BlobStore,
        layers: &BTreeMap<Digest, Descriptor>,
        shown: impl Fn(&str, &Path) -> String,
    ) -> Result<(), Error> {
        // Content in layers, read layer by layer: where it lies, and under which paths it is looked at.
        let mut inherited: BTreeMap<&Digest, BTreeMap<String, Vec<&str>>> = BTreeMap::new();
        // A chart's objects are what helm makes of it: its templates mean nothing before.
        let means_nothing = |path: &str| role(path) == Some(Role::Objects) && apps::is_in_chart(&self.config, path);
        let paths: Vec<&String> = tree.0.keys().filter(|path| role(path).is_some()).collect();
        for path in paths
            .into_iter()
            .filter(|path| !means_nothing(path))
            .collect::<Vec<_>>()
        {
            let target = follow(tree, path)?;
            let Some(Kind::File { source, .. }) = tree.0.get(&target).map(|entry| &entry.kind) else {
                continue;
            };
            if let Some(from) = source.file()? {
                let file = std::fs::File::open(&from).map_err(Error::io("cannot read", &from))?;
                self.file(path, &shown(path, &from), &io::read_text(path, file)?);
            } else if let Source::Layer(layer) = source {
                let files = inherited.entry(layer).or_default();
                files.entry(target).or_default().push(path);
            }
        }
        for (digest, files) in inherited {
            let layer = layers.get(digest).ok_or_else(|| oci::Error::Missing(digest.clone()))?;
            let wanted = files.keys().cloned().collect();
            files_of_layer(blobs, layer, &wanted, |target, reader| {
                let text = io::read_text(target, reader)?;
                for path in files.get(target).into_iter().flatten() {
                    self.file(path, path, &text);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Looks at one file of the rootfs. `shown` is its name in messages.
    fn file(&mut self, path: &str, shown: &str, text: &str) {
        let rendered;
        let (text, is_template) = match path.ends_with(".tmpl") {
            true => {
                rendered = template::render(text, &apps::env_of(&self.config, path));
                (rendered.as_str(), true)
            }
            false => (text, false),
        };
        match role(path) {
            Some(Role::Objects) => self.objects(shown, text, self.use_of(path)),
            Some(Role::List) => self.add(shown, list::images(text)),
            Some(Role::Runtime) if is_template => self.add(shown, runtime::images_by_line(text)),
            Some(Role::Runtime) => self.add(shown, runtime::images(text)),
            None => {}
        }
    }

    /// Looks at a text of YAML or JSON objects that is no file of the rootfs, such as a rendered chart. `shown` is its name
    /// in messages and in the lock.
    pub(crate) fn document(&mut self, shown: &str, text: &str) {
        self.objects(shown, text, Some(Use::Unknown));
    }

    /// What becomes of the objects of a rootfs file; none if they are not for an API server.
    fn use_of(&self, path: &str) -> Option<Use> {
        match path.strip_prefix(apps::FOLDER).and_then(|rest| rest.split_once('/')) {
            Some((app, _)) => {
                let kind = self.config.apps.get(app).map(|app| app.kind);
                Some(if kind == Some(AppKind::Manifests) {
                    Use::Applied
                } else {
                    Use::Unknown
                })
            }
            None => path.starts_with("manifests/").then_some(Use::Applied),
        }
    }

    fn objects(&mut self, shown: &str, text: &str, used: Option<Use>) {
        match yaml::parse(text) {
            Ok(documents) => {
                for document in &documents {
                    let found = document::images(document, &self.rules);
                    self.add(shown, found);
                    let suspects = document::suspects(document, &self.rules).into_iter();
                    self.suspects
                        .extend(suspects.map(|suspect| (shown.to_string(), suspect)));
                    used.into_iter().for_each(|used| self.served(shown, document, used));
                }
            }
            Err(error) => self.fault(shown, error.at.line, "", error.message),
        }
    }

    /// Objects that Kubernetes does not serve are faults where every apply needs them. That this distribution lacks a kind is a
    /// warning: its next version may have it.
    fn served(&mut self, shown: &str, document: &yaml::Node, used: Use) {
        for served::Finding { line, what, why } in served::findings(document) {
            let told = format!("{what}: {why}");
            match (used, why.is_by_kubernetes()) {
                (Use::Applied, true) => self.fault(shown, line, "", told),
                (Use::Unknown, false) => {}
                (Use::Applied, false) | (Use::Unknown, true) => {
                    let key = (shown.to_string(), what);
                    self.unserved.entry(key).or_insert(format!("{shown}:{line}: {told}"));
                }
            }
        }
    }

    fn add(&mut self, shown: &str, found: Vec<Found>) {
        for Found { line, what } in found {
            let text = match what {
                Ok(text) => text,
                Err(why) => {
                    self.fault(shown, line, "", why);
                    continue;
                }
            };
            if text.contains(template::UNKNOWN) {
                let why = "the image's name depends on a template value that the image's ENV does not set";
                self.fault(shown, line, &text, why.to_string());
                continue;
            }
            match text.parse::<Reference>() {
                Ok(reference) => {
                    let place = Place::new(shown, line);
                    self.named.entry(reference).or_default().insert(place);
                }
                Err(error) => self.fault(shown, line, &text, error.to_string()),
            }
        }
    }

    fn fault(&mut self, file: &str, line: u64, reference: &str, why: String) {
        self.faults.push(MissingImage {
            file: file.to_string(),
            line,
            reference: reference.to_string(),
            nearest: None,
            malformed: Some(why),
            pull: None,
        });
    }

    /// What is named and not carried, as the names to pull it by. Names that no registry can have are left out.
    pub(crate) fn wanted(&self, carried: &BTreeMap<Reference, Descriptor>) -> BTreeSet<Reference> {
        let missing = self
            .named
            .keys()
            .filter(|reference| resolve(reference, carried).is_none());
        missing.filter_map(pull_name).collect()
    }

    /// What looks like an image's name, is not said to be one, and is not carried: where, and how it is said. And what objects
    /// may not be served.
    pub(crate) fn warnings(&self, carried: &BTreeMap<Reference, Descriptor>) -> BTreeSet<String> {
        let suspects = self.suspects.iter();
        let absent = suspects.filter(|(_, suspect)| resolve(&suspect.reference, carried).is_none());
        let told = absent.map(|(file, suspect)| {
            let (line, place, name) = (suspect.line, &suspect.place, suspect.reference.familiar());
            format!(
                "{file}:{line}: {place} looks like the image {name}, which is not carried; if a program asks for it in the \
                 cluster, say so with the annotation {}",
                suspect.annotation
            )
        });
        told.chain(self.unserved.values().cloned()).collect()
    }

    /// Proves that all that is named is carried, and says what each name means. `failed` says why names of
    /// [`Survey::wanted`] could not be pulled; `origins` where images are asked for outside of any file of the rootfs.
    ///
    /// # Errors
    /// [`Error::NotClosed`] with everything that is not carried or can't be understood.
    pub(crate) fn prove(
        mut self,
        platform: &str,
        carried: &BTreeMap<Reference, Descriptor>,
        origins: &BTreeMap<Reference, BTreeSet<Place>>,
        failed: &BTreeMap<Reference, String>,
    ) -> Result<Lock, Error> {
        let mut images: BTreeMap<Reference, Locked> = BTreeMap::new();
        for (reference, manifest) in carried {
            let named = origins.get(reference).cloned().unwrap_or_default();
            images.insert(reference.clone(), Locked::new(manifest.digest.clone(), None, named));
        }
        for (reference, places) in std::mem::take(&mut self.named) {
            let Some((name, manifest)) = resolve(&reference, carried) else {
                self.faults.extend(missing(&reference, &places, carried, failed));
                continue;
            };
            let other = (*name != reference).then(|| name.clone());
            let locked = images
                .entry(reference)
                .or_insert_with(|| Locked::new(manifest.digest.clone(), other, BTreeSet::new()));
            locked.named.extend(places);
        }
        self.faults.sort();
        self.faults.dedup();
        match self.faults.is_empty() {
            true => Ok(Lock::new(platform, images, self.rules)),
            false => Err(Error::NotClosed(self.faults)),
        }
    }

    /// What a finished image names, where, what can't be understood or applied in it, and what may not be served.
    pub(crate) fn finish(self) -> (BTreeMap<Reference, BTreeSet<Place>>, Vec<MissingImage>, Vec<String>) {
        (self.named, self.faults, self.unserved.into_values().collect())
    }
}

/// One finding for each place that names an image which is not carried.
fn missing(
    reference: &Reference,
    places: &BTreeSet<Place>,
    carried: &BTreeMap<Reference, Descriptor>,
    failed: &BTreeMap<Reference, String>,
) -> Vec<MissingImage> {
    let texts: Vec<String> = carried.keys().map(ToString::to_string).collect();
    let full = reference.to_string();
    let similar = nearest(&full, texts.iter().map(String::as_str)).and_then(|text| text.parse().ok());
    let same_repository = || {
        carried
            .keys()
            .find(|name| name.repository() == reference.repository())
            .cloned()
    };
    let near = similar.or_else(same_repository);
    let pull = pull_name(reference).and_then(|name| failed.get(&name).cloned());
    let finding = |place: &Place| MissingImage {
        file: place.file.clone(),
        line: place.line,
        reference: reference.familiar(),
        nearest: near.clone(),
        malformed: None,
        pull: pull.clone(),
    };
    places.iter().map(finding).collect()
}

fn is_own_registry(reference: &Reference) -> bool {
    reference.domain() == format!("{DEFAULT_REGISTRY_DOMAIN}:{DEFAULT_REGISTRY_PORT}")
}

/// The name without the private registry's own domain, which may stand in front of any carried name.
fn without_own_registry(reference: &Reference) -> Option<Reference> {
    let full = reference.to_string();
    let rest = full.strip_prefix(reference.domain())?.strip_prefix('/')?;
    rest.parse().ok().filter(|_| is_own_registry(reference))
}

/// The carried image that a reference means.
fn resolve<'a>(
    reference: &Reference,
    carried: &'a BTreeMap<Reference, Descriptor>,
) -> Option<(&'a Reference, &'a Descriptor)> {
    let find = |meaning: &Reference| {
        carried
            .iter()
            .find(|(name, manifest)| means(meaning, name, &manifest.digest))
    };
    find(reference).or_else(|| without_own_registry(reference).as_ref().and_then(find))
}

/// Whether a reference means the image that is carried under `name`.
fn means(reference: &Reference, name: &Reference, digest: &Digest) -> bool {
    let same_repository = name.domain() == reference.domain() && name.path() == reference.path();
    same_repository
        && match reference.digest() {
            // A digest decides alone, as it does for the runtime.
            Some(wanted) => wanted == digest || name.digest() == Some(wanted),
            None => name.tag() == reference.tag(),
        }
}

/// The name by which a registry may have an image that is named like this.
fn pull_name(reference: &Reference) -> Option<Reference> {
    let name = match is_own_registry(reference) {
        true => without_own_registry(reference)?,
        false => reference.clone(),
    };
    // By definition no public name (RFC 9476 and ICANN's reservation); ours are built, never pulled.
    let is_internal = name.domain() == "internal" || name.domain().ends_with(".internal");
    (!is_internal).then_some(name)
}

#[cfg(test)]
mod tests;
