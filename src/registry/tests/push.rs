//! Pushing: what lands in the layout, limits, and many clients at once.

use std::{collections::BTreeSet, path::Path};

use oci::{Digest, Layout};
use serde_json::{Value, json};

use super::{MANIFEST, OCTETS, Server, code, header, image, large, listed, open_args, with};
use crate::{Args, Error, testing::Store};

/// The files of a layout that are neither blobs nor its index: nothing may be left behind.
fn leftovers(store: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut ahead = ["uploads", "manifests", "links"]
        .map(|name| store.join(".registry").join(name))
        .to_vec();
    while let Some(folder) = ahead.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                ahead.push(path);
            } else {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[tokio::test]
async fn what_is_pushed_makes_an_image_layout_that_says_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Args {
        domains: vec!["sea.hub:5000".to_owned()],
        ..open_args(dir.path())
    })
    .await;
    let target = server.target();
    let content = large();
    let digest = target.push_image("team/app", Some("1"), &content).await;
    target.push_image("quay.io/team/app", Some("2"), b"mirrored").await;
    let layout = Layout::open(dir.path());
    assert_eq!(listed(&layout), ["quay.io/team/app:2", "sea.hub:5000/team/app:1"]);
    layout
        .blobs()
        .verify(&Digest::of(&content), content.len() as u64)
        .unwrap();
    let marker: Value = serde_json::from_slice(&std::fs::read(dir.path().join("oci-layout")).unwrap()).unwrap();
    assert_eq!(marker["imageLayoutVersion"], "1.0.0");
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
    for path in [
        "/v2/team/app/manifests/1",
        "/v2/sea.hub:5000/team/app/manifests/1",
        "/v2/team/app/manifests/1?ns=sea.hub:5000",
        "/v2/team/app/manifests/2?ns=quay.io",
    ] {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
    let moved = target.push_image("team/app", Some("1"), b"newer").await;
    assert_ne!(moved, digest);
    for reference in [digest.as_str(), moved.as_str(), "1"] {
        assert_eq!(
            target
                .status("HEAD", &format!("/v2/team/app/manifests/{reference}"))
                .await,
            200
        );
    }
    assert_eq!(listed(&layout).len(), 3, "the old manifest is still known");
    server.stop().await;
}

