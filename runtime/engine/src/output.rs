//! What guests write and read: stdout and stderr on their way to a log, a buffer, or a stream, and stdin.
//!
//! Everything that a guest writes passes a bounded buffer; when it is full the guest waits, so that nothing is lost and
//! nothing grows.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use wasmtime_wasi::cli::{AsyncStdinStream, IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::logs::LogPipe;

/// Bytes that wait between a guest and whatever takes its output. At the limit the guest waits.
pub(crate) const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// A longer line goes on in parts, as every container runtime does it.
pub(crate) const LINE_BYTES_MAX: usize = 16 * 1024;

/// Which of its two outputs a guest wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

impl Channel {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Whole lines, or a part of one, that a guest wrote.
pub(crate) struct Chunk {
    pub(crate) at: SystemTime,
    pub(crate) channel: Channel,
    /// The last line of it is not finished.
    pub(crate) partial: bool,
    pub(crate) bytes: Bytes,
}

/// Where the output of one container goes.
#[derive(Clone)]
pub(crate) enum Sink {
    Log { pipe: Arc<LogPipe>, tee: Arc<Tee>, tty: bool },
    Capture(Arc<Capture>),
    Streams { stdout: Arc<BytePipe>, stderr: Arc<BytePipe>, tty: bool },
}

impl Sink {
    /// A stream for one instance. Handles that its guest opens share one line.
    pub(crate) fn open(&self, channel: Channel) -> Output {
        Output { line: Arc::new(Line { sink: self.clone(), channel, rest: Mutex::new(BytesMut::new()) }) }
    }

    /// Notes something about the container where its user looks first: among its errors.
    pub(crate) fn note(&self, text: &str) {
        match self {
            Self::Log { pipe, tee, .. } => {
                let (channel, bytes) = (Channel::Stderr, Bytes::from(format!("{text}\n")));
                tee.push(channel, &bytes);
                pipe.push(Chunk { at: SystemTime::now(), channel, partial: false, bytes });
            }
            Self::Capture(capture) => capture.push(format!("{text}\n").as_bytes()),
            Self::Streams { stderr, .. } => stderr.push(Bytes::from(format!("{text}\n"))),
        }
    }

    /// Waits until everything written so far has left the buffer.
    pub(crate) async fn flushed(&self) {
        match self {
            Self::Log { pipe, .. } => pipe.flushed().await,
            Self::Capture(_) => {}
            Self::Streams { stdout, stderr, .. } => {
                stdout.flushed().await;
                stderr.flushed().await;
            }
        }
    }

    /// The container has ended: nothing more will be written.
    pub(crate) fn close(&self) {
        match self {
            Self::Log { pipe, tee, .. } => {
                pipe.close();
                tee.close();
            }
            Self::Capture(_) => {}
            Self::Streams { stdout, stderr, .. } => {
                stdout.close();
                stderr.close();
            }
        }
    }

    fn space(&self, channel: Channel) -> Option<usize> {
        match self {
            Self::Log { pipe, .. } => Some(pipe.space()),
            Self::Capture(_) => Some(BUFFER_BYTES_MAX),
            Self::Streams { stdout, stderr, .. } => match channel {
                Channel::Stdout => stdout.space(),
                Channel::Stderr => stderr.space(),
            },
        }
    }

    fn poll_space(&self, channel: Channel, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Log { pipe, .. } => pipe.poll_space(cx),
            Self::Capture(_) => Poll::Ready(()),
            Self::Streams { stdout, stderr, .. } => match channel {
                Channel::Stdout => stdout.poll_space(cx),
                Channel::Stderr => stderr.poll_space(cx),
            },
        }
    }
}

/// Stdout or stderr of one instance; all handles that the guest opens are clones of it.
#[derive(Clone)]
pub(crate) struct Output {
    line: Arc<Line>,
}

/// The line that one instance is writing. Lines of different instances never mix, because only whole ones go on.
struct Line {
    sink: Sink,
    channel: Channel,
    rest: Mutex<BytesMut>,
}

