//! `installer check`: the probes of [`crate::verify`] on a cluster that is already there. Needs no cluster image on this machine.

use crate::{
    Error, Result,
    cluster::{self, Cluster},
    install::{self, Options},
    site::{Image, Launch, Seen},
    verify::{self, Check},
    wish,
};
use clusterfile::Clusterfile;
use host::{Mode, effect::Rootfs, facts::Query};
use std::{collections::BTreeMap, time::Duration};

/// An image that every cluster has, when we cannot know better.
const PAUSE: &str = "installer.internal/pause:v0.1.0";
/// How long the API server may take to answer at least.
const ANSWER: Duration = Duration::from_secs(5);

/// Looks at everything, waiting at most `patience` for what is not yet so.
///
/// # Errors
/// When hosts or the API server cannot be reached; what is wrong with the cluster is in the checks.
pub async fn run(clusterfile: &Clusterfile, options: &Options, patience: Duration) -> Result<Vec<Check>> {
    let sessions = install::connect(&install::targets(clusterfile), options, None).await?;
    let scope = wish::scope(clusterfile);
    let found = install::each(&sessions, |session| {
        let scope = &scope;
        async move {
            session
                .client
                .open(scope, Mode::Read)
                .await
                .map_err(session.failed("opening the host"))?;
            let facts = session
                .client
                .facts(&Query::default())
                .await
                .map_err(session.failed("looking at the host"))?;
            Ok((facts, Seen::default()))
        }
    })
    .await?;
    let image = image(clusterfile, options).await?;
    let site = wish::site(clusterfile, image, found)?;
    let first = &sessions[site.first_master()];
    cluster::api::wait_ready(first, patience.max(ANSWER)).await?;
    let cluster = Cluster::open(first).await?;
    Ok(verify::look(&site, &sessions, &cluster, patience, &*options.observer).await)
}

/// The image if it is here, for its address plan and the names of what it carries; else what every image has.
async fn image(clusterfile: &Clusterfile, options: &Options) -> Result<Image> {
    let (store, reference) = (options.store.clone(), clusterfile.cluster.image.clone());
    let name = reference.clone();
    // Nothing of it is put on a host here, so nobody need vouch for it.
    let open = move || crate::image::open(&store, &reference, &image::host_platform(), None);
    let opened = tokio::task::spawn_blocking(open)
        .await
        .map_err(|_| Error::Interrupted("opening the image"))?;
    if let Ok(opened) = opened {
        return Ok(opened.image);
    }
    let digest = oci::Digest::of(b"");
    Ok(Image {
        reference: name,
        digest: digest.clone(),
        arch: String::new(),
        env: clusterfile::Env::new(),
        rootfs: Rootfs {
            content: digest,
            layers: Vec::new(),
            switch: false,
        },
        host_blobs: Vec::new(),
        registry_blobs: Vec::new(),
        layout: oci::Index::default(),
        files: BTreeMap::new(),
        content: BTreeMap::new(),
        carried: PAUSE.parse().map(pause).into_iter().collect(),
        apps: BTreeMap::new(),
        launch: Launch::default(),
        kube_version: None,
    })
}

fn pause(reference: oci::Reference) -> image::Carried {
    image::Carried {
        reference,
        manifest: oci::Descriptor::of(oci::media_type::MANIFEST, b""),
        index: None,
        blobs: Vec::new(),
    }
}
