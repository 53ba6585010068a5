//! Signatures and keys: nothing that is not exactly what was signed is ever taken for signed.

use std::collections::BTreeMap;

use image::{Artifact, Document, Store};
use oci::{Descriptor, media_type};
use trust::{Payload, PublicKey, SIGNATURE};

use crate::Input;

/// The key of the corpus' good signature, whose private half was thrown away.
const KEY: &str = include_str!("signature/key.pub");
/// What it signed.
const PAYLOAD: &[u8] = include_bytes!("signature/payload.json");
/// Its signature.
const GOOD: &[u8] = include_bytes!("signature/payload.sig");
/// The index that is vouched for.
const INDEX: &[u8] = include_bytes!("signature/index.json");

/// Zero: a public key. Else two bytes of the payload's length, the payload, and the signature.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    if input.byte() == 0 {
        if let Ok(text) = std::str::from_utf8(input.0)
            && let Ok(key) = PublicKey::from_pem(text, "fuzz")
        {
            let pem = key.to_pem().expect("it was a key");
            assert_eq!(PublicKey::from_pem(&pem, "again").expect("our own words"), key);
        }
        return;
    }
    let length = usize::from(input.byte()) << 8 | usize::from(input.byte());
    let (payload, signature) = (input.take(length), input.0);
    if let Ok(decoded) = Payload::decode(payload) {
        let again = decoded.encode().expect("it was JSON");
        assert_eq!(Payload::decode(&again).expect("our own words"), decoded);
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = Store::open(dir.path()).expect("a store");
    let digest = store.blobs().put(INDEX).expect("a blob");
    let index = Descriptor::new(media_type::INDEX, digest, INDEX.len() as u64);
    store.tag(&"x:1".parse().expect("a name"), &index).expect("a name");
    let key = PublicKey::from_pem(KEY, "fuzz").expect("the key of the corpus");
    let document = |media_type: &str, bytes: &[u8]| Document {
        media_type: format!("application/vnd.installer.signature.{media_type}"),
        title: "x".to_string(),
        bytes: bytes.to_vec(),
    };
    let artifact = Artifact {
        artifact_type: SIGNATURE.to_string(),
        documents: vec![document("payload.v1+json", payload), document("ed25519.v1", signature)],
        annotations: BTreeMap::from([("installer.internal/key-id".to_string(), key.id().to_string())]),
    };
    store.attach(&index, &artifact).expect("an artifact");
    let verdict = trust::check(&store, &index, &[key]).expect("a verdict");
    assert_eq!(verdict.good.len() + verdict.faults.len(), 1);
    assert_eq!(verdict.good.len() == 1, payload == PAYLOAD && signature == GOOD);
}
