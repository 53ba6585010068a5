//! Tests of the status computation.

use crate::machine::{Busy, Memory, Stage, Stop, Verdict, Waiting};
use crate::observed::{Container, Observed, SECOND, Sandbox, State};
use crate::status::{Input, compute, patch};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3}, "spec": spec}),
    )
    .unwrap()
}

fn seen(name: &str, state: State, code: i32, at: i64) -> Container {
    Container {
        id: format!("{name}{at}"),
        name: name.into(),
        state,
        exit_code: code,
        created_at: at * SECOND,
        started_at: at * SECOND,
        finished_at: if state == State::Exited { (at + 1) * SECOND } else { 0 },
        ..Default::default()
    }
}

fn status(
    pod: &Pod,
    containers: Vec<Container>,
    memory: &Memory,
    stage: Stage,
    stop: Option<&Stop>,
    before: Option<&PodStatus>,
) -> PodStatus {
    let sandbox = Sandbox {
        id: "s".into(),
        ready: stage != Stage::Ended,
        ips: vec!["10.0.0.1".into()],
        ..Default::default()
    };
    let observed = Observed {
        sandboxes: vec![sandbox],
        containers,
    };
    compute(&Input {
        pod,
        observed: &observed,
        memory,
        stage,
        stop,
        before,
        host_ips: &["1.1.1.1".to_owned()],
        now: 1000 * SECOND,
    })
}

fn condition(s: &PodStatus, kind: &str) -> String {
    let c = s.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
    format!("{} {}", c.status, c.reason.as_deref().unwrap_or_default())
        .trim()
        .to_owned()
}

fn state(s: &PodStatus, index: usize) -> String {
    let c = &s.container_statuses.as_ref().unwrap()[index];
    let st = c.state.as_ref().unwrap();
    match (&st.running, &st.waiting, &st.terminated) {
        (Some(_), ..) => "running".into(),
        (_, Some(w), _) => format!("waiting {}", w.reason.clone().unwrap_or_default()),
        (_, _, Some(t)) => format!("terminated {} {}", t.exit_code, t.reason.clone().unwrap_or_default()),
        _ => "none".into(),
    }
}

#[test]
fn phases_are_kubernetes() {
    use State::{Exited, Running};
    for (policy, containers, stage, phase) in [
        ("Always", vec![], Stage::Sandbox, "Pending"),
        ("Always", vec![seen("a", Running, 0, 1)], Stage::Running, "Pending"),
        (
            "Always",
            vec![seen("a", Running, 0, 1), seen("b", Running, 0, 1)],
            Stage::Running,
            "Running",
        ),
        (
            "Always",
            vec![seen("a", Exited, 1, 1), seen("b", Exited, 0, 1)],
            Stage::Running,
            "Running",
        ),
        (
            "OnFailure",
            vec![seen("a", Exited, 1, 1), seen("b", Exited, 0, 1)],
            Stage::Running,
            "Running",
        ),
        (
            "OnFailure",
            vec![seen("a", Exited, 0, 1), seen("b", Exited, 0, 1)],
            Stage::Ended,
            "Succeeded",
        ),
        // What has ended is not over while its sandbox, or a sidecar, still ends.
        (
            "OnFailure",
            vec![seen("a", Exited, 0, 1), seen("b", Exited, 0, 1)],
            Stage::Stopping,
            "Running",
        ),
        (
            "Never",
            vec![seen("a", Exited, 1, 1), seen("b", Exited, 0, 1)],
            Stage::Stopping,
            "Running",
        ),
        (
            "Never",
            vec![seen("a", Exited, 1, 1), seen("b", Exited, 0, 1)],
            Stage::Ended,
            "Failed",
        ),
        (
            "Never",
            vec![seen("a", Exited, 1, 1), seen("b", Running, 0, 1)],
            Stage::Running,
            "Running",
        ),
    ] {
        let p = pod(
            json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]}),
        );
        let got = status(&p, containers.clone(), &Memory::default(), stage, None, None);
        assert_eq!(got.phase.as_deref(), Some(phase), "{policy} {containers:?}");
    }
}

