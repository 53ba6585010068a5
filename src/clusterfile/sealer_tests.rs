//! The shapes of Clusterfiles that Sealer documents, in texts of our own: each is either understood or refused by name, with its
//! place, the reason and what to write instead.

use std::path::Path;

use crate::{Clusterfile, PluginAction, Role, Strategy};

fn parse(text: &str) -> Result<Clusterfile, String> {
    Clusterfile::parse(text, "Clusterfile", Path::new("/w")).map_err(|problems| problems.to_string())
}

fn cluster(spec: &str) -> String {
    format!(
        "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: shop}}\nspec:\n  image: reg.corp/kube:v1\n{spec}"
    )
}

/// A good Cluster on lines 1 to 6, then a document that begins on line 8.
fn beside(document: &str) -> String {
    cluster(&format!("{HOSTS}---\n{document}"))
}

const HOSTS: &str = "  hosts: [{ips: [10.1.0.1], roles: [master]}]\n";

/// `10.1.0.1 master ann:2222 pw A=1 | …`: what matters of the hosts, one after the other.
fn hosts(file: &Clusterfile) -> String {
    let host = |host: &crate::Host| {
        let role = |role: &Role| if *role == Role::Master { "master" } else { "node" };
        let mut words = vec![host.ip.to_string()];
        words.extend(host.roles.iter().map(|r| role(r).to_owned()));
        words.extend(host.ssh.user.clone());
        words.extend(host.ssh.port.map(|port| port.to_string()));
        let password = host.ssh.passwd.resolve().unwrap();
        words.extend(password.map(|secret| secret.expose().to_owned()));
        words.extend(host.ssh.pk.as_ref().map(|key| key.display().to_string()));
        words.extend(host.env.iter().map(|(name, value)| format!("{name}={value}")));
        words.extend(host.labels.iter().map(|(name, value)| format!("{name}:{value}")));
        words.extend(host.taints.iter().map(ToString::to_string));
        words.join(" ")
    };
    file.cluster.hosts.iter().map(host).collect::<Vec<_>>().join(" | ")
}

#[test]
fn hosts_of_every_documented_shape_are_understood() {
    for (what, text, expected) in [
        (
            "three masters and a node with one password",
            cluster("  ssh: {passwd: pw}\n  hosts:\n    - ips: [ 10.1.0.1,10.1.0.2,10.1.0.3 ]\n      roles: [ master ]\n    - ips: [ 10.1.0.4 ]\n      roles: [ node ]\n"),
            "10.1.0.1 master pw | 10.1.0.2 master pw | 10.1.0.3 master pw | 10.1.0.4 node pw",
        ),
        (
            "a host with its own password and port",
            cluster("  ssh: {passwd: pw, port: \"2222\"}\n  hosts:\n    - {ips: [10.1.0.1], roles: [master], ssh: {passwd: own, port: \"22\"}}\n    - {ips: [10.1.0.2], roles: [node]}\n"),
            "10.1.0.1 master 22 own | 10.1.0.2 node 2222 pw",
        ),
        (
            "labels and taints",
            cluster("  hosts:\n    - {ips: [10.1.0.1], roles: [master], labels: {tier: front}, taints: [k1=v1:NoSchedule]}\n"),
            "10.1.0.1 master tier:front k1=v1:NoSchedule",
        ),
        (
            "a host's environment over the cluster's",
            cluster("  env: [Store=/dev/b, Etcd=/dev/c]\n  hosts:\n    - {ips: [10.1.0.1], roles: [master], env: [Store=/dev/e]}\n    - {ips: [10.1.0.2], roles: [node]}\n"),
            "10.1.0.1 master Etcd=/dev/c Store=/dev/e | 10.1.0.2 node Etcd=/dev/c Store=/dev/b",
        ),
        (
            "as Sealer writes it back, with what says nothing",
            "apiVersion: sealer.cloud/v2\nkind: Cluster\nmetadata:\n  creationTimestamp: null\n  name: shop\n  annotations: {}\nspec:\n  containerRuntime: {}\n  hosts:\n  - ips:\n    - 10.1.0.1\n    roles:\n    - master\n    ssh: {}\n  image: a/b:1\n  registry: {}\n  ssh:\n    passwd:\n    pk: /root/.ssh/id_rsa\n    port: \"22\"\n    user: root\nstatus: {}\n".to_owned(),
            "10.1.0.1 master root 22 /root/.ssh/id_rsa",
        ),
        (
            "the first form, on machines that are there",
            "apiVersion: zlink.aliyun.com/v1alpha1\nkind: Cluster\nmetadata: {name: shop}\nspec:\n  image: a/b:1\n  provider: BAREMETAL\n  env: [Mode=fast]\n  ssh: {user: ann, passwd: pw, port: 2222}\n  network: {podCIDR: 100.80.0.0/16, svcCIDR: 10.98.0.0/16}\n  certSANS: [api.corp]\n  masters: {ipList: [10.1.0.1]}\n  nodes: {ipList: [10.1.0.2-10.1.0.3]}\n".to_owned(),
            "10.1.0.1 master ann 2222 pw Mode=fast PodCIDR=100.80.0.0/16 SvcCIDR=10.98.0.0/16 | \
             10.1.0.2 node ann 2222 pw Mode=fast PodCIDR=100.80.0.0/16 SvcCIDR=10.98.0.0/16 | \
             10.1.0.3 node ann 2222 pw Mode=fast PodCIDR=100.80.0.0/16 SvcCIDR=10.98.0.0/16",
        ),
    ] {
        let file = parse(&text).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(hosts(&file), expected, "{what}");
    }
}

