//! Probes: what a series of results means. One [`Series`] per probe of a container instance, pure; running a probe is
//! `run`'s, the task that ties both to a clock is `worker`'s.
//!
//! ```text
//!  startup:   unknown ──success × successThreshold──▶ started (never probed again)
//!                 └──failure × failureThreshold──▶ failed: container is killed, the worker ends with it
//!  liveness:  success until failure × failureThreshold ──▶ failed: as above
//!  readiness: failure until success × successThreshold ──▶ ready ⇄ not ready by the thresholds
//! ```
//! Liveness and readiness wait for the startup probe, if there is one.

pub mod http;
pub mod run;
pub mod worker;

use k8s_openapi::api::core::v1::{Container, Probe};

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Holds back the others until it passes.
    Startup,
    /// Whether the container must be restarted.
    Liveness,
    /// Whether it takes traffic.
    Readiness,
}

impl Kind {
    /// For events and reasons.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Startup => "startup",
            Kind::Liveness => "liveness",
            Kind::Readiness => "readiness",
        }
    }

    /// The probe's definition in a container.
    pub fn of(self, c: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => c.startup_probe.as_ref(),
            Kind::Liveness => c.liveness_probe.as_ref(),
            Kind::Readiness => c.readiness_probe.as_ref(),
        }
    }
}

/// One run's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It passed.
    Success,
    /// It passed, and people should know this about it.
    Warning(String),
    /// It did not, and why.
    Failure(String),
    /// The prober itself failed (runtime not reachable): says nothing about the container.
    Unknown(String),
}

/// Consecutive equal results and what they amount to.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    run: i32,
    verdict: Option<bool>,
}

impl Series {
    /// For a probe's thresholds, with a verdict that already holds (an adopted container's), if any.
    pub fn new(probe: &Probe, verdict: Option<bool>) -> Series {
        Series {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            run: 0,
            verdict,
        }
    }

    /// Counts a result; the new verdict if it has just changed (or was reached for the first time).
    pub fn record(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        if self.run < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn series(success: i32, failure: i32) -> Series {
        Series::new(
            &Probe {
                success_threshold: Some(success),
                failure_threshold: Some(failure),
                ..Default::default()
            },
            None,
        )
    }

    #[test]
    fn verdicts_need_their_threshold_of_consecutive_results() {
        for (success, failure, results, expected) in [
            (1, 3, "s", "S"),
            (1, 3, "ff", ".."),
            (1, 3, "fff", "..F"),
            (1, 3, "ffsfff", "..S..F"),
            (2, 1, "sfss", ".F.S"),
            (1, 3, "ssfffs", "S...FS"),
        ] {
            let mut s = series(success, failure);
            let got: String = results
                .chars()
                .map(|c| match s.record(c == 's') {
                    Some(true) => 'S',
                    Some(false) => 'F',
                    None => '.',
                })
                .collect();
            assert_eq!(got, expected, "{success}/{failure} {results}");
        }
    }

    proptest! {
        #[test]
        fn a_verdict_is_only_ever_backed_by_enough_results(success in 1i32..4, failure in 1i32..4, results in proptest::collection::vec(any::<bool>(), 0..60)) {
            let mut s = series(success, failure);
            for (i, r) in results.iter().enumerate() {
                if let Some(v) = s.record(*r) {
                    let need = if v { success } else { failure } as usize;
                    prop_assert!(i + 1 >= need && results[i + 1 - need..=i].iter().all(|x| *x == v));
                }
            }
        }
    }
}
