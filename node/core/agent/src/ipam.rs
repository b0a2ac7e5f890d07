//! Which address a pod gets: the first that is free, going round the node's range, so that an address rests before it
//! is used again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use dhow_types::Uid;

/// The pod addresses of one node.
#[derive(Clone, Debug)]
pub struct Ipam {
    first: u32,
    /// One past the last usable address.
    end: u32,
    next: u32,
    taken: BTreeMap<u32, Uid>,
    by_pod: BTreeMap<Uid, u32>,
}

/// A text that is not an IPv4 range with room for pods.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IPv4 range with room for pods, like `10.64.0.0/18`")]
pub struct BadRange(pub String);

/// No address is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node's pod addresses are used up")]
pub struct UsedUp;

impl Ipam {
    /// From `node.spec.podCIDR`. The first two addresses (network and gateway) and the last stay free.
    pub fn new(cidr: &str) -> Result<Self, BadRange> {
        let bad = || BadRange(cidr.to_owned());
        let (base, bits) = cidr.split_once('/').ok_or_else(bad)?;
        let base: Ipv4Addr = base.parse().map_err(|_| bad())?;
        let bits: u32 = bits.parse().map_err(|_| bad())?;
        if !(1..=29).contains(&bits) {
            return Err(bad());
        }
        let size = 1u32 << (32 - bits);
        let base = u32::from(base) & !(size - 1);
        let first = base + 2;
        Ok(Self { first, end: base + (size - 1), next: first, taken: BTreeMap::new(), by_pod: BTreeMap::new() })
    }

    /// Keeps the address that a pod already has, if it lies in the range and is free.
    pub fn reserve(&mut self, uid: &Uid, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        let ip = u32::from(ip);
        if !(self.first..self.end).contains(&ip) || self.taken.get(&ip).is_some_and(|owner| owner != uid) {
            return false;
        }
        self.free(uid);
        self.taken.insert(ip, uid.clone());
        self.by_pod.insert(uid.clone(), ip);
        true
    }

    /// The pod's address; a new one if it has none.
    pub fn assign(&mut self, uid: &Uid) -> Result<IpAddr, UsedUp> {
        if let Some(ip) = self.by_pod.get(uid) {
            return Ok(Ipv4Addr::from(*ip).into());
        }
        let ip =
            (self.next..self.end).chain(self.first..self.next).find(|ip| !self.taken.contains_key(ip)).ok_or(UsedUp)?;
        self.next = if ip + 1 < self.end { ip + 1 } else { self.first };
        self.taken.insert(ip, uid.clone());
        self.by_pod.insert(uid.clone(), ip);
        Ok(Ipv4Addr::from(ip).into())
    }

    /// Gives the pod's address back.
    pub fn free(&mut self, uid: &Uid) {
        if let Some(ip) = self.by_pod.remove(uid) {
            self.taken.remove(&ip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: u32) -> Uid {
        Uid::new(format!("u{n}"))
    }

    #[test]
    fn addresses_go_round_and_are_given_back() {
        let mut ipam = Ipam::new("10.64.0.0/29").unwrap();
        let got: Vec<_> = (0..5).map(|n| ipam.assign(&uid(n)).unwrap().to_string()).collect();
        assert_eq!(got, ["10.64.0.2", "10.64.0.3", "10.64.0.4", "10.64.0.5", "10.64.0.6"]);
        assert_eq!(ipam.assign(&uid(9)), Err(UsedUp));
        ipam.free(&uid(1));
        ipam.free(&uid(3));
        assert_eq!(ipam.assign(&uid(10)).unwrap().to_string(), "10.64.0.3");
        assert_eq!(ipam.assign(&uid(11)).unwrap().to_string(), "10.64.0.5");
        assert_eq!(ipam.assign(&uid(0)).unwrap().to_string(), "10.64.0.2", "a pod keeps its address");
    }

    #[test]
    fn a_pod_takes_its_old_address_up_again_if_it_is_free() {
        let mut ipam = Ipam::new("10.64.64.0/18").unwrap();
        assert!(ipam.reserve(&uid(1), "10.64.64.2".parse().unwrap()));
        assert!(!ipam.reserve(&uid(2), "10.64.64.2".parse().unwrap()));
        assert!(!ipam.reserve(&uid(2), "10.64.0.9".parse().unwrap()), "outside of the range");
        assert_eq!(ipam.assign(&uid(2)).unwrap().to_string(), "10.64.64.3");
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "10.64.0.0", "10.64.0.0/31", "10.64.0.0/x", "fd00::/64", "300.1.1.1/8"] {
            assert!(Ipam::new(text).is_err(), "{text}");
        }
    }
}
