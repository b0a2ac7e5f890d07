//! Who waits to read: this member's own reads, and on a leader those of the others.
//!
//! A read asks the leader up to where the log is committed, and may be served once so much is applied. The leader asks
//! a majority whether it still leads, once for all that ask at the same time: a round.

use crate::io::ReadId;
use crate::proposals::Life;
use std::collections::BTreeMap;

/// Rounds on their way. While there are so many, who asks waits for the next: each round is a message to every member.
const ROUNDS_MAX: usize = 8;

/// Ticks after which the leader is asked again, for a question or its answer may have been lost.
const RETRY_TICKS: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unasked,
    /// At this tick.
    Asked(u64),
    /// It waits until this much is applied.
    Indexed(u64),
}

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    Own(ReadId),
    Other(Life, ReadId),
}

#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// With the tick at which each is given up.
    own: BTreeMap<ReadId, (Stage, u64)>,
    unasked: usize,
    indexed: BTreeMap<u64, Vec<ReadId>>,
    gathering: Vec<Asker>,
    rounds: BTreeMap<u64, Vec<Asker>>,
    last_round: u64,
}

impl Reads {
    pub(crate) fn add(&mut self, id: ReadId, deadline: u64) {
        self.own.insert(id, (Stage::Unasked, deadline));
        self.unasked += 1;
    }

    /// This member's reads that the leader must be asked for, at tick `now`.
    pub(crate) fn ask(&mut self, now: u64) -> Vec<ReadId> {
        if self.unasked == 0 {
            return Vec::new();
        }
        self.unasked = 0;
        let unasked = self.own.iter_mut().filter(|(_, (stage, _))| *stage == Stage::Unasked);
        unasked
            .map(|(id, (stage, _))| {
                *stage = Stage::Asked(now);
                *id
            })
            .collect()
    }

    /// Someone asks this member as the leader.
    pub(crate) fn gather(&mut self, asker: Asker) {
        let known = |askers: &Vec<Asker>| askers.contains(&asker);
        if !known(&self.gathering) && !self.rounds.values().any(known) {
            self.gathering.push(asker);
        }
    }

    /// The round to begin now, if there is one.
    pub(crate) fn begin_round(&mut self) -> Option<u64> {
        if self.gathering.is_empty() || self.rounds.len() >= ROUNDS_MAX {
            return None;
        }
        self.last_round += 1;
        self.rounds.insert(self.last_round, std::mem::take(&mut self.gathering));
        Some(self.last_round)
    }

    /// A majority has confirmed this round.
    pub(crate) fn end_round(&mut self, round: u64) -> Vec<Asker> {
        self.rounds.remove(&round).unwrap_or_default()
    }

    /// This member no longer leads, or follows another leader: whoever waits here asks again.
    pub(crate) fn ask_again(&mut self) {
        self.gathering.clear();
        self.rounds.clear();
        for (stage, _) in self.own.values_mut() {
            if let Stage::Asked(_) = stage {
                *stage = Stage::Unasked;
                self.unasked += 1;
            }
        }
    }

    /// The log was committed up to `index` after this member asked.
    pub(crate) fn answer(&mut self, id: ReadId, index: u64) {
        let Some((stage, _)) = self.own.get_mut(&id) else { return };
        match stage {
            Stage::Indexed(_) => return,
            Stage::Unasked => self.unasked -= 1,
            Stage::Asked(_) => {}
        }
        *stage = Stage::Indexed(index);
        self.indexed.entry(index).or_default().push(id);
    }

    /// Those that may be served when so much is applied.
    pub(crate) fn release(&mut self, applied: u64) -> Vec<ReadId> {
        if self.indexed.first_key_value().is_none_or(|(index, _)| *index > applied) {
            return Vec::new();
        }
        let later = self.indexed.split_off(&(applied + 1));
        let ready: Vec<ReadId> = std::mem::replace(&mut self.indexed, later).into_values().flatten().collect();
        for id in &ready {
            self.own.remove(id);
        }
        ready
    }

    /// Lets questions be asked again that have no answer; gives those that are given up at tick `now`.
    pub(crate) fn expire(&mut self, now: u64) -> Vec<ReadId> {
        let lost: Vec<ReadId> =
            self.own.iter().filter(|(_, (_, deadline))| *deadline <= now).map(|(id, _)| *id).collect();
        self.give_up(&lost);
        for (stage, _) in self.own.values_mut() {
            if let Stage::Asked(at) = stage
                && *at + RETRY_TICKS <= now
            {
                *stage = Stage::Unasked;
                self.unasked += 1;
            }
        }
        lost
    }

    pub(crate) fn end_all(&mut self) -> Vec<ReadId> {
        let all: Vec<ReadId> = self.own.keys().copied().collect();
        self.give_up(&all);
        all
    }

    fn give_up(&mut self, ids: &[ReadId]) {
        for id in ids {
            match self.own.remove(id) {
                Some((Stage::Unasked, _)) => self.unasked -= 1,
                Some((Stage::Indexed(index), _)) => {
                    self.indexed.entry(index).or_default().retain(|waiting| waiting != id);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_asked_again_until_it_is_answered_and_served_when_applied() {
        let mut reads = Reads::default();
        reads.add(ReadId(1), 40);
        reads.add(ReadId(2), 12);
        assert_eq!(reads.ask(0), [ReadId(1), ReadId(2)]);
        assert!(reads.ask(1).is_empty());
        assert!(reads.expire(4).is_empty() && reads.ask(4).is_empty());
        assert!(reads.expire(5).is_empty());
        assert_eq!(reads.ask(5), [ReadId(1), ReadId(2)]);
        reads.answer(ReadId(1), 7);
        reads.answer(ReadId(1), 9);
        reads.ask_again();
        assert_eq!(reads.ask(6), [ReadId(2)]);
        assert!(reads.release(6).is_empty());
        assert_eq!(reads.expire(12), [ReadId(2)]);
        reads.answer(ReadId(2), 3);
        assert_eq!(reads.release(7), [ReadId(1)]);
        assert!(reads.release(100).is_empty() && reads.end_all().is_empty() && reads.unasked == 0);
    }

    #[test]
    fn who_asks_at_the_same_time_shares_a_round() {
        let mut reads = Reads::default();
        let other = |id| Asker::Other(Life { member: 2, incarnation: 1 }, ReadId(id));
        assert_eq!(reads.begin_round(), None);
        reads.gather(other(1));
        reads.gather(other(1));
        reads.gather(Asker::Own(ReadId(1)));
        assert_eq!(reads.begin_round(), Some(1));
        reads.gather(other(1));
        assert_eq!(reads.begin_round(), None, "it is on its way");
        for id in 2..20 {
            reads.gather(other(id));
            assert_eq!(reads.begin_round().is_some(), id < 9);
        }
        assert_eq!(reads.end_round(1), [other(1), Asker::Own(ReadId(1))]);
        assert_eq!(reads.begin_round(), Some(9));
        assert_eq!(reads.end_round(9).len(), 11);
        assert!(reads.end_round(9).is_empty());
    }
}
