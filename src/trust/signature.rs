//! Signatures in the store: one artifact for each key and name, with two documents, the payload and its signature.

use std::collections::BTreeMap;

use image::{Artifact, Document, Store};
use oci::{Descriptor, Digest, Reference};

use crate::key::{PrivateKey, PublicKey};
use crate::payload::Payload;
use crate::verdict::{self, Good};
use crate::{Error, SIGNATURE};

/// Media type of the payload.
pub(crate) const PAYLOAD: &str = "application/vnd.installer.signature.payload.v1+json";
/// Media type of the signature's 64 bytes (RFC 8032).
pub(crate) const ED25519_SIGNATURE: &str = "application/vnd.installer.signature.ed25519.v1";
/// Annotation of the artifact: which key signed, so that it need not be tried with all others. It proves nothing.
pub(crate) const KEY_ID: &str = "installer.internal/key-id";

/// What signing did.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The artifact.
    pub artifact: Digest,
    /// The key.
    pub key: Digest,
    /// What was signed.
    pub payload: Payload,
    /// Whether the key had signed this already, so that nothing was done.
    pub already: bool,
}

/// Signs an image of the store under the name it is asked for by. A name that the key has vouched for already is not signed again.
///
/// `now` is in seconds since 1970, `creator` names the program.
///
/// # Errors
/// When the store or the key fail.
pub fn sign(
    store: &Store,
    image: (Option<Reference>, &Descriptor),
    key: &PrivateKey,
    now: i64,
    creator: &str,
) -> Result<Signed, Error> {
    let (reference, index) = image;
    let public = key.public("the key that signs");
    let before = verdict::check(store, index, std::slice::from_ref(&public))?;
    let same = |good: &&Good| good.payload.reference == reference;
    if let Some(good) = before.good.iter().find(same) {
        return Ok(Signed {
            artifact: good.artifact.clone(),
            key: public.id().clone(),
            payload: good.payload.clone(),
            already: true,
        });
    }
    let payload = Payload {
        digest: index.digest.clone(),
        reference,
        timestamp: Some(now),
        creator: Some(creator.to_string()),
    };
    let artifact = artifact(&payload, key, &public)?;
    let entry = store.attach(index, &artifact)?;
    Ok(Signed {
        artifact: entry.digest,
        key: public.id().clone(),
        payload,
        already: false,
    })
}

fn artifact(payload: &Payload, key: &PrivateKey, public: &PublicKey) -> Result<Artifact, Error> {
    let bytes = payload.encode().map_err(|source| oci::Error::Json {
        path: "payload".to_string(),
        source,
    });
    let bytes = bytes.map_err(image::Error::from)?;
    let signature = key.sign(&bytes)?;
    let document = |media_type: &str, title: &str, bytes| Document {
        media_type: media_type.to_string(),
        title: title.to_string(),
        bytes,
    };
    Ok(Artifact {
        artifact_type: SIGNATURE.to_string(),
        documents: vec![
            document(PAYLOAD, "payload.json", bytes),
            document(ED25519_SIGNATURE, "payload.sig", signature),
        ],
        annotations: BTreeMap::from([(KEY_ID.to_string(), public.id().to_string())]),
    })
}
