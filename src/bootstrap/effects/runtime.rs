//! containerd: its configuration, which registries it asks for which images, its unit.

use super::{Learned, file, owned_dir, secret_file, service};
use crate::{
    Result, paths, pin, render,
    site::{Seat, Site, folder},
};
use host::Effect;
use std::{collections::BTreeSet, fmt::Write as _};

/// The container runtime of a host.
///
/// # Errors
/// When the image lacks a template or one cannot be rendered.
pub fn runtime(site: &Site, seat: &Seat, learned: &Learned) -> Result<Vec<Effect>> {
    let config = pin_sandbox(site, &render::file(site, seat, paths::source::CONTAINERD)?);
    let mut effects = vec![
        owned_dir(&format!("{}/containerd", site.scope.dir()), 0o700),
        owned_dir("/run/installer", 0o711),
        file(paths::CONTAINERD_CONFIG, config, 0o644),
    ];
    effects.extend(mirrors(site, learned).into_iter().map(|(name, text)| {
        let path = format!("{}/{name}/hosts.toml", paths::CERTS_D);
        // With a login in it, it is nobody's business.
        if learned.login.is_some() {
            secret_file(path, text)
        } else {
            file(path, text, 0o644)
        }
    }));
    effects.push(service(
        site,
        seat,
        paths::unit::CONTAINERD,
        &[paths::CONTAINERD_CONFIG],
    )?);
    Ok(effects)
}

/// The image that holds a pod's namespaces open is named in the configuration, not in a manifest.
fn pin_sandbox(site: &Site, config: &str) -> String {
    let pinned = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let name = value.trim().strip_prefix('"')?.strip_suffix('"')?;
        let name = pin::pinned(site, name).filter(|_| key.trim() == "sandbox_image")?;
        Some(format!("{key}= \"{name}\""))
    };
    let mut text = String::with_capacity(config.len() + 80);
    for line in config.lines() {
        text.push_str(pinned(line).as_deref().unwrap_or(line));
        text.push('\n');
    }
    text
}

/// Each `hosts.toml` by the name of the registry it is about.
fn mirrors(site: &Site, learned: &Learned) -> Vec<(String, String)> {
    let own = site.registry.host_port();
    if !site.registry.external {
        return vec![
            ("_default".to_owned(), default_hosts(site, learned)),
            (own, registry_hosts(site, learned)),
        ];
    }
    let carried = site.image.carried.iter().map(|image| image.reference.domain());
    let domains: BTreeSet<&str> = carried.filter(|domain| *domain != own).collect();
    let elsewhere = domains
        .into_iter()
        .map(|domain| (domain.to_owned(), moved_hosts(site, learned, domain)));
    let mut all: Vec<_> = elsewhere.collect();
    all.push((own, registry_hosts(site, learned)));
    all
}

/// Every registry's images come from the private one, which is told the name by `?ns=`. Without a `server` the origin itself is
/// asked last, so images from elsewhere can be pulled where there is a way out.
fn default_hosts(site: &Site, learned: &Learned) -> String {
    let mut text = String::from("# Images of every registry are asked of the private one first.\n");
    for url in urls(site) {
        host_table(&mut text, site, learned, &url, false);
    }
    text
}

/// A registry that somebody else runs knows nothing of `?ns=`: there the images of each registry lie below its name.
fn moved_hosts(site: &Site, learned: &Learned, domain: &str) -> String {
    let (scheme, home) = (site.registry.scheme(), site.registry.host_port());
    let mut text = format!("# Images of {domain} were brought to {home}.\n");
    let url = format!("{scheme}://{home}/v2/{}", folder(domain));
    host_table(&mut text, site, learned, &url, true);
    text
}

/// The registry by its own name.
fn registry_hosts(site: &Site, learned: &Learned) -> String {
    let own = format!("{}://{}", site.registry.scheme(), site.registry.host_port());
    let mut text = format!("server = \"{own}\"\n");
    for url in urls(site) {
        host_table(&mut text, site, learned, &url, false);
    }
    // With its own table the name itself needs the authority as well, or none at all.
    host_table(&mut text, site, learned, &own, false);
    text
}

fn urls(site: &Site) -> Vec<String> {
    let url = |seat: &Seat| format!("{}://{}:{}", site.registry.scheme(), seat.ip, site.registry.port);
    site.registries().map(url).collect()
}

fn host_table(text: &mut String, site: &Site, learned: &Learned, url: &str, whole_path: bool) {
    let _ = write!(text, "\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    if whole_path {
        text.push_str("  override_path = true\n");
    }
    let private = !site.registry.external || learned.registry_ca.is_some();
    if !site.registry.insecure && private {
        let _ = writeln!(text, "  ca = \"{}\"", paths::REGISTRY_CA);
    }
    if let Some(login) = &learned.login {
        // Told without being asked: the runtime keeps logins by registry, and pods with pull secrets would replace this one.
        let _ = writeln!(
            text,
            "  [host.\"{url}\".header]\n    Authorization = \"{}\"",
            &**login.basic()
        );
    }
}
