//! What may be done to a host, the protocol to ask for it, and the journal that undoes it.
//!
//! One library for both sides. On the operator's side [`Client`] speaks over any byte stream (an SSH channel); on the host
//! [`run`] serves the same protocol on stdin and stdout as `clusterd host --stdio`.
//!
//! ```text
//! operator                                   host
//! Client ──frames──▶ stdin ──▶ server ──▶ Gate ──▶ journal (synced first) ──▶ the change
//!        ◀──frames── stdout ◀──
//! ```
//!
//! * **Every mutation goes through [`gate::Gate`]**, which journals the old state before it changes anything; preview and apply
//!   share one code path, so a plan is exact.
//! * **Every request is safe to repeat.** What is already so is not done again and answers [`Action::None`].
//! * Nothing here decides what a cluster needs: that is the `bootstrap` crate's business.

mod arrivals;
mod ask;
mod beat;
mod certs;
mod cli;
mod client;
pub mod effect;
mod error;
mod exec;
pub mod facts;
mod fault;
mod fence;
pub mod frame;
mod fsops;
pub mod gate;
mod give;
pub mod journal;
mod lines;
mod link;
mod lock;
mod netlink;
mod pki;
mod probe;
pub mod proto;
mod redial;
mod server;
mod share;
mod snapshot;
pub mod start;
mod system;
mod tls;
mod undo;
pub mod unpack;
mod ways;

pub use ask::Ears;
pub use cli::{Args, run};
pub use client::{Client, ClientError};
pub use effect::{Action, Change, Content, Effect};
pub use error::{Error, Result};
pub use facts::Facts;
pub use gate::{hosts_begin, hosts_end};
pub use proto::{Hello, Mode, Scope};
pub use redial::{DialError, Dialing, Redial, SILENCE_TIMEOUT, Streams};

/// Where `clusterd` lies on every host, before anything else is there.
pub const CLUSTERD: &str = "/var/lib/installer/clusterd";
/// The gzip that it came as, until it is run.
pub(crate) const CLUSTERD_PACKED: &str = "/var/lib/installer/clusterd.gz";
/// Both, and what is left of them where their coming was cut short: all that goes when nobody needs `clusterd` any more.
pub const CLUSTERD_FILES: [&str; 4] = [
    CLUSTERD,
    "/var/lib/installer/clusterd.part",
    CLUSTERD_PACKED,
    "/var/lib/installer/clusterd.gz.part",
];
/// Where the node agent notes which paths it made for volumes of pods, a JSON string a line.
pub const MADE_BY_PODS: &str = "/var/lib/kubelet/made-by-pods";
/// The link to the rootfs in use.
pub const CURRENT: &str = "/opt/installer";
