//! Security contexts of pods and containers.

use serde_json::Value;

use super::mount::local_path;
use super::rules::{Errors, entries, has, items, join, non_negative, supported, text};
use super::{FieldError, names};
use crate::strategy::{APPARMOR_ANNOTATION, apparmor_profile};

/// What holds for all containers of a pod.
pub(super) fn of_pod(out: &mut Errors, spec: &Value, path: &str) {
    let c = &spec["securityContext"];
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        non_negative(out, c, path, field);
    }
    for (i, group) in items(c, "supplementalGroups").iter().enumerate() {
        if group.as_i64().is_some_and(|n| n < 0) {
            let at = format!("{path}.supplementalGroups[{i}]");
            out.push(FieldError::invalid(at, group, "must be greater than or equal to 0"));
        }
    }
    supported(out, c, path, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    supported(out, c, path, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    supported(out, c, path, "seLinuxChangePolicy", &["MountOption", "Recursive"]);
    profiles(out, c, path);
    sysctls(out, spec, &format!("{path}.sysctls"));
}

/// What holds for one container.
pub(super) fn of_container(out: &mut Errors, s: &Value, path: &str) {
    for field in ["runAsUser", "runAsGroup"] {
        non_negative(out, s, path, field);
    }
    supported(out, s, path, "procMount", &["Default", "Unmasked"]);
    if s["allowPrivilegeEscalation"] == false {
        if s["privileged"] == true {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            out.push(FieldError::invalid(path, &"".into(), why));
        }
        // Kubernetes compares the literal name only; SYS_ADMIN, which means the same, passes.
        if items(&s["capabilities"], "add").iter().any(|c| c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            out.push(FieldError::invalid(path, &"".into(), why));
        }
    }
    profiles(out, s, path);
}

/// The profiles that a context names: seccomp's and AppArmor's.
fn profiles(out: &mut Errors, context: &Value, path: &str) {
    for (field, system) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        if has(context, field) {
            profile(out, &context[field], &format!("{path}.{field}"), system);
        }
    }
}

fn profile(out: &mut Errors, p: &Value, path: &str, system: &str) {
    let at = format!("{path}.localhostProfile");
    let name = text(p, "localhostProfile");
    match text(p, "type") {
        "Localhost" if name.is_empty() => {
            out.push(FieldError::required(
                at,
                format!("must be set when {system} type is Localhost"),
            ));
        }
        "Localhost" if system == "seccomp" => local_path(out, at, name),
        "Localhost" => {
            if name != name.trim() {
                out.push(FieldError::invalid_text(at, name, "must not be padded with whitespace"));
            }
        }
        "" => out.push(FieldError::required(format!("{path}.type"), "")),
        _ => {
            supported(out, p, path, "type", &["Localhost", "RuntimeDefault", "Unconfined"]);
            if has(p, "localhostProfile") {
                let why = format!("can only be set when {system} type is Localhost");
                out.push(FieldError::invalid_text(at, name, why));
            }
        }
    }
}

/// Profiles that the annotations of a new pod or of a template at `path` ask for: of a container that is there, well formed,
/// and what its field says.
pub(super) fn annotations(out: &mut Errors, pod: &Value, path: &str) {
    let annotations = entries(&pod["metadata"], "annotations");
    for (key, value) in annotations {
        let Some(name) = key.strip_prefix(APPARMOR_ANNOTATION) else {
            continue;
        };
        let at = join(path, &format!("metadata.annotations[{key}]"));
        let lists = ["containers", "initContainers"].map(|l| (l, items(&pod["spec"], l)));
        let found = lists.iter().find_map(|(list, containers)| {
            let i = containers.iter().position(|c| text(c, "name") == name)?;
            Some((*list, i, &containers[i]["securityContext"]["appArmorProfile"]))
        });
        let Some((list, i, field)) = found else {
            out.push(FieldError::invalid_text(at, name, "container not found"));
            continue;
        };
        let written = value.as_str().unwrap_or_default();
        let meant = apparmor_profile(written);
        if meant.is_none() && !written.is_empty() {
            let why = format!("invalid AppArmor profile name: {written:?}");
            out.push(FieldError::invalid_text(at, written, why));
        } else if !field.is_null() && meant.is_some_and(|m| m != *field) {
            let at = join(path, &format!("spec.{list}[{i}].securityContext.appArmorProfile.type"));
            let why = "apparmor type in annotation and field must match";
            out.push(FieldError::forbidden(at, why));
        }
    }
}

