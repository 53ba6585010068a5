//! The long rule tables of the bootstrap policy. No logic.

use super::GROUP;

/// A rule: verbs, groups, resources (all space-separated; the legacy group is `-`), names.
pub(super) type R = (&'static str, &'static str, &'static str, &'static [&'static str]);

pub(super) const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const ALL: &str = "get list watch create delete deletecollection patch update";

const WORKLOADS: &str =
    "daemonsets deployments deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale";
const CORE_EDIT: &str =
    "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale services";

pub(super) const ADMIN: &[R] = &[
    ("create", "authorization.k8s.io", "localsubjectaccessreviews", &[]),
    (ALL, GROUP, "roles rolebindings", &[]),
];

pub(super) const EDIT: &[R] = &[
    (
        READ,
        "-",
        "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy",
        &[],
    ),
    ("impersonate", "-", "serviceaccounts", &[]),
    (
        WRITE,
        "-",
        "pods pods/attach pods/exec pods/portforward pods/proxy",
        &[],
    ),
    ("create", "-", "pods/eviction serviceaccounts/token", &[]),
    (WRITE, "-", CORE_EDIT, &[]),
    (WRITE, "-", "secrets serviceaccounts services/proxy", &[]),
    (WRITE, "apps", WORKLOADS, &[]),
    (WRITE, "apps", "deployments/rollback", &[]),
    (WRITE, "autoscaling", "horizontalpodautoscalers", &[]),
    (WRITE, "batch", "cronjobs jobs", &[]),
    (WRITE, "networking.k8s.io", "ingresses networkpolicies", &[]),
    (WRITE, "policy", "poddisruptionbudgets", &[]),
    (ALL, "coordination.k8s.io", "leases", &[]),
];

pub(super) const VIEW: &[R] = &[
    (
        READ,
        "-",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers",
        &[],
    ),
    (
        READ,
        "-",
        "replicationcontrollers/scale serviceaccounts services services/status bindings events limitranges",
        &[],
    ),
    (
        READ,
        "-",
        "namespaces namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status",
        &[],
    ),
    (READ, "discovery.k8s.io", "endpointslices", &[]),
    (
        READ,
        "apps",
        "controllerrevisions daemonsets/status deployments/status replicasets/status statefulsets/status",
        &[],
    ),
    (READ, "apps", WORKLOADS, &[]),
    (
        READ,
        "autoscaling",
        "horizontalpodautoscalers horizontalpodautoscalers/status",
        &[],
    ),
    (READ, "batch", "cronjobs cronjobs/status jobs jobs/status", &[]),
    (
        READ,
        "networking.k8s.io",
        "ingresses ingresses/status networkpolicies",
        &[],
    ),
    (READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status", &[]),
];

pub(super) const NODE: &[R] = &[
    ("create", "authentication.k8s.io", "tokenreviews", &[]),
    (
        "create",
        "authorization.k8s.io",
        "localsubjectaccessreviews subjectaccessreviews",
        &[],
    ),
    (READ, "-", "services", &[]),
    ("create get list watch", "-", "nodes", &[]),
    ("patch update", "-", "nodes/status", &[]),
    ("patch update", "-", "nodes", &[]),
    ("create patch update", "- events.k8s.io", "events", &[]),
    (READ, "-", "pods", &[]),
    ("create delete", "-", "pods", &[]),
    ("patch update", "-", "pods/status", &[]),
    ("create", "-", "pods/eviction", &[]),
    (READ, "-", "configmaps secrets", &[]),
    ("get", "-", "persistentvolumeclaims persistentvolumes", &[]),
    (
        "create get list watch",
        "certificates.k8s.io",
        "certificatesigningrequests",
        &[],
    ),
    ("create delete get patch update", "coordination.k8s.io", "leases", &[]),
    ("create", "-", "serviceaccounts/token", &[]),
    (READ, "storage.k8s.io", "csidrivers volumeattachments", &[]),
    ("create delete get patch update", "storage.k8s.io", "csinodes", &[]),
    (READ, "node.k8s.io", "runtimeclasses", &[]),
];

pub(super) const SCHEDULER: &[R] = &[
    ("create patch update", "- events.k8s.io", "events", &[]),
    ("create get list watch", "coordination.k8s.io", "leases", &[]),
    ("get patch update", "coordination.k8s.io", "leases", &["kube-scheduler"]),
    (
        READ,
        "-",
        "nodes namespaces replicationcontrollers services persistentvolumes",
        &[],
    ),
    ("delete get list watch", "-", "pods", &[]),
    ("create", "-", "bindings pods/binding", &[]),
    ("patch update", "-", "pods/status", &[]),
    (READ, "apps", "replicasets statefulsets", &[]),
    (READ, "policy", "poddisruptionbudgets", &[]),
    (
        "get list patch update watch",
        "-",
        "persistentvolumeclaims persistentvolumes",
        &[],
    ),
    ("create", "authentication.k8s.io", "tokenreviews", &[]),
    ("create", "authorization.k8s.io", "subjectaccessreviews", &[]),
    (
        READ,
        "storage.k8s.io",
        "csinodes csidrivers csistoragecapacities storageclasses volumeattachments",
        &[],
    ),
    (READ, "scheduling.k8s.io", "priorityclasses", &[]),
    (
        READ,
        "resource.k8s.io",
        "deviceclasses resourceslices resourceclaims",
        &[],
    ),
];

pub(super) const CONTROLLER_MANAGER: &[R] = &[
    ("create patch update", "- events.k8s.io", "events", &[]),
    ("create get list watch", "coordination.k8s.io", "leases", &[]),
    (
        "get patch update",
        "coordination.k8s.io",
        "leases",
        &["kube-controller-manager"],
    ),
    ("create", "authentication.k8s.io", "tokenreviews", &[]),
    ("create", "authorization.k8s.io", "subjectaccessreviews", &[]),
    // Garbage collector, namespace controller and quota look at every kind and may remove any object.
    ("get list watch delete deletecollection patch update", "*", "*", &[]),
    // The rules of aggregated roles are written by a controller that holds none of them.
    ("escalate", GROUP, "clusterroles", &[]),
    // Workloads.
    ("create", "-", "pods", &[]),
    (
        "patch update",
        "-",
        "pods pods/status replicationcontrollers replicationcontrollers/status replicationcontrollers/scale",
        &[],
    ),
    ("create", "apps", "replicasets controllerrevisions", &[]),
    ("create", "batch", "jobs", &[]),
    // Services.
    (
        "create",
        "- discovery.k8s.io",
        "endpoints endpoints/restricted endpointslices endpointslices/restricted",
        &[],
    ),
    // Nodes, accounts, namespaces.
    (
        "create",
        "-",
        "serviceaccounts serviceaccounts/token secrets configmaps namespaces/finalize",
        &[],
    ),
    ("create", "-", "pods/eviction", &[]),
    ("create", "-", "persistentvolumeclaims persistentvolumes", &[]),
    (
        "create",
        "coordination.k8s.io storage.k8s.io",
        "leases volumeattachments",
        &[],
    ),
    // Certificates.
    (
        "patch update",
        "certificates.k8s.io",
        "certificatesigningrequests/approval certificatesigningrequests/status",
        &[],
    ),
    (
        "approve sign",
        "certificates.k8s.io",
        "signers",
        &[
            "kubernetes.io/kube-apiserver-client",
            "kubernetes.io/kube-apiserver-client-kubelet",
            "kubernetes.io/kubelet-serving",
            "kubernetes.io/legacy-unknown",
        ],
    ),
];
