//! The Clusterfile of a cluster that runs: what was stored in the cluster when it was made, corrected by the nodes it has now.
//!
//! Only what can be known is written. Secrets are not stored in a cluster, so where some were used a comment says so.

use crate::{
    Error, Result,
    cluster::{self, Cluster, nodes, record},
    install::Options,
    render,
    session::Session,
};
use clusterfile::{Ssh, expand_range};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, net::Ipv4Addr, path::Path, time::Duration};

/// How long an API server may take to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Stands in a document where a comment shall be.
const FILL_IN: &str = "installer:fill-in";

/// What a cluster says about itself.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The stored Clusterfile.
    pub clusterfile: Option<String>,
    /// The image it was made of, as it was called.
    pub image: Option<String>,
    /// That image's digest.
    pub digest: Option<String>,
    /// Its nodes.
    pub nodes: Vec<Member>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Whether it runs the control plane.
    pub master: bool,
    /// Labels that an installer gave it.
    pub labels: Vec<(String, String)>,
    /// Taints that an installer gave it, `key=value:Effect`.
    pub taints: Vec<String>,
}

/// Asks a cluster.
///
/// # Errors
/// When the API server does not answer or does not let us.
pub async fn ask(client: &Client) -> Result<Found> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let all: Api<Node> = Api::all(client.clone());
    let params = ListParams::default();
    let (map, list) = tokio::try_join!(
        async {
            maps.get_opt(record::NAME)
                .await
                .map_err(Error::api("reading the stored Clusterfile"))
        },
        async { all.list(&params).await.map_err(Error::api("listing nodes")) },
    )?;
    let mut data = map.and_then(|map| map.data).unwrap_or_default();
    Ok(Found {
        clusterfile: data.remove("Clusterfile"),
        image: data.remove("image"),
        digest: data.remove("digest"),
        nodes: list.items.iter().filter_map(member).collect(),
    })
}

/// Asks the cluster of a kubeconfig; `path` absent: that of `KUBECONFIG` or `~/.kube/config`.
///
/// # Errors
/// When there is no kubeconfig, or as [`ask`].
pub async fn by_kubeconfig(path: Option<&Path>, context: Option<String>) -> Result<Found> {
    use kube::config::{KubeConfigOptions, Kubeconfig};
    let bad = |e: kube::config::KubeconfigError| {
        Error::Wish(format!(
            "no usable kubeconfig: {e}; set KUBECONFIG, use --kubeconfig FILE, or ask a master by --master IP"
        ))
    };
    let file = match path {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let options = KubeConfigOptions {
        context,
        ..KubeConfigOptions::default()
    };
    let mut config = kube::Config::from_custom_kubeconfig(file.map_err(bad)?, &options)
        .await
        .map_err(bad)?;
    config.connect_timeout = Some(ANSWER);
    config.read_timeout = Some(ANSWER);
    let client = Client::try_from(config).map_err(Error::api("preparing to ask the cluster"))?;
    ask(&client).await
}

/// Asks the cluster of a master over SSH.
///
/// # Errors
/// When the host cannot be reached or is no master, or as [`ask`].
pub async fn by_master(ip: Ipv4Addr, ssh: &Ssh, options: &Options) -> Result<Found> {
    let session = Session::open(ip, ssh, &options.access, None).await?;
    cluster::api::wait_ready(&session, ANSWER).await?;
    let cluster = Cluster::open(&session).await?;
    ask(&cluster.client).await
}

fn member(node: &Node) -> Option<Member> {
    let labels = node.labels();
    let ours = nodes::given_labels(node);
    let master = labels.contains_key(crate::site::CONTROL_PLANE);
    let given = ours.into_iter().filter(|key| key != crate::site::CONTROL_PLANE);
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let our_taints = nodes::given_taints(node);
    let taint = |taint: &k8s_openapi::api::core::v1::Taint| clusterfile::Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: taint.effect.clone(),
    };
    Some(Member {
        name: node.name_any(),
        ip: nodes::internal_ip(node)?,
        master,
        labels: given
            .filter_map(|key| Some((key.clone(), labels.get(&key)?.clone())))
            .collect(),
        taints: taints
            .iter()
            .filter(|t| t.key != crate::site::CONTROL_PLANE && our_taints.contains(&format!("{}:{}", t.key, t.effect)))
            .map(|t| taint(t).to_string())
            .collect(),
    })
}

