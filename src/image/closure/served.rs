//! Objects that the target's API server does not serve, by version or kind: nobody could apply them.

use api::kinds::{Unserved, unserved};
use clusterfile::yaml::{Node, Value};

use super::template::UNKNOWN;

/// What is to become of objects of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Every apply applies them, and refuses them all if it cannot apply one.
    Applied,
    /// Something else may use them, as a chart or a script does; it may also choose others.
    Unknown,
}

/// An object that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) line: u64,
    /// Version and kind, as they are written.
    pub(super) what: String,
    pub(super) why: Unserved,
}

/// Those of a document. Lists are opened.
pub(super) fn findings(document: &Node) -> Vec<Finding> {
    let mut found = Vec::new();
    look_at(document, None, None, &mut found);
    found
}

fn look_at(node: &Node, version_of_list: Option<&Node>, kind_of_list: Option<&str>, found: &mut Vec<Finding>) {
    let version = node.get("apiVersion").or(version_of_list);
    let kind = node.get("kind").and_then(Node::as_str).or(kind_of_list);
    let (Some(version), Some(kind)) = (version, kind) else {
        return;
    };
    if let (Some(of), Some(Value::List(items))) = (kind.strip_suffix("List"), node.get("items").map(|list| &list.value))
    {
        let of = Some(of).filter(|of| !of.is_empty());
        for item in items {
            look_at(item, of.and(Some(version)), of, found);
        }
        return;
    }
    let Some(text) = version.as_str() else { return };
    if text.contains(UNKNOWN) || kind.contains(UNKNOWN) {
        return;
    }
    let line = node.get("apiVersion").map_or(node.at.line, |version| version.at.line);
    found.extend(unserved(text, kind).map(|why| Finding {
        line,
        what: format!("{text} {kind}"),
        why,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_that_is_not_served_is_found_with_its_line() {
        let text = "kind: ConfigMap\napiVersion: v1\n---\nkind: Ingress\napiVersion: extensions/v1beta1\n---\n\
                    apiVersion: v1\nkind: List\nitems:\n- {apiVersion: policy/v1beta1, kind: PodDisruptionBudget}\n\
                    - apiVersion: a.b/v1\n  kind: C\n---\napiVersion: rbac.authorization.k8s.io/v1beta1\nkind: RoleList\nitems:\n\
                    - metadata: {name: x}\n---\napiVersion: template-value\nkind: Pod\n---\na: b\n";
        let documents = clusterfile::yaml::parse(text).unwrap();
        let found: Vec<String> = documents
            .iter()
            .flat_map(findings)
            .map(|finding| format!("{} {}", finding.line, finding.what))
            .collect();
        assert_eq!(
            found,
            [
                "5 extensions/v1beta1 Ingress",
                "10 policy/v1beta1 PodDisruptionBudget",
                "11 a.b/v1 C",
                "17 rbac.authorization.k8s.io/v1beta1 Role",
            ]
        );
    }
}
