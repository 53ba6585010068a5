//! SSH transport: connect to a host, prove who it is, prove who we are, run commands, open streams.
//!
//! Everything here is transport. This crate knows nothing of clusters, of what runs on the host or of terminals, it never
//! prompts, and it keeps no state but the connection; `known_hosts` is the only file it may write, and only when asked to.
//!
//! ```text
//! Config ──connect──▶ Connection ──exec──────────▶ Output          a command that ends by itself
//!                        │        ──open_process──▶ Process        a program we talk to over its stdin/stdout
//!                        │        ──connect_stream─▶ Stream         a TCP connection made by the host (direct-tcpip)
//!                        └─ jump: another Connection underneath
//! ```
//!
//! Commands are argument vectors; [`quote`] turns them into the one string SSH carries, and nothing else builds such strings.

mod activity;
mod aliases;
mod auth;
mod certificate;
mod config;
mod connection;
mod elevate;
mod error;
mod exec;
mod handler;
pub mod known_hosts;
mod process;
mod prompts;
mod quote;
mod secret;
mod shell;
mod upload;

pub use aliases::{Alias, AliasError, Aliases, Hop, Limits};
pub use config::{Auth, Become, Command, Config, HostKeyPolicy, Pin};
pub use connection::{Connection, Stream};
pub use error::{Error, Result};
pub use process::{ExitStatus, Output, Process, ProcessReader, ProcessStatus, ProcessWriter};
pub use quote::quote;
pub use secret::Secret;
pub use shell::plain;
