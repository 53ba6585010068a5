//! Manifests of the image and of its applications: applied in the order of their file names, each image by its digest; objects that
//! an earlier version had are taken away.

use super::{
    apply::{Applied, Applier, title},
    ledger::{self, ObjectRef},
    ownership::{self, Owned},
};
use crate::{
    Error, Result,
    apps::{self, App, Kind},
    event::Event,
    paths,
    phases::{Outcome, Phase},
    pin, render,
    run::Run,
    site::Site,
};
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Applies the image's manifests.
pub fn manifests(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let objects = system(&run.site)?;
        let ledger = ledger::load(&run.cluster()?.client).await?;
        let (changes, _) = apply_and_prune(&run, ledger::MANIFESTS, &objects, ledger.get(ledger::MANIFESTS)).await?;
        Ok(Outcome {
            changes,
            ..Outcome::default()
        })
    }
    .boxed()
}

/// Makes the objects so, takes those away that were applied under this key before and that nothing wishes any more, and notes what
/// there is now. How many things were changed, and what was noted.
pub(super) async fn apply_and_prune(
    run: &Run,
    key: &str,
    objects: &[Value],
    before: Option<&ledger::Entry>,
) -> Result<(usize, ledger::Entry)> {
    let client = &run.cluster()?.client;
    let applier = Applier::new(client.clone());
    let mut changes = 0;
    let mut owned = Vec::with_capacity(objects.len());
    for object in objects {
        let (applied, ours) = applier.apply(object).await?;
        owned.push(ours);
        if applied != Applied::Same {
            changes += 1;
            tracing::info!("{}: {applied:?}", title(object));
        }
    }
    let now = ledger::Entry {
        begun: before.is_some_and(|entry| entry.begun),
        ..noted(objects, &owned)
    };
    if before == Some(&now) {
        return Ok((changes, now));
    }
    let wanted = all_wanted(&run.site)?;
    let (removed, kept) = ledger::superfluous(before.map_or(&[], |entry| &entry.objects), &wanted);
    for object in removed {
        let object = object.to_object();
        if applier.remove(&object).await? {
            changes += 1;
            tracing::info!("{}: removed", title(&object));
        }
    }
    for object in kept {
        run.observer.event(Event::Warning {
            host: None,
            message: format!(
                "{} is in no manifest any more; it stays because of what it may hold. kubectl delete would remove it",
                title(&object.to_object())
            ),
        });
    }
    ledger::save(client, key, &now).await?;
    Ok((changes, now))
}

/// What is noted of objects that were applied, and of which this is ours.
fn noted(objects: &[Value], owned: &[Owned]) -> ledger::Entry {
    ledger::Entry {
        kind: "manifests".to_owned(),
        objects: objects.iter().map(ObjectRef::of).collect(),
        owned: owned.iter().map(Owned::fingerprint).collect(),
        fields: ownership::pack(owned),
        ..ledger::Entry::default()
    }
}

/// Every object of `manifests/`.
///
/// # Errors
/// When a manifest cannot be rendered or parsed.
pub fn system(site: &Site) -> Result<Vec<Value>> {
    Ok(all(site)?
        .into_iter()
        .next()
        .map(|(_, objects)| objects)
        .unwrap_or_default())
}

/// Every object of an application that is made of manifests.
///
/// # Errors
/// When a manifest cannot be rendered or parsed.
pub fn application(site: &Site, app: &App) -> Result<Vec<Value>> {
    let found = all(site)?
        .into_iter()
        .find(|(name, _)| *name == Some(app.name.as_str()));
    Ok(found.map(|(_, objects)| objects).unwrap_or_default())
}

/// Names of all objects that any manifest wishes.
///
/// # Errors
/// When a manifest cannot be rendered or parsed.
pub fn all_wanted(site: &Site) -> Result<Vec<ObjectRef>> {
    let all = all(site)?;
    Ok(all.iter().flat_map(|(_, objects)| objects).map(ObjectRef::of).collect())
}

