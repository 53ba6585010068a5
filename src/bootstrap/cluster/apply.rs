//! Makes objects of any kind so by server-side apply, as a field manager of our own: the server knows which fields are ours
//! (`metadata.managedFields`), so what is wished no more goes, and what others added stays.
//!
//! Whatever a manifest says wins over others (`force`). An object that an older version applied on the client's side is taken over
//! first ([`super::takeover`]).

use super::{ownership::Owned, takeover};
use crate::{Error, Result};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
    discovery::{Scope, pinned_kind},
};
use serde_json::Value;
use std::collections::HashMap;
use tokio::sync::Mutex;

/// The field manager that owns what we apply.
pub(super) const MANAGER: &str = "installer";
/// Times in `metadata` have no fractions of seconds.
const TIME: &str = "%Y-%m-%dT%H:%M:%SZ";
/// How often an object that others change meanwhile is tried to be taken over.
const TAKEOVER_ATTEMPTS: usize = 5;
/// Fields of `metadata` that only the server sets. Objects that were printed by kubectl have them, of another cluster.
const SERVER_METADATA: [&str; 8] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What applying an object did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was not there.
    Created,
    /// It was different.
    Changed,
    /// It was so already.
    Same,
}

/// Applies objects and remembers what the server said about their kinds.
pub struct Applier {
    client: Client,
    kinds: Mutex<HashMap<GroupVersionKind, (ApiResource, Scope)>>,
}

