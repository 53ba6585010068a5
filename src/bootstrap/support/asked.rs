//! What a host is asked, as programs and their arguments. None of them changes anything.

/// Where the kubelet's layout has logs of containers.
pub(super) const LOG_FOLDER: &str = "/var/log/pods/";
/// Bytes of one container's log.
pub(super) const LOG_BYTES: &str = "262144";
/// Logs of the pods of `kube-system`, rotated ones left out.
pub(super) const POD_LOGS: &[&str] = &[
    "find",
    LOG_FOLDER,
    "-path",
    "/var/log/pods/kube-system_*",
    "-name",
    "*.log",
];

const CTR: &str = crate::paths::CTR;
const SOCKET: &str = crate::paths::CONTAINERD_SOCKET;

/// File of the bundle, and the program whose output is in it.
pub(super) const PROGRAMS: &[(&str, &[&str])] = &[
    ("uname.txt", &["uname", "-a"]),
    ("uptime.txt", &["uptime"]),
    ("memory.txt", &["cat", "/proc/meminfo"]),
    ("pressure.txt", &["grep", "-r", ".", "/proc/pressure"]),
    ("disks.txt", &["df", "-h"]),
    ("inodes.txt", &["df", "-i"]),
    ("mounts.txt", &["cat", "/proc/mounts"]),
    ("processes.txt", &["ps", "-eo", "pid,ppid,user,stat,rss,etime,comm"]),
    ("time.txt", &["timedatectl", "status"]),
    ("ip-address.txt", &["ip", "-d", "address"]),
    ("ip-route.txt", &["ip", "route", "show", "table", "all"]),
    ("ip-rule.txt", &["ip", "rule"]),
    ("listeners.txt", &["ss", "-lntup"]),
    ("resolv.conf", &["cat", "/etc/resolv.conf"]),
    ("hosts", &["cat", "/etc/hosts"]),
    ("nft-ruleset.txt", &["nft", "list", "ruleset"]),
    (
        "units/status.txt",
        &[
            "systemctl",
            "status",
            "--no-pager",
            "--full",
            "--lines=0",
            "installer-*",
        ],
    ),
    (
        "units/failed.txt",
        &["systemctl", "list-units", "--no-pager", "--failed"],
    ),
    (
        "kernel.log",
        &["journalctl", "--no-pager", "-k", "-n", "2000", "-o", "short-iso"],
    ),
    ("containerd/config.toml", &["cat", crate::paths::CONTAINERD_CONFIG]),
    ("containerd/version.txt", &[CTR, "--address", SOCKET, "version"]),
    (
        "containerd/containers.txt",
        &[CTR, "--address", SOCKET, "-n", "k8s.io", "containers", "list"],
    ),
    (
        "containerd/tasks.txt",
        &[CTR, "--address", SOCKET, "-n", "k8s.io", "tasks", "list"],
    ),
    (
        "containerd/images.txt",
        &[CTR, "--address", SOCKET, "-n", "k8s.io", "images", "list"],
    ),
    ("kubelet/config.yaml", &["cat", crate::paths::KUBELET_CONFIG]),
    ("static-pods.txt", &["ls", "-l", crate::paths::STATIC_PODS]),
    ("pki.txt", &["ls", "-lR", crate::paths::PKI]),
    ("rootfs.txt", &["ls", "-l", "/opt/installer", "/opt/installer/"]),
];

/// The last of a unit's journal.
pub(super) fn journal(unit: &str) -> [&str; 8] {
    ["journalctl", "--no-pager", "-o", "short-iso", "-n", "5000", "-u", unit]
}

/// `/var/log/pods/kube-system_dns-x_UID/dns/0.log` becomes `pods/kube-system_dns-x/dns/0.log`. Never leaves its folder.
pub(super) fn log_name(path: &str) -> String {
    let clean = |part: &str| -> String {
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '_'
            }
        };
        part.chars().map(plain).collect()
    };
    let parts = path.strip_prefix(LOG_FOLDER).unwrap_or(path).split('/');
    let mut parts = parts.filter(|part| !matches!(*part, "" | "." | ".."));
    let pod = parts.next().unwrap_or_default();
    let pod = pod.rsplit_once('_').map_or(pod, |(pod, _)| pod);
    let rest: Vec<String> = parts.map(clean).collect();
    format!("pods/{}/{}", clean(pod), rest.join("/"))
}
