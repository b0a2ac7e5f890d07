//! The write-ahead log: numbered segments of preallocated zeros, filled from the front by frames.
//!
//! A frame is one group commit: one `pwrite`, one `fdatasync`. Only the last frame can therefore be torn, and a frame is
//! never written before the one before it is durable. That is how reading tells the end of the log from damage:
//!
//! ```text
//! segment  = header (64 bytes: magic, format, member, number, first sequence, crc) frame… zeros
//! frame    = magic u32 | length u32 | sequence u64 | crc of these u32 | crc of the body u32 | body | 0xA5
//! body     = record…          record = type u8 | length u32 | payload          all little endian
//!
//! entry      = index u64 | term u64 | kind u8 | length of the tag u8 | tag | data
//! hard state = term u64 | vote u64 | commit u64
//! checkpoint = index u64 | term u64 | revision u64 | hash u64 | members
//! reset      = index u64 | term u64          the log goes on behind this, and nothing before counts
//! ```
//!
//! Format 1 had entries without kind and tag, and checkpoints without members; they are read, and new records go into a
//! new segment.
//!
//! * Sequences grow by one; a hole is damage.
//! * A frame that does not check, with a valid later frame behind it, is damage.
//! * A last frame that does not check is torn if a part of it was never written: a 512-byte sector of zeros, zeros
//!   where the closing byte should be, or the end of the file. It was not acknowledged; it is wiped. If all of it
//!   was written, some of it has changed since, and that is damage.
//!
//! Damage stops the member: it may have been acknowledged.

use crate::error::OpenError;
use dhow_consensus::{Entry, EntryKind, HardState, Members, Position};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

mod read;
mod spares;

use read::Reader;
use spares::{Spare, Spares};

/// The format that this version writes and the newest that it reads.
const FORMAT: u32 = 2;

const SEGMENT_MAGIC: &[u8; 8] = b"DHOWWAL\n";
const SEGMENT_HEADER: usize = 64;
const FRAME_MAGIC: u32 = 0x6d72_6664;
const FRAME_HEADER: usize = 24;
const CLOSING: u8 = 0xa5;
const SECTOR: usize = 512;

const ENTRY_1: u8 = 1;
const HARD_STATE: u8 = 2;
const CHECKPOINT_1: u8 = 3;
const ENTRY: u8 = 4;
const CHECKPOINT: u8 = 5;
const RESET: u8 = 6;

const NORMAL: u8 = 0;
const MEMBERS: u8 = 1;

/// What an entry takes in a frame beside its data.
pub(crate) const ENTRY_OVERHEAD: usize = 64;

/// What a frame takes beside its entries: the other records that may come with them.
const FRAME_OVERHEAD: usize = 512;

/// The first segment of a new store is small, so that a fresh cluster starts without writing 16 MiB of zeros.
const FIRST_SEGMENT_BYTES: u64 = 4 << 20;

/// A buffer that grew beyond this for one large frame is not kept: an idle store is small.
const FRAME_BUFFER_KEPT: usize = 1 << 20;

/// A segment that is made because it is needed now.
const NEXT: &str = "next.tmp";

/// Closed segments that stay even when the object database covers them: if it silently falls back to an older epoch,
/// the log still reaches over the gap.
const SEGMENTS_KEPT: usize = 1;

/// What the object database held when it was last flushed; written here, outside of it, to be compared at the next
/// start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) applied: Position,
    pub(crate) revision: u64,
    /// The hash of the state.
    pub(crate) hash: u64,
    /// As of `applied`.
    pub(crate) members: Members,
}

/// What the log holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Those behind the index that was asked for.
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: HardState,
    /// The latest one.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// The one with which the log began.
    pub(crate) origin: Option<Checkpoint>,
    /// Where the log last began anew, behind an image from another member.
    pub(crate) reset: Option<Position>,
    /// The oldest entry that the log still has; `None` if it has none.
    pub(crate) first: Option<u64>,
    /// The newest entry, if there is one.
    pub(crate) last: u64,
    /// Nothing was ever dropped from the front.
    pub(crate) complete: bool,
}

