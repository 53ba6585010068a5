//! What a run has left on the host, remembered so that anybody can ask later what differs from it. Neither the Clusterfile nor the image is
//! needed for that, and what a Clusterfile says by now does not matter.
//!
//! Effects are remembered as they are and looked at again by the same code that previews a plan. Of content that is secret only a
//! digest is kept; the file lies beside the journal, for root only.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Gate;
use crate::{
    Effect, Error, Result,
    effect::{Action, Cert},
    fsops,
    proto::{DriftItem, DriftReport, RunMark},
};

/// Its name below `<dataRoot>/<cluster>`.
const NAME: &str = "applied.json";
/// What the run that is under way has applied so far, a line each: so a run goes on when its connection was lost.
const SO_FAR: &str = "applied.partial";
/// Largest record that is read back.
const MAX_RECORDS: u64 = 256 << 20;
/// Largest file whose content is compared.
const MAX_FILE: u64 = 64 << 20;

/// How one thing was left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Record {
    /// As an effect that says all of it.
    Effect(Effect),
    /// A file whose content is nobody's business.
    Secret {
        path: String,
        mode: u32,
        digest: oci::Digest,
    },
}

impl Record {
    /// What it is about: a later record with the same key replaces an earlier one.
    fn key(&self) -> String {
        match self {
            Self::Secret { path, .. } => format!("path {path}"),
            Self::Effect(effect) => key(effect),
        }
    }
}

fn key(effect: &Effect) -> String {
    match effect {
        Effect::Link { path, .. } | Effect::Absent { path } | Effect::Key { path } => format!("path {path}"),
        Effect::File(file) => format!("path {}", file.path),
        Effect::Ca(ca) => format!("path {}", ca.cert),
        Effect::Cert(cert) => format!("path {}", cert.cert),
        Effect::ServiceAccountKey { key, .. } => format!("path {key}"),
        Effect::Kubeconfig(config) => format!("path {}", config.path),
        Effect::Dir(dir) => format!("dir {}", dir.path),
        Effect::Sysctl { key, .. } => format!("sysctl {key}"),
        Effect::Module { name } => format!("module {name}"),
        Effect::Unit(unit) => format!("unit {}", unit.name),
        Effect::Hosts { .. } => "hosts".to_owned(),
        Effect::SwapOff => "swap".to_owned(),
        Effect::Rootfs(_) => "rootfs".to_owned(),
        Effect::Layout { .. } => "layout".to_owned(),
        Effect::Fence(_) | Effect::NoFence => "fence".to_owned(),
    }
}

/// A line of [`SO_FAR`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    /// The first: which run it is.
    Run(RunMark),
    /// Something was applied.
    Put(Record),
    /// Something that was applied for a moment only is gone.
    Drop(String),
}

/// All that a run left, and which run it was.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Records {
    since: RunMark,
    records: Vec<Record>,
}

impl Records {
    fn of(mark: RunMark) -> Self {
        Self {
            since: mark,
            records: Vec::new(),
        }
    }

    /// Of a run that begins.
    pub(crate) fn begin(mark: RunMark, home: &Path) -> Result<Self> {
        fsops::sweep(&home.join(SO_FAR))?;
        append(home, &Line::Run(mark.clone()))?;
        Ok(Self::of(mark))
    }

    /// Of a run that goes on; nothing if none was begun. What a power cut tore off is not compared later.
    pub(crate) fn resume(home: &Path) -> Result<Option<Self>> {
        let bytes = fsops::read_small(&home.join(SO_FAR), MAX_RECORDS)?.unwrap_or_default();
        let mut lines = bytes
            .split(|byte| *byte == b'\n')
            .map_while(|line| serde_json::from_slice(line).ok());
        let Some(Line::Run(mark)) = lines.next() else {
            return Ok(None);
        };
        let mut records = Self::of(mark);
        for line in lines {
            match line {
                Line::Run(_) => {}
                Line::Put(record) => records.put(record),
                Line::Drop(key) => records.records.retain(|record| record.key() != key),
            }
        }
        Ok(Some(records))
    }

    /// Ends a run's being under way.
    pub(crate) fn forget(home: &Path) -> Result<()> {
        fsops::sweep(&home.join(SO_FAR))
    }

    fn read(home: &Path) -> Result<Option<Self>> {
        let path = home.join(NAME);
        let Some(bytes) = fsops::read_small(&path, MAX_RECORDS)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::corrupt(format!("{}: {e}; run installer apply again", path.display())))
    }

    /// Takes the place of what was remembered before.
    pub(crate) fn write(&self, home: &Path) -> Result<()> {
        let json = zeroize::Zeroizing::new(serde_json::to_vec(self).map_err(|e| Error::invalid(e.to_string()))?);
        fsops::write_atomic(&home.join(NAME), &json, 0o600, None)
    }

    /// Takes the place of what it is about; the rest is remembered as it was.
    pub(crate) fn write_over(self, home: &Path) -> Result<()> {
        let mut all = Self::read(home)?.unwrap_or_else(|| Self::of(self.since.clone()));
        for record in self.records {
            all.put(record);
        }
        all.write(home)
    }

    fn put(&mut self, record: Record) {
        let key = record.key();
        match self.records.iter_mut().find(|old| old.key() == key) {
            Some(old) => *old = record,
            None => self.records.push(record),
        }
    }
}

