//! Who waits for which entry: what this member proposed, and what a leader took from others.
//!
//! A proposal is held until somebody leads, then sent to the leader of one term, which alone may append it. Once an
//! entry of a later term is committed, nothing of that term can be committed any more that has not been seen: then it
//! is held again and goes to the next leader. So a change of the leader costs a proposer time and no doubt.

use crate::io::{ProposalId, Refusal};
use crate::tail::EntryKind;
use bytes::{BufMut, Bytes};
use std::collections::{BTreeMap, BTreeSet};

/// What waits for an answer, in all. More is refused: the driver bounds its queue likewise, so that only a member
/// without a leader gets here.
const PENDING_BYTES_MAX: usize = 64 << 20;

/// Ticks after which proposals are sent to the same leader once more, for the message may have been lost. The leader
/// knows what it has seen.
const RETRY_TICKS: u64 = 10;

/// How far sequences may overtake each other. One that comes later is taken to be doubled, and its proposals are lost.
const OVERTAKING_MAX: usize = 1_024;

/// A life of a member, as it stands in the tags of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life {
    pub(crate) member: u64,
    pub(crate) incarnation: u64,
}

impl Life {
    pub(crate) fn tag(self, id: ProposalId) -> Bytes {
        let mut tag = Vec::with_capacity(24);
        [self.member, self.incarnation, id.0].into_iter().for_each(|word| tag.put_u64_le(word));
        tag.into()
    }

    /// The proposal that the tag names, if it is of this life.
    pub(crate) fn own(self, tag: &[u8]) -> Option<ProposalId> {
        let ([member, incarnation, id], []) = tag.as_chunks::<8>() else { return None };
        let is_own = u64::from_le_bytes(*member) == self.member && u64::from_le_bytes(*incarnation) == self.incarnation;
        is_own.then(|| ProposalId(u64::from_le_bytes(*id)))
    }
}

/// What someone wants to be appended.
pub(crate) type Wanted = (ProposalId, EntryKind, Bytes);

struct Pending {
    kind: EntryKind,
    data: Bytes,
    /// The tick at which its proposer is told that nothing came of it.
    deadline: u64,
}

/// One time that a proposal is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// Whose leader may append it.
    pub(crate) term: u64,
    /// By which word of it is known; no two attempts have the same.
    pub(crate) sequence: u64,
    /// The tick at which it was sent last.
    pub(crate) at: u64,
}

/// The proposals of this member that have no answer.
#[derive(Default)]
pub(crate) struct Proposals {
    /// With the tick before which they are not sent.
    held: BTreeMap<ProposalId, (Pending, u64)>,
    sent: BTreeMap<ProposalId, (Pending, Attempt)>,
    bytes: usize,
}

impl Proposals {
    pub(crate) fn add(&mut self, wanted: Wanted, deadline: u64) -> Result<(), Refusal> {
        let (id, kind, data) = wanted;
        if self.bytes > 0 && self.bytes + data.len() > PENDING_BYTES_MAX {
            return Err(Refusal::Overloaded);
        }
        self.bytes += data.len();
        self.held.insert(id, (Pending { kind, data, deadline }, 0));
        Ok(())
    }

    pub(crate) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes what may be sent now, as much as goes into one message of `bytes_max`, and at least one.
    pub(crate) fn send(&mut self, attempt: Attempt, bytes_max: usize) -> Vec<Wanted> {
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut bytes = 0;
        for (id, (pending, from)) in &self.held {
            if *from > attempt.at {
                continue;
            }
            bytes += pending.data.len() + 16;
            if bytes > bytes_max && !wanted.is_empty() {
                break;
            }
            wanted.push((*id, pending.kind, pending.data.clone()));
        }
        for (id, ..) in &wanted {
            if let Some((pending, _)) = self.held.remove(id) {
                self.sent.insert(*id, (pending, attempt));
            }
        }
        wanted
    }

    /// The oldest attempt in `term` that has had no answer for long: what is left of it, to be sent once more as it was.
    pub(crate) fn send_again(&mut self, term: u64, now: u64) -> Option<(u64, Vec<Wanted>)> {
        let overdue = |attempt: &Attempt| attempt.term == term && attempt.at + RETRY_TICKS <= now;
        let sequence = self.sent.values().find(|(_, attempt)| overdue(attempt))?.1.sequence;
        let mut wanted = Vec::new();
        for (id, (pending, attempt)) in &mut self.sent {
            if attempt.sequence == sequence {
                attempt.at = now;
                wanted.push((*id, pending.kind, pending.data.clone()));
            }
        }
        Some((sequence, wanted))
    }

