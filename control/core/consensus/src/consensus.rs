//! The machine around the engine: what comes in, what goes out, and in which order.

mod leading;
mod messages;

use crate::envelope::Saying;
use crate::io::{
    Committed, Config, In, Install, LagMax, Message, Out, Persist, Progress, ProposalId, ReadId, Refusal, Restored,
    Role, StartError,
};
use crate::members::{MemberChange, Members, change_data, read_change};
use crate::proposals::{Ended, Inbox, Life, Proposals, Wanted};
use crate::reads::{Asker, Reads};
use crate::tail::{EntryKind, HardState, Position, Tail, from_engine};
use bytes::Bytes;
use dhow_types::{Machine, Rng, Time};
use raft::eraftpb::{self, MessageType};
use raft::{RawNode, SnapshotStatus, StateRole};
use std::collections::{BTreeMap, VecDeque};

const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 2;

/// Entries in one message to another member. A follower that lags gets as much as goes over a slow link in a heartbeat.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Messages on their way to one member without an answer. With [`MESSAGE_BYTES_MAX`] it bounds what a leader holds for
/// a slow one, and still fills a link of 100 ms; more entries wait for an answer and travel together.
const MESSAGES_MAX: usize = 64;

/// Proposals that are not committed yet. More are refused, so that a leader without followers does not fill its memory.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Entries in one [`Out::Commit`], so that applying does not hold up the next persist for long.
const COMMIT_BYTES_MAX: u64 = 4 << 20;

/// How long a proposal or a read waits for a leader and for its answer: two of the longest election timeouts, so that
/// one election that comes to nothing is survived.
const PATIENCE_TICKS: u64 = 4 * ELECTION_TICKS as u64;

/// One member's part in the agreement.
pub struct Consensus {
    node: RawNode<Tail>,
    config: Config,
    life: Life,
    rng: Rng,
    /// Those in force: as of the last entry that was handed out.
    members: Members,
    /// The members before the first entry; empty if the log does not begin there.
    founders: Members,
    ticks: u64,
    last_tick: Option<Time>,
    /// As last told.
    role: (Role, u64),
    /// Term, leader and role for which the election timeout was drawn.
    drawn_for: (u64, u64, StateRole),
    /// The leader of this term says that this member is none.
    told_removed: Option<u64>,
    heard: BTreeMap<u64, Heard>,
    applied: u64,
    applied_members: Members,
    /// Changes of the members that are handed out and not applied.
    unapplied_members: VecDeque<(u64, Members)>,
    /// The last entry that was handed out.
    delivered: Position,
    proposals: Proposals,
    inbox: Inbox,
    last_sequence: u64,
    reads: Reads,
    /// Readies that wait for the disk, in order, with what must not be sent before.
    unpersisted: VecDeque<Unpersisted>,
    outbox: Vec<Message>,
}

/// What is known of another member.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// The tick at which it spoke last.
    at: u64,
    witness: bool,
}

struct Unpersisted {
    number: u64,
    needs_disk: bool,
    messages: Vec<eraftpb::Message>,
    install: Option<(Position, Members)>,
}

