//! What the server keeps in order by itself: namespaces, priority classes, RBAC policy, the `kubernetes` Service, history.

mod endpoints;
mod events;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::Kind;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::authz::policy;
use crate::error::{ApiError, Result};
use crate::objects::{self, Modify};
use crate::rest::write::Writer;

/// Names of the hooks that readiness waits for.
pub const HOOKS: &[&str] = &[
    "start-system-namespaces-controller",
    "scheduling/bootstrap-system-priority-classes",
    "rbac/bootstrap-roles",
    "bootstrap-controller",
];

/// Pause before failed work is tried again; doubles up to ten seconds.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(10);
/// How often namespaces, the `kubernetes` Service and the number of events are looked after, and this server's own key is
/// renewed.
const PERIOD: Duration = Duration::from_secs(10);

/// Namespaces that always exist.
pub const NAMESPACES: &[&str] = &["kube-system", "kube-public", "kube-node-lease", "default"];

/// Runs until `stop`: the hooks once, then the upkeep.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    app.cache.wait_synced().await;
    let history = tokio::spawn(compaction(app.clone(), stop.clone()));
    let work = async {
        for hook in HOOKS {
            until_done(&app, hook).await;
            app.hooks.done(hook);
            tracing::info!(hook, "post-start hook done");
        }
        let mut period = tokio::time::interval(PERIOD);
        loop {
            period.tick().await;
            for hook in ["start-system-namespaces-controller", "bootstrap-controller"] {
                if let Err(e) = step(&app, hook).await {
                    tracing::warn!(hook, error = %e, "upkeep failed; it is repeated");
                }
            }
            if let Err(e) = events::bound(&app).await {
                tracing::warn!(error = %e, "surplus events could not be deleted; it is tried again");
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
    if let Err(e) = endpoints::leave(&app).await {
        tracing::warn!(error = %e, "this server's address could not be withdrawn");
    }
    history.abort();
}

async fn until_done(app: &App, hook: &str) {
    let mut pause = RETRY;
    while let Err(e) = step(app, hook).await {
        tracing::warn!(hook, error = %e, "post-start hook failed; it is repeated");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}

async fn step(app: &App, hook: &str) -> Result<()> {
    match hook {
        "start-system-namespaces-controller" => namespaces(app).await,
        "scheduling/bootstrap-system-priority-classes" => priority_classes(app).await,
        "rbac/bootstrap-roles" => rbac(app).await,
        _ => endpoints::keep(app).await,
    }
}

/// A kind of the table.
pub(crate) fn kind(group: &str, version: &str, plural: &str) -> Result<&'static Kind> {
    api::kinds::find(group, version, plural)
        .ok_or_else(|| ApiError::internal(format!("no kind {plural} in group {group:?}")))
}

/// Creates an object unless there is one of its name.
pub(crate) async fn ensure(app: &App, kind: &'static Kind, object: Value) -> Result<()> {
    let (namespace, name) = (api::metadata::namespace(&object), api::metadata::name(&object));
    if objects::cache_of(app, kind)?.get(namespace, name).is_some() {
        return Ok(());
    }
    match Writer::server(app).create(kind, object, false).await {
        Err(e) if e.reason == "AlreadyExists" => Ok(()),
        done => done.map(|_| ()),
    }
}

async fn namespaces(app: &App) -> Result<()> {
    let kind = kind("", "v1", "namespaces")?;
    for name in NAMESPACES {
        ensure(
            app,
            kind,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        )
        .await?;
    }
    Ok(())
}

async fn priority_classes(app: &App) -> Result<()> {
    let kind = kind("scheduling.k8s.io", "v1", "priorityclasses")?;
    for (name, value, text) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": text, "globalDefault": false,
        });
        ensure(app, kind, class).await?;
    }
    Ok(())
}

async fn rbac(app: &App) -> Result<()> {
    for (plural, wanted) in policy::objects() {
        let kind = kind("rbac.authorization.k8s.io", "v1", plural)?;
        let (namespace, name) = (
            api::metadata::namespace(&wanted).to_owned(),
            api::metadata::name(&wanted).to_owned(),
        );
        let Some(found) = objects::cache_of(app, kind)?.get(&namespace, &name) else {
            ensure(app, kind, wanted).await?;
            continue;
        };
        if !policy::reconcile(&mut found.value(), &wanted) {
            continue;
        }
        objects::modify(app, kind, &namespace, &name, false, |current| {
            let mut new = current.clone();
            if !policy::reconcile(&mut new, &wanted) {
                return Ok(Modify::Keep);
            }
            Writer::server(app).note(kind, None, current, &mut new);
            Ok(Modify::Write(new))
        })
        .await?;
    }
    aggregate(app).await
}

/// Writes the rules of aggregated ClusterRoles into them, so that `admin`, `edit` and `view` hold their rules as soon as
/// the server is ready. Afterwards a controller of the controller manager keeps them.
async fn aggregate(app: &App) -> Result<()> {
    let kind = kind("rbac.authorization.k8s.io", "v1", "clusterroles")?;
    app.cache.consistent().await?;
    let snapshot = objects::cache_of(app, kind)?.list("", 0, |_| true);
    let mut roles: Vec<Value> = snapshot.items.iter().map(|o| o.value()).collect();
    for i in api::rbac::aggregate(&mut roles) {
        let rules = &roles[i]["rules"];
        objects::modify(app, kind, "", api::metadata::name(&roles[i]), false, |current| {
            if current["aggregationRule"].is_null() || current["rules"] == *rules {
                return Ok(Modify::Keep);
            }
            let mut new = current.clone();
            new["rules"] = rules.clone();
            Writer::server(app).note(kind, None, current, &mut new);
            Ok(Modify::Write(new))
        })
        .await?;
    }
    Ok(())
}

/// In how many steps the history that is kept passes: it is never longer than the interval and one step more.
const COMPACTION_STEPS: u32 = 5;

/// Lets etcd forget what is older than the interval. All masters do it; the second one finds it done.
async fn compaction(app: Arc<App>, stop: CancellationToken) {
    let interval = Duration::from_secs(app.args.etcd_compaction_interval_seconds);
    if interval.is_zero() {
        return;
    }
    let mut history = History::default();
    loop {
        let old = history.pass(app.cache.progress());
        if let Some(revision) = old.filter(|revision| *revision > 0) {
            match app.etcd.compact(revision).await {
                Ok(()) | Err(crate::store::StoreError::Compacted) => tracing::debug!(revision, "history compacted"),
                Err(e) => tracing::warn!(error = %e, "etcd's history could not be compacted"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval / COMPACTION_STEPS) => {}
        }
    }
}

/// The revisions at the last steps, oldest first.
#[derive(Debug, Default)]
struct History(VecDeque<i64>);

impl History {
    /// Takes the revision of this step, and gives the one that is an interval old by now.
    fn pass(&mut self, revision: i64) -> Option<i64> {
        self.0.push_back(revision);
        if self.0.len() > COMPACTION_STEPS as usize {
            self.0.pop_front()
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_as_old_as_the_interval_when_it_goes() {
        let mut history = History::default();
        let gone: Vec<_> = (10..18).map(|revision| history.pass(revision)).collect();
        assert_eq!(gone, [None, None, None, None, None, Some(10), Some(11), Some(12)]);
    }
}
