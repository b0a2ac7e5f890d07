//! The end of the log, in memory, in the form in which the engine reads it.

use bytes::Bytes;
use raft::eraftpb;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

/// One entry of the log. Without data it only marks the beginning of a leader's term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place; the log has no holes.
    pub index: u64,
    /// The term of the leader that wrote it.
    pub term: u64,
    /// What was proposed.
    pub data: Bytes,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The index; zero is before the first entry.
    pub index: u64,
    /// The term of the entry there.
    pub term: u64,
}

/// What the engine calls its storage: entries behind `base`, which may be handed out before they are durable.
pub(crate) struct Tail {
    pub(crate) hard_state: eraftpb::HardState,
    voters: Vec<u64>,
    base: Position,
    entries: VecDeque<eraftpb::Entry>,
}

impl Tail {
    pub(crate) fn new(hard_state: HardState, voters: Vec<u64>, base: Position, entries: Vec<Entry>) -> Self {
        let entries = entries.into_iter().map(|entry| to_engine(entry.index, entry.term, entry.data)).collect();
        let mut tail = Self { hard_state: eraftpb::HardState::default(), voters, base, entries };
        // The engine refuses a start whose hard state does not fit its log. A commit behind the base is known to be
        // old, one beyond the end cannot be ours, and a term that has entries has been seen.
        tail.hard_state.term = hard_state.term.max(tail.last().term);
        tail.hard_state.vote = if tail.hard_state.term == hard_state.term { hard_state.vote } else { 0 };
        tail.hard_state.commit = hard_state.commit.clamp(tail.base.index, tail.last().index);
        tail
    }

    pub(crate) fn last(&self) -> Position {
        self.entries.back().map_or(self.base, |entry| Position { index: entry.index, term: entry.term })
    }

    /// Adds entries; those that were there from the first new one on are replaced.
    pub(crate) fn append(&mut self, entries: &[eraftpb::Entry]) {
        let Some(first) = entries.first() else { return };
        let keep = first.index.saturating_sub(self.base.index + 1) as usize;
        self.entries.truncate(keep);
        self.entries.extend(entries.iter().cloned());
    }

    /// Forgets entries up to `index`, but not the newest `keep` of those in memory.
    pub(crate) fn forget(&mut self, index: u64, keep: usize) {
        while self.entries.len() > keep && self.entries.front().is_some_and(|entry| entry.index <= index) {
            if let Some(entry) = self.entries.pop_front() {
                self.base = Position { index: entry.index, term: entry.term };
            }
        }
    }

    fn first(&self) -> u64 {
        self.base.index + 1
    }

    fn at(&self, index: u64) -> Option<&eraftpb::Entry> {
        self.entries.get(index.checked_sub(self.first())? as usize)
    }
}

pub(crate) fn to_engine(index: u64, term: u64, data: Bytes) -> eraftpb::Entry {
    eraftpb::Entry { index, term, data, ..eraftpb::Entry::default() }
}

impl Storage for Tail {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut members = eraftpb::ConfState::default();
        members.set_voters(self.voters.clone());
        Ok(RaftState::new(self.hard_state.clone(), members))
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
            let size = entry.data.len() as u64 + 32;
            if !out.is_empty() && size > room {
                break;
            }
            room = room.saturating_sub(size);
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.index {
            return Ok(self.base.term);
        }
        if index < self.base.index {
            return Err(StorageError::Compacted.into());
        }
        self.at(index).map(|entry| entry.term).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().index)
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        Err(StorageError::SnapshotTemporarilyUnavailable.into())
    }
}
