//! Where things lie on a host: the reference page, as constants.

/// Folder of the runtime's and the registry's configuration.
pub const INSTALLER_ETC: &str = "/etc/installer";
/// containerd's configuration.
pub const CONTAINERD_CONFIG: &str = "/etc/installer/containerd/config.toml";
/// containerd's folder of `hosts.toml` files.
pub const CERTS_D: &str = "/etc/installer/containerd/certs.d";
/// containerd's socket.
pub const CONTAINERD_SOCKET: &str = "/run/installer/containerd/containerd.sock";
/// The private registry's certificate.
pub const REGISTRY_CERT: &str = "/etc/installer/registry/tls.crt";
/// The private registry's key.
pub const REGISTRY_KEY: &str = "/etc/installer/registry/tls.key";
/// The authority of the private registry's certificate, for the runtime.
pub const REGISTRY_CA: &str = "/etc/installer/registry/ca.crt";
/// The private registry's unit.
pub const REGISTRY_UNIT: &str = "/etc/systemd/system/installer-registry.service";
/// Who may read from the private registry, where it asks for a login.
pub const HTPASSWD: &str = "/etc/installer/registry/htpasswd";
/// kubeadm's PKI folder.
pub const PKI: &str = "/etc/kubernetes/pki";
/// The cluster's authority.
pub const CA_CERT: &str = "/etc/kubernetes/pki/ca.crt";
/// Its key.
pub const CA_KEY: &str = "/etc/kubernetes/pki/ca.key";
/// The administrator's kubeconfig, on masters.
pub const ADMIN_CONF: &str = "/etc/kubernetes/admin.conf";
/// The node agent's kubeconfig; the agent writes it when it has joined.
pub const KUBELET_CONF: &str = "/etc/kubernetes/kubelet.conf";
/// The token a node agent joins with.
pub const BOOTSTRAP_CONF: &str = "/etc/kubernetes/bootstrap-kubelet.conf";
/// Static pods.
pub const STATIC_PODS: &str = "/etc/kubernetes/manifests";
/// The node agent's configuration.
pub const KUBELET_CONFIG: &str = "/var/lib/kubelet/config.yaml";
/// The node agent's serving certificate.
pub const KUBELET_CERT: &str = "/var/lib/kubelet/pki/kubelet.crt";
/// Its key.
pub const KUBELET_KEY: &str = "/var/lib/kubelet/pki/kubelet.key";
/// The API server's serving certificate.
pub const API_SERVER_CERT: &str = "/etc/kubernetes/pki/apiserver.crt";
/// The host's resolver file.
pub const RESOLVER: &str = "/etc/resolv.conf";
/// How every host reaches the API servers.
pub const LOCAL_API: &str = "https://127.0.0.1:6444";

/// containerd's client for people.
pub const CTR: &str = "/opt/installer/bin/ctr";
/// The image's own helm.
pub const HELM: &str = "/opt/installer/bin/helm";

/// The API servers' port.
pub const API_PORT: u16 = 6443;

/// Units of ours, in the order they are started.
pub mod unit {
    /// The private registry.
    pub const REGISTRY: &str = "installer-registry.service";
    /// The container runtime.
    pub const CONTAINERD: &str = "installer-containerd.service";
    /// The way to the API servers.
    pub const BALANCER: &str = "installer-lb.service";
    /// The node agent.
    pub const AGENT: &str = "installer-agent.service";
    /// All of them.
    pub const ALL: [&str; 4] = [REGISTRY, CONTAINERD, BALANCER, AGENT];
}

/// Templates and files of the rootfs that become configuration, below its root.
pub mod source {
    /// [`super::CONTAINERD_CONFIG`].
    pub const CONTAINERD: &str = "etc/containerd/config.toml.tmpl";
    /// [`super::KUBELET_CONFIG`].
    pub const KUBELET: &str = "etc/kubelet/config.yaml.tmpl";
    /// [`super::STATIC_PODS`].
    pub const STATIC_PODS: &str = "etc/kubernetes/manifests/";
    /// Kernel parameters.
    pub const SYSCTL: &str = "etc/sysctl.d/90-installer.conf";
    /// Kernel modules.
    pub const MODULES: &str = "etc/modules-load.d/installer.conf";
    /// Units.
    pub const UNITS: &str = "systemd/";
    /// What is applied to the cluster once it answers.
    pub const MANIFESTS: &str = "manifests/";
    /// Applications, a folder each.
    pub const APPLICATIONS: &str = "application/apps/";
    /// Hooks that the image brings.
    pub const PLUGINS: &str = "plugins/";
}
