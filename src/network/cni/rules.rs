//! The nftables table of this node's pods: masquerading of what leaves the cluster.

use crate::Cidr;

/// The table's name (family `ip`).
pub const TABLE: &str = "installer-network";
/// The chain whose presence says that the table is there.
pub const CHAIN: &str = "postrouting";

/// The whole table as one transaction.
///
/// Packets of pods keep their address inside the cluster's pod network. Anyone else, the nodes' own addresses included, may not
/// know a way back to a pod, and sees the node's address.
pub fn table(pods: Cidr, cluster: Cidr) -> String {
    let removal = crate::nft::removal(TABLE);
    format!(
        "{removal}table ip {TABLE} {{
\tchain {CHAIN} {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr {pods} ip daddr != {cluster} ip daddr != 224.0.0.0/4 masquerade
\t}}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_nodes_pods_are_masqueraded_and_only_towards_the_outside() {
        let table = table("100.64.1.0/24".parse().unwrap(), "100.64.0.0/16".parse().unwrap());
        assert!(table.contains("ip saddr 100.64.1.0/24 ip daddr != 100.64.0.0/16"));
        assert!(table.starts_with("add table ip installer-network\ndelete table ip installer-network\n"));
        assert!(!table.contains("flush ruleset"));
    }
}
