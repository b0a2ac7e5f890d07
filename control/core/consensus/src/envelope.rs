//! The bytes between members: the engine's messages, and those of ours that carry proposals and reads to the leader.
//!
//! The engine could forward proposals and reads itself, but would never tell how they end.
//!
//! ```text
//! message = kind u8 | from u64 (the highest bit: a witness) | what follows for its kind          all little endian
//! ```

use crate::io::{ProposalId, ReadId, Refusal};
use crate::members::ChangeError;
use crate::tail::{EntryKind, Position};
use bytes::{BufMut, Bytes};
use protobuf::Message as _;
use raft::eraftpb;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Speaker {
    pub(crate) member: u64,
    /// Said along with everything, so that a leader does not hand over to one that cannot win.
    pub(crate) witness: bool,
}

const WITNESS: u64 = 1 << 63;

impl Speaker {
    fn word(self) -> u64 {
        self.member | if self.witness { WITNESS } else { 0 }
    }

    fn of(word: u64) -> Self {
        Self { member: word & !WITNESS, witness: word & WITNESS != 0 }
    }
}

/// What one member says to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Saying {
    /// As the engine encodes it.
    Engine(Bytes),
    /// To the leader of `term` only: append these.
    Forward(Forward),
    /// From the leader: this came of what that life of yours sent by that sequence.
    Verdicts { incarnation: u64, sequence: u64, verdicts: Vec<(ProposalId, Verdict)> },
    /// To the leader: up to where is the log committed?
    AskRead { incarnation: u64, id: ReadId },
    /// From the leader: up to here, at least when you had asked.
    AnswerRead { incarnation: u64, id: ReadId, index: u64 },
    /// To the leader: hand over.
    Transfer { to: Option<u64> },
    /// From the leader of this term: by the log up to this position you are no member.
    Removed { term: u64, by: Position },
}

/// Proposals on their way to a leader. No leader takes one twice: it takes them in its own term only, and each
/// sequence once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) term: u64,
    pub(crate) incarnation: u64,
    pub(crate) sequence: u64,
    pub(crate) proposals: Vec<(ProposalId, EntryKind, Bytes)>,
}

/// What a leader made of a proposal that it did not append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It cannot take it now.
    Later,
    /// It will not take it.
    Refused(Refusal),
}

const ENGINE: u8 = 1;
const FORWARD: u8 = 2;
const VERDICTS: u8 = 3;
const ASK_READ: u8 = 4;
const ANSWER_READ: u8 = 5;
const TRANSFER: u8 = 6;
const REMOVED: u8 = 7;

impl Saying {
    pub(crate) fn encode(&self, from: Speaker) -> Bytes {
        let mut out = Vec::with_capacity(64);
        let mut head = |kind: u8, words: &[u64]| {
            out.put_u8(kind);
            out.put_u64_le(from.word());
            words.iter().for_each(|word| out.put_u64_le(*word));
        };
        match self {
            Self::Engine(bytes) => {
                head(ENGINE, &[]);
                out.extend_from_slice(bytes);
            }
            Self::Forward(Forward { term, incarnation, sequence, proposals }) => {
                head(FORWARD, &[*term, *incarnation, *sequence]);
                for (id, kind, data) in proposals {
                    out.put_u64_le(id.0);
                    out.put_u8(u8::from(*kind == EntryKind::Members));
                    out.put_u32_le(data.len() as u32);
                    out.extend_from_slice(data);
                }
            }
            Self::Verdicts { incarnation, sequence, verdicts } => {
                head(VERDICTS, &[*incarnation, *sequence]);
                for (id, verdict) in verdicts {
                    let (code, member) = verdict.code();
                    out.put_u64_le(id.0);
                    out.put_u8(code);
                    out.put_u64_le(member);
                }
            }
            Self::AskRead { incarnation, id } => head(ASK_READ, &[*incarnation, id.0]),
            Self::AnswerRead { incarnation, id, index } => head(ANSWER_READ, &[*incarnation, id.0, *index]),
            Self::Transfer { to } => head(TRANSFER, &[to.unwrap_or(0)]),
            Self::Removed { term, by } => head(REMOVED, &[*term, by.index, by.term]),
        }
        out.into()
    }

