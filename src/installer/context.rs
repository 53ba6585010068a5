//! What every command gets: where the images are, whom SSH trusts, and the terminal.

use crate::{
    cli::Globals,
    output::{Format, Output},
};
use bootstrap::{bandwidth::Bandwidth, fan, session::Aliases};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

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
}

impl Context {
    /// From the global flags.
    pub fn new(globals: &Globals, format: Format) -> Self {
        if let Some(hosts) = globals.concurrency {
            fan::limit(hosts);
        }
        Self {
            out: Output::new(format, globals.quiet, globals.verbose),
            store: globals.store.clone().unwrap_or_else(default_store),
            known_hosts: globals.known_hosts.iter().cloned().collect(),
            accept_new_host_keys: globals.accept_new_host_keys,
            ssh_config: globals.ssh_config.clone(),
            aliases: OnceLock::new(),
            bandwidth: globals.bandwidth.map(Bandwidth::new),
        }
    }
}

fn default_store() -> PathBuf {
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute());
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".local/share");
    data.unwrap_or_else(home).join("installer/store")
}
