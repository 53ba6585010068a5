//! Tests of the pod's state machine: situations as data, and a simulated runtime driven to its end.

use crate::machine::{
    Action, Busy, Input, Memory, Outcome, Stage, Step, Stop, Verdict, Why, container_hash, outcome, step,
};
use crate::observed::{Container, Nanos, Observed, SECOND, Sandbox, State};
use crate::spec;
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
}

/// A pod with containers `a` and `b`, init container `i` and sidecar `s`.
fn full(policy: &str) -> Pod {
    pod(json!({"restartPolicy": policy, "terminationGracePeriodSeconds": 30,
        "initContainers": [{"name": "i", "image": "x:1"}, {"name": "s", "image": "x:1", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "x:1"}]}))
}

fn ready() -> Sandbox {
    Sandbox {
        id: "s0".into(),
        ready: true,
        ips: vec!["10.0.0.1".into()],
        created_at: 1,
        ..Default::default()
    }
}

fn seen(pod: &Pod, name: &str, state: State, code: i32, at: Nanos) -> Container {
    let (_, c) = spec::container(pod, name).unwrap();
    Container {
        id: format!("{name}-{at}"),
        sandbox_id: "s0".into(),
        name: name.into(),
        state,
        created_at: at,
        started_at: at,
        finished_at: if state == State::Exited { at } else { 0 },
        exit_code: code,
        hash: container_hash(c),
        ..Default::default()
    }
}

fn prepared() -> Memory {
    Memory {
        prepared: true,
        ..Default::default()
    }
}

fn decide(pod: &Pod, observed: &Observed, memory: &mut Memory, stop: Option<&Stop>, now: Nanos) -> Step {
    step(
        &Input {
            pod,
            observed,
            stop,
            network_ready: true,
            now,
        },
        memory,
    )
}

/// Actions in short: `+name` start, `-name` kill, `sandbox`, `!sandbox`, `prepare`.
fn short(step: &Step) -> String {
    let words: Vec<String> = step
        .actions
        .iter()
        .map(|a| match a {
            Action::Prepare => "prepare".into(),
            Action::CreateSandbox { attempt } => format!("sandbox{attempt}"),
            Action::StopSandbox { .. } => "!sandbox".into(),
            Action::Start { name, restarts, .. } => format!("+{name}{restarts}"),
            Action::Kill { name, .. } => format!("-{name}"),
        })
        .collect();
    words.join(" ")
}

#[test]
fn a_pod_comes_up_step_by_step() {
    use State::{Exited, Running};
    let p = full("Always");
    let (r, x) = (
        |n: &str| seen(&p, n, Running, 0, 10),
        |n: &str, code| seen(&p, n, Exited, code, 10),
    );
    for (sandbox, containers, memory, expected, stage) in [
        (false, vec![], Memory::default(), "prepare", Stage::Preparing),
        (false, vec![], prepared(), "sandbox0", Stage::Sandbox),
        (true, vec![], Memory::default(), "prepare", Stage::Initialising),
        (true, vec![], prepared(), "+i0", Stage::Initialising),
        (true, vec![r("i")], prepared(), "", Stage::Initialising),
        (true, vec![x("i", 0)], prepared(), "+s0", Stage::Initialising),
        (true, vec![x("i", 1)], prepared(), "+i1", Stage::Initialising),
        (true, vec![x("i", 0), r("s")], prepared(), "+a0", Stage::Running),
        (
            true,
            vec![x("i", 0), r("s"), seen(&p, "a", State::Created, 0, 10)],
            prepared(),
            "+a0",
            Stage::Running,
        ),
        (true, vec![x("i", 0), r("s"), r("a")], prepared(), "+b0", Stage::Running),
        (
            true,
            vec![x("i", 0), r("s"), r("a"), r("b")],
            prepared(),
            "",
            Stage::Running,
        ),
        // A removed init container is not run again, a dead sidecar and a dead main container are.
        (true, vec![r("s"), r("a"), r("b")], prepared(), "", Stage::Running),
        (true, vec![x("s", 0), r("a"), r("b")], prepared(), "+s1", Stage::Running),
        (true, vec![r("s"), r("a"), x("b", 0)], prepared(), "+b1", Stage::Running),
    ] {
        let observed = Observed {
            sandboxes: if sandbox { vec![ready()] } else { vec![] },
            containers,
        };
        let mut memory = memory;
        let got = decide(&p, &observed, &mut memory, None, 100 * SECOND);
        assert_eq!((short(&got).as_str(), got.stage), (expected, stage), "{observed:?}");
    }
}

