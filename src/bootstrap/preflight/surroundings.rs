//! What does not stop an installation and troubles it later: slow disks, little entropy, packet filters, hosts that are not alike.

use super::{Finding, is_installed, traces, warning};
use crate::{
    effects::agent,
    nameservers::Nameservers,
    paths::RESOLVER,
    site::{Seat, Site},
};
use host::facts::RESOLVED_CONF;
use std::collections::BTreeMap;

/// etcd's documentation asks for durable writes below this, in microseconds; slower ones lose it its leadership.
const FSYNC_US: u64 = 10_000;
/// What shows that Docker runs, and is not only installed.
const DOCKER: &str = "/run/docker.sock";
/// Kernels from 5.6 on have 256 bits as soon as they have any.
const ENTROPY: u32 = 128;
/// glibc asks no more name servers than these, and drops the others without a word.
const NAMESERVERS: usize = 3;

pub(super) fn look(site: &Site, seat: &Seat, findings: &mut Vec<Finding>) {
    let facts = &seat.facts;
    if let Some(us) = facts.fsync_us.filter(|us| seat.master && *us > FSYNC_US) {
        let cause = format!(
            "a small durable write takes {:.1} ms on the disk of {}; etcd wants less than {} ms",
            us as f64 / 1000.0,
            site.scope.data_root,
            FSYNC_US / 1000
        );
        let remedy = "give masters a faster disk, or one of their own; the cluster will be slow and may lose its leader under load";
        findings.push(warning(seat, "fsync", cause, remedy));
    }
    // What does not say is a kernel without the file.
    if (1..ENTROPY).contains(&facts.entropy) {
        let cause = format!(
            "the kernel has {} of entropy; making keys may hang",
            oci::counted(facts.entropy, "bit")
        );
        findings.push(warning(
            seat,
            "entropy",
            cause,
            "install rng-tools or haveged, or give the machine a hardware source",
        ));
    }
    nameservers(site, seat, findings);
    let installed = is_installed(site, seat);
    if !installed && !facts.firewalls.is_empty() {
        let ports: Vec<String> = traces::ports(site, seat.master, seat.registry)
            .iter()
            .map(u16::to_string)
            .collect();
        let cause = format!(
            "{} runs and filters packets by its own rules",
            facts.firewalls.join(" and ")
        );
        let remedy = format!(
            "let the cluster's hosts reach TCP {} and UDP 4789 here, and let {} and {} pass; or switch it off",
            ports.join(", "),
            site.networks.pod_cidr,
            site.networks.service_cidr
        );
        findings.push(warning(seat, "firewall", cause, remedy));
    }
    if !installed && facts.runtimes.get("docker").is_some_and(|shown| shown == DOCKER) {
        findings.push(docker(site, seat));
    }
}

/// What pods and cluster DNS get of the host's name servers. A file that the Clusterfile or the image names is the user's own choice.
fn nameservers(site: &Site, seat: &Seat, findings: &mut Vec<Finding>) {
    let facts = &seat.facts;
    let fields = agent::kubelet_fields(site, seat).unwrap_or_default();
    let choice = fields.get(agent::RESOLV_CONF).and_then(serde_json::Value::as_str);
    let (file, count) = match (choice, Nameservers::of(facts)) {
        (None | Some(RESOLVER), Nameservers::Loopback { servers, rest }) => {
            let others = if rest { "besides others " } else { "only " };
            let cause = format!(
                "{RESOLVER} names {others}{}, which in a pod is the pod itself: pods and cluster DNS cannot ask there for names outside of the cluster",
                servers.join(" and ")
            );
            let remedy = format!(
                "name servers there that pods can reach, or let systemd-resolved run, whose {RESOLVED_CONF} is taken then, or name another file in resolvConf of a KubeletConfiguration; where no outside name is needed nothing need be done"
            );
            findings.push(warning(seat, "dns", cause, remedy));
            return;
        }
        (None, Nameservers::Etc) | (Some(RESOLVER), _) => (RESOLVER, facts.nameservers.len()),
        (Some(RESOLVED_CONF), _) => (RESOLVED_CONF, facts.resolved_nameservers.len()),
        _ => return,
    };
    if count > NAMESERVERS {
        let cause = format!("{file} has {count} name servers; pods use the first {NAMESERVERS}");
        findings.push(warning(seat, "dns", cause, "leave those that matter in front"));
    }
}

/// Docker accepts only its own packets of those that are forwarded, if it was Docker that switched forwarding on. What it drops nobody else
/// can accept, but it leaves one chain to others.
fn docker(site: &Site, seat: &Seat) -> Finding {
    let pods = site.networks.pod_cidr;
    let cause = "Docker runs, which drops what it does not forward itself, also packets of pods, unless forwarding was on before it started";
    let remedy = format!(
        "see `iptables -S FORWARD`; where the policy is DROP, let pods pass now and after each start of Docker: iptables -I DOCKER-USER -s {pods} -j ACCEPT; iptables -I DOCKER-USER -d {pods} -j ACCEPT"
    );
    warning(seat, "firewall", cause, remedy)
}

/// Names the hosts that are not as most are.
pub(super) fn compare(site: &Site, findings: &mut Vec<Finding>) {
    type Property = (&'static str, &'static str, fn(&Seat) -> String, &'static str);
    let properties: [Property; 2] = [
        (
            "time-zone",
            "time zone",
            |seat| seat.facts.time_zone.clone(),
            "logs are easier to compare in one time zone: timedatectl set-timezone ZONE",
        ),
        (
            "mtu",
            "largest packet",
            mtu,
            "packets of one size must pass between all hosts: set the same MTU on them, and on what lies between",
        ),
    ];
    for (check, what, property, remedy) in properties {
        let mut owners: BTreeMap<String, Vec<&Seat>> = BTreeMap::new();
        for seat in site.seats.iter().filter(|seat| !property(seat).is_empty()) {
            owners.entry(property(seat)).or_default().push(seat);
        }
        let Some((usual, many)) = owners.iter().max_by_key(|(_, seats)| seats.len()) else {
            continue;
        };
        for (value, seats) in owners.iter().filter(|(value, _)| *value != usual) {
            for seat in seats {
                let cause = format!("its {what} is {value}, that of {} is {usual}", many[0].name);
                findings.push(warning(seat, check, cause, remedy));
            }
        }
    }
}

/// Of the interface that has the host's address.
fn mtu(seat: &Seat) -> String {
    let own = seat
        .facts
        .addresses
        .iter()
        .find(|address| address.ip == seat.ip.to_string());
    own.filter(|address| address.mtu > 0)
        .map(|address| address.mtu.to_string())
        .unwrap_or_default()
}
