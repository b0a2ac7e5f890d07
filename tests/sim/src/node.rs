//! A member, and what drives it: consensus on one side, its disk, its state and the network on the other. Production
//! does the same with threads and sockets.

use crate::Bug;
use crate::clients::Waiting;
use crate::disk::{Disk, Image, Write};
use crate::truth::Done;
use crate::world::{Event, World};
use bytes::Bytes;
use dhow_consensus::{
    Committed, Config, Consensus, In, Install, Members, Out, Persist, Position, ProposalId, ReadId, Role,
};
use dhow_state::{Change, HistoryMax, State, Txn};
use dhow_types::{Machine, Revision, Time};
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Small, so that watchers fall out of it.
pub(crate) const HISTORY: HistoryMax = HistoryMax { changes: 25, bytes: usize::MAX };

const TICK_MS: u64 = 50;

/// A member's machine, whether or not its process runs.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) disk: Disk,
    pub(crate) running: Option<Running>,
    /// Which process this is: what was meant for an earlier one comes to nothing.
    pub(crate) life: u64,
    /// Its disk is lost; it never comes back.
    pub(crate) gone: bool,
    pub(crate) witness: bool,
    pub(crate) paused_until: Time,
    pub(crate) slow_until: Time,
    clock: Clock,
}

/// A clock that goes at its own pace.
#[derive(Clone, Copy, Debug)]
struct Clock {
    offset_ms: i64,
    percent: i64,
}

impl Clock {
    fn read(self, now: Time) -> Time {
        Time::from_ms(self.offset_ms + now.as_ms() * self.percent / 100)
    }

    /// When the clock will show this.
    fn when(self, local: Time, now: Time) -> Time {
        let mut at = Time::from_ms((local.as_ms() - self.offset_ms) * 100 / self.percent).max(now);
        while self.read(at) < local {
            at = at + 1;
        }
        at
    }
}

/// What is gone when the process is.
pub(crate) struct Running {
    pub(crate) consensus: Consensus,
    pub(crate) state: State,
    pub(crate) applied: Position,
    pub(crate) members: Members,
    /// Committed and not applied yet.
    backlog: VecDeque<Committed>,
    pub(crate) waiting: BTreeMap<ProposalId, Waiting>,
    /// The operations that wait to read.
    pub(crate) reading: BTreeMap<ReadId, usize>,
    /// What was last found of each key.
    pub(crate) cache: BTreeMap<usize, Option<(u64, Revision)>>,
    /// The image that has just arrived.
    pub(crate) offered: Option<Arc<Image>>,
    wake_at: Option<Time>,
    /// How many writes the sync under way covers.
    syncing: Option<usize>,
    applying: bool,
    vote: (u64, u64),
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl Running {
    pub(crate) fn image(&self) -> Arc<Image> {
        Arc::new(Image::of(&self.state, self.applied, self.members.clone()))
    }

    /// Its next wake has been put off.
    pub(crate) fn planned(&mut self, at: Time) {
        self.wake_at = Some(at);
    }

    /// Whether it has done all that it knows of.
    pub(crate) fn is_idle(&self) -> bool {
        self.backlog.is_empty() && self.waiting.is_empty() && self.reading.is_empty()
    }
}

impl World {
    pub(crate) fn add_node(&mut self, id: u64, disk: Disk, witness: bool) {
        let skew = self.weather.skew;
        let percent = if skew { 75 + self.rng.below(60) as i64 } else { 100 };
        let clock = Clock { offset_ms: self.rng.below(1_000_000) as i64, percent };
        let never = Time::from_ms(0);
        let node =
            Node { disk, running: None, life: 0, gone: false, witness, paused_until: never, slow_until: never, clock };
        self.nodes.insert(id, node);
        self.start(id);
    }