/// What one frame shall hold.
#[derive(Debug, Default)]
pub(crate) struct Batch<'a> {
    /// In the order in which they came: later ones replace earlier ones of the same index and those behind.
    pub(crate) entries: Vec<&'a [Entry]>,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) checkpoint: Option<Checkpoint>,
}

/// The open log.
#[derive(Debug)]
pub(crate) struct Wal {
    dir: PathBuf,
    member: u64,
    segment_bytes: u64,
    closed: VecDeque<Closed>,
    current: Current,
    next_sequence: u64,
    hard_state: HardState,
    checkpoint: Option<Checkpoint>,
    spares: Spares,
    frame: Vec<u8>,
    broken: bool,
}

#[derive(Debug)]
struct Closed {
    path: PathBuf,
    last_index: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Current {
    file: File,
    path: PathBuf,
    number: u64,
    at: u64,
    capacity: u64,
    last_index: u64,
}

impl Wal {
    /// Whether the directory holds a log.
    pub(crate) fn exists(dir: &Path) -> Result<bool, OpenError> {
        Ok(!segments(dir)?.is_empty())
    }

    /// Opens the log, or makes an empty one, and reads the entries behind index `after`.
    pub(crate) fn open(dir: &Path, member: u64, segment_bytes: u64, after: u64) -> Result<(Self, Contents), OpenError> {
        fs::create_dir_all(dir).map_err(failed("creating", dir))?;
        for entry in fs::read_dir(dir).map_err(failed("reading", dir))? {
            let path = entry.map_err(failed("reading", dir))?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(&path).map_err(failed("removing", &path))?;
            }
        }
        let mut reader = Reader::new(member, after);
        let found = segments(dir)?;
        let mut closed = VecDeque::new();
        let mut current = None;
        for (position, (number, path)) in found.iter().enumerate() {
            let is_last = position + 1 == found.len();
            let read::Segment { file, end, capacity } = reader.segment(path, *number, is_last)?;
            let last_index = reader.last_index;
            if is_last {
                // What this version writes does not belong into a segment of an older one.
                let capacity = if reader.format == FORMAT { capacity } else { end };
                current = Some(Current { file, path: path.clone(), number: *number, at: end, capacity, last_index });
            } else {
                closed.push_back(Closed { path: path.clone(), last_index, bytes: capacity });
            }
        }
        let current = match current {
            Some(current) => current,
            None => {
                let path = segment_path(dir, 1);
                let capacity = segment_bytes.min(FIRST_SEGMENT_BYTES).max(SEGMENT_HEADER as u64);
                spares::make(dir.join(NEXT), capacity)
                    .and_then(|spare| name_segment(spare, dir, member, 1, 1, capacity))
                    .map_err(failed("creating", &path))?
            }
        };
        let (contents, next_sequence) = reader.finish(found.first().is_none_or(|(number, _)| *number == 1));
        let wal = Self {
            dir: dir.to_owned(),
            member,
            segment_bytes,
            closed,
            current,
            next_sequence,
            hard_state: contents.hard_state,
            checkpoint: contents.checkpoint.clone(),
            spares: Spares::new(dir, segment_bytes),
            frame: Vec::new(),
            broken: false,
        };
        Ok((wal, contents))
    }

    /// Makes sure that a frame of entries of this many bytes, [`ENTRY_OVERHEAD`] included, fits, so that a full disk is
    /// found before anything is written.
    pub(crate) fn reserve(&mut self, entry_bytes: usize) -> io::Result<()> {
        self.check()?;
        let need = frame_bytes(entry_bytes + FRAME_OVERHEAD);
        if self.current.at + need <= self.current.capacity {
            return Ok(());
        }
        self.rotate(need)
    }

    /// How many bytes can be written for certain.
    pub(crate) fn room(&self) -> u64 {
        (self.current.capacity - self.current.at + self.spares.room()).saturating_sub(FRAME_OVERHEAD as u64)
    }

