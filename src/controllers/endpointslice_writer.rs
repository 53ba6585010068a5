//! Carries plans for EndpointSlices out: what is written, and how long the cache may be behind it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use component::patch::{Part, update};
use component::{ApiErrorExt, Error, Informer, ObjectKey, Requeue};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};

use crate::endpointslice_plan::{Group, Plan, slice_ports};
use crate::meta::{is_deleting, name, namespace};

/// The label that names a slice's Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that names the controller of a slice.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// How long a write may take to come back through the watch before the cache is believed again.
const CACHE_TIMEOUT: Duration = Duration::from_secs(5);

/// What was written and not seen back yet: slice name → the version that must have been passed (nothing: must exist).
type Unseen = HashMap<String, (Option<String>, Instant)>;

/// Writes the slices of one controller.
pub(crate) struct SliceWriter {
    client: Client,
    manager: &'static str,
    unseen: Mutex<HashMap<ObjectKey, Unseen>>,
}

impl SliceWriter {
    /// A writer of slices whose [`MANAGED_BY`] label is `manager`.
    pub(crate) fn new(client: Client, manager: &'static str) -> Self {
        Self {
            client,
            manager,
            unseen: Mutex::default(),
        }
    }

    /// The Service that a slice of this controller belongs to.
    pub(crate) fn service_of(&self, slice: &EndpointSlice) -> Option<ObjectKey> {
        let labels = slice.metadata.labels.as_ref()?;
        (labels.get(MANAGED_BY)? == self.manager).then_some(())?;
        Some(ObjectKey::new(namespace(&slice.metadata), labels.get(SERVICE_NAME)?))
    }

    /// The slices of a Service that are this controller's.
    pub(crate) fn slices(&self, cache: &Informer<EndpointSlice>, key: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        let mut slices = cache.list(&key.namespace);
        slices.retain(|s| self.service_of(s).as_ref() == Some(key));
        slices
    }

    /// How long to wait at most for the cache to show our own last writes; their events bring the key back earlier.
    pub(crate) fn behind(&self, key: &ObjectKey, existing: &[Arc<EndpointSlice>]) -> Option<Duration> {
        let mut all = self.unseen();
        let unseen = all.get_mut(key)?;
        unseen.retain(|slice, (passed, since)| {
            let current = existing.iter().find(|s| name(&s.metadata) == slice);
            let seen = match (current, passed) {
                (None, None) => false,
                (None, Some(_)) | (Some(_), None) => true,
                (Some(current), Some(passed)) => current.metadata.resource_version.as_ref() != Some(passed),
            };
            !seen && since.elapsed() < CACHE_TIMEOUT
        });
        if unseen.is_empty() {
            all.remove(key);
            return None;
        }
        Some(CACHE_TIMEOUT)
    }

    /// Deletes all slices of a Service.
    pub(crate) async fn delete_all(&self, key: &ObjectKey, slices: &[Arc<EndpointSlice>]) -> Result<Requeue, Error> {
        self.unseen().remove(key);
        for slice in slices.iter().filter(|s| !is_deleting(&s.metadata)) {
            self.delete(key, slice).await?;
        }
        Ok(Requeue::Done)
    }

    /// Writes what a plan says: new slices belong to `owner`, `dress` gives every slice its labels and annotations.
    pub(crate) async fn carry_out(
        &self,
        key: &ObjectKey,
        owner: &OwnerReference,
        plan: Plan,
        dress: impl Fn(&mut EndpointSlice),
    ) -> Result<Requeue, Error> {
        let api = self.api(key);
        for (group, endpoints) in plan.create {
            let mut slice = new_slice(key, owner, &group, endpoints);
            dress(&mut slice);
            match api.create(&PostParams::default(), &slice).await {
                Ok(created) => self.expect(key, name(&created.metadata), None),
                Err(e) if e.is_namespace_terminating() => return Ok(Requeue::Done),
                Err(e) => return Err(e.into()),
            }
        }
        let kept = plan.keep.into_iter().map(|s| (s, None));
        for (slice, endpoints) in plan.update.into_iter().map(|(s, e)| (s, Some(e))).chain(kept) {
            let mut wanted = EndpointSlice {
                endpoints: endpoints.or_else(|| slice.endpoints.clone()),
                ..(*slice).clone()
            };
            dress(&mut wanted);
            if update(&api, &*slice, &wanted, Part::Main).await?.is_some() {
                self.expect(key, name(&slice.metadata), slice.metadata.resource_version.clone());
            }
        }
        for slice in &plan.delete {
            self.delete(key, slice).await?;
        }
        Ok(Requeue::Done)
    }

    fn api(&self, key: &ObjectKey) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    async fn delete(&self, key: &ObjectKey, slice: &EndpointSlice) -> Result<(), Error> {
        match self
            .api(key)
            .delete(name(&slice.metadata), &DeleteParams::default())
            .await
        {
            Ok(_) => Ok(()),
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn unseen(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, Unseen>> {
        self.unseen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, key: &ObjectKey, slice: &str, passed: Option<String>) {
        self.unseen()
            .entry(key.clone())
            .or_default()
            .insert(slice.to_owned(), (passed, Instant::now()));
    }
}

fn new_slice(key: &ObjectKey, owner: &OwnerReference, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", key.name)),
            namespace: Some(key.namespace.clone()),
            owner_references: Some(vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: group.family.as_str().to_owned(),
        endpoints: Some(endpoints),
        ports: Some(slice_ports(group)),
    }
}
