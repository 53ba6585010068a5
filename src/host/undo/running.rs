//! What runs, is mounted or is wired because of us: stopped, unmounted and removed by name and by comparison with the snapshot.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Report, cgroups};
use crate::{
    Error, Result,
    fsops::{self, mounts},
    gate::Gate,
    journal::Entry,
    netlink,
    snapshot::{self, RUNTIME_DIRS, Snapshot, origin::FOREIGN_PROTOCOLS},
};

/// Stops and disables the units we made or started, the last one first, then whatever else has a name of ours.
pub(super) fn units(gate: &Gate, entries: &[Entry], report: &mut Report) {
    let system = gate.system.as_ref();
    let mut names: Vec<&str> = Vec::new();
    for entry in entries.iter().rev() {
        if let Entry::Unit {
            name,
            ours,
            enabled,
            active,
        } = entry
        {
            if *ours || !active {
                report.note(
                    format!("stopped {name}"),
                    super::tool(system, &["systemctl", "stop", "--", name]),
                );
            }
            if *ours || !enabled.starts_with("enabled") {
                report.note(
                    format!("disabled {name}"),
                    super::tool(system, &["systemctl", "disable", "--", name]),
                );
            }
            names.push(name);
        }
    }
    let others = snapshot::units(system);
    for name in others
        .iter()
        .filter(|name| !names.contains(&name.as_str()) && name.ends_with(".service"))
    {
        report.note(
            format!("stopped {name}"),
            super::tool(system, &["systemctl", "stop", "--", name]),
        );
    }
}

/// Ends containers, their shims and their groups.
pub(super) fn processes(gate: &Gate, report: &mut Report) {
    match cgroups::kill() {
        Ok(0) => {}
        Ok(count) => report.done.push(format!("ended {}", oci::counted(count, "process"))),
        Err(e) => report.failed.push(e.to_string()),
    }
    let system = gate.system.as_ref();
    let units = snapshot::units(system);
    if !units.is_empty() {
        let argv: Vec<&str> = ["systemctl", "stop", "--"]
            .into_iter()
            .chain(units.iter().map(String::as_str))
            .collect();
        report.note(
            format!("stopped {}", oci::counted(units.len(), "unit")),
            super::tool(system, &argv),
        );
        let argv: Vec<&str> = ["systemctl", "reset-failed", "--"]
            .into_iter()
            .chain(units.iter().map(String::as_str))
            .collect();
        // Units that did not fail are refused: that is fine.
        let _ = system.run(&argv);
    }
    report.note_quiet(cgroups::remove());
}

/// Unmounts what is below folders of ours, the last mount first.
pub(super) fn unmount(gate: &Gate, before: &Snapshot, report: &mut Report) -> Result<()> {
    let mut folders: Vec<PathBuf> = vec![
        gate.scope.dir().into(),
        "/run/installer".into(),
        "/var/lib/kubelet".into(),
    ];
    folders.extend(
        RUNTIME_DIRS
            .iter()
            .filter(|dir| !before.runtime.contains(**dir))
            .map(PathBuf::from),
    );
    // /var/run is a link to /run, but a mount may have been made through either.
    let is_ours = |mount: &Path| {
        let namespace = mount
            .strip_prefix("/run/netns")
            .is_ok_and(|n| n.to_string_lossy().starts_with("cni-"));
        namespace || folders.iter().any(|folder| mount.starts_with(folder))
    };
    let known = |mount: &Path| before.mounts.contains(&mount.display().to_string());
    for _ in 0..8 {
        // Mounts may be stacked on one another: look again until none is left.
        let found: Vec<PathBuf> = mounts()?
            .into_iter()
            .rev()
            .filter(|m| is_ours(m) && !known(m))
            .collect();
        if found.is_empty() {
            return Ok(());
        }
        for mount in found {
            match rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH) {
                Ok(()) => report.done.push(format!("unmounted {}", mount.display())),
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(Error::io(&mount)(e.into())),
            }
        }
    }
    Ok(())
}

/// Removes namespaces of pods, links, routes and tables.
pub(super) fn network(before: &Snapshot, report: &mut Report) -> Result<()> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: std::io::Error| Error::failed(format!("{what}: {e}"))
    };
    for name in crate::gate::names_in(Path::new("/run/netns")).unwrap_or_default() {
        let path = format!("/run/netns/{name}");
        if name.starts_with("cni-") && !before.files.contains_key(&path) {
            report.note(format!("removed {path}"), fsops::sweep(Path::new(&path)));
        }
    }
    if !before.files.contains_key("/run/netns")
        && crate::gate::names_in(Path::new("/run/netns")).is_ok_and(|n| n.is_empty())
    {
        let _ = rustix::mount::unmount("/run/netns", rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_dir("/run/netns");
    }
    let tables = netlink::tables().map_err(failed("nftables"))?;
    for table in tables
        .iter()
        .filter(|t| t.name.starts_with("installer-") && !before.tables.contains(&t.label()))
    {
        let label = format!("table {}", table.label());
        report.note(
            format!("removed {label}"),
            netlink::delete_table(table).map_err(failed(&label)),
        );
    }
    let links = netlink::links().map_err(failed("links"))?;
    for route in netlink::routes(&links).map_err(failed("routes"))? {
        let label = snapshot::route_label(&route.route);
        if !FOREIGN_PROTOCOLS.contains(&route.route.protocol) && !before.routes.contains(&label) {
            let what = format!("route {label}");
            report.note(
                format!("removed {what}"),
                netlink::delete_route(&route).map_err(failed(&what)),
            );
        }
    }
    for link in links
        .iter()
        .filter(|l| l.name.starts_with("installer-") && !before.links.contains(&l.name))
    {
        let what = format!("link {}", link.name);
        report.note(
            format!("removed {what}"),
            netlink::delete_link(link).map_err(failed(&what)),
        );
    }
    await_veths(before);
    Ok(())
}

/// The kernel takes down a namespace, and the pod's end of its link with it, a moment after the last user is gone.
fn await_veths(before: &Snapshot) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        let links: BTreeSet<String> = netlink::links()
            .unwrap_or_default()
            .into_iter()
            .map(|l| l.name)
            .collect();
        if !links
            .iter()
            .any(|name| name.starts_with("veth") && !before.links.contains(name))
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
