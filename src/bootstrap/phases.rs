//! All that an apply does, as one list. Each phase says where it happens, what must be done before, what it wants of a host
//! ([`Phase::effects`], which a plan previews) and, where applying those is not all there is to do, how it is done ([`Phase::work`]).
//!
//! Undoing is not said per phase: every effect is journaled on the host before it happens, and reset plays the journal backwards.
//!
//! ```text
//! every host:    prepare ───────────────────────┐
//!                blobs ──▶ rootfs ──┬──────▶ runtime ──▶ agent ──▶ joined
//!                                   └▶ balancer ─────────▲  ▲
//! first master:  pki ──▶ trust (every host) ──▶ registry ┘  │
//!                └─────▶ control-plane ─────────────────────┘
//! cluster:       api ──▶ manifests ──▶ nodes ──▶ applications ──▶ verify ──▶ record
//! ```

use crate::{
    Result, cluster,
    effects::{self, Effects},
    run::Run,
    transfer, verify,
};
use futures::future::BoxFuture;
use std::sync::Arc;

/// Where a phase happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// On every host, each for itself.
    Every,
    /// On every master.
    Masters,
    /// On the first master only.
    First,
    /// On the hosts of the private registry.
    Registries,
    /// Once, through the API server.
    Cluster,
}

/// What must have ended before a phase begins on a host. A phase that does not happen there is no hindrance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// That phase on the same host.
    Here(&'static str),
    /// That phase on the first master, or for the cluster.
    First(&'static str),
    /// That phase wherever it happens.
    Everywhere(&'static str),
}

/// What a phase did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// How many things it changed.
    pub changes: usize,
    /// How many bytes it sent.
    pub bytes: u64,
}

/// The work of a phase on one host (by its index in the site) or for the cluster (`None`).
pub type Work = fn(Arc<Run>, &'static Phase, Option<usize>) -> BoxFuture<'static, Result<Outcome>>;

/// See the head of this file.
#[derive(Clone, Copy)]
pub struct Phase {
    /// Short name, as in events and reports.
    pub name: &'static str,
    /// What it does, for people.
    pub title: &'static str,
    /// Where it happens.
    pub on: On,
    /// What must be done before.
    pub needs: &'static [Need],
    /// What it wants of a host.
    pub effects: Option<Effects>,
    /// How it is done when applying the effects is not all.
    pub work: Option<Work>,
}

use Need::{Everywhere, First, Here};

const fn phase(name: &'static str, title: &'static str, on: On, needs: &'static [Need]) -> Phase {
    Phase {
        name,
        title,
        on,
        needs,
        effects: None,
        work: None,
    }
}

impl Phase {
    const fn wants(self, effects: Effects) -> Self {
        Self {
            effects: Some(effects),
            ..self
        }
    }

    const fn does(self, work: Work) -> Self {
        Self {
            work: Some(work),
            ..self
        }
    }
}

/// The phases, in the order in which they are told.
pub static PHASES: &[Phase] = &[
    phase("prepare", "preparing the host", On::Every, &[]).wants(effects::prepare),
    phase("pki", "making keys and certificates", On::First, &[])
        .wants(effects::pki)
        .does(cluster::pki::make),
    phase("blobs", "sending the rootfs", On::Every, &[]).does(transfer::host_blobs),
    phase("images", "sending container images", On::Registries, &[Here("blobs")]).does(transfer::registry_blobs),
    phase("rootfs", "unpacking the rootfs", On::Every, &[Here("blobs")]).wants(effects::rootfs),
    phase("trust", "signing certificates", On::Every, &[First("pki")])
        .wants(effects::trust)
        .does(cluster::pki::trust),
    phase(
        "registry",
        "starting the private registry",
        On::Registries,
        &[Here("rootfs"), Here("trust"), Here("prepare"), Here("images")],
    )
    .wants(effects::registry),
    phase(
        "runtime",
        "starting the container runtime",
        On::Every,
        &[Here("rootfs"), Here("trust"), Here("prepare")],
    )
    .wants(effects::runtime),
    phase(
        "balancer",
        "starting the way to the API servers",
        On::Every,
        &[Here("rootfs")],
    )
    .wants(effects::balancer),
    phase(
        "control-plane",
        "placing the control plane",
        On::Masters,
        &[Here("pki")],
    )
    .wants(effects::control_plane),
    phase(
        "agent",
        "starting the node agent",
        On::Every,
        &[
            Here("runtime"),
            Here("balancer"),
            Here("control-plane"),
            Everywhere("registry"),
        ],
    )
    .wants(effects::agent),
    phase("api", "waiting for the API server", On::Cluster, &[First("agent")]).does(cluster::api::come_up),
    phase(
        "manifests",
        "applying the image's manifests",
        On::Cluster,
        &[First("api")],
    )
    .does(cluster::objects::manifests),
    phase(
        "nodes",
        "waiting for the nodes",
        On::Cluster,
        &[First("api"), Everywhere("agent")],
    )
    .does(cluster::nodes::join),
    phase(
        "verify",
        "proving that the cluster works",
        On::Cluster,
        &[First("manifests"), First("nodes")],
    )
    .does(verify::phase),
    phase(
        "applications",
        "launching applications",
        On::Cluster,
        &[First("verify")],
    )
    .does(cluster::objects::applications),
    phase(
        "record",
        "storing the Clusterfile",
        On::Cluster,
        &[First("applications")],
    )
    .does(cluster::record::store),
];

/// The phase called `name`.
pub fn named(name: &str) -> Option<&'static Phase> {
    PHASES.iter().find(|phase| phase.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_is_a_phase_told_before() {
        for (index, phase) in PHASES.iter().enumerate() {
            for need in phase.needs {
                let (Here(name) | First(name) | Everywhere(name)) = need;
                let at = PHASES.iter().position(|other| other.name == *name);
                assert!(at.is_some_and(|at| at < index), "{} needs {name}", phase.name);
            }
            assert!(
                phase.effects.is_some() || phase.work.is_some(),
                "{} does nothing",
                phase.name
            );
        }
    }

    #[test]
    fn no_cluster_phase_is_needed_here() {
        for phase in PHASES {
            for need in phase.needs {
                if let Here(name) = need {
                    assert_ne!(named(name).map(|p| p.on), Some(On::Cluster), "{}", phase.name);
                }
            }
        }
    }
}
