//! The etcd client: one key per object, optimistic concurrency by transaction on the key's mod revision.
//!
//! Deliberately knows nothing of kinds or JSON: keys and bytes only. Every call is bounded in time, since a balanced
//! channel without a live member would otherwise wait for ever.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error as EtcdError, GetOptions, Identity, KvClient,
    PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use tokio::sync::Mutex;

/// How long one etcd call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A lease is shared by the keys written within this time, so that a burst of events costs one lease.
const LEASE_REUSE: Duration = Duration::from_secs(60);
/// Most keys attached to one shared lease.
const LEASE_KEYS: usize = 1000;
/// Largest answer accepted from etcd: a page of large objects or a burst of watch events.
const MAX_MESSAGE: usize = 256 << 20;

/// Where etcd is and how to prove who we are.
#[derive(Debug, Clone, Default)]
pub struct EtcdConfig {
    /// Client URLs.
    pub servers: Vec<String>,
    /// PEM of the authority of the serving certificates.
    pub ca: Option<PathBuf>,
    /// PEM of the client certificate.
    pub cert: Option<PathBuf>,
    /// PEM of the client key.
    pub key: Option<PathBuf>,
}

/// Why a storage call failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A TLS file could not be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The revision asked for has been compacted away.
    #[error("the required revision has been compacted")]
    Compacted,
    /// The revision asked for lies in the future.
    #[error("the required revision is a future one")]
    Future,
    /// The object is larger than etcd takes (1.5 MiB, unless its `--max-request-bytes` says otherwise).
    #[error("the object is larger than the store takes")]
    TooLarge,
    /// etcd did not answer in time.
    #[error("etcd did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// etcd refused or the connection broke.
    #[error("etcd: {0}")]
    Etcd(#[source] Box<EtcdError>),
    /// A stored object is not what this server writes.
    #[error("stored object {key} is damaged: {reason}")]
    Damaged {
        /// Its key.
        key: String,
        /// Why.
        reason: String,
    },
}

impl From<EtcdError> for StoreError {
    fn from(e: EtcdError) -> Self {
        if let EtcdError::GRpcStatus(s) = &e {
            if s.message().contains("has been compacted") {
                return Self::Compacted;
            }
            if s.message().contains("request is too large") || s.message().contains("message larger than max") {
                return Self::TooLarge;
            }
            if s.message().contains("is a future revision") {
                return Self::Future;
            }
        }
        Self::Etcd(Box::new(e))
    }
}

/// One key as etcd holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Full key.
    pub key: String,
    /// Value as written.
    pub value: Vec<u8>,
    /// Revision of the last write: the object's `resourceVersion`.
    pub rev: i64,
}

/// One page of a range.
#[derive(Debug, Clone, Default)]
pub struct Range {
    /// Keys in byte order.
    pub items: Vec<Stored>,
    /// Store revision the page was read at.
    pub rev: i64,
    /// Keys in the whole range, this page included.
    pub count: i64,
    /// Whether keys lie behind this page.
    pub more: bool,
}

/// Result of a conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cas {
    /// Written at this revision.
    Done(i64),
    /// The key was not at the expected revision; what it is now.
    Conflict(Option<Stored>),
}

struct SharedLease {
    id: i64,
    since: Instant,
    ttl: i64,
    keys: usize,
}

/// A connection to etcd.
pub struct Etcd {
    client: Client,
    kv: KvClient,
    lease: Mutex<Option<SharedLease>>,
}

fn read(path: &PathBuf) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|source| StoreError::File {
        path: path.clone(),
        source,
    })
}

