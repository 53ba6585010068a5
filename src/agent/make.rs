//! CRI configurations of sandboxes and containers from a pod's spec. Texts and structures only; nothing is called here.

use crate::config::Config;
use crate::dns::{self, Resolver};
use crate::machine::container_hash;
use crate::names::{self, Paths};
use crate::qos::{self, PodLimits};
use crate::security::{self, ImageUser};
use crate::spec;
use crate::start::StartError;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, HugepageLimit, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxPodSandboxConfig, Mount, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashMap;

fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    [
        (names::POD_NAME, names::name(pod)),
        (names::POD_NAMESPACE, names::namespace(pod)),
        (names::POD_UID, names::uid(pod)),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into()
}

/// The sandbox's configuration.
pub fn sandbox(
    pod: &Pod,
    config: &Config,
    paths: &Paths,
    host: &Resolver,
    cgroup_parent: String,
    attempt: u32,
    limits: PodLimits,
) -> PodSandboxConfig {
    let mut labels: HashMap<String, String> = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend(pod_labels(pod));
    let mut annotations: HashMap<String, String> = pod
        .metadata
        .annotations
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    annotations
        .entry(names::CONFIG_SOURCE.to_owned())
        .or_insert_with(|| "api".to_owned());
    let sysctls = pod
        .spec
        .iter()
        .filter_map(|s| s.security_context.as_ref())
        .flat_map(|s| s.sysctls.iter().flatten())
        .map(|s| (s.name.replace('/', "."), s.value.clone()))
        .collect();
    // With the host's network the host's own name is kept, as upstream does.
    let hostname = if spec::host_network(pod) {
        String::new()
    } else {
        dns::hostname(pod, config).0
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: names::name(pod).into(),
            uid: names::uid(pod).into(),
            namespace: names::namespace(pod).into(),
            attempt,
        }),
        hostname,
        log_directory: paths
            .pod_log(names::namespace(pod), names::name(pod), names::uid(pod))
            .display()
            .to_string(),
        dns_config: Some(dns::for_pod(pod, config, host)),
        port_mappings: port_mappings(pod),
        labels,
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(security::sandbox(pod, config)),
            sysctls,
            overhead: None,
            resources: Some(LinuxContainerResources {
                cpu_period: qos::CPU_PERIOD,
                cpu_quota: limits.cpu_quota.unwrap_or(0),
                cpu_shares: i64::try_from(limits.cpu_shares).unwrap_or(2),
                memory_limit_in_bytes: limits.memory.unwrap_or(0),
                ..Default::default()
            }),
        }),
        windows: None,
    }
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if spec::host_network(pod) {
        return vec![];
    }
    let mut out = vec![];
    for p in spec::containers(pod).flat_map(|(_, c)| c.ports.iter().flatten()) {
        let Some(host_port) = p.host_port.filter(|h| *h > 0) else {
            continue;
        };
        let mut m = PortMapping {
            host_port,
            container_port: p.container_port,
            host_ip: p.host_ip.clone().unwrap_or_default(),
            ..Default::default()
        };
        m.set_protocol(match p.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        });
        out.push(m);
    }
    out
}

/// What a container's configuration needs besides the spec.
#[derive(Debug)]
pub struct Parts {
    /// Variables.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// The image to create it from.
    pub image: String,
    /// The image's user.
    pub user: ImageUser,
    /// Restarts before this one.
    pub restarts: u32,
    /// Memory of the machine, bytes.
    pub memory: u64,
}

/// The container's configuration.
pub fn container(pod: &Pod, c: &Container, config: &Config, parts: Parts) -> Result<ContainerConfig, StartError> {
    let lookup = |name: &str| parts.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|t| crate::env::expand(t, lookup)).collect()
    };
    let mut labels = pod_labels(pod);
    labels.insert(names::CONTAINER_NAME.into(), c.name.clone());
    let text = |v: &Option<String>, default: &str| v.clone().unwrap_or_else(|| default.to_owned());
    let annotations = [
        (names::CONTAINER_HASH, container_hash(c)),
        (names::RESTART_COUNT, parts.restarts.to_string()),
        (
            names::TERMINATION_PATH,
            text(&c.termination_message_path, "/dev/termination-log"),
        ),
        (names::TERMINATION_POLICY, text(&c.termination_message_policy, "File")),
        (names::POD_GRACE, spec::grace(pod).to_string()),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into();
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: c.name.clone(),
            attempt: parts.restarts,
        }),
        image: Some(ImageSpec {
            image: parts.image.clone(),
            user_specified_image: c.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expand(&c.command),
        args: expand(&c.args),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        envs: parts
            .env
            .iter()
            .map(|(key, value)| KeyValue {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        mounts: parts.mounts,
        devices: vec![],
        labels,
        annotations,
        log_path: names::log_path(&c.name, parts.restarts),
        stdin: c.stdin.unwrap_or(false),
        stdin_once: c.stdin_once.unwrap_or(false),
        tty: c.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(pod, c, config, parts.memory)),
            security_context: Some(security::container(pod, c, &parts.user, config)?),
        }),
        windows: None,
        cdi_devices: vec![],
    })
}

fn resources(pod: &Pod, c: &Container, config: &Config, memory: u64) -> LinuxContainerResources {
    let limit = |resource| qos::effective_limit(pod, c, resource);
    let cpu = qos::request(c, "cpu").unwrap_or_else(|| limit("cpu"));
    let quota = if config.cpu_cfs_quota {
        qos::cpu_quota(limit("cpu"))
    } else {
        0
    };
    LinuxContainerResources {
        cpu_period: if quota > 0 { qos::CPU_PERIOD } else { 0 },
        cpu_quota: quota,
        cpu_shares: i64::try_from(qos::cpu_shares(cpu)).unwrap_or(2),
        memory_limit_in_bytes: limit("memory"),
        oom_score_adj: qos::oom_score_adj(pod, c, memory),
        hugepage_limits: hugepage_limits(c),
        ..Default::default()
    }
}

/// Limits of huge pages, by the names that the kernel's controller gives to their sizes (`hugepages-2Mi` is `2MB`).
fn hugepage_limits(c: &Container) -> Vec<HugepageLimit> {
    let limits = c.resources.iter().flat_map(|r| r.limits.iter().flatten());
    limits
        .filter_map(|(name, amount)| {
            let size = name.strip_prefix("hugepages-")?.strip_suffix('i')?;
            Some(HugepageLimit {
                page_size: format!("{size}B"),
                limit: u64::try_from(crate::quantity::whole(&amount.0)?).ok()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn huge_pages_are_limited_by_the_size_of_their_pages() {
        let c: Container = serde_json::from_value(
            json!({"name": "c", "resources": {"limits": {"hugepages-2Mi": "100Mi", "hugepages-1Gi": "2Gi", "cpu": "1"}}}),
        )
        .unwrap();
        let limits: Vec<_> = hugepage_limits(&c)
            .into_iter()
            .map(|l| (l.page_size, l.limit))
            .collect();
        assert_eq!(limits, [("1GB".to_owned(), 2 << 30), ("2MB".to_owned(), 100 << 20)]);
    }
}
