//! `/stats/summary`, `/metrics`, `/metrics/resource`: what the runtime and the machine say they use.

use super::Shared;
use super::pods::json;
use crate::names;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use k8s_cri::v1::ContainerStats;
use serde_json::{Value, json as value};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

fn time(nanos: i64) -> String {
    k8s_openapi::jiff::Timestamp::from_nanosecond(nanos.into())
        .unwrap_or_default()
        .to_string()
}

fn cpu(s: &ContainerStats) -> Option<(i64, u64)> {
    let c = s.cpu.as_ref()?;
    Some((c.timestamp, c.usage_core_nano_seconds.as_ref()?.value))
}

fn memory(s: &ContainerStats) -> Option<u64> {
    Some(s.memory.as_ref()?.working_set_bytes.as_ref()?.value)
}

fn label<'a>(s: &'a ContainerStats, key: &str) -> &'a str {
    s.attributes
        .as_ref()
        .and_then(|a| a.labels.get(key))
        .map(String::as_str)
        .unwrap_or_default()
}

/// Milliseconds of CPU and bytes of memory of the whole machine.
fn node_usage() -> (u64, u64) {
    let cpu = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = cpu
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|f| f.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal, in hundredths of a second
    let busy: u64 = fields
        .iter()
        .take(8)
        .enumerate()
        .filter(|(i, _)| *i != 3 && *i != 4)
        .map(|(_, v)| v)
        .sum();
    let memory = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|t| crate::eviction::meminfo(&t));
    (
        busy * 10,
        memory.map_or(0, |(available, total)| total.saturating_sub(available)),
    )
}

fn fs(path: &std::path::Path) -> Value {
    let s = crate::eviction::space(path).unwrap_or_default();
    value!({"availableBytes": s.available, "capacityBytes": s.capacity, "usedBytes": s.capacity.saturating_sub(s.available),
        "inodes": s.inodes, "inodesFree": s.inodes_free, "inodesUsed": s.inodes.saturating_sub(s.inodes_free)})
}

/// `/stats/summary`.
pub(super) async fn summary(State(shared): State<Arc<Shared>>) -> Response {
    let stats = shared.ctx.cri.container_stats().await.unwrap_or_default();
    let now = time(crate::observed::now());
    let mut pods: BTreeMap<String, Value> = BTreeMap::new();
    for s in &stats {
        let container = value!({
            "name": label(s, names::CONTAINER_NAME),
            "cpu": cpu(s).map(|(t, v)| value!({"time": time(t), "usageCoreNanoSeconds": v, "usageNanoCores": s.cpu.as_ref().and_then(|c| c.usage_nano_cores.as_ref()).map_or(0, |v| v.value)})),
            "memory": memory(s).map(|v| value!({"time": now, "workingSetBytes": v, "usageBytes": s.memory.as_ref().and_then(|m| m.usage_bytes.as_ref()).map_or(v, |u| u.value)})),
            "rootfs": s.writable_layer.as_ref().map(|w| value!({"usedBytes": w.used_bytes.as_ref().map_or(0, |v| v.value)})),
        });
        let pod = pods.entry(label(s, names::POD_UID).to_owned()).or_insert_with(|| {
            value!({"podRef": {"name": label(s, names::POD_NAME), "namespace": label(s, names::POD_NAMESPACE), "uid": label(s, names::POD_UID)}, "containers": []})
        });
        if let Some(list) = pod["containers"].as_array_mut() {
            list.push(container);
        }
    }
    for pod in pods.values_mut() {
        let sum = |section: &str, field: &str| -> u64 {
            pod["containers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|c| c[section][field].as_u64())
                .sum()
        };
        let (c, n, m) = (
            sum("cpu", "usageCoreNanoSeconds"),
            sum("cpu", "usageNanoCores"),
            sum("memory", "workingSetBytes"),
        );
        pod["cpu"] = value!({"time": now, "usageCoreNanoSeconds": c, "usageNanoCores": n});
        pod["memory"] = value!({"time": now, "workingSetBytes": m});
    }
    let (busy, memory) = node_usage();
    json(&value!({
        "node": {"nodeName": shared.ctx.node_name, "cpu": {"time": now, "usageCoreNanoSeconds": busy * 1_000_000}, "memory": {"time": now, "workingSetBytes": memory}, "fs": fs(&shared.ctx.paths.root)},
        "pods": pods.into_values().collect::<Vec<_>>(),
    }))
}

fn text(body: String) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        body,
    )
        .into_response()
}

/// `/metrics/resource`.
pub(super) async fn resource(State(shared): State<Arc<Shared>>) -> Response {
    let stats = shared.ctx.cri.container_stats().await.unwrap_or_default();
    let (busy, memory_used) = node_usage();
    let mut cpus = String::new();
    let mut memories = String::new();
    for s in &stats {
        let labels = format!(
            "container={:?},namespace={:?},pod={:?}",
            label(s, names::CONTAINER_NAME),
            label(s, names::POD_NAMESPACE),
            label(s, names::POD_NAME)
        );
        if let Some((t, v)) = cpu(s) {
            let _ = writeln!(
                cpus,
                "container_cpu_usage_seconds_total{{{labels}}} {} {}",
                v as f64 / 1e9,
                t / 1_000_000
            );
        }
        if let Some(v) = memory(s) {
            let _ = writeln!(memories, "container_memory_working_set_bytes{{{labels}}} {v}");
        }
    }
    text(format!(
        "# TYPE container_cpu_usage_seconds_total counter\n{cpus}# TYPE container_memory_working_set_bytes gauge\n{memories}# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {}\n# TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {memory_used}\n",
        busy as f64 / 1e3
    ))
}

/// `/metrics`.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let snapshot = shared.ctx.relist.snapshot();
    let running =
        |f: fn(&crate::observed::Observed) -> usize| -> usize { snapshot.values().map(|p| f(&p.observed)).sum() };
    let pods = running(|o| usize::from(o.ready_sandbox().is_some()));
    let containers = running(|o| o.alive().count());
    let wanted = shared
        .pods
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .len();
    let ready = u8::from(shared.runtime.borrow().problem.is_empty());
    text(format!(
        "# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods {wanted}\n# TYPE kubelet_running_pods gauge\nkubelet_running_pods {pods}\n# TYPE kubelet_running_containers gauge\nkubelet_running_containers{{container_state=\"running\"}} {containers}\n# TYPE kubelet_runtime_ready gauge\nkubelet_runtime_ready {ready}\n# TYPE kubelet_relist_age_seconds gauge\nkubelet_relist_age_seconds {}\n# TYPE kubelet_node_name gauge\nkubelet_node_name{{node={:?}}} 1\n",
        shared.ctx.relist.age() as f64 / 1e9,
        shared.ctx.node_name
    ))
}

/// Endpoints that scrapers expect and that have nothing to tell here.
pub(super) async fn empty() -> Response {
    text(String::new())
}
