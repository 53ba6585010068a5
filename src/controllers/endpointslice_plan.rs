//! From the endpoints there should be and the slices there are to the fewest slices to write.
//!
//! Pure. Slices hold endpoints of one family with the same ports. A slice that needs no change is left
//! alone; freed places in slices that change anyway are filled before new slices are made.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use crate::endpoint_facts::{Family, Port};

/// The most endpoints in a slice of a Service with a selector.
pub(crate) const FULL: usize = 100;

/// What makes endpoints share a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Group {
    pub(crate) family: Family,
    pub(crate) ports: Vec<Port>,
}

/// What to write.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// New slices: their group and endpoints.
    pub(crate) create: Vec<(Group, Vec<Endpoint>)>,
    /// Slices with the endpoints they should have.
    pub(crate) update: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)>,
    /// Slices to delete.
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
    /// Slices whose endpoints are right.
    pub(crate) keep: Vec<Arc<EndpointSlice>>,
}

/// The group of an existing slice; nothing if it is not of a kind we make.
pub(crate) fn group_of(slice: &EndpointSlice) -> Option<Group> {
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    let port = |p: &EndpointPort| {
        Some(Port {
            name: p.name.clone().unwrap_or_default(),
            port: p.port?,
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            app_protocol: p.app_protocol.clone(),
        })
    };
    let mut ports = slice.ports.iter().flatten().map(port).collect::<Option<Vec<_>>>()?;
    ports.sort();
    Some(Group { family, ports })
}

/// The ports as a slice has them.
pub(crate) fn slice_ports(group: &Group) -> Vec<EndpointPort> {
    let port = |p: &Port| EndpointPort {
        name: Some(p.name.clone()),
        port: Some(p.port),
        protocol: Some(p.protocol.clone()),
        app_protocol: p.app_protocol.clone(),
    };
    group.ports.iter().map(port).collect()
}

/// An endpoint is the same one if it is of the same pod (by UID) or, without a pod, the same address.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|r| r.uid.clone());
    uid.unwrap_or_else(|| endpoint.addresses.first().cloned().unwrap_or_default())
}

/// Decides what to write. `placeholder` is the group of the empty slice that a Service without endpoints has, `full` how
/// many endpoints a slice holds at most.
pub(crate) fn plan(
    existing: &[Arc<EndpointSlice>],
    wanted: BTreeMap<Group, Vec<Endpoint>>,
    placeholder: &[Group],
    full: usize,
) -> Plan {
    let mut wanted = wanted;
    for group in placeholder {
        // A family without any endpoint still has one, empty, slice.
        if !wanted.keys().any(|g| g.family == group.family) {
            wanted.insert(group.clone(), Vec::new());
        }
    }
    let mut by_group: HashMap<Group, Vec<&Arc<EndpointSlice>>> = HashMap::new();
    let mut plan = Plan::default();
    for slice in existing {
        match group_of(slice).filter(|g| wanted.contains_key(g)) {
            Some(group) => by_group.entry(group).or_default().push(slice),
            None => plan.delete.push(Arc::clone(slice)),
        }
    }
    for (group, endpoints) in wanted {
        let slices = by_group.remove(&group).unwrap_or_default();
        plan_group(&mut plan, group, endpoints, slices, full);
    }
    plan
}

