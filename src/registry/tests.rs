//! The contract, seen by clients: a plain HTTP client for the details of the spec, skopeo as the tool others use.

use std::process::Command;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use oci::Index;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::{Args, acceptor, serve_on, testing::Store};

struct Server {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), crate::Error>>,
}

impl Server {
    async fn start(store: &Store, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel();
        let args = Args {
            store: store.layout.root().to_owned(),
            listen: ([127, 0, 0, 1], port).into(),
            tls_cert: None,
            tls_key: None,
            domains: vec!["sea.hub:5000".to_owned()],
        };
        let task = tokio::spawn(serve_on(listener, tls, args, async move { _ = stopped.await }));
        Self {
            port,
            stop: Some(stop),
            task,
        }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://127.0.0.1:{}{path}", self.port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = client.request(request.body(Empty::new()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }

    async fn get(&self, path: &str) -> Response<Bytes> {
        self.ask("GET", path, &[]).await
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn header<'a>(response: &'a Response<Bytes>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn code(response: &Response<Bytes>) -> String {
    let document: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    document["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
}

/// Larger than two pieces of the stream, so that reading ahead is exercised.
fn large() -> Vec<u8> {
    (0..900_001u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[tokio::test]
async fn a_manifest_is_found_by_tag_and_digest_under_each_of_its_names() {
    let store = Store::new();
    let image = store.image(b"layer");
    let pause = store.image(b"pause");
    let own = store.image(b"own");
    store.list(vec![
        Store::named(&image, "docker.io/library/nginx:1"),
        Store::named(&pause, "installer.internal/pause:v0.1.0"),
        Store::named(&own, "sea.hub:5000/team/app:2"),
    ]);
    let server = Server::start(&store, None).await;
    for (path, digest) in [
        ("/v2/library/nginx/manifests/1?ns=docker.io".to_owned(), &image.digest),
        ("/v2/nginx/manifests/1".to_owned(), &image.digest),
        (format!("/v2/library/nginx/manifests/{}", image.digest), &image.digest),
        ("/v2/docker.io/library/nginx/manifests/1".to_owned(), &image.digest),
        (
            "/v2/pause/manifests/v0.1.0?ns=installer.internal".to_owned(),
            &pause.digest,
        ),
        ("/v2/team/app/manifests/2?ns=sea.hub%3A5000".to_owned(), &own.digest),
        ("/v2/team/app/manifests/2".to_owned(), &own.digest),
    ] {
        let answer = server.get(&path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert_eq!(oci::Digest::of(answer.body()), *digest, "{path}");
        assert_eq!(header(&answer, "docker-content-digest"), digest.as_str());
        assert_eq!(header(&answer, "content-type"), oci::media_type::MANIFEST);
        assert_eq!(header(&answer, "docker-distribution-api-version"), "registry/2.0");
        let head = server.ask("HEAD", &path, &[]).await;
        assert_eq!(header(&head, "content-length"), answer.body().len().to_string());
        assert!(head.body().is_empty());
    }
    let missing = server.get("/v2/nginx/manifests/1?ns=quay.io").await;
    assert_eq!(
        (missing.status(), code(&missing)),
        (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN".to_owned())
    );
    server.stop().await;
}

#[tokio::test]
async fn blobs_are_sent_whole_in_part_or_not_at_all_as_asked() {
    let store = Store::new();
    let content = large();
    let image = store.image(&content);
    store.list(vec![Store::named(&image, "a.b/c:1")]);
    let digest = oci::Digest::of(&content);
    let path = format!("/v2/c/blobs/{digest}?ns=a.b");
    let server = Server::start(&store, None).await;

    let whole = server.get(&path).await;
    assert_eq!((whole.status(), whole.body().len()), (StatusCode::OK, content.len()));
    assert_eq!(*whole.body(), content);
    let etag = header(&whole, "etag").to_owned();
    assert_eq!(
        header(&server.ask("HEAD", &path, &[]).await, "content-length"),
        content.len().to_string()
    );

    let part = server.ask("GET", &path, &[("range", "bytes=100000-699999")]).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(
        header(&part, "content-range"),
        format!("bytes 100000-699999/{}", content.len())
    );
    assert_eq!(*part.body(), content[100_000..700_000]);
    let tail = server
        .ask("GET", &path, &[("range", "bytes=-3"), ("if-range", &etag)])
        .await;
    assert_eq!(*tail.body(), content[content.len() - 3..]);
    let other = server
        .ask("GET", &path, &[("range", "bytes=-3"), ("if-range", "\"else\"")])
        .await;
    assert_eq!(other.status(), StatusCode::OK);
    let beyond = server.ask("GET", &path, &[("range", "bytes=9999999-")]).await;
    assert_eq!(
        (beyond.status(), code(&beyond)),
        (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID".to_owned())
    );
    assert_eq!(header(&beyond, "content-range"), format!("bytes */{}", content.len()));
    assert_eq!(
        server.ask("GET", &path, &[("if-none-match", &etag)]).await.status(),
        StatusCode::NOT_MODIFIED
    );
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_offered_is_refused_by_the_specs_codes() {
    let store = Store::new();
    let rootfs = store.image(b"secret configuration");
    let image = store.image(b"layer");
    store.list(vec![rootfs.clone(), Store::named(&image, "a.b/c:1")]);
    let server = Server::start(&store, None).await;
    let layer = oci::Digest::of(b"secret configuration");
    let elsewhere = format!("/v2/d/blobs/{}?ns=a.b", oci::Digest::of(b"layer"));
    for (method, path, status, expected) in [
        ("POST", "/v2/c/blobs/uploads/", 405, "UNSUPPORTED"),
        ("PATCH", "/v2/c/blobs/uploads/1", 405, "UNSUPPORTED"),
        ("PUT", "/v2/c/manifests/1", 405, "UNSUPPORTED"),
        ("DELETE", "/v2/c/manifests/1", 405, "UNSUPPORTED"),
        ("GET", "/v2/C/manifests/1", 400, "NAME_INVALID"),
        ("GET", "/v2/c/blobs/sha256:1?ns=a.b", 400, "DIGEST_INVALID"),
        ("GET", "/v2/c/manifests/sha256:1?ns=a.b", 400, "DIGEST_INVALID"),
        ("GET", "/v2/c/manifests/2?ns=a.b", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/d/tags/list?ns=a.b", 404, "NAME_UNKNOWN"),
        ("GET", &format!("/v2/c/blobs/{layer}?ns=a.b"), 404, "BLOB_UNKNOWN"),
        (
            "GET",
            &format!("/v2/c/manifests/{}?ns=a.b", rootfs.digest),
            404,
            "MANIFEST_UNKNOWN",
        ),
        ("GET", &elsewhere, 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/c/referrers/x", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/_catalog?n=x", 400, "PAGINATION_NUMBER_INVALID"),
    ] {
        let answer = server.ask(method, path, &[]).await;
        assert_eq!(
            (answer.status().as_u16(), code(&answer).as_str()),
            (status, expected),
            "{method} {path}"
        );
        assert_eq!(header(&answer, "allow"), if status == 405 { "GET, HEAD" } else { "" });
    }
    server.stop().await;
}

#[tokio::test]
async fn lists_are_sorted_and_paged() {
    let store = Store::new();
    let image = store.image(b"layer");
    let names = [
        "a.b/c:3",
        "a.b/c:1",
        "a.b/c:2",
        "sea.hub:5000/own:1",
        "docker.io/library/x:1",
    ];
    store.list(names.iter().map(|name| Store::named(&image, name)).collect());
    let server = Server::start(&store, None).await;
    let catalog = server.get("/v2/_catalog").await;
    assert_eq!(
        *catalog.body(),
        r#"{"repositories":["a.b/c","docker.io/library/x","own"]}"#
    );
    let first = server.get("/v2/c/tags/list?n=2&ns=a.b").await;
    assert_eq!(*first.body(), r#"{"name":"c","tags":["1","2"]}"#);
    assert_eq!(
        header(&first, "link"),
        "</v2/c/tags/list?n=2&last=2&ns=a.b>; rel=\"next\""
    );
    let second = server.get("/v2/c/tags/list?n=2&last=2&ns=a.b").await;
    assert_eq!(
        (second.body().as_ref(), header(&second, "link")),
        (br#"{"name":"c","tags":["3"]}"#.as_slice(), "")
    );
    assert_eq!(server.get("/v2/").await.status(), StatusCode::OK);
    assert_eq!(*server.get("/healthz").await.body(), "ok");
    server.stop().await;
}

#[tokio::test]
async fn a_changed_index_is_served_at_once_and_a_broken_one_never() {
    let store = Store::new();
    store.list(vec![]);
    let server = Server::start(&store, None).await;
    assert_eq!(
        server.get("/v2/c/manifests/1?ns=a.b").await.status(),
        StatusCode::NOT_FOUND
    );
    let image = store.image(b"layer");
    store.list(vec![Store::named(&image, "a.b/c:1")]);
    assert_eq!(server.get("/v2/c/manifests/1?ns=a.b").await.status(), StatusCode::OK);
    std::fs::write(store.layout.index_path(), "{").unwrap();
    assert_eq!(server.get("/v2/c/manifests/1?ns=a.b").await.status(), StatusCode::OK);
    server.stop().await;
}

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo")
        .args(arguments)
        .output()
        .expect("these tests need skopeo");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_images_over_http() {
    let store = Store::new();
    let content = large();
    let image = store.image(&content);
    let multi = store.index(&Index {
        media_type: Some(oci::media_type::INDEX.to_owned()),
        manifests: vec![{
            let mut entry = image.clone();
            entry.platform = Some(oci::Platform {
                architecture: "amd64".into(),
                os: "linux".into(),
                variant: None,
            });
            entry
        }],
        ..Index::default()
    });
    store.list(vec![
        Store::named(&image, "sea.hub:5000/a/b:1"),
        Store::named(&multi, "docker.io/library/multi:1"),
    ]);
    let server = Server::start(&store, None).await;
    let target = tempfile::tempdir().unwrap();
    for (name, digest) in [("a/b:1", &image.digest), ("multi:1", &multi.digest)] {
        let from = format!("docker://127.0.0.1:{}/{name}", server.port);
        let to = format!("oci:{}:x", target.path().join(digest.short()).display());
        tokio::task::spawn_blocking(move || {
            skopeo(&[
                "copy",
                "--all",
                "--quiet",
                "--preserve-digests",
                "--src-tls-verify=false",
                &from,
                &to,
            ])
        })
        .await
        .unwrap();
        let copied = oci::Layout::open(target.path().join(digest.short()));
        copied
            .blobs()
            .verify(digest, store.layout.blobs().size(digest).unwrap())
            .unwrap();
        copied
            .blobs()
            .verify(&oci::Digest::of(&content), content.len() as u64)
            .unwrap();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_images_over_tls() {
    let store = Store::new();
    let image = store.image(b"layer");
    store.list(vec![Store::named(&image, "sea.hub:5000/a/b:1")]);
    let pki = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["127.0.0.1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let (cert_file, key_file) = (pki.path().join("ca.crt"), pki.path().join("tls.private"));
    std::fs::write(&cert_file, certificate.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let server = Server::start(&store, Some(acceptor(&cert_file, &key_file).unwrap())).await;
    let from = format!("docker://127.0.0.1:{}/a/b:1", server.port);
    let certificates = format!("--cert-dir={}", pki.path().display());
    let found = tokio::task::spawn_blocking(move || skopeo(&["inspect", "--raw", &certificates, &from]))
        .await
        .unwrap();
    assert_eq!(oci::Digest::of(found.as_bytes()), image.digest);
    server.stop().await;
}

#[test]
fn flags_are_consistent() {
    use clap::{CommandFactory, Parser};
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    Cli::command().debug_assert();
    let line = "registry --store /s --listen 10.0.0.1:5000 --tls-cert c --tls-key k --domain sea.hub:5000 --domain 10.0.0.1:5000";
    assert_eq!(Cli::parse_from(line.split(' ')).args.domains.len(), 2);
    assert!(Cli::try_parse_from(["registry", "--store", "/s", "--tls-cert", "c"]).is_err());
}
