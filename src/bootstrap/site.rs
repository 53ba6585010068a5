//! The whole wish with what is known of the hosts: all that the pure part works on.

use crate::{apps::App, template::Variables};
use clusterfile::{Env, HostAlias, KubeadmSettings, Networks, Plugin, Taint};
use host::{
    Facts, Scope,
    effect::{HostsEntries, HostsEntry, Rootfs},
    proto::Blob,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::OnceLock;

/// The cluster image as far as hosts are concerned.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its reference, for people.
    pub reference: String,
    /// Digest of its index: names the whole image.
    pub digest: oci::Digest,
    /// Processor architecture as Go names it.
    pub arch: String,
    /// Its `ENV`.
    pub env: Env,
    /// The rootfs that hosts unpack.
    pub rootfs: Rootfs,
    /// Blobs every host needs: the rootfs' layers.
    pub host_blobs: Vec<Blob>,
    /// Blobs registry hosts need besides: everything of the carried images.
    pub registry_blobs: Vec<Blob>,
    /// `index.json` of registry hosts.
    pub layout: oci::Index,
    /// Text files of the rootfs that become configuration, by path below its root.
    pub files: BTreeMap<String, String>,
    /// Every file and link of the rootfs, by path below its root.
    pub content: BTreeMap<String, Entry>,
    /// The carried images.
    pub carried: Vec<image::Carried>,
    /// What it says about its applications, by name (a folder of `application/apps/` each).
    pub apps: BTreeMap<String, image::AppMeta>,
    /// Applications and commands to launch unless the Clusterfile says otherwise.
    pub launch: Launch,
    /// The versions of Kubernetes it fits.
    pub kube_version: Option<String>,
}

/// A file or link of the rootfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What names its content: a digest, or where a link leads.
    pub content: String,
    /// Whether it may be executed.
    pub executable: bool,
}

/// What the image starts when the cluster stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launch {
    /// Names of applications.
    pub apps: Vec<String>,
    /// Commands, run on the first master in `/opt/installer`.
    pub commands: Vec<String>,
}

/// Where hosts pull images from. Its secrets are not here but in [`crate::effects::Learned`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Its name.
    pub domain: String,
    /// Its port.
    pub port: u16,
    /// Plain HTTP instead of TLS.
    pub insecure: bool,
    /// Whether it asks for a login.
    pub login: bool,
    /// Whether somebody else runs it, and not the cluster itself.
    pub external: bool,
    /// Extra names and addresses in the certificate of the cluster's own.
    pub alt_names: Vec<String>,
}

impl Registry {
    /// `domain:port`.
    pub fn host_port(&self) -> String {
        format!("{}:{}", self.domain, self.port)
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.insecure { "http" } else { "https" }
    }

    /// Where an image of elsewhere lies in a registry of somebody else: below its own domain, so that no two images of different
    /// registries get one name.
    pub fn home(&self, image: &oci::Reference) -> String {
        format!("{}/{}/{}", self.host_port(), folder(image.domain()), image.path())
    }
}

/// A registry's name as a folder of another's: a port is no part of a path.
pub fn folder(domain: &str) -> String {
    domain.replace(':', "-")
}

/// A host with its place in the cluster.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its own host name, which is the node's name.
    pub name: String,
    /// Whether it runs the control plane.
    pub master: bool,
    /// Whether it runs the private registry.
    pub registry: bool,
    /// Labels the user wants on the node.
    pub labels: BTreeMap<String, String>,
    /// Taints the user wants on the node.
    pub taints: Vec<Taint>,
    /// The cluster's and the host's environment.
    pub env: Env,
    /// What the host is.
    pub facts: Facts,
    /// What was read from it beyond the facts.
    pub seen: Seen,
}

