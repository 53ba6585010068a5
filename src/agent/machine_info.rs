//! What the machine is: size, identity, operating system. Read once at the start (and capacity when the Node is written).

use crate::config::Config;
use crate::quantity;
use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::path::Path;

/// Size of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// CPUs.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory: u64,
}

impl Size {
    /// Reads it from /proc.
    pub fn read() -> Size {
        let cpus = std::fs::read_to_string("/proc/cpuinfo")
            .map(|t| t.lines().filter(|l| l.starts_with("processor")).count())
            .ok()
            .filter(|n| *n > 0)
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1);
        let memory = std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|t| crate::eviction::meminfo(&t))
            .map_or(0, |(_, total)| total);
        Size {
            cpus: u32::try_from(cpus).unwrap_or(1),
            memory,
        }
    }
}

fn amount(n: impl ToString) -> Quantity {
    Quantity(n.to_string())
}

/// Capacity of the node.
pub fn capacity(size: Size, root: &Path, max_pods: u32) -> BTreeMap<String, Quantity> {
    let mut out: BTreeMap<String, Quantity> = [
        ("cpu".to_owned(), amount(size.cpus)),
        ("memory".to_owned(), Quantity(format!("{}Ki", size.memory / 1024))),
        ("pods".to_owned(), amount(max_pods)),
    ]
    .into();
    if let Some(s) = crate::eviction::space(root) {
        out.insert("ephemeral-storage".into(), Quantity(format!("{}Ki", s.capacity / 1024)));
    }
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(kb) = name
            .strip_prefix("hugepages-")
            .and_then(|n| n.strip_suffix("kB"))
            .and_then(|n| n.parse::<u64>().ok())
        else {
            continue;
        };
        let pages: u64 = std::fs::read_to_string(entry.path().join("nr_hugepages"))
            .ok()
            .and_then(|t| t.trim().parse().ok())
            .unwrap_or(0);
        let size = match kb {
            k if k >= 1 << 20 => format!("{}Gi", k >> 20),
            k if k >= 1 << 10 => format!("{}Mi", k >> 10),
            k => format!("{k}Ki"),
        };
        out.insert(format!("hugepages-{size}"), amount(kb * 1024 * pages));
    }
    out
}

/// What pods may use: capacity less what is reserved and the hard eviction thresholds.
pub fn allocatable(capacity: &BTreeMap<String, Quantity>, config: &Config) -> BTreeMap<String, Quantity> {
    let mut out = capacity.clone();
    let reserved = |resource: &str| -> i64 {
        let lists = [&config.system_reserved, &config.kube_reserved];
        let texts = lists.into_iter().filter_map(|r| r.get(resource));
        quantity::sum(texts.filter_map(|q| quantity::milli(q)))
    };
    for (resource, value) in &mut out {
        let Some(all) = quantity::milli(&value.0) else { continue };
        let signal = match resource.as_str() {
            "memory" => "memory.available",
            "ephemeral-storage" => "nodefs.available",
            _ => "",
        };
        let threshold = config
            .eviction_hard
            .get(signal)
            .map_or(0, |t| match t.strip_suffix('%') {
                Some(p) => (all as f64 * p.parse::<f64>().unwrap_or(0.0) / 100.0) as i64,
                None => quantity::milli(t).unwrap_or(0),
            });
        let taken = reserved(resource).saturating_add(threshold);
        if taken > 0 {
            let left = all.saturating_sub(taken).max(0);
            *value = match resource.as_str() {
                "cpu" => Quantity(format!("{left}m")),
                "memory" => Quantity(format!("{}Ki", left / 1000 / 1024)),
                _ => amount(left / 1000),
            };
        }
    }
    out
}

fn first_line(path: &str) -> Option<String> {
    std::fs::read_to_string(path)
        .ok()
        .map(|t| t.trim().to_owned())
        .filter(|t| !t.is_empty())
}

/// Identity of the machine for the Node object.
pub fn system_info(runtime: &str) -> NodeSystemInfo {
    let machine_id = first_line("/etc/machine-id").unwrap_or_default();
    let uname = rustix::system::uname();
    let os_image = std::fs::read_to_string("/etc/os-release")
        .ok()
        .and_then(|t| {
            t.lines()
                .find_map(|l| l.strip_prefix("PRETTY_NAME=").map(|v| v.trim_matches('"').to_owned()))
        })
        .unwrap_or_else(|| "Linux".into());
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: first_line("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        container_runtime_version: runtime.into(),
        kernel_version: uname.release().to_string_lossy().into_owned(),
        kube_proxy_version: String::new(),
        kubelet_version: api::KUBERNETES_VERSION.into(),
        system_uuid: first_line("/sys/class/dmi/id/product_uuid").unwrap_or_else(|| machine_id.clone()),
        machine_id,
        operating_system: "linux".into(),
        os_image,
        swap: None,
    }
}

/// The architecture as Kubernetes names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether any swap is on.
pub fn swap_on() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|t| t.lines().count() > 1)
}

/// The node's name: lower case, as a Node object needs it.
pub fn node_name(given: Option<&str>) -> String {
    match given {
        Some(n) => n.trim().to_lowercase(),
        None => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .trim()
            .to_lowercase(),
    }
}

/// The address a route to the outside would have; the first global one otherwise.
pub fn own_address() -> Option<std::net::IpAddr> {
    // Connecting a datagram socket sends nothing, it only asks the routing table.
    for target in ["192.0.2.1:9", "[2001:db8::1]:9"] {
        let bind = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        if let Ok(socket) = std::net::UdpSocket::bind(bind)
            && socket.connect(target).is_ok()
            && let Ok(address) = socket.local_addr()
            && !address.ip().is_loopback()
            && !address.ip().is_unspecified()
        {
            return Some(address.ip());
        }
    }
    first_global(&std::fs::read_to_string("/proc/net/fib_trie").ok()?)
}

/// The first local address that is not loopback in the kernel's table of IPv4 addresses.
fn first_global(fib: &str) -> Option<std::net::IpAddr> {
    let mut last = None;
    for line in fib.lines() {
        if let Some(text) = line.trim().strip_prefix("|-- ") {
            last = text.trim().parse::<std::net::Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL")
            && let Some(ip) = last.filter(|ip| !ip.is_loopback())
        {
            return Some(ip.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocatable_is_what_reservations_and_thresholds_leave() {
        let capacity = [
            ("cpu".to_owned(), Quantity("2".into())),
            ("memory".to_owned(), Quantity("1048576Ki".into())),
            ("pods".to_owned(), Quantity("110".into())),
        ]
        .into();
        let config = Config {
            system_reserved: [("cpu".to_owned(), "100m".to_owned())].into(),
            ..Config::default()
        };
        let out = allocatable(&capacity, &config);
        assert_eq!(
            (out["cpu"].0.as_str(), out["memory"].0.as_str(), out["pods"].0.as_str()),
            ("1900m", "946176Ki", "110")
        );
    }

    #[test]
    fn the_first_local_address_is_found() {
        let fib = "Local:\n        |-- 127.0.0.1\n           /32 host LOCAL\n     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.5\n        /32 host LOCAL\n";
        assert_eq!(first_global(fib), Some("10.0.0.5".parse().unwrap()));
    }
}