/// The Clusterfile's text; `name` is how the cluster is called where it does not say so itself. Pure.
///
/// # Errors
/// When what is stored is no Clusterfile, or the cluster does not know its name and nobody says it.
pub fn compose(found: &Found, name: Option<&str>) -> Result<String> {
    let mut notes = Vec::new();
    let mut documents = match &found.clusterfile {
        Some(text) => stored(text)?,
        None => {
            notes.push(
                "The cluster has no stored Clusterfile: this is what its nodes say. Look at everything.".to_owned(),
            );
            vec![fresh(found, name)?]
        }
    };
    let cluster = documents.iter_mut().find(|document| document["kind"] == "Cluster");
    let cluster = cluster
        .ok_or_else(|| Error::Wish("what is stored in the cluster has no document of kind Cluster".to_owned()))?;
    if let Some(name) = name {
        cluster["metadata"]["name"] = json!(name);
    }
    if found.clusterfile.is_some() {
        correct(&mut cluster["spec"], &found.nodes, &mut notes);
    }
    let secrets = mark_secrets(&mut cluster["spec"]);
    if secrets {
        notes.push(
            "Secrets are not stored in clusters: fill in what the comments below name, if it was used.".to_owned(),
        );
    }
    if let (Some(image), Some(digest)) = (&found.image, &found.digest) {
        notes.push(format!("The cluster was made of {image} ({digest})."));
    }
    let texts: Vec<String> = documents.iter().map(render::yaml).collect::<Result<_>>()?;
    let head: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    Ok(head + &commented(&texts.join("---\n")))
}

fn stored(text: &str) -> Result<Vec<Value>> {
    let bad = |e: &dyn std::fmt::Display| Error::Wish(format!("what is stored in the cluster is no Clusterfile: {e}"));
    let documents = clusterfile::yaml::parse(text).map_err(|e| bad(&e.message))?;
    Ok(documents.iter().map(clusterfile::yaml::Node::to_json).collect())
}

/// A Clusterfile from nodes alone.
fn fresh(found: &Found, name: Option<&str>) -> Result<Value> {
    let name = name.ok_or_else(|| {
        Error::Wish(
            "the cluster has no stored Clusterfile and does not know its name: say it with --name NAME".to_owned(),
        )
    })?;
    let image = found.image.clone().unwrap_or_else(|| FILL_IN.to_owned());
    let mut members: Vec<&Member> = found.nodes.iter().collect();
    members.sort_by_key(|member| (!member.master, member.ip));
    let hosts: Vec<Value> = members.into_iter().map(host).collect();
    Ok(json!({
        "apiVersion": "sealer.io/v2",
        "kind": "Cluster",
        "metadata": {"name": name},
        "spec": {"image": image, "ssh": {}, "hosts": hosts},
    }))
}

fn host(member: &Member) -> Value {
    let mut host = Map::new();
    host.insert("ips".to_owned(), json!([member.ip.to_string()]));
    host.insert(
        "roles".to_owned(),
        json!([if member.master { "master" } else { "node" }]),
    );
    if !member.labels.is_empty() {
        let labels: Map<String, Value> = member
            .labels
            .iter()
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        host.insert("labels".to_owned(), Value::Object(labels));
    }
    if !member.taints.is_empty() {
        host.insert("taints".to_owned(), json!(member.taints));
    }
    Value::Object(host)
}

/// Adds hosts that joined since, and names those that are gone.
fn correct(spec: &mut Value, nodes: &[Member], notes: &mut Vec<String>) {
    let hosts = spec["hosts"].as_array().cloned().unwrap_or_default();
    let addresses = |host: &Value| -> Vec<Ipv4Addr> {
        let ips = host["ips"].as_array().into_iter().flatten().filter_map(Value::as_str);
        ips.filter_map(|ip| expand_range(ip).ok()).flatten().collect()
    };
    let known: BTreeSet<Ipv4Addr> = hosts.iter().flat_map(addresses).collect();
    let there: BTreeSet<Ipv4Addr> = nodes.iter().map(|node| node.ip).collect();
    for gone in known.difference(&there) {
        notes.push(format!(
            "{gone} is in the stored Clusterfile, but is no node of the cluster now."
        ));
    }
    let added: Vec<&Member> = nodes.iter().filter(|node| !known.contains(&node.ip)).collect();
    for node in &added {
        notes.push(format!(
            "{} ({}) joined after the Clusterfile was stored.",
            node.ip, node.name
        ));
    }
    if let Some(hosts) = spec["hosts"].as_array_mut() {
        hosts.extend(added.into_iter().map(host));
    }
}

