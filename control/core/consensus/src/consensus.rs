//! The machine around the engine.

use crate::tail::{Entry, HardState, Position, Tail, to_engine};
use bytes::Bytes;
use dhow_types::{Machine, Rng, Time};
use protobuf::Message as _;
use raft::eraftpb::{self, MessageType};
use raft::{RawNode, StateRole};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Names a proposal towards the driver that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId(pub u64);

/// Names a read towards the driver that asked; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// How this member behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which member this is; not zero.
    pub member: u64,
    /// Where the election timeouts come from.
    pub seed: u64,
    /// The length of a tick. Elections take 10 to 20 of them, a heartbeat 2.
    pub tick_ms: u64,
}

/// What had been persisted and applied when the member stopped.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The members that vote.
    pub voters: Vec<u64>,
    /// As last persisted.
    pub hard_state: HardState,
    /// The last entry that the driver's state holds.
    pub applied: Position,
    /// All persisted entries behind it.
    pub entries: Vec<Entry>,
}

/// Why a member cannot start from what it was handed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The entries do not follow each other, or not the applied one.
    #[error("the log has entry {found} where {expected} must follow")]
    Gap {
        /// The index that must come.
        expected: u64,
        /// The index that comes.
        found: u64,
    },
    /// The engine refuses the configuration.
    #[error("the member cannot start: {0}")]
    Config(String),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum In {
    /// Someone wants these appended, in this order.
    Propose(Vec<(ProposalId, Bytes)>),
    /// Another member sent this.
    Message(Bytes),
    /// All [`Persist`]s up to this number are durable.
    Persisted(u64),
    /// All entries up to this index are applied.
    Applied(u64),
    /// Someone wants to read what is committed by now.
    ReadIndex(ReadId),
}

/// What shall happen.
#[derive(Clone, Debug)]
pub enum Out {
    /// Make this durable, then say [`In::Persisted`].
    Persist(Persist),
    /// Send these to other members.
    Send(Vec<Message>),
    /// Apply these, then say [`In::Applied`].
    Commit(Vec<Committed>),
    /// The state has applied all that was committed when the read was asked for.
    ReadReady(ReadId),
    /// These proposals and reads will not be answered. The proposals may still be committed.
    Lost {
        /// The proposals.
        proposals: Vec<ProposalId>,
        /// The reads.
        reads: Vec<ReadId>,
    },
    /// The member has another role now.
    Role {
        /// Which one.
        role: Role,
        /// Since which term.
        term: u64,
    },
}

/// What must be durable before anyone hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Grows with every wish.
    pub number: u64,
    /// To be appended; they replace what was there from the first one's index on.
    pub entries: Vec<Entry>,
    /// To be kept in the place of the former one.
    pub hard_state: HardState,
}

/// A message for another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which member.
    pub to: u64,
    /// What [`In::Message`] takes there.
    pub bytes: Bytes,
}

/// An entry that will never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Set if this member proposed it since it started.
    pub id: Option<ProposalId>,
    /// What was proposed; empty where a term began.
    pub data: Bytes,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Follows someone, or nobody yet.
    Follower {
        /// Whom.
        leader: Option<u64>,
    },
    /// Asks for votes.
    Candidate,
}

const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 2;

/// Entries in one message to another member. A follower that lags gets as much as goes over a slow link in a heartbeat.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Proposals that are not committed yet. More are refused, so that a leader without followers does not fill its memory.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Entries in one [`Out::Commit`], so that applying does not hold up the next persist for long.
const COMMIT_BYTES_MAX: u64 = 4 << 20;

/// Applied entries that stay in memory for members that lag a little. A member alone keeps none.
const LAG_ENTRIES_MAX: usize = 4_096;

/// One member's part in the agreement.
pub struct Consensus {
    node: RawNode<Tail>,
    config: Config,
    rng: Rng,
    alone: bool,
    last_tick: Option<Time>,
    role: Role,
    /// Term, leader and role for which the election timeout was drawn.
    drawn_for: (u64, u64, StateRole),
    applied: u64,
    /// Proposals by index, with the term in which they were appended.
    proposed: BTreeMap<u64, (u64, ProposalId)>,
    /// Readies that wait for the disk, in order, with what must not be sent before.
    unpersisted: VecDeque<Unpersisted>,
    /// Reads that wait until this leader has committed in its term.
    early_reads: Vec<ReadId>,
    /// Reads that wait for the other members' word.
    asked_reads: BTreeSet<ReadId>,
    /// Reads that wait until this much is applied.
    reads: BTreeMap<u64, Vec<ReadId>>,
}

struct Unpersisted {
    number: u64,
    needs_disk: bool,
    messages: Vec<eraftpb::Message>,
}

