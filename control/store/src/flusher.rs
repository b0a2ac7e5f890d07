//! The thread that keeps the object database behind the log by no more than a few seconds, and asleep when nothing
//! changes.
//!
//! What changes gathers in a map, so an object that is written a hundred times between two flushes is stored once, and
//! the map never holds more than there are objects.
//!
//! A flush that fails ends the database (see `objects`), so none is begun on a disk that may be too full for it. The
//! log then holds what is not flushed, until it cannot grow either and writes are refused.

use crate::objects::{Dirty, Objects};
use crate::wal::Checkpoint;
use dhow_state::Change;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Changed text that is not flushed yet. More is flushed at once: a start would have to replay it all.
const DIRTY_BYTES_MAX: usize = 64 << 20;

/// Free space without which no flush is begun, beside twice what is to be flushed. A flush writes whole leaves, and the
/// new ones before it frees the old.
const FREE_BYTES_MIN: u64 = 32 << 20;

/// The replica's end.
#[derive(Debug)]
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    /// Something was added, or the end has come.
    changed: Condvar,
    /// Something was flushed, or failed to be.
    done: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    dirty: Dirty,
    bytes: usize,
    /// Where `dirty` leads; `None` if there is nothing to flush.
    target: Option<Checkpoint>,
    stop: bool,
    result: Option<Result<Checkpoint, String>>,
}

impl Flusher {
    /// Starts the thread, which owns the database from now on. `free_bytes` looks at the disk.
    pub(crate) fn start(
        objects: Objects,
        every: Duration,
        free_bytes: impl Fn() -> u64 + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { pending: Mutex::default(), changed: Condvar::new(), done: Notify::new() });
        let worker = shared.clone();
        let work = move || worker.run(objects, every, free_bytes);
        let thread = std::thread::Builder::new().name("dhow-objects".into()).spawn(work)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Hands over what changed; the state stands at `target` with it.
    pub(crate) fn add(&self, changes: &[Arc<Change>], target: Checkpoint) {
        let mut pending = self.shared.lock();
        for change in changes {
            pending.bytes += change.last.json().len();
            pending.dirty.insert(change.key.clone(), change.new.clone());
        }
        let wake = pending.target.is_none() || pending.bytes > DIRTY_BYTES_MAX;
        pending.target = Some(target);
        drop(pending);
        if wake {
            self.shared.changed.notify_one();
        }
    }

    /// Waits until there is a [`result`](Flusher::result).
    pub(crate) async fn done(&self) {
        self.shared.done.notified().await;
    }

    /// How the latest flush ended, once.
    pub(crate) fn result(&self) -> Option<Result<Checkpoint, String>> {
        self.shared.lock().result.take()
    }

    /// Flushes what is left and ends the thread.
    pub(crate) fn stop(&mut self) -> Option<Result<Checkpoint, String>> {
        self.shared.lock().stop = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            return Some(Err("the thread of the object database panicked".into()));
        }
        self.result()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut objects: Objects, every: Duration, free_bytes: impl Fn() -> u64) {
        let mut full = false;
        while let Some(Taken { dirty, bytes, target, stop }) = self.next(every, full) {
            let has_room = free_bytes() >= FREE_BYTES_MIN + 2 * bytes as u64;
            if full == has_room {
                full = !has_room;
                match full {
                    true => tracing::error!("the disk is too full to flush objects; the log grows until it cannot"),
                    false => tracing::info!("the disk has room to flush objects again"),
                }
            }
            if full && stop {
                return;
            }
            if full {
                self.put_back(dirty, bytes, target);
                continue;
            }
            let result = objects.flush(&dirty, target).map(|()| target).map_err(|error| error.to_string());
            let failed = result.is_err();
            self.lock().result = Some(result);
            self.done.notify_one();
            if failed {
                return;
            }
        }
    }

    /// Sleeps until something has changed, then for `every`, so that more can gather; less if there is a lot already,
    /// unless the disk is `full`.
    fn next(&self, every: Duration, full: bool) -> Option<Taken> {
        let mut pending = self.lock();
        while pending.target.is_none() && !pending.stop {
            pending = self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        let due = Instant::now() + every;
        while !pending.stop && (full || pending.bytes <= DIRTY_BYTES_MAX) {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            pending = self.changed.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let target = pending.target.take()?;
        let (dirty, bytes) = (std::mem::take(&mut pending.dirty), std::mem::take(&mut pending.bytes));
        Some(Taken { dirty, bytes, target, stop: pending.stop })
    }

    /// Keeps for later what could not be flushed; what has changed since is newer.
    fn put_back(&self, dirty: Dirty, bytes: usize, target: Checkpoint) {
        let mut pending = self.lock();
        for (key, object) in dirty {
            pending.dirty.entry(key).or_insert(object);
        }
        pending.bytes += bytes;
        pending.target.get_or_insert(target);
    }
}

/// What is to be flushed.
struct Taken {
    dirty: Dirty,
    bytes: usize,
    target: Checkpoint,
    stop: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_consensus::Position;
    use dhow_state::{Expect, HistoryMax, Key, Op, State, Txn};
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn nothing_is_flushed_to_a_full_disk_and_nothing_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = Objects::path(dir.path());
        let free = Arc::new(AtomicU64::new(0));
        let disk = free.clone();
        let looked = Arc::new(AtomicU64::new(0));
        let looks = looked.clone();
        let free_bytes = move || {
            looks.fetch_add(1, Ordering::SeqCst);
            disk.load(Ordering::SeqCst)
        };
        let mut flusher =
            Flusher::start(Objects::open(&path, 1).unwrap(), Duration::from_millis(1), free_bytes).unwrap();
        let mut state = State::new(HistoryMax::default());
        for index in 1..=10 {
            let key = Key::new("pods", "default", format!("p{}", index % 3));
            let value = "{\"metadata\":{}}".into();
            let mut changes = Vec::new();
            let txn = Txn::one(Op::Put { key, value, expect: Expect::Any, expires: None });
            state.apply_into(index, &txn, &mut changes).unwrap();
            let applied = Position { index, term: 1 };
            flusher.add(&changes, Checkpoint { applied, revision: index, hash: state.hash() });
            let before = looked.load(Ordering::SeqCst);
            while looked.load(Ordering::SeqCst) < before + 2 {
                std::thread::yield_now();
            }
        }
        assert_eq!(flusher.result(), None);
        free.store(1 << 30, Ordering::SeqCst);
        let flushed = flusher.stop().unwrap().unwrap();
        assert_eq!((flushed.applied.index, flushed.hash), (10, state.hash()));
        let (_objects, image) = Objects::load(&path, 1, Duration::from_secs(60)).unwrap();
        let image = image.unwrap();
        assert_eq!((image.checkpoint, image.objects.len()), (flushed, 3));
    }
}
