//! What a host is, as found, without judging it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) mod collect;
pub(crate) mod kernel;
pub(crate) mod parse;

/// The resolver file with the servers that systemd-resolved itself asks; `/etc/resolv.conf` names only its stub on the loopback then
/// (systemd-resolved.service(8)).
pub const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// What to look at beyond the fixed things.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Query {
    /// Paths (existing or not) whose file system's free space is wanted.
    #[serde(default)]
    pub disks: Vec<String>,
    /// TCP ports of interest.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Further paths whose existence is wanted, beyond the well-known leftovers.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Names that the host shall try to resolve.
    #[serde(default)]
    pub names: Vec<String>,
    /// A path (existing or not) whose file system's time for a small durable write is wanted. Taken only where nothing of ours is, and
    /// without leaving anything.
    #[serde(default)]
    pub fsync: Option<String>,
}

/// A host as found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// `/etc/os-release`: `ID`, `VERSION_ID`, `PRETTY_NAME`, ….
    pub os: BTreeMap<String, String>,
    /// As Go names it: `amd64`, `arm64`; else as the kernel does.
    pub arch: String,
    /// `uname -r`.
    pub kernel: String,
    /// Node name of the kernel.
    pub hostname: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`: differs after every boot.
    pub boot_id: String,
    /// Processors we may run on.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes of memory that can be had.
    pub memory_available: u64,
    /// Active swap areas.
    pub swaps: Vec<String>,
    /// One per queried path, in the same order.
    pub disks: Vec<Disk>,
    /// systemd.
    pub systemd: Systemd,
    /// cgroups.
    pub cgroup: Cgroup,
    /// Kernel features; name → available (loaded, built in, or loadable): `overlay`, `vxlan`, `nf_tables`, `veth`, `br_netfilter`, `nf_conntrack`.
    pub features: BTreeMap<String, bool>,
    /// Effective capabilities by name: `CAP_SYS_RESOURCE`, ….
    pub capabilities: Vec<String>,
    /// Whether lowering `oom_score_adj` works (it needs `CAP_SYS_RESOURCE`).
    pub can_lower_oom_score: bool,
    /// Addresses with prefix: `eth0` → `10.0.0.1/24`.
    pub addresses: Vec<Address>,
    /// Main-table routes.
    pub routes: Vec<Route>,
    /// Who listens on the queried ports.
    pub listeners: Vec<Listener>,
    /// Wall clock, milliseconds since 1970, when the facts were taken.
    pub time_ms: i64,
    /// Well-known traces of clusters, and queried paths, that exist (a folder counts only when something is in it).
    pub leftovers: Vec<String>,
    /// Container runtimes found, whose they are not ours: name → path of the socket, unit or program.
    pub runtimes: BTreeMap<String, String>,
    /// User of the process.
    pub uid: u32,
    /// Queried name → addresses; empty when it does not resolve.
    pub names: BTreeMap<String, Vec<String>>,
    /// Name servers of `/etc/resolv.conf`.
    pub nameservers: Vec<String>,
    /// Name servers of [`RESOLVED_CONF`]: those that systemd-resolved asks.
    #[serde(default)]
    pub resolved_nameservers: Vec<String>,
    /// Whether SELinux enforces, AppArmor is on.
    pub lsm: Vec<String>,
    /// Our own installations on this host.
    pub installed: Vec<Installed>,
    /// Median time of a small durable write, in microseconds, if it was asked for.
    #[serde(default)]
    pub fsync_us: Option<u64>,
    /// Bits of entropy the kernel has (`/proc/sys/kernel/random/entropy_avail`).
    #[serde(default)]
    pub entropy: u32,
    /// What `/etc/localtime` says: `Europe/Berlin`; `UTC` if it says nothing.
    #[serde(default)]
    pub time_zone: String,
    /// Services that filter packets by rules of their own and run: `firewalld`, `ufw`.
    #[serde(default)]
    pub firewalls: Vec<String>,
}

impl Facts {
    /// The route to everywhere, if there is one.
    pub fn default_route(&self) -> Option<&Route> {
        self.routes.iter().find(|r| r.destination == "default")
    }
}

/// Space of a file system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// The path asked for.
    pub path: String,
    /// Bytes in all.
    pub total: u64,
    /// Bytes root may still write.
    pub free: u64,
    /// Free inodes.
    pub free_inodes: u64,
    /// Inodes in all; 0 where the file system does not count them.
    #[serde(default)]
    pub inodes: u64,
    /// `ext4`, `xfs`, `overlay`, …, as the mount table names it.
    pub filesystem: String,
}

/// The service manager.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Systemd {
    /// Major version; 0 when it is not running.
    pub version: u32,
    /// `running`, `degraded`, `starting`, ….
    pub state: String,
    /// Units in state failed.
    pub failed: Vec<String>,
}

/// Control groups as mounted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cgroup {
    /// How they are mounted.
    pub mode: CgroupMode,
    /// Controllers usable by us.
    pub controllers: Vec<String>,
}

/// How control groups are mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupMode {
    /// Not at all.
    #[default]
    None,
    /// Version 1 only.
    V1,
    /// Controllers on version 1, systemd's own tree on version 2.
    Hybrid,
    /// Version 2 only.
    V2,
}

/// An address of an interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// Interface.
    pub interface: String,
    /// Address.
    pub ip: String,
    /// Prefix length.
    pub prefix: u8,
    /// The interface's largest packet, in bytes; 0 if unknown.
    #[serde(default)]
    pub mtu: u32,
}

/// A route of the main table.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// `default` or `a.b.c.d/n`.
    pub destination: String,
    /// Next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Number of the routing protocol (`rtnetlink(7)`): who made it.
    pub protocol: u8,
}

/// A listening socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Port.
    pub port: u16,
    /// Local address.
    pub address: String,
    /// Process id, when it can be found.
    pub pid: Option<u32>,
    /// Name of the process.
    pub process: String,
    /// systemd unit of the process.
    pub unit: String,
}

/// An installation of ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    /// Name of the cluster.
    pub cluster: String,
    /// Its data root.
    pub data_root: String,
    /// Digest (12 digits) of the current rootfs.
    pub rootfs: Option<String>,
    /// Digests of the manifests in this host's layout.
    pub images: Vec<String>,
    /// Entries of the journal.
    pub journal_entries: u64,
    /// Whether an undo was begun and not finished.
    pub undoing: bool,
}
