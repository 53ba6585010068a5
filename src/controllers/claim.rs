//! Adopting orphans that a selector matches and releasing what it no longer matches.

use std::fmt::Debug;
use std::sync::Arc;

use component::{ApiErrorExt, Error};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::meta::{controller_of, controller_reference, is_deleting, name, namespace, uid};

/// What to do about one candidate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is the owner's and stays so.
    Own,
    /// It is nobody's and matches: take it.
    Adopt,
    /// It is the owner's but no longer matches: let it go.
    Release,
    /// It is none of the owner's business.
    Ignore,
}

/// Decides about `object`, given whether the owner's selector matches it.
pub(crate) fn decide(owner: &ObjectMeta, object: &ObjectMeta, matches: bool) -> Claim {
    match controller_of(object) {
        Some(controller) if controller.uid != uid(owner) => Claim::Ignore,
        Some(_) if matches => Claim::Own,
        Some(_) if is_deleting(owner) => Claim::Ignore,
        Some(_) => Claim::Release,
        None if !matches || is_deleting(owner) || is_deleting(object) => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// The candidates that are the owner's, after adopting and releasing. Before the first adoption the owner is read from
/// the server: one that is gone, or has been replaced, adopts nothing.
pub(crate) async fn claim<O, K>(
    client: &Client,
    owner: &O,
    candidates: Vec<Arc<K>>,
    matches: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let mut owned = Vec::with_capacity(candidates.len());
    let mut may_adopt: Option<bool> = None;
    for candidate in candidates {
        match decide(owner.meta(), candidate.meta(), matches(&candidate)) {
            Claim::Own => owned.push(candidate),
            Claim::Ignore => {}
            Claim::Release => release(client, owner, &*candidate).await?,
            Claim::Adopt => {
                let allowed = match may_adopt {
                    Some(allowed) => allowed,
                    None => *may_adopt.insert(still_there(client, owner).await?),
                };
                if allowed && let Some(adopted) = adopt(client, owner, &*candidate).await? {
                    owned.push(Arc::new(adopted));
                }
            }
        }
    }
    Ok(owned)
}

async fn still_there<O>(client: &Client, owner: &O) -> Result<bool, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api: Api<O> = Api::namespaced(client.clone(), namespace(owner.meta()));
    let fresh = api.get_opt(name(owner.meta())).await?;
    Ok(fresh.is_some_and(|f| f.meta().uid == owner.meta().uid && !is_deleting(f.meta())))
}

async fn adopt<O, K>(client: &Client, owner: &O, object: &K) -> Result<Option<K>, Error>
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.retain(|o| o.uid != uid(owner.meta()));
    owners.push(controller_reference(owner));
    patch_owners(client, object, &owners).await
}

async fn release<O, K>(client: &Client, owner: &O, object: &K) -> Result<(), Error>
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.retain(|o| o.uid != uid(owner.meta()));
    patch_owners(client, object, &owners).await?;
    Ok(())
}

async fn patch_owners<K, T>(client: &Client, object: &K, owners: &T) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    T: Serialize,
{
    let meta = object.meta();
    let api: Api<K> = Api::namespaced(client.clone(), namespace(meta));
    let patch =
        json!({"metadata": {"uid": uid(meta), "resourceVersion": meta.resource_version, "ownerReferences": owners}});
    match api
        .patch(name(meta), &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(written) => Ok(Some(written)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};

    #[test]
    fn only_orphans_are_adopted_and_only_own_are_released() {
        let meta = |uid: &str, owner: Option<&str>, deleting: bool| ObjectMeta {
            uid: Some(uid.into()),
            owner_references: owner.map(|o| {
                vec![OwnerReference {
                    uid: o.into(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]
            }),
            deletion_timestamp: deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        };
        for (owner_deleting, controller, object_deleting, matches, expected) in [
            (false, Some("o"), false, true, Claim::Own),
            (false, Some("o"), false, false, Claim::Release),
            (true, Some("o"), false, false, Claim::Ignore),
            (false, Some("x"), false, true, Claim::Ignore),
            (false, None, false, true, Claim::Adopt),
            (false, None, true, true, Claim::Ignore),
            (false, None, false, false, Claim::Ignore),
            (true, None, false, true, Claim::Ignore),
        ] {
            let got = decide(
                &meta("o", None, owner_deleting),
                &meta("p", controller, object_deleting),
                matches,
            );
            assert_eq!(
                got, expected,
                "{owner_deleting} {controller:?} {object_deleting} {matches}"
            );
        }
    }
}
