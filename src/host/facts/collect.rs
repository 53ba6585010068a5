//! Looking at the host. Nothing here fails: what cannot be seen stays at its default, and the caller judges.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags};

use super::{Cgroup, CgroupMode, Disk, Facts, Installed, Listener, Query, Systemd, kernel, parse};
use crate::{
    fsops::{self, Root, text},
    gate::names_in,
    journal, netlink,
    proto::Scope,
    system::System,
};

/// Traces that clusters leave.
const LEFTOVERS: &[&str] = &[
    "/etc/kubernetes",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/etc/cni/net.d",
    "/var/lib/cni",
    "/opt/cni",
    "/opt/installer",
    "/etc/installer",
    "/run/installer",
    "/var/lib/rancher",
    "/etc/rancher",
    "/var/lib/k0s",
    "/var/lib/sealer",
    "/var/lib/minikube",
    "/run/flannel",
    "/var/lib/calico",
    "/etc/systemd/system/kubelet.service",
    "/usr/lib/systemd/system/kubelet.service",
    "/etc/systemd/system/installer-agent.service",
    "/etc/systemd/system/installer-containerd.service",
    "/etc/systemd/system/installer-registry.service",
    "/etc/systemd/system/installer-lb.service",
];

/// Runtimes: name and what shows it.
const RUNTIMES: &[(&str, &str)] = &[
    ("docker", "/run/docker.sock"),
    ("docker", "/usr/bin/dockerd"),
    ("containerd", "/run/containerd/containerd.sock"),
    ("containerd", "/usr/bin/containerd"),
    ("containerd", "/usr/local/bin/containerd"),
    ("cri-o", "/run/crio/crio.sock"),
    ("cri-o", "/usr/bin/crio"),
    ("podman", "/usr/bin/podman"),
];

/// Services with packet filters of their own.
const FIREWALLS: &[&str] = &["firewalld", "ufw"];

/// Durable writes that are timed, and how long they may take together after the first three.
const FSYNCS: usize = 15;
const FSYNC_BUDGET: Duration = Duration::from_millis(300);

/// Takes the facts.
pub(crate) async fn facts(query: Query, root: Root, system: Arc<dyn System>) -> Facts {
    tokio::task::spawn_blocking(move || take(&query, &root, system.as_ref()))
        .await
        .unwrap_or_default()
}

fn take(query: &Query, root: &Root, system: &dyn System) -> Facts {
    let read = |path: &str| root.path(path).map(text).unwrap_or_default();
    let uname = rustix::system::uname();
    let meminfo = read("/proc/meminfo");
    let links = netlink::links().unwrap_or_default();
    let swaps = read("/proc/swaps");
    let (systemd, firewalls) = systemd(system);
    let installed = installed(root);
    let leftovers = LEFTOVERS
        .iter()
        .copied()
        .chain(query.paths.iter().map(String::as_str))
        .filter(|p| left(root, p));
    Facts {
        os: parse::os_release(&read("/etc/os-release")),
        arch: go_arch(&uname.machine().to_string_lossy()),
        kernel: uname.release().to_string_lossy().into_owned(),
        hostname: uname.nodename().to_string_lossy().into_owned(),
        machine_id: read("/etc/machine-id").trim().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)),
        memory_total: parse::meminfo(&meminfo, "MemTotal"),
        memory_available: parse::meminfo(&meminfo, "MemAvailable"),
        swaps: swaps
            .lines()
            .skip(1)
            .filter_map(|l| l.split_whitespace().next())
            .map(fsops::unescape)
            .collect(),
        disks: query.disks.iter().map(|path| disk(root, path)).collect(),
        systemd,
        cgroup: cgroup(&read("/proc/self/mounts"), &read("/sys/fs/cgroup/cgroup.controllers")),
        features: kernel::features(root),
        capabilities: parse::capabilities(&read("/proc/self/status")),
        can_lower_oom_score: can_lower_oom_score(),
        addresses: netlink::addresses(&links).unwrap_or_default(),
        routes: netlink::routes(&links)
            .unwrap_or_default()
            .into_iter()
            .map(|r| r.route)
            .collect(),
        listeners: listeners(root, &query.ports),
        leftovers: leftovers.map(str::to_owned).collect(),
        runtimes: runtimes(root),
        uid: rustix::process::geteuid().as_raw(),
        names: query
            .names
            .iter()
            .map(|name| (name.clone(), resolve(system, name)))
            .collect(),
        nameservers: nameservers(&read("/etc/resolv.conf")),
        resolved_nameservers: nameservers(&read(super::RESOLVED_CONF)),
        lsm: lsm(
            &read("/sys/fs/selinux/enforce"),
            &read("/sys/module/apparmor/parameters/enabled"),
        ),
        fsync_us: query
            .fsync
            .as_deref()
            .filter(|_| installed.is_empty())
            .and_then(|path| fsync_us(root, path)),
        installed,
        entropy: read("/proc/sys/kernel/random/entropy_avail")
            .trim()
            .parse()
            .unwrap_or(0),
        time_zone: time_zone(root),
        firewalls,
        // Last, so that it is as close to the answer as can be.
        time_ms: jiff::Timestamp::now().as_millisecond() + crate::fault::clock_ms(),
    }
}