#[test]
fn a_sidecar_with_a_startup_probe_holds_back_what_follows() {
    let mut p = full("Always");
    p.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[1].startup_probe = Some(Default::default());
    let observed = Observed {
        sandboxes: vec![ready()],
        containers: vec![seen(&p, "i", State::Exited, 0, 1), seen(&p, "s", State::Running, 0, 2)],
    };
    let mut memory = prepared();
    assert_eq!(short(&decide(&p, &observed, &mut memory, None, 9)), "");
    memory.verdicts.insert(
        "s-2".into(),
        Verdict {
            started: Some(true),
            ..Default::default()
        },
    );
    assert_eq!(short(&decide(&p, &observed, &mut memory, None, 9)), "+a0");
}

#[test]
fn a_dead_sandbox_is_stopped_and_replaced_and_everything_runs_again() {
    let p = full("Always");
    let dead = Sandbox {
        ready: false,
        ..ready()
    };
    let observed = Observed {
        sandboxes: vec![dead.clone()],
        containers: vec![seen(&p, "a", State::Running, 0, 5)],
    };
    let mut memory = prepared();
    assert_eq!(short(&decide(&p, &observed, &mut memory, None, 9)), "-a");
    let observed = Observed {
        sandboxes: vec![dead.clone()],
        containers: vec![seen(&p, "a", State::Exited, 137, 5), seen(&p, "i", State::Exited, 0, 1)],
    };
    assert_eq!(short(&decide(&p, &observed, &mut memory, None, 9)), "!sandbox");
    memory.stopped.insert("s0".into());
    assert_eq!(short(&decide(&p, &observed, &mut memory, None, 9)), "sandbox1");
    let new = Sandbox {
        id: "s1".into(),
        attempt: 1,
        created_at: 9,
        ..ready()
    };
    let observed = Observed {
        sandboxes: vec![dead, new],
        containers: observed.containers,
    };
    assert_eq!(
        short(&decide(&p, &observed, &mut memory, None, 9)),
        "+i1",
        "init containers run again in a new sandbox"
    );
}

#[test]
fn pods_without_the_hosts_network_wait_for_the_network() {
    let p = full("Always");
    let mut memory = prepared();
    let nothing = Observed::default();
    let input = |pod| Input {
        pod,
        observed: &nothing,
        stop: None,
        network_ready: false,
        now: 1,
    };
    assert_eq!(short(&step(&input(&p), &mut memory)), "");
    let host = pod(json!({"hostNetwork": true, "containers": [{"name": "a", "image": "x:1"}]}));
    assert_eq!(short(&step(&input(&host), &mut memory)), "sandbox0");
}

#[test]
fn a_failed_probe_or_a_new_image_kills_and_then_restarts() {
    let p = pod(
        json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "a", "image": "x:1", "livenessProbe": {"terminationGracePeriodSeconds": 5}}]}),
    );
    let observed = Observed {
        sandboxes: vec![ready()],
        containers: vec![seen(&p, "a", State::Running, 0, 5)],
    };
    let mut memory = prepared();
    memory.verdicts.insert(
        "a-5".into(),
        Verdict {
            failed: Some("liveness"),
            ..Default::default()
        },
    );
    let got = decide(&p, &observed, &mut memory, None, 9);
    assert_eq!(
        got.actions,
        [Action::Kill {
            id: "a-5".into(),
            name: "a".into(),
            grace: 5,
            why: Why::Probe("liveness")
        }]
    );
    memory.busy.insert(Busy::Kill("a-5".into()));
    assert_eq!(
        short(&decide(&p, &observed, &mut memory, None, 9)),
        "",
        "not killed twice"
    );
    let mut newer = p.clone();
    newer.spec.as_mut().unwrap().containers[0].image = Some("x:2".into());
    let got = decide(&newer, &observed, &mut prepared(), None, 9);
    assert!(matches!(&got.actions[..], [Action::Kill { why: Why::Changed, .. }]));
}