/// The folders with manifests, and whose they are: the image's own, then those of applications in the order in which they are launched.
pub(super) fn folders(site: &Site) -> impl Iterator<Item = (Option<&str>, String)> {
    let own = (None, paths::source::MANIFESTS.to_owned());
    let apps = site.apps.iter().filter(|app| app.kind == Kind::Manifests);
    std::iter::once(own).chain(apps.map(|app| (Some(app.name.as_str()), apps::folder(&app.name))))
}

/// The objects of each of [`folders`]. Of several that are one object the last one is meant, wherever it stands: applying them one
/// after another would change it with every apply.
fn all(site: &Site) -> Result<Vec<(Option<&str>, Vec<Value>)>> {
    let mut all = Vec::new();
    for (whose, folder) in folders(site) {
        all.push((whose, below(site, &folder)?));
    }
    let mut last: BTreeMap<ObjectRef, Value> = BTreeMap::new();
    for object in all.iter().flat_map(|(_, objects)| objects) {
        last.insert(ObjectRef::of(object).normal(), object.clone());
    }
    for (_, objects) in &mut all {
        let mut seen = BTreeSet::new();
        objects.retain(|object| seen.insert(ObjectRef::of(object).normal()));
        for object in objects.iter_mut() {
            if let Some(meant) = last.get(&ObjectRef::of(object).normal()) {
                object.clone_from(meant);
            }
        }
    }
    Ok(all)
}

fn below(site: &Site, folder: &str) -> Result<Vec<Value>> {
    let seat = &site.seats[site.first_master()];
    let mut objects = Vec::new();
    for path in manifest_paths(site, folder) {
        let text = render::file(site, seat, path)?;
        for document in render::documents(path, &text)? {
            flatten(path, document, &mut objects)?;
        }
    }
    objects.iter_mut().for_each(|object| pin::object(site, object));
    Ok(objects)
}

/// The manifests below a folder, in the order in which they are applied.
pub(super) fn manifest_paths<'s>(site: &'s Site, folder: &str) -> impl Iterator<Item = &'s str> {
    render::paths(site, folder).into_iter().filter(|path| is_manifest(path))
}

/// Whether a file of the rootfs holds Kubernetes objects.
pub fn is_manifest(path: &str) -> bool {
    let plain = path.strip_suffix(".tmpl").unwrap_or(path);
    [".yaml", ".yml", ".json"].iter().any(|ending| plain.ends_with(ending))
}

/// Items of a list, or the object itself. Items of a typed list need not say what they are.
pub(super) fn flatten(path: &str, mut document: Value, objects: &mut Vec<Value>) -> Result<()> {
    let (Some(kind), Some(version)) = (document["kind"].as_str(), document["apiVersion"].as_str()) else {
        return Err(Error::Wish(format!(
            "{path}: a document is no Kubernetes object: it lacks kind or apiVersion"
        )));
    };
    let of = kind.strip_suffix("List").filter(|_| document["items"].is_array());
    let Some((of, version)) = of.map(|of| (of.to_owned(), version.to_owned())) else {
        objects.push(document);
        return Ok(());
    };
    let items = document["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    for mut item in items {
        if !of.is_empty() && item.is_object() {
            for (field, text) in [("kind", &of), ("apiVersion", &version)] {
                if item[field].is_null() {
                    item[field] = text.clone().into();
                }
            }
        }
        flatten(path, item, objects)?;
    }
    Ok(())
}

/// What of the objects is not as wished: `create` or `change` by title.
///
/// # Errors
/// When the API server does not answer.
pub async fn pending(client: kube::Client, objects: &[Value]) -> Result<BTreeMap<String, Applied>> {
    use futures::{StreamExt as _, TryStreamExt as _, stream};
    let applier = Applier::new(client);
    let ask: Vec<_> = objects
        .iter()
        .map(|object| one_pending(&applier, object).boxed())
        .collect();
    let all: BTreeMap<String, Applied> = stream::iter(ask).buffered(16).try_collect().await?;
    Ok(all
        .into_iter()
        .filter(|(_, applied)| *applied != Applied::Same)
        .collect())
}