    pub(crate) fn start(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("only members that were added start");
        if node.gone || node.running.is_some() {
            return;
        }
        node.life += 1;
        let (life, (image, restored)) = (node.life, node.disk.read());
        let hard_state = restored.hard_state;
        let (applied, members) = (restored.applied, restored.members.clone());
        let mut revision = image.revision;
        if self.bug == Bug::ReusedRevision && revision.0 > 0 && self.rng.chance(1, 2) {
            revision = Revision(revision.0 - 1);
        }
        let state = image.state_at(HISTORY, revision);
        self.note(format_args!("{id} starts at {} with {} entries", applied.index, restored.entries.len()));
        if !self.nodes[&id].witness && self.bug != Bug::ReusedRevision {
            let known = self.truth.check_state(applied.index, state.revision(), state.hash());
            self.check(known);
        }
        let config = Config {
            member: id,
            incarnation: self.rng.next_u64(),
            seed: self.rng.next_u64(),
            tick_ms: TICK_MS,
            witness: self.nodes[&id].witness,
            lag_max: self.weather.lag_max,
        };
        let consensus = match Consensus::new(config, restored) {
            Ok(consensus) => consensus,
            Err(error) => return self.fail(format!("member {id} does not start: {error}")),
        };
        let (backlog, waiting, reading, cache) = Default::default();
        let (offered, wake_at, syncing, applying) = (None, None, None, false);
        let vote = (hard_state.term, hard_state.vote);
        self.node(id).running = Some(Running {
            consensus,
            state,
            applied,
            members,
            backlog,
            waiting,
            reading,
            cache,
            offered,
            wake_at,
            syncing,
            applying,
            vote,
        });
        let pause = 1 + self.rng.below(self.weather.flush_ms);
        self.after(pause, Event::Flush { node: id, life });
        self.plan_wake(id);
    }

    /// The process dies, and comes back after a while.
    pub(crate) fn crash(&mut self, id: u64, rest: u64) {
        let node = self.nodes.get_mut(&id).expect("only members that were added die");
        let Some(running) = node.running.take() else { return };
        node.disk.crash(&mut self.rng);
        self.note(format_args!("{id} dies for {rest} ms"));
        self.report.crashes += 1;
        for waiting in running.waiting.into_values() {
            self.lose(waiting);
        }
        for operation in running.reading.into_values() {
            self.answer_nothing(operation);
        }
        self.after(rest, Event::Restart { node: id });
    }

    pub(crate) fn give(&mut self, id: u64, input: In) {
        let (now, node) = (self.now, self.nodes.get_mut(&id).expect("only members that were added are told"));
        let local = node.clock.read(now);
        let Some(running) = &mut node.running else { return };
        let mut out = Vec::new();
        running.consensus.handle(local, input, &mut out);
        self.act(id, out);
        self.plan_wake(id);
    }

    pub(crate) fn wake(&mut self, id: u64) {
        let (now, node) = (self.now, self.nodes.get_mut(&id).expect("only members that were added wake"));
        let local = node.clock.read(now);
        let Some(running) = &mut node.running else { return };
        // Another one was planned since.
        if running.wake_at != Some(now) {
            return;
        }
        running.wake_at = None;
        let mut out = Vec::new();
        running.consensus.wake(local, &mut out);
        self.act(id, out);
        self.plan_wake(id);
    }

    fn plan_wake(&mut self, id: u64) {
        let (now, node) = (self.now, self.node(id));
        let (life, clock) = (node.life, node.clock);
        let Some(running) = &mut node.running else { return };
        let at = running.consensus.next_wake().map(|local| clock.when(local.max(clock.read(now)), now));
        if at != running.wake_at {
            running.wake_at = at;
            if let Some(at) = at {
                self.at(at, Event::Wake { node: id, life });
            }
        }
    }

