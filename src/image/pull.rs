//! Pulling an image from a registry into the store: the manifest for one platform and every blob it names.

use std::io::Write as _;

use futures::{StreamExt as _, TryStreamExt as _};
use oci::{Descriptor, Digest, Index, Platform, Reference, media_type};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;

use crate::error::Error;
use crate::io::HashWriter;
use crate::manifest::{Manifest, fits, platform_text};
use crate::progress::{Event, Progress};
use crate::store::Store;

/// Blobs of one image fetched at once.
const PARALLEL_BLOBS: usize = 4;
const ACCEPTED: [&str; 4] = [
    media_type::MANIFEST,
    media_type::INDEX,
    media_type::DOCKER_MANIFEST,
    media_type::DOCKER_LIST,
];

/// Fetches registries' content; one for a whole build, so that connections and tokens are reused.
pub(crate) struct Puller {
    client: oci_client::Client,
}

impl Puller {
    /// `insecure` lists registries (`host[:port]`) spoken to by plain HTTP.
    pub(crate) fn new(insecure: &[String]) -> Puller {
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(insecure.to_vec()),
            connect_timeout: Some(std::time::Duration::from_secs(20)),
            read_timeout: Some(std::time::Duration::from_secs(60)),
            user_agent: "installer",
            ..ClientConfig::default()
        };
        Puller {
            client: oci_client::Client::new(config),
        }
    }

    /// Puts the image into the store and describes its manifest.
    pub(crate) async fn pull(
        &self,
        store: &Store,
        reference: &Reference,
        platform: &Platform,
        progress: &dyn Progress,
    ) -> Result<Descriptor, Error> {
        let remote = remote(reference)?;
        let (bytes, descriptor) = self.manifest(&remote, reference, platform).await?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|source| oci::Error::Json {
            path: descriptor.digest.to_string(),
            source,
        })?;
        let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
        let missing: Vec<&Descriptor> = blobs
            .filter(|blob| !store.blobs().has(&blob.digest, blob.size))
            .collect();
        futures::stream::iter(missing)
            .map(|blob| self.blob(store, &remote, reference, blob, progress))
            .buffer_unordered(PARALLEL_BLOBS)
            .try_collect::<Vec<()>>()
            .await?;
        store.put(&bytes)?;
        Ok(descriptor)
    }

    /// The manifest for the platform, through an index if there is one.
    async fn manifest(
        &self,
        remote: &oci_client::Reference,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<(Vec<u8>, Descriptor), Error> {
        let (bytes, kind) = self.raw(remote, reference, reference.digest()).await?;
        if ![media_type::INDEX, media_type::DOCKER_LIST].contains(&kind.as_str()) {
            let mut descriptor = Descriptor::of(kind, &bytes);
            descriptor.platform = Some(platform.clone());
            return Ok((bytes, descriptor));
        }
        let index: Index = serde_json::from_slice(&bytes).map_err(|source| oci::Error::Json {
            path: reference.to_string(),
            source,
        })?;
        let offered = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|offered| fits(offered, platform));
        let Some(entry) = index.manifests.iter().find(offered) else {
            let available: Vec<_> = index
                .manifests
                .iter()
                .filter_map(|m| m.platform.as_ref())
                .map(platform_text)
                .collect();
            return Err(Error::NoPlatform {
                reference: reference.to_string(),
                platform: platform_text(platform),
                available: available.join(", "),
            });
        };
        let by_digest = remote.clone_with_digest(entry.digest.to_string());
        let (bytes, kind) = self.raw(&by_digest, reference, Some(&entry.digest)).await?;
        let mut descriptor = Descriptor::of(kind, &bytes);
        descriptor.platform = entry.platform.clone();
        Ok((bytes, descriptor))
    }

    /// A manifest's bytes, verified where its digest is known, and its media type.
    async fn raw(
        &self,
        remote: &oci_client::Reference,
        reference: &Reference,
        wanted: Option<&Digest>,
    ) -> Result<(Vec<u8>, String), Error> {
        let pulled = self
            .client
            .pull_manifest_raw(remote, &RegistryAuth::Anonymous, &ACCEPTED)
            .await;
        let (bytes, _) = pulled.map_err(|error| failed(reference, error))?;
        let found = Digest::of(&bytes);
        if let Some(wanted) = wanted.filter(|wanted| **wanted != found) {
            let what = format!("its content has the digest {found}");
            return Err(oci::Error::Corrupt {
                digest: wanted.clone(),
                what,
            }
            .into());
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let head: Head = serde_json::from_slice(&bytes).map_err(|source| oci::Error::Json {
            path: reference.to_string(),
            source,
        })?;
        let default = if head.manifests.is_some() {
            media_type::INDEX
        } else {
            media_type::MANIFEST
        };
        let kind = head.media_type.unwrap_or_else(|| default.to_string());
        match ACCEPTED.contains(&kind.as_str()) {
            true => Ok((bytes.to_vec(), kind)),
            false => Err(failed(
                reference,
                format!("its manifest is of the unsupported type {kind:?}"),
            )),
        }
    }

    async fn blob(
        &self,
        store: &Store,
        remote: &oci_client::Reference,
        reference: &Reference,
        blob: &Descriptor,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let stream = self.client.pull_blob_stream(remote, blob.digest.as_str()).await;
        let mut stream = stream.map_err(|error| failed(reference, error))?.stream;
        let mut writer = HashWriter::new(store.temporary()?);
        let mut done = 0;
        while let Some(chunk) = stream.try_next().await.map_err(|error| failed(reference, error))? {
            done += chunk.len() as u64;
            if done > blob.size {
                break;
            }
            writer
                .write_all(&chunk)
                .map_err(Error::io("cannot write below", store.root()))?;
            progress.event(Event::Bytes { done, total: blob.size });
        }
        let (file, digest, size) = writer.finish();
        if digest != blob.digest || size != blob.size {
            let what = format!(
                "{done} bytes with the digest {digest} arrived instead of {} bytes",
                blob.size
            );
            return Err(oci::Error::Corrupt {
                digest: blob.digest.clone(),
                what,
            }
            .into());
        }
        store.adopt(file, &digest)
    }
}

fn remote(reference: &Reference) -> Result<oci_client::Reference, Error> {
    reference.to_string().parse().map_err(|error| failed(reference, error))
}

fn failed(reference: &Reference, error: impl std::fmt::Display) -> Error {
    Error::Pull {
        reference: reference.to_string(),
        reason: error.to_string(),
    }
}
