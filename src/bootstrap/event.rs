//! What is told while work goes on. The crate knows no terminal: whoever shows it implements [`Observer`].

use serde::Serialize;
use std::time::Duration;

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Event {
    /// A phase began on a host, or for the cluster as a whole.
    PhaseStarted {
        /// Name of the phase.
        phase: &'static str,
        /// What it does, for people.
        title: &'static str,
        /// The host; absent: the cluster.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// A phase ended well.
    PhaseDone {
        /// Name of the phase.
        phase: &'static str,
        /// The host; absent: the cluster.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// How many things it changed.
        changes: usize,
        /// Bytes it sent.
        bytes: u64,
        /// How long it took.
        #[serde(serialize_with = "millis", rename = "ms")]
        took: Duration,
    },
    /// A phase failed; the error itself is returned.
    PhaseFailed {
        /// Name of the phase.
        phase: &'static str,
        /// The host; absent: the cluster.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// Why.
        message: String,
    },
    /// So many bytes will be sent to a host.
    BytesExpected {
        /// The host.
        host: String,
        /// How many.
        bytes: u64,
    },
    /// So many more bytes arrived on a host.
    BytesSent {
        /// The host.
        host: String,
        /// How many more.
        bytes: u64,
    },
    /// All is done for a host.
    HostDone {
        /// The host.
        host: String,
        /// In a few words.
        message: String,
    },
    /// Something of the user's that runs on a host wrote a line.
    Output {
        /// The host; absent: this machine.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// What runs.
        what: String,
        /// Where it wrote to.
        stream: host::proto::Stream,
        /// The line.
        line: String,
    },
    /// Something worth a line.
    Note {
        /// The host; absent: the cluster.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// What.
        message: String,
    },
    /// Something the user should know though it stops nothing.
    Warning {
        /// The host; absent: the cluster.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// What.
        message: String,
    },
}

fn millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Whoever is told. Called from many tasks at once; must not block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event);
}

/// Nobody is told.
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _event: Event) {}
}
