//! Carried images into a registry that somebody else runs: from this machine, and only what the registry lacks.
//!
//! An image `quay.io/a/b:1` comes to lie at `REGISTRY/quay.io/a/b:1`, where the hosts' runtimes are told to look for it; see
//! [`crate::effects::runtime`].

use crate::{
    Error, Result,
    event::{Event, Observer},
    login::Login,
    phases::{Outcome, Phase},
    run::Run,
    site::{Carried, Image, Registry},
};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use oci::{Descriptor, Digest};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio_util::io::ReaderStream;

/// Blobs on their way at the same time.
const IN_FLIGHT: usize = 4;
/// Images asked for at the same time.
const ASKED: usize = 8;
/// A manifest is no larger, in bytes.
const MANIFEST_LIMIT: u64 = 4 << 20;
/// Bytes read from a blob at once.
const PIECE: usize = 256 << 10;

/// The way into a registry, and what it lacks.
pub struct Push {
    remote: Remote,
    missing: Vec<(Reference, Carried)>,
}

impl Push {
    /// Names of the images that will be brought there.
    pub fn images(&self) -> Vec<String> {
        self.missing.iter().map(|(target, _)| target.to_string()).collect()
    }

    /// Brings them there.
    ///
    /// # Errors
    /// When a blob of the store cannot be read, or the registry refuses.
    pub async fn send(&self, blobs: &oci::BlobStore, observer: &dyn Observer) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        // Blobs that several images share are sent once and taken over by the others.
        let mut lies: HashMap<Digest, Reference> = HashMap::new();
        for (target, carried) in &self.missing {
            outcome.bytes += self.remote.image(blobs, target, carried, &lies).await?;
            outcome.changes += 1;
            lies.extend(carried.blobs.iter().map(|blob| (blob.digest.clone(), target.clone())));
            observer.event(Event::Note {
                host: None,
                message: format!("brought {} to {target}", carried.reference),
            });
        }
        Ok(outcome)
    }
}

/// Asks a registry of somebody else which carried images it lacks, or has otherwise. Nothing if the cluster has its own.
///
/// # Errors
/// When the registry cannot be reached, or does not let us in.
pub async fn look(registry: &Registry, image: &Image, login: Option<&Login>, ca: Option<&str>) -> Result<Option<Push>> {
    if !registry.external {
        return Ok(None);
    }
    let remote = Remote::new(registry, login, ca)?;
    let asking: Vec<BoxFuture<'_, Result<Option<_>>>> = image
        .carried
        .iter()
        .map(|carried| lacks(&remote, registry, carried).boxed())
        .collect();
    let missing: Vec<Option<_>> = stream::iter(asking).buffered(ASKED).try_collect().await?;
    Ok(Some(Push {
        missing: missing.into_iter().flatten().collect(),
        remote,
    }))
}

/// The image and its place, unless it lies there.
async fn lacks(remote: &Remote, registry: &Registry, carried: &Carried) -> Result<Option<(Reference, Carried)>> {
    let target = target(registry, carried)?;
    let there = remote.digest(&target).await?;
    let same = there.as_deref() == Some(carried.manifest.digest.as_str());
    Ok((!same).then(|| (target, carried.clone())))
}

/// Where a carried image shall lie.
fn target(registry: &Registry, carried: &Carried) -> Result<Reference> {
    let name = &carried.reference;
    let home = if name.domain() == registry.host_port() {
        name.repository()
    } else {
        registry.home(name)
    };
    let text = match name.tag() {
        Some(tag) => format!("{home}:{tag}"),
        None => format!("{home}@{}", carried.manifest.digest),
    };
    text.parse()
        .map_err(|error| Error::Wish(format!("the image {name} cannot be brought to {text}: {error}")))
}

/// Brings what lacks.
pub fn images(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let Some(push) = &run.push else {
            return Ok(Outcome::default());
        };
        push.send(&run.blobs, &*run.observer).await
    }
    .boxed()
}

/// A registry spoken to by the distribution protocol.
struct Remote {
    client: Client,
    auth: RegistryAuth,
}

