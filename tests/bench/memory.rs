//! What the API server and etcd hold while a Deployment is scaled up and down, minute by minute: whether it levels off, and
//! where. Real etcd, API server, controllers and scheduler run on this machine, against a node that only says what a node
//! agent would say of its pods, so that pods cost their records alone.

use anyhow::{Context, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Minutes, unless `BENCH_MINUTES` says otherwise.
const MINUTES: u64 = 60;
const REPLICAS: i64 = 20;
const NODE: &str = "bench";
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const SAMPLE_INTERVAL: Duration = Duration::from_secs(60);
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const LEASE_INTERVAL: Duration = Duration::from_secs(10);

/// A child that is ended by its handle.
struct Process {
    child: Child,
}

impl Process {
    fn start(dir: &Path, name: &str, command: &mut Command) -> Result<Self> {
        let log = fs::File::create(dir.join(format!("{name}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { child })
    }

    /// A number of `/proc/PID/status`, in bytes.
    fn memory(&self, field: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        let kilobytes = line
            .and_then(|l| l.split_whitespace().next())
            .context("no such field")?;
        Ok(kilobytes.parse::<u64>()? * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Flags of the cluster's own etcd that bound what it holds.
fn etcd_flags() -> Result<Vec<String>> {
    let manifest = "rootfs/etc/kubernetes/manifests/etcd.yaml.tmpl";
    let text = fs::read_to_string(manifest).context(manifest)?;
    let flags = text.lines().filter_map(|l| l.trim().strip_prefix("- --"));
    let bounds = ["snapshot-count=", "auto-compaction-", "quota-backend-bytes=", "max-"];
    let bounding = flags.filter(|f| bounds.iter().any(|b| f.starts_with(b)));
    Ok(bounding.map(|f| format!("--{f}")).collect())
}

fn issue(dir: &Path, issuer: &Issuer<'static, KeyPair>, name: &str, group: Option<&str>) -> Result<()> {
    let names = if group.is_none() {
        vec!["127.0.0.1".to_owned()]
    } else {
        vec![]
    };
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![match group {
        None => ExtendedKeyUsagePurpose::ServerAuth,
        Some(_) => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    let key = KeyPair::generate()?;
    fs::write(dir.join(format!("{name}.crt")), params.signed_by(&key, issuer)?.pem())?;
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
    Ok(())
}

/// A control plane on this machine.
struct ControlPlane {
    etcd: Process,
    apiserver: Process,
    _others: [Process; 2],
    client: Client,
    data: PathBuf,
}

impl ControlPlane {
    async fn start(bin: &Path, dir: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "bench");
        let key = KeyPair::generate()?;
        fs::write(dir.join("ca.crt"), params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);
        issue(dir, &issuer, "server", None)?;
        issue(dir, &issuer, "admin", Some("system:masters"))?;
        fs::write(dir.join("sa.key"), KeyPair::generate()?.serialize_pem())?;
        let path = |file: &str| dir.join(file).display().to_string();
        let (store, peer, port) = (free_port()?, free_port()?, free_port()?);
        let (store, peer) = (format!("http://127.0.0.1:{store}"), format!("http://127.0.0.1:{peer}"));
        let data = dir.join("etcd");
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(&data).args(etcd_flags()?).args([
            "--name=bench",
            &format!("--listen-client-urls={store}"),
            &format!("--advertise-client-urls={store}"),
            &format!("--listen-peer-urls={peer}"),
            &format!("--initial-advertise-peer-urls={peer}"),
            &format!("--initial-cluster=bench={peer}"),
        ]);
        let etcd = Process::start(dir, "etcd", &mut command)?;
        let clusterd = bin.join("clusterd");
        let mut command = Command::new(&clusterd);
        command.args([
            "apiserver",
            "--advertise-address=192.0.2.1",
            "--bind-address=127.0.0.1",
            &format!("--secure-port={port}"),
            &format!("--etcd-servers={store}"),
            &format!("--client-ca-file={}", path("ca.crt")),
            &format!("--tls-cert-file={}", path("server.crt")),
            &format!("--tls-private-key-file={}", path("server.key")),
            "--service-account-issuer=https://kubernetes.default.svc",
            &format!("--service-account-key-file={}", path("sa.key")),
            &format!("--service-account-signing-key-file={}", path("sa.key")),
        ]);
        let apiserver = Process::start(dir, "apiserver", &mut command)?;
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {
                "server": format!("https://127.0.0.1:{port}"), "certificate-authority": path("ca.crt")}}],
            "users": [{"name": "bench", "user": {"client-certificate": path("admin.crt"), "client-key": path("admin.key")}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}]});
        let file = dir.join("kubeconfig");
        fs::write(&file, kubeconfig.to_string())?;
        let config = kube::config::Kubeconfig::read_from(&file)?;
        let config = kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        until("the API server is ready", || async {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(client.request_text(request).await.is_ok())
        })
        .await?;
        let other = |role: &str| {
            let mut command = Command::new(&clusterd);
            let kubeconfig = format!("--kubeconfig={}", file.display());
            command.args([role, &kubeconfig, "--leader-elect=false", "--secure-port=0"]);
            Process::start(dir, role, &mut command)
        };
        Ok(Self {
            etcd,
            apiserver,
            _others: [other("controller-manager")?, other("scheduler")?],
            client,
            data,
        })
    }
}

/// Waits for a condition.
async fn until<F: Future<Output = Result<bool>>>(what: &str, mut holds: impl FnMut() -> F) -> Result<()> {
    let start = Instant::now();
    while !holds().await? {
        ensure!(start.elapsed() < READY_TIMEOUT, "not within {READY_TIMEOUT:?}: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

fn object<K: DeserializeOwned>(value: Value) -> Result<K> {
    Ok(serde_json::from_value(value)?)
}

/// What a node agent writes about a pod that starts: what waits, events, what runs.
async fn run_pod(client: &Client, pod: &Pod) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let now = Time(Timestamp::now());
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": now});
    let status = |running: bool| {
        let word = if running { "True" } else { "False" };
        let state = match running {
            true => json!({"running": {"startedAt": now}}),
            false => json!({"waiting": {"reason": "ContainerCreating"}}),
        };
        let mut status = json!({"phase": if running { "Running" } else { "Pending" }, "hostIP": "192.0.2.1", "startTime": now,
            "conditions": [condition("PodScheduled", "True"), condition("Initialized", "True"),
                condition("PodReadyToStartContainers", word), condition("ContainersReady", word), condition("Ready", word)],
            "containerStatuses": [{"name": "c", "image": "example.com/web:1", "imageID": "example.com/web@sha256:0", "ready": running,
                "restartCount": 0, "started": running, "state": state}]});
        if running {
            status["podIP"] = "198.51.100.1".into();
            status["podIPs"] = json!([{"ip": "198.51.100.1"}]);
        }
        json!({"status": status})
    };
    let params = PatchParams::default();
    pods.patch_status(&pod.name_any(), &params, &Patch::Merge(status(false)))
        .await?;
    for reason in ["Pulled", "Created", "Started"] {
        report(client, pod, reason).await?;
    }
    pods.patch_status(&pod.name_any(), &params, &Patch::Merge(status(true)))
        .await?;
    Ok(())
}

async fn report(client: &Client, pod: &Pod, reason: &str) -> Result<()> {
    let now = Timestamp::now();
    let event = json!({"metadata": {"name": format!("{}.{:x}", pod.name_any(), now.as_nanosecond()), "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "namespace": "default", "uid": pod.uid()},
        "reason": reason, "message": format!("{reason} container \"c\" of image \"example.com/web:1\""), "type": "Normal", "count": 1,
        "source": {"component": "kubelet", "host": NODE}, "firstTimestamp": Time(now), "lastTimestamp": Time(now)});
    Api::<Event>::namespaced(client.clone(), "default")
        .create(&PostParams::default(), &object(event)?)
        .await?;
    Ok(())
}

/// What a node agent writes about a pod that ends.
async fn end_pod(client: &Client, pod: &Pod) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    report(client, pod, "Killing").await?;
    let stopped = json!({"status": {"containerStatuses": [{"name": "c", "image": "example.com/web:1", "imageID": "example.com/web@sha256:0",
        "ready": false, "restartCount": 0, "started": false, "state": {"terminated": {"exitCode": 0, "finishedAt": Time(Timestamp::now())}}}]}});
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(stopped))
        .await?;
    pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
        .await?;
    Ok(())
}

/// Says of every pod of the node what its agent would say, for ever.
async fn run_node(client: Client) -> Result<()> {
    let mut seen = HashSet::new();
    let pods: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={NODE}"));
    let mut events = pin!(watcher(pods, config));
    while let Some(event) = events.next().await {
        let (Ok(watcher::Event::Apply(pod)) | Ok(watcher::Event::InitApply(pod))) = event else {
            continue;
        };
        let ends = pod.metadata.deletion_timestamp.is_some();
        if !seen.insert((pod.uid().unwrap_or_default(), ends)) {
            continue;
        }
        let client = client.clone();
        tokio::spawn(async move {
            // A pod may be deleted while it starts, and then there is nothing to say of it any more.
            let _ = match ends {
                true => end_pod(&client, &pod).await,
                false => run_pod(&client, &pod).await,
            };
        });
    }
    Ok(())
}

/// Renews the lease of the node, for ever.
async fn keep_lease(client: Client) -> Result<()> {
    use k8s_openapi::api::coordination::v1::Lease;
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    loop {
        let renewed = format!("{:.6}", Timestamp::now());
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NODE},
            "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": renewed}});
        leases
            .patch(NODE, &PatchParams::apply("bench").force(), &Patch::Apply(lease))
            .await?;
        tokio::time::sleep(LEASE_INTERVAL).await;
    }
}

async fn prepare(client: &Client) -> Result<()> {
    let params = PostParams::default();
    let node = json!({"metadata": {"name": NODE}, "status": {
        "capacity": {"cpu": "8", "memory": "16Gi", "pods": "110"}, "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": Time(Timestamp::now()), "lastTransitionTime": Time(Timestamp::now())}]}});
    Api::<Node>::all(client.clone()).create(&params, &object(node)?).await?;
    let labels = json!({"app": "web"});
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 0, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "example.com/web:1"}]}}}});
    Api::<Deployment>::namespaced(client.clone(), "default")
        .create(&params, &object(deployment)?)
        .await?;
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": labels, "ports": [{"port": 80}]}});
    Api::<Service>::namespaced(client.clone(), "default")
        .create(&params, &object(service)?)
        .await?;
    Ok(())
}

