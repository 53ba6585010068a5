//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1): the fields this agent honours. A field it does not know is
//! refused by name, because a setting that is silently ignored is worse than an error.

use crate::error::{Error, Result};
use k8s_openapi::api::core::v1::Taint;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How cgroups are managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// By asking systemd for slices.
    Systemd,
    /// By writing below /sys/fs/cgroup.
    Cgroupfs,
}

/// The configuration, with upstream's defaults.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Must be `kubelet.config.k8s.io/v1beta1`.
    pub api_version: String,
    /// Must be `KubeletConfiguration`.
    pub kind: String,
    /// Folder of static pod manifests.
    pub static_pod_path: Option<PathBuf>,
    /// How often the manifest folder is looked at.
    #[serde(with = "duration")]
    pub file_check_frequency: Duration,
    /// Name servers of pods with `ClusterFirst`.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// The host's resolver file; empty means none.
    pub resolv_conf: Option<PathBuf>,
    /// How cgroups are managed; must agree with the runtime.
    pub cgroup_driver: CgroupDriver,
    /// Cgroup below which `kubepods` lies (driver cgroupfs only).
    pub cgroup_root: Option<String>,
    /// Address of the HTTPS server.
    pub address: IpAddr,
    /// Port of the HTTPS server; 0 switches it off.
    pub port: u16,
    /// Address of `/healthz`.
    pub healthz_bind_address: IpAddr,
    /// Port of `/healthz`; 0 switches it off.
    pub healthz_port: u16,
    /// Who callers are.
    pub authentication: Authentication,
    /// What callers may.
    pub authorization: Authorization,
    /// Ask the cluster for the serving certificate.
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    /// Serving certificate given by the administrator.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    pub tls_private_key_file: Option<PathBuf>,
    /// Renew the client certificate before it expires.
    pub rotate_certificates: bool,
    /// Most pods on the node.
    pub max_pods: u32,
    /// Most processes in a pod; 0 or less means no limit.
    pub pod_pids_limit: i64,
    /// Hard eviction thresholds by signal.
    pub eviction_hard: BTreeMap<String, String>,
    /// How long pressure is still reported after it has gone.
    #[serde(with = "duration")]
    pub eviction_pressure_transition_period: Duration,
    /// Unused images are removed above this use of the file system, percent.
    pub image_gc_high_threshold_percent: u32,
    /// Down to this use, percent.
    pub image_gc_low_threshold_percent: u32,
    /// Images used more recently are kept.
    #[serde(rename = "imageMinimumGCAge", with = "duration")]
    pub image_minimum_gc_age: Duration,
    /// Images unused for longer are removed; zero means never.
    #[serde(rename = "imageMaximumGCAge", with = "duration")]
    pub image_maximum_gc_age: Duration,
    /// How often the node's status is computed.
    #[serde(with = "duration")]
    pub node_status_update_frequency: Duration,
    /// How often an unchanged node status is written.
    #[serde(with = "duration")]
    pub node_status_report_frequency: Duration,
    /// Length of the node's lease.
    pub node_lease_duration_seconds: i32,
    /// Refuse to run while swap is on.
    pub fail_swap_on: bool,
    /// Size above which a container log is rotated.
    pub container_log_max_size: String,
    /// Most log files kept of a container.
    pub container_log_max_files: u32,
    /// Taints of the node at registration.
    pub register_with_taints: Vec<Taint>,
    /// Register the node at all.
    pub register_node: bool,
    /// How often referenced objects are read again.
    #[serde(with = "duration")]
    pub sync_frequency: Duration,
    /// Limit CPU by CFS quota.
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    /// One image pull at a time.
    pub serialize_image_pulls: bool,
    /// Most pulls at once when they are not serialised.
    pub max_parallel_image_pulls: Option<u32>,
    /// Resources kept from pods for the system.
    pub system_reserved: BTreeMap<String, String>,
    /// Resources kept from pods for Kubernetes' own processes.
    pub kube_reserved: BTreeMap<String, String>,
    /// Longest shutdown; must be zero, it is not done yet.
    #[serde(with = "duration")]
    pub shutdown_grace_period: Duration,
    /// Longest shutdown of critical pods; must be zero.
    #[serde(with = "duration")]
    pub shutdown_grace_period_critical_pods: Duration,
    /// Where the runtime listens; the flag wins.
    pub container_runtime_endpoint: Option<String>,
    /// Longest wait for one call to the runtime.
    #[serde(with = "duration")]
    pub runtime_request_timeout: Duration,
    /// Exec, attach, port-forward and logs are served.
    pub enable_debugging_handlers: bool,
    /// Sysctls beyond the safe set that pods may set; a trailing `*` matches a prefix.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Default seccomp profile is the runtime's instead of none.
    pub seccomp_default: bool,
}

