//! Why objects of a version and kind cannot be applied here: for those who judge manifests before there is a server to ask.

use super::{find_by_kind, join_api_version, kinds, split_api_version};
use std::fmt;

/// The version of Kubernetes whose API this is.
const KUBERNETES: &str = "1.36";

/// Why a kind is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unserved {
    /// Kubernetes served this version of it once.
    Removed {
        /// The first release without it, such as `1.25`.
        since: &'static str,
        /// The version to write instead, such as `policy/v1`; none if the kind itself is gone.
        instead: Option<&'static str>,
    },
    /// Another version of it is served here.
    OtherVersion(String),
    /// Its group belongs to Kubernetes, and it is not served here.
    BuiltIn,
    /// Its group belongs to somebody else: a definition would have to make it known.
    Custom,
    /// It is answered and not kept.
    NotKept,
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed { since, instead: None } => {
                write!(f, "Kubernetes serves no such kind since {since}; take it out")
            }
            Self::Removed {
                since,
                instead: Some(instead),
            } => write!(
                f,
                "Kubernetes does not serve this version since {since}; write {instead}"
            ),
            Self::OtherVersion(instead) => {
                write!(
                    f,
                    "Kubernetes {KUBERNETES} does not serve this version; write {instead}"
                )
            }
            Self::BuiltIn => f.write_str("this distribution's API server does not serve this kind"),
            Self::Custom => {
                f.write_str("this distribution's API server knows no such kind, and custom ones are not supported")
            }
            Self::NotKept => f.write_str("objects of this kind are requests, which cannot be applied"),
        }
    }
}

impl Unserved {
    /// Whether this is so wherever Kubernetes of this version runs, and not only here.
    pub fn is_by_kubernetes(&self) -> bool {
        matches!(self, Self::Removed { .. } | Self::OtherVersion(_) | Self::NotKept)
    }
}

/// Why objects of this version and kind cannot be applied; `None` if they can.
pub fn unserved(api_version: &str, kind: &str) -> Option<Unserved> {
    let (group, version) = split_api_version(api_version);
    if let Some(kind) = find_by_kind(group, version, kind) {
        return (!kind.verbs.contains(&"patch")).then_some(Unserved::NotKept);
    }
    let removed = REMOVED
        .iter()
        .find(|row| row.api_version == api_version && row.kinds.contains(&kind));
    if let Some(row) = removed {
        return Some(Unserved::Removed {
            since: row.since,
            instead: row.instead,
        });
    }
    if !is_of_kubernetes(group) {
        return Some(Unserved::Custom);
    }
    let other = kinds().iter().find(|known| known.group == group && known.kind == kind);
    Some(match other {
        Some(known) => Unserved::OtherVersion(join_api_version(known.group, known.version)),
        None => Unserved::BuiltIn,
    })
}

/// Whether an API group is Kubernetes' own. Its domain is used by add-ons too, so the groups are listed.
fn is_of_kubernetes(group: &str) -> bool {
    match group.strip_suffix(".k8s.io") {
        Some(short) => K8S_IO.contains(&short),
        None => ["", "apps", "autoscaling", "batch", "extensions", "policy"].contains(&group),
    }
}

/// Kubernetes' groups in its domain `k8s.io`, those of versions before included.
const K8S_IO: &[&str] = &[
    "admissionregistration",
    "apiextensions",
    "apiregistration",
    "auditregistration",
    "authentication",
    "authorization",
    "certificates",
    "coordination",
    "discovery",
    "events",
    "flowcontrol.apiserver",
    "internal.apiserver",
    "networking",
    "node",
    "rbac.authorization",
    "resource",
    "scheduling",
    "settings",
    "storage",
    "storagemigration",
];

/// Kinds that a version of a group had, the first release without them, and the version to write instead.
struct Removed {
    api_version: &'static str,
    kinds: &'static [&'static str],
    since: &'static str,
    instead: Option<&'static str>,
}

const fn removed(
    api_version: &'static str,
    kinds: &'static [&'static str],
    since: &'static str,
    instead: &'static str,
) -> Removed {
    Removed {
        api_version,
        kinds,
        since,
        instead: Some(instead),
    }
}