impl Applier {
    /// Through `client`.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            kinds: Mutex::default(),
        }
    }

    /// Makes `object` so; what that did, and what of it is ours now.
    ///
    /// # Errors
    /// When the object has no name, its kind is unknown, or the server refuses.
    pub async fn apply(&self, object: &Value) -> Result<(Applied, Owned)> {
        let title = title(object);
        let api = self.api(object, &title).await?;
        let live = self.taken_over(&api, object, &title).await?;
        let made = self.patch(&api, object, &title, false).await?;
        let owned = Owned::of(&made);
        Ok(match live {
            None => (Applied::Created, owned),
            Some((_, true)) => (Applied::Changed, owned),
            Some((live, false)) => (compared(&live, &made), owned),
        })
    }

    /// What [`Self::apply`] would do. Whether the server would create an object is not asked: its namespace may be made just before.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn preview(&self, object: &Value) -> Result<Applied> {
        let title = title(object);
        let api = self.api(object, &title).await?;
        match read(&api, object, &title).await? {
            None => Ok(Applied::Created),
            Some(live) if takeover::is_needed(&live, &configuration(object)) => Ok(Applied::Changed),
            Some(live) => Ok(compared(&live, &self.patch(&api, object, &title, true).await?)),
        }
    }

    /// The fields in which an object is not as `object` says; `None` if it is not there.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn differences(&self, object: &Value) -> Result<Option<Vec<String>>> {
        let title = title(object);
        let api = self.api(object, &title).await?;
        let Some(live) = read(&api, object, &title).await? else {
            return Ok(None);
        };
        let made = self.patch(&api, object, &title, true).await?;
        if compared(&live, &made) == Applied::Same {
            return Ok(Some(Vec::new()));
        }
        let (live, made) = (essence(&live), essence(&made));
        let mut fields = Vec::new();
        takeover::collect_differing(&live, &made, "", &mut fields);
        takeover::collect_differing(&made, &live, "", &mut fields);
        fields.sort();
        fields.dedup();
        if fields.is_empty() {
            fields.push("metadata.managedFields".to_owned());
        }
        Ok(Some(fields))
    }

    /// An object as the server has it now, if it is there.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn live(&self, object: &Value) -> Result<Option<Value>> {
        let title = title(object);
        match self.api(object, &title).await {
            Ok(api) => read(&api, object, &title).await,
            // With its kind all its objects are gone.
            Err(error) if error.is_unknown_kind() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes an object away; whether it was there. What it owns goes in the background.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn remove(&self, object: &Value) -> Result<bool> {
        let title = title(object);
        let api = match self.api(object, &title).await {
            Ok(api) => api,
            // With its kind all its objects are gone.
            Err(error) if error.is_unknown_kind() => return Ok(false),
            Err(error) => return Err(error),
        };
        match api.delete(name(object, &title)?, &DeleteParams::background()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(Error::api(format!("removing {title}"))(error)),
        }
    }

    /// The object as it is before we apply to it, and whether fields of it had to become ours first.
    async fn taken_over(&self, api: &Api<DynamicObject>, object: &Value, title: &str) -> Result<Option<(Value, bool)>> {
        let mut left = TAKEOVER_ATTEMPTS;
        loop {
            let Some(live) = read(api, object, title).await? else {
                return Ok(None);
            };
            let now = jiff::Timestamp::now().strftime(TIME).to_string();
            let Some(patch) = takeover::patch(&live, &configuration(object), &now) else {
                return Ok(Some((live, false)));
            };
            let patch = serde_json::from_value(patch).map_err(|e| Error::Wish(format!("{title}: {e}")))?;
            let params = PatchParams {
                field_manager: Some(MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let name = name(object, title)?;
            left -= 1;
            match api.patch(name, &params, &Patch::<Value>::Json(patch)).await {
                Ok(_) => return Ok(Some((live, true))),
                // Somebody else changed it meanwhile.
                Err(kube::Error::Api(status)) if status.code == 409 && left > 0 => {}
                Err(error) => return Err(Error::api(format!("taking over {title}"))(error)),
            }
        }
    }

    async fn patch(&self, api: &Api<DynamicObject>, object: &Value, title: &str, dry: bool) -> Result<Value> {
        let params = PatchParams {
            dry_run: dry,
            ..PatchParams::apply(MANAGER).force()
        };
        let config = configuration(object);
        let made = api.patch(name(object, title)?, &params, &Patch::Apply(&config)).await;
        let doing = if dry { "comparing" } else { "applying" };
        json_of(&made.map_err(Error::api(format!("{doing} {title}")))?, title)
    }

    async fn api(&self, object: &Value, title: &str) -> Result<Api<DynamicObject>> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").rsplit_once('/').unwrap_or(("", text("apiVersion")));
        let gvk = GroupVersionKind::gvk(group, version, text("kind"));
        let known = self.kinds.lock().await.get(&gvk).cloned();
        let (resource, scope) = match known {
            Some(known) => known,
            None => {
                let (resource, capabilities) = pinned_kind(&self.client, &gvk)
                    .await
                    .map_err(Error::api(format!("finding the kind of {title}")))?;
                let found = (resource, capabilities.scope);
                self.kinds.lock().await.insert(gvk, found.clone());
                found
            }
        };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        Ok(match scope {
            Scope::Namespaced => Api::namespaced_with(self.client.clone(), namespace, &resource),
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
        })
    }
}

/// `deployment kube-system/dns`, for people.
pub fn title(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or("object").to_lowercase();
    let name = object["metadata"]["name"].as_str().unwrap_or("?");
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

fn name<'o>(object: &'o Value, title: &str) -> Result<&'o str> {
    let name = object["metadata"]["name"].as_str().filter(|name| !name.is_empty());
    name.ok_or_else(|| Error::Wish(format!("{title} has no name")))
}

fn json_of(object: &DynamicObject, title: &str) -> Result<Value> {
    serde_json::to_value(object).map_err(|e| Error::Wish(format!("{title}: {e}")))
}

async fn read(api: &Api<DynamicObject>, object: &Value, title: &str) -> Result<Option<Value>> {
    let live = api.get_opt(name(object, title)?).await;
    let live = live.map_err(Error::api(format!("reading {title}")))?;
    live.map(|live| json_of(&live, title)).transpose()
}

