//! Which kinds the API server serves, and what may be done with them.

use component::Error;
use kube::Client;
use kube::discovery::{ApiCapabilities, ApiResource, Discovery, Scope};

/// One served kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    verbs: Vec<String>,
}

impl Kind {
    /// Whether the API server offers that verb.
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// Every kind in the version that its group prefers.
///
/// # Errors
/// If discovery fails: a partial answer would look like kinds that are gone.
pub(crate) async fn kinds(client: &Client) -> Result<Vec<Kind>, Error> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(found) => found,
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    let kinds = discovery.groups().flat_map(|group| group.recommended_resources());
    Ok(kinds
        .map(|(resource, capabilities)| kind(resource, capabilities))
        .collect())
}

fn kind(resource: ApiResource, capabilities: ApiCapabilities) -> Kind {
    Kind {
        resource,
        namespaced: capabilities.scope == Scope::Namespaced,
        verbs: capabilities.operations,
    }
}
