//! Container logs on disk, in the line format of the container runtime interface:
//! `2026-01-02T15:04:05.123456789Z stdout F text`.
//!
//! One thread writes the logs of all containers. A container's pipe stands in its queue at most once, however much waits
//! in the pipe, and few files are open at a time, so that ten thousand quiet containers cost neither threads nor file
//! handles. A slow disk makes guests that write wait; it never makes the node wait. A container that floods its log
//! waits too: it has a rate, so that it takes neither this thread nor the disk from its neighbours.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::future::poll_fn;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dhow_runtime_contract::LogConfig;
use dhow_types::Time;

use crate::output::{BUFFER_BYTES_MAX, Chunk, LINE_BYTES_MAX, lock, remember};

/// Files that are kept open between writes. Opening one costs some 10 µs; more open files would only help as many
/// busy containers at once, and count against the process' limit.
const OPEN_FILES_MAX: usize = 64;

/// Bytes a second that one container may write in the long run. Some eighty thousand lines; writing that many takes a
/// few percent of a core. Beyond it the container waits, as for a slow disk; nothing is lost.
const RATE_BYTES_PER_S: u64 = 8 << 20;
/// What it may write at once after it was quiet: a program that starts may have much to say.
const BURST_BYTES: u64 = 4 << 20;

/// The writing end that pipes are made from.
#[derive(Clone)]
pub(crate) struct LogWriter {
    /// Unbounded in form, bounded in fact: each pipe is in it at most once for its lines and once for its end.
    queue: Sender<Task>,
}

enum Task {
    Write(Arc<LogPipe>),
    Close(u64),
}

impl LogWriter {
    /// Starts the thread; it ends when the last writer and the last pipe are gone.
    pub(crate) fn start() -> io::Result<Self> {
        let (queue, tasks) = channel();
        thread::Builder::new().name("dhow-logs".to_owned()).spawn(move || write_all(&tasks))?;
        Ok(Self { queue })
    }

    /// The pipe of one container. Its file is made with its first line.
    pub(crate) fn pipe(&self, config: LogConfig) -> Arc<LogPipe> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(LogPipe {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            config,
            queue: self.queue.clone(),
            written: AtomicU64::new(0),
            state: Mutex::default(),
        })
    }
}

/// What waits to be written to one container's log.
pub(crate) struct LogPipe {
    id: u64,
    config: LogConfig,
    queue: Sender<Task>,
    /// Bytes of the log so far.
    written: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    /// Bytes that wait or are being written.
    held: usize,
    /// Bytes that are written, and still take up room because the container wrote too many lately.
    owed: usize,
    queued: bool,
    wakers: Vec<Waker>,
    /// A failure has been reported; the next ones are the same.
    failed: bool,
    /// Made with the first line.
    rate: Option<Rate>,
}

impl LogPipe {
    pub(crate) fn push(self: &Arc<Self>, chunk: Chunk) {
        let mut state = lock(&self.state);
        state.held += chunk.bytes.len();
        state.chunks.push_back(chunk);
        if !state.queued {
            state.queued = true;
            // Sending fails only when the thread has died with a panic; then lines are lost, and so be it.
            if self.queue.send(Task::Write(self.clone())).is_err() {
                state.chunks.clear();
                state.held = 0;
            }
        }
    }

    pub(crate) fn space(&self) -> usize {
        let state = lock(&self.state);
        BUFFER_BYTES_MAX.saturating_sub(state.held + state.owed)
    }

    pub(crate) fn poll_space(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_until(|state| state.held + state.owed < BUFFER_BYTES_MAX, cx)
    }

    pub(crate) async fn flushed(&self) {
        poll_fn(|cx| self.poll_until(|state| state.held == 0, cx)).await;
    }

    /// Bytes that have been written to the log.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self) {
        self.queue.send(Task::Close(self.id)).ok();
    }

    fn poll_until(&self, holds: impl Fn(&State) -> bool, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if holds(&state) {
            return Poll::Ready(());
        }
        remember(&mut state.wakers, cx);
        Poll::Pending
    }

    /// What has been written leaves the buffer, or stays on in it as owed.
    fn written(&self, held: usize, owed: usize) {
        let mut state = lock(&self.state);
        state.held = state.held.saturating_sub(held);
        state.owed += owed;
        state.wakers.drain(..).for_each(Waker::wake);
    }

    fn forgive(&self, owed: usize) {
        let mut state = lock(&self.state);
        state.owed = state.owed.saturating_sub(owed);
        state.wakers.drain(..).for_each(Waker::wake);
    }
}

