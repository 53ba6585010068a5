//! Binding of pods, and what is passed on: logs, exec, attach, port-forward, proxies.

use api::{Kind, metadata};
use http::header::HeaderValue;
use http::{Method, Request, Uri};
use hyper::body::Incoming;
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::body::{self, WriteOptions};
use super::{Context, logs};
use crate::error::{ApiError, Result};
use crate::objects::{self, Modify};
use crate::proxy::{self, Target as Far, Tls};
use crate::server::{Response, json as answer, negotiated};

fn pod_kind() -> Result<&'static Kind> {
    api::kinds::find("", "v1", "pods").ok_or_else(ApiError::no_such_path)
}

pub(super) fn created() -> Response {
    answer(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    )
}

/// Answers `pods/binding`.
///
/// # Errors
/// The refusal; 409 for pods that are bound or going.
pub async fn bind(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let options = WriteOptions::parse(c)?;
    let (mut binding, _) = body::object(None, ("", "v1", "Binding"), &options, request).await?;
    body::place(c, kind, &mut binding)?;
    assign(c, &binding, options.dry).await
}

/// Answers a create of `bindings`, whose name is in the body.
///
/// # Errors
/// As [`bind`].
pub async fn bind_by_body(c: &Context, request: Request<Incoming>) -> Result<Response> {
    let options = WriteOptions::parse(c)?;
    let (mut binding, _) = body::object(None, ("", "v1", "Binding"), &options, request).await?;
    body::place(c, pod_kind()?, &mut binding)?;
    assign(c, &binding, options.dry).await
}

