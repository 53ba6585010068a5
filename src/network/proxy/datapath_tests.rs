//! The rules at work in a real kernel: a node with two pods, another node, and a client outside of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use super::{
    conntrack::{UdpTargets, delete_stale},
    model::{Endpoint, HostPort, Protocol, ServicePort},
    rules::content,
    table::{Content, change, whole},
};
use crate::testing::{Space, at};

const NODE: &str = "10.7.0.1";
const SERVICE: &str = "10.96.0.5";

/// A node with its rules.
struct Node {
    space: Space,
    pods: [Space; 2],
    client: Space,
    content: Content,
}

impl Node {
    fn new() -> Self {
        let (space, client) = (Space::new(), Space::new());
        space.connect("uplink", &client, "eth0");
        space.ip(&format!("addr add {NODE}/24 dev uplink"));
        client.ip("addr add 10.7.0.2/24 dev eth0");
        let pods = [
            space.pod("veth1", "100.64.0.2", "100.64.0.1"),
            space.pod("veth2", "100.64.0.3", "100.64.0.1"),
        ];
        pods[0].serve("one", 8080);
        pods[1].serve("two", 8080);
        space.forward();
        // As the network role does without a default route.
        space.ip(&format!("route add 10.96.0.0/16 dev uplink src {NODE}"));
        Self {
            space,
            pods,
            client,
            content: Content::default(),
        }
    }

    fn program(&mut self, services: &[ServicePort], host_ports: &[HostPort]) {
        let next = content(services, host_ports, "100.64.0.0/16".parse().unwrap());
        let fresh = self.content == Content::default();
        self.space.nft(&if fresh {
            whole(&next)
        } else {
            change(&self.content, &next)
        });
        self.content = next;
    }
}

fn ends(pods: &[u8]) -> BTreeSet<Endpoint> {
    pods.iter()
        .map(|pod| Endpoint {
            address: [100, 64, 0, *pod].into(),
            port: 8080,
        })
        .collect()
}

fn service(protocol: Protocol, pods: &[u8]) -> ServicePort {
    ServicePort {
        id: format!("ns/web/{protocol}/80"),
        protocol,
        cluster_ip: SERVICE.parse().unwrap(),
        port: 80,
        node_port: Some(30080),
        external_ips: BTreeSet::new(),
        balancer_ips: BTreeSet::new(),
        source_ranges: BTreeSet::new(),
        affinity: None,
        internal_local: false,
        external_local: false,
        all: ends(pods),
        local: ends(pods),
        serving: ends(pods).into_iter().map(|end| end.address).collect(),
    }
}

/// How often each answer came.
fn tally(times: usize, ask: impl Fn() -> String) -> BTreeMap<String, usize> {
    (0..times).fold(BTreeMap::new(), |mut tally, _| {
        *tally.entry(ask()).or_default() += 1;
        tally
    })
}

fn names(tally: &BTreeMap<String, usize>) -> BTreeSet<&str> {
    tally.keys().map(|answer| answer.split(' ').next().unwrap()).collect()
}

#[test]
fn a_service_is_balanced_from_the_node_from_pods_and_from_outside() {
    let mut node = Node::new();
    node.program(&[service(Protocol::Tcp, &[2, 3]), service(Protocol::Udp, &[2, 3])], &[]);
    let from_node = tally(40, || node.space.ask(at(SERVICE, 80)));
    assert_eq!(names(&from_node), BTreeSet::from(["one", "two"]), "{from_node:?}");
    assert!(from_node.values().all(|count| *count > 5), "{from_node:?}");
    // A pod keeps its address, unless it reaches itself.
    let from_pod = tally(40, || node.pods[0].ask(at(SERVICE, 80)));
    assert_eq!(
        from_pod.keys().collect::<Vec<_>>(),
        ["one 100.64.0.1", "two 100.64.0.2"]
    );
    let over_udp = tally(20, || node.pods[1].ask_udp(at(SERVICE, 80)));
    assert_eq!(
        over_udp.keys().collect::<Vec<_>>(),
        ["one 100.64.0.3", "two 100.64.0.1"]
    );
    let from_client = tally(40, || node.client.ask(at(NODE, 30080)));
    assert_eq!(
        from_client.keys().collect::<Vec<_>>(),
        ["one 100.64.0.1", "two 100.64.0.1"]
    );
    let from_pod = tally(20, || node.pods[0].ask(at(NODE, 30080)));
    assert_eq!(names(&from_pod), BTreeSet::from(["one", "two"]), "{from_pod:?}");
    let from_node = tally(20, || node.space.ask(at(NODE, 30080)));
    assert_eq!(names(&from_node), BTreeSet::from(["one", "two"]), "{from_node:?}");
}

