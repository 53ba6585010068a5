//! Security contexts as CRI wants them, and the checks that must hold before a container starts. Pure.

use crate::config::Config;
use crate::spec;
use crate::start::StartError;
use k8s_cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile};

/// Paths that are masked unless procMount is Unmasked.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sysctls that are namespaced and safe; others must be allowed by the configuration.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Sysctls of the pod that may not be set here, as a message.
pub fn forbidden_sysctl(pod: &Pod, config: &Config) -> Option<String> {
    let list = pod.spec.as_ref()?.security_context.as_ref()?.sysctls.as_ref()?;
    list.iter()
        .map(|s| s.name.replace('/', "."))
        .find(|name| {
            !SAFE_SYSCTLS.contains(&name.as_str())
                && !config.allowed_unsafe_sysctls.iter().any(|a| match a.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => a == name,
                })
        })
        .map(|name| format!("forbidden sysctl: {name:?} not allowlisted"))
}

/// What of the pod asks for isolation that the agent cannot give, as a message. The API server refuses it as well, but static
/// pods and older objects do not pass its checks.
pub fn missing_isolation(pod: &Pod) -> Option<String> {
    (pod.spec.as_ref()?.host_users == Some(false)).then(|| {
        "spec.hostUsers is false, but user namespaces are not supported: the pod would run as users of the host"
            .to_owned()
    })
}

fn pod_context(pod: &Pod) -> PodSecurityContext {
    pod.spec
        .as_ref()
        .and_then(|s| s.security_context.clone())
        .unwrap_or_default()
}

/// Namespaces of the pod.
pub fn namespaces(pod: &Pod) -> NamespaceOption {
    let spec = pod.spec.as_ref();
    let host = |b: Option<bool>| b.unwrap_or(false);
    let mut out = NamespaceOption::default();
    out.set_network(if spec::host_network(pod) {
        NamespaceMode::Node
    } else {
        NamespaceMode::Pod
    });
    out.set_ipc(if host(spec.and_then(|s| s.host_ipc)) {
        NamespaceMode::Node
    } else {
        NamespaceMode::Pod
    });
    out.set_pid(match (host(spec.and_then(|s| s.host_pid)), spec::share_pids(pod)) {
        (true, _) => NamespaceMode::Node,
        (false, true) => NamespaceMode::Pod,
        (false, false) => NamespaceMode::Container,
    });
    out
}

fn seccomp(profile: Option<&SeccompProfile>, config: &Config) -> Option<SecurityProfile> {
    let mut out = SecurityProfile::default();
    match profile {
        None if config.seccomp_default => out.set_profile_type(ProfileType::RuntimeDefault),
        None => out.set_profile_type(ProfileType::Unconfined),
        Some(p) => match p.type_.as_str() {
            "RuntimeDefault" => out.set_profile_type(ProfileType::RuntimeDefault),
            "Localhost" => {
                out.set_profile_type(ProfileType::Localhost);
                out.localhost_ref = format!(
                    "/var/lib/kubelet/seccomp/{}",
                    p.localhost_profile.as_deref().unwrap_or_default()
                );
            }
            _ => out.set_profile_type(ProfileType::Unconfined),
        },
    }
    Some(out)
}

fn apparmor(profile: Option<&AppArmorProfile>) -> Option<SecurityProfile> {
    let p = profile?;
    let mut out = SecurityProfile::default();
    match p.type_.as_str() {
        "RuntimeDefault" => out.set_profile_type(ProfileType::RuntimeDefault),
        "Localhost" => {
            out.set_profile_type(ProfileType::Localhost);
            out.localhost_ref = p.localhost_profile.clone().unwrap_or_default();
        }
        _ => out.set_profile_type(ProfileType::Unconfined),
    }
    Some(out)
}

fn selinux(o: Option<&SELinuxOptions>) -> Option<SeLinuxOption> {
    let o = o?;
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    Some(SeLinuxOption {
        user: text(&o.user),
        role: text(&o.role),
        r#type: text(&o.type_),
        level: text(&o.level),
    })
}

fn int(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    context
        .fs_group
        .into_iter()
        .chain(context.supplemental_groups.iter().flatten().copied())
        .collect()
}

/// The sandbox's context.
pub fn sandbox(pod: &Pod, config: &Config) -> LinuxSandboxSecurityContext {
    let context = pod_context(pod);
    let privileged = spec::containers(pod).any(|(_, c)| is_privileged(c));
    let mut out = LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: int(context.run_as_user),
        // CRI refuses a group without a user.
        run_as_group: context.run_as_user.and_then(|_| int(context.run_as_group)),
        supplemental_groups: groups(&context),
        privileged,
        selinux_options: selinux(context.se_linux_options.as_ref()),
        ..Default::default()
    };
    let mut profile = SecurityProfile::default();
    profile.set_profile_type(if privileged {
        ProfileType::Unconfined
    } else {
        ProfileType::RuntimeDefault
    });
    out.seccomp = if privileged {
        Some(profile)
    } else {
        seccomp(context.seccomp_profile.as_ref(), config)
    };
    out
}

