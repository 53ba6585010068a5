//! From the bytes of a message to JSON, by the schema.

use super::pointers::is_pointer;
use super::wire::{self, Reader};
use super::{ProtoError, decode, is_protobuf};
use crate::schema::{Field, Message, Shape, Type};
use crate::time;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// How deep messages may nest; JSONSchemaProps aside, real ones stay far below.
const MAX_DEPTH: usize = 64;

pub(super) fn fields(message: &'static Message, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, ProtoError> {
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
            out.extend(fields(inner, value.bytes()?, depth + 1)?);
            continue;
        }
        match field.shape {
            Shape::One => {
                let decoded = decode_value(field.ty, &value, depth)?;
                if !is_absent(message, field, &decoded) {
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

fn is_absent(message: &Message, field: &Field, value: &Value) -> bool {
    if field.ty == Type::IntOrString {
        // Only ports are no pointers: `maxSurge: 0` is a wish, `targetPort: 0` is none.
        return field.name == "targetPort" && *value == json!(0);
    }
    let zero = match value {
        Value::Null => return true,
        Value::String(s) => s.is_empty(),
        // Zeros that Kubernetes always writes are shown.
        Value::Bool(b) => !b && !field.required,
        Value::Number(n) => n.as_i64() == Some(0) && !field.required,
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
    zero && (value.is_object() || !is_pointer(message.name, field))
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
            Some(message) => Value::Object(fields(message, value.bytes()?, depth + 1)?),
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