#[test]
fn readiness_depends_on_probe_startup_and_gates() {
    let p = |probe: Value, gates: Value, conditions: Value| -> Pod {
        let mut c = json!({"name": "a", "image": "x"});
        c.as_object_mut().unwrap().extend(probe.as_object().unwrap().clone());
        let mut p = pod(json!({"containers": [c], "readinessGates": gates}));
        p.status = serde_json::from_value(json!({"conditions": conditions})).unwrap();
        p
    };
    let none = Verdict::default();
    let ready = Verdict {
        ready: Some(true),
        ..Default::default()
    };
    let open = json!([{"type": "g", "status": "True"}]);
    for (probe, gates, conditions, verdict, expected) in [
        (json!({}), json!([]), json!([]), &none, "True"),
        (
            json!({"readinessProbe": {}}),
            json!([]),
            json!([]),
            &none,
            "False ContainersNotReady",
        ),
        (json!({"readinessProbe": {}}), json!([]), json!([]), &ready, "True"),
        (
            json!({"startupProbe": {}}),
            json!([]),
            json!([]),
            &none,
            "False ContainersNotReady",
        ),
        (
            json!({}),
            json!([{"conditionType": "g"}]),
            json!([]),
            &none,
            "False ReadinessGatesNotReady",
        ),
        (json!({}), json!([{"conditionType": "g"}]), open, &none, "True"),
    ] {
        let mut memory = Memory::default();
        memory.verdicts.insert("a1".into(), verdict.clone());
        let got = status(
            &p(probe.clone(), gates.clone(), conditions),
            vec![seen("a", State::Running, 0, 1)],
            &memory,
            Stage::Running,
            None,
            None,
        );
        assert_eq!(condition(&got, "Ready"), expected, "{probe} {gates}");
    }
}

#[test]
fn states_show_the_reasons_users_know() {
    let p = pod(json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "x"}]}));
    let waiting = |reason: &str| Memory {
        waiting: [(
            "a".to_owned(),
            Waiting {
                reason: reason.into(),
                message: "m".into(),
            },
        )]
        .into(),
        ..Default::default()
    };
    for (containers, memory, expected) in [
        (vec![], Memory::default(), "waiting ContainerCreating"),
        (vec![], waiting("ErrImagePull"), "waiting ErrImagePull"),
        (
            vec![seen("a", State::Exited, 0, 1)],
            Memory::default(),
            "terminated 0 Completed",
        ),
        (
            vec![seen("a", State::Exited, 2, 1)],
            Memory::default(),
            "terminated 2 Error",
        ),
        (
            vec![seen("a", State::Exited, 2, 1)],
            waiting("CrashLoopBackOff"),
            "waiting CrashLoopBackOff",
        ),
        (
            vec![seen("a", State::Exited, 2, 1), seen("a", State::Running, 0, 5)],
            Memory::default(),
            "running",
        ),
    ] {
        let got = status(&p, containers, &memory, Stage::Running, None, None);
        assert_eq!(state(&got, 0), expected);
    }
    let got = status(
        &p,
        vec![seen("a", State::Exited, 2, 1), seen("a", State::Running, 0, 5)],
        &Memory::default(),
        Stage::Running,
        None,
        None,
    );
    let last = got.container_statuses.unwrap()[0]
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(last.exit_code, 2);
}

