//! Cgroups of QoS classes and pods, for both drivers and both kernel interfaces. Containers' own cgroups are the
//! runtime's business; this room only names their parent and limits it.
//!
//! With the systemd driver slices are made through systemd's own bus (`busctl`), so that systemd's idea of the tree and
//! the kernel's stay the same; with cgroupfs they are folders below every controller.

use crate::config::CgroupDriver;
use crate::error::{Error, Result};
use crate::qos::{PodLimits, Qos, cpu_weight};
use std::path::{Path, PathBuf};

/// The kernel's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One hierarchy per controller: controller names and mount point of each.
    V1(Vec<(Vec<String>, PathBuf)>),
    /// One hierarchy for all.
    V2(PathBuf),
}

impl Layout {
    /// Reads the mounts of this process. Hybrid hosts, whose controllers are on v1, are v1.
    pub fn detect() -> Result<Layout> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Ok(Layout::parse(&text))
    }

    /// From the text of a mountinfo file.
    pub fn parse(mountinfo: &str) -> Layout {
        let (mut v1, mut v2) = (vec![], None);
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            match (right.next(), right.next(), right.next()) {
                (Some("cgroup2"), ..) => v2 = v2.or(Some(PathBuf::from(point))),
                (Some("cgroup"), _, Some(options)) => {
                    const OTHER: [&str; 6] = ["rw", "ro", "xattr", "clone_children", "noprefix", "release_agent"];
                    let names: Vec<String> = options
                        .split(',')
                        .filter(|o| !OTHER.contains(o) && !o.starts_with("release_agent"))
                        .map(str::to_owned)
                        .collect();
                    v1.push((names, PathBuf::from(point)));
                }
                _ => {}
            }
        }
        match v2 {
            Some(root)
                if !v1
                    .iter()
                    .any(|(names, _)| names.iter().any(|n| n == "memory" || n == "cpu")) =>
            {
                Layout::V2(root)
            }
            // The runtime puts processes into the unified hierarchy of hybrid hosts as well.
            v2 => {
                v1.extend(v2.map(|p| (vec![], p)));
                Layout::V1(v1)
            }
        }
    }

    fn mount(&self, controller: &str) -> Option<&Path> {
        match self {
            Layout::V2(root) => Some(root),
            Layout::V1(list) => list
                .iter()
                .find(|(names, _)| names.iter().any(|n| n == controller))
                .map(|(_, p)| p.as_path()),
        }
    }

    fn mounts(&self) -> Vec<&Path> {
        match self {
            Layout::V2(root) => vec![root],
            Layout::V1(list) => list.iter().map(|(_, p)| p.as_path()).collect(),
        }
    }
}

/// Names and limits of the agent's cgroups.
#[derive(Debug, Clone)]
pub struct Cgroups {
    driver: CgroupDriver,
    root: String,
    layout: Layout,
}

