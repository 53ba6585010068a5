//! The whole of what an apply wants of hosts, for the repository's own rootfs.

use super::*;
use crate::{
    plan,
    testing::{rootfs_files, site},
};
use host::effect::HostsEntry;

fn learned() -> Learned {
    Learned {
        ca: "CA".into(),
        token: Zeroizing::new("abcdef.0123456789abcdef".into()),
        kubelet_certs: [("10.0.0.2".parse().unwrap(), "CERT".to_owned())].into(),
        ..Learned::default()
    }
}

fn content(effects: &[(&'static str, Effect)], wanted: &str) -> Option<String> {
    effects.iter().find_map(|(_, effect)| match effect {
        Effect::File(file) if file.path == wanted => Some(String::from_utf8(file.content.bytes().to_vec()).unwrap()),
        Effect::Unit(unit) if unit.name == wanted => unit.content.clone(),
        _ => None,
    })
}

#[test]
fn every_template_of_the_rootfs_renders_to_what_its_reader_understands() {
    let site = site();
    for path in rootfs_files().keys() {
        for seat in &site.seats {
            let text = crate::render::file(&site, seat, path).unwrap();
            assert!(!text.contains("{{"), "{path}");
            if path.contains(".yaml") {
                assert_eq!(crate::render::documents(path, &text).unwrap().len(), 1, "{path}");
            }
        }
    }
}

#[test]
fn a_master_gets_the_control_plane_and_a_node_does_not() {
    let site = site();
    let on = |index: usize| plan::effects(&site, &site.seats[index], &learned()).unwrap();
    let (master, node) = (on(0), on(1));
    for name in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        let path = format!("/etc/kubernetes/manifests/{name}.yaml");
        assert!(
            content(&master, &path).is_some() && content(&node, &path).is_none(),
            "{name}"
        );
    }
    let units = |effects: &[(&'static str, Effect)]| {
        let unit = |effect: &Effect| {
            if let Effect::Unit(unit) = effect {
                Some(unit.name.clone())
            } else {
                None
            }
        };
        effects
            .iter()
            .filter_map(|(_, effect)| unit(effect))
            .collect::<Vec<_>>()
    };
    assert_eq!(units(&master), crate::paths::unit::ALL);
    assert_eq!(units(&node), crate::paths::unit::ALL[1..]);
}

#[test]
fn no_key_travels() {
    let site = site();
    for seat in &site.seats {
        for (_, effect) in plan::effects(&site, seat, &learned()).unwrap() {
            if let Effect::File(file) = effect {
                assert!(!file.path.ends_with(".key"), "{}", file.path);
            }
        }
    }
}

#[test]
fn probes_are_those_that_kubernetes_uses() {
    let site = site();
    let effects = plan::effects(&site, &site.seats[0], &learned()).unwrap();
    for (name, port, scheme, live, ready) in [
        ("kube-apiserver", 6443, "HTTPS", "/livez", "/readyz"),
        ("kube-controller-manager", 10257, "HTTPS", "/healthz", "/healthz"),
        ("kube-scheduler", 10259, "HTTPS", "/livez", "/readyz"),
        ("etcd", 2381, "HTTP", "/health?serializable=true", "/health"),
    ] {
        let text = content(&effects, &format!("/etc/kubernetes/manifests/{name}.yaml")).unwrap();
        let pod = crate::render::documents(name, &text).unwrap().remove(0);
        assert_eq!(pod["metadata"]["labels"]["component"], name);
        assert_eq!(pod["metadata"]["labels"]["tier"], "control-plane");
        assert_eq!(pod["spec"]["priorityClassName"], "system-node-critical");
        assert_eq!(pod["spec"]["hostNetwork"], true);
        for (probe, path) in [
            ("livenessProbe", live),
            ("readinessProbe", ready),
            ("startupProbe", live),
        ] {
            let get = &pod["spec"]["containers"][0][probe]["httpGet"];
            assert_eq!(
                (&get["path"], &get["port"], &get["scheme"]),
                (&path.into(), &port.into(), &scheme.into()),
                "{name} {probe}"
            );
        }
    }
}

#[test]
fn the_runtime_asks_the_private_registry_in_both_modes() {
    let mut site = site();
    let effects = plan::effects(&site, &site.seats[1], &learned()).unwrap();
    let default = content(&effects, "/etc/installer/containerd/certs.d/_default/hosts.toml").unwrap();
    assert!(default.contains("[host.\"https://10.0.0.1:5000\"]"), "{default}");
    assert!(default.contains("ca = \"/etc/installer/registry/ca.crt\""), "{default}");
    let own = content(&effects, "/etc/installer/containerd/certs.d/sea.hub:5000/hosts.toml").unwrap();
    assert!(own.starts_with("server = \"https://sea.hub:5000\""), "{own}");
    site.registry.insecure = true;
    let effects = plan::effects(&site, &site.seats[1], &learned()).unwrap();
    let default = content(&effects, "/etc/installer/containerd/certs.d/_default/hosts.toml").unwrap();
    assert!(
        default.contains("[host.\"http://10.0.0.1:5000\"]") && !default.contains("ca ="),
        "{default}"
    );
    let unit = plan::effects(&site, &site.seats[0], &learned()).unwrap();
    assert!(!content(&unit, "installer-registry.service").unwrap().contains("--tls"));
}

fn with_login() -> Learned {
    Learned {
        login: Some(crate::login::Login {
            user: "puller".into(),
            password: clusterfile::Secret::new("s3cret"),
        }),
        htpasswd: [("10.0.0.1".parse().unwrap(), "puller:HASH\n".to_owned())].into(),
        ..learned()
    }
}

#[test]
fn a_registry_with_a_login_is_told_it_and_nobody_else_is() {
    let mut site = site();
    site.registry.login = true;
    let on = |index: usize| plan::effects(&site, &site.seats[index], &with_login()).unwrap();
    let (master, node) = (on(0), on(1));
    let unit = content(&master, "installer-registry.service").unwrap();
    assert!(unit.contains("--htpasswd /etc/installer/registry/htpasswd"), "{unit}");
    assert_eq!(content(&master, crate::paths::HTPASSWD).unwrap(), "puller:HASH\n");
    assert_eq!(content(&node, crate::paths::HTPASSWD), None);
    let hosts = content(&node, "/etc/installer/containerd/certs.d/_default/hosts.toml").unwrap();
    assert_eq!(
        hosts,
        "# Images of every registry are asked of the private one first.\n\n[host.\"https://10.0.0.1:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"/etc/installer/registry/ca.crt\"\n  [host.\"https://10.0.0.1:5000\".header]\n    Authorization = \"Basic cHVsbGVyOnMzY3JldA==\"\n"
    );
    for (_, effect) in master.iter().chain(&node) {
        let Effect::File(file) = effect else { continue };
        let text = String::from_utf8_lossy(file.content.bytes());
        let holds = text.contains("cHVsbGVyOnMzY3JldA==") || text.contains("HASH");
        assert!(!holds || (file.secret && file.mode == 0o600), "{}", file.path);
        assert!(!text.contains("s3cret"), "{}", file.path);
    }
}

#[test]
fn a_registry_of_somebody_else_is_asked_for_each_domain_below_its_name() {
    let mut site = site();
    for name in [
        "quay.io/a/b:1",
        "quay.io/a/c:1",
        "installer.internal/pause:v0.1.0",
        "r.corp:8443/own:1",
    ] {
        crate::testing::carry(&mut site, name);
    }
    site.registry.domain = "r.corp".into();
    site.registry.port = 8443;
    site.registry.external = true;
    site.seats[0].registry = false;
    let learned = Learned {
        registry_ca: Some("THEIR CA".into()),
        ..with_login()
    };
    let effects = plan::effects(&site, &site.seats[0], &learned).unwrap();
    let mirrors: Vec<&str> = effects
        .iter()
        .filter_map(|(_, effect)| match effect {
            Effect::File(file) => file.path.strip_prefix("/etc/installer/containerd/certs.d/"),
            _ => None,
        })
        .collect();
    assert_eq!(
        mirrors,
        [
            "installer.internal/hosts.toml",
            "quay.io/hosts.toml",
            "r.corp:8443/hosts.toml"
        ]
    );
    let quay = content(&effects, "/etc/installer/containerd/certs.d/quay.io/hosts.toml").unwrap();
    assert!(
        quay.contains("[host.\"https://r.corp:8443/v2/quay.io\"]") && quay.contains("override_path = true"),
        "{quay}"
    );
    assert!(
        quay.contains("Authorization = \"Basic ") && quay.contains("ca = "),
        "{quay}"
    );
    assert_eq!(content(&effects, crate::paths::REGISTRY_CA).unwrap(), "THEIR CA");
    assert_eq!(content(&effects, "installer-registry.service"), None);
    assert_eq!(content(&effects, crate::paths::HTPASSWD), None);
}

#[test]
fn another_image_of_the_same_name_makes_another_pod() {
    let mut site = site();
    crate::testing::carry(&mut site, "installer.internal/etcd:v0.1.0");
    let pause = crate::testing::carry(&mut site, "installer.internal/pause:v0.1.0");
    let pod = |site: &Site| {
        let effects = plan::effects(site, &site.seats[0], &learned()).unwrap();
        let text = content(&effects, "/etc/kubernetes/manifests/etcd.yaml").unwrap();
        crate::render::documents("etcd", &text).unwrap().remove(0)
    };
    let before = pod(&site);
    let etcd = site.image.carried[0].manifest.digest.clone();
    let name = format!("installer.internal/etcd:v0.1.0@{etcd}");
    assert_eq!(before["spec"]["containers"][0]["image"], name);
    assert_eq!(pod(&site), before, "the same image makes the same pod");
    site.image.carried[0].manifest.digest = oci::Digest::of(b"another");
    let after = pod(&site);
    assert_ne!(
        after["metadata"]["annotations"][MANIFEST],
        before["metadata"]["annotations"][MANIFEST]
    );
    let runtime = plan::effects(&site, &site.seats[1], &learned()).unwrap();
    let config = content(&runtime, crate::paths::CONTAINERD_CONFIG).unwrap();
    let line = format!("  sandbox_image = \"installer.internal/pause:v0.1.0@{pause}\"\n");
    assert!(config.contains(&line), "{config}");
}

#[test]
fn oom_scores_are_restricted_only_where_the_host_is() {
    let mut site = site();
    let config = |site: &Site| {
        content(
            &plan::effects(site, &site.seats[1], &learned()).unwrap(),
            crate::paths::CONTAINERD_CONFIG,
        )
        .unwrap()
    };
    assert!(config(&site).contains("restrict_oom_score_adj = false"));
    site.seats[1].facts.can_lower_oom_score = false;
    let text = config(&site);
    assert!(
        text.contains("restrict_oom_score_adj = true") && text.contains("oom_score = 0"),
        "{text}"
    );
}

#[test]
fn a_token_is_written_only_where_a_host_has_not_joined() {
    let mut site = site();
    let has_token = |site: &Site| {
        plan::effects(site, &site.seats[1], &learned())
            .unwrap()
            .iter()
            .any(|(_, effect)| matches!(effect, Effect::Kubeconfig(k) if k.token.is_some()))
    };
    assert!(has_token(&site));
    site.seats[1].seen.joined = true;
    assert!(!has_token(&site));
}

#[test]
fn every_host_knows_all_nodes_and_the_registry() {
    let site = site();
    let effects = prepare(&site, &site.seats[1], &learned()).unwrap();
    let Some(Effect::Hosts { entries }) = effects.last() else {
        panic!("{effects:?}")
    };
    let entry = |ip: &str, name: &str| HostsEntry {
        ip: ip.into(),
        names: vec![name.into()],
    };
    assert_eq!(
        **entries,
        [
            entry("10.0.0.1", "m1"),
            entry("10.0.0.2", "n1"),
            entry("10.0.0.1", "sea.hub")
        ]
    );
    assert!(effects.contains(&Effect::Sysctl {
        key: "net.ipv4.ip_forward".into(),
        value: "1".into()
    }));
}

#[test]
fn masters_keep_workloads_away_from_their_first_moment() {
    let site = site();
    let unit = |index: usize| {
        content(
            &plan::effects(&site, &site.seats[index], &learned()).unwrap(),
            "installer-agent.service",
        )
        .unwrap()
    };
    assert!(unit(0).contains("--register-with-taints node-role.kubernetes.io/control-plane:NoSchedule"));
    assert!(!unit(1).contains("--register-with-taints"));
    assert!(
        unit(0).contains("Delegate=yes") && unit(0).contains("KillMode=process") && unit(0).contains("Restart=always")
    );
}

#[test]
fn the_users_kubelet_settings_and_configs_are_honoured() {
    let mut site = site();
    let more = "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 42\nevictionHard: {memory.available: 300Mi, nodefs.available: 3%}\n";
    site.kubeadm = crate::testing::clusterfile(more).kubeadm;
    site.configs.push(clusterfile::Config {
        name: "c".into(),
        path: "etc/kubelet/config.yaml".into(),
        strategy: clusterfile::Strategy::Merge,
        data: "failSwapOn: false\n".into(),
    });
    let effects = plan::effects(&site, &site.seats[1], &learned()).unwrap();
    let text = content(&effects, "/var/lib/kubelet/config.yaml").unwrap();
    let config = crate::render::documents("x", &text).unwrap().remove(0);
    assert_eq!(config["maxPods"], 42);
    // As a whole: thresholds that are not named are none, as upstream has it.
    let thresholds = serde_json::json!({"memory.available": "300Mi", "nodefs.available": "3%"});
    assert_eq!(config["evictionHard"], thresholds);
    assert_eq!(config["failSwapOn"], false);
    assert_eq!(config["clusterDNS"][0], "10.96.0.10");
}

#[test]
fn pods_get_the_name_servers_behind_the_stub_of_systemd_resolved() {
    let chosen = |site: &Site| {
        let effects = plan::effects(site, &site.seats[1], &learned()).unwrap();
        let text = content(&effects, "/var/lib/kubelet/config.yaml").unwrap();
        let config = crate::render::documents("x", &text).unwrap().remove(0);
        config
            .get("resolvConf")
            .and_then(|file| file.as_str().map(str::to_owned))
    };
    let mut site = site();
    site.seats[1].facts.nameservers = vec!["10.0.0.53".into()];
    site.seats[1].facts.resolved_nameservers = vec!["10.0.0.53".into()];
    assert_eq!(chosen(&site), None);
    site.seats[1].facts.nameservers = vec!["127.0.0.53".into()];
    assert_eq!(chosen(&site).as_deref(), Some("/run/systemd/resolve/resolv.conf"));
    let own =
        "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nresolvConf: /etc/pods.conf\n";
    site.kubeadm = crate::testing::clusterfile(own).kubeadm;
    assert_eq!(chosen(&site).as_deref(), Some("/etc/pods.conf"));
}

#[test]
fn whatever_is_secret_is_in_no_effect_that_a_plan_shows() {
    use base64::Engine as _;
    let mut site = site();
    site.registry.login = true;
    let login = crate::login::Login {
        user: "puller".into(),
        password: clusterfile::Secret::new("planted-password"),
    };
    let planted = [
        "planted-password".to_owned(),
        base64::engine::general_purpose::STANDARD.encode("puller:planted-password"),
        "planted-hash".to_owned(),
        "abcdef.planted0123456".to_owned(),
    ];
    let learned = Learned {
        token: Zeroizing::new(planted[3].clone()),
        login: Some(login),
        htpasswd: [("10.0.0.1".parse().unwrap(), "puller:planted-hash".to_owned())].into(),
        ..learned()
    };
    let mut found = std::collections::BTreeSet::new();
    for seat in &site.seats {
        for (phase, effect) in plan::effects(&site, seat, &learned).unwrap() {
            let text = serde_json::to_string(&effect).unwrap();
            let secret =
                matches!(&effect, Effect::File(file) if file.secret) || matches!(effect, Effect::Kubeconfig(_));
            for (index, planted) in planted
                .iter()
                .enumerate()
                .filter(|(_, planted)| text.contains(*planted))
            {
                assert!(secret, "{phase} shows {planted}: {text}");
                found.insert(index);
            }
        }
    }
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [1, 2, 3],
        "each is needed somewhere, but the bare password"
    );
}
