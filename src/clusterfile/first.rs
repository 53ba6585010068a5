//! Sealer's first form of kind `Cluster`, with `masters` and `nodes`: made to the second form before it is read, so that nothing else
//! has to know of it. Hosts that are there are taken over, machines to be made are refused.

use crate::decode::{Decoder, Object};
use crate::sealer;
use crate::yaml::{Key, Node, Position, Value};

/// The documents that say in the second form what `document` says in the first. Pure, but for the findings.
pub(crate) fn to_second(decoder: &mut Decoder, document: &Node) -> Vec<Node> {
    let mut made = Vec::new();
    let entries = document.entries().iter().map(|(key, node)| {
        let node = match key.name.as_str() {
            "apiVersion" => text(node.at, "sealer.io/v2"),
            "spec" if matches!(node.value, Value::Map(_)) => spec(decoder, node, &mut made),
            _ => node.clone(),
        };
        (key.clone(), node)
    });
    let cluster = Node {
        value: Value::Map(entries.collect()),
        at: document.at,
    };
    made.insert(0, cluster);
    made
}

/// `spec` of the second form; what belongs to another document is added to `more`.
fn spec(decoder: &mut Decoder, node: &Node, more: &mut Vec<Node>) -> Node {
    let mut fields: Vec<(Key, Node)> = Vec::new();
    let (mut hosts, mut env) = (Vec::new(), Vec::new());
    let mut first = Object::new(decoder, node, "spec");
    if let Some(provider) = first.get("provider")
        && !provider
            .as_str()
            .is_some_and(|name| name.eq_ignore_ascii_case("BAREMETAL"))
    {
        let message = "spec.provider can only be BAREMETAL: the installer makes no machines";
        decoder.problem(provider.at, message);
    }
    for (field, role) in [("masters", "master"), ("nodes", "node")] {
        if let Some(object) = first.object(decoder, field) {
            hosts.extend(group(decoder, object, role));
        }
    }
    if let Some(network) = first.object(decoder, "network") {
        env.extend(blocks(decoder, network));
    }
    if let Some(names) = first.get("certSANS") {
        more.push(alt_names(names));
    }
    for (key, value) in node.entries() {
        match (key.name.as_str(), &value.value) {
            ("provider" | "masters" | "nodes" | "network" | "certSANS", _) => {}
            ("hosts", Value::List(own)) => hosts.extend(own.iter().cloned()),
            ("env", Value::List(own)) => env.extend(own.iter().cloned()),
            _ => fields.push((key.clone(), value.clone())),
        }
    }
    for (name, items) in [("hosts", hosts), ("env", env)] {
        if !items.is_empty() {
            let at = items.first().map_or(node.at, |item| item.at);
            fields.push(entry(at, name, list(at, items)));
        }
    }
    Node {
        value: Value::Map(fields),
        at: node.at,
    }
}

/// `masters` or `nodes` as an entry of `hosts`; nothing if it names no addresses.
fn group(decoder: &mut Decoder, mut object: Object<'_>, role: &str) -> Option<Node> {
    let at = object.at();
    let ips = object.get("ipList").cloned();
    object.refuse(decoder, &sealer::MACHINE);
    object.finish(decoder);
    let mut fields = vec![entry(at, "ips", ips?)];
    fields.push(entry(at, "roles", list(at, vec![text(at, role)])));
    Some(Node {
        value: Value::Map(fields),
        at,
    })
}

/// The blocks of `network` as entries of `env`.
fn blocks(decoder: &mut Decoder, mut network: Object<'_>) -> Vec<Node> {
    let mut env = Vec::new();
    for (field, name) in [("podCIDR", "PodCIDR"), ("svcCIDR", "SvcCIDR")] {
        let at = network.get(field).map_or(network.at(), |node| node.at);
        if let Some(block) = network.string(decoder, field) {
            env.push(text(at, &format!("{name}={block}")));
        }
    }
    network.refuse(decoder, &sealer::NETWORK);
    network.finish(decoder);
    env
}

fn alt_names(names: &Node) -> Node {
    let at = names.at;
    let server = Value::Map(vec![entry(at, "certSANs", names.clone())]);
    Node {
        value: Value::Map(vec![
            entry(at, "apiVersion", text(at, "kubeadm.k8s.io/v1beta3")),
            entry(at, "kind", text(at, "ClusterConfiguration")),
            entry(at, "apiServer", Node { value: server, at }),
        ]),
        at,
    }
}

fn entry(at: Position, name: &str, node: Node) -> (Key, Node) {
    let name = name.to_owned();
    (Key { name, at }, node)
}

fn text(at: Position, text: &str) -> Node {
    let value = Value::String(text.to_owned());
    Node { value, at }
}

fn list(at: Position, items: Vec<Node>) -> Node {
    let value = Value::List(items);
    Node { value, at }
}
