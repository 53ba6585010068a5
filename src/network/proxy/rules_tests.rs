use proptest::prelude::*;

use super::*;
use crate::proxy::{
    model::Protocol,
    table::{change, whole},
};

fn cluster() -> Cidr {
    "100.64.0.0/16".parse().unwrap()
}

fn ends(addresses: &[&str]) -> BTreeSet<Endpoint> {
    addresses
        .iter()
        .map(|address| Endpoint {
            address: address.parse().unwrap(),
            port: 8080,
        })
        .collect()
}

fn service(all: &[&str], local: &[&str]) -> ServicePort {
    ServicePort {
        id: "ns/web/tcp/80".to_owned(),
        protocol: Protocol::Tcp,
        cluster_ip: "10.96.0.5".parse().unwrap(),
        port: 80,
        node_port: None,
        external_ips: BTreeSet::new(),
        balancer_ips: BTreeSet::new(),
        source_ranges: BTreeSet::new(),
        affinity: None,
        internal_local: false,
        external_local: false,
        all: ends(all),
        local: ends(local),
        serving: BTreeSet::new(),
    }
}

fn of(service: &ServicePort) -> Content {
    content(std::slice::from_ref(service), &[], cluster())
}

fn verdict<'a>(content: &'a Content, group: Group, key: &str) -> Option<&'a str> {
    content
        .elements
        .get(&(group, key.to_owned()))
        .and_then(|verdict| verdict.as_deref())
}

const SERVICE: &str = "10.96.0.5 . tcp . 80";

#[test]
fn a_cluster_ip_balances_over_all_endpoints() {
    let content = of(&service(&["100.64.0.1", "100.64.1.2"], &["100.64.0.1"]));
    assert_eq!(
        verdict(&content, Group::Services, SERVICE),
        Some("goto service/ns/web/tcp/80")
    );
    assert_eq!(
        content.chains["service/ns/web/tcp/80"],
        ["ip saddr != 100.64.0.0/16 jump mark-packet", "goto all/ns/web/tcp/80"]
    );
    assert_eq!(
        content.chains["all/ns/web/tcp/80"],
        ["meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 100.64.0.1 . 8080, 1 : 100.64.1.2 . 8080 }"]
    );
    assert!(
        content
            .elements
            .contains_key(&(Group::Hairpin, "100.64.0.1 . 100.64.0.1".to_owned()))
    );
    assert!(
        !content
            .elements
            .contains_key(&(Group::Hairpin, "100.64.1.2 . 100.64.1.2".to_owned()))
    );
    assert!(!content.chains.contains_key("local/ns/web/tcp/80"));
}

#[test]
fn without_endpoints_only_the_refusal_is_left() {
    let mut service = service(&[], &[]);
    service.node_port = Some(30080);
    service.external_ips.insert("1.2.3.4".parse().unwrap());
    let content = of(&service);
    assert!(content.chains.is_empty());
    assert_eq!(verdict(&content, Group::Services, SERVICE), None);
    assert!(
        content
            .elements
            .contains_key(&(Group::ClusterIps, "10.96.0.5".to_owned()))
    );
    assert_eq!(
        verdict(&content, Group::UnservedPorts, "tcp . 30080"),
        Some("goto refuse")
    );
    assert_eq!(
        verdict(&content, Group::UnservedIps, "1.2.3.4 . tcp . 80"),
        Some("goto refuse")
    );
}

#[test]
fn outer_traffic_is_masqueraded_unless_it_stays_local() {
    let mut service = service(&["100.64.0.1", "100.64.1.2"], &["100.64.0.1"]);
    service.node_port = Some(30080);
    let cluster_policy = of(&service);
    assert_eq!(
        cluster_policy.chains["external/ns/web/tcp/80"],
        ["jump mark-packet", "goto all/ns/web/tcp/80"]
    );
    assert_eq!(verdict(&cluster_policy, Group::UnservedPorts, "tcp . 30080"), None);
    service.external_local = true;
    let local_policy = of(&service);
    let rules = &local_policy.chains["external/ns/web/tcp/80"];
    assert_eq!(rules.last().unwrap(), "goto local/ns/web/tcp/80");
    assert_eq!(
        local_policy.chains["local/ns/web/tcp/80"],
        ["meta l4proto tcp dnat to 100.64.0.1:8080"]
    );
    service.local.clear();
    let elsewhere = of(&service);
    assert_eq!(verdict(&elsewhere, Group::UnservedPorts, "tcp . 30080"), Some("drop"));
    assert!(
        !elsewhere.chains["external/ns/web/tcp/80"]
            .iter()
            .any(|rule| rule.contains("local/"))
    );
}

#[test]
fn internal_policy_local_never_leaves_the_node() {
    let mut service = service(&["100.64.0.1", "100.64.1.2"], &["100.64.0.1"]);
    service.internal_local = true;
    let content = of(&service);
    assert_eq!(content.chains["service/ns/web/tcp/80"][1], "goto local/ns/web/tcp/80");
    assert!(!content.chains.contains_key("all/ns/web/tcp/80"));
    service.local.clear();
    assert_eq!(verdict(&of(&service), Group::Services, SERVICE), None);
}