#[test]
fn a_change_of_endpoints_takes_effect_at_once_and_none_means_refused() {
    let mut node = Node::new();
    node.program(&[service(Protocol::Tcp, &[2, 3])], &[]);
    node.program(&[service(Protocol::Tcp, &[3])], &[]);
    assert_eq!(
        names(&tally(10, || node.space.ask(at(SERVICE, 80)))),
        BTreeSet::from(["two"])
    );
    node.program(&[service(Protocol::Tcp, &[]), service(Protocol::Udp, &[])], &[]);
    for asker in [&node.space, &node.pods[0]] {
        assert_eq!(asker.ask(at(SERVICE, 80)), "connection refused");
        assert_eq!(asker.ask(at(SERVICE, 81)), "connection refused");
    }
    // A packet of the node's own is refused before it is sent, which the kernel calls EPERM.
    assert_eq!(node.pods[0].ask_udp(at(SERVICE, 80)), "connection refused");
    assert_eq!(node.space.ask_udp(at(SERVICE, 80)), "permission denied");
    assert_eq!(node.client.ask(at(NODE, 30080)), "connection refused");
    node.program(&[service(Protocol::Tcp, &[2])], &[]);
    assert_eq!(
        names(&tally(5, || node.pods[1].ask(at(SERVICE, 80)))),
        BTreeSet::from(["one"])
    );
}

#[test]
fn external_policy_local_keeps_the_clients_address() {
    let mut node = Node::new();
    let mut web = service(Protocol::Tcp, &[2, 3]);
    web.external_local = true;
    web.local = ends(&[2]);
    node.program(&[web.clone()], &[]);
    let from_client = tally(10, || node.client.ask(at(NODE, 30080)));
    assert_eq!(from_client.keys().collect::<Vec<_>>(), ["one 10.7.0.2"]);
    // From inside, the policy does not apply.
    assert_eq!(names(&tally(30, || node.pods[0].ask(at(NODE, 30080)))).len(), 2);
    web.local.clear();
    node.program(&[web], &[]);
    assert_eq!(node.client.ask(at(NODE, 30080)), "timed out");
}

#[test]
fn a_client_stays_with_its_endpoint_while_affinity_is_asked_for() {
    let mut node = Node::new();
    let mut web = service(Protocol::Tcp, &[2, 3]);
    web.affinity = Some(60);
    node.program(&[web.clone()], &[]);
    for asker in [&node.client, &node.space] {
        assert_eq!(names(&tally(20, || asker.ask(at(NODE, 30080)))).len(), 1);
    }
    web.affinity = None;
    node.program(&[web], &[]);
    assert_eq!(names(&tally(30, || node.client.ask(at(NODE, 30080)))).len(), 2);
}

#[test]
fn outer_addresses_lead_to_the_service() {
    let mut node = Node::new();
    let mut web = service(Protocol::Tcp, &[2, 3]);
    web.external_ips.insert("1.2.3.4".parse().unwrap());
    web.balancer_ips.insert("5.6.7.8".parse().unwrap());
    web.source_ranges.insert("10.7.0.0/24".parse().unwrap());
    node.client.ip(&format!("route add 1.2.3.4/32 via {NODE}"));
    node.client.ip(&format!("route add 5.6.7.8/32 via {NODE}"));
    node.program(&[web.clone()], &[]);
    for address in ["1.2.3.4", "5.6.7.8"] {
        assert_eq!(
            names(&tally(20, || node.client.ask(at(address, 80)))).len(),
            2,
            "{address}"
        );
    }
    web.source_ranges = BTreeSet::from(["10.8.0.0/24".parse().unwrap()]);
    node.program(&[web], &[]);
    assert_eq!(node.client.ask(at("5.6.7.8", 80)), "timed out");
    assert_eq!(names(&tally(20, || node.client.ask(at("1.2.3.4", 80)))).len(), 2);
}

