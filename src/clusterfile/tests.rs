//! A Clusterfile as users write it: what it means, and what is said when it is wrong.

use std::path::Path;

use proptest::prelude::*;

use crate::{Clusterfile, ContainerRuntime, Env, Registry, Role, SecretSource};

const GOOD: &str = r#"
apiVersion: sealer.cloud/v2
kind: Cluster
metadata:
  name: demo
spec:
  image: local/native:dev
  env: ["PodCIDR=100.64.0.0/10", "Mode=a=b"]
  ssh: {user: admin, passwd: hunter2, port: "2222"}
  dataRoot: /data
  containerRuntime: {type: docker}
  hostAliases: [{ip: 10.9.9.9, hostnames: [nfs.corp]}]
  registry: {localRegistry: {domain: hub.corp, port: 5443, insecure: true, ha: false, username: u, password: pppp}}
  hosts:
  - ips: [10.0.0.1-10.0.0.3]
    roles: [master]
    labels: {disk: ssd}
    taints: ["k=v:NoSchedule", "only:NoExecute"]
    env: [Mode=host]
  - ips: [10.0.0.9]
    roles: [node]
    ssh: {user: root, pk: keys/id, hostKey: "ssh-ed25519 AAAAC3Nz", proxyJump: "me@b1:2200,b2", sudo: false}
  cmd: [echo hi]
  appNames: [web]
---
apiVersion: sealer.io/v2
kind: Config
metadata: {name: c}
spec: {path: etc/x.yaml, strategy: merge, data: "a: 1"}
---
apiVersion: sealer.io/v2
kind: Plugin
metadata: {name: p}
spec: {type: SHELL, action: pre-init-host, scope: "master,n1", data: echo}
---
apiVersion: sealer.io/v2
kind: Application
metadata: {name: a}
spec: {launchApps: [web], cmds: [go], configs: [{name: web, namespace: shop, env: [A=1], launch: {cmds: [x]}, files: [{path: f, data: d}]}]}
---
apiVersion: kubeadm.k8s.io/v1beta3
kind: ClusterConfiguration
networking: {serviceSubnet: 10.97.0.0/16}
apiServer: {certSANs: [api.corp]}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
maxPods: 50
"#;

fn parse(text: &str) -> Result<Clusterfile, String> {
    Clusterfile::parse(text, "Clusterfile", Path::new("/work dir")).map_err(|problems| problems.to_string())
}

/// A minimal good file with `lines` put in place of the whole of `spec`'s hosts.
fn with_spec(spec: &str) -> String {
    format!("apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  image: i\n{spec}")
}

const HOSTS: &str = "  hosts: [{ips: [10.0.0.1], roles: [master]}]\n";

#[test]
fn everything_of_a_full_file_is_understood() {
    let file = parse(GOOD).unwrap();
    let cluster = &file.cluster;
    assert_eq!(
        (cluster.name.as_str(), cluster.image.as_str()),
        ("demo", "local/native:dev")
    );
    assert_eq!(cluster.container_runtime, ContainerRuntime::Docker);
    assert_eq!(cluster.hosts.len(), 4);
    let first = &cluster.hosts[0];
    assert_eq!(
        (first.ip.to_string(), first.roles.as_slice()),
        ("10.0.0.1".into(), &[Role::Master][..])
    );
    assert_eq!(
        first.taints.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["k=v:NoSchedule", "only:NoExecute"]
    );
    assert_eq!(first.ssh.passwd.resolve().unwrap().unwrap().expose(), "hunter2");
    assert_eq!(
        (
            first.ssh.user.as_deref(),
            first.ssh.port,
            first.ssh.sudo,
            first.ssh.agent
        ),
        (Some("admin"), Some(2222), None, false)
    );
    let image_env = Env::from([("Mode".into(), "image".into()), ("X".into(), "1".into())]);
    let env = first.env_over(&image_env);
    assert_eq!((env["Mode"].as_str(), env["X"].as_str()), ("host", "1"));
    let node = &cluster.hosts[3];
    assert_eq!(node.env["Mode"], "a=b");
    assert_eq!(node.ssh.pk.as_deref(), Some(Path::new("/work dir/keys/id")));
    assert_eq!(
        node.ssh.passwd,
        SecretSource::None,
        "a host with its own key is not tried with the cluster's password"
    );
    assert_eq!(
        (node.ssh.proxy_jump.as_ref().map(Vec::len), node.ssh.sudo, node.ssh.port),
        (Some(2), Some(false), Some(2222))
    );
    let Registry::LocalRegistry(registry) = &cluster.registry else {
        panic!("local registry")
    };
    assert_eq!(
        (registry.host_port().as_str(), registry.insecure, registry.ha),
        ("hub.corp:5443", true, false)
    );
    let networks = file.networks(&image_env).unwrap();
    assert_eq!(networks.dns_service_ip().unwrap().to_string(), "10.97.0.10");
    assert_eq!(networks.pod_cidr.to_string(), "100.64.0.0/10");
    assert_eq!(file.kubeadm.kubelet["maxPods"], 50);
    assert_eq!(
        (file.configs.len(), file.plugins.len(), file.applications.len()),
        (1, 1, 1)
    );
    assert!(file.warnings.is_empty());
    let plugin = &file.plugins[0];
    assert_eq!((plugin.actions.len(), plugin.scope.len()), (1, 2));
    let web = &file.applications[0].configs["web"];
    assert_eq!((web.namespace.as_deref(), web.env["A"].as_str()), (Some("shop"), "1"));
    assert_eq!(file.applications[0].cmds, ["go"]);
}