async fn one_pending(applier: &Applier, object: &Value) -> Result<(String, Applied)> {
    let applied = match applier.preview(object).await {
        // A kind that the server does not know yet is made by an object before it.
        Err(error) if error.is_unknown_kind() => Applied::Created,
        other => other?,
    };
    Ok((title(object), applied))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{add_file, carry, site};
    use serde_json::json;

    fn app(name: &str) -> App {
        App {
            name: name.into(),
            env: clusterfile::Env::from([("SIZE".into(), "3".into())]),
            namespace: apps::NAMESPACE.into(),
            kind: Kind::Manifests,
        }
    }

    #[test]
    fn manifests_are_rendered_configured_and_pinned() {
        let mut site = site();
        let digest = carry(&mut site, "quay.io/a/tool:1");
        add_file(
            &mut site,
            "application/apps/web/b.yaml.tmpl",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: {{ .SIZE }}, template: {spec: {containers: [{image: 'quay.io/a/tool:1'}]}}}\n",
            false,
        );
        add_file(&mut site, "application/apps/web/README", "none", false);
        site.apps.push(app("web"));
        let config = |name: &str, data: &str| clusterfile::Config {
            name: "c".into(),
            path: format!("application/apps/web/{name}"),
            strategy: clusterfile::Strategy::Merge,
            data: data.into(),
        };
        site.configs.push(config("b.yaml", "spec: {paused: true}\n"));
        site.configs.push(config(
            "a.yaml",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: new}\n",
        ));
        let objects = application(&site, &site.apps[0]).unwrap();
        assert_eq!(objects[0]["metadata"]["name"], "new");
        let expected = json!({"replicas": 3, "paused": true, "template": {"spec": {"containers": [{"image": format!("quay.io/a/tool:1@{digest}")}]}}});
        assert_eq!(objects[1]["spec"], expected);
        let names: Vec<String> = all_wanted(&site)
            .unwrap()
            .into_iter()
            .map(|object| object.name)
            .collect();
        assert_eq!(names, ["new", "web"]);
    }

    #[test]
    fn of_several_that_are_one_object_the_last_is_applied_wherever_it_stands() {
        let mut site = site();
        let map = |name: &str, value: u32| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: '{value}'}}\n")
        };
        let own = format!("{}---\n{}---\n{}", map("a", 1), map("b", 2), map("a", 3));
        add_file(&mut site, "manifests/x.yaml", &own, false);
        let theirs = map("b", 4).replace("{name: b}", "{name: b, namespace: default}");
        add_file(&mut site, "application/apps/web/x.yaml", &theirs, false);
        site.apps.push(app("web"));
        let shown = |objects: Vec<Value>| {
            let show = |object: &Value| format!("{} {}", object["metadata"]["name"], object["data"]["k"]);
            objects.iter().map(show).collect::<Vec<_>>()
        };
        assert_eq!(shown(system(&site).unwrap()), [r#""a" "3""#, r#""b" "4""#]);
        assert_eq!(shown(application(&site, &site.apps[0]).unwrap()), [r#""b" "4""#]);
    }

    #[test]
    fn every_item_of_a_list_is_an_object() {
        let flat = |list: Value| {
            let mut objects = Vec::new();
            flatten("a.yaml", list, &mut objects)
                .map(|()| objects)
                .map_err(|e| e.to_string())
        };
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
        let list = |kind: &str, items: Value| json!({"apiVersion": "v1", "kind": kind, "items": items});
        assert_eq!(flat(pod.clone()), Ok(vec![pod.clone()]));
        let nested = list(
            "List",
            json!([pod, list("PodList", json!([{"metadata": {"name": "a"}}]))]),
        );
        assert_eq!(flat(nested), Ok(vec![pod.clone(), pod]));
        assert!(
            flat(list("List", json!([{"metadata": {}}])))
                .unwrap_err()
                .starts_with("a.yaml: a document is no")
        );
    }
}
