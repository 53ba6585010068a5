//! Flags and what is read from the files they name.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use component::Error;

use crate::cidr::Cidr;
use crate::csr_sign::Authority;
use crate::node_ipam::pools;
use crate::token_secret::Signer;

/// Flags of the controller manager; names and meanings are those of kube-controller-manager.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How to reach the API server, and as whom.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Accepted for compatibility: authentication of callers goes through --kubeconfig.
    #[arg(long, value_name = "FILE")]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// Accepted for compatibility: authorization of callers goes through --kubeconfig.
    #[arg(long, value_name = "FILE")]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// Address of the HTTPS server for health and metrics.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub bind_address: IpAddr,
    /// Port of the HTTPS server for health and metrics.
    #[arg(long, default_value_t = 10257, value_name = "PORT")]
    pub secure_port: u16,
    /// Certificate of that server; without it a self-signed one is made in memory.
    #[arg(long, requires = "tls_private_key_file", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of that certificate.
    #[arg(long, requires = "tls_cert_file", value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Name of the cluster.
    #[arg(long, default_value = "kubernetes")]
    pub cluster_name: String,
    /// Addresses of pods, at most one range for each IP family.
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub cluster_cidr: Vec<String>,
    /// Size of a node's part of --cluster-cidr (IPv4), in bits of prefix.
    #[arg(long, alias = "node-cidr-mask-size-ipv4", default_value_t = 24, value_name = "BITS")]
    pub node_cidr_mask_size: u8,
    /// Size of a node's part of --cluster-cidr (IPv6), in bits of prefix.
    #[arg(long, default_value_t = 64, value_name = "BITS")]
    pub node_cidr_mask_size_ipv6: u8,
    /// Whether nodes are given parts of --cluster-cidr.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub allocate_node_cidrs: bool,
    /// Addresses of services; never given to nodes.
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub service_cluster_ip_range: Vec<String>,
    /// CA certificate that signs certificates for nodes and users.
    #[arg(long, requires = "cluster_signing_key_file", value_name = "FILE")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Key of that CA.
    #[arg(long, requires = "cluster_signing_cert_file", value_name = "FILE")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Key that signs tokens in Secrets of type kubernetes.io/service-account-token.
    #[arg(long, value_name = "FILE")]
    pub service_account_private_key_file: Option<PathBuf>,
    /// CA certificate that is published to every namespace.
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// Whether to wait for the lease before working.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    /// Which controllers run: `*` all, `NAME` this one, `-NAME` not this one.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "*",
        allow_hyphen_values = true,
        value_name = "NAMES"
    )]
    pub controllers: Vec<String>,
    /// Accepted for compatibility: all controllers use the credentials of --kubeconfig.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub use_service_account_credentials: Option<bool>,
}

impl Args {
    pub(crate) fn serving_files(&self) -> Option<(&Path, &Path)> {
        Some((self.tls_cert_file.as_deref()?, self.tls_private_key_file.as_deref()?))
    }
}

/// What the controllers are told.
pub struct Options {
    pub(crate) cluster_cidrs: Vec<Cidr>,
    pub(crate) service_cidrs: Vec<Cidr>,
    pub(crate) node_mask_v4: u8,
    pub(crate) node_mask_v6: u8,
    pub(crate) allocate_node_cidrs: bool,
    pub(crate) authority: Option<Authority>,
    pub(crate) token_signer: Option<Signer>,
    /// PEM.
    pub(crate) root_ca: Option<String>,
}

impl Options {
    /// Reads every file that the flags name.
    ///
    /// # Errors
    /// If a file cannot be read or a value is unusable.
    pub fn read(args: &Args) -> Result<Self, Error> {
        let cidrs = |flag: &str, texts: &[String]| {
            let parsed: Result<Vec<Cidr>, String> = texts.iter().filter(|t| !t.is_empty()).map(|t| t.parse()).collect();
            parsed.map_err(|e| Error::Invalid(format!("--{flag}: {e}")))
        };
        let options = Self {
            cluster_cidrs: cidrs("cluster-cidr", &args.cluster_cidr)?,
            service_cidrs: cidrs("service-cluster-ip-range", &args.service_cluster_ip_range)?,
            node_mask_v4: args.node_cidr_mask_size,
            node_mask_v6: args.node_cidr_mask_size_ipv6,
            allocate_node_cidrs: args.allocate_node_cidrs,
            authority: match (&args.cluster_signing_cert_file, &args.cluster_signing_key_file) {
                (Some(certificate), Some(key)) => Some(Authority::from_pem(&read(certificate)?, &read(key)?)?),
                _ => None,
            },
            token_signer: args
                .service_account_private_key_file
                .as_deref()
                .map(|f| Signer::from_pem(&read(f)?))
                .transpose()?,
            root_ca: args.root_ca_file.as_deref().map(read).transpose()?,
        };
        if options.allocate_node_cidrs {
            if options.cluster_cidrs.is_empty() {
                return Err(Error::Invalid("--allocate-node-cidrs needs --cluster-cidr".into()));
            }
            pools(
                &options.cluster_cidrs,
                &options.service_cidrs,
                options.node_mask_v4,
                options.node_mask_v6,
            )
            .map_err(Error::Invalid)?;
        }
        Ok(options)
    }
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// Whether `--controllers` lets the controller `name` run.
pub(crate) fn is_enabled(list: &[String], name: &str) -> bool {
    let short = name.trim_end_matches("-controller");
    let named = |entry: &str| entry == name || entry == short;
    if list.iter().any(|e| named(e)) {
        return true;
    }
    !list.iter().any(|e| e.strip_prefix('-').is_some_and(named)) && list.iter().any(|e| e == "*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn controllers_are_chosen_as_upstream() {
        for (list, expected) in [
            ("*", true),
            ("*,-deployment", false),
            ("*,-deployment-controller", false),
            ("deployment", true),
            ("daemonset", false),
        ] {
            let list: Vec<String> = list.split(',').map(str::to_owned).collect();
            assert_eq!(is_enabled(&list, "deployment-controller"), expected, "{list:?}");
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        use clap::Parser;
        let parse = |more: &[&str]| Cli::parse_from(["x", "--kubeconfig", "k"].iter().chain(more)).args;
        assert!(parse(&[]).leader_elect);
        assert!(!parse(&["--leader-elect=false", "--controllers=*,-node-ipam-controller"]).leader_elect);
        assert!(Options::read(&parse(&["--allocate-node-cidrs=true"])).is_err());
        assert!(
            Options::read(&parse(&[
                "--allocate-node-cidrs",
                "--cluster-cidr=10.0.0.0/24",
                "--node-cidr-mask-size=16"
            ]))
            .is_err()
        );
        assert!(Options::read(&parse(&["--allocate-node-cidrs", "--cluster-cidr=10.0.0.0/16"])).is_ok());
        assert!(Options::read(&parse(&["--root-ca-file=/does/not/exist"])).is_err());
    }
}