impl Consensus {
    /// Starts a member from what it had persisted. It wants to be woken at once.
    pub fn new(config: Config, restored: Restored) -> Result<Self, StartError> {
        let Restored { members, hard_state, applied, mut entries } = restored;
        // After an image was installed, a crash may leave the log that it replaced. Entries that do belong behind
        // the image are of its term or a later one; whatever conflicts with it is older.
        if entries.first().is_some_and(|first| first.term < applied.term) {
            entries.clear();
        }
        for (expected, entry) in (applied.index + 1..).zip(&entries) {
            if entry.index != expected {
                return Err(StartError::Gap { expected, found: entry.index });
            }
        }
        let engine = raft::Config {
            id: config.member,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: applied.index,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: MESSAGES_MAX,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMIT_BYTES_MAX,
            batch_append: true,
            check_quorum: true,
            pre_vote: true,
            // A witness wins only if it knows more than those who vote.
            priority: i64::from(!config.witness),
            ..raft::Config::default()
        };
        let log = slog::Logger::root(slog::Discard, slog::o!());
        if config.member == 0 {
            return Err(StartError::Config("members are counted from one".to_owned()));
        }
        let mut tail = Tail::new(hard_state, members.clone(), applied, entries);
        tail.image = (!config.witness).then(|| (applied, members.clone()));
        let node = RawNode::new(&engine, tail, &log).map_err(|error| StartError::Config(error.to_string()))?;
        let mut consensus = Self {
            rng: Rng::new(config.seed ^ config.member.rotate_left(32)),
            life: Life { member: config.member, incarnation: config.incarnation },
            founders: if applied.index == 0 { members.clone() } else { Members::default() },
            applied_members: members.clone(),
            unapplied_members: VecDeque::new(),
            members,
            node,
            config,
            ticks: 0,
            last_tick: None,
            role: (Role::Follower { leader: None }, 0),
            drawn_for: (u64::MAX, 0, StateRole::Follower),
            told_removed: None,
            heard: BTreeMap::new(),
            applied: applied.index,
            delivered: applied,
            proposals: Proposals::default(),
            inbox: Inbox::default(),
            last_sequence: 0,
            reads: Reads::default(),
            unpersisted: VecDeque::new(),
            outbox: Vec::new(),
        };
        consensus.role = (consensus.present_role(), consensus.term());
        consensus.draw_timeout(false);
        Ok(consensus)
    }

    /// What this member is now.
    pub fn role(&self) -> Role {
        self.role.0
    }

