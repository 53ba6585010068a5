//! `installer etcd`: a snapshot of all that the API server stores, and going back to one, for clusters with one master.
//!
//! ```text
//! snapshot:  etcdctl on the master ─▶ file in its data folder ─▶ streamed here, digests compared ─▶ the file there goes
//! restore:   file ─▶ streamed there, digests compared ─▶ unpacked beside ─▶ control plane stopped ─▶ folders switched ─▶ started ─▶ agents
//!            and system pods started anew
//! ```
//!
//! Nothing is stopped before the snapshot is known to be one. The data that was there before stays on the master, beside the journal, until
//! the cluster is reset or somebody removes it; if the restored control plane does not come up, it is put back.

use crate::{
    Error, Result,
    cluster::Cluster,
    control_plane::{self, ControlPlane},
    event::Event,
    install::{self, Options, each},
    paths,
    session::Session,
    wish,
};
use clusterfile::Clusterfile;
use host::{
    Effect, Mode, Scope,
    effect::{Run, Unit},
    facts::Query,
    proto::{Exec, RunEnd, RunMark},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use serde::Serialize;
use std::{io, path::Path, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

/// How long one step with the whole data may take.
const LIMIT: Duration = Duration::from_secs(600);
/// How long nothing of a snapshot may come.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes that a login may print before a snapshot begins.
const MAX_PREAMBLE: usize = 64 << 10;
/// Bytes of a snapshot that are in memory at once.
const CHUNK: usize = 256 << 10;
/// etcd's data on a master, below the folder that is mounted.
const DATA: &str = "/var/lib/etcd/member";

/// A snapshot that was taken.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub digest: oci::Digest,
}

/// What a restore has done.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// Where the data that was there before lies, on the master.
    pub before: String,
}

/// The master, and where its files for this lie.
struct Master {
    session: Session,
    scope: Scope,
}

impl Master {
    async fn open(clusterfile: &Clusterfile, options: &Options) -> Result<Self> {
        if clusterfile.masters().count() != 1 {
            return Err(Error::Wish(
                "snapshots are supported for clusters with one master".to_owned(),
            ));
        }
        let first = clusterfile.masters().map(|host| (host.ip, host.ssh.clone()));
        let sessions = install::connect(&first.collect::<Vec<_>>(), options, None).await?;
        let session = sessions
            .into_iter()
            .next()
            .ok_or_else(|| Error::Wish("the Clusterfile has no master".to_owned()))?;
        let scope = wish::scope(clusterfile);
        lock(&session, &scope, &options.who).await?;
        Ok(Self { session, scope })
    }

    /// A path below the folder that is ours as a whole.
    fn own(&self, name: &str) -> String {
        format!("{}/{name}", self.scope.dir())
    }

    async fn run(&self, doing: &str, argv: &[&str]) -> Result<String> {
        let exec = Exec {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: [("ETCDCTL_API".to_owned(), "3".to_owned())].into(),
            timeout_ms: u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX),
            ..Exec::default()
        };
        let ran = self.session.client.exec(exec).await;
        let ran = ran.map_err(self.session.failed(doing))?;
        if ran.code == Some(0) {
            return Ok(ran.stdout);
        }
        let how = match ran.code {
            Some(code) => format!("ended with code {code}"),
            None => format!("took longer than {} s", LIMIT.as_secs()),
        };
        Err(Error::Ran {
            host: self.session.ip.to_string(),
            what: format!("{doing} ({})", argv[0]),
            how,
            tail: ran
                .stderr
                .lines()
                .rev()
                .take(5)
                .map(str::to_owned)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect(),
        })
    }

    async fn digest(&self, path: &str) -> Result<oci::Digest> {
        let told = self.run("hashing the snapshot", &["sha256sum", path]).await?;
        let hex = told.split_whitespace().next().unwrap_or_default();
        format!("sha256:{hex}")
            .parse()
            .map_err(|_| Error::on(self.session.ip, "sha256sum says no digest"))
    }

    /// Takes a file or folder of ours away; that it stays does no harm.
    async fn sweep(&self, path: &str) {
        if let Err(error) = self
            .run("removing what is not needed any more", &["rm", "-rf", "--", path])
            .await
        {
            tracing::warn!(%error, "a file stays on the master");
        }
    }
}

async fn lock(session: &Session, scope: &Scope, who: &str) -> Result<()> {
    let mode = Mode::Write { who: who.to_owned() };
    let opened = session.client.open(scope, mode).await;
    opened.map_err(session.failed("taking the host's lock"))
}

fn local(what: String) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Local { what, source }
}

/// Takes a snapshot into the new file `out`.
///
/// # Errors
/// When the file is there already, or the snapshot cannot be taken or does not arrive whole.
pub async fn snapshot(clusterfile: &Clusterfile, options: &Options, out: &Path) -> Result<Snapshot> {
    if out.exists() {
        return Err(Error::Wish(format!(
            "{} is there already; a snapshot is not overwritten",
            out.display()
        )));
    }
    let master = Master::open(clusterfile, options).await?;
    let there = master.own("etcd-snapshot.db");
    let taken = take(&master, &there, out).await;
    master.sweep(&there).await;
    taken
}

