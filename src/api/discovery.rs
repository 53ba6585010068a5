//! Discovery documents, legacy and aggregated (KEP-3352), from the table of kinds.

use crate::kinds::{Kind, Subresource, groups, join_api_version, kinds};
use serde_json::{Value, json};

/// `/api`: `APIVersions`; `server` is the advertised `host:port`.
pub fn api_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

/// `/apis`: `APIGroupList`.
pub fn api_group_list() -> Value {
    let all: Vec<Value> = groups()
        .iter()
        .map(|(group, versions)| group_object(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all})
}

/// `/apis/GROUP`: `APIGroup`.
pub fn api_group(group: &str) -> Option<Value> {
    let (name, versions) = groups().iter().find(|(g, _)| *g == group)?;
    let mut object = group_object(name, versions);
    object["kind"] = "APIGroup".into();
    object["apiVersion"] = "v1".into();
    Some(object)
}

fn group_object(group: &str, versions: &[&str]) -> Value {
    let version = |v: &&str| json!({"groupVersion": join_api_version(group, v), "version": v});
    let all: Vec<Value> = versions.iter().map(version).collect();
    json!({"name": group, "preferredVersion": all.first(), "versions": all})
}

fn of_version<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    kinds().iter().filter(move |k| k.group == group && k.version == version)
}

/// `/api/v1`, `/apis/GROUP/VERSION`: `APIResourceList`.
pub fn api_resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in of_version(group, version) {
        resources.push(legacy(kind));
        resources.extend(kind.subresources.iter().map(|sub| legacy_subresource(kind, sub)));
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = join_api_version(group, version);
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}))
}

fn legacy(kind: &Kind) -> Value {
    let mut object = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    add_names(&mut object, kind);
    object
}

fn add_names(object: &mut Value, kind: &Kind) {
    if !kind.short_names.is_empty() {
        object["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        object["categories"] = json!(kind.categories);
    }
}

fn legacy_subresource(kind: &Kind, sub: &Subresource) -> Value {
    let mut object = json!({
        "name": format!("{}/{}", kind.plural, sub.name),
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": sub.kind,
        "verbs": sub.verbs,
    });
    if (sub.group, sub.version) != (kind.group, kind.version) {
        object["group"] = sub.group.into();
        object["version"] = sub.version.into();
    }
    object
}

/// Aggregated discovery (`apidiscovery.k8s.io/v2`) of `/api` (`legacy`) or `/apis`.
pub fn aggregated(legacy: bool) -> Value {
    let items: Vec<Value> = if legacy {
        vec![aggregated_group("", &["v1"])]
    } else {
        groups()
            .iter()
            .map(|(group, versions)| aggregated_group(group, versions))
            .collect()
    };
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_group(group: &str, versions: &[&str]) -> Value {
    let version = |version: &&str| {
        let resources: Vec<Value> = of_version(group, version).map(aggregated_resource).collect();
        json!({"version": version, "resources": resources, "freshness": "Current"})
    };
    let mut metadata = json!({"creationTimestamp": null});
    if !group.is_empty() {
        metadata["name"] = group.into();
    }
    json!({"metadata": metadata, "versions": versions.iter().map(version).collect::<Vec<_>>()})
}

fn aggregated_resource(kind: &'static Kind) -> Value {
    let response = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut object = json!({
        "resource": kind.plural,
        "responseKind": response(kind.group, kind.version, kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    add_names(&mut object, kind);
    if !kind.subresources.is_empty() {
        let sub = |s: &Subresource| json!({"subresource": s.name, "responseKind": response(s.group, s.version, s.kind), "verbs": s.verbs});
        object["subresources"] = kind.subresources.iter().map(sub).collect();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_in_both_forms() {
        let (core, rest) = (aggregated(true), aggregated(false));
        for kind in kinds() {
            let list = api_resource_list(kind.group, kind.version).unwrap();
            let legacy = list["resources"]
                .as_array()
                .unwrap()
                .iter()
                .find(|r| r["name"] == kind.plural)
                .unwrap();
            assert_eq!(legacy["kind"], kind.kind);
            let document = if kind.group.is_empty() { &core } else { &rest };
            let found = document["items"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|g| g["versions"].as_array().unwrap())
                .any(|v| {
                    v["resources"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|r| r["resource"] == kind.plural && r["responseKind"]["group"] == kind.group)
                });
            assert!(found, "{}", kind.plural);
        }
    }

    #[test]
    fn unknown_groups_are_not_found() {
        assert!(api_group("example.com").is_none());
        assert!(api_resource_list("apps", "v2").is_none());
        assert_eq!(
            api_group("apps").unwrap()["preferredVersion"]["groupVersion"],
            "apps/v1"
        );
    }
}
