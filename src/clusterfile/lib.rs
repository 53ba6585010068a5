//! Clusterfile and Kubefile: strict parsing with places, defaults and validation, for Sealer's `v2` formats.
//!
//! Pure text to plain data: nothing here connects to hosts, opens images or runs commands. Secrets are kept as
//! sources and read only when somebody asks ([`SecretSource::resolve`]).

mod cluster;
mod decode;
#[cfg(test)]
mod docs_tests;
mod edit;
mod extra;
mod first;
mod hosts;
pub mod kubeadm;
pub mod kubefile;
pub mod names;
mod net;
mod plugin;
mod problem;
mod read;
mod redact;
mod sealer;
#[cfg(test)]
mod sealer_tests;
mod secret;
mod ssh;
#[cfg(test)]
mod tests;
mod trust;
mod validate;
pub mod yaml;

pub use cluster::{
    Cluster, Clusterfile, Connection, ContainerRuntime, DEFAULT_DATA_ROOT, DEFAULT_DNS_DOMAIN, DEFAULT_POD_CIDR,
    DEFAULT_REGISTRY_DOMAIN, DEFAULT_REGISTRY_PORT, DEFAULT_SERVICE_CIDR, Env, ExternalRegistry, Host, HostAlias, Jump,
    LocalRegistry, Networks, Registry, Role, Ssh, Taint, Trust, TrustedKey,
};
pub use edit::{EditError, add_nodes};
pub use extra::{AppConfig, AppFile, Application, Config, Strategy};
pub use kubeadm::KubeadmSettings;
pub use net::{AddressError, Cidr, expand_range};
pub use plugin::{Plugin, PluginAction, Scope};
pub use problem::{Problem, Problems};
pub use read::LoadError;
pub use redact::is_secret_name;
pub use secret::{Secret, SecretError, SecretSource};
