//! Cutting one address range into equal parts and handing each out once. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address range: `10.0.0.0/16`, `fd00::/48`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    base: u128,
    prefix: u8,
    v6: bool,
}

impl Cidr {
    fn width(self) -> u8 {
        if self.v6 { 128 } else { 32 }
    }

    /// How many addresses there are below one of this prefix, as a power of two.
    fn host_bits(self) -> u8 {
        self.width() - self.prefix
    }

    /// Whether it is of IPv6.
    pub(crate) fn is_v6(self) -> bool {
        self.v6
    }

    fn mask(self) -> u128 {
        mask(self.host_bits())
    }

    fn contains(self, other: Cidr) -> bool {
        self.v6 == other.v6 && self.prefix <= other.prefix && other.base & self.mask() == self.base
    }
}

/// All ones but the lowest `host_bits`.
fn mask(host_bits: u8) -> u128 {
    if host_bits >= 128 { 0 } else { !0 << host_bits }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address range (want ADDRESS/BITS)");
        let (address, prefix) = text.trim().split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let (base, v6) = match address {
            IpAddr::V4(a) => (u128::from(u32::from(a)), false),
            IpAddr::V6(a) => (u128::from(a), true),
        };
        let width = if v6 { 128 } else { 32 };
        if prefix > width {
            return Err(wrong());
        }
        Ok(Self {
            base: base & mask(width - prefix),
            prefix,
            v6,
        })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.v6 {
            write!(f, "{}/{}", Ipv6Addr::from(self.base), self.prefix)
        } else {
            // An IPv4 base fits by construction.
            write!(
                f,
                "{}/{}",
                Ipv4Addr::from(u32::try_from(self.base).unwrap_or(0)),
                self.prefix
            )
        }
    }
}

/// A range and which of its parts are taken.
#[derive(Debug)]
pub(crate) struct Pool {
    range: Cidr,
    part: u8,
    taken: Vec<u64>,
    parts: usize,
    next: usize,
}

impl Pool {
    /// The parts of `range` with prefix length `part`.
    ///
    /// # Errors
    /// If a part would be larger than the range, or there would be more than 65536 of them.
    pub(crate) fn new(range: Cidr, part: u8) -> Result<Self, String> {
        if part < range.prefix || part > range.width() || part - range.prefix > 16 {
            return Err(format!("cannot cut {range} into /{part} for nodes"));
        }
        let parts = 1usize << (part - range.prefix);
        Ok(Self {
            range,
            part,
            taken: vec![0; parts.div_ceil(64)],
            parts,
            next: 0,
        })
    }

    /// Whether it is of IPv6.
    pub(crate) fn is_v6(&self) -> bool {
        self.range.v6
    }

    fn part(&self, index: usize) -> Cidr {
        let offset = (index as u128) << (self.range.width() - self.part);
        Cidr {
            base: self.range.base | offset,
            prefix: self.part,
            v6: self.range.v6,
        }
    }

    /// The parts that `cidr` overlaps; nothing if it lies outside.
    fn parts_of(&self, cidr: Cidr) -> Option<std::ops::RangeInclusive<usize>> {
        if cidr.contains(self.range) {
            return Some(0..=self.parts - 1);
        }
        if !self.range.contains(cidr) {
            return None;
        }
        let shift = self.range.width() - self.part;
        let first = (cidr.base - self.range.base) >> shift;
        let last = ((cidr.base | !cidr.mask()) - self.range.base) >> shift;
        Some(usize::try_from(first).ok()?..=usize::try_from(last).ok()?)
    }

    fn set(&mut self, index: usize, taken: bool) {
        if taken {
            self.taken[index / 64] |= 1 << (index % 64);
        } else {
            self.taken[index / 64] &= !(1 << (index % 64));
        }
    }

    fn is_taken(&self, index: usize) -> bool {
        self.taken[index / 64] & (1 << (index % 64)) != 0
    }

    /// Marks everything that `cidr` overlaps as taken.
    pub(crate) fn occupy(&mut self, cidr: Cidr) {
        for index in self.parts_of(cidr).into_iter().flatten() {
            self.set(index, true);
        }
    }

    /// Marks everything that `cidr` overlaps as free.
    pub(crate) fn release(&mut self, cidr: Cidr) {
        for index in self.parts_of(cidr).into_iter().flatten() {
            self.set(index, false);
        }
    }

    /// Takes the next free part, going round: what was freed last is used last.
    pub(crate) fn allocate(&mut self) -> Option<Cidr> {
        let free = (0..self.parts)
            .map(|i| (self.next + i) % self.parts)
            .find(|i| !self.is_taken(*i))?;
        self.set(free, true);
        self.next = (free + 1) % self.parts;
        Some(self.part(free))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn parts_are_handed_out_in_order_and_once() {
        let mut pool = Pool::new(cidr("100.64.0.0/16"), 24).unwrap();
        pool.occupy(cidr("100.64.1.0/24"));
        let got: Vec<_> = (0..3).filter_map(|_| pool.allocate()).map(|c| c.to_string()).collect();
        assert_eq!(got, ["100.64.0.0/24", "100.64.2.0/24", "100.64.3.0/24"]);
        pool.release(cidr("100.64.0.0/24"));
        assert_eq!(pool.allocate().unwrap().to_string(), "100.64.4.0/24");
        assert_eq!((0..300).filter_map(|_| pool.allocate()).count(), 252);
    }

    #[test]
    fn overlapping_ranges_are_not_handed_out() {
        let mut pool = Pool::new(cidr("10.0.0.0/8"), 16).unwrap();
        pool.occupy(cidr("10.0.0.0/15"));
        pool.occupy(cidr("10.2.3.0/24"));
        pool.occupy(cidr("192.168.0.0/16"));
        assert_eq!(pool.allocate().unwrap().to_string(), "10.3.0.0/16");
        pool.occupy(cidr("0.0.0.0/0"));
        assert_eq!(pool.allocate(), None);
    }

    #[test]
    fn ipv6_works_alike_and_nonsense_is_refused() {
        let mut pool = Pool::new(cidr("fd00::/48"), 64).unwrap();
        pool.occupy(cidr("fd00::/64"));
        assert_eq!(pool.allocate().unwrap().to_string(), "fd00:0:0:1::/64");
        for (range, part) in [("10.0.0.0/24", 16), ("10.0.0.0/4", 24), ("10.0.0.0/24", 33)] {
            assert!(Pool::new(cidr(range), part).is_err(), "{range} {part}");
        }
        for text in ["10.0.0.0", "x/8", "10.0.0.0/33", ""] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_handed_out_twice(ops in prop::collection::vec(any::<bool>(), 1..200)) {
            let mut pool = Pool::new(cidr("10.0.0.0/20"), 24).unwrap();
            let mut held: Vec<Cidr> = Vec::new();
            for take in ops {
                if take {
                    if let Some(c) = pool.allocate() {
                        prop_assert!(!held.contains(&c));
                        held.push(c);
                    } else {
                        prop_assert_eq!(held.len(), 16);
                    }
                } else if !held.is_empty() {
                    pool.release(held.remove(0));
                }
            }
        }
    }
}
