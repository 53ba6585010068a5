//! What differs between two cluster images, and how many bytes bring the second to where the first is.

use std::collections::{BTreeMap, BTreeSet};

use oci::{Digest, Platform, Reference};
use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use crate::manifest::{is_rootfs, platform_text};
use crate::store::Store;
use crate::view::{ClusterImage, FileEntry, FileKind};

/// What differs between two images.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The index digest of the old image.
    pub before: Digest,
    /// The index digest of the new image.
    pub after: Digest,
    /// Platforms that only one of them has.
    pub platforms: Vec<Change<String>>,
    /// What differs on those that both have; platforms without a difference are left out.
    pub content: Vec<PlatformDifference>,
    /// Blobs that the new image has and the old one lacks.
    pub send_blobs: usize,
    /// Their bytes: what is sent to where the old image is.
    pub send_bytes: u64,
}

/// What differs on one platform.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlatformDifference {
    /// `os/architecture`.
    pub platform: String,
    /// Files, folders and links of the rootfs, by path.
    pub files: Vec<Change<FileShape>>,
    /// Carried images, by reference.
    pub images: Vec<Change<Digest>>,
    /// What the images say about themselves, by field.
    pub config: Vec<Change<Value>>,
}

/// One thing that differs: there is no `before` for what is new, and no `after` for what is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change<T> {
    /// Which thing.
    pub name: String,
    /// In the old image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<T>,
    /// In the new image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<T>,
}

/// A file without its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileShape {
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub kind: FileKind,
}

impl Difference {
    /// Whether the images are one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.before == self.after
    }
}

/// Compares two images of the store.
///
/// # Errors
/// If one isn't there or can't be read.
pub fn diff(store: &Store, before: &str, after: &str) -> Result<Difference, Error> {
    let _in_use = store.hold()?;
    let (old, new) = (store.resolve(before)?, store.resolve(after)?);
    let (old_platforms, new_platforms) = (platforms(store, before)?, platforms(store, after)?);
    let mut content = Vec::new();
    for (text, platform) in &old_platforms {
        if new_platforms.contains_key(text) {
            let old = ClusterImage::open(store, old.digest.as_str(), platform)?;
            let new = ClusterImage::open(store, new.digest.as_str(), platform)?;
            let found = platform_difference(&old, &new)?;
            let empty = found.files.is_empty() && found.images.is_empty() && found.config.is_empty();
            content.extend((!empty).then_some(found));
        }
    }
    let names = |platforms: BTreeMap<String, Platform>| -> BTreeMap<String, String> {
        platforms.into_keys().map(|name| (name.clone(), name)).collect()
    };
    let has = store.sizes(&old)?;
    let send: Vec<u64> = store
        .sizes(&new)?
        .into_iter()
        .filter(|(digest, _)| !has.contains_key(digest))
        .map(|(_, size)| size)
        .collect();
    Ok(Difference {
        before: old.digest,
        after: new.digest,
        platforms: changes(&names(old_platforms), &names(new_platforms)),
        content,
        send_blobs: send.len(),
        send_bytes: send.iter().sum(),
    })
}

fn platforms(store: &Store, name: &str) -> Result<BTreeMap<String, Platform>, Error> {
    let index = store.read_index(&store.resolve(name)?)?;
    let rootfs = index.manifests.into_iter().filter(is_rootfs);
    let platforms = rootfs.filter_map(|entry| entry.platform);
    Ok(platforms.map(|platform| (platform_text(&platform), platform)).collect())
}

fn platform_difference(old: &ClusterImage, new: &ClusterImage) -> Result<PlatformDifference, Error> {
    let files = |image: &ClusterImage| -> Result<BTreeMap<String, FileShape>, Error> {
        let shape = |entry: FileEntry| {
            let (mode, kind) = (entry.mode, entry.kind);
            (entry.path, FileShape { mode, kind })
        };
        Ok(image.list("")?.into_iter().map(shape).collect())
    };
    let images = |image: &ClusterImage| -> BTreeMap<Reference, Digest> {
        let digest = |carried: &crate::view::Carried| (carried.reference.clone(), carried.manifest.digest.clone());
        image.carried.iter().map(digest).collect()
    };
    let config = |image: &ClusterImage| -> BTreeMap<String, Value> {
        let mut fields = BTreeMap::new();
        flatten(
            "",
            &serde_json::to_value(&image.config).unwrap_or_default(),
            &mut fields,
        );
        fields
    };
    Ok(PlatformDifference {
        platform: platform_text(&old.platform),
        files: changes(&files(old)?, &files(new)?),
        images: changes(&images(old), &images(new)),
        config: changes(&config(old), &config(new)),
    })
}

/// Objects by the paths of their fields; lists and plain values are leaves.
fn flatten(path: &str, value: &Value, fields: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{dot}{name}"), value, fields);
            }
        }
        Value::Null => {}
        Value::Array(list) if list.is_empty() => {}
        leaf => {
            fields.insert(path.to_string(), leaf.clone());
        }
    }
}

fn changes<K: Ord + ToString, T: Clone + PartialEq>(old: &BTreeMap<K, T>, new: &BTreeMap<K, T>) -> Vec<Change<T>> {
    let names: BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    let change = |name: &K| {
        let (before, after) = (old.get(name), new.get(name));
        (before != after).then(|| Change {
            name: name.to_string(),
            before: before.cloned(),
            after: after.cloned(),
        })
    };
    names.into_iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_went_and_changed_is_told_and_nothing_else() {
        let map = |text: &str| -> BTreeMap<String, char> {
            text.split_whitespace()
                .map(|pair| (pair[..1].to_string(), pair.chars().nth(1).unwrap()))
                .collect()
        };
        let found = changes(&map("a1 b1 c1"), &map("a1 b2 d1"));
        let found: Vec<_> = found.into_iter().map(|c| (c.name, c.before, c.after)).collect();
        let expected = [
            ("b".to_string(), Some('1'), Some('2')),
            ("c".to_string(), Some('1'), None),
            ("d".to_string(), None, Some('1')),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn configuration_is_compared_field_by_field() {
        let mut fields = BTreeMap::new();
        let value = serde_json::json!({"env": {"A": "1"}, "launch": ["x"], "cni": [], "kubeVersion": null});
        flatten("", &value, &mut fields);
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["env.A", "launch"]);
    }
}
