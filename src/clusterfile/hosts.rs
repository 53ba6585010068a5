//! Reading `spec.hosts`: groups of hosts with what they share.

use std::collections::BTreeMap;

use crate::cluster::{Env, Host, Role, Taint};
use crate::decode::{Decoder, Object, pick};
use crate::names::{did_you_mean, is_label_text, is_qualified_name, nearest};
use crate::net::expand_range;
use crate::read::{Places, env_entries};
use crate::sealer;
use crate::ssh::{self, SshOverlay};
use crate::yaml::{self, Position};

/// Reads all groups; `places` learns where addresses stand, and what was refused that may hold what lacks later.
pub(crate) fn read(
    decoder: &mut Decoder,
    spec: &mut Object<'_>,
    ssh: &SshOverlay,
    env: &Env,
    places: &mut Places,
) -> Vec<Host> {
    let mut all = Vec::new();
    let before = decoder.problem_count();
    let groups = spec.list(decoder, "hosts");
    places.hosts_refused |= decoder.problem_count() > before;
    for (index, node) in groups.iter().enumerate() {
        let before = decoder.problem_count();
        let mut group = Object::new(decoder, node, format!("spec.hosts[{index}]"));
        let roles = roles(decoder, &mut group);
        places.hosts_refused |= decoder.problem_count() > before;
        places.names_master |= roles.contains(&Role::Master);
        for (host, at) in host_group(decoder, group, roles, ssh, env) {
            all.push(host);
            places.addresses.push(at);
        }
    }
    places.names_group = !groups.is_empty();
    all
}

fn host_group(
    decoder: &mut Decoder,
    mut object: Object<'_>,
    roles: Vec<Role>,
    ssh: &SshOverlay,
    env: &Env,
) -> Vec<(Host, Position)> {
    let mut addresses = Vec::new();
    let before = decoder.problem_count();
    let ips = object.strings(decoder, "ips");
    if ips.is_empty() && decoder.problem_count() == before && object.is_mapping() {
        decoder.problem(object.at(), format!("{} is missing", object.name("ips")));
    }
    for (text, at) in ips {
        match expand_range(&text) {
            Ok(range) => addresses.extend(range.into_iter().map(|ip| (ip, at))),
            Err(error) => decoder.problem(at, format!("{}: {error}", object.name("ips"))),
        }
    }
    let labels = labels(decoder, &mut object);
    let taints = taints(decoder, &mut object);
    let mut own_env = env.clone();
    own_env.extend(env_entries(decoder, &mut object));
    let own_ssh = object
        .object(decoder, "ssh")
        .map(|object| ssh::read(decoder, object))
        .unwrap_or_default();
    let ssh = own_ssh.over(ssh).resolve();
    object.refuse(decoder, &sealer::MACHINE);
    object.finish(decoder);
    addresses
        .into_iter()
        .map(|(ip, at)| {
            let (roles, labels, taints) = (roles.clone(), labels.clone(), taints.clone());
            (
                Host {
                    ip,
                    roles,
                    labels,
                    taints,
                    env: own_env.clone(),
                    ssh: ssh.clone(),
                },
                at,
            )
        })
        .collect()
}

fn roles(decoder: &mut Decoder, object: &mut Object<'_>) -> Vec<Role> {
    let known = [("master", Role::Master), ("node", Role::Node)];
    let mut roles = Vec::new();
    if object.lacks("roles") {
        decoder.problem(
            object.at(),
            format!("{} is missing (master or node)", object.name("roles")),
        );
    }
    for (text, at) in object.strings(decoder, "roles") {
        let is_slip = known.iter().any(|(name, _)| *name == text) || nearest(&text, ["master", "node"]).is_some();
        if is_slip {
            roles.extend(pick(decoder, at, &object.name("roles"), &text, &known));
        } else {
            let rest =
                "(known: master, node); mark such hosts by labels, and name them by address in the scope of hooks";
            decoder.problem(at, format!("{} is {text:?} {rest}", object.name("roles")));
        }
    }
    roles.sort_unstable();
    roles.dedup();
    roles
}

fn labels(decoder: &mut Decoder, object: &mut Object<'_>) -> BTreeMap<String, String> {
    let name = object.name("labels");
    let mut labels = BTreeMap::new();
    let Some(node) = object.get("labels") else {
        return labels;
    };
    if !matches!(node.value, yaml::Value::Map(_)) {
        decoder.mismatch(node, &name, "a mapping");
    }
    for (key, value) in node.entries() {
        let text = decoder
            .string(value, &format!("{name}.{}", key.name))
            .unwrap_or_default();
        if !is_qualified_name(&key.name) {
            decoder.problem(key.at, format!("{name}: {:?} is no label key", key.name));
        }
        if !is_label_text(&text) {
            decoder.problem(value.at, format!("{name}.{}: {text:?} is no label value", key.name));
        }
        labels.insert(key.name.clone(), text);
    }
    labels
}

fn taints(decoder: &mut Decoder, object: &mut Object<'_>) -> Vec<Taint> {
    let mut taints = Vec::new();
    for (text, at) in object.strings(decoder, "taints") {
        match parse_taint(&text) {
            Ok(taint) => taints.push(taint),
            Err(reason) => decoder.problem(at, format!("{}: {text:?} {reason}", object.name("taints"))),
        }
    }
    taints
}

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

fn parse_taint(text: &str) -> Result<Taint, String> {
    let (name, effect) = text.rsplit_once(':').ok_or("is not of the form key=value:Effect")?;
    if !EFFECTS.contains(&effect) {
        let hint = did_you_mean(effect, EFFECTS);
        return Err(format!(
            "has the unknown effect {effect:?}{hint} (known: {})",
            EFFECTS.join(", ")
        ));
    }
    let (key, value) = name.split_once('=').unwrap_or((name, ""));
    if !is_qualified_name(key) || !is_label_text(value) {
        return Err("has a key or value that labels can't have".to_string());
    }
    Ok(Taint {
        key: key.to_string(),
        value: value.to_string(),
        effect: effect.to_string(),
    })
}
