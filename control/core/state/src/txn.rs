//! What goes through the log: compare-and-set transactions, and how they end.

use crate::object::Parsed;
use crate::wire::{DecodeError, Reader, put_bytes, put_varint};
use crate::{Key, Malformed, Object};
use bytes::Bytes;
use dhow_api::index::Index;
use dhow_types::{Revision, Time};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Operations that happen together, at one revision, or not at all. No object may be named twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// In the order in which watchers will see them.
    pub ops: Vec<Op>,
}

/// One object's part in a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Creates or replaces an object.
    Put {
        /// What it is called.
        key: Key,
        /// The object as JSON text. Whatever `metadata.resourceVersion` it has is replaced by the new revision.
        value: Bytes,
        /// What must be there before.
        expect: Expect,
        /// When the object may be removed; said anew by every write of it. [`State::expired`](crate::State::expired)
        /// tells what is due, and somebody has to delete it.
        expires: Option<Time>,
    },
    /// Removes an object.
    Delete {
        /// What it is called.
        key: Key,
        /// What must be there before. There must be something in any case.
        expect: Expect,
        /// The form in which watchers see it go; without it, the form that was stored.
        last: Option<Bytes>,
    },
}

/// What an operation needs to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything or nothing.
    Any,
    /// No object of this name.
    Absent,
    /// An object of this name.
    Present,
    /// The object as this revision left it.
    At(Revision),
}

/// A transaction whose values have been read, so that applying it costs little. Made where there is time for it.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(crate) txn: Txn,
    /// One for each operation that carries a value.
    pub(crate) parsed: Vec<Option<Parsed>>,
}

impl Prepared {
    /// The transaction itself.
    pub fn txn(&self) -> &Txn {
        &self.txn
    }
}

/// A transaction that was accepted.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The revision that it was given.
    pub revision: Revision,
    /// One for each operation: the new object, or the last form of a deleted one.
    pub objects: Vec<Arc<Object>>,
}

/// Why nothing of a transaction was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The object has changed since the revision that was expected.
    #[error("`{key}` is at revision {current} now")]
    Conflict {
        /// Whose expectation failed.
        key: Key,
        /// Where the object is instead.
        current: Revision,
    },
    /// The object was to be new, and is there.
    #[error("`{key}` exists")]
    Exists {
        /// Whose expectation failed.
        key: Key,
    },
    /// The object was to be there, and is not.
    #[error("`{key}` does not exist")]
    Missing {
        /// Whose expectation failed.
        key: Key,
    },
    /// The transaction makes no sense, whatever the state is.
    #[error("`{key}` cannot be written: {why}")]
    Malformed {
        /// Whose operation it is.
        key: Key,
        /// What is wrong with it.
        why: Malformed,
    },
}

impl Rejected {
    /// The object whose operation could not be done.
    pub fn key(&self) -> &Key {
        match self {
            Rejected::Conflict { key, .. }
            | Rejected::Exists { key }
            | Rejected::Missing { key }
            | Rejected::Malformed { key, .. } => key,
        }
    }
}

impl Txn {
    /// Reads all values. What no state would accept is refused here already.
    pub fn prepare(self) -> Result<Prepared, Rejected> {
        self.prepare_with(None)
    }

    /// The same where the index of the first operation's value is known: that one is not read again. Who knows it has
    /// just written the text from the tree that the index is of.
    pub fn prepare_with(self, mut first: Option<Index>) -> Result<Prepared, Rejected> {
        let mut seen = BTreeSet::new();
        let mut parsed = Vec::with_capacity(self.ops.len());
        for op in &self.ops {
            let malformed = |why| Rejected::Malformed { key: op.key().clone(), why };
            if self.ops.len() > 1 && !seen.insert(op.key()) {
                return Err(malformed(Malformed::Repeated));
            }
            let read = |value: &Bytes| match first.take() {
                Some(index) => Parsed::known(index, value).map_err(malformed),
                None => Parsed::read(&op.key().resource, value).map_err(malformed),
            };
            parsed.push(op.value().map(read).transpose()?);
            first = None;
        }
        Ok(Prepared { txn: self, parsed })
    }
}

impl Op {
    /// The object that the operation is about.
    pub fn key(&self) -> &Key {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } => key,
        }
    }

    /// The text that the operation carries.
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Op::Put { value, .. } => Some(value),
            Op::Delete { last, .. } => last.as_ref(),
        }
    }

    pub(crate) fn expect(&self) -> Expect {
        match self {
            Op::Put { expect, .. } | Op::Delete { expect, .. } => *expect,
        }
    }
}

/// The first byte of an encoded transaction. Readers refuse what they do not know.
const FORMAT: u8 = 1;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_LAST: u8 = 3;
const PUT_EXPIRING: u8 = 4;

