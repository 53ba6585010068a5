//! `application/vnd.kubernetes.protobuf`: objects on the wire as stock clients write them (API concepts, «Alternate
//! representations of resources»): four magic bytes, then a `runtime.Unknown` that holds the type and the encoded object.

use crate::schema::{Field, Message, Shape, Type, message_of};
use crate::time;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

#[cfg(test)]
mod captured;
mod wire;
use wire::{Reader, Writer};

/// The four bytes that every encoded object begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// How deep messages may nest; JSONSchemaProps aside, real ones stay far below.
const MAX_DEPTH: usize = 64;

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
        Value::Object(decode_message(
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
    encode_message(message_of(api_version, kind).ok_or_else(unknown)?, object, &mut raw)?;
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

/// Scalars behind pointers in Kubernetes' types: there zero is a value, elsewhere it means absent.
const POINTERS: &[&str] = &[
    "activeDeadlineSeconds",
    "allowPrivilegeEscalation",
    "allowVolumeExpansion",
    "allocateLoadBalancerNodePorts",
    "automountServiceAccountToken",
    "blockOwnerDeletion",
    "controller",
    "defaultMode",
    "enableServiceLinks",
    "expirationSeconds",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "immutable",
    "leaseDurationSeconds",
    "leaseTransitions",
    "minDomains",
    "mode",
    "optional",
    "orphanDependents",
    "partition",
    "priority",
    "privileged",
    "procMount",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "started",
    "storageClassName",
    "terminating",
    "terminatingReplicas",
    "terminationGracePeriodSeconds",
    "timeoutSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
];

fn decode_message(message: &'static Message, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, ProtoError> {
    if depth > MAX_DEPTH {
        return Err(ProtoError::Malformed("messages nest too deeply"));
    }
    let mut out = Map::new();
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        // Fields that this schema does not know come from newer clients; as in Kubernetes they are dropped.
        let Some(field) = message.fields.iter().find(|f| f.number == number) else {
            continue;
        };
        if let Some(inner) = field.ty.message().filter(|_| field.inline) {
            out.extend(decode_message(inner, value.bytes()?, depth + 1)?);
            continue;
        }
        match field.shape {
            Shape::One => {
                let decoded = decode_value(field.ty, &value, depth)?;
                if !is_absent(field, &decoded) {
                    out.insert(field.name.to_owned(), decoded);
                }
            }
            Shape::List => {
                let list = out.entry(field.name).or_insert_with(|| json!([]));
                let items = if let (Type::Int32 | Type::Int64, true) = (field.ty, value.is_bytes()) {
                    wire::packed(value.bytes()?)?
                        .into_iter()
                        .map(|n| json!(signed(n)))
                        .collect()
                } else {
                    vec![decode_value(field.ty, &value, depth)?]
                };
                list.as_array_mut()
                    .into_iter()
                    .for_each(|list| list.extend(items.iter().cloned()));
            }
            Shape::Map => {
                let (mut key, mut inner) = (String::new(), empty(field.ty));
                let mut entry = Reader::new(value.bytes()?);
                while let Some((number, value)) = entry.next()? {
                    match number {
                        1 => key = value.text()?,
                        2 => inner = decode_value(field.ty, &value, depth)?,
                        _ => {}
                    }
                }
                out.entry(field.name).or_insert_with(|| json!({}))[key] = inner;
            }
        }
    }
    Ok(out)
}

fn empty(ty: Type) -> Value {
    match ty {
        Type::Message(_) => json!({}),
        Type::Int32 | Type::Int64 => json!(0),
        Type::Bool => json!(false),
        Type::Strings => json!([]),
        _ => json!(""),
    }
}

fn is_absent(field: &Field, value: &Value) -> bool {
    if field.ty == Type::IntOrString {
        // Only ports are no pointers: `maxSurge: 0` is a wish, `targetPort: 0` is none.
        return field.name == "targetPort" && *value == json!(0);
    }
    let zero = match value {
        Value::Null => return true,
        Value::String(s) => s.is_empty(),
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0),
        // Kubernetes' encoder writes empty structs that are not pointers; the server's defaults bring back those that matter.
        Value::Object(map) => {
            map.is_empty()
                && matches!(
                    field.name,
                    "metadata"
                        | "status"
                        | "resources"
                        | "source"
                        | "strategy"
                        | "updateStrategy"
                        | "state"
                        | "lastState"
                        | "nodeInfo"
                        | "daemonEndpoints"
                        | "loadBalancer"
                )
        }
        Value::Array(_) => false,
    };
    zero && (value.is_object() || !POINTERS.contains(&field.name))
}