/// Scales the Deployment and waits until its pods are there or gone.
async fn scale(client: &Client, replicas: i64) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let wanted = json!({"spec": {"replicas": replicas}});
    deployments
        .patch_scale("web", &PatchParams::default(), &Patch::Merge(wanted))
        .await?;
    until(&format!("{replicas} replicas"), || async {
        if replicas == 0 {
            return Ok(pods.list(&ListParams::default()).await?.items.is_empty());
        }
        let status = deployments.get_status("web").await?.status.unwrap_or_default();
        Ok(i64::from(status.available_replicas.unwrap_or(0)) == replicas)
    })
    .await
}

fn folder_size(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(folder)? {
        size += entry?.metadata()?.len();
    }
    Ok(size)
}

/// What is held at one time, in bytes; of the cache by kind.
struct Sample {
    apiserver: u64,
    etcd: u64,
    etcd_mapped: u64,
    database: u64,
    cache: Vec<(u64, String)>,
}

impl Sample {
    async fn take(plane: &ControlPlane) -> Result<Self> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let page = plane.client.request_text(request).await?;
        let bytes = |line: &str| {
            let (labels, value) = line.strip_prefix("apiserver_watch_cache_bytes{")?.split_once("} ")?;
            let kind = labels.split("resource=\"").nth(1)?.trim_end_matches('"');
            Some((value.parse().ok()?, kind.to_owned()))
        };
        let mut cache: Vec<(u64, String)> = page.lines().filter_map(bytes).collect();
        cache.sort_by(|a, b| b.cmp(a));
        let etcd = plane.etcd.memory("RssAnon")?;
        Ok(Self {
            apiserver: plane.apiserver.memory("RssAnon")?,
            etcd,
            etcd_mapped: plane.etcd.memory("VmRSS")? - etcd,
            database: folder_size(&plane.data.join("member/snap"))?,
            cache,
        })
    }

    fn cached(&self) -> u64 {
        self.cache.iter().map(|(bytes, _)| bytes).sum()
    }

    fn print(&self, minute: u64, pods: i64) {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let most = self.cache.iter().take(3);
        let most: Vec<String> = most.map(|(bytes, kind)| format!("{kind} {:.1}", mb(*bytes))).collect();
        println!(
            "{minute:>6} {pods:>7} {:>10.1} {:>10.1} {:>8.1} {:>11.1} {:>8.1}   {}",
            mb(self.apiserver),
            mb(self.cached()),
            mb(self.etcd),
            mb(self.etcd_mapped),
            mb(self.database),
            most.join(", ")
        );
    }
}

