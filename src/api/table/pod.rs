//! The status column of a pod: one word that says what people need to know first.

use crate::time;
use jiff::Timestamp;
use serde_json::Value;

/// Cells of a pod.
pub(super) fn cells(pod: &Value, name: Value, age: Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let spec = &pod["spec"];
    let total =
        list(&spec["containers"]).len() + list(&spec["initContainers"]).iter().filter(|c| restartable(c)).count();
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, time::human(now.duration_since(at)))
        }
        _ => summary.restarts.to_string(),
    };
    vec![
        name,
        format!("{}/{total}", summary.ready).into(),
        summary.reason.into(),
        restarts.into(),
        age,
        or_none(&pod["status"]["podIP"]).into(),
        or_none(&spec["nodeName"]).into(),
        or_none(&pod["status"]["nominatedNodeName"]).into(),
        gates(pod).into(),
    ]
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn or_none(value: &Value) -> &str {
    value.as_str().filter(|s| !s.is_empty()).unwrap_or("<none>")
}

fn restartable(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    list(&pod["status"]["conditions"]).iter().find(|c| c["type"] == kind)
}

fn gates(pod: &Value) -> String {
    let gates = list(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let passed = |gate: &&Value| {
        gate["conditionType"]
            .as_str()
            .and_then(|t| condition(pod, t))
            .is_some_and(|c| c["status"] == "True")
    };
    format!("{}/{}", gates.iter().filter(passed).count(), gates.len())
}

#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let status = &pod["status"];
        let phase = status["phase"].as_str().unwrap_or("Unknown");
        let mut summary = Self {
            reason: status["reason"].as_str().unwrap_or(phase).to_owned(),
            ..Self::default()
        };
        if condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
            "SchedulingGated".clone_into(&mut summary.reason);
        }
        let initializing = summary.init_containers(pod);
        if !initializing || condition(pod, "Initialized").is_some_and(|c| c["status"] == "True") {
            summary.containers(pod);
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            let terminal = matches!(phase, "Succeeded" | "Failed");
            match status["reason"].as_str() {
                Some("NodeLost") => "Unknown".clone_into(&mut summary.reason),
                _ if !terminal => "Terminating".clone_into(&mut summary.reason),
                _ => {}
            }
        }
        summary
    }

    fn count(&mut self, container: &Value) {
        self.restarts += container["restartCount"].as_i64().unwrap_or(0);
        let ended = container["lastState"]["terminated"]["finishedAt"]
            .as_str()
            .and_then(time::parse);
        self.last_restart = self.last_restart.max(ended);
    }

    /// Whether an init container is still to finish; the reason then says which.
    fn init_containers(&mut self, pod: &Value) -> bool {
        let specs = list(&pod["spec"]["initContainers"]);
        let is_sidecar = |name: &Value| specs.iter().any(|c| c["name"] == *name && restartable(c));
        for (i, container) in list(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
            self.count(container);
            let (terminated, waiting) = (&container["state"]["terminated"], &container["state"]["waiting"]);
            if terminated["exitCode"] == 0 {
                continue;
            }
            if is_sidecar(&container["name"]) && container["started"] == true {
                self.ready += usize::from(container["ready"] == true);
                continue;
            }
            self.reason = if !terminated.is_null() {
                format!("Init:{}", ended(terminated))
            } else {
                match waiting["reason"].as_str() {
                    Some(reason) if !reason.is_empty() && reason != "PodInitializing" => format!("Init:{reason}"),
                    _ => format!("Init:{i}/{}", specs.len()),
                }
            };
            return true;
        }
        false
    }

    fn containers(&mut self, pod: &Value) {
        // What the init containers counted stays only as long as they are what people look at.
        self.restarts = 0;
        self.last_restart = None;
        for sidecar in list(&pod["status"]["initContainerStatuses"]) {
            if list(&pod["spec"]["initContainers"])
                .iter()
                .any(|c| c["name"] == sidecar["name"] && restartable(c))
            {
                self.count(sidecar);
            }
        }
        let mut running = false;
        for container in list(&pod["status"]["containerStatuses"]).iter().rev() {
            self.count(container);
            let state = &container["state"];
            if let Some(reason) = state["waiting"]["reason"].as_str().filter(|r| !r.is_empty()) {
                reason.clone_into(&mut self.reason);
            } else if !state["terminated"].is_null() {
                self.reason = ended(&state["terminated"]);
            } else if container["ready"] == true && !state["running"].is_null() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
            if ready { "Running" } else { "NotReady" }.clone_into(&mut self.reason);
        }
    }
}

