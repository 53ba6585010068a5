//! Image manifests and platforms (image-spec 1.1, `manifest.md`).

use std::collections::BTreeMap;

use oci::{BlobStore, Descriptor, Digest, Index, Platform, Reference, media_type};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Largest JSON document read, in bytes. Registries accept 4 MiB; no honest manifest comes near.
pub(crate) const MAX_JSON: u64 = 16 << 20;
/// A descriptor that claims more bytes is wrong; sums of honest sizes don't overflow.
const LARGEST_BLOB: u64 = 1 << 44;
/// Indexes may list indexes, but no honest ones so deeply.
pub(crate) const DEEPEST: usize = 4;
/// Annotation of a cluster image's index entries: what the manifest is for.
pub(crate) const CONTENT: &str = "installer.internal/content";
/// Annotation of a carried image whose reference is pinned to an index: that index, byte for byte.
pub(crate) const PINNED_INDEX: &str = "installer.internal/index";
/// Value of [`CONTENT`] for the manifest that holds the rootfs.
pub(crate) const ROOTFS: &str = "rootfs";
/// Artifact type of a cluster image's index.
pub(crate) const CLUSTER_IMAGE: &str = "application/vnd.installer.cluster-image.v1";

/// Media type of the configuration of artifacts that need none (image-spec 1.1, `manifest.md`).
pub(crate) const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// The content of such a configuration.
pub(crate) const EMPTY: &[u8] = b"{}";

/// An image or artifact manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    /// What an artifact is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Manifest {
    pub(crate) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        let media_type = Some(media_type::MANIFEST.to_string());
        Manifest {
            schema_version: 2,
            media_type,
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The type of an artifact: its own word, else its configuration's media type (distribution-spec, "Listing Referrers").
    pub(crate) fn artifact_type(&self) -> String {
        let own = self.artifact_type.clone();
        own.unwrap_or_else(|| self.config.media_type.clone())
    }
}

/// Value of [`CONTENT`] for a container image that an archive lists beside the cluster image which carries it.
pub(crate) const CARRIED: &str = "carried";

/// Whether an entry is listed only so that other tools find it; it is part of a cluster image anyway.
pub(crate) fn is_carried(descriptor: &Descriptor) -> bool {
    descriptor
        .annotations
        .get(CONTENT)
        .is_some_and(|content| content == CARRIED)
}

/// Carried images as an archive lists them: those with one content. Other tools could not choose among platforms.
pub(crate) fn listed_beside(index: &Index) -> Vec<Descriptor> {
    let mut by_name: BTreeMap<Reference, Vec<&Descriptor>> = BTreeMap::new();
    for entry in index.manifests.iter().filter(|entry| !is_rootfs(entry)) {
        if let Some(reference) = entry.reference() {
            by_name.entry(reference).or_default().push(entry);
        }
    }
    let single = by_name.into_values().filter_map(|entries| match entries.as_slice() {
        [entry] => Some((*entry).clone()),
        _ => None,
    });
    single
        .map(|mut entry| {
            entry.annotations.insert(CONTENT.to_string(), CARRIED.to_string());
            entry
        })
        .collect()
}

pub(crate) fn is_rootfs(descriptor: &Descriptor) -> bool {
    descriptor
        .annotations
        .get(CONTENT)
        .is_some_and(|content| content == ROOTFS)
}

/// `os/architecture[/variant]`.
pub(crate) fn platform_text(platform: &Platform) -> String {
    let variant = platform
        .variant
        .as_ref()
        .map(|variant| format!("/{variant}"))
        .unwrap_or_default();
    format!("{}/{}{variant}", platform.os, platform.architecture)
}

/// The platform this program runs on, in OCI's (Go's) names.
#[must_use]
pub fn host_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform {
        architecture: architecture.to_string(),
        os: "linux".to_string(),
        variant: None,
    }
}

/// Whether content for `offered` runs on `wanted`.
pub(crate) fn fits(offered: &Platform, wanted: &Platform) -> bool {
    let same_variant = wanted.variant.is_none() || offered.variant.is_none() || offered.variant == wanted.variant;
    offered.os == wanted.os && offered.architecture == wanted.architecture && same_variant
}

