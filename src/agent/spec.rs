//! Questions about a pod's spec that several rooms ask, and the defaults that an API server would have filled in
//! (static pods never pass one).

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Probe};

/// Role of a container in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its end before the next.
    Init,
    /// An init container that is kept running beside the main ones.
    Sidecar,
    /// A main container.
    Main,
}

/// All containers with their role: init containers in order, then the main ones.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (Kind, &Container)> {
    let spec = pod.spec.as_ref();
    let init = spec
        .into_iter()
        .flat_map(|s| s.init_containers.iter().flatten())
        .map(|c| (init_kind(c), c));
    let main = spec
        .into_iter()
        .flat_map(|s| s.containers.iter())
        .map(|c| (Kind::Main, c));
    init.chain(main)
}

/// The init containers.
pub fn init_containers(pod: &Pod) -> impl Iterator<Item = (Kind, &Container)> {
    containers(pod).filter(|(kind, _)| *kind != Kind::Main)
}

/// The main containers.
pub fn main_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.as_ref().into_iter().flat_map(|s| s.containers.iter())
}

/// A container by its name.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Kind, &'a Container)> {
    containers(pod).find(|(_, c)| c.name == name)
}

fn init_kind(c: &Container) -> Kind {
    if c.restart_policy.as_deref() == Some("Always") {
        Kind::Sidecar
    } else {
        Kind::Init
    }
}

/// The pod's restart policy.
pub fn restart_policy(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|s| s.restart_policy.as_deref())
        .unwrap_or("Always")
}

/// Whether a container that ended with `exit_code` is to be started again.
pub fn should_restart(pod: &Pod, kind: Kind, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        if matches && rule.action == "Restart" {
            return true;
        }
    }
    let policy = container
        .restart_policy
        .as_deref()
        .unwrap_or_else(|| restart_policy(pod));
    match (kind, policy) {
        (Kind::Sidecar, _) => true,
        // An init container that succeeded is never run again, whatever the policy.
        (Kind::Init, "Never") => false,
        (Kind::Init, _) => exit_code != 0,
        (Kind::Main, "Never") => false,
        (Kind::Main, "OnFailure") => exit_code != 0,
        (Kind::Main, _) => true,
    }
}

/// The pod's grace period, seconds.
pub fn grace(pod: &Pod) -> i64 {
    pod.spec
        .as_ref()
        .and_then(|s| s.termination_grace_period_seconds)
        .unwrap_or(30)
        .max(0)
}

/// Whether the pod uses the host's network.
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
}

/// Whether the pod's processes see each other.
pub fn share_pids(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|s| s.share_process_namespace)
        .unwrap_or(false)
}

/// Pull policy of an image without a policy: `Always` for `:latest` or no tag, otherwise `IfNotPresent`.
pub fn default_pull_policy(image: &str) -> &'static str {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains('@') {
        return "IfNotPresent";
    }
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

/// Fills in what an API server fills in, as far as the agent reads it.
pub fn default(pod: &mut Pod) {
    let Some(spec) = pod.spec.as_mut() else { return };
    default_spec(spec);
    for c in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        default_container(c);
    }
}

fn default_spec(spec: &mut PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.security_context.get_or_insert_with(Default::default);
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".into());
    spec.enable_service_links.get_or_insert(true);
}

fn default_container(c: &mut Container) {
    let image = c.image.clone().unwrap_or_default();
    c.image_pull_policy
        .get_or_insert_with(|| default_pull_policy(&image).into());
    c.termination_message_path
        .get_or_insert_with(|| "/dev/termination-log".into());
    c.termination_message_policy.get_or_insert_with(|| "File".into());
    for p in [&mut c.liveness_probe, &mut c.readiness_probe, &mut c.startup_probe]
        .into_iter()
        .flatten()
    {
        default_probe(p);
    }
    for port in c.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".into());
    }
}

fn default_probe(p: &mut Probe) {
    let fill = |value: &mut Option<i32>, default: i32| {
        if value.unwrap_or(0) == 0 {
            *value = Some(default);
        }
    };
    fill(&mut p.timeout_seconds, 1);
    fill(&mut p.period_seconds, 10);
    fill(&mut p.success_threshold, 1);
    fill(&mut p.failure_threshold, 3);
    if let Some(http) = &mut p.http_get {
        http.path.get_or_insert_with(|| "/".into());
        http.scheme.get_or_insert_with(|| "HTTP".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("r:5000/a", "Always"),
            ("r:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn restart_policies_and_rules() {
        let pod = |policy: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"restartPolicy": policy, "containers": []}})).unwrap()
        };
        let c = |v: serde_json::Value| -> Container { serde_json::from_value(v).unwrap() };
        let plain = c(json!({"name": "a"}));
        let rule = c(
            json!({"name": "a", "restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}),
        );
        for (policy, kind, container, code, expected) in [
            ("Always", Kind::Main, &plain, 0, true),
            ("OnFailure", Kind::Main, &plain, 0, false),
            ("OnFailure", Kind::Main, &plain, 1, true),
            ("Never", Kind::Main, &plain, 1, false),
            ("Always", Kind::Init, &plain, 0, false),
            ("Always", Kind::Init, &plain, 1, true),
            ("Never", Kind::Init, &plain, 1, false),
            ("Never", Kind::Sidecar, &plain, 0, true),
            ("Always", Kind::Main, &rule, 42, true),
            ("Always", Kind::Main, &rule, 1, false),
        ] {
            assert_eq!(
                should_restart(&pod(policy), kind, container, code),
                expected,
                "{policy} {kind:?} {code}"
            );
        }
    }
}
