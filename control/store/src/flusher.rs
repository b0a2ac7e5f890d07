//! The thread that keeps the object database behind the log by no more than a few seconds, and asleep when nothing
//! changes.
//!
//! What changes gathers in a map, so an object that is written a hundred times between two flushes is stored once, and
//! the map never holds more than there are objects.

use crate::objects::{Dirty, Objects};
use crate::wal::Checkpoint;
use dhow_state::Change;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Changed text that is not flushed yet. More is flushed at once: a start would have to replay it all.
const DIRTY_BYTES_MAX: usize = 64 << 20;

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
    /// Starts the thread, which owns the database from now on.
    pub(crate) fn start(objects: Objects, every: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { pending: Mutex::default(), changed: Condvar::new(), done: Notify::new() });
        let worker = shared.clone();
        let thread =
            std::thread::Builder::new().name("dhow-objects".into()).spawn(move || worker.run(objects, every))?;
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

    fn run(&self, mut objects: Objects, every: Duration) {
        while let Some((dirty, target)) = self.next(every) {
            let result = objects.flush(&dirty, target).map(|()| target).map_err(|error| error.to_string());
            let failed = result.is_err();
            self.lock().result = Some(result);
            self.done.notify_one();
            if failed {
                return;
            }
        }
    }

    /// Sleeps until something has changed, then for `every`, so that more can gather.
    fn next(&self, every: Duration) -> Option<(Dirty, Checkpoint)> {
        let mut pending = self.lock();
        while pending.target.is_none() && !pending.stop {
            pending = self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        let due = Instant::now() + every;
        while !pending.stop && pending.bytes <= DIRTY_BYTES_MAX {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            pending = self.changed.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let target = pending.target.take()?;
        pending.bytes = 0;
        Some((std::mem::take(&mut pending.dirty), target))
    }
}