#[test]
fn initialisation_is_told_apart() {
    let p = pod(json!({"initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "a", "image": "x"}]}));
    let got = status(
        &p,
        vec![seen("i", State::Running, 0, 1)],
        &Memory::default(),
        Stage::Initialising,
        None,
        None,
    );
    assert_eq!(
        (got.phase.as_deref(), condition(&got, "Initialized").as_str()),
        (Some("Pending"), "False ContainersNotInitialized")
    );
    assert_eq!(state(&got, 0), "waiting PodInitializing");
    let got = status(
        &p,
        vec![seen("i", State::Exited, 0, 1), seen("a", State::Running, 0, 2)],
        &Memory::default(),
        Stage::Running,
        None,
        None,
    );
    assert_eq!(
        (got.phase.as_deref(), condition(&got, "Initialized").as_str()),
        (Some("Running"), "True")
    );
    assert!(got.init_container_statuses.unwrap()[0].ready);
}

#[test]
fn a_stop_with_a_reason_is_a_failure_with_that_reason_and_stays_one() {
    let p = pod(json!({"containers": [{"name": "a", "image": "x"}]}));
    let stop = Stop {
        grace: 0,
        since: 0,
        reason: Some("Evicted".into()),
        message: "low".into(),
    };
    let got = status(
        &p,
        vec![seen("a", State::Exited, 137, 1)],
        &Memory::default(),
        Stage::Ended,
        Some(&stop),
        None,
    );
    assert_eq!(
        (got.phase.as_deref(), got.reason.as_deref()),
        (Some("Failed"), Some("Evicted"))
    );
    let again = status(&p, vec![], &Memory::default(), Stage::Ended, None, Some(&got));
    assert_eq!(
        (
            again.phase.as_deref(),
            again.reason.as_deref(),
            state(&again, 0).as_str()
        ),
        (Some("Failed"), Some("Evicted"), "terminated 137 Error")
    );
}

#[test]
fn a_pod_past_its_deadline_fails_when_its_containers_have_ended_and_says_how_they_did() {
    let p = pod(json!({"activeDeadlineSeconds": 1, "containers": [{"name": "a", "image": "x"}]}));
    let stop = Stop {
        grace: 30,
        since: 0,
        reason: Some("DeadlineExceeded".into()),
        message: "late".into(),
    };
    let memory = Memory::default();
    let running = vec![seen("a", State::Running, 0, 1)];
    let mut before = status(&p, running.clone(), &memory, Stage::Running, None, None);
    let ended = vec![seen("a", State::Exited, 143, 1)];
    for (containers, stage, phase, reason, container) in [
        (running, Stage::Stopping, "Running", None, "running"),
        (ended.clone(), Stage::Stopping, "Running", None, "terminated 143 Error"),
        (
            ended,
            Stage::Ended,
            "Failed",
            Some("DeadlineExceeded"),
            "terminated 143 Error",
        ),
    ] {
        let got = status(&p, containers, &memory, stage, Some(&stop), Some(&before));
        assert_eq!(
            (got.phase.as_deref(), got.reason.as_deref(), state(&got, 0).as_str()),
            (Some(phase), reason, container),
            "{stage:?}"
        );
        before = got;
    }
    assert_eq!(condition(&before, "Ready"), "False PodFailed");
}

#[test]
fn a_pod_that_has_ended_keeps_its_addresses() {
    let p = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "x"}]}));
    let memory = Memory::default();
    let running = status(
        &p,
        vec![seen("a", State::Running, 0, 1)],
        &memory,
        Stage::Running,
        None,
        None,
    );
    let stopped = Sandbox {
        id: "s".into(),
        ..Default::default()
    };
    for sandboxes in [vec![stopped], vec![]] {
        let observed = Observed {
            sandboxes,
            containers: vec![seen("a", State::Exited, 0, 1)],
        };
        let got = compute(&Input {
            pod: &p,
            observed: &observed,
            memory: &memory,
            stage: Stage::Ended,
            stop: None,
            before: Some(&running),
            host_ips: &["1.1.1.1".to_owned()],
            now: 1000 * SECOND,
        });
        assert_eq!(got.phase.as_deref(), Some("Succeeded"));
        assert_eq!(
            (got.pod_ip, got.pod_ips),
            (running.pod_ip.clone(), running.pod_ips.clone())
        );
    }
}

#[test]
fn a_failed_initialisation_is_final_only_after_the_sidecars() {
    let p = pod(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "s", "image": "x", "restartPolicy": "Always"}, {"name": "i", "image": "x"}],
        "containers": [{"name": "a", "image": "x"}]}));
    let containers = |sidecar| vec![seen("s", sidecar, 0, 1), seen("i", State::Exited, 1, 2)];
    for (sidecar, stage, phase) in [
        (State::Running, Stage::Stopping, "Pending"),
        (State::Exited, Stage::Stopping, "Pending"),
        (State::Exited, Stage::Ended, "Failed"),
    ] {
        let got = status(&p, containers(sidecar), &Memory::default(), stage, None, None);
        assert_eq!(got.phase.as_deref(), Some(phase), "{sidecar:?} {stage:?}");
    }
}

