//! Which name servers of a host pods can ask. Pure.
//!
//! A server on the loopback is the host's own: inside a pod that address is the pod itself, and cluster DNS, a pod too, has nobody to
//! ask for names outside of the cluster.

use host::Facts;
use std::net::IpAddr;

/// Where pods that use the host's name servers find them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Nameservers {
    /// In `/etc/resolv.conf`, or there are none at all, as is usual without a way out.
    Etc,
    /// In the file of systemd-resolved with the servers that it asks itself.
    Resolved,
    /// Nowhere: these of `/etc/resolv.conf` are on the loopback. `rest` tells whether it names others besides.
    Loopback {
        /// The addresses on the loopback.
        servers: Vec<String>,
        /// Whether there are others.
        rest: bool,
    },
}

impl Nameservers {
    /// Decides by what the host's files say.
    pub(crate) fn of(facts: &Facts) -> Self {
        let (servers, rest): (Vec<_>, Vec<_>) = facts.nameservers.iter().cloned().partition(|server| is_own(server));
        if servers.is_empty() {
            return Self::Etc;
        }
        if facts.resolved_nameservers.iter().any(|server| !is_own(server)) {
            return Self::Resolved;
        }
        let rest = !rest.is_empty();
        Self::Loopback { servers, rest }
    }
}

/// Whether an address means the machine that asks; the resolver takes the unspecified address for it as well.
fn is_own(server: &str) -> bool {
    let bare = server.split('%').next().unwrap_or_default();
    let address = bare.parse::<IpAddr>().map(|address| address.to_canonical());
    address.is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_ask_servers_that_they_can_reach() {
        let loopback = |servers: &[&str], rest| Nameservers::Loopback {
            servers: servers.iter().map(ToString::to_string).collect(),
            rest,
        };
        let cases: &[(&[&str], &[&str], Nameservers)] = &[
            (&[], &[], Nameservers::Etc),
            (&[], &["10.0.0.53"], Nameservers::Etc),
            (&["10.0.0.53", "fd00::53"], &["10.0.0.54"], Nameservers::Etc),
            (&["127.0.0.53"], &["10.0.0.53"], Nameservers::Resolved),
            (
                &["127.0.0.53", "10.0.0.1"],
                &["127.0.0.1", "10.0.0.53"],
                Nameservers::Resolved,
            ),
            (&["127.0.0.53"], &[], loopback(&["127.0.0.53"], false)),
            (&["127.0.0.53"], &["127.0.0.1"], loopback(&["127.0.0.53"], false)),
            (&["127.0.0.1", "10.0.0.1"], &[], loopback(&["127.0.0.1"], true)),
            (&["::1"], &[], loopback(&["::1"], false)),
            (&["::ffff:127.0.0.1"], &[], loopback(&["::ffff:127.0.0.1"], false)),
            (&["0.0.0.0"], &[], loopback(&["0.0.0.0"], false)),
            (&["fe80::1%eth0"], &[], Nameservers::Etc),
        ];
        for (etc, resolved, expected) in cases {
            let owned = |servers: &[&str]| servers.iter().map(ToString::to_string).collect();
            let facts = Facts {
                nameservers: owned(etc),
                resolved_nameservers: owned(resolved),
                ..Facts::default()
            };
            assert_eq!(Nameservers::of(&facts), *expected, "{etc:?} {resolved:?}");
        }
    }
}