#[test]
fn host_ports_lead_to_their_pod_from_everywhere() {
    let mut node = Node::new();
    let port = |port, address: Option<&str>, protocol| HostPort {
        id: format!("ns/pod/{protocol}/{port}"),
        protocol,
        address: address.map(|address| address.parse().unwrap()),
        port,
        endpoint: Endpoint {
            address: [100, 64, 0, 2].into(),
            port: 8080,
        },
    };
    node.program(
        &[],
        &[
            port(9000, None, Protocol::Tcp),
            port(9001, Some(NODE), Protocol::Udp),
            port(9002, Some("10.7.0.9"), Protocol::Tcp),
        ],
    );
    assert_eq!(node.client.ask(at(NODE, 9000)), "one 10.7.0.2");
    assert_eq!(node.client.ask_udp(at(NODE, 9001)), "one 10.7.0.2");
    assert_eq!(node.client.ask(at(NODE, 9001)), "connection refused");
    assert_eq!(node.client.ask(at(NODE, 9002)), "connection refused");
    assert!(node.space.ask(at(NODE, 9000)).starts_with("one "));
    assert_eq!(node.pods[0].ask(at(NODE, 9000)), "one 100.64.0.1");
}

#[test]
fn a_client_that_keeps_its_port_is_led_away_from_an_endpoint_that_is_gone() {
    let mut node = Node::new();
    let asking = node.space.pod("veth3", "100.64.0.4", "100.64.0.1");
    let sockets = [(&asking, at(SERVICE, 80)), (&node.client, at(NODE, 30080))].map(|(from, address)| {
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.connect(address).unwrap();
        socket
    });
    let answers = || {
        sockets.each_ref().map(|socket| {
            let mut buffer = [0; 64];
            let asked = socket.send(b"?").and_then(|_| socket.recv(&mut buffer));
            asked.map_or_else(
                |error| error.kind().to_string(),
                |length| String::from_utf8_lossy(&buffer[..length])[..3].to_owned(),
            )
        })
    };
    let tcp = service(Protocol::Tcp, &[2]);
    let mut web = service(Protocol::Udp, &[3]);
    node.program(&[tcp.clone(), web.clone()], &[]);
    assert_eq!(answers(), ["two", "two"]);
    // An endpoint that ends keeps its flows as long as it serves; the other one gets new flows only.
    (web.all, web.local) = (ends(&[2]), ends(&[2]));
    web.serving.insert(Ipv4Addr::new(100, 64, 0, 2));
    node.program(&[tcp.clone(), web.clone()], &[]);
    let clean = |node: &Node, services: &[ServicePort]| {
        let targets = UdpTargets::new(services, &[]);
        node.space.run(move || delete_stale(&targets)).unwrap()
    };
    assert_eq!(clean(&node, &[tcp.clone(), web.clone()]), 0);
    assert_eq!(answers(), ["two", "two"]);
    web.serving = BTreeSet::from([Ipv4Addr::new(100, 64, 0, 2)]);
    assert_eq!(answers(), ["two", "two"], "the kernel itself remembers");
    assert_eq!(clean(&node, &[tcp.clone(), web.clone()]), 2);
    assert_eq!(answers(), ["one", "one"]);
    // Nobody is left: refused at once instead of sent nowhere.
    (web.all, web.serving) = (BTreeSet::new(), BTreeSet::new());
    node.program(&[tcp.clone(), web.clone()], &[]);
    assert_eq!(clean(&node, &[tcp, web]), 2);
    assert_eq!(answers(), ["connection refused", "connection refused"]);
}