async fn assign(c: &Context, binding: &Value, dry: bool) -> Result<Response> {
    let kind = pod_kind()?;
    let name = metadata::name(binding).to_owned();
    let node = objects::text(binding, "/target/name").to_owned();
    let target_kind = objects::text(binding, "/target/kind");
    if node.is_empty() || !matches!(target_kind, "" | "Node" | "Minion") {
        return Err(ApiError::bad_request("a binding's target must be a Node with a name"));
    }
    let conflict = |why: &str| Err(ApiError::conflict("", "pods/binding", &name, why));
    objects::modify(&c.app, kind, c.namespace(kind), &name, dry, |pod| {
        let uid = metadata::uid(binding);
        if !uid.is_empty() && uid != metadata::uid(pod) {
            return conflict(&format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                metadata::uid(pod)
            ));
        }
        if metadata::deletion_timestamp(pod).is_some() {
            return conflict(&format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        let bound = objects::text(pod, "/spec/nodeName");
        if !bound.is_empty() {
            return conflict(&format!("pod {name} is already assigned to node {bound:?}"));
        }
        if pod["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
            return conflict(&format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        let mut new = pod.clone();
        new["spec"]["nodeName"] = node.as_str().into();
        for (k, v) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            metadata::child_mut(&mut new["metadata"], "annotations").insert(k.clone(), v.clone());
        }
        set_condition(&mut new, json!({"type": "PodScheduled", "status": "True"}));
        Ok(Modify::Write(new))
    })
    .await?;
    Ok(created())
}

/// Writes a pod condition; the time of the transition moves only with the status.
pub(super) fn set_condition(pod: &mut Value, mut condition: Value) {
    let now = api::time::time(Timestamp::now());
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let generation = metadata::generation(pod);
    let Some(list) = pod["status"]["conditions"].as_array_mut() else {
        return;
    };
    condition["lastTransitionTime"] = now.into();
    condition["lastProbeTime"] = Value::Null;
    if generation > 0 {
        condition["observedGeneration"] = generation.into();
    }
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(old) => {
            if old["status"] == condition["status"] {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = condition;
        }
        None => list.push(condition),
    }
}

/// Answers requests that another server answers.
///
/// # Errors
/// 503 if that one cannot be reached.
pub async fn proxied(c: &Context, kind: &'static Kind, request: Request<Incoming>) -> Result<Response> {
    let upgrade = proxy::is_upgrade(request.method(), request.headers());
    let sub = c.info.subresource.as_str();
    if upgrade && c.info.verb == "get" && matches!(sub, "exec" | "attach" | "portforward") {
        // A web socket is opened by GET, but does what a POST does.
        c.app.authz.require(&c.user, &c.action("create"))?;
    }
    let target = match (kind.plural, sub) {
        ("pods", "proxy") => pod_target(c, &request).await?,
        ("services", "proxy") => service_target(c, &request)?,
        ("nodes", "proxy") => node_target(c, &request).await?,
        _ => match kubelet_target(c, kind).await? {
            Some(t) if sub == "log" => return logs::follow(c, request, &t).await,
            Some(t) => t,
            None => return Ok(negotiated(200, "text/plain", crate::body::Body::empty())),
        },
    };
    let prefix = (sub == "proxy").then(|| proxy::proxy_prefix(request.uri().path(), kind.namespaced));
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !upgrade && reads && prefix.as_deref() == Some(request.uri().path()) {
        // Relative links of a page count from the last slash.
        return Ok(moved(request.uri()));
    }
    let stop = c.app.stop.clone();
    c.app.kubelets.forward(request, &target, prefix, stop).await
}

/// Sends the caller to the same path with a slash at its end.
fn moved(uri: &Uri) -> Response {
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut response = negotiated(301, "text/plain", crate::body::Body::empty());
    if let Ok(place) = HeaderValue::from_str(&format!("{}/{query}", uri.path())) {
        response.headers_mut().insert(http::header::LOCATION, place);
    }
    response
}

fn escaped(s: &str) -> String {
    utf8_percent_encode(s, NON_ALPHANUMERIC).to_string()
}

/// Where a pod's kubelet serves logs and streams; `None` for the logs of a pod without a node: there are none yet.
async fn kubelet_target(c: &Context, kind: &'static Kind) -> Result<Option<Far>> {
    let pod = objects::read(&c.app, kind, c.namespace(kind), &c.info.name).await?;
    let node = objects::text(&pod, "/spec/nodeName");
    let sub = c.info.subresource.as_str();
    let container = container(&pod, c.info.query.get("container"), sub)?;
    if node.is_empty() {
        if sub == "log" {
            return Ok(None);
        }
        return Err(ApiError::bad_request(format!(
            "pod {} does not have a host assigned",
            c.info.name
        )));
    }
    let nodes = api::kinds::find("", "v1", "nodes").ok_or_else(ApiError::no_such_path)?;
    let node = objects::read(&c.app, nodes, "", node).await?;
    let place = format!("{}/{}", c.info.namespace, c.info.name);
    let (path, renamed): (String, &[(&str, &str)]) = match sub {
        "log" => (format!("/containerLogs/{place}/{container}"), &[]),
        "exec" => (format!("/exec/{place}/{container}"), STREAMS),
        "attach" => (format!("/attach/{place}/{container}"), STREAMS),
        _ => (format!("/portForward/{place}"), &[("ports", "port")]),
    };
    let query: Vec<String> = c
        .info
        .query
        .pairs()
        .iter()
        .filter(|(k, _)| k != "container" && k != "insecureSkipTLSVerifyBackend")
        .map(|(k, v)| {
            let name = renamed
                .iter()
                .find(|(from, _)| from == k)
                .map_or(k.as_str(), |(_, to)| to);
            let value = if renamed == STREAMS && matches!(v.as_str(), "true" | "TRUE" | "True") {
                "1"
            } else {
                v
            };
            format!("{}={}", escaped(name), escaped(value))
        })
        .collect();
    let path = if query.is_empty() {
        path
    } else {
        format!("{path}?{}", query.join("&"))
    };
    proxy::kubelet_of(&node, path).map(Some)
}

/// Names of the streams, here and at the kubelet.
const STREAMS: &[(&str, &str)] = &[("stdin", "input"), ("stdout", "output"), ("stderr", "error")];

fn container(pod: &Value, asked: Option<&str>, sub: &str) -> Result<String> {
    if sub == "portforward" {
        return Ok(String::new());
    }
    let names = |f: &str| -> Vec<String> {
        let list = pod["spec"][f].as_array();
        list.into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str())
            .map(str::to_owned)
            .collect()
    };
    let (main, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    let pod_name = metadata::name(pod);
    match asked {
        Some(n) if [&main, &init, &ephemeral].into_iter().flatten().any(|x| x == n) => Ok(n.to_owned()),
        Some(n) => Err(ApiError::bad_request(format!(
            "container {n} is not valid for pod {pod_name}"
        ))),
        None if main.len() == 1 => Ok(main[0].clone()),
        None => {
            let mut text = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                main.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::bad_request(text))
        }
    }
}

async fn pod_target(c: &Context, request: &Request<Incoming>) -> Result<Far> {
    let (tls, name, port) = proxy::proxy_name(&c.info.name)?;
    let pod = objects::read(&c.app, pod_kind()?, &c.info.namespace, name).await?;
    let ip = objects::text(&pod, "/status/podIP");
    if ip.is_empty() {
        return Err(ApiError::unavailable(format!("no IP address for pod {name}")));
    }
    let ports = || {
        pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|c| c["ports"].as_array().into_iter().flatten())
    };
    let port = match port.parse::<u16>() {
        Ok(p) => p,
        Err(_) => ports()
            .find(|p| port.is_empty() || p["name"] == port)
            .and_then(|p| p["containerPort"].as_u64())
            .and_then(|p| u16::try_from(p).ok())
            .unwrap_or(80),
    };
    Ok(Far {
        host: ip.to_owned(),
        port,
        tls,
        path: proxy::proxied_path(&c.info.rest, request.uri()),
    })
}

