//! Seen by `dig`, the client everybody uses.

use std::process::Command;

use super::*;
use crate::zone::{Endpoint, Service};

async fn start(upstream: Upstream) -> u16 {
    let ends = (0..200u8).map(|i| Endpoint {
        label: format!("pod-{i}"),
        address: [100, 64, 0, i].into(),
        ports: Default::default(),
    });
    let services = [
        (
            ("default".to_owned(), "web".to_owned()),
            Service {
                addresses: vec![[10, 96, 0, 5].into()],
                ..Service::default()
            },
        ),
        (
            ("default".to_owned(), "many".to_owned()),
            Service {
                endpoints: ends.collect(),
                ..Service::default()
            },
        ),
    ];
    let server = Arc::new(Server::new(upstream));
    server.replace(Zone {
        domain: vec!["cluster".to_owned(), "local".to_owned()],
        services: services.into(),
        ..Zone::default()
    });
    // The same port over both: the first that both can have.
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let Ok(socket) = UdpSocket::bind(address).await else {
            continue;
        };
        tokio::spawn(serve_udp(Arc::clone(&server), Arc::new(socket)));
        tokio::spawn(serve_tcp(server, listener));
        return address.port();
    }
}

async fn dig(port: u16, arguments: &'static [&'static str]) -> String {
    tokio::task::spawn_blocking(move || {
        let output = Command::new("dig")
            .args(["@127.0.0.1", "-p", &port.to_string(), "+tries=1", "+time=3"])
            .args(arguments)
            .output()
            .expect("these tests need dig");
        String::from_utf8(output.stdout).unwrap()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn names_are_answered_over_udp_and_tcp() {
    let port = start(Upstream::with(vec![])).await;
    for transport in ["+notcp", "+tcp"] {
        let short: &'static [&'static str] =
            Box::leak(Box::new([transport, "+short", "web.default.svc.cluster.local"]));
        assert_eq!(dig(port, short).await, "10.96.0.5\n");
    }
    let missing = dig(port, &["nothing.default.svc.cluster.local"]).await;
    assert!(
        missing.contains("status: NXDOMAIN") && missing.contains("SOA"),
        "{missing}"
    );
    let empty = dig(port, &["web.default.svc.cluster.local", "AAAA"]).await;
    assert!(
        empty.contains("status: NOERROR") && empty.contains("ANSWER: 0") && empty.contains("SOA"),
        "{empty}"
    );
}

#[tokio::test]
async fn large_answers_move_to_tcp() {
    let port = start(Upstream::with(vec![])).await;
    let answers = dig(port, &["+short", "many.default.svc.cluster.local"]).await;
    assert_eq!(answers.lines().count(), 200);
    let cut = dig(port, &["+ignore", "many.default.svc.cluster.local"]).await;
    assert!(cut.contains(" tc ") && cut.contains("EDNS: version: 0"), "{cut}");
}

#[tokio::test]
async fn without_a_way_out_foreign_names_do_not_exist_at_once() {
    let port = start(Upstream::with(vec![])).await;
    let start = std::time::Instant::now();
    let answer = dig(port, &["example.com"]).await;
    assert!(answer.contains("status: NXDOMAIN"), "{answer}");
    // Somebody who is not answered asks again after five seconds.
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn foreign_names_are_asked_of_the_nameserver() {
    let outside = start(Upstream::with(vec![])).await;
    // The other server happens to know names of its own zone only; ours has none, so it asks.
    let server = Arc::new(Server::new(Upstream::with(vec![([127, 0, 0, 1], outside).into()])));
    server.replace(Zone {
        domain: vec!["elsewhere".to_owned()],
        ..Zone::default()
    });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    tokio::spawn(serve_udp(server, Arc::new(socket)));
    assert_eq!(
        dig(port, &["+short", "web.default.svc.cluster.local"]).await,
        "10.96.0.5\n"
    );
}