#[test]
fn a_registry_that_is_somebody_elses_can_be_named() {
    let registry = "  registry: {externalRegistry: {domain: r.corp, username: u, passwordEnv: P, caFile: ca.pem}}\n";
    let file = parse(&with_spec(&format!("{registry}{HOSTS}"))).unwrap();
    let Registry::ExternalRegistry(registry) = &file.cluster.registry else {
        panic!("external registry")
    };
    assert_eq!(
        (registry.domain.as_str(), registry.port, registry.insecure),
        ("r.corp", 5000, false)
    );
    assert_eq!(registry.ca_file.as_deref(), Some(Path::new("/work dir/ca.pem")));
}

#[test]
fn secrets_are_neither_printed_nor_stored() {
    let file = parse(&GOOD.replace("Mode=host", "DB_PASSWORD=pppp")).unwrap();
    let stored = file.without_secrets().to_string();
    for text in [
        stored.clone(),
        format!("{file:?}"),
        serde_json::to_string(&file.cluster.ssh).unwrap(),
    ] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(!stored.contains("pppp"), "{stored}");
    assert!(stored.contains("local/native:dev") && stored.contains("2222"));
}

#[test]
fn defaults_fill_what_a_short_file_leaves_out() {
    let file = parse(&with_spec(HOSTS)).unwrap();
    assert_eq!(file.cluster.data_root, Path::new("/var/lib/installer"));
    let Registry::LocalRegistry(registry) = &file.cluster.registry else {
        panic!("local registry")
    };
    assert_eq!(
        (registry.host_port().as_str(), registry.insecure, registry.ha),
        ("sea.hub:5000", false, true)
    );
    let ssh = &file.cluster.hosts[0].ssh;
    assert_eq!(
        (ssh.user.as_deref(), ssh.port, ssh.sudo, ssh.agent),
        (None, None, None, true)
    );
    let networks = file
        .networks(&Env::from([("PodCIDR".into(), "10.244.0.0/16".into())]))
        .unwrap();
    assert_eq!(networks.pod_cidr.to_string(), "10.244.0.0/16");
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let mut wrong = Vec::new();
    for (spec, expected) in [
        (
            "  hsots: []\n",
            "Clusterfile:6:3: unknown field \"spec.hsots\", did you mean \"hosts\"?",
        ),
        (
            "  hosts: [{ips: [10.0.0.1], roles: [mster]}]\n",
            "Clusterfile:6:37: spec.hosts[0].roles is \"mster\", did you mean \"master\"?",
        ),
        (
            "  hosts: [{ips: [10.0.0.1], roles: [node]}]\n",
            "Clusterfile:6:10: spec.hosts has no host with the role master",
        ),
        ("  hosts: []\n", "Clusterfile:6:10: spec.hosts names no host"),
        (
            "  hosts: [{ips: [10.0.0.1, 10.0.0.1], roles: [master]}]\n",
            "Clusterfile:6:28: spec.hosts: 10.0.0.1 is already named in line 6",
        ),
        (
            "  hosts: [{ips: [10.0.0.0/24], roles: [master]}]\n",
            "Clusterfile:6:18: spec.hosts[0].ips: \"10.0.0.0/24\" is a block",
        ),
        (
            "  hosts: {}\n",
            "Clusterfile:6:10: spec.hosts must be a list, not a mapping",
        ),
        (
            "  hosts: [{ips: [10.0.0.1], roles: [master], taints: [\"a:NoShedule\"]}]\n",
            "Clusterfile:6:55: spec.hosts[0].taints: \"a:NoShedule\" has the unknown effect \"NoShedule\", did you mean \"NoSchedule\"?",
        ),
        (
            "  hosts: [{ips: [10.0.0.1], roles: [master], labels: {a: 1}}]\n",
            "Clusterfile:6:58: spec.hosts[0].labels.a must be a string, not a number (put it in quotes)",
        ),
        ("  image: j\n", "Clusterfile:6:3: "),
        (
            "  ssh: {port: 99999}\n",
            "Clusterfile:6:15: spec.ssh.port must be a port from 1 to 65535",
        ),
        (
            "  ssh: {passwd: a, passwdFile: b}\n",
            "Clusterfile:6:8: spec.ssh takes only one of passwd, passwdFile and passwdEnv",
        ),
        (
            "  ssh: {connection: local, user: ann}\n",
            "Clusterfile:6:8: spec.ssh.connection: local means this machine itself",
        ),
        (
            "  ssh: {connection: telnet}\n",
            "Clusterfile:6:21: spec.ssh.connection is \"telnet\" (known: ssh, local)",
        ),
        (
            "  ssh: {certificate: id-cert.pub}\n",
            "Clusterfile:6:8: spec.ssh.certificate: it goes with the key",
        ),
        (
            "  ssh: {connection: local}\n  hosts: [{ips: [10.0.0.1-10.0.0.2], roles: [master]}]\n",
            "Clusterfile:7:10: spec.hosts: only one host can be this machine",
        ),
        (
            "  ssh: {encrypted: true}\n",
            "Clusterfile:6:8: spec.ssh.encrypted: encrypted passwords are not supported",
        ),
        (
            "  env: [\"1a=b\"]\n",
            "Clusterfile:6:9: spec.env: \"1a\" can't be a variable's name",
        ),
        (
            "  env: [\"PodCIDR=10.0.0.0/16\"]\n  hosts: [{ips: [10.0.0.1], roles: [master]}]\n",
            "Clusterfile:6:8: PodCIDR 10.0.0.0/16 contains the host 10.0.0.1",
        ),
        (
            "  env: [\"SvcCIDR=100.64.1.0/24\"]\n",
            "Clusterfile:6:8: PodCIDR 100.64.0.0/16 and SvcCIDR 100.64.1.0/24 overlap",
        ),
        (
            "  dataRoot: data\n",
            "Clusterfile:6:13: spec.dataRoot must be an absolute path",
        ),
        (
            "  containerRuntime: {type: crio}\n",
            "Clusterfile:6:28: spec.containerRuntime.type is \"crio\" (known: containerd, docker)",
        ),
        (
            "  registry: {localRegistry: {username: u}}\n",
            "Clusterfile:6:29: spec.registry.localRegistry.username and a password go together",
        ),
        (
            "  registry: {externalRegistry: {domain: r.corp, insecure: true, caFile: ca.pem}}\n",
            "Clusterfile:6:32: spec.registry.externalRegistry.insecure means plain HTTP",
        ),
    ] {
        let error = parse(&with_spec(spec)).unwrap_err();
        if !error.lines().any(|line| line.starts_with(expected)) {
            wrong.push(format!("{spec}\nexpected {expected}\ngot {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn kinds_and_versions_are_checked() {
    for (text, expected) in [
        (
            "kind: Clutser\n",
            "Clusterfile:1:7: unknown kind \"Clutser\", did you mean \"Cluster\"?",
        ),
        ("apiVersion: v1\n", "Clusterfile:1:1: kind is missing"),
        (
            "kind: Cluster\napiVersion: sealer.cloud/v1\nmetadata: {name: a}\n",
            "Clusterfile:2:13: apiVersion \"sealer.cloud/v1\" is not supported (use sealer.io/v2)",
        ),
        ("", "Clusterfile: there is no document of kind Cluster"),
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nstaticPodPath: /x\n",
            "Clusterfile:3:16: staticPodPath can only be \"/etc/kubernetes/manifests\" here",
        ),
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard: {memory.availble: 1Gi}\n",
            "Clusterfile:3:16: evictionHard: \"memory.availble\" is no signal, did you mean \"memory.available\"?",
        ),
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard: {memory.available: 5}\n",
            "Clusterfile:3:34: evictionHard.memory.available must be a string, not a number (put it in quotes)",
        ),
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard: {nodefs.available: 110%}\n",
            "Clusterfile:3:34: evictionHard.nodefs.available: \"110%\" is neither an amount (100Mi) nor a percentage (5%)",
        ),
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: \"50\"\n",
            "Clusterfile:3:10: maxPods must be a whole number, not a string",
        ),
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionSoft: {memory.available: 1Gi}\n",
            "Clusterfile:3:1: KubeletConfiguration field \"evictionSoft\" is not honoured by the native distribution",
        ),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n",
            "Clusterfile:3:7: mode is \"ipvs\", but the native proxy works with nftables only",
        ),
        (
            "apiVersion: sealer.cloud/v1\nkind: Plugin\nmetadata: {name: p}\nspec: {type: SHELL, action: pre-instal, data: x}\n",
            "Clusterfile:4:29: spec.action is \"pre-instal\", did you mean \"pre-install\"?",
        ),
        (
            "apiVersion: sealer.io/v2\nkind: Config\nmetadata: {name: p}\nspec: {path: ../x, data: x}\n",
            "Clusterfile:4:7: spec.path \"../x\" must be relative and without ..",
        ),
        ("a: 1\na: 2\n", "Clusterfile:2:1: "),
        ("a: [\n", "Clusterfile:1:4: unclosed bracket"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(
            error.lines().any(|line| line.starts_with(expected)),
            "{text}\nexpected {expected}\ngot {error}"
        );
    }
}

