//! The handle to a replica, and how one is started.

use crate::driver::{Driver, Health, Request, Shared, Write};
use crate::error::{OpenError, WriteError};
use crate::flusher::Flusher;
use crate::recover::{Recovered, recover};
use crate::wal::{damaged, failed};
use crate::watch::{AllWatch, Filter, From, Hub, Watch};
use dhow_consensus::{Consensus, LagMax};
use dhow_state::{Applied, Compacted, HistoryMax, OBJECT_BYTES_MAX, Op, State, Txn};
use dhow_types::Revision;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// The largest transaction. A frame of the log holds it whole, and a follower gets it in one message.
const TXN_BYTES_MAX: usize = 8 << 20;

/// Requests that wait for the replica's thread. More wait on their side.
const REQUESTS_MAX: usize = 4_096;

/// Bytes of the writes that wait or are on their way. More wait on their side.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// The length of a consensus tick: elections take 1 to 2 s.
const TICK_MS: u64 = 100;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything is below it; made if it is not there.
    pub dir: PathBuf,
    /// Which member of the cluster this is; not zero.
    pub member: u64,
    /// The size of a log segment. The log takes at least two of them once it has grown; 64 MiB by default, so that a
    /// new one is rare and the disk of a small device can still hold three.
    pub segment_bytes: u64,
    /// How long changes gather before the object database is brought up to date, and so about how much log a start
    /// replays.
    pub flush_every: Duration,
    /// How long a start waits for the object database while it makes no progress, before it takes it to be damaged.
    pub load_patience: Duration,
    /// How much of the past can be watched.
    pub history_max: HistoryMax,
}

impl Config {
    /// The defaults, for the first member.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            member: 1,
            segment_bytes: 64 << 20,
            flush_every: Duration::from_secs(2),
            load_patience: Duration::from_secs(60),
            history_max: HistoryMax::default(),
        }
    }
}

/// A handle to the store; cheap to clone. The store ends when it is [closed](Replica::close) or the last handle is
/// dropped.
#[derive(Clone, Debug)]
pub struct Replica {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
}

impl Replica {
    /// Recovers the store from its directory and starts it; returns once all that was ever acknowledged is applied.
    /// Blocks: call it before there is traffic, and off the async threads.
    pub fn open(config: Config) -> Result<Replica, OpenError> {
        assert!(config.member > 0, "members are counted from one");
        let dir = config.dir.clone();
        let Recovered { lock, wal, objects, state, restored } = recover(&config)?;
        let seed = RandomState::new().hash_one(std::process::id());
        let consensus = dhow_consensus::Config {
            member: config.member,
            incarnation: RandomState::new().hash_one(seed),
            seed,
            tick_ms: TICK_MS,
            witness: false,
            lag_max: LagMax::default(),
        };
        let consensus = Consensus::new(consensus, restored).map_err(|error| damaged(&dir, &error.to_string()))?;
        let disk = dir.clone();
        let flusher = Flusher::start(objects, config.flush_every, move || free_bytes(&disk))
            .map_err(failed("starting a thread for", &dir))?;
        let shared = Arc::new(Shared { hub: Hub::new(state.revision()), state: RwLock::new(state) });
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let driver = Driver {
            consensus,
            wal,
            flusher,
            shared: shared.clone(),
            requests,
            lock,
            clock: Instant::now(),
            waiting: BTreeMap::new(),
            reading: BTreeMap::new(),
            next_id: 0,
            health: Health::Good,
        };
        start(driver).map_err(failed("starting a thread for", &dir))?;
        let replica = Replica { shared, requests: sender, room: Arc::new(Semaphore::new(REQUEST_BYTES_MAX)) };
        replica.wait_until_ready().map_err(|error| {
            let source = io::Error::other(error.to_string());
            OpenError::Io { doing: "replaying the log of", path: dir, source }
        })?;
        Ok(replica)
    }

    /// A single member's barrier passes when it leads and has applied its log.
    fn wait_until_ready(&self) -> Result<Revision, WriteError> {
        let (reply, answer) = oneshot::channel();
        // A thread that has ended drops the request, and the answer tells.
        let _ = self.requests.try_send(Request::Barrier(reply));
        std::thread::scope(|scope| {
            // Blocking on an answer is not allowed on an async thread, which a caller's may be.
            scope.spawn(|| answer.blocking_recv()).join().map_err(|_| closed())?.map_err(|_| closed())?
        })
    }

    /// Does all of a transaction or nothing; answers when it is durable and applied. A caller that goes away does not
    /// stop its write.
    pub async fn write(&self, txn: Txn) -> Result<Applied, WriteError> {
        if txn.ops.iter().any(|op| value_bytes(op) > OBJECT_BYTES_MAX) {
            return Err(WriteError::TooLarge);
        }
        let data = txn.encode();
        if data.len() > TXN_BYTES_MAX {
            return Err(WriteError::TooLarge);
        }
        let bytes = u32::try_from(data.len()).expect("8 MiB fit");
        let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let write = Write { txn, data: data.into(), reply, _room: room };
        self.requests.send(Request::Write(write)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// The state as it is now. Hold it shortly and never across an `await`: it keeps writes from being applied.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the state holds every write that was acknowledged, by any member, before this call.
    pub async fn barrier(&self) -> Result<Revision, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Barrier(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Watches a resource. From a revision that the history has forgotten, or from before this process started, there
    /// is no way but to list again.
    pub fn watch(&self, filter: Filter, from: From) -> Result<Watch, Compacted> {
        let state = self.state();
        let now = state.revision();
        let (after, backlog) = match from {
            From::Now => (now, Vec::new()),
            From::After(revision) => {
                let wanted = |change: &&Arc<dhow_state::Change>| {
                    change.key.resource == filter.resource
                        && filter.namespace.as_ref().is_none_or(|namespace| *namespace == change.key.namespace)
                };
                (now.max(revision), state.since(revision)?.filter(wanted).cloned().collect())
            }
        };
        Ok(self.shared.hub.add(Some(filter), after, backlog))
    }

    /// Watches everything, beginning with all objects.
    pub fn watch_all(&self) -> AllWatch {
        let state = self.state();
        let objects = state.iter().cloned().collect();
        self.shared.hub.add_all(state.revision(), objects)
    }

    /// Ends the store in order: later writes fail, everything is flushed, and the directory is free when this returns.
    pub async fn close(self) {
        let (closer, closed) = oneshot::channel();
        // Refused, or dropped unanswered, if someone else has closed it.
        if self.requests.send(Request::Close(closer)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

/// Runs the driver on a thread of its own, for it waits for the disk.
fn start(driver: Driver) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name("dhow-replica".into()).spawn(move || runtime.block_on(driver.run()))?;
    Ok(())
}

/// What the file system of `path` has left for us; plenty if it does not say.
fn free_bytes(path: &Path) -> u64 {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return u64::MAX };
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in zero, and the kernel fills the whole struct if it returns zero.
    let found = unsafe {
        if libc::statvfs(path.as_ptr(), found.as_mut_ptr()) != 0 {
            return u64::MAX;
        }
        found.assume_init()
    };
    found.f_bavail.saturating_mul(found.f_frsize)
}

fn value_bytes(op: &Op) -> usize {
    match op {
        Op::Put { value, .. } => value.len(),
        Op::Delete { last, .. } => last.as_ref().map_or(0, |last| last.len()),
    }
}

fn closed() -> WriteError {
    WriteError::Unavailable("the store is closed".to_owned())
}