/// Marks the places where a secret may have been; whether there are any.
fn mark_secrets(spec: &mut Value) -> bool {
    let mut marked = false;
    let hosts = spec
        .get_mut("hosts")
        .and_then(Value::as_array_mut)
        .map(std::mem::take)
        .unwrap_or_default();
    let mut hosts = hosts;
    for ssh in hosts.iter_mut().filter_map(|host| host.get_mut("ssh")) {
        marked |= mark_ssh(ssh);
    }
    spec["hosts"] = Value::Array(hosts);
    if let Some(ssh) = spec.get_mut("ssh") {
        marked |= mark_ssh(ssh);
    }
    for kind in ["localRegistry", "externalRegistry"] {
        let Some(registry) = spec.get_mut("registry").and_then(|registry| registry.get_mut(kind)) else {
            continue;
        };
        if registry.get("username").is_some() {
            marked |= mark(registry, "password");
        }
    }
    marked
}

fn mark_ssh(ssh: &mut Value) -> bool {
    if ssh.get("connection").is_some_and(|connection| connection == "local") {
        return false;
    }
    let has_key = ssh.get("pk").is_some();
    let root = ssh.get("user").is_none_or(|user| user == "root");
    let mut marked = false;
    if has_key {
        marked |= mark(ssh, "pkPasswd");
    } else {
        marked |= mark(ssh, "passwd");
    }
    if !root {
        marked |= mark(ssh, "sudoPasswd");
    }
    marked
}

/// Marks a secret that is not named by file or variable.
fn mark(object: &mut Value, field: &str) -> bool {
    let named = ["", "File", "Env"]
        .iter()
        .any(|end| object.get(format!("{field}{end}")).is_some());
    let Some(object) = object.as_object_mut().filter(|_| !named) else {
        return false;
    };
    object.insert(field.to_owned(), json!(FILL_IN));
    true
}

