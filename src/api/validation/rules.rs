//! Small checks that every kind's validation is made of.

use serde_json::{Map, Value};

use super::{FieldError, names};
use crate::quantity::Quantity;

/// Errors found so far.
pub(super) type Errors = Vec<FieldError>;

/// A text field; empty if missing.
pub(super) fn text<'a>(v: &'a Value, field: &str) -> &'a str {
    v.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The items of a list; none if missing.
pub(super) fn items<'a>(v: &'a Value, field: &str) -> &'a [Value] {
    v.get(field)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// The entries of a map; none if missing.
pub(super) fn entries<'a>(v: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    v.get(field).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

/// Whether a field holds something.
pub(super) fn has(v: &Value, field: &str) -> bool {
    v.get(field).is_some_and(|x| !x.is_null())
}

/// Whether two values say the same; missing, null and empty are one.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    fn plain(v: &Value) -> Value {
        match v {
            Value::Object(m) => {
                let kept: Map<_, _> = m
                    .iter()
                    .map(|(k, v)| (k.clone(), plain(v)))
                    .filter(|(_, v)| !v.is_null())
                    .collect();
                if kept.is_empty() { Value::Null } else { kept.into() }
            }
            Value::Array(l) if l.is_empty() => Value::Null,
            Value::Array(l) => l.iter().map(plain).collect(),
            other => other.clone(),
        }
    }
    plain(a) == plain(b)
}

/// Adds an error for each complaint of a name check.
pub(super) fn named(out: &mut Errors, path: impl Into<String>, value: &str, check: fn(&str) -> Vec<String>) {
    let path = path.into();
    out.extend(
        check(value)
            .into_iter()
            .map(|why| FieldError::invalid_text(path.clone(), value, why)),
    );
}

/// A text that must be there and be well formed.
pub(super) fn required_name(out: &mut Errors, path: String, value: &str, check: fn(&str) -> Vec<String>) {
    if value.is_empty() {
        out.push(FieldError::required(path, ""))
    } else {
        named(out, path, value, check)
    }
}

/// A text that must be there.
pub(super) fn required(out: &mut Errors, v: &Value, path: &str, field: &str) {
    if text(v, field).is_empty() {
        out.push(FieldError::required(join(path, field), ""));
    }
}

/// A text that, if it is there, must be one of those supported.
pub(super) fn supported(out: &mut Errors, v: &Value, path: &str, field: &str, values: &[&str]) {
    let value = text(v, field);
    if !value.is_empty() && !values.contains(&value) {
        out.push(FieldError::not_supported(join(path, field), value, values));
    }
}

/// A text that must be there and be one of those supported.
pub(super) fn required_choice(out: &mut Errors, v: &Value, path: &str, field: &str, values: &[&str]) {
    required(out, v, path, field);
    supported(out, v, path, field, values);
}

/// A number that, if it is there, must not be negative.
pub(super) fn non_negative(out: &mut Errors, v: &Value, path: &str, field: &str) {
    if v.get(field).and_then(Value::as_i64).is_some_and(|n| n < 0) {
        out.push(FieldError::invalid(
            join(path, field),
            &v[field],
            "must be greater than or equal to 0",
        ));
    }
}

/// A port number.
pub(super) fn port_number(out: &mut Errors, path: String, number: i64) {
    if !(1..=65535).contains(&number) {
        out.push(FieldError::invalid(
            path,
            &number.into(),
            "must be between 1 and 65535, inclusive",
        ));
    }
}

/// A port by number or name.
pub(super) fn port_number_or_name(out: &mut Errors, path: String, port: &Value) {
    match port {
        Value::Number(n) => port_number(out, path, n.as_i64().unwrap_or(0)),
        Value::String(s) => named(out, path, s, names::port_name),
        _ => port_number(out, path, 0),
    }
}

/// A number of things, or a share of them.
pub(super) fn count_or_percent(out: &mut Errors, path: String, v: &Value) {
    match v {
        Value::String(s) => {
            let good = s
                .strip_suffix('%')
                .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
            if !good {
                let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                out.push(FieldError::invalid_text(path, s, why));
            }
        }
        Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => {
            out.push(FieldError::invalid(path, v, "must be greater than or equal to 0"));
        }
        _ => {}
    }
}

/// Whether a number or share is none at all.
pub(super) fn is_zero(v: &Value) -> bool {
    match v {
        Value::String(s) => s.trim_end_matches('%').parse::<i64>() == Ok(0),
        other => other.as_i64().unwrap_or(0) == 0,
    }
}

/// Keys and values of labels.
pub(super) fn labels(out: &mut Errors, path: &str, map: &Value) {
    for (key, value) in map.as_object().into_iter().flatten() {
        named(out, path, key, names::qualified_name);
        named(out, path, value.as_str().unwrap_or_default(), names::label_value);
    }
}

/// A label selector object.
pub(super) fn label_selector(out: &mut Errors, path: &str, selector: &Value) {
    labels(out, &join(path, "matchLabels"), &selector["matchLabels"]);
    for (i, e) in items(selector, "matchExpressions").iter().enumerate() {
        let at = format!("{path}.matchExpressions[{i}]");
        let values = items(e, "values");
        match text(e, "operator") {
            "In" | "NotIn" if values.is_empty() => out.push(FieldError::required(
                format!("{at}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => out.push(FieldError::forbidden(
                format!("{at}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => out.push(FieldError::invalid_text(
                format!("{at}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        named(out, format!("{at}.key"), text(e, "key"), names::qualified_name);
        for (j, v) in values.iter().enumerate() {
            named(
                out,
                format!("{at}.values[{j}]"),
                v.as_str().unwrap_or_default(),
                names::label_value,
            );
        }
    }
}

/// A quantity that must not be negative; its value if it is one.
pub(super) fn quantity(out: &mut Errors, path: String, v: &Value) -> Option<Quantity> {
    let written = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let Ok(q) = written.parse::<Quantity>() else {
        let why = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        out.push(FieldError::invalid_text(path, &written, why));
        return None;
    };
    if q.is_negative() {
        out.push(FieldError::invalid_text(
            path,
            &written,
            "must be greater than or equal to 0",
        ));
        return None;
    }
    Some(q)
}

/// A field that may not change.
pub(super) fn immutable(out: &mut Errors, new: &Value, old: &Value, path: &str, field: &str) {
    if !same(&new[field], &old[field]) {
        out.push(FieldError::invalid(
            join(path, field),
            &new[field],
            "field is immutable",
        ));
    }
}

/// Joins a path and a field.
pub(super) fn join(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}
