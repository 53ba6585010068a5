//! What every command gets: where the images are, whom SSH trusts, the terminal, and who is told what happens.

use crate::{
    cli::{Cli, Globals},
    log::{Log, Logged},
    output::Output,
    recording::Recording,
    show::Show,
};
use bootstrap::{
    bandwidth::Bandwidth,
    event::{All, Event, Observer},
    fan,
    session::Aliases,
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Exit codes from here on are those of signals.
const INTERRUPTED: u8 = 128;

/// See the head of this file.
pub struct Context {
    /// The terminal, or whatever stands in for it.
    pub out: Output,
    /// Folder of the image store; it need not exist.
    pub store: PathBuf,
    /// Files of known host keys; empty: the user's own.
    pub known_hosts: Vec<PathBuf>,
    /// Whether unknown host keys are accepted.
    pub accept_new_host_keys: bool,
    /// The SSH configuration the user names; absent: his own, if there is one.
    pub ssh_config: Option<PathBuf>,
    /// What it says, once it was read.
    pub aliases: OnceLock<Aliases>,
    /// What may be sent to all hosts together.
    pub bandwidth: Option<Bandwidth>,
    /// The log of this run.
    pub log: Log,
    /// Whoever is told what happens: terminal, log, report.
    pub observer: Arc<dyn Observer>,
    recording: Option<Arc<Recording>>,
    started: AtomicBool,
    /// Whether the end was told; locked while it is.
    over: Mutex<bool>,
    start: Instant,
}

impl Context {
    /// From the command line.
    ///
    /// # Errors
    /// When a file cannot be written that the user wants a log or a report in.
    pub fn new(cli: &Cli, out: Output, log: Log) -> anyhow::Result<Self> {
        let globals = &cli.globals;
        if let Some(hosts) = globals.concurrency {
            fan::limit(hosts);
        }
        let recording = cli.command.report().map(|path| Recording::new(path, log.clone()));
        let recording = recording.transpose()?.map(Arc::new);
        let mut observers: Vec<Arc<dyn Observer>> = vec![Arc::new(Logged)];
        observers.extend(recording.clone().map(|recording| recording as Arc<dyn Observer>));
        observers.push(Arc::new(Show::new(out.clone())));
        Ok(Self {
            out,
            store: store(globals),
            known_hosts: globals.known_hosts.iter().cloned().collect(),
            accept_new_host_keys: globals.accept_new_host_keys,
            ssh_config: globals.ssh_config.clone(),
            aliases: OnceLock::new(),
            bandwidth: globals.bandwidth.map(Bandwidth::new),
            log,
            observer: Arc::new(All(observers)),
            recording,
            started: AtomicBool::new(false),
            over: Mutex::new(false),
            start: Instant::now(),
        })
    }

    /// Tells that the stream of events begins.
    pub fn started(&self, command: &str, clusterfile: &clusterfile::Clusterfile) {
        self.started.store(true, Ordering::Relaxed);
        self.observer.event(Event::Started {
            command: command.to_owned(),
            cluster: clusterfile.cluster.name.clone(),
            image: clusterfile.cluster.image.clone(),
            version: env!("CARGO_PKG_VERSION"),
        });
    }

    /// Tells that everything has ended, and writes the report. What is said about that changes no exit code. A second end, when a
    /// user interrupts what is ending, waits for the first and does nothing.
    pub fn ended(&self, exit: u8) {
        let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *over, true) {
            return;
        }
        self.out.finish();
        if self.started.load(Ordering::Relaxed) {
            let took = self.start.elapsed();
            self.observer.event(Event::Ended { exit, took });
        }
        match self.recording.as_ref().map(|recording| recording.write()) {
            Some(Ok(path)) => self.out.note(format!("report: {}", path.display())),
            Some(Err(error)) => self.out.error(&format!("{error:#}")),
            None => {}
        }
        if let (1 | INTERRUPTED.., Some(path)) = (exit, self.log.path()) {
            self.out.note(format!("  log: {}", path.display()));
        }
    }
}

/// The folder of the image store.
pub fn store(globals: &Globals) -> PathBuf {
    globals.store.clone().unwrap_or_else(default_store)
}

/// Where it is unless the user says otherwise.
pub fn default_store() -> PathBuf {
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute());
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".local/share");
    data.unwrap_or_else(home).join("installer/store")
}
