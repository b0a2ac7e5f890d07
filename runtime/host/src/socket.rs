//! What TCP and UDP sockets of guests have in common.

use std::net::{IpAddr, SocketAddr};

use dhow_switch::NetError;
use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};

/// The buffer size that a guest reads back until it sets one; the pipes' sizes are fixed.
const BUFFER_BYTES_DEFAULT: u64 = 64 * 1024;

/// Values that a guest may set and read back on any socket; none has a meaning on a virtual network.
#[derive(Clone, Copy)]
pub(crate) struct Tunables {
    pub(crate) hop_limit: u8,
    pub(crate) receive_buffer: u64,
    pub(crate) send_buffer: u64,
}

impl Default for Tunables {
    fn default() -> Self {
        Self { hop_limit: 64, receive_buffer: BUFFER_BYTES_DEFAULT, send_buffer: BUFFER_BYTES_DEFAULT }
    }
}

/// The Pod network is IPv4; a program that tries both families goes on with the other one.
pub(crate) fn check_family(family: IpAddressFamily) -> SocketResult<()> {
    match family {
        IpAddressFamily::Ipv4 => Ok(()),
        IpAddressFamily::Ipv6 => Err(ErrorCode::NotSupported.into()),
    }
}

/// Sets a value that must not be zero.
pub(crate) fn set_positive<T: PartialEq + Default>(slot: &mut T, value: T) -> SocketResult<()> {
    if value == T::default() {
        return Err(ErrorCode::InvalidArgument.into());
    }
    *slot = value;
    Ok(())
}

/// The error code that a guest sees for a failure of the Pod's network.
pub(crate) fn error_code(error: NetError) -> ErrorCode {
    match error {
        NetError::Refused => ErrorCode::ConnectionRefused,
        NetError::AddrInUse => ErrorCode::AddressInUse,
        NetError::AddrNotAvailable => ErrorCode::AddressNotBindable,
        NetError::HostUnreachable => ErrorCode::RemoteUnreachable,
        NetError::TimedOut => ErrorCode::Timeout,
        NetError::Reset => ErrorCode::ConnectionReset,
        NetError::NameNotFound => ErrorCode::NameUnresolvable,
        NetError::Denied => ErrorCode::AccessDenied,
        NetError::InvalidState => ErrorCode::InvalidState,
        NetError::MessageTooLarge => ErrorCode::DatagramTooLarge,
        NetError::ResolverFailure => ErrorCode::TemporaryResolverFailure,
        _ => ErrorCode::Unknown,
    }
}

/// A destination that no connection can have.
pub(crate) fn is_invalid_destination(to: &SocketAddr) -> bool {
    let multicast = match to.ip() {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_multicast(),
    };
    to.port() == 0 || to.ip().is_unspecified() || multicast || to.is_ipv6()
}