    fn act(&mut self, id: u64, out: Vec<Out>) {
        for wish in out {
            if !self.is_running(id) {
                return;
            }
            match wish {
                Out::Persist(persist) => self.persist(id, persist),
                Out::Install(install) => self.install(id, install),
                Out::Send(messages) => self.send(id, messages),
                Out::SendSnapshot { to, message } => {
                    let (life, pause) = (self.node(id).life, self.rng.below(60));
                    self.after(pause, Event::Capture { from: id, life, to, message });
                }
                Out::Commit(entries) => {
                    self.running(id).backlog.extend(entries);
                    self.plan_apply(id);
                }
                Out::ReadReady(read) => match self.running(id).reading.remove(&read) {
                    Some(operation) => self.answer_read(id, operation),
                    None => self.fail(format!("{read:?} is answered on member {id} and does not wait")),
                },
                Out::Lost { proposals, reads } => self.lose_all(id, proposals, reads),
                Out::Refused(proposal, why) => match self.running(id).waiting.remove(&proposal) {
                    Some(waiting) => self.refuse(waiting, why),
                    None => self.fail(format!("{proposal:?} is refused on member {id} and does not wait")),
                },
                Out::Role { role, term } => self.note_role(id, role, term),
                Out::Forgot { known, last } => {
                    self.fail(format!("member {id} ends at entry {last}, and the others know it up to {known}"));
                }
            }
        }
    }

    fn note_role(&mut self, id: u64, role: Role, term: u64) {
        self.note(format_args!("{id} is {role:?} in term {term}"));
        if role == Role::Leader {
            let led = self.truth.lead(term, id);
            self.check(led);
        }
    }

    fn persist(&mut self, id: u64, mut persist: Persist) {
        let hard = persist.hard_state;
        let votes = hard.vote != 0 && self.running(id).vote != (hard.term, hard.vote);
        self.running(id).vote = (hard.term, hard.vote);
        if votes && hard.vote != id && self.rng.below(1_000) < self.weather.deadly_votes {
            // Long enough for the disk and the answer, not for much else.
            let (life, pause) = (self.node(id).life, 1 + self.weather.sync_ms + self.rng.below(20));
            self.after(pause, Event::Crash { node: id, life });
        }
        if self.bug == Bug::ForgottenVote && persist.entries.is_empty() {
            persist.hard_state.vote = 0;
        }
        self.node(id).disk.write(Write::Persist(persist));
        self.plan_sync(id);
    }

    fn install(&mut self, id: u64, install: Install) {
        let Some(image) = self.running(id).offered.take() else {
            return self.fail(format!("member {id} installs an image that it does not have"));
        };
        self.note(format_args!("{id} installs an image at {}", install.position.index));
        self.report.images += 1;
        let (state, witness) = (image.state(HISTORY), self.node(id).witness);
        if !witness && self.bug != Bug::ImageAtWrongPosition {
            let known = self.truth.check_state(install.position.index, state.revision(), state.hash());
            self.check(known);
        }
        let running = self.running(id);
        (running.applied, running.members) = (install.position, install.members.clone());
        running.state = state;
        // How these ended is in the image, and cannot be told from it.
        let skipped = running.backlog.drain(..).filter_map(|entry| running.waiting.remove(&entry.id?));
        for waiting in skipped.collect::<Vec<_>>() {
            self.lose(waiting);
        }
        self.node(id).disk.write(Write::Install(install, image));
        self.plan_sync(id);
    }

    pub(crate) fn plan_sync(&mut self, id: u64) {
        let (now, sync_ms) = (self.now, self.weather.sync_ms);
        let slow = if self.nodes[&id].slow_until > now { 100 + self.rng.below(400) } else { 0 };
        let pause = 1 + self.rng.below(sync_ms) + slow;
        let node = self.node(id);
        let (life, count) = (node.life, node.disk.unsynced());
        let Some(running) = &mut node.running else { return };
        if running.syncing.is_none() {
            running.syncing = Some(count);
            self.after(pause, Event::Synced { node: id, life });
        }
    }