/// Go's name of an architecture.
fn go_arch(machine: &str) -> String {
    let name = match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" => "arm",
        "i686" => "386",
        other => other,
    };
    name.to_owned()
}

fn cgroup(mounts: &str, v2_controllers: &str) -> Cgroup {
    let (mode, v1) = parse::cgroups(mounts);
    let v2 = || v2_controllers.split_whitespace().map(str::to_owned).collect();
    Cgroup {
        mode,
        controllers: if mode == CgroupMode::V2 { v2() } else { v1 },
    }
}

fn disk(root: &Root, path: &str) -> Disk {
    let mut out = Disk {
        path: path.to_owned(),
        ..Disk::default()
    };
    let Ok(mut at) = root.path(path) else { return out };
    // What does not exist yet will lie where its nearest existing folder lies.
    while !at.exists() && at.pop() {}
    let at = fs::canonicalize(&at).unwrap_or(at);
    if let Ok(stat) = rustix::fs::statvfs(&at) {
        out.total = stat.f_blocks.saturating_mul(stat.f_frsize);
        out.free = stat.f_bavail.saturating_mul(stat.f_frsize);
        out.free_inodes = stat.f_favail;
        out.inodes = stat.f_files;
    }
    let mounts = text("/proc/self/mounts");
    let of = |line: &str| {
        let mut words = line.split(' ');
        let (_, mount, kind) = (words.next()?, fsops::unescape(words.next()?), words.next()?);
        at.starts_with(&mount).then(|| (mount.len(), kind.to_owned()))
    };
    // The last of the longest: a later mount hides an earlier one.
    out.filesystem = mounts
        .lines()
        .filter_map(of)
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind)
        .unwrap_or_default();
    out
}

/// Small durable writes into a file that never has a name, so that nothing is left whatever happens.
fn fsync_us(root: &Root, path: &str) -> Option<u64> {
    let mut at = root.path(path).ok()?;
    while !at.is_dir() && at.pop() {}
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(&at, flags, Mode::RUSR | Mode::WUSR).ok()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < FSYNCS && (times.len() < 3 || start.elapsed() < FSYNC_BUDGET) {
        let one = Instant::now();
        rustix::io::pwrite(&file, &[0; 2048], times.len() as u64 * 2048).ok()?;
        rustix::fs::fdatasync(&file).ok()?;
        times.push(one.elapsed());
    }
    times.sort_unstable();
    u64::try_from(times.get(times.len() / 2)?.as_micros()).ok()
}