/// What was read from a host beyond its facts.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Whether the node agent has joined: it has a kubeconfig of its own.
    pub joined: bool,
    /// The cluster authority's certificate as the host has it, PEM.
    pub ca: Option<String>,
    /// The node agent's serving certificate, PEM.
    pub kubelet_cert: Option<String>,
    /// Whether the host has a resolver file, even an empty one.
    pub resolver: bool,
    /// The private registry's password file, if it has one.
    pub htpasswd: Option<String>,
    /// Which files of which rootfs the Clusterfile has changed, as [`crate::overlay`] noted it.
    pub overlay: Option<String>,
    /// Whether a runtime of ours asks the cluster's own registry for every image, or that registry is here.
    pub mirrored: bool,
}

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Site {
    /// Name and data root.
    pub scope: Scope,
    /// Addresses.
    pub networks: Networks,
    /// First service address: the API server's own.
    pub kubernetes_ip: Ipv4Addr,
    /// Tenth service address: cluster DNS.
    pub dns_ip: Ipv4Addr,
    /// The cluster image.
    pub image: Image,
    /// Where images come from.
    pub registry: Registry,
    /// Further lines of `/etc/hosts`.
    pub aliases: Vec<HostAlias>,
    /// What the kubeadm kinds said.
    pub kubeadm: KubeadmSettings,
    /// Files of the rootfs that the Clusterfile replaces or merges.
    pub configs: Vec<clusterfile::Config>,
    /// Hooks of the Clusterfile and of the image, by name.
    pub hooks: Vec<Plugin>,
    /// What hosts may reach while this run proves that they need nothing else; absent: it proves nothing.
    pub fence: Option<host::effect::Fence>,
    /// The applications to launch, in order.
    pub apps: Vec<App>,
    /// The commands to launch after them.
    pub commands: Vec<String>,
    /// Whether the cluster is known to have been installed to the end before.
    pub recorded: bool,
    /// The hosts, in the order of the Clusterfile; the first master is the one that signs.
    pub seats: Vec<Seat>,
    /// Nodes of the cluster that are no hosts of this site, by name and address. They leave only when somebody says so, and until then
    /// the others know them by name.
    pub staying: Vec<(String, Ipv4Addr)>,
    /// What [`Site::hosts_entries`] has worked out; empty in the beginning.
    pub names: OnceLock<HostsEntries>,
}

impl Site {
    /// The master that was there first and holds the authority. A Clusterfile always has one.
    pub fn first_master(&self) -> usize {
        self.seats.iter().position(|seat| seat.master).unwrap_or(0)
    }

    /// Hosts that run the control plane.
    pub fn masters(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(|seat| seat.master)
    }

    /// Hosts that run the private registry.
    pub fn registries(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(|seat| seat.registry)
    }

    /// The lines that every host gets into its `/etc/hosts`: each node of the cluster by its name, the private registry by its own, and the user's
    /// aliases. Worked out once, when it is first asked for: addresses and names do not change after that.
    pub fn hosts_entries(&self) -> HostsEntries {
        self.names.get_or_init(|| self.all_names().into()).clone()
    }

    fn all_names(&self) -> Vec<HostsEntry> {
        let entry = |ip: String, names: Vec<String>| HostsEntry { ip, names };
        let nodes = self
            .seats
            .iter()
            .map(|seat| entry(seat.ip.to_string(), vec![seat.name.clone()]));
        let staying = self
            .staying
            .iter()
            .map(|(name, ip)| entry(ip.to_string(), vec![name.clone()]));
        // The name of a registry that somebody else runs is resolved as all others are.
        let registries = self
            .registries()
            .map(|seat| entry(seat.ip.to_string(), vec![self.registry.domain.clone()]));
        let aliases = self
            .aliases
            .iter()
            .map(|alias| entry(alias.ip.to_string(), alias.hostnames.clone()));
        nodes.chain(staying).chain(registries).chain(aliases).collect()
    }