#[test]
fn crash_loops_wait_and_say_so() {
    let p = pod(json!({"containers": [{"name": "a", "image": "x:1"}]}));
    let mut memory = prepared();
    let died = |at: Nanos| Observed {
        sandboxes: vec![ready()],
        containers: vec![seen(&p, "a", State::Exited, 1, at * SECOND)],
    };
    assert_eq!(
        short(&decide(&p, &died(10), &mut memory, None, 11 * SECOND)),
        "+a1",
        "the first restart is immediate"
    );
    let got = decide(&p, &died(12), &mut memory, None, 13 * SECOND);
    assert_eq!((short(&got).as_str(), got.wake_at), ("", Some(22 * SECOND)));
    let waiting = &memory.waiting["a"];
    assert_eq!(waiting.reason, "CrashLoopBackOff");
    assert!(
        waiting.message.contains("back-off 10s") && waiting.message.contains("pod=p_n(u)"),
        "{}",
        waiting.message
    );
    assert_eq!(short(&decide(&p, &died(12), &mut memory, None, 22 * SECOND)), "+a1");
    assert_eq!(
        decide(&p, &died(23), &mut memory, None, 24 * SECOND).wake_at,
        Some(43 * SECOND)
    );
}

#[test]
fn outcomes_follow_the_restart_policy() {
    use State::{Exited, Running};
    for (policy, states, expected) in [
        ("Always", vec![("a", Exited, 0), ("b", Exited, 0)], None),
        (
            "OnFailure",
            vec![("a", Exited, 0), ("b", Exited, 0)],
            Some(Outcome::Succeeded),
        ),
        ("OnFailure", vec![("a", Exited, 0), ("b", Exited, 1)], None),
        ("Never", vec![("a", Exited, 0), ("b", Exited, 1)], Some(Outcome::Failed)),
        ("Never", vec![("a", Exited, 0), ("b", Running, 0)], None),
        ("Never", vec![("i", Exited, 1)], Some(Outcome::Failed)),
        ("Always", vec![("i", Exited, 1)], None),
    ] {
        let p = full(policy);
        let containers = states.iter().map(|(n, s, code)| seen(&p, n, *s, *code, 1)).collect();
        assert_eq!(
            outcome(
                &p,
                &Observed {
                    sandboxes: vec![],
                    containers
                }
            ),
            expected,
            "{policy} {states:?}"
        );
    }
}

#[test]
fn stopping_ends_main_containers_then_sidecars_then_the_sandbox() {
    let p = full("Always");
    let stop = Stop {
        grace: 30,
        since: 0,
        reason: None,
        message: String::new(),
    };
    let running = |names: &[&str]| Observed {
        sandboxes: vec![ready()],
        containers: names.iter().map(|n| seen(&p, n, State::Running, 0, 1)).collect(),
    };
    let mut memory = prepared();
    assert_eq!(
        short(&decide(
            &p,
            &running(&["s", "a", "b"]),
            &mut memory,
            Some(&stop),
            SECOND
        )),
        "-a -b"
    );
    let got = decide(&p, &running(&["s"]), &mut memory, Some(&stop), 20 * SECOND);
    assert!(matches!(&got.actions[..], [Action::Kill { name, grace: 10, .. }] if name == "s"));
    assert_eq!(
        short(&decide(&p, &running(&[]), &mut prepared(), Some(&stop), SECOND)),
        "!sandbox"
    );
    let dead = Observed {
        sandboxes: vec![Sandbox {
            ready: false,
            ..ready()
        }],
        containers: vec![],
    };
    assert_eq!(
        decide(&p, &dead, &mut prepared(), Some(&stop), SECOND).stage,
        Stage::Ended
    );
}