fn plan_group(
    plan: &mut Plan,
    group: Group,
    endpoints: Vec<Endpoint>,
    mut slices: Vec<&Arc<EndpointSlice>>,
    full: usize,
) {
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let empty_is_wanted = endpoints.is_empty();
    let mut missing: BTreeMap<String, Endpoint> = endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let mut contents: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    let mut seen = HashSet::new();
    for slice in slices {
        let mut changed = false;
        let mut kept = Vec::new();
        for endpoint in slice.endpoints.iter().flatten() {
            let id = identity(endpoint);
            match missing.remove(&id) {
                Some(current) if seen.insert(id) => {
                    changed |= current != *endpoint;
                    kept.push(current);
                }
                _ => changed = true,
            }
        }
        contents.push((slice, kept, changed));
    }
    let mut missing: Vec<Endpoint> = missing.into_values().collect();
    // Slices that are written anyway are filled first, the fullest of the others next: few writes, few slices.
    let mut order: Vec<usize> = (0..contents.len()).collect();
    order.sort_by_key(|&i| (!contents[i].2, std::cmp::Reverse(contents[i].1.len())));
    for i in order {
        let (_, kept, changed) = &mut contents[i];
        let room = full.saturating_sub(kept.len()).min(missing.len());
        if room > 0 {
            kept.extend(missing.drain(..room));
            *changed = true;
        }
    }
    let mut have_one = contents.iter().any(|(_, kept, _)| !kept.is_empty());
    for (slice, kept, changed) in contents {
        if kept.is_empty() && (have_one || !empty_is_wanted || !missing.is_empty()) {
            plan.delete.push(Arc::clone(slice));
            continue;
        }
        have_one = true;
        if changed {
            plan.update.push((Arc::clone(slice), kept));
        } else {
            plan.keep.push(Arc::clone(slice));
        }
    }
    if empty_is_wanted && !have_one {
        plan.create.push((group.clone(), Vec::new()));
    }
    while !missing.is_empty() {
        let rest = missing.split_off(full.min(missing.len()));
        plan.create.push((group.clone(), std::mem::replace(&mut missing, rest)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(port: i32) -> Group {
        let port = Port {
            name: "http".into(),
            port,
            protocol: "TCP".into(),
            app_protocol: None,
        };
        Group {
            family: Family::V4,
            ports: vec![port],
        }
    }

    fn endpoint(n: usize) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.{}.{}", n / 250, n % 250)],
            ..Endpoint::default()
        }
    }

    fn slice(name: &str, group: &Group, endpoints: Vec<Endpoint>) -> Arc<EndpointSlice> {
        let mut slice = EndpointSlice {
            address_type: "IPv4".into(),
            ports: Some(slice_ports(group)),
            endpoints: Some(endpoints),
            ..EndpointSlice::default()
        };
        slice.metadata.name = Some(name.into());
        Arc::new(slice)
    }

    fn summary(plan: &Plan) -> (Vec<usize>, Vec<usize>, usize, usize) {
        (
            plan.create.iter().map(|(_, e)| e.len()).collect(),
            plan.update.iter().map(|(_, e)| e.len()).collect(),
            plan.delete.len(),
            plan.keep.len(),
        )
    }

    #[test]
    fn slices_are_made_filled_changed_and_removed_sparingly() {
        let g = group(80);
        let some = |n: std::ops::Range<usize>| n.map(endpoint).collect::<Vec<_>>();
        let cases = vec![
            ("none yet", vec![], some(0..3), (vec![3], vec![], 0, 0)),
            ("no endpoints", vec![], vec![], (vec![0], vec![], 0, 0)),
            (
                "still none",
                vec![slice("a", &g, vec![])],
                vec![],
                (vec![], vec![], 0, 1),
            ),
            (
                "the last goes",
                vec![slice("a", &g, some(0..1))],
                vec![],
                (vec![], vec![0], 0, 0),
            ),
            (
                "the first comes",
                vec![slice("a", &g, vec![])],
                some(0..1),
                (vec![], vec![1], 0, 0),
            ),
            (
                "nothing new",
                vec![slice("a", &g, some(0..3))],
                some(0..3),
                (vec![], vec![], 0, 1),
            ),
            (
                "one more",
                vec![slice("a", &g, some(0..3))],
                some(0..4),
                (vec![], vec![4], 0, 0),
            ),
            (
                "too many",
                vec![slice("a", &g, some(0..100))],
                some(0..150),
                (vec![50], vec![], 0, 1),
            ),
            (
                "other ports",
                vec![slice("a", &group(81), some(0..3))],
                some(0..3),
                (vec![3], vec![], 1, 0),
            ),
            (
                "one is emptied",
                vec![slice("a", &g, some(0..100)), slice("b", &g, some(100..101))],
                some(0..100),
                (vec![], vec![], 1, 1),
            ),
        ];
        for (what, existing, wanted, expected) in cases {
            let wanted = if wanted.is_empty() {
                BTreeMap::new()
            } else {
                BTreeMap::from([(g.clone(), wanted)])
            };
            assert_eq!(
                summary(&plan(&existing, wanted, std::slice::from_ref(&g), FULL)),
                expected,
                "{what}"
            );
        }
    }

    proptest! {
        #[test]
        fn after_the_plan_every_endpoint_is_in_exactly_one_slice(before in prop::collection::btree_set(0usize..400, 0..300), after in prop::collection::btree_set(0usize..400, 1..300)) {
            let g = group(80);
            let all: Vec<_> = before.iter().map(|n| endpoint(*n)).collect();
            let existing: Vec<_> = all.chunks(70).enumerate().map(|(i, c)| slice(&format!("s{i}"), &g, c.to_vec())).collect();
            let wanted: Vec<_> = after.iter().map(|n| endpoint(*n)).collect();
            let plan = plan(&existing, BTreeMap::from([(g.clone(), wanted)]), &[g], FULL);
            let mut result: Vec<String> = Vec::new();
            for slice in plan.create.iter().map(|(_, e)| e).chain(plan.update.iter().map(|(_, e)| e)) {
                prop_assert!(slice.len() <= FULL);
                result.extend(slice.iter().map(identity));
            }
            result.extend(plan.keep.iter().flat_map(|s| s.endpoints.iter().flatten()).map(identity));
            result.sort();
            let mut expected: Vec<_> = after.iter().map(|n| identity(&endpoint(*n))).collect();
            expected.sort();
            prop_assert_eq!(result, expected);
        }
    }
}
