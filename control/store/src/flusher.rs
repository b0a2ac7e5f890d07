//! The thread that keeps the object database behind the log by no more than a bounded amount, and asleep when nothing
//! changes.
//!
//! What changes gathers in a map, so an object that is written a hundred times between two flushes is stored once, and
//! the map never holds more than there are objects.
//!
//! A flush that fails ends the database (see `objects`), so none is begun on a disk that may be too full for it. The
//! log then holds what is not flushed, until it cannot grow either and writes are refused.

use crate::objects::{Dirty, Objects};
use crate::replica::panic_text;
use crate::wal::Checkpoint;
use dhow_state::{Change, Object};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Changed text that is not flushed yet. More is flushed at once: a start would have to replay it all.
const DIRTY_BYTES_MAX: usize = 64 << 20;

/// Changed text that is worth a flush at the usual time. Less waits longer: an idle cluster's heartbeats would
/// otherwise cost several syncs every two seconds, and to replay them takes no time.
const DIRTY_BYTES_MIN: usize = 1 << 20;

/// How many times longer little text waits: half a minute by default.
const PATIENCE: u32 = 15;

/// Free space without which no flush is begun, beside twice what is to be flushed. A flush writes whole leaves, and the
/// new ones before it frees the old.
const FREE_BYTES_MIN: u64 = 32 << 20;

/// How much the thread steps back (as `nice` counts) where there are more threads than processors: nobody waits for it,
/// so it takes what they leave. It cannot fall behind for long: see [`Flusher::is_behind`].
const NICENESS: libc::c_int = 15;

/// The replica's end.
#[derive(Debug)]
pub(crate) struct Flusher {
    shared: Arc<Shared>,
    behind_bytes_max: usize,
    thread: Option<JoinHandle<()>>,
}

/// What the thread has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    /// The database holds the state as of there.
    To(Checkpoint),
    /// The database has been replaced by the image that was handed in, and nothing else.
    Installed(Checkpoint),
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    /// Something was added, or the end has come.
    changed: Condvar,
    /// Something was flushed, or failed to be, or was put off.
    done: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    dirty: Dirty,
    bytes: usize,
    /// What is being flushed.
    taken: usize,
    /// Where `dirty` leads; `None` if there is nothing to flush.
    target: Option<Checkpoint>,
    /// An image that shall take the place of the database.
    image: Option<(Vec<Arc<Object>>, Checkpoint)>,
    stop: bool,
    result: Option<Result<Flushed, String>>,
}

/// What the thread needs of its surroundings.
pub(crate) struct Disk {
    /// The data directory.
    pub(crate) dir: PathBuf,
    pub(crate) member: u64,
    /// How long changes gather.
    pub(crate) every: Duration,
    /// From when on it [is behind](Flusher::is_behind).
    pub(crate) behind_bytes_max: usize,
    /// What the file system has left.
    pub(crate) free_bytes: Box<dyn Fn() -> u64 + Send>,
}

