//! A connection in memory: two bounded queues of bytes, one a direction.
//!
//! No task drives it. A writer moves its `Bytes` into the queue and wakes the reader; a reader takes them out and
//! wakes the writer. Locks are held for a few instructions and never while a waker runs.

use crate::error::{ReadError, Reset};
use crate::sync::lock;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use tokio::io::ReadBuf;

/// How many bytes one direction holds before its writer has to wait: about what a kernel gives a socket at first, and
/// enough for a guest that writes in 64 KiB pieces never to be split.
pub(crate) const PIPE_BYTES_MAX: usize = 64 * 1024;
/// A waiting writer is woken when this much is free, so that a slow reader does not wake it for every byte.
const PIPE_WAKE_FREE_MIN: usize = PIPE_BYTES_MAX / 4;
/// Pieces up to this size are gathered into one segment when the reader is behind; otherwise single-byte writes would
/// cost a segment's bookkeeping each, many times the byte budget.
const GATHER_MAX: usize = 1024;
/// The size at which a gathered segment is closed.
const SEGMENT_BYTES: usize = 4096;

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Half(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    segments: VecDeque<Bytes>,
    /// Small pieces, behind all segments.
    tail: BytesMut,
    /// Bytes in `segments` and `tail`.
    len: usize,
    end: End,
    reader: Reader,
    read_waker: Option<Waker>,
    write_waker: Option<Waker>,
}

/// The writer's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// Nothing more will be written; what is queued can still be read.
    Finished,
    /// The writer has gone without reading what it was sent: what is queued can still be read, then the direction is
    /// broken. A server that answers before it has read the whole request is heard, as on Linux.
    Aborted,
    /// Broken; what was queued is lost.
    Reset,
}

/// The reader's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reader {
    #[default]
    Reads,
    /// Whatever comes is dropped, and the writer does not notice.
    Discards,
    /// The reader is gone: a write breaks.
    Gone,
}

impl State {
    fn broken(&self) -> bool {
        self.end != End::Open || self.reader == Reader::Gone
    }

    fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        let gather = !self.tail.is_empty() || !self.segments.is_empty();
        if gather && bytes.len() <= GATHER_MAX {
            self.tail.extend_from_slice(&bytes);
            if self.tail.len() >= SEGMENT_BYTES {
                self.close_tail();
            }
        } else {
            self.close_tail();
            self.segments.push_back(bytes);
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.segments.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// The next bytes, at most `max`. The queue is not empty.
    fn pop(&mut self, max: usize) -> Bytes {
        if self.segments.is_empty() {
            self.close_tail();
        }
        let Some(front) = self.segments.front_mut() else { return Bytes::new() };
        let taken = if front.len() > max { front.split_to(max) } else { std::mem::take(front) };
        if self.segments.front().is_some_and(Bytes::is_empty) {
            self.segments.pop_front();
        }
        self.len -= taken.len();
        taken
    }

    /// The writer's waker, if there is room enough to wake it.
    fn room(&mut self) -> Option<Waker> {
        if PIPE_BYTES_MAX.saturating_sub(self.len) >= PIPE_WAKE_FREE_MIN { self.write_waker.take() } else { None }
    }

    fn clear(&mut self) {
        self.segments = VecDeque::new();
        self.tail = BytesMut::new();
        self.len = 0;
    }
}

impl Half {
    /// The next bytes, at most `max`; `None` if there are none yet.
    pub(crate) fn try_read(&self, max: usize) -> Result<Option<Bytes>, ReadError> {
        let (taken, waker) = {
            let mut state = lock(&self.0);
            match (state.len, state.end) {
                (_, End::Reset) => return Err(ReadError::Reset),
                _ if state.reader != Reader::Reads => return Err(ReadError::Eof),
                (0, End::Finished) => return Err(ReadError::Eof),
                (0, End::Aborted) => return Err(ReadError::Reset),
                (0, End::Open) => return Ok(None),
                _ => {}
            }
            (state.pop(max.max(1)), state.room())
        };
        wake(waker);
        Ok(Some(taken))
    }

