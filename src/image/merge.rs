//! Several cluster images become one: files, carried images and configuration of all of them.
//!
//! Files are merged three-way over the layers that all images begin with, so an image built `FROM` another one may change
//! or remove what it inherited. Whatever two images say differently is a conflict, named, and decided only by
//! [`Prefer`]. Layers are shared with the merged images; one more is made only where laying them over each other would
//! not give the merged tree.

mod decide;
mod labels;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;

use oci::{Descriptor, Digest, Index, Platform, Reference, media_type};
use serde::Serialize;

use crate::config::{History, ImageConfig};
use crate::error::Error;
use crate::extract::files_of_layer;
use crate::io;
use crate::layer::{Layer, layer_changes, store_layer};
use crate::manifest::{CLUSTER_IMAGE, Manifest, is_rootfs, platform_text};
use crate::progress::Progress;
use crate::store::Store;
use crate::tree::{Change, Changes, Entry, Kind, Source, Tree};
use decide::{Decider, shown_entry};

/// Who wins where images contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefer {
    /// The image named first.
    First,
    /// The image named last.
    Last,
}

/// What to merge.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// Names or digests of the images, at least two.
    pub images: Vec<String>,
    /// The new image's name.
    pub tag: Reference,
    /// Who wins; none refuses images that contradict each other.
    pub prefer: Option<Prefer>,
    /// Only these platforms; none means all, which must be the same in every image.
    pub platforms: Vec<Platform>,
}

/// What came out of a merge.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Merged {
    /// The new image's name.
    pub reference: Reference,
    /// Its index digest.
    pub digest: Digest,
    /// `os/architecture` of each rootfs.
    pub platforms: Vec<String>,
    /// How many container images it carries.
    pub carried: usize,
    /// Bytes of all its blobs, each counted once.
    pub size: u64,
    /// Contradictions that were decided.
    pub decided: Vec<Conflict>,
}

/// Something that images say differently.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// What kind of thing: `file`, `image`, `env`, `label`, …
    pub what: String,
    /// Which one: a path, a reference, a name.
    pub name: String,
    /// For which platform.
    pub platform: String,
    /// Who says what: an image's name, and what it has there.
    pub choices: Vec<(String, String)>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({}): ", self.what, self.name, self.platform)?;
        for (index, (image, choice)) in self.choices.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(f, "{separator}{image} has {choice}")?;
        }
        Ok(())
    }
}

/// Merges images of the store into one, and names it.
///
/// # Errors
/// [`Error::Conflicts`] with everything that contradicts, unless the options decide; or if an image isn't there, is
/// damaged, or lacks a platform.
pub fn merge(store: &Store, options: &MergeOptions, progress: &dyn Progress) -> Result<Merged, Error> {
    let _in_use = store.hold()?;
    if options.images.len() < 2 {
        return Err(Error::Refused("a merge needs at least two images".to_string()));
    }
    let mut images = Vec::new();
    for name in &options.images {
        let index = store.read_index(&store.resolve(name)?)?;
        images.push((name.as_str(), index));
    }
    let platforms = platforms(&images, &options.platforms)?;
    let mut decider = Decider::new(&options.images, options.prefer);
    let mut sides = Vec::new();
    for platform in &platforms {
        let all = images
            .iter()
            .map(|(name, index)| Side::read(store, name, index, platform));
        let all = all.collect::<Result<Vec<Side>, Error>>()?;
        decider.platform = platform_text(platform);
        let plan = MergedRootfs::new(store, &all, &mut decider)?;
        sides.push((platform, all, plan));
    }
    let carried = carried(&images, &platforms, &mut decider);
    let decided = decider.finish()?;
    // Nothing is written before every contradiction is decided.
    let mut index = Index {
        artifact_type: Some(CLUSTER_IMAGE.to_string()),
        ..Index::default()
    };
    for (platform, all, plan) in &sides {
        index.manifests.push(plan.write(store, platform, all, progress)?);
    }
    index.manifests.extend(carried);
    let names: BTreeSet<Reference> = index.manifests.iter().filter_map(Descriptor::reference).collect();
    let descriptor = store.put_json(media_type::INDEX, &index)?;
    store.tag(&options.tag, &descriptor)?;
    Ok(Merged {
        reference: options.tag.clone(),
        platforms: platforms.iter().map(platform_text).collect(),
        carried: names.len(),
        size: store.sizes(&descriptor)?.values().sum(),
        digest: descriptor.digest,
        decided,
    })
}

