//! What a pod may reach outside of the cluster.

use crate::error::NetError;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The rule for connections that leave the cluster through the host.
///
/// Never reachable, unless `allow` names the very address: the host's loopback, link-local addresses (where clouds
/// serve their metadata and credentials), multicast and broadcast.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    /// Nothing but `allow`.
    pub closed: bool,
    /// Addresses that are reachable in any case: the API server of a cluster on one machine, for one.
    pub allow: Vec<SocketAddr>,
}

impl Egress {
    /// Whether a pod may talk to `to`.
    pub(crate) fn check(&self, to: SocketAddr) -> Result<(), NetError> {
        let permitted = self.allow.contains(&to) || (!self.closed && is_open(to.ip()));
        if permitted { Ok(()) } else { Err(NetError::Denied) }
    }
}

/// Metadata services outside of the link-local ranges: Alibaba's, and Amazon's over IPv6.
const METADATA: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

/// Whether an address may be reached by default.
pub(crate) fn is_open(ip: IpAddr) -> bool {
    let closed = match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let this_net = v4.octets()[0] == 0;
            v4.is_loopback() || this_net || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            let embedded = v6.to_ipv4().is_some_and(|v4| !is_open(IpAddr::V4(v4)));
            v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast() || embedded
        }
    };
    !closed && !METADATA.contains(&ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_and_its_cloud_stay_closed() {
        for (to, open) in [
            ("192.0.2.7:80", true),
            ("192.168.1.7:80", true),
            ("[2001:db8::1]:80", true),
            ("127.0.0.1:6443", false),
            ("127.9.9.9:80", false),
            ("0.0.0.0:80", false),
            ("0.1.2.3:80", false),
            ("169.254.169.254:80", false),
            ("100.100.100.200:80", false),
            ("224.0.0.1:80", false),
            ("255.255.255.255:80", false),
            ("[::]:80", false),
            ("[::1]:80", false),
            ("[fe80::1]:80", false),
            ("[ff02::1]:80", false),
            ("[fd00:ec2::254]:80", false),
            ("[::ffff:127.0.0.1]:80", false),
            ("[::ffff:169.254.169.254]:80", false),
            ("[::127.0.0.1]:80", false),
        ] {
            let to: SocketAddr = to.parse().unwrap();
            assert_eq!(Egress::default().check(to).is_ok(), open, "{to}");
            assert_eq!(Egress { closed: true, allow: vec![] }.check(to), Err(NetError::Denied));
            assert_eq!(Egress { closed: true, allow: vec![to] }.check(to), Ok(()));
        }
    }
}
