//! Addresses: ranges of hosts, and the CIDR blocks of pods and services.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 block, e.g. `10.96.0.0/16`; the address is the block's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// The block's first address.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// The prefix length, 0 to 32.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `address` lies in the block.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == u32::from(self.network)
    }

    /// Whether the two blocks share an address.
    #[must_use]
    pub fn overlaps(self, other: Cidr) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The address `index` steps after the first, if the block has it.
    #[must_use]
    pub fn nth(self, index: u32) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(u32::from(self.network).checked_add(index)?);
        self.contains(address).then_some(address)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl serde::Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why a text is no address, range or block; the message is complete.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(String);

impl AddressError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        AddressError(message.into())
    }
}

impl FromStr for Cidr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError(format!("{text:?} is not an IPv4 block such as 10.96.0.0/16"));
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(bad)?;
        let network = Ipv4Addr::from(u32::from(address) & mask(prefix));
        if network != address {
            return Err(AddressError(format!(
                "{text:?} has host bits set, did you mean \"{network}/{prefix}\"?"
            )));
        }
        Ok(Cidr { network, prefix })
    }
}

/// More hosts than this in one range is a slip, not a wish.
const LARGEST_RANGE: u32 = 4096;

/// Expands `10.0.0.1` or `10.0.0.1-10.0.0.9` to its addresses.
///
/// # Errors
/// If it is neither, if the range runs backwards, or is larger than 4096 addresses.
pub fn expand_range(text: &str) -> Result<Vec<Ipv4Addr>, AddressError> {
    if text.contains('/') && !text.contains("//") {
        return Err(AddressError(format!(
            "{text:?} is a block; list addresses or write a range a-b"
        )));
    }
    let (first, last) = match text.split_once('-') {
        Some((first, last)) if first.trim().parse::<Ipv4Addr>().is_ok() => (first, Some(last)),
        // Not the first half of a range: a name may have hyphens.
        _ => (text, None),
    };
    let first = address(first)?;
    let Some(last) = last else {
        return Ok(vec![first]);
    };
    let (first, last) = (u32::from(first), u32::from(address(last)?));
    if last < first {
        return Err(AddressError(format!("the range {text:?} runs backwards")));
    }
    if last - first >= LARGEST_RANGE {
        return Err(AddressError(format!(
            "the range {text:?} has more than {LARGEST_RANGE} addresses"
        )));
    }
    Ok((first..=last).map(Ipv4Addr::from).collect())
}

/// One IPv4 address. What people write around one goes into a field of its own, and the error says which.
fn address(text: &str) -> Result<Ipv4Addr, AddressError> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let bare = text
        .trim_start_matches('[')
        .split([']', '%'])
        .next()
        .unwrap_or_default();
    if bare.parse::<std::net::Ipv6Addr>().is_ok() {
        return Err(AddressError(format!(
            "{text:?} is an IPv6 address; hosts are reached by IPv4 for now"
        )));
    }
    let plain = text.strip_prefix("ssh://").unwrap_or(text);
    // What stands before the @ may hold a password, so it is not repeated.
    let (has_user, host) = plain.rsplit_once('@').map_or((false, plain), |(_, host)| (true, host));
    let shown = if has_user {
        format!("…@{host}")
    } else {
        text.to_owned()
    };
    let (host, port) = host
        .split_once(':')
        .map_or((host, None), |(host, port)| (host, Some(port)));
    if host.parse::<Ipv4Addr>().is_err() || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(AddressError(format!("{shown:?} is not an IPv4 address")));
    }
    let user = has_user.then(|| "the user into ssh.user".to_owned());
    let port = port.map(|port| format!("the port into ssh.port ({port})"));
    let others: Vec<String> = user.into_iter().chain(port).collect();
    let others = match others.len() {
        0 => String::new(),
        _ => format!(", and {}", others.join(" and ")),
    };
    Err(AddressError(format!(
        "{shown:?} is more than an address: write {host} here{others}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_expand_and_nonsense_is_named() {
        assert_eq!(expand_range("10.0.0.254-10.0.1.1").unwrap().len(), 4);
        assert_eq!(
            expand_range("10.0.0.1").unwrap(),
            ["10.0.0.1".parse::<Ipv4Addr>().unwrap()]
        );
        for bad in [
            "10.0.0.9-10.0.0.1",
            "10.0.0.0/24",
            "10.0.0",
            "",
            "::1",
            "10.0.0.1-",
            "0.0.0.0-255.255.255.255",
        ] {
            assert!(expand_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_stands_around_an_address_is_told_with_its_field() {
        let port = "is more than an address: write 192.0.2.11 here, and the port into ssh.port (22)";
        let both = "is more than an address: write 192.0.2.11 here, and the user into ssh.user and the port into ssh.port (22)";
        for (text, expected) in [
            ("192.0.2.11:22", port),
            ("ssh://ann@192.0.2.11:22", both),
            ("ann:hunter2@192.0.2.11:22", both),
            ("192.0.2.9-192.0.2.11:22", port),
            ("::1", "is an IPv6 address"),
            ("[2001:db8::1]:22", "is an IPv6 address"),
            ("fe80::1%eth0", "is an IPv6 address"),
            ("db-1.example.org", "\"db-1.example.org\" is not an IPv4 address"),
            ("192.0.2.11:x:y", "is not an IPv4 address"),
        ] {
            let error = expand_range(text).unwrap_err().to_string();
            assert!(
                error.contains(expected) && !error.contains("hunter2"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn blocks_know_their_addresses() {
        let block: Cidr = "10.96.0.0/16".parse().unwrap();
        assert_eq!(block.nth(10), Some(Ipv4Addr::new(10, 96, 0, 10)));
        assert_eq!(block.nth(65536), None);
        assert!(block.overlaps("10.96.4.0/24".parse().unwrap()));
        assert!(!block.overlaps("10.97.0.0/16".parse().unwrap()));
        assert!("10.96.0.0/0".parse::<Cidr>().is_err());
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains(Ipv4Addr::BROADCAST));
        let error = "10.96.0.1/16".parse::<Cidr>().unwrap_err();
        assert!(error.to_string().contains("10.96.0.0/16"));
    }
}
