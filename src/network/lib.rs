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
mod start;
#[cfg(test)]
mod testing;

pub use cidr::Cidr;

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    enum Roles {
        Network(crate::cni::Args),
        Proxy(crate::proxy::Args),
        Lb(crate::lb::Args),
    }

    #[test]
    fn flags_are_consistent_and_those_of_the_manifests_are_taken() {
        Roles::command().debug_assert();
        for line in [
            "x network --node-name a --cluster-cidr=100.64.0.0/16 --service-cidr=10.96.0.0/16 --cni-conf-dir=/etc/cni/net.d",
            "x network --cleanup",
            "x proxy --node-name a --cluster-cidr=100.64.0.0/16 --service-cidr=10.96.0.0/16 --healthz-bind-address=0.0.0.0:10256",
            "x lb --listen 127.0.0.1:6444 --server 10.0.0.1:6443 --server 10.0.0.2:6443",
            "x lb --servers-file /run/servers",
        ] {
            assert!(Roles::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert!(Roles::try_parse_from(["x", "lb"]).is_err());
        assert!(Roles::try_parse_from(["x", "network", "--node-name", "a", "--cluster-cidr", "nonsense"]).is_err());
    }
}
