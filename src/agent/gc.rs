//! Collection of what nobody needs: dead containers but the last of each name, dead sandboxes, images by the use of
//! their file system, logs and folders of pods that are gone.

use crate::actions;
use crate::ctx::Ctx;
use crate::error::Result;
use crate::manager::Pods;
use crate::observed::{Observed, SECOND, State, now};
use crate::qos::Qos;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How often.
const PERIOD: Duration = Duration::from_secs(60);

/// Ids of dead containers and sandboxes of one pod that are not needed: of each container name all but the newest two
/// (the newest, and the one before it that `lastState` and `logs --previous` show), and sandboxes but the newest.
pub fn superfluous(o: &Observed) -> (Vec<String>, Vec<String>) {
    let mut by_name: BTreeMap<&str, Vec<&crate::observed::Container>> = BTreeMap::new();
    for c in &o.containers {
        by_name.entry(&c.name).or_default().push(c);
    }
    let mut containers = vec![];
    for list in by_name.values_mut() {
        list.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.restarts)));
        containers.extend(
            list.iter()
                .skip(2)
                .filter(|c| matches!(c.state, State::Exited | State::Created))
                .map(|c| c.id.clone()),
        );
    }
    let newest = o.newest_sandbox().map(|s| s.id.as_str());
    let in_use: HashSet<&str> = o
        .containers
        .iter()
        .filter(|c| !containers.contains(&c.id))
        .map(|c| c.sandbox_id.as_str())
        .collect();
    let sandboxes = o
        .sandboxes
        .iter()
        .filter(|s| !s.ready && Some(s.id.as_str()) != newest && !in_use.contains(s.id.as_str()))
        .map(|s| s.id.clone())
        .collect();
    (containers, sandboxes)
}

/// Removes everything of a pod that is gone, whatever is left of it.
pub async fn remove_orphan(ctx: &Ctx, uid: &str) -> Result<()> {
    let pod = ctx.relist.snapshot().get(uid).cloned();
    if let Some(p) = &pod {
        tracing::info!(
            pod = format!("{}/{}", p.namespace, p.name),
            uid,
            "removing a pod that is wanted no more"
        );
        for c in p.observed.alive() {
            ctx.cri.stop_container(&c.id, 30).await?;
        }
        actions::remove_containers(ctx, uid).await?;
        let dir = ctx.paths.pod_log(&p.namespace, &p.name, uid);
        let _ = std::fs::remove_dir_all(dir);
    }
    ctx.volumes.teardown(uid).await?;
    for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
        if ctx.cgroups.pods().contains(&(qos, uid.to_owned())) {
            ctx.cgroups.remove_pod(qos, uid).await?;
        }
    }
    Ok(())
}

/// Runs for ever.
pub async fn run(ctx: Arc<Ctx>, pods: Pods) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        ctx.objects.sweep();
        containers(&ctx).await;
        logs(&ctx, &pods);
        if let Err(e) = images(&ctx, false).await {
            tracing::warn!("collecting images: {e}");
        }
    }
}

async fn containers(ctx: &Ctx) {
    for p in ctx.relist.snapshot().values() {
        let (containers, sandboxes) = superfluous(&p.observed);
        for id in containers {
            let name = p.observed.containers.iter().find(|c| c.id == id);
            match ctx.cri.remove_container(&id).await {
                Ok(()) => {
                    if let Some(c) = name {
                        actions::remove_log_link(ctx, &p.namespace, &p.name, &c.name, &id);
                        remove_log_files(&c.log_path);
                    }
                }
                Err(e) => tracing::warn!(container = id, "collecting: {e}"),
            }
        }
        for id in sandboxes {
            if let Err(e) = ctx.cri.remove_sandbox(&id).await {
                tracing::warn!(sandbox = id, "collecting: {e}");
            }
        }
    }
}

