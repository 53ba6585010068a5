//! The stream of events is what its schema and its page say: every variant of [`Event`], with all fields and with as few as possible.

use super::stamped;
use bootstrap::{
    airgap::{Proof, Tried},
    event::Event,
    phases::PHASES,
    plan::{HostPlan, Leaving, Moved, ObjectChange, PhaseChange, Plan, Restart},
    preflight::{Finding, Severity},
    reset::{HostReset, Removed},
    rolling::PlannedTurn,
    verify::Check,
};
use host::proto::{Leftover, Origin};
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};

const SCHEMA: &str = include_str!("../../docs/events.schema.json");
const PAGE: &str = include_str!("../../docs/output.md");
const SOME: Duration = Duration::from_millis(1500);

/// The name of an event. A new variant does not compile here until somebody has thought of its sample, schema and page.
fn name(event: &Event) -> &'static str {
    match event {
        Event::Started { .. } => "started",
        Event::Finding { .. } => "finding",
        Event::Plan { .. } => "plan",
        Event::Program { .. } => "program",
        Event::PhaseStarted { .. } => "phaseStarted",
        Event::PhaseDone { .. } => "phaseDone",
        Event::PhaseFailed { .. } => "phaseFailed",
        Event::BytesExpected { .. } => "bytesExpected",
        Event::BytesSent { .. } => "bytesSent",
        Event::HostDone { .. } => "hostDone",
        Event::Output { .. } => "output",
        Event::Check(_) => "check",
        Event::Checked { .. } => "checked",
        Event::Timing { .. } => "timing",
        Event::Reset { .. } => "reset",
        Event::Removed { .. } => "removed",
        Event::Moved { .. } => "moved",
        Event::AirGap { .. } => "airGap",
        Event::Done { .. } => "done",
        Event::Note { .. } => "note",
        Event::Warning { .. } => "warning",
        Event::Error { .. } => "error",
        Event::Ended { .. } => "ended",
    }
}

fn tried() -> Tried {
    let one = |text: &str| vec![text.to_owned()];
    Tried {
        to: "203.0.113.1".into(),
        packets: 2,
        ports: one("tcp/443"),
        from: one("100.64.1.2"),
        users: one("0"),
        units: one("system.slice/x.service"),
    }
}

fn plan(full: bool) -> Plan {
    let text = |text: &str| text.to_owned();
    let change = |full: bool| PhaseChange {
        phase: "prepare",
        change: host::Change {
            what: text("/etc/x"),
            action: host::Action::Modify,
            detail: if full { text("mode") } else { String::new() },
            diff: full.then(|| text("-a\n+b\n")),
        },
    };
    Plan {
        cluster: text("demo"),
        image: text("local/native:dev"),
        digest: oci::Digest::of(b"x"),
        hosts: vec![HostPlan {
            host: text("10.0.0.1"),
            name: text("m1"),
            role: "master",
            joins: true,
            blobs: 1,
            bytes: 2,
            changes: vec![change(true), change(false)],
            restarts: vec![Restart {
                what: text("unit x.service"),
                how: "restart",
            }],
        }],
        turns: if full {
            vec![PlannedTurn {
                host: text("m1"),
                drain: true,
            }]
        } else {
            Vec::new()
        },
        objects: full.then(|| {
            vec![ObjectChange {
                object: text("node m1"),
                action: "create",
            }]
        }),
        images: if full { vec![text("a/b:1")] } else { Vec::new() },
        leaving: vec![Leaving {
            name: text("n9"),
            ip: full.then(|| "10.0.0.9".parse().unwrap()),
            now: full.then(|| text("n8")),
        }],
    }
}

/// Every variant; `full`: with all that may be absent.
fn samples(full: bool) -> Vec<Event> {
    let text = |text: &str| text.to_owned();
    let host = || full.then(|| "m1".to_owned());
    let finding = Finding {
        host: text("10.0.0.1"),
        name: text("m1"),
        check: "swap",
        severity: if full { Severity::Error } else { Severity::Warning },
        cause: text("on"),
        remedy: text("off"),
    };
    let left = Leftover {
        kind: text("file"),
        name: text("/x"),
        how: text("added"),
        origin: if full { Origin::Pods } else { Origin::Ours },
    };
    let result = HostReset {
        host: text("10.0.0.1"),
        undone: 3,
        failed: vec![text("busy")],
        left: vec![left],
        skipped: full.then(|| text("dead")),
    };
    let check = Check {
        check: "dns",
        host: host(),
        ok: full,
        detail: text("seen"),
    };
    let stream = if full {
        host::proto::Stream::Stdout
    } else {
        host::proto::Stream::Stderr
    };
    vec![
        Event::Started {
            command: text("apply"),
            cluster: text("demo"),
            image: text("a/b"),
            version: "1",
        },
        Event::Finding { finding },
        Event::Plan {
            plan: Box::new(plan(full)),
        },
        Event::Program {
            host: text("m1"),
            bytes: 2,
            from_peers: 2,
            took: SOME,
        },
        Event::PhaseStarted {
            phase: "blobs",
            title: "sending",
            host: host(),
        },
        Event::PhaseDone {
            phase: "blobs",
            host: host(),
            changes: 1,
            bytes: 2,
            from_peers: 1,
            took: SOME,
        },
        Event::PhaseFailed {
            phase: "blobs",
            host: host(),
            message: text("no"),
        },
        Event::BytesExpected {
            host: text("m1"),
            bytes: 1,
        },
        Event::BytesSent {
            host: text("m1"),
            bytes: 1,
        },
        Event::HostDone {
            host: text("m1"),
            message: text("done"),
        },
        Event::Output {
            host: host(),
            what: text("hook"),
            stream,
            line: text("x"),
        },
        Event::Check(check),
        Event::Checked {
            ok: full,
            passed: 1,
            failed: 0,
            took: SOME,
        },
        Event::Timing {
            phase: "blobs",
            host: host(),
            began: SOME,
            took: SOME,
            changes: 0,
            bytes: 0,
            from_peers: 0,
        },
        Event::Reset { result },
        Event::Removed {
            removed: Removed {
                node: text("n1"),
                pods: 3,
                failed: full.then(|| text("no")),
            },
        },
        Event::Moved {
            moved: Moved {
                host: host(),
                what: text("file /x"),
            },
        },
        Event::AirGap {
            proof: Proof {
                host: text("m1"),
                packets: full.then_some(2),
                tried: if full { vec![tried()] } else { Vec::new() },
                unknown: (!full).then(|| text("gone")),
            },
        },
        Event::Done { changes: 0, took: SOME },
        Event::Note {
            host: host(),
            message: text("x"),
        },
        Event::Warning {
            host: host(),
            message: text("x"),
        },
        Event::Error {
            message: text("x"),
            causes: if full { vec![text("y")] } else { Vec::new() },
        },
        Event::Ended { exit: 4, took: SOME },
    ]
}

