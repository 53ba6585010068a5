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
    if text.contains("previous=true") {
        let mut refusal = http::Response::new(Full::new(Bytes::from("previous terminated container not found\n")));
        *refusal.status_mut() = http::StatusCode::BAD_REQUEST;
        return Ok(refusal);
    }
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
    let files = tls_files::ServerFiles {
        certificate: path("kubelet.crt"),
        key: path("kubelet.key"),
        client_authority: Some(path("ca.crt")),
        protocols: &[],
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(files.config().unwrap()));
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
    // A refusal is a Status with the kubelet's words.
    let refused = c.get(&format!("{POD}/log?previous=true")).await.expect(400);
    assert_eq!(refused["reason"], "BadRequest");
    assert_eq!(refused["message"], "previous terminated container not found");
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
async fn logs_come_in_the_messages_of_a_web_socket() {
    use futures::StreamExt as _;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
    use tokio_tungstenite::tungstenite::{Error, Message};
    let c = with_pod().await;
    let path = |f: &str| c.dir.path().join(f);
    let open = async |query: &str, protocol: Option<&'static str>| {
        let config = crate::tls::client(Some(&path("ca.crt")), Some((&path("admin.crt"), &path("admin.key")))).unwrap();
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", c.port)).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .unwrap();
        let mut request = format!("wss://127.0.0.1{POD}/log?{query}")
            .into_client_request()
            .unwrap();
        if let Some(protocol) = protocol {
            request
                .headers_mut()
                .insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        tokio_tungstenite::client_async(request, tls).await
    };
    let line = "GET /containerLogs/default/p/a?follow=true false";
    let text = "R0VUIC9jb250YWluZXJMb2dzL2RlZmF1bHQvcC9hP2ZvbGxvdz10cnVlIGZhbHNl";
    let binary = |b: &'static str| Message::Binary(Bytes::from_static(b.as_bytes()));
    for (protocol, expected) in [
        (None, [binary(""), binary(line)]),
        (Some("binary.k8s.io"), [binary(""), binary(line)]),
        (Some("base64.binary.k8s.io"), [Message::text(""), Message::text(text)]),
    ] {
        let (mut socket, answer) = open("follow=true", protocol).await.unwrap();
        let chosen = answer.headers().get("sec-websocket-protocol");
        assert_eq!(chosen.map(|v| v.to_str().unwrap()), protocol);
        for message in expected {
            assert_eq!(socket.next().await.unwrap().unwrap(), message, "{protocol:?}");
        }
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(Some(end)))) if u16::from(end.code) == 1000));
    }
    for (query, protocol) in [("previous=true", None), ("follow=true", Some("v4.channel.k8s.io"))] {
        let Err(Error::Http(refused)) = open(query, protocol).await else {
            panic!("{query} {protocol:?} is refused");
        };
        assert_eq!(refused.status(), 400);
    }
    c.end().await;
}

/// A site that speaks of its own paths, and says of which origins it may be asked.
async fn site(request: Request<Incoming>) -> Result<http::Response<Full<Bytes>>, std::convert::Infallible> {
    let text = match request.uri().path() {
        "/text" => "<a href=\"/there\">".to_owned(),
        _ => format!(
            "<a href=\"/there?a=1\">{} {}</a><img src='x.png'>",
            request.method(),
            request.headers()["x-forwarded-uri"].to_str().unwrap()
        ),
    };
    let media = if request.uri().path() == "/text" {
        "text/plain"
    } else {
        "text/html; charset=utf-8"
    };
    let answer = http::Response::builder()
        .header("content-type", media)
        .header("access-control-allow-origin", "*");
    Ok(match request.uri().path() {
        "/moved" => answer
            .status(302)
            .header("location", "/new/")
            .body(Full::default())
            .unwrap(),
        _ => answer.body(Full::new(Bytes::from(text))).unwrap(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_links_of_proxied_pages_stay_behind_the_proxy() {
    let c = with_pod().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(site));
            tokio::spawn(served);
        }
    });
    let mut pod = c.get(POD).await.expect(200);
    pod["status"] = json!({"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]});
    c.put(&format!("{POD}/status"), pod).await.expect(200);
    let proxy = format!("{POD}:{port}/proxy");
    let page = c.get(&format!("{proxy}/a/")).await;
    let expected = format!("<a href=\"{proxy}/there?a=1\">GET {proxy}/a/</a><img src='x.png'>");
    assert_eq!(String::from_utf8_lossy(&page.bytes), expected);
    assert!(!page.headers.contains_key("access-control-allow-origin"));
    assert_eq!(c.get(&format!("{proxy}/text")).await.bytes, "<a href=\"/there\">");
    let moved = c.get(&format!("{proxy}/moved")).await;
    assert_eq!(
        (moved.code, moved.headers["location"].to_str().unwrap()),
        (302, format!("{proxy}/new/").as_str())
    );
    // Without the last slash the relative links of a page would be beside the proxy.
    for method in [Method::GET, Method::HEAD] {
        let moved = c.call(method, &format!("{proxy}?a=1"), &As::Admin, None).await;
        let place = moved.headers["location"].to_str().unwrap();
        assert_eq!((moved.code, place), (301, format!("{proxy}/?a=1").as_str()));
    }
    let posted = c.call(Method::POST, &proxy, &As::Admin, None).await;
    assert_eq!(posted.code, 200);
    // What the site allows, it says itself; whether it may be asked, the authorizer.
    let options = c.call(Method::OPTIONS, &format!("{proxy}/"), &As::Admin, None).await;
    assert_eq!(options.code, 200);
    assert!(String::from_utf8_lossy(&options.bytes).contains(">OPTIONS "));
    c.call(Method::OPTIONS, &format!("{proxy}/"), &As::Anonymous, None)
        .await
        .expect(403);
    c.call(Method::OPTIONS, POD, &As::Admin, None).await.expect(405);
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
