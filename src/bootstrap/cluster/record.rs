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
use kube::{Api, Client};
use serde_json::{Value, json};
use std::sync::Arc;

/// Its name in `kube-system`.
pub const NAME: &str = "installer-clusterfile";

/// Stores it.
pub fn store(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let object = object(&run.site, &run.record)?;
        let (applied, _) = Applier::new(run.cluster()?.client.clone()).apply(&object).await?;
        Ok(Outcome {
            changes: usize::from(applied != Applied::Same),
            ..Outcome::default()
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
        },
    }))
}

/// Whether there is one: the cluster was installed to the end.
///
/// # Errors
/// When the API server does not answer.
pub async fn exists(client: &Client) -> Result<bool> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let found = maps.get_metadata_opt(NAME).await;
    Ok(found
        .map_err(Error::api("looking for the stored Clusterfile"))?
        .is_some())
}
