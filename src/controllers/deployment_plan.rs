//! How many replicas each ReplicaSet of a Deployment should have next: rolling, recreating, scaling in proportion.
//!
//! Pure arithmetic over counts; no objects, no clock, no I/O.

use k8s_openapi::api::apps::v1::Deployment;

use crate::meta::scaled;

/// One ReplicaSet in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// `spec.replicas`.
    pub(crate) replicas: i32,
    /// `status.availableReplicas`.
    pub(crate) available: i32,
    /// The annotation that says what the most replicas were when it was last scaled.
    pub(crate) max_replicas: Option<i32>,
    /// Seconds since the epoch.
    pub(crate) created: i64,
}

/// The rolling parameters, resolved to counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) replicas: i32,
    pub(crate) surge: i32,
    pub(crate) unavailable: i32,
}

impl Limits {
    /// `maxSurge` rounds up, `maxUnavailable` down; both zero would never move, so one may then be unavailable.
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let Some(spec) = &deployment.spec else {
            return Self {
                replicas: 0,
                surge: 0,
                unavailable: 0,
            };
        };
        let replicas = spec.replicas.unwrap_or(1);
        if !is_rolling(deployment) || replicas == 0 {
            return Self {
                replicas,
                surge: 0,
                unavailable: 0,
            };
        }
        let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let quarter = k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String("25%".into());
        let surge = scaled(
            rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter),
            replicas,
            true,
        )
        .max(0);
        let unavailable = scaled(
            rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter),
            replicas,
            false,
        )
        .max(0);
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self {
            replicas,
            surge,
            unavailable: unavailable.min(replicas),
        }
    }

    /// The most replicas that may exist.
    pub(crate) fn most(&self) -> i32 {
        self.replicas + self.surge
    }

    /// The fewest that must be available.
    pub(crate) fn least_available(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

/// Whether the strategy is RollingUpdate (the default).
pub(crate) fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.type_.as_deref());
    strategy.unwrap_or("RollingUpdate") != "Recreate"
}

/// What the new ReplicaSet should have in a rolling update.
pub(crate) fn new_replicas(limits: Limits, new: &Set, old: &[Set]) -> i32 {
    if new.replicas >= limits.replicas {
        return limits.replicas;
    }
    let total: i32 = new.replicas + old.iter().map(|s| s.replicas).sum::<i32>();
    if total >= limits.most() {
        return new.replicas;
    }
    new.replicas + (limits.most() - total).min(limits.replicas - new.replicas)
}

/// What the old ReplicaSets (in order of age, oldest first) should have in a rolling update.
pub(crate) fn old_replicas(limits: Limits, new: &Set, old: &[Set]) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|s| s.replicas).collect();
    let total_old: i32 = sizes.iter().sum();
    if total_old == 0 {
        return sizes;
    }
    let total = total_old + new.replicas;
    let new_unavailable = new.replicas - new.available;
    let removable = total - limits.least_available() - new_unavailable;
    if removable <= 0 {
        return sizes;
    }
    // What is broken goes first: it serves nobody.
    let mut broken_gone = 0;
    let mut available: Vec<i32> = old.iter().map(|s| s.available).collect();
    for (size, available) in sizes.iter_mut().zip(&available) {
        let broken = (*size - available).max(0).min(removable - broken_gone);
        *size -= broken;
        broken_gone += broken;
    }
    let serving: i32 = new.available + available.iter().sum::<i32>();
    let mut spare = serving - limits.least_available();
    for (size, available) in sizes.iter_mut().zip(available.iter_mut()) {
        if spare <= 0 {
            break;
        }
        let less = (*size).min(spare);
        *size -= less;
        *available -= less;
        spare -= less;
    }
    sizes
}

/// What each active ReplicaSet should have after `spec.replicas` changed in the middle of a rollout: in proportion to its
/// present size, the rest to the largest (of the same size, to the newest when growing, to the oldest when shrinking).
pub(crate) fn in_proportion(limits: Limits, sets: &[Set]) -> Vec<i32> {
    let mut sizes: Vec<i32> = sets.iter().map(|s| s.replicas).collect();
    let total: i32 = sizes.iter().sum();
    let allowed = if limits.replicas > 0 { limits.most() } else { 0 };
    let to_add = allowed - total;
    if to_add == 0 {
        return sizes;
    }
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by_key(|&i| {
        let age = if to_add > 0 { -sets[i].created } else { sets[i].created };
        (-sets[i].replicas, age)
    });
    let mut added = 0;
    for &i in &order {
        let left = to_add - added;
        let share = share(limits, &sets[i]);
        let share = if to_add > 0 { share.min(left) } else { share.max(left) };
        sizes[i] += share;
        added += share;
    }
    if let Some(&largest) = order.first() {
        sizes[largest] = (sizes[largest] + to_add - added).max(0);
    }
    sizes
}

