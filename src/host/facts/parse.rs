//! Pure readers of what the kernel and the distribution write about themselves.

use std::collections::BTreeMap;

use super::CgroupMode;

/// `/etc/os-release` (os-release(5)).
pub(super) fn os_release(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.trim().split_once('='))
        .map(|(key, value)| {
            let bare = value.trim().trim_matches(['"', '\'']);
            (
                key.to_owned(),
                bare.replace("\\\"", "\"").replace("\\$", "$").replace("\\\\", "\\"),
            )
        })
        .collect()
}

/// A field of `/proc/meminfo`, in bytes.
pub(super) fn meminfo(text: &str, field: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: u64 = line
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    kib * 1024
}

/// Names of the bits of `CapEff` in `/proc/self/status` (capabilities(7)).
pub(super) fn capabilities(status: &str) -> Vec<String> {
    let hex = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap_or_default()
        .trim();
    let bits = u64::from_str_radix(hex, 16).unwrap_or(0);
    let names = CAPABILITIES.split_whitespace().enumerate();
    names
        .filter(|(n, _)| bits >> n & 1 == 1)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect()
}

/// In the order of their numbers.
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT \
    SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE \
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

/// How control groups are mounted, and the controllers of version 1, from `/proc/self/mounts`.
pub(super) fn cgroups(mounts: &str) -> (CgroupMode, Vec<String>) {
    let mut controllers = Vec::new();
    let (mut v1, mut v2_root, mut v2_beside) = (false, false, false);
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, at, kind, options, ..] = words[..] else {
            continue;
        };
        match kind {
            "cgroup2" if at == "/sys/fs/cgroup" => v2_root = true,
            "cgroup2" if at.starts_with("/sys/fs/cgroup/") => v2_beside = true,
            "cgroup" => {
                v1 = true;
                let known = |o: &&str| V1_CONTROLLERS.contains(o);
                controllers.extend(options.split(',').filter(known).map(str::to_owned));
            }
            _ => {}
        }
    }
    controllers.sort();
    controllers.dedup();
    let mode = match (v1, v2_root, v2_beside) {
        (_, true, _) => CgroupMode::V2,
        (true, false, true) => CgroupMode::Hybrid,
        (true, false, false) => CgroupMode::V1,
        (false, false, _) => CgroupMode::None,
    };
    (mode, controllers)
}

const V1_CONTROLLERS: [&str; 13] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "rdma",
];

/// Listening sockets of `/proc/net/tcp` or `tcp6` on one of `ports`: port, address, inode.
pub(super) fn listeners(text: &str, ports: &[u16]) -> Vec<(u16, String, u64)> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = words.get(1)?.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let listening = *words.get(3)? == "0A";
        if !listening || !ports.contains(&port) {
            return None;
        }
        Some((port, hex_address(address)?, words.get(9)?.parse().ok()?))
    };
    text.lines().skip(1).filter_map(parse).collect()
}

/// The kernel prints addresses as 32-bit words in the machine's byte order.
pub(crate) fn hex_address(hex: &str) -> Option<String> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(8)
        .map(word)
        .collect::<Option<Vec<_>>>()?
        .concat();
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes)
            .ok()
            .map(|b| std::net::Ipv4Addr::from(b).to_string()),
        16 => <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|b| std::net::Ipv6Addr::from(b).to_string()),
        _ => None,
    }
}

/// The systemd unit of a process, from its `/proc/PID/cgroup`.
pub(super) fn unit_of(cgroup: &str) -> String {
    cgroup
        .lines()
        .filter(|line| line.contains("name=systemd:") || line.starts_with("0::"))
        .flat_map(|line| line.rsplit('/'))
        .find(|part| {
            [".service", ".scope", ".socket"]
                .iter()
                .any(|suffix| part.ends_with(suffix))
        })
        .unwrap_or_default()
        .to_owned()
}

