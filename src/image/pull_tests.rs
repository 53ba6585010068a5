//! Pulling from a registry, a small one of our own: just enough of the distribution specification's pull side.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use oci::{Descriptor, Digest, Index, Reference, media_type};

use crate::pull::Puller;
use crate::{Error, NoProgress, Store, host_platform};

type Content = Arc<Mutex<BTreeMap<String, (String, Vec<u8>)>>>;

/// Serves what `content` holds by path, until the process ends; returns `host:port`.
fn registry(content: Content) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let content = Arc::clone(&content);
            std::thread::spawn(move || answer(stream, &content));
        }
    });
    address
}

fn answer(mut stream: TcpStream, content: &Content) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        let path = line.split(' ').nth(1).unwrap_or_default().to_string();
        let mut header = String::new();
        while reader.read_line(&mut header).is_ok_and(|read| read > 2) {
            header.clear();
        }
        let found = content.lock().unwrap().get(&path).cloned();
        let (status, kind, body) = match found {
            Some((kind, body)) => ("200 OK", kind, body),
            None if path == "/v2/" => ("200 OK", "application/json".to_string(), b"{}".to_vec()),
            None => (
                "404 Not Found",
                "application/json".to_string(),
                br#"{"errors":[]}"#.to_vec(),
            ),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&body))
            .is_err()
        {
            return;
        }
        line.clear();
    }
    let _ = reader.read(&mut [0]);
}

struct Remote {
    content: Content,
    address: String,
    layer: Digest,
    index: Digest,
}

/// A registry with `team/app:v1`, an index of one manifest for this machine and one for another.
fn remote() -> Remote {
    let content = Content::default();
    let address = registry(Arc::clone(&content));
    let put = |path: String, kind: &str, body: &[u8]| {
        content.lock().unwrap().insert(path, (kind.to_string(), body.to_vec()));
        Descriptor::of(kind, body)
    };
    let blob = |digest: &Digest| format!("/v2/team/app/blobs/{digest}");
    let layer = put(blob(&Digest::of(b"layer")), media_type::LAYER_TAR, b"layer");
    let config = put(blob(&Digest::of(b"{}")), media_type::CONFIG, b"{}");
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": config, "layers": [layer], "annotations": {"keep": "me"},
    });
    let manifest = serde_json::to_vec_pretty(&manifest).unwrap();
    let path = format!("/v2/team/app/manifests/{}", Digest::of(&manifest));
    let mut entry = put(path, media_type::MANIFEST, &manifest);
    entry.platform = Some(host_platform());
    let mut other = Descriptor::of(media_type::MANIFEST, b"other");
    other.platform = Some(oci::Platform {
        architecture: "s390x".into(),
        os: "linux".into(),
        variant: None,
    });
    let index = serde_json::to_vec(&Index {
        manifests: vec![other, entry],
        ..Index::default()
    })
    .unwrap();
    let digest = put("/v2/team/app/manifests/v1".into(), media_type::INDEX, &index).digest;
    put(format!("/v2/team/app/manifests/{digest}"), media_type::INDEX, &index);
    Remote {
        content,
        address,
        layer: layer.digest,
        index: digest,
    }
}

fn pull(store: &Store, remote: &Remote, name: &str) -> Result<Descriptor, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let reference: Reference = format!("{}/{name}", remote.address).parse().unwrap();
    let puller = Puller::new(std::slice::from_ref(&remote.address));
    runtime.block_on(puller.pull(store, &reference, &host_platform(), &NoProgress))
}

#[test]
fn an_image_is_pulled_through_its_index_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let remote = remote();
    for name in ["team/app:v1".to_string(), format!("team/app@{}", remote.index)] {
        let manifest = pull(&store, &remote, &name).unwrap();
        assert_eq!(manifest.platform, Some(host_platform()));
        let blobs = store.reachable(&manifest).unwrap();
        assert_eq!(blobs.len(), 3);
        for blob in blobs {
            store.blobs().verify(&blob.digest, blob.size).unwrap();
        }
        let text = store.blobs().read(&manifest.digest, 10_000).unwrap();
        assert!(
            String::from_utf8(text).unwrap().contains("\"keep\""),
            "foreign bytes are kept as they are"
        );
    }
}

#[test]
fn damaged_and_missing_content_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let remote = remote();
    let error = pull(&store, &remote, "team/none:v1").unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot pull {}/team/none:v1: ", remote.address)),
        "{error}"
    );
    let path = format!("/v2/team/app/blobs/{}", remote.layer);
    for body in [&b"l4yer"[..], b"lay", b"layer and more"] {
        remote
            .content
            .lock()
            .unwrap()
            .insert(path.clone(), (media_type::LAYER_TAR.into(), body.to_vec()));
        assert!(pull(&store, &remote, "team/app:v1").is_err(), "{body:?}");
        assert!(store.blobs().size(&remote.layer).is_none());
    }
    let manifest = "/v2/team/app/manifests/v1".to_string();
    remote
        .content
        .lock()
        .unwrap()
        .insert(manifest, ("text/html".into(), b"<html>login</html>".to_vec()));
    assert!(pull(&store, &remote, "team/app:v1").is_err());
    assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}
