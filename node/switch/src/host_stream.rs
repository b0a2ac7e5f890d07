//! A socket of the host behind the same calls as a pipe.
//!
//! Reads and writes go straight to the kernel. Only when the kernel takes no more of a byte-level write, whose caller
//! may go away and never poll again, the rest waits in a bounded queue that one task drains.

use crate::error::{ReadError, Reset};
use crate::pipe::PIPE_BYTES_MAX;
use crate::stream::Breaker;
use crate::sync::lock;
use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;

/// The most that one byte-level read asks of the kernel.
const READ_BYTES_MAX: usize = 16 * 1024;

/// One end of a kernel connection.
pub(crate) struct HostStream {
    read: OwnedReadHalf,
    /// Read to find out whether there is something to read.
    ahead: Mutex<Bytes>,
    read_ended: AtomicBool,
    socket: Arc<Socket>,
}

/// The part that a draining task and the pod's list of connections share.
pub(crate) struct Socket {
    write: OwnedWriteHalf,
    runtime: Handle,
    rest: Mutex<Rest>,
    reset: AtomicBool,
}

/// Accepted bytes that the kernel has not taken yet.
#[derive(Default)]
struct Rest {
    queue: VecDeque<Bytes>,
    len: usize,
    /// A task is at work; it alone writes until the queue is empty.
    draining: bool,
    /// Nothing more comes; once the queue is empty the kernel is told.
    finished: bool,
    broken: bool,
    waker: Option<Waker>,
}

impl HostStream {
    /// Takes a connected socket over. Must be called inside a tokio runtime with I/O, which then serves the socket.
    pub(crate) fn new(stream: TcpStream, runtime: Handle) -> HostStream {
        let (read, write) = stream.into_split();
        let socket = Arc::new(Socket { write, runtime, rest: Mutex::default(), reset: AtomicBool::new(false) });
        HostStream { read, ahead: Mutex::default(), read_ended: AtomicBool::new(false), socket }
    }

    pub(crate) fn breaker(&self) -> Breaker {
        Breaker::Host(Arc::downgrade(&self.socket))
    }

    pub(crate) fn try_read(&self, max: usize) -> Result<Option<Bytes>, ReadError> {
        self.check_open()?;
        let mut ahead = lock(&self.ahead);
        if ahead.is_empty() {
            return self.read_kernel(max.clamp(1, READ_BYTES_MAX));
        }
        let len = ahead.len().min(max.max(1));
        Ok(Some(ahead.split_to(len)))
    }