    /// What templates see on a host: the environment (image < cluster < host) and, over it, what is computed.
    pub fn variables(&self, seat: &Seat) -> Variables {
        let mut variables = self.image.env.clone();
        variables.extend(seat.env.clone());
        let flag = |on: bool| if on { "true" } else { "false" }.to_owned();
        // Without a scheme, as Sealer has it: it stands in front of image names.
        let registry_url = self.registry.host_port();
        let computed = [
            ("ClusterName", self.scope.cluster.clone()),
            ("DataRoot", self.scope.data_root.trim_end_matches('/').to_owned()),
            ("PodCIDR", self.networks.pod_cidr.to_string()),
            ("SvcCIDR", self.networks.service_cidr.to_string()),
            ("DNSDomain", self.networks.dns_domain.clone()),
            ("KubeSvcIP", self.kubernetes_ip.to_string()),
            ("DNSSvcIP", self.dns_ip.to_string()),
            ("RegistryDomain", self.registry.domain.clone()),
            ("RegistryPort", self.registry.port.to_string()),
            ("RegistryURL", registry_url.clone()),
            ("LocalRegistryDomain", self.registry.domain.clone()),
            ("LocalRegistryPort", self.registry.port.to_string()),
            ("LocalRegistryURL", registry_url),
            ("RegistryTlsFlags", self.registry_flags()),
            ("ContainerRuntime", "containerd".to_owned()),
            ("HostIP", seat.ip.to_string()),
            ("HostIPFamily", "4".to_owned()),
            ("HostName", seat.name.clone()),
            ("Arch", seat.facts.arch.clone()),
            ("RootfsDigest", self.image.rootfs.content.to_string()),
            ("ApiServerFlags", self.api_server_flags()),
            ("EtcdInitialCluster", format!("{}=https://{}:2380", seat.name, seat.ip)),
            ("EtcdInitialClusterState", "new".to_owned()),
            ("RestrictOomScoreAdj", flag(!seat.facts.can_lower_oom_score)),
            (
                "RuntimeOomScore",
                if seat.facts.can_lower_oom_score { "-999" } else { "0" }.to_owned(),
            ),
            ("RegisterFlags", self.register_flags(seat)),
        ];
        variables.extend(computed.map(|(name, value)| (name.to_owned(), value)));
        variables
    }

    /// What the templates of an application see besides.
    pub fn app_env(&self, path: &str) -> Env {
        let name = path
            .strip_prefix(crate::paths::source::APPLICATIONS)
            .and_then(|rest| rest.split('/').next());
        let app = self.apps.iter().find(|app| Some(app.name.as_str()) == name);
        app.map(|app| app.env.clone()).unwrap_or_default()
    }

    fn registry_flags(&self) -> String {
        use crate::paths::{HTPASSWD, REGISTRY_CERT, REGISTRY_KEY};
        let mut flags = Vec::new();
        if !self.registry.insecure {
            flags.push(format!("--tls-cert {REGISTRY_CERT} --tls-key {REGISTRY_KEY}"));
        }
        if self.registry.login {
            flags.push(format!("--htpasswd {HTPASSWD}"));
        }
        flags.join(" ")
    }

    fn api_server_flags(&self) -> String {
        let flags: Vec<String> = self
            .masters()
            .map(|seat| format!("--server {}:{}", seat.ip, crate::paths::API_PORT))
            .collect();
        flags.join(" ")
    }

    /// The node registers with the taint that keeps workloads off masters, so that no pod slips onto one before we could set it.
    fn register_flags(&self, seat: &Seat) -> String {
        let mut taints: Vec<String> = seat.taints.iter().map(ToString::to_string).collect();
        if seat.master {
            taints.push(format!("{CONTROL_PLANE}:NoSchedule"));
        }
        if taints.is_empty() {
            String::new()
        } else {
            format!("--register-with-taints {}", taints.join(","))
        }
    }
}

/// The label and the taint of masters.
pub const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_filled_in_is_what_a_clusterfile_is_warned_of() {
        let site = crate::testing::site();
        let filled = site.variables(&site.seats[0]);
        let own = [
            "PodCIDR",
            "SvcCIDR",
            "DNSDomain",
            "RestrictOomScoreAdj",
            "RuntimeOomScore",
        ];
        let mut filled: Vec<&str> = filled
            .keys()
            .map(String::as_str)
            .filter(|name| !own.contains(name))
            .collect();
        filled.sort_unstable();
        assert_eq!(filled, clusterfile::names::COMPUTED_VARIABLES);
    }
}
