//! Carries bytes between a pod's stream and anything else, both ways, in one future.

use crate::error::ReadError;
use crate::stream::Stream;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// The most that is moved in one step.
const CHUNK_BYTES: usize = 32 * 1024;
/// Steps in one turn; then other tasks get theirs.
const STEPS_MAX: usize = 64;

/// Carries bytes between `stream` and `io` until both directions have ended, or one breaks; then the other end of
/// `stream` sees a reset. An end of one direction is passed on while the other goes on.
pub async fn splice(stream: Stream, io: impl AsyncRead + AsyncWrite + Send + Unpin) -> io::Result<()> {
    let mut splice = Splice {
        stream,
        io,
        outgoing: Bytes::new(),
        buffer: BytesMut::new(),
        unflushed: false,
        out: Flow::Open,
        into: Flow::Open,
    };
    poll_fn(|cx| splice.poll(cx)).await
}

impl<T> Drop for Splice<T> {
    /// Whoever is cut off in the middle must not take it for an orderly end.
    fn drop(&mut self) {
        if self.out != Flow::Ended || self.into != Flow::Ended {
            self.stream.reset();
        }
    }
}

struct Splice<T> {
    stream: Stream,
    io: T,
    /// Read from the stream, not yet taken by `io`.
    outgoing: Bytes,
    buffer: BytesMut,
    unflushed: bool,
    out: Flow,
    into: Flow,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    /// The source has ended; the sink is being told.
    Ending,
    Ended,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Splice<T> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..STEPS_MAX {
            let out = self.step_out(cx)?;
            let into = self.step_in(cx)?;
            if self.out == Flow::Ended && self.into == Flow::Ended {
                return Poll::Ready(Ok(()));
            }
            if out.is_pending() && into.is_pending() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One step from the stream to `io`. Pending when it has to wait or has ended.
    fn step_out(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        match self.out {
            Flow::Ended => return Ok(Poll::Pending),
            Flow::Ending => {
                if Pin::new(&mut self.io).poll_shutdown(cx)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                self.out = Flow::Ended;
                return Ok(Poll::Ready(()));
            }
            Flow::Open => {}
        }
        if self.outgoing.is_empty() {
            match self.stream.try_read(CHUNK_BYTES) {
                Ok(Some(bytes)) => self.outgoing = bytes,
                Ok(None) => {
                    if self.unflushed && Pin::new(&mut self.io).poll_flush(cx)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Ok(self.stream.poll_readable(cx));
                }
                Err(ReadError::Eof) => {
                    self.out = Flow::Ending;
                    return Ok(Poll::Ready(()));
                }
                Err(ReadError::Reset) => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
        match Pin::new(&mut self.io).poll_write(cx, &self.outgoing)? {
            Poll::Ready(0) => Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(count) => {
                self.outgoing.advance(count);
                self.unflushed = true;
                Ok(Poll::Ready(()))
            }
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// One step from `io` to the stream. Pending when it has to wait or has ended.
    fn step_in(&mut self, cx: &mut Context<'_>) -> io::Result<Poll<()>> {
        if self.into == Flow::Ended {
            return Ok(Poll::Pending);
        }
        if self.out == Flow::Ended && self.stream.is_left() {
            // Nobody is left to read what may still come.
            self.into = Flow::Ended;
            return Ok(Poll::Ready(()));
        }
        if self.stream.poll_writable(cx).is_pending() {
            return Ok(Poll::Pending);
        }
        let room = self.stream.writable_bytes().min(CHUNK_BYTES);
        self.buffer.reserve(room.min(CHUNK_BYTES / 2));
        let mut limited = (&mut self.buffer).limit(room);
        let count = match pin!(self.io.read_buf(&mut limited)).poll(cx)? {
            Poll::Ready(count) => count,
            Poll::Pending => {
                // An idle connection keeps no buffer.
                self.buffer = BytesMut::new();
                return Ok(Poll::Pending);
            }
        };
        if count == 0 {
            self.stream.shutdown_write();
            self.into = Flow::Ended;
            return Ok(Poll::Ready(()));
        }
        let bytes = self.buffer.split().freeze();
        self.stream.try_write(bytes).map_err(io::Error::from)?;
        Ok(Poll::Ready(()))
    }
}