/// A container's log and its rotated parts.
fn remove_log_files(path: &str) {
    let path = std::path::Path::new(path);
    let (Some(dir), Some(name)) = (
        path.parent(),
        path.file_name().map(|n| n.to_string_lossy().into_owned()),
    ) else {
        return;
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&name) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Folders and links of logs whose pods are gone.
fn logs(ctx: &Ctx, pods: &Pods) {
    let known: HashSet<String> = pods
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .keys()
        .cloned()
        .collect();
    let snapshot = ctx.relist.snapshot();
    // Young folders may belong to a pod that is only just being made known.
    let old = |p: &std::path::Path| {
        std::fs::metadata(p)
            .and_then(|m| m.modified())
            .is_ok_and(|m| m.elapsed().is_ok_and(|e| e > PERIOD))
    };
    for entry in std::fs::read_dir(&ctx.paths.pod_logs).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(uid) = name.rsplit('_').next() else { continue };
        if !known.contains(uid) && !snapshot.contains_key(uid) && ctx.api.client().is_ok() && old(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    for entry in std::fs::read_dir(&ctx.paths.container_logs)
        .into_iter()
        .flatten()
        .flatten()
    {
        let is_link = entry.file_type().is_ok_and(|t| t.is_symlink());
        if is_link && !entry.path().exists() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Whether an image is the one that `name` means. The runtime knows it by its tag or by its digest, and may know it by a longer name.
fn is_called(image: &k8s_cri::v1::Image, name: &str) -> bool {
    let (names, name) = match name.split_once('@') {
        // What is pinned to a digest is that one, whatever its tag means by now.
        Some((tagged, digest)) => {
            let path = tagged.rfind('/').map_or(0, |at| at + 1);
            let end = tagged[path..].find(':').map_or(tagged.len(), |at| path + at);
            (&image.repo_digests, format!("{}@{digest}", &tagged[..end]))
        }
        None => (&image.repo_tags, name.to_owned()),
    };
    names
        .iter()
        .any(|known| *known == name || known.ends_with(&format!("/{name}")))
}

/// Removes unused images until the file system is used less than the low threshold, or all of them if `all`; bytes freed.
pub async fn images(ctx: &Ctx, all: bool) -> Result<u64> {
    let images = ctx.cri.list_images().await?;
    let snapshot = ctx.relist.snapshot();
    let in_use: HashSet<&str> = snapshot
        .values()
        .flat_map(|p| p.observed.containers.iter())
        .map(|c| c.image_ref.as_str())
        .collect();
    let sandbox_image = ctx
        .cri
        .sandbox_image()
        .await?
        .map(|i| crate::images::normalise(&i).unwrap_or(i));
    let used = |i: &k8s_cri::v1::Image| {
        sandbox_image.as_ref().is_some_and(|s| is_called(i, s))
            || in_use.contains(i.id.as_str())
            || i.repo_digests
                .iter()
                .chain(&i.repo_tags)
                .any(|d| in_use.contains(d.as_str()))
    };
    ctx.images
        .mark_used(images.iter().filter(|i| used(i)).map(|i| i.id.clone()));
    ctx.images.retain(|id| images.iter().any(|i| i.id == id));
    let Some(fs) = ctx.cri.image_fs().await?.into_iter().next().and_then(|f| f.fs_id) else {
        return Ok(0);
    };
    let Some(space) = crate::eviction::space(std::path::Path::new(&fs.mountpoint)) else {
        return Ok(0);
    };
    let percent = 100 - space.available * 100 / space.capacity.max(1);
    let high = u64::from(ctx.config.image_gc_high_threshold_percent);
    let low = u64::from(ctx.config.image_gc_low_threshold_percent);
    let target = match (all, percent >= high) {
        (true, _) => u64::MAX,
        (false, true) => (space.capacity / 100 * (100 - low)).saturating_sub(space.available),
        (false, false) => 0,
    };
    let max_age = i64::try_from(ctx.config.image_maximum_gc_age.as_nanos()).unwrap_or(0);
    let min_age = i64::try_from(ctx.config.image_minimum_gc_age.as_nanos()).unwrap_or(120 * SECOND);
    let mut candidates: Vec<_> = images
        .iter()
        .filter(|i| !i.pinned && !used(i))
        .map(|i| (ctx.images.last_used(&i.id), i))
        .collect();
    candidates.sort_by_key(|(at, _)| *at);
    let mut freed = 0u64;
    for (at, image) in candidates {
        let age = now() - at;
        let outdated = max_age > 0 && age > max_age;
        if !(outdated || freed < target && (all || age > min_age)) {
            continue;
        }
        tracing::info!(
            image = image.repo_tags.first().unwrap_or(&image.id),
            "removing an unused image"
        );
        ctx.cri.remove_image(&image.id).await?;
        freed += image.size;
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use crate::observed::{Container, Observed, Sandbox, State};

    #[test]
    fn the_sandbox_image_is_known_by_tag_and_by_digest() {
        let image = k8s_cri::v1::Image {
            repo_tags: vec!["docker.io/test/pause:1".into()],
            repo_digests: vec!["r.corp:5000/pause@sha256:aa".into()],
            ..Default::default()
        };
        for (name, expected) in [
            ("docker.io/test/pause:1", true),
            ("test/pause:1", true),
            ("test/pause:2", false),
            ("r.corp:5000/pause:1@sha256:aa", true),
            ("r.corp:5000/pause@sha256:aa", true),
            ("r.corp:5000/pause:1@sha256:bb", false),
            ("test/pause:1@sha256:aa", false),
        ] {
            assert_eq!(super::is_called(&image, name), expected, "{name}");
        }
    }

    #[test]
    fn the_newest_two_of_each_container_and_the_newest_sandbox_are_kept() {
        let c = |id: &str, name: &str, at: i64, state| Container {
            id: id.into(),
            name: name.into(),
            created_at: at,
            state,
            sandbox_id: "new".into(),
            ..Default::default()
        };
        let o = Observed {
            sandboxes: vec![
                Sandbox {
                    id: "old".into(),
                    attempt: 0,
                    ..Default::default()
                },
                Sandbox {
                    id: "new".into(),
                    attempt: 1,
                    ..Default::default()
                },
            ],
            containers: vec![
                c("a1", "a", 1, State::Exited),
                c("a2", "a", 2, State::Exited),
                c("a3", "a", 3, State::Running),
                c("b1", "b", 1, State::Exited),
            ],
        };
        assert_eq!(super::superfluous(&o), (vec!["a1".to_owned()], vec!["old".to_owned()]));
    }
}
