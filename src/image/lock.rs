//! The lock: what every image name in a cluster image means, and where it was named.
//!
//! It is written once, by the build, as JSON into the label `installer.internal/lock` of each platform's rootfs
//! configuration, so it is covered by the image's digest and any OCI tool shows it (`skopeo inspect --config`). It holds
//! nothing that depends on when or where the image was built.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use oci::{Digest, Reference};
use serde::{Deserialize, Serialize};

use crate::closure::Rules;

/// The version of the format.
const VERSION: u32 = 1;

/// What the image names of one platform's rootfs mean. Fields are in the order of their names, as tools write them that
/// know nothing of this type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lock {
    /// By full reference: the carried images, and every other name that files have for them.
    pub images: BTreeMap<Reference, Locked>,
    /// The platform, as `os/architecture`.
    pub platform: String,
    /// The rules of `image-paths.yaml`, for whoever looks again.
    #[serde(default, skip_serializing_if = "Rules::is_empty")]
    pub(crate) rules: Rules,
    version: u32,
}

/// What one reference means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Locked {
    /// The name under which the image is carried, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried_as: Option<Reference>,
    /// The manifest for the platform, also where the reference is pinned to an index.
    pub digest: Digest,
    /// Where it was named.
    pub named: BTreeSet<Place>,
}

impl Locked {
    pub(crate) fn new(digest: Digest, carried_as: Option<Reference>, named: BTreeSet<Place>) -> Locked {
        Locked {
            digest,
            carried_as,
            named,
        }
    }
}

/// A line of a file, written `FILE:LINE`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place {
    /// The file, as seen from the build context or else from the rootfs.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
}

impl Place {
    /// A place.
    #[must_use]
    pub fn new(file: &str, line: u64) -> Place {
        Place {
            file: file.to_string(),
            line,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Place> for String {
    fn from(place: Place) -> String {
        place.to_string()
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Place, String> {
        let (file, line) = text.rsplit_once(':').ok_or("a place is written FILE:LINE")?;
        let line = line.parse().map_err(|_| format!("{line:?} is no line's number"))?;
        Ok(Place::new(file, line))
    }
}

impl Lock {
    pub(crate) fn new(platform: &str, images: BTreeMap<Reference, Locked>, rules: Rules) -> Lock {
        Lock {
            version: VERSION,
            platform: platform.to_string(),
            images,
            rules,
        }
    }

    /// Compares the lock with what is carried (reference and digest of the manifest): every contradiction, in words. Cheap:
    /// no blob is read.
    #[must_use]
    pub fn check(&self, carried: &BTreeMap<Reference, Digest>) -> Vec<String> {
        if self.version != VERSION {
            let (version, platform) = (self.version, &self.platform);
            return vec![format!(
                "the lock for {platform} has the unknown version {version}: use a newer installer"
            )];
        }
        let mut problems = Vec::new();
        for (reference, locked) in &self.images {
            let name = locked.carried_as.as_ref().unwrap_or(reference);
            let places: Vec<String> = locked.named.iter().map(ToString::to_string).collect();
            let places = places.join(", ");
            match carried.get(name) {
                Some(digest) if *digest == locked.digest => {}
                Some(digest) => problems.push(format!(
                    "{name} is carried as {digest}, the lock says {} (named in {places})",
                    locked.digest
                )),
                None => problems.push(format!("{name} is not carried (named in {places})")),
            }
        }
        for name in carried.keys().filter(|name| !self.images.contains_key(name)) {
            problems.push(format!("{name} is carried, but the lock does not know it"));
        }
        problems
    }
}

/// The same for an image that may have no lock: then nothing is proved, which is a contradiction too.
#[must_use]
pub(crate) fn check(lock: Option<&Lock>, platform: &str, carried: &BTreeMap<Reference, Digest>) -> Vec<String> {
    match lock {
        Some(lock) if lock.platform != platform => {
            vec![format!("the lock of {platform} is that of {}", lock.platform)]
        }
        Some(lock) => lock.check(carried),
        None => vec![format!(
            "it has no lock of its images for {platform}: build it again with this version of installer"
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> (Lock, BTreeMap<Reference, Digest>) {
        let digest = Digest::of(b"m");
        let (name, other): (Reference, Reference) =
            ("a.b/c:1".parse().unwrap(), "sea.hub:5000/a.b/c:1".parse().unwrap());
        let place = Place::new("manifests/a:b.yaml", 7);
        let images = BTreeMap::from([
            (name.clone(), Locked::new(digest.clone(), None, BTreeSet::new())),
            (
                other,
                Locked::new(digest.clone(), Some(name.clone()), BTreeSet::from([place])),
            ),
        ]);
        let lock = Lock::new("linux/amd64", images, Rules::default());
        (lock, BTreeMap::from([(name, digest)]))
    }

    #[test]
    fn the_lock_reads_back_as_it_was_written() {
        let (lock, _) = lock();
        let text = serde_json::to_string(&lock).unwrap();
        assert!(text.contains(r#""named":["manifests/a:b.yaml:7"]"#), "{text}");
        let sorted: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(sorted.to_string(), text, "names are in order");
        assert_eq!(serde_json::from_str::<Lock>(&text).unwrap(), lock);
    }

    #[test]
    fn every_contradiction_is_found() {
        let (lock, carried) = lock();
        assert_eq!(super::check(Some(&lock), "linux/amd64", &carried), Vec::<String>::new());
        assert_eq!(super::check(None, "linux/amd64", &carried).len(), 1);
        assert_eq!(super::check(Some(&lock), "linux/arm64", &carried).len(), 1);
        let missing = lock.check(&BTreeMap::new());
        assert!(
            missing[1].contains("a.b/c:1 is not carried (named in manifests/a:b.yaml:7)"),
            "{missing:?}"
        );
        let mut changed = carried.clone();
        changed.insert("a.b/c:1".parse().unwrap(), Digest::of(b"other"));
        changed.insert("x/y:1".parse().unwrap(), Digest::of(b"z"));
        let problems = lock.check(&changed);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[2].contains("docker.io/x/y:1 is carried, but"), "{problems:?}");
        let newer = Lock { version: 2, ..lock };
        assert!(newer.check(&carried)[0].contains("newer installer"));
    }
}
