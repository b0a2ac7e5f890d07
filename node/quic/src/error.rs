//! What can go wrong on a link.

/// Why a link, or a stream on it, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuicError {
    /// The certificates or the key cannot be used.
    #[error("TLS identity is unusable: {0}")]
    Identity(String),
    /// The UDP port cannot be opened.
    #[error("UDP address `{addr}` cannot be opened: {reason}")]
    Bind {
        /// The address.
        addr: std::net::SocketAddr,
        /// Why.
        reason: String,
    },
    /// The peer cannot be reached, or one side does not trust the other.
    #[error("connecting to `{addr}` failed: {reason}")]
    Connect {
        /// The peer.
        addr: std::net::SocketAddr,
        /// Why.
        reason: String,
    },
    /// The connection has ended.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The peer did not answer in time.
    #[error("timed out")]
    TimedOut,
    /// The stream begins with something else than a header.
    #[error("malformed stream header")]
    Header,
    /// The datagram does not fit into one packet of this path.
    #[error("datagram too large")]
    TooLarge,
}
