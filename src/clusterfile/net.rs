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
    if text.contains(':') {
        return Err(AddressError(format!(
            "{text:?} is an IPv6 address; hosts are reached by IPv4 for now"
        )));
    }
    if text.contains('/') {
        return Err(AddressError(format!(
            "{text:?} is a block; list addresses or write a range a-b"
        )));
    }
    let address = |part: &str| {
        part.trim()
            .parse::<Ipv4Addr>()
            .map_err(|_| AddressError(format!("{:?} is not an IPv4 address", part.trim())))
    };
    let Some((first, last)) = text.split_once('-') else {
        return Ok(vec![address(text)?]);
    };
    let (first, last) = (u32::from(address(first)?), u32::from(address(last)?));
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
