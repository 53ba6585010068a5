//! What lasts and what does not: restarts, deletions, cleaning up, numbers.

use std::time::Duration;

use oci::{Digest, Layout};

use super::{INDEX, OCTETS, Server, args, code, header, image, listed, open_args, until, with};
use crate::{Args, testing::Store};

#[tokio::test]
async fn an_upload_and_pushed_blobs_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    let layer = b"pushed in two halves, with a restart between them";
    let blob = server.target().push_blob("a", b"{}").await;
    let begun = server.ask("POST", "/v2/a/blobs/uploads/", &[]).await;
    let location = header(&begun, "location").to_owned();
    let first = server.target().send("PATCH", &location, &[OCTETS], &layer[..20]).await;
    assert_eq!(header(&first, "range"), "0-19");
    server.stop().await;

    let server = Server::start(open_args(dir.path())).await;
    let target = server.target();
    assert_eq!(target.status("HEAD", &format!("/v2/a/blobs/{blob}")).await, 200);
    assert_eq!(header(&server.get(&location).await, "range"), "0-19");
    let to = with(&location, &format!("digest={}", Digest::of(layer)));
    assert_eq!(target.send("PUT", &to, &[OCTETS], &layer[20..]).await.status(), 201);
    let pushed = target
        .send("PUT", "/v2/a/manifests/1", &[super::MANIFEST], &image(layer))
        .await;
    assert_eq!(pushed.status(), 201);
    server.stop().await;

    let server = Server::start(args(dir.path())).await;
    assert_eq!(
        server.get("/v2/a/manifests/1").await.status(),
        200,
        "and it is served read-only"
    );
    assert_eq!(server.ask("POST", "/v2/a/blobs/uploads/", &[]).await.status(), 405);
    server.stop().await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_goes_on_where_it_stopped() {
    use tokio::io::AsyncWriteExt as _;
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    let target = server.target();
    let begun = server.ask("POST", "/v2/a/blobs/uploads/", &[]).await;
    let location = header(&begun, "location").to_owned();
    let content: Vec<u8> = (0..200_000u32).map(|i| (i % 253) as u8).collect();
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        content.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&content[..150_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    until("the upload has what arrived", async || {
        header(&server.get(&location).await, "range") == "0-149999"
    })
    .await;
    let to = with(&location, &format!("digest={}", Digest::of(&content)));
    let rest = target
        .send(
            "PUT",
            &to,
            &[OCTETS, ("content-range", "150000-199999")],
            &content[150_000..],
        )
        .await;
    assert_eq!(rest.status(), 201, "{rest:?}");
    server.stop().await;
}

#[tokio::test]
async fn deleted_content_leaves_the_disk_with_the_last_that_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    let target = server.target();
    let layout = Layout::open(dir.path());
    let here = |digest: &Digest| layout.blobs().size(digest).is_some();
    let manifest = target.push_image("a", Some("1"), b"layer").await;
    target.push_image("b", Some("1"), b"layer").await;
    let layer = Digest::of(b"layer");

    let needed = server.ask("DELETE", &format!("/v2/a/blobs/{layer}"), &[]).await;
    assert_eq!((needed.status().as_u16(), code(&needed).as_str()), (405, "UNSUPPORTED"));
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": super::MANIFEST.1, "digest": manifest, "size": image(b"layer").len()}]});
    let put = target
        .send("PUT", "/v2/a/manifests/all", &[INDEX], index.to_string().as_bytes())
        .await;
    assert_eq!(put.status(), 201);
    let child = format!("/v2/a/manifests/{manifest}");
    assert_eq!(target.status("DELETE", &child).await, 405, "the index needs it");
    let index = header(&put, "docker-content-digest").to_owned();
    assert_eq!(target.status("DELETE", &format!("/v2/a/manifests/{index}")).await, 202);
    assert!(!here(&index.parse().unwrap()));
    assert_eq!(target.status("DELETE", &child).await, 202);
    assert_eq!(
        target.status("GET", "/v2/a/manifests/1").await,
        404,
        "its tag went with it"
    );
    assert!(here(&manifest), "the other repository has it");

    assert_eq!(
        target.status("HEAD", &format!("/v2/a/blobs/{layer}")).await,
        200,
        "blobs stay for a while"
    );
    assert_eq!(target.status("DELETE", &format!("/v2/a/blobs/{layer}")).await, 202);
    assert_eq!(target.status("HEAD", &format!("/v2/a/blobs/{layer}")).await, 404);
    assert!(here(&layer));
    assert_eq!(
        target.status("DELETE", &format!("/v2/b/manifests/{manifest}")).await,
        202
    );
    assert_eq!(target.status("DELETE", &format!("/v2/b/blobs/{layer}")).await, 202);
    assert!(!here(&layer) && !here(&manifest));
    assert_eq!(listed(&layout), Vec::<String>::new());
    server.stop().await;
}