fn ended(terminated: &Value) -> String {
    match terminated["reason"].as_str().filter(|r| !r.is_empty()) {
        Some(reason) => reason.to_owned(),
        None => match terminated["signal"].as_i64().filter(|s| *s != 0) {
            Some(signal) => format!("Signal:{signal}"),
            None => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(pod: &Value) -> String {
        let now = time::parse("2026-01-01T00:10:00Z").unwrap();
        let cells = cells(pod, "p".into(), "1m".into(), now);
        format!(
            "{} {} {}",
            cells[1].as_str().unwrap(),
            cells[2].as_str().unwrap(),
            cells[3].as_str().unwrap()
        )
    }

    fn pod(phase: &str, containers: Value) -> Value {
        let specs: Vec<Value> = list(&containers).iter().map(|c| json!({"name": c["name"]})).collect();
        json!({"metadata": {}, "spec": {"containers": specs}, "status": {"phase": phase, "containerStatuses": containers}})
    }

    #[test]
    fn the_status_says_what_matters_first() {
        let running = json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
        let crashed = json!({"name": "a", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:07:00Z"}}});
        let done = json!({"name": "b", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        for (pod, expected) in [
            (pod("Running", json!([running])), "1/1 Running 0"),
            (pod("Running", json!([crashed])), "0/1 CrashLoopBackOff 3 (3m ago)"),
            (pod("Succeeded", json!([done])), "0/1 Completed 0"),
            (
                pod(
                    "Failed",
                    json!([{"name": "a", "state": {"terminated": {"exitCode": 2}}}]),
                ),
                "0/1 ExitCode:2 0",
            ),
            (
                pod("Failed", json!([{"name": "a", "state": {"terminated": {"signal": 9}}}])),
                "0/1 Signal:9 0",
            ),
            (pod("Running", json!([running, done])), "1/2 NotReady 0"),
            (
                pod(
                    "Pending",
                    json!([{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]),
                ),
                "0/1 ContainerCreating 0",
            ),
            (
                json!({"spec": {"containers": [{}]}, "status": {"phase": "Failed", "reason": "Evicted"}}),
                "0/1 Evicted 0",
            ),
        ] {
            assert_eq!(shown(&pod), expected, "{pod}");
        }
    }

    #[test]
    fn unfinished_init_containers_come_first() {
        let pod = |state: Value| {
            json!({"spec": {"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]},
                "status": {"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "restartCount": 1, "state": state}],
                    "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}}]}})
        };
        assert_eq!(shown(&pod(json!({"running": {}}))), "0/1 Init:1/2 1");
        assert_eq!(
            shown(&pod(json!({"terminated": {"exitCode": 1, "reason": "Error"}}))),
            "0/1 Init:Error 1"
        );
        assert_eq!(
            shown(&pod(json!({"waiting": {"reason": "CrashLoopBackOff"}}))),
            "0/1 Init:CrashLoopBackOff 1"
        );
    }

    #[test]
    fn a_pod_on_its_way_out_is_terminating() {
        let mut pod = pod(
            "Running",
            json!([{"name": "a", "ready": true, "state": {"running": {}}}]),
        );
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(shown(&pod), "1/1 Terminating 0");
    }
}
