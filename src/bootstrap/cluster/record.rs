//! The Clusterfile, without its secrets, in the cluster itself: whoever comes later sees what was wished.

use super::apply::{Applied, Applier};
use crate::{
    Error, Result,
    phases::{Outcome, Phase},
    render,
    run::Run,
    site::Site,
};
use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use std::sync::Arc;

/// Its name in `kube-system`.
pub const NAME: &str = "installer-clusterfile";

/// Stores it.
pub fn store(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let object = object(&run.site, &run.record)?;
        let applied = Applier::new(run.cluster()?.client.clone())
            .apply(&object, false)
            .await?;
        Ok(Outcome {
            changes: usize::from(applied != Applied::Same),
            bytes: 0,
        })
    }
    .boxed()
}

/// The object as it shall be.
///
/// # Errors
/// Never for Clusterfiles that were parsed.
pub fn object(site: &Site, record: &Value) -> Result<Value> {
    let documents: Vec<Value> = match record {
        Value::Array(documents) => documents.clone(),
        one => vec![one.clone()],
    };
    let texts: Vec<String> = documents.iter().map(render::yaml).collect::<Result<_>>()?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": "kube-system"},
        "data": {
            "Clusterfile": texts.join("---\n"),
            "image": site.image.reference,
            "digest": site.image.digest.to_string(),
            "launched": fingerprint(&site.image.launch.commands),
        },
    }))
}

fn fingerprint(commands: &[String]) -> String {
    oci::Digest::of(commands.join("\n").as_bytes()).short().to_owned()
}

/// Whether exactly these commands were launched already.
///
/// # Errors
/// When the API server does not answer.
pub async fn was_launched(run: &Run, commands: &[String]) -> Result<bool> {
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(run.cluster()?.client.clone(), "kube-system");
    let map = maps
        .get_opt(NAME)
        .await
        .map_err(Error::api("reading what was launched"))?;
    let launched = map
        .and_then(|map| map.data)
        .and_then(|data| data.get("launched").cloned());
    Ok(launched == Some(fingerprint(commands)))
}