impl Remote {
    fn new(registry: &Registry, login: Option<&Login>, ca: Option<&str>) -> Result<Self> {
        let certificates = ca.map(|pem| Certificate {
            encoding: CertificateEncoding::Pem,
            data: pem.as_bytes().to_vec(),
        });
        let insecure = registry.insecure.then(|| registry.host_port());
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(insecure.into_iter().collect()),
            extra_root_certificates: certificates.into_iter().collect(),
            use_monolithic_push: true,
            connect_timeout: Some(Duration::from_secs(20)),
            read_timeout: Some(Duration::from_secs(300)),
            user_agent: "installer",
            ..ClientConfig::default()
        };
        let client = Client::try_from(config)
            .map_err(|error| Error::Wish(format!("spec.registry.externalRegistry cannot be spoken to: {error}")))?;
        let auth = login.map_or(RegistryAuth::Anonymous, |login| {
            RegistryAuth::Basic(login.user.clone(), login.password.expose().to_owned())
        });
        Ok(Self { client, auth })
    }

    /// The digest of what lies there, if anything does.
    async fn digest(&self, target: &Reference) -> Result<Option<String>> {
        match self.client.fetch_manifest_digest(target, &self.auth).await {
            Ok(digest) => Ok(Some(digest)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed(target, "asking for")(error)),
        }
    }

    /// Sends an image; how many bytes went.
    async fn image(
        &self,
        blobs: &oci::BlobStore,
        target: &Reference,
        carried: &Carried,
        lies: &HashMap<Digest, Reference>,
    ) -> Result<u64> {
        let login = self.client.auth(target, &self.auth, RegistryOperation::Push).await;
        login.map_err(failed(target, "logging in for"))?;
        let own = &carried.manifest.digest;
        let parts = carried.blobs.iter().filter(|blob| blob.digest != *own);
        let sending: Vec<BoxFuture<'_, Result<u64>>> = parts
            .map(|blob| self.blob(blobs, target, blob, lies.get(&blob.digest)).boxed())
            .collect();
        let sent: Vec<u64> = stream::iter(sending).buffer_unordered(IN_FLIGHT).try_collect().await?;
        let manifest = blobs.read(own, MANIFEST_LIMIT).map_err(|error| damaged(&error))?;
        let size = manifest.len() as u64;
        let kind = carried.manifest.media_type.parse();
        let kind = kind.map_err(|_| Error::Wish(format!("the manifest of {} has no media type", carried.reference)))?;
        let put = self.client.push_manifest_raw(target, manifest, kind).await;
        put.map_err(failed(target, "sending"))?;
        Ok(sent.iter().sum::<u64>() + size)
    }

    async fn blob(
        &self,
        blobs: &oci::BlobStore,
        target: &Reference,
        blob: &Descriptor,
        lies: Option<&Reference>,
    ) -> Result<u64> {
        let digest = blob.digest.as_str();
        if self
            .client
            .blob_exists(target, digest)
            .await
            .map_err(failed(target, "asking for a layer of"))?
        {
            return Ok(0);
        }
        // A registry that cannot take a blob over from another repository gets it sent.
        if let Some(other) = lies
            && self.client.mount_blob(target, other, digest).await.is_ok()
        {
            return Ok(0);
        }
        let path = blobs.path(&blob.digest);
        let file = tokio::fs::File::open(&path).await.map_err(|source| Error::Local {
            what: format!("cannot read {}", path.display()),
            source,
        })?;
        let content = ReaderStream::with_capacity(file, PIECE).map(|piece: std::io::Result<Bytes>| {
            piece.map_err(|error| OciDistributionError::GenericError(Some(format!("cannot read the blob: {error}"))))
        });
        let sent = self
            .client
            .push_blob_stream(target, content, digest, Some(blob.size))
            .await;
        sent.map_err(failed(target, "sending a layer of"))?;
        Ok(blob.size)
    }
}

fn damaged(error: &oci::Error) -> Error {
    Error::Wish(format!(
        "the image store is damaged: {error}; build or load the image again"
    ))
}

fn is_absent(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => envelope.errors.iter().any(|error| {
            let absent = [
                OciErrorCode::ManifestUnknown,
                OciErrorCode::NameUnknown,
                OciErrorCode::NotFound,
            ];
            absent.contains(&error.code)
        }),
        _ => false,
    }
}

fn failed(target: &Reference, doing: &str) -> impl FnOnce(OciDistributionError) -> Error {
    let what = format!("{doing} {target}");
    move |error| {
        let hint = match error {
            OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
                "; see username and password of spec.registry.externalRegistry"
            }
            _ => "",
        };
        Error::Wish(format!("{what}: {error}{hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{carry, site};

    #[test]
    fn images_of_different_registries_never_get_one_name() {
        let mut site = site();
        for name in [
            "docker.io/library/web:1",
            "quay.io/library/web:1",
            "old.corp:5000/web:1",
            "r.corp:8443/own/x:2",
        ] {
            carry(&mut site, name);
        }
        let registry = Registry {
            domain: "r.corp".into(),
            port: 8443,
            external: true,
            ..site.registry.clone()
        };
        let targets: Vec<String> = site
            .image
            .carried
            .iter()
            .map(|c| target(&registry, c).unwrap().to_string())
            .collect();
        assert_eq!(
            targets,
            [
                "r.corp:8443/docker.io/library/web:1",
                "r.corp:8443/quay.io/library/web:1",
                "r.corp:8443/old.corp-5000/web:1",
                "r.corp:8443/own/x:2"
            ]
        );
    }
}
