//! What a host tells of itself: its runs, what differs from what was applied, its certificates.

use crate::effect::Action;
use serde::{Deserialize, Serialize};

/// Who changes a host, when and to what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunMark {
    /// `installer apply of demo by ann@laptop`.
    pub who: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The cluster image, if the run brings one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<oci::Digest>,
    /// `master` or `node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
}

/// Who made a difference from before the first change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// The installation, or a program it runs.
    #[default]
    Ours,
    /// A pod, as a volume of the type `hostPath`.
    Pods,
    /// Neither: whoever else works on the host.
    Others,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RunEnd {
    /// All was done: what was applied is all that shall be on the host.
    Done,
    /// All was done, but the run was about a part of the host only: the rest stays as it was applied before.
    PartDone,
    /// Something failed; the next run goes on from there.
    Failed,
    /// Something failed, and what the run had changed was undone.
    Undone,
}

impl RunEnd {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done | Self::PartDone => "done",
            Self::Failed => "failed",
            Self::Undone => "failed and undone",
        }
    }
}

/// A run as the journal tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunNote {
    /// Who, when, what.
    #[serde(flatten)]
    pub mark: RunMark,
    /// How it ended; absent: it is under way, or was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<RunEnd>,
    /// When it ended, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
}

/// What differs from what was applied last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriftReport {
    /// The run that is compared with; absent: nothing was ever applied to its end, or by a version that did not remember it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<RunMark>,
    /// How many things were compared.
    pub compared: usize,
    /// What differs.
    pub items: Vec<DriftItem>,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriftItem {
    /// A path, `unit installer-agent.service`, `sysctl net.ipv4.ip_forward`.
    pub what: String,
    /// What an apply would do about it.
    pub action: Action,
    /// What is the matter.
    pub detail: String,
    /// What would bring it back, of text files that are not secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

/// A certificate, as far as the public may know it anyway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateInfo {
    /// The file it is in.
    pub path: String,
    /// `CN=kubernetes-admin, O=system:masters`.
    pub subject: String,
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// Who signed it, as `subject`.
    pub issuer: String,
    /// Whether it is an authority's own.
    pub authority: bool,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}