/// What was refused once is not told again as lacking: these are all the findings of each file.
#[test]
fn nothing_is_told_that_only_follows_from_a_value_that_was_refused() {
    let mut wrong = Vec::new();
    for (spec, expected) in [
        (
            "  hosts: [{ips: [\"192.0.2.11:22\"], roles: [master]}]\n",
            "6:18: spec.hosts[0].ips: \"192.0.2.11:22\" is more than an address: write 192.0.2.11 here, and the port into ssh.port (22)",
        ),
        (
            "  hosts: [{ips: 192.0.2.11, roles: [master]}]\n",
            "6:17: spec.hosts[0].ips must be a list of strings, not a string",
        ),
        (
            "  hosts: [{ips: [192.0.2.11], roles: [mastre]}]\n",
            "6:39: spec.hosts[0].roles is \"mastre\", did you mean \"master\"? (known: master, node)",
        ),
        (
            "  hosts: [{ips: [192.0.2.11]}]\n",
            "6:11: spec.hosts[0].roles is missing (master or node)",
        ),
        (
            "  hosts: [192.0.2.11]\n",
            "6:11: spec.hosts[0] must be a mapping, not a string",
        ),
        ("  hosts: 192.0.2.11\n", "6:10: spec.hosts must be a list, not a string"),
        (
            "  hosts: [{ips: [192.0.2.11], roles: [master]}]\n  trust: {keys: a.pub}\n",
            "7:17: spec.trust.keys must be a list of strings, not a string",
        ),
        (
            "  hosts: [{ips: [192.0.2.11], roles: [master]}]\n  registry: {externalRegistry: {domain: 5}}\n",
            "7:41: spec.registry.externalRegistry.domain must be a string, not a number (put it in quotes)",
        ),
        (
            "  hosts: [{ips: [192.0.2.11], roles: [master]}]\n  registry: {localRegistry: {username: 5, password: x}}\n",
            "7:40: spec.registry.localRegistry.username must be a string, not a number (put it in quotes)",
        ),
        (
            "  hosts: [{ips: [192.0.2.11], roles: [master]}]\n  ssh: {certificate: c.pub, pk: 5}\n",
            "7:33: spec.ssh.pk must be a string, not a number (put it in quotes)",
        ),
        (
            "  hosts: [{ips: [192.0.2.11], roles: [master]}]\n  hostAliases: [{ip: 5, hostnames: [a]}]\n",
            "7:22: spec.hostAliases[0].ip must be a string, not a number (put it in quotes)",
        ),
        (
            // With the default block there would be a conflict as well.
            "  hosts: [{ips: [100.64.0.1], roles: [master]}]\n  env: \"PodCIDR=10.244.0.0/16\"\n",
            "7:8: spec.env must be a list of strings, not a string",
        ),
    ] {
        let error = parse(&with_spec(spec)).unwrap_err();
        if error != format!("Clusterfile:{expected}") {
            wrong.push(format!("{spec}\nexpected {expected}\ngot {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_document_that_was_refused_is_not_told_to_lack_what_it_may_have() {
    let head = "apiVersion: sealer.io/v2\nkind: Cluster\n";
    let rest = "metadata: {name: a}\nspec: {image: i, hosts: [{ips: [10.0.0.1], roles: [master]}]}\n";
    for (text, expected) in [
        (
            format!("apiVersion: sealer.io/v2\nkind: 5\n{rest}"),
            "2:7: kind must be a string",
        ),
        (
            format!("kind: Cluster\napiVersion: 2\n{rest}"),
            "2:13: apiVersion must be a string",
        ),
        (
            "apiVersion: sealer.io/v2\nkind: Clutser\n".to_owned(),
            "2:7: unknown kind \"Clutser\"",
        ),
        (format!("{head}metadata: {{name: a}}\n"), "1:1: spec is missing"),
        (
            format!("{head}metadata: {{name: a}}\nspec: 5\n"),
            "4:7: spec must be a mapping",
        ),
        (
            format!("{head}{}", rest.replace("{name: a}", "5")),
            "3:11: metadata must be a mapping",
        ),
        (
            format!("{head}{}", rest.replace("name: a", "name: 5")),
            "3:18: metadata.name must be a string",
        ),
        (
            format!("{head}{}", rest.replace("image: i", "image: 5")),
            "4:15: spec.image must be a string",
        ),
        (
            "apiVersion: sealer.io/v1\nkind: Cluster\nmetadata: {name: a}\nspec: {image: i, masters: 5}\n".to_owned(),
            "4:27: spec.masters must be a mapping",
        ),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(
            error.lines().count() == 1 && error.starts_with(&format!("Clusterfile:{expected}")),
            "{text}\nexpected {expected}\ngot {error}"
        );
    }
}

#[test]
fn an_application_is_found_where_it_is_named() {
    let file = parse(GOOD).unwrap();
    assert_eq!(
        file.place_of_app("web").as_deref(),
        Some("Clusterfile:24:14: spec.appNames")
    );
    assert_eq!(file.place_of_app("other"), None);
    let only = GOOD.replace("  appNames: [web]\n", "");
    let place = parse(&only).unwrap().place_of_app("web").unwrap();
    assert!(place.ends_with(": spec.launchApps"), "{place}");
    let place = parse(&only.replace("launchApps: [web], ", ""))
        .unwrap()
        .place_of_app("web")
        .unwrap();
    assert!(place.ends_with(": spec.configs"), "{place}");
}

#[test]
fn an_even_number_of_masters_is_only_a_warning() {
    let file = parse(&with_spec("  hosts: [{ips: [10.0.0.1-10.0.0.2], roles: [master]}]\n")).unwrap();
    assert!(file.warnings[0].message.starts_with("2 masters"), "{:?}", file.warnings);
}

proptest! {
    // Its file would lie among the crates, where the workspace takes every folder for one.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_parser_panic(text in "(?s).{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_damaged_file_makes_the_parser_panic(at in 0..GOOD.len(), text in "[ -~\n]{0,4}") {
        let mut damaged = GOOD.to_string();
        damaged.insert_str(at, &text);
        let _ = parse(&damaged);
    }
}
