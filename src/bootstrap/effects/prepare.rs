//! The host itself: kernel parameters and modules, swap, names; and the unpacked rootfs with the links into it.

use super::{Learned, file, owned_dir};
use crate::{
    Result, overlay, paths, render,
    site::{Seat, Site},
};
use host::Effect;

/// Kernel, swap and names.
///
/// # Errors
/// When the image lacks a file that is needed.
pub fn prepare(site: &Site, seat: &Seat, _: &Learned) -> Result<Vec<Effect>> {
    let modules = render::file(site, seat, paths::source::MODULES)?;
    let sysctls = render::file(site, seat, paths::source::SYSCTL)?;
    let mut effects: Vec<Effect> = settings(&modules)
        .map(|name| Effect::Module { name: name.to_owned() })
        .collect();
    effects.push(file(format!("/{}", paths::source::MODULES), &modules, 0o644));
    effects.push(file(format!("/{}", paths::source::SYSCTL), &sysctls, 0o644));
    effects.extend(
        settings(&sysctls)
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| Effect::Sysctl {
                key: key.trim().to_owned(),
                value: value.trim().to_owned(),
            }),
    );
    if !seat.facts.swaps.is_empty() {
        effects.push(Effect::SwapOff);
    }
    if !seat.seen.resolver {
        // The runtime copies it into every pod of the host's network and cannot do without; a host that resolves nothing may lack it.
        effects.push(file(paths::RESOLVER, "# This host has no name server.\n", 0o644));
    }
    effects.push(Effect::Hosts {
        entries: site.hosts_entries(),
    });
    Ok(effects)
}

/// Lines that say something.
fn settings(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
}

/// The rootfs, what this cluster has otherwise in it, and the links by which others find what is in it.
///
/// # Errors
/// When a template of it cannot be rendered.
pub fn rootfs(site: &Site, seat: &Seat, _: &Learned) -> Result<Vec<Effect>> {
    let mut effects = vec![Effect::Rootfs(site.image.rootfs.clone())];
    effects.push(site.fence.clone().map_or(Effect::NoFence, Effect::Fence));
    effects.push(link("/opt/cni/bin", "/opt/installer/cni/bin"));
    effects.push(owned_dir("/etc/cni/net.d", 0o755));
    if seat.master {
        for program in ["kubectl", "helm"] {
            effects.push(link(
                &format!("/usr/local/bin/{program}"),
                &format!("/opt/installer/bin/{program}"),
            ));
        }
    }
    effects.extend(overlay::effects(site, seat)?);
    Ok(effects)
}

fn link(path: &str, target: &str) -> Effect {
    Effect::Link {
        path: path.to_owned(),
        target: target.to_owned(),
    }
}