impl Etcd {
    /// Prepares the channel; connecting happens with the first call and again whenever it breaks.
    ///
    /// # Errors
    /// [`StoreError::File`] for unreadable TLS files, [`StoreError::Etcd`] for malformed URLs or certificates.
    pub async fn connect(config: &EtcdConfig) -> Result<Self, StoreError> {
        let mut options = ConnectOptions::new()
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(Duration::from_secs(3))
            .with_require_leader(true);
        if let Some(ca) = &config.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
            if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        let client = Client::connect(&config.servers, Some(options)).await?;
        let kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
        Ok(Self {
            client,
            kv,
            lease: Mutex::new(None),
        })
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<T, EtcdError>>) -> Result<T, StoreError> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(r) => r.map_err(StoreError::from),
            Err(_) => Err(StoreError::Timeout),
        }
    }

    /// The store's current revision, read with quorum.
    ///
    /// # Errors
    /// When etcd cannot be reached or has no leader.
    pub async fn revision(&self) -> Result<i64, StoreError> {
        let mut kv = self.kv.clone();
        let r = self
            .bounded(kv.get("/", Some(GetOptions::new().with_count_only())))
            .await?;
        Ok(r.header().map_or(0, |h| h.revision()))
    }

    /// One key, read with quorum, and the store's revision at that moment.
    ///
    /// # Errors
    /// When etcd cannot be reached or has no leader.
    pub async fn get(&self, key: &str) -> Result<(Option<Stored>, i64), StoreError> {
        let mut kv = self.kv.clone();
        let r = self.bounded(kv.get(key, None)).await?;
        let rev = r.header().map_or(0, |h| h.revision());
        Ok((r.kvs().first().map(stored), rev))
    }

    /// Keys in `[start, end)`, at most `limit` (0: all) and at `rev` (0: now).
    ///
    /// # Errors
    /// [`StoreError::Compacted`] or [`StoreError::Future`] for a revision that cannot be read.
    pub async fn range(&self, start: &str, end: &[u8], rev: i64, limit: i64) -> Result<Range, StoreError> {
        let mut kv = self.kv.clone();
        let options = GetOptions::new().with_range(end).with_revision(rev).with_limit(limit);
        let r = self.bounded(kv.get(start, Some(options))).await?;
        Ok(Range {
            items: r.kvs().iter().map(stored).collect(),
            rev: r.header().map_or(0, |h| h.revision()),
            count: r.count(),
            more: r.more(),
        })
    }

    /// Creates a key that must not exist; with `ttl` (seconds) it disappears by itself.
    ///
    /// # Errors
    /// When etcd cannot be reached; whether the key was written is then unknown.
    pub async fn create(&self, key: &str, value: Vec<u8>, ttl: Option<i64>) -> Result<Cas, StoreError> {
        self.put(key, 0, value, ttl).await
    }

    /// Writes a key that must still be at revision `expect` (0: absent).
    ///
    /// # Errors
    /// When etcd cannot be reached; whether the key was written is then unknown.
    pub async fn put(&self, key: &str, expect: i64, value: Vec<u8>, ttl: Option<i64>) -> Result<Cas, StoreError> {
        let options = match ttl {
            Some(ttl) => Some(PutOptions::new().with_lease(self.shared_lease(ttl).await?)),
            None => None,
        };
        self.cas(key, expect, TxnOp::put(key, value, options)).await
    }

    /// Deletes a key that must still be at revision `expect`.
    ///
    /// # Errors
    /// When etcd cannot be reached; whether the key was deleted is then unknown.
    pub async fn delete(&self, key: &str, expect: i64) -> Result<Cas, StoreError> {
        self.cas(key, expect, TxnOp::delete(key, None)).await
    }

    async fn cas(&self, key: &str, expect: i64, op: TxnOp) -> Result<Cas, StoreError> {
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expect)])
            .and_then([op])
            .or_else([TxnOp::get(key, None)]);
        let mut kv = self.kv.clone();
        let r = self.bounded(kv.txn(txn)).await?;
        if r.succeeded() {
            return Ok(Cas::Done(r.header().map_or(0, |h| h.revision())));
        }
        let now = r.op_responses().into_iter().find_map(|o| match o {
            TxnOpResponse::Get(g) => g.kvs().first().map(stored),
            _ => None,
        });
        Ok(Cas::Conflict(now))
    }

    /// Writes a key unconditionally under its own lease, for keys that only say «I am alive».
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub async fn put_alive(&self, key: &str, value: Vec<u8>, ttl: i64) -> Result<(), StoreError> {
        let mut lease = self.client.lease_client();
        let granted = self.bounded(lease.grant(ttl, None)).await?;
        let mut kv = self.kv.clone();
        self.bounded(kv.put(key, value, Some(PutOptions::new().with_lease(granted.id()))))
            .await?;
        Ok(())
    }

    /// Removes a key unconditionally.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub async fn remove(&self, key: &str) -> Result<(), StoreError> {
        let mut kv = self.kv.clone();
        self.bounded(kv.delete(key, None)).await?;
        Ok(())
    }

    async fn shared_lease(&self, ttl: i64) -> Result<i64, StoreError> {
        let mut slot = self.lease.lock().await;
        if let Some(l) = slot.as_mut()
            && l.ttl == ttl
            && l.since.elapsed() < LEASE_REUSE
            && l.keys < LEASE_KEYS
        {
            l.keys += 1;
            return Ok(l.id);
        }
        let mut lease = self.client.lease_client();
        let granted = self
            .bounded(lease.grant(ttl + LEASE_REUSE.as_secs() as i64, None))
            .await?;
        *slot = Some(SharedLease {
            id: granted.id(),
            since: Instant::now(),
            ttl,
            keys: 1,
        });
        Ok(granted.id())
    }

    /// Every change of every key after `rev`. One stream for the whole store: its revisions are dense, so the last one
    /// seen tells how far all caches have come, without progress notifications.
    ///
    /// # Errors
    /// When etcd cannot be reached.
    pub async fn watch_all(&self, rev: i64) -> Result<WatchStream, StoreError> {
        let mut watch = self.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let options = WatchOptions::new().with_all_keys().with_start_revision(rev + 1);
        self.bounded(watch.watch("", Some(options))).await
    }

    /// Forgets history before `rev`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when somebody was faster.
    pub async fn compact(&self, rev: i64) -> Result<(), StoreError> {
        let mut kv = self.kv.clone();
        self.bounded(kv.compact(rev, None)).await?;
        Ok(())
    }
}

fn stored(kv: &etcd_client::KeyValue) -> Stored {
    Stored {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        value: kv.value().to_vec(),
        rev: kv.mod_revision(),
    }
}

/// End of the range of all keys that start with `prefix`.
pub fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}
