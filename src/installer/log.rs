//! Logs: on stderr for those who look for a fault, and always in a file that tells afterwards what a run did. Secrets are taken out
//! of the file.
//!
//! The files of the last runs lie in `${XDG_STATE_HOME:-~/.local/state}/installer/logs`, bounded in number and size.

use anyhow::Context as _;
use bootstrap::{
    event::{Event, Observer},
    redact::Redactor,
};
use clusterfile::Clusterfile;
use std::{
    fs::{File, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};
use tracing_subscriber::{
    EnvFilter, Layer as _, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Logs that are kept of each command.
const RUNS: usize = 10;
/// Bytes that all logs together may have.
const TOTAL: u64 = 100 << 20;
/// Bytes that one log may have.
const LARGEST: u64 = 10 << 20;
/// What the file is told: everything of ours; of libraries what is not about every packet.
const IN_FILE: &str = "debug,russh=info,hyper=info,hyper_util=info,h2=info,rustls=info,tower=info,kube_client=info,reqwest=info,mio=info,tungstenite=info";
/// Under these names events and what was said to the user are logged: only in files.
const SAID: &str = "installer::said";
const EVENT: &str = "installer::event";

/// The log of this run. Cheap to clone.
#[derive(Clone, Default)]
pub struct Log {
    sinks: Arc<Mutex<Vec<Sink>>>,
    redactor: Arc<RwLock<Redactor>>,
    /// The file that users are told of.
    path: Option<PathBuf>,
}

struct Sink {
    file: File,
    /// How many bytes may still be written.
    left: u64,
}

impl Log {
    /// Begins to log. `command` has a file among those of the last runs unless absent; `extra` is a file of the user's.
    ///
    /// # Errors
    /// When the user's file cannot be written. That there is no place for the other is no reason to fail.
    pub fn start(command: Option<&str>, extra: Option<&Path>, verbose: u8) -> anyhow::Result<Self> {
        let mut log = Self::default();
        let mut sinks = Vec::new();
        if let Some(path) = extra {
            let file = created(path).with_context(|| {
                format!(
                    "cannot write the log file {}: choose a file in a folder that is there and yours",
                    path.display()
                )
            })?;
            sinks.push(Sink { file, left: u64::MAX });
            log.path = Some(path.to_path_buf());
        }
        if let Some((file, path)) = command.and_then(|command| of_run(&state_folder()?, command).ok()) {
            sinks.push(Sink { file, left: LARGEST });
            log.path.get_or_insert(path);
        }
        log.sinks = Arc::new(Mutex::new(sinks));
        log.subscribe(verbose);
        Ok(log)
    }

    fn subscribe(&self, verbose: u8) {
        let default = ["error", "info", "debug", "trace"][usize::from(verbose).min(3)];
        // What the verifier has to say is part of our own errors.
        let default = format!("{default},rustls_platform_verifier=off");
        let mut shown = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        for target in [SAID, EVENT] {
            if let Ok(off) = format!("{target}=off").parse() {
                shown = shown.add_directive(off);
            }
        }
        let stderr = tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            // Colours are for terminals, and not for those who asked for none.
            .with_ansi(console::colors_enabled_stderr())
            .with_target(verbose > 1)
            .with_filter(shown);
        let file = tracing_subscriber::fmt::layer()
            .with_writer(self.clone())
            .with_ansi(false)
            .with_filter(EnvFilter::new(IN_FILE));
        // A second one in the same process (tests) is not possible and not needed.
        let _ = tracing_subscriber::registry().with(stderr).with(file).try_init();
    }

    /// Learns what is secret in a Clusterfile.
    pub fn know(&self, clusterfile: &Clusterfile) {
        self.redactor
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .know(clusterfile);
    }

    /// A text without secrets.
    pub fn clean(&self, text: &str) -> String {
        let redactor = self.redactor.read().unwrap_or_else(PoisonError::into_inner);
        redactor.text(text).into_owned()
    }

    /// The logs of the runs before this one, the latest first.
    pub fn before(&self) -> Vec<PathBuf> {
        let entries = state_folder().and_then(|folder| std::fs::read_dir(folder).ok());
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        let own = format!("-{}-", std::process::id());
        let mut logs: Vec<PathBuf> = paths
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.ends_with(".log") && !name.contains(&own)
            })
            .collect();
        logs.sort();
        logs.reverse();
        logs
    }

    /// The file that tells what this run did.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

/// What was said to the user, for the file.
pub fn said(text: &str) {
    tracing::debug!(target: SAID, "{}", console::strip_ansi_codes(text));
}

/// Events, for the file.
pub struct Logged;

impl Observer for Logged {
    fn event(&self, event: Event) {
        if !matches!(event, Event::BytesSent { .. })
            && let Ok(text) = serde_json::to_string(&event)
        {
            tracing::debug!(target: EVENT, "{text}");
        }
    }
}

impl Write for Log {
    /// One event of the log at a time, so that a secret of several lines is seen as a whole.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let redactor = self.redactor.read().unwrap_or_else(PoisonError::into_inner);
        let text = redactor.text(&text);
        for sink in self.sinks.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            sink.write(&text);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    /// A log that cannot be written is no reason to fail.
    fn write(&mut self, text: &str) {
        let length = text.len() as u64;
        if length <= self.left {
            self.left -= length;
            let _ = self.file.write_all(text.as_bytes());
        } else if self.left > 0 {
            self.left = 0;
            let _ = self.file.write_all(b"this log is full; --log-file FILE has no bound\n");
        }
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

fn created(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// `${XDG_STATE_HOME:-~/.local/state}/installer/logs`; none without a home.
fn state_folder() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("installer/logs"))
}

/// Makes the log of a run, and room for it.
fn of_run(folder: &Path, command: &str) -> io::Result<(File, PathBuf)> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut files: Vec<(String, u64)> = Vec::new();
    for entry in std::fs::read_dir(folder)?.flatten() {
        let (name, length) = (entry.file_name(), entry.metadata().map_or(0, |data| data.len()));
        files.extend(
            name.into_string()
                .ok()
                .filter(|name| name.ends_with(".log"))
                .map(|name| (name, length)),
        );
    }
    for path in surplus(files, command).into_iter().map(|name| folder.join(name)) {
        if !is_written(&path) {
            let _ = std::fs::remove_file(path);
        }
    }
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    let path = folder.join(format!("{time}-{}-{command}.log", std::process::id()));
    let file = created(&path)?;
    // Where a file system knows no locks a log is kept by its age alone.
    let _ = file.try_lock();
    Ok((file, path))
}

/// Whether the run that writes a log is still under way.
fn is_written(path: &Path) -> bool {
    let locked = File::open(path).map(|file| file.try_lock());
    matches!(locked, Ok(Err(TryLockError::WouldBlock)))
}

/// Which logs go before one more of `command` is written: its oldest, then the oldest of all while they are too large together.
/// Names begin with their time.
fn surplus(mut files: Vec<(String, u64)>, command: &str) -> Vec<String> {
    files.sort();
    let end = format!("-{command}.log");
    let own = files.iter().filter(|(name, _)| name.ends_with(&end)).count();
    let mut gone: Vec<String> = Vec::new();
    for (name, _) in files
        .iter()
        .filter(|(name, _)| name.ends_with(&end))
        .take((own + 1).saturating_sub(RUNS))
    {
        gone.push(name.clone());
    }
    files.retain(|(name, _)| !gone.contains(name));
    let mut total: u64 = files.iter().map(|(_, length)| length).sum();
    for (name, length) in files {
        if total + LARGEST <= TOTAL {
            break;
        }
        total -= length;
        gone.push(name);
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(command: &str, count: usize) -> Vec<(String, u64)> {
        (0..count)
            .map(|i| (format!("20260101T0000{i:02}Z-7-{command}.log"), 10))
            .collect()
    }

    #[test]
    fn each_command_keeps_its_last_runs_and_checks_push_no_apply_out() {
        let mut files = names("check", 12);
        files.extend(names("apply", 3));
        let gone = surplus(files.clone(), "check");
        assert_eq!(
            gone,
            [
                "20260101T000000Z-7-check.log",
                "20260101T000001Z-7-check.log",
                "20260101T000002Z-7-check.log"
            ]
        );
        assert!(surplus(files, "apply").is_empty());
        assert!(surplus(Vec::new(), "apply").is_empty());
    }

    #[test]
    fn the_oldest_go_when_all_are_too_large_together() {
        let files: Vec<(String, u64)> = (0..12)
            .map(|i| (format!("20260101T0000{i:02}Z-7-c{i}.log"), LARGEST))
            .collect();
        let gone = surplus(files, "apply");
        assert_eq!(gone.len(), 3, "nine, and room for one more");
        assert!(gone[0].contains("-c0."));
    }

    #[test]
    fn the_log_of_a_run_that_goes_on_stays_however_many_others_end() {
        let folder = tempfile::tempdir().unwrap();
        let (_running, first) = of_run(folder.path(), "apply").unwrap();
        let oldest = folder.path().join("20000101T000000Z-1-apply.log");
        std::fs::rename(&first, &oldest).unwrap();
        for n in 0..2 * RUNS {
            std::fs::write(folder.path().join(format!("20000102T0000{n:02}Z-2-apply.log")), "").unwrap();
        }
        drop(of_run(folder.path(), "apply").unwrap());
        assert!(oldest.exists());
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, RUNS + 1, "and no other stays for it");
    }

    #[test]
    fn a_log_is_bounded_private_and_without_secrets() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let (file, path) = of_run(&folder.path().join("logs"), "apply").unwrap();
        let mut log = Log::default();
        log.sinks.lock().unwrap().push(Sink { file, left: 60 });
        log.redactor.write().unwrap().add("hunter2!");
        log.write_all(b"sudo says hunter2! and password=abc\n").unwrap();
        log.write_all(b"0123456789 0123456789 0123456789\n").unwrap();
        log.write_all(b"more\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let full = "this log is full; --log-file FILE has no bound\n";
        assert_eq!(text, format!("sudo says (redacted) and password=(redacted)\n{full}"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
