//! Whether manifests can be applied, judged before anything is changed: none of a cluster's objects is applied if one of them cannot be.

use super::{
    apply::{configuration, title},
    objects,
};
use crate::{Error, Result, render, site::Site};
use serde_json::Value;
use std::collections::BTreeSet;

/// Most findings that are told.
const MOST_FINDINGS: usize = 40;

/// Looks at every manifest that an apply would use.
///
/// # Errors
/// What is wrong with them, all at once, each with its file: what cannot be rendered or parsed, versions and kinds that the API server
/// does not serve, fields that a kind does not have.
pub fn check(site: &Site) -> Result<()> {
    let seat = &site.seats[site.first_master()];
    let (mut found, mut findings) = (Vec::new(), Vec::new());
    for (_, folder) in objects::folders(site) {
        for path in objects::manifest_paths(site, &folder) {
            let mut inside = Vec::new();
            let documents = render::file(site, seat, path).and_then(|text| render::documents(path, &text));
            let flattened = documents.and_then(|documents| {
                let mut documents = documents.into_iter();
                documents.try_for_each(|document| objects::flatten(path, document, &mut inside))
            });
            findings.extend(flattened.err().map(|error| error.to_string()));
            found.extend(inside.into_iter().map(|object| (path, object)));
        }
    }
    let defined: BTreeSet<(String, String)> = found.iter().filter_map(|(_, object)| definition(object)).collect();
    for (path, object) in &found {
        let told = |why: String| format!("{path}: {}: {why}", title(object));
        findings.extend(problems(object, &defined).into_iter().map(told));
    }
    if findings.is_empty() {
        return Ok(());
    }
    let more = findings.len().saturating_sub(MOST_FINDINGS);
    findings.truncate(MOST_FINDINGS);
    if more > 0 {
        findings.push(format!("and {more} more"));
    }
    Err(Error::Image {
        image: site.image.reference.clone(),
        message: format!(
            "its manifests cannot be applied, so nothing is:\n  {}\nchange them in the image, or with a Config in the Clusterfile",
            findings.join("\n  ")
        ),
    })
}

/// Group and kind that an object makes known to the API server.
fn definition(object: &Value) -> Option<(String, String)> {
    let is_definition = object["kind"] == "CustomResourceDefinition";
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let named = is_definition.then(|| (text(&object["spec"]["group"]), text(&object["spec"]["names"]["kind"])));
    named.and_then(|(group, kind)| Some((group?, kind?)))
}

/// Why an object cannot be applied.
fn problems(object: &Value, defined: &BTreeSet<(String, String)>) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (group, version) = api::kinds::split_api_version(&api_version);
    if let Some(why) = api::kinds::unserved(&api_version, &kind) {
        let is_defined = defined.contains(&(group.to_owned(), kind.clone()));
        return match is_defined && why == api::kinds::Unserved::Custom {
            true => Vec::new(),
            false => vec![format!("{api_version} {kind}: {why}")],
        };
    }
    let mut problems = Vec::new();
    if text(&object["metadata"]["name"]).is_empty() {
        problems.push("it has no metadata.name".to_owned());
    }
    if let Some(kind) = api::kinds::find_by_kind(group, version, &kind) {
        problems.extend(api::managed::configuration_errors(kind, &configuration(object)));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{add_file, site};

    fn checked(files: &[(&str, &str)]) -> Result<(), String> {
        let mut site = site();
        for (path, text) in files {
            add_file(&mut site, path, text, false);
        }
        site.apps.push(crate::apps::App {
            name: "web".into(),
            env: Default::default(),
            namespace: crate::apps::NAMESPACE.into(),
            kind: crate::apps::Kind::Manifests,
        });
        check(&site).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_that_cannot_be_applied_is_told_with_its_file_at_once() {
        let old = "apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\nmetadata: {name: a, namespace: x}\n";
        let mixed = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndat: {}\n---\napiVersion: extensions/v1beta1\nkind: Ingress\nmetadata: {name: c}\n";
        let twice = "apiVersion: v1\nkind: Service\nmetadata: {}\nspec: {ports: [{port: 53}, {port: 53}]}\n";
        let error = checked(&[
            ("manifests/old.yaml", old),
            ("manifests/broken.yaml", "a: ["),
            ("application/apps/web/mixed.yaml", mixed),
            ("application/apps/web/twice.json", twice),
            ("application/apps/other/old.yaml", old),
        ])
        .unwrap_err();
        for expected in [
            "manifests/old.yaml: poddisruptionbudget x/a: policy/v1beta1 PodDisruptionBudget: Kubernetes does not serve this version since 1.25; write policy/v1",
            "manifests/broken.yaml: ",
            "application/apps/web/mixed.yaml: configmap b: .dat: field not declared in schema",
            "application/apps/web/mixed.yaml: ingress c: extensions/v1beta1 Ingress: ",
            "application/apps/web/twice.json: service ?: it has no metadata.name",
            "twice.json: service ?: .spec.ports: duplicate entries for key",
        ] {
            assert!(error.contains(expected), "{expected} in\n{error}");
        }
        assert!(
            !error.contains("apps/other"),
            "what is not launched is not applied: {error}"
        );
    }

    #[test]
    fn kinds_that_a_manifest_defines_are_not_told_beside_the_definition() {
        let crd = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: as.b.c}\nspec: {group: b.c, names: {kind: A}}\n";
        let custom = "apiVersion: b.c/v1\nkind: A\nmetadata: {name: a}\nfree: form\n";
        let error = checked(&[("manifests/a.yaml", crd), ("manifests/b.yaml", custom)]).unwrap_err();
        assert!(
            error.contains("manifests/a.yaml") && !error.contains("manifests/b.yaml"),
            "{error}"
        );
        assert!(
            checked(&[("manifests/b.yaml", custom)])
                .unwrap_err()
                .contains("b.c/v1 A")
        );
    }

    #[test]
    fn the_default_images_own_manifests_can_be_applied() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../rootfs/manifests");
        let mut site = site();
        for entry in std::fs::read_dir(root).unwrap() {
            let entry = entry.unwrap();
            let path = format!("manifests/{}", entry.file_name().to_string_lossy());
            add_file(&mut site, &path, &std::fs::read_to_string(entry.path()).unwrap(), false);
        }
        assert!(!objects::system(&site).unwrap().is_empty());
        check(&site).unwrap();
    }
}
