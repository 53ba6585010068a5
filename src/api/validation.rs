//! Which objects are refused, field by field, in the words of Kubernetes.
//!
//! Objects are expected to be pruned, defaulted and prepared already: JSON types are right, and what is missing now was not
//! to be had.

mod access;
mod cluster;
mod config;
mod container;
mod endpoints;
mod error;
mod meta;
mod mount;
pub mod names;
mod pod;
mod pod_fields;
mod probe;
mod resources;
mod rules;
mod security;
mod service;
mod volume;
mod workload;

use serde_json::Value;

use crate::kinds::Kind;
use rules::Errors;

pub use error::{FieldError, Reason};

/// Errors of an object that is to be created.
pub fn validate_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut out = Errors::new();
    if kind.stored() {
        meta::create(&mut out, kind, object);
    }
    content(&mut out, kind, object);
    match kind.message {
        "core.v1.Pod" => pod::create(&mut out, object),
        "core.v1.Service" => service::service(&mut out, object),
        "core.v1.Node" => cluster::node(&mut out, object),
        "discovery.v1.EndpointSlice" => endpoints::slice(&mut out, object),
        "apps.v1.ControllerRevision" => workload::revision(&mut out, object, None),
        "node.v1.RuntimeClass" => cluster::runtime_class(&mut out, object, None),
        "storage.v1.StorageClass" => cluster::storage_class(&mut out, object, None),
        "scheduling.v1.PriorityClass" => cluster::priority_class(&mut out, object),
        "certificates.v1.CertificateSigningRequest" => access::certificate_request(&mut out, object),
        "core.v1.Event" => cluster::event(&mut out, object),
        "events.v1.Event" => cluster::events_event(&mut out, object),
        "core.v1.Binding" => cluster::binding(&mut out, object),
        _ => {}
    }
    pod_fields::check(&mut out, kind, object, None);
    out
}

/// What holds for the content of new and changed objects alike.
fn content(out: &mut Errors, kind: &Kind, object: &Value) {
    match kind.message {
        "core.v1.ConfigMap" => config::config_map(out, object),
        "core.v1.Secret" => config::secret(out, object),
        "core.v1.Namespace" => cluster::namespace(out, object),
        "core.v1.Endpoints" => endpoints::endpoints(out, object),
        "core.v1.PodTemplate" => pod::template(out, &object["template"], "template"),
        "apps.v1.Deployment" => workload::deployment(out, object),
        "apps.v1.ReplicaSet" => workload::replica_set(out, object),
        "apps.v1.DaemonSet" => workload::daemon_set(out, object),
        "policy.v1.PodDisruptionBudget" => workload::budget(out, object),
        "rbac.v1.Role" => access::role(out, object, true),
        "rbac.v1.ClusterRole" => access::role(out, object, false),
        "rbac.v1.RoleBinding" => access::binding(out, object, true),
        "rbac.v1.ClusterRoleBinding" => access::binding(out, object, false),
        "coordination.v1.Lease" => cluster::lease(out, object),
        _ => {}
    }
}

/// Errors of a change; `subresource` is the one written through, if any.
pub fn validate_update(kind: &Kind, new: &Value, old: &Value, subresource: Option<&str>) -> Vec<FieldError> {
    let mut out = Errors::new();
    meta::update(&mut out, new, old);
    match subresource {
        None | Some("scale") => main_update(&mut out, kind, new, old),
        Some("ephemeralcontainers") => pod::ephemeral_update(&mut out, new, old),
        Some("finalize") => cluster::namespace(&mut out, new),
        Some("status" | "approval") => match kind.message {
            "core.v1.Node" => cluster::node(&mut out, new),
            "certificates.v1.CertificateSigningRequest" => {
                access::certificate_request_update(&mut out, new, old);
                if subresource == Some("status") {
                    access::certificate_request_status(&mut out, new, old);
                }
            }
            m if m.starts_with("apps.v1.") => workload::status(&mut out, new),
            _ => {}
        },
        Some(_) => {}
    }
    pod_fields::check(&mut out, kind, new, Some(old));
    out
}

fn main_update(out: &mut Errors, kind: &Kind, new: &Value, old: &Value) {
    content(out, kind, new);
    match kind.message {
        "core.v1.Pod" => pod::update(out, new, old),
        "core.v1.Service" => service::update(out, new, old),
        "core.v1.Node" => cluster::node_update(out, new, old),
        "core.v1.ConfigMap" => config::immutable(out, new, old),
        "core.v1.Secret" => {
            rules::immutable(out, new, old, "", "type");
            config::immutable(out, new, old);
        }
        "apps.v1.Deployment" | "apps.v1.ReplicaSet" | "apps.v1.DaemonSet" => workload::selector_kept(out, new, old),
        "apps.v1.ControllerRevision" => workload::revision(out, new, Some(old)),
        "discovery.v1.EndpointSlice" => endpoints::slice_update(out, new, old),
        "rbac.v1.RoleBinding" | "rbac.v1.ClusterRoleBinding" => access::binding_kept(out, new, old),
        "certificates.v1.CertificateSigningRequest" => access::certificate_request_update(out, new, old),
        "scheduling.v1.PriorityClass" => cluster::priority_class_update(out, new, old),
        "node.v1.RuntimeClass" => cluster::runtime_class(out, new, Some(old)),
        "storage.v1.StorageClass" => cluster::storage_class(out, new, Some(old)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