/// Why a value is not what its schema says. Knows the words that our schema uses, and refuses others.
fn wrong(schema: &Value, root: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (word, says) in schema.as_object().unwrap() {
        match word.as_str() {
            "description" | "format" => {}
            "$ref" => {
                let name = says.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                found.extend(wrong(&root["$defs"][name], root, value, at));
            }
            "const" if value != says => found.push(format!("{at}: {value} is not {says}")),
            "enum" if !says.as_array().unwrap().contains(value) => {
                found.push(format!("{at}: {value} is none of {says}"))
            }
            "minimum" if value.as_i64().is_some_and(|value| Some(value) < says.as_i64()) => {
                found.push(format!("{at}: {value} is too small"))
            }
            "maximum" if value.as_i64().is_some_and(|value| Some(value) > says.as_i64()) => {
                found.push(format!("{at}: {value} is too large"))
            }
            "const" | "enum" | "minimum" | "maximum" => {}
            "type" => {
                let types: Vec<&str> = match says {
                    Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
                    one => one.as_str().into_iter().collect(),
                };
                let is = |name: &&str| match *name {
                    "string" => value.is_string(),
                    "integer" => value.is_u64() || value.is_i64(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    other => panic!("{at}: the schema has the type {other}"),
                };
                if !types.iter().any(is) {
                    found.push(format!("{at}: {value} is no {says}"));
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(wrong(says, root, item, &format!("{at}[{index}]")));
                }
            }
            "properties" => {
                for (name, field) in value.as_object().into_iter().flatten() {
                    match says.get(name) {
                        Some(schema) => found.extend(wrong(schema, root, field, &format!("{at}.{name}"))),
                        None => found.push(format!("{at}: the schema has no {name}")),
                    }
                }
            }
            "additionalProperties" => assert_eq!(says, &Value::Bool(false)),
            "required" => {
                for name in says.as_array().unwrap().iter().filter_map(Value::as_str) {
                    if value.get(name).is_none() {
                        found.push(format!("{at}: {name} is missing"));
                    }
                }
            }
            other => panic!("{at}: the schema says {other}"),
        }
    }
    found
}

fn told(event: &Event) -> Value {
    serde_json::to_value(stamped(event)).unwrap()
}

#[test]
fn every_event_is_as_its_schema_says() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for full in [true, false] {
        for event in samples(full) {
            let value = told(&event);
            let name = name(&event);
            assert_eq!(value["event"], name);
            let problems = wrong(&schema["$defs"][name], &schema, &value, name);
            assert!(problems.is_empty(), "{problems:#?}");
        }
    }
}

#[test]
fn every_event_has_a_sample_a_schema_and_its_fields_in_the_page() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let sampled: BTreeSet<&str> = samples(true).iter().map(name).collect();
    let one_of = schema["oneOf"].as_array().unwrap().iter();
    let listed: BTreeSet<&str> = one_of
        .map(|one| one["$ref"].as_str().unwrap().strip_prefix("#/$defs/").unwrap())
        .collect();
    assert_eq!(sampled, listed);
    for event in samples(true) {
        let name = name(&event);
        let row = PAGE.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/output.md has no row for {name}"));
        for (field, _) in told(&event).as_object().unwrap() {
            assert!(
                ["time", "event"].contains(&field.as_str()) || row.contains(&format!("`{field}`")),
                "{name}: {field}"
            );
        }
        let fields = schema["$defs"][name]["properties"].as_object().unwrap();
        for field in fields.keys() {
            assert!(
                told(&event).get(field).is_some(),
                "{name}: nothing ever has the field {field} of the schema"
            );
        }
    }
    for phase in PHASES {
        assert!(
            PAGE.contains(&format!("`{}`", phase.name)),
            "docs/output.md does not name the phase {}",
            phase.name
        );
    }
}

#[test]
fn the_validator_sees_what_is_wrong() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let good = told(&Event::Ended { exit: 0, took: SOME });
    let judge = |value: &Value| wrong(&schema["$defs"]["ended"], &schema, value, "").len();
    assert_eq!(judge(&good), 0);
    for (field, bad) in [
        ("exit", Value::from(256)),
        ("ms", Value::from("1")),
        ("event", Value::from("done")),
        ("new", Value::from(1)),
    ] {
        let mut value = good.clone();
        value[field] = bad;
        assert_eq!(judge(&value), 1, "{field}");
    }
    let mut value = good;
    value.as_object_mut().unwrap().remove("ms");
    assert_eq!(judge(&value), 1);
}