    /// The latest term that this member has seen.
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// Who leads, this member included, as far as it knows.
    pub fn leader(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|leader| *leader != 0)
    }

    /// The members in force.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The end of the log, durable or not.
    pub fn last(&self) -> Position {
        let log = &self.node.raft.raft_log;
        Position { index: log.last_index(), term: log.last_term() }
    }

    /// Up to where this member knows the log to be committed.
    pub fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// How far each member is; empty unless this one leads.
    pub fn progress(&self) -> Vec<Progress> {
        if !self.is_leader() {
            return Vec::new();
        }
        let mut all: Vec<Progress> = self
            .node
            .raft
            .prs()
            .iter()
            .map(|(id, progress)| Progress {
                member: *id,
                matched: progress.matched,
                voter: self.members.votes(*id),
                active: self.is_active(*id),
            })
            .collect();
        all.sort_by_key(|progress| progress.member);
        all
    }

    /// Whether another member is a witness, as it says itself; `None` as long as it was not heard of.
    pub fn is_witness(&self, member: u64) -> Option<bool> {
        self.heard.get(&member).map(|heard| heard.witness)
    }

    fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn is_active(&self, member: u64) -> bool {
        let heard = self.heard.get(&member);
        member == self.config.member || heard.is_some_and(|heard| heard.at + ELECTION_TICKS as u64 >= self.ticks)
    }

    fn is_removed(&self) -> bool {
        let gone = !self.members.is_empty() && !self.members.contains(self.config.member);
        gone || self.told_removed.is_some()
    }

    fn is_installing(&self) -> bool {
        self.unpersisted.iter().any(|waiting| waiting.install.is_some())
    }

    /// A member that would win at once must have persisted all it has; the engine relies on it.
    fn may_campaign(&self) -> bool {
        let log = &self.node.raft.raft_log;
        let persisted = log.persisted == log.last_index() || !self.members.is_sole_voter(self.config.member);
        persisted && !self.is_removed() && !self.is_installing()
    }

    /// Whether nobody else needs to hear from this member.
    fn is_alone(&self) -> bool {
        self.members.is_sole_voter(self.config.member) && self.members.learners.is_empty()
    }

    /// Overrides the engine's own draw whenever it may have made one: at a new term, leader or role, and when an
    /// election timer ran out.
    fn draw_timeout(&mut self, timer_ran_out: bool) {
        let raft = &mut self.node.raft;
        let now = (raft.term, raft.leader_id, raft.state);
        if now != self.drawn_for || timer_ran_out {
            self.drawn_for = now;
            let ticks = ELECTION_TICKS as u64 + self.rng.below(ELECTION_TICKS as u64);
            raft.set_randomized_election_timeout(ticks as usize);
        }
    }

    fn tick(&mut self, out: &mut Vec<Out>) {
        self.ticks += 1;
        if self.is_leader() || self.may_campaign() {
            self.node.tick();
            let ran_out = !self.is_leader() && self.node.raft.election_elapsed == 0;
            self.draw_timeout(ran_out);
        } else {
            // It must not stand for election, and yet see that its leader is silent.
            self.node.raft.election_elapsed += 1;
        }
        let raft = &mut self.node.raft;
        if raft.election_elapsed >= 2 * ELECTION_TICKS && raft.state == StateRole::Follower {
            // Who cannot stand for election would follow for ever whoever is gone, and refuse its vote to those who
            // can: a removed member is needed by one that does not know yet that it is.
            raft.leader_id = 0;
        }
        let ended = self.proposals.expire(self.ticks);
        let reads = self.reads.expire(self.ticks);
        end(ended, reads, Refusal::NoLeader, out);
        self.forward_again();
    }

    fn propose(&mut self, wanted: Wanted, out: &mut Vec<Out>) {
        let id = wanted.0;
        let taken = if self.is_removed() {
            Err(Refusal::Removed)
        } else {
            self.proposals.add(wanted, self.ticks + PATIENCE_TICKS)
        };
        if let Err(why) = taken {
            out.push(Out::Refused(id, why));
        }
    }

    fn handle_persisted(&mut self, number: u64, out: &mut Vec<Out>) {
        let mut reached = None;
        let mut messages = Vec::new();
        let mut installed = None;
        while self.unpersisted.front().is_some_and(|first| first.number <= number || !first.needs_disk) {
            if let Some(first) = self.unpersisted.pop_front() {
                reached = Some(first.number);
                messages.extend(first.messages);
                installed = first.install.or(installed);
            }
        }
        if let Some(reached) = reached {
            self.node.on_persist_ready(reached);
        }
        if let Some((position, members)) = installed {
            self.unapplied_members.clear();
            self.note_applied(position, members);
        }
        self.send(messages, out);
    }

    fn handle_applied(&mut self, index: u64) {
        // What was handed out before an image came may be reported after it, and counts no more.
        if index <= self.applied || self.is_installing() {
            return;
        }
        let mut members = None;
        while self.unapplied_members.front().is_some_and(|(at, _)| *at <= index) {
            members = self.unapplied_members.pop_front().map(|(_, members)| members);
        }
        let members = members.unwrap_or_else(|| self.applied_members.clone());
        let term = self.node.store().term_at(index).expect("what was handed out to be applied is in the log");
        self.note_applied(Position { index, term }, members);
    }

    fn note_applied(&mut self, position: Position, members: Members) {
        self.applied = position.index;
        self.applied_members = members;
        self.node.advance_apply_to(position.index);
        let max = if self.is_alone() { LagMax { entries: 0, bytes: 0, needed_bytes: 0 } } else { self.config.lag_max };
        let needed = self.needed();
        let image = (!self.config.witness).then(|| (position, self.applied_members.clone()));
        let founded = self.members == self.founders;
        let tail = self.node.mut_store();
        tail.image = image;
        tail.forget(position.index, needed, max);
        if !founded && tail.base().index == 0 {
            // The log does not say who founded it. Who was not there needs an image, which does.
            tail.forget_to(position.index.min(1));
        }
    }

    /// Up to where nobody needs the log any more who is about to catch up.
    fn needed(&self) -> u64 {
        if !self.is_leader() {
            return u64::MAX;
        }
        let others = self.node.raft.prs().iter().filter(|(id, _)| **id != self.config.member);
        let needed = others.filter(|(id, _)| self.is_active(**id)).map(|(_, progress)| match progress.state {
            raft::ProgressState::Snapshot => progress.pending_snapshot,
            raft::ProgressState::Probe | raft::ProgressState::Replicate => progress.matched,
        });
        needed.min().unwrap_or(u64::MAX)
    }

    /// Turns all that is ready into wishes.
    fn pump(&mut self, out: &mut Vec<Out>) {
        loop {
            self.lead();
            self.flush(out);
            self.ask_reads();
            if !self.node.has_ready() {
                break;
            }
            self.handle_ready(out);
        }
        self.note_role(out);
        out.extend(self.reads.release(self.applied).into_iter().map(Out::ReadReady));
        if !self.outbox.is_empty() {
            out.push(Out::Send(std::mem::take(&mut self.outbox)));
        }
    }

    fn handle_ready(&mut self, out: &mut Vec<Out>) {
        let mut ready = self.node.ready();
        let messages = ready.take_messages();
        self.send(messages, out);
        let install = (!ready.snapshot().is_empty()).then(|| position_of(ready.snapshot()));
        let tail = self.node.mut_store();
        if let Some((position, _)) = &install {
            tail.reset(*position);
        }
        tail.append(ready.entries());
        if let Some(hard_state) = ready.hs() {
            tail.hard_state = hard_state.clone();
        }
        let hard = &tail.hard_state;
        let hard_state = HardState { term: hard.term, vote: hard.vote, commit: hard.commit };
        let reads = ready.take_read_states();
        let (number, needs_disk) = (ready.number(), ready.must_sync());
        let committed = ready.take_committed_entries();
        let messages = ready.take_persisted_messages();
        let entries: Vec<_> = ready.take_entries().into_iter().map(from_engine).collect();
        if let Some((position, members)) = &install {
            assert!(entries.is_empty(), "nothing is stepped between an image and its ready");
            let (position, members) = (*position, members.clone());
            out.push(Out::Install(Install { number, position, members, hard_state }));
        } else if needs_disk {
            out.push(Out::Persist(Persist { number, entries, hard_state }));
        }
        self.node.advance_append_async(ready);
        if let Some((position, members)) = &install {
            self.note_install(*position, members.clone(), out);
        }
        self.unpersisted.push_back(Unpersisted { number, needs_disk, messages, install });
        // Passes what needs no disk and waits for none before it.
        self.handle_persisted(0, out);
        self.note_role(out);
        self.deliver(committed, out);
        for read in reads {
            self.end_round(read.index, &read.request_ctx);
        }
        self.draw_timeout(false);
    }

    /// The log jumps: what happened to proposals in between is not seen here.
    fn note_install(&mut self, position: Position, members: Members, out: &mut Vec<Out>) {
        self.members = members;
        self.delivered = position;
        let proposals = self.proposals.lose_sent();
        if !proposals.is_empty() {
            out.push(Out::Lost { proposals, reads: Vec::new() });
        }
    }

    fn present_role(&self) -> Role {
        match self.node.raft.state {
            _ if self.is_removed() => Role::Removed,
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower { leader: self.leader() },
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        }
    }

    fn note_role(&mut self, out: &mut Vec<Out>) {
        let now = (self.present_role(), self.node.raft.term);
        if now == self.role {
            return;
        }
        self.role = now;
        self.reads.ask_again();
        self.proposals.release();
        if now.0 == Role::Removed {
            let (ended, reads) = (self.proposals.end_all(), self.reads.end_all());
            end(ended, reads, Refusal::Removed, out);
        }
        out.push(Out::Role { role: now.0, term: now.1 });
    }

    fn deliver(&mut self, entries: Vec<eraftpb::Entry>, out: &mut Vec<Out>) {
        if entries.is_empty() {
            return;
        }
        let mut committed = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.term > self.delivered.term {
                self.proposals.hold_older(entry.term);
            }
            self.delivered = Position { index: entry.index, term: entry.term };
            let id = self.life.own(&entry.context).filter(|id| self.proposals.finish(*id));
            let (index, term) = (entry.index, entry.term);
            let (data, members) = match from_engine(entry) {
                entry if entry.kind == EntryKind::Members => (Bytes::new(), self.change_members(index, &entry.data)),
                entry => (entry.data, None),
            };
            committed.push(Committed { index, term, id, data, members });
        }
        out.push(Out::Commit(committed));
    }

    /// Puts a committed change in force. Every member comes to the same result, also to that it cannot be made.
    fn change_members(&mut self, index: u64, data: &[u8]) -> Option<Members> {
        let change = read_change(data)?;
        let state = self.node.apply_conf_change(&change).ok()?;
        self.members = Members::from_engine(&state);
        self.unapplied_members.push_back((index, self.members.clone()));
        if self.is_leader() && !self.members.contains(self.config.member) {
            self.abdicate();
        }
        Some(self.members.clone())
    }
}

