//! What is told while work goes on. The crate knows no terminal: whoever shows it implements [`Observer`].

use crate::{
    airgap::Proof,
    plan::{Moved, Plan},
    preflight::Finding,
    reset::{HostReset, Removed},
    run::Timing,
    verify::Check,
};
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// One thing that happened. Programs read these: a change here is one of `docs/output.md` and `docs/events.schema.json`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Event {
    /// A command began; the first event.
    Started {
        /// Name of the command.
        command: String,
        /// Name of the cluster.
        cluster: String,
        /// The cluster image the Clusterfile names.
        image: String,
        /// Version of this program.
        version: &'static str,
    },
    /// Preflight found something.
    Finding {
        /// What.
        finding: Finding,
    },
    /// What is going to be done.
    Plan {
        /// All of it.
        plan: Box<Plan>,
    },
    /// `clusterd` was put on a host that lacked it, or had another one; told when an apply begins.
    Program {
        /// The host.
        host: String,
        /// Size of the program, though it goes compressed.
        bytes: u64,
        /// How many of these came from another host: the rest left this machine.
        #[serde(rename = "fromPeers")]
        from_peers: u64,
        /// How long it took, with the waiting for a host to get it from.
        #[serde(serialize_with = "millis", rename = "ms")]
        took: Duration,
    },
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
        /// Bytes it brought to the host.
        bytes: u64,
        /// How many of these came from other hosts: the rest left this machine.
        #[serde(rename = "fromPeers")]
        from_peers: u64,
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
    /// So many bytes will be brought to a host, from this machine or from other hosts.
    BytesExpected {
        /// The host.
        host: String,
        /// How many.
        bytes: u64,
    },
    /// So many more bytes arrived on a host. Each byte of a blob is told once per host, wherever it came from and however often; what
    /// of it left this machine is told when the phase ends ([`Event::PhaseDone`]).
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
    /// Whether something works was looked at.
    Check(Check),
    /// All that was looked at.
    Checked {
        /// Whether all is well.
        ok: bool,
        /// How many checks passed.
        passed: usize,
        /// How many did not.
        failed: usize,
        /// How long it took.
        #[serde(serialize_with = "millis", rename = "ms")]
        took: Duration,
    },
    /// How long a phase took; told once more for all phases when an apply is done.
    Timing {
        /// Name of the phase.
        phase: &'static str,
        /// The host; absent: the cluster.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// When it began, after the start of the first phase.
        #[serde(serialize_with = "millis", rename = "beganMs")]
        began: Duration,
        /// How long it took.
        #[serde(serialize_with = "millis", rename = "ms")]
        took: Duration,
        /// How many things it changed.
        changes: usize,
        /// Bytes it brought to the host.
        bytes: u64,
        /// How many of these came from other hosts: the rest left this machine.
        #[serde(rename = "fromPeers")]
        from_peers: u64,
    },
    /// A host was reset.
    Reset {
        /// What was done there.
        result: HostReset,
    },
    /// A node was taken out of the cluster without its host.
    Removed {
        /// Which, and what became of it.
        removed: Removed,
    },
    /// Something is not as it was when the plan that shall be applied was made.
    Moved {
        /// What.
        moved: Moved,
    },
    /// What a host counted and refused of what would have left the cluster's addresses.
    AirGap {
        /// What.
        proof: Proof,
    },
    /// What was wished is so.
    Done {
        /// How many things were changed.
        changes: usize,
        /// How long it took.
        #[serde(serialize_with = "millis", rename = "ms")]
        took: Duration,
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
    /// The command failed.
    Error {
        /// What failed.
        message: String,
        /// Why, outermost first.
        causes: Vec<String>,
    },
    /// The command ended; the last event.
    Ended {
        /// The code it exits with.
        exit: u8,
        /// How long it took.
        #[serde(serialize_with = "millis", rename = "ms")]
        took: Duration,
    },
}

impl From<&Timing> for Event {
    fn from(timing: &Timing) -> Self {
        Self::Timing {
            phase: timing.phase,
            host: timing.host.clone(),
            began: timing.began,
            took: timing.took,
            changes: timing.changes,
            bytes: timing.bytes,
            from_peers: timing.from_peers,
        }
    }
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

/// Tells several others, in order.
pub struct All(pub Vec<Arc<dyn Observer>>);

impl Observer for All {
    fn event(&self, event: Event) {
        let Some((last, others)) = self.0.split_last() else {
            return;
        };
        for other in others {
            other.event(event.clone());
        }
        last.event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Kept(Mutex<Vec<String>>);

    impl Observer for Kept {
        fn event(&self, event: Event) {
            self.0.lock().unwrap().push(serde_json::to_string(&event).unwrap());
        }
    }

    #[test]
    fn all_observers_are_told_the_same_in_the_same_order() {
        let kept: Vec<Arc<Kept>> = (0..3).map(|_| Arc::new(Kept(Mutex::default()))).collect();
        let all = All(kept.iter().map(|one| Arc::clone(one) as Arc<dyn Observer>).collect());
        for bytes in [1, 2] {
            all.event(Event::BytesSent {
                host: "m1".into(),
                bytes,
            });
        }
        for one in &kept {
            let told = one.0.lock().unwrap();
            assert_eq!(told.len(), 2);
            assert!(
                told[0].contains("\"bytes\":1") && told[1].contains("\"bytes\":2"),
                "{told:?}"
            );
        }
        All(Vec::new()).event(Event::BytesSent {
            host: "m1".into(),
            bytes: 1,
        });
    }
}
