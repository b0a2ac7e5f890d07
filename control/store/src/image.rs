//! The whole state as one stream of bytes: what a leader sends to a member that lags too far, and what a backup is.
//!
//! ```text
//! image  = magic | format u32 | length u32 | head | crc u32 of all until here | object… | end
//! head   = index u64 | term u64 | revision u64 | hash u64 | count of objects u64 | members
//! object = length u32 | revision u64 | expiry i64 | length of the key u32 | resource \0 namespace \0 name | JSON
//! end    = FFFFFFFF | crc u32 of all until here          all little endian
//! ```
//!
//! An image of format 2 is a bare one: it ends behind the head. A witness gets it, which needs to know where the state
//! stands and who the members are there, and must not see the objects.
//!
//! An image is taken by cloning references under one lock; the bytes are made as they are asked for. A reader trusts
//! nothing until the end has come, the checksum is right, and the objects have the hash that the head names.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dhow_consensus::{Members, Position};
use dhow_state::{HistoryMax, Key, OBJECT_BYTES_MAX, Object, State};
use dhow_types::{Revision, Time};
use std::sync::Arc;
use std::vec;

/// The format of a whole image.
const WHOLE: u32 = 1;

/// The format of a bare one, and the newest that this version reads.
const BARE: u32 = 2;

const MAGIC: &[u8; 8] = b"DHOWIMG\n";

/// A piece of the stream is about as large: a lagging member's link is kept busy, and little is in memory at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// No piece is larger, however large an object is.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// The head names members, of which there are few.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// An object with its key: names are bounded far below what is added here.
const RECORD_BYTES_MAX: usize = OBJECT_BYTES_MAX + (64 << 10);

/// Before a record: its revision, expiry and the length of its key.
const RECORD_HEAD: usize = 20;

const END: u32 = u32::MAX;
const NEVER: i64 = i64::MIN;

/// A consistent image of the state, as an iterator over the pieces of its stream.
#[derive(Debug)]
pub struct Snapshot {
    head: Head,
    /// What goes ahead of the image on its way to a member.
    message: Option<Bytes>,
    objects: vec::IntoIter<Arc<Object>>,
    /// What did not fit into the last piece.
    rest: Bytes,
    bytes: usize,
    crc: u32,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) position: Position,
    pub(crate) revision: Revision,
    pub(crate) hash: u64,
    pub(crate) members: Members,
    count: u64,
    bare: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Objects,
    Done,
}

/// Why bytes are not an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Not one of ours.
    #[error("it does not begin as a snapshot does; was another file meant?")]
    Foreign,
    /// Written by a version that this one does not know.
    #[error("it has format {found}, this version reads {BARE}: run a newer dhow")]
    Newer {
        /// Its format.
        found: u32,
    },
    /// It ends in the middle.
    #[error("it is cut short: take a whole copy of it")]
    Short,
    /// Made for a witness.
    #[error("it holds no objects, for it was made for a witness")]
    Bare,
    /// The bytes are not what was written.
    #[error("it is damaged: {0}; take another copy of it")]
    Damaged(&'static str),
}

impl Snapshot {
    /// Of a state that the log has led to `position`, where `members` were in force.
    pub(crate) fn new(state: &State, position: Position, members: Members) -> Self {
        let objects: Vec<_> = state.iter().cloned().collect();
        let bytes = objects.iter().map(|object| object.json().len() + RECORD_HEAD + 64).sum();
        let (revision, hash, count) = (state.revision(), state.hash(), objects.len() as u64);
        let head = Head { position, revision, hash, members, count, bare: false };
        let (objects, rest) = (objects.into_iter(), Bytes::new());
        Self { head, message: None, objects, rest, bytes, crc: 0, stage: Stage::Head }
    }