#[tokio::test]
async fn blobs_leave_the_disk_only_while_nobody_else_adds_any() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Args {
        upload_expiry: Duration::from_secs(1),
        ..open_args(dir.path())
    })
    .await;
    let target = server.target();
    let blob = target.push_blob("a", b"blob").await;
    let layout = Layout::open(dir.path());
    let lock = dir.path().join(".lock");
    let other = std::fs::File::options().create(true).append(true).open(lock).unwrap();
    other.lock_shared().unwrap();
    let path = format!("/v2/a/blobs/{blob}");
    assert_eq!(
        (target.status("DELETE", &path).await, target.status("GET", &path).await),
        (202, 404)
    );
    assert!(
        layout.blobs().size(&blob).is_some(),
        "who holds the lock may count on it"
    );
    drop(other);
    until("a sweep removes it", async || layout.blobs().size(&blob).is_none()).await;
    server.stop().await;
}

#[tokio::test]
async fn nothing_is_deleted_unless_that_is_switched_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Args {
        delete: false,
        ..open_args(dir.path())
    })
    .await;
    let target = server.target();
    let manifest = target.push_image("a", Some("1"), b"layer").await;
    for path in [
        "/v2/a/manifests/1".to_owned(),
        format!("/v2/a/manifests/{manifest}"),
        format!("/v2/a/blobs/{}", Digest::of(b"layer")),
    ] {
        let refused = server.ask("DELETE", &path, &[]).await;
        assert_eq!(
            (refused.status().as_u16(), code(&refused).as_str()),
            (405, "UNSUPPORTED"),
            "{path}"
        );
        assert!(!header(&refused, "allow").contains("DELETE"));
    }
    let begun = server.ask("POST", "/v2/a/blobs/uploads/", &[]).await;
    assert_eq!(
        target.status("DELETE", header(&begun, "location")).await,
        204,
        "uploads can be cancelled"
    );
    server.stop().await;
}

#[tokio::test]
async fn what_is_never_used_is_cleaned_up_and_nothing_else() {
    let store = Store::new();
    let rootfs = store.image(b"rootfs");
    store.list(vec![rootfs.clone()]);
    let stranger = store
        .layout
        .blobs()
        .put(b"came another way, for something that comes later")
        .unwrap();
    let server = Server::start(Args {
        upload_expiry: Duration::from_secs(1),
        ..open_args(store.layout.root())
    })
    .await;
    let target = server.target();
    let used = target.push_image("a", Some("1"), b"layer").await;
    let unused = target.push_blob("a", b"unused").await;
    // The same content as a layer that is in use elsewhere.
    target.push_blob("b", b"rootfs").await;
    server.ask("POST", "/v2/a/blobs/uploads/", &[]).await;
    let blobs = store.layout.blobs();
    until("the unused blob is gone", async || blobs.size(&unused).is_none()).await;
    let uploads = store.layout.root().join(".registry/uploads");
    until("the upload is gone", async || {
        std::fs::read_dir(&uploads).unwrap().next().is_none()
    })
    .await;
    let links = store.layout.root().join(".registry/links");
    until("no link is left", async || {
        std::fs::read_dir(&links).unwrap().next().is_none()
    })
    .await;
    for kept in [
        used,
        Digest::of(b"layer"),
        rootfs.digest,
        Digest::of(b"rootfs"),
        stranger,
    ] {
        assert!(blobs.size(&kept).is_some(), "{kept}");
    }
    assert_eq!(target.status("GET", "/v2/a/manifests/1").await, 200);
    server.stop().await;
}

#[tokio::test]
async fn numbers_are_given_at_an_address_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let server = Server::start(Args {
        metrics_listen: Some(free),
        ..open_args(dir.path())
    })
    .await;
    server.target().push_image("a", Some("1"), b"layer").await;
    let numbers = super::Target(free);
    let text = numbers.send("GET", "/metrics", &[], b"").await;
    let text = String::from_utf8(text.body().to_vec()).unwrap();
    for line in [
        r#"registry_http_requests_total{method="PUT",route="manifest",code="201"} 1"#,
        r#"registry_http_requests_total{method="POST",route="upload",code="202"} 2"#,
        "registry_repositories 1",
        "registry_uploads 0",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(numbers.status("GET", "/healthz").await, 200);
    assert_eq!(numbers.status("GET", "/v2/").await, 404);
    assert_eq!(
        server.get("/metrics").await.status(),
        404,
        "not where images are served"
    );
    server.stop().await;
}
