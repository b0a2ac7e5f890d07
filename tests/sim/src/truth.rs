//! What has been seen to be so, by whichever member came first, and must be so ever after.

use crate::linear::Value;
use dhow_types::Revision;
use std::collections::{BTreeMap, BTreeSet};

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) term: u64,
    /// The hash of what was proposed.
    pub(crate) what: u64,
    pub(crate) members: Vec<u8>,
    pub(crate) revision: Revision,
    /// Of the state behind it.
    pub(crate) hash: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Truth {
    leaders: BTreeMap<u64, u64>,
    log: BTreeMap<u64, Done>,
    /// Where each write was done, and at which moment first.
    writes: BTreeMap<Value, (u64, u64)>,
    refused: BTreeSet<Value>,
    acknowledged: BTreeMap<Revision, Value>,
}

impl Truth {
    /// A member leads in a term.
    pub(crate) fn lead(&mut self, term: u64, member: u64) -> Result<(), String> {
        let known = *self.leaders.entry(term).or_insert(member);
        if known == member { Ok(()) } else { Err(format!("members {known} and {member} both lead in term {term}")) }
    }

    pub(crate) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// A member has done an entry.
    pub(crate) fn apply(&mut self, index: u64, write: Option<Value>, done: Done, moment: u64) -> Result<(), String> {
        if let Some(write) = write {
            if self.refused.contains(&write) {
                return Err(format!("write {write} was refused, and is entry {index}"));
            }
            let (first, _) = *self.writes.entry(write).or_insert((index, moment));
            if first != index {
                return Err(format!("write {write} is done twice, as entry {first} and as entry {index}"));
            }
        }
        match self.log.get(&index) {
            Some(known) if *known != done => Err(format!("entry {index} was {known:?}, and now is {done:?}")),
            Some(_) => Ok(()),
            None => {
                self.log.insert(index, done);
                Ok(())
            }
        }
    }

    /// A member has a state that it did not come to by entries.
    pub(crate) fn check_state(&self, index: u64, revision: Revision, hash: u64) -> Result<(), String> {
        match self.log.get(&index) {
            Some(known) if known.hash != hash || known.revision != revision => Err(format!(
                "a state at entry {index} and revision {revision} is not what it was at {}",
                known.revision
            )),
            _ => Ok(()),
        }
    }

    pub(crate) fn refuse(&mut self, write: Value) -> Result<(), String> {
        self.refused.insert(write);
        match self.writes.get(&write) {
            Some((index, _)) => Err(format!("write {write} is refused, and was entry {index}")),
            None => Ok(()),
        }
    }

    /// A client is told that its write was given this revision; `floor` had been acknowledged before it asked.
    pub(crate) fn acknowledge(&mut self, write: Value, revision: Revision, floor: Revision) -> Result<(), String> {
        if revision <= floor {
            return Err(format!("write {write} got revision {revision} after {floor} was acknowledged"));
        }
        match self.acknowledged.insert(revision, write) {
            Some(other) if other != write => {
                Err(format!("revision {revision} is acknowledged for the writes {other} and {write}"))
            }
            _ => Ok(()),
        }
    }

    /// The moment at which the first member had done a write.
    pub(crate) fn done_at(&self, write: Value) -> Option<u64> {
        self.writes.get(&write).map(|(_, moment)| *moment)
    }

    /// The newest revision that anyone was told of.
    pub(crate) fn newest(&self) -> Revision {
        self.acknowledged.last_key_value().map_or(Revision(0), |(revision, _)| *revision)
    }

    /// Whether every write that was acknowledged was done.
    pub(crate) fn check_end(&self) -> Result<(), String> {
        for (revision, write) in &self.acknowledged {
            let done = self.writes.get(write).and_then(|(index, _)| self.log.get(index));
            if done.is_none_or(|done| done.revision != *revision) {
                return Err(format!("write {write} was acknowledged at revision {revision}, and that is {done:?}"));
            }
        }
        Ok(())
    }
}
