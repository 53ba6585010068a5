//! `pods/eviction`: a deletion that disruption budgets may refuse.

use api::{Kind, metadata};
use http::Request;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Context;
use super::body::{self, WriteOptions};
use super::delete::delete_object;
use super::pods::{created, set_condition};
use super::write::{Target, Writer};
use crate::error::{ApiError, Result};
use crate::objects::{self, Modify};
use crate::server::Response;

/// Answers `pods/eviction`: a deletion that respects disruption budgets (KEP-85).
///
/// # Errors
/// 429 if a budget forbids it now, 500 if several budgets cover the pod.
pub async fn evict(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let options = WriteOptions::parse(c)?;
    let (mut eviction, _) = body::object(None, ("policy", "v1", "Eviction"), &options, request).await?;
    body::place(c, kind, &mut eviction)?;
    let mut delete = eviction["deleteOptions"].take();
    if delete.is_null() {
        delete = json!({});
    }
    let listed = delete["dryRun"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let dry = options.dry || body::dry_run("delete", listed)?;
    let pod = objects::read(&c.app, kind, c.namespace(kind), &c.info.name).await?;
    if !unprotected(&pod) {
        disrupt(c, &pod, dry).await?;
    }
    if delete["preconditions"]["uid"].is_null() {
        delete["preconditions"]["uid"] = metadata::uid(&pod).into();
    }
    if !dry && metadata::deletion_timestamp(&pod).is_none() {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"});
        objects::modify(&c.app, kind, c.namespace(kind), &c.info.name, false, |p| {
            let mut new = p.clone();
            set_condition(&mut new, condition.clone());
            Ok(Modify::Write(new))
        })
        .await?;
    }
    delete_object(
        &c.app,
        &Target {
            subresource: None,
            ..Target::of(c, kind)
        },
        &delete,
        dry,
    )
    .await?;
    Ok(created())
}

/// Pods whose end disturbs nobody.
fn unprotected(pod: &Value) -> bool {
    matches!(objects::text(pod, "/status/phase"), "Pending" | "Succeeded" | "Failed")
        || metadata::deletion_timestamp(pod).is_some()
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Takes one disruption from the pod's budget.
async fn disrupt(c: &Context, pod: &Value, dry: bool) -> Result<()> {
    let kind = api::kinds::find("policy", "v1", "poddisruptionbudgets").ok_or_else(ApiError::no_such_path)?;
    c.app.cache.consistent().await?;
    let budgets = objects::cache_of(&c.app, kind)?.list(metadata::namespace(pod), 0, |_| true);
    let covering: Vec<Value> = budgets
        .items
        .iter()
        .map(|o| o.value())
        .filter(|b| covers(b, pod))
        .collect();
    let budget = match covering.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(ApiError::new(
                500,
                "InternalError",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let healthy_enough = budget["status"]["currentHealthy"].as_i64().unwrap_or(0)
        >= budget["status"]["desiredHealthy"].as_i64().unwrap_or(0);
    let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
    if !ready(pod) && (always || (healthy_enough && budget["status"]["desiredHealthy"].as_i64().unwrap_or(0) > 0)) {
        return Ok(());
    }
    let name = metadata::name(pod).to_owned();
    objects::modify(
        &c.app,
        kind,
        metadata::namespace(budget),
        metadata::name(budget),
        dry,
        |b| {
            let allowed = b["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
            if let Some(refusal) = refusal(b) {
                return Err(refusal);
            }
            let mut new = b.clone();
            new["status"]["disruptionsAllowed"] = (allowed - 1).into();
            metadata::child_mut(&mut new["status"], "disruptedPods")
                .insert(name.clone(), api::time::time(Timestamp::now()).into());
            Writer::server(&c.app).note(kind, Some("status"), b, &mut new);
            Ok(Modify::Write(new))
        },
    )
    .await?;
    Ok(())
}

/// Why a budget allows no eviction now. Nobody knows when one that is used up will allow the next, so that its refusal does
/// not say when to try again: a client that is told so tries again by itself and hides the reason.
fn refusal(budget: &Value) -> Option<ApiError> {
    let too_many = |seconds: u32, cause: String| {
        let text = "Cannot evict pod as it would violate the pod's disruption budget.";
        let mut error = ApiError::too_many_requests(text, seconds);
        error.details["causes"] = json!([{"reason": "DisruptionBudget", "message": cause}]);
        Some(error)
    };
    let name = metadata::name(budget);
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    if number("observedGeneration") < metadata::generation(budget) {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return too_many(10, cause);
    }
    if number("disruptionsAllowed") > 0 {
        return None;
    }
    let conditions = budget["status"]["conditions"].as_array().into_iter().flatten();
    let blocked = conditions
        .filter(|c| c["type"] == "DisruptionAllowed" && c["status"] == "False")
        .map(|c| (objects::text(c, "/reason"), objects::text(c, "/message")))
        .find(|(_, message)| !message.is_empty());
    let (healthy, wanted) = (number("currentHealthy"), number("desiredHealthy"));
    let because = match blocked {
        // The numbers of a failed count mean nothing.
        Some(("SyncFailed", message)) => {
            format!("does not allow evicting pods currently because it failed sync: {message}")
        }
        _ if healthy <= wanted => format!("needs {wanted} healthy pods and has {healthy} currently"),
        Some((reason, message)) => format!("does not allow evicting pods currently ({reason}): {message}"),
        None => "does not allow evicting pods currently".to_owned(),
    };
    too_many(0, format!("The disruption budget {name} {because}"))
}

fn covers(budget: &Value, pod: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    !selector.is_null() && api::selector::LabelSelector::from_object(selector).is_ok_and(|s| s.matches_object(pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_tells_why_it_refuses_and_only_when_it_knows_it_when_to_come_again() {
        let budget = |status: Value| json!({"metadata": {"name": "b", "generation": 2}, "status": status});
        let condition = |reason: &str, message: &str| json!([{"type": "DisruptionAllowed", "status": "False", "reason": reason, "message": message}]);
        for (status, seconds, expected) in [
            (
                json!({"observedGeneration": 1}),
                10,
                "is still being processed by the server.",
            ),
            (
                json!({"observedGeneration": 2, "currentHealthy": 1, "desiredHealthy": 2}),
                0,
                "needs 2 healthy pods and has 1 currently",
            ),
            (
                json!({"observedGeneration": 2, "conditions": condition("SyncFailed", "no scale")}),
                0,
                "does not allow evicting pods currently because it failed sync: no scale",
            ),
            (
                json!({"observedGeneration": 2, "currentHealthy": 3, "conditions": condition("Other", "wait")}),
                0,
                "does not allow evicting pods currently (Other): wait",
            ),
            (
                json!({"observedGeneration": 2, "currentHealthy": 3}),
                0,
                "does not allow evicting pods currently",
            ),
        ] {
            let error = refusal(&budget(status)).unwrap();
            assert_eq!(error.retry_after(), (seconds > 0).then_some(seconds), "{expected}");
            let cause = error.details["causes"][0]["message"].as_str().unwrap();
            assert_eq!(cause, format!("The disruption budget b {expected}"));
        }
        assert!(refusal(&budget(json!({"observedGeneration": 2, "disruptionsAllowed": 1}))).is_none());
    }
}
