//! What can go wrong on the pod network, one variant for each thing that a caller answers differently.

use std::io;

/// Why an operation on the pod network failed. The host turns it into an error code of the guest's world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// Nobody listens there, the listener's queue is full, or the service has no usable endpoint.
    #[error("connection refused")]
    Refused,
    /// Another socket of the pod has the address.
    #[error("address in use")]
    AddrInUse,
    /// The pod has no such address.
    #[error("address not available")]
    AddrNotAvailable,
    /// No pod has the address, or its node cannot be reached.
    #[error("host unreachable")]
    HostUnreachable,
    /// The other side did not answer in time.
    #[error("timed out")]
    TimedOut,
    /// The connection, or the pod itself, is gone.
    #[error("connection reset")]
    Reset,
    /// The name means nothing.
    #[error("name not found")]
    NameNotFound,
    /// The resolver could not answer now.
    #[error("temporary failure of the resolver")]
    ResolverFailure,
    /// Policy forbids it.
    #[error("denied by policy")]
    Denied,
    /// The socket is not in a state for it.
    #[error("invalid state")]
    InvalidState,
    /// No datagram can be that long.
    #[error("message too large")]
    MessageTooLarge,
}

impl NetError {
    /// The nearest word for a failed connect of the host.
    pub(crate) fn of_connect(error: &io::Error) -> NetError {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => NetError::Refused,
            io::ErrorKind::TimedOut => NetError::TimedOut,
            io::ErrorKind::PermissionDenied => NetError::Denied,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => NetError::Reset,
            _ => NetError::HostUnreachable,
        }
    }
}

/// Why a read gave no bytes and never will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The other side has ended its direction.
    #[error("end of stream")]
    Eof,
    /// The connection is broken.
    #[error("connection reset")]
    Reset,
}

/// A write that nobody will ever read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connection reset")]
pub struct Reset;

impl From<Reset> for io::Error {
    fn from(_: Reset) -> Self {
        io::ErrorKind::BrokenPipe.into()
    }
}
