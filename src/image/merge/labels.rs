//! Environment and labels of several configurations.
//!
//! What a cluster image says about itself is in labels whose values are JSON (`config.rs`): lists are joined, objects
//! merged by name, anything else must be the same.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::decide::Decider;
use crate::config::{ImageConfig, PREFIX};

type Texts = BTreeMap<String, String>;

/// The label that says what every image name in the files means.
const LOCK: &str = "lock";

/// Merges the environments and labels of `sides` into `config`.
pub(super) fn merge(config: &mut ImageConfig, sides: &[&ImageConfig], decider: &mut Decider<'_>) {
    let none = BTreeMap::new();
    let env: Vec<BTreeMap<String, String>> = sides.iter().map(|side| side.env().into_iter().collect()).collect();
    let merged = decider.merge("env", &none, &env.iter().collect::<Vec<_>>(), String::eq, quoted);
    config.set_env(&merged.into_iter().collect());
    let (mut free, mut own): (Vec<Texts>, Vec<Texts>) = Default::default();
    for side in sides {
        let labels = side.config.labels.clone().unwrap_or_default();
        let (ours, theirs) = labels.into_iter().partition(|(name, _)| name.starts_with(PREFIX));
        own.push(ours);
        free.push(theirs);
    }
    let mut labels = decider.merge("label", &none, &free.iter().collect::<Vec<_>>(), String::eq, quoted);
    let names: std::collections::BTreeSet<&String> = own.iter().flat_map(BTreeMap::keys).collect();
    for name in names {
        let values: Vec<Option<Value>> = own.iter().map(|side| side.get(name).map(|text| parse(text))).collect();
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        let value = match short {
            LOCK => merge_locks(&values, decider.prefers_last()),
            _ => merge_values(short, &values, decider),
        };
        labels.extend(value.map(|value| (name.clone(), text(value))));
    }
    config.config.labels = (!labels.is_empty()).then_some(labels);
}

fn quoted(text: &String) -> String {
    format!("{text:?}")
}

/// A label that is no JSON stands for its text.
fn parse(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Array(_) | Value::Object(_))) => value,
        _ => Value::String(text.to_string()),
    }
}

fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        value => value.to_string(),
    }
}

fn merge_values(name: &str, sides: &[Option<Value>], decider: &mut Decider<'_>) -> Option<Value> {
    let none = BTreeMap::new();
    let present: Vec<&Value> = sides.iter().flatten().collect();
    if present.iter().all(|value| value.is_array()) {
        return Some(joined(&present));
    }
    let what = name.strip_suffix('s').unwrap_or(name);
    if present.iter().all(|value| value.is_object()) {
        let map = |side: &Option<Value>| -> BTreeMap<String, Value> {
            let object = side.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
            object.into_iter().collect()
        };
        let maps: Vec<BTreeMap<String, Value>> = sides.iter().map(map).collect();
        let merged = decider.merge(
            what,
            &none,
            &maps.iter().collect::<Vec<_>>(),
            Value::eq,
            Value::to_string,
        );
        return Some(Value::Object(merged.into_iter().collect::<Map<_, _>>()));
    }
    let whole = |side: &Option<Value>| side.iter().map(|value| (what.to_string(), value.clone())).collect();
    let maps: Vec<BTreeMap<String, Value>> = sides.iter().map(whole).collect();
    let merged = decider.merge(
        "setting",
        &none,
        &maps.iter().collect::<Vec<_>>(),
        Value::eq,
        Value::to_string,
    );
    merged.into_values().next()
}

/// The items of all lists, each once.
fn joined(lists: &[&Value]) -> Value {
    let mut joined: Vec<Value> = Vec::new();
    for item in lists.iter().filter_map(|list| list.as_array()).flatten() {
        if !joined.contains(item) {
            joined.push(item.clone());
        }
    }
    Value::Array(joined)
}