impl Default for Config {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Config {
            api_version: "kubelet.config.k8s.io/v1beta1".into(),
            kind: "KubeletConfiguration".into(),
            static_pod_path: None,
            file_check_frequency: secs(1),
            cluster_dns: vec![],
            cluster_domain: String::new(),
            resolv_conf: Some("/etc/resolv.conf".into()),
            cgroup_driver: CgroupDriver::Cgroupfs,
            cgroup_root: None,
            address: IpAddr::from([0, 0, 0, 0]),
            port: 10250,
            healthz_bind_address: IpAddr::from([127, 0, 0, 1]),
            healthz_port: 10248,
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            server_tls_bootstrap: false,
            tls_cert_file: None,
            tls_private_key_file: None,
            rotate_certificates: true,
            max_pods: 110,
            pod_pids_limit: -1,
            eviction_hard: [
                ("memory.available", "100Mi"),
                ("nodefs.available", "10%"),
                ("nodefs.inodesFree", "5%"),
                ("imagefs.available", "15%"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
            eviction_pressure_transition_period: secs(300),
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            image_minimum_gc_age: secs(120),
            image_maximum_gc_age: secs(0),
            node_status_update_frequency: secs(10),
            node_status_report_frequency: secs(300),
            node_lease_duration_seconds: 40,
            fail_swap_on: true,
            container_log_max_size: "10Mi".into(),
            container_log_max_files: 5,
            register_with_taints: vec![],
            register_node: true,
            sync_frequency: secs(60),
            cpu_cfs_quota: true,
            serialize_image_pulls: false,
            max_parallel_image_pulls: None,
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            shutdown_grace_period: secs(0),
            shutdown_grace_period_critical_pods: secs(0),
            container_runtime_endpoint: None,
            runtime_request_timeout: secs(120),
            enable_debugging_handlers: true,
            allowed_unsafe_sysctls: vec![],
            seccomp_default: false,
        }
    }
}

/// Who callers of the HTTPS server are.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    /// By client certificate.
    pub x509: X509,
    /// By token, asked of the API server.
    pub webhook: Webhook,
    /// Without any.
    pub anonymous: Anonymous,
}

/// Client certificates.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct X509 {
    /// CA bundle that signs clients.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

/// Token review.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Webhook {
    /// On or off.
    pub enabled: bool,
    /// How long an answer is kept.
    #[serde(rename = "cacheTTL", with = "duration")]
    pub cache_ttl: Duration,
}

impl Default for Webhook {
    fn default() -> Self {
        Webhook {
            enabled: true,
            cache_ttl: Duration::from_secs(120),
        }
    }
}

/// Anonymous callers.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Anonymous {
    /// Let them in as `system:anonymous`.
    pub enabled: bool,
}

/// What callers may.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authorization {
    /// `Webhook` (ask the API server) or `AlwaysAllow`.
    pub mode: AuthorizationMode,
    /// Times of the webhook mode.
    pub webhook: AuthorizationWebhook,
}

/// Way of authorisation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
pub enum AuthorizationMode {
    /// By SubjectAccessReview.
    #[default]
    Webhook,
    /// Whoever is authenticated.
    AlwaysAllow,
}

/// Times for which answers are kept.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationWebhook {
    /// A yes.
    #[serde(rename = "cacheAuthorizedTTL", with = "duration")]
    pub cache_authorized_ttl: Duration,
    /// A no.
    #[serde(rename = "cacheUnauthorizedTTL", with = "duration")]
    pub cache_unauthorized_ttl: Duration,
}

