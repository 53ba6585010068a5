//! `application/vnd.kubernetes.protobuf`: objects on the wire as stock clients write them (API concepts, «Alternate
//! representations of resources»): four magic bytes, then a `runtime.Unknown` that holds the type and the encoded object.

use crate::schema::message_of;
use serde_json::Value;

#[cfg(test)]
mod captured;
mod decode;
mod encode;
mod pointers;
pub(crate) mod wire;
use wire::{Reader, Writer};

/// The four bytes that every encoded object begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Why bytes are not an object, or an object cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// The magic bytes are missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoMagic,
    /// The bytes end in the middle, or a length or tag is malformed.
    #[error("malformed protobuf: {0}")]
    Malformed(&'static str),
    /// The server has no schema for the type.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// `apiVersion` of the object.
        api_version: String,
        /// `kind` of the object.
        kind: String,
    },
    /// A JSON value does not fit its field.
    #[error("field {field:?} cannot be encoded: {why}")]
    BadValue {
        /// JSON name of the field.
        field: String,
        /// What does not fit.
        why: &'static str,
    },
}

/// Whether bytes begin like an encoded object.
pub fn is_protobuf(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Decodes an object.
///
/// # Errors
/// When the bytes are malformed or of a type that has no schema.
pub fn decode(bytes: &[u8]) -> Result<Value, ProtoError> {
    let body = bytes.strip_prefix(MAGIC.as_slice()).ok_or(ProtoError::NoMagic)?;
    let (mut api_version, mut kind, mut raw, mut content_type) = (String::new(), String::new(), &[][..], String::new());
    let mut reader = Reader::new(body);
    while let Some((number, value)) = reader.next()? {
        match number {
            1 => {
                let mut meta = Reader::new(value.bytes()?);
                while let Some((number, value)) = meta.next()? {
                    match number {
                        1 => api_version = value.text()?,
                        2 => kind = value.text()?,
                        _ => {}
                    }
                }
            }
            2 => raw = value.bytes()?,
            4 => content_type = value.text()?,
            _ => {}
        }
    }
    let mut object = if content_type == "application/json" {
        serde_json::from_slice(raw).map_err(|_| ProtoError::Malformed("the embedded JSON cannot be read"))?
    } else {
        let unknown = || ProtoError::UnknownKind {
            api_version: api_version.clone(),
            kind: kind.clone(),
        };
        Value::Object(decode::fields(
            message_of(&api_version, &kind).ok_or_else(unknown)?,
            raw,
            0,
        )?)
    };
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".to_owned(), api_version.into());
        map.insert("kind".to_owned(), kind.into());
    }
    Ok(object)
}

/// Encodes an object, which must name its `apiVersion` and `kind`.
///
/// # Errors
/// When its type has no schema or a value does not fit its field.
pub fn encode(object: &Value) -> Result<Vec<u8>, ProtoError> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let unknown = || ProtoError::UnknownKind {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    };
    let mut raw = Writer::default();
    encode::fields(message_of(api_version, kind).ok_or_else(unknown)?, object, &mut raw)?;
    let mut meta = Writer::default();
    meta.bytes(1, api_version.as_bytes());
    meta.bytes(2, kind.as_bytes());
    let mut envelope = Writer::starting_with(MAGIC);
    envelope.bytes(1, &meta.finish());
    envelope.bytes(2, &raw.finish());
    envelope.bytes(3, b"");
    envelope.bytes(4, b"");
    Ok(envelope.finish())
}