    pub(crate) fn handle_synced(&mut self, id: u64) {
        if self.rng.below(1_000) < self.weather.failing_syncs {
            self.note(format_args!("the disk of {id} fails"));
            let rest = self.rng.below(500);
            return self.crash(id, rest);
        }
        let skips = self.bug == Bug::SkippedSync && !self.weather.is_clear && self.rng.chance(1, 3);
        let node = self.node(id);
        let count = node.running.as_mut().and_then(|running| running.syncing.take()).unwrap_or(0);
        let number = if skips { node.disk.number(count) } else { node.disk.sync(count) };
        let more = !skips && node.disk.unsynced() > 0;
        if let Some(number) = number {
            self.give(id, In::Persisted(number));
        }
        if more && self.is_running(id) {
            self.plan_sync(id);
        }
    }

    fn plan_apply(&mut self, id: u64) {
        let (pause, life) = (self.rng.below(4), self.node(id).life);
        let running = self.running(id);
        if !running.applying {
            running.applying = true;
            self.after(pause, Event::Apply { node: id, life });
        }
    }

    pub(crate) fn handle_apply(&mut self, id: u64) {
        self.running(id).applying = false;
        for _ in 0..1 + self.rng.below(16) {
            let Some(entry) = self.running(id).backlog.pop_front() else { break };
            self.apply(id, entry);
        }
        let index = self.running(id).applied.index;
        self.give(id, In::Applied(index));
        if !self.running(id).backlog.is_empty() {
            self.plan_apply(id);
        }
    }

    fn apply(&mut self, id: u64, entry: Committed) {
        let Committed { index, term, id: proposal, data, members } = entry;
        let witness = self.node(id).witness;
        let running = self.running(id);
        if index != running.applied.index + 1 {
            let at = running.applied.index;
            return self.fail(format!("member {id} is at entry {at} and gets entry {index}"));
        }
        running.applied = Position { index, term };
        let change = members.as_ref().map(Members::encode).unwrap_or_default();
        running.members = members.unwrap_or_else(|| running.members.clone());
        let waiting = proposal.and_then(|proposal| running.waiting.remove(&proposal));
        if proposal.is_some() && waiting.is_none() {
            return self.fail(format!("{proposal:?} is committed on member {id} and does not wait"));
        }
        if witness {
            return waiting.into_iter().for_each(|waiting| self.lose(waiting));
        }
        let (what, mut changes) = (hash_of(&data), Vec::<Arc<Change>>::new());
        let mut write = None;
        let mut ended = None;
        if data.is_empty() {
            running.state.apply_nothing(index);
        } else {
            match Txn::decode(data) {
                Ok(txn) => {
                    write = write_of(&txn);
                    ended = Some(running.state.apply_into(index, &txn, &mut changes));
                }
                Err(error) => return self.fail(format!("entry {index} cannot be read: {error}")),
            }
        }
        let (revision, hash) = (running.state.revision(), running.state.hash());
        let done = Done { term, what, members: change, revision, hash };
        let moment = self.moment();
        let known = self.truth.apply(index, write, done, moment);
        self.check(known);
        if let Some(waiting) = waiting {
            self.finish(waiting, revision, ended.transpose());
        }
    }

    pub(crate) fn handle_flush(&mut self, id: u64) {
        let (life, takes, pause) = (self.node(id).life, self.rng.below(60), self.weather.flush_ms);
        let mut image = (*self.running(id).image()).clone();
        if self.bug == Bug::ForgottenMembers {
            image.members = self.nodes[&id].disk.read().0.members.clone();
        }
        if self.bug == Bug::EarlyTruncation && self.rng.chance(1, 2) {
            self.node(id).disk.drop_log(image.position.index);
        }
        self.after(takes, Event::Flushed { node: id, life, image: Arc::new(image) });
        self.after(takes + pause, Event::Flush { node: id, life });
    }
}

fn hash_of(data: &Bytes) -> u64 {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    hasher.finish()
}

/// Which write a transaction is: each says so in its value.
fn write_of(txn: &Txn) -> Option<u64> {
    crate::clients::value_in(txn.ops.first()?.value()?)
}
