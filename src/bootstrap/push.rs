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
    site::{Image, Registry},
};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use image::{Access, Carried, Credentials, NoProgress, Remote, RemoteOptions, Store};
use oci::{Digest, Reference};
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Images asked for at the same time.
const ASKED: usize = 8;

/// The way into a registry, and what it lacks.
pub struct Push {
    remote: Arc<Remote>,
    store: Store,
    missing: Vec<(Reference, Carried)>,
}

/// The one login we have, for the one registry it is for.
struct Only {
    registry: String,
    login: Option<Login>,
}

impl Credentials for Only {
    fn login(&self, repository: &str) -> Result<Option<image::Login>, image::Error> {
        let here = repository.split('/').next() == Some(&self.registry);
        Ok(self
            .login
            .as_ref()
            .filter(|_| here)
            .map(|login| image::Login::Password {
                user: login.user.clone(),
                password: login.password.clone(),
            }))
    }
}

/// Asks a registry of somebody else which carried images it lacks, or has otherwise. Nothing if the cluster has its own.
///
/// # Errors
/// When the registry cannot be reached, or does not let us in.
pub async fn look(
    registry: &Registry,
    image: &Image,
    store: &Store,
    login: Option<&Login>,
    ca: Option<&Path>,
) -> Result<Option<Push>> {
    if !registry.external {
        return Ok(None);
    }
    let options = RemoteOptions {
        insecure: registry.insecure.then(|| registry.host_port()).into_iter().collect(),
        ca_files: ca.map(Path::to_path_buf).into_iter().collect(),
        credentials: Arc::new(Only {
            registry: registry.host_port(),
            login: login.cloned(),
        }),
        ..RemoteOptions::default()
    };
    let remote = Remote::new(options).map_err(failed)?;
    let asking: Vec<BoxFuture<'_, Result<Option<_>>>> = image
        .carried
        .iter()
        .map(|carried| lacks(&remote, registry, carried).boxed())
        .collect();
    let missing: Vec<Option<_>> = stream::iter(asking).buffered(ASKED).try_collect().await?;
    Ok(Some(Push {
        missing: missing.into_iter().flatten().collect(),
        store: store.clone(),
        remote,
    }))
}

/// The image and its place, unless it lies there.
async fn lacks(remote: &Arc<Remote>, registry: &Registry, carried: &Carried) -> Result<Option<(Reference, Carried)>> {
    let target = target(registry, carried)?;
    let there = remote
        .repository(&target, Access::Pull)
        .manifest(target.tag_or_digest())
        .await;
    let there = there.map_err(failed)?;
    let same = there.is_some_and(|there| there.descriptor.digest == carried.served().digest);
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
        None => format!("{home}@{}", carried.served().digest),
    };
    text.parse()
        .map_err(|error| Error::Wish(format!("the image {name} cannot be brought to {text}: {error}")))
}

/// Brings what lacks.
pub fn images(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        match &run.push {
            Some(push) => push.send(&*run.observer).await,
            None => Ok(Outcome::default()),
        }
    }
    .boxed()
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
    pub async fn send(&self, observer: &dyn Observer) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        // Blobs that several images share are sent once and taken over by the others.
        let mut lies: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for (target, carried) in &self.missing {
            let sending = image::push_carried(&self.store, carried, target, &lies, &self.remote, Arc::new(NoProgress));
            outcome.bytes += sending.await.map_err(failed)?.bytes;
            outcome.changes += 1;
            for blob in &carried.blobs {
                lies.entry(blob.digest.clone())
                    .or_default()
                    .push(target.path().to_owned());
            }
            observer.event(Event::Note {
                host: None,
                message: format!("brought {} to {target}", carried.reference),
            });
        }
        Ok(outcome)
    }
}

fn failed(error: image::Error) -> Error {
    Error::Wish(format!(
        "{error}; see spec.registry.externalRegistry of the Clusterfile"
    ))
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
