//! The wish, typed: what a Clusterfile says after defaults are resolved. Data only; reading it is `read`'s task.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::Serialize;

use crate::extra::{Application, Config};
use crate::kubeadm::KubeadmSettings;
use crate::net::{AddressError, Cidr};
use crate::plugin::Plugin;
use crate::problem::Problem;
use crate::secret::SecretSource;
use crate::yaml::Node;

/// Where a cluster's files lie on a host unless the Clusterfile says otherwise.
pub const DEFAULT_DATA_ROOT: &str = "/var/lib/installer";
/// The private registry's name unless the Clusterfile says otherwise.
pub const DEFAULT_REGISTRY_DOMAIN: &str = "sea.hub";
/// The private registry's port unless the Clusterfile says otherwise.
pub const DEFAULT_REGISTRY_PORT: u16 = 5000;
/// Pod addresses unless env or `ClusterConfiguration` say otherwise.
pub const DEFAULT_POD_CIDR: &str = "100.64.0.0/16";
/// Service addresses unless env or `ClusterConfiguration` say otherwise.
pub const DEFAULT_SERVICE_CIDR: &str = "10.96.0.0/16";
/// The cluster's DNS domain unless `ClusterConfiguration` says otherwise.
pub const DEFAULT_DNS_DOMAIN: &str = "cluster.local";

/// Environment: names to values, as templates and hooks see them.
pub type Env = BTreeMap<String, String>;

/// A parsed and validated Clusterfile.
#[derive(Debug, Clone)]
pub struct Clusterfile {
    /// The cluster itself.
    pub cluster: Cluster,
    /// Files of the rootfs to replace or merge.
    pub configs: Vec<Config>,
    /// Hooks.
    pub plugins: Vec<Plugin>,
    /// Settings of applications.
    pub applications: Vec<Application>,
    /// What the kubeadm kinds said that the native distribution honours.
    pub kubeadm: KubeadmSettings,
    /// Findings that don't stop anything.
    pub warnings: Vec<Problem>,
    /// Its name in messages.
    pub(crate) file: String,
    pub(crate) documents: Vec<Node>,
}

/// Kind `Cluster`.
#[derive(Debug, Clone, Serialize)]
pub struct Cluster {
    /// `metadata.name`; host paths carry it.
    pub name: String,
    /// The cluster image's reference.
    pub image: String,
    /// Whose signature the image needs; absent means nobody's.
    pub trust: Option<Trust>,
    /// `spec.env`, without the hosts' own.
    pub env: Env,
    /// `spec.ssh` with its defaults; each host carries its own resolved copy.
    pub ssh: Ssh,
    /// Absolute folder on the hosts.
    pub data_root: PathBuf,
    /// Which container runtime pods run on.
    pub container_runtime: ContainerRuntime,
    /// Lines for every host's `/etc/hosts`.
    pub host_aliases: Vec<HostAlias>,
    /// The registry hosts pull from.
    pub registry: Registry,
    /// One entry per address, in the order of the text, masters and nodes mixed.
    pub hosts: Vec<Host>,
    /// Overrides the image's launch commands if not empty.
    pub cmd: Vec<String>,
    /// Which of the image's applications to launch; empty means the image's own choice.
    pub app_names: Vec<String>,
}

/// Whose signature makes an image acceptable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trust {
    /// Public keys; a signature by one of them is enough. Never empty.
    pub keys: Vec<TrustedKey>,
    /// Whether an image without a good signature is refused, or only warned of.
    pub required: bool,
}

/// Where a public key is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TrustedKey {
    /// A PEM file.
    File(PathBuf),
    /// In the Clusterfile itself.
    Inline {
        /// The PEM text.
        pem: String,
        /// File and line, for messages.
        place: String,
    },
}

/// A machine of the cluster.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Its address.
    pub ip: Ipv4Addr,
    /// What it is in the cluster; at least one role.
    pub roles: Vec<Role>,
    /// Node labels.
    pub labels: BTreeMap<String, String>,
    /// Node taints.
    pub taints: Vec<Taint>,
    /// `spec.env` overlaid by the host's own.
    pub env: Env,
    /// How to reach it: `spec.ssh` overlaid by the host's own.
    pub ssh: Ssh,
}

impl Host {
    /// Whether it runs the control plane.
    #[must_use]
    pub fn is_master(&self) -> bool {
        self.roles.contains(&Role::Master)
    }

    /// The environment templates see on this host: the image's, overlaid by the cluster's, overlaid by its own.
    #[must_use]
    pub fn env_over(&self, image_env: &Env) -> Env {
        let mut env = image_env.clone();
        env.extend(self.env.clone());
        env
    }
}

/// What a host is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the control plane.
    Master,
    /// Runs workloads.
    Node,
}

/// A node taint, `key=value:Effect` or `key:Effect`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Taint {
    /// The key, a qualified name.
    pub key: String,
    /// The value; may be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl std::fmt::Display for Taint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "{}:{}", self.key, self.effect),
            value => write!(f, "{}={value}:{}", self.key, self.effect),
        }
    }
}