pub(crate) fn read_json<T: DeserializeOwned>(blobs: &BlobStore, descriptor: &Descriptor) -> Result<T, Error> {
    let bytes = blobs.read(&descriptor.digest, MAX_JSON)?;
    parse(descriptor, &bytes)
}

pub(crate) fn parse<T: DeserializeOwned>(descriptor: &Descriptor, bytes: &[u8]) -> Result<T, Error> {
    let path = descriptor.digest.to_string();
    Ok(serde_json::from_slice(bytes).map_err(|source| oci::Error::Json { path, source })?)
}

/// The manifest of an index that a runtime takes for a platform: of several variants the plainest.
///
/// # Errors
/// If there is none, with what there is instead.
pub(crate) fn choose(index: &Index, platform: &Platform) -> Result<Descriptor, String> {
    let fitting = index.manifests.iter().filter_map(|entry| {
        let offered = entry.platform.as_ref().filter(|offered| fits(offered, platform))?;
        Some((offered.variant.is_some(), offered.variant.clone(), entry))
    });
    let best = fitting.min_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
    match best {
        Some((_, _, entry)) if entry.is_index() => Err("its index lists an index, which is not supported".to_string()),
        // Taken for a plain blob, it would be carried without its layers.
        Some((_, _, entry)) if !is_document(entry) => {
            let (digest, kind) = (&entry.digest, &entry.media_type);
            Err(format!(
                "its index lists {digest} as {kind:?}, which is no type of image manifests"
            ))
        }
        Some((_, _, entry)) => Ok(Descriptor {
            annotations: BTreeMap::new(),
            ..entry.clone()
        }),
        None => {
            let platforms = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
            let available: Vec<String> = platforms.map(platform_text).collect();
            let (wanted, available) = (platform_text(platform), available.join(", "));
            Err(format!("it has no content for {wanted}, it has {available}"))
        }
    }
}

/// Compares what an index says of a manifest with the manifest that came. Everybody who reads the image later goes by what the
/// index says.
///
/// # Errors
/// What differs, and what to do.
pub(crate) fn check_described(said: &Descriptor, found: &Descriptor) -> Result<(), String> {
    let (digest, remedy) = (
        &said.digest,
        "the image was published wrongly: push it again, or take another one",
    );
    if said.is_index() != found.is_index() {
        let (said, found) = (&said.media_type, &found.media_type);
        return Err(format!(
            "its index lists {digest} as {said}, but it is {found}; {remedy}"
        ));
    }
    match said.size == found.size {
        true => Ok(()),
        false => {
            let (said, found) = (said.size, found.size);
            Err(format!(
                "its index says that {digest} has {said} bytes, but it has {found}; {remedy}"
            ))
        }
    }
}

/// Remembers the index through which a manifest was found, because a reference is pinned to its digest. The index itself
/// would claim manifests of other platforms, which nobody carries.
///
/// # Errors
/// When the index is no text.
pub(crate) fn pin(entry: &mut Descriptor, index: Vec<u8>) -> Result<(), String> {
    let text = String::from_utf8(index).map_err(|_| "its index is not UTF-8".to_string())?;
    entry.annotations.insert(PINNED_INDEX.to_string(), text);
    Ok(())
}

/// The index that [`pin`] remembered.
pub(crate) fn pinned(entry: &Descriptor) -> Option<&[u8]> {
    entry.annotations.get(PINNED_INDEX).map(String::as_bytes)
}

/// Whether a carried image is what a reference with this digest means.
pub(crate) fn has_digest(entry: &Descriptor, wanted: &Digest) -> bool {
    entry.digest == *wanted || pinned(entry).is_some_and(|index| Digest::of(index) == *wanted)
}

