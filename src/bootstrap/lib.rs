//! From hosts to a verified cluster: facts, plan, phases; check, join and reset.
//!
//! ```text
//! Clusterfile + image ─▶ wish ─┐
//! hosts ─▶ session ─▶ facts ───┴▶ site ─▶ preflight ─▶ plan ─▶ run(PHASES) ─▶ verify
//! ```
//!
//! * **What is wanted of a host is pure**: [`effects`] computes values, a plan previews them, an apply applies the same.
//! * **The order is one list**: [`phases::PHASES`].
//! * **No state here**: hosts hold the truth about hosts, etcd about the cluster. A killed apply is simply run again.
//! * Nothing here knows a terminal, asks a question, or builds a shell line.

pub mod airgap;
pub mod apps;
pub mod bandwidth;
mod board;
pub mod certs;
pub mod check;
pub mod cluster;
#[cfg(test)]
mod contract;
mod control_plane;
pub mod drift;
pub mod effects;
mod error;
pub mod etcd;
pub mod event;
pub mod fan;
mod handout;
pub mod hooks;
pub mod image;
pub mod install;
pub mod kubeconfig;
mod local;
mod login;
mod nameservers;
mod order;
mod overlay;
pub mod paths;
pub mod phases;
mod pin;
pub mod plan;
pub mod preflight;
mod push;
mod reach;
pub mod recover;
pub mod redact;
pub mod render;
pub mod reset;
pub mod rolling;
pub mod run;
pub mod runs;
pub mod runtime;
mod script;
pub mod session;
mod signed;
#[cfg(test)]
mod signed_tests;
pub mod site;
mod spread;
pub mod status;
pub mod supply;
pub mod support;
pub mod swarm;
pub mod template;
#[cfg(test)]
mod testing;
pub mod transfer;
pub mod verify;
pub mod way;
mod ways;
pub mod wish;

pub use error::{Error, Result};
