//! NamespaceLifecycle: nothing is made in a namespace that is not there or is going, and some namespaces never go.

use super::{Attributes, Lookup, Operation};
use crate::error::{ApiError, Result};

/// Namespaces that the cluster cannot be without.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Reviews of access are about a namespace, not in it.
fn is_review(plural: &str) -> bool {
    plural.ends_with("reviews")
}

pub(super) fn lifecycle(lookup: &dyn Lookup, a: &Attributes<'_>) -> Result<()> {
    if a.operation == Operation::Delete && a.group.is_empty() && a.plural == "namespaces" && IMMORTAL.contains(&a.name)
    {
        return Err(ApiError::forbidden(
            "",
            "namespaces",
            a.name,
            "this namespace may not be deleted",
        ));
    }
    if a.operation != Operation::Create || a.namespace.is_empty() || a.plural == "namespaces" || is_review(a.plural) {
        return Ok(());
    }
    let namespace = lookup.get("", "namespaces", "", a.namespace);
    let namespace = namespace.ok_or_else(|| ApiError::not_found("", "namespaces", a.namespace))?;
    if namespace["status"]["phase"] != "Terminating" && namespace["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let why = format!(
        "unable to create new content in namespace {} because it is being terminated",
        a.namespace
    );
    let mut refusal = ApiError::forbidden(a.group, a.plural, a.name, &why);
    refusal.details["causes"] = serde_json::json!([{
        "reason": "NamespaceTerminating",
        "message": format!("namespace {} is being terminated", a.namespace),
        "field": "metadata.namespace",
    }]);
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixed, create};
    use super::*;
    use serde_json::json;

    #[test]
    fn creation_needs_a_living_namespace() {
        let lookup = Fixed::default()
            .with(
                "namespaces//live",
                json!({"metadata": {}, "status": {"phase": "Active"}}),
            )
            .with(
                "namespaces//going",
                json!({"metadata": {}, "status": {"phase": "Terminating"}}),
            );
        for (namespace, code) in [("live", None), ("going", Some(403)), ("absent", Some(404)), ("", None)] {
            let result = lifecycle(&lookup, &create("configmaps", namespace));
            assert_eq!(result.err().map(|e| e.code), code, "{namespace}");
        }
    }

    #[test]
    fn the_systems_namespaces_stay() {
        let delete = |name| Attributes {
            operation: Operation::Delete,
            name,
            ..create("namespaces", "")
        };
        for (name, allowed) in [("kube-system", false), ("default", false), ("mine", true)] {
            assert_eq!(lifecycle(&Fixed::default(), &delete(name)).is_ok(), allowed, "{name}");
        }
    }
}