impl Flusher {
    /// Starts the thread, which owns the database from now on.
    pub(crate) fn start(objects: Objects, disk: Disk) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { pending: Mutex::default(), changed: Condvar::new(), done: Notify::new() });
        let (worker, behind_bytes_max) = (shared.clone(), disk.behind_bytes_max);
        let work = move || {
            step_back();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| worker.run(objects, &disk))) {
                worker.report(Err(format!("its thread panicked: {}", panic_text(&*panic))));
            }
        };
        let thread = std::thread::Builder::new().name("dhow-objects".into()).spawn(work)?;
        Ok(Self { shared, behind_bytes_max, thread: Some(thread) })
    }

    /// Hands over what changed; the state stands at `target` with it.
    pub(crate) fn add(&self, changes: &[Arc<Change>], target: Checkpoint) {
        let mut pending = self.shared.lock();
        let before = pending.bytes;
        for change in changes {
            pending.bytes += change.last.json().len();
            pending.dirty.insert(change.key.clone(), change.new.clone());
        }
        // Only where the thread's patience changes: it need not hear of every write.
        let crossed = |limit| before <= limit && pending.bytes > limit;
        let wake = pending.target.is_none() || crossed(DIRTY_BYTES_MIN) || crossed(DIRTY_BYTES_MAX);
        pending.target = Some(target);
        drop(pending);
        if wake {
            self.shared.changed.notify_one();
        }
    }

    /// Puts these objects in the place of everything, at once.
    pub(crate) fn install(&self, objects: Vec<Arc<Object>>, checkpoint: Checkpoint) {
        let mut pending = self.shared.lock();
        (pending.dirty, pending.bytes, pending.target) = (Dirty::new(), 0, None);
        pending.image = Some((objects, checkpoint));
        drop(pending);
        self.shared.changed.notify_one();
    }

    /// Waits until there is a [`result`](Flusher::result).
    pub(crate) async fn done(&self) {
        self.shared.done.notified().await;
    }

    /// How the latest flush ended, once.
    pub(crate) fn result(&self) -> Option<Result<Flushed, String>> {
        self.shared.lock().result.take()
    }

    /// Whether so much is not flushed that new writes had better wait for the next [`result`](Flusher::result).
    pub(crate) fn is_behind(&self) -> bool {
        let pending = self.shared.lock();
        pending.taken > 0 && pending.bytes + pending.taken > self.behind_bytes_max
    }

    /// Flushes what is left and ends the thread.
    pub(crate) fn stop(&mut self) -> Option<Result<Flushed, String>> {
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

/// Lowers the priority of the thread that calls.
fn step_back() {
    // SAFETY: no memory is involved. In Linux, zero means the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) } != 0 {
        tracing::debug!("the thread of the object database keeps its priority");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut objects: Objects, disk: &Disk) {
        let mut full = false;
        while let Some(Taken { work, bytes, stop }) = self.next(disk.every, full) {
            let has_room = (disk.free_bytes)() >= FREE_BYTES_MIN + 2 * bytes as u64;
            if full == has_room {
                full = !has_room;
                match full {
                    true => tracing::error!("the disk is too full to flush objects; the log grows until it cannot"),
                    false => tracing::info!("the disk has room to flush objects again"),
                }
            }
            if full && stop {
                objects.forget();
                return;
            }
            if full {
                self.put_back(work, bytes);
                continue;
            }
            let result = match work {
                Work::Flush(dirty, target) => {
                    objects.flush(&dirty, &target).map(|()| Flushed::To(target)).map_err(|error| error.to_string())
                }
                Work::Install(image, target) => {
                    match Objects::install(&disk.dir, disk.member, Some(objects), &image, &target) {
                        Ok(installed) => {
                            objects = installed;
                            Ok(Flushed::Installed(target))
                        }
                        Err(error) => {
                            self.report(Err(dhow_types::Chain(&error).to_string()));
                            return;
                        }
                    }
                }
            };
            let failed = result.is_err();
            self.report(result);
            if failed {
                return;
            }
        }
    }

    fn report(&self, result: Result<Flushed, String>) {
        let mut pending = self.lock();
        (pending.result, pending.taken) = (Some(result), 0);
        drop(pending);
        self.done.notify_one();
    }

    /// Sleeps until something has changed, then for `every`, so that more can gather: longer if that is little, not at
    /// all if it is a lot already, unless the disk is `full`.
    fn next(&self, every: Duration, full: bool) -> Option<Taken> {
        let mut pending = self.lock();
        while pending.target.is_none() && pending.image.is_none() && !pending.stop {
            pending = self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        let since = Instant::now();
        while !pending.stop && (full || (pending.image.is_none() && pending.bytes <= DIRTY_BYTES_MAX)) {
            let patience = if full || pending.bytes > DIRTY_BYTES_MIN { every } else { every * PATIENCE };
            let left = patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                break;
            }
            pending = self.changed.wait_timeout(pending, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let stop = pending.stop;
        if let Some((objects, checkpoint)) = pending.image.take() {
            let bytes = objects.iter().map(|object| object.json().len()).sum();
            return Some(Taken { work: Work::Install(objects, checkpoint), bytes, stop });
        }
        let target = pending.target.take()?;
        let (dirty, bytes) = (std::mem::take(&mut pending.dirty), std::mem::take(&mut pending.bytes));
        pending.taken = bytes;
        Some(Taken { work: Work::Flush(dirty, target), bytes, stop })
    }

    /// Keeps for later what could not be written; what has come since is newer.
    fn put_back(&self, work: Work, bytes: usize) {
        let mut pending = self.lock();
        match work {
            Work::Install(objects, checkpoint) => {
                pending.image.get_or_insert((objects, checkpoint));
            }
            Work::Flush(..) if pending.image.is_some() => {}
            Work::Flush(dirty, target) => {
                for (key, object) in dirty {
                    pending.dirty.entry(key).or_insert(object);
                }
                pending.bytes += bytes;
                pending.target.get_or_insert(target);
            }
        }
        pending.taken = 0;
        drop(pending);
        self.done.notify_one();
    }
}

enum Work {
    Flush(Dirty, Checkpoint),
    Install(Vec<Arc<Object>>, Checkpoint),
}

/// What is to be written.
struct Taken {
    work: Work,
    bytes: usize,
    stop: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_consensus::{Members, Position};
    use dhow_state::{Expect, HistoryMax, Key, Op, State, Txn};
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn nothing_is_flushed_to_a_full_disk_and_nothing_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = Objects::path(dir.path());
        let free = Arc::new(AtomicU64::new(0));
        let looked = Arc::new(AtomicU64::new(0));
        let (room, looks) = (free.clone(), looked.clone());
        let free_bytes = Box::new(move || {
            looks.fetch_add(1, Ordering::SeqCst);
            room.load(Ordering::SeqCst)
        });
        let disk = Disk {
            dir: dir.path().to_owned(),
            member: 1,
            every: Duration::from_millis(1),
            behind_bytes_max: 0,
            free_bytes,
        };
        let mut flusher = Flusher::start(Objects::open(&path, 1).unwrap(), disk).unwrap();
        let mut state = State::new(HistoryMax::default());
        let members = Members { voters: vec![1, 2], learners: vec![3], ..Members::default() };
        for index in 1..=10 {
            let key = Key::new("pods", "default", format!("p{}", index % 3));
            let value = "{\"metadata\":{}}".into();
            let mut changes = Vec::new();
            let txn = Txn::one(Op::Put { key, value, expect: Expect::Any, expires: None });
            state.apply_into(index, &txn, &mut changes).unwrap();
            let (applied, members) = (Position { index, term: 1 }, members.clone());
            flusher.add(&changes, Checkpoint { applied, revision: index, hash: state.hash(), members });
            let before = looked.load(Ordering::SeqCst);
            while looked.load(Ordering::SeqCst) < before + 2 {
                std::thread::yield_now();
            }
        }
        assert_eq!(flusher.result(), None);
        free.store(1 << 30, Ordering::SeqCst);
        let Some(Ok(Flushed::To(flushed))) = flusher.stop() else { panic!("the rest is flushed") };
        assert_eq!((flushed.applied.index, flushed.hash), (10, state.hash()));
        let (_objects, image) = Objects::load(&path, 1, Duration::from_secs(60)).unwrap();
        let image = image.unwrap();
        assert_eq!((image.checkpoint, image.objects.len(), image.installed), (flushed, 3, false));
    }
}