impl Machine for Consensus {
    type In = In;
    type Out = Out;

    fn handle(&mut self, _now: Time, input: In, out: &mut Vec<Out>) {
        match input {
            In::Propose(proposals) => {
                for (id, data) in proposals {
                    self.propose((id, EntryKind::Normal, data), out);
                }
            }
            In::ChangeMembers(id, changes) => self.propose((id, EntryKind::Members, change_data(&changes)), out),
            In::TransferLeadership { to } => self.transfer(to),
            In::Message(bytes) => self.handle_message(&bytes, out),
            In::Snapshot { message, position, members } => self.handle_snapshot(&message, position, &members),
            In::SnapshotSent { to, ok } => {
                let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.node.report_snapshot(to, status);
            }
            In::Unreachable(member) => self.node.report_unreachable(member),
            In::Persisted(number) => self.handle_persisted(number, out),
            In::Applied(index) => self.handle_applied(index),
            In::ReadIndex(id) if self.is_removed() => {
                out.push(Out::Lost { proposals: Vec::new(), reads: vec![id] });
            }
            In::ReadIndex(id) => self.reads.add(id, self.ticks + PATIENCE_TICKS),
        }
        self.pump(out);
    }

    /// A leader without followers needs no clock, so an idle single member never wakes; a removed one has no say.
    fn next_wake(&self) -> Option<Time> {
        match self.last_tick {
            None => Some(Time::from_ms(i64::MIN)),
            Some(_) if self.is_alone() && self.is_leader() && !self.proposals.has_held() => None,
            Some(_) if self.is_removed() && self.leader().is_none() => None,
            Some(last) => Some(last + self.config.tick_ms),
        }
    }

