//! The changes a host can be asked to make, as values.
//!
//! An [`Effect`] says how something shall be, not what to do: applying it twice is applying it once. The same value is previewed
//! by a plan, applied by an apply, and undone from the journal by a reset.

use oci::Descriptor;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

mod content;
pub use content::Content;

/// How one thing on the host shall be. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", deny_unknown_fields)]
pub enum Effect {
    /// A file with exactly this content, mode and owner. Parent folders are made (0755). Written atomically.
    File(File),
    /// A folder. With `owned`, whatever programs put into it later is ours as well and goes with it on undo.
    Dir(Dir),
    /// A symbolic link; switched atomically. A link or a file in its place is replaced, a folder is refused.
    Link {
        /// Where the link lies.
        path: String,
        /// What it says, as is.
        target: String,
    },
    /// Nothing at this path. What was there is kept in the journal and comes back on undo.
    Absent {
        /// What shall not be there.
        path: String,
    },
    /// Our managed block of `/etc/hosts`, exactly these lines; no lines: no block.
    Hosts {
        /// `address name [alias…]`.
        entries: HostsEntries,
    },
    /// A kernel parameter, now. To have it after a reboot write a file of `/etc/sysctl.d` too.
    Sysctl {
        /// With dots: `net.ipv4.ip_forward`.
        key: String,
        /// As `/proc/sys` shows it.
        value: String,
    },
    /// A kernel module, loaded now (or built in). To have it after a reboot write a file of `/etc/modules-load.d` too.
    Module {
        /// Its name.
        name: String,
    },
    /// No swap, now and after a reboot (`/etc/fstab`'s swap lines become comments).
    SwapOff,
    /// A systemd unit.
    Unit(Unit),
    /// A rootfs unpacked at `<dataRoot>/<cluster>/rootfs/<hex12>` and `/opt/installer` pointing to it. Needs the blobs.
    Rootfs(Rootfs),
    /// `index.json` of this host's image layout.
    Layout {
        /// The whole index.
        index: oci::Index,
    },
    /// A certificate authority: made when absent, else left alone.
    Ca(Ca),
    /// A private key (ECDSA P-256, 0600): made when absent, else left alone.
    Key {
        /// PEM file.
        path: String,
    },
    /// A key and a certificate signed by a CA of this same host; issued anew when absent, when what it says differs, when it is not
    /// this CA's, or fewer than [`Cert::renew_days`] before its end.
    Cert(Cert),
    /// `sa.key` and `sa.pub`: made when absent. The key is RSA-free: ECDSA P-256 (`ES256`).
    ServiceAccountKey {
        /// PEM file of the private key.
        key: String,
        /// PEM file of the public key.
        public: String,
    },
    /// A kubeconfig with embedded certificates, made from files of this host; written anew when they differ.
    Kubeconfig(Kubeconfig),
    /// For a while packets that leave the cluster's addresses are counted and rejected. Needs `nft`, of the rootfs or the host.
    Fence(Fence),
    /// No such fence, whoever left it.
    NoFence,
}

/// Name of the table of [`Effect::Fence`], of nftables' family `inet`.
pub const FENCE_TABLE: &str = crate::fence::TABLE;

/// See [`Effect::Fence`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fence {
    /// Letters and digits that name the run: a fence with another token is replaced, and counting begins anew.
    pub token: String,
    /// IPv4 addresses and blocks that may be reached.
    pub allowed: Vec<String>,
}

/// See [`Effect::File`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// Where.
    pub path: String,
    /// What.
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group, by number; absent: root, or whoever owns the file already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<(u32, u32)>,
    /// Never shown in a diff.
    #[serde(default)]
    pub secret: bool,
}

/// See [`Effect::Dir`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dir {
    /// Where.
    pub path: String,
    /// Permission bits; of an existing folder they are changed only if `owned`.
    pub mode: u32,
    /// Whether its later content is ours. A folder that was there before with something in it is never owned as a whole: then
    /// only what is not in the snapshot goes.
    #[serde(default)]
    pub owned: bool,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostsEntry {
    /// Address.
    pub ip: String,
    /// Names, at least one.
    pub names: Vec<String>,
}

/// Lines of `/etc/hosts`. Every host of a cluster gets the same ones, a line for each host, so they are shared and not copied.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Vec<HostsEntry>")]
pub struct HostsEntries(Arc<[HostsEntry]>);

impl From<Vec<HostsEntry>> for HostsEntries {
    fn from(entries: Vec<HostsEntry>) -> Self {
        Self(entries.into())
    }
}