/// One frame of a protobuf watch stream: `meta.v1.WatchEvent` with the encoded object in `object.raw`. The caller prefixes its
/// length as a big-endian u32.
///
/// # Errors
/// As [`encode`].
pub fn encode_watch_event(event: &str, object: &Value) -> Result<Vec<u8>, ProtoError> {
    let mut extension = Writer::default();
    extension.bytes(1, &encode(object)?);
    let mut writer = Writer::default();
    writer.bytes(1, event.as_bytes());
    writer.bytes(2, &extension.finish());
    Ok(writer.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Message, Shape, Type};
    use proptest::prelude::*;
    use serde_json::{Map, json};

    fn round(object: &Value) -> Value {
        decode(&encode(object).unwrap()).unwrap()
    }

    #[test]
    fn objects_survive_the_wire() {
        for object in [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "labels": {"a": "b"}}}),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "creationTimestamp": "2026-01-02T03:04:05Z"}, "spec": {
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "resources": {"limits": {"memory": "1Gi"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5}}],
                "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}, {"name": "h", "hostPath": {"path": "/x"}}],
                "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists", "tolerationSeconds": -1}]}}),
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 0,
                "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}}}}),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AAH/"}, "type": "Opaque"}),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": {"renewTime": "2026-01-02T03:04:05.123456Z"}}),
            json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "5"}, "items": [{"metadata": {"name": "p"}}]}),
            json!({"apiVersion": "v1", "kind": "Status", "code": 404, "status": "Failure", "reason": "NotFound"}),
            json!({"apiVersion": "policy/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Foreground"}),
            json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "c"}, "spec": {"extra": {"k": ["a", "b"]}, "request": "AA==", "signerName": "s"}}),
        ] {
            assert_eq!(round(&object), object);
        }
    }

    #[test]
    fn zero_is_a_value_only_behind_pointers_and_where_it_is_required() {
        for (kind, numbers, expected) in [
            ("ContainerPort", &[2, 3][..], json!({"containerPort": 0})),
            ("ContainerStatus", &[4, 5], json!({"ready": false, "restartCount": 0})),
            (
                "PodSpec",
                &[4, 5, 11, 25],
                json!({"terminationGracePeriodSeconds": 0, "activeDeadlineSeconds": 0, "priority": 0}),
            ),
        ] {
            let mut zeros = Writer::default();
            numbers.iter().for_each(|n| zeros.varint(*n, 0));
            let message = message_of("v1", kind).unwrap();
            assert_eq!(
                Value::Object(decode::fields(message, &zeros.finish(), 0).unwrap()),
                expected
            );
        }
    }

    /// A message with every field filled, as deep as it may be without end.
    fn filled(message: &'static Message, depth: usize) -> Map<String, Value> {
        let mut out = Map::new();
        for field in &message.fields {
            let value = match field.ty {
                Type::Message(_) if depth == 0 => continue,
                Type::Message(_) => {
                    let inner = filled(field.ty.message().unwrap(), depth - 1);
                    if inner.is_empty() {
                        continue;
                    }
                    if field.inline {
                        out.extend(inner);
                        continue;
                    }
                    Value::Object(inner)
                }
                Type::String => json!(format!("{}-{}", field.name, field.number)),
                Type::Int32 => json!(-i64::from(field.number)),
                Type::Int64 => json!(i64::from(field.number) << 40),
                Type::Bool => json!(true),
                Type::Double => json!(0.5),
                Type::Bytes => json!("AAH/"),
                Type::Quantity => json!("100m"),
                Type::IntOrString if field.number % 2 == 0 => json!(7),
                Type::IntOrString => json!("25%"),
                Type::Time => json!("2026-01-02T03:04:05Z"),
                Type::MicroTime => json!("2026-01-02T03:04:05.678901Z"),
                Type::Raw => json!({"any": [1, null]}),
                Type::Fields => json!({"f:a": {".": {}}}),
                Type::Strings => json!(["a", ""]),
            };
            let value = match field.shape {
                Shape::One => value,
                Shape::List => json!([value.clone(), value]),
                Shape::Map => json!({"k": value, "": value}),
            };
            out.insert(field.name.to_owned(), value);
        }
        out
    }

    #[test]
    fn every_field_of_every_kind_survives_the_wire() {
        let with_type = |mut map: Map<String, Value>, api_version: &str, kind: &str| {
            map.insert("apiVersion".to_owned(), api_version.into());
            map.insert("kind".to_owned(), kind.into());
            Value::Object(map)
        };
        let mut checked = 0;
        let mut check = |api_version: &str, kind: &str| {
            let Some(message) = message_of(api_version, kind) else {
                return;
            };
            let object = with_type(filled(message, 8), api_version, kind);
            assert_eq!(round(&object), object, "{kind}");
            checked += 1;
        };
        for kind in crate::kinds::kinds() {
            check(&kind.api_version(), kind.kind);
            check(&kind.api_version(), &kind.list_kind());
            for sub in kind.subresources {
                check(&crate::kinds::join_api_version(sub.group, sub.version), sub.kind);
            }
        }
        for kind in ["Status", "APIGroupList", "APIResourceList", "APIVersions"] {
            check("v1", kind);
        }
        for kind in ["PartialObjectMetadata", "PartialObjectMetadataList"] {
            check("meta.k8s.io/v1", kind);
            check("meta.k8s.io/v1beta1", kind);
        }
        assert!(checked > 2 * crate::kinds::kinds().iter().filter(|k| k.stored()).count());
    }

    #[test]
    fn what_has_no_schema_or_no_magic_is_refused() {
        assert_eq!(decode(b"{}"), Err(ProtoError::NoMagic));
        assert!(matches!(
            encode(&json!({"apiVersion": "x/v1", "kind": "Y"})),
            Err(ProtoError::UnknownKind { .. })
        ));
        let mut cut = encode(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}})).unwrap();
        cut.truncate(cut.len() - 6);
        assert!(decode(&cut).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut all = MAGIC.to_vec();
            all.extend(&bytes);
            let _ = decode(&all);
            let _ = decode::fields(message_of("v1", "Pod").unwrap(), &bytes, 0);
        }
    }
}
