//! Ranges of addresses in the form `10.64.0.0/10`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A range of addresses that share their first `prefix` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

/// A text that is not a range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address range like `10.64.0.0/10`")]
pub struct CidrError(pub String);

impl Cidr {
    /// The range of `prefix` leading bits around `addr`; `None` if the address has fewer bits.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Cidr> {
        let first = match addr {
            IpAddr::V4(v4) if prefix <= 32 => IpAddr::V4((v4.to_bits() & mask4(prefix)).into()),
            IpAddr::V6(v6) if prefix <= 128 => IpAddr::V6((v6.to_bits() & mask6(prefix)).into()),
            _ => return None,
        };
        Some(Cidr { first, prefix })
    }

    /// The lowest address of the range.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// How many leading bits the addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `addr` lies in the range; never for an address of the other family.
    pub fn contains(&self, addr: IpAddr) -> bool {
        Cidr::new(addr, self.prefix).is_some_and(|range| range.first == self.first)
    }
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parsed = text
            .split_once('/')
            .and_then(|(addr, prefix)| Some((addr.parse().ok()?, prefix.parse().ok()?)))
            .and_then(|(addr, prefix)| Cidr::new(addr, prefix));
        parsed.ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_addresses() {
        for (range, addr, inside) in [
            ("10.64.0.0/10", "10.64.0.1", true),
            ("10.64.0.0/10", "10.127.255.255", true),
            ("10.64.0.0/10", "10.128.0.0", false),
            ("10.64.0.0/10", "10.63.255.255", false),
            ("0.0.0.0/0", "255.1.2.3", true),
            ("1.2.3.4/32", "1.2.3.4", true),
            ("1.2.3.4/32", "1.2.3.5", false),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "10.0.0.1", false),
            ("::/0", "fe80::1", true),
        ] {
            let range: Cidr = range.parse().unwrap();
            assert_eq!(range.contains(addr.parse().unwrap()), inside, "{range} {addr}");
        }
        assert_eq!("10.65.3.4/10".parse::<Cidr>().unwrap().to_string(), "10.64.0.0/10");
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "10.0.0.0/-1", "a/b"] {
            assert_eq!(text.parse::<Cidr>(), Err(CidrError(text.to_owned())));
        }
    }
}