impl Line {
    fn write(&self, bytes: &Bytes) {
        match &self.sink {
            Sink::Log { pipe, tee, .. } => {
                tee.push(self.channel, bytes);
                self.write_lines(pipe, bytes);
            }
            Sink::Capture(capture) => capture.push(bytes),
            Sink::Streams { stdout, stderr, .. } => match self.channel {
                Channel::Stdout => stdout.push(bytes.clone()),
                Channel::Stderr => stderr.push(bytes.clone()),
            },
        }
    }

    fn write_lines(&self, pipe: &Arc<LogPipe>, bytes: &Bytes) {
        let mut rest = lock(&self.rest);
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if whole > 0 {
            let lines = if rest.is_empty() {
                bytes.slice(..whole)
            } else {
                rest.extend_from_slice(&bytes[..whole]);
                rest.split().freeze()
            };
            pipe.push(self.chunk(lines, false));
        }
        rest.extend_from_slice(&bytes[whole..]);
        if rest.len() >= LINE_BYTES_MAX {
            pipe.push(self.chunk(rest.split().freeze(), true));
        }
    }

    fn chunk(&self, bytes: Bytes, partial: bool) -> Chunk {
        Chunk { at: SystemTime::now(), channel: self.channel, partial, bytes }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let rest = self.rest.get_mut().unwrap_or_else(PoisonError::into_inner).split().freeze();
        if let (Sink::Log { pipe, .. }, false) = (&self.sink, rest.is_empty()) {
            pipe.push(self.chunk(rest, true));
        }
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        matches!(self.line.sink, Sink::Streams { tty: true, .. } | Sink::Log { tty: true, .. })
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.line.sink.space(self.line.channel).ok_or(StreamError::Closed)?;
        self.line.write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.line.sink.space(self.line.channel).ok_or(StreamError::Closed)
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {
        poll_fn(|cx| self.line.sink.poll_space(self.line.channel, cx)).await;
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.line.sink.poll_space(self.line.channel, cx));
        let space = self.line.sink.space(self.line.channel).ok_or(io::ErrorKind::BrokenPipe)?;
        let bytes = &bytes[..bytes.len().min(space)];
        self.line.write(&Bytes::copy_from_slice(bytes));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Who listens to a running container. A listener that does not keep up misses output: neither the guest nor the log,
/// which has it all, waits for it.
#[derive(Default)]
pub(crate) struct Tee {
    /// Whether there is anybody, so that a guest that nobody listens to pays nothing.
    any: AtomicBool,
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    pipes: Vec<(Channel, Arc<BytePipe>)>,
    closed: bool,
}

impl Tee {
    /// A pipe that gets what is written to a channel from now on.
    pub(crate) fn listen(&self, channel: Channel) -> Arc<BytePipe> {
        let pipe = BytePipe::new();
        let mut listeners = lock(&self.listeners);
        if listeners.closed {
            pipe.close();
        } else {
            listeners.pipes.push((channel, pipe.clone()));
            self.any.store(true, Ordering::Relaxed);
        }
        pipe
    }

    fn push(&self, channel: Channel, bytes: &Bytes) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut listeners = lock(&self.listeners);
        listeners.pipes.retain(|(_, pipe)| pipe.space().is_some());
        self.any.store(!listeners.pipes.is_empty(), Ordering::Relaxed);
        for (_, pipe) in listeners.pipes.iter().filter(|(of, _)| *of == channel) {
            if pipe.space().is_some_and(|space| space >= bytes.len()) {
                pipe.push(bytes.clone());
            }
        }
    }

    fn close(&self) {
        let mut listeners = lock(&self.listeners);
        listeners.closed = true;
        listeners.pipes.drain(..).for_each(|(_, pipe)| pipe.close());
    }
}

/// Keeps the first bytes of a container's output.
pub(crate) struct Capture {
    bytes: Mutex<Vec<u8>>,
    max: usize,
}

impl Capture {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(Vec::new()), max })
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = lock(&self.bytes);
        let room = self.max.saturating_sub(kept.len());
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// A bounded queue of bytes to a writer that a task of ours feeds.
#[derive(Default)]
pub(crate) struct BytePipe {
    state: Mutex<PipeState>,
}

