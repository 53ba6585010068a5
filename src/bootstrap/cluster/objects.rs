//! Manifests of the image and of its applications: applied in the order of their file names, each image by its digest; objects that
//! an earlier version had are taken away.

use super::{
    apply::{Applied, Applier, fingerprint, title},
    ledger::{self, ObjectRef},
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
use std::{collections::BTreeMap, sync::Arc};

/// Applies the image's manifests.
pub fn manifests(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let objects = system(&run.site)?;
        let ledger = ledger::load(&run.cluster()?.client).await?;
        let changes = apply_and_prune(&run, ledger::MANIFESTS, &objects, ledger.get(ledger::MANIFESTS)).await?;
        Ok(Outcome {
            changes,
            ..Outcome::default()
        })
    }
    .boxed()
}

/// Makes the objects so, takes those away that were applied under this key before and that nothing wishes any more, and notes what
/// there is now. How many things were changed.
pub(super) async fn apply_and_prune(
    run: &Run,
    key: &str,
    objects: &[Value],
    before: Option<&ledger::Entry>,
) -> Result<usize> {
    let client = &run.cluster()?.client;
    let applier = Applier::new(client.clone());
    let mut changes = 0;
    for object in objects {
        let applied = applier.apply(object, false).await?;
        if applied != Applied::Same {
            changes += 1;
            tracing::info!("{}: {applied:?}", title(object));
        }
    }
    let now = ledger::Entry {
        begun: before.is_some_and(|entry| entry.begun),
        ..noted(objects)
    };
    if before == Some(&now) {
        return Ok(changes);
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
    Ok(changes)
}

/// What is noted of objects that were applied.
pub(super) fn noted(objects: &[Value]) -> ledger::Entry {
    ledger::Entry {
        kind: "manifests".to_owned(),
        objects: objects.iter().map(ObjectRef::of).collect(),
        applied: objects.iter().map(fingerprint).collect(),
        ..ledger::Entry::default()
    }
}

/// Every object of `manifests/`.
///
/// # Errors
/// When a manifest cannot be rendered or parsed.
pub fn system(site: &Site) -> Result<Vec<Value>> {
    below(site, paths::source::MANIFESTS)
}

/// Every object of an application that is made of manifests.
///
/// # Errors
/// When a manifest cannot be rendered or parsed.
pub fn application(site: &Site, app: &App) -> Result<Vec<Value>> {
    below(site, &apps::folder(&app.name))
}

/// Names of all objects that any manifest wishes.
///
/// # Errors
/// When a manifest cannot be rendered or parsed.
pub fn all_wanted(site: &Site) -> Result<Vec<ObjectRef>> {
    let mut objects = system(site)?;
    for app in site.apps.iter().filter(|app| app.kind == Kind::Manifests) {
        objects.extend(application(site, app)?);
    }
    Ok(objects.iter().map(ObjectRef::of).collect())
}

fn below(site: &Site, folder: &str) -> Result<Vec<Value>> {
    let seat = &site.seats[site.first_master()];
    let mut objects = Vec::new();
    for path in render::paths(site, folder).into_iter().filter(|path| is_manifest(path)) {
        let text = render::file(site, seat, path)?;
        for document in render::documents(path, &text)? {
            objects.extend(flatten(path, document)?);
        }
    }
    objects.iter_mut().for_each(|object| pin::object(site, object));
    Ok(objects)
}

/// Whether a file of the rootfs holds Kubernetes objects.
pub fn is_manifest(path: &str) -> bool {
    let plain = path.strip_suffix(".tmpl").unwrap_or(path);
    [".yaml", ".yml", ".json"].iter().any(|ending| plain.ends_with(ending))
}

/// Items of a `List`, or the object itself.
fn flatten(path: &str, document: Value) -> Result<Vec<Value>> {
    if document["kind"] == "List" {
        return Ok(document["items"].as_array().cloned().unwrap_or_default());
    }
    if document["kind"].is_string() && document["apiVersion"].is_string() {
        return Ok(vec![document]);
    }
    Err(Error::Wish(format!(
        "{path}: a document is no Kubernetes object: it lacks kind or apiVersion"
    )))
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
    let applied = match applier.apply(object, true).await {
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
}