async fn node_target(c: &Context, request: &Request<Incoming>) -> Result<Far> {
    let (tls, name, port) = proxy::proxy_name(&c.info.name)?;
    let kind = api::kinds::find("", "v1", "nodes").ok_or_else(ApiError::no_such_path)?;
    let node = objects::read(&c.app, kind, "", name).await?;
    let mut target = proxy::kubelet_of(&node, proxy::proxied_path(&c.info.rest, request.uri()))?;
    if let Ok(p) = port.parse::<u16>()
        && p != target.port
    {
        target.port = p;
        target.tls = tls;
    }
    Ok(target)
}

/// One ready endpoint of a Service's port.
fn service_target(c: &Context, request: &Request<Incoming>) -> Result<Far> {
    let (tls, name, port) = proxy::proxy_name(&c.info.name)?;
    let namespace = c.info.namespace.as_str();
    let absent = || ApiError::not_found("", "services", name);
    let service = c
        .app
        .cache
        .kind("", "services")
        .and_then(|k| k.get(namespace, name))
        .ok_or_else(absent)?
        .value();
    let ports = service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let number = port.parse::<u64>().ok();
    let wanted = match ports {
        [only] if port.is_empty() => Some(only),
        _ => ports
            .iter()
            .find(|p| p["name"] == port || number.is_some_and(|n| p["port"] == n)),
    };
    let no_port = || ApiError::unavailable(format!("no service port {port:?} found for service {name:?}"));
    let port_name = objects::text(wanted.ok_or_else(no_port)?, "/name").to_owned();
    let none = || ApiError::unavailable(format!("no endpoints available for service {name:?}"));
    let slices = c
        .app
        .cache
        .kind("discovery.k8s.io", "endpointslices")
        .ok_or_else(none)?;
    let slices = slices.list(namespace, 0, |o| o.label("kubernetes.io/service-name") == Some(name));
    let mut found: Vec<(String, u16)> = Vec::new();
    for slice in slices.items.iter().map(|o| o.value()) {
        let port = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| objects::text(p, "/name") == port_name);
        let Some(port) = port
            .and_then(|p| p["port"].as_u64())
            .and_then(|p| u16::try_from(p).ok())
        else {
            continue;
        };
        for e in slice["endpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|e| e["conditions"]["ready"] != false)
        {
            found.extend(e["addresses"][0].as_str().map(|a| (a.to_owned(), port)));
        }
    }
    if found.is_empty() {
        return Err(none());
    }
    let (host, port) = found.swap_remove(rand::random_range(0..found.len()));
    let tls = if tls == Tls::Plain { Tls::Plain } else { Tls::Unverified };
    Ok(Far {
        host,
        port,
        tls,
        path: proxy::proxied_path(&c.info.rest, request.uri()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_container_needs_no_name() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(container(&one, None, "log").unwrap(), "a");
        assert_eq!(container(&one, Some("i"), "log").unwrap(), "i");
        assert!(container(&one, Some("x"), "log").is_err());
        assert!(
            container(&two, None, "log")
                .unwrap_err()
                .message
                .contains("choose one of: [a b]")
        );
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let mut pod = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "then"}]}});
        set_condition(&mut pod, json!({"type": "PodScheduled", "status": "True"}));
        assert_eq!(pod["status"]["conditions"][0]["lastTransitionTime"], "then");
        set_condition(&mut pod, json!({"type": "PodScheduled", "status": "False"}));
        assert_ne!(pod["status"]["conditions"][0]["lastTransitionTime"], "then");
    }
}
