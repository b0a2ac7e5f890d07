//! One end of a connection, whatever lies between it and the other end.
//!
//! Two pods on one node talk through a [`Half`] each way. A connection that came in by a node port, or that leaves the
//! cluster, is a socket of the host, handed to the pod as it is: no task and no copy stands between the pod and the
//! kernel. Both look the same from outside, as `AsyncRead + AsyncWrite` and as byte-level calls that never wait.

use crate::error::{ReadError, Reset};
use crate::host_stream::HostStream;
use crate::pipe::Half;
use crate::pod::Registration;
use bytes::Bytes;
use dhow_mesh::LoadGuard;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

/// One end of a connection.
///
/// The byte-level calls take `&self`: a reader and a writer may share an `Arc<Stream>`, one task reading and one
/// writing. Dropping the stream ends it: the other side reads to the end, or sees a reset if this side left bytes
/// unread.
pub struct Stream {
    end: End,
    local: SocketAddr,
    peer: SocketAddr,
    /// What is held as long as the stream lives: its place in the pod's list, its count in the endpoint's load, its
    /// share of a limit.
    registration: Option<Registration>,
    load: Option<LoadGuard>,
    permit: Option<OwnedSemaphorePermit>,
}

enum End {
    /// `side` reads from `halves[side]` and writes to the other.
    Pipe {
        pipe: Arc<Pipe>,
        side: usize,
    },
    Host(HostStream),
}

/// A connection in memory: `halves[0]` is what side 0 reads, `halves[1]` is what side 1 reads.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    halves: [Half; 2],
}

impl Pipe {
    pub(crate) fn reset(&self) {
        self.halves.iter().for_each(Half::reset);
    }
}

/// The addresses that the two ends of a connection see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// The caller's own address, which the callee sees as its peer.
    pub(crate) from: SocketAddr,
    /// What the caller called: a service's address, maybe.
    pub(crate) called: SocketAddr,
    /// The callee's own address.
    pub(crate) to: SocketAddr,
}

impl Stream {
    /// A new connection in memory: the caller's end and the callee's.
    pub(crate) fn pair(ends: Ends) -> (Stream, Stream) {
        let pipe = Arc::new(Pipe::default());
        let end = |side: usize, local: SocketAddr, peer: SocketAddr| {
            Stream::new(End::Pipe { pipe: pipe.clone(), side }, local, peer)
        };
        (end(0, ends.from, ends.called), end(1, ends.to, ends.from))
    }

    /// A connection that the host's kernel carries.
    pub(crate) fn host(stream: HostStream, local: SocketAddr, peer: SocketAddr) -> Stream {
        Stream::new(End::Host(stream), local, peer)
    }

    fn new(end: End, local: SocketAddr, peer: SocketAddr) -> Stream {
        Stream { end, local, peer, registration: None, load: None, permit: None }
    }

    pub(crate) fn with_registration(mut self, registration: Registration) -> Stream {
        self.registration = Some(registration);
        self
    }

    pub(crate) fn with_load(mut self, load: Option<LoadGuard>) -> Stream {
        self.load = load;
        self
    }

    pub(crate) fn with_permit(mut self, permit: Option<OwnedSemaphorePermit>) -> Stream {
        self.permit = permit;
        self
    }

    /// What can break this connection from afar.
    pub(crate) fn breaker(&self) -> Breaker {
        match &self.end {
            End::Pipe { pipe, .. } => Breaker::Pipe(Arc::downgrade(pipe)),
            End::Host(host) => host.breaker(),
        }
    }

    /// This end's address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The other end's address, as this end called it.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The next bytes, at most `max`; `None` if there are none yet.
    pub fn try_read(&self, max: usize) -> Result<Option<Bytes>, ReadError> {
        let read = match &self.end {
            End::Pipe { pipe, side } => pipe.halves[*side].try_read(max),
            End::Host(host) => host.try_read(max),
        };
        if let (Some(registration), Ok(Some(bytes))) = (&self.registration, &read) {
            registration.pod().count_received(bytes.len());
        }
        read
    }

