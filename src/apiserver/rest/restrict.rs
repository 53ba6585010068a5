//! What authorizers cannot see because it is in the object: nodes keep to themselves (NodeRestriction), nobody grants
//! rights they do not have (RBAC escalation), and signers are approved by name (CertificateApproval, CertificateSigning,
//! CertificateSubjectRestriction).

use api::{Kind, metadata};
use serde_json::Value;

use super::csr;
use crate::admission::{Attributes, Operation};
use crate::app::App;
use crate::authn::{MASTERS, User};
use crate::authz::{self, Decision, Rule, node_name};
use crate::error::{ApiError, Result};

const RBAC: &str = "rbac.authorization.k8s.io";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Checks one write; `old` is the version before an update. The server itself (no user) may do anything.
///
/// # Errors
/// 403.
pub fn check(
    app: &App,
    user: Option<&User>,
    kind: &Kind,
    a: &Attributes<'_>,
    new: &Value,
    old: Option<&Value>,
) -> Result<()> {
    let Some(user) = user else { return Ok(()) };
    if let Some(node) = node_name(user) {
        node_restriction(node, kind, a, new, old)?;
    }
    if kind.group == RBAC && a.subresource.is_empty() {
        escalation(app, user, kind, new, old)?;
    }
    if kind.plural == "certificatesigningrequests" {
        csr::check(app, user, a, new)?;
    }
    Ok(())
}

