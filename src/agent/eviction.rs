//! Node pressure: thresholds, their observation, and which pod goes first. Thresholds and ranking are pure.

use crate::ctx::Ctx;
use crate::manager::{Pods, Request};
use crate::names;
use crate::qos::{self, Qos, pod_amount};
use crate::quantity;
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Signal {
    /// Memory that could be given out.
    Memory,
    /// Space of the file system of volumes and logs.
    NodeFs,
    /// Its inodes.
    NodeFsInodes,
    /// Space of the runtime's file system.
    ImageFs,
    /// Its inodes.
    ImageFsInodes,
    /// Process ids.
    Pids,
}

/// When a signal means pressure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// What.
    pub signal: Signal,
    /// Least amount.
    pub limit: Limit,
}

/// An amount.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// In units.
    Absolute(u64),
    /// Of the capacity, percent.
    Percent(f64),
}

/// Capacity and what is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// All.
    pub capacity: u64,
    /// Left.
    pub available: u64,
    /// All inodes.
    pub inodes: u64,
    /// Free ones.
    pub inodes_free: u64,
}

impl Threshold {
    /// From the configuration's notation.
    pub fn parse(signal: &str, value: &str) -> Result<Threshold, String> {
        let signal = match signal {
            "memory.available" => Signal::Memory,
            "nodefs.available" => Signal::NodeFs,
            "nodefs.inodesFree" => Signal::NodeFsInodes,
            "imagefs.available" => Signal::ImageFs,
            "imagefs.inodesFree" => Signal::ImageFsInodes,
            "pid.available" => Signal::Pids,
            _ => return Err("unknown signal (known: memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree, pid.available)".into()),
        };
        let limit = match value.strip_suffix('%') {
            Some(p) => Limit::Percent(
                p.parse::<f64>()
                    .ok()
                    .filter(|p| (0.0..=100.0).contains(p))
                    .ok_or_else(|| format!("{value:?} is no percentage"))?,
            ),
            None => Limit::Absolute(
                quantity::whole(value)
                    .and_then(|v| u64::try_from(v).ok())
                    .ok_or_else(|| format!("{value:?} is no quantity"))?,
            ),
        };
        Ok(Threshold { signal, limit })
    }

    /// Whether `available` of `capacity` is too little.
    pub fn crossed(&self, available: u64, capacity: u64) -> bool {
        available < self.amount(capacity)
    }

    fn amount(&self, capacity: u64) -> u64 {
        match self.limit {
            Limit::Absolute(n) => n,
            Limit::Percent(p) => (capacity as f64 * p / 100.0) as u64,
        }
    }
}

/// Space of the file system a path lies on.
pub fn space(path: &Path) -> Option<Space> {
    let s = rustix::fs::statvfs(path).ok()?;
    Some(Space {
        capacity: s.f_blocks * s.f_frsize,
        available: s.f_bavail * s.f_frsize,
        inodes: s.f_files,
        inodes_free: s.f_favail,
    })
}

/// Pressures as the Node's conditions say them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Too little memory.
    pub memory: bool,
    /// Too little disk.
    pub disk: bool,
    /// Too few process ids.
    pub pids: bool,
}

/// A candidate for eviction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub uid: String,
    /// Bytes in use of what is short.
    pub usage: u64,
    /// Bytes requested.
    pub request: u64,
    /// Priority.
    pub priority: i32,
    /// Whether it must never be evicted.
    pub protected: bool,
}

/// The pod to evict: first those above their request, then by lower priority, then by how far above.
pub fn choose(mut candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.retain(|c| !c.protected);
    candidates.sort_by(|a, b| {
        let over = |c: &Candidate| c.usage > c.request;
        let by = |c: &Candidate| i128::from(c.usage) - i128::from(c.request);
        over(b)
            .cmp(&over(a))
            .then(a.priority.cmp(&b.priority))
            .then(by(b).cmp(&by(a)))
    });
    candidates.into_iter().next()
}

