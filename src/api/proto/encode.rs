//! From JSON to the bytes of a message, by the schema.

use super::ProtoError;
use super::wire::Writer;
use crate::schema::{Field, Message, Shape, Type};
use crate::time;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

pub(super) fn fields(message: &'static Message, object: &Value, out: &mut Writer) -> Result<(), ProtoError> {
    for field in &message.fields {
        if let Some(inner) = field.ty.message().filter(|_| field.inline) {
            let mut part = Writer::default();
            fields(inner, object, &mut part)?;
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
                fields(message, value, &mut inner)?;
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