#[test]
fn the_first_form_is_kept_as_the_second() {
    let text = "apiVersion: sealer.aliyun.com/v1alpha1\nkind: Cluster\nmetadata: {name: shop}\nspec:\n  image: a/b:1\n  provider: baremetal\n  network: {podCIDR: 100.80.0.0/16}\n  certSANS: [api.corp, 10.9.9.9]\n  masters: {ipList: [10.1.0.1]}\n---\napiVersion: kubeadm.k8s.io/v1beta3\nkind: ClusterConfiguration\napiServer: {certSANs: [other.corp]}\n";
    let file = parse(text).unwrap();
    assert_eq!(file.kubeadm.cert_sans, ["other.corp", "api.corp", "10.9.9.9"]);
    let networks = file.networks(&crate::Env::new()).unwrap();
    assert_eq!(networks.pod_cidr.to_string(), "100.80.0.0/16");
    let kept = serde_saphyr::to_string(&file.without_secrets()[0]).unwrap();
    let again = parse(&kept).unwrap();
    assert_eq!(hosts(&again), hosts(&file), "{kept}");
    assert!(!kept.contains("ipList") && kept.contains("sealer.io/v2"), "{kept}");
}

#[test]
fn settings_of_every_documented_shape_are_understood() {
    let file = parse(&cluster(&format!(
        "  cmd: [ \"kubectl apply -f etc/a.yaml\" ]\n  appNames: [ front ]\n  dataRoot: /data/kube\n  containerRuntime: {{type: docker}}\n  \
         hostAliases: [{{ip: 10.9.9.9, hostnames: [nfs.corp, nas.corp]}}]\n  \
         registry: {{localRegistry: {{domain: hub.corp, port: 5001, ha: false, insecure: false, cert: {{subjectAltName: {{dnsNames: [h.corp], ips: [10.9.9.8]}}}}}}}}\n{HOSTS}"
    )))
    .unwrap();
    let said = &file.cluster;
    assert_eq!(
        (said.cmd.len(), said.app_names.as_slice()),
        (1, &["front".to_owned()][..])
    );
    assert_eq!(said.data_root, Path::new("/data/kube"));
    assert_eq!(said.host_aliases[0].hostnames, ["nfs.corp", "nas.corp"]);
    let crate::Registry::LocalRegistry(registry) = &said.registry else {
        panic!("a registry of its own")
    };
    assert_eq!(
        (
            registry.host_port().as_str(),
            registry.ha,
            registry.alt_names.as_slice()
        ),
        (
            "hub.corp:5001",
            false,
            &["h.corp".to_owned(), "10.9.9.8".to_owned()][..]
        )
    );
}