/// The names of all locks, and every place where each was named. What a name means differently is a carried image that
/// differs, and is named as such. Without a lock of every image nothing is known of the whole, so there's none.
fn merge_locks(sides: &[Option<Value>], prefer_last: bool) -> Option<Value> {
    let mut merged = sides.first()?.clone()?;
    for side in &sides[1..] {
        let side = side.as_ref()?;
        let rules = joined(&[&merged["rules"], &side["rules"]]);
        if rules.as_array().is_some_and(|rules| !rules.is_empty()) {
            merged.as_object_mut()?.insert("rules".to_string(), rules);
        }
        let images = merged.get_mut("images")?.as_object_mut()?;
        for (name, locked) in side.get("images")?.as_object()? {
            let Some(known) = images.get(name) else {
                images.insert(name.clone(), locked.clone());
                continue;
            };
            let places = joined(&[&known["named"], &locked["named"]]);
            let mut winner = if prefer_last { locked.clone() } else { known.clone() };
            winner.as_object_mut()?.insert("named".to_string(), places);
            images.insert(name.clone(), winner);
        }
    }
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AppMeta, ClusterConfig};
    use crate::manifest::host_platform;
    use crate::merge::{Conflict, Prefer};

    fn cluster(launch: &[&str], apps: &[(&str, &str)], version: &str, env: &str) -> ImageConfig {
        let mut cluster = ClusterConfig {
            launch: launch.iter().map(ToString::to_string).collect(),
            kube_version: Some(version.to_string()),
            ..ClusterConfig::default()
        };
        for (name, command) in apps {
            let app = AppMeta {
                commands: vec![command.to_string()],
                ..AppMeta::default()
            };
            cluster.apps.insert(name.to_string(), app);
        }
        cluster.env.insert("A".into(), env.into());
        cluster.labels.insert("vendor".into(), "me".into());
        let mut config = ImageConfig::new(&host_platform());
        cluster.write_to(&mut config).unwrap();
        config
    }

    fn run(sides: &[&ImageConfig]) -> (ClusterConfig, Vec<Conflict>) {
        let names: Vec<String> = (0..sides.len()).map(|number| format!("image{number}")).collect();
        let mut decider = Decider::new(&names, Some(Prefer::Last));
        let mut config = sides[0].clone();
        merge(&mut config, sides, &mut decider);
        (ClusterConfig::from_image(&config).unwrap(), decider.finish().unwrap())
    }

    #[test]
    fn lists_are_joined_names_merged_and_contradictions_named() {
        let one = cluster(&["web", "db"], &[("web", "a"), ("db", "b")], ">=1.30", "1");
        let two = cluster(&["db", "mail"], &[("db", "b"), ("mail", "c")], ">=1.30", "1");
        let (merged, conflicts) = run(&[&one, &two]);
        assert_eq!(conflicts, []);
        assert_eq!(merged.launch, ["web", "db", "mail"]);
        assert_eq!(merged.apps.keys().collect::<Vec<_>>(), ["db", "mail", "web"]);
        assert_eq!(
            (merged.env["A"].as_str(), merged.labels["vendor"].as_str()),
            ("1", "me")
        );
        let three = cluster(&[], &[("db", "other")], ">=1.31", "2");
        let (merged, conflicts) = run(&[&one, &three]);
        let names: Vec<String> = conflicts
            .iter()
            .map(|conflict| format!("{} {}", conflict.what, conflict.name))
            .collect();
        assert_eq!(names, ["app db", "env A", "setting kube-version"]);
        assert_eq!(merged.apps["db"].commands, ["other"]);
        assert_eq!(merged.kube_version.as_deref(), Some(">=1.31"));
        assert_eq!(
            merged.launch,
            ["web", "db"],
            "an image that launches nothing takes nothing away"
        );
    }

    #[test]
    fn a_merged_lock_knows_every_name_and_every_place() {
        let lock =
            |images: Value, rules: Value| Some(serde_json::json!({"version": 1, "images": images, "rules": rules}));
        let one = lock(
            serde_json::json!({"a": {"digest": "x", "named": ["f:1"]}}),
            serde_json::json!([1]),
        );
        let two = lock(
            serde_json::json!({"a": {"digest": "y", "named": ["f:1", "g:2"]}, "b": {"digest": "z", "named": []}}),
            serde_json::json!([1, 2]),
        );
        for (last, digest) in [(false, "x"), (true, "y")] {
            let merged = merge_locks(&[one.clone(), two.clone()], last).unwrap();
            let expected = serde_json::json!({"a": {"digest": digest, "named": ["f:1", "g:2"]}, "b": {"digest": "z", "named": []}});
            assert_eq!(
                (&merged["images"], &merged["rules"]),
                (&expected, &serde_json::json!([1, 2]))
            );
        }
        assert_eq!(merge_locks(&[one.clone(), None], false), None);
        assert_eq!(merge_locks(&[one.clone(), one.clone()], false), one);
    }
}
