//! Quality-of-service class of a pod, from what its containers request and are limited to.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

const COUNTED: [&str; 2] = ["cpu", "memory"];

type Amounts = BTreeMap<&'static str, Quantity>;

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(spec: &Value) -> &'static str {
    let own = &spec["resources"];
    let mut requests = Amounts::new();
    let mut limits = Amounts::new();
    let mut all_limited = true;
    if amounts(&own["requests"]).is_empty() && amounts(&own["limits"]).is_empty() {
        for list in ["containers", "initContainers"] {
            for c in spec[list].as_array().into_iter().flatten() {
                add(&mut requests, &amounts(&c["resources"]["requests"]));
                let limit = amounts(&c["resources"]["limits"]);
                all_limited &= limit.len() == COUNTED.len();
                add(&mut limits, &limit);
            }
        }
    } else {
        requests = amounts(&own["requests"]);
        limits = amounts(&own["limits"]);
        all_limited = limits.len() == COUNTED.len();
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let equal = requests.len() == limits.len()
        && requests
            .iter()
            .all(|(name, q)| limits.get(name).is_some_and(|l| same(l, q)));
    if all_limited && equal {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn same(a: &Quantity, b: &Quantity) -> bool {
    a.partial_cmp(b) == Some(std::cmp::Ordering::Equal)
}

/// The counted resources above zero.
fn amounts(list: &Value) -> Amounts {
    let positive = |name| {
        let quantity: Quantity = list[name].as_str()?.parse().ok()?;
        (!quantity.is_negative() && quantity.millis() != 0).then_some((name, quantity))
    };
    COUNTED.into_iter().filter_map(positive).collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, quantity) in more {
        let total = sum.get(name).map_or_else(|| *quantity, |q| q.plus(quantity));
        sum.insert(name, total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes_follow_requests_and_limits() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let cases = [
            (json!({"containers": [{}]}), "BestEffort"),
            (
                json!({"containers": [{"resources": {"limits": both, "requests": both}}]}),
                "Guaranteed",
            ),
            (
                json!({"containers": [{"resources": {"limits": both, "requests": {"cpu": "1000m", "memory": "1024Mi"}}}]}),
                "Guaranteed",
            ),
            (
                json!({"containers": [{"resources": {"limits": both, "requests": both}}, {}]}),
                "Burstable",
            ),
            (
                json!({"containers": [{"resources": {"requests": {"cpu": "1m"}}}]}),
                "Burstable",
            ),
            (
                json!({"containers": [{"resources": {"requests": {"cpu": "0"}}}]}),
                "BestEffort",
            ),
            (
                json!({"containers": [{"resources": {"requests": {"example.com/x": "1"}}}]}),
                "BestEffort",
            ),
        ];
        for (spec, class) in cases {
            assert_eq!(qos_class(&spec), class, "{spec}");
        }
    }
}
