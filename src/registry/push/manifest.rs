//! What a pushed manifest is: read strictly, because everybody who pulls it relies on it. Pure.

use oci::{Descriptor, Digest, media_type};
use serde::Deserialize;

use crate::answer::{Code, Refusal};

/// The largest manifest that is taken, in bytes.
pub const LARGEST: u64 = 4 << 20;

/// A manifest or index that may be stored, if all it needs is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Media type, digest and size of the manifest itself.
    pub descriptor: Descriptor,
    /// Configuration and layers that must be there.
    pub blobs: Vec<Part>,
    /// Manifests that must be there.
    pub manifests: Vec<Part>,
    /// What it says it refers to.
    pub subject: Option<Digest>,
}

/// Content that a manifest needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes, as the manifest says.
    pub size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u64,
    media_type: Option<String>,
    config: Option<Pointer>,
    layers: Option<Vec<Pointer>>,
    manifests: Option<Vec<Pointer>>,
    subject: Option<Pointer>,
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pointer {
    media_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Vec<String>,
}

impl Pointer {
    /// Layers that must not be distributed lie elsewhere; their descriptor says where.
    fn is_elsewhere(&self) -> bool {
        let media_type = self.media_type.as_deref().unwrap_or_default();
        !self.urls.is_empty() && (media_type.contains(".nondistributable.") || media_type.contains(".foreign."))
    }

    fn part(self) -> Result<Part, Refusal> {
        let digest = self
            .digest
            .parse()
            .map_err(|error: oci::Error| invalid("a descriptor's digest is refused", &error.to_string()))?;
        Ok(Part {
            digest,
            size: self.size,
        })
    }
}

/// Reads a manifest that was pushed with a `Content-Type`.
///
/// # Errors
/// When it is not JSON, not of a type that this registry takes, or contradicts itself or its `Content-Type`.
pub fn check(content_type: Option<&str>, bytes: &[u8]) -> Result<Manifest, Refusal> {
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| invalid("the manifest cannot be read", &error.to_string()))?;
    if document.schema_version != 2 {
        let detail = format!("schemaVersion {}", document.schema_version);
        return Err(invalid("only manifests of schema version 2 are taken", &detail));
    }
    // Parameters such as charset say nothing about a manifest.
    let content_type = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let media_type = match (content_type.filter(|text| !text.is_empty()), &document.media_type) {
        (Some(header), Some(field)) if header != field => {
            let detail = format!("Content-Type {header}, mediaType {field}");
            return Err(invalid("the manifest is not of the type it was pushed as", &detail));
        }
        (Some(header), _) => header.to_owned(),
        (None, Some(field)) => field.clone(),
        (None, None) => {
            return Err(invalid(
                "neither Content-Type nor mediaType says what the manifest is",
                "",
            ));
        }
    };
    let mut descriptor = Descriptor::of(media_type, bytes);
    descriptor.artifact_type.clone_from(&document.artifact_type);
    let subject = document.subject.map(Pointer::part).transpose()?.map(|part| part.digest);
    let (blobs, manifests) = match descriptor.media_type.as_str() {
        media_type::MANIFEST | media_type::DOCKER_MANIFEST => {
            if document.manifests.is_some() {
                return Err(invalid("an image manifest lists no manifests", "manifests"));
            }
            let config = document
                .config
                .ok_or_else(|| invalid("an image manifest has a configuration", "config"))?;
            let blobs = std::iter::once(config).chain(document.layers.unwrap_or_default());
            (blobs.collect(), Vec::new())
        }
        media_type::INDEX | media_type::DOCKER_LIST => {
            if document.config.is_some() || document.layers.is_some() {
                return Err(invalid(
                    "an index has neither configuration nor layers",
                    "config, layers",
                ));
            }
            let manifests = document
                .manifests
                .ok_or_else(|| invalid("an index lists manifests", "manifests"))?;
            (Vec::new(), manifests)
        }
        other => return Err(invalid("manifests of this type are not taken", other)),
    };
    Ok(Manifest {
        descriptor,
        blobs: parts(blobs)?,
        manifests: parts(manifests)?,
        subject,
    })
}

fn parts(pointers: Vec<Pointer>) -> Result<Vec<Part>, Refusal> {
    pointers
        .into_iter()
        .filter(|pointer| !pointer.is_elsewhere())
        .map(Pointer::part)
        .collect()
}

