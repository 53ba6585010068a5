//! Manifests of the image, and its applications: applied in the order of their file names.

use super::apply::{Applied, Applier, title};
use crate::{
    Error, Result, paths,
    phases::{Outcome, Phase},
    render,
    run::Run,
    site::Site,
};
use futures::{FutureExt as _, future::BoxFuture};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// How long a launch command may take, in milliseconds.
const COMMAND_MS: u64 = 10 * 60 * 1000;

/// Applies the image's manifests.
pub fn manifests(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let objects = system_objects(&run.site)?;
        apply_all(&run, &objects).await
    }
    .boxed()
}

async fn apply_all(run: &Run, objects: &[Value]) -> Result<Outcome> {
    let applier = Applier::new(run.cluster()?.client.clone());
    let mut changes = 0;
    for object in objects {
        let applied = applier.apply(object, false).await?;
        if applied != Applied::Same {
            changes += 1;
            tracing::info!("{}: {applied:?}", title(object));
        }
    }
    Ok(Outcome { changes, bytes: 0 })
}

/// Every object of `manifests/`.
///
/// # Errors
/// When a manifest cannot be rendered or parsed.
pub fn system_objects(site: &Site) -> Result<Vec<Value>> {
    objects_below(site, paths::source::MANIFESTS)
}

/// Every object of an application.
///
/// # Errors
/// When a manifest cannot be rendered or parsed.
pub fn application_objects(site: &Site, app: &str) -> Result<Vec<Value>> {
    objects_below(site, &format!("{}{app}/", paths::source::APPLICATIONS))
}

fn objects_below(site: &Site, folder: &str) -> Result<Vec<Value>> {
    let seat = &site.seats[site.first_master()];
    let mut objects = Vec::new();
    for path in site
        .image
        .files
        .keys()
        .filter(|path| path.starts_with(folder) && is_manifest(path))
    {
        let text = render::file(site, seat, path)?;
        for document in render::documents(path, &text)? {
            objects.extend(flatten(path, document)?);
        }
    }
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

/// Launches what the image, or the Clusterfile, wants launched.
pub fn applications(run: Arc<Run>, _: &'static Phase, _: Option<usize>) -> BoxFuture<'static, Result<Outcome>> {
    async move {
        let launch = run.site.image.launch.clone();
        let mut outcome = Outcome::default();
        for app in &launch.apps {
            let objects = application_objects(&run.site, app)?;
            outcome.changes += apply_all(&run, &objects).await?.changes;
        }
        if !launch.commands.is_empty() && !super::record::was_launched(&run, &launch.commands).await? {
            for command in &launch.commands {
                command_on_first(&run, command).await?;
                outcome.changes += 1;
            }
        }
        Ok(outcome)
    }
    .boxed()
}

/// The user's own line, for a shell, with the administrator's kubeconfig at hand.
async fn command_on_first(run: &Run, line: &str) -> Result<()> {
    let session = &run.sessions[run.site.first_master()];
    let mut env = run.site.variables(&run.site.seats[run.site.first_master()]);
    env.insert("KUBECONFIG".to_owned(), paths::ADMIN_CONF.to_owned());
    let exec = host::proto::Exec {
        argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()],
        env,
        stdin: String::new(),
        cwd: Some(host::CURRENT.to_owned()),
        timeout_ms: COMMAND_MS,
    };
    let result = session
        .client
        .exec(exec)
        .await
        .map_err(session.failed("running a launch command"))?;
    if result.code == Some(0) {
        return Ok(());
    }
    let why = if result.timed_out {
        "it took longer than 10 minutes"
    } else {
        result.stderr.trim()
    };
    Err(Error::on(
        session.ip,
        format!("the launch command `{line}` failed: {why}"),
    ))
}

/// What of the objects is not as wished: `create` or `change` by title.
///
/// # Errors
/// When the API server does not answer.
pub async fn pending(client: kube::Client, objects: &[Value]) -> Result<BTreeMap<String, Applied>> {
    use futures::{StreamExt as _, TryStreamExt as _, stream};
    let applier = Applier::new(client);
    let ask = objects.iter().map(|object| {
        let applier = &applier;
        async move {
            let applied = applier.apply(object, true).await;
            // A kind that the server does not know yet is made by an object before it.
            let applied = match applied {
                Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Discovery(_)) => Applied::Created,
                other => other?,
            };
            Ok::<_, Error>((title(object), applied))
        }
    });
    let all: BTreeMap<String, Applied> = stream::iter(ask).buffered(16).try_collect().await?;
    Ok(all
        .into_iter()
        .filter(|(_, applied)| *applied != Applied::Same)
        .collect())
}
