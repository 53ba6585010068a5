//! The columns of every kind. No logic.

use super::Column;

const fn text(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority: 0,
    }
}

const fn wide(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority: 1,
    }
}

const fn number(name: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        format: "",
        priority: 0,
    }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
};
const AGE: Column = text("Age");

const DEFAULT: &[Column] = &[NAME, text("Created At")];

/// The columns of a kind; name and creation time for those without columns of their own.
pub(super) fn of(group: &str, kind: &str) -> &'static [Column] {
    match (group, kind) {
        ("", "Pod") => {
            const {
                &[
                    NAME,
                    text("Ready"),
                    text("Status"),
                    text("Restarts"),
                    AGE,
                    wide("IP"),
                    wide("Node"),
                    wide("Nominated Node"),
                    wide("Readiness Gates"),
                ]
            }
        }
        ("", "Node") => {
            const {
                &[
                    NAME,
                    text("Status"),
                    text("Roles"),
                    AGE,
                    text("Version"),
                    wide("Internal-IP"),
                    wide("External-IP"),
                    wide("OS-Image"),
                    wide("Kernel-Version"),
                    wide("Container-Runtime"),
                ]
            }
        }
        ("", "Service") => {
            const {
                &[
                    NAME,
                    text("Type"),
                    text("Cluster-IP"),
                    text("External-IP"),
                    text("Port(s)"),
                    AGE,
                    wide("Selector"),
                ]
            }
        }
        ("", "Endpoints") => const { &[NAME, text("Endpoints"), AGE] },
        ("", "Namespace") => const { &[NAME, text("Status"), AGE] },
        ("", "ConfigMap") => const { &[NAME, number("Data"), AGE] },
        ("", "Secret") => const { &[NAME, text("Type"), number("Data"), AGE] },
        ("", "ServiceAccount") => const { &[NAME, number("Secrets"), AGE] },
        ("", "ReplicationController") => {
            const {
                &[
                    NAME,
                    number("Desired"),
                    number("Current"),
                    number("Ready"),
                    AGE,
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            }
        }
        ("", "PersistentVolume") => {
            const {
                &[
                    NAME,
                    text("Capacity"),
                    text("Access Modes"),
                    text("Reclaim Policy"),
                    text("Status"),
                    text("Claim"),
                    text("StorageClass"),
                    text("VolumeAttributesClass"),
                    text("Reason"),
                    AGE,
                    wide("VolumeMode"),
                ]
            }
        }
        ("", "PersistentVolumeClaim") => {
            const {
                &[
                    NAME,
                    text("Status"),
                    text("Volume"),
                    text("Capacity"),
                    text("Access Modes"),
                    text("StorageClass"),
                    text("VolumeAttributesClass"),
                    AGE,
                    wide("VolumeMode"),
                ]
            }
        }
        ("", "PodTemplate") => const { &[NAME, text("Containers"), text("Images"), text("Pod Labels")] },
        ("" | "events.k8s.io", "Event") => {
            const {
                &[
                    text("Last Seen"),
                    text("Type"),
                    text("Reason"),
                    text("Object"),
                    wide("Subobject"),
                    wide("Source"),
                    text("Message"),
                    wide("First Seen"),
                    wide("Count"),
                    Column {
                        name: "Name",
                        kind: "string",
                        format: "name",
                        priority: 1,
                    },
                ]
            }
        }
        ("apps", "Deployment") => {
            const {
                &[
                    NAME,
                    text("Ready"),
                    number("Up-to-date"),
                    number("Available"),
                    AGE,
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            }
        }
        ("autoscaling", "Scale") => const { &[NAME, number("Desired"), number("Available"), AGE] },
        ("apps", "ReplicaSet") => {
            const {
                &[
                    NAME,
                    number("Desired"),
                    number("Current"),
                    number("Ready"),
                    AGE,
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            }
        }
        ("apps", "DaemonSet") => {
            const {
                &[
                    NAME,
                    number("Desired"),
                    number("Current"),
                    number("Ready"),
                    number("Up-to-date"),
                    number("Available"),
                    text("Node Selector"),
                    AGE,
                    wide("Containers"),
                    wide("Images"),
                    wide("Selector"),
                ]
            }
        }
        ("apps", "ControllerRevision") => const { &[NAME, text("Controller"), number("Revision"), AGE] },
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            const {
                &[
                    NAME,
                    text("Role"),
                    AGE,
                    wide("Users"),
                    wide("Groups"),
                    wide("ServiceAccounts"),
                ]
            }
        }
        ("coordination.k8s.io", "Lease") => const { &[NAME, text("Holder"), AGE] },
        ("discovery.k8s.io", "EndpointSlice") => {
            const { &[NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE] }
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            const {
                &[
                    NAME,
                    AGE,
                    text("SignerName"),
                    text("Requestor"),
                    text("RequestedDuration"),
                    text("Condition"),
                ]
            }
        }
        ("policy", "PodDisruptionBudget") => {
            const {
                &[
                    NAME,
                    text("Min Available"),
                    text("Max Unavailable"),
                    number("Allowed Disruptions"),
                    AGE,
                ]
            }
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            const {
                &[
                    NAME,
                    number("Value"),
                    text("Global-Default"),
                    AGE,
                    text("PreemptionPolicy"),
                ]
            }
        }
        ("node.k8s.io", "RuntimeClass") => const { &[NAME, text("Handler"), AGE] },
        ("storage.k8s.io", "StorageClass") => {
            const {
                &[
                    NAME,
                    text("Provisioner"),
                    text("ReclaimPolicy"),
                    text("VolumeBindingMode"),
                    text("AllowVolumeExpansion"),
                    AGE,
                ]
            }
        }
        _ => DEFAULT,
    }
}

/// What a column says, for `kubectl describe`-like tools that show headings with their meaning.
pub(super) fn describe(name: &str) -> &'static str {
    match name {
        "Name" => "Name must be unique within a namespace; it identifies the object.",
        "Age" => "Time since the object was created.",
        "Created At" => "When the object was created.",
        "Ready" => "How many of the desired parts are ready.",
        "Status" => "The state the object is in.",
        "Restarts" => "How often the containers of the pod were started again, and when last.",
        "IP" => "Address of the pod.",
        "Node" => "Node that runs the pod.",
        "Roles" => "Roles of the node, from its labels.",
        "Version" => "Version of the node agent.",
        "Containers" => "Names of the containers of the template.",
        "Images" => "Images of the containers of the template.",
        "Selector" => "Labels of the pods that belong to the object.",
        _ => "",
    }
}