#[test]
fn a_container_whose_start_is_under_way_is_not_shown_as_running() {
    let p = pod(json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]}));
    let both = vec![seen("a", State::Running, 0, 1), seen("b", State::Running, 0, 2)];
    let starting = Memory {
        busy: [Busy::Start("b".into())].into(),
        ..Default::default()
    };
    let got = status(&p, both.clone(), &starting, Stage::Running, None, None);
    assert_eq!(
        (got.phase.as_deref(), state(&got, 1).as_str()),
        (Some("Pending"), "waiting ContainerCreating")
    );
    let got = status(&p, both, &Memory::default(), Stage::Running, None, Some(&got));
    assert_eq!(
        (got.phase.as_deref(), condition(&got, "Ready").as_str()),
        (Some("Running"), "True")
    );
    // A restart under way shows the end it comes from.
    let again = vec![
        seen("a", State::Running, 0, 1),
        seen("b", State::Exited, 3, 2),
        seen("b", State::Running, 0, 9),
    ];
    let got = status(&p, again, &starting, Stage::Running, None, Some(&got));
    assert_eq!(state(&got, 1), "terminated 3 Error");
    assert_eq!(got.phase.as_deref(), Some("Running"));
}

#[test]
fn containers_behind_an_init_container_wait_for_the_pod_to_initialise() {
    let with_init = json!({"initContainers": [{"name": "i", "image": "x"}, {"name": "j", "image": "x"}], "containers": [{"name": "a", "image": "x"}]});
    let ended = |name: &str| seen(name, State::Exited, 0, 1);
    let waiting = "waiting PodInitializing";
    for (spec, containers, init, main) in [
        (with_init.clone(), vec![], vec![waiting, waiting], waiting),
        (
            with_init.clone(),
            vec![seen("i", State::Running, 0, 1)],
            vec!["running", waiting],
            waiting,
        ),
        (
            with_init,
            vec![ended("i"), ended("j")],
            vec!["terminated 0 Completed"; 2],
            waiting,
        ),
        (
            json!({"containers": [{"name": "a", "image": "x"}]}),
            vec![],
            vec![],
            "waiting ContainerCreating",
        ),
    ] {
        let mut got = status(&pod(spec), containers, &Memory::default(), Stage::Running, None, None);
        assert_eq!(state(&got, 0), main);
        got.container_statuses = got.init_container_statuses.clone();
        let shown: Vec<String> = (0..init.len()).map(|i| state(&got, i)).collect();
        assert_eq!(shown, init);
    }
}

#[test]
fn times_of_conditions_move_only_with_their_status() {
    let p = pod(json!({"containers": [{"name": "a", "image": "x"}]}));
    let first = status(
        &p,
        vec![seen("a", State::Running, 0, 1)],
        &Memory::default(),
        Stage::Running,
        None,
        None,
    );
    let mut before = first.clone();
    let old = crate::status::time(SECOND);
    before
        .conditions
        .iter_mut()
        .flatten()
        .for_each(|c| c.last_transition_time = old.clone());
    before.start_time = old.clone();
    let second = status(
        &p,
        vec![seen("a", State::Running, 0, 1)],
        &Memory::default(),
        Stage::Running,
        None,
        Some(&before),
    );
    assert_eq!(second, before);
    assert!(
        second
            .conditions
            .iter()
            .flatten()
            .all(|c| c.observed_generation == Some(3))
    );
}

#[test]
fn a_patch_replaces_addresses_that_are_gone_and_clears_texts() {
    let with = |ip: &str| PodStatus {
        pod_ip: Some(ip.into()),
        pod_ips: serde_json::from_value(json!([{"ip": ip}])).unwrap(),
        ..Default::default()
    };
    let body = patch("u", Some(&with("1.1.1.1")), &with("2.2.2.2"));
    assert_eq!(
        body["status"]["podIPs"],
        json!([{"$patch": "replace"}, {"ip": "2.2.2.2"}])
    );
    assert_eq!(
        (&body["metadata"]["uid"], &body["status"]["reason"]),
        (&json!("u"), &Value::Null)
    );
    let body = patch("u", Some(&with("2.2.2.2")), &with("2.2.2.2"));
    assert_eq!(body["status"]["podIPs"], json!([{"ip": "2.2.2.2"}]));
}
