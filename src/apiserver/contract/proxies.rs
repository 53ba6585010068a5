//! What is passed on to kubelets and pods, against a kubelet that only says what it was asked.

use super::*;
use http_body_util::Full;
use hyper::service::service_fn;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Answers with the request's line, or upgrades and echoes.
async fn kubelet(mut request: Request<Incoming>) -> Result<http::Response<Full<Bytes>>, std::convert::Infallible> {
    let text = format!(
        "{} {} {}",
        request.method(),
        request.uri(),
        request.headers().contains_key("authorization")
    );
    if !request.headers().contains_key("upgrade") {
        return Ok(http::Response::new(Full::new(Bytes::from(text))));
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgraded.await.unwrap());
        io.write_all(text.as_bytes()).await.unwrap();
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = io.read(&mut buffer).await {
            io.write_all(&buffer[..n]).await.unwrap();
        }
    });
    let mut response = http::Response::new(Full::default());
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    response.headers_mut().insert("upgrade", "SPDY/3.1".parse().unwrap());
    Ok(response)
}

async fn start_kubelet(c: &Cluster) -> u16 {
    c.pki.issue("kubelet", "system:node:n", &["system:nodes"], true);
    let path = |f: &str| c.dir.path().join(f);
    let mut config = crate::tls::server(&path("kubelet.crt"), &path("kubelet.key"), Some(&path("ca.crt"))).unwrap();
    config.alpn_protocols.clear();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            assert!(
                tls.get_ref().1.peer_certificates().is_some(),
                "the server shows its client certificate"
            );
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service_fn(kubelet));
            tokio::spawn(connection.with_upgrades());
        }
    });
    port
}

async fn with_pod() -> Cluster {
    let kubelet_flags = [
        "--kubelet-client-certificate=DIR/admin.crt",
        "--kubelet-client-key=DIR/admin.key",
        "--kubelet-certificate-authority=DIR/ca.crt",
    ];
    let c = Cluster::with(&kubelet_flags).await;
    let port = start_kubelet(&c).await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    c.post("/api/v1/namespaces/default/serviceaccounts", account)
        .await
        .expect(201);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    c.post("/api/v1/nodes", node).await.expect(201);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "a", "image": "x"}]}});
    c.post("/api/v1/namespaces/default/pods", pod).await.expect(201);
    c
}

const POD: &str = "/api/v1/namespaces/default/pods/p";

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_node_paths_come_from_the_kubelet() {
    let c = with_pod().await;
    let log = c
        .raw(
            Method::GET,
            &format!("{POD}/log?follow=true&tailLines=5"),
            &As::Admin,
            &[],
            vec![],
        )
        .await;
    assert_eq!(log.code, 200);
    assert_eq!(
        log.bytes,
        "GET /containerLogs/default/p/a?follow=true&tailLines=5 false"
    );
    let stats = c
        .raw(
            Method::GET,
            "/api/v1/nodes/n/proxy/stats/summary?x=1",
            &As::Admin,
            &[("authorization", "Basic x")],
            vec![],
        )
        .await;
    assert_eq!(
        stats.bytes, "GET /stats/summary?x=1 false",
        "the caller's credentials stay here"
    );
    c.get(&format!("{POD}/log?container=none")).await.expect(400);
    c.get("/api/v1/namespaces/default/pods/q/log").await.expect(404);
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_stream_is_copied_both_ways() {
    let c = with_pod().await;
    let path = |f: &str| c.dir.path().join(f);
    let config = crate::tls::client(Some(&path("ca.crt")), Some((&path("admin.crt"), &path("admin.key")))).unwrap();
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", c.port)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .unwrap();
    let head = format!(
        "POST {POD}/exec?command=ls&command=-l&stdin=true&container=a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    let expected = "POST /exec/default/p/a?command=ls&command=%2Dl&input=1 false";
    while !String::from_utf8_lossy(&seen).contains(expected) {
        let mut buffer = [0; 1024];
        let n = tokio::time::timeout(Duration::from_secs(10), tls.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..n]);
    }
    assert!(String::from_utf8_lossy(&seen).starts_with("HTTP/1.1 101"));
    tls.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    tls.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    c.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_own_pages_are_reached_through_the_server() {
    let c = with_pod().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(kubelet));
            tokio::spawn(served);
        }
    });
    let mut pod = c.get(POD).await.expect(200);
    pod["status"] = json!({"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]});
    c.put(&format!("{POD}/status"), pod).await.expect(200);
    let page = c.get(&format!("{POD}:{port}/proxy/a/b/?q=1")).await;
    assert_eq!(page.bytes, "GET /a/b/?q=1 false");
    let nobody = c.get(&format!("{POD}:1/proxy/")).await.expect(503);
    assert_eq!(nobody["reason"], "ServiceUnavailable");
    c.end().await;
}