/// An object of a manifest as it is applied: without what is not a manifest's to say, and with what the server fills in beside a
/// field and would keep without it.
///
/// * A Secret's `stringData` becomes `data`: the server stores it so, and a key that is wished no more could not be found otherwise.
/// * The rules of an aggregated ClusterRole are a controller's work.
/// * `status` and the server's part of `metadata` come along where an object was printed from a cluster.
/// * A pod's service account has two fields, of which one follows the other.
pub(super) fn configuration(object: &Value) -> Value {
    let mut config = takeover::normal(object);
    if let Some(fields) = config.as_object_mut() {
        fields.remove("status");
        let aggregated = fields.get("aggregationRule").is_some_and(Value::is_object);
        if aggregated && fields.get("kind").is_some_and(|kind| kind == "ClusterRole") {
            fields.remove("rules");
        }
    }
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        SERVER_METADATA.iter().for_each(|field| drop(metadata.remove(*field)));
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(takeover::LAST_APPLIED);
        }
    }
    complete_pods(&mut config);
    config
}

/// `serviceAccount` is the old name of `serviceAccountName`; the server sets both.
fn complete_pods(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let twins = ["serviceAccountName", "serviceAccount"];
            let values = twins.map(|field| fields.get(field).filter(|value| value.is_string()).cloned());
            let is_pod = fields.get("containers").is_some_and(Value::is_array);
            if let (true, Some(name)) = (is_pod, values.into_iter().flatten().next()) {
                for field in twins {
                    fields.entry(field).or_insert_with(|| name.clone());
                }
            }
            fields.values_mut().for_each(complete_pods);
        }
        Value::Array(items) => items.iter_mut().for_each(complete_pods),
        _ => {}
    }
}

fn compared(live: &Value, made: &Value) -> Applied {
    let owned = |object: &Value| Owned::of(object).fields;
    match essence(live) == essence(made) && owned(live) == owned(made) {
        true => Applied::Same,
        false => Applied::Changed,
    }
}

/// What an apply can change of an object: all but what every write, or only the server, changes.
fn essence(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["generation", "managedFields", "resourceVersion"] {
            metadata.remove(field);
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_a_manifests_to_say_is_not_applied() {
        let printed = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "7", "creationTimestamp": null, "managedFields": [{}],
                "annotations": {takeover::LAST_APPLIED: "{}", "mine": "x"}},
            "stringData": {"k": "v"}, "data": {"k": "b2xk", "l": "dw=="}, "status": {},
        });
        assert_eq!(
            configuration(&printed),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "annotations": {"mine": "x"}},
                "data": {"k": "dg==", "l": "dw=="}})
        );
        let role = |more: Value| {
            let mut role = json!({"kind": "ClusterRole", "metadata": {"name": "a"}, "rules": []});
            crate::render::merge(&mut role, more);
            configuration(&role).get("rules").is_some()
        };
        assert!(role(json!({})));
        assert!(!role(json!({"aggregationRule": {"clusterRoleSelectors": []}})));
    }

    #[test]
    fn what_the_server_fills_in_beside_a_field_is_ours_with_it() {
        let pod = json!({"containers": [], "serviceAccountName": "a"});
        let made = configuration(&json!({"kind": "Deployment", "metadata": {}, "spec": {"template": {"spec": pod}}}));
        assert_eq!(made["spec"]["template"]["spec"]["serviceAccount"], "a");
        let volume = json!({"kind": "X", "metadata": {}, "spec": {"serviceAccountName": "a"}});
        assert_eq!(configuration(&volume), volume);
    }

    #[test]
    fn what_every_write_changes_is_no_difference_and_ownership_is_one() {
        let object = |version: &str, value: &str, fields: Value| {
            json!({"metadata": {"name": "a", "resourceVersion": version, "managedFields": [
                {"manager": MANAGER, "operation": "Apply", "time": version, "fieldsV1": fields},
                {"manager": "other", "operation": "Update", "fieldsV1": {version: {}}}]},
                "data": {"k": value}, "status": {"v": version}})
        };
        let ours = json!({"f:data": {"f:k": {}}});
        let one = object("1", "v", ours.clone());
        assert_eq!(compared(&one, &object("2", "v", ours.clone())), Applied::Same);
        assert_eq!(compared(&one, &object("2", "w", ours)), Applied::Changed);
        assert_eq!(compared(&one, &object("2", "v", json!({}))), Applied::Changed);
    }
}