const ANY: u8 = 0;
const ABSENT: u8 = 1;
const PRESENT: u8 = 2;
const AT: u8 = 3;

impl Txn {
    /// A transaction of one operation.
    pub fn one(op: Op) -> Self {
        Self { ops: vec![op] }
    }

    /// The bytes that the log keeps.
    pub fn encode(&self) -> Vec<u8> {
        let values: usize = self.ops.iter().map(op_size).sum();
        let mut out = Vec::with_capacity(16 + values);
        out.push(FORMAT);
        put_varint(&mut out, self.ops.len() as u64);
        for op in &self.ops {
            out.push(match op {
                Op::Put { expires: None, .. } => PUT,
                Op::Put { expires: Some(_), .. } => PUT_EXPIRING,
                Op::Delete { last: Some(_), .. } => DELETE_LAST,
                Op::Delete { last: None, .. } => DELETE,
            });
            put_expect(&mut out, op.expect());
            let key = op.key();
            put_bytes(&mut out, key.resource.as_bytes());
            put_bytes(&mut out, key.namespace.as_bytes());
            put_bytes(&mut out, key.name.as_bytes());
            if let Op::Put { expires: Some(expires), .. } = op {
                put_varint(&mut out, expires.as_ms() as u64);
            }
            if let Some(value) = op.value() {
                put_bytes(&mut out, value);
            }
        }
        out
    }

    /// Reads what [`encode`](Txn::encode) wrote. Values share the memory of `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let format = reader.byte()?;
        if format != FORMAT {
            return Err(DecodeError::Version(format));
        }
        let count = reader.varint()?;
        let mut ops = Vec::new();
        for _ in 0..count {
            ops.push(read_op(&mut reader)?);
        }
        reader.end()?;
        Ok(Self { ops })
    }
}

fn op_size(op: &Op) -> usize {
    let key = op.key();
    op.value().map_or(0, Bytes::len) + key.resource.len() + key.namespace.len() + key.name.len() + 32
}

fn put_expect(out: &mut Vec<u8>, expect: Expect) {
    match expect {
        Expect::Any => out.push(ANY),
        Expect::Absent => out.push(ABSENT),
        Expect::Present => out.push(PRESENT),
        Expect::At(revision) => {
            out.push(AT);
            put_varint(out, revision.0);
        }
    }
}

fn read_op(reader: &mut Reader) -> Result<Op, DecodeError> {
    let tag = reader.byte()?;
    let expect = match reader.byte()? {
        ANY => Expect::Any,
        ABSENT => Expect::Absent,
        PRESENT => Expect::Present,
        AT => Expect::At(Revision(reader.varint()?)),
        other => return Err(DecodeError::Tag(other)),
    };
    let key = Key::new(reader.text()?, reader.text()?, reader.text()?);
    match tag {
        PUT => Ok(Op::Put { key, value: reader.bytes()?, expect, expires: None }),
        PUT_EXPIRING => {
            let expires = Some(Time::from_ms(reader.varint()? as i64));
            Ok(Op::Put { key, value: reader.bytes()?, expect, expires })
        }
        DELETE => Ok(Op::Delete { key, expect, last: None }),
        DELETE_LAST => Ok(Op::Delete { key, expect, last: Some(reader.bytes()?) }),
        other => Err(DecodeError::Tag(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Txn {
        let key = |name: &str| Key::new("deployments.apps", "default", name);
        let put = |name: &str, value: Bytes, expect, expires| Op::Put { key: key(name), value, expect, expires };
        Txn {
            ops: vec![
                put("a", Bytes::from_static(b"{\"metadata\":{}}"), Expect::Absent, None),
                put("b", Bytes::from(vec![b'x'; 300]), Expect::At(Revision(u64::MAX)), Some(Time::from_ms(-1))),
                Op::Delete { key: key("c"), expect: Expect::Any, last: None },
                Op::Delete {
                    key: Key::new("nodes", "", "n1"),
                    expect: Expect::Present,
                    last: Some(Bytes::from_static(b"{}")),
                },
            ],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for txn in [Txn::default(), sample(), Txn::one(sample().ops.remove(1))] {
            assert_eq!(Txn::decode(txn.encode().into()), Ok(txn));
        }
    }

    #[test]
    fn damaged_bytes_are_an_error_and_no_panic() {
        let good = sample().encode();
        for end in 0..good.len() {
            assert!(Txn::decode(good[..end].to_vec().into()).is_err(), "cut at {end}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = Txn::decode(bad.into());
            }
        }
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(Txn::decode(longer.into()), Err(DecodeError::Rest(1)));
        let mut newer = good;
        newer[0] = 9;
        assert_eq!(Txn::decode(newer.into()), Err(DecodeError::Version(9)));
    }
}