async fn take(master: &Master, there: &str, out: &Path) -> Result<Snapshot> {
    let pki = |name: &str| format!("{}/etcd/{name}", paths::PKI);
    let (ca, cert, key) = (
        pki("ca.crt"),
        pki("healthcheck-client.crt"),
        pki("healthcheck-client.key"),
    );
    let etcdctl = [
        "etcdctl",
        "--endpoints=https://127.0.0.1:2379",
        "--cacert",
        &ca,
        "--cert",
        &cert,
        "--key",
        &key,
    ];
    let argv: Vec<&str> = etcdctl.into_iter().chain(["snapshot", "save", there]).collect();
    master.run("taking a snapshot", &argv).await?;
    let digest = master.digest(there).await?;
    let partial = out.with_extension("partial");
    let received = receive(master, there, &partial).await;
    let received = match received {
        Ok((bytes, arrived)) if arrived == digest => Ok(Snapshot { bytes, digest }),
        Ok(_) => Err(Error::on(
            master.session.ip,
            "the snapshot has not arrived as it was sent; take it again",
        )),
        Err(error) => Err(error),
    };
    if received.is_ok() {
        let renamed = std::fs::rename(&partial, out);
        renamed.map_err(local(format!("cannot rename {}", partial.display())))?;
    } else {
        let _ = std::fs::remove_file(&partial);
    }
    received
}

/// Reads until just behind `word`.
async fn begin(from: &mut (impl AsyncRead + Unpin), word: &[u8]) -> io::Result<()> {
    let mut read = Vec::new();
    while !read.ends_with(word) {
        if read.len() > MAX_PREAMBLE {
            return Err(io::Error::other("the login prints, and does not end to"));
        }
        let byte = timeout(STALL_TIMEOUT, from.read_u8()).await;
        read.push(byte.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?);
    }
    Ok(())
}

/// Streams a file of the master into a file here.
async fn receive(master: &Master, there: &str, here: &Path) -> Result<(u64, oci::Digest)> {
    let session = &master.session;
    let mut options = tokio::fs::OpenOptions::new();
    // All secrets of the cluster are in it.
    options.write(true).create(true).truncate(true).mode(0o600);
    let writing = || local(format!("cannot write {}", here.display()));
    let breaks = || format!("the snapshot of {} breaks off", session.ip);
    let mut file = options.open(here).await.map_err(writing())?;
    // What the login prints comes before this word.
    let word = format!("{}\n", *crate::swarm::random_text());
    let script = "echo \"$0\"; exec cat -- \"$1\"";
    let argv = ["sh", "-c", script, word.trim_end(), there];
    let command = ssh::Command::new(argv).elevate(session.elevate.clone());
    let mut process = session.connection.open_process(&command).await?;
    begin(&mut process.stdout, word.as_bytes())
        .await
        .map_err(local(breaks()))?;
    let (mut hasher, mut total, mut buffer) = (oci::Hasher::default(), 0, vec![0; CHUNK]);
    loop {
        let read = timeout(STALL_TIMEOUT, process.stdout.read(&mut buffer)).await;
        let read = read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let n = read.map_err(local(breaks()))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        file.write_all(&buffer[..n]).await.map_err(writing())?;
        total += n as u64;
    }
    file.sync_all().await.map_err(writing())?;
    Ok((total, hasher.finish()))
}

/// Makes the cluster what it was when the snapshot in `file` was taken.
///
/// # Errors
/// When the file is no snapshot (then nothing was stopped), or the control plane does not come up with it (then the data from before is
/// put back).
pub async fn restore(clusterfile: &Clusterfile, options: &Options, file: &Path) -> Result<Restored> {
    let master = Master::open(clusterfile, options).await?;
    let session = &master.session;
    let applied = session.client.applied().await;
    let applied = applied.map_err(session.failed("asking what was applied"))?;
    let control_plane = ControlPlane::of(&applied).ok_or_else(|| control_plane::unknown(session))?;
    let (db, unpacked) = (master.own("etcd-restore.db"), master.own("etcd-restored"));
    let prepared = prepare(&master, file, &db, &unpacked).await;
    master.sweep(&db).await;
    if let Err(error) = prepared {
        master.sweep(&unpacked).await;
        return Err(error);
    }
    let at_ms = jiff::Timestamp::now().as_millisecond();
    let mark = RunMark {
        who: options.who.clone(),
        at_ms,
        ..RunMark::default()
    };
    let begun = session.client.begin_run(mark, false).await;
    begun.map_err(session.failed("noting that a run begins"))?;
    let before = master.own(&format!("etcd-before-restore-{at_ms}"));
    let switched = switch(&master, &control_plane, &unpacked, &before, options).await;
    master.sweep(&unpacked).await;
    let how = if switched.is_ok() {
        RunEnd::PartDone
    } else {
        RunEnd::Failed
    };
    let ended = session.client.end_run(how).await;
    switched?;
    ended.map_err(session.failed("noting that a run ended"))?;
    renew_clients(clusterfile, options, &master).await?;
    Ok(Restored { before })
}

