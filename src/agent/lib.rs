//! The node agent: runs the pods of one node through CRI, as the kubelet does.
//!
//! Pods come from static manifests (`statics`) and from the API server (`sources`); the `manager` gives each a `worker`,
//! which asks the pure `machine` what to do and does it with `start`, `volumes`, `cgroup` and the runtime (`cri`). `relist`
//! says what the runtime has, `probe` how containers are, `status` what the API is told. Around them: `node` (the Node
//! object), `tls` (certificates), `server` (logs, exec), `eviction`, `gc`.
//!
//! **Containers belong to the runtime**: when the agent ends, they go on running, and the next agent adopts them.
//! **No API server is needed** for static pods. There is no state on disk but certificates and the pods' own files.

mod actions;
mod admission;
mod api_client;
mod args;
mod backoff;
mod cgroup;
mod config;
mod cri;
mod ctx;
mod dns;
mod env;
mod error;
mod events;
mod eviction;
mod gc;
mod images;
mod logs;
mod machine;
mod machine_info;
#[cfg(test)]
mod machine_tests;
mod make;
mod manager;
mod names;
mod node;
mod objects;
mod observed;
mod probe;
mod qos;
mod quantity;
mod relist;
mod run;
mod security;
mod server;
mod sources;
mod spec;
mod start;
mod statics;
mod status;
#[cfg(test)]
mod status_tests;
mod status_writer;
mod storage_limits;
mod tls;
mod volumes;
mod worker;

pub use args::Args;
pub use error::Error;
pub use names::MADE_BY_PODS;
pub use run::run;
