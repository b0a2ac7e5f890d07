//! The thread that writes the log, so that heartbeats and replication never wait for a slow disk.
//!
//! All that waits goes into one frame and one `fdatasync`; while that runs, the next gathers. What the object database
//! has flushed is noted along with the next frame, for it is no news that anybody waits for.
//!
//! A disk without room stops the thread where it is: what is queued stays queued and is written as soon as there is
//! room. A failed write ends it.

use crate::wal::{Batch, Checkpoint, ENTRY_OVERHEAD, Wal};
use dhow_consensus::{HardState, Persist};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::Notify;

/// One frame's entries. Enough to use a disk's bandwidth, little enough that the first of them does not wait long for
/// the last.
const FRAME_BYTES_MAX: usize = 8 << 20;

/// How often a spare segment that is being made is looked after.
const SPARE_LOOK: Duration = Duration::from_millis(20);

/// After a segment could not be made, the disk is tried again this often.
const FULL_DISK_RETRY: Duration = Duration::from_millis(500);

/// The replica's end. The queue behind it is bounded by what consensus leaves uncommitted.
#[derive(Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Job {
    Persist(Persist),
    Reset { number: u64, hard_state: HardState, checkpoint: Box<Checkpoint> },
    Note(Box<Checkpoint>),
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
        let (jobs, queue) = mpsc::channel();
        let worker = Writer { shared: shared.clone(), wal, noted: None };
        let thread = std::thread::Builder::new().name("dhow-log".into()).spawn(move || worker.run(&queue))?;
        Ok(Self { shared, jobs: Some(jobs), thread: Some(thread) })
    }

    pub(crate) fn persist(&self, persist: Persist) {
        self.shared.queued.fetch_add(bytes(&persist), Ordering::Relaxed);
        self.send(Job::Persist(persist));
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

struct Writer {
    shared: Arc<Shared>,
    wal: Wal,
    noted: Option<Checkpoint>,
}

enum Ended {
    Closed,
    Failed(String),
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        let why = match self.work(queue) {
            Ended::Failed(why) => Some(why),
            Ended::Closed => self.write_note().err().map(|error| error.to_string()),
        };
        if let Some(why) = why {
            lock(&self.shared.report).failed = Some(why);
            self.shared.done.notify_one();
        }
    }

    fn work(&mut self, queue: &Receiver<Job>) -> Ended {
        let mut held = None;
        loop {
            let job = match held.take() {
                Some(job) => job,
                None => match self.next(queue) {
                    Some(job) => job,
                    None => return Ended::Closed,
                },
            };
            let ended = match job {
                Job::Note(checkpoint) => {
                    self.noted = Some(*checkpoint);
                    continue;
                }
                Job::Reset { number, hard_state, checkpoint } => self.reset(number, hard_state, *checkpoint),
                Job::Persist(first) => {
                    let (persists, next) = self.gather(queue, first);
                    held = next;
                    self.persist(&persists)
                }
            };
            if let Err(ended) = ended {
                return ended;
            }
        }
    }

    /// Waits for a job, and looks after the spare segment meanwhile. `None`: nobody will send any more.
    fn next(&mut self, queue: &Receiver<Job>) -> Option<Job> {
        loop {
            let received = match self.tend() {
                Some(patience) => queue.recv_timeout(patience),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => self.wal.retry_spare(),
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

    /// All that waits and fits into a frame, and what does not.
    fn gather(&mut self, queue: &Receiver<Job>, first: Persist) -> (Vec<Persist>, Option<Job>) {
        let mut size = bytes(&first) as usize;
        let mut persists = vec![first];
        while size < FRAME_BYTES_MAX {
            match queue.try_recv() {
                Ok(Job::Persist(persist)) => {
                    size += bytes(&persist) as usize;
                    persists.push(persist);
                }
                Ok(Job::Note(checkpoint)) => self.noted = Some(*checkpoint),
                Ok(reset @ Job::Reset { .. }) => return (persists, Some(reset)),
                Err(_) => break,
            }
        }
        (persists, None)
    }

    fn persist(&mut self, persists: &[Persist]) -> Result<(), Ended> {
        let size = persists.iter().map(bytes).sum::<u64>();
        self.reserve(size as usize)?;
        let batch = Batch {
            entries: persists.iter().map(|persist| &*persist.entries).collect(),
            hard_state: persists.last().map(|persist| persist.hard_state),
            checkpoint: self.noted.take(),
        };
        self.wal.write(batch).map_err(|error| Ended::Failed(error.to_string()))?;
        self.shared.queued.fetch_sub(size, Ordering::Relaxed);
        self.tell(persists.last().map_or(0, |persist| persist.number));
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
        self.shared.bytes.store(self.wal.bytes(), Ordering::Relaxed);
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