impl Gate {
    /// Remembers an effect that has become true, if a run is under way.
    pub(crate) fn remember(&mut self, effect: &Effect) -> Result<()> {
        if self.applied.is_none() {
            return Ok(());
        }
        let record = match effect {
            Effect::File(file) if file.secret => Record::Secret {
                path: file.path.clone(),
                mode: file.mode,
                digest: oci::Digest::of(file.content.bytes()),
            },
            Effect::Kubeconfig(config) if config.token.is_some() => {
                let bytes = fsops::read_small(&self.root.path(&config.path)?, MAX_FILE)?.map(zeroize::Zeroizing::new);
                Record::Secret {
                    path: config.path.clone(),
                    mode: 0o600,
                    digest: oci::Digest::of(&bytes.unwrap_or_default()),
                }
            }
            other => Record::Effect(other.clone()),
        };
        // That something of ours was needed for a moment only is no news.
        let passing = match effect {
            Effect::Absent { path } => path.starts_with(&format!("{}/", self.scope.dir())),
            Effect::Fence(_) | Effect::NoFence => true,
            _ => false,
        };
        let home = self.home()?;
        let Some(applied) = &mut self.applied else {
            return Ok(());
        };
        if passing {
            let key = record.key();
            applied.records.retain(|old| old.key() != key);
            return append(&home, &Line::Drop(key));
        }
        append(&home, &Line::Put(record.clone()))?;
        applied.put(record);
        Ok(())
    }

    /// What differs from what the last run left.
    pub(crate) fn drift(&self) -> Result<DriftReport> {
        let Some(records) = Records::read(&self.home()?)? else {
            return Ok(DriftReport::default());
        };
        Ok(DriftReport {
            compared: records.records.len(),
            items: records
                .records
                .iter()
                .filter_map(|record| self.differs(record))
                .collect(),
            since: Some(records.since),
        })
    }

    /// What the last run left, without what is secret and without the image layout, which is large and asked of the layout itself.
    pub(crate) fn public_effects(&self) -> Result<Vec<Effect>> {
        let records = Records::read(&self.home()?)?.map(|records| records.records);
        let effects = records
            .unwrap_or_default()
            .into_iter()
            .filter_map(|record| match record {
                Record::Secret { .. } | Record::Effect(Effect::Layout { .. }) => None,
                Record::Effect(effect) => Some(effect),
            });
        Ok(effects.collect())
    }

    fn differs(&self, record: &Record) -> Option<DriftItem> {
        let looked = match record {
            Record::Secret { path, mode, digest } => return self.secret_differs(path, *mode, digest),
            // That its end is near is the business of checking certificates.
            Record::Effect(Effect::Cert(cert)) => self.preview(&Effect::Cert(Cert {
                renew_days: 0,
                ..cert.clone()
            })),
            Record::Effect(effect) => self.preview(effect),
        };
        match looked {
            Ok(change) => change.changed().then(|| DriftItem {
                detail: told(change.action, &change.detail),
                what: change.what,
                action: change.action,
                diff: change.diff,
            }),
            Err(error) => Some(DriftItem {
                what: record.key(),
                action: Action::Modify,
                detail: error.to_string(),
                diff: None,
            }),
        }
    }

    fn secret_differs(&self, path: &str, mode: u32, digest: &oci::Digest) -> Option<DriftItem> {
        use std::os::unix::fs::PermissionsExt as _;
        let item = |action, detail: String| DriftItem {
            what: path.to_owned(),
            action,
            detail,
            diff: None,
        };
        let read = || -> Result<Option<(oci::Digest, u32)>> {
            let at = self.root.path(path)?;
            let Some(bytes) = fsops::read_small(&at, MAX_FILE)? else {
                return Ok(None);
            };
            let meta = fs::metadata(&at).map_err(Error::io(&at))?;
            let digest = oci::Digest::of(&zeroize::Zeroizing::new(bytes));
            Ok(Some((digest, meta.permissions().mode() & 0o7777)))
        };
        match read() {
            Err(error) => Some(item(Action::Modify, error.to_string())),
            Ok(None) => Some(item(Action::Create, "it is gone".to_owned())),
            Ok(Some((now, _))) if now != *digest => {
                Some(item(Action::Modify, "its content differs (secret)".to_owned()))
            }
            Ok(Some((_, now))) if now != mode => Some(item(Action::Modify, format!("mode {now:o} → {mode:o}"))),
            Ok(Some(_)) => None,
        }
    }
}

fn append(home: &Path, line: &Line) -> Result<()> {
    let path: PathBuf = home.join(SO_FAR);
    let mut text = zeroize::Zeroizing::new(serde_json::to_vec(line).map_err(|e| Error::invalid(e.to_string()))?);
    text.push(b'\n');
    let opened = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    opened
        .and_then(|mut file| file.write_all(&text))
        .map_err(Error::io(&path))
}

/// What an apply would do, as what is the matter.
fn told(action: Action, detail: &str) -> String {
    match action {
        Action::Create => format!("it is gone ({detail})").replace(" ()", ""),
        Action::Remove => "it is there again".to_owned(),
        Action::Modify | Action::None => detail.to_owned(),
    }
}