/// As a cluster uses an external registry: the images of each domain are pushed below its name, and the runtime is told that
/// folder and says the domain again.
#[tokio::test]
async fn what_is_pushed_below_a_domain_is_found_by_a_mirror_that_says_it_twice() {
    for domains in [vec!["hub.corp:5000".to_owned()], Vec::new()] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(Args {
            domains,
            ..open_args(dir.path())
        })
        .await;
        let target = server.target();
        for (folder, path, ns) in [
            ("quay.io", "team/app", "quay.io"),
            ("docker.io", "library/nginx", "docker.io"),
            ("registry.k8s.io", "pause", "registry.k8s.io"),
            ("r.corp-8443", "x", "r.corp%3A8443"),
            ("corp-8443", "x", "corp%3A8443"),
            ("localhost-5000", "x", "localhost:5000"),
        ] {
            let content = format!("content of {folder}");
            let digest = target
                .push_image(&format!("{folder}/{path}"), Some("1"), content.as_bytes())
                .await;
            for reference in ["1", digest.as_str()] {
                let asked = format!("/v2/{folder}/{path}/manifests/{reference}?ns={ns}");
                assert_eq!(server.get(&asked).await.status(), 200, "{asked}");
            }
            let blob = Digest::of(content.as_bytes());
            let asked = format!("/v2/{folder}/{path}/blobs/{blob}?ns={ns}");
            assert_eq!(server.get(&asked).await.status(), 200, "{asked}");
            let elsewhere = format!("/v2/{folder}/{path}/manifests/1?ns=other.io");
            assert_eq!(server.get(&elsewhere).await.status(), 404, "{elsewhere}");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_namespace_leads_every_step_of_a_push() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    let target = server.target();
    let begun = server.ask("POST", "/v2/a/blobs/uploads/?ns=quay.io", &[]).await;
    let to = with(header(&begun, "location"), &format!("digest={}", Digest::of(b"{}")));
    assert_eq!(header(&begun, "oci-namespace"), "quay.io");
    let created = target.send("PUT", &to, &[OCTETS], b"{}").await;
    assert_eq!(created.status(), 201, "{created:?}");
    assert_eq!(server.get(header(&created, "location")).await.status(), 200);
    let blob = format!("/v2/a/blobs/{}", Digest::of(b"{}"));
    assert_eq!(
        target.status("GET", &blob).await,
        404,
        "without the namespace it is another repository"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_repository_has_only_what_was_pushed_to_it() {
    let store = Store::new();
    let rootfs = store.image(b"secret configuration");
    store.list(vec![rootfs.clone()]);
    let server = Server::start(open_args(store.layout.root())).await;
    let target = server.target();
    let blob = target.push_blob("a", b"blob").await;
    assert_eq!(target.status("HEAD", &format!("/v2/a/blobs/{blob}")).await, 200);
    assert_eq!(target.status("HEAD", &format!("/v2/b/blobs/{blob}")).await, 404);
    let secret = Digest::of(b"secret configuration");
    let mount = format!("/v2/a/blobs/uploads/?mount={secret}");
    assert_eq!(
        target.status("POST", &mount).await,
        202,
        "what is not served cannot be mounted"
    );
    target.push_blob("a", b"{}").await;
    let refused = target
        .send("PUT", "/v2/a/manifests/1", &[MANIFEST], &image(b"secret configuration"))
        .await;
    assert_eq!(
        code(&refused),
        "MANIFEST_BLOB_UNKNOWN",
        "what is not served cannot be named"
    );
    let detail: Value = serde_json::from_slice(refused.body()).unwrap();
    assert_eq!(detail["errors"][0]["detail"], json!(secret));
    server.stop().await;
}

#[tokio::test]
async fn several_tags_come_with_one_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    let target = server.target();
    target.push_blob("a", b"{}").await;
    target.push_blob("a", b"layer").await;
    let document = image(b"layer");
    let path = format!("/v2/a/manifests/{}?tag=1&tag=1.2&tag=latest", Digest::of(&document));
    let created = target.send("PUT", &path, &[MANIFEST], &document).await;
    assert_eq!(
        (created.status().as_u16(), header(&created, "oci-tag")),
        (201, "1, 1.2, latest")
    );
    assert_eq!(
        *server.get("/v2/a/tags/list").await.body(),
        r#"{"name":"a","tags":["1","1.2","latest"]}"#
    );
    let bad = format!("/v2/a/manifests/{}?tag=.x", Digest::of(&document));
    assert_eq!(target.send("PUT", &bad, &[MANIFEST], &document).await.status(), 400);
    server.stop().await;
}

#[tokio::test]
async fn limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Args {
        max_blob_size: 1000,
        max_uploads: 2,
        ..open_args(dir.path())
    })
    .await;
    let target = server.target();
    let begin = async || server.ask("POST", "/v2/a/blobs/uploads/", &[]).await;
    let first = header(&begin().await, "location").to_owned();
    assert_eq!(begin().await.status(), 202);
    let refused = begin().await;
    assert_eq!(
        (refused.status().as_u16(), code(&refused).as_str()),
        (429, "TOOMANYREQUESTS")
    );
    assert!(!header(&refused, "retry-after").is_empty());

    assert_eq!(target.send("PATCH", &first, &[OCTETS], &[7; 600]).await.status(), 202);
    let refused = target.send("PATCH", &first, &[OCTETS], &[7; 401]).await;
    assert_eq!(
        (refused.status().as_u16(), code(&refused).as_str()),
        (413, "SIZE_INVALID")
    );
    assert_eq!(
        target.status("GET", &first).await,
        404,
        "a blob that is too large is not kept"
    );
    let sizes = [("content-length", "5"), ("content-range", "0-9")];
    let second = header(&begin().await, "location").to_owned();
    assert_eq!(target.send("PATCH", &second, &sizes, b"12345").await.status(), 400);
    assert_eq!(header(&server.get(&second).await, "range"), "0-0");
    let sha512 = format!("/v2/a/blobs/uploads/?digest=sha512:{}", "0".repeat(128));
    assert_eq!(code(&server.ask("POST", &sha512, &[]).await), "DIGEST_INVALID");
    let sha512 = "/v2/a/blobs/uploads/?digest-algorithm=sha512";
    assert_eq!(code(&server.ask("POST", sha512, &[]).await), "DIGEST_INVALID");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    let target = server.target();
    let clients: Vec<_> = (0..16)
        .map(|client| {
            tokio::spawn(async move {
                for number in 0..4 {
                    let layer = format!("layer {client} {number}").into_bytes();
                    target
                        .push_image("shared", Some(&format!("v{client}.{number}")), &layer)
                        .await;
                    // All write the same blobs, the same repository and the same tag.
                    target.push_image("shared", Some("latest"), b"same").await;
                }
            })
        })
        .collect();
    let layout = Layout::open(dir.path());
    // Readers of the folder see a whole index at every moment.
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        layout.read_index().unwrap();
        tokio::task::yield_now().await;
    }
    for client in clients {
        client.await.unwrap();
    }
    let names: BTreeSet<_> = listed(&layout).into_iter().collect();
    assert_eq!(names.len(), 65);
    for digest in layout.blobs().list().unwrap() {
        let size = layout.blobs().size(&digest).unwrap();
        layout.blobs().verify(&digest, size).unwrap();
    }
    assert_eq!(leftovers(dir.path()), Vec::<String>::new());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn others_may_change_the_index_under_its_lock_meanwhile() {
    let store = Store::new();
    let image = store.image(b"theirs");
    store.list(vec![]);
    let server = Server::start(open_args(store.layout.root())).await;
    let layout = store.layout.clone();
    let theirs = tokio::task::spawn_blocking(move || {
        for number in 0..20 {
            let lock = layout.root().join(".index.lock");
            let lock = std::fs::File::options().create(true).append(true).open(lock).unwrap();
            lock.lock().unwrap();
            let mut index = layout.read_index().unwrap();
            index
                .manifests
                .push(Store::named(&image, &format!("a.b/theirs:{number}")));
            layout.write_index(&index).unwrap();
        }
    });
    for number in 0..20 {
        server
            .target()
            .push_image("ours", Some(&number.to_string()), b"ours")
            .await;
    }
    theirs.await.unwrap();
    assert_eq!(listed(&store.layout).len(), 40);
    server.stop().await;
}

