//! The replica's thread: it drives consensus, applies what is committed, and answers.
//!
//! One round: all that waits is given to consensus together; what it wishes (`act`) goes to the log's thread and to the
//! other members at once. When the log is durable on enough of them, the entries are applied under one lock, handed to
//! watchers, and answered; who has an answer finds its change in every watcher's queue. This thread never waits for a
//! disk or another member, so its heartbeats keep their time. While a round waits for the disk the next one gathers.
//!
//! How it ends: a failed write to the log or to the object database leaves the replica readable, silences it towards the
//! other members, so that they go on without it, and refuses every write and barrier until the process is restarted. A
//! log that cannot grow, because the disk is full, only refuses writes.

mod act;

use crate::error::{Failure, WriteError};
use crate::flusher::Flusher;
use crate::image::Image;
use crate::log::Log;
use crate::replica::{Peers, RoleNow, Status};
use crate::watch::Hub;
use act::Installing;
use bytes::Bytes;
use dhow_consensus::{Consensus, In, MemberChange, Members, Out, Position, ProposalId, ReadId, Role};
use dhow_files::Lock;
use dhow_state::{Applied, HistoryMax, Prepared, State};
use dhow_types::{Machine, Revision, Time};
use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

/// One round's writes. Enough to use a disk's bandwidth, little enough that the first of them does not wait long for
/// the last.
const ROUND_BYTES_MAX: usize = 4 << 20;

/// One round's requests.
const ROUND_REQUESTS_MAX: usize = 1_024;

/// Messages of other members that are taken before requests have their turn.
const ROUND_MESSAGES_MAX: usize = 64;

/// How long a lazy write waits for another one's sync: a third of the time after which whoever renews a lease does it
/// again.
const LAZY_WAIT: Duration = Duration::from_secs(3);

/// Lazy writes that wait. More do not wait longer: a round has its size.
const LAZY_MAX: usize = ROUND_REQUESTS_MAX / 2;

/// How long a close waits for writes that are on their way, and for somebody else to lead.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// How long requests gather while the log writes, instead of waking the thread one by one: what is proposed meanwhile
/// would wait for the disk anyway. On a slower disk than this the other members, who may be faster, get them earlier.
const GATHER_MAX: Duration = Duration::from_millis(1);

/// What a request's own bytes do not show of what the log writes for it.
const WRITE_OVERHEAD: usize = 128;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, WriteError>>;

/// What handles ask of the thread.
pub(crate) enum Request {
    Write(Write),
    Barrier(Reply<Revision>),
    Change(Vec<MemberChange>, Reply<Members>),
    Transfer(Option<u64>),
    Status(oneshot::Sender<Status>),
    Close(oneshot::Sender<()>),
}

pub(crate) struct Write {
    pub(crate) prepared: Prepared,
    /// The encoded transaction.
    pub(crate) data: Bytes,
    /// May wait to share another write's sync.
    pub(crate) lazy: bool,
    pub(crate) reply: Reply<Applied>,
    /// The share of the queue's bytes that this request holds.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// What other members have to do with this one.
pub(crate) enum FromPeer {
    Message(Bytes),
    Snapshot { message: Bytes, image: Box<Image> },
    SnapshotSent { to: u64, ok: bool },
    Unreachable(u64),
}

/// What handles and the thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    /// Changes only while the state's lock is held for writing.
    pub(crate) standing: Mutex<Standing>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) history_max: HistoryMax,
}

/// Where in the log the state stands, and who the members are there.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) applied: Position,
    pub(crate) members: Members,
}

impl Shared {
    pub(crate) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Driver {
    pub(crate) member: u64,
    pub(crate) witness: bool,
    pub(crate) consensus: Consensus,
    pub(crate) log: Log,
    pub(crate) flusher: Flusher,
    pub(crate) shared: Arc<Shared>,
    pub(crate) peers: Arc<dyn Peers>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) inbox: mpsc::Receiver<FromPeer>,
    pub(crate) role: watch::Sender<RoleNow>,
    /// Set once the store cannot go on.
    pub(crate) failure: watch::Sender<Option<Failure>>,
    pub(crate) dir: Arc<Path>,
    pub(crate) lock: Lock,
    pub(crate) clock: Instant,
    pub(crate) work: Work,
}