/// How much one container may write; never more than a burst ahead.
#[derive(Clone, Copy, Debug)]
struct Rate {
    saved: u64,
    at: Instant,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { saved: BURST_BYTES, at: now }
    }

    /// Takes so many bytes; how long to wait for them if there are not enough.
    fn charge(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        let gained = now.saturating_duration_since(self.at).as_micros() * u128::from(RATE_BYTES_PER_S) / 1_000_000;
        self.saved = self.saved.saturating_add(gained as u64).min(BURST_BYTES);
        self.at = self.at.max(now);
        match self.saved.checked_sub(bytes) {
            Some(left) => {
                self.saved = left;
                None
            }
            None => {
                let wait = Duration::from_micros((bytes - self.saved) * 1_000_000 / RATE_BYTES_PER_S);
                // What flows in until then is spent.
                (self.saved, self.at) = (0, now + wait);
                Some(wait)
            }
        }
    }
}

/// A pipe that has room again at a time.
struct Resting {
    until: Instant,
    pipe: Arc<LogPipe>,
    owed: usize,
}

impl PartialEq for Resting {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

impl Eq for Resting {}

impl PartialOrd for Resting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Resting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.until.cmp(&other.until)
    }
}

fn write_all(tasks: &Receiver<Task>) {
    let mut files = OpenFiles::default();
    let mut text = Vec::new();
    let mut resting: BinaryHeap<Reverse<Resting>> = BinaryHeap::new();
    loop {
        let now = Instant::now();
        while resting.peek().is_some_and(|Reverse(rest)| rest.until <= now) {
            if let Some(Reverse(Resting { pipe, owed, .. })) = resting.pop() {
                pipe.forgive(owed);
            }
        }
        let next = match resting.peek() {
            Some(Reverse(rest)) => tasks.recv_timeout(rest.until - now),
            None => tasks.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(Task::Close(id)) => files.close(id),
            Ok(Task::Write(pipe)) => {
                if let Some(rest) = write(pipe, &mut files, &mut text) {
                    resting.push(Reverse(rest));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Writes what waits in one pipe; gives the pipe's rest if its container has written too much.
fn write(pipe: Arc<LogPipe>, files: &mut OpenFiles, text: &mut Vec<u8>) -> Option<Resting> {
    let chunks = {
        let mut state = lock(&pipe.state);
        state.queued = false;
        std::mem::take(&mut state.chunks)
    };
    text.clear();
    chunks.iter().for_each(|chunk| format(chunk, text));
    let written = files.append(pipe.id, &pipe.config, text);
    pipe.written.fetch_add(text.len() as u64, Ordering::Relaxed);
    if let Err(error) = written
        && !std::mem::replace(&mut lock(&pipe.state).failed, true)
    {
        tracing::warn!(path = %pipe.config.path.display(), %error, "lost lines of a container's log");
    }
    let held = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
    let now = Instant::now();
    let wait = lock(&pipe.state).rate.get_or_insert_with(|| Rate::new(now)).charge(text.len() as u64, now);
    pipe.written(held, if wait.is_some() { held } else { 0 });
    wait.map(|wait| Resting { until: now + wait, pipe, owed: held })
}

/// Appends the chunk's lines, each with its time, its channel, and whether it is finished.
fn format(chunk: &Chunk, text: &mut Vec<u8>) {
    let stamp = stamp(chunk.at);
    let mut part = |line: &[u8], tag: char| {
        text.extend_from_slice(format!("{stamp} {} {tag} ", chunk.channel.as_str()).as_bytes());
        text.extend_from_slice(line);
        text.push(b'\n');
    };
    for line in chunk.bytes.split_inclusive(|&byte| byte == b'\n') {
        let (line, finished) = match line.strip_suffix(b"\n") {
            Some(line) => (line, true),
            None => (line, !chunk.partial),
        };
        let mut rest = line;
        while rest.len() > LINE_BYTES_MAX {
            let (first, more) = rest.split_at(LINE_BYTES_MAX);
            part(first, 'P');
            rest = more;
        }
        part(rest, if finished { 'F' } else { 'P' });
    }
}

/// RFC 3339 with nine digits.
fn stamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = Time::from_secs(since.as_secs() as i64).to_rfc3339();
    format!("{}.{:09}Z", seconds.trim_end_matches('Z'), since.subsec_nanos())
}

/// The log files that are open, by pipe.
#[derive(Default)]
struct OpenFiles {
    files: BTreeMap<u64, OpenFile>,
    /// Counts writes, to find the file that was idle for the longest time.
    clock: u64,
}

struct OpenFile {
    file: File,
    bytes: u64,
    used: u64,
}

impl OpenFiles {
    fn append(&mut self, id: u64, config: &LogConfig, text: &[u8]) -> io::Result<()> {
        self.clock += 1;
        let open = self.files.get(&id).map_or(0, |open| open.bytes);
        if open > 0 && config.max_bytes > 0 && open + text.len() as u64 > config.max_bytes {
            self.files.remove(&id);
            rotate(&config.path, config.max_files)?;
        }
        let file = match self.files.entry(id) {
            std::collections::btree_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::btree_map::Entry::Vacant(closed) => closed.insert(OpenFile::open(config)?),
        };
        file.used = self.clock;
        file.file.write_all(text)?;
        file.bytes += text.len() as u64;
        self.close_idle();
        Ok(())
    }

    fn close(&mut self, id: u64) {
        self.files.remove(&id);
    }

    fn close_idle(&mut self) {
        if self.files.len() > OPEN_FILES_MAX
            && let Some(id) = self.files.iter().min_by_key(|(_, open)| open.used).map(|(id, _)| *id)
        {
            self.files.remove(&id);
        }
    }
}

impl OpenFile {
    /// Opens the log at its end. One that is already full (the node was restarted) is rotated first.
    fn open(config: &LogConfig) -> io::Result<Self> {
        if let Some(parent) = config.path.parent() {
            fs::create_dir_all(parent)?;
        }
        let full = fs::metadata(&config.path).is_ok_and(|meta| config.max_bytes > 0 && meta.len() >= config.max_bytes);
        if full {
            rotate(&config.path, config.max_files)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&config.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes, used: 0 })
    }
}

/// Moves `0.log` to `0.log.1`, `0.log.1` to `0.log.2`, and drops the oldest, so that with the next file `max_files` are
/// there.
fn rotate(path: &Path, max_files: u32) -> io::Result<()> {
    let old = |number: u32| PathBuf::from(format!("{}.{number}", path.display()));
    let kept = max_files.saturating_sub(1);
    if kept == 0 {
        return fs::remove_file(path);
    }
    for number in (1..kept).rev() {
        match fs::rename(old(number), old(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, old(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Channel, Sink};
    use bytes::Bytes;
    use wasmtime_wasi::p2::OutputStream;

    fn config(dir: &Path, max_bytes: u64, max_files: u32) -> LogConfig {
        LogConfig { path: dir.join("c").join("0.log"), max_bytes, max_files }
    }

    fn without_stamps(text: &str) -> Vec<&str> {
        text.lines().map(|line| line.split_once(' ').unwrap().1).collect()
    }

    fn sink_of(pipe: Arc<LogPipe>) -> Sink {
        Sink::Log { pipe, tee: Arc::default(), tty: false }
    }

    #[tokio::test]
    async fn lines_are_assembled_and_marked() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20, 2);
        let sink = sink_of(LogWriter::start().unwrap().pipe(config.clone()));
        let (mut out, mut err) = (sink.open(Channel::Stdout), sink.open(Channel::Stderr));
        out.write(Bytes::from_static(b"one\ntw")).unwrap();
        err.write(Bytes::from_static(b"oops\n")).unwrap();
        out.write(Bytes::from_static(b"o\n\nthree")).unwrap();
        assert!(!config.path.exists() || fs::read_to_string(&config.path).unwrap().lines().count() <= 4);
        drop((out, err));
        sink.flushed().await;
        let text = fs::read_to_string(&config.path).unwrap();
        assert_eq!(
            without_stamps(&text),
            ["stdout F one", "stderr F oops", "stdout F two", "stdout F ", "stdout P three"]
        );
        let stamp = text.split(' ').next().unwrap();
        assert_eq!((stamp.len(), stamp.ends_with('Z')), (30, true));
        assert!(Time::parse(stamp).is_ok());
    }

    #[tokio::test]
    async fn long_lines_go_on_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20, 2);
        let sink = sink_of(LogWriter::start().unwrap().pipe(config.clone()));
        let mut out = sink.open(Channel::Stdout);
        out.write(Bytes::from(vec![b'x'; LINE_BYTES_MAX + 3])).unwrap();
        out.write(Bytes::from_static(b"y\n")).unwrap();
        sink.flushed().await;
        let text = fs::read_to_string(&config.path).unwrap();
        let parts: Vec<_> = without_stamps(&text).iter().map(|part| (&part[..8], part.len() - 9)).collect();
        assert_eq!(parts, [("stdout P", LINE_BYTES_MAX), ("stdout P", 3), ("stdout F", 1)]);
    }

    #[tokio::test]
    async fn a_full_file_is_rotated_and_the_oldest_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 100, 3);
        let sink = sink_of(LogWriter::start().unwrap().pipe(config.clone()));
        let mut out = sink.open(Channel::Stdout);
        for number in 0..5 {
            out.write(Bytes::from(format!("{number}{}\n", "-".repeat(60)))).unwrap();
            sink.flushed().await;
        }
        let read = |suffix: &str| fs::read_to_string(format!("{}{suffix}", config.path.display()));
        for (suffix, number) in [("", "4"), (".1", "3"), (".2", "2")] {
            assert!(read(suffix).unwrap().contains(&format!("stdout F {number}-")), "{suffix}");
        }
        assert!(read(".3").is_err());
    }

    #[test]
    fn the_buffer_is_bounded() {
        let (queue, _tasks) = channel();
        let dir = tempfile::tempdir().unwrap();
        let pipe = LogWriter { queue }.pipe(config(dir.path(), 0, 1));
        let mut out = sink_of(pipe.clone()).open(Channel::Stdout);
        let mut written = 0;
        while let permit @ 1.. = out.check_write().unwrap() {
            out.write(Bytes::from(vec![b'\n'; permit.min(4096)])).unwrap();
            written += permit.min(4096);
        }
        assert_eq!(written, BUFFER_BYTES_MAX);
        assert!(pipe.poll_space(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    #[test]
    fn a_flood_is_held_to_a_rate_and_a_burst_is_not() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut rate = Rate::new(start);
        assert_eq!(rate.charge(BURST_BYTES, at(0)), None);
        assert_eq!(rate.charge(RATE_BYTES_PER_S / 8, at(0)), Some(Duration::from_millis(125)));
        // Eight more, one after the other as fast as it may: a second.
        let (mut now, mut waited) = (at(125), Duration::ZERO);
        for _ in 0..8 {
            let wait = rate.charge(RATE_BYTES_PER_S / 8, now).unwrap();
            (now, waited) = (now + wait, waited + wait);
        }
        assert_eq!(waited, Duration::from_secs(1));
        assert_eq!(rate.charge(BURST_BYTES, now + Duration::from_secs(60)), None);
    }

    #[tokio::test]
    async fn a_flood_waits_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 0, 1);
        let pipe = LogWriter::start().unwrap().pipe(config.clone());
        let mut out = sink_of(pipe.clone()).open(Channel::Stdout);
        let line = Bytes::from(format!("{}\n", "x".repeat(4095)));
        let (mut written, mut waits) = (0, 0);
        while pipe.written_bytes() < BURST_BYTES + BURST_BYTES / 8 {
            while out.check_write().unwrap() < line.len() {
                waits += 1;
                poll_fn(|cx| pipe.poll_space(cx)).await;
            }
            out.write(line.clone()).unwrap();
            written += 1;
            tokio::task::yield_now().await;
        }
        pipe.flushed().await;
        assert!(waits > 0);
        assert_eq!(fs::read_to_string(&config.path).unwrap().lines().count(), written);
    }
}
