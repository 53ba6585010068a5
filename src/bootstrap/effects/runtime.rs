//! containerd: its configuration, which registries it asks for which images, its unit.

use super::{Learned, file, owned_dir, service};
use crate::{
    Result, paths, render,
    site::{Seat, Site},
};
use host::Effect;
use std::fmt::Write as _;

/// The container runtime of a host.
///
/// # Errors
/// When the image lacks a template or one cannot be rendered.
pub fn runtime(site: &Site, seat: &Seat, _: &Learned) -> Result<Vec<Effect>> {
    let config = render::file(site, seat, paths::source::CONTAINERD)?;
    let hosts = |name: &str, text: String| file(format!("{}/{name}/hosts.toml", paths::CERTS_D), text, 0o644);
    Ok(vec![
        owned_dir(&format!("{}/containerd", site.scope.dir()), 0o700),
        owned_dir("/run/installer", 0o711),
        file(paths::CONTAINERD_CONFIG, config, 0o644),
        hosts("_default", default_hosts(site)),
        hosts(&site.registry.host_port(), registry_hosts(site)),
        service(site, seat, paths::unit::CONTAINERD, &[paths::CONTAINERD_CONFIG])?,
    ])
}

/// Every registry's images come from the private one, which is told the name by `?ns=`. Without a `server` the origin itself is
/// asked last, so images from elsewhere can be pulled where there is a way out.
fn default_hosts(site: &Site) -> String {
    let mut text = String::from("# Images of every registry are asked of the private one first.\n");
    for url in urls(site) {
        host_table(&mut text, site, &url);
    }
    text
}

/// The private registry by its own name.
fn registry_hosts(site: &Site) -> String {
    let mut text = format!(
        "server = \"{}://{}\"\n",
        site.registry_scheme(),
        site.registry.host_port()
    );
    for url in urls(site) {
        host_table(&mut text, site, &url);
    }
    // With its own table the name itself needs the authority as well, or none at all.
    host_table(
        &mut text,
        site,
        &format!("{}://{}", site.registry_scheme(), site.registry.host_port()),
    );
    text
}

fn urls(site: &Site) -> Vec<String> {
    let url = |seat: &Seat| format!("{}://{}:{}", site.registry_scheme(), seat.ip, site.registry.port);
    site.registries().map(url).collect()
}

fn host_table(text: &mut String, site: &Site, url: &str) {
    let _ = write!(text, "\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    if !site.registry.insecure {
        let _ = writeln!(text, "  ca = \"{}\"", paths::REGISTRY_CA);
    }
}