    /// The leader did not append it at this attempt; it is sent again, though not before the tick.
    pub(crate) fn hold(&mut self, id: ProposalId, sequence: u64, until: u64) {
        if self.was_sent(id, sequence)
            && let Some((pending, _)) = self.sent.remove(&id)
        {
            self.held.insert(id, (pending, until));
        }
    }

    /// Whether this is the attempt that counts.
    pub(crate) fn was_sent(&self, id: ProposalId, sequence: u64) -> bool {
        self.sent.get(&id).is_some_and(|(_, attempt)| attempt.sequence == sequence)
    }

    /// An entry of `term` is committed: what was sent to earlier leaders is settled.
    pub(crate) fn hold_older(&mut self, term: u64) {
        let older = self.sent.iter().filter(|(_, (_, attempt))| attempt.term < term);
        let older: Vec<ProposalId> = older.map(|(id, _)| *id).collect();
        for id in older {
            if let Some((pending, _)) = self.sent.remove(&id) {
                self.held.insert(id, (pending, 0));
            }
        }
    }

    /// There is another leader: nobody needs to wait for a tick.
    pub(crate) fn release(&mut self) {
        self.held.values_mut().for_each(|(_, until)| *until = 0);
    }

    /// Its entry is committed, or it is answered otherwise. Gives whether someone waited.
    pub(crate) fn finish(&mut self, id: ProposalId) -> bool {
        let sent = self.sent.remove(&id).map(|(pending, _)| pending);
        let found = sent.or_else(|| self.held.remove(&id).map(|(pending, _)| pending));
        self.bytes -= found.as_ref().map_or(0, |pending| pending.data.len());
        found.is_some()
    }

    /// Those whose time is over at tick `now`: what was sent may still be committed, what was held will not be.
    pub(crate) fn expire(&mut self, now: u64) -> Ended {
        let lost = self.sent.iter().filter(|(_, (pending, _))| pending.deadline <= now).map(|(id, _)| *id).collect();
        let refused = self.held.iter().filter(|(_, (pending, _))| pending.deadline <= now).map(|(id, _)| *id).collect();
        self.end(lost, refused)
    }

    /// Nobody can tell any more what became of those that were sent.
    pub(crate) fn lose_sent(&mut self) -> Vec<ProposalId> {
        self.end(self.sent.keys().copied().collect(), Vec::new()).lost
    }

    pub(crate) fn end_all(&mut self) -> Ended {
        self.end(self.sent.keys().copied().collect(), self.held.keys().copied().collect())
    }

    fn end(&mut self, lost: Vec<ProposalId>, refused: Vec<ProposalId>) -> Ended {
        for id in lost.iter().chain(&refused) {
            self.finish(*id);
        }
        Ended { lost, refused }
    }
}

/// Proposals that end without an entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// They may still be committed.
    pub(crate) lost: Vec<ProposalId>,
    /// They never will be.
    pub(crate) refused: Vec<ProposalId>,
}

/// What a leader has taken from others in its term.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    term: u64,
    seen: BTreeMap<Life, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// All up to here count as seen.
    floor: u64,
    above: BTreeSet<u64>,
}

