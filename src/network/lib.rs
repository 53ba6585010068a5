//! A node's network, in three roles that share nothing but small helpers.
//!
//! * [`cni`]: addresses for the node's pods and routes to the pods of other nodes (`clusterd network`);
//! * [`proxy`]: services and host ports as nftables rules (`clusterd proxy`);
//! * [`lb`]: every host's way to all API servers (`clusterd lb`).
//!
//! Each has a pure core that computes what must be, and a thin edge that makes it so. IPv4 only, for now.

mod cidr;
pub mod cni;
pub mod lb;
mod nft;
pub mod proxy;

pub use cidr::Cidr;
