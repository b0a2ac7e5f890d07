//! One run: a member, its disk, its clients and its watcher.

use crate::disk::{Disk, Image};
use dhow_consensus::{Committed, Config, Consensus, In, Out, Position, ProposalId, ReadId};
use dhow_state::{Change, Expect, HistoryMax, Key, Op, State, Txn};
use dhow_types::{Machine, Revision, Rng, Time};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

/// A mistake to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// None.
    Sound,
    /// A write is acknowledged when it is proposed.
    EarlyAcknowledgement,
    /// A write to the log is reported as durable without a sync.
    SkippedSync,
    /// The log is dropped up to what is applied, not up to what is flushed.
    EarlyTruncation,
    /// A watcher misses a change now and then.
    DroppedChange,
    /// A watcher that comes back is given the last change once more.
    RepeatedChange,
    /// A read is answered without asking whether the state is up to date.
    StaleRead,
    /// A rejected transaction is answered as if it had been done.
    IgnoredRejection,
}

/// What must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In which step.
    pub step: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}", self.step, self.what)
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Each step, in words.
    pub trace: Vec<String>,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Writes that were rejected.
    pub rejected: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// Changes that the watcher got.
    pub watched: usize,
    /// Deaths of the process.
    pub crashes: usize,
}

/// A running member.
struct Member {
    consensus: Consensus,
    state: State,
    applied: Position,
    /// Committed and not applied yet.
    backlog: VecDeque<Committed>,
    writes: BTreeMap<ProposalId, Txn>,
    /// By id: the revision that was acknowledged, and the entry that was committed, when the read was asked for.
    reads: BTreeMap<ReadId, (Revision, u64)>,
}

/// Someone who watches everything.
#[derive(Default)]
struct Watcher {
    after: Revision,
    /// What the changes add up to: the revision of each object.
    objects: BTreeMap<Key, Revision>,
}

/// The whole of one run.
pub struct World {
    rng: Rng,
    bug: Bug,
    now: Time,
    step: u64,
    next_id: u64,
    disk: Disk,
    member: Option<Member>,
    watcher: Watcher,
    /// What was acknowledged at which revision.
    acknowledged: BTreeMap<Revision, Txn>,
    /// What each revision did, and the hash of the state behind it, when it was first reached.
    done: BTreeMap<Revision, (Txn, u64)>,
    /// What clients believe to be the revision of each object.
    beliefs: BTreeMap<Key, Revision>,
    report: Report,
    violation: Option<String>,
}

/// Small, so that watchers fall out of it.
const HISTORY: HistoryMax = HistoryMax { changes: 12, bytes: usize::MAX };

impl World {
    /// A run that follows from `seed`.
    pub fn new(seed: u64, bug: Bug) -> Self {
        let (trace, acknowledged, rejected, reads, watched, crashes) = Default::default();
        Self {
            rng: Rng::new(seed),
            bug,
            now: Time::from_ms(0),
            step: 0,
            next_id: 0,
            disk: Disk::default(),
            member: None,
            watcher: Watcher::default(),
            acknowledged: BTreeMap::new(),
            done: BTreeMap::new(),
            beliefs: BTreeMap::new(),
            report: Report { trace, acknowledged, rejected, reads, watched, crashes },
            violation: None,
        }
    }

    /// Runs `steps` steps, then lets everything come to rest and looks once more.
    pub fn run(mut self, steps: u64) -> Result<Report, Violation> {
        for step in 1..=steps {
            self.step = step;
            self.act();
            self.check()?;
        }
        self.step += 1;
        self.settle();
        self.check()?;
        Ok(self.report)
    }

    fn act(&mut self) {
        self.now = self.now + self.rng.below(50);
        if self.member.is_none() {
            return self.start();
        }
        match self.rng.below(100) {
            0..25 => self.write(),
            25..50 => self.sync(),
            50..78 => (0..self.rng.below(8)).for_each(|_| self.apply_one()),
            78..84 => self.read(),
            84..91 => self.watch(),
            91..94 => self.flush(),
            _ => self.crash(),
        }
    }

    fn note(&mut self, what: String) {
        self.report.trace.push(format!("{} {what}", self.now));
    }

    fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn check(&mut self) -> Result<(), Violation> {
        match self.violation.take() {
            None => Ok(()),
            Some(what) => Err(Violation { step: self.step, what }),
        }
    }

    fn start(&mut self) {
        let (image, restored) = self.disk.read();
        let state = image.state(HISTORY);
        self.note(format!("start at {:?} with {} entries", restored.applied, restored.entries.len()));
        let known = self.done.get(&state.revision()).is_none_or(|(_, hash)| *hash == state.hash());
        if !known {
            self.fail(format!("the flushed state at {} is not what it was", state.revision()));
        }
        let applied = restored.applied;
        let config = Config { member: 1, seed: self.rng.next_u64(), tick_ms: 100 };
        let consensus = match Consensus::new(config, restored) {
            Ok(consensus) => consensus,
            Err(error) => return self.fail(format!("the member does not start: {error}")),
        };
        let (backlog, writes, reads) = Default::default();
        self.member = Some(Member { consensus, state, applied, backlog, writes, reads });
        let mut out = Vec::new();
        let now = self.now;
        self.member().consensus.wake(now, &mut out);
        self.handle(out);
        // A start ends when all that was committed is applied; only then are clients let in.
        self.drain();
        let reached = self.member().state.revision();
        if let Some((newest, _)) = self.acknowledged.last_key_value()
            && reached < *newest
        {
            let newest = *newest;
            self.fail(format!("revision {newest} was acknowledged, and the member is back at {reached}"));
        }
    }

    fn member(&mut self) -> &mut Member {
        self.member.as_mut().expect("only called while the member runs")
    }

    fn give(&mut self, input: In) {
        let mut out = Vec::new();
        let now = self.now;
        self.member().consensus.handle(now, input, &mut out);
        self.handle(out);
    }

    fn handle(&mut self, out: Vec<Out>) {
        for wish in out {
            match wish {
                Out::Persist(persist) => {
                    self.note(format!("persist {} with {} entries", persist.number, persist.entries.len()));
                    self.disk.write(persist);
                }
                Out::Commit(entries) => self.member().backlog.extend(entries),
                Out::ReadReady(id) => self.answer_read(id),
                Out::Lost { proposals, reads } => {
                    let member = self.member();
                    member.writes.retain(|id, _| !proposals.contains(id));
                    member.reads.retain(|id, _| !reads.contains(id));
                    self.note(format!("lost {proposals:?} {reads:?}"));
                }
                Out::Role { role, term } => self.note(format!("{role:?} in term {term}")),
                Out::Send(messages) => self.fail(format!("a single member sends {} messages", messages.len())),
            }
        }
    }

    fn write(&mut self) {
        let txns: Vec<Txn> = (0..1 + self.rng.below(3)).map(|_| self.random_txn()).collect();
        let mut proposals = Vec::new();
        for txn in txns {
            self.next_id += 1;
            let id = ProposalId(self.next_id);
            proposals.push((id, txn.encode().into()));
            if self.bug == Bug::EarlyAcknowledgement && self.rng.chance(1, 10) {
                let revision = Revision(self.member().state.revision().0 + 1);
                self.acknowledge(revision, txn.clone());
            }
            self.member().writes.insert(id, txn);
        }
        self.note(format!("propose {} transactions up to {}", proposals.len(), self.next_id));
        self.give(In::Propose(proposals));
    }

    fn random_txn(&mut self) -> Txn {
        let mut ops = Vec::new();
        let first = self.rng.below(6);
        for n in first..=first + self.rng.below(2) {
            let key = Key::new(["pods", "nodes"][(n % 2) as usize], "", format!("o{n}"));
            let believed = self.beliefs.get(&key).copied();
            let expect = match (self.rng.below(10), believed) {
                (0, _) => Expect::Any,
                (_, Some(revision)) => Expect::At(revision),
                (_, None) => Expect::Absent,
            };
            if believed.is_some() && self.rng.chance(1, 4) {
                ops.push(Op::Delete { key, expect, last: None });
            } else {
                let value = format!("{{\"metadata\":{{\"name\":\"o{n}\"}},\"v\":{}}}", self.next_id);
                ops.push(Op::Put { key, value: value.into(), expect });
            }
        }
        Txn { ops }
    }

