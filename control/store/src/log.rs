//! The thread that writes the log, so that heartbeats and replication never wait for a slow disk.
//!
//! All that waits goes into one frame and one `fdatasync`; while that runs, the next gathers. What the object database
//! has flushed is noted along with the next frame, for it is no news that anybody waits for.
//!
//! A member that is alone has nobody to keep in touch with meanwhile: its replica's thread writes a little itself, if the
//! queue is empty, which saves two changes of threads.
//!
//! A disk without room stops the thread where it is: what is queued stays queued and is written as soon as there is
//! room. A failed write ends it.

use crate::replica::panic_text;
use crate::wal::{Batch, Checkpoint, ENTRY_OVERHEAD, Wal};
use dhow_consensus::{HardState, Persist};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::Notify;

/// One frame's entries. Enough to use a disk's bandwidth, little enough that the first of them does not wait long for
/// the last.
const FRAME_BYTES_MAX: usize = 8 << 20;

/// A member that is alone writes up to this much on the replica's own thread: the writes of about 30 callers, to whom two
/// changes of threads matter more than that applying overlaps with the next sync.
const HERE_BYTES_MAX: u64 = 32 << 10;

/// How often a spare segment that is being made is looked after.
const SPARE_LOOK: Duration = Duration::from_millis(20);

/// After a segment could not be made, the disk is tried again this often.
const FULL_DISK_RETRY: Duration = Duration::from_millis(500);

/// The replica's end. The queue behind it is bounded by what consensus leaves uncommitted.
#[derive(Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    writer: Arc<Mutex<Writer>>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Job {
    Persist(Persist),
    Reset {
        number: u64,
        hard_state: HardState,
        checkpoint: Box<Checkpoint>,
    },
    Note(Box<Checkpoint>),
    /// Look after the spare segment.
    Tend,
}

/// What has happened since it was last asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Everything up to this number is durable.
    pub(crate) persisted: Option<u64>,
    /// Something waits for room on the disk.
    pub(crate) stalled: Option<String>,
    /// The log cannot be written any more.
    pub(crate) failed: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    report: Mutex<Report>,
    done: Notify,
    /// Jobs that are queued or being done.
    jobs: AtomicU64,
    /// Bytes on their way.
    queued: AtomicU64,
    /// Bytes that can be written for certain.
    room: AtomicU64,
    /// What the log takes on the disk.
    bytes: AtomicU64,
    /// Why no further segment can be made, if so.
    full: Mutex<Option<String>>,
    closing: AtomicBool,
}

