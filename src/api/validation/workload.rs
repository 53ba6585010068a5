//! Deployments, ReplicaSets, DaemonSets, their revisions, and disruption budgets.

use serde_json::Value;

use super::container::cannot_roll;
use super::rules::{
    Errors, count_or_percent, has, immutable, is_zero, items, label_selector, non_negative, required_choice, text,
};
use super::{FieldError, pod};
use crate::metadata;
use crate::selector::LabelSelector;

/// A Deployment.
pub(super) fn deployment(out: &mut Errors, d: &Value) {
    let s = &d["spec"];
    for field in [
        "replicas",
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        non_negative(out, s, "spec", field);
    }
    selector(out, s, "empty selector is invalid for deployment");
    template(out, s);
    let strategy = &s["strategy"];
    required_choice(out, strategy, "spec.strategy", "type", &["Recreate", "RollingUpdate"]);
    match text(strategy, "type") {
        "Recreate" if has(strategy, "rollingUpdate") => out.push(FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        "RollingUpdate" => rolling(out, &strategy["rollingUpdate"], "spec.strategy.rollingUpdate"),
        _ => {}
    }
    if let (Some(deadline), ready) = (
        s["progressDeadlineSeconds"].as_i64(),
        s["minReadySeconds"].as_i64().unwrap_or(0),
    ) && deadline <= ready
    {
        let at = "spec.progressDeadlineSeconds";
        out.push(FieldError::invalid(
            at,
            &deadline.into(),
            "must be greater than minReadySeconds",
        ));
    }
}

fn rolling(out: &mut Errors, rolling: &Value, path: &str) {
    if rolling.is_null() {
        return;
    }
    for field in ["maxUnavailable", "maxSurge"] {
        count_or_percent(out, format!("{path}.{field}"), &rolling[field]);
    }
    if cannot_roll(rolling) {
        let at = format!("{path}.maxUnavailable");
        out.push(FieldError::invalid(
            at,
            &rolling["maxUnavailable"],
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    if rolling["maxUnavailable"]
        .as_str()
        .and_then(|s| s.trim_end_matches('%').parse::<u32>().ok())
        .is_some_and(|n| n > 100)
    {
        let at = format!("{path}.maxUnavailable");
        out.push(FieldError::invalid(
            at,
            &rolling["maxUnavailable"],
            "must not be greater than 100%",
        ));
    }
}

/// A ReplicaSet.
pub(super) fn replica_set(out: &mut Errors, r: &Value) {
    let s = &r["spec"];
    non_negative(out, s, "spec", "replicas");
    non_negative(out, s, "spec", "minReadySeconds");
    selector(out, s, "empty selector is invalid for ReplicaSets");
    template(out, s);
}

/// A DaemonSet.
pub(super) fn daemon_set(out: &mut Errors, d: &Value) {
    let s = &d["spec"];
    non_negative(out, s, "spec", "minReadySeconds");
    non_negative(out, s, "spec", "revisionHistoryLimit");
    selector(out, s, "empty selector is invalid for daemonset");
    template(out, s);
    let (strategy, path) = (&s["updateStrategy"], "spec.updateStrategy");
    required_choice(out, strategy, path, "type", &["OnDelete", "RollingUpdate"]);
    if text(strategy, "type") != "RollingUpdate" {
        return;
    }
    let at = format!("{path}.rollingUpdate");
    let r = &strategy["rollingUpdate"];
    if r.is_null() {
        out.push(FieldError::required(at, ""));
        return;
    }
    for field in ["maxUnavailable", "maxSurge"] {
        count_or_percent(out, format!("{at}.{field}"), &r[field]);
    }
    match (is_zero(&r["maxUnavailable"]), is_zero(&r["maxSurge"])) {
        (true, true) => {
            out.push(FieldError::required(
                format!("{at}.maxUnavailable"),
                "cannot be 0 when maxSurge is 0",
            ));
        }
        (false, false) => out.push(FieldError::invalid(
            format!("{at}.maxSurge"),
            &r["maxSurge"],
            "may not be set when maxUnavailable is non-zero",
        )),
        _ => {}
    }
}

fn selector(out: &mut Errors, s: &Value, empty: &str) {
    let selector = &s["selector"];
    if selector.is_null() {
        out.push(FieldError::required("spec.selector", ""));
        return;
    }
    label_selector(out, "spec.selector", selector);
    if selector["matchLabels"].as_object().is_none_or(|m| m.is_empty())
        && items(selector, "matchExpressions").is_empty()
    {
        out.push(FieldError::invalid("spec.selector", selector, empty));
    } else if let Ok(parsed) = LabelSelector::from_object(selector)
        && !parsed.matches_object(&s["template"])
    {
        let labels = metadata::labels(&s["template"])
            .cloned()
            .map_or(Value::Null, Value::Object);
        out.push(FieldError::invalid(
            "spec.template.metadata.labels",
            &labels,
            "`selector` does not match template `labels`",
        ));
    }
}

fn template(out: &mut Errors, s: &Value) {
    let path = "spec.template";
    pod::template(out, &s["template"], path);
    let spec = &s["template"]["spec"];
    let policy = text(spec, "restartPolicy");
    if policy != "Always" {
        out.push(FieldError::not_supported(
            format!("{path}.spec.restartPolicy"),
            policy,
            &["Always"],
        ));
    }
    if has(spec, "activeDeadlineSeconds") {
        let at = format!("{path}.spec.activeDeadlineSeconds");
        out.push(FieldError::forbidden(
            at,
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
}

/// Which pods a workload means is settled when it is made.
pub(super) fn selector_kept(out: &mut Errors, new: &Value, old: &Value) {
    immutable(out, &new["spec"], &old["spec"], "spec", "selector");
}

/// A ControllerRevision.
pub(super) fn revision(out: &mut Errors, r: &Value, old: Option<&Value>) {
    non_negative(out, r, "", "revision");
    match old {
        None if !has(r, "data") => out.push(FieldError::required("data", "data is mandatory")),
        Some(old) => immutable(out, r, old, "", "data"),
        None => {}
    }
}

/// A PodDisruptionBudget.
pub(super) fn budget(out: &mut Errors, b: &Value) {
    let s = &b["spec"];
    if has(s, "minAvailable") && has(s, "maxUnavailable") {
        out.push(FieldError::invalid(
            "spec",
            s,
            "minAvailable and maxUnavailable cannot be both set",
        ));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        count_or_percent(out, format!("spec.{field}"), &s[field]);
        if s[field]
            .as_str()
            .and_then(|s| s.trim_end_matches('%').parse::<u32>().ok())
            .is_some_and(|n| n > 100)
        {
            out.push(FieldError::invalid(
                format!("spec.{field}"),
                &s[field],
                "must not be greater than 100%",
            ));
        }
    }
    label_selector(out, "spec.selector", &s["selector"]);
}

/// `status` of a workload: counts are never negative.
pub(super) fn status(out: &mut Errors, object: &Value) {
    let s = &object["status"];
    for (field, v) in s.as_object().into_iter().flatten() {
        if v.as_i64().is_some_and(|n| n < 0) {
            out.push(FieldError::invalid(
                format!("status.{field}"),
                v,
                "must be greater than or equal to 0",
            ));
        }
    }
    if let Some(replicas) = s["replicas"].as_i64() {
        for field in [
            "readyReplicas",
            "availableReplicas",
            "updatedReplicas",
            "fullyLabeledReplicas",
        ] {
            if s[field].as_i64().is_some_and(|n| n > replicas) {
                out.push(FieldError::invalid(
                    format!("status.{field}"),
                    &s[field],
                    "cannot be greater than status.replicas",
                ));
            }
        }
    }
}
