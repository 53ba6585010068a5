//! The agent's contract with the programs it lives with: a real container runtime, a real API server.

// A test that cannot go on ends; the lint knows that only of functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod clients;
mod cluster;
mod containerd;
mod pods;
mod support;
