//! `/pods`, `/runningpods/` and `/containerLogs`.

use super::Shared;
use crate::logs;
use crate::names;
use crate::observed::{Observed, State as ContainerState};
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::core::v1::Pod;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A refusal as the API server passes it on.
pub(super) fn refuse(code: StatusCode, message: impl std::fmt::Display) -> Response {
    (code, format!("{message}\n")).into_response()
}

/// All pods of the agent.
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let pods: Vec<Arc<Pod>> = shared
        .pods
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .values()
        .cloned()
        .collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}))
}

/// Pods that have a running container.
pub(super) async fn running(State(shared): State<Arc<Shared>>) -> Response {
    let snapshot = shared.ctx.relist.snapshot();
    let items: Vec<_> = snapshot
        .iter()
        .filter(|(_, p)| p.observed.alive().next().is_some())
        .map(|(uid, p)| {
            let containers: Vec<_> = p.observed.alive().map(|c| serde_json::json!({"name": c.name, "image": c.image})).collect();
            serde_json::json!({"metadata": {"name": p.name, "namespace": p.namespace, "uid": uid}, "spec": {"containers": containers}, "status": {}})
        })
        .collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

pub(super) fn json(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// What the runtime has of a pod by its name; `uid` only if the caller gave one.
pub(super) fn find(
    shared: &Shared,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
) -> Option<(Arc<Pod>, Arc<Observed>)> {
    let pods = shared.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let snapshot = shared.ctx.relist.snapshot();
    let pod = pods.values().find(|p| {
        names::namespace(p) == namespace && names::name(p) == name && uid.is_none_or(|u| u == names::uid(p))
    })?;
    let observed = snapshot
        .get(names::uid(pod))
        .map(|r| r.observed.clone())
        .unwrap_or_default();
    Some((pod.clone(), observed))
}

/// Query of `/containerLogs`, the fields of PodLogOptions.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LogQuery {
    follow: Option<String>,
    previous: Option<String>,
    tail_lines: Option<i64>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    timestamps: Option<String>,
    limit_bytes: Option<i64>,
    stream: Option<String>,
}

fn flag(value: &Option<String>) -> bool {
    value
        .as_deref()
        .is_some_and(|v| matches!(v, "" | "true" | "1" | "True"))
}

fn options(q: &LogQuery) -> Result<logs::Options, String> {
    let positive = |name: &str, v: Option<i64>, least: i64| match v {
        Some(n) if n < least => Err(format!("{name}: must be at least {least}")),
        v => Ok(v),
    };
    let since = match (positive("sinceSeconds", q.since_seconds, 1)?, &q.since_time) {
        (Some(_), Some(_)) => return Err("at most one of sinceTime and sinceSeconds may be given".into()),
        (Some(s), None) => k8s_openapi::jiff::Timestamp::from_second(crate::tls::now() - s).ok(),
        (None, Some(t)) => Some(t.parse().map_err(|e| format!("sinceTime: {e}"))?),
        (None, None) => None,
    };
    let stream = match q.stream.as_deref() {
        None | Some("" | "All") => None,
        Some("Stdout") => Some(false),
        Some("Stderr") => Some(true),
        Some(other) => return Err(format!("stream: {other:?} is not Stdout, Stderr or All")),
    };
    Ok(logs::Options {
        follow: flag(&q.follow),
        tail: positive("tailLines", q.tail_lines, 0)?.and_then(|n| usize::try_from(n).ok()),
        since,
        timestamps: flag(&q.timestamps),
        limit: positive("limitBytes", q.limit_bytes, 1)?.and_then(|n| u64::try_from(n).ok()),
        stream,
    })
}

/// The log to read: of the newest container that has run, or of the one before.
fn log_of(observed: &Observed, container: &str, previous: bool) -> Option<(PathBuf, String)> {
    let mut list: Vec<_> = observed
        .containers
        .iter()
        .filter(|c| c.name == container && c.state != ContainerState::Created)
        .collect();
    list.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.restarts)));
    let skip = usize::from(
        previous
            && list
                .first()
                .is_some_and(|c| c.state == ContainerState::Running || list.len() > 1),
    );
    if previous && skip == 0 {
        return None;
    }
    list.into_iter()
        .nth(skip)
        .filter(|c| !c.log_path.is_empty())
        .map(|c| (PathBuf::from(&c.log_path), c.id.clone()))
}

