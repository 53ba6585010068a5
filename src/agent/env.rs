//! A container's environment: `env`, `envFrom`, the downward API, service links, `$(VAR)` expansion. Pure: referenced
//! objects are fetched before and given as [`Refs`].

use crate::names;
use crate::quantity;
use crate::start::StartError;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, ResourceFieldSelector, Secret};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, HashMap};

/// ConfigMaps and Secrets by name; `None` means that the API server says there is none.
#[derive(Debug, Clone, Default)]
pub struct Refs {
    /// ConfigMaps.
    pub config_maps: HashMap<String, Option<ConfigMap>>,
    /// Secrets.
    pub secrets: HashMap<String, Option<Secret>>,
}

/// What of a service appears in environments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceInfo {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Cluster address.
    pub ip: String,
    /// Ports: name, number, protocol.
    pub ports: Vec<(String, i32, String)>,
}

/// Facts about the pod and its node.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Addresses of the pod.
    pub pod_ips: Vec<String>,
    /// Addresses of the node.
    pub host_ips: Vec<String>,
    /// What pods may use on the node, when a container has no limit of its own.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// Replaces `$(NAME)` by the variable's value; `$$` stands for `$`; unknown names stay as they are.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Variables in the order they were defined; a later one of the same name replaces the value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// A variable's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// All variables.
    pub fn into_vec(self) -> Vec<(String, String)> {
        self.0
    }
}

/// Builds a container's environment.
pub fn build(
    pod: &Pod,
    container: &Container,
    refs: &Refs,
    services: &[ServiceInfo],
    facts: &Facts,
) -> Result<Environment, StartError> {
    let links: BTreeMap<String, String> = service_links(pod, services).into_iter().collect();
    let mut out = Environment::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(r) = &from.config_map_ref {
            let optional = r.optional.unwrap_or(false);
            match config_map(refs, &r.name, optional)? {
                Some(map) => map
                    .data
                    .iter()
                    .flatten()
                    .for_each(|(k, v)| out.set(&format!("{prefix}{k}"), v.clone())),
                None => continue,
            }
        }
        if let Some(r) = &from.secret_ref {
            let Some(secret) = secret(refs, &r.name, r.optional.unwrap_or(false))? else {
                continue;
            };
            for (k, v) in secret.data.iter().flatten() {
                out.set(&format!("{prefix}{k}"), String::from_utf8_lossy(&v.0).into_owned());
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), _) if !text.is_empty() => Some(expand(text, |name| {
                out.get(name).or_else(|| links.get(name).map(String::as_str))
            })),
            (_, Some(_)) => value_from(pod, container, var, refs, facts)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            out.set(&var.name, value);
        }
    }
    for (name, value) in links {
        if out.get(&name).is_none() {
            out.0.push((name, value));
        }
    }
    Ok(out)
}

fn config_map<'a>(refs: &'a Refs, name: &str, optional: bool) -> Result<Option<&'a ConfigMap>, StartError> {
    match refs.config_maps.get(name) {
        Some(Some(map)) => Ok(Some(map)),
        _ if optional => Ok(None),
        _ => Err(StartError::config(format!("configmap {name:?} not found"))),
    }
}

fn secret<'a>(refs: &'a Refs, name: &str, optional: bool) -> Result<Option<&'a Secret>, StartError> {
    match refs.secrets.get(name) {
        Some(Some(s)) => Ok(Some(s)),
        _ if optional => Ok(None),
        _ => Err(StartError::config(format!("secret {name:?} not found"))),
    }
}

fn value_from(
    pod: &Pod,
    container: &Container,
    var: &EnvVar,
    refs: &Refs,
    facts: &Facts,
) -> Result<Option<String>, StartError> {
    let Some(source) = &var.value_from else { return Ok(None) };
    if let Some(f) = &source.field_ref {
        return field(pod, &f.field_path, facts)
            .map(Some)
            .ok_or_else(|| StartError::config(format!("env {}: unsupported field path {:?}", var.name, f.field_path)));
    }
    if let Some(r) = &source.resource_field_ref {
        return resource(pod, Some(&container.name), r, facts)
            .map(Some)
            .map_err(StartError::config);
    }
    if let Some(k) = &source.config_map_key_ref {
        let optional = k.optional.unwrap_or(false);
        let Some(map) = config_map(refs, &k.name, optional)? else {
            return Ok(None);
        };
        return match map.data.as_ref().and_then(|d| d.get(&k.key)) {
            Some(v) => Ok(Some(v.clone())),
            None if optional => Ok(None),
            None => Err(StartError::config(format!(
                "couldn't find key {} in ConfigMap {}/{}",
                k.key,
                names::namespace(pod),
                k.name
            ))),
        };
    }
    if let Some(k) = &source.secret_key_ref {
        let optional = k.optional.unwrap_or(false);
        let Some(secret) = secret(refs, &k.name, optional)? else {
            return Ok(None);
        };
        return match secret.data.as_ref().and_then(|d| d.get(&k.key)) {
            Some(v) => Ok(Some(String::from_utf8_lossy(&v.0).into_owned())),
            None if optional => Ok(None),
            None => Err(StartError::config(format!(
                "couldn't find key {} in Secret {}/{}",
                k.key,
                names::namespace(pod),
                k.name
            ))),
        };
    }
    Err(StartError::config(format!(
        "env {}: this kind of source is not supported",
        var.name
    )))
}