/// Memory that could be given out, and all of it, from the text of /proc/meminfo.
pub fn meminfo(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb * 1024)
    };
    Some((field("MemAvailable:")?, field("MemTotal:")?))
}

fn pids() -> Option<(u64, u64)> {
    let max: u64 = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let used: u64 = load.split(' ').nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some((max.saturating_sub(used), max))
}

/// Thresholds that are crossed now, with what is left and what there should be.
fn crossed(ctx: &Ctx, thresholds: &[Threshold], image_fs: Option<&Path>) -> Vec<(Threshold, u64, u64)> {
    let node_fs = space(&ctx.paths.root).unwrap_or_default();
    let image_fs = image_fs.and_then(space).unwrap_or(node_fs);
    thresholds
        .iter()
        .filter_map(|t| {
            let (available, capacity) = match t.signal {
                Signal::Memory => meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?,
                Signal::NodeFs => (node_fs.available, node_fs.capacity),
                Signal::NodeFsInodes => (node_fs.inodes_free, node_fs.inodes),
                Signal::ImageFs => (image_fs.available, image_fs.capacity),
                Signal::ImageFsInodes => (image_fs.inodes_free, image_fs.inodes),
                Signal::Pids => pids()?,
            };
            // A file system that counts nothing (capacity 0) is never short.
            (capacity > 0 && t.crossed(available, capacity)).then(|| (*t, available, t.amount(capacity)))
        })
        .collect()
}

/// Watches for ever; tells pressures and asks for evictions one at a time.
pub async fn run(ctx: Arc<Ctx>, pods: Pods, pressure: watch::Sender<Pressure>, requests: mpsc::Sender<Request>) {
    let thresholds: Vec<Threshold> = ctx
        .config
        .eviction_hard
        .iter()
        .filter_map(|(s, v)| Threshold::parse(s, v).ok())
        .collect();
    let mut since: HashMap<Signal, Instant> = HashMap::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut image_fs = None;
    loop {
        ticks.tick().await;
        if image_fs.is_none() {
            image_fs = ctx
                .cri
                .image_fs()
                .await
                .ok()
                .and_then(|l| l.into_iter().next())
                .and_then(|f| f.fs_id)
                .map(|f| std::path::PathBuf::from(f.mountpoint));
        }
        let now = crossed(&ctx, &thresholds, image_fs.as_deref());
        since.extend(now.iter().map(|(t, ..)| (t.signal, Instant::now())));
        since.retain(|_, at| at.elapsed() < ctx.config.eviction_pressure_transition_period);
        let has = |s: &[Signal]| since.keys().any(|k| s.contains(k));
        let new = Pressure {
            memory: has(&[Signal::Memory]),
            disk: has(&[
                Signal::NodeFs,
                Signal::NodeFsInodes,
                Signal::ImageFs,
                Signal::ImageFsInodes,
            ]),
            pids: has(&[Signal::Pids]),
        };
        pressure.send_if_modified(|p| std::mem::replace(p, new) != new);
        let Some((threshold, available, wanted)) = now.into_iter().next() else {
            continue;
        };
        relieve(&ctx, &pods, threshold, available, wanted, &requests).await;
    }
}