/// A value for systemd: property and number.
type Property = (&'static str, u64);

impl Cgroups {
    /// For a driver, below `root` (cgroupfs only).
    pub fn new(driver: CgroupDriver, root: Option<&str>, layout: Layout) -> Cgroups {
        let root = root.unwrap_or("/").trim_matches('/').to_owned();
        Cgroups { driver, root, layout }
    }

    /// The name CRI gets as the pod's cgroup parent.
    pub fn pod_parent(&self, qos: Qos, uid: &str) -> String {
        match self.driver {
            CgroupDriver::Systemd => {
                let uid = uid.replace('-', "_");
                match class(qos) {
                    None => format!("kubepods-pod{uid}.slice"),
                    Some(c) => format!("kubepods-{c}-pod{uid}.slice"),
                }
            }
            CgroupDriver::Cgroupfs => match class(qos) {
                None => format!("{}/pod{uid}", self.base()),
                Some(c) => format!("{}/{c}/pod{uid}", self.base()),
            },
        }
    }

    fn base(&self) -> String {
        if self.root.is_empty() {
            "/kubepods".into()
        } else {
            format!("/{}/kubepods", self.root)
        }
    }

    /// Path of a parent below a mount point.
    fn path(&self, parent: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => parent.trim_start_matches('/').to_owned(),
            CgroupDriver::Systemd => slice_path(parent),
        }
    }

    /// Makes the class cgroups: `kubepods` weighs as all CPUs, best effort next to nothing.
    pub async fn ensure_classes(&self, cpus: u32) -> Result<()> {
        let all = PodLimits {
            cpu_shares: u64::from(cpus.max(1)) * 1024,
            ..Default::default()
        };
        let least = PodLimits {
            cpu_shares: 2,
            ..Default::default()
        };
        let (base, burstable, best) = match self.driver {
            CgroupDriver::Systemd => (
                "kubepods.slice".to_owned(),
                "kubepods-burstable.slice".to_owned(),
                "kubepods-besteffort.slice".to_owned(),
            ),
            CgroupDriver::Cgroupfs => (
                self.base(),
                format!("{}/burstable", self.base()),
                format!("{}/besteffort", self.base()),
            ),
        };
        self.ensure(&base, all).await?;
        self.ensure(&burstable, least).await?;
        self.ensure(&best, least).await
    }

    /// Gives the burstable class the weight of all that its pods request.
    pub async fn set_burstable_shares(&self, shares: u64) -> Result<()> {
        let limits = PodLimits {
            cpu_shares: shares,
            ..Default::default()
        };
        match self.driver {
            CgroupDriver::Systemd => self.ensure("kubepods-burstable.slice", limits).await,
            CgroupDriver::Cgroupfs => self.ensure(&format!("{}/burstable", self.base()), limits).await,
        }
    }

    /// Makes a pod's cgroup with its limits; safe to repeat.
    pub async fn ensure_pod(&self, qos: Qos, uid: &str, limits: PodLimits) -> Result<()> {
        self.ensure(&self.pod_parent(qos, uid), limits).await
    }

    async fn ensure(&self, parent: &str, limits: PodLimits) -> Result<()> {
        match self.driver {
            CgroupDriver::Systemd => ensure_slice(parent, &properties(limits)).await,
            CgroupDriver::Cgroupfs => self.ensure_folders(parent, limits),
        }
    }

    fn ensure_folders(&self, parent: &str, limits: PodLimits) -> Result<()> {
        let relative = self.path(parent);
        match &self.layout {
            Layout::V2(root) => {
                let dir = root.join(&relative);
                enable_controllers(root, &relative)?;
                std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
                write(&dir, "cpu.weight", cpu_weight(limits.cpu_shares))?;
                if let Some(q) = limits.cpu_quota {
                    write(&dir, "cpu.max", format!("{q} {}", crate::qos::CPU_PERIOD))?;
                }
                limits.memory.map_or(Ok(()), |m| write(&dir, "memory.max", m))?;
                limits.pids.map_or(Ok(()), |p| write(&dir, "pids.max", p))
            }
            Layout::V1(_) => {
                let dir = |controller: &str| -> Result<Option<PathBuf>> {
                    let Some(mount) = self.layout.mount(controller) else {
                        return Ok(None);
                    };
                    let dir = mount.join(&relative);
                    std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
                    Ok(Some(dir))
                };
                if let Some(cpu) = dir("cpu")? {
                    write(&cpu, "cpu.shares", limits.cpu_shares)?;
                    if let Some(q) = limits.cpu_quota {
                        write(&cpu, "cpu.cfs_period_us", crate::qos::CPU_PERIOD)?;
                        write(&cpu, "cpu.cfs_quota_us", q)?;
                    }
                }
                if let (Some(m), Some(memory)) = (limits.memory, dir("memory")?) {
                    write(&memory, "memory.limit_in_bytes", m)?;
                }
                if let (Some(p), Some(pids)) = (limits.pids, dir("pids")?) {
                    write(&pids, "pids.max", p)?;
                }
                Ok(())
            }
        }
    }

    /// Removes a pod's cgroup in every hierarchy. The runtime must have removed its containers before.
    pub async fn remove_pod(&self, qos: Qos, uid: &str) -> Result<()> {
        let parent = self.pod_parent(qos, uid);
        if self.driver == CgroupDriver::Systemd {
            // A slice that is not loaded is already gone: its exit code says nothing we need.
            let _ = run("systemctl", &["stop", &parent]).await;
        }
        let relative = self.path(&parent);
        for mount in self.layout.mounts() {
            remove_tree(&mount.join(&relative))?;
        }
        Ok(())
    }

    /// UIDs of pods that have a cgroup.
    pub fn pods(&self) -> Vec<(Qos, String)> {
        let mut out = vec![];
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let sample = self.path(&self.pod_parent(qos, "@"));
            let Some((dir, name)) = sample.rsplit_once('/') else {
                continue;
            };
            let Some((prefix, suffix)) = name.split_once('@') else {
                continue;
            };
            for mount in self.layout.mounts() {
                for entry in std::fs::read_dir(mount.join(dir)).into_iter().flatten().flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let uid = name.strip_prefix(prefix).and_then(|n| n.strip_suffix(suffix));
                    if let Some(uid) = uid.filter(|u| !u.is_empty()) {
                        let uid = if self.driver == CgroupDriver::Systemd {
                            uid.replace('_', "-")
                        } else {
                            uid.to_owned()
                        };
                        if !out.contains(&(qos, uid.clone())) {
                            out.push((qos, uid));
                        }
                    }
                }
            }
        }
        out
    }
}