/// The platforms of the merged image.
fn platforms(images: &[(&str, Index)], wanted: &[Platform]) -> Result<Vec<Platform>, Error> {
    let of = |index: &Index| -> BTreeMap<String, Platform> {
        let rootfs = index.manifests.iter().filter(|entry| is_rootfs(entry));
        let platforms = rootfs.filter_map(|entry| entry.platform.clone());
        platforms.map(|platform| (platform_text(&platform), platform)).collect()
    };
    let all: BTreeMap<String, Platform> = match wanted.is_empty() {
        true => images.iter().flat_map(|(_, index)| of(index)).collect(),
        false => wanted
            .iter()
            .map(|platform| (platform_text(platform), platform.clone()))
            .collect(),
    };
    for (name, index) in images {
        let offered = of(index);
        if let Some(missing) = all.keys().find(|platform| !offered.contains_key(*platform)) {
            let available: Vec<String> = offered.into_keys().collect();
            return Err(Error::NoPlatform {
                reference: (*name).to_string(),
                platform: missing.clone(),
                available: available.join(", "),
            });
        }
    }
    Ok(all.into_values().collect())
}

/// One platform of one of the images.
struct Side {
    rootfs: Descriptor,
    layers: Vec<Descriptor>,
    config: ImageConfig,
    /// The tree after each layer, as far as it was asked for, is made anew: trees are small, layers are not.
    tree: Tree,
}

impl Side {
    fn read(store: &Store, name: &str, index: &Index, platform: &Platform) -> Result<Side, Error> {
        let text = platform_text(platform);
        let ours = |entry: &&Descriptor| entry.platform.as_ref().map(platform_text).as_ref() == Some(&text);
        let rootfs = index.manifests.iter().filter(|entry| is_rootfs(entry)).find(ours);
        let rootfs = rootfs.ok_or_else(|| Error::Refused(format!("image {name} has no rootfs for {text}")))?;
        let manifest: Manifest = store.read_json(rootfs)?;
        let config: ImageConfig = store.read_json(&manifest.config)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            let why = "its configuration does not describe its layers";
            return Err(Error::Refused(format!("image {name} ({text}): {why}")));
        }
        Ok(Side {
            rootfs: rootfs.clone(),
            tree: tree_of(store, &manifest.layers)?,
            layers: manifest.layers,
            config,
        })
    }
}

fn tree_of(store: &Store, layers: &[Descriptor]) -> Result<Tree, Error> {
    let mut tree = Tree::default();
    for layer in layers {
        tree.apply(&layer_changes(store, layer)?);
    }
    Ok(tree)
}

/// A merged rootfs, decided but not yet written.
struct MergedRootfs {
    layers: Vec<Descriptor>,
    config: ImageConfig,
    /// What laying the layers over each other doesn't give.
    missing: Changes,
}

impl MergedRootfs {
    fn new(store: &Store, sides: &[Side], decider: &mut Decider<'_>) -> Result<MergedRootfs, Error> {
        let shared = shared_layers(sides);
        let base = tree_of(store, &sides[0].layers[..shared])?;
        let trees: Vec<&Tree> = sides.iter().map(|side| &side.tree).collect();
        let merged = merge_trees(&base, &trees, decider);
        let mut config = sides[0].config.clone();
        let mut layers = sides[0].layers.clone();
        for (number, side) in sides.iter().enumerate().skip(1) {
            let name = decider.names[number].clone();
            append_side(&mut config, &mut layers, side, shared, &name);
        }
        let laid = tree_of(store, &layers)?;
        let configs: Vec<&ImageConfig> = sides.iter().map(|side| &side.config).collect();
        labels::merge(&mut config, &configs, decider);
        Ok(MergedRootfs {
            missing: laid.difference(&merged),
            layers,
            config,
        })
    }

    fn write(
        &self,
        store: &Store,
        platform: &Platform,
        sides: &[Side],
        progress: &dyn Progress,
    ) -> Result<Descriptor, Error> {
        let (mut config, mut layers) = (self.config.clone(), self.layers.clone());
        if !self.missing.0.is_empty() {
            let layer = restore(store, &self.missing, sides, progress)?;
            config.record("merge".to_string(), Some(layer.diff_id));
            layers.push(layer.descriptor);
        }
        let config = store.put_json(media_type::CONFIG, &config)?;
        let mut rootfs = store.put_json(media_type::MANIFEST, &Manifest::new(config, layers))?;
        rootfs.platform = Some(platform.clone());
        rootfs.annotations = sides[0].rootfs.annotations.clone();
        Ok(rootfs)
    }
}

/// How many layers all sides begin with.
fn shared_layers(sides: &[Side]) -> usize {
    let first = &sides[0].layers;
    let same = |index: &usize| {
        let digest = &first[*index].digest;
        sides
            .iter()
            .all(|side| side.layers.get(*index).is_some_and(|layer| layer.digest == *digest))
    };
    (0..first.len()).take_while(same).count()
}