/// Checks that an image whose configuration this is runs on a platform. One that says nothing runs everywhere.
///
/// # Errors
/// What it is for instead.
pub(crate) fn check_platform(config: &[u8], platform: &Platform) -> Result<(), String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Says {
        architecture: String,
        os: String,
        variant: Option<String>,
    }
    let says: Says =
        serde_json::from_slice(config).map_err(|error| format!("its configuration is malformed: {error}"))?;
    let offered = Platform {
        architecture: says.architecture,
        os: says.os,
        variant: says.variant,
    };
    let silent = offered.architecture.is_empty() && offered.os.is_empty();
    match silent || fits(&offered, platform) {
        true => Ok(()),
        false => {
            let (offered, wanted) = (platform_text(&offered), platform_text(platform));
            Err(format!("it is an image for {offered}, not for {wanted}"))
        }
    }
}

/// Whether the content names other blobs.
pub(crate) fn is_document(descriptor: &Descriptor) -> bool {
    let kind = descriptor.media_type.as_str();
    descriptor.is_index() || matches!(kind, media_type::MANIFEST | media_type::DOCKER_MANIFEST)
}

/// What a document names, in its order; nothing for any other content.
pub(crate) fn children(descriptor: &Descriptor, bytes: &[u8]) -> Result<Vec<Descriptor>, Error> {
    if !is_document(descriptor) {
        return Ok(Vec::new());
    }
    if bytes.len() as u64 != descriptor.size {
        let what = format!(
            "it has {} instead of {}",
            oci::counted(bytes.len(), "byte"),
            descriptor.size
        );
        let digest = descriptor.digest.clone();
        return Err(oci::Error::Corrupt { digest, what }.into());
    }
    let below = if descriptor.is_index() {
        parse::<Index>(descriptor, bytes)?.manifests
    } else {
        let manifest: Manifest = parse(descriptor, bytes)?;
        std::iter::once(manifest.config).chain(manifest.layers).collect()
    };
    if let Some(child) = below.iter().find(|child| child.size > LARGEST_BLOB) {
        let (at, digest, size) = (&descriptor.digest, &child.digest, child.size);
        return Err(Error::Refused(format!(
            "{at}: it claims {} for {digest}",
            oci::counted(size, "byte")
        )));
    }
    Ok(below)
}

/// Every blob that `descriptor` needs, itself first; a digest may come more than once. `read` gives documents.
pub(crate) fn reachable(
    descriptor: &Descriptor,
    read: &impl Fn(&Descriptor) -> Result<Vec<u8>, Error>,
) -> Result<Vec<Descriptor>, Error> {
    let mut found = Vec::new();
    let mut waiting = vec![(descriptor.clone(), 0)];
    while let Some((descriptor, depth)) = waiting.pop() {
        if is_document(&descriptor) {
            if depth > DEEPEST {
                let why = format!(
                    "{}: indexes that list indexes more than {DEEPEST} deep",
                    descriptor.digest
                );
                return Err(Error::Refused(why));
            }
            let below = children(&descriptor, &read(&descriptor)?)?;
            waiting.extend(below.into_iter().rev().map(|child| (child, depth + 1)));
        }
        found.push(descriptor);
    }
    Ok(found)
}

/// The first name that stands for two different contents, with what it is for and both digests.
pub(crate) fn ambiguous(entries: &[Descriptor]) -> Option<String> {
    let mut seen: BTreeMap<(Reference, Option<String>), &Digest> = BTreeMap::new();
    for entry in entries {
        let Some(reference) = entry.reference() else { continue };
        let platform = entry.platform.as_ref().map(platform_text);
        let shown = platform
            .as_ref()
            .map(|platform| format!(" for {platform}"))
            .unwrap_or_default();
        let text = format!("{reference}{shown}");
        match seen.insert((reference, platform), &entry.digest) {
            Some(other) if *other != entry.digest => {
                return Some(format!("{text} is both {other} and {}", entry.digest));
            }
            _ => {}
        }
    }
    None
}