#[test]
fn configs_plugins_and_applications_of_every_documented_shape_are_understood() {
    let file = parse(&beside(
        "apiVersion: sealer.io/v1\nkind: Config\nmetadata: {name: db}\nspec:\n  path: application/apps/db/values.yaml\n  data: |\n    user: a\n...\n---\n\
         apiVersion: sealer.aliyun.com/v1alpha1\nkind: Config\nmetadata: {name: net}\nspec: {path: etc/net.yaml, strategy: merge, data: \"a: 1\"}\n---\n\
         apiVersion: sealer.io/v1\nkind: Plugin\nmetadata: {name: disk_setup}\nspec: {type: SHELL, action: pre-init-host, scope: master | node, data: \"set -x\"}\n---\n\
         apiVersion: sealer.io/v2\nkind: Plugin\nmetadata: {name: MyShell}\nspec: {type: SHELL, action: post-install, scope: master, data: \"kubectl get nodes\"}\nstatus: {}\n---\n\
         kind: Application\nmetadata: {name: apps}\nspec:\n  launchApps: [front, db]\n  configs:\n    - name: front\n      env:\n        - Image=\"reg.corp/a:1\"\n      launch:\n        cmds: [kubectl apply -f front.yaml]\n    - name: db\n      files:\n        - {path: values.yaml, strategy: \"merge\", data: \"a: 1\"}\n        - {path: cert, data: x}\n",
    ))
    .unwrap();
    assert_eq!(file.configs[0].path, "application/apps/db/values.yaml");
    assert_eq!(file.configs[1].strategy, Strategy::Merge);
    let moments: Vec<_> = file.plugins.iter().map(|p| (p.actions[0], p.scope.len())).collect();
    assert_eq!(
        moments,
        [(PluginAction::PreInitHost, 2), (PluginAction::PostInstall, 1)]
    );
    let apps = &file.applications[0];
    assert_eq!(apps.launch_apps, ["front", "db"]);
    assert_eq!(apps.configs["front"].env["Image"], "\"reg.corp/a:1\"");
    assert_eq!(apps.configs["front"].launch_cmds.len(), 1);
    assert_eq!(apps.configs["db"].files.len(), 2);
    let warned: Vec<_> = file.warnings.iter().map(|w| w.message.as_str()).collect();
    assert_eq!(warned, ["apiVersion is missing; sealer.io/v2 is meant"]);
}

#[test]
fn kubernetes_own_kinds_may_say_what_is_so_anyway() {
    let file = parse(&beside(
        "apiVersion: kubeadm.k8s.io/v1beta3\nkind: InitConfiguration\nlocalAPIEndpoint: {bindPort: 6443}\n---\n\
         apiVersion: kubeadm.k8s.io/v1beta2\nkind: JoinConfiguration\ncaCertPath: /etc/kubernetes/pki/ca.crt\ncontrolPlane: {localAPIEndpoint: {bindPort: 6443}}\n---\n\
         apiVersion: kubeadm.k8s.io/v1beta3\nkind: ClusterConfiguration\nnetworking: {dnsDomain: corp.local, podSubnet: 100.80.0.0/16, serviceSubnet: 10.98.0.0/22}\napiServer: {certSANs: [127.0.0.1]}\n---\n\
         apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nauthentication:\n  anonymous: {enabled: false}\n  webhook: {enabled: true}\n  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}\nauthorization: {mode: Webhook}\ncgroupDriver:\nrotateCertificates: true\nstaticPodPath: /etc/kubernetes/manifests\nport: 10250\nhealthzPort: 10248\nhealthzBindAddress: 127.0.0.1\nmaxPods: 110\npodPidsLimit: -1\nevictionHard: {imagefs.available: 15%, memory.available: 100Mi}\n",
    ))
    .unwrap();
    let networks = file.networks(&crate::Env::new()).unwrap();
    assert_eq!(
        (networks.dns_domain.as_str(), networks.service_cidr.prefix()),
        ("corp.local", 22)
    );
    let kubelet: Vec<&str> = file.kubeadm.kubelet.keys().map(String::as_str).collect();
    assert_eq!(
        kubelet,
        ["evictionHard", "maxPods", "podPidsLimit"],
        "facts are not settings"
    );
}

#[test]
fn the_domain_of_the_cluster_may_come_from_the_environment() {
    let domain = |env: &str| parse(&cluster(&format!("  env: [{env}]\n{HOSTS}")));
    let networks = domain("DNSDomain=corp.local").unwrap().networks(&crate::Env::new());
    assert_eq!(networks.unwrap().dns_domain, "corp.local");
    assert!(
        domain("DNSDomain=corp_local")
            .unwrap_err()
            .contains("DNSDomain: \"corp_local\" is no domain")
    );
}