fn node_restriction(node: &str, kind: &Kind, a: &Attributes<'_>, new: &Value, old: Option<&Value>) -> Result<()> {
    let refuse = |why: String| Err(ApiError::forbidden(kind.group, kind.plural, a.name, &why));
    match (kind.group, kind.plural, a.subresource, a.operation) {
        ("", "pods", "", Operation::Create) => {
            if metadata::annotation(new, MIRROR).is_none() {
                return refuse(format!(
                    "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
                ));
            }
            if new["spec"]["nodeName"] != node {
                return refuse(format!(
                    "node {node:?} can only create pods with spec.nodeName set to itself"
                ));
            }
        }
        ("", "pods", "status", Operation::Update) if old.is_some_and(|o| o["spec"]["nodeName"] != node) => {
            return refuse(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        ("", "pods", "status", Operation::Update) if old.is_some_and(|o| labels_differ(o, new)) => {
            return refuse(format!("node {node:?} cannot update labels through pod status"));
        }
        ("", "nodes", _, Operation::Create | Operation::Update) => {
            if metadata::name(new) != node {
                return refuse(format!("node {node:?} is not allowed to modify node {:?}", a.name));
            }
            return node_object(node, a, new, old);
        }
        ("coordination.k8s.io", "leases", _, _) if metadata::name(new) != node || a.namespace != "kube-node-lease" => {
            return refuse(format!(
                "can only access node lease with the same name as the requesting node {node:?}"
            ));
        }
        _ => {}
    }
    Ok(())
}

fn labels_differ(a: &Value, b: &Value) -> bool {
    let labels = |o: &Value| metadata::labels(o).cloned().unwrap_or_default();
    labels(a) != labels(b)
}

/// Labels that steer workloads to chosen nodes are not the node's to set, nor are its taints once it is there.
fn node_object(node: &str, a: &Attributes<'_>, new: &Value, old: Option<&Value>) -> Result<()> {
    let before = old.and_then(metadata::labels);
    let changed = metadata::labels(new)
        .into_iter()
        .flatten()
        .filter(|(k, v)| before.and_then(|b| b.get(*k)) != Some(v));
    for (key, _) in changed {
        let domain = key.split_once('/').map_or("", |(d, _)| d);
        let theirs = domain == "kubernetes.io"
            || domain.ends_with(".kubernetes.io")
            || domain == "k8s.io"
            || domain.ends_with(".k8s.io");
        if domain.ends_with("node-restriction.kubernetes.io") || (theirs && !kubelet_label(key, domain)) {
            let why = format!("is not allowed to modify labels: {key}");
            return Err(ApiError::forbidden("", "nodes", node, &format!("node {node:?} {why}")));
        }
    }
    if let Some(old) = old
        && a.subresource.is_empty()
        && new["spec"]["taints"] != old["spec"]["taints"]
    {
        return Err(ApiError::forbidden(
            "",
            "nodes",
            node,
            &format!("node {node:?} is not allowed to modify taints"),
        ));
    }
    Ok(())
}

fn kubelet_label(key: &str, domain: &str) -> bool {
    const OWN: &[&str] = &[
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "node.kubernetes.io/windows-build",
    ];
    OWN.contains(&key) || domain.ends_with("kubelet.kubernetes.io") || domain.ends_with("node.kubernetes.io")
}

fn may(app: &App, user: &User, verb: &str, kind: &Kind, resource: &str, namespace: &str, name: &str) -> bool {
    let a = authz::Attributes {
        verb: verb.into(),
        resource_request: true,
        group: kind.group.into(),
        version: kind.version.into(),
        resource: resource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..authz::Attributes::default()
    };
    matches!(app.authz.decide(user, &a), Decision::Allow(_))
}

fn escalation(app: &App, user: &User, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<()> {
    let (namespace, name) = (metadata::namespace(new), metadata::name(new));
    if user.in_group(MASTERS) {
        return Ok(());
    }
    // A label alone may grant: an aggregated role that selects it takes up the rules of this one.
    if old.is_some_and(|old| only_collection_fields_differ(new, old)) {
        return Ok(());
    }
    let granted = match kind.plural {
        "roles" | "clusterroles" => {
            if may(app, user, "escalate", kind, kind.plural, namespace, name) {
                return Ok(());
            }
            let mut granted: Vec<Rule> = api::rbac::rules(new).iter().map(Rule::from_value).collect();
            // Aggregation collects rules nobody can list beforehand: to begin or end it takes the right to everything.
            let is_aggregated = |v: &Value| !v["aggregationRule"].is_null();
            if is_aggregated(new) || old.is_some_and(is_aggregated) {
                granted.extend(everything());
            }
            granted
        }
        _ => {
            let role = &new["roleRef"];
            let (role_kind, role_name) = (
                role["kind"].as_str().unwrap_or_default(),
                role["name"].as_str().unwrap_or_default(),
            );
            let plural = if role_kind == "ClusterRole" {
                "clusterroles"
            } else {
                "roles"
            };
            if may(app, user, "bind", kind, plural, namespace, role_name) {
                return Ok(());
            }
            app.authz
                .rbac
                .role_rules(role_kind, namespace, role_name)
                .ok_or_else(|| ApiError::not_found(RBAC, plural, role_name))?
        }
    };
    let mine = app.authz.rbac.rules(user, namespace);
    match granted.iter().find(|r| !r.covered_by(&mine)) {
        None => Ok(()),
        Some(r) => Err(ApiError::forbidden(
            kind.group,
            kind.plural,
            name,
            &format!(
                "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held: verbs {:?} on {:?} of API groups {:?}",
                user.name, user.groups, r.verbs, r.resources, r.groups
            ),
        )),
    }
}

/// The rules of somebody who may do everything.
fn everything() -> [Rule; 2] {
    [
        serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}),
        serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
    ]
    .map(|rule| Rule::from_value(&rule))
}

/// Whether an update changes nothing but what garbage collection lives on: owners and finalizers.
fn only_collection_fields_differ(new: &Value, old: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            metadata::set(&mut object, field, Value::Null);
        }
        object
    };
    without(new) == without(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_creates_only_mirror_pods_bound_to_itself() {
        let pods = api::kinds::find("", "v1", "pods").unwrap();
        let a = Attributes {
            operation: Operation::Create,
            group: "",
            plural: "pods",
            subresource: "",
            namespace: "a",
            name: "p",
        };
        let mirror = json!({"metadata": {"annotations": {MIRROR: "x"}}, "spec": {"nodeName": "n"}});
        assert!(node_restriction("n", pods, &a, &mirror, None).is_ok());
        assert!(node_restriction("m", pods, &a, &mirror, None).is_err());
        assert!(node_restriction("n", pods, &a, &json!({"spec": {"nodeName": "n"}}), None).is_err());
    }

    #[test]
    fn a_node_does_not_label_pods_through_their_status() {
        let pods = api::kinds::find("", "v1", "pods").unwrap();
        let a = Attributes {
            operation: Operation::Update,
            group: "",
            plural: "pods",
            subresource: "status",
            namespace: "a",
            name: "p",
        };
        let pod = |labels: Value| json!({"metadata": {"name": "p", "labels": labels}, "spec": {"nodeName": "n"}});
        let old = pod(json!({"a": "b"}));
        for (labels, good) in [
            (json!({"a": "b"}), true),
            (json!({"a": "c"}), false),
            (json!(null), false),
        ] {
            assert_eq!(node_restriction("n", pods, &a, &pod(labels), Some(&old)).is_ok(), good);
        }
        let bare = pod(json!(null));
        assert!(node_restriction("n", pods, &a, &pod(json!({})), Some(&bare)).is_ok());
    }

    #[test]
    fn a_node_does_not_label_itself_as_something_better() {
        let nodes = api::kinds::find("", "v1", "nodes").unwrap();
        let a = Attributes {
            operation: Operation::Create,
            group: "",
            plural: "nodes",
            subresource: "",
            namespace: "",
            name: "n",
        };
        for (label, ok) in [
            ("kubernetes.io/hostname", true),
            ("example.com/rack", true),
            ("node-role.kubernetes.io/master", false),
            ("node-restriction.kubernetes.io/x", false),
        ] {
            let n = json!({"metadata": {"name": "n", "labels": {label: "x"}}});
            assert_eq!(node_restriction("n", nodes, &a, &n, None).is_ok(), ok, "{label}");
        }
    }
}