    fn sync(&mut self) {
        let count = 1 + self.rng.below(self.disk.unsynced() as u64 + 1) as usize;
        let number = if self.bug == Bug::SkippedSync && self.rng.chance(1, 2) {
            self.disk.newest()
        } else {
            self.disk.sync(count)
        };
        if let Some(number) = number {
            self.note(format!("synced {number}"));
            self.give(In::Persisted(number));
        }
    }

    fn apply_one(&mut self) {
        let Some(entry) = self.member().backlog.pop_front() else { return };
        let Committed { index, term, id, data } = entry;
        let mut changes = Vec::new();
        if data.is_empty() {
            self.member().state.apply_nothing(index);
        } else {
            match Txn::decode(data) {
                Ok(txn) => self.apply(index, id, txn, &mut changes),
                Err(error) => self.fail(format!("entry {index} cannot be read: {error}")),
            }
        }
        self.member().applied = Position { index, term };
        self.note(format!("applied {index}"));
        self.give(In::Applied(index));
    }

    fn apply(&mut self, index: u64, id: Option<ProposalId>, txn: Txn, changes: &mut Vec<Arc<Change>>) {
        let member = self.member();
        let before = member.state.revision();
        let ended = member.state.apply_into(index, &txn, changes);
        let (revision, hash) = (member.state.revision(), member.state.hash());
        let waits = id.is_some_and(|id| member.writes.remove(&id).is_some());
        if revision.0 != before.0 + u64::from(ended.is_ok()) {
            self.fail(format!("revision {before} became {revision} by {ended:?}"));
        }
        if ended.is_ok() {
            self.check_done(revision, &txn, hash);
        }
        self.learn(&txn);
        match ended {
            Ok(_) if waits => self.acknowledge(revision, txn),
            Err(_) if waits && self.bug == Bug::IgnoredRejection => self.acknowledge(revision, txn),
            Err(_) if waits => self.report.rejected += 1,
            _ => {}
        }
    }

    /// The same revision does the same thing, in every life of the process.
    fn check_done(&mut self, revision: Revision, txn: &Txn, hash: u64) {
        if self.acknowledged.get(&revision).is_some_and(|acknowledged| acknowledged != txn) {
            self.fail(format!("revision {revision} was acknowledged for another transaction"));
        }
        match self.done.get(&revision) {
            Some((was, before)) if was != txn || *before != hash => {
                self.fail(format!("revision {revision} is not what it was before the restart"));
            }
            _ => drop(self.done.insert(revision, (txn.clone(), hash))),
        }
    }

    fn acknowledge(&mut self, revision: Revision, txn: Txn) {
        self.note(format!("acknowledge {revision}"));
        self.report.acknowledged += 1;
        if self.done.get(&revision).is_some_and(|(done, _)| *done != txn) {
            self.fail(format!("revision {revision} is acknowledged, and did something else"));
        }
        self.acknowledged.insert(revision, txn);
    }

    /// Clients read back what they tried to write, now and then.
    fn learn(&mut self, txn: &Txn) {
        for op in &txn.ops {
            let key = op.key().clone();
            match self.member().state.get(&key).map(|object| object.revision) {
                Some(revision) => self.beliefs.insert(key, revision),
                None => self.beliefs.remove(&key),
            };
        }
    }

    fn read(&mut self) {
        self.next_id += 1;
        let id = ReadId(self.next_id);
        let floor = self.acknowledged.last_key_value().map_or(Revision(0), |(revision, _)| *revision);
        // What is committed by now must be seen, too: another client may have been answered by it.
        let member = self.member();
        let committed = member.backlog.back().map_or(member.applied.index, |entry| entry.index);
        member.reads.insert(id, (floor, committed));
        self.note(format!("{id:?} asks for revision {floor}, entry {committed}"));
        if self.bug == Bug::StaleRead {
            self.answer_read(id);
        } else {
            self.give(In::ReadIndex(id));
        }
    }

    fn answer_read(&mut self, id: ReadId) {
        let Some((floor, committed)) = self.member().reads.remove(&id) else {
            return self.fail(format!("{id:?} is answered and was not asked"));
        };
        let (revision, applied) = (self.member().state.revision(), self.member().applied.index);
        if revision < floor || applied < committed {
            self.fail(format!("{id:?} sees {revision} at entry {applied}, and asked at {floor} and {committed}"));
        }
        self.report.reads += 1;
        self.note(format!("{id:?} sees {revision}"));
    }