#[tokio::test]
async fn the_name_of_a_cluster_image_cannot_be_taken() {
    let store = Store::new();
    let carried = store.image(b"carried");
    let cluster = store.index(&oci::Index {
        manifests: vec![Store::named(&carried, "a.b/c:1")],
        ..oci::Index::default()
    });
    store.list(vec![Store::named(&cluster, "local/native:dev")]);
    let server = Server::start(open_args(store.layout.root())).await;
    let target = server.target();
    target.push_blob("docker.io/local/native", b"{}").await;
    target.push_blob("docker.io/local/native", b"layer").await;
    let path = "/v2/docker.io/local/native/manifests/dev";
    let refused = target.send("PUT", path, &[MANIFEST], &image(b"layer")).await;
    assert_eq!((refused.status().as_u16(), code(&refused).as_str()), (403, "DENIED"));
    // What it carries can be covered by a push, and cannot be deleted.
    let digest = target.push_image("a.b/c", Some("1"), b"pushed").await;
    let found = server.get("/v2/c/manifests/1?ns=a.b").await;
    assert_eq!(header(&found, "docker-content-digest"), digest.as_str());
    let kept = format!("/v2/a.b/c/manifests/{}", carried.digest);
    assert_eq!(target.status("DELETE", &kept).await, 405);
    assert_eq!(target.status("GET", &kept).await, 200);
    server.stop().await;
}

#[tokio::test]
async fn only_one_registry_writes_to_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(open_args(dir.path())).await;
    assert_eq!(server.get("/v2/").await.status(), 200);
    let second = crate::registry(open_args(dir.path()));
    assert!(matches!(second.map(drop), Err(Error::Busy(path)) if path == dir.path()));
    server.stop().await;
    crate::registry(open_args(dir.path())).map(drop).unwrap();
}