/// Checks that an index is that of a cluster image: it has a rootfs, and no name stands for two contents.
pub(crate) fn check_cluster_index(index: &Index) -> Result<(), String> {
    if !index.manifests.iter().any(is_rootfs) {
        return Err("it is a container image, not a cluster image (it has no rootfs)".to_string());
    }
    match ambiguous(&index.manifests) {
        Some(what) => Err(format!("two images have one name: {what}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, content: &str, architecture: Option<&str>) -> Descriptor {
        let mut entry = Descriptor::of(media_type::MANIFEST, content.as_bytes());
        entry.annotations.insert(oci::REF_NAME.into(), name.into());
        entry.platform = architecture.map(|architecture| Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: None,
        });
        entry
    }

    #[test]
    fn one_name_may_stand_for_one_content_per_platform() {
        let (amd, arm) = (Some("amd64"), Some("arm64"));
        for (entries, bad) in [
            (vec![entry("a:1", "x", amd), entry("a:1", "y", arm)], false),
            (vec![entry("a:1", "x", amd), entry("a:1", "x", amd)], false),
            (
                vec![entry("a:1", "x", amd), entry("docker.io/library/a:1", "y", amd)],
                true,
            ),
            (vec![entry("a:1", "x", None), entry("a:1", "y", None)], true),
        ] {
            assert_eq!(ambiguous(&entries).is_some(), bad, "{entries:?}");
        }
    }

    #[test]
    fn the_plainest_variant_is_chosen_and_an_index_is_remembered() {
        let platform = |variant: Option<&str>| {
            let mut entry = entry("a:1", variant.unwrap_or_default(), Some("arm64"));
            if let Some(platform) = entry.platform.as_mut() {
                platform.variant = variant.map(str::to_string);
            }
            entry
        };
        let index = |manifests: Vec<Descriptor>| Index {
            manifests,
            ..Index::default()
        };
        let wanted = Platform {
            architecture: "arm64".into(),
            os: "linux".into(),
            variant: None,
        };
        let list = index(vec![
            platform(Some("v9")),
            platform(Some("v8")),
            entry("a:1", "x", Some("amd64")),
        ]);
        let mut chosen = choose(&list, &wanted).unwrap();
        assert_eq!(chosen.digest, Digest::of(b"v8"));
        let list = index(vec![platform(Some("v8")), platform(None)]);
        assert_eq!(choose(&list, &wanted).unwrap().digest, Digest::of(b""));
        let error = choose(&index(vec![entry("a:1", "x", Some("amd64"))]), &wanted).unwrap_err();
        assert_eq!(error, "it has no content for linux/arm64, it has linux/amd64");
        pin(&mut chosen, b"the index".to_vec()).unwrap();
        assert!(has_digest(&chosen, &Digest::of(b"the index")) && has_digest(&chosen, &Digest::of(b"v8")));
        assert!(!has_digest(&chosen, &Digest::of(b"other")));
    }

    #[test]
    fn an_image_for_another_platform_is_refused() {
        let platform = host_platform();
        for (config, good) in [
            (
                format!(r#"{{"architecture": "{}", "os": "linux"}}"#, platform.architecture),
                true,
            ),
            (r#"{"architecture": "s390x", "os": "linux"}"#.to_string(), false),
            ("{}".to_string(), true),
            ("[".to_string(), false),
        ] {
            assert_eq!(check_platform(config.as_bytes(), &platform).is_ok(), good, "{config}");
        }
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused_and_wrong_sizes_are_named() {
        let mut inner = Descriptor::of(media_type::LAYER_TAR, b"x");
        let mut documents = BTreeMap::new();
        for _ in 0..6 {
            let index = Index {
                manifests: vec![inner],
                ..Index::default()
            };
            let bytes = serde_json::to_vec(&index).unwrap();
            inner = Descriptor::of(media_type::INDEX, &bytes);
            documents.insert(inner.digest.clone(), bytes);
        }
        let read = |descriptor: &Descriptor| Ok::<_, Error>(documents[&descriptor.digest].clone());
        let error = reachable(&inner, &read).unwrap_err().to_string();
        assert!(error.contains("more than 4 deep"), "{error}");
        inner.size += 1;
        let error = reachable(&inner, &read).unwrap_err().to_string();
        assert!(error.contains("instead of"), "{error}");
    }
}
