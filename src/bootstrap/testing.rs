//! A small site for tests of the pure parts.

use crate::site::{Entry, Image, Launch, Registry, Seat, Seen, Site};
use clusterfile::{KubeadmSettings, Networks};
use host::{Facts, Scope, effect::Rootfs};
use std::collections::BTreeMap;

/// A host with nothing special about it.
pub(crate) fn seat(ip: &str, name: &str, master: bool) -> Seat {
    let mut facts = Facts {
        arch: "amd64".into(),
        hostname: name.into(),
        machine_id: format!("id-{name}"),
        memory_total: 4 << 30,
        can_lower_oom_score: true,
        uid: 0,
        ..Facts::default()
    };
    facts.systemd.version = 252;
    facts.cgroup.mode = host::facts::CgroupMode::V2;
    facts.cgroup.controllers = ["cpu", "memory", "pids"].map(String::from).to_vec();
    facts.addresses.push(host::facts::Address {
        interface: "eth0".into(),
        ip: ip.into(),
        prefix: 24,
        mtu: 1500,
    });
    facts.disks.push(host::facts::Disk {
        path: "/var/lib/installer".into(),
        total: 100 << 30,
        free: 50 << 30,
        ..Default::default()
    });
    Seat {
        ip: ip.parse().unwrap(),
        name: name.into(),
        master,
        registry: master,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        env: BTreeMap::new(),
        facts,
        seen: Seen::default(),
    }
}

/// The text files of the repository's own rootfs.
pub(crate) fn rootfs_files() -> BTreeMap<String, String> {
    fn walk(root: &std::path::Path, dir: &std::path::Path, files: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(root, &path, files);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                files.insert(path.strip_prefix(root).unwrap().display().to_string(), text);
            }
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rootfs");
    let mut files = BTreeMap::new();
    for folder in ["etc", "systemd"] {
        walk(&root, &root.join(folder), &mut files);
    }
    files
}

/// One master, one node.
pub(crate) fn site() -> Site {
    let digest = oci::Digest::of(b"rootfs");
    Site {
        scope: Scope::new("demo"),
        networks: Networks {
            pod_cidr: "100.64.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            dns_domain: "cluster.local".into(),
        },
        kubernetes_ip: "10.96.0.1".parse().unwrap(),
        dns_ip: "10.96.0.10".parse().unwrap(),
        image: Image {
            reference: "local/native:dev".into(),
            digest: digest.clone(),
            arch: "amd64".into(),
            env: BTreeMap::new(),
            rootfs: Rootfs {
                content: digest,
                layers: Vec::new(),
                switch: true,
            },
            host_blobs: Vec::new(),
            registry_blobs: Vec::new(),
            layout: oci::Index::default(),
            files: rootfs_files(),
            content: BTreeMap::new(),
            carried: Vec::new(),
            apps: BTreeMap::new(),
            launch: Launch::default(),
            kube_version: None,
        },
        registry: Registry {
            domain: "sea.hub".into(),
            port: 5000,
            insecure: false,
            login: false,
            external: false,
            alt_names: Vec::new(),
        },
        aliases: Vec::new(),
        kubeadm: KubeadmSettings::default(),
        configs: Vec::new(),
        hooks: Vec::new(),
        apps: Vec::new(),
        commands: Vec::new(),
        fence: None,
        recorded: false,
        seats: vec![seat("10.0.0.1", "m1", true), seat("10.0.0.2", "n1", false)],
        staying: Vec::new(),
        names: std::sync::OnceLock::new(),
    }
}

/// Adds a text to the image's rootfs.
pub(crate) fn add_file(site: &mut Site, path: &str, text: &str, executable: bool) {
    let content = oci::Digest::of(text.as_bytes()).to_string();
    site.image.files.insert(path.into(), text.into());
    site.image.content.insert(path.into(), Entry { content, executable });
}

/// Lets the image carry a container image; its manifest's digest.
pub(crate) fn carry(site: &mut Site, reference: &str) -> oci::Digest {
    let manifest = oci::Descriptor::of(oci::media_type::MANIFEST, reference.as_bytes());
    let digest = manifest.digest.clone();
    site.image.carried.push(image::Carried {
        reference: reference.parse().unwrap(),
        blobs: vec![manifest.clone()],
        index: None,
        manifest,
    });
    digest
}

/// A Clusterfile for the hosts of [`site`]: `more` are further lines of its `spec`, or documents.
pub(crate) fn clusterfile(more: &str) -> clusterfile::Clusterfile {
    let text = format!(
        "apiVersion: sealer.io/v2\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  image: local/native:dev\n  hosts: [{{ips: [10.0.0.1], roles: [master]}}, {{ips: [10.0.0.2], roles: [node]}}]\n{more}"
    );
    clusterfile::Clusterfile::parse(&text, "Clusterfile", std::path::Path::new("/")).unwrap()
}