#[test]
fn values_that_nothing_would_use_are_warned_of() {
    for (text, expected) in [
        (
            cluster(&format!("  env: [\"RegistryURL=sea.hub:5000\"]\n{HOSTS}")),
            "Clusterfile:6:9: spec.env: RegistryURL is filled by the installer, so this value is not used",
        ),
        (
            beside(
                "apiVersion: sealer.io/v1\nkind: Config\nmetadata: {name: r}\nspec: {path: etc/registry.yml, data: \"domain: x\"}\n",
            ),
            "Clusterfile:11:7: spec.path: etc/registry.yml means nothing to the native distribution: write spec.registry.localRegistry of the Cluster",
        ),
    ] {
        let warnings = parse(&text).unwrap().warnings;
        assert_eq!(warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    }
}

/// Every text has exactly the finding that `expected` begins.
fn all_refused(cases: &[(String, &str)]) {
    let mut wrong = Vec::new();
    for (text, expected) in cases {
        match parse(text) {
            Err(error) if error.starts_with(expected) && !error.contains('\n') => {}
            Err(error) => wrong.push(format!("{text}\nexpected {expected}\ngot {error}")),
            Ok(_) => wrong.push(format!("{text}\nwas accepted, not refused by {expected}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn what_a_cluster_cannot_be_here_is_refused_by_name_with_the_way_out() {
    let first = |fields: &str| {
        format!(
            "apiVersion: sealer.io/v1\nkind: Cluster\nmetadata: {{name: shop}}\nspec:\n  image: a/b:1\n  masters: {{ipList: [10.1.0.1]}}\n{fields}"
        )
    };
    let with = |line: &str| cluster(&format!("{HOSTS}{line}\n"));
    all_refused(&[
        (
            with("  provider: ALI_CLOUD"),
            "Clusterfile:7:3: spec.provider is not supported: the installer makes no machines",
        ),
        (
            with("  network: {podCIDR: 100.80.0.0/16}"),
            "Clusterfile:7:3: spec.network is not supported: write PodCIDR=… and SvcCIDR=… into spec.env",
        ),
        (
            with("  certSANS: [a.corp]"),
            "Clusterfile:7:3: spec.certSANS is not supported: write a document ClusterConfiguration",
        ),
        (
            with("  masters: {ipList: [10.1.0.2]}"),
            "Clusterfile:7:3: spec.masters is not supported: it belongs to apiVersion sealer.io/v1",
        ),
        (
            with("  cmd_args: [A=1]"),
            "Clusterfile:7:3: spec.cmd_args is not supported: commands see the environment",
        ),
        (
            with("status: {phase: up}"),
            "Clusterfile:7:1: status is not supported: a wish has none",
        ),
        (
            with("  env: {Mode: fast}"),
            "Clusterfile:7:8: spec.env must be a list of strings, not a mapping",
        ),
        (
            with("  env: [etcd-dir=/data/etcd]"),
            "Clusterfile:7:9: spec.env: \"etcd-dir\" can't be a variable's name: templates and shells know",
        ),
        (
            with("  env: [K=a, K=b]"),
            "Clusterfile:7:14: spec.env: K is given twice, but a variable has one value here",
        ),
        (
            with("  env: [\"PodCIDR=100.80.0.0/16,fd00::/112\"]"),
            "Clusterfile:7:8: PodCIDR: \"100.80.0.0/16,fd00::/112\" is not an IPv4 block",
        ),
        (
            with("  ssh: {encrypted: true, passwd: AES}"),
            "Clusterfile:7:8: spec.ssh.encrypted: encrypted passwords are not supported; use passwdFile",
        ),
        (
            cluster("  hosts:\n  - {ips: [10.1.0.1], roles: [master, db]}\n"),
            "Clusterfile:7:39: spec.hosts[0].roles is \"db\" (known: master, node); mark such hosts by labels",
        ),
        (
            cluster("  hosts: [{ips: [10.1.0.1], roles: [master], count: 3}]\n"),
            "Clusterfile:6:46: spec.hosts[0].count is not supported: the installer makes no machines",
        ),
        (
            format!(
                "{}---\n{}",
                with(""),
                "apiVersion: sealer.io/v2\nkind: Infra\nmetadata: {name: cloud}\nspec: {provider: ALI_CLOUD}\n"
            ),
            "Clusterfile:10:7: kind Infra is not supported: the installer makes no machines",
        ),
        (
            format!(
                "{}---\n{}",
                with(""),
                "apiVersion: sealer.io/v2\nkind: KubeadmConfig\nmetadata: {name: k}\nspec: {clusterDomain: a}\n"
            ),
            "Clusterfile:10:7: kind KubeadmConfig is not supported: write what of it shall count",
        ),
        (
            first("  provider: ALI_CLOUD\n"),
            "Clusterfile:7:13: spec.provider can only be BAREMETAL: the installer makes no machines",
        ),
        (
            first("  nodes: {count: \"3\"}\n"),
            "Clusterfile:7:11: spec.nodes.count is not supported: the installer makes no machines",
        ),
        (
            first("  nodes: {ipList: [10.1.0.2], systemDisk: \"100\"}\n"),
            "Clusterfile:7:31: spec.nodes.systemDisk is not supported",
        ),
        (
            first("  network: {cniName: calico}\n"),
            "Clusterfile:7:13: spec.network.cniName is not supported: the image brings its network",
        ),
        (
            first("  nodes: {ips: [10.1.0.2]}\n"),
            "Clusterfile:7:11: unknown field \"spec.nodes.ips\"",
        ),
        (
            first("").replace("name: shop", "name: shop, annotations: {sea.aliyun.com/VpcID: v}"),
            "Clusterfile:3:24: metadata.annotations is not supported: nothing reads it",
        ),
    ]);
    let list = parse(&cluster("  hosts:\n    ips: [10.1.0.1]\n    roles: [master]\n")).unwrap_err();
    assert!(
        list.contains("Clusterfile:7:5: spec.hosts must be a list, not a mapping"),
        "{list}"
    );
}

#[test]
fn what_configs_and_plugins_cannot_do_here_is_refused_by_name_with_the_way_out() {
    let config = |spec: &str| {
        beside(&format!(
            "apiVersion: sealer.io/v1\nkind: Config\nmetadata: {{name: c}}\nspec: {spec}\n"
        ))
    };
    let plugin = |spec: &str| {
        beside(&format!(
            "apiVersion: sealer.io/v1\nkind: Plugin\nmetadata: {{name: p}}\nspec: {spec}\n"
        ))
    };
    all_refused(&[
        (
            config("{path: etc/a, process: toJson, data: x}"),
            "Clusterfile:11:21: spec.process is not supported: data is written as it stands",
        ),
        (
            config("{path: etc/a, data: {a: 1}}"),
            "Clusterfile:11:27: spec.data must be a string, not a mapping: write it as the text",
        ),
        (
            plugin("{type: HOSTNAME, action: PreInit, data: x}"),
            "Clusterfile:11:14: spec.type \"HOSTNAME\" is not supported: name the hosts before",
        ),
        (
            plugin("{type: LABEL, action: PreGuest, data: x}"),
            "Clusterfile:11:14: spec.type \"LABEL\" is not supported: write labels into spec.hosts",
        ),
        (
            plugin("{type: TAINT, action: PreGuest, data: x}"),
            "Clusterfile:11:14: spec.type \"TAINT\" is not supported: write taints into spec.hosts",
        ),
        (
            plugin("{type: CLUSTERCHECK, action: PreGuest}"),
            "Clusterfile:11:14: spec.type \"CLUSTERCHECK\" is not supported: every apply proves",
        ),
        (
            plugin("{type: ETCD, action: PostInstall}"),
            "Clusterfile:11:14: spec.type \"ETCD\" is not supported: use `installer etcd snapshot`",
        ),
        (
            plugin("{type: MY_OWN_SO, action: PostInstall, data: x}"),
            "Clusterfile:11:14: spec.type \"MY_OWN_SO\" is not supported: write a script, of type SHELL",
        ),
        (
            plugin("{action: PostInstall, data: x}"),
            "Clusterfile:11:16: spec.action \"PostInstall\" is of Sealer before 0.9: write post-install, which",
        ),
        (
            plugin("{action: PreInit, data: x}"),
            "Clusterfile:11:16: spec.action \"PreInit\" is of Sealer before 0.9: write pre-init-host",
        ),
        (
            plugin("{action: post-install, on: role=node, data: x}"),
            "Clusterfile:11:30: spec.on is not supported: it is called scope",
        ),
        (
            plugin("{action: pre-init-host, scope: master/node, data: x}"),
            "Clusterfile:11:38: spec.scope: \"master/node\" is neither a role, an address or a host's name (several are separated by | or ,)",
        ),
    ]);
    let both = parse(&plugin("{action: PreInit|PreJoin, data: x}")).unwrap_err();
    assert_eq!(both.lines().count(), 2, "each moment is named: {both}");
}

#[test]
fn what_kubernetes_own_kinds_cannot_set_here_is_refused_by_name_with_the_way_out() {
    let of = |kind: &str, line: &str| {
        let group = match kind {
            "KubeletConfiguration" => "kubelet.config.k8s.io/v1beta1",
            "KubeProxyConfiguration" => "kubeproxy.config.k8s.io/v1alpha1",
            _ => "kubeadm.k8s.io/v1beta3",
        };
        beside(&format!("apiVersion: {group}\nkind: {kind}\n{line}\n"))
    };
    let (cluster, init, kubelet) = ("ClusterConfiguration", "InitConfiguration", "KubeletConfiguration");
    all_refused(&[
        (
            of(cluster, "kubernetesVersion: v1.36.0"),
            "Clusterfile:10:1: ClusterConfiguration field \"kubernetesVersion\" is not honoured by the native distribution: the image decides",
        ),
        (
            of(cluster, "controlPlaneEndpoint: a.local:6443"),
            "Clusterfile:10:1: ClusterConfiguration field \"controlPlaneEndpoint\" is not honoured by the native distribution: every host",
        ),
        (
            of(cluster, "imageRepository: sea.hub:5000"),
            "Clusterfile:10:1: ClusterConfiguration field \"imageRepository\" is not honoured by the native distribution: images come",
        ),
        (
            of(cluster, "apiServer: {extraArgs: {audit-log-maxage: '7'}}"),
            "Clusterfile:10:13: ClusterConfiguration field \"apiServer.extraArgs\" is not honoured by the native distribution: change the static pod",
        ),
        (
            of(cluster, "scheduler: {extraArgs: {v: '2'}}"),
            "Clusterfile:10:1: ClusterConfiguration field \"scheduler\" is not honoured by the native distribution: change the static pod",
        ),
        (
            of(cluster, "etcd: {local: {extraArgs: {a: b}}}"),
            "Clusterfile:10:1: ClusterConfiguration field \"etcd\" is not honoured",
        ),
        (
            of(init, "localAPIEndpoint: {bindPort: 7443}"),
            "Clusterfile:10:30: localAPIEndpoint.bindPort can only be 6443 here",
        ),
        (
            of(init, "localAPIEndpoint: {advertiseAddress: 10.1.0.1}"),
            "Clusterfile:10:20: InitConfiguration field \"localAPIEndpoint.advertiseAddress\" is not honoured by the native distribution: a master's address",
        ),
        (
            of(init, "nodeRegistration: {criSocket: /var/run/dockershim.sock}"),
            "Clusterfile:10:20: InitConfiguration field \"nodeRegistration.criSocket\" is not honoured by the native distribution: spec.containerRuntime",
        ),
        (
            of("JoinConfiguration", "discovery: {timeout: 5m0s}"),
            "Clusterfile:10:1: JoinConfiguration field \"discovery\" is not honoured by the native distribution: hosts join with a token",
        ),
        (
            of("KubeProxyConfiguration", "mode: ipvs"),
            "Clusterfile:10:7: mode is \"ipvs\", but the native proxy works with nftables only",
        ),
        (
            of("KubeProxyConfiguration", "ipvs: {excludeCIDRs: [10.9.9.9/32]}"),
            "Clusterfile:10:1: KubeProxyConfiguration field \"ipvs\" is not honoured by the native distribution: the native proxy",
        ),
        (
            of(kubelet, "authentication: {anonymous: {enabled: true}}"),
            "Clusterfile:10:39: authentication.anonymous.enabled can only be false here",
        ),
        (
            of(kubelet, "authentication: {webhook: {cacheTTL: 2m0s}}"),
            "Clusterfile:10:28: KubeletConfiguration field \"authentication.webhook.cacheTTL\" is not honoured",
        ),
        (
            of(kubelet, "cgroupDriver: cgroupfs"),
            "Clusterfile:10:15: cgroupDriver can only be \"systemd\" here",
        ),
        (
            of(kubelet, "clusterDomain: cluster.local"),
            "Clusterfile:10:1: KubeletConfiguration field \"clusterDomain\" is not honoured by the native distribution: write networking.dnsDomain",
        ),
        (
            of(kubelet, "oomScoreAdj: -999"),
            "Clusterfile:10:1: KubeletConfiguration field \"oomScoreAdj\" is not honoured by the native distribution (",
        ),
    ]);
}
