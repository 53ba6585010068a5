//! The agent's command line. Names and meanings are the kubelet's; everything else is in the configuration file.

use std::path::PathBuf;

/// Flags of `clusterd agent`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// KubeletConfiguration file; without it the defaults apply
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Kubeconfig of the node; written by the agent when it bootstraps. Without it only static pods run
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig with a bootstrap token, used to get a client certificate when --kubeconfig has none that is valid
    #[arg(long, value_name = "FILE")]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Socket of the container runtime (CRI v1)
    #[arg(
        long,
        value_name = "URL",
        default_value = "unix:///run/installer/containerd/containerd.sock"
    )]
    pub container_runtime_endpoint: String,
    /// Name of the Node object; the host name without it
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Address of the node; that of the route to the default gateway without it
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<std::net::IpAddr>,
    /// Labels given to the Node when it is registered
    #[arg(long, value_name = "K=V", value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints given to the Node when it is registered
    #[arg(long, value_name = "K=V:EFFECT", value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    /// Folder of the agent's state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// Folder below which `pods/` and `containers/` logs lie
    #[arg(long, value_name = "DIR", default_value = "/var/log")]
    pub log_dir: PathBuf,
    /// Folder of the agent's certificates; ROOT_DIR/pki without it
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
}