fn class(qos: Qos) -> Option<&'static str> {
    match qos {
        Qos::Guaranteed => None,
        Qos::Burstable => Some("burstable"),
        Qos::BestEffort => Some("besteffort"),
    }
}

/// `a-b.slice` lies in `a.slice/a-b.slice`.
fn slice_path(slice: &str) -> String {
    let name = slice.trim_end_matches(".slice");
    let mut out = String::new();
    let mut so_far = String::new();
    for part in name.split('-') {
        if !so_far.is_empty() {
            so_far.push('-');
        }
        so_far.push_str(part);
        if !out.is_empty() {
            out.push('/');
        }
        out.push_str(&so_far);
        out.push_str(".slice");
    }
    out
}

fn write(dir: &Path, file: &str, value: impl ToString) -> Result<()> {
    let path = dir.join(file);
    std::fs::write(&path, value.to_string()).map_err(Error::io("write", &path))
}

fn enable_controllers(root: &Path, relative: &str) -> Result<()> {
    let available = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> = available
        .split_whitespace()
        .filter(|c| ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"].contains(c))
        .map(|c| format!("+{c}"))
        .collect();
    let mut dir = root.to_path_buf();
    for part in relative.split('/') {
        // The deepest folder keeps its controllers to itself until the runtime makes children.
        let _ = std::fs::write(dir.join("cgroup.subtree_control"), wanted.join(" "));
        dir.push(part);
        std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    }
    let _ = std::fs::write(dir.join("cgroup.subtree_control"), wanted.join(" "));
    Ok(())
}

fn remove_tree(dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(e)),
        _ => Ok(()),
    }
}

fn properties(limits: PodLimits) -> Vec<Property> {
    let mut out = vec![("CPUWeight", cpu_weight(limits.cpu_shares))];
    let mut put = |name, value: Option<i64>| out.extend(value.and_then(|v| u64::try_from(v).ok()).map(|v| (name, v)));
    // systemd counts a quota in microseconds per second, the kernel here per 100 ms.
    put(
        "CPUQuotaPerSecUSec",
        limits
            .cpu_quota
            .map(|q| q.saturating_mul(1_000_000 / crate::qos::CPU_PERIOD)),
    );
    put("MemoryMax", limits.memory);
    put("TasksMax", limits.pids);
    out
}

const MANAGER: [&str; 4] = [
    "call",
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
];