/// A field of the pod by the downward API's path; `None` if there is no such path.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Option<String> {
    let m = &pod.metadata;
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels") {
        return Some(m.labels.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Some(
            m.annotations
                .as_ref()
                .and_then(|l| l.get(key))
                .cloned()
                .unwrap_or_default(),
        );
    }
    let spec = pod.spec.as_ref();
    Some(match path {
        "metadata.name" => names::name(pod).to_owned(),
        "metadata.namespace" => names::namespace(pod).to_owned(),
        "metadata.uid" => names::uid(pod).to_owned(),
        "metadata.labels" => map_text(m.labels.as_ref()),
        "metadata.annotations" => map_text(m.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return None,
    })
}

/// Labels or annotations as a downward API file shows them: `key="escaped"` lines, sorted.
fn map_text(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={v:?}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A container's resource by `resourceFieldRef`.
pub fn resource(pod: &Pod, own: Option<&str>, r: &ResourceFieldSelector, facts: &Facts) -> Result<String, String> {
    let name = r
        .container_name
        .as_deref()
        .filter(|n| !n.is_empty())
        .or(own)
        .unwrap_or_default();
    let (_, container) = crate::spec::container(pod, name).ok_or_else(|| format!("container {name:?} not found"))?;
    let (list, resource) = r
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported resource {:?}", r.resource))?;
    let resources = container.resources.as_ref();
    let amount = match list {
        "limits" => resources
            .and_then(|x| x.limits.as_ref())
            .and_then(|l| l.get(resource))
            .or_else(|| unlimited(pod, resource, facts)),
        "requests" => resources
            .and_then(|x| x.requests.as_ref())
            .and_then(|l| l.get(resource)),
        _ => return Err(format!("unsupported resource {:?}", r.resource)),
    };
    let divisor = r
        .divisor
        .as_ref()
        .map(|d| d.0.as_str())
        .filter(|d| *d != "0")
        .unwrap_or("1");
    let bad = |text: &str| format!("{}: {text:?} is no quantity", r.resource);
    let number = |text: &str| quantity::in_unit_of(resource, text).ok_or_else(|| bad(text));
    let divisor = number(divisor).and_then(|d| if d > 0 { Ok(d) } else { Err(bad(divisor)) })?;
    let value = match amount {
        None => 0,
        Some(q) => number(&q.0)?,
    };
    Ok(((i128::from(value) + i128::from(divisor) - 1) / i128::from(divisor)).to_string())
}

/// What a container without a limit is limited by: its pod as a whole, or what pods may use of the node.
fn unlimited<'a>(pod: &'a Pod, resource: &str, facts: &'a Facts) -> Option<&'a Quantity> {
    let number = |q: &Quantity| quantity::in_unit_of(resource, &q.0);
    let of_node = facts
        .allocatable
        .get(resource)
        .filter(|_| matches!(resource, "cpu" | "memory" | "ephemeral-storage"))?;
    let spec = pod.spec.as_ref();
    let of_pod = spec
        .and_then(|s| s.resources.as_ref()?.limits.as_ref()?.get(resource))
        .filter(|q| matches!(resource, "cpu" | "memory") && number(q) <= number(of_node));
    of_pod.or(Some(of_node))
}

/// Variables that tell of services: those of the pod's namespace if it wants links, and always the API server's.
pub fn service_links(pod: &Pod, services: &[ServiceInfo]) -> Vec<(String, String)> {
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let mut out = vec![];
    for s in services {
        let master = s.namespace == "default" && s.name == "kubernetes";
        if !(master || links && s.namespace == names::namespace(pod)) || s.ports.is_empty() {
            continue;
        }
        let prefix = s.name.to_uppercase().replace('-', "_");
        let host = if s.ip.contains(':') {
            format!("[{}]", s.ip)
        } else {
            s.ip.clone()
        };
        let (_, first_port, first_protocol) = &s.ports[0];
        out.push((format!("{prefix}_SERVICE_HOST"), s.ip.clone()));
        out.push((format!("{prefix}_SERVICE_PORT"), first_port.to_string()));
        for (name, number, _) in s.ports.iter().filter(|p| !p.0.is_empty()) {
            out.push((
                format!("{prefix}_SERVICE_PORT_{}", name.to_uppercase().replace('-', "_")),
                number.to_string(),
            ));
        }
        out.push((
            format!("{prefix}_PORT"),
            format!("{}://{host}:{first_port}", first_protocol.to_lowercase()),
        ));
        for (_, number, protocol) in &s.ports {
            let p = format!("{prefix}_PORT_{number}_{protocol}");
            out.push((p.clone(), format!("{}://{host}:{number}", protocol.to_lowercase())));
            out.push((format!("{p}_PROTO"), protocol.to_lowercase()));
            out.push((format!("{p}_PORT"), number.to_string()));
            out.push((format!("{p}_ADDR"), s.ip.clone()));
        }
    }
    out
}

/// Names of the ConfigMaps and Secrets that environments of a container refer to.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (vec![], vec![]);
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn expansion_is_kubernetes() {
        let vars = Environment(vec![("A".into(), "1".into()), ("B".into(), "".into())]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)z", "x1yz"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(C)", "$(C)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("a$$", "a$"),
        ] {
            assert_eq!(expand(text, |n| vars.get(n)), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_dollars_is_left_alone(text in "[^$]*") {
            prop_assert_eq!(expand(&text, |_| Some("x")), text);
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b\"c"}},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}},
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [{"name": "X", "value": "$(P_k)-$(KUBERNETES_SERVICE_HOST)"},
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}]}]}}))
        .unwrap()
    }

    #[test]
    fn a_limit_that_a_container_lacks_is_the_one_of_its_pod_or_of_the_node() {
        let facts = Facts {
            allocatable: [("cpu", "4"), ("memory", "100P"), ("ephemeral-storage", "1Gi")]
                .map(|(k, v)| (k.to_owned(), Quantity(v.into())))
                .into(),
            ..Default::default()
        };
        let pod: Pod = serde_json::from_value(json!({"spec": {"resources": {"limits": {"cpu": "2", "memory": "200P"}},
            "containers": [{"name": "c"}, {"name": "d", "resources": {"limits": {"cpu": "1", "memory": "10P"}}}]}}))
        .unwrap();
        for (container, name, divisor, expected) in [
            ("c", "limits.cpu", "1m", "2000"),
            ("c", "limits.memory", "1", "100000000000000000"),
            ("c", "limits.ephemeral-storage", "1Mi", "1024"),
            ("c", "requests.cpu", "1", "0"),
            ("d", "limits.cpu", "1", "1"),
            ("d", "limits.memory", "1", "10000000000000000"),
        ] {
            let selector = json!({"containerName": container, "resource": name, "divisor": divisor});
            let selector: ResourceFieldSelector = serde_json::from_value(selector).unwrap();
            assert_eq!(
                resource(&pod, None, &selector, &facts).as_deref(),
                Ok(expected),
                "{container} {name}"
            );
        }
    }

    #[test]
    fn an_environment_is_built_from_all_its_sources() {
        let pod = pod();
        let mut refs = Refs::default();
        refs.config_maps.insert(
            "m".into(),
            Some(ConfigMap {
                data: Some([("k".to_owned(), "v".to_owned())].into()),
                ..Default::default()
            }),
        );
        let services = [ServiceInfo {
            namespace: "default".into(),
            name: "kubernetes".into(),
            ip: "10.96.0.1".into(),
            ports: vec![("https".into(), 443, "TCP".into())],
        }];
        let env = build(
            &pod,
            &pod.spec.as_ref().unwrap().containers[0],
            &refs,
            &services,
            &Facts::default(),
        )
        .unwrap();
        for (name, value) in [
            ("P_k", "v"),
            ("X", "v-10.96.0.1"),
            ("NAME", "p"),
            ("LABEL", "b\"c"),
            ("CPU", "2"),
            ("MEM", "64"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("KUBERNETES_PORT_443_TCP_ADDR", "10.96.0.1"),
            ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
        ] {
            assert_eq!(env.get(name), Some(value), "{name}");
        }
        assert_eq!(
            field(&pod, "metadata.labels", &Facts::default()).unwrap(),
            "a=\"b\\\"c\""
        );
        let error = build(
            &pod,
            &pod.spec.as_ref().unwrap().containers[0],
            &Refs::default(),
            &[],
            &Facts::default(),
        )
        .unwrap_err();
        assert_eq!(
            (error.reason, error.message.as_str()),
            ("CreateContainerConfigError", "configmap \"m\" not found")
        );
    }
}