/// Brings the snapshot to the master and unpacks it beside what is there.
async fn prepare(master: &Master, file: &Path, db: &str, unpacked: &str) -> Result<()> {
    let session = &master.session;
    let digest = hash(file).await?;
    let reading = local(format!("cannot read {}", file.display()));
    let content = tokio::fs::File::open(file).await.map_err(reading)?;
    session.connection.upload(db, 0o600, content, &session.elevate).await?;
    if master.digest(db).await? != digest {
        return Err(Error::on(
            session.ip,
            "the snapshot has not arrived as it was sent; restore it again",
        ));
    }
    let facts = session.client.facts(&Query::default()).await;
    let name = facts
        .map_err(session.failed("looking at the host"))?
        .hostname
        .to_lowercase();
    let peer = format!("https://{}:2380", session.ip);
    master.sweep(unpacked).await;
    let argv = [
        "etcdctl",
        "snapshot",
        "restore",
        db,
        "--data-dir",
        unpacked,
        "--name",
        &name,
        "--initial-cluster",
        &format!("{name}={peer}"),
        "--initial-advertise-peer-urls",
        &peer,
        "--initial-cluster-token",
        &master.scope.cluster,
    ];
    master.run("reading the snapshot", &argv).await.map(drop)
}

async fn hash(file: &Path) -> Result<oci::Digest> {
    let path = file.to_owned();
    let hash = move || -> std::io::Result<oci::Digest> {
        let mut hasher = oci::Hasher::default();
        hasher.read(&mut std::fs::File::open(&path)?, &mut vec![0; CHUNK])?;
        Ok(hasher.finish())
    };
    let hashed = tokio::task::spawn_blocking(hash).await;
    let hashed = hashed.map_err(|_| Error::Interrupted("hashing the snapshot"))?;
    hashed.map_err(local(format!("cannot read {}", file.display())))
}

/// Switches the data while nothing uses it. If the control plane does not come up with the new, the old is put back.
async fn switch(
    master: &Master,
    control_plane: &ControlPlane,
    unpacked: &str,
    before: &str,
    options: &Options,
) -> Result<()> {
    let session = &master.session;
    tell(options, session, "stop", "stopping the control plane");
    let restored = format!("{unpacked}/member");
    let forward = async {
        control_plane.stop(session).await?;
        master
            .run("keeping the data from before", &["mv", "-T", DATA, before])
            .await?;
        master.run("switching the data", &["mv", "-T", &restored, DATA]).await?;
        tell(
            options,
            session,
            "start",
            "starting the control plane with the restored data",
        );
        control_plane.start(session).await
    };
    let Err(error) = forward.await else { return Ok(()) };
    tell(options, session, "rollback", "putting the data from before back");
    let back = async {
        control_plane.stop(session).await?;
        // Where nothing was moved yet there is nothing to be put back.
        if master
            .run("looking for the data from before", &["test", "-d", before])
            .await
            .is_ok()
        {
            master
                .run("removing the restored data", &["rm", "-rf", "--", DATA])
                .await?;
            master
                .run("putting the data from before back", &["mv", "-T", before, DATA])
                .await?;
        }
        control_plane.start(session).await
    };
    match back.await {
        Ok(()) => Err(error),
        Err(worse) => Err(Error::Several(vec![error, worse])),
    }
}

/// Whoever watches the API server knows a later state than it has now: agents and system pods begin anew. Static pods have already.
async fn renew_clients(clusterfile: &Clusterfile, options: &Options, master: &Master) -> Result<()> {
    let cluster = Cluster::open(&master.session).await?;
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), "kube-system");
    let pods = api.list(&ListParams::default()).await;
    let pods = pods.map_err(Error::api("listing system pods"))?.items;
    let is_mirror = |pod: &Pod| pod.annotations().contains_key("kubernetes.io/config.mirror");
    let others = install::targets(clusterfile)
        .into_iter()
        .filter(|(ip, _)| *ip != master.session.ip);
    let mut sessions = install::connect(&others.collect::<Vec<_>>(), options, None).await?;
    each(&sessions, |session| lock(session, &master.scope, &options.who)).await?;
    sessions.push(master.session.clone());
    each(&sessions, |session| async move {
        tell(options, session, "restart", "starting the node agent anew");
        let restart = Effect::Unit(Unit {
            name: paths::unit::AGENT.to_owned(),
            content: None,
            enable: None,
            run: Run::Restarted,
            triggers: Vec::new(),
            reload: false,
            timeout: 60,
        });
        let restarted = session.client.apply(vec![restart]).await;
        restarted
            .map(drop)
            .map_err(session.failed("starting the node agent anew"))
    })
    .await?;
    for pod in pods.iter().filter(|pod| !is_mirror(pod)) {
        match api.delete(&pod.name_any(), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::api(format!("starting {} anew", pod.name_any()))(error)),
        }
    }
    Ok(())
}

fn tell(options: &Options, session: &Session, phase: &'static str, title: &'static str) {
    options.observer.event(Event::PhaseStarted {
        phase,
        title,
        host: Some(session.ip.to_string()),
    });
}
