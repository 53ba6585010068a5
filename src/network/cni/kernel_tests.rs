//! Routes and tunnels at work in real kernels: three nodes, two on one segment, one behind a router.

use super::*;
use crate::{
    cni::plan::{Peer, plan, tunnel_hardware_address},
    testing::{Space, at},
};

fn peer(name: &str, address: &str, pods: &str) -> Peer {
    Peer {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        pods: pods.parse().unwrap(),
    }
}

/// Runs a future inside a namespace, with a connection to its kernel.
fn inside<T: Send + 'static, F: Future<Output = T>>(
    space: &Space,
    work: impl FnOnce(Kernel) -> F + Send + 'static,
) -> T {
    space.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { work(Kernel::connect().unwrap()).await })
    })
}

fn apply(space: &Space, me: &Peer, peers: &[Peer]) -> Uplink {
    let (me, peers) = (me.clone(), peers.to_vec());
    inside(space, |kernel| async move {
        let uplink = kernel.uplink(me.address).await.unwrap();
        let plan = plan(&me, &peers, &uplink, Some("10.96.0.0/16".parse().unwrap()));
        kernel.apply(&plan, &uplink, me.address, me.pods).await.unwrap();
        // The second time there is nothing to do; whatever is wrong would be refused now.
        kernel.apply(&plan, &uplink, me.address, me.pods).await.unwrap();
        uplink
    })
}

struct Cluster {
    nodes: [Space; 3],
    pods: Vec<Space>,
    peers: [Peer; 3],
    _router: Space,
}

/// Nodes a and b on 10.7.0.0/24, c on 10.8.0.0/24, a router between.
fn cluster() -> Cluster {
    let router = Space::new();
    let nodes = [Space::new(), Space::new(), Space::new()];
    let peers = [
        peer("a", "10.7.0.1", "100.64.1.0/24"),
        peer("b", "10.7.0.2", "100.64.2.0/24"),
        peer("c", "10.8.0.3", "100.64.3.0/24"),
    ];
    router.ip("link add lan type bridge");
    router.ip("link set lan up");
    router.ip("addr add 10.7.0.254/24 dev lan");
    for (node, port) in nodes.iter().zip(["pa", "pb", "pc"]) {
        router.connect(port, node, "uplink");
    }
    for port in ["pa", "pb"] {
        router.ip(&format!("link set {port} master lan"));
    }
    router.ip("addr add 10.8.0.254/24 dev pc");
    router.forward();
    let gateways = ["10.7.0.254", "10.7.0.254", "10.8.0.254"];
    let mut pods = Vec::new();
    for (index, ((node, peer), gateway)) in nodes.iter().zip(&peers).zip(gateways).enumerate() {
        node.ip(&format!("addr add {}/24 dev uplink", peer.address));
        node.ip(&format!("route add default via {gateway}"));
        node.forward();
        let pod = node.pod(
            "veth",
            &format!("100.64.{}.2", index + 1),
            &format!("100.64.{}.1", index + 1),
        );
        pod.serve("pod", 80);
        pods.push(pod);
    }
    Cluster {
        nodes,
        pods,
        peers,
        _router: router,
    }
}

#[test]
fn pods_reach_each_other_directly_and_through_the_tunnel() {
    let cluster = cluster();
    for (node, me) in cluster.nodes.iter().zip(&cluster.peers) {
        apply(node, me, &cluster.peers);
    }
    for (i, from) in cluster.pods.iter().enumerate() {
        for j in 0..3 {
            let answer = from.ask(at(&format!("100.64.{}.2", j + 1), 80));
            assert_eq!(answer, format!("pod 100.64.{}.2", i + 1), "from pod {i} to pod {j}");
        }
    }
    assert!(
        cluster.nodes[0]
            .ip("route show proto 73")
            .contains("100.64.3.0/24 via 100.64.3.0 dev installer-vxlan")
    );
    assert!(
        cluster.nodes[0]
            .ip("route show proto 73")
            .contains("100.64.2.0/24 via 10.7.0.2 dev uplink")
    );

    // Node c leaves: its route and the tunnel go, the rest stays.
    let left = [cluster.peers[0].clone(), cluster.peers[1].clone()];
    apply(&cluster.nodes[0], &left[0], &left);
    let routes = cluster.nodes[0].ip("route show proto 73");
    assert!(
        !routes.contains("100.64.3.0") && routes.contains("100.64.2.0/24"),
        "{routes}"
    );
    assert!(!cluster.nodes[0].ip("link show").contains(TUNNEL));
}

#[test]
fn a_peer_that_changes_its_address_is_found_again() {
    let cluster = cluster();
    apply(&cluster.nodes[0], &cluster.peers[0], &cluster.peers);
    let mut moved = cluster.peers.clone();
    moved[1].address = "10.7.0.9".parse().unwrap();
    moved[2].address = "10.8.0.9".parse().unwrap();
    apply(&cluster.nodes[0], &moved[0], &moved);
    let routes = cluster.nodes[0].ip("route show proto 73");
    assert!(routes.contains("100.64.2.0/24 via 10.7.0.9"), "{routes}");
    let neighbours = cluster.nodes[0].ip("neigh show dev installer-vxlan");
    let hardware = tunnel_hardware_address("10.8.0.9".parse().unwrap())
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    assert!(neighbours.contains(&hardware), "{neighbours}");
}

#[test]
fn services_are_routed_only_without_a_default_route_and_cleanup_leaves_nothing() {
    let node = Space::new();
    let other = Space::new();
    node.connect("uplink", &other, "eth0");
    node.ip("addr add 10.7.0.1/24 dev uplink");
    let before = node.ip("route show");
    let me = peer("a", "10.7.0.1", "100.64.1.0/24");
    let far = peer("far", "10.9.0.1", "100.64.9.0/24");
    let uplink = apply(&node, &me, &[peer("b", "10.7.0.2", "100.64.2.0/24"), far]);
    assert_eq!((uplink.mtu, uplink.has_default_route), (1500, false));
    assert!(
        node.ip("route show")
            .contains("10.96.0.0/16 dev uplink proto 73 scope link src 10.7.0.1")
    );
    let removed = inside(&node, |kernel| async move { kernel.remove_all().await.unwrap() });
    assert_eq!(removed, 3);
    assert_eq!(node.ip("route show"), before);
    assert!(!node.ip("link show").contains(TUNNEL));
}

#[test]
fn a_route_of_somebody_else_is_neither_replaced_nor_removed() {
    let node = Space::new();
    let other = Space::new();
    node.connect("uplink", &other, "eth0");
    node.ip("addr add 10.7.0.1/24 dev uplink");
    node.ip("route add 100.64.2.0/24 via 10.7.0.7");
    let me = peer("a", "10.7.0.1", "100.64.1.0/24");
    let refused = inside(&node, |kernel| async move {
        let uplink = kernel.uplink(me.address).await.unwrap();
        let plan = plan(&me, &[peer("b", "10.7.0.2", "100.64.2.0/24")], &uplink, None);
        kernel
            .apply(&plan, &uplink, me.address, me.pods)
            .await
            .unwrap_err()
            .to_string()
    });
    assert!(refused.contains("100.64.2.0/24"), "{refused}");
    assert!(node.ip("route show").contains("100.64.2.0/24 via 10.7.0.7"));
}