impl Default for AuthorizationWebhook {
    fn default() -> Self {
        AuthorizationWebhook {
            cache_authorized_ttl: Duration::from_secs(300),
            cache_unauthorized_ttl: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Config::parse(&text).map_err(|message| Error::Config {
            origin: path.display().to_string(),
            message,
        })
    }

    /// Parses and checks a document.
    pub fn parse(text: &str) -> Result<Config, String> {
        let value = yaml(text)?;
        let config: Config = serde_json::from_value(value).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.kind != "KubeletConfiguration" || self.api_version != "kubelet.config.k8s.io/v1beta1" {
            return Err(format!(
                "expected kind KubeletConfiguration of kubelet.config.k8s.io/v1beta1, found {} of {}",
                self.kind, self.api_version
            ));
        }
        if self.image_gc_low_threshold_percent >= self.image_gc_high_threshold_percent
            || self.image_gc_high_threshold_percent > 100
        {
            return Err(
                "imageGCLowThresholdPercent must be below imageGCHighThresholdPercent, and that at most 100".into(),
            );
        }
        if !self.shutdown_grace_period.is_zero() || !self.shutdown_grace_period_critical_pods.is_zero() {
            return Err("shutdownGracePeriod is not supported: leave it at 0s".into());
        }
        if self.tls_cert_file.is_some() != self.tls_private_key_file.is_some() {
            return Err("tlsCertFile and tlsPrivateKeyFile go together".into());
        }
        if self.cgroup_driver == CgroupDriver::Systemd
            && self.cgroup_root.as_deref().is_some_and(|r| !r.is_empty() && r != "/")
        {
            return Err("cgroupRoot is only supported with cgroupDriver cgroupfs".into());
        }
        if self.container_log_max_files < 2 {
            return Err("containerLogMaxFiles must be at least 2".into());
        }
        self.log_max_bytes()?;
        if self.node_lease_duration_seconds < 4 {
            return Err("nodeLeaseDurationSeconds must be at least 4".into());
        }
        for (signal, value) in &self.eviction_hard {
            crate::eviction::Threshold::parse(signal, value).map_err(|e| format!("evictionHard.{signal}: {e}"))?;
        }
        for (name, list) in [
            ("systemReserved", &self.system_reserved),
            ("kubeReserved", &self.kube_reserved),
        ] {
            for (resource, amount) in list {
                crate::quantity::milli(amount)
                    .ok_or_else(|| format!("{name}.{resource}: {amount:?} is no quantity"))?;
            }
        }
        Ok(())
    }

    /// Size above which a log is rotated, bytes.
    pub fn log_max_bytes(&self) -> Result<u64, String> {
        crate::quantity::whole(&self.container_log_max_size)
            .and_then(|b| u64::try_from(b).ok())
            .filter(|b| *b > 0)
            .ok_or_else(|| format!("containerLogMaxSize: {:?} is no size", self.container_log_max_size))
    }
}

/// Parses YAML as Kubernetes does (`0644` is octal) into JSON values.
pub fn yaml(text: &str) -> Result<serde_json::Value, String> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| e.to_string())
}

/// Go's notation of durations: `1h2m3.5s`, `300ms`, or a bare 0.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).ok()
}

mod duration {
    use serde::{Deserialize, Deserializer, de::Error};
    use std::time::Duration;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(d)?;
        super::parse_duration(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no duration such as 10s or 1m30s")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_gos_notation() {
        for (text, ms) in [
            ("10s", Some(10_000)),
            ("1m30s", Some(90_000)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("300ms", Some(300)),
            ("1.5h", Some(5_400_000)),
            ("5", None),
            ("", None),
            ("1x", None),
        ] {
            assert_eq!(parse_duration(text).map(|d| d.as_millis() as u64), ms, "{text}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused_by_its_name() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPod: 3\n";
        let error = Config::parse(text).unwrap_err();
        assert!(error.contains("maxPod"), "{error}");
    }

    #[test]
    fn a_usual_file_is_read() {
        let text = r#"
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: /etc/kubernetes/manifests
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
cgroupDriver: systemd
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}}
authorization: {mode: Webhook}
serverTLSBootstrap: true
rotateCertificates: true
evictionHard: {memory.available: 200Mi}
registerWithTaints: [{key: a, effect: NoSchedule}]
nodeStatusUpdateFrequency: 5s
failSwapOn: false
"#;
        let config = Config::parse(text).unwrap();
        assert_eq!(config.cgroup_driver, CgroupDriver::Systemd);
        assert_eq!(config.cluster_dns, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.node_status_update_frequency, Duration::from_secs(5));
        assert_eq!(config.register_with_taints[0].key, "a");
        assert_eq!(config.log_max_bytes().unwrap(), 10 << 20);
    }

    #[test]
    fn contradictions_are_refused() {
        for (text, word) in [
            ("kind: Other", "KubeletConfiguration"),
            ("imageGCLowThresholdPercent: 90", "imageGC"),
            ("shutdownGracePeriod: 10s", "shutdownGracePeriod"),
            ("evictionHard: {memory.free: 1Mi}", "memory.free"),
            ("containerLogMaxSize: big", "containerLogMaxSize"),
            ("tlsCertFile: /x", "tlsPrivateKeyFile"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