fn is_privileged(c: &Container) -> bool {
    c.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false)
}

/// What an image says about its user.
#[derive(Debug, Clone, Default)]
pub struct ImageUser {
    /// Numeric user.
    pub uid: Option<i64>,
    /// Named user.
    pub name: String,
}

/// The container's context; refuses root where `runAsNonRoot` forbids it.
pub fn container(
    pod: &Pod,
    c: &Container,
    image: &ImageUser,
    config: &Config,
) -> Result<LinuxContainerSecurityContext, StartError> {
    let context = pod_context(pod);
    let own = c.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(context.run_as_user);
    let group = own.run_as_group.or(context.run_as_group);
    if own.run_as_non_root.or(context.run_as_non_root).unwrap_or(false) {
        non_root(user, image)?;
    }
    let privileged = is_privileged(c);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked") || privileged;
    let list = |l: &[&str]| {
        if unmasked {
            vec![]
        } else {
            l.iter().map(|s| (*s).to_owned()).collect()
        }
    };
    let image_user = if user.is_none() {
        image.name.clone()
    } else {
        String::new()
    };
    let run_as_user = user.or(if image_user.is_empty() { image.uid } else { None });
    let mut out = LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|k| Capability {
            add_capabilities: k.add.clone().unwrap_or_default(),
            drop_capabilities: k.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: vec![],
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: int(run_as_user),
        run_as_username: image_user,
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(&context),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: list(&MASKED),
        readonly_paths: list(&READ_ONLY),
        seccomp: if privileged {
            seccomp(
                None,
                &Config {
                    seccomp_default: false,
                    ..config.clone()
                },
            )
        } else {
            seccomp(
                own.seccomp_profile.as_ref().or(context.seccomp_profile.as_ref()),
                config,
            )
        },
        apparmor: apparmor(own.app_armor_profile.as_ref().or(context.app_armor_profile.as_ref())),
        selinux_options: selinux(own.se_linux_options.as_ref().or(context.se_linux_options.as_ref())),
        ..Default::default()
    };
    if context.supplemental_groups_policy.as_deref() == Some("Strict") {
        out.set_supplemental_groups_policy(SupplementalGroupsPolicy::Strict);
    }
    if group.is_some() {
        if out.run_as_user.is_none() && out.run_as_username.is_empty() {
            out.run_as_user = int(Some(0));
        }
        out.run_as_group = int(group);
    }
    Ok(out)
}

fn non_root(user: Option<i64>, image: &ImageUser) -> Result<(), StartError> {
    match user {
        Some(0) => Err(StartError::config(
            "container's runAsUser breaks non-root policy".into(),
        )),
        Some(_) => Ok(()),
        None if !image.name.is_empty() => Err(StartError::config(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root",
            image.name
        ))),
        None => match image.uid {
            Some(0) | None => Err(StartError::config(
                "container has runAsNonRoot and image will run as root".into(),
            )),
            Some(_) => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn non_root_is_checked_against_spec_and_image() {
        let image = |uid: Option<i64>, name: &str| ImageUser { uid, name: name.into() };
        for (user, image, ok) in [
            (Some(0), image(None, ""), false),
            (Some(5), image(None, ""), true),
            (None, image(None, ""), false),
            (None, image(Some(0), ""), false),
            (None, image(Some(7), ""), true),
            (None, image(None, "nobody"), false),
        ] {
            assert_eq!(non_root(user, &image).is_ok(), ok, "{user:?} {image:?}");
        }
    }

    #[test]
    fn a_pod_that_asks_for_users_of_its_own_is_told_that_it_gets_none() {
        for (spec, refused) in [
            (json!({"containers": [], "hostUsers": false}), true),
            (json!({"containers": [], "hostUsers": true}), false),
            (json!({"containers": []}), false),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(missing_isolation(&pod).is_some(), refused, "{spec}");
        }
    }

    #[test]
    fn a_context_is_merged_from_pod_and_container() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"hostPID": true, "shareProcessNamespace": false,
            "securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4], "sysctls": [{"name": "kernel.msgmax", "value": "1"}]},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 9, "capabilities": {"add": ["NET_ADMIN"]}, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true}}]}})).unwrap();
        let config = Config::default();
        let c = container(
            &pod,
            &pod.spec.as_ref().unwrap().containers[0],
            &ImageUser::default(),
            &config,
        )
        .unwrap();
        assert_eq!(
            (c.run_as_user, c.run_as_group),
            (Some(Int64Value { value: 9 }), Some(Int64Value { value: 2 }))
        );
        assert_eq!(c.supplemental_groups, [3, 4]);
        assert!(c.no_new_privs && c.readonly_rootfs && !c.privileged && !c.masked_paths.is_empty());
        assert_eq!(c.namespace_options.unwrap().pid(), NamespaceMode::Node);
        assert!(forbidden_sysctl(&pod, &config).unwrap().contains("kernel.msgmax"));
        assert!(
            forbidden_sysctl(
                &pod,
                &Config {
                    allowed_unsafe_sysctls: vec!["kernel.msg*".into()],
                    ..config
                }
            )
            .is_none()
        );
    }
}
