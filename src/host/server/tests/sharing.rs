//! Hosts in folders that fetch from each other over TLS on the loopback device.

use super::*;
use crate::proto::{Blob, Peer, Serving, Token};
use std::net::{IpAddr, Ipv4Addr};
use tokio::{io::AsyncWriteExt as _, sync::watch};
use zeroize::Zeroizing;

/// How long anything may take before a test is taken to hang.
const LIMIT: Duration = Duration::from_secs(30);
const SIZE: usize = 3_000_000;

struct Fixture {
    dir: tempfile::TempDir,
    client: Client,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Fixture {
    async fn new() -> Self {
        let dir = host();
        let (client, task) = writer(dir.path()).await;
        Self { dir, client, task }
    }

    fn blobs(&self) -> oci::BlobStore {
        oci::Layout::open(self.dir.path().join("data/demo")).blobs().clone()
    }

    /// Lets it have the first `bytes` of a blob.
    fn begin(&self, blob: &Blob, content: &[u8]) {
        let mut writer = self.blobs().writer(&blob.digest, blob.size, true).unwrap();
        writer.write(content).unwrap();
    }

    async fn peer(&self) -> Peer {
        let at = self.client.serve(local(), token("right")).await.unwrap();
        Peer {
            at,
            token: token("right"),
        }
    }

    async fn have(&self, blob: &Blob) -> Option<u64> {
        let missing = self.client.missing_blobs(vec![blob.clone()]).await.unwrap();
        missing.first().map(|missing| missing.have)
    }

    /// Ends its `clusterd`, as a crash does.
    async fn die(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Fetches in the background; tells how many bytes are there.
    fn fetch(&self, blob: &Blob, from: &Peer) -> Fetching {
        let (told, at) = watch::channel(0);
        let (client, blob, from) = (self.client.clone(), blob.clone(), from.clone());
        let task = tokio::spawn(async move {
            let told = move |bytes| {
                let _ = told.send_replace(bytes);
            };
            client.fetch_blob(blob, from, told).await
        });
        Fetching { at, task }
    }
}

struct Fetching {
    at: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<Result<(), ClientError>>,
}

impl Fetching {
    async fn reach(&mut self, bytes: u64) {
        let reached = tokio::time::timeout(LIMIT, self.at.wait_for(|at| *at >= bytes)).await;
        reached.expect("it comes so far").expect("it goes on");
    }

    async fn end(self) -> Result<(), ClientError> {
        tokio::time::timeout(LIMIT, self.task).await.expect("it ends").unwrap()
    }
}

fn local() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

fn token(text: &str) -> Token {
    Token::new(Zeroizing::new(text.to_owned()))
}

fn content() -> (Vec<u8>, Blob) {
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
    let blob = Blob {
        digest: oci::Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    (bytes, blob)
}

#[tokio::test]
async fn a_host_fetches_from_another_what_it_lacks_and_no_more() {
    let (bytes, blob) = content();
    let (a, b) = (Fixture::new().await, Fixture::new().await);
    a.client.put_blob(&blob, 0, &bytes[..]).await.unwrap();
    b.begin(&blob, &bytes[..1_000_000]);
    let mut told = Vec::new();
    let from = a.peer().await;
    let fetching = b.client.fetch_blob(blob.clone(), from, |bytes| told.push(bytes));
    fetching.await.unwrap();
    assert!(told.is_sorted() && *told.first().unwrap() >= 1_000_000, "{told:?}");
    assert_eq!(told.last(), Some(&blob.size));
    assert_eq!(b.have(&blob).await, None);
    b.blobs().verify(&blob.digest, blob.size).unwrap();
    // What it has it does not ask for: the other one is not even there any more.
    let gone = a.peer().await;
    a.die().await;
    b.client.fetch_blob(blob, gone, |_| ()).await.unwrap();
}

#[tokio::test]
async fn serving_needs_the_lock_may_be_repeated_and_ends_when_told_and_with_the_connection() {
    let (bytes, blob) = content();
    let dir = host();
    let (looking, _task) = connect(dir.path());
    looking.hello().await.unwrap();
    looking.open(&scope(), Mode::Read).await.unwrap();
    let refused = fault(looking.serve(local(), token("right")).await.unwrap_err());
    assert!(refused.message.contains("looking only"), "{refused:?}");

    let (a, b) = (Fixture::new().await, Fixture::new().await);
    a.client.put_blob(&blob, 0, &bytes[..]).await.unwrap();
    let first = a.peer().await;
    assert_eq!(a.peer().await.at, first.at);
    let other = a.client.serve(local(), token("another")).await.unwrap();
    assert!(
        other.certificate != first.at.certificate,
        "a token of another run has its own key"
    );
    let unreachable = async |peer: &Peer| {
        let refused = fault(b.fetch(&blob, peer).end().await.unwrap_err());
        assert_eq!(refused.kind, FaultKind::Failed, "{refused:?}");
    };
    unreachable(&first).await;
    let peer = a.peer().await;
    a.client.end_serve().await.unwrap();
    a.client.end_serve().await.unwrap();
    unreachable(&peer).await;
    let peer = a.peer().await;
    a.die().await;
    unreachable(&peer).await;
    assert_eq!(b.have(&blob).await, Some(0));
}

#[tokio::test]
async fn neither_a_stranger_nor_a_wrong_token_is_believed() {
    let (bytes, blob) = content();
    let (a, b, c) = (Fixture::new().await, Fixture::new().await, Fixture::new().await);
    for fixture in [&a, &c] {
        fixture.client.put_blob(&blob, 0, &bytes[..]).await.unwrap();
    }
    let (right, other) = (a.peer().await, c.peer().await);
    let stranger = Peer {
        at: Serving {
            certificate: other.at.certificate.clone(),
            ..right.at.clone()
        },
        ..right.clone()
    };
    let uninvited = Peer {
        token: token("wrong"),
        ..right.clone()
    };
    for (peer, why) in [(stranger, "certificate"), (uninvited, "token")] {
        assert!(!format!("{peer:?}").contains("right"), "a token is not shown");
        let refused = fault(b.fetch(&blob, &peer).end().await.unwrap_err());
        assert_eq!(refused.kind, FaultKind::Failed);
        assert!(refused.message.contains(why), "{refused:?}");
        assert_eq!(b.have(&blob).await, Some(0));
    }
    b.fetch(&blob, &right).end().await.unwrap();
}

#[tokio::test]
async fn damaged_content_of_another_host_is_never_visible_and_not_kept() {
    let (bytes, blob) = content();
    let (a, b) = (Fixture::new().await, Fixture::new().await);
    a.client.put_blob(&blob, 0, &bytes[..]).await.unwrap();
    let path = a.blobs().path(&blob.digest);
    let mut damaged = bytes.clone();
    damaged[SIZE / 2] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let refused = fault(b.fetch(&blob, &a.peer().await).end().await.unwrap_err());
    assert_eq!(refused.kind, FaultKind::Corrupt);
    assert_eq!(b.have(&blob).await, Some(0));
    // What is sent directly counts.
    b.client.put_blob(&blob, 0, &bytes[..]).await.unwrap();
    assert_eq!(b.have(&blob).await, None);
}

#[tokio::test]
async fn a_blob_is_given_on_while_it_arrives() {
    let (bytes, blob) = content();
    let (a, b, c) = (Fixture::new().await, Fixture::new().await, Fixture::new().await);
    // Whoever asks too early waits until it begins.
    let from_b = b.peer().await;
    let mut third = c.fetch(&blob, &from_b);
    let from_a = a.peer().await;
    let mut second = b.fetch(&blob, &from_a);
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let (client, own) = (a.client.clone(), blob.clone());
    let first = tokio::spawn(async move { client.put_blob(&own, 0, far).await });
    near.write_all(&bytes[..SIZE / 2]).await.unwrap();
    let sent = (SIZE / 2 / crate::frame::CHUNK * crate::frame::CHUNK) as u64;
    second.reach(sent).await;
    third.reach(sent).await;
    assert!(
        a.have(&blob).await.is_some(),
        "the first one does not have it whole yet"
    );
    near.write_all(&bytes[SIZE / 2..]).await.unwrap();
    drop(near);
    first.await.unwrap().unwrap();
    second.end().await.unwrap();
    third.end().await.unwrap();
    for fixture in [&a, &b, &c] {
        fixture.blobs().verify(&blob.digest, blob.size).unwrap();
    }
}

#[tokio::test]
async fn when_a_source_dies_in_the_middle_another_one_goes_on_from_there() {
    let (bytes, blob) = content();
    let (a, b, c) = (Fixture::new().await, Fixture::new().await, Fixture::new().await);
    c.client.put_blob(&blob, 0, &bytes[..]).await.unwrap();
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let (client, own) = (a.client.clone(), blob.clone());
    let first = tokio::spawn(async move { client.put_blob(&own, 0, far).await });
    near.write_all(&bytes[..SIZE / 2]).await.unwrap();
    let mut fetching = b.fetch(&blob, &a.peer().await);
    fetching.reach(1).await;
    a.die().await;
    drop(near);
    assert!(matches!(first.await.unwrap(), Err(ClientError::Lost(_))));
    let failed = fault(fetching.end().await.unwrap_err());
    assert_eq!(failed.kind, FaultKind::Failed, "{failed:?}");
    let have = b.have(&blob).await.unwrap();
    assert!(have > 0, "what had come is kept");
    let mut told = Vec::new();
    let from = c.peer().await;
    b.client
        .fetch_blob(blob.clone(), from, |bytes| told.push(bytes))
        .await
        .unwrap();
    assert!(told[0] >= have, "{told:?} begins where it stopped, at {have}");
    b.blobs().verify(&blob.digest, blob.size).unwrap();
}

#[tokio::test]
async fn a_source_that_loses_its_own_says_so_to_those_behind_it() {
    let (bytes, blob) = content();
    let (a, b) = (Fixture::new().await, Fixture::new().await);
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let (client, own) = (a.client.clone(), blob.clone());
    let first = tokio::spawn(async move { client.put_blob(&own, 0, far).await });
    near.write_all(&bytes[..SIZE / 2]).await.unwrap();
    let mut fetching = b.fetch(&blob, &a.peer().await);
    fetching.reach(1).await;
    // The operator ends too early: the host throws away what it has, since it is not the blob.
    drop(near);
    assert_eq!(fault(first.await.unwrap().unwrap_err()).kind, FaultKind::Corrupt);
    let failed = fault(fetching.end().await.unwrap_err());
    assert_eq!(failed.kind, FaultKind::Failed);
    assert!(failed.message.contains("stopped arriving"), "{failed:?}");
    assert!(b.have(&blob).await.unwrap() > 0);
}

#[tokio::test]
async fn a_blob_for_which_there_is_no_room_is_refused_before_it_is_sent() {
    let (a, b) = (Fixture::new().await, Fixture::new().await);
    let huge = Blob {
        digest: oci::Digest::of(b"huge"),
        size: 1 << 60,
    };
    let refused = fault(b.fetch(&huge, &a.peer().await).end().await.unwrap_err());
    assert_eq!(refused.kind, FaultKind::System, "{refused:?}");
    assert!(refused.message.contains("make room"), "{refused:?}");
    let refused = fault(a.client.put_blob(&huge, 0, tokio::io::repeat(1)).await.unwrap_err());
    assert_eq!(refused.kind, FaultKind::System);
}