    /// The same without any objects.
    pub(crate) fn bare(state: &State, position: Position, members: Members) -> Self {
        let (revision, hash) = (state.revision(), state.hash());
        let head = Head { position, revision, hash, members, count: 0, bare: true };
        let objects = Vec::new().into_iter();
        Self { head, message: None, objects, rest: Bytes::new(), bytes: 0, crc: 0, stage: Stage::Head }
    }

    /// The same on its way to a member, with what consensus there has to know.
    pub(crate) fn with_message(self, message: Bytes) -> Self {
        Self { message: Some(message), ..self }
    }

    /// The place in the log that the image shows.
    pub fn position(&self) -> Position {
        self.head.position
    }

    /// The revision that the image shows.
    pub fn revision(&self) -> Revision {
        self.head.revision
    }

    /// Who was a member then.
    pub fn members(&self) -> &Members {
        &self.head.members
    }

    /// About how many bytes the stream has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn put_head(&mut self, out: &mut BytesMut) {
        let Head { position, revision, hash, members, count, bare } = &self.head;
        let members = members.encode();
        out.put_slice(MAGIC);
        out.put_u32_le(if *bare { BARE } else { WHOLE });
        out.put_u32_le((40 + members.len()) as u32);
        [position.index, position.term, revision.0, *hash, *count].iter().for_each(|word| out.put_u64_le(*word));
        out.put_slice(&members);
        out.put_u32_le(crc32c::crc32c(out));
    }
}

impl Iterator for Snapshot {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            self.rest = self.fill()?;
        }
        Some(self.rest.split_to(self.rest.len().min(CHUNK_BYTES_MAX)))
    }
}

impl Snapshot {
    fn fill(&mut self) -> Option<Bytes> {
        if self.stage == Stage::Done {
            return None;
        }
        let mut out = BytesMut::with_capacity(CHUNK_BYTES);
        if self.stage == Stage::Head {
            if let Some(message) = self.message.take() {
                out.put_u32_le(message.len() as u32);
                out.put_slice(&message);
                return Some(out.freeze());
            }
            self.put_head(&mut out);
            self.stage = Stage::Objects;
        }
        while out.len() < CHUNK_BYTES {
            let Some(object) = self.objects.next() else {
                out.put_u32_le(END);
                self.crc = crc32c::crc32c_append(self.crc, &out);
                out.put_u32_le(self.crc);
                self.stage = Stage::Done;
                return Some(out.freeze());
            };
            put_object(&mut out, &object);
        }
        self.crc = crc32c::crc32c_append(self.crc, &out);
        Some(out.freeze())
    }
}

fn put_object(out: &mut BytesMut, object: &Object) {
    let Key { resource, namespace, name } = &object.key;
    let key = [&**resource, &**namespace, &**name].join("\0");
    out.reserve(4 + RECORD_HEAD + key.len() + object.json().len());
    out.put_u32_le((RECORD_HEAD + key.len() + object.json().len()) as u32);
    out.put_u64_le(object.revision.0);
    out.put_i64_le(object.expires.map_or(NEVER, Time::as_ms));
    out.put_u32_le(key.len() as u32);
    out.put_slice(key.as_bytes());
    out.put_slice(object.json());
}

/// A whole image that has been checked.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) position: Position,
    pub(crate) members: Members,
    /// Empty if the image is bare.
    pub(crate) state: State,
    /// There are objects, and the image does not show them.
    pub(crate) is_bare: bool,
}

/// Reads a stream, in whatever pieces it comes.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    buffer: BytesMut,
    head: Option<Head>,
    objects: Vec<Object>,
    crc: u32,
    ended: bool,
}