fn share(limits: Limits, set: &Set) -> i32 {
    if set.replicas == 0 {
        return 0;
    }
    if limits.replicas == 0 {
        return -set.replicas;
    }
    let before = match set.max_replicas {
        Some(most) if most > 0 => most,
        _ => limits.most(),
    };
    let size = f64::from(set.replicas) * f64::from(limits.most()) / f64::from(before);
    // Replica counts are 32-bit, and the proportion of one of them fits again.
    #[allow(clippy::cast_possible_truncation)]
    let size = size.round() as i32;
    size - set.replicas
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use proptest::prelude::*;

    fn set(replicas: i32, available: i32) -> Set {
        Set {
            replicas,
            available,
            ..Set::default()
        }
    }

    fn limits(replicas: i32, surge: i32, unavailable: i32) -> Limits {
        Limits {
            replicas,
            surge,
            unavailable,
        }
    }

    #[test]
    fn surge_rounds_up_and_unavailable_down() {
        let deployment = |replicas, surge: &str, unavailable: &str| Deployment {
            spec: Some(DeploymentSpec {
                replicas: Some(replicas),
                strategy: Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".into()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: Some(IntOrString::String(surge.into())),
                        max_unavailable: Some(IntOrString::String(unavailable.into())),
                    }),
                }),
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        };
        for (replicas, surge, unavailable, expected) in [
            (3, "25%", "25%", limits(3, 1, 0)),
            (4, "25%", "25%", limits(4, 1, 1)),
            (10, "25%", "25%", limits(10, 3, 2)),
            (1, "0%", "0%", limits(1, 0, 1)),
            (2, "0%", "25%", limits(2, 0, 1)),
            (5, "100%", "200%", limits(5, 5, 5)),
        ] {
            assert_eq!(
                Limits::of(&deployment(replicas, surge, unavailable)),
                expected,
                "{replicas} {surge} {unavailable}"
            );
        }
    }

    #[test]
    fn a_rolling_update_grows_the_new_and_shrinks_the_old_within_limits() {
        // limits, new, old → new size, old sizes
        let cases = [
            (limits(3, 1, 0), set(0, 0), vec![set(3, 3)], 1, vec![3]),
            (limits(3, 1, 0), set(1, 0), vec![set(3, 3)], 1, vec![3]),
            (limits(3, 1, 0), set(1, 1), vec![set(3, 3)], 1, vec![2]),
            (limits(3, 1, 0), set(1, 1), vec![set(2, 2)], 2, vec![2]),
            (limits(10, 2, 2), set(0, 0), vec![set(10, 10)], 2, vec![8]),
            (limits(3, 1, 0), set(3, 3), vec![set(1, 1)], 3, vec![0]),
            // The old one is broken: it goes before anything new is up, as far as allowed.
            (limits(3, 1, 1), set(0, 0), vec![set(3, 0)], 1, vec![2]),
            (limits(10, 3, 2), set(5, 0), vec![set(8, 8)], 5, vec![8]),
            (limits(0, 0, 0), set(2, 2), vec![set(1, 1)], 0, vec![0]),
        ];
        for (limits, new, old, new_expected, old_expected) in cases {
            assert_eq!(
                new_replicas(limits, &new, &old),
                new_expected,
                "{limits:?} {new:?} {old:?}"
            );
            assert_eq!(
                old_replicas(limits, &new, &old),
                old_expected,
                "{limits:?} {new:?} {old:?}"
            );
        }
    }

    #[test]
    fn scaling_in_a_rollout_is_in_proportion() {
        let sized = |replicas, max, created| Set {
            replicas,
            available: replicas,
            max_replicas: Some(max),
            created,
        };
        for (limits, sets, expected) in [
            (limits(20, 2, 0), vec![sized(8, 12, 1), sized(4, 12, 2)], vec![15, 7]),
            (limits(5, 1, 0), vec![sized(8, 12, 1), sized(4, 12, 2)], vec![4, 2]),
            (limits(0, 0, 0), vec![sized(8, 12, 1), sized(4, 12, 2)], vec![0, 0]),
            (limits(10, 2, 0), vec![sized(8, 12, 1), sized(4, 12, 2)], vec![8, 4]),
        ] {
            assert_eq!(in_proportion(limits, &sets), expected, "{limits:?}");
        }
    }

    proptest! {
        #[test]
        fn a_rollout_never_breaks_its_limits_and_always_ends(replicas in 1i32..30, surge in 0i32..10, unavailable in 0i32..10, olds in prop::collection::vec(0i32..10, 1..4)) {
            let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable.min(replicas) };
            let limits = limits(replicas, surge, unavailable);
            let mut old: Vec<Set> = olds.iter().map(|n| set(*n, *n)).collect();
            let mut new = set(0, 0);
            let start: i32 = olds.iter().sum();
            let mut rounds = 0;
            while new.replicas != replicas || old.iter().any(|s| s.replicas > 0) {
                rounds += 1;
                prop_assert!(rounds < 500, "no end: {:?} {:?}", new, old);
                let total = |new: &Set, old: &[Set]| new.replicas + old.iter().map(|s| s.replicas).sum::<i32>();
                let grown = new_replicas(limits, &new, &old);
                if grown != new.replicas {
                    new.replicas = grown;
                    prop_assert!(total(&new, &old) <= limits.most().max(start));
                }
                let sizes = old_replicas(limits, &new, &old);
                for (s, size) in old.iter_mut().zip(sizes) {
                    s.replicas = size;
                    s.available = s.available.min(size);
                }
                let available = new.available + old.iter().map(|s| s.available).sum::<i32>();
                prop_assert!(available >= limits.least_available().min(start));
                new.available = new.replicas;
            }
        }
    }
}
