//! The addresses that a pod's sockets have taken, per protocol.

use crate::error::NetError;
use std::net::{IpAddr, SocketAddr};

/// The first port given to whoever does not ask for one, and the last: Linux' default range.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;
/// A pod's bound sockets of one protocol. The limit keeps a guest from making its node search a long list at every
/// connect; beyond it, a bind finds no address.
const BOUND_MAX: usize = 4096;

/// Bound addresses and what stands behind them, sorted by port. A pod mostly has one: a vector is the smallest form.
#[derive(Debug)]
pub(crate) struct Ports<T> {
    taken: Vec<(SocketAddr, T)>,
    next: u16,
}

impl<T> Default for Ports<T> {
    fn default() -> Self {
        Self { taken: Vec::new(), next: *EPHEMERAL.start() }
    }
}

impl<T> Ports<T> {
    /// Takes `addr` for `value`; port 0 means any free one. Two sockets share a port only on different addresses.
    pub(crate) fn take(&mut self, addr: SocketAddr, value: T) -> Result<SocketAddr, NetError> {
        if self.taken.len() >= BOUND_MAX {
            return Err(NetError::AddrNotAvailable);
        }
        let addr = match addr.port() {
            0 => SocketAddr::new(addr.ip(), self.free(addr.ip()).ok_or(NetError::AddrNotAvailable)?),
            port if self.conflicts(addr.ip(), port) => return Err(NetError::AddrInUse),
            _ => addr,
        };
        let at = self.taken.partition_point(|(other, _)| other.port() <= addr.port());
        self.taken.insert(at, (addr, value));
        Ok(addr)
    }

    /// Gives `addr` back.
    pub(crate) fn release(&mut self, addr: SocketAddr) {
        self.taken.retain(|(other, _)| *other != addr);
        self.taken.shrink_to(self.taken.len() * 2);
    }

    pub(crate) fn get_mut(&mut self, addr: SocketAddr) -> Option<&mut T> {
        self.taken.iter_mut().find(|(other, _)| *other == addr).map(|(_, value)| value)
    }

    /// Who gets what is sent to `to`: a socket on exactly this address, else one on all addresses.
    pub(crate) fn find(&self, to: SocketAddr) -> Option<&T> {
        let exact = self.on_port(to.port()).find(|(addr, _)| addr.ip() == to.ip());
        exact.or_else(|| self.on_port(to.port()).find(|(addr, _)| addr.ip().is_unspecified())).map(|(_, value)| value)
    }

    /// Whoever has this port, on whatever address.
    pub(crate) fn find_port(&self, port: u16) -> impl Iterator<Item = (SocketAddr, &T)> {
        self.on_port(port).map(|(addr, value)| (*addr, value))
    }

    /// A port for an outgoing connection. It is not kept: what is unique is the pair with the other end.
    pub(crate) fn ephemeral(&mut self, ip: IpAddr) -> u16 {
        self.free(ip).unwrap_or(*EPHEMERAL.start())
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.taken).into_iter().map(|(_, value)| value)
    }

    fn on_port(&self, port: u16) -> impl Iterator<Item = &(SocketAddr, T)> {
        let first = self.taken.partition_point(|(addr, _)| addr.port() < port);
        self.taken[first..].iter().take_while(move |(addr, _)| addr.port() == port)
    }

    fn conflicts(&self, ip: IpAddr, port: u16) -> bool {
        self.on_port(port).any(|(other, _)| other.ip() == ip || other.ip().is_unspecified() || ip.is_unspecified())
    }

    fn free(&mut self, ip: IpAddr) -> Option<u16> {
        for _ in EPHEMERAL {
            let port = self.next;
            self.next = if port == *EPHEMERAL.end() { *EPHEMERAL.start() } else { port + 1 };
            if !self.conflicts(ip, port) {
                return Some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_conflict_as_on_linux() {
        for (first, second, expected) in [
            ("0.0.0.0:80", "0.0.0.0:80", Err(NetError::AddrInUse)),
            ("0.0.0.0:80", "127.0.0.1:80", Err(NetError::AddrInUse)),
            ("127.0.0.1:80", "0.0.0.0:80", Err(NetError::AddrInUse)),
            ("127.0.0.1:80", "10.0.0.2:80", Ok("10.0.0.2:80")),
            ("127.0.0.1:80", "127.0.0.1:81", Ok("127.0.0.1:81")),
            ("0.0.0.0:32768", "0.0.0.0:0", Ok("0.0.0.0:32769")),
        ] {
            let mut ports = Ports::default();
            ports.take(first.parse().unwrap(), 1).unwrap();
            let taken = ports.take(second.parse().unwrap(), 2);
            assert_eq!(taken, expected.map(|addr| addr.parse().unwrap()), "{first} {second}");
        }
    }

    #[test]
    fn the_nearest_address_is_found() {
        let mut ports = Ports::default();
        for (addr, value) in [("127.0.0.1:80", 1), ("10.0.0.2:80", 2), ("0.0.0.0:81", 3), ("127.0.0.1:82", 4)] {
            ports.take(addr.parse().unwrap(), value).unwrap();
        }
        for (to, expected) in [
            ("127.0.0.1:80", Some(1)),
            ("10.0.0.2:80", Some(2)),
            ("10.0.0.2:81", Some(3)),
            ("10.0.0.2:82", None),
            ("10.0.0.2:83", None),
        ] {
            assert_eq!(ports.find(to.parse().unwrap()).copied(), expected, "{to}");
        }
        ports.release("0.0.0.0:81".parse().unwrap());
        assert_eq!(ports.find("10.0.0.2:81".parse().unwrap()), None);
    }
}