/// `systemd 252 (252.39-1~deb12u1)`.
pub(super) fn systemd_version(text: &str) -> u32 {
    text.split(|c: char| !c.is_ascii_digit())
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

/// A value of `systemctl show`; empty if it says nothing of it.
pub(super) fn property<'a>(text: &'a str, name: &str) -> &'a str {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix('=');
    text.lines().find_map(value).unwrap_or_default()
}

/// The units of `systemctl list-units --plain --no-legend` of which the column ACTIVE says `state`.
pub(super) fn units_that_are<'a>(text: &'a str, state: &str) -> Vec<&'a str> {
    let unit = |line: &'a str| {
        let mut words = line.split_whitespace();
        let (name, _loaded, active) = (words.next()?, words.next()?, words.next()?);
        (active == state).then_some(name)
    };
    text.lines().filter_map(unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_says_is_understood() {
        let shown = "Version=252.39-1~deb12u1\nSystemState=degraded\n";
        assert_eq!(property(shown, "SystemState"), "degraded");
        assert_eq!(property(shown, "Version"), "252.39-1~deb12u1");
        assert_eq!((property(shown, "State"), property("", "Version")), ("", ""));
        let listed = "a.service    loaded active running The first\nb@x.service loaded failed failed Another\n\
                      dev-sda1.device  loaded active plugged Some disk\nc.mount not-found inactive dead c.mount\n\n";
        assert_eq!(units_that_are(listed, "failed"), ["b@x.service"]);
        assert_eq!(units_that_are(listed, "active"), ["a.service", "dev-sda1.device"]);
        assert!(units_that_are("Failed to list units: Host is down", "active").is_empty());
    }

    #[test]
    fn os_release_is_unquoted() {
        let os = os_release("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n# x=y\nEMPTY=\n");
        assert_eq!(
            (os["ID"].as_str(), os["PRETTY_NAME"].as_str(), os["EMPTY"].as_str()),
            ("debian", "Debian GNU/Linux 12 (bookworm)", "")
        );
        assert_eq!(os.len(), 3);
    }

    #[test]
    fn cgroup_layouts_are_told_apart() {
        let v1 = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n";
        let table = [
            (
                "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n".to_owned(),
                CgroupMode::V2,
            ),
            (v1.to_owned(), CgroupMode::V1),
            (
                format!("{v1}cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"),
                CgroupMode::Hybrid,
            ),
            ("tmpfs / tmpfs rw 0 0\n".to_owned(), CgroupMode::None),
        ];
        for (mounts, mode) in table {
            assert_eq!(cgroups(&mounts).0, mode, "{mounts}");
        }
        assert_eq!(cgroups(v1).1, ["cpu", "cpuacct"]);
    }

    #[test]
    fn listening_sockets_are_found_by_port() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                   0: 0100007F:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1\n\
                   1: 0100007F:192B 0100007F:8000 01 00000000:00000000 00:00000000 00000000 0 0 4712 1\n\
                   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4713 1\n";
        assert_eq!(listeners(tcp, &[6443]), [(6443, "127.0.0.1".to_owned(), 4711)]);
        assert_eq!(listeners(tcp, &[22]), [(22, "0.0.0.0".to_owned(), 4713)]);
    }

    #[test]
    fn the_unit_of_a_process_is_read_from_either_hierarchy() {
        assert_eq!(unit_of("0::/system.slice/ssh.service\n"), "ssh.service");
        assert_eq!(
            unit_of("4:memory:/x\n1:name=systemd:/system.slice/a.service/sub\n"),
            "a.service"
        );
        assert_eq!(unit_of("0::/\n"), "");
    }

    #[test]
    fn numbers_are_read() {
        assert_eq!(
            meminfo("MemTotal:       16 kB\nMemAvailable: 8 kB\n", "MemAvailable"),
            8192
        );
        for (text, version) in [("252.39-1~deb12u1", 252), ("257", 257), ("v2", 0), ("", 0)] {
            assert_eq!(systemd_version(text), version, "{text}");
        }
        assert_eq!(
            capabilities("CapEff:\t0000000001000001\n"),
            ["CAP_CHOWN", "CAP_SYS_RESOURCE"]
        );
    }
}
