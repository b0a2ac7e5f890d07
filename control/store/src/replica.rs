//! The handle to a replica, and how one is started.

use crate::driver::{Driver, FromPeer, Request, Shared, Standing, Work, Write};
use crate::error::{Failure, OpenError, SnapshotError, WriteError};
use crate::flusher::{Disk, Flusher};
use crate::image::{ImageError, Reader, Snapshot};
use crate::log::Log;
use crate::recover::{Recovered, recover};
use crate::wal::{damaged, failed};
use crate::watch::{AllWatch, Filter, From, Hub, Watch};
use bytes::{Bytes, BytesMut};
use dhow_consensus::{Consensus, EntryKind, LagMax, MemberChange, Members, Position, Progress, Role};
use dhow_state::{Applied, Compacted, HistoryMax, OBJECT_BYTES_MAX, Prepared, State, Txn};
use dhow_types::Revision;
use std::any::Any;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// The largest transaction. A frame of the log holds it whole, and a follower gets it in one message.
const TXN_BYTES_MAX: usize = 8 << 20;

/// Requests that wait for the replica's thread. More wait on their side.
const REQUESTS_MAX: usize = 4_096;

/// Bytes of the writes that wait or are on their way. More wait on their side.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Messages of other members that wait. More are lost, which consensus expects of a network.
const INBOX_MAX: usize = 4_096;

/// The length of a consensus tick by default: heartbeats every 100 ms, elections after 0.5 to 1 s of silence. A member
/// that is dead is replaced within the second after which Kubernetes' clients try again, and the pauses of a busy machine
/// are shorter.
const TICK: Duration = Duration::from_millis(50);

/// How long a transfer of leadership may take: an election, generously.
const TRANSFER_WAIT: Duration = Duration::from_secs(3);

/// The message ahead of a snapshot holds no entries.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// How the other members are reached. Nothing here may block.
pub trait Peers: Send + Sync + 'static {
    /// Takes a message to a member, for [`Replica::receive`] there. It may be lost.
    fn send(&self, to: u64, message: Bytes);
    /// Streams a snapshot to a member, for [`Replica::receive_snapshot`] there, and then tells
    /// [`Replica::snapshot_sent`] here.
    fn send_snapshot(&self, to: u64, snapshot: Snapshot);
}

/// The peers of a member that has none and knows no way to any: whatever is sent is lost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Peers for Alone {
    fn send(&self, _to: u64, _message: Bytes) {}

    fn send_snapshot(&self, _to: u64, _snapshot: Snapshot) {}
}

/// What an empty directory becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// A new cluster of this one member.
    #[default]
    New,
    /// A member that has nothing and waits until a leader tells it.
    Join,
}

/// What this member is, as far as it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleNow {
    /// Which role.
    pub role: Role,
    /// In which term.
    pub term: u64,
    /// Who leads, this member included.
    pub leader: Option<u64>,
}

/// Everything that can be told about a member.
#[derive(Clone, Debug)]
pub struct Status {
    /// Which one.
    pub member: u64,
    /// Whether it votes without holding objects.
    pub witness: bool,
    /// What it is.
    pub role: Role,
    /// In which term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// Who the members are, as of `applied`.
    pub members: Members,
    /// The last entry of the log that its state holds.
    pub applied: Position,
    /// The last entry that it knows to be committed.
    pub committed: u64,
    /// The end of its log.
    pub last: Position,
    /// How far each member is; empty unless this one leads.
    pub progress: Vec<Progress>,
    /// What the object database takes on the disk.
    pub database_bytes: u64,
    /// What the log takes on the disk, its empty room included.
    pub log_bytes: u64,
    /// Lazy writes that wait for another one's sync.
    pub lazy: usize,
    /// How many objects there are.
    pub objects: usize,
    /// The state's revision.
    pub revision: Revision,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything is below it; made if it is not there.
    pub dir: PathBuf,
    /// Which member of the cluster this is; not zero.
    pub member: u64,
    /// What an empty directory becomes; a used one goes on as what it was.
    pub start: Start,
    /// Votes and keeps the end of the log, and holds no objects.
    pub witness: bool,
    /// The size of a log segment. The log takes three of them once it has grown; 16 MiB by default: more than the largest
    /// frame, and little for the disk of a small device, which is given as many zeros ahead of the need.
    pub segment_bytes: u64,
    /// How long changes gather before the object database is brought up to date; up to fifteen times as long if they
    /// are few. About as much log is replayed by a start.
    pub flush_every: Duration,
    /// Changed text that may wait for the object database, with what is being flushed, before new writes are held until
    /// the flush is done: 256 MiB by default, which a start replays in some seconds.
    pub behind_bytes_max: usize,
    /// How long a start waits for the object database while it makes no progress, before it takes it to be damaged.
    pub load_patience: Duration,
    /// How much of the past can be watched.
    pub history_max: HistoryMax,
    /// The length of a consensus tick, the same on all members: a heartbeat is sent every two, and after ten to twenty of
    /// silence another member wants to lead.
    pub tick: Duration,
}

