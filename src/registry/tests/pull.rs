//! Pulling from a store that somebody else fills, as in a cluster.

use http::StatusCode;
use oci::Index;

use super::{Pki, Server, args, code, header, large, run_beside};
use crate::testing::Store;

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
    let server = Server::start(args(store.layout.root())).await;
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
    let server = Server::start(args(store.layout.root())).await;

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
    let server = Server::start(args(store.layout.root())).await;
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
        ("GET", "/v2/c/referrers/x", 400, "DIGEST_INVALID"),
        ("GET", "/v2/c/blobs/uploads/1", 405, "UNSUPPORTED"),
        ("GET", "/v2/c/nothing/x", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/_catalog?n=x", 400, "PAGINATION_NUMBER_INVALID"),
    ] {
        let answer = server.ask(method, path, &[]).await;
        assert_eq!(
            (answer.status().as_u16(), code(&answer).as_str()),
            (status, expected),
            "{method} {path}"
        );
        let allow = if status == 405 && !path.contains("uploads") {
            "GET, HEAD"
        } else {
            ""
        };
        assert_eq!(header(&answer, "allow"), allow, "{method} {path}");
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
    let server = Server::start(args(store.layout.root())).await;
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
    let server = Server::start(args(store.layout.root())).await;
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
    let server = Server::start(args(store.layout.root())).await;
    let target = tempfile::tempdir().unwrap();
    for (name, digest) in [("a/b:1", &image.digest), ("multi:1", &multi.digest)] {
        let from = format!("docker://{}/{name}", server.address);
        let to = format!("oci:{}:x", target.path().join(digest.short()).display());
        let copy = "skopeo copy --all --quiet --preserve-digests --src-tls-verify=false";
        run_beside(format!("{copy} {from} {to}")).await.unwrap();
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
async fn skopeo_copies_images_over_tls() {
    let store = Store::new();
    let content = large();
    let image = store.image(&content);
    store.list(vec![Store::named(&image, "sea.hub:5000/a/b:1")]);
    let pki = Pki::new();
    let server = Server::start(pki.protect(args(store.layout.root()))).await;
    let target = tempfile::tempdir().unwrap();
    let from = format!("docker://{}/a/b:1", server.address);
    let to = format!("oci:{}:x", target.path().join("copy").display());
    let copy = format!("skopeo copy --quiet --preserve-digests --src-cert-dir={}", pki.folder());
    run_beside(format!("{copy} {from} {to}")).await.unwrap();
    let copied = oci::Layout::open(target.path().join("copy"));
    let digest = oci::Digest::of(&content);
    copied.blobs().verify(&digest, content.len() as u64).unwrap();
    server.stop().await;
}

#[tokio::test]
async fn parts_of_many_files_follow_each_other_on_one_connection() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let store = Store::new();
    let content = large();
    let image = store.image(&content);
    store.list(vec![Store::named(&image, "a.b/c:1")]);
    let server = Server::start(args(store.layout.root())).await;
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let path = format!("/v2/c/blobs/{}?ns=a.b", oci::Digest::of(&content));
    // All of them at once: the answers wait for each other in the server.
    let ranges: Vec<(usize, usize)> = (0..20).map(|i| (i * 31_337, i * 31_337 + 200_000)).collect();
    let mut requests = String::new();
    for (number, (first, last)) in ranges.iter().enumerate() {
        let close = if number + 1 == ranges.len() {
            "connection: close\r\n"
        } else {
            ""
        };
        requests += &format!("GET {path} HTTP/1.1\r\nhost: x\r\nrange: bytes={first}-{last}\r\n{close}\r\n");
    }
    stream.write_all(requests.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    let mut rest = received.as_slice();
    for (first, last) in ranges {
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        assert!(rest.starts_with(b"HTTP/1.1 206"));
        let (body, after) = rest[end..].split_at(last - first + 1);
        assert!(body == &content[first..=last], "{first}-{last}");
        rest = after;
    }
    assert!(rest.is_empty());
    server.stop().await;
}