fn time_zone(root: &Root) -> String {
    let target = root.path("/etc/localtime").ok().and_then(|at| fs::read_link(at).ok());
    let target = target.unwrap_or_default();
    let zone = target.to_str().and_then(|text| text.split_once("zoneinfo/"));
    zone.map_or_else(|| "UTC".to_owned(), |(_, zone)| zone.to_owned())
}

/// The service manager, and which packet filters it runs. Where it does not run, its tools fail.
fn systemd(system: &dyn System) -> (Systemd, Vec<String>) {
    let out = |argv: &[&str]| system.run(argv).map(|ran| ran.stdout).unwrap_or_default();
    let shown = out(&["systemctl", "show", "--no-pager", "-p", "Version", "-p", "SystemState"]);
    let state = parse::property(&shown, "SystemState");
    if state.is_empty() {
        return Default::default();
    }
    let listed = out(&[
        "systemctl",
        "list-units",
        "--plain",
        "--no-legend",
        "--no-pager",
        "--full",
    ]);
    let systemd = Systemd {
        version: parse::systemd_version(parse::property(&shown, "Version")),
        state: state.to_owned(),
        failed: owned(parse::units_that_are(&listed, "failed")),
    };
    let active = parse::units_that_are(&listed, "active");
    let runs = |filter: &&str| active.iter().any(|unit| unit.strip_suffix(".service") == Some(*filter));
    (systemd, owned(FIREWALLS.iter().copied().filter(runs).collect()))
}

fn owned(names: Vec<&str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// Tried, not assumed: a container's root may lack the capability, or a filter may allow it.
fn can_lower_oom_score() -> bool {
    let path = "/proc/self/oom_score_adj";
    let old = text(path);
    let Ok(score) = old.trim().parse::<i32>() else {
        return false;
    };
    let lowered = score > -1000 && fs::write(path, (score - 1).to_string()).is_ok();
    if lowered {
        let _ = fs::write(path, old.trim());
    }
    lowered
}

fn listeners(root: &Root, ports: &[u16]) -> Vec<Listener> {
    if ports.is_empty() {
        return Vec::new();
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| root.path(path).map(text).unwrap_or_default());
    let found: Vec<(u16, String, u64)> = tables.iter().flat_map(|table| parse::listeners(table, ports)).collect();
    let holders = if found.is_empty() {
        BTreeMap::new()
    } else {
        socket_holders()
    };
    found
        .into_iter()
        .map(|(port, address, inode)| {
            let pid = holders.get(&inode).copied();
            let read = |file: &str| pid.map(|pid| text(format!("/proc/{pid}/{file}"))).unwrap_or_default();
            Listener {
                port,
                address,
                pid,
                process: read("comm").trim().to_owned(),
                unit: parse::unit_of(&read("cgroup")),
            }
        })
        .collect()
}

/// Socket inode → process.
fn socket_holders() -> BTreeMap<u64, u32> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        for fd in fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            let inode = target
                .to_str()
                .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                out.entry(inode).or_insert(pid);
            }
        }
    }
    out
}

/// Something is there: a file, a link, or a folder with something in it. A disk of its own that was just made is no trace.
fn left(root: &Root, path: &str) -> bool {
    let Ok(at) = root.path(path) else { return false };
    match fsops::look(&at) {
        Ok(fsops::There::Dir(_)) => {
            names_in(&at).is_ok_and(|names| names.iter().any(|name| name != fsops::LOST_AND_FOUND))
        }
        Ok(fsops::There::Nothing) | Err(_) => false,
        Ok(_) => true,
    }
}

fn runtimes(root: &Root) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (name, path) in RUNTIMES {
        if root.path(path).is_ok_and(|at| at.exists()) {
            out.entry((*name).to_owned()).or_insert_with(|| (*path).to_owned());
        }
    }
    out
}

fn resolve(system: &dyn System, name: &str) -> Vec<String> {
    let text = system
        .run(&["getent", "ahosts", "--", name])
        .map(|ran| ran.stdout)
        .unwrap_or_default();
    let mut found: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    found.dedup();
    found
}