    /// What the segments take on the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.closed.iter().map(|closed| closed.bytes).sum::<u64>() + self.current.capacity + self.spares.bytes()
    }

    /// Looks after the spare segments. `true`: something is being done, look again soon. An error: there is no room for
    /// one.
    pub(crate) fn tend(&mut self) -> Result<bool, String> {
        // Writing zeros takes a while: it is begun when half of the segment is used.
        self.spares.tend(self.current.at > self.current.capacity / 2)
    }

    /// Tries again what [`tend`](Wal::tend) could not do.
    pub(crate) fn retry_spare(&mut self) {
        self.spares.retry();
    }

    /// Writes a batch durably, in one frame. Notes of what the object database has flushed free segments.
    pub(crate) fn write(&mut self, batch: Batch<'_>) -> io::Result<()> {
        let Batch { entries, hard_state, checkpoint } = batch;
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state;
        }
        let noted = checkpoint.is_some();
        if let Some(checkpoint) = checkpoint {
            self.checkpoint = Some(checkpoint);
        }
        self.write_frame(&entries, None, hard_state.is_some(), noted)?;
        if noted {
            self.spares.note();
            self.retire_segments();
        }
        Ok(())
    }

    /// Begins the log anew behind an image whose objects are durable already.
    pub(crate) fn reset(&mut self, hard_state: HardState, checkpoint: Checkpoint) -> io::Result<()> {
        let position = checkpoint.applied;
        (self.hard_state, self.checkpoint) = (hard_state, Some(checkpoint));
        self.write_frame(&[], Some(position), true, true)?;
        self.current.last_index = position.index;
        self.closed.iter_mut().for_each(|closed| closed.last_index = 0);
        self.retire_segments();
        Ok(())
    }

    /// Gives away the segments that nobody needs any more.
    fn retire_segments(&mut self) {
        let covered = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.applied.index);
        while self.closed.len() > SEGMENTS_KEPT && self.closed.front().is_some_and(|first| first.last_index <= covered)
        {
            self.closed.pop_front().into_iter().for_each(|first| self.spares.retire(first));
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.broken { Err(io::Error::other("an earlier write to the log failed")) } else { Ok(()) }
    }

    fn write_frame(
        &mut self,
        entries: &[&[Entry]],
        reset: Option<Position>,
        with_hard_state: bool,
        with_checkpoint: bool,
    ) -> io::Result<()> {
        let all = || entries.iter().copied().flatten();
        self.reserve(all().map(|entry| entry.data.len() + ENTRY_OVERHEAD).sum())?;
        self.frame.clear();
        self.frame.resize(FRAME_HEADER, 0);
        // The first frame of a segment repeats what the dropped ones before it may have held.
        let is_first = self.current.at == SEGMENT_HEADER as u64;
        if let Some(Position { index, term }) = reset {
            put_record(&mut self.frame, RESET, &[index, term], &[]);
        }
        if with_hard_state || is_first {
            let HardState { term, vote, commit } = self.hard_state;
            put_record(&mut self.frame, HARD_STATE, &[term, vote, commit], &[]);
        }
        if let Some(checkpoint) = self.checkpoint.as_ref().filter(|_| with_checkpoint || is_first) {
            let Checkpoint { applied, revision, hash, members } = checkpoint;
            let words = [applied.index, applied.term, *revision, *hash];
            put_record(&mut self.frame, CHECKPOINT, &words, &[&members.encode()]);
        }
        for entry in all() {
            let kind = if entry.kind == EntryKind::Normal { NORMAL } else { MEMBERS };
            let tag_len = u8::try_from(entry.tag.len()).map_err(|_| io::Error::other("a tag is longer than a byte"))?;
            let parts: [&[u8]; 3] = [&[kind, tag_len], &entry.tag, &entry.data];
            put_record(&mut self.frame, ENTRY, &[entry.index, entry.term], &parts);
        }
        self.finish_frame();
        // Whatever fails from here on leaves the file in a state that nobody knows.
        self.broken = true;
        self.current.file.write_all_at(&self.frame, self.current.at)?;
        self.current.file.sync_data()?;
        self.broken = false;
        self.current.at += self.frame.len() as u64;
        self.next_sequence += 1;
        self.current.last_index = all().last().map_or(self.current.last_index, |entry| entry.index);
        if self.frame.capacity() > FRAME_BUFFER_KEPT {
            self.frame = Vec::new();
        }
        Ok(())
    }

    fn finish_frame(&mut self) {
        let body = self.frame.len() - FRAME_HEADER;
        let crc = crc32c::crc32c(&self.frame[FRAME_HEADER..]);
        self.frame[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        self.frame[4..8].copy_from_slice(&(body as u32).to_le_bytes());
        self.frame[8..16].copy_from_slice(&self.next_sequence.to_le_bytes());
        let header_crc = crc32c::crc32c(&self.frame[..16]);
        self.frame[16..20].copy_from_slice(&header_crc.to_le_bytes());
        self.frame[20..24].copy_from_slice(&crc.to_le_bytes());
        self.frame.push(CLOSING);
    }

    fn rotate(&mut self, need: u64) -> io::Result<()> {
        let capacity = self.segment_bytes.max(need + SEGMENT_HEADER as u64);
        let number = self.current.number + 1;
        let spare = if capacity == self.segment_bytes { self.spares.take() } else { None };
        let spare = spare.map_or_else(|| spares::make(self.dir.join(NEXT), capacity), Ok)?;
        let mut next = name_segment(spare, &self.dir, self.member, number, self.next_sequence, capacity)?;
        next.last_index = self.current.last_index;
        let Current { path, last_index, capacity: bytes, .. } = std::mem::replace(&mut self.current, next);
        self.closed.push_back(Closed { path, last_index, bytes });
        Ok(())
    }
}

