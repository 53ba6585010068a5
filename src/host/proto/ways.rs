//! Whether one host reaches another: what is listened on for a moment, and what became of knocking there.

use super::Token;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Listening for a moment, so that others can knock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listen {
    /// The host's own address.
    pub address: Ipv4Addr,
    /// On which ports; one that is in use is left out.
    pub ports: Vec<u16>,
    /// What each connection is told, and nothing else: at most [`MAX_TOKEN`] bytes.
    pub token: String,
    /// Limit in milliseconds.
    pub timeout_ms: u64,
}

/// Knocking at ports of other hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KnockAt {
    /// Where; at most [`MAX_DOORS`].
    pub doors: Vec<Door>,
    /// How long each may keep silent, in milliseconds.
    pub timeout_ms: u64,
}

/// A port of another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Door {
    /// Where.
    pub at: SocketAddrV4,
    /// What must be answered there; absent: that somebody listens is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// What became of knocking.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Knocked {
    /// Who was expected is there.
    Reached,
    /// The connection was refused.
    Refused,
    /// Nothing came back in time.
    Silent,
    /// Somebody else answered.
    Other,
    /// The system said no, in its words.
    Failed(String),
}

/// Giving the file of the running program to one host that has none yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GiveProgram {
    /// The host's own address.
    pub address: Ipv4Addr,
    /// What the one who is given it shows first, on a line of its own, and after it ` gzip` if the file shall come compressed:
    /// 1 to [`MAX_TOKEN`] bytes.
    pub token: Token,
    /// Limit in milliseconds, for waiting and giving together.
    pub timeout_ms: u64,
}

/// Longest token.
pub const MAX_TOKEN: usize = 128;
/// Ports listened on at once.
pub const MAX_PORTS: usize = 32;
/// Doors knocked at with one request.
pub const MAX_DOORS: usize = 4096;
