//! What ADD and APP fetch: kept in the store by digest, so that a build needs the network once.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use oci::Digest;

use crate::digests::{self, Digests, Stamp};
use crate::error::Error;
use crate::io::{CHUNK, HashWriter};
use crate::progress::{Event, Progress};
use crate::store::Store;

/// Files fetched at once.
const PARALLEL: usize = 3;
/// No honest file for a rootfs is larger, in bytes.
const LARGEST: u64 = 32 << 30;
const CONNECT: Duration = Duration::from_secs(20);
/// So long nothing may arrive.
const SILENCE: Duration = Duration::from_secs(60);
const KIND: &str = "downloads";

/// Something to be fetched: a digest, and where it can be had.
pub(crate) type Wanted = BTreeMap<Digest, String>;

/// A file in the store's cache.
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Stands for the content, if that could be settled.
    pub(crate) stamp: Option<Stamp>,
}

/// The files of all digests; missing ones are fetched.
pub(crate) async fn fetch_all(
    store: &Store,
    wanted: Wanted,
    progress: &dyn Progress,
) -> Result<BTreeMap<Digest, Fetched>, Error> {
    let client = std::sync::OnceLock::new();
    let client = &client;
    let fetch = async |(digest, url): (Digest, String)| {
        store.cache_used(KIND, &digest);
        if let Some(fetched) = kept(store, &digest) {
            return Ok((digest, fetched));
        }
        // Without a need for it, no certificates have to be found.
        let client = client.get_or_init(connector).as_ref();
        let client = client.map_err(|why| failed(&url, why))?;
        let fetched = fetch(store, client, &url, &digest, progress).await?;
        Ok::<_, Error>((digest, fetched))
    };
    futures::stream::iter(wanted)
        .map(fetch)
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await
}

fn connector() -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .user_agent("installer")
        .build()
        .map_err(|error| causes(&error))
}

/// What is there already; a damaged file counts as none.
fn kept(store: &Store, digest: &Digest) -> Option<Fetched> {
    let path = store.cache_path(KIND, digest);
    let stamp = Stamp::of(&path.symlink_metadata().ok()?);
    let digests = Digests::load(store, &path);
    if let Some(digest) = digests.get("", &stamp).filter(|found| found == digest) {
        let (size, stamp) = (stamp.size(), Some(stamp));
        return Some(Fetched {
            path,
            digest,
            size,
            stamp,
        });
    }
    let hashed = digests::hash(&path, &mut vec![0; CHUNK]).ok()?;
    if let Some(stamp) = hashed.stamp {
        digests.put("", stamp, hashed.digest.clone());
        digests.save(store);
    }
    let digests::Hashed {
        digest: found,
        size,
        stamp,
    } = hashed;
    (found == *digest).then_some(Fetched {
        path,
        digest: found,
        size,
        stamp,
    })
}

async fn fetch(
    store: &Store,
    client: &reqwest::Client,
    url: &str,
    digest: &Digest,
    progress: &dyn Progress,
) -> Result<Fetched, Error> {
    let response = client.get(url).send().await;
    let response = response.and_then(reqwest::Response::error_for_status);
    let mut response = response.map_err(|error| failed(url, causes(&error)))?;
    let total = response.content_length().unwrap_or(0);
    let mut writer = HashWriter::new(store.temporary()?);
    let mut done = 0;
    while let Some(chunk) = response.chunk().await.map_err(|error| failed(url, causes(&error)))? {
        done += chunk.len() as u64;
        if done > LARGEST {
            return Err(failed(url, format!("it has more than {LARGEST} bytes")));
        }
        writer
            .write_all(&chunk)
            .map_err(Error::io("cannot write below", store.root()))?;
        progress.event(Event::Bytes { done, total });
    }
    let (file, found, size) = writer.finish();
    if found != *digest {
        let why = format!(
            "what came ({}) has the digest {found}, not {digest}; if the new content is right, change --checksum",
            oci::counted(size, "byte")
        );
        return Err(failed(url, why));
    }
    file.as_file()
        .sync_all()
        .map_err(Error::io("cannot write", file.path()))?;
    let path = store.cache_path(KIND, digest);
    file.persist(&path)
        .map_err(|error| Error::io("cannot write", &path)(error.error))?;
    Ok(Fetched {
        path,
        digest: found,
        size,
        stamp: None,
    })
}

/// An error with what caused it: the outer one alone only says that something failed.
fn causes(error: &reqwest::Error) -> String {
    let mut text = match error.status() {
        Some(status) => format!("the server answered {status}"),
        None => error.to_string(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(&format!(": {inner_text}"));
        }
        cause = inner.source();
    }
    text
}

fn failed(url: &str, reason: impl std::fmt::Display) -> Error {
    Error::Fetch {
        url: url.to_string(),
        reason: reason.to_string(),
    }
}

/// The name a fetched file has: the last part of the URL's path.
pub(crate) fn name_of(url: &str) -> Result<String, Error> {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let last = path
        .split_once('/')
        .and_then(|(_, path)| path.rsplit('/').next())
        .unwrap_or_default();
    let name = percent_encoding::percent_decode_str(last)
        .decode_utf8_lossy()
        .into_owned();
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0', '\u{fffd}']);
    match plain {
        true => Ok(name),
        false => Err(Error::path(
            url,
            "the URL ends without a file name; give the destination one",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_last_part_of_the_path() {
        for (url, expected) in [
            ("https://a.b/c/d.tgz", Some("d.tgz")),
            ("https://a.b/c/d%20e.tgz?x=/y#/z", Some("d e.tgz")),
            ("https://a.b/", None),
            ("https://a.b", None),
            ("https://a.b?x=/y", None),
            ("https://a.b/c/..", None),
            ("https://a.b/%2e%2e", None),
            ("https://a.b/x%2fy", None),
        ] {
            assert_eq!(name_of(url).ok().as_deref(), expected, "{url}");
        }
    }
}