    fn watch(&mut self) {
        let after = self.watcher.after;
        let from = if self.bug == Bug::RepeatedChange { Revision(after.0.saturating_sub(1)) } else { after };
        let state = &self.member.as_ref().expect("only called while the member runs").state;
        let Ok(changes) = state.since(from) else {
            // Too old: list again.
            self.watcher.objects = state.iter().map(|object| (object.key.clone(), object.revision)).collect();
            self.watcher.after = state.revision();
            return self.note("the watcher lists again".to_owned());
        };
        let mut changes: Vec<Arc<Change>> = changes.cloned().collect();
        if self.bug == Bug::DroppedChange && !changes.is_empty() && self.rng.chance(1, 4) {
            let at = self.rng.below(changes.len() as u64) as usize;
            changes.remove(at);
        }
        for change in changes {
            self.take_change(&change);
        }
        self.check_watcher();
        self.note(format!("the watcher is at {}", self.watcher.after));
    }

    fn take_change(&mut self, change: &Change) {
        let (after, revision) = (self.watcher.after, change.revision);
        if revision < after || revision.0 > after.0 + 1 {
            self.fail(format!("the watcher gets revision {revision} after {after}"));
        }
        let seen = self.watcher.objects.get(&change.key).copied();
        if seen != change.old.as_ref().map(|old| old.revision) {
            self.fail(format!(
                "the watcher has `{}` at {seen:?}, which is not what revision {revision} changed",
                change.key
            ));
        }
        self.watcher.after = revision;
        match &change.new {
            Some(new) => self.watcher.objects.insert(change.key.clone(), new.revision),
            None => self.watcher.objects.remove(&change.key),
        };
        self.report.watched += 1;
    }

    fn check_watcher(&mut self) {
        let state = &self.member.as_ref().expect("only called while the member runs").state;
        let found: BTreeMap<Key, Revision> = state.iter().map(|object| (object.key.clone(), object.revision)).collect();
        if found != self.watcher.objects || state.revision() != self.watcher.after {
            self.fail(format!("the watcher's objects are not the state's at {}", self.watcher.after));
        }
    }

    fn flush(&mut self) {
        let member = self.member();
        let (applied, image) = (member.applied, Image::of(&member.state, member.applied));
        if self.bug == Bug::EarlyTruncation && self.rng.chance(1, 2) {
            self.disk.drop_log(applied.index);
            return self.note("drop the log without a flush".to_owned());
        }
        self.disk.flush(image);
        self.note(format!("flush at {}", applied.index));
    }

    fn crash(&mut self) {
        self.member = None;
        self.disk.crash(&mut self.rng);
        self.report.crashes += 1;
        // Clients do not know what became of their writes, and ask again.
        self.note("crash".to_owned());
    }

    /// Syncs and applies all there is.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            let idle = self.disk.unsynced() == 0 && self.member().backlog.is_empty();
            if idle || self.violation.is_some() {
                return;
            }
            if let Some(number) = self.disk.sync(1) {
                self.give(In::Persisted(number));
            }
            self.apply_one();
        }
        self.fail("the member does not come to rest".to_owned());
    }

    /// The end of a run: whatever happened, a restart brings everything back, and no one waits for ever.
    fn settle(&mut self) {
        if self.member.is_some() {
            self.drain();
            self.crash();
        }
        self.start();
        if self.member.is_none() {
            return;
        }
        self.write();
        self.read();
        self.drain();
        self.watch();
        let member = self.member();
        let (writes, reads) = (member.writes.len(), member.reads.len());
        if writes + reads > 0 {
            self.fail(format!("{writes} writes and {reads} reads are never answered"));
        }
        self.check_from_the_start();
    }

    /// All that was done, done once more on an empty state, leads to the same state.
    fn check_from_the_start(&mut self) {
        let mut fresh = State::new(HISTORY);
        for (index, (txn, _)) in (1..).zip(self.done.values()) {
            if fresh.apply(index, txn).is_err() {
                return self.violation = Some(format!("transaction {index} cannot be done again"));
            }
        }
        if fresh.hash() != self.member().state.hash() {
            self.fail("the state is not what its transactions add up to".to_owned());
        }
    }
}