async fn relieve(ctx: &Ctx, pods: &Pods, t: Threshold, available: u64, wanted: u64, requests: &mpsc::Sender<Request>) {
    if matches!(
        t.signal,
        Signal::NodeFs | Signal::ImageFs | Signal::ImageFsInodes | Signal::NodeFsInodes
    ) {
        // Unused images go before any pod.
        match crate::gc::images(ctx, true).await {
            Ok(freed) if freed > 0 => return,
            Ok(_) => {}
            Err(e) => tracing::warn!("freeing images: {e}"),
        }
    }
    let usage = usage(ctx, t.signal).await;
    let list: Vec<Arc<Pod>> = pods
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .values()
        .cloned()
        .collect();
    let running = ctx.relist.snapshot();
    let candidates = list
        .iter()
        .filter(|p| {
            running
                .get(names::uid(p))
                .is_some_and(|r| r.observed.alive().next().is_some())
        })
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .map(|p| candidate(p, t.signal, &usage))
        .collect();
    let Some(victim) = choose(candidates) else {
        tracing::warn!(signal = ?t.signal, available, wanted, "the node is short of resources and no pod may be evicted");
        return;
    };
    let resource = match t.signal {
        Signal::Memory => "memory",
        Signal::Pids => "pids",
        Signal::NodeFsInodes | Signal::ImageFsInodes => "inodes",
        _ => "ephemeral-storage",
    };
    let message =
        format!("The node was low on resource: {resource}. Threshold quantity: {wanted}, available: {available}.");
    let _ = requests
        .send(Request::Evict {
            uid: victim.uid,
            message,
            grace: 0,
        })
        .await;
    // The next look comes when this one's memory or files have gone.
    tokio::time::sleep(Duration::from_secs(10)).await;
}

fn candidate(p: &Pod, signal: Signal, usage: &BTreeMap<String, u64>) -> Candidate {
    let resource = if signal == Signal::Memory {
        "memory"
    } else {
        "ephemeral-storage"
    };
    let priority = p.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
    let critical = priority >= 2_000_000_000 || names::is_static(p);
    Candidate {
        uid: names::uid(p).to_owned(),
        usage: usage.get(names::uid(p)).copied().unwrap_or(0),
        request: if Qos::of(p) == Qos::BestEffort {
            0
        } else {
            pod_amount(p, resource, qos::request).max(0).unsigned_abs()
        },
        priority,
        protected: critical,
    }
}

/// Use by pod UID, bytes.
async fn usage(ctx: &Ctx, signal: Signal) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for s in ctx.cri.container_stats().await.unwrap_or_default() {
        let Some(uid) = s
            .attributes
            .as_ref()
            .and_then(|a| a.labels.get(names::POD_UID))
            .cloned()
        else {
            continue;
        };
        let bytes = match signal {
            Signal::Memory => s
                .memory
                .as_ref()
                .and_then(|m| m.working_set_bytes.as_ref())
                .map_or(0, |v| v.value),
            _ => s
                .writable_layer
                .as_ref()
                .and_then(|w| w.used_bytes.as_ref())
                .map_or(0, |v| v.value),
        };
        *out.entry(uid).or_insert(0) += bytes;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_amounts_or_percentages() {
        let t = Threshold::parse("memory.available", "100Mi").unwrap();
        assert!(t.crossed(99 << 20, 1 << 30) && !t.crossed(100 << 20, 1 << 30));
        let t = Threshold::parse("nodefs.available", "10%").unwrap();
        assert!(t.crossed(9, 100) && !t.crossed(10, 100));
        assert!(Threshold::parse("nodefs.available", "101%").is_err());
        assert!(Threshold::parse("x", "1").is_err());
    }

    #[test]
    fn the_greediest_of_least_priority_goes_first_and_critical_ones_never() {
        let c = |uid: &str, usage, request, priority, protected| Candidate {
            uid: uid.into(),
            usage,
            request,
            priority,
            protected,
        };
        let all = vec![
            c("within", 10, 20, -5, false),
            c("small", 30, 20, 0, false),
            c("big", 90, 20, 0, false),
            c("important", 900, 0, 9, false),
            c("static", 999, 0, 0, true),
        ];
        assert_eq!(choose(all).unwrap().uid, "big");
        assert_eq!(choose(vec![c("static", 999, 0, 0, true)]), None);
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(
            meminfo("MemTotal:       2048 kB\nMemAvailable:   1024 kB\n"),
            Some((1 << 20, 2 << 20))
        );
    }
}
