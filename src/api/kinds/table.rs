//! The rows of the table of kinds. No logic.

use super::{Kind, Subresource};

const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const WITHOUT_COLLECTION_DELETE: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const GET_WRITE: &[&str] = &["get", "patch", "update"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const STREAM: &[&str] = &["create", "get"];

const fn sub(
    name: &'static str,
    (group, version, kind): (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource {
        name,
        group,
        version,
        kind,
        verbs,
    }
}

/// Status subresource of a kind.
const fn status(group: &'static str, kind: &'static str) -> Subresource {
    sub("status", (group, "v1", kind), GET_WRITE)
}

const SCALE: Subresource = sub("scale", ("autoscaling", "v1", "Scale"), GET_WRITE);

/// A namespaced `v1` kind with every verb and nothing else.
const fn row(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    message: &'static str,
) -> Kind {
    Kind {
        group,
        version: "v1",
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        subresources: &[],
        verbs: ALL_VERBS,
        message,
        storage_group: group,
        storage_version: "v1",
    }
}

/// A kind that is only answered, never stored.
const fn review(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    message: &'static str,
) -> Kind {
    Kind {
        namespaced: false,
        verbs: CREATE,
        ..row(group, kind, plural, singular, message)
    }
}

pub(super) const GROUPS: &[(&str, &[&str])] = &[
    ("apps", &["v1"]),
    ("events.k8s.io", &["v1"]),
    ("authentication.k8s.io", &["v1"]),
    ("authorization.k8s.io", &["v1"]),
    ("certificates.k8s.io", &["v1"]),
    ("policy", &["v1"]),
    ("rbac.authorization.k8s.io", &["v1"]),
    ("storage.k8s.io", &["v1"]),
    ("scheduling.k8s.io", &["v1"]),
    ("coordination.k8s.io", &["v1"]),
    ("node.k8s.io", &["v1"]),
    ("discovery.k8s.io", &["v1"]),
];

const APPS: &str = "apps";
const AUTHN: &str = "authentication.k8s.io";
const AUTHZ: &str = "authorization.k8s.io";
const CERTS: &str = "certificates.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) const KINDS: &[Kind] = &[
    Kind {
        verbs: CREATE,
        ..row("", "Binding", "bindings", "binding", "core.v1.Binding")
    },
    Kind {
        short_names: &["cm"],
        ..row("", "ConfigMap", "configmaps", "configmap", "core.v1.ConfigMap")
    },
    Kind {
        short_names: &["ep"],
        ..row("", "Endpoints", "endpoints", "endpoints", "core.v1.Endpoints")
    },
    Kind {
        short_names: &["ev"],
        ..row("", "Event", "events", "event", "core.v1.Event")
    },
    Kind {
        short_names: &["ns"],
        namespaced: false,
        verbs: WITHOUT_COLLECTION_DELETE,
        subresources: &[
            sub("finalize", ("", "v1", "Namespace"), &["update"]),
            status("", "Namespace"),
        ],
        ..row("", "Namespace", "namespaces", "namespace", "core.v1.Namespace")
    },
    Kind {
        short_names: &["no"],
        namespaced: false,
        subresources: &[sub("proxy", ("", "v1", "NodeProxyOptions"), PROXY), status("", "Node")],
        ..row("", "Node", "nodes", "node", "core.v1.Node")
    },
    Kind {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            sub("attach", ("", "v1", "PodAttachOptions"), STREAM),
            sub("binding", ("", "v1", "Binding"), CREATE),
            sub("ephemeralcontainers", ("", "v1", "Pod"), GET_WRITE),
            sub("eviction", ("policy", "v1", "Eviction"), CREATE),
            sub("exec", ("", "v1", "PodExecOptions"), STREAM),
            sub("log", ("", "v1", "Pod"), &["get"]),
            sub("portforward", ("", "v1", "PodPortForwardOptions"), STREAM),
            sub("proxy", ("", "v1", "PodProxyOptions"), PROXY),
            status("", "Pod"),
        ],
        ..row("", "Pod", "pods", "pod", "core.v1.Pod")
    },
    row("", "PodTemplate", "podtemplates", "podtemplate", "core.v1.PodTemplate"),
    row("", "Secret", "secrets", "secret", "core.v1.Secret"),
    Kind {
        short_names: &["sa"],
        subresources: &[sub("token", (AUTHN, "v1", "TokenRequest"), CREATE)],
        ..row(
            "",
            "ServiceAccount",
            "serviceaccounts",
            "serviceaccount",
            "core.v1.ServiceAccount",
        )
    },
    Kind {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[
            sub("proxy", ("", "v1", "ServiceProxyOptions"), PROXY),
            status("", "Service"),
        ],
        ..row("", "Service", "services", "service", "core.v1.Service")
    },
    row(
        APPS,
        "ControllerRevision",
        "controllerrevisions",
        "controllerrevision",
        "apps.v1.ControllerRevision",
    ),
    Kind {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[status(APPS, "DaemonSet")],
        ..row(APPS, "DaemonSet", "daemonsets", "daemonset", "apps.v1.DaemonSet")
    },
    Kind {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, status(APPS, "Deployment")],
        ..row(APPS, "Deployment", "deployments", "deployment", "apps.v1.Deployment")
    },
    Kind {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, status(APPS, "ReplicaSet")],
        ..row(APPS, "ReplicaSet", "replicasets", "replicaset", "apps.v1.ReplicaSet")
    },
    Kind {
        short_names: &["ev"],
        storage_group: "",
        ..row("events.k8s.io", "Event", "events", "event", "events.v1.Event")
    },
    review(
        AUTHN,
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
        "authentication.v1.SelfSubjectReview",
    ),
    review(
        AUTHN,
        "TokenReview",
        "tokenreviews",
        "tokenreview",
        "authentication.v1.TokenReview",
    ),
    Kind {
        namespaced: true,
        ..review(
            AUTHZ,
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            "localsubjectaccessreview",
            "authorization.v1.LocalSubjectAccessReview",
        )
    },
    review(
        AUTHZ,
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "authorization.v1.SelfSubjectAccessReview",
    ),
    review(
        AUTHZ,
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        "authorization.v1.SelfSubjectRulesReview",
    ),
    review(
        AUTHZ,
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
        "authorization.v1.SubjectAccessReview",
    ),
    Kind {
        short_names: &["csr"],
        namespaced: false,
        subresources: &[
            sub("approval", (CERTS, "v1", "CertificateSigningRequest"), GET_WRITE),
            status(CERTS, "CertificateSigningRequest"),
        ],
        ..row(
            CERTS,
            "CertificateSigningRequest",
            "certificatesigningrequests",
            "certificatesigningrequest",
            "certificates.v1.CertificateSigningRequest",
        )
    },
    Kind {
        short_names: &["pdb"],
        subresources: &[status("policy", "PodDisruptionBudget")],
        ..row(
            "policy",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            "poddisruptionbudget",
            "policy.v1.PodDisruptionBudget",
        )
    },
    Kind {
        namespaced: false,
        ..row(
            RBAC,
            "ClusterRole",
            "clusterroles",
            "clusterrole",
            "rbac.v1.ClusterRole",
        )
    },
    Kind {
        namespaced: false,
        ..row(
            RBAC,
            "ClusterRoleBinding",
            "clusterrolebindings",
            "clusterrolebinding",
            "rbac.v1.ClusterRoleBinding",
        )
    },
    row(RBAC, "Role", "roles", "role", "rbac.v1.Role"),
    row(
        RBAC,
        "RoleBinding",
        "rolebindings",
        "rolebinding",
        "rbac.v1.RoleBinding",
    ),
    Kind {
        short_names: &["sc"],
        namespaced: false,
        ..row(
            "storage.k8s.io",
            "StorageClass",
            "storageclasses",
            "storageclass",
            "storage.v1.StorageClass",
        )
    },
    Kind {
        short_names: &["pc"],
        namespaced: false,
        ..row(
            "scheduling.k8s.io",
            "PriorityClass",
            "priorityclasses",
            "priorityclass",
            "scheduling.v1.PriorityClass",
        )
    },
    row(
        "coordination.k8s.io",
        "Lease",
        "leases",
        "lease",
        "coordination.v1.Lease",
    ),
    Kind {
        namespaced: false,
        ..row(
            "node.k8s.io",
            "RuntimeClass",
            "runtimeclasses",
            "runtimeclass",
            "node.v1.RuntimeClass",
        )
    },
    row(
        "discovery.k8s.io",
        "EndpointSlice",
        "endpointslices",
        "endpointslice",
        "discovery.v1.EndpointSlice",
    ),
];