/// How to reach a host and become root there. What is absent may be said by the operator's SSH configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ssh {
    /// Whether there is a way to go at all; if not, nothing else here means anything.
    pub connection: Connection,
    /// Login name; none means `root`, unless the SSH configuration knows another.
    pub user: Option<String>,
    /// Port; none means 22, unless the SSH configuration knows another.
    pub port: Option<u16>,
    /// Password, also tried for keyboard-interactive.
    pub passwd: SecretSource,
    /// Private key file; none means the agent's keys and the usual files.
    pub pk: Option<PathBuf>,
    /// Certificate of the private key; none means `<pk>-cert.pub` if that is there.
    pub certificate: Option<PathBuf>,
    /// Passphrase of the private key.
    pub pk_passwd: SecretSource,
    /// Whether to ask the operator's SSH agent; on unless a key or a password is given.
    pub agent: bool,
    /// Whether to become root by sudo; none means for users other than root.
    pub sudo: Option<bool>,
    /// Password for sudo; none means the login password, if sudo asks at all.
    pub sudo_passwd: SecretSource,
    /// Bastions to go through, outermost first; none means those of the SSH configuration, an empty list means no bastions.
    pub proxy_jump: Option<Vec<Jump>>,
    /// Pinned public host keys in OpenSSH's form (`ssh-ed25519 AAAA…`), each as good as the others; empty means known_hosts decides.
    pub host_key: Vec<String>,
}

/// What lies between the operator and a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Connection {
    /// A network, and SSH over it.
    #[default]
    Ssh,
    /// Nothing: the operator's machine itself is the host.
    Local,
}

/// A bastion, `[user@]host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Jump {
    /// Login name; none means the host's own.
    pub user: Option<String>,
    /// Name or address, or a name that the SSH configuration knows.
    pub host: String,
    /// Port; none means 22, unless the SSH configuration knows another.
    pub port: Option<u16>,
}

/// Which container runtime the hosts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerRuntime {
    /// The image's own containerd, installed beside whatever the host has.
    Containerd,
    /// The host's Docker, configured and not installed.
    Docker,
}

/// A line for `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostAlias {
    /// The address.
    pub ip: std::net::IpAddr,
    /// Its names.
    pub hostnames: Vec<String>,
}

/// Where hosts pull images from.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Registry {
    /// The private registry the installer runs on masters.
    LocalRegistry(LocalRegistry),
    /// A registry that exists already; carried images are pushed there.
    ExternalRegistry(ExternalRegistry),
}

/// The installer's own registry.
#[derive(Debug, Clone, Serialize)]
pub struct LocalRegistry {
    /// Its name on every host.
    pub domain: String,
    /// Its port.
    pub port: u16,
    /// Plain HTTP instead of TLS by the cluster's CA.
    pub insecure: bool,
    /// On every master instead of only the first.
    pub ha: bool,
    /// Basic authentication's user, if any.
    pub username: Option<String>,
    /// Basic authentication's password.
    pub password: SecretSource,
    /// Extra names and addresses in its certificate.
    pub alt_names: Vec<String>,
}

impl LocalRegistry {
    /// `domain:port`, as image references and `hosts.toml` spell it.
    #[must_use]
    pub fn host_port(&self) -> String {
        format!("{}:{}", self.domain, self.port)
    }
}

impl Default for LocalRegistry {
    fn default() -> Self {
        LocalRegistry {
            domain: DEFAULT_REGISTRY_DOMAIN.to_string(),
            port: DEFAULT_REGISTRY_PORT,
            insecure: false,
            ha: true,
            username: None,
            password: SecretSource::None,
            alt_names: Vec::new(),
        }
    }
}

/// A registry somebody else runs.
#[derive(Debug, Clone, Serialize)]
pub struct ExternalRegistry {
    /// Its name.
    pub domain: String,
    /// Its port.
    pub port: u16,
    /// Plain HTTP instead of TLS.
    pub insecure: bool,
    /// User, if it asks for one.
    pub username: Option<String>,
    /// Password.
    pub password: SecretSource,
    /// PEM file, on the operator's machine, of the authority that signed its certificate; none: a public one.
    pub ca_file: Option<PathBuf>,
}

/// The cluster's address plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Networks {
    /// Pod addresses.
    pub pod_cidr: Cidr,
    /// Service addresses.
    pub service_cidr: Cidr,
    /// DNS domain of services.
    pub dns_domain: String,
}

impl Networks {
    /// The API server's own service address: the first of the service block.
    #[must_use]
    pub fn kubernetes_service_ip(&self) -> Option<Ipv4Addr> {
        self.service_cidr.nth(1)
    }

    /// The cluster DNS's service address: the tenth of the service block.
    #[must_use]
    pub fn dns_service_ip(&self) -> Option<Ipv4Addr> {
        self.service_cidr.nth(10)
    }
}

impl Clusterfile {
    /// The hosts that run the control plane, in the order of the text; never empty.
    pub fn masters(&self) -> impl Iterator<Item = &Host> {
        self.cluster.hosts.iter().filter(|host| host.is_master())
    }

    /// The hosts that only run workloads, in the order of the text.
    pub fn nodes(&self) -> impl Iterator<Item = &Host> {
        self.cluster.hosts.iter().filter(|host| !host.is_master())
    }

    /// The address plan: `ClusterConfiguration.networking`, else `PodCIDR` and `SvcCIDR` of the cluster's env, else
    /// those of the image's env, else the defaults.
    ///
    /// # Errors
    /// If a value is no block, blocks overlap each other or a host, or are too small to be used.
    pub fn networks(&self, image_env: &Env) -> Result<Networks, AddressError> {
        crate::validate::networks(self, image_env)
    }

    /// The documents as they may be stored in the cluster: secrets left out, everything else as written.
    #[must_use]
    pub fn without_secrets(&self) -> serde_json::Value {
        crate::redact::documents(&self.documents)
    }
}