/// What is under way.
#[derive(Default)]
pub(crate) struct Work {
    waiting: BTreeMap<ProposalId, Waiting>,
    /// Changes of members whose entry is committed, and which take effect step by step.
    joint: Vec<Reply<Members>>,
    /// The one read that consensus has been asked for, and those who wait for it.
    reading: Option<(ReadId, Vec<Reply<Revision>>)>,
    /// Those who came later: the next read is theirs.
    readers: Vec<Reply<Revision>>,
    /// Writes that wait until the object database has caught up. The room that each holds bounds them.
    held: Vec<Write>,
    lazy: Vec<Write>,
    lazy_due: Option<Instant>,
    next_id: u64,
    /// What the log's thread has been given last and has not written yet, and until when requests gather for it.
    writing: Option<(u64, Instant)>,
    health: Health,
    wishes: VecDeque<Out>,
    /// The latest image that another member sent, until consensus has looked at it.
    arrived: Option<Box<Image>>,
    installing: Option<Installing>,
    closing: Option<Closing>,
}

enum Waiting {
    Write(Write),
    Change(Reply<Members>),
}

struct Closing {
    by: Instant,
    closers: Vec<oneshot::Sender<()>>,
}

/// Whether writes are taken.
#[derive(Default)]
enum Health {
    #[default]
    Good,
    /// The log cannot grow for now.
    Full,
    /// For good.
    Broken(String),
}

enum Event {
    Request(Request),
    Gone,
    Peer(FromPeer),
    Logged,
    Flushed,
    Lazy,
    Gathered,
    Deadline,
    Wake,
}

#[derive(Default)]
struct Round {
    writes: Vec<Write>,
    bytes: usize,
    requests: usize,
}

impl Driver {
    /// Runs until it is closed or nobody is left who could ask for anything.
    pub(crate) async fn run(mut self) {
        // Before the first request: a member that is alone then leads already, and has applied its log.
        self.wake();
        while !self.is_done() {
            let mut round = Round::default();
            let event = self.next_event().await;
            let has_logged = matches!(event, Event::Logged);
            match event {
                Event::Wake => self.wake(),
                Event::Flushed => {
                    self.handle_flushed();
                    mem::take(&mut self.work.held).into_iter().for_each(|write| round.add(write));
                }
                Event::Peer(first) => self.hear(first),
                Event::Lazy => self.send_lazy(&mut round),
                Event::Request(request) => self.take(request, &mut round),
                Event::Gone => self.begin_close(None),
                // What has gathered is played below; first it, so that the disk works while the last round is applied.
                Event::Logged | Event::Gathered | Event::Deadline => {}
            }
            while round.has_room()
                && let Ok(request) = self.requests.try_recv()
            {
                self.take(request, &mut round);
            }
            self.play(round);
            if has_logged {
                self.handle_logged();
            }
            self.read();
        }
        self.close();
    }

    async fn next_event(&mut self) -> Event {
        let broken = self.is_broken();
        let wake = self.consensus.next_wake().filter(|_| !broken).map(|at| {
            let ms = at.ms_since(self.now());
            tokio::time::sleep(Duration::from_millis(ms))
        });
        let by = self.work.closing.as_ref().map(|closing| closing.by);
        let due = self.work.lazy_due;
        let gathering = self.work.writing.map(|(_, until)| until).filter(|until| Instant::now() < *until);
        tokio::select! {
            biased;
            () = async { wake.expect("guarded by the condition").await }, if wake.is_some() => Event::Wake,
            () = self.log.done() => Event::Logged,
            () = self.flusher.done() => Event::Flushed,
            () = sleep_until(by), if by.is_some() => Event::Deadline,
            () = sleep_until(due), if due.is_some() => Event::Lazy,
            () = sleep_until(gathering), if gathering.is_some() => Event::Gathered,
            Some(message) = self.inbox.recv() => Event::Peer(message),
            request = self.requests.recv(), if by.is_none() && gathering.is_none() => request.map_or(Event::Gone, Event::Request),
        }
    }

    fn wake(&mut self) {
        let mut out = Vec::new();
        self.consensus.wake(self.now(), &mut out);
        self.act(out);
    }