/// Adds a side's own layers and their history. Layers that are there already are not added again.
fn append_side(config: &mut ImageConfig, layers: &mut Vec<Descriptor>, side: &Side, shared: usize, name: &str) {
    let mut own = Vec::new();
    for (layer, diff_id) in side.layers.iter().zip(&side.config.rootfs.diff_ids).skip(shared) {
        let known = layers.iter().any(|there| there.digest == layer.digest);
        if !known {
            layers.push(layer.clone());
            config.rootfs.diff_ids.push(diff_id.clone());
        }
        own.push(!known);
    }
    let history = &side.config.history;
    let described = history.iter().filter(|step| !step.empty_layer).count() == side.layers.len();
    let mut number = 0;
    for step in history.iter().filter(|_| described) {
        let index = number;
        number += usize::from(!step.empty_layer);
        // What the shared layers and those left out were made by is told already.
        let added = step.empty_layer || own.get(index.wrapping_sub(shared)) == Some(&true);
        if number > shared && added {
            config.history.push(step.clone());
        }
    }
    if !described {
        let created_by = format!("merge {name}");
        config
            .history
            .extend(own.iter().filter(|added| **added).map(|_| History {
                created: None,
                created_by: created_by.clone(),
                empty_layer: false,
            }));
    }
}

/// The tree that has what every side changed of `base`.
fn merge_trees(base: &Tree, sides: &[&Tree], decider: &mut Decider<'_>) -> Tree {
    let maps: Vec<&BTreeMap<String, Entry>> = sides.iter().map(|tree| &tree.0).collect();
    let merged = decider.merge("file", &base.0, &maps, Entry::same_as, shown_entry);
    // A file that won over a folder leaves no room for what lay in that folder.
    let mut tree = Tree::default();
    for (path, entry) in merged {
        let parent = crate::tree::parent_of(&path);
        let is_dir = |parent: &str| matches!(tree.0.get(parent), Some(Entry { kind: Kind::Dir, .. }));
        if parent.is_none_or(is_dir) {
            tree.0.insert(path, entry);
        }
    }
    tree
}

/// Makes a layer of content that lies in other layers.
fn restore(store: &Store, missing: &Changes, sides: &[Side], progress: &dyn Progress) -> Result<Layer, Error> {
    let folder = store.work_folder()?;
    let mut changes = missing.clone();
    let mut wanted: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
    for (path, change) in &missing.0 {
        if let Change::Put(Entry {
            kind: Kind::File { source, .. },
            ..
        }) = change
            && let Source::Layer(layer) = source
        {
            wanted.entry(layer.clone()).or_default().insert(path.clone());
        }
    }
    let mut number = 0;
    for (digest, paths) in &wanted {
        let layers = sides.iter().flat_map(|side| &side.layers);
        let layer = layers.into_iter().find(|layer| layer.digest == *digest);
        let layer = layer.ok_or_else(|| oci::Error::Missing(digest.clone()))?;
        files_of_layer(store.blobs(), layer, paths, |path, reader| {
            number += 1;
            let target = folder.path().join(number.to_string());
            let cannot = |error| Error::io("cannot write", &target)(error);
            let mut file = File::create(&target).map_err(cannot)?;
            io::copy(reader, &mut file).map_err(cannot)?;
            if let Some(Change::Put(Entry {
                kind: Kind::File { source, .. },
                ..
            })) = changes.0.get_mut(path)
            {
                *source = Source::Disk {
                    path: target,
                    stamp: None,
                };
            }
            Ok(())
        })?;
    }
    store_layer(store, &changes, progress)
}

/// The carried images of all, sorted.
fn carried(images: &[(&str, Index)], platforms: &[Platform], decider: &mut Decider<'_>) -> Vec<Descriptor> {
    let wanted: BTreeSet<String> = platforms.iter().map(platform_text).collect();
    let mut others: Vec<Descriptor> = Vec::new();
    let mut maps: Vec<BTreeMap<(String, String), Descriptor>> = Vec::new();
    for (_, index) in images {
        let mut map = BTreeMap::new();
        for entry in index.manifests.iter().filter(|entry| !is_rootfs(entry)) {
            let platform = entry.platform.as_ref().map(platform_text);
            if platform.as_ref().is_some_and(|platform| !wanted.contains(platform)) {
                continue;
            }
            match entry.reference() {
                Some(reference) => {
                    let key = (reference.to_string(), platform.unwrap_or_default());
                    map.insert(key, entry.clone());
                }
                None if others.iter().any(|other| other == entry) => {}
                None => others.push(entry.clone()),
            }
        }
        maps.push(map);
    }
    let mut merged = Vec::new();
    let keys: BTreeSet<(String, String)> = maps.iter().flat_map(|map| map.keys().cloned()).collect();
    for key in keys {
        decider.platform = match key.1.as_str() {
            "" => "any platform".to_string(),
            platform => platform.to_string(),
        };
        let choices: Vec<BTreeMap<String, Descriptor>> = maps
            .iter()
            .map(|map| {
                map.get(&key)
                    .map(|entry| (key.0.clone(), entry.clone()))
                    .into_iter()
                    .collect()
            })
            .collect();
        let choices: Vec<&BTreeMap<String, Descriptor>> = choices.iter().collect();
        let same = |a: &Descriptor, b: &Descriptor| a.digest == b.digest;
        let shown = |entry: &Descriptor| entry.digest.to_string();
        merged.extend(
            decider
                .merge("image", &BTreeMap::new(), &choices, same, shown)
                .into_values(),
        );
    }
    merged.extend(others);
    merged
}
