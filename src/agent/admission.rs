//! The last check before a pod is run: does it still fit? The scheduler has decided before, but it may have been wrong
//! or bypassed. Pure.

use crate::qos::{pod_amount, request};
use crate::quantity::{amount_of, sum};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Reason and message if the pod does not fit beside `others`.
pub fn refuse(
    pod: &Pod,
    others: &[Arc<Pod>],
    allocatable: &BTreeMap<String, Quantity>,
    max_pods: u32,
) -> Option<(String, String)> {
    if others.len() >= max_pods as usize {
        return Some((
            "OutOfpods".into(),
            format!(
                "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {max_pods}",
                others.len()
            ),
        ));
    }
    let critical = pod
        .spec
        .as_ref()
        .and_then(|s| s.priority)
        .is_some_and(|p| p >= 2_000_000_000);
    if critical {
        return None;
    }
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        let wanted = pod_amount(pod, resource, request);
        let Some(capacity) = amount_of(Some(allocatable), resource) else {
            continue;
        };
        let used = sum(others.iter().map(|p| pod_amount(p, resource, request)));
        if wanted > 0 && used.saturating_add(wanted) > capacity {
            let message = format!(
                "Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, capacity: {capacity}"
            );
            return Some((format!("OutOf{resource}"), message));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(cpu: &str) -> Pod {
        serde_json::from_value(
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}),
        )
        .unwrap()
    }

    #[test]
    fn a_request_beyond_all_numbers_fits_nowhere() {
        let allocatable = [("cpu".to_owned(), Quantity("2".into()))].into();
        let others = [Arc::new(pod("100E"))];
        assert_eq!(refuse(&pod("100E"), &[], &allocatable, 10).unwrap().0, "OutOfcpu");
        assert_eq!(refuse(&pod("1m"), &others, &allocatable, 10).unwrap().0, "OutOfcpu");
    }

    #[test]
    fn a_pod_that_does_not_fit_is_refused_by_resource() {
        let allocatable = [("cpu".to_owned(), Quantity("2".into()))].into();
        let others = [Arc::new(pod("1500m"))];
        assert_eq!(refuse(&pod("500m"), &others, &allocatable, 10), None);
        assert_eq!(refuse(&pod("501m"), &others, &allocatable, 10).unwrap().0, "OutOfcpu");
        assert_eq!(refuse(&pod("1m"), &others, &allocatable, 1).unwrap().0, "OutOfpods");
    }
}