async fn ensure_slice(name: &str, properties: &[Property]) -> Result<()> {
    let mut values: Vec<String> = vec![];
    for (key, value) in properties {
        values.extend([(*key).to_owned(), "t".into(), value.to_string()]);
    }
    for flag in ["CPUAccounting", "MemoryAccounting", "TasksAccounting"] {
        values.extend([flag.to_owned(), "b".into(), "true".into()]);
    }
    let count = (properties.len() + 3).to_string();
    let mut start: Vec<&str> = MANAGER.to_vec();
    start.extend(["StartTransientUnit", "ssa(sv)a(sa(sv))", name, "replace", &count]);
    start.extend(values.iter().map(String::as_str));
    start.push("0");
    match run("busctl", &start).await {
        Ok(()) => Ok(()),
        Err(Error::Other(message)) if message.contains("already loaded") || message.contains("already exists") => {
            let mut set: Vec<&str> = MANAGER.to_vec();
            set.extend(["SetUnitProperties", "sba(sv)", name, "true", &count]);
            set.extend(values.iter().map(String::as_str));
            run("busctl", &set).await
        }
        Err(e) => Err(e),
    }
}

async fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = tokio::process::Command::new(program)
        .args(args)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(std::time::Duration::from_secs(30), output).await {
        Ok(Ok(o)) if o.status.success() => Ok(()),
        Ok(Ok(o)) => Err(Error::Other(format!(
            "{program}: {}",
            String::from_utf8_lossy(&o.stderr).trim()
        ))),
        Ok(Err(e)) => Err(Error::Other(format!("{program}: {e}"))),
        Err(_) => Err(Error::Other(format!("{program}: no answer within 30 s"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroups(driver: CgroupDriver, root: Option<&str>) -> Cgroups {
        Cgroups::new(driver, root, Layout::V1(vec![]))
    }

    #[test]
    fn names_are_upstreams_for_both_drivers() {
        let uid = "a1-b2";
        for (driver, root, qos, parent, path) in [
            (
                CgroupDriver::Systemd,
                None,
                Qos::Guaranteed,
                "kubepods-poda1_b2.slice",
                "kubepods.slice/kubepods-poda1_b2.slice",
            ),
            (
                CgroupDriver::Systemd,
                None,
                Qos::Burstable,
                "kubepods-burstable-poda1_b2.slice",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda1_b2.slice",
            ),
            (
                CgroupDriver::Cgroupfs,
                None,
                Qos::BestEffort,
                "/kubepods/besteffort/poda1-b2",
                "kubepods/besteffort/poda1-b2",
            ),
            (
                CgroupDriver::Cgroupfs,
                Some("/x"),
                Qos::Guaranteed,
                "/x/kubepods/poda1-b2",
                "x/kubepods/poda1-b2",
            ),
        ] {
            let c = cgroups(driver, root);
            assert_eq!(c.pod_parent(qos, uid), parent);
            assert_eq!(c.path(parent), path);
        }
    }

    #[test]
    fn layouts_are_told_apart() {
        let v1 = "30 29 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        let unified = "32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let Layout::V1(list) = Layout::parse(&format!("{v1}{unified}")) else {
            panic!("hybrid is v1")
        };
        assert_eq!(
            list[0],
            (
                vec!["cpu".to_owned(), "cpuacct".to_owned()],
                PathBuf::from("/sys/fs/cgroup/cpu")
            )
        );
        assert_eq!(list[1].0, ["name=systemd"]);
        assert_eq!(list[2], (vec![], PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(
            Layout::parse("30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"),
            Layout::V2("/sys/fs/cgroup".into())
        );
    }

    #[test]
    fn quotas_become_systemds_microseconds_per_second() {
        let p = properties(PodLimits {
            cpu_shares: 1024,
            cpu_quota: Some(50_000),
            memory: Some(1 << 20),
            pids: None,
        });
        assert_eq!(
            p,
            [
                ("CPUWeight", 39),
                ("CPUQuotaPerSecUSec", 500_000),
                ("MemoryMax", 1 << 20)
            ]
        );
    }
}