    /// Ready when [`Stream::try_read`] has something to say. Takes nothing; may be dropped and called again.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.end {
            End::Pipe { pipe, side } => pipe.halves[*side].poll_readable(cx),
            End::Host(host) => host.poll_readable(cx),
        }
    }

    /// How many bytes [`Stream::try_write`] takes now. A broken stream shows room, so that readiness is never a lie.
    pub fn writable_bytes(&self) -> usize {
        match &self.end {
            End::Pipe { pipe, side } => pipe.halves[1 - side].writable_bytes(),
            End::Host(host) => host.writable_bytes(),
        }
    }

    /// Takes all of `bytes`. The caller keeps within [`Stream::writable_bytes`]; what it gives beyond is taken too, so
    /// that a limit is the caller's to keep.
    pub fn try_write(&self, bytes: Bytes) -> Result<(), Reset> {
        if let Some(registration) = &self.registration {
            registration.pod().count_sent(bytes.len());
        }
        match &self.end {
            End::Pipe { pipe, side } => pipe.halves[1 - side].try_write(bytes),
            End::Host(host) => host.try_write(bytes),
        }
    }

    /// Ready when [`Stream::writable_bytes`] is not zero.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.end {
            End::Pipe { pipe, side } => pipe.halves[1 - side].poll_writable(cx),
            End::Host(host) => host.poll_writable(cx),
        }
    }

    /// Whether all that was written has left this end. In memory it always has.
    pub fn is_flushed(&self) -> bool {
        match &self.end {
            End::Pipe { .. } => true,
            End::Host(host) => host.is_flushed(),
        }
    }

    /// Nothing more will be written; the other side reads what is on its way and then the end.
    pub fn shutdown_write(&self) {
        match &self.end {
            End::Pipe { pipe, side } => pipe.halves[1 - side].finish(),
            End::Host(host) => host.shutdown_write(),
        }
    }

    /// Nothing more will be read; what comes is dropped.
    pub fn shutdown_read(&self) {
        match &self.end {
            End::Pipe { pipe, side } => pipe.halves[*side].discard(),
            End::Host(host) => host.shutdown_read(),
        }
    }

    /// Breaks the connection at once, for both ends.
    pub fn reset(&self) {
        match &self.end {
            End::Pipe { pipe, .. } => pipe.reset(),
            End::Host(host) => host.reset(),
        }
    }

    /// Counts what was written.
    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(registration), Poll::Ready(Ok(bytes))) = (&self.registration, &written) {
            registration.pod().count_sent(*bytes);
        }
        written
    }

    /// Whether nobody is left at the other end (known only in memory).
    pub(crate) fn is_left(&self) -> bool {
        match &self.end {
            End::Pipe { pipe, side } => pipe.halves[1 - side].is_left(),
            End::Host(_) => false,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let End::Pipe { pipe, side } = &self.end {
            if pipe.halves[*side].leave() {
                pipe.halves[1 - side].abort();
            } else {
                pipe.halves[1 - side].finish();
            }
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({} -> {})", self.local, self.peer)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.end {
            End::Pipe { pipe, side } => {
                let read = pipe.halves[*side].poll_read(cx, buf);
                read.map_err(|Reset| io::ErrorKind::ConnectionReset.into())
            }
            End::Host(host) => host.poll_read(cx, buf),
        };
        if let Some(registration) = &self.registration {
            registration.pod().count_received(buf.filled().len() - before);
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &self.end {
            End::Pipe { pipe, side } => pipe.halves[1 - side].poll_write(cx, bytes).map_err(io::Error::from),
            End::Host(host) => host.poll_write_vectored(cx, &[io::IoSlice::new(bytes)]),
        };
        self.sent(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &self.end {
            End::Pipe { .. } => {
                let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &**buf);
                self.poll_write(cx, first)
            }
            End::Host(host) => {
                let written = host.poll_write_vectored(cx, bufs);
                self.sent(written)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self.end, End::Host(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.end {
            End::Pipe { .. } => Poll::Ready(Ok(())),
            End::Host(host) => host.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown_write();
        self.poll_flush(cx)
    }
}

/// Breaks a connection that someone else holds.
pub(crate) enum Breaker {
    Pipe(std::sync::Weak<Pipe>),
    Host(std::sync::Weak<crate::host_stream::Socket>),
}

impl Breaker {
    pub(crate) fn reset(&self) {
        match self {
            Breaker::Pipe(pipe) => {
                if let Some(pipe) = pipe.upgrade() {
                    pipe.reset();
                }
            }
            Breaker::Host(socket) => {
                if let Some(socket) = socket.upgrade() {
                    socket.reset();
                }
            }
        }
    }
}