    fn now(&self) -> Time {
        Time::from_ms(self.clock.elapsed().as_millis() as i64)
    }

    fn is_broken(&self) -> bool {
        matches!(self.work.health, Health::Broken(_))
    }

    fn hear(&mut self, first: FromPeer) {
        let (mut next, mut left) = (Some(first), ROUND_MESSAGES_MAX);
        while let Some(message) = next {
            match message {
                FromPeer::Message(bytes) => self.give(In::Message(bytes)),
                FromPeer::SnapshotSent { to, ok } => self.give(In::SnapshotSent { to, ok }),
                FromPeer::Unreachable(member) => self.give(In::Unreachable(member)),
                FromPeer::Snapshot { message, image } => {
                    let (position, members) = (image.position, image.members.clone());
                    self.work.arrived = Some(image);
                    self.give(In::Snapshot { message, position, members });
                    // Nobody wanted it, or it is being installed.
                    self.work.arrived = None;
                }
            }
            left -= 1;
            next = if left > 0 { self.inbox.try_recv().ok() } else { None };
        }
    }

    /// Adds a request to the round, or answers it.
    fn take(&mut self, request: Request, round: &mut Round) {
        round.requests += 1;
        match request {
            Request::Write(write) if write.lazy && self.work.lazy.len() < LAZY_MAX => {
                self.work.lazy_due.get_or_insert_with(|| Instant::now() + LAZY_WAIT);
                self.work.lazy.push(write);
            }
            Request::Write(write) => round.add(write),
            Request::Barrier(reply) => self.work.readers.push(reply),
            Request::Change(changes, reply) => self.change(changes, reply),
            Request::Transfer(to) => self.give(In::TransferLeadership { to }),
            Request::Status(reply) => {
                // Whoever does not wait for the answer does not need it, here and below.
                let _ = reply.send(self.status());
            }
            Request::Close(closer) => self.begin_close(Some(closer)),
        }
    }

    fn send_lazy(&mut self, round: &mut Round) {
        self.work.lazy_due = None;
        mem::take(&mut self.work.lazy).into_iter().for_each(|write| round.add(write));
    }

    fn play(&mut self, mut round: Round) {
        if round.writes.is_empty() {
            return;
        }
        if self.flusher.is_behind() && self.work.closing.is_none() && !self.is_broken() {
            self.work.held.append(&mut round.writes);
            return;
        }
        self.send_lazy(&mut round);
        let refusal = self.refusal(round.bytes + WRITE_OVERHEAD * round.writes.len());
        if let Some(why) = refusal {
            let error = WriteError::Unavailable(why);
            round.writes.into_iter().for_each(|write| drop(write.reply.send(Err(error.clone()))));
            return;
        }
        let mut proposals = Vec::with_capacity(round.writes.len());
        for write in round.writes {
            let id = self.fresh_id();
            proposals.push((id, write.data.clone()));
            self.work.waiting.insert(id, Waiting::Write(write));
        }
        self.give(In::Propose(proposals));
    }

    /// Why writes of this size cannot be taken now, if so.
    fn refusal(&mut self, bytes: usize) -> Option<String> {
        if let Some(why) = self.is_of_no_use() {
            return Some(why);
        }
        let why = self.log.refusal(bytes);
        match (&self.work.health, &why) {
            (Health::Good, Some(why)) => {
                tracing::error!(%why, "refusing writes");
                self.work.health = Health::Full;
                self.step_down();
            }
            (Health::Full, None) => {
                tracing::info!("writes are taken again");
                self.work.health = Health::Good;
            }
            _ => {}
        }
        why
    }

    /// Why neither writes nor reads have an answer here, if so.
    fn is_of_no_use(&self) -> Option<String> {
        match &self.work.health {
            Health::Broken(why) => Some(why.clone()),
            _ if self.work.closing.is_some() => Some("the store is closed".to_owned()),
            _ if self.witness => Some("a witness holds no objects: ask another member".to_owned()),
            _ => None,
        }
    }

    /// Another member may have what this one lacks. Nothing comes of it if nobody can lead.
    fn step_down(&mut self) {
        if self.consensus.role() == Role::Leader && self.consensus.members().voters.len() > 1 {
            self.give(In::TransferLeadership { to: None });
        }
    }

