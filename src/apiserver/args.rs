//! Command-line flags of the API server. Names are upstream's own, so that a static pod manifest reads like any other.

use std::net::IpAddr;
use std::path::PathBuf;

/// Flags of `clusterd apiserver`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Address under which other members reach this server; published in the `kubernetes` Service's endpoints.
    #[arg(long)]
    pub advertise_address: IpAddr,
    /// Port of the HTTPS listener; 0 lets the kernel choose.
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// Address of the HTTPS listener.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Comma-separated etcd client URLs.
    #[arg(long, value_delimiter = ',', required = true)]
    pub etcd_servers: Vec<String>,
    /// Authority of etcd's serving certificates.
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    /// Client certificate shown to etcd.
    #[arg(long)]
    pub etcd_certfile: Option<PathBuf>,
    /// Key of the client certificate shown to etcd.
    #[arg(long)]
    pub etcd_keyfile: Option<PathBuf>,
    /// Seconds of etcd's history that are kept at least, and a fifth more at most; 0 keeps all of it.
    #[arg(long, default_value_t = 300)]
    pub etcd_compaction_interval_seconds: u64,
    /// Most events that are kept; of more the oldest go before their hour is over. 0 keeps all of them.
    #[arg(long, default_value_t = 30_000)]
    pub max_events: usize,
    /// Authority whose client certificates are accepted as identities.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Serving certificate chain, PEM.
    #[arg(long)]
    pub tls_cert_file: PathBuf,
    /// Serving key, PEM.
    #[arg(long)]
    pub tls_private_key_file: PathBuf,
    /// Issuer of service account tokens; the first one signs, all are accepted.
    #[arg(long, required = true)]
    pub service_account_issuer: Vec<String>,
    /// Audiences of this API server; the issuers when absent.
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// Public keys (or private ones) that verify service account tokens, PEM; repeatable.
    #[arg(long)]
    pub service_account_key_file: Vec<PathBuf>,
    /// Private key that signs service account tokens, PEM.
    #[arg(long)]
    pub service_account_signing_key_file: PathBuf,
    /// Longest life of a requested service account token, in seconds.
    #[arg(long, default_value_t = 86_400 * 365)]
    pub service_account_max_token_expiration_seconds: u64,
    /// Range of the cluster addresses of Services.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub service_cluster_ip_range: String,
    /// Range of node ports, `first-last`.
    #[arg(long, default_value = "30000-32767")]
    pub service_node_port_range: String,
    /// Client certificate shown to kubelets.
    #[arg(long)]
    pub kubelet_client_certificate: Option<PathBuf>,
    /// Key of the client certificate shown to kubelets.
    #[arg(long)]
    pub kubelet_client_key: Option<PathBuf>,
    /// Authority of the kubelets' serving certificates; without it they are not verified, as upstream.
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// Accept bootstrap tokens (Secrets `bootstrap-token-*` in `kube-system`).
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub enable_bootstrap_token_auth: bool,
    /// Authorizers in order: `Node`, `RBAC`, `AlwaysAllow`.
    #[arg(long, value_delimiter = ',', default_value = "Node,RBAC")]
    pub authorization_mode: Vec<String>,
    /// Whether pods may be privileged.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub allow_privileged: bool,
    /// Identify requests without credentials as `system:anonymous` instead of refusing them.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub anonymous_auth: bool,
    /// Most read-only requests served at once (watches and streams do not count).
    #[arg(long, default_value_t = 400)]
    pub max_requests_inflight: usize,
    /// Most mutating requests served at once.
    #[arg(long, default_value_t = 200)]
    pub max_mutating_requests_inflight: usize,
    /// Seconds that open requests get to finish after SIGTERM.
    #[arg(long, default_value_t = 10)]
    pub shutdown_grace_seconds: u64,
}
