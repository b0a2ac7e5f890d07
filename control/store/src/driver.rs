//! The replica's thread: it drives consensus with the log, applies what is committed, and answers.
//!
//! One round: all requests that wait are proposed together, persisted by one `fdatasync`, applied under one lock,
//! handed to watchers, and answered; who has an answer finds its change in every watcher's queue. While a round waits
//! for the disk the next one gathers; nothing waits for a timer.
//!
//! How it ends: a failed write to the log or to the object database leaves the replica readable and refuses every
//! write and barrier until the process is restarted. A log segment that cannot be made, because the disk is full, only
//! refuses the writes that needed it.

use crate::error::WriteError;
use crate::flusher::Flusher;
use crate::lock::Lock;
use crate::wal::{Checkpoint, Wal};
use crate::watch::Hub;
use bytes::Bytes;
use dhow_consensus::{Committed, Consensus, In, Out, Position, ProposalId, ReadId, Refusal, Role};
use dhow_state::{Applied, Change, Rejected, State, Txn};
use dhow_types::{Machine, Revision, Time};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// One round's writes. Enough to use a disk's bandwidth, little enough that the first of them does not wait long for
/// the last.
const ROUND_BYTES_MAX: usize = 4 << 20;

/// One round's requests.
const ROUND_REQUESTS_MAX: usize = 1_024;

/// After a segment could not be made, writes are refused for this long before the disk is tried again.
const FULL_DISK_RETRY: Duration = Duration::from_millis(500);

/// What handles ask of the thread.
pub(crate) enum Request {
    Write(Write),
    Barrier(oneshot::Sender<Result<Revision, WriteError>>),
    Close(oneshot::Sender<()>),
}

pub(crate) struct Write {
    pub(crate) txn: Txn,
    /// The encoded transaction.
    pub(crate) data: Bytes,
    pub(crate) reply: oneshot::Sender<Result<Applied, WriteError>>,
    /// The share of the queue's bytes that this request holds.
    pub(crate) _room: OwnedSemaphorePermit,
}

/// What handles and the thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: RwLock<State>,
    pub(crate) hub: Arc<Hub>,
}

pub(crate) struct Driver {
    pub(crate) consensus: Consensus,
    pub(crate) wal: Wal,
    pub(crate) flusher: Flusher,
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) lock: Lock,
    pub(crate) clock: Instant,
    pub(crate) waiting: BTreeMap<ProposalId, Write>,
    pub(crate) reading: BTreeMap<ReadId, Vec<oneshot::Sender<Result<Revision, WriteError>>>>,
    pub(crate) next_id: u64,
    pub(crate) health: Health,
}

/// Whether writes are taken.
pub(crate) enum Health {
    Good,
    /// A segment could not be made; tried again after the instant.
    Full(String, Instant),
    /// For good.
    Broken(String),
}

enum Event {
    Request(Request),
    Gone,
    Flushed,
    Wake,
}

#[derive(Default)]
struct Round {
    writes: Vec<Write>,
    barriers: Vec<oneshot::Sender<Result<Revision, WriteError>>>,
    close: Option<Option<oneshot::Sender<()>>>,
    bytes: usize,
}

impl Driver {
    /// Runs until it is closed or nobody is left who could ask for anything.
    pub(crate) async fn run(mut self) {
        // Before the first request: a member that is alone then leads already, and has applied its log.
        self.wake();
        let closer = loop {
            let mut round = Round::default();
            match self.next_event().await {
                Event::Wake => {
                    self.wake();
                    continue;
                }
                Event::Flushed => {
                    self.handle_flushed();
                    continue;
                }
                Event::Request(request) => round.add(request),
                Event::Gone => round.close = Some(None),
            }
            while round.has_room()
                && let Ok(request) = self.requests.try_recv()
            {
                round.add(request);
            }
            let closing = round.close.take();
            self.play(round);
            if let Some(closer) = closing {
                break closer;
            }
        };
        for closer in self.close().into_iter().chain(closer) {
            // The one who asked may have given up waiting.
            let _ = closer.send(());
        }
    }