impl Inbox {
    /// Notes a sequence; `false` if it was there before, or may have been.
    pub(crate) fn is_new(&mut self, term: u64, from: Life, sequence: u64) -> bool {
        if self.term != term {
            *self = Self { term, seen: BTreeMap::new() };
        }
        let Seen { floor, above } = self.seen.entry(from).or_default();
        if sequence <= *floor || !above.insert(sequence) {
            return false;
        }
        while above.len() > OVERTAKING_MAX || above.first().is_some_and(|first| *first == *floor + 1) {
            if let Some(first) = above.pop_first() {
                *floor = first;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(id: u64) -> Wanted {
        (ProposalId(id), EntryKind::Normal, Bytes::from(vec![0; 10]))
    }

    fn ids(wanted: Vec<Wanted>) -> Vec<u64> {
        wanted.into_iter().map(|(id, ..)| id.0).collect()
    }

    #[test]
    fn a_tag_is_known_by_its_own_life_only() {
        let life = Life { member: 3, incarnation: 77 };
        let tag = life.tag(ProposalId(5));
        assert_eq!(life.own(&tag), Some(ProposalId(5)));
        assert_eq!(Life { incarnation: 78, ..life }.own(&tag), None);
        assert_eq!(Life { member: 2, ..life }.own(&tag), None);
        assert_eq!(life.own(&tag[..23]), None);
        assert_eq!(life.own(b""), None);
    }

    #[test]
    fn what_an_old_leader_dropped_goes_to_the_next() {
        let mut proposals = Proposals::default();
        let send = |proposals: &mut Proposals, term, sequence, now| {
            ids(proposals.send(Attempt { term, sequence, at: now }, 1_000))
        };
        for id in 1..=4 {
            proposals.add(wanted(id), 40).unwrap();
        }
        assert_eq!(send(&mut proposals, 3, 1, 0), [1, 2, 3, 4]);
        assert!(send(&mut proposals, 3, 2, 0).is_empty());
        assert!(proposals.finish(ProposalId(1)));
        assert!(!proposals.finish(ProposalId(1)));
        // The leader of term 3 could not take it; word of another attempt means nothing.
        proposals.hold(ProposalId(2), 1, 6);
        proposals.hold(ProposalId(3), 2, 6);
        assert!(send(&mut proposals, 3, 3, 5).is_empty());
        assert_eq!(send(&mut proposals, 3, 4, 6), [2]);
        proposals.hold(ProposalId(2), 1, 6);
        proposals.hold_older(3);
        assert!(!proposals.has_held(), "what the first word said was true of the first attempt only");
        proposals.hold_older(4);
        assert_eq!(send(&mut proposals, 4, 5, 6), [2, 3, 4]);
        proposals.hold(ProposalId(4), 5, 50);
        let ended = proposals.expire(40);
        assert_eq!(ended.lost, [ProposalId(2), ProposalId(3)]);
        assert_eq!(ended.refused, [ProposalId(4)]);
        assert_eq!((proposals.bytes, proposals.has_held()), (0, false));
    }

    #[test]
    fn a_message_holds_only_so_much() {
        let mut proposals = Proposals::default();
        for id in 1..=5 {
            proposals.add(wanted(id), 40).unwrap();
        }
        let attempt = Attempt { term: 1, sequence: 1, at: 0 };
        let mut send = |bytes_max| ids(proposals.send(attempt, bytes_max));
        assert_eq!(send(60), [1, 2]);
        assert_eq!(send(1), [3]);
        assert_eq!(send(usize::MAX), [4, 5]);
        assert!(send(usize::MAX).is_empty());
    }

    #[test]
    fn what_has_no_answer_is_sent_once_more_as_it_was() {
        let mut proposals = Proposals::default();
        (1..=3).for_each(|id| proposals.add(wanted(id), 40).unwrap());
        assert_eq!(ids(proposals.send(Attempt { term: 2, sequence: 7, at: 0 }, 60)), [1, 2]);
        assert_eq!(ids(proposals.send(Attempt { term: 2, sequence: 8, at: 1 }, 60)), [3]);
        proposals.finish(ProposalId(1));
        assert!(proposals.send_again(2, RETRY_TICKS - 1).is_none());
        assert!(proposals.send_again(3, RETRY_TICKS).is_none(), "that leader is another one");
        let mut again = |now| proposals.send_again(2, now).map(|(sequence, wanted)| (sequence, ids(wanted)));
        assert_eq!(again(RETRY_TICKS), Some((7, vec![2])));
        assert_eq!(again(RETRY_TICKS), None);
        assert_eq!(again(RETRY_TICKS + 1), Some((8, vec![3])));
        assert_eq!(again(2 * RETRY_TICKS), Some((7, vec![2])));
    }

    #[test]
    fn only_so_much_waits() {
        let mut proposals = Proposals::default();
        let large = |id| (ProposalId(id), EntryKind::Normal, Bytes::from(vec![0; PENDING_BYTES_MAX / 2 + 1]));
        proposals.add(large(1), 1).unwrap();
        assert_eq!(proposals.add(large(2), 1), Err(Refusal::Overloaded));
        proposals.finish(ProposalId(1));
        proposals.add(large(2), 1).unwrap();
    }

    #[test]
    fn a_leader_takes_each_sequence_once_a_term() {
        let mut inbox = Inbox::default();
        let life = Life { member: 1, incarnation: 9 };
        for (term, sequence, expected) in
            [(1, 2, true), (1, 1, true), (1, 1, false), (1, 2, false), (1, 9, true), (1, 9, false), (1, 5, true)]
        {
            assert_eq!(inbox.is_new(term, life, sequence), expected, "{sequence}");
        }
        assert!(inbox.is_new(1, Life { incarnation: 10, ..life }, 1));
        assert!(inbox.is_new(2, life, 1), "another term");
        for sequence in (10..20_000).step_by(2) {
            assert!(inbox.is_new(2, life, sequence));
        }
        assert!(!inbox.is_new(2, life, 11), "too late to be sure");
        assert!(inbox.seen[&life].above.len() <= OVERTAKING_MAX);
    }
}
