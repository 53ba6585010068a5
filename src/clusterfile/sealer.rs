//! What Sealer's files may say and the native distribution cannot do: by name, why, and what to write instead.
//!
//! Tables only. What of Sealer's formats is honoured stands where it is read.

use crate::decode::Refused;

/// `apiVersion`s of kind `Cluster` in Sealer's first form, whose hosts are `masters` and `nodes` ([`crate::first`]).
pub(crate) const FIRST_CLUSTER: [&str; 3] = [
    "zlink.aliyun.com/v1alpha1",
    "sealer.aliyun.com/v1alpha1",
    "sealer.io/v1",
];

/// Sealer kept the form of these kinds through all of its `apiVersion`s.
pub(crate) const OLD_VERSIONS: [&str; 6] = [
    "sealer.io/v1",
    "sealer.cloud/v1",
    "sealer.aliyun.com/v1alpha1",
    "sealer.aliyun.com/v2alpha1",
    "sealer.com/v1alpha1",
    "zlink.aliyun.com/v1alpha1",
];

/// Kinds of Sealer that mean nothing here.
pub(crate) const KINDS: [Refused; 2] = [
    (
        "Infra",
        "the installer makes no machines: name hosts that are there in spec.hosts of the Cluster",
    ),
    (
        "KubeadmConfig",
        "write what of it shall count as documents ClusterConfiguration and KubeletConfiguration",
    ),
];

const MACHINES: &str = "the installer makes no machines; name hosts that are there by their addresses";
const MEANINGLESS: &str = "nothing reads it; what templates and scripts shall see goes into spec.env";

/// Fields of every document.
pub(crate) const DOCUMENT: [Refused; 1] = [("status", "a wish has none; take it out")];

/// Fields of `metadata`.
pub(crate) const METADATA: [Refused; 5] = [
    ("annotation", MEANINGLESS),
    ("annotations", MEANINGLESS),
    (
        "labels",
        "nothing reads it; labels of nodes go into labels of spec.hosts",
    ),
    ("namespace", "a Clusterfile is in no namespace; take it out"),
    ("creationTimestamp", "a wish has none; take it out"),
];

/// Fields of a Cluster's `spec`.
pub(crate) const SPEC: [Refused; 7] = [
    (
        "cmd_args",
        "commands see the environment; write the variables into spec.env",
    ),
    ("provider", MACHINES),
    ("masters", FIRST_HOSTS),
    ("nodes", FIRST_HOSTS),
    ("network", "write PodCIDR=… and SvcCIDR=… into spec.env"),
    (
        "certSANS",
        "write a document ClusterConfiguration with apiServer.certSANs",
    ),
    (
        "certSANs",
        "write a document ClusterConfiguration with apiServer.certSANs",
    ),
];
const FIRST_HOSTS: &str = "it belongs to apiVersion sealer.io/v1; write its addresses into ips of spec.hosts";

/// Fields of machines that Sealer would have made.
pub(crate) const MACHINE: [Refused; 7] = [
    ("count", MACHINES),
    ("cpu", MACHINES),
    ("memory", MACHINES),
    ("systemDisk", MACHINES),
    ("dataDisk", MACHINES),
    ("dataDisks", MACHINES),
    ("platform", MACHINES),
];

/// Fields of `network` in Sealer's first form.
pub(crate) const NETWORK: [Refused; 4] = [
    ("cniName", "the image brings its network"),
    ("interface", "hosts reach each other by their addresses"),
    ("withoutCNI", "the image brings its network"),
    ("mtu", "the image's network finds it out"),
];

/// Fields of a Config's `spec`.
pub(crate) const CONFIG: [Refused; 1] = [(
    "process",
    "data is written as it stands; write it as it shall be in the file",
)];

/// Fields of a Plugin's `spec`.
pub(crate) const PLUGIN: [Refused; 1] = [(
    "on",
    "it is called scope, and names roles, addresses and host names, not labels",
)];

/// Types of plugins other than `SHELL`.
pub(crate) const PLUGIN_TYPES: [Refused; 5] = [
    (
        "HOSTNAME",
        "name the hosts before they are installed, for instance by `installer exec --nodes IP -- hostnamectl set-hostname NAME`",
    ),
    ("LABEL", "write labels into spec.hosts of the Cluster"),
    ("TAINT", "write taints into spec.hosts of the Cluster"),
    ("CLUSTERCHECK", "every apply proves that the cluster works; take it out"),
    ("ETCD", "use `installer etcd snapshot`"),
];

/// Moments of plugins before Sealer 0.9.
pub(crate) const OLD_ACTIONS: [Refused; 8] = [
    ("Originally", "write pre-init-host, when the rootfs is there already"),
    (
        "PreInit",
        "write pre-init-host, which runs on hosts that join later too",
    ),
    (
        "PreJoin",
        "write pre-init-host, or pre-join for once on the first master",
    ),
    (
        "PostJoin",
        "write post-init-host, or post-join for once on the first master",
    ),
    ("PreGuest", "put it in front of the commands in spec.cmd"),
    (
        "PostInstall",
        "write post-install, which without scope runs on the first master only",
    ),
    ("PreClean", "write pre-clean-host"),
    ("PostClean", "write post-clean-host"),
];

/// Files that Sealer's own images read.
pub(crate) const FILES: [Refused; 3] = [
    ("etc/registry.yml", "write spec.registry.localRegistry of the Cluster"),
    (
        "etc/registry_config.yml",
        "write spec.registry.localRegistry of the Cluster",
    ),
    (
        "etc/kubeadm.yml",
        "write documents ClusterConfiguration and KubeletConfiguration",
    ),
];

/// Fields of the kubeadm and kubelet kinds, by their full names.
pub(crate) const KUBEADM: [Refused; 22] = [
    ("kubernetesVersion", "the image decides; name another one in spec.image"),
    (
        "controlPlaneEndpoint",
        "every host reaches all masters by a balancer of its own",
    ),
    (
        "imageRepository",
        "images come from the private registry by the names they have",
    ),
    ("clusterName", "metadata.name of the Cluster is the name"),
    ("certificatesDir", "it is /etc/kubernetes/pki"),
    ("apiServer.extraArgs", STATIC_POD),
    ("apiServer.extraVolumes", STATIC_POD),
    ("controllerManager", STATIC_POD),
    ("scheduler", STATIC_POD),
    ("etcd", STATIC_POD),
    ("localAPIEndpoint.advertiseAddress", ADDRESS),
    ("controlPlane.localAPIEndpoint.advertiseAddress", ADDRESS),
    (
        "nodeRegistration.criSocket",
        "spec.containerRuntime of the Cluster decides",
    ),
    ("nodeRegistration.taints", "write taints into spec.hosts of the Cluster"),
    ("nodeRegistration.name", "nodes are called as their hosts"),
    ("discovery", "hosts join with a token that is made for the run"),
    ("bootstrapTokens", "hosts join with a token that is made for the run"),
    ("clusterDomain", "write networking.dnsDomain of ClusterConfiguration"),
    ("clusterDNS", "it is the tenth address of the services' block"),
    (
        "evictionSoft",
        "the node agent knows hard thresholds only; write evictionHard",
    ),
    ("ipvs", "the native proxy works with nftables only"),
    ("iptables", "the native proxy works with nftables only"),
];
const ADDRESS: &str = "a master's address is that of spec.hosts";
const STATIC_POD: &str = "change the static pod: kind Config, path etc/kubernetes/manifests/….yaml, strategy merge";