fn nameservers(resolv: &str) -> Vec<String> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next().map(str::to_owned))
            .flatten()
    };
    resolv.lines().filter_map(server).collect()
}

fn lsm(selinux: &str, apparmor: &str) -> Vec<String> {
    let found = [("selinux", selinux.trim() == "1"), ("apparmor", apparmor.trim() == "Y")];
    found
        .into_iter()
        .filter(|(_, on)| *on)
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// Installations below the usual data root and below the one `/opt/installer` points into.
fn installed(root: &Root) -> Vec<Installed> {
    let current = root.path(crate::CURRENT).ok().and_then(|at| fs::read_link(at).ok());
    let mut data_roots = vec![PathBuf::from("/var/lib/installer")];
    // <dataRoot>/<cluster>/rootfs/<hex12>
    data_roots.extend(
        current
            .as_deref()
            .and_then(|c| c.ancestors().nth(3))
            .map(Path::to_owned)
            .filter(|r| *r != data_roots[0]),
    );
    let mut out = Vec::new();
    for data_root in data_roots.iter().filter_map(|r| r.to_str()) {
        let Ok(names) = root.path(data_root).and_then(|at| names_in(&at)) else {
            continue;
        };
        for cluster in names {
            let scope = Scope {
                cluster,
                data_root: data_root.to_owned(),
            };
            out.extend(installation(root, &scope, current.as_deref()));
        }
    }
    out
}

fn installation(root: &Root, scope: &Scope, current: Option<&Path>) -> Option<Installed> {
    let home = root.path(&scope.dir()).ok()?;
    if !fs::metadata(&home).ok()?.is_dir() {
        return None;
    }
    let log = journal::read(&home.join("journal")).ok().flatten()?;
    let rootfs = current
        .and_then(|c| c.strip_prefix(format!("{}/rootfs", scope.dir())).ok())
        .map(|p| p.display().to_string());
    let index = oci::Layout::open(&home).read_index().unwrap_or_default();
    Some(Installed {
        cluster: scope.cluster.clone(),
        data_root: scope.data_root.clone(),
        rootfs,
        images: index.manifests.iter().map(|d| d.digest.to_string()).collect(),
        journal_entries: log.entries.len() as u64,
        undoing: log.undoing(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::Real;

    #[test]
    fn a_folder_that_is_a_new_disk_is_no_trace_of_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        fs::create_dir_all(dir.path().join("var/lib/etcd/lost+found")).unwrap();
        assert!(!left(&root, "/var/lib/etcd") && !left(&root, "/var/lib/kubelet"));
        fs::create_dir_all(dir.path().join("var/lib/etcd/member")).unwrap();
        assert!(left(&root, "/var/lib/etcd"));
    }

    #[test]
    fn name_servers_are_what_the_resolver_takes_for_them() {
        let text = "# nameserver 1.1.1.1\nnameservers 2.2.2.2\nnameserver\t127.0.0.53\n nameserver 10.0.0.53 # x\nnameserver\n";
        assert_eq!(nameservers(text), ["127.0.0.53", "10.0.0.53"]);
    }

    #[test]
    fn this_machine_has_facts() {
        let query = Query {
            disks: vec!["/var/lib/not/there/yet".into()],
            ports: vec![1],
            paths: vec!["/etc".into()],
            names: vec!["localhost".into()],
            fsync: Some("/var/lib/not/there/yet".into()),
        };
        let facts = take(&query, &Root::real(), &Real);
        assert!(facts.cpus > 0 && facts.memory_total > 0 && facts.disks[0].total > 0 && !facts.kernel.is_empty());
        assert!(facts.leftovers.contains(&"/etc".to_owned()));
        assert!(!facts.names["localhost"].is_empty());
        assert!(!facts.disks[0].filesystem.is_empty());
        assert!(facts.fsync_us.is_some_and(|us| us > 0) && facts.entropy > 0 && !facts.time_zone.is_empty());
        assert!(facts.addresses.iter().all(|address| address.mtu > 0));
    }
}