    /// Copies what is there into `buf`; no bytes is the end of the stream.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<(), Reset>> {
        let waker = {
            let mut state = lock(&self.0);
            if state.end == End::Reset {
                return Poll::Ready(Err(Reset));
            }
            if state.reader != Reader::Reads || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if state.len == 0 {
                match state.end {
                    End::Finished => return Poll::Ready(Ok(())),
                    End::Aborted | End::Reset => return Poll::Ready(Err(Reset)),
                    End::Open => {}
                }
                keep(&mut state.read_waker, cx);
                return Poll::Pending;
            }
            while state.len > 0 && buf.remaining() > 0 {
                let bytes = state.pop(buf.remaining());
                buf.put_slice(&bytes);
            }
            state.room()
        };
        wake(waker);
        Poll::Ready(Ok(()))
    }

    /// Ready when [`Half::try_read`] has bytes or an error.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.len > 0 || state.end != End::Open || state.reader != Reader::Reads {
            return Poll::Ready(());
        }
        keep(&mut state.read_waker, cx);
        Poll::Pending
    }

    /// How much may be written now. A broken direction shows room, so that the writer comes and sees.
    pub(crate) fn writable_bytes(&self) -> usize {
        let state = lock(&self.0);
        if state.broken() { PIPE_BYTES_MAX } else { PIPE_BYTES_MAX.saturating_sub(state.len) }
    }

    /// Takes all of `bytes`, which the writer keeps within [`Half::writable_bytes`].
    pub(crate) fn try_write(&self, bytes: Bytes) -> Result<(), Reset> {
        let waker = {
            let mut state = lock(&self.0);
            if state.broken() {
                return Err(Reset);
            }
            if state.reader == Reader::Discards || bytes.is_empty() {
                return Ok(());
            }
            state.push(bytes);
            state.read_waker.take()
        };
        wake(waker);
        Ok(())
    }

    /// Copies as much of `bytes` in as fits.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Reset>> {
        let room = match self.poll_writable(cx) {
            Poll::Ready(()) => self.writable_bytes(),
            Poll::Pending => return Poll::Pending,
        };
        // Only this side adds bytes, so the room can but have grown.
        let count = bytes.len().min(room);
        Poll::Ready(self.try_write(Bytes::copy_from_slice(&bytes[..count])).map(|()| count))
    }

    /// Ready when there is room, or when writing would break.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.broken() || state.len < PIPE_BYTES_MAX {
            return Poll::Ready(());
        }
        keep(&mut state.write_waker, cx);
        Poll::Pending
    }

    /// The writer has said all.
    pub(crate) fn finish(&self) {
        self.end(End::Finished);
    }

    /// The writer is gone and has left bytes of the other direction unread.
    pub(crate) fn abort(&self) {
        self.end(End::Aborted);
    }

    fn end(&self, end: End) {
        let wakers = {
            let mut state = lock(&self.0);
            if state.end == End::Open {
                state.end = end;
            }
            [state.read_waker.take(), state.write_waker.take()]
        };
        wakers.into_iter().for_each(wake);
    }

    /// The reader wants no more; what is there and what comes is dropped.
    pub(crate) fn discard(&self) {
        let wakers = {
            let mut state = lock(&self.0);
            if state.reader == Reader::Reads {
                state.reader = Reader::Discards;
            }
            state.clear();
            [state.read_waker.take(), state.write_waker.take()]
        };
        wakers.into_iter().for_each(wake);
    }

    /// The reader is gone. Says whether bytes were left unread.
    pub(crate) fn leave(&self) -> bool {
        let (unread, waker) = {
            let mut state = lock(&self.0);
            let unread = state.len > 0 && state.reader == Reader::Reads;
            state.reader = Reader::Gone;
            state.clear();
            (unread, state.write_waker.take())
        };
        wake(waker);
        unread
    }

    /// Whether the reader is gone.
    pub(crate) fn is_left(&self) -> bool {
        lock(&self.0).reader == Reader::Gone
    }

    /// Breaks the direction for both sides.
    pub(crate) fn reset(&self) {
        let wakers = {
            let mut state = lock(&self.0);
            state.end = End::Reset;
            state.clear();
            [state.read_waker.take(), state.write_waker.take()]
        };
        wakers.into_iter().for_each(wake);
    }
}

fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests;