impl std::ops::Deref for HostsEntries {
    type Target = [HostsEntry];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Serialize for HostsEntries {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// See [`Effect::Unit`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Unit {
    /// `installer-agent.service`.
    pub name: String,
    /// The unit file `/etc/systemd/system/<name>`; absent: the unit is somebody else's and only its state is ours to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Whether it starts at boot; absent: leave as is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
    /// Whether it shall run now.
    #[serde(default)]
    pub run: Run,
    /// Files whose change calls for a restart: a running unit is restarted when one of them (or the unit file) is younger than
    /// the unit's last start. So a crash between writing and restarting heals itself.
    #[serde(default)]
    pub triggers: Vec<String>,
    /// Reload (`systemctl reload`) instead of restart when a trigger fires.
    #[serde(default)]
    pub reload: bool,
    /// Seconds to wait until it is active.
    #[serde(default = "Unit::default_timeout")]
    pub timeout: u32,
}

impl Unit {
    fn default_timeout() -> u32 {
        60
    }

    /// A unit of ours: its file, enabled, running, restarted when one of `triggers` changes.
    pub fn service(name: impl Into<String>, content: impl Into<String>, triggers: Vec<String>) -> Self {
        Self {
            name: name.into(),
            content: Some(content.into()),
            enable: Some(true),
            run: Run::Started,
            triggers,
            reload: false,
            timeout: Self::default_timeout(),
        }
    }
}

/// Whether a unit shall run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Run {
    /// As it is.
    #[default]
    Leave,
    /// Active; restarted when a trigger fires.
    Started,
    /// Restarted in any case. Not idempotent: for repairs only, never part of a plan.
    Restarted,
    /// Not active.
    Stopped,
}

/// See [`Effect::Rootfs`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rootfs {
    /// Names what the layers hold, and the folder. An image of the same layers that says something else otherwise is the same rootfs.
    #[serde(alias = "manifest")]
    pub content: oci::Digest,
    /// Layers, lowest first: tar, tar+gzip or tar+zstd.
    pub layers: Vec<Descriptor>,
    /// Whether `/opt/installer` is switched to it.
    #[serde(default = "yes")]
    pub switch: bool,
}

fn yes() -> bool {
    true
}

/// See [`Effect::Ca`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ca {
    /// PEM file of the certificate.
    pub cert: String,
    /// PEM file of the private key.
    pub key: String,
    /// `kubernetes`, `etcd-ca`, `front-proxy-ca`.
    pub common_name: String,
    /// Validity.
    pub days: u32,
}

/// Who a certificate is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    /// CN: the user name for client certificates.
    pub common_name: String,
    /// O: the groups for client certificates.
    #[serde(default)]
    pub organizations: Vec<String>,
    /// DNS names and IP addresses.
    #[serde(default)]
    pub sans: Vec<String>,
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Usage {
    /// TLS server.
    Server,
    /// TLS client.
    Client,
    /// Both (etcd's peers).
    Both,
}

/// See [`Effect::Cert`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cert {
    /// PEM file of the certificate.
    pub cert: String,
    /// PEM file of the private key.
    pub key: String,
    /// PEM file of the CA's certificate.
    pub ca_cert: String,
    /// PEM file of the CA's private key.
    pub ca_key: String,
    /// For whom.
    pub subject: Subject,
    /// For what.
    pub usage: Usage,
    /// Validity.
    #[serde(default = "year")]
    pub days: u32,
    /// Issued anew when fewer days than these are left.
    #[serde(default = "month")]
    pub renew_days: u32,
}

/// How many days before its end a certificate is issued anew, unless something else is said.
pub const RENEW_DAYS: u32 = 30;

fn month() -> u32 {
    RENEW_DAYS
}

fn year() -> u32 {
    365
}

/// See [`Effect::Kubeconfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubeconfig {
    /// Where it is written, 0600.
    pub path: String,
    /// `https://…`.
    pub server: String,
    /// PEM file of the CA's certificate.
    pub ca: String,
    /// Name of the cluster entry.
    pub cluster: String,
    /// Name of the user entry.
    pub user: String,
    /// PEM file of the client certificate; with `key`. Absent: `token` is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
    /// PEM file of the client's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A bearer token (bootstrap).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// What applying an effect did, or a preview says it would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What it is about: a path, `sysctl net.ipv4.ip_forward`, `unit installer-agent.service`.
    pub what: String,
    /// What happens to it.
    pub action: Action,
    /// Short detail: `started`, `mode 644 → 600`, `expires in 12 days`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Unified diff of text files that are not secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

impl Change {
    /// Whether anything changes.
    pub fn changed(&self) -> bool {
        self.action != Action::None
    }
}

/// Kind of a [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Already so.
    None,
    /// Comes into being.
    Create,
    /// Becomes different.
    Modify,
    /// Goes.
    Remove,
}