    fn change(&mut self, changes: Vec<MemberChange>, reply: Reply<Members>) {
        if let Health::Broken(why) = &self.work.health {
            let _ = reply.send(Err(WriteError::Unavailable(why.clone())));
            return;
        }
        let id = self.fresh_id();
        self.work.waiting.insert(id, Waiting::Change(reply));
        self.give(In::ChangeMembers(id, changes));
    }

    /// All who came while a read was on its way share the next one: it must begin after they came.
    fn read(&mut self) {
        if self.work.readers.is_empty() || self.work.reading.is_some() {
            return;
        }
        let readers = mem::take(&mut self.work.readers);
        if let Some(why) = self.is_of_no_use() {
            let error = WriteError::Unavailable(why);
            readers.into_iter().for_each(|reader| drop(reader.send(Err(error.clone()))));
            return;
        }
        let ProposalId(id) = self.fresh_id();
        self.work.reading = Some((ReadId(id), readers));
        self.give(In::ReadIndex(ReadId(id)));
    }

    fn fresh_id(&mut self) -> ProposalId {
        self.work.next_id += 1;
        ProposalId(self.work.next_id)
    }

    fn give(&mut self, input: In) {
        if self.is_broken() {
            return;
        }
        let mut out = Vec::new();
        self.consensus.handle(self.now(), input, &mut out);
        self.act(out);
    }

    fn status(&self) -> Status {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let Standing { applied, members } = self.shared.standing().clone();
        let now = *self.role.borrow();
        Status {
            member: self.member,
            witness: self.witness,
            role: now.role,
            term: now.term,
            leader: now.leader,
            members,
            applied,
            committed: self.consensus.committed(),
            last: self.consensus.last(),
            progress: self.consensus.progress(),
            database_bytes: 0,
            log_bytes: self.log.bytes(),
            lazy: self.work.lazy.len(),
            objects: state.len(),
            revision: state.revision(),
        }
    }

    /// Later requests are refused; those on their way, and the lead, get a moment.
    fn begin_close(&mut self, closer: Option<oneshot::Sender<()>>) {
        self.requests.close();
        let by = Instant::now() + CLOSE_WAIT;
        let closing = self.work.closing.get_or_insert(Closing { by, closers: Vec::new() });
        closing.closers.extend(closer);
        self.step_down();
    }

    fn is_done(&self) -> bool {
        let Some(closing) = &self.work.closing else { return false };
        let leads = self.consensus.role() == Role::Leader && self.consensus.members().voters.len() > 1;
        let rests = self.work.waiting.is_empty() && self.work.reading.is_none() && self.work.installing.is_none();
        Instant::now() >= closing.by || self.is_broken() || (rests && !leads)
    }

    /// Refuses what still waits, flushes, lets go of the directory, and says so.
    fn close(mut self) {
        let mut closers = self.work.closing.take().map(|closing| closing.closers).unwrap_or_default();
        let error = WriteError::Unavailable("the store is closed".to_owned());
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Write(write) => drop(write.reply.send(Err(error.clone()))),
                Request::Barrier(reply) => drop(reply.send(Err(error.clone()))),
                Request::Change(_, reply) => drop(reply.send(Err(error.clone()))),
                Request::Close(closer) => closers.push(closer),
                Request::Transfer(_) | Request::Status(_) => {}
            }
        }
        for write in mem::take(&mut self.work.lazy).into_iter().chain(mem::take(&mut self.work.held)) {
            let _ = write.reply.send(Err(error.clone()));
        }
        self.end_database();
        if let Some(why) = self.log.close().failed {
            tracing::warn!(%why, "closed without the end of the log; what was acknowledged is in it");
        }
        self.shared.hub.close();
        let Self { lock, .. } = self;
        drop(lock);
        for closer in closers {
            let _ = closer.send(());
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    tokio::time::sleep_until(at.expect("guarded by the condition").into()).await;
}

impl Round {
    fn add(&mut self, write: Write) {
        self.bytes += write.data.len();
        self.writes.push(write);
    }

    fn has_room(&self) -> bool {
        self.bytes < ROUND_BYTES_MAX && self.requests < ROUND_REQUESTS_MAX
    }
}
