//! The end of the log, in memory, in the form in which the engine reads it.

use crate::io::LagMax;
use crate::members::Members;
use bytes::Bytes;
use raft::eraftpb::{self, EntryType};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place; the log has no holes.
    pub index: u64,
    /// The term of the leader that wrote it.
    pub term: u64,
    /// What `data` is.
    pub kind: EntryKind,
    /// Who proposed it, in the words of consensus; at most 32 bytes, to be stored as they are.
    pub tag: Bytes,
    /// What was proposed. Empty where a leader's term began.
    pub data: Bytes,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// The state.
    Normal,
    /// The members.
    Members,
}

/// What a member must not forget, beside its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term it has seen.
    pub term: u64,
    /// Whom it voted for in that term; zero for nobody.
    pub vote: u64,
    /// Up to where it knows the log to be committed. May be behind: it is written along with other things only.
    pub commit: u64,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The index; zero is before the first entry.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
}

/// What the engine calls its storage: entries behind `base`, which may be handed out before they are durable.
pub(crate) struct Tail {
    pub(crate) hard_state: eraftpb::HardState,
    /// What a snapshot would hold: the applied position and its members. Only a member with a state sends one.
    pub(crate) image: Option<(Position, Members)>,
    /// As of the start.
    members: Members,
    base: Position,
    entries: VecDeque<eraftpb::Entry>,
    bytes: usize,
}

/// What an entry takes beside its data.
const ENTRY_OVERHEAD: usize = 96;

impl Tail {
    pub(crate) fn new(hard_state: HardState, members: Members, base: Position, entries: Vec<Entry>) -> Self {
        let entries: VecDeque<eraftpb::Entry> = entries.into_iter().map(to_engine).collect();
        let bytes = entries.iter().map(size).sum();
        let hard = eraftpb::HardState::default();
        let mut tail = Self { hard_state: hard, image: None, members, base, entries, bytes };
        // The engine refuses a start whose hard state does not fit its log. A commit behind the base is known to be
        // old, one beyond the end cannot be ours, and a term that has entries has been seen. Nobody leads in the first
        // term: a member that has seen none could not answer a candidate.
        tail.hard_state.term = hard_state.term.max(tail.last().term).max(1);
        tail.hard_state.vote = if tail.hard_state.term == hard_state.term { hard_state.vote } else { 0 };
        tail.hard_state.commit = hard_state.commit.clamp(tail.base.index, tail.last().index);
        tail
    }

    pub(crate) fn last(&self) -> Position {
        self.entries.back().map_or(self.base, |entry| Position { index: entry.index, term: entry.term })
    }

    pub(crate) fn base(&self) -> Position {
        self.base
    }

    /// Adds entries; those that were there from the first new one on are replaced.
    pub(crate) fn append(&mut self, entries: &[eraftpb::Entry]) {
        let Some(first) = entries.first() else { return };
        let keep = first.index.saturating_sub(self.base.index + 1) as usize;
        while self.entries.len() > keep {
            self.bytes -= self.entries.pop_back().as_ref().map_or(0, size);
        }
        self.entries.extend(entries.iter().cloned());
        self.bytes += entries.iter().map(size).sum::<usize>();
    }

    /// Begins anew behind an image.
    pub(crate) fn reset(&mut self, base: Position) {
        self.base = base;
        self.entries.clear();
        self.bytes = 0;
    }

    /// Forgets entries up to `applied`, but not so many that less than `max` allows would be left. What is behind
    /// `needed` counts by other bytes.
    pub(crate) fn forget(&mut self, applied: u64, needed: u64, max: LagMax) {
        while let Some(first) = self.entries.front() {
            let (len, bytes) = (self.entries.len(), self.bytes);
            let beyond = len > max.entries || bytes > max.bytes;
            let stays = if first.index > needed { bytes <= max.needed_bytes } else { !beyond };
            if first.index > applied || stays {
                return;
            }
            self.forget_one();
        }
    }

    /// Forgets up to `index`, whatever is needed.
    pub(crate) fn forget_to(&mut self, index: u64) {
        while self.entries.front().is_some_and(|entry| entry.index <= index) {
            self.forget_one();
        }
    }

    fn forget_one(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.base = Position { index: entry.index, term: entry.term };
            self.bytes -= size(&entry);
        }
    }

    /// The term of an entry that is in memory, or right before it.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.index { Some(self.base.term) } else { self.at(index).map(|entry| entry.term) }
    }

    fn first(&self) -> u64 {
        self.base.index + 1
    }

    fn at(&self, index: u64) -> Option<&eraftpb::Entry> {
        self.entries.get(index.checked_sub(self.first())? as usize)
    }
}

fn size(entry: &eraftpb::Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD
}

pub(crate) fn to_engine(entry: Entry) -> eraftpb::Entry {
    let Entry { index, term, kind, tag, data } = entry;
    let mut out = eraftpb::Entry { index, term, data, context: tag, ..eraftpb::Entry::default() };
    out.set_entry_type(match kind {
        EntryKind::Normal => EntryType::EntryNormal,
        EntryKind::Members => EntryType::EntryConfChangeV2,
    });
    out
}

pub(crate) fn from_engine(entry: eraftpb::Entry) -> Entry {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => EntryKind::Normal,
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => EntryKind::Members,
    };
    Entry { index: entry.index, term: entry.term, kind, tag: entry.context, data: entry.data }
}

impl Storage for Tail {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.members.to_engine()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        assert!(high <= self.last().index + 1, "the engine knows where the log ends");
        let start = (low - self.first()) as usize;
        let found = self.entries.range(start..start + (high - low) as usize);
        let mut room = max_size.into().unwrap_or(u64::MAX);
        let mut out = Vec::new();
        for entry in found {
            let size = size(entry) as u64;
            if !out.is_empty() && size > room {
                break;
            }
            room = room.saturating_sub(size);
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.base.index {
            return Err(StorageError::Compacted.into());
        }
        self.term_at(index).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().index)
    }

    /// Only says what the image holds; the driver streams it.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        let Some((position, members)) = self.image.as_ref().filter(|(position, _)| position.index > 0) else {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        };
        let mut snapshot = eraftpb::Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = position.index;
        metadata.term = position.term;
        metadata.set_conf_state(members.to_engine());
        Ok(snapshot)
    }
}
