//! The first bytes of a stream: what it carries, for whom.
//!
//! Two bytes of length, one of kind, then the kind's fields. An address is one byte of family (4 or 6), its bytes,
//! two bytes of port. Numbers are big-endian.

use crate::error::QuicError;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header: no kind needs more than two addresses, and there is room for an identity some day.
pub(crate) const HEADER_BYTES_MAX: usize = 512;

/// What a stream carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamHeader {
    /// A TCP connection between pods. One byte of answer comes first: zero when the connection is made.
    Tcp {
        /// The caller's address.
        from: SocketAddr,
        /// The callee's.
        to: SocketAddr,
    },
    /// One datagram that does not fit into a packet: the rest of the stream is its payload.
    Udp {
        /// The sender's address.
        from: SocketAddr,
        /// The receiver's.
        to: SocketAddr,
    },
    /// The kubelet API over HTTP/1.1.
    Kubelet,
    /// Messages of consensus from one control node to another, each behind its length, for as long as the link lives.
    Raft {
        /// The cluster that both are of: two clusters may share a CA, when one was restored from a backup of the other.
        cluster: [u8; 16],
    },
    /// A whole image of the state for a control node that lags behind. One byte of answer comes last: zero when it is
    /// taken.
    Snapshot {
        /// As for [`StreamHeader::Raft`].
        cluster: [u8; 16],
    },
}

const TCP: u8 = 1;
const UDP: u8 = 2;
const KUBELET: u8 = 3;
const RAFT: u8 = 4;
const SNAPSHOT: u8 = 5;

impl StreamHeader {
    /// The header with its length.
    pub(crate) fn encode(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(64);
        match self {
            StreamHeader::Tcp { from, to } => {
                body.put_u8(TCP);
                put_addr(&mut body, *from);
                put_addr(&mut body, *to);
            }
            StreamHeader::Udp { from, to } => {
                body.put_u8(UDP);
                put_addr(&mut body, *from);
                put_addr(&mut body, *to);
            }
            StreamHeader::Kubelet => body.put_u8(KUBELET),
            StreamHeader::Raft { cluster } => {
                body.put_u8(RAFT);
                body.put_slice(cluster);
            }
            StreamHeader::Snapshot { cluster } => {
                body.put_u8(SNAPSHOT);
                body.put_slice(cluster);
            }
        }
        let mut whole = BytesMut::with_capacity(2 + body.len());
        whole.put_u16(u16::try_from(body.len()).expect("a header is short"));
        whole.put(body);
        whole.freeze()
    }

    /// From the bytes behind the length. Bytes behind the known fields are for later versions and are skipped.
    pub(crate) fn decode(mut body: &[u8]) -> Result<StreamHeader, QuicError> {
        let kind = body.try_get_u8().map_err(|_| QuicError::Header)?;
        match kind {
            TCP => Ok(StreamHeader::Tcp { from: get_addr(&mut body)?, to: get_addr(&mut body)? }),
            UDP => Ok(StreamHeader::Udp { from: get_addr(&mut body)?, to: get_addr(&mut body)? }),
            KUBELET => Ok(StreamHeader::Kubelet),
            RAFT => Ok(StreamHeader::Raft { cluster: get_cluster(&mut body)? }),
            SNAPSHOT => Ok(StreamHeader::Snapshot { cluster: get_cluster(&mut body)? }),
            _ => Err(QuicError::Header),
        }
    }
}

fn get_cluster(from: &mut impl Buf) -> Result<[u8; 16], QuicError> {
    let mut cluster = [0; 16];
    from.try_copy_to_slice(&mut cluster).map_err(|_| QuicError::Header)?;
    Ok(cluster)
}

/// One datagram between pods: the two addresses, then the payload.
pub(crate) fn encode_datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(payload.len() + 40);
    put_addr(&mut whole, from);
    put_addr(&mut whole, to);
    whole.put_slice(payload);
    whole.freeze()
}

/// The parts of a datagram between pods.
pub(crate) fn decode_datagram(mut whole: Bytes) -> Result<(SocketAddr, SocketAddr, Bytes), QuicError> {
    let (from, to) = (get_addr(&mut whole)?, get_addr(&mut whole)?);
    Ok((from, to, whole))
}

fn put_addr(out: &mut BytesMut, addr: SocketAddr) {
    match addr.ip() {
        IpAddr::V4(v4) => {
            out.put_u8(4);
            out.put_u32(v4.to_bits());
        }
        IpAddr::V6(v6) => {
            out.put_u8(6);
            out.put_u128(v6.to_bits());
        }
    }
    out.put_u16(addr.port());
}

fn get_addr(from: &mut impl Buf) -> Result<SocketAddr, QuicError> {
    let mut read = || -> Result<Option<SocketAddr>, bytes::TryGetError> {
        let ip: IpAddr = match from.try_get_u8()? {
            4 => Ipv4Addr::from_bits(from.try_get_u32()?).into(),
            6 => Ipv6Addr::from_bits(from.try_get_u128()?).into(),
            _ => return Ok(None),
        };
        Ok(Some(SocketAddr::new(ip, from.try_get_u16()?)))
    };
    read().ok().flatten().ok_or(QuicError::Header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_wire() {
        let (v4, v6): (SocketAddr, SocketAddr) = ("10.64.0.2:80".parse().unwrap(), "[fd00::7]:65535".parse().unwrap());
        for header in [
            StreamHeader::Tcp { from: v4, to: v6 },
            StreamHeader::Udp { from: v6, to: v4 },
            StreamHeader::Kubelet,
            StreamHeader::Raft { cluster: [7; 16] },
            StreamHeader::Snapshot { cluster: [9; 16] },
        ] {
            let wire = header.encode();
            assert_eq!(usize::from(u16::from_be_bytes([wire[0], wire[1]])), wire.len() - 2);
            assert_eq!(StreamHeader::decode(&wire[2..]), Ok(header.clone()));
            for cut in 2..wire.len() {
                assert_eq!(StreamHeader::decode(&wire[2..cut]), Err(QuicError::Header), "{header:?} cut at {cut}");
            }
            let mut longer = wire[2..].to_vec();
            longer.extend_from_slice(b"more");
            assert_eq!(StreamHeader::decode(&longer), Ok(header));
        }
        assert_eq!(StreamHeader::decode(&[9]), Err(QuicError::Header));
        assert_eq!(StreamHeader::decode(&[TCP, 5, 0, 0, 0, 0, 0, 0]), Err(QuicError::Header));
        let payload = Bytes::from_static(b"payload");
        assert_eq!(decode_datagram(encode_datagram(v4, v6, &payload)), Ok((v4, v6, payload)));
        assert_eq!(decode_datagram(Bytes::from_static(&[4, 1])), Err(QuicError::Header));
    }
}
