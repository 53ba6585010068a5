//! ConfigMaps and Secrets. No error shows what a secret holds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::rules::{Errors, entries, has, named, same, text};
use super::{FieldError, names};

/// Bytes that all values together may have.
const MAX: usize = 1024 * 1024;

/// A ConfigMap.
pub(super) fn config_map(out: &mut Errors, c: &Value) {
    let mut size = 0;
    for (key, v) in entries(c, "data") {
        named(out, format!("data[{key}]"), key, names::config_map_key);
        if c["binaryData"].get(key).is_some() {
            out.push(FieldError::invalid_text(
                format!("data[{key}]"),
                key,
                "duplicate of key present in binaryData",
            ));
        }
        size += v.as_str().map_or(0, str::len);
    }
    for (key, v) in entries(c, "binaryData") {
        named(out, format!("binaryData[{key}]"), key, names::config_map_key);
        size += decoded(out, &format!("binaryData[{key}]"), v).map_or(0, |b| b.len());
    }
    if size > MAX {
        out.push(FieldError::too_long("", MAX));
    }
}

fn decoded(out: &mut Errors, path: &str, v: &Value) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(v.as_str().unwrap_or_default());
    if bytes.is_err() {
        out.push(FieldError::invalid_text(path, "<value omitted>", "illegal base64 data"));
    }
    bytes.ok()
}

/// A Secret.
pub(super) fn secret(out: &mut Errors, s: &Value) {
    let mut size = 0;
    for (key, v) in entries(s, "data") {
        named(out, format!("data[{key}]"), key, names::config_map_key);
        size += decoded(out, &format!("data[{key}]"), v).map_or(0, |b| b.len());
    }
    if size > MAX {
        out.push(FieldError::too_long("data", MAX));
    }
    let need = |out: &mut Errors, keys: &[&str]| {
        for key in keys {
            if !has(&s["data"], key) {
                out.push(FieldError::required(format!("data[{key}]"), ""));
            }
        }
    };
    match text(s, "type") {
        "kubernetes.io/service-account-token" => {
            let account = s["metadata"]["annotations"]["kubernetes.io/service-account.name"].as_str();
            if account.unwrap_or_default().is_empty() {
                out.push(FieldError::required(
                    "metadata.annotations[kubernetes.io/service-account.name]",
                    "",
                ));
            }
        }
        "kubernetes.io/dockercfg" => json_data(out, s, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_data(out, s, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has(&s["data"], "username") && !has(&s["data"], "password") => {
            need(out, &["username", "password"]);
        }
        "kubernetes.io/ssh-auth" => need(out, &["ssh-privatekey"]),
        "kubernetes.io/tls" => need(out, &["tls.crt", "tls.key"]),
        _ => {}
    }
}

fn json_data(out: &mut Errors, s: &Value, key: &str) {
    let at = format!("data[{key}]");
    match s["data"][key].as_str() {
        None => out.push(FieldError::required(at, "")),
        Some(v) => {
            let good = STANDARD
                .decode(v)
                .is_ok_and(|b| serde_json::from_slice::<Value>(&b).is_ok());
            if !good {
                out.push(FieldError::invalid_text(
                    at,
                    "<secret contents redacted>",
                    "must be valid JSON",
                ));
            }
        }
    }
}

/// What is marked immutable stays as it is.
pub(super) fn immutable(out: &mut Errors, new: &Value, old: &Value) {
    const WHY: &str = "field is immutable when `immutable` is set";
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        out.push(FieldError::forbidden("immutable", WHY));
    }
    for field in ["data", "binaryData"] {
        if !same(&new[field], &old[field]) {
            out.push(FieldError::forbidden(field, WHY));
        }
    }
}