    /// Who says what; `None` if no member of this version says so.
    pub(crate) fn decode(bytes: &Bytes) -> Option<(Speaker, Self)> {
        let mut rest = Reader(bytes.clone());
        let kind = rest.byte()?;
        let from = Speaker::of(rest.word()?);
        let saying = match kind {
            ENGINE => return Some((from, Self::Engine(rest.0))),
            FORWARD => Self::Forward(Forward {
                term: rest.word()?,
                incarnation: rest.word()?,
                sequence: rest.word()?,
                proposals: rest.list(|rest| {
                    let id = ProposalId(rest.word()?);
                    let kind = if rest.byte()? == 0 { EntryKind::Normal } else { EntryKind::Members };
                    let len = u32::from_le_bytes(rest.take(4)?.as_ref().try_into().ok()?);
                    Some((id, kind, rest.take(len as usize)?))
                })?,
            }),
            VERDICTS => Self::Verdicts {
                incarnation: rest.word()?,
                sequence: rest.word()?,
                verdicts: rest.list(|rest| {
                    let id = ProposalId(rest.word()?);
                    Some((id, Verdict::of(rest.byte()?, rest.word()?)?))
                })?,
            },
            ASK_READ => Self::AskRead { incarnation: rest.word()?, id: ReadId(rest.word()?) },
            ANSWER_READ => {
                Self::AnswerRead { incarnation: rest.word()?, id: ReadId(rest.word()?), index: rest.word()? }
            }
            TRANSFER => Self::Transfer { to: Some(rest.word()?).filter(|to| *to != 0) },
            REMOVED => {
                let (term, index) = (rest.word()?, rest.word()?);
                Self::Removed { term, by: Position { index, term: rest.word()? } }
            }
            _ => return None,
        };
        rest.0.is_empty().then_some((from, saying))
    }
}

/// [`Saying::Engine`] without a copy in between.
pub(crate) fn encode_engine(from: Speaker, message: &eraftpb::Message) -> Bytes {
    let mut out = Vec::with_capacity(16 + message.compute_size() as usize);
    out.put_u8(ENGINE);
    out.put_u64_le(from.word());
    message.write_to_vec(&mut out).expect("a message of the engine has all required fields");
    out.into()
}

impl Verdict {
    fn code(self) -> (u8, u64) {
        match self {
            Self::Later => (0, 0),
            Self::Refused(Refusal::NoLeader) => (1, 0),
            Self::Refused(Refusal::Overloaded) => (2, 0),
            Self::Refused(Refusal::Removed) => (3, 0),
            Self::Refused(Refusal::Change(error)) => match error {
                ChangeError::Malformed => (4, 0),
                ChangeError::NoLearner(member) => (5, member),
                ChangeError::Votes(member) => (6, member),
                ChangeError::LastVoter => (7, 0),
                ChangeError::Lags(member) => (8, member),
                ChangeError::Silent(member) => (9, member),
            },
        }
    }

    fn of(code: u8, member: u64) -> Option<Self> {
        Some(Self::Refused(match code {
            0 => return Some(Self::Later),
            1 => Refusal::NoLeader,
            2 => Refusal::Overloaded,
            3 => Refusal::Removed,
            4 => Refusal::Change(ChangeError::Malformed),
            5 => Refusal::Change(ChangeError::NoLearner(member)),
            6 => Refusal::Change(ChangeError::Votes(member)),
            7 => Refusal::Change(ChangeError::LastVoter),
            8 => Refusal::Change(ChangeError::Lags(member)),
            9 => Refusal::Change(ChangeError::Silent(member)),
            _ => return None,
        }))
    }
}

struct Reader(Bytes);

impl Reader {
    fn take(&mut self, len: usize) -> Option<Bytes> {
        (len <= self.0.len()).then(|| self.0.split_to(len))
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn word(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.as_ref().try_into().ok()?))
    }

    /// All that is left.
    fn list<T>(&mut self, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut list = Vec::new();
        while !self.0.is_empty() {
            list.push(one(self)?);
        }
        Some(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_and_half_of_it_is_not() {
        let verdicts = (0..10).map(|code| (ProposalId(u64::from(code)), Verdict::of(code, 0).unwrap())).collect();
        let member = Verdict::Refused(Refusal::Change(ChangeError::Lags(7)));
        let proposals = vec![
            (ProposalId(1), EntryKind::Normal, Bytes::from_static(b"one")),
            (ProposalId(2), EntryKind::Members, Bytes::new()),
        ];
        for saying in [
            Saying::Engine(Bytes::from_static(b"whatever")),
            Saying::Forward(Forward { term: 3, incarnation: 4, sequence: 5, proposals }),
            Saying::Verdicts { incarnation: 9, sequence: 3, verdicts },
            Saying::Verdicts { incarnation: 9, sequence: 3, verdicts: vec![(ProposalId(1), member)] },
            Saying::AskRead { incarnation: 1, id: ReadId(2) },
            Saying::AnswerRead { incarnation: 1, id: ReadId(2), index: 3 },
            Saying::Transfer { to: None },
            Saying::Transfer { to: Some(2) },
            Saying::Removed { term: 12, by: Position { index: 7, term: 11 } },
        ] {
            for from in [Speaker { member: 6, witness: true }, Speaker { member: 6, witness: false }] {
                assert_eq!(Saying::decode(&saying.encode(from)), Some((from, saying.clone())));
            }
            let bytes = saying.encode(Speaker { member: 6, witness: false });
            for len in 0..bytes.len() {
                let cut = Saying::decode(&bytes.slice(..len));
                assert_ne!(cut.map(|(_, cut)| cut), Some(saying.clone()), "cut at {len}");
            }
        }
        assert_eq!(Saying::decode(&Bytes::from_static(&[99, 0, 0, 0, 0, 0, 0, 0, 0])), None);
    }
}