fn frame_bytes(body: usize) -> u64 {
    (FRAME_HEADER + body + 1) as u64
}

fn put_record(out: &mut Vec<u8>, kind: u8, words: &[u64], parts: &[&[u8]]) {
    let len = words.len() * 8 + parts.iter().map(|part| part.len()).sum::<usize>();
    out.push(kind);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.log"))
}

/// The segments by number.
fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, OpenError> {
    let listing = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(failed("reading", dir))?,
    };
    let mut found = Vec::new();
    for entry in listing {
        let path = entry.map_err(failed("reading", dir))?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let number = number.ok_or_else(|| damaged(&path, "its name is not a segment's number"))?;
        found.push((number, path));
    }
    found.sort();
    for pair in found.windows(2) {
        if pair[1].0 != pair[0].0 + 1 {
            return Err(damaged(&pair[1].1, &format!("the segments between {} and this one are missing", pair[0].0)));
        }
    }
    Ok(found)
}

/// Gives a file of zeros its header and its name. A segment with a name therefore has a header.
fn name_segment(
    spare: Spare,
    dir: &Path,
    member: u64,
    number: u64,
    first_sequence: u64,
    capacity: u64,
) -> io::Result<Current> {
    let Spare { file, path: made } = spare;
    let mut header = Vec::with_capacity(SEGMENT_HEADER);
    header.extend_from_slice(SEGMENT_MAGIC);
    header.extend_from_slice(&u64::from(FORMAT).to_le_bytes());
    [member, number, first_sequence].iter().for_each(|word| header.extend_from_slice(&word.to_le_bytes()));
    header.resize(SEGMENT_HEADER - 4, 0);
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    file.write_all_at(&header, 0)?;
    file.sync_data()?;
    let path = segment_path(dir, number);
    fs::rename(made, &path)?;
    sync_dir(dir)?;
    Ok(Current { file, path, number, at: SEGMENT_HEADER as u64, capacity, last_index: 0 })
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { doing, path, source }
}

pub(crate) fn damaged(path: &Path, what: &str) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), what: what.to_owned() }
}

#[cfg(test)]
mod tests;