#[expect(clippy::cast_possible_wrap, reason = "varints carry two's complement")]
fn signed(n: u64) -> i64 {
    n as i64
}

fn decode_value(ty: Type, value: &wire::Wire<'_>, depth: usize) -> Result<Value, ProtoError> {
    Ok(match ty {
        Type::String => value.text()?.into(),
        Type::Int32 | Type::Int64 => signed(value.varint()?).into(),
        Type::Bool => (value.varint()? != 0).into(),
        Type::Double => json!(value.double()?),
        Type::Bytes => BASE64_STANDARD.encode(value.bytes()?).into(),
        Type::Message(_) => match ty.message() {
            Some(message) => Value::Object(decode_message(message, value.bytes()?, depth + 1)?),
            None => Value::Null,
        },
        Type::Quantity => first_text(value.bytes()?)?.into(),
        Type::IntOrString => int_or_string(value.bytes()?)?,
        Type::Time | Type::MicroTime => decode_time(ty, value.bytes()?)?,
        Type::Raw | Type::Fields => {
            let mut inner = Value::Null;
            let mut reader = Reader::new(value.bytes()?);
            while let Some((number, value)) = reader.next()? {
                if number == 1 {
                    let bytes = value.bytes()?;
                    inner = if is_protobuf(bytes) {
                        decode(bytes)?
                    } else {
                        serde_json::from_slice(bytes).unwrap_or_default()
                    };
                }
            }
            inner
        }
        Type::Strings => {
            let mut list = Vec::new();
            let mut reader = Reader::new(value.bytes()?);
            while let Some((number, value)) = reader.next()? {
                if number == 1 {
                    list.push(Value::String(value.text()?));
                }
            }
            list.into()
        }
    })
}

fn first_text(bytes: &[u8]) -> Result<String, ProtoError> {
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        if number == 1 {
            return value.text();
        }
    }
    Ok(String::new())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtoError> {
    let (mut kind, mut number_value, mut text_value) = (0, 0, String::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, value)) = reader.next()? {
        match number {
            1 => kind = value.varint()?,
            2 => number_value = signed(value.varint()?),
            3 => text_value = value.text()?,
            _ => {}
        }
    }
    Ok(if kind == 0 {
        number_value.into()
    } else {
        text_value.into()
    })
}

fn decode_time(ty: Type, bytes: &[u8]) -> Result<Value, ProtoError> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(bytes);
    let mut any = false;
    while let Some((number, value)) = reader.next()? {
        any = true;
        match number {
            1 => seconds = signed(value.varint()?),
            2 => nanos = i32::try_from(signed(value.varint()?)).unwrap_or(0),
            _ => {}
        }
    }
    // An empty message is Go's zero time, which JSON writes as null.
    if !any {
        return Ok(Value::Null);
    }
    let moment = Timestamp::new(seconds, nanos).map_err(|_| ProtoError::Malformed("a time is out of range"))?;
    Ok(if ty == Type::Time {
        time::time(moment)
    } else {
        time::micro_time(moment)
    }
    .into())
}