/// Lines that are to be filled in become comments. A mapping that then has no line at all is written as `{}`.
fn commented(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let Some((before, _)) = line.split_once(FILL_IN) else {
            lines.push(line.to_owned());
            continue;
        };
        let key = before.trim_start().trim_end_matches(['"', '\'', ' ', ':']);
        let key = key.trim_start_matches("- ");
        let indent = before.len() - before.trim_start().len();
        let what = match key {
            "image" => "image: NAME          the cluster does not say what it was made of".to_owned(),
            key => format!("{key}: …          or {key}File: FILE, {key}Env: VARIABLE"),
        };
        lines.push(format!("{}# {what}", " ".repeat(indent)));
    }
    let indent = |line: &str| line.len() - line.trim_start().len();
    for index in 0..lines.len() {
        let opens = lines[index].trim_end().ends_with(':') && !lines[index].trim_start().starts_with('#');
        let inner = lines
            .iter()
            .skip(index + 1)
            .find(|line| !line.trim_start().starts_with('#'));
        let filled = inner.is_some_and(|line| {
            indent(line) > indent(&lines[index])
                || (line.trim_start().starts_with("- ") && indent(line) == indent(&lines[index]))
        });
        if opens && !filled {
            let line = lines[index].trim_end().to_owned();
            lines[index] = format!("{line} {{}}");
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clusterfile::Clusterfile;

    fn member(ip: &str, master: bool) -> Member {
        Member {
            name: format!("host-{ip}"),
            ip: ip.parse().unwrap(),
            master,
            labels: Vec::new(),
            taints: Vec::new(),
        }
    }

    fn parsed(text: &str) -> Clusterfile {
        Clusterfile::parse(text, "Clusterfile", Path::new("/")).unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    fn recorded(more: &str) -> String {
        format!(
            "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  image: local/native:dev\n  hosts: [{{ips: [10.0.0.1], roles: [master]}}, {{ips: [10.0.0.2-10.0.0.3], roles: [node]}}]\n{more}"
        )
    }

    #[test]
    fn the_stored_clusterfile_comes_back_with_the_hosts_of_today() {
        let mut joined = member("10.0.0.7", false);
        joined.labels = vec![("disk".into(), "ssd".into())];
        joined.taints = vec!["gpu=yes:NoSchedule".into()];
        let found = Found {
            clusterfile: Some(recorded(
                "  env: [A=1]\n---\napiVersion: sealer.io/v1\nkind: Config\nmetadata: {name: c}\nspec: {path: etc/x, data: 'a: 1'}\n",
            )),
            image: Some("local/native:dev".into()),
            digest: Some("sha256:12".into()),
            nodes: vec![member("10.0.0.1", true), member("10.0.0.2", false), joined],
        };
        let text = compose(&found, None).unwrap();
        let file = parsed(&text);
        assert_eq!(
            (
                file.cluster.name.as_str(),
                file.configs.len(),
                file.cluster.env["A"].as_str()
            ),
            ("demo", 1, "1")
        );
        let ips: Vec<String> = file.cluster.hosts.iter().map(|host| host.ip.to_string()).collect();
        assert_eq!(ips, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.7"]);
        let last = file.cluster.hosts.last().unwrap();
        assert_eq!(
            (last.labels["disk"].as_str(), last.taints[0].to_string()),
            ("ssd", "gpu=yes:NoSchedule".to_owned())
        );
        for note in [
            "# 10.0.0.3 is in the stored",
            "# 10.0.0.7 (host-10.0.0.7) joined",
            "(sha256:12)",
        ] {
            assert!(text.contains(note), "{text}");
        }
        assert!(!text.contains("Secrets"), "none were used: {text}");
    }

    #[test]
    fn where_secrets_were_a_comment_says_what_to_fill_in_and_the_file_still_reads() {
        for (more, comments, absent) in [
            (
                "  ssh: {user: ann}\n",
                vec!["# passwd: …", "# sudoPasswd: …"],
                "pkPasswd",
            ),
            ("  ssh: {pk: /k}\n", vec!["# pkPasswd: …"], "sudoPasswd"),
            ("  ssh: {}\n", vec!["# passwd: …"], "pkPasswd"),
            (
                "  ssh: {passwdFile: /p, user: ann, sudoPasswdEnv: X}\n",
                vec![],
                "#  passwd",
            ),
            (
                "  registry: {localRegistry: {username: u}}\n",
                vec!["# password: …"],
                "passwd",
            ),
        ] {
            let found = Found {
                clusterfile: Some(recorded(more)),
                ..Found::default()
            };
            let text = compose(&found, None).unwrap();
            for comment in &comments {
                assert!(text.contains(comment), "{more}: {text}");
            }
            assert!(
                !text.contains(&format!("# {absent}")) && !text.contains(FILL_IN),
                "{more}: {text}"
            );
            assert_eq!(text.contains("# Secrets"), !comments.is_empty(), "{text}");
            if !more.contains("registry") {
                parsed(&text);
            }
        }
    }

    #[test]
    fn without_a_stored_one_only_the_nodes_are_known() {
        let found = Found {
            nodes: vec![member("10.0.0.2", false), member("10.0.0.1", true)],
            ..Found::default()
        };
        let error = compose(&found, None).unwrap_err().to_string();
        assert!(error.contains("--name"), "{error}");
        let text = compose(&found, Some("demo")).unwrap();
        assert!(text.contains("# image: NAME"), "{text}");
        let filled = text.replace("# image: NAME", "image: a/b #");
        let file = parsed(&filled);
        assert!(file.cluster.hosts[0].is_master());
        assert_eq!(file.cluster.hosts[0].ip.to_string(), "10.0.0.1");
    }

    #[test]
    fn what_was_stored_by_others_is_refused() {
        let found = Found {
            clusterfile: Some("kind: Other\n".into()),
            ..Found::default()
        };
        assert!(compose(&found, None).unwrap_err().to_string().contains("kind Cluster"));
    }
}