    fn wake(&mut self, now: Time, out: &mut Vec<Out>) {
        match self.last_tick {
            None => {
                self.last_tick = Some(now);
                if self.members.is_sole_voter(self.config.member) && self.may_campaign() {
                    // Nobody else could object: do not wait for a timeout. An error means that it leads already.
                    let _ = self.node.campaign();
                }
            }
            Some(last) if now >= last + self.config.tick_ms => {
                self.tick(out);
                // A clock that was stopped for long must not look like many missed heartbeats at once.
                let next = last + self.config.tick_ms;
                self.last_tick = Some(if now >= next + self.config.tick_ms { now } else { next });
            }
            Some(_) => {}
        }
        self.pump(out);
    }
}

fn end(ended: Ended, reads: Vec<ReadId>, why: Refusal, out: &mut Vec<Out>) {
    let Ended { lost: proposals, refused } = ended;
    if !proposals.is_empty() || !reads.is_empty() {
        out.push(Out::Lost { proposals, reads });
    }
    out.extend(refused.into_iter().map(|id| Out::Refused(id, why)));
}

fn position_of(snapshot: &eraftpb::Snapshot) -> (Position, Members) {
    let metadata = snapshot.get_metadata();
    let position = Position { index: metadata.index, term: metadata.term };
    (position, Members::from_engine(metadata.get_conf_state()))
}

#[cfg(test)]
mod tests;