impl Config {
    /// The defaults, for the first member.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            member: 1,
            start: Start::New,
            witness: false,
            segment_bytes: 16 << 20,
            flush_every: Duration::from_secs(2),
            behind_bytes_max: 256 << 20,
            load_patience: Duration::from_secs(60),
            history_max: HistoryMax::default(),
            tick: TICK,
        }
    }
}

/// A handle to the store; cheap to clone. The store ends when it is [closed](Replica::close) or the last handle is
/// dropped.
#[derive(Clone)]
pub struct Replica {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    inbox: mpsc::Sender<FromPeer>,
    role: watch::Receiver<RoleNow>,
    failure: watch::Receiver<Option<Failure>>,
    room: Arc<Semaphore>,
    dir: Arc<Path>,
    witness: bool,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Replica {
    /// Recovers the store from its directory and starts it. A member that is alone returns once all that was ever
    /// acknowledged is applied; one of several once its disk is read, whether or not there is a leader. Blocks: call it
    /// before there is traffic, and off the async threads.
    pub fn open(config: Config, peers: Arc<dyn Peers>) -> Result<Replica, OpenError> {
        assert!(config.member > 0, "members are counted from one");
        let Config { member, witness, history_max, .. } = config;
        let dir: Arc<Path> = config.dir.as_path().into();
        let Recovered { lock, wal, objects, state, restored } = recover(&config)?;
        // The log behind the database may know of others who have joined since, and who need not be up.
        let others_came = restored.entries.iter().any(|entry| entry.kind == EntryKind::Members);
        let alone = restored.members.is_sole_voter(member) && !others_came && !witness;
        let standing = Mutex::new(Standing { applied: restored.applied, members: restored.members.clone() });
        let chance = RandomState::new();
        let (incarnation, seed) = (chance.hash_one(std::process::id()), chance.hash_one(Instant::now()));
        let tick_ms = u64::try_from(config.tick.as_millis()).unwrap_or(u64::MAX);
        let settings =
            dhow_consensus::Config { member, incarnation, seed, tick_ms, witness, lag_max: LagMax::default() };
        let consensus = Consensus::new(settings, restored).map_err(|error| damaged(&dir, &error.to_string()))?;
        let free = dir.clone();
        let free_bytes = Box::new(move || free_bytes(&free));
        let disk = Disk {
            dir: config.dir,
            member,
            every: config.flush_every,
            behind_bytes_max: config.behind_bytes_max,
            free_bytes,
        };
        let no_thread = || failed("starting a thread for", &dir);
        let flusher = Flusher::start(objects, disk).map_err(no_thread())?;
        let log = Log::start(wal).map_err(no_thread())?;
        let hub = Hub::new(state.revision());
        let shared = Arc::new(Shared { hub, state: RwLock::new(state), standing, history_max });
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let (inbox_sender, inbox) = mpsc::channel(INBOX_MAX);
        let now = RoleNow { role: consensus.role(), term: consensus.term(), leader: consensus.leader() };
        let (role, role_now) = watch::channel(now);
        let (failure, failed) = watch::channel(None);
        let driver = Driver {
            member,
            witness,
            consensus,
            log,
            flusher,
            shared: shared.clone(),
            peers,
            requests,
            inbox,
            role,
            failure,
            dir: dir.clone(),
            lock,
            clock: Instant::now(),
            work: Work::default(),
        };
        start(driver).map_err(no_thread())?;
        let room = Arc::new(Semaphore::new(REQUEST_BYTES_MAX));
        let (inbox, role, failure) = (inbox_sender, role_now, failed);
        let replica = Replica { shared, requests: sender, inbox, role, failure, room, dir: dir.clone(), witness };
        if alone {
            replica.wait_until_ready().map_err(|error| {
                let source = io::Error::other(error.to_string());
                OpenError::Io { doing: "replaying the log of", path: dir.to_path_buf(), source }
            })?;
        }
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

    /// Does all of a transaction or nothing; answers when it is durable on a majority and applied here, on whichever
    /// member. A caller that goes away does not stop its write.
    pub async fn write(&self, txn: Txn) -> Result<Applied, WriteError> {
        // Here and not on the replica's thread, of which there is one.
        self.write_prepared(txn.prepare()?, false).await
    }

    /// The same with values that were read already. If it is `lazy` it may wait for some seconds to share the sync of
    /// another one: for what is written again and again, like heartbeats.
    pub async fn write_prepared(&self, prepared: Prepared, lazy: bool) -> Result<Applied, WriteError> {
        let txn = prepared.txn();
        let too_large = |value: &Bytes| value.len() > OBJECT_BYTES_MAX;
        if txn.ops.iter().any(|op| op.value().is_some_and(too_large)) {
            return Err(WriteError::TooLarge);
        }
        let data: Bytes = txn.encode().into();
        if data.len() > TXN_BYTES_MAX {
            return Err(WriteError::TooLarge);
        }
        let bytes = u32::try_from(data.len()).expect("8 MiB fit");
        let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Write(Write { prepared, data, lazy, reply, _room: room })).await?;
        answer.await.map_err(|_| closed())?
    }

    async fn ask(&self, request: Request) -> Result<(), WriteError> {
        self.requests.send(request).await.map_err(|_| closed())
    }

    /// The state as it is now. Hold it shortly and never across an `await`: it keeps writes from being applied.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.shared.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the state holds every write that was acknowledged, by any member, before this call.
    pub async fn barrier(&self) -> Result<Revision, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Barrier(reply)).await?;
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
                let backlog = state.since(revision)?.filter(|change| filter.wants(change)).cloned().collect();
                (now.max(revision), backlog)
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