const WORKLOADS: &[&str] = &[
    "ControllerRevision",
    "DaemonSet",
    "Deployment",
    "ReplicaSet",
    "StatefulSet",
];
const ROLES: &[&str] = &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
const WEBHOOKS: &[&str] = &["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];
const FLOWS: &[&str] = &["FlowSchema", "PriorityLevelConfiguration"];
const FLOW_V1: &str = "flowcontrol.apiserver.k8s.io/v1";
const SCALER: &[&str] = &["HorizontalPodAutoscaler"];
const REVIEWS: &[&str] = &[
    "LocalSubjectAccessReview",
    "SelfSubjectAccessReview",
    "SelfSubjectRulesReview",
    "SubjectAccessReview",
];

/// From Kubernetes' guide to removed API versions.
const REMOVED: &[Removed] = &[
    removed("extensions/v1beta1", WORKLOADS, "1.16", "apps/v1"),
    removed("apps/v1beta1", WORKLOADS, "1.16", "apps/v1"),
    removed("apps/v1beta2", WORKLOADS, "1.16", "apps/v1"),
    removed("extensions/v1beta1", &["NetworkPolicy"], "1.16", "networking.k8s.io/v1"),
    Removed {
        instead: None,
        ..removed("extensions/v1beta1", &["PodSecurityPolicy"], "1.16", "")
    },
    removed("extensions/v1beta1", &["Ingress"], "1.22", "networking.k8s.io/v1"),
    removed(
        "networking.k8s.io/v1beta1",
        &["Ingress", "IngressClass"],
        "1.22",
        "networking.k8s.io/v1",
    ),
    removed(
        "admissionregistration.k8s.io/v1beta1",
        WEBHOOKS,
        "1.22",
        "admissionregistration.k8s.io/v1",
    ),
    removed(
        "apiextensions.k8s.io/v1beta1",
        &["CustomResourceDefinition"],
        "1.22",
        "apiextensions.k8s.io/v1",
    ),
    removed(
        "apiregistration.k8s.io/v1beta1",
        &["APIService"],
        "1.22",
        "apiregistration.k8s.io/v1",
    ),
    removed(
        "authentication.k8s.io/v1beta1",
        &["TokenReview"],
        "1.22",
        "authentication.k8s.io/v1",
    ),
    removed(
        "authorization.k8s.io/v1beta1",
        REVIEWS,
        "1.22",
        "authorization.k8s.io/v1",
    ),
    removed(
        "certificates.k8s.io/v1beta1",
        &["CertificateSigningRequest"],
        "1.22",
        "certificates.k8s.io/v1",
    ),
    removed(
        "coordination.k8s.io/v1beta1",
        &["Lease"],
        "1.22",
        "coordination.k8s.io/v1",
    ),
    removed(
        "rbac.authorization.k8s.io/v1alpha1",
        ROLES,
        "1.22",
        "rbac.authorization.k8s.io/v1",
    ),
    removed(
        "rbac.authorization.k8s.io/v1beta1",
        ROLES,
        "1.22",
        "rbac.authorization.k8s.io/v1",
    ),
    removed(
        "scheduling.k8s.io/v1alpha1",
        &["PriorityClass"],
        "1.22",
        "scheduling.k8s.io/v1",
    ),
    removed(
        "scheduling.k8s.io/v1beta1",
        &["PriorityClass"],
        "1.22",
        "scheduling.k8s.io/v1",
    ),
    removed(
        "storage.k8s.io/v1beta1",
        &["CSIDriver", "CSINode", "StorageClass", "VolumeAttachment"],
        "1.22",
        "storage.k8s.io/v1",
    ),
    removed("batch/v2alpha1", &["CronJob"], "1.21", "batch/v1"),
    removed("batch/v1beta1", &["CronJob"], "1.25", "batch/v1"),
    removed(
        "discovery.k8s.io/v1beta1",
        &["EndpointSlice"],
        "1.25",
        "discovery.k8s.io/v1",
    ),
    removed("events.k8s.io/v1beta1", &["Event"], "1.25", "events.k8s.io/v1"),
    removed("autoscaling/v2beta1", SCALER, "1.25", "autoscaling/v2"),
    removed("autoscaling/v2beta2", SCALER, "1.26", "autoscaling/v2"),
    removed("policy/v1beta1", &["PodDisruptionBudget"], "1.25", "policy/v1"),
    Removed {
        instead: None,
        ..removed("policy/v1beta1", &["PodSecurityPolicy"], "1.25", "")
    },
    removed("node.k8s.io/v1beta1", &["RuntimeClass"], "1.25", "node.k8s.io/v1"),
    removed(
        "storage.k8s.io/v1beta1",
        &["CSIStorageCapacity"],
        "1.27",
        "storage.k8s.io/v1",
    ),
    removed("flowcontrol.apiserver.k8s.io/v1beta1", FLOWS, "1.26", FLOW_V1),
    removed("flowcontrol.apiserver.k8s.io/v1beta2", FLOWS, "1.29", FLOW_V1),
    removed("flowcontrol.apiserver.k8s.io/v1beta3", FLOWS, "1.32", FLOW_V1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_served_is_told_with_what_to_write() {
        for (api_version, kind, expected) in [
            ("v1", "ConfigMap", ""),
            ("apps/v1", "Deployment", ""),
            (
                "extensions/v1beta1",
                "Deployment",
                "does not serve this version since 1.16; write apps/v1",
            ),
            (
                "extensions/v1beta1",
                "Ingress",
                "since 1.22; write networking.k8s.io/v1",
            ),
            ("policy/v1beta1", "PodDisruptionBudget", "since 1.25; write policy/v1"),
            (
                "policy/v1beta1",
                "PodSecurityPolicy",
                "serves no such kind since 1.25; take it out",
            ),
            (
                "apps/v2",
                "Deployment",
                "Kubernetes 1.36 does not serve this version; write apps/v1",
            ),
            ("v1beta1", "Pod", "does not serve this version; write v1"),
            (
                "networking.k8s.io/v1",
                "Ingress",
                "this distribution's API server does not serve this kind",
            ),
            ("apps/v1", "Deploymnet", "does not serve this kind"),
            ("cert-manager.io/v1", "Issuer", "custom ones are not supported"),
            (
                "snapshot.storage.k8s.io/v1",
                "VolumeSnapshot",
                "custom ones are not supported",
            ),
            ("networking/v1", "X", "custom ones are not supported"),
            ("authorization.k8s.io/v1", "SubjectAccessReview", "cannot be applied"),
        ] {
            let found = unserved(api_version, kind)
                .map(|why| why.to_string())
                .unwrap_or_default();
            assert_eq!(found.is_empty(), expected.is_empty(), "{api_version} {kind}: {found}");
            assert!(found.contains(expected), "{api_version} {kind}: {found}");
        }
    }

    #[test]
    fn what_is_told_to_be_removed_is_not_served() {
        for row in REMOVED {
            let (group, _) = split_api_version(row.api_version);
            assert!(is_of_kubernetes(group), "{}", row.api_version);
            for kind in row.kinds {
                assert!(matches!(
                    unserved(row.api_version, kind),
                    Some(Unserved::Removed { .. })
                ));
            }
        }
    }
}