fn encode_message(message: &'static Message, object: &Value, out: &mut Writer) -> Result<(), ProtoError> {
    for field in &message.fields {
        if let Some(inner) = field.ty.message().filter(|_| field.inline) {
            let mut part = Writer::default();
            encode_message(inner, object, &mut part)?;
            out.bytes(field.number, &part.finish());
            continue;
        }
        let value = &object[field.name];
        if value.is_null() {
            continue;
        }
        let bad = |why| ProtoError::BadValue {
            field: field.name.to_owned(),
            why,
        };
        match field.shape {
            Shape::One => encode_value(field, value, field.number, out)?,
            Shape::List => {
                for item in value.as_array().ok_or_else(|| bad("it is no list"))? {
                    encode_value(field, item, field.number, out)?;
                }
            }
            Shape::Map => {
                for (key, inner) in value.as_object().ok_or_else(|| bad("it is no map"))? {
                    let mut entry = Writer::default();
                    entry.bytes(1, key.as_bytes());
                    encode_value(field, inner, 2, &mut entry)?;
                    out.bytes(field.number, &entry.finish());
                }
            }
        }
    }
    Ok(())
}

fn encode_value(field: &Field, value: &Value, number: u32, out: &mut Writer) -> Result<(), ProtoError> {
    let bad = |why| ProtoError::BadValue {
        field: field.name.to_owned(),
        why,
    };
    let text = || value.as_str().ok_or_else(|| bad("it is no string"));
    match field.ty {
        Type::String => out.bytes(number, text()?.as_bytes()),
        Type::Int32 | Type::Int64 => {
            out.varint(number, unsigned(value.as_i64().ok_or_else(|| bad("it is no integer"))?))
        }
        Type::Bool => out.varint(
            number,
            u64::from(value.as_bool().ok_or_else(|| bad("it is no boolean"))?),
        ),
        Type::Double => out.double(number, value.as_f64().ok_or_else(|| bad("it is no number"))?),
        Type::Bytes => out.bytes(
            number,
            &BASE64_STANDARD.decode(text()?).map_err(|_| bad("it is no base64"))?,
        ),
        Type::Message(_) => {
            let mut inner = Writer::default();
            if let Some(message) = field.ty.message() {
                encode_message(message, value, &mut inner)?;
            }
            out.bytes(number, &inner.finish());
        }
        Type::Quantity => {
            let mut inner = Writer::default();
            let written = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            inner.bytes(1, written.as_bytes());
            out.bytes(number, &inner.finish());
        }
        Type::IntOrString => {
            let mut inner = Writer::default();
            inner.varint(1, u64::from(value.is_string()));
            inner.varint(2, unsigned(value.as_i64().unwrap_or(0)));
            inner.bytes(3, value.as_str().unwrap_or_default().as_bytes());
            out.bytes(number, &inner.finish());
        }
        Type::Time | Type::MicroTime => {
            let moment = time::parse(text()?).ok_or_else(|| bad("it is no RFC 3339 time"))?;
            let mut inner = Writer::default();
            inner.varint(1, unsigned(moment.as_second()));
            inner.varint(2, unsigned(i64::from(moment.subsec_nanosecond())));
            out.bytes(number, &inner.finish());
        }
        Type::Raw | Type::Fields => {
            let mut inner = Writer::default();
            inner.bytes(1, value.to_string().as_bytes());
            out.bytes(number, &inner.finish());
        }
        Type::Strings => {
            let mut inner = Writer::default();
            for item in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
                inner.bytes(1, item.as_bytes());
            }
            out.bytes(number, &inner.finish());
        }
    }
    Ok(())
}

#[expect(clippy::cast_sign_loss, reason = "varints carry two's complement")]
fn unsigned(n: i64) -> u64 {
    n as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn zero_is_a_value_only_behind_pointers() {
        let mut ports = Writer::default();
        ports.varint(3, 0);
        ports.varint(2, 0);
        let message = message_of("v1", "ContainerPort").unwrap();
        assert_eq!(
            Value::Object(decode_message(message, &ports.finish(), 0).unwrap()),
            json!({})
        );
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
            let _ = decode_message(message_of("v1", "Pod").unwrap(), &bytes, 0);
        }
    }
}