    /// What this member is, now and from now on.
    pub fn role(&self) -> watch::Receiver<RoleNow> {
        self.role.clone()
    }

    /// Waits until the store cannot go on, and tells why; a store that is closed in order never fails.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.failure.clone();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        match failed {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// Everything that can be told about this member.
    pub async fn status(&self) -> Result<Status, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Status(reply)).await?;
        let status = answer.await.map_err(|_| closed())?;
        let database = crate::objects::Objects::path(&self.dir);
        let database_bytes = tokio::task::spawn_blocking(move || bytes_below(&database)).await.unwrap_or(0);
        Ok(Status { database_bytes, ..status })
    }

    /// Changes who the members are, on whichever member it is asked for; answers with those in force afterwards.
    pub async fn change_members(&self, changes: Vec<MemberChange>) -> Result<Members, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Change(changes, reply)).await?;
        answer.await.map_err(|_| closed())?
    }

    /// Lets another member lead: this one, or whichever is best. Answers when somebody else does.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<(), WriteError> {
        let mut role = self.role();
        let before = role.borrow_and_update().leader;
        if to.is_some() && to == before {
            return Ok(());
        }
        self.ask(Request::Transfer(to)).await?;
        let done = |now: &RoleNow| match to {
            Some(to) => now.leader == Some(to),
            None => now.leader.is_some() && now.leader != before,
        };
        match tokio::time::timeout(TRANSFER_WAIT, role.wait_for(done)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(WriteError::Unavailable("no other member could take over the lead".to_owned())),
        }
    }

    /// A consistent image of the state as it is here and now; as bytes, a backup.
    pub async fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let Standing { applied, members } = self.shared.standing().clone();
        Snapshot::new(&state, applied, members)
    }

    /// Takes a message of another member. Never blocks; when too many wait it is lost.
    pub fn receive(&self, message: Bytes) {
        // Consensus expects messages to be lost.
        let _ = self.inbox.try_send(FromPeer::Message(message));
    }

    /// Takes a snapshot that another member's [`Peers::send_snapshot`] streams. Nothing of it counts before all of it
    /// has come and is what was sent.
    pub async fn receive_snapshot(&self, mut stream: impl AsyncRead + Unpin) -> Result<(), SnapshotError> {
        let len = stream.read_u32_le().await.map_err(SnapshotError::Read)? as usize;
        if len > MESSAGE_BYTES_MAX {
            return Err(SnapshotError::Message(len));
        }
        let mut message = vec![0; len];
        stream.read_exact(&mut message).await.map_err(SnapshotError::Read)?;
        let mut reader = Reader::default();
        let mut piece = BytesMut::with_capacity(256 << 10);
        while stream.read_buf(&mut piece).await.map_err(SnapshotError::Read)? > 0 {
            reader.feed(&piece)?;
            piece.clear();
        }
        let history_max = self.shared.history_max;
        let finished = tokio::task::spawn_blocking(move || reader.finish(history_max)).await;
        let image = Box::new(finished.map_err(|_| SnapshotError::Closed)??);
        if image.is_bare && !self.witness {
            return Err(ImageError::Bare.into());
        }
        let snapshot = FromPeer::Snapshot { message: message.into(), image };
        self.inbox.send(snapshot).await.map_err(|_| SnapshotError::Closed)
    }

    /// How the sending of a snapshot has ended.
    pub fn snapshot_sent(&self, to: u64, ok: bool) {
        // If the queue is full it is not heard, and the snapshot is sent again after a while.
        let _ = self.inbox.try_send(FromPeer::SnapshotSent { to, ok });
    }

    /// A member cannot be reached now; what was sent to it of late may be lost.
    pub fn unreachable(&self, to: u64) {
        // A hint only.
        let _ = self.inbox.try_send(FromPeer::Unreachable(to));
    }

    /// Ends the store in order: somebody else leads if somebody can, later writes fail, everything is flushed, and the
    /// directory is free when this returns.
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
    let (failure, hub) = (driver.failure.clone(), driver.shared.hub.clone());
    let run = move || {
        // What it held is gone with it: nothing is looked at afterwards that it may have left half done.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| runtime.block_on(driver.run()))) {
            let why = format!("its thread panicked: {}; this is a fault of dhow: report it", panic_text(&*panic));
            failure.send_replace(Some(Failure { why, is_loss: false }));
            hub.close();
        }
    };
    std::thread::Builder::new().name("dhow-replica".into()).spawn(run)?;
    Ok(())
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why")
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

fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

fn closed() -> WriteError {
    WriteError::Unavailable("the store is closed".to_owned())
}