    /// Readiness as the runtime knows it can be out of date; a guest would call that a lie. So this reads ahead, and is
    /// ready when there is something.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut ahead = lock(&self.ahead);
        loop {
            if !ahead.is_empty() || self.check_open().is_err() {
                return Poll::Ready(());
            }
            // An error of the runtime's shows again at the read.
            match self.read.as_ref().poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            match self.read_kernel(READ_BYTES_MAX) {
                Ok(Some(bytes)) => *ahead = bytes,
                Ok(None) => {}
                Err(_) => return Poll::Ready(()),
            }
        }
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.check_open() {
            Err(ReadError::Reset) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Err(ReadError::Eof) => return Poll::Ready(Ok(())),
            Ok(()) => {}
        }
        {
            let mut ahead = lock(&self.ahead);
            if !ahead.is_empty() {
                let len = ahead.len().min(buf.remaining());
                buf.put_slice(&ahead.split_to(len));
                return Poll::Ready(Ok(()));
            }
        }
        std::pin::Pin::new(&mut self.read).poll_read(cx, buf)
    }

    /// Whether reading still makes sense.
    fn check_open(&self) -> Result<(), ReadError> {
        if self.socket.reset.load(Ordering::Acquire) {
            return Err(ReadError::Reset);
        }
        if self.read_ended.load(Ordering::Acquire) { Err(ReadError::Eof) } else { Ok(()) }
    }

    /// Asks the kernel. An end is remembered, since the kernel tells of a reset only once.
    fn read_kernel(&self, max: usize) -> Result<Option<Bytes>, ReadError> {
        let mut buffer = BytesMut::with_capacity(max);
        match self.read.as_ref().try_read_buf(&mut bytes::BufMut::limit(&mut buffer, max)) {
            Ok(0) => {
                self.read_ended.store(true, Ordering::Release);
                Err(ReadError::Eof)
            }
            Ok(_) => Ok(Some(buffer.freeze())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(_) => {
                self.socket.reset.store(true, Ordering::Release);
                Err(ReadError::Reset)
            }
        }
    }

    pub(crate) fn writable_bytes(&self) -> usize {
        let rest = lock(&self.socket.rest);
        if rest.broken || rest.finished { PIPE_BYTES_MAX } else { PIPE_BYTES_MAX.saturating_sub(rest.len) }
    }

    pub(crate) fn try_write(&self, mut bytes: Bytes) -> Result<(), Reset> {
        let mut rest = lock(&self.socket.rest);
        if rest.broken || rest.finished {
            return Err(Reset);
        }
        while !rest.draining && !bytes.is_empty() {
            match self.socket.write.as_ref().try_write(&bytes) {
                Ok(count) => bytes.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    rest.draining = true;
                    self.socket.runtime.spawn(drain(self.socket.clone()));
                }
                Err(_) => {
                    rest.broken = true;
                    return Err(Reset);
                }
            }
        }
        if !bytes.is_empty() {
            rest.len += bytes.len();
            rest.queue.push_back(bytes);
        }
        Ok(())
    }

    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut rest = lock(&self.socket.rest);
        if rest.broken || rest.finished || rest.len < PIPE_BYTES_MAX {
            return Poll::Ready(());
        }
        rest.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn poll_write_vectored(
        &self,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        loop {
            match self.socket.write.as_ref().try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.write.as_ref().poll_write_ready(cx))?;
                }
                done => return Poll::Ready(done),
            }
        }
    }

    /// Ready when the kernel has everything.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut rest = lock(&self.socket.rest);
        if rest.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !rest.draining {
            return Poll::Ready(Ok(()));
        }
        rest.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn is_flushed(&self) -> bool {
        let rest = lock(&self.socket.rest);
        rest.broken || !rest.draining
    }

    pub(crate) fn shutdown_write(&self) {
        let mut rest = lock(&self.socket.rest);
        let first = !std::mem::replace(&mut rest.finished, true);
        if first && !rest.draining {
            self.socket.shutdown(Shutdown::Write);
        }
    }

    pub(crate) fn shutdown_read(&self) {
        self.read_ended.store(true, Ordering::Release);
        self.socket.shutdown(Shutdown::Read);
    }

    pub(crate) fn reset(&self) {
        self.socket.reset();
    }
}

impl Socket {
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
        // With no time to linger, closing sends a reset instead of an orderly end; shutting down wakes whoever waits.
        if let Err(error) = SockRef::from(self.write.as_ref()).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "socket takes no linger time");
        }
        self.shutdown(Shutdown::Both);
        let waker = {
            let mut rest = lock(&self.rest);
            rest.broken = true;
            rest.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A socket whose other end is gone already cannot be shut down; that is as good.
    fn shutdown(&self, how: Shutdown) {
        if let Err(error) = SockRef::from(self.write.as_ref()).shutdown(how) {
            tracing::trace!(%error, "socket was closed before");
        }
    }
}

/// Gives the rest to the kernel as it takes it. Ends when nothing is left or the connection breaks; a pod's removal
/// breaks it.
async fn drain(socket: Arc<Socket>) {
    loop {
        let ready = socket.write.as_ref().writable().await.is_ok();
        let (done, waker) = {
            let mut rest = lock(&socket.rest);
            rest.broken |= !ready;
            rest.write_some(socket.write.as_ref());
            let done = rest.broken || rest.queue.is_empty();
            if done {
                rest.draining = false;
                rest.queue = VecDeque::new();
                rest.len = 0;
            }
            let room = done || rest.len <= PIPE_BYTES_MAX / 2;
            (done, if room { rest.waker.take() } else { None })
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        if done {
            break;
        }
    }
    if lock(&socket.rest).finished {
        socket.shutdown(Shutdown::Write);
    }
}

impl Rest {
    fn write_some(&mut self, stream: &TcpStream) {
        while let Some(front) = self.queue.front_mut() {
            match stream.try_write(front) {
                Ok(count) => {
                    front.advance(count);
                    self.len -= count;
                    if front.is_empty() {
                        self.queue.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }
}