#[test]
fn a_shorter_grace_replaces_a_kill_under_way() {
    let p = full("Always");
    let observed = Observed {
        sandboxes: vec![ready()],
        containers: vec![seen(&p, "a", State::Running, 0, 1)],
    };
    let mut memory = prepared();
    let stop = |grace| Stop {
        grace,
        since: 0,
        reason: None,
        message: String::new(),
    };
    assert_eq!(short(&decide(&p, &observed, &mut memory, Some(&stop(30)), 0)), "-a");
    memory.busy.insert(Busy::Kill("a-1".into()));
    assert_eq!(short(&decide(&p, &observed, &mut memory, Some(&stop(30)), SECOND)), "");
    assert_eq!(
        short(&decide(&p, &observed, &mut memory, Some(&stop(0)), 2 * SECOND)),
        "-a"
    );
}

/// Applies actions to a simulated runtime; containers end with codes taken from `codes`.
fn simulate(p: &Pod, codes: &[i32], steps: usize) -> (Observed, Vec<Step>) {
    let (mut observed, mut memory, mut now, mut log) = (Observed::default(), Memory::default(), SECOND, vec![]);
    let mut codes = codes.iter().cycle();
    for _ in 0..steps {
        let got = decide(p, &observed, &mut memory, None, now);
        for action in &got.actions {
            match action {
                Action::Prepare => memory.prepared = true,
                Action::CreateSandbox { .. } => observed.sandboxes.push(ready()),
                Action::StopSandbox { .. } => observed.sandboxes.iter_mut().for_each(|s| s.ready = false),
                Action::Start { name, restarts, .. } => {
                    let mut c = seen(p, name, State::Running, 0, now);
                    c.restarts = *restarts;
                    observed.containers.push(c);
                }
                Action::Kill { id, .. } => {
                    for c in observed.containers.iter_mut().filter(|c| c.id == *id) {
                        (c.state, c.exit_code, c.finished_at) = (State::Exited, 137, now);
                    }
                }
            }
        }
        let idle = got.actions.is_empty();
        now = if idle {
            got.wake_at.unwrap_or(now + SECOND).max(now + 1)
        } else {
            now + SECOND
        };
        if idle && got.wake_at.is_none() {
            let running = observed
                .containers
                .iter_mut()
                .find(|c| c.state == State::Running && c.name != "s");
            if let (Some(c), Some(code)) = (running, codes.next()) {
                (c.state, c.exit_code, c.finished_at) = (State::Exited, *code, now);
            }
        }
        log.push(got);
    }
    (observed, log)
}

proptest! {
    #[test]
    fn whatever_exit_codes_come_order_and_counts_hold(codes in proptest::collection::vec(0i32..3, 1..6), policy in prop_oneof!["Always", "OnFailure", "Never"]) {
        let p = full(&policy);
        let (observed, log) = simulate(&p, &codes, 80);
        for name in ["i", "s", "a", "b"] {
            let counts: Vec<u32> = observed.containers.iter().filter(|c| c.name == name).map(|c| c.restarts).collect();
            let expected: Vec<u32> = (0..counts.len() as u32).collect();
            prop_assert_eq!(counts, expected, "{} restarts count up by one", name);
        }
        let first_main = observed.containers.iter().position(|c| c.name == "a" || c.name == "b");
        let last_init = observed.containers.iter().rposition(|c| c.name == "i");
        if let (Some(m), Some(i)) = (first_main, last_init) {
            prop_assert!(i < m, "no init container after a main one");
        }
        for s in &log {
            prop_assert!(s.actions.iter().filter(|a| matches!(a, Action::Start { .. })).count() <= 1, "one start at a time");
        }
        if policy == "Never" {
            prop_assert!(observed.containers.iter().filter(|c| c.name != "s").all(|c| c.restarts == 0));
        }
    }
}