fn sysctls(out: &mut Errors, spec: &Value, path: &str) {
    let mut seen = Vec::new();
    for (i, sysctl) in items(&spec["securityContext"], "sysctls").iter().enumerate() {
        let at = format!("{path}[{i}].name");
        // The two ways of writing a name are one sysctl.
        let name = text(sysctl, "name").replace('/', ".");
        if name.is_empty() {
            out.push(FieldError::required(at, ""));
            continue;
        }
        for why in names::sysctl(text(sysctl, "name")) {
            out.push(FieldError::invalid_text(at.clone(), text(sysctl, "name"), why));
        }
        if seen.contains(&name) {
            out.push(FieldError::duplicate(at.clone(), &sysctl["name"]));
        }
        for (host, is, what) in [
            ("hostNetwork", name.starts_with("net."), "host net"),
            ("hostIPC", is_ipc(&name), "host ipc"),
        ] {
            // It would change the host.
            if is && spec[host] == true {
                let why = format!("sysctl not allowed with {what} enabled");
                out.push(FieldError::invalid_text(at.clone(), text(sysctl, "name"), why));
            }
        }
        seen.push(name);
    }
}

/// Whether a sysctl belongs to the namespace of inter-process communication.
fn is_ipc(name: &str) -> bool {
    name == "kernel.sem"
        || ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|p| name.starts_with(p))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: Value) -> Vec<String> {
        let mut out = Errors::new();
        of_pod(&mut out, &spec, "securityContext");
        out.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_of_sysctls_follow_their_grammar() {
        let longest = format!("a.{}", "b".repeat(251));
        let longer = format!("{longest}b");
        for (name, good) in [
            ("kernel.shm_rmid_forced", true),
            ("net/ipv4/tcp_syncookies", true),
            ("net.ipv4.conf.eth0/1.forwarding", true),
            ("a", true),
            (&longest, true),
            ("foo-", false),
            ("bar..", false),
            ("_foo", false),
            ("Foo", false),
            ("a..b", false),
            ("$\"%", false),
            (&longer, false),
        ] {
            let errors = pod(json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}}));
            assert_eq!(errors.is_empty(), good, "{name}: {errors:?}");
        }
        assert_eq!(
            pod(json!({"securityContext": {"sysctls": [{"name": "bar..", "value": "1"}, {"value": "1"}]}})),
            [
                r#"securityContext.sysctls[0].name: Invalid value: "bar..": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"#,
                "securityContext.sysctls[1].name: Required value",
            ]
        );
    }

    #[test]
    fn a_sysctl_is_set_once_and_never_on_the_host() {
        let errors = pod(
            json!({"hostNetwork": true, "hostIPC": true, "securityContext": {"sysctls": [
            {"name": "net.core.somaxconn", "value": "1"}, {"name": "net/core/somaxconn", "value": "2"},
            {"name": "kernel.sem", "value": "1"}, {"name": "kernel.hostname", "value": "x"}]}}),
        );
        assert_eq!(
            errors,
            [
                "securityContext.sysctls[0].name: Invalid value: \"net.core.somaxconn\": sysctl not allowed with host net enabled",
                "securityContext.sysctls[1].name: Duplicate value: \"net/core/somaxconn\"",
                "securityContext.sysctls[1].name: Invalid value: \"net/core/somaxconn\": sysctl not allowed with host net enabled",
                "securityContext.sysctls[2].name: Invalid value: \"kernel.sem\": sysctl not allowed with host ipc enabled",
            ]
        );
    }

    #[test]
    fn escalation_is_refused_beside_the_literal_capability_only() {
        for (context, refused) in [
            (
                json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}),
                true,
            ),
            (
                json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["SYS_ADMIN"]}}),
                false,
            ),
            (
                json!({"allowPrivilegeEscalation": true, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}),
                false,
            ),
            (json!({"capabilities": {"add": ["CAP_SYS_ADMIN"]}}), false),
            (json!({"allowPrivilegeEscalation": false, "privileged": true}), true),
        ] {
            let mut out = Errors::new();
            of_container(&mut out, &context, "c");
            assert_eq!(!out.is_empty(), refused, "{context}");
        }
    }

    #[test]
    fn profiles_in_annotations_are_whole() {
        let key = "container.apparmor.security.beta.kubernetes.io/c";
        let pod = |key: &str, value: &str, field: Value| {
            json!({"metadata": {"annotations": {key: value}}, "spec": {"containers": [
                {"name": "c", "securityContext": {"appArmorProfile": field}}]}})
        };
        let other = key.replace("/c", "/d");
        let unconfined = json!({"type": "Unconfined"});
        for (object, expected) in [
            (pod(key, "localhost/x", json!(null)), None),
            (pod(key, "unconfined", unconfined.clone()), None),
            (pod("other", "x", json!(null)), None),
            (
                pod(key, "strict", json!(null)),
                Some(
                    "metadata.annotations[container.apparmor.security.beta.kubernetes.io/c]: Invalid value: \"strict\": invalid AppArmor profile name: \"strict\"",
                ),
            ),
            (
                pod(&other, "unconfined", json!(null)),
                Some(
                    "metadata.annotations[container.apparmor.security.beta.kubernetes.io/d]: Invalid value: \"d\": container not found",
                ),
            ),
            (
                pod(key, "runtime/default", unconfined),
                Some(
                    "spec.containers[0].securityContext.appArmorProfile.type: Forbidden: apparmor type in annotation and field must match",
                ),
            ),
        ] {
            let mut out = Errors::new();
            annotations(&mut out, &object, "");
            let texts: Vec<_> = out.iter().map(ToString::to_string).collect();
            assert_eq!(texts.first().map(String::as_str), expected, "{object}");
        }
    }

    #[test]
    fn profiles_of_pods_and_containers_are_whole() {
        for (profile, expected) in [
            (json!({"seccompProfile": {"type": "RuntimeDefault"}}), None),
            (
                json!({"seccompProfile": {"type": "Localhost"}}),
                Some("c.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"),
            ),
            (
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}}),
                Some("c.seccompProfile.localhostProfile: Invalid value: \"../x\": must not contain '..'"),
            ),
            (
                json!({"appArmorProfile": {"type": "Unconfined", "localhostProfile": "x"}}),
                Some(
                    "c.appArmorProfile.localhostProfile: Invalid value: \"x\": can only be set when AppArmor type is Localhost",
                ),
            ),
            (
                json!({"appArmorProfile": {"type": "Strict"}}),
                Some(
                    "c.appArmorProfile.type: Unsupported value: \"Strict\": supported values: \"Localhost\", \"RuntimeDefault\", \"Unconfined\"",
                ),
            ),
            (
                json!({"appArmorProfile": {}}),
                Some("c.appArmorProfile.type: Required value"),
            ),
        ] {
            let mut out = Errors::new();
            of_container(&mut out, &profile, "c");
            let texts: Vec<_> = out.iter().map(ToString::to_string).collect();
            assert_eq!(texts.first().map(String::as_str), expected, "{profile}");
            assert_eq!(pod(json!({"securityContext": profile})).len(), texts.len(), "{profile}");
        }
    }
}