#[derive(Default)]
struct PipeState {
    queue: VecDeque<Bytes>,
    /// Bytes in the queue and in the write under way.
    held: usize,
    /// Nothing more will be pushed.
    closed: bool,
    /// The writer is gone: the guest sees its stream closed.
    broken: bool,
    writers: Vec<Waker>,
    pump: Option<Waker>,
}

impl BytePipe {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn push(&self, bytes: Bytes) {
        let mut state = lock(&self.state);
        if !state.broken && !bytes.is_empty() {
            state.held += bytes.len();
            state.queue.push_back(bytes);
            wake(state.pump.take());
        }
    }

    fn space(&self) -> Option<usize> {
        let state = lock(&self.state);
        (!state.broken).then(|| BUFFER_BYTES_MAX.saturating_sub(state.held))
    }

    fn poll_space(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.broken || state.held < BUFFER_BYTES_MAX {
            return Poll::Ready(());
        }
        remember(&mut state.writers, cx);
        Poll::Pending
    }

    async fn flushed(&self) {
        poll_fn(|cx| {
            let mut state = lock(&self.state);
            if state.broken || state.held == 0 {
                return Poll::Ready(());
            }
            remember(&mut state.writers, cx);
            Poll::Pending
        })
        .await;
    }

    fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        wake(state.pump.take());
    }

    /// Nobody takes anything out any more.
    pub(crate) fn abandon(&self) {
        let mut state = lock(&self.state);
        state.broken = true;
        state.writers.drain(..).for_each(Waker::wake);
    }

    /// Carries what is pushed to `writer` until the pipe is closed and empty, or the writer fails.
    pub(crate) async fn pump(self: Arc<Self>, mut writer: Box<dyn AsyncWrite + Send + Unpin>) {
        let mut result = Ok(());
        while let (Ok(()), Some(bytes)) = (&result, self.next().await) {
            result = match writer.write_all(&bytes).await {
                Ok(()) => writer.flush().await,
                failed => failed,
            };
            let mut state = lock(&self.state);
            state.held -= bytes.len();
            state.broken |= result.is_err();
            state.writers.drain(..).for_each(Waker::wake);
        }
        if let Err(error) = result.and(writer.shutdown().await) {
            tracing::debug!(%error, "an output stream closed early");
        }
    }

    async fn next(&self) -> Option<Bytes> {
        poll_fn(|cx| {
            let mut state = lock(&self.state);
            match state.queue.pop_front() {
                Some(bytes) => Poll::Ready(Some(bytes)),
                None if state.closed => Poll::Ready(None),
                None => {
                    state.pump = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// A guest's stdin.
pub(crate) struct Input {
    stream: Option<AsyncStdinStream>,
    tty: bool,
}

impl Input {
    /// An input at its end.
    pub(crate) fn empty() -> Self {
        Self { stream: None, tty: false }
    }

    /// Reads from a stream. Must be called on the guests' runtime: a task reads ahead one buffer.
    pub(crate) fn stream(reader: Box<dyn AsyncRead + Send + Unpin>, tty: bool) -> Self {
        Self { stream: Some(AsyncStdinStream::new(Exclusive(Mutex::new(reader)))), tty }
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        self.tty
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        match &self.stream {
            Some(stream) => stream.async_stream(),
            None => StdinStream::async_stream(&tokio::io::empty()),
        }
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        match &self.stream {
            Some(stream) => stream.p2_stream(),
            None => StdinStream::p2_stream(&tokio::io::empty()),
        }
    }
}

/// Makes a reader shareable between threads by never sharing it: only `&mut` gets in.
struct Exclusive<T>(Mutex<T>);

impl<T: AsyncRead + Unpin> AsyncRead for Exclusive<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.0.get_mut().unwrap_or_else(PoisonError::into_inner)).poll_read(cx, buf)
    }
}

pub(crate) fn remember(wakers: &mut Vec<Waker>, cx: &Context<'_>) {
    if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
        wakers.push(cx.waker().clone());
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A panic while one of these locks is held leaves plain data behind that is still sound.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
