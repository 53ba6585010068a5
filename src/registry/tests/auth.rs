//! Logging in.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Pki, Server, args, code, header, open_args, run_beside, users};
use crate::{Args, Error, testing::Store};

fn login(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[tokio::test]
async fn without_a_password_there_is_nothing_but_a_challenge() {
    let store = Store::new();
    let image = store.image(b"layer");
    store.list(vec![Store::named(&image, "sea.hub:5000/a:1")]);
    let dir = tempfile::tempdir().unwrap();
    let file = users(dir.path(), &[("alice", "right")]);
    let server = Server::start(Args {
        htpasswd: Some(file),
        ..args(store.layout.root())
    })
    .await;
    for path in ["/v2/", "/v2/_catalog", "/v2/a/manifests/1", "/v2/a/nothing"] {
        let refused = server.get(path).await;
        assert_eq!(
            (refused.status().as_u16(), code(&refused).as_str()),
            (401, "UNAUTHORIZED"),
            "{path}"
        );
        assert!(header(&refused, "www-authenticate").starts_with("Basic realm="));
        let wrong = server
            .ask("GET", path, &[("authorization", &login("alice", "wrong"))])
            .await;
        assert_eq!(wrong.status(), 401);
    }
    for path in ["/v2/", "/v2/_catalog", "/v2/a/manifests/1"] {
        let right = server
            .ask("GET", path, &[("authorization", &login("alice", "right"))])
            .await;
        assert_eq!(right.status(), 200, "{path}");
    }
    assert_eq!(server.get("/healthz").await.status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn a_broken_file_of_users_is_told_before_anything_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    std::fs::write(&file, "alice:$apr1$not$bcrypt\n").unwrap();
    let refused = crate::registry(Args {
        htpasswd: Some(file.clone()),
        ..open_args(dir.path())
    });
    let Err(error @ Error::Users(_)) = refused.map(drop) else {
        panic!("it was taken")
    };
    let text = error.to_string();
    assert!(
        text.contains("line 1") && text.contains("htpasswd -B") && !text.contains("apr1"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pushes_with_a_password_and_pulls_without_one() {
    let source = Store::new();
    let image = source.image(b"layer");
    source.list(vec![Store::named(&image, "one")]);
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    let server = Server::start(pki.protect(Args {
        htpasswd: Some(users(dir.path(), &[("alice", "right")])),
        anonymous_pull: true,
        ..open_args(&dir.path().join("store"))
    }))
    .await;
    let from = format!("oci:{}:one", source.layout.root().display());
    let there = format!("docker://{}/team/app:1", server.address);
    let push = async |credentials: &str| {
        let copy = format!(
            "skopeo copy --quiet --preserve-digests --dest-cert-dir={}",
            pki.folder()
        );
        run_beside(format!("{copy} {credentials} {from} {there}")).await
    };
    for wrong in ["--dest-no-creds", "--dest-creds=alice:wrong", "--dest-creds=eve:right"] {
        let refused = push(wrong).await.unwrap_err();
        let told = ["authentication required", "unauthorized"];
        assert!(told.iter().any(|text| refused.contains(text)), "{refused}");
    }
    push("--dest-creds=alice:right").await.unwrap();
    for credentials in ["--no-creds", "--creds=alice:right"] {
        let inspect = format!("skopeo inspect --raw --cert-dir={}", pki.folder());
        let found = run_beside(format!("{inspect} {credentials} {there}")).await.unwrap();
        assert_eq!(oci::Digest::of(found.as_bytes()), image.digest);
    }
    server.stop().await;
}