    async fn next_event(&mut self) -> Event {
        let wake = self.consensus.next_wake().map(|at| {
            let ms = at.ms_since(self.now());
            tokio::time::sleep(Duration::from_millis(ms))
        });
        tokio::select! {
            biased;
            () = async { wake.expect("guarded by the condition").await }, if wake.is_some() => Event::Wake,
            () = self.flusher.done() => Event::Flushed,
            request = self.requests.recv() => request.map_or(Event::Gone, Event::Request),
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

    fn play(&mut self, round: Round) {
        if let Some(why) = self.refusal(round.bytes + 64 * round.writes.len()) {
            let error = WriteError::Unavailable(why);
            for write in round.writes {
                // Whoever does not wait for the answer does not need it, here and below.
                let _ = write.reply.send(Err(error.clone()));
            }
            if matches!(self.health, Health::Broken(_)) {
                for barrier in round.barriers {
                    let _ = barrier.send(Err(error.clone()));
                }
                return;
            }
            self.read(round.barriers);
            return;
        }
        self.read(round.barriers);
        let mut proposals = Vec::with_capacity(round.writes.len());
        for write in round.writes {
            let id = ProposalId(self.fresh_id());
            proposals.push((id, write.data.clone()));
            self.waiting.insert(id, write);
        }
        if !proposals.is_empty() {
            self.give(In::Propose(proposals));
        }
    }

    /// All barriers of a round share one read.
    fn read(&mut self, barriers: Vec<oneshot::Sender<Result<Revision, WriteError>>>) {
        if !barriers.is_empty() {
            let id = ReadId(self.fresh_id());
            self.reading.insert(id, barriers);
            self.give(In::ReadIndex(id));
        }
    }

    /// Why writes of this size cannot be taken now, if so.
    fn refusal(&mut self, bytes: usize) -> Option<String> {
        match &self.health {
            Health::Broken(why) => return Some(why.clone()),
            Health::Full(why, until) if Instant::now() < *until => return Some(why.clone()),
            Health::Full(..) | Health::Good => {}
        }
        if bytes == 0 {
            return None;
        }
        match self.wal.reserve(bytes) {
            Ok(()) => {
                if matches!(self.health, Health::Full(..)) {
                    tracing::info!("the log can be written again");
                }
                self.health = Health::Good;
                None
            }
            Err(error) => {
                let why = format!("the log cannot grow: {error}; free space on the disk of the data directory");
                if matches!(self.health, Health::Good) {
                    tracing::error!(%why, "refusing writes");
                }
                self.health = Health::Full(why.clone(), Instant::now() + FULL_DISK_RETRY);
                Some(why)
            }
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn give(&mut self, input: In) {
        let mut out = Vec::new();
        self.consensus.handle(self.now(), input, &mut out);
        self.act(out);
    }

    /// Does what consensus wishes, in the order of its wishes.
    fn act(&mut self, out: Vec<Out>) {
        let mut wishes = VecDeque::from(out);
        while let Some(wish) = wishes.pop_front() {
            let answer = match wish {
                Out::Persist(persist) => match self.wal.append(&persist.entries, persist.hard_state) {
                    Ok(()) => Some(In::Persisted(persist.number)),
                    Err(error) => {
                        self.fail(format!("the log could not be written: {error}; restart when the disk is well"));
                        None
                    }
                },
                Out::Commit(entries) => self.apply(entries).map(In::Applied),
                Out::ReadReady(id) => {
                    let revision = self.shared.state.read().unwrap_or_else(PoisonError::into_inner).revision();
                    self.answer_read(id, &Ok(revision));
                    None
                }
                Out::Lost { proposals, reads } => {
                    self.lose(proposals, reads);
                    None
                }
                Out::Role { role, term } => {
                    let leads = role == Role::Leader;
                    tracing::info!(leads, term, "the role changed");
                    None
                }
                Out::Refused(id, why) => {
                    self.refuse(id, why);
                    None
                }
                Out::Forgot { known, last } => {
                    self.fail(format!("the log ends at entry {last}, and the other members know it up to {known}"));
                    None
                }
                // A member alone has nobody to send to, and nobody sends it an image.
                Out::Send(_) | Out::SendSnapshot { .. } | Out::Install(_) => None,
            };
            if let Some(input) = answer {
                let mut more = Vec::new();
                self.consensus.handle(self.now(), input, &mut more);
                wishes.extend(more);
            }
        }
    }

    /// Applies entries and answers those who wait for them. Gives the index that is reached, unless an entry cannot
    /// be read.
    fn apply(&mut self, entries: Vec<Committed>) -> Option<u64> {
        let mut changes: Vec<Arc<Change>> = Vec::new();
        let mut answers = Vec::new();
        let mut carried = false;
        let (mut reached, mut unreadable) = (None, None);
        let shared = self.shared.clone();
        let mut state = shared.state.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let Committed { index, term, id, data, members: _ } = entry;
            if data.is_empty() {
                state.apply_nothing(index);
            } else {
                let write = id.and_then(|id| self.waiting.remove(&id));
                let ended = match &write {
                    Some(write) => state.apply_into(index, &write.txn, &mut changes),
                    None => match Txn::decode(data) {
                        Ok(txn) => state.apply_into(index, &txn, &mut changes),
                        Err(error) => {
                            unreadable = Some(format!("entry {index} of the log cannot be applied: {error}"));
                            break;
                        }
                    },
                };
                carried = true;
                answers.extend(write.map(|write| (write, ended)));
            }
            reached = Some(Position { index, term });
        }
        let (revision, hash) = (state.revision(), state.hash());
        drop(state);
        if let Some(applied) = reached.filter(|_| carried) {
            self.flusher.add(&changes, Checkpoint { applied, revision: revision.0, hash });
        }
        if !changes.is_empty() {
            self.shared.hub.publish(&changes, revision);
        }
        for (write, ended) in answers {
            let _ = write.reply.send(ended.map_err(|rejected: Rejected| rejected.into()));
        }
        if let Some(why) = unreadable {
            self.fail(format!("{why}; run a newer dhow"));
            return None;
        }
        reached.map(|reached| reached.index)
    }

    fn handle_flushed(&mut self) {
        match self.flusher.result() {
            None => {}
            Some(Ok(checkpoint)) => {
                if matches!(self.health, Health::Broken(_)) {
                    return;
                }
                if let Err(error) = self.wal.checkpoint(checkpoint) {
                    self.fail(format!("the log could not be written: {error}; restart when the disk is well"));
                }
            }
            Some(Err(error)) => {
                self.fail(format!("the object database could not be written: {error}; restart when the disk is well"));
            }
        }
    }

    /// Takes no more writes. Whoever waits is told, and may not assume that nothing happened.
    fn fail(&mut self, why: String) {
        tracing::error!(%why, "the store takes no more writes");
        let proposals = self.waiting.keys().copied().collect();
        let reads = self.reading.keys().copied().collect();
        self.health = Health::Broken(why);
        self.lose(proposals, reads);
    }

    fn lose(&mut self, proposals: Vec<ProposalId>, reads: Vec<ReadId>) {
        let why = match &self.health {
            Health::Broken(why) | Health::Full(why, _) => why.clone(),
            Health::Good => "this member does not lead, or takes no more writes for now".to_owned(),
        };
        let error = WriteError::Unavailable(why);
        for id in proposals {
            if let Some(write) = self.waiting.remove(&id) {
                let _ = write.reply.send(Err(error.clone()));
            }
        }
        for id in reads {
            self.answer_read(id, &Err(error.clone()));
        }
    }

    fn refuse(&mut self, id: ProposalId, why: Refusal) {
        if let Some(write) = self.waiting.remove(&id) {
            let _ = write.reply.send(Err(WriteError::Unavailable(why.to_string())));
        }
    }

    fn answer_read(&mut self, id: ReadId, answer: &Result<Revision, WriteError>) {
        for barrier in self.reading.remove(&id).into_iter().flatten() {
            let _ = barrier.send(answer.clone());
        }
    }

    /// Refuses what still waits, flushes, and lets go of the directory. Gives those who want to know when it is done.
    fn close(mut self) -> Vec<oneshot::Sender<()>> {
        let mut closers = Vec::new();
        self.requests.close();
        let error = WriteError::Unavailable("the store is closed".to_owned());
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Write(write) => drop(write.reply.send(Err(error.clone()))),
                Request::Barrier(barrier) => drop(barrier.send(Err(error.clone()))),
                Request::Close(closer) => closers.push(closer),
            }
        }
        let ended = self.flusher.stop();
        match ended {
            Some(Ok(checkpoint)) if !matches!(self.health, Health::Broken(_)) => {
                if let Err(error) = self.wal.checkpoint(checkpoint) {
                    tracing::warn!(%error, "closed without noting the last flush; the next start replays more");
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "closed without a last flush; the next start replays more"),
            _ => {}
        }
        self.shared.hub.close();
        let Self { wal, lock, .. } = self;
        drop(wal);
        drop(lock);
        closers
    }
}

impl Round {
    fn add(&mut self, request: Request) {
        match request {
            Request::Write(write) => {
                self.bytes += write.data.len();
                self.writes.push(write);
            }
            Request::Barrier(barrier) => self.barriers.push(barrier),
            Request::Close(closer) => self.close = Some(Some(closer)),
        }
    }

    fn has_room(&self) -> bool {
        self.close.is_none()
            && self.bytes < ROUND_BYTES_MAX
            && self.writes.len() + self.barriers.len() < ROUND_REQUESTS_MAX
    }
}
