//! A link to one peer, and the streams on it.

use crate::endpoint::STREAMS_START;
use crate::error::QuicError;
use crate::header::{HEADER_BYTES_MAX, StreamHeader};
use crate::tls::subject;
use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use rustls_pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most streams that a peer may have open. Beyond it, it waits.
const STREAMS_MAX: u32 = 65_536;
/// How long opening a stream may wait for the peer's permission.
const OPEN: Duration = Duration::from_secs(10);
/// How long the first bytes of a stream may take: they leave together with the stream itself.
const HEADER: Duration = Duration::from_secs(10);
/// The code with which a stream is broken off. There is nothing to tell: the other side sees a reset.
const RESET: VarInt = VarInt::from_u32(1);

/// A link to a peer whose certificate has been verified. Cheap to clone; [`Connection::close`] ends it for all.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    connection: quinn::Connection,
    peer: String,
    organizations: Vec<String>,
    /// Streams that the peer has opened and that live still, and how many it may.
    accepted: Arc<AtomicU32>,
    allowed: AtomicU32,
}

impl Connection {
    pub(crate) fn new(connection: quinn::Connection) -> Result<Connection, QuicError> {
        let peer = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .and_then(|chain| subject(chain.first()?));
        let Some((peer, organizations)) = peer else {
            connection.close(RESET, b"no name");
            return Err(QuicError::Identity("peer's certificate has no common name".to_owned()));
        };
        let allowed = AtomicU32::new(STREAMS_START);
        Ok(Connection(Arc::new(Inner { connection, peer, organizations, accepted: Arc::default(), allowed })))
    }

    /// The common name of the peer's verified certificate, `system:node:n1` for one.
    pub fn peer(&self) -> &str {
        &self.0.peer
    }

    /// Whether the peer's verified certificate names this organization.
    pub fn is_in(&self, organization: &str) -> bool {
        self.0.organizations.iter().any(|one| one == organization)
    }

    /// Where the peer is.
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.connection.remote_address()
    }

    /// Opens a stream and says what it carries.
    pub async fn open(&self, header: &StreamHeader) -> Result<BiStream, QuicError> {
        let opened = tokio::time::timeout(OPEN, self.0.connection.open_bi()).await;
        let (send, recv) = opened.map_err(|_| QuicError::TimedOut)?.map_err(lost)?;
        let mut stream = BiStream { send, recv, ended: false, _count: None };
        stream.send.write_all(&header.encode()).await.map_err(lost)?;
        Ok(stream)
    }

    /// The next stream that the peer opens, with its header. Streams with a bad header are reset and skipped. Not
    /// cancel-safe; who selects uses [`Connection::opened`].
    pub async fn accept(&self) -> Result<(StreamHeader, BiStream), QuicError> {
        loop {
            match self.opened().await?.header().await {
                Ok(accepted) => return Ok(accepted),
                Err(error) => tracing::debug!(peer = self.peer(), %error, "stream is refused"),
            }
        }
    }

    /// The next stream that the peer opens, before its header has been read. Cancel-safe.
    pub async fn opened(&self) -> Result<Opened, QuicError> {
        let (send, recv) = self.0.connection.accept_bi().await.map_err(lost)?;
        let count = Count::new(&self.0.accepted);
        let (live, allowed) = (self.0.accepted.load(Ordering::Relaxed), self.0.allowed.load(Ordering::Relaxed));
        if live >= allowed / 4 * 3 && allowed < STREAMS_MAX {
            self.0.allowed.store(allowed * 2, Ordering::Relaxed);
            self.0.connection.set_max_concurrent_bi_streams((allowed * 2).into());
        }
        Ok(Opened(BiStream { send, recv, ended: false, _count: Some(count) }))
    }

    /// Sends one datagram; it may get lost.
    pub fn send_datagram(&self, payload: Bytes) -> Result<(), QuicError> {
        match self.0.connection.send_datagram(payload) {
            Ok(()) => Ok(()),
            Err(quinn::SendDatagramError::ConnectionLost(error)) => Err(lost(error)),
            Err(_) => Err(QuicError::TooLarge),
        }
    }

    /// The next datagram. Cancel-safe.
    pub async fn recv_datagram(&self) -> Result<Bytes, QuicError> {
        self.0.connection.read_datagram().await.map_err(lost)
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> QuicError {
        lost(self.0.connection.closed().await)
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.0.connection.close_reason().is_some()
    }

    /// Ends the connection and all its streams.
    pub fn close(&self) {
        self.0.connection.close(VarInt::from_u32(0), b"closed");
    }

    pub(crate) fn is(&self, other: &Connection) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn lost(error: impl std::fmt::Display) -> QuicError {
    QuicError::Lost(error.to_string())
}

/// Counts a stream as long as it lives.
struct Count(Arc<AtomicU32>);

impl Count {
    fn new(count: &Arc<AtomicU32>) -> Count {
        count.fetch_add(1, Ordering::Relaxed);
        Count(count.clone())
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream whose header has not been read.
pub struct Opened(BiStream);

impl Opened {
    /// Reads what the stream carries. A stream that does not say it in time, or in other words, is reset.
    pub async fn header(self) -> Result<(StreamHeader, BiStream), QuicError> {
        let Opened(mut stream) = self;
        let header = tokio::time::timeout(HEADER, read_header(&mut stream.recv)).await;
        Ok((header.map_err(|_| QuicError::TimedOut)??, stream))
    }
}

async fn read_header(recv: &mut RecvStream) -> Result<StreamHeader, QuicError> {
    let mut len = [0; 2];
    recv.read_exact(&mut len).await.map_err(|_| QuicError::Header)?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > HEADER_BYTES_MAX {
        return Err(QuicError::Header);
    }
    let mut body = vec![0; len];
    recv.read_exact(&mut body).await.map_err(|_| QuicError::Header)?;
    StreamHeader::decode(&body)
}

/// A stream of bytes both ways. Shutting down ends one direction in order; dropping it before resets it.
pub struct BiStream {
    send: SendStream,
    recv: RecvStream,
    ended: bool,
    _count: Option<Count>,
}

impl Drop for BiStream {
    fn drop(&mut self) {
        // The other direction is stopped by quinn. An error means that the stream has ended before.
        if !self.ended && self.send.reset(RESET).is_err() {
            tracing::trace!("stream had ended");
        }
    }
}

impl AsyncRead for BiStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf)
    }
}

impl AsyncWrite for BiStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            self.ended = true;
            // An error means that the peer wants no more: then it has all that it wants.
            if self.send.finish().is_err() {
                tracing::trace!("peer had stopped the stream");
            }
        }
        Poll::Ready(Ok(()))
    }
}