impl Log {
    /// Starts the thread, which owns the log from now on.
    pub(crate) fn start(wal: Wal) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        shared.room.store(wal.room(), Ordering::Relaxed);
        shared.bytes.store(wal.bytes(), Ordering::Relaxed);
        // No limit of its own, for whoever sends must not wait for the disk. Consensus is the limit: a leader keeps 64 MiB
        // uncommitted, and sends a follower no more than 64 messages of 1 MiB that are not answered, which is after
        // they are durable.
        let (jobs, queue) = mpsc::channel();
        let writer = Arc::new(Mutex::new(Writer { shared: shared.clone(), wal, noted: None }));
        let worker = writer.clone();
        let told = shared.clone();
        let work = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&worker, &queue))) {
                told.fail(format!("its thread panicked: {}", panic_text(&*panic)));
            }
        };
        let thread = std::thread::Builder::new().name("dhow-log".into()).spawn(work)?;
        Ok(Self { shared, writer, jobs: Some(jobs), thread: Some(thread) })
    }

    pub(crate) fn persist(&self, persist: Persist) {
        self.shared.queued.fetch_add(bytes(&persist), Ordering::Relaxed);
        self.send(Job::Persist(persist));
    }

    /// Writes on the caller's thread, if it is little, nothing is before it, and there is room; gives it back otherwise.
    pub(crate) fn persist_here(&self, persist: Persist) -> Result<(), Persist> {
        let size = bytes(&persist);
        if size > HERE_BYTES_MAX || self.shared.jobs.load(Ordering::Acquire) > 0 {
            return Err(persist);
        }
        // The thread holds it for a moment when it looks after the spare segment.
        let mut writer = lock(&self.writer);
        if writer.wal.reserve(size as usize).is_err() {
            return Err(persist);
        }
        if let Err(Ended::Failed(why)) = writer.write(std::slice::from_ref(&persist)) {
            self.shared.fail(why);
        }
        if writer.tend().is_some() {
            self.send(Job::Tend);
        }
        Ok(())
    }

    /// Begins the log anew behind an image that is durable; answered as a [`Persist`] of this number.
    pub(crate) fn reset(&self, number: u64, hard_state: HardState, checkpoint: Checkpoint) {
        self.send(Job::Reset { number, hard_state, checkpoint: Box::new(checkpoint) });
    }

    /// Notes, some time, what the object database has flushed.
    pub(crate) fn note(&self, checkpoint: Checkpoint) {
        self.send(Job::Note(Box::new(checkpoint)));
    }

    fn send(&self, job: Job) {
        self.shared.jobs.fetch_add(1, Ordering::AcqRel);
        // A thread that has ended has said why.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(job));
    }

    /// Waits until there is something to [`report`](Log::report).
    pub(crate) async fn done(&self) {
        self.shared.done.notified().await;
    }

    pub(crate) fn report(&self) -> Report {
        std::mem::take(&mut *lock(&self.shared.report))
    }

    /// Whether a failure waits to be reported.
    pub(crate) fn has_failed(&self) -> bool {
        lock(&self.shared.report).failed.is_some()
    }

    /// Why this much more cannot be written, if that is known.
    pub(crate) fn refusal(&self, bytes: usize) -> Option<String> {
        let queued = self.shared.queued.load(Ordering::Relaxed);
        if queued + bytes as u64 <= self.shared.room.load(Ordering::Relaxed) {
            return None;
        }
        lock(&self.shared.full).clone()
    }

    /// What the log takes on the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Writes what is queued, if there is room, and ends the thread.
    pub(crate) fn close(&mut self) -> Report {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            lock(&self.shared.report).failed = Some("the thread of the log panicked".to_owned());
        }
        self.report()
    }
}

impl Shared {
    fn fail(&self, why: String) {
        lock(&self.report).failed = Some(why);
        self.done.notify_one();
    }
}

#[derive(Debug)]
struct Writer {
    shared: Arc<Shared>,
    wal: Wal,
    noted: Option<Checkpoint>,
}

enum Ended {
    Closed,
    Failed(String),
}

fn run(writer: &Mutex<Writer>, queue: &Receiver<Job>) {
    let why = match work(writer, queue) {
        Ended::Failed(why) => Some(why),
        Ended::Closed => lock(writer).write_note().err().map(|error| error.to_string()),
    };
    if let Some(why) = why {
        lock(writer).shared.fail(why);
    }
}

fn work(writer: &Mutex<Writer>, queue: &Receiver<Job>) -> Ended {
    let shared = lock(writer).shared.clone();
    while let Some(job) = next(writer, queue) {
        let mut writer = lock(writer);
        let (ended, jobs) = writer.handle(queue, job);
        shared.jobs.fetch_sub(jobs, Ordering::AcqRel);
        if let Err(ended) = ended {
            return ended;
        }
    }
    Ended::Closed
}

/// Waits for a job, and looks after the spare segment meanwhile. `None`: nobody will send any more.
fn next(writer: &Mutex<Writer>, queue: &Receiver<Job>) -> Option<Job> {
    loop {
        let patience = lock(writer).tend();
        let received = match patience {
            Some(patience) => queue.recv_timeout(patience),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(job) => return Some(job),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => lock(writer).wal.retry_spare(),
        }
    }
}

impl Writer {
    /// Does a job and those that come with it; tells how many.
    fn handle(&mut self, queue: &Receiver<Job>, job: Job) -> (Result<(), Ended>, u64) {
        match job {
            Job::Tend => (Ok(()), 1),
            Job::Note(checkpoint) => {
                self.noted = Some(*checkpoint);
                (Ok(()), 1)
            }
            Job::Reset { number, hard_state, checkpoint } => (self.reset(number, hard_state, *checkpoint), 1),
            Job::Persist(first) => {
                let (persists, jobs, next) = self.gather(queue, first);
                let ended = self.persist(&persists);
                match (ended, next) {
                    (Ok(()), Some(next)) => {
                        let (ended, more) = self.handle(queue, next);
                        (ended, jobs + more)
                    }
                    (ended, _) => (ended, jobs),
                }
            }
        }
    }