#[test]
fn balancer_addresses_are_guarded_by_the_source_ranges() {
    let mut service = service(&["100.64.0.1"], &[]);
    service.balancer_ips.insert("5.6.7.8".parse().unwrap());
    service.external_ips.insert("1.2.3.4".parse().unwrap());
    service.source_ranges.insert("10.0.0.0/8".parse().unwrap());
    let content = of(&service);
    assert_eq!(
        verdict(&content, Group::Services, "5.6.7.8 . tcp . 80"),
        Some("goto firewall/ns/web/tcp/80")
    );
    assert_eq!(
        verdict(&content, Group::Services, "1.2.3.4 . tcp . 80"),
        Some("goto external/ns/web/tcp/80")
    );
    assert_eq!(
        content.chains["firewall/ns/web/tcp/80"],
        ["ip saddr { 10.0.0.0/8 } goto external/ns/web/tcp/80", "drop"]
    );
}

#[test]
fn affinity_remembers_clients_per_endpoint() {
    let mut service = service(&["100.64.0.1", "100.64.1.2"], &[]);
    service.affinity = Some(60);
    let content = of(&service);
    assert_eq!(content.affinity.len(), 2);
    let rules = &content.chains["all/ns/web/tcp/80"];
    assert_eq!(rules.len(), 3);
    assert!(rules[0].starts_with("ip saddr @affinity/60/ns/web/tcp/80/100.64.0.1/8080 goto endpoint/"));
}

#[test]
fn the_same_content_needs_no_change() {
    let content = of(&service(&["100.64.0.1"], &[]));
    assert_eq!(change(&content, &content), "");
}

#[test]
fn a_changed_endpoint_touches_its_own_chain_only() {
    let mut other = service(&["100.64.0.7"], &[]);
    other.id = "ns/other/tcp/80".to_owned();
    other.cluster_ip = "10.96.0.6".parse().unwrap();
    let before = content(&[service(&["100.64.0.1"], &[]), other.clone()], &[], cluster());
    let after = content(&[service(&["100.64.0.2"], &[]), other], &[], cluster());
    assert_eq!(
        change(&before, &after),
        "flush chain ip installer-proxy all/ns/web/tcp/80\n\
         add rule ip installer-proxy all/ns/web/tcp/80 meta l4proto tcp dnat to 100.64.0.2:8080\n"
    );
}

/// Applies scripts in a network namespace of its own, as the kernel sees them.
fn nft_accepts(scripts: &[String]) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let mut command = "set -e\n".to_owned();
    for (i, script) in scripts.iter().enumerate() {
        let file = dir.path().join(i.to_string());
        std::fs::write(&file, script).unwrap();
        command += &format!("nft -f {}\n", file.display());
    }
    let output = std::process::Command::new("unshare")
        .args(["-n", "sh", "-c", &command])
        .output()
        .unwrap();
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn any_service() -> impl Strategy<Value = ServicePort> {
    let address = (0u8..3, 1u8..4).prop_map(|(node, pod)| std::net::Ipv4Addr::new(100, 64, node, pod));
    let outer =
        |first: u8| proptest::option::of((1u8..3).prop_map(move |last| std::net::Ipv4Addr::new(first, 0, 0, last)));
    let flags = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (
        0u8..4,
        proptest::collection::btree_set(address, 0..4),
        flags,
        outer(1),
        outer(2),
        any::<bool>(),
    )
        .prop_map(
            |(
                index,
                addresses,
                (node_port, internal_local, external_local, affinity, ranges),
                external,
                balancer,
                udp,
            )| {
                let all: BTreeSet<Endpoint> = addresses
                    .into_iter()
                    .map(|address| Endpoint { address, port: 80 })
                    .collect();
                let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
                ServicePort {
                    id: format!("ns/s{index}/{protocol}/80"),
                    protocol,
                    cluster_ip: std::net::Ipv4Addr::new(10, 96, 0, index),
                    port: 80 + u16::from(index),
                    node_port: node_port.then_some(30000 + u16::from(index)),
                    external_ips: external.into_iter().collect(),
                    balancer_ips: balancer.into_iter().collect(),
                    source_ranges: if ranges {
                        BTreeSet::from([cluster()])
                    } else {
                        BTreeSet::new()
                    },
                    affinity: affinity.then_some(60),
                    internal_local,
                    external_local,
                    serving: BTreeSet::new(),
                    local: all.iter().filter(|end| end.address.octets()[2] == 0).copied().collect(),
                    all,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Needs root and nft: the kernel itself is the judge of every intermediate state.
    #[test]
    fn any_change_is_one_the_kernel_takes_and_leads_where_it_should(
        states in proptest::collection::vec(proptest::collection::vec(any_service(), 0..4), 1..4)
    ) {
        let contents: Vec<Content> = states.iter().map(|services| {
            let mut services = services.clone();
            services.sort_by(|one, other| one.id.cmp(&other.id));
            services.dedup_by(|one, other| one.id == other.id);
            content(&services, &[], cluster())
        }).collect();
        let mut scripts = vec![whole(&contents[0])];
        scripts.extend(contents.windows(2).map(|pair| change(&pair[0], &pair[1])));
        // Back to nothing: whatever was made can be removed again.
        scripts.push(change(contents.last().unwrap(), &Content::default()));
        prop_assert_eq!(nft_accepts(&scripts), Ok(()));
    }
}
