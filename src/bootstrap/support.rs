//! What helps to find a fault, from every host and from the cluster: bounded in size, without secrets.
//!
//! ```text
//! hosts ─▶ texts ─▶ redactor ─▶ cut ─▶ queue ─▶ whoever writes the bundle
//! ```
//!
//! Everything is asked for at once and nothing stops the rest: what could not be had is named in the bundle. A host is asked by plain
//! programs over SSH, because `clusterd` may be what does not work; only facts and journal come from it. Secrets are taken out before
//! anything is cut, so that no rest of one is left. Nothing is changed on any host.

use crate::{
    Error, Result,
    cluster::{self, Cluster},
    fan,
    install::Options,
    paths,
    redact::Redactor,
    session::{self, Session},
    way::Connection,
    wish,
};
use clusterfile::{Clusterfile, Ssh};
use futures::{FutureExt as _, StreamExt as _, stream};
use host::{Mode, facts::Query};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Event, Node, Pod, Service},
};
use kube::{Api, Client, api::ListParams};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use ssh::Command;
use std::{net::Ipv4Addr, sync::Arc, time::Duration};
use tokio::sync::mpsc;

mod asked;

/// Bytes of one file of the bundle.
const FILE: usize = 1 << 20;
/// Bytes of one host.
const HOST: usize = 16 << 20;
/// Bytes that are read of what a program writes: more than a file has, because redacting comes before cutting.
const READ: usize = 4 << 20;
/// How long one program may take.
const PROGRAM: Duration = Duration::from_secs(30);
/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Objects of one kind.
const OBJECTS: u32 = 2000;
/// Programs that run on one host at the same time.
const AT_ONCE: usize = 4;
/// Logs of containers of one host.
const LOGS: usize = 40;

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its path in the bundle: `hosts/10.0.0.1/ip-route.txt`.
    pub path: String,
    /// What is in it.
    pub text: String,
}

/// What was collected of a host or the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Address of the host, or `cluster`.
    pub name: String,
    /// How many files.
    pub files: usize,
    /// How many bytes are in them.
    pub bytes: usize,
    /// Why there are none, or not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Takes files on their way to the bundle; redacts, cuts and counts.
struct Out {
    folder: String,
    redactor: Arc<Redactor>,
    queue: mpsc::Sender<File>,
    part: Part,
}

impl Out {
    fn new(name: &str, folder: String, redactor: &Arc<Redactor>, queue: &mpsc::Sender<File>) -> Self {
        Self {
            folder,
            redactor: Arc::clone(redactor),
            queue: queue.clone(),
            part: Part {
                name: name.to_owned(),
                files: 0,
                bytes: 0,
                problem: None,
            },
        }
    }

    async fn put(&mut self, name: &str, text: &str) {
        let text = self.redactor.text(text);
        let text = cut(&text, FILE.min(HOST.saturating_sub(self.part.bytes)));
        if text.is_empty() {
            return;
        }
        self.part.files += 1;
        self.part.bytes += text.len();
        let path = format!("{}/{name}", self.folder);
        // Nobody reads any more: then nobody wants it.
        let _ = self.queue.send(File { path, text }).await;
    }

    async fn put_json(&mut self, name: &str, value: Value) {
        let value = self.redactor.json(value);
        let text = serde_json::to_string_pretty(&value).unwrap_or_default();
        self.put(name, &text).await;
    }

    /// Notes a problem; the first one is the part's.
    async fn fail(&mut self, name: &str, why: &str) {
        let why = self.redactor.text(why).into_owned();
        self.put(&format!("{name}.failed.txt"), &format!("{why}\n")).await;
        self.part.problem.get_or_insert(why);
    }
}

/// The end of a text, whole lines, with a word where something is missing.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut from = text.len() - most;
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let end = &text[from..];
    let end = end.split_once('\n').map_or(end, |(_, rest)| rest);
    if most == 0 {
        String::new()
    } else {
        format!("(the beginning was cut off)\n{end}")
    }
}

/// Collects everything; files are sent to `queue` as they come.
pub async fn collect(clusterfile: &Clusterfile, options: &Options, queue: mpsc::Sender<File>) -> Vec<Part> {
    let redactor = Arc::new(Redactor::of(clusterfile));
    let mut top = Out::new("installer", "installer".to_owned(), &redactor, &queue);
    top.put_json("clusterfile.json", clusterfile.without_secrets()).await;
    let scope = wish::scope(clusterfile);
    let hosts = clusterfile.cluster.hosts.iter().map(|host| {
        let out = Out::new(&host.ip.to_string(), format!("hosts/{}", host.ip), &redactor, &queue);
        of_host(host.ip, &host.ssh, options, &scope, out).boxed()
    });
    let mut parts = fan::all(hosts.collect()).await;
    let out = Out::new("cluster", "cluster".to_owned(), &redactor, &queue);
    parts.push(of_cluster(clusterfile, options, out).await);
    parts
}

/// Runs programs somewhere: a host, or what stands in for it.
trait Runs: Sync {
    /// What the program wrote, or why it could not be run.
    fn run(&self, argv: &[&str]) -> impl Future<Output = Result<String, String>> + Send;
}

struct Remote {
    connection: Connection,
    elevate: ssh::Become,
}

impl Runs for Remote {
    async fn run(&self, argv: &[&str]) -> Result<String, String> {
        let command = Command::new(argv.iter().copied())
            .elevate(self.elevate.clone())
            .timeout(PROGRAM)
            .max_output(READ);
        let output = self.connection.exec(&command).await.map_err(|e| e.to_string())?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            text.push_str(&format!("({}: {})\n", output.status, output.stderr.trim()));
        }
        Ok(text)
    }
}

