//! Contract with a real API server, and with helm: what was applied is noted and taken away again, releases are made, upgraded and
//! found interrupted. Skipped, with a message, where etcd (or helm) is absent. [`registry`] is about registries and the runtime.

mod apply;
mod lifecycle;
mod registry;
mod support;

use crate::{
    cluster::{Cluster, helm, launch, ledger, objects},
    effects::Learned,
    event::{Event, Observer},
    phases,
    run::Run,
    testing::{add_file, site},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// etcd and an API server, with the administrator's kubeconfig beside them.
struct Server {
    etcd: Child,
    task: tokio::task::JoinHandle<()>,
    client: kube::Client,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

fn issue(dir: &Path, issuer: &Issuer<'_, KeyPair>, file: &str, group: Option<&str>) {
    let names = if group.is_none() {
        vec!["127.0.0.1".to_owned()]
    } else {
        vec![]
    };
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, file);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![match group {
        None => ExtendedKeyUsagePurpose::ServerAuth,
        Some(_) => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    let key = KeyPair::generate().unwrap();
    std::fs::write(
        dir.join(format!("{file}.crt")),
        params.signed_by(&key, issuer).unwrap().pem(),
    )
    .unwrap();
    std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

fn free() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn etcd(dir: &Path) -> Option<(Child, String)> {
    if Command::new("etcd").arg("--version").output().is_err() {
        eprintln!("SKIPPED: etcd is not installed");
        return None;
    }
    let (client, peer) = (
        format!("http://127.0.0.1:{}", free()),
        format!("http://127.0.0.1:{}", free()),
    );
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args([
            "--name",
            "t",
            "--log-level",
            "error",
            "--initial-cluster",
            &format!("t={peer}"),
        ])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Some((child, client))
}

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    args: apiserver::Args,
}

async fn start() -> Option<Server> {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (etcd, etcd_url) = etcd(dir)?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(dir.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    issue(dir, &issuer, "server", None);
    issue(dir, &issuer, "admin", Some("system:masters"));
    std::fs::write(dir.join("sa.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let port = free();
    let path = |file: &str| dir.join(file).display().to_string();
    let flags = [
        ("advertise-address", "127.0.0.1".to_owned()),
        ("bind-address", "127.0.0.1".to_owned()),
        ("secure-port", port.to_string()),
        ("etcd-servers", etcd_url),
        ("client-ca-file", path("ca.crt")),
        ("tls-cert-file", path("server.crt")),
        ("tls-private-key-file", path("server.key")),
        ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
        ("service-account-signing-key-file", path("sa.key")),
        ("service-account-key-file", path("sa.key")),
        ("kubelet-client-certificate", path("admin.crt")),
        ("kubelet-client-key", path("admin.key")),
    ];
    let line = flags.into_iter().map(|(name, value)| format!("--{name}={value}"));
    let args = <Flags as clap::Parser>::parse_from(["apiserver".to_owned()].into_iter().chain(line)).args;
    let task = tokio::spawn(async move { apiserver::run(args).await.unwrap() });
    let conf = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{port}"), "certificate-authority": path("ca.crt")}}],
        "users": [{"name": "u", "user": {"client-certificate": path("admin.crt"), "client-key": path("admin.key")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(dir.join("admin.conf"), conf.to_string()).unwrap();
    let conf = kube::config::Kubeconfig::read_from(dir.join("admin.conf")).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(conf, &Default::default())
        .await
        .unwrap();
    // What the server refuses is seen at once.
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    let server = Server {
        etcd,
        task,
        client,
        dir: folder,
    };
    server.wait_for_namespaces().await;
    Some(server)
}

impl Server {
    async fn wait_for_namespaces(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> = kube::Api::all(self.client.clone());
        for name in ["kube-system", "default"] {
            while !matches!(namespaces.get_opt(name).await, Ok(Some(_))) {
                assert!(Instant::now() < deadline, "the API server did not come up");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn run(&self, site: crate::site::Site) -> (Arc<Run>, Arc<Told>) {
        let told = Arc::new(Told::default());
        let cluster = tokio::sync::OnceCell::new_with(Some(Cluster::direct(self.client.clone())));
        let store = image::Store::open(&self.dir.path().join("store")).unwrap();
        let run = Run {
            swarm: crate::swarm::Swarm::new(&site, &[], false),
            site,
            rolling: crate::rolling::Rolling::default(),
            sessions: Vec::new(),
            observer: told.clone(),
            blobs: store.blobs().clone(),
            in_use: store.hold().unwrap(),
            record: json!({"kind": "Cluster"}),
            learned: Mutex::new(Learned::default()),
            launch_limit: Duration::from_secs(60),
            push: None,
            cluster,
        };
        (Arc::new(run), told)
    }
}

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Observer for Told {
    fn event(&self, event: Event) {
        if let Event::Warning { message, .. } | Event::Note { message, .. } = event {
            self.0.lock().unwrap().push(message);
        }
    }
}

fn with_app(files: &[(&str, &str)]) -> crate::site::Site {
    let mut site = site();
    for (name, text) in files {
        add_file(&mut site, &format!("application/apps/web/{name}"), text, false);
    }
    site.apps.push(crate::apps::App {
        name: "web".into(),
        env: Default::default(),
        namespace: crate::apps::NAMESPACE.into(),
        kind: crate::apps::Kind::Manifests,
    });
    site
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\ndata: {x: '1'}\n";
const SECRET: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: b, namespace: shop}\nstringData: {x: '1'}\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_version_had_is_taken_away_and_an_unchanged_one_is_left_alone() {
    let Some(server) = start().await else { return };
    let phase = phases::named("applications").unwrap();
    let apply = |files: &[(&str, &str)]| {
        let (run, told) = server.run(with_app(files));
        async move { (launch::applications(run, phase, None).await.unwrap().changes, told) }
    };
    let all = [("0.yaml", NAMESPACE), ("a.yaml", MAP), ("b.yaml", SECRET)];
    assert_eq!(apply(&all).await.0, 3);
    assert_eq!(apply(&all).await.0, 0);
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::namespaced(server.client.clone(), "shop");
    let made = maps.get("a").await.unwrap();
    let manager = made
        .metadata
        .managed_fields
        .unwrap_or_default()
        .into_iter()
        .find_map(|entry| entry.manager);
    assert!(manager.is_none_or(|manager| manager == "installer"));

    // A plan says what an apply then does.
    let (run, _) = server.run(with_app(&[("b.yaml", SECRET)]));
    let noted = ledger::load(&server.client).await.unwrap();
    let leaving: Vec<String> = launch::leaving(&run.site, &noted)
        .unwrap()
        .into_iter()
        .map(|object| object.name)
        .collect();
    assert_eq!(leaving, ["a"]);
    let (changes, told) = apply(&[("b.yaml", SECRET)]).await;
    assert_eq!(changes, 1);
    assert!(maps.get_opt("a").await.unwrap().is_none());
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> = kube::Api::all(server.client.clone());
    assert!(
        namespaces
            .get_opt("shop")
            .await
            .unwrap()
            .is_some_and(|shop| shop.metadata.deletion_timestamp.is_none())
    );
    let told = told.0.lock().unwrap().join("\n");
    assert!(
        told.contains("namespace shop is in no manifest any more; it stays"),
        "{told}"
    );

    // What was an application's and is the image's now is not taken away.
    let mut site = with_app(&[]);
    add_file(&mut site, "manifests/b.yaml", SECRET, false);
    let (run, _) = server.run(site);
    objects::manifests(Arc::clone(&run), phase, None).await.unwrap();
    assert_eq!(launch::applications(run, phase, None).await.unwrap().changes, 0);
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> = kube::Api::namespaced(server.client.clone(), "shop");
    assert!(secrets.get_opt("b").await.unwrap().is_some());
}

/// The helm of the default image's tools, or the machine's.
fn helm_program() -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/helm");
    let found = [ours, PathBuf::from("helm")];
    let works = |path: &&PathBuf| {
        Command::new(path)
            .arg("version")
            .output()
            .is_ok_and(|out| out.status.success())
    };
    found.iter().find(works).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_installed_upgraded_and_found_when_it_was_interrupted() {
    let Some(helm_program) = helm_program() else {
        eprintln!("SKIPPED: helm is not there");
        return;
    };
    let Some(server) = start().await else { return };
    let chart = server.dir.path().join("web");
    std::fs::create_dir_all(chart.join("templates")).unwrap();
    std::fs::write(chart.join("Chart.yaml"), "apiVersion: v2\nname: web\nversion: 0.1.0\n").unwrap();
    std::fs::write(chart.join("values.yaml"), "x: '1'\n").unwrap();
    let template = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {x: {{ .Values.x | quote }}}\n";
    std::fs::write(chart.join("templates/map.yaml"), template).unwrap();
    let values = server.dir.path().join("values of web.yaml");
    let upgrade = |x: &str| {
        std::fs::write(&values, format!("x: '{x}'\n")).unwrap();
        let files = [values.display().to_string()];
        let argv = helm::upgrade(
            "web",
            &chart.display().to_string(),
            "shop",
            &files,
            Duration::from_secs(60),
        );
        let out = Command::new(&helm_program)
            .args(&argv[1..])
            // The API server knows no server-side apply yet, which helm 4 prefers.
            .arg("--server-side=false")
            .env("KUBECONFIG", server.dir.path().join("admin.conf"))
            .env("HOME", server.dir.path())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let look = || async { helm::look(&server.client, "shop", "web").await.unwrap() };
    assert_eq!(look().await, helm::Release::Absent);
    upgrade("1");
    assert_eq!(look().await, helm::Release::Deployed);
    upgrade("2");
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::namespaced(server.client.clone(), "shop");
    let made = maps.get("web").await.unwrap();
    assert_eq!(made.data.unwrap()["x"], "2");

    // A helm that was killed in the middle leaves its revision pending.
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> = kube::Api::namespaced(server.client.clone(), "shop");
    let pending = json!({"metadata": {"labels": {"status": "pending-upgrade"}}});
    let patch = kube::api::Patch::Merge(&pending);
    secrets
        .patch("sh.helm.release.v1.web.v2", &Default::default(), &patch)
        .await
        .unwrap();
    let helm::Release::Pending {
        revision: 2, secret, ..
    } = look().await
    else {
        panic!("pending")
    };
    helm::forget(&server.client, "shop", &secret).await.unwrap();
    upgrade("3");
    assert_eq!(look().await, helm::Release::Deployed);
    assert_eq!(maps.get("web").await.unwrap().data.unwrap()["x"], "3");
}