/// How much more the last quarter of a run holds than the one before, in percent.
fn growth(samples: &[Sample], of: fn(&Sample) -> u64) -> f64 {
    let quarter = (samples.len() / 4).max(1);
    let mean = |part: &[Sample]| part.iter().map(|s| of(s) as f64).sum::<f64>() / part.len() as f64;
    let (before, last) = samples.split_at(samples.len() - quarter);
    let before = &before[before.len().saturating_sub(quarter)..];
    (mean(last) / mean(before) - 1.0) * 100.0
}

async fn measure(bin: &Path, dir: &Path, minutes: u64) -> Result<()> {
    let plane = ControlPlane::start(bin, dir).await?;
    let client = &plane.client;
    prepare(client).await?;
    let node = tokio::spawn(run_node(client.clone()));
    let lease = tokio::spawn(keep_lease(client.clone()));
    println!("minute    pods  apiserver      cache     etcd etcd mapped database   most of the cache");
    let start = Instant::now();
    let (mut samples, mut pods): (Vec<Sample>, i64) = (Vec::new(), 0);
    while samples.len() <= minutes as usize {
        if start.elapsed() >= SAMPLE_INTERVAL * samples.len() as u32 {
            let sample = Sample::take(&plane).await?;
            sample.print(samples.len() as u64, pods);
            samples.push(sample);
        }
        scale(client, REPLICAS).await?;
        scale(client, 0).await?;
        pods += REPLICAS;
    }
    node.abort();
    lease.abort();
    if samples.len() >= 4 {
        let (apiserver, etcd) = (growth(&samples, |s| s.apiserver), growth(&samples, |s| s.etcd));
        println!("the last quarter beside the one before: API server {apiserver:+.1} %, etcd {etcd:+.1} %");
    }
    Ok(())
}

/// Runs the benchmark for `BENCH_MINUTES`; sizes are in MB, memory is what the processes have for themselves.
pub fn run(bin: &Path, dir: &Path) -> Result<()> {
    let minutes = match std::env::var("BENCH_MINUTES") {
        Ok(minutes) => minutes.parse().context("BENCH_MINUTES is a number of minutes")?,
        Err(_) => MINUTES,
    };
    println!("## Memory while a Deployment is scaled between 0 and {REPLICAS}, for {minutes} minutes");
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(bin, dir, minutes))
}
