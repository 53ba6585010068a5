//! What each phase wants of a host, as pure functions: site, host and what was learned on the way in, effects out.
//!
//! Nothing here looks at a host or changes one. The same effects are previewed by a plan and applied by an apply.

pub(crate) mod agent;
mod control_plane;
mod pki;
mod prepare;
mod program;
mod registry;
mod runtime;

pub use agent::{agent, balancer, serving_subject, serving_subject_of, trust};
pub use control_plane::{MANIFEST, control_plane, static_pods};
pub(crate) use pki::api_server_names;
pub use pki::pki;
pub use prepare::{prepare, rootfs};
pub use registry::registry;
pub use runtime::runtime;

use crate::{
    Result,
    login::Login,
    render,
    site::{Seat, Site},
    template::Variables,
};
use host::{
    Content, Effect,
    effect::{Dir, File, Unit},
};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use zeroize::Zeroizing;

/// What becomes known only while the cluster comes up. Before that, a plan works with placeholders: what is made of
/// them is new on the host in any case.
#[derive(Clone, Default)]
pub struct Learned {
    /// The cluster authority's certificate, PEM.
    pub ca: String,
    /// The token with which node agents join.
    pub token: Zeroizing<String>,
    /// Serving certificates signed for node agents, PEM.
    pub kubelet_certs: BTreeMap<Ipv4Addr, String>,
    /// The password file of each host's private registry, where it asks for a login.
    pub htpasswd: BTreeMap<Ipv4Addr, String>,
    /// What hosts prove themselves to the registry with, where it asks for a login.
    pub login: Option<Login>,
    /// The authority of a registry that somebody else runs, PEM; absent: a public one.
    pub registry_ca: Option<String>,
}

/// Computes the effects of one phase on one host.
pub type Effects = fn(&Site, &Seat, &Learned) -> Result<Vec<Effect>>;

fn file(path: impl Into<String>, content: impl AsRef<[u8]>, mode: u32) -> Effect {
    Effect::File(File {
        path: path.into(),
        content: Content::from(content.as_ref()),
        mode,
        owner: None,
        secret: false,
    })
}

/// A file only root may read, and that no plan shows.
fn secret_file(path: impl Into<String>, content: impl AsRef<[u8]>) -> Effect {
    Effect::File(File {
        path: path.into(),
        content: Content::from(content.as_ref()),
        mode: 0o600,
        owner: None,
        secret: true,
    })
}

fn owned_dir(path: &str, mode: u32) -> Effect {
    Effect::Dir(Dir {
        path: path.to_owned(),
        mode,
        owned: true,
    })
}

/// A unit of the rootfs' `systemd/` folder, running and enabled.
fn service(site: &Site, seat: &Seat, name: &str, triggers: &[&str]) -> Result<Effect> {
    let template = format!("{}{name}.tmpl", crate::paths::source::UNITS);
    let mut content = render::file(site, seat, &template)?;
    if let Some(digest) = program::digest(site, &content) {
        // What restarts a unit is that what it runs has changed, not that anything in the rootfs has.
        let own = Variables::from([("RootfsDigest".to_owned(), digest.to_string())]);
        content = render::file_with(site, seat, &template, &own)?;
    }
    let triggers = triggers.iter().map(|path| (*path).to_owned()).collect();
    Ok(Effect::Unit(Unit::service(name, content, triggers)))
}

#[cfg(test)]
mod tests;
