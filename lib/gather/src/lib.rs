//! A byte stream whose small writes leave together.
//!
//! HTTP/2 writes each DATA frame of more than a kilobyte by itself, and TLS makes each write a record and a system call:
//! a connection on which a hundred answers are ready writes a hundred times. A [`Gather`] keeps what is written during
//! one poll of a task, and [`Gather::driving`], wrapped around that task's future, writes it out behind the poll. So
//! nothing waits any longer than the poll itself.
//!
//! Invariants: bytes leave in their order; none is kept behind a poll of the task that wrote it, unless the peer does not
//! take it; a write waits when [`KEPT_BYTES_MAX`] are kept; an error of the stream is told by the next call.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is kept of one poll at most: four records of TLS. Beyond, it is written at once.
pub const KEPT_BYTES_MAX: usize = 64 << 10;

/// With so much, which fills a record of TLS, a task does not give way to others before it writes it out.
const ENOUGH_BYTES: usize = 16 << 10;

/// The stream. Clones are handles of the same stream.
#[derive(Debug)]
pub struct Gather<S>(Arc<Mutex<Inner<S>>>);

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    /// What has not left yet: from `left` on.
    kept: Vec<u8>,
    left: usize,
    /// Something was written that the stream may not have passed on yet.
    unflushed: bool,
    /// The others have had their turn.
    has_waited: bool,
    /// The task that wrote last: it writes out, for the stream wakes one task only.
    writer: Option<Waker>,
    failed: Option<io::Error>,
}

impl<S> Clone for Gather<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Gather<S> {
    /// Gathers what is written to `stream`. What is written outside of a future of [`Gather::driving`] leaves with the
    /// next write inside of one.
    pub fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream,
            kept: Vec::new(),
            left: 0,
            unflushed: false,
            has_waited: false,
            writer: None,
            failed: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// The same future, but what it writes leaves soon after. A future that ends should shut the stream down before:
    /// nobody waits for what the peer does not take at once then.
    pub fn driving<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F, S> {
        let gather = self.clone();
        async move {
            let mut future = pin!(future);
            let turn = |cx: &mut Context<'_>| {
                let polled = future.as_mut().poll(cx);
                gather.lock().end_turn(cx, polled.is_ready());
                polled
            };
            std::future::poll_fn(turn).await
        }
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn end_turn(&mut self, cx: &mut Context<'_>, is_last: bool) {
        let is_ours = self.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker()));
        if !is_ours || !self.unflushed {
            return;
        }
        if !self.has_waited && !is_last && self.kept.len() < ENOUGH_BYTES {
            // A task that wakes itself is polled again behind all that are ready.
            self.has_waited = true;
            return cx.waker().wake_by_ref();
        }
        if let Poll::Ready(Err(error)) = self.poll_out(cx) {
            self.failed = Some(error);
            // The task hears of it when it writes or flushes.
            cx.waker().wake_by_ref();
        }
    }

    /// Writes out all that is kept.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left < self.kept.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.kept[self.left..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.left += written;
        }
        // An idle connection holds no memory for this.
        self.kept = Vec::new();
        self.left = 0;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.unflushed = false;
        self.has_waited = false;
        Poll::Ready(Ok(()))
    }

    fn check(&mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Whether there is room for more, made if need be.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        match &self.writer {
            Some(writer) if writer.will_wake(cx.waker()) => {}
            _ => self.writer = Some(cx.waker().clone()),
        }
        if self.kept.len() >= KEPT_BYTES_MAX { self.poll_out(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        ready!(inner.poll_room(cx))?;
        let mut room = KEPT_BYTES_MAX - inner.kept.len();
        let before = room;
        inner.unflushed = true;
        for slice in slices {
            let part = &slice[..slice.len().min(room)];
            inner.kept.extend_from_slice(part);
            room -= part.len();
        }
        Poll::Ready(Ok(before - room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Says that it is done: the end of the poll does it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.lock().check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        inner.check()?;
        ready!(inner.poll_out(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Takes what it is given, so many bytes at a time, and notes how much.
    #[derive(Debug, Default)]
    struct Notes {
        writes: Vec<usize>,
        at_most: Option<usize>,
        broken: bool,
    }

    impl AsyncWrite for Notes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            if self.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let taken = self.at_most.unwrap_or(usize::MAX).min(bytes.len());
            self.writes.push(taken);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_written_in_one_poll_leaves_as_one_write() {
        let mut gather = Gather::new(Notes::default());
        let work = async |mut gather: Gather<Notes>| {
            for _ in 0..3 {
                gather.write_all(&[7; 1000]).await.unwrap();
                gather.flush().await.unwrap();
            }
            tokio::task::yield_now().await;
            assert_eq!(gather.lock().stream.writes, []);
            gather.write_all(&[7; 10]).await.unwrap();
            tokio::task::yield_now().await;
            assert_eq!(gather.lock().stream.writes, [3010]);
            gather.write_all(&[7; ENOUGH_BYTES]).await.unwrap();
            tokio::task::yield_now().await;
            assert_eq!(gather.lock().stream.writes, [3010, ENOUGH_BYTES]);
        };
        gather.driving(work(gather.clone())).await;
        // Outside, it waits for the end of the stream at the latest.
        gather.write_all(&[7; 5]).await.unwrap();
        gather.shutdown().await.unwrap();
        assert_eq!(gather.lock().stream.writes, [3010, ENOUGH_BYTES, 5]);
        assert_eq!(gather.lock().kept.capacity(), 0);
    }

    #[tokio::test]
    async fn much_is_written_at_once_and_in_order() {
        let (near, mut far) = tokio::io::duplex(1000);
        let gather = Gather::new(near);
        let text: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let work = async |mut gather: Gather<tokio::io::DuplexStream>| {
            gather.write_all(&text).await.unwrap();
            assert!(gather.lock().kept.len() <= KEPT_BYTES_MAX);
            gather.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let reading = async {
            far.read_to_end(&mut read).await.unwrap();
        };
        tokio::join!(gather.driving(work(gather.clone())), reading);
        assert!(read == text);
    }

    #[tokio::test]
    async fn what_a_peer_does_not_take_is_written_when_it_does() {
        let (near, mut far) = tokio::io::duplex(10);
        let gather = Gather::new(near);
        let mut writer = gather.clone();
        let work = gather.driving(async move {
            writer.write_all(&[1; 25]).await.unwrap();
            std::future::pending::<()>().await;
        });
        let mut read = [0; 25];
        tokio::select! {
            () = work => unreachable!("it never ends"),
            read = far.read_exact(&mut read) => assert_eq!(read.unwrap(), 25),
        }
    }

    #[tokio::test]
    async fn an_error_is_told_by_the_next_call() {
        let gather = Gather::new(Notes { broken: true, ..Notes::default() });
        let mut writer = gather.clone();
        let told = gather.driving(async move {
            writer.write_all(&[1]).await.unwrap();
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            writer.flush().await.unwrap_err().kind()
        });
        assert_eq!(told.await, io::ErrorKind::BrokenPipe);
        let slow = Gather::new(Notes { at_most: Some(2), ..Notes::default() });
        let mut writer = slow.clone();
        let work = slow.driving(async move {
            writer.write_all(&[1; 5]).await.unwrap();
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        });
        work.await;
        assert_eq!(slow.lock().stream.writes, [2, 2, 1]);
    }
}