impl Consensus {
    /// Starts a member from what it had persisted. It wants to be woken at once.
    pub fn new(config: Config, restored: Restored) -> Result<Self, StartError> {
        let Restored { voters, hard_state, applied, entries } = restored;
        for (expected, entry) in (applied.index + 1..).zip(&entries) {
            if entry.index != expected {
                return Err(StartError::Gap { expected, found: entry.index });
            }
        }
        if !voters.contains(&config.member) {
            return Err(StartError::Config(format!("member {} is not among the voters {voters:?}", config.member)));
        }
        let alone = voters.len() == 1;
        let engine = raft::Config {
            id: config.member,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: applied.index,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMIT_BYTES_MAX,
            batch_append: true,
            check_quorum: true,
            pre_vote: true,
            ..raft::Config::default()
        };
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&engine, Tail::new(hard_state, voters, applied, entries), &log)
            .map_err(|error| StartError::Config(error.to_string()))?;
        let mut consensus = Self {
            rng: Rng::new(config.seed ^ config.member.rotate_left(32)),
            node,
            config,
            alone,
            last_tick: None,
            role: Role::Follower { leader: None },
            drawn_for: (u64::MAX, 0, StateRole::Follower),
            applied: applied.index,
            proposed: BTreeMap::new(),
            unpersisted: VecDeque::new(),
            early_reads: Vec::new(),
            asked_reads: BTreeSet::new(),
            reads: BTreeMap::new(),
        };
        consensus.draw_timeout(false);
        Ok(consensus)
    }

    /// What this member is now.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The latest term that this member has seen.
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// The end of the log, durable or not.
    pub fn last(&self) -> Position {
        let index = self.node.raft.raft_log.last_index();
        Position { index, term: self.node.raft.raft_log.last_term() }
    }

    fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
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

    fn tick(&mut self) {
        self.node.tick();
        let ran_out = !self.is_leader() && self.node.raft.election_elapsed == 0;
        self.draw_timeout(ran_out);
    }

    fn propose(&mut self, proposals: Vec<(ProposalId, Bytes)>, out: &mut Vec<Out>) {
        let first = self.node.raft.raft_log.last_index() + 1;
        let term = self.node.raft.term;
        let mut ids = Vec::with_capacity(proposals.len());
        let mut entries = Vec::with_capacity(proposals.len());
        for (id, data) in proposals {
            ids.push(id);
            // The engine fills in index and term.
            entries.push(to_engine(0, 0, data));
        }
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.member;
        message.set_entries(entries.into());
        // A follower's engine would forward proposals and never tell how they ended.
        if !self.is_leader() || self.node.raft.step(message).is_err() {
            out.push(Out::Lost { proposals: ids, reads: Vec::new() });
            return;
        }
        self.proposed.extend((first..).zip(ids.into_iter().map(|id| (term, id))));
    }

    fn handle_message(&mut self, bytes: &Bytes) {
        let Ok(message) = eraftpb::Message::parse_from_carllerche_bytes(bytes) else { return };
        // Members are not brought back by snapshots here, so nobody of ours sends one.
        if message.get_msg_type() != MessageType::MsgSnapshot {
            // An error means that the sender is no member or the message is not one between members: drop it.
            let _ = self.node.step(message);
        }
        self.draw_timeout(false);
    }

    fn handle_persisted(&mut self, number: u64, out: &mut Vec<Out>) {
        let mut reached = None;
        let mut messages = Vec::new();
        while self.unpersisted.front().is_some_and(|first| first.number <= number || !first.needs_disk) {
            if let Some(first) = self.unpersisted.pop_front() {
                reached = Some(first.number);
                messages.extend(first.messages);
            }
        }
        if let Some(reached) = reached {
            self.node.on_persist_ready(reached);
        }
        send(messages, out);
    }

    fn handle_applied(&mut self, index: u64, out: &mut Vec<Out>) {
        assert!(index >= self.applied, "entries are applied in order");
        self.applied = index;
        self.node.advance_apply_to(index);
        let keep = if self.alone { 0 } else { LAG_ENTRIES_MAX };
        self.node.mut_store().forget(index, keep);
        self.release_reads(out);
    }

    fn release_reads(&mut self, out: &mut Vec<Out>) {
        let later = self.reads.split_off(&(self.applied + 1));
        let ready = std::mem::replace(&mut self.reads, later);
        out.extend(ready.into_values().flatten().map(Out::ReadReady));
    }

    /// Asks the engine for the reads that it will not drop silently.
    fn ask_reads(&mut self, out: &mut Vec<Out>) {
        if !self.is_leader() {
            let reads = std::mem::take(&mut self.early_reads);
            if !reads.is_empty() {
                out.push(Out::Lost { proposals: Vec::new(), reads });
            }
        } else if self.node.raft.commit_to_current_term() {
            for read in std::mem::take(&mut self.early_reads) {
                self.asked_reads.insert(read);
                self.node.read_index(read.0.to_be_bytes().to_vec());
            }
        }
    }

    /// Turns all that the engine has ready into wishes.
    fn pump(&mut self, out: &mut Vec<Out>) {
        self.ask_reads(out);
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            self.note_role(out);
            send(ready.take_messages(), out);
            let tail = self.node.mut_store();
            tail.append(ready.entries());
            if let Some(hard_state) = ready.hs() {
                tail.hard_state = hard_state.clone();
            }
            let hard_state = from_engine(&tail.hard_state);
            let reads = ready.take_read_states();
            let (number, needs_disk) = (ready.number(), ready.must_sync());
            let committed = ready.take_committed_entries();
            let messages = ready.take_persisted_messages();
            let entries =
                ready.take_entries().into_iter().map(|e| Entry { index: e.index, term: e.term, data: e.data });
            if needs_disk {
                out.push(Out::Persist(Persist { number, entries: entries.collect(), hard_state }));
            }
            self.node.advance_append_async(ready);
            self.unpersisted.push_back(Unpersisted { number, needs_disk, messages });
            // Passes what needs no disk and waits for none before it.
            self.handle_persisted(0, out);
            self.commit(committed, out);
            for read in reads {
                self.note_read(read.index, &read.request_ctx);
            }
            self.release_reads(out);
            self.draw_timeout(false);
            self.ask_reads(out);
        }
    }

    fn note_role(&mut self, out: &mut Vec<Out>) {
        let raft = &self.node.raft;
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower { leader: (raft.leader_id != 0).then_some(raft.leader_id) },
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        };
        if role == self.role {
            return;
        }
        let term = raft.term;
        if self.role == Role::Leader {
            let proposals = std::mem::take(&mut self.proposed).into_values().map(|(_, id)| id).collect();
            let asked = std::mem::take(&mut self.asked_reads).into_iter();
            let reads = asked.chain(std::mem::take(&mut self.early_reads)).collect();
            out.push(Out::Lost { proposals, reads });
        }
        self.role = role;
        out.push(Out::Role { role, term });
    }

    fn note_read(&mut self, index: u64, context: &[u8]) {
        let Ok(id) = context.try_into().map(|bytes| ReadId(u64::from_be_bytes(bytes))) else { return };
        if self.asked_reads.remove(&id) {
            self.reads.entry(index).or_default().push(id);
        }
    }

    fn commit(&mut self, entries: Vec<eraftpb::Entry>, out: &mut Vec<Out>) {
        if entries.is_empty() {
            return;
        }
        let mut lost = Vec::new();
        let mut committed = Vec::with_capacity(entries.len());
        for entry in entries {
            let id = match self.proposed.remove(&entry.index) {
                Some((term, id)) if term == entry.term => Some(id),
                Some((_, id)) => {
                    lost.push(id);
                    None
                }
                None => None,
            };
            committed.push(Committed { index: entry.index, term: entry.term, id, data: entry.data });
        }
        out.push(Out::Commit(committed));
        if !lost.is_empty() {
            out.push(Out::Lost { proposals: lost, reads: Vec::new() });
        }
    }
}