async fn of_host(ip: Ipv4Addr, ssh: &Ssh, options: &Options, scope: &host::Scope, mut out: Out) -> Part {
    let reached = async {
        let (connection, elevate) = session::connect(ip, ssh, &options.access).await?;
        Ok::<_, Error>(Remote { connection, elevate })
    };
    match reached.await {
        Ok(remote) => {
            programs(&remote, &mut out).await;
            match Session::open(ip, ssh, &options.access, None).await {
                Ok(session) => own(&session, scope, &mut out).await,
                Err(error) => out.fail("clusterd", &error.to_string()).await,
            }
        }
        Err(error) => out.fail("not-reached", &error.to_string()).await,
    }
    out.part
}

/// What ordinary programs of the host say.
async fn programs(host: &impl Runs, out: &mut Out) {
    let plain = asked::PROGRAMS
        .iter()
        .map(|(name, argv)| ((*name).to_owned(), argv.to_vec()));
    let journals = paths::unit::ALL.map(|unit| (format!("units/{unit}.log"), asked::journal(unit).to_vec()));
    several(host, plain.chain(journals).collect(), out).await;
    let listed = host.run(asked::POD_LOGS).await.unwrap_or_default();
    let logs = listed
        .lines()
        .filter(|line| line.starts_with(asked::LOG_FOLDER))
        .take(LOGS);
    let tails = logs.map(|path| (asked::log_name(path), vec!["tail", "-c", asked::LOG_BYTES, path]));
    several(host, tails.collect(), out).await;
}

/// Runs programs, a few at a time; each one's output becomes a file.
async fn several(host: &impl Runs, asked: Vec<(String, Vec<&str>)>, out: &mut Out) {
    let mut run = Vec::new();
    for (name, argv) in asked {
        run.push(async move { (name, host.run(&argv).await) }.boxed());
    }
    let mut ran = stream::iter(run).buffered(AT_ONCE);
    while let Some((name, text)) = ran.next().await {
        match text {
            Ok(text) => out.put(&name, &text).await,
            Err(why) => out.fail(&name, &why).await,
        }
    }
}

/// What `clusterd` says.
async fn own(session: &Session, scope: &host::Scope, out: &mut Out) {
    let client = &session.client;
    match client.facts(&Query::default()).await.map(serde_json::to_value) {
        Ok(Ok(facts)) => out.put_json("facts.json", facts).await,
        Ok(Err(_)) => {}
        Err(error) => out.fail("facts", &error.to_string()).await,
    }
    let journal = async {
        client.open(scope, Mode::Read).await?;
        client.journal().await
    };
    match journal.await.map(serde_json::to_value) {
        Ok(Ok(journal)) => out.put_json("journal.json", journal).await,
        Ok(Err(_)) => {}
        Err(error) => out.fail("journal", &error.to_string()).await,
    }
}

/// What the first master that answers says about the cluster.
async fn of_cluster(clusterfile: &Clusterfile, options: &Options, mut out: Out) -> Part {
    let mut problems = Vec::new();
    for master in clusterfile.masters() {
        let opened = async {
            let session = Session::open(master.ip, &master.ssh, &options.access, None).await?;
            cluster::api::wait_ready(&session, ANSWER).await?;
            Cluster::open(&session).await
        };
        match opened.await {
            Ok(cluster) => {
                objects(&cluster.client, &mut out).await;
                return out.part;
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    out.fail("not-reached", &problems.join("\n")).await;
    out.part
}

/// No Secrets and no ConfigMaps: what is in them is nobody's business.
async fn objects(client: &Client, out: &mut Out) {
    match client.apiserver_version().await.map(serde_json::to_value) {
        Ok(version) => out.put_json("version.json", version.unwrap_or_default()).await,
        Err(error) => out.fail("version", &error.to_string()).await,
    }
    list::<Node>(client, "nodes", out).await;
    list::<Pod>(client, "pods", out).await;
    list::<Event>(client, "events", out).await;
    list::<Deployment>(client, "deployments", out).await;
    list::<DaemonSet>(client, "daemonsets", out).await;
    list::<Service>(client, "services", out).await;
}

async fn list<K>(client: &Client, name: &str, out: &mut Out)
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let api: Api<K> = Api::all(client.clone());
    match api.list(&ListParams::default().limit(OBJECTS)).await {
        Ok(list) => {
            let objects = list.items.iter().filter_map(|object| serde_json::to_value(object).ok());
            // One a line: what has to be cut is cut between objects.
            for_each_line(objects.map(without_fields), name, out).await;
        }
        Err(error) => out.fail(name, &error.to_string()).await,
    }
}

async fn for_each_line(objects: impl Iterator<Item = Value>, name: &str, out: &mut Out) {
    let lines: String = objects
        .map(|object| format!("{}\n", out.redactor.json(object)))
        .collect();
    out.put(&format!("{name}.jsonl"), &lines).await;
}

/// Who manages which field helps nobody.
fn without_fields(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// What is collected of the cluster behind a client.
#[cfg(test)]
pub(crate) async fn of_client(client: &Client) -> Vec<File> {
    let (queue, mut files) = mpsc::channel(100);
    let mut out = Out::new("cluster", "cluster".to_owned(), &Arc::default(), &queue);
    objects(client, &mut out).await;
    drop((out, queue));
    let mut all = Vec::new();
    while let Some(file) = files.recv().await {
        all.push(file);
    }
    all
}

#[cfg(test)]
#[path = "support_tests.rs"]
mod tests;
