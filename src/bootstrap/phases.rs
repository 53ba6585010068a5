//! All that an apply does, as one list. Each phase says where it happens, what must be done before, what it wants of a host
//! ([`Phase::effects`], which a plan previews) and, where applying those is not all there is to do, how it is done ([`Phase::work`]).
//!
//! Undoing is not said per phase: every effect is journaled on the host before it happens, and reset plays the journal backwards.
//!
//! ```text
//! every host:    blobs ──▶ rootfs ──▶ prepare ──▶ runtime ──▶ agent ──▶ joined
//!                            ├──▶ balancer ───────────────────▲  ▲
//! first master:  pki ──▶ trust (every host) ──▶ registry ─────┤  │
//!                                                 └──▶ control-plane
//! cluster:       api ──▶ manifests ──▶ nodes ──▶ verify ──▶ applications ──▶ record
//! ```
//!
//! A host that runs pods goes that way when it is its turn, between `drain` and `settle` ([`crate::rolling`]); what is before `drain` in the
//! list is done on all hosts before, and `prepare`, `pki` and `trust`, which disturb nobody, may be.
//!
//! Hooks ([`crate::hooks`]) are phases too; where a cluster has none of a moment, that phase happens nowhere and nobody waits for it.
//! The control plane is placed when its images can be had: on a host that runs already it is replaced at once.

use crate::{
    Result, cluster,
    effects::{self, Effects},
    hooks, push, rolling,
    run::Run,
    runtime, transfer, verify,
};
use clusterfile::PluginAction;
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
    /// Once, on this machine, where somebody else runs the registry.
    External,
    /// On the hosts that are worked on one after the other, because they run pods ([`crate::rolling`]).
    Rolling,
    /// On the hosts that have hooks of this moment.
    Hooks(PluginAction),
}

