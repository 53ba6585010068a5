//! Probes and hooks of containers.

use serde_json::Value;

use super::rules::{
    Errors, has, items, named, non_negative, port_number, port_number_or_name, required, supported, text,
};
use super::{FieldError, names};

/// A probe; `one_success`: a single success has to be enough for it.
pub(super) fn probe(out: &mut Errors, p: &Value, path: &str, one_success: bool) {
    handler(out, p, path);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        non_negative(out, p, path, field);
    }
    if one_success && p["successThreshold"].as_i64().is_some_and(|n| n > 1) {
        out.push(FieldError::invalid(
            format!("{path}.successThreshold"),
            &p["successThreshold"],
            "must be 1",
        ));
    }
    if let Some(n) = p["terminationGracePeriodSeconds"].as_i64() {
        let at = format!("{path}.terminationGracePeriodSeconds");
        if !one_success {
            out.push(FieldError::invalid(
                at,
                &n.into(),
                "must not be set for readinessProbes",
            ));
        } else if n <= 0 {
            out.push(FieldError::invalid(at, &n.into(), "must be greater than 0"));
        }
    }
}

/// What a probe or a hook does.
pub(super) fn handler(out: &mut Errors, h: &Value, path: &str) {
    let given: Vec<_> = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"]
        .into_iter()
        .filter(|k| has(h, k))
        .collect();
    if given.is_empty() {
        out.push(FieldError::required(path, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        out.push(FieldError::forbidden(
            format!("{path}.{extra}"),
            "may not specify more than 1 handler type",
        ));
    }
    let Some(kind) = given.first() else { return };
    let (v, at) = (&h[*kind], format!("{path}.{kind}"));
    match *kind {
        "exec" if items(v, "command").is_empty() => out.push(FieldError::required(format!("{at}.command"), "")),
        "httpGet" => {
            required(out, v, &at, "path");
            port_number_or_name(out, format!("{at}.port"), &v["port"]);
            supported(out, v, &at, "scheme", &["HTTP", "HTTPS"]);
            for (i, header) in items(v, "httpHeaders").iter().enumerate() {
                named(
                    out,
                    format!("{at}.httpHeaders[{i}].name"),
                    text(header, "name"),
                    names::http_header_name,
                );
            }
        }
        "tcpSocket" => port_number_or_name(out, format!("{at}.port"), &v["port"]),
        "grpc" => port_number(out, format!("{at}.port"), v["port"].as_i64().unwrap_or(0)),
        "sleep" => non_negative(out, v, &at, "seconds"),
        _ => {}
    }
}