/// Why there is no log to read, as far as the status of the pod tells.
fn why_no_log(pod: &Pod, container: &str, previous: bool) -> String {
    let about = format!("container {container:?} in pod {:?}", names::name(pod));
    if previous {
        return format!("previous terminated {about} not found");
    }
    let status = pod.status.as_ref();
    let state = status
        .into_iter()
        .flat_map(|s| [&s.container_statuses, &s.init_container_statuses])
        .flat_map(|list| list.iter().flatten())
        .find(|s| s.name == container)
        .and_then(|s| s.state.as_ref());
    match state.map(|s| (&s.waiting, &s.terminated)) {
        Some((Some(waiting), _)) => match waiting.reason.as_deref().unwrap_or("no logs yet") {
            "ErrImagePull" => format!("{about} is waiting to start: image can't be pulled"),
            "ImagePullBackOff" => format!("{about} is waiting to start: trying and failing to pull image"),
            reason => format!("{about} is waiting to start: {reason}"),
        },
        Some((None, Some(_))) => format!("{about} is terminated"),
        _ => format!("{about} is waiting to start - no logs yet"),
    }
}

/// A container's log.
pub(super) async fn logs(
    State(shared): State<Arc<Shared>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<LogQuery>,
) -> Response {
    let options = match options(&query) {
        Ok(o) => o,
        Err(message) => return refuse(StatusCode::UNPROCESSABLE_ENTITY, message),
    };
    let Some((spec, observed)) = find(&shared, &namespace, &pod, None) else {
        return refuse(
            StatusCode::NOT_FOUND,
            format!("pod {pod:?} not found in namespace {namespace:?}"),
        );
    };
    if crate::spec::container(&spec, &container).is_none() {
        return refuse(
            StatusCode::NOT_FOUND,
            format!("container {container:?} not found in pod {pod:?}"),
        );
    }
    let previous = flag(&query.previous);
    let Some((path, id)) = log_of(&observed, &container, previous) else {
        return refuse(StatusCode::BAD_REQUEST, why_no_log(&spec, &container, previous));
    };
    let uid = names::uid(&spec).to_owned();
    let relist = shared.ctx.relist.clone();
    let alive = move || {
        relist.snapshot().get(&uid).is_some_and(|p| {
            p.observed
                .containers
                .iter()
                .any(|c| c.id == id && c.state == ContainerState::Running)
        })
    };
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        if let Err(e) = logs::stream(path.clone(), options, alive, sender).await {
            tracing::debug!("log {}: {e}", path.display());
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let body = Body::from_stream(futures::StreamExt::map(stream, Ok::<_, std::convert::Infallible>));
    ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Container;
    use serde_json::json;

    #[test]
    fn why_there_is_no_log_is_told_from_the_status() {
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let about = "container \"c\" in pod \"p\"";
        for (state, previous, expected) in [
            (
                waiting("ContainerCreating"),
                false,
                format!("{about} is waiting to start: ContainerCreating"),
            ),
            (
                waiting("ErrImagePull"),
                false,
                format!("{about} is waiting to start: image can't be pulled"),
            ),
            (
                waiting("ImagePullBackOff"),
                false,
                format!("{about} is waiting to start: trying and failing to pull image"),
            ),
            (
                json!({"terminated": {"exitCode": 137}}),
                false,
                format!("{about} is terminated"),
            ),
            (json!({}), false, format!("{about} is waiting to start - no logs yet")),
            (
                waiting("CrashLoopBackOff"),
                true,
                format!("previous terminated {about} not found"),
            ),
        ] {
            for list in ["containerStatuses", "initContainerStatuses"] {
                let status =
                    json!({"name": "c", "state": state, "image": "", "imageID": "", "ready": false, "restartCount": 0});
                let pod = json!({"metadata": {"name": "p"}, "status": {list: [status]}});
                let pod: Pod = serde_json::from_value(pod).unwrap();
                assert_eq!(why_no_log(&pod, "c", previous), expected, "{state} in {list}");
            }
        }
    }

    #[test]
    fn previous_is_the_last_dead_one_before_the_current() {
        let c = |id: &str, at: i64, state| Container {
            id: id.into(),
            name: "c".into(),
            created_at: at,
            state,
            log_path: format!("/{id}"),
            ..Default::default()
        };
        let running = Observed {
            containers: vec![c("a", 1, ContainerState::Exited), c("b", 2, ContainerState::Running)],
            ..Default::default()
        };
        assert_eq!(log_of(&running, "c", false).unwrap().1, "b");
        assert_eq!(log_of(&running, "c", true).unwrap().1, "a");
        let first = Observed {
            containers: vec![c("a", 1, ContainerState::Running)],
            ..Default::default()
        };
        assert_eq!(log_of(&first, "c", true), None);
        assert_eq!(log_of(&first, "x", false), None);
    }
}