    /// How soon the spare segment wants to be looked after.
    fn tend(&mut self) -> Option<Duration> {
        let tended = self.wal.tend();
        self.shared.room.store(self.wal.room(), Ordering::Relaxed);
        let mut full = lock(&self.shared.full);
        match tended {
            Ok(busy) => {
                if full.is_some() && !busy {
                    tracing::info!("the log can grow again");
                    *full = None;
                }
                busy.then_some(SPARE_LOOK)
            }
            Err(error) => {
                if full.is_none() {
                    tracing::error!(%error, "the log cannot grow");
                }
                *full = Some(no_room(&error));
                Some(FULL_DISK_RETRY)
            }
        }
    }

    /// All that waits and fits into a frame, of how many jobs, and the one behind that does not.
    fn gather(&mut self, queue: &Receiver<Job>, first: Persist) -> (Vec<Persist>, u64, Option<Job>) {
        let mut size = bytes(&first) as usize;
        let (mut persists, mut jobs) = (vec![first], 1);
        while size < FRAME_BYTES_MAX {
            match queue.try_recv() {
                Ok(Job::Persist(persist)) => {
                    size += bytes(&persist) as usize;
                    persists.push(persist);
                }
                Ok(Job::Note(checkpoint)) => self.noted = Some(*checkpoint),
                Ok(Job::Tend) => {}
                Ok(reset @ Job::Reset { .. }) => return (persists, jobs, Some(reset)),
                Err(_) => break,
            }
            jobs += 1;
        }
        (persists, jobs, None)
    }

    fn persist(&mut self, persists: &[Persist]) -> Result<(), Ended> {
        let size = persists.iter().map(bytes).sum::<u64>();
        self.reserve(size as usize)?;
        self.write(persists)?;
        self.shared.queued.fetch_sub(size, Ordering::Relaxed);
        self.tell(persists.last().map_or(0, |persist| persist.number));
        Ok(())
    }

    fn write(&mut self, persists: &[Persist]) -> Result<(), Ended> {
        let batch = Batch {
            entries: persists.iter().map(|persist| &*persist.entries).collect(),
            hard_state: persists.last().map(|persist| persist.hard_state),
            checkpoint: self.noted.take(),
        };
        self.wal.write(batch).map_err(|error| Ended::Failed(error.to_string()))?;
        self.shared.bytes.store(self.wal.bytes(), Ordering::Relaxed);
        Ok(())
    }

    fn reset(&mut self, number: u64, hard_state: HardState, checkpoint: Checkpoint) -> Result<(), Ended> {
        self.reserve(0)?;
        self.noted = None;
        self.wal.reset(hard_state, checkpoint).map_err(|error| Ended::Failed(error.to_string()))?;
        self.tell(number);
        Ok(())
    }

    fn tell(&self, number: u64) {
        lock(&self.shared.report).persisted = Some(number);
        self.shared.done.notify_one();
    }

    /// Waits for room; gives up only when the store is closed.
    fn reserve(&mut self, entry_bytes: usize) -> Result<(), Ended> {
        let mut told = false;
        loop {
            let Err(error) = self.wal.reserve(entry_bytes) else { return Ok(()) };
            let why = no_room(&error.to_string());
            *lock(&self.shared.full) = Some(why.clone());
            if !std::mem::replace(&mut told, true) {
                tracing::error!(%error, "the log cannot grow");
                lock(&self.shared.report).stalled = Some(why.clone());
                self.shared.done.notify_one();
            }
            if self.shared.closing.load(Ordering::Relaxed) {
                return Err(Ended::Failed(why));
            }
            std::thread::sleep(FULL_DISK_RETRY);
        }
    }

    /// What was flushed last, if no frame came to carry the note.
    fn write_note(&mut self) -> std::io::Result<()> {
        match self.noted.take() {
            Some(checkpoint) => self.wal.write(Batch { checkpoint: Some(checkpoint), ..Batch::default() }),
            None => Ok(()),
        }
    }
}

fn no_room(error: &str) -> String {
    format!("the log cannot grow: {error}; free space on the disk of the data directory")
}

fn bytes(persist: &Persist) -> u64 {
    persist.entries.iter().map(|entry| (entry.data.len() + ENTRY_OVERHEAD) as u64).sum()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