fn invalid(message: &'static str, detail: &str) -> Refusal {
    Refusal::new(Code::ManifestInvalid, message, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn pointer(content: &str) -> Value {
        json!({"mediaType": "application/x", "digest": Digest::of(content.as_bytes()), "size": content.len()})
    }

    fn part(content: &str) -> Part {
        Part {
            digest: Digest::of(content.as_bytes()),
            size: content.len() as u64,
        }
    }

    fn image() -> Value {
        json!({"schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": pointer("{}"), "layers": [pointer("layer")]})
    }

    fn merged(mut base: Value, other: Value) -> Value {
        for (name, value) in other.as_object().unwrap() {
            base[name] = value.clone();
        }
        base
    }

    #[test]
    fn an_image_needs_its_configuration_and_layers() {
        let subject = merged(
            image(),
            json!({"subject": pointer("subject"), "artifactType": "a/b", "field": 1}),
        );
        let bytes = subject.to_string();
        let manifest = check(
            Some(&format!("{}; charset=utf-8", media_type::MANIFEST)),
            bytes.as_bytes(),
        )
        .unwrap();
        assert_eq!(manifest.blobs, [part("{}"), part("layer")]);
        assert_eq!(manifest.subject, Some(Digest::of(b"subject")));
        assert_eq!(manifest.descriptor.digest, Digest::of(bytes.as_bytes()));
        assert_eq!(manifest.descriptor.artifact_type.as_deref(), Some("a/b"));
        assert!(manifest.manifests.is_empty());
    }

    #[test]
    fn an_index_needs_its_manifests_and_may_be_empty() {
        for (listed, expected) in [(json!([]), vec![]), (json!([pointer("m")]), vec![part("m")])] {
            let index = json!({"schemaVersion": 2, "manifests": listed});
            let manifest = check(Some(media_type::INDEX), index.to_string().as_bytes()).unwrap();
            assert_eq!((manifest.manifests, manifest.blobs), (expected, vec![]));
        }
    }

    #[test]
    fn layers_that_must_not_be_distributed_need_not_be_here() {
        let elsewhere = json!({
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "digest": Digest::of(b"far"), "size": 3, "urls": ["https://example.invalid/far"],
        });
        let mut unnamed = elsewhere.clone();
        unnamed["urls"] = json!([]);
        let with = |layers| check(None, merged(image(), json!({"layers": layers})).to_string().as_bytes());
        assert_eq!(with(json!([elsewhere])).unwrap().blobs, [part("{}")]);
        assert_eq!(with(json!([unnamed])).unwrap().blobs, [part("{}"), part("far")]);
    }

    #[test]
    fn what_contradicts_itself_or_is_of_no_known_type_is_refused() {
        let without = |name: &str| {
            let mut image = image();
            image.as_object_mut().unwrap().remove(name);
            image
        };
        let oci = Some(media_type::MANIFEST);
        let sha512 = json!({"mediaType": "a/b", "digest": format!("sha512:{}", "0".repeat(128)), "size": 1});
        for (content_type, document) in [
            (oci, json!("text")),
            (oci, merged(image(), json!({"schemaVersion": 1}))),
            (oci, without("schemaVersion")),
            (oci, without("config")),
            (oci, merged(image(), json!({"manifests": []}))),
            (
                oci,
                merged(image(), json!({"config": {"digest": "sha256:1", "size": 1}})),
            ),
            (oci, merged(image(), json!({"layers": [sha512]}))),
            (oci, merged(image(), json!({"subject": {"digest": "x", "size": 1}}))),
            (
                oci,
                merged(image(), json!({"config": {"digest": Digest::of(b""), "size": -1}})),
            ),
            (Some(media_type::DOCKER_MANIFEST), image()),
            (None, without("mediaType")),
            (Some("application/json"), without("mediaType")),
            (Some(media_type::INDEX), without("mediaType")),
            (Some(media_type::INDEX), json!({"schemaVersion": 2})),
        ] {
            let refused = check(content_type, document.to_string().as_bytes()).unwrap_err();
            assert_eq!(refused.code(), Code::ManifestInvalid, "{content_type:?} {document}");
        }
    }

    proptest! {
        #[test]
        fn no_content_makes_the_check_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(Some(media_type::MANIFEST), &bytes);
        }
    }
}
