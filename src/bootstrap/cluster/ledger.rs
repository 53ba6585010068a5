//! What was launched and applied, kept in the cluster: without it nobody could tell what is new and what is to be taken away.
//!
//! A Secret, because digests of settings are kept in it, and settings may hold passwords that can be guessed.

use crate::{Error, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Its name in `kube-system`.
pub const NAME: &str = "installer-applications";
/// Key of the image's own manifests.
pub const MANIFESTS: &str = "manifests";
/// Key of the launch commands.
pub const COMMANDS: &str = "commands";

/// What is known of one thing that was launched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    /// `chart`, `scripts`, `commands`, `manifests`, `hook`.
    pub kind: String,
    /// Names all that decided what launching it did.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Whether launching it was begun and has not ended well.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub begun: bool,
    /// Whether it was told that nobody wishes it any more and that it stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub told_unwished: bool,
    /// A chart's namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Objects that were applied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<ObjectRef>,
    /// Names what was applied of each of them, in the same order: written by versions that applied on the client's side
    /// ([`super::takeover::drifted`]).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<String>,
    /// Names what was ours of each of them after the last apply, in the same order ([`super::ownership::Owned::fingerprint`]).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owned: Vec<String>,
    /// The fields that were ours then ([`super::ownership::pack`]).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fields: String,
}

/// An object by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// As the manifest says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// The name of a manifest's object.
    pub fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            api_version: text(&object["apiVersion"]),
            kind: text(&object["kind"]),
            namespace: object["metadata"]["namespace"].as_str().map(str::to_owned),
            name: text(&object["metadata"]["name"]),
        }
    }

    /// Whether both are one object.
    pub fn is_same(&self, other: &Self) -> bool {
        self.clone().normal() == other.clone().normal()
    }

    /// One and the same for all names of an object: versions of a kind are only ways to write it, and no namespace is the default one.
    pub fn normal(self) -> Self {
        let group = self.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        Self {
            api_version: group.to_owned(),
            namespace: Some(self.namespace.unwrap_or_else(|| "default".to_owned())),
            ..self
        }
    }

    /// As a manifest without content.
    pub fn to_object(&self) -> Value {
        let mut metadata = json!({"name": self.name});
        if let Some(namespace) = &self.namespace {
            metadata["namespace"] = json!(namespace);
        }
        json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata})
    }
}

/// All entries by their keys.
pub type Ledger = BTreeMap<String, Entry>;

/// An application's key.
pub fn app(name: &str) -> String {
    format!("app.{name}")
}

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), "kube-system")
}

/// Reads all of it; nothing if nothing was ever launched.
///
/// # Errors
/// When the API server does not answer, or what is there was not written by an installer.
pub async fn load(client: &Client) -> Result<Ledger> {
    let secret = secrets(client)
        .get_opt(NAME)
        .await
        .map_err(Error::api("reading what was launched"))?;
    let data = secret.and_then(|secret| secret.data).unwrap_or_default();
    data.into_iter()
        .map(|(key, bytes)| Ok((key.clone(), parse(&key, &bytes.0)?)))
        .collect()
}

fn parse(key: &str, bytes: &[u8]) -> Result<Entry> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::Wish(format!(
            "the Secret kube-system/{NAME} has an entry {key:?} that no installer wrote ({error}); remove the entry to have it launched anew"
        ))
    })
}

/// Writes one entry; the others stay.
///
/// # Errors
/// When the API server refuses.
pub async fn save(client: &Client, key: &str, entry: &Entry) -> Result<()> {
    let text = serde_json::to_vec(entry).map_err(|e| Error::Wish(e.to_string()))?;
    let data = json!({"data": {key: STANDARD.encode(text)}});
    let secrets = secrets(client);
    let failed = || Error::api("noting what was launched");
    match secrets.patch(NAME, &PatchParams::default(), &Patch::Merge(&data)).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(failed()(error)),
    }
    let mut secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME, "namespace": "kube-system"}});
    crate::render::merge(&mut secret, data);
    let secret: Secret = serde_json::from_value(secret).map_err(|e| Error::Wish(e.to_string()))?;
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .map(drop)
        .map_err(failed())
}

/// Kinds that hold what people made: they are not taken away because a manifest is gone.
const KEPT: [&str; 4] = [
    "Namespace",
    "CustomResourceDefinition",
    "PersistentVolume",
    "PersistentVolumeClaim",
];

/// Which objects are wished no more, of those that were applied before: first those to be taken away, the last applied first; then
/// those that stay because of what they may hold.
pub fn superfluous<'e>(before: &'e [ObjectRef], wanted: &[ObjectRef]) -> (Vec<&'e ObjectRef>, Vec<&'e ObjectRef>) {
    let gone = before
        .iter()
        .rev()
        .filter(|old| !wanted.iter().any(|new| new.is_same(old)));
    gone.partition(|object| !KEPT.contains(&object.kind.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> ObjectRef {
        ObjectRef {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: namespace.map(str::to_owned),
            name: name.into(),
        }
    }

    #[test]
    fn only_what_no_manifest_has_any_more_goes_and_what_may_hold_data_stays() {
        let before = [
            object("v1", "Namespace", None, "shop"),
            object("batch/v1beta1", "CronJob", Some("shop"), "tidy"),
            object("v1", "ConfigMap", None, "a"),
            object("v1", "ConfigMap", Some("shop"), "b"),
            object("v1", "PersistentVolumeClaim", Some("shop"), "data"),
            object("apps/v1", "Deployment", Some("shop"), "web"),
        ];
        let wanted = [
            object("batch/v1", "CronJob", Some("shop"), "tidy"),
            object("v1", "ConfigMap", Some("default"), "a"),
            object("v1", "ConfigMap", Some("other"), "b"),
            object("extensions/v1", "Deployment", Some("shop"), "web"),
        ];
        let (removed, kept) = superfluous(&before, &wanted);
        assert_eq!(removed, [&before[5], &before[3]]);
        assert_eq!(kept, [&before[4], &before[0]]);
    }

    #[test]
    fn entries_survive_and_strangers_are_named() {
        let entry = Entry {
            kind: "chart".into(),
            digest: "sha256:1".into(),
            begun: true,
            told_unwished: true,
            namespace: "shop".into(),
            objects: vec![object("v1", "ConfigMap", None, "a")],
            applied: vec!["sha256:2".into()],
            owned: vec!["2026-01-01T00:00:00Z sha256:3".into()],
            fields: "x".into(),
        };
        let text = serde_json::to_vec(&entry).unwrap();
        assert_eq!(parse("app.web", &text).unwrap(), entry);
        assert_eq!(
            entry.objects[0].to_object(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
        );
        assert_eq!(ObjectRef::of(&entry.objects[0].to_object()), entry.objects[0]);
        assert!(parse("app.web", b"x").unwrap_err().to_string().contains("app.web"));
    }
}