impl Reader {
    /// Takes the next bytes of the stream.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.buffer.extend_from_slice(bytes);
        while !self.buffer.is_empty() {
            if self.ended {
                return Err(ImageError::Damaged("something follows its end"));
            }
            let taken = match &self.head {
                None => self.take_head()?,
                Some(_) => self.take_record()?,
            };
            if taken.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// The image, if all of it has come.
    pub(crate) fn finish(self, history_max: HistoryMax) -> Result<Image, ImageError> {
        let (Some(Head { position, revision, hash, members, count, bare }), true) = (self.head, self.ended) else {
            return Err(ImageError::Short);
        };
        let found = self.objects.len() as u64;
        if bare && found == 0 {
            let state = State::restore(history_max, position.index, Revision(0), []);
            return Ok(Image { position, members, state, is_bare: true });
        }
        let state = State::restore(history_max, position.index, revision, self.objects);
        if found != count || state.hash() != hash {
            return Err(ImageError::Damaged("its objects are not those that its head names"));
        }
        Ok(Image { position, members, state, is_bare: false })
    }

    fn take(&mut self, len: usize) -> BytesMut {
        let taken = self.buffer.split_to(len);
        self.crc = crc32c::crc32c_append(self.crc, &taken);
        taken
    }

    fn take_head(&mut self) -> Result<Option<()>, ImageError> {
        let known = self.buffer.len().min(MAGIC.len());
        if self.buffer[..known] != MAGIC[..known] {
            return Err(ImageError::Foreign);
        }
        let Some(mut fixed) = self.buffer.get(8..16) else { return Ok(None) };
        let (format, len) = (fixed.get_u32_le(), fixed.get_u32_le() as usize);
        if format != WHOLE && format != BARE {
            return Err(ImageError::Newer { found: format });
        }
        if !(40..=HEAD_BYTES_MAX).contains(&len) {
            return Err(ImageError::Damaged("its head has no sensible length"));
        }
        let Some(mut crc) = self.buffer.get(16 + len..20 + len) else { return Ok(None) };
        if crc.get_u32_le() != crc32c::crc32c(&self.buffer[..16 + len]) {
            return Err(ImageError::Damaged("its head does not match its checksum"));
        }
        let mut head = self.take(20 + len);
        head.advance(16);
        head.truncate(len);
        let mut word = || head.get_u64_le();
        let (index, term, revision, hash, count) = (word(), word(), word(), word(), word());
        let members = Members::decode(&head).ok_or(ImageError::Damaged("its members are unreadable"))?;
        let (position, revision) = (Position { index, term }, Revision(revision));
        self.head = Some(Head { position, revision, hash, members, count, bare: format == BARE });
        Ok(Some(()))
    }

    fn take_record(&mut self) -> Result<Option<()>, ImageError> {
        let Some(mut len) = self.buffer.get(..4) else { return Ok(None) };
        let len = len.get_u32_le();
        if len == END {
            let Some(mut crc) = self.buffer.get(4..8) else { return Ok(None) };
            let wanted = crc.get_u32_le();
            self.take(4);
            if wanted != self.crc {
                return Err(ImageError::Damaged("it does not match its checksum"));
            }
            self.buffer.advance(4);
            self.ended = true;
            return Ok(Some(()));
        }
        let len = len as usize;
        if !(RECORD_HEAD..=RECORD_BYTES_MAX).contains(&len) {
            return Err(ImageError::Damaged("an object has no sensible length"));
        }
        if self.buffer.len() < 4 + len {
            self.buffer.reserve(4 + len - self.buffer.len());
            return Ok(None);
        }
        let mut record = self.take(4 + len);
        record.advance(4);
        self.objects.push(read_object(&record).ok_or(ImageError::Damaged("an object is unreadable"))?);
        Ok(Some(()))
    }
}

fn read_object(mut record: &[u8]) -> Option<Object> {
    let (revision, expires) = (record.get_u64_le(), record.get_i64_le());
    let key_len = record.get_u32_le() as usize;
    let (key, json) = record.split_at_checked(key_len)?;
    let mut parts = std::str::from_utf8(key).ok()?.split('\0');
    let key = Key::new(parts.next()?, parts.next()?, parts.next()?);
    let object = Object::restore(key, Revision(revision), Bytes::copy_from_slice(json)).ok()?;
    Some(object.expiring((expires != NEVER).then(|| Time::from_ms(expires))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_state::{Expect, Op, Txn};
    use dhow_types::Rng;

    fn sample(objects: u64) -> State {
        let mut state = State::new(HistoryMax::default());
        for index in 1..=objects {
            let padding = "x".repeat((index as usize * 7_919) % 3_000);
            let value = format!("{{\"metadata\":{{\"name\":\"p{index}\"}},\"data\":\"{padding}\"}}").into();
            let key = Key::new("pods", "default", format!("p{index}"));
            let expires = (index % 3 == 0).then(|| Time::from_ms(index as i64));
            state.apply(index, &Txn::one(Op::Put { key, value, expect: Expect::Any, expires })).unwrap();
        }
        state
    }

    fn members() -> Members {
        Members { voters: vec![1, 2, 3], learners: vec![7], ..Members::default() }
    }

    fn bytes_of(state: &State) -> Vec<u8> {
        let position = Position { index: state.index(), term: 5 };
        Snapshot::new(state, position, members()).flat_map(|chunk| chunk.to_vec()).collect()
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Image, ImageError> {
        let mut reader = Reader::default();
        bytes.chunks(piece).try_for_each(|piece| reader.feed(piece))?;
        reader.finish(HistoryMax::default())
    }

    #[test]
    fn an_image_is_read_back_in_any_pieces() {
        for objects in [0, 1, 700] {
            let state = sample(objects);
            let bytes = bytes_of(&state);
            for piece in [1, 7, 4_096, 1 << 20] {
                let image = read(&bytes, piece).unwrap();
                assert_eq!((image.state.hash(), image.state.revision()), (state.hash(), state.revision()));
                assert_eq!((image.position, image.members), (Position { index: objects, term: 5 }, members()));
                assert_eq!(image.state.expired(Time::from_ms(9)).count(), objects.min(9) as usize / 3);
            }
        }
    }

    #[test]
    fn whatever_is_cut_or_changed_is_refused() {
        let bytes = bytes_of(&sample(4));
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end], 4_096).unwrap_err(), ImageError::Short, "cut at {end}");
        }
        let mut rng = Rng::new(3);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << rng.below(8);
            assert!(read(&bad, 4_096).is_err(), "changed at {at}");
        }
        assert!(read(&[&bytes[..], b"x"].concat(), 4_096).is_err());
        assert_eq!(read(b"PK\x03\x04 something else", 4).unwrap_err(), ImageError::Foreign);
        let mut newer = bytes;
        newer[8] = 9;
        assert_eq!(read(&newer, 4_096).unwrap_err(), ImageError::Newer { found: 9 });
    }

    #[test]
    fn a_bare_image_tells_where_the_state_stands_and_shows_nothing_of_it() {
        let state = sample(40);
        let position = Position { index: state.index(), term: 5 };
        let bytes: Vec<u8> = Snapshot::bare(&state, position, members()).flat_map(|chunk| chunk.to_vec()).collect();
        assert!(bytes.len() < 200, "{} bytes", bytes.len());
        let image = read(&bytes, 7).unwrap();
        assert_eq!((image.position, image.members, image.is_bare), (position, members(), true));
        assert_eq!((image.state.len(), image.state.index()), (0, state.index()));
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end], 4_096).unwrap_err(), ImageError::Short, "cut at {end}");
        }
        // Nor does a whole one pass for it.
        let mut whole = bytes_of(&state);
        whole[8] = BARE as u8;
        assert!(read(&whole, 4_096).is_err());
        let dir = tempfile::tempdir().unwrap();
        let restored = crate::restore(&bytes[..], &dir.path().join("store"), 1).unwrap_err();
        assert!(matches!(restored, crate::SnapshotError::Image(ImageError::Bare)), "{restored}");
    }
}