/// What must have ended before a phase begins on a host. A phase that does not happen there is no hindrance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// That phase on the same host.
    Here(&'static str),
    /// That phase on the first master, or for the cluster.
    First(&'static str),
    /// That phase wherever it happens; but a host that is a node already does not wait for what others do in their turns.
    Everywhere(&'static str),
    /// That phase, which is told later, on the hosts whose turn comes before.
    Turn(&'static str),
}

/// What a phase did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// How many things it changed.
    pub changes: usize,
    /// How many bytes it brought to the host.
    pub bytes: u64,
    /// How many of them came from other hosts.
    pub from_peers: u64,
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

use Need::{Everywhere, First, Here, Turn};

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
    phase("blobs", "sending the rootfs", On::Every, &[]).does(transfer::host_blobs),
    phase("images", "sending container images", On::Registries, &[Here("blobs")]).does(transfer::registry_blobs),
    phase("push", "bringing container images to the registry", On::External, &[]).does(push::images),
    phase(
        "unpack",
        "unpacking the rootfs beside the one in use",
        On::Rolling,
        &[Here("blobs")],
    )
    .does(rolling::work::unpack),
    phase(
        "drain",
        "moving its pods elsewhere",
        On::Rolling,
        &[
            Everywhere("blobs"),
            Everywhere("images"),
            Everywhere("unpack"),
            First("push"),
            Turn("settle"),
        ],
    )
    .does(rolling::work::drain),
    phase(
        "rootfs",
        "unpacking the rootfs",
        On::Every,
        &[Here("blobs"), Here("drain")],
    )
    .wants(effects::rootfs),
    phase(
        "pre-install",
        "running hooks before the cluster is made",
        On::Hooks(PluginAction::PreInstall),
        &[Here("rootfs")],
    )
    .does(hooks::run),
    phase(
        "pre-init-host",
        "running hooks before the host is prepared",
        On::Hooks(PluginAction::PreInitHost),
        &[Here("rootfs"), Everywhere("pre-install")],
    )
    .does(hooks::run),
    phase(
        "prepare",
        "preparing the host",
        On::Every,
        &[Here("pre-init-host"), Everywhere("pre-install")],
    )
    .wants(effects::prepare),
    phase(
        "pki",
        "making keys and certificates",
        On::First,
        &[Here("pre-init-host"), Everywhere("pre-install")],
    )
    .wants(effects::pki)
    .does(cluster::pki::make),
    phase(
        "trust",
        "signing certificates",
        On::Every,
        &[First("pki"), Here("pre-init-host")],
    )
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
    .wants(effects::runtime)
    .does(runtime::start),
    phase(
        "balancer",
        "starting the way to the API servers",
        On::Every,
        &[Here("rootfs"), Here("pre-init-host")],
    )
    .wants(effects::balancer),
    phase(
        "post-init-host",
        "running hooks after the host was prepared",
        On::Hooks(PluginAction::PostInitHost),
        &[Here("runtime")],
    )
    .does(hooks::run),
    phase(
        "pre-join",
        "running hooks before hosts join",
        On::Hooks(PluginAction::PreJoin),
        &[Here("runtime"), Everywhere("post-init-host")],
    )
    .does(hooks::run),
    phase(
        "control-plane",
        "placing the control plane",
        On::Masters,
        &[Here("pki"), Everywhere("registry"), First("push")],
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
            Here("post-init-host"),
            Everywhere("registry"),
            Everywhere("pre-join"),
            First("push"),
        ],
    )
    .wants(effects::agent),
    phase("api", "waiting for the API server", On::Cluster, &[First("agent")]).does(cluster::api::come_up),
    phase(
        "settle",
        "waiting until the node works again",
        On::Rolling,
        &[Here("agent"), First("api")],
    )
    .does(rolling::work::settle),
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
        &[First("api"), Everywhere("agent"), Everywhere("settle")],
    )
    .does(cluster::nodes::join),
    phase(
        "post-join",
        "running hooks after hosts joined",
        On::Hooks(PluginAction::PostJoin),
        &[First("nodes")],
    )
    .does(hooks::run),
    phase(
        "verify",
        "proving that the cluster works",
        On::Cluster,
        &[First("manifests"), First("nodes")],
    )
    .does(verify::phase),
    phase(
        "post-install",
        "running hooks after the cluster was made",
        On::Hooks(PluginAction::PostInstall),
        &[First("verify")],
    )
    .does(hooks::run),
    phase(
        "applications",
        "launching applications",
        On::Cluster,
        &[First("verify"), Everywhere("post-join"), Everywhere("post-install")],
    )
    .does(cluster::launch::applications),
    phase(
        "record",
        "storing the Clusterfile",
        On::Cluster,
        &[First("applications")],
    )
    .does(cluster::record::store),
];

/// Whether a phase is done on all hosts at once before the first turn begins.
pub(crate) fn is_beforehand(name: &str) -> bool {
    let at = |name: &str| PHASES.iter().position(|phase| phase.name == name);
    at(name) < at("drain")
}

/// Whether a phase only brings something to where it will be used.
pub(crate) fn is_transport(phase: &Phase) -> bool {
    ["blobs", "images", "push"].contains(&phase.name)
}

/// The phase called `name`.
pub fn named(name: &str) -> Option<&'static Phase> {
    PHASES.iter().find(|phase| phase.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_brings_needs_nothing_else() {
        let transport: Vec<&Phase> = PHASES.iter().filter(|phase| is_transport(phase)).collect();
        assert_eq!(transport.len(), 3);
        for need in transport.iter().flat_map(|phase| phase.needs) {
            let (Here(name) | First(name) | Everywhere(name) | Turn(name)) = need;
            assert!(named(name).is_some_and(is_transport), "{name}");
        }
    }

    #[test]
    fn every_need_is_a_phase_told_before() {
        for (index, phase) in PHASES.iter().enumerate() {
            for need in phase.needs {
                let (Here(name) | First(name) | Everywhere(name) | Turn(name)) = need;
                let at = PHASES.iter().position(|other| other.name == *name);
                let is_later = matches!(need, Turn(_));
                assert!(
                    at.is_some_and(|at| (at > index) == is_later),
                    "{} needs {name}",
                    phase.name
                );
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
                    let on = named(name).map(|p| p.on);
                    assert!(!matches!(on, Some(On::Cluster | On::External)), "{}", phase.name);
                }
            }
        }
    }
}