impl Machine for Consensus {
    type In = In;
    type Out = Out;

    fn handle(&mut self, _now: Time, input: In, out: &mut Vec<Out>) {
        match input {
            In::Propose(proposals) => self.propose(proposals, out),
            In::Message(bytes) => self.handle_message(&bytes),
            In::Persisted(number) => self.handle_persisted(number, out),
            In::Applied(index) => self.handle_applied(index, out),
            In::ReadIndex(id) => self.early_reads.push(id),
        }
        self.pump(out);
    }

    /// A leader without followers needs no clock, so an idle single member never wakes.
    fn next_wake(&self) -> Option<Time> {
        match self.last_tick {
            None => Some(Time::from_ms(i64::MIN)),
            Some(_) if self.alone && self.is_leader() => None,
            Some(last) => Some(last + self.config.tick_ms),
        }
    }

    fn wake(&mut self, now: Time, out: &mut Vec<Out>) {
        match self.last_tick {
            None => {
                self.last_tick = Some(now);
                if self.alone {
                    // Nobody else could object: do not wait for a timeout. An error means that it leads already.
                    let _ = self.node.campaign();
                }
            }
            Some(last) if now >= last + self.config.tick_ms => {
                self.tick();
                // A clock that was stopped for long must not look like many missed heartbeats at once.
                let next = last + self.config.tick_ms;
                self.last_tick = Some(if now >= next + self.config.tick_ms { now } else { next });
            }
            Some(_) => {}
        }
        self.pump(out);
    }
}

fn send(messages: Vec<eraftpb::Message>, out: &mut Vec<Out>) {
    if messages.is_empty() {
        return;
    }
    let encode = |message: eraftpb::Message| Message {
        to: message.to,
        bytes: message.write_to_bytes().expect("a message of the engine has all required fields").into(),
    };
    out.push(Out::Send(messages.into_iter().map(encode).collect()));
}

fn from_engine(state: &eraftpb::HardState) -> HardState {
    HardState { term: state.term, vote: state.vote, commit: state.commit }
}

#[cfg(test)]
mod tests;
