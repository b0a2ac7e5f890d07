//! Reading the log back, and judging how it ends.

use super::{
    CHECKPOINT, CHECKPOINT_1, Checkpoint, Contents, ENTRY, ENTRY_1, FORMAT, FRAME_HEADER, FRAME_MAGIC, HARD_STATE,
    MEMBERS, NORMAL, RESET, SECTOR, SEGMENT_HEADER, SEGMENT_MAGIC, damaged, failed,
};
use crate::error::OpenError;
use bytes::Bytes;
use dhow_consensus::{Entry, EntryKind, HardState, Members, Position};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A segment that has been read, open.
pub(super) struct Segment {
    pub(super) file: File,
    /// Where its frames end.
    pub(super) end: u64,
    pub(super) capacity: u64,
}

/// Reads segments in order.
pub(super) struct Reader {
    member: u64,
    after: u64,
    contents: Contents,
    /// The one that must come next.
    sequence: Option<u64>,
    pub(super) last_index: u64,
    /// Of the latest segment.
    pub(super) format: u32,
    /// The frame that is being read is the log's first.
    is_origin: bool,
}

impl Reader {
    pub(super) fn new(member: u64, after: u64) -> Self {
        Self {
            member,
            after,
            contents: Contents::default(),
            sequence: None,
            last_index: 0,
            format: FORMAT,
            is_origin: false,
        }
    }

    /// What was read, and the sequence that comes next. `from_first`: the first segment was among those read.
    pub(super) fn finish(mut self, from_first: bool) -> (Contents, u64) {
        self.contents.last = self.last_index;
        self.contents.complete = from_first && self.contents.reset.is_none();
        (self.contents, self.sequence.unwrap_or(1))
    }

    /// Takes in a segment; gives it back open.
    pub(super) fn segment(&mut self, path: &Path, number: u64, is_last: bool) -> Result<Segment, OpenError> {
        let bytes = Bytes::from(fs::read(path).map_err(failed("reading", path))?);
        let first = self.header(path, &bytes, number)?;
        let mut sequence = match self.sequence {
            Some(expected) if expected != first => {
                return Err(damaged(path, &format!("it begins with record {first}, not with record {expected}")));
            }
            _ => first,
        };
        let mut at = SEGMENT_HEADER;
        while let Some(body) = frame(&bytes, at, sequence) {
            self.is_origin = sequence == 1;
            self.body(path, bytes.slice(body.clone()))?;
            at = (body.end + 1).min(bytes.len());
            sequence += 1;
        }
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("opening", path))?;
        let end = judge(&bytes, at, sequence);
        match end {
            End::Clean => {}
            End::Torn if is_last => {
                tracing::warn!(segment = %path.display(), at, "wiped the unfinished end of the log");
                wipe(&file, at as u64, bytes.len() as u64).map_err(failed("wiping the end of", path))?;
            }
            End::Torn => {
                return Err(damaged(path, &format!("it breaks off at byte {at}, and another segment follows")));
            }
            End::Damaged(what) => return Err(damaged(path, &format!("at byte {at}, {what}"))),
        }
        if is_last {
            // A frame that the last process wrote may still be in memory only, and it counts from now on.
            file.sync_data().map_err(failed("syncing", path))?;
        }
        self.sequence = Some(sequence);
        Ok(Segment { file, end: at as u64, capacity: bytes.len() as u64 })
    }

    fn header(&mut self, path: &Path, bytes: &[u8], number: u64) -> Result<u64, OpenError> {
        let header = bytes.get(..SEGMENT_HEADER).ok_or_else(|| damaged(path, "it is too short"))?;
        let (content, crc) = header.split_at(SEGMENT_HEADER - 4);
        if !content.starts_with(SEGMENT_MAGIC) {
            return Err(damaged(path, "it does not begin as a log segment does"));
        }
        if crc32c::crc32c(content).to_le_bytes() != *crc {
            return Err(damaged(path, "its header does not match its checksum"));
        }
        let word = |at: usize| u64_at(content, at).unwrap_or_default();
        let format = u32::try_from(word(8)).unwrap_or(u32::MAX);
        if !(1..=FORMAT).contains(&format) {
            return Err(OpenError::Newer { path: path.to_owned(), found: format, known: FORMAT });
        }
        self.format = format;
        if word(16) != self.member {
            let dir = path.parent().and_then(Path::parent).unwrap_or(path).to_owned();
            return Err(OpenError::OtherMember { dir, found: word(16), wanted: self.member });
        }
        if word(24) != number {
            return Err(damaged(path, &format!("it is segment {} by its header", word(24))));
        }
        Ok(word(32))
    }

    fn body(&mut self, path: &Path, mut body: Bytes) -> Result<(), OpenError> {
        let broken = || damaged(path, "a record does not have the form that its checksum vouches for");
        while !body.is_empty() {
            let kind = body[0];
            let len = body.get(1..5).and_then(|len| len.try_into().ok()).map(u32::from_le_bytes).ok_or_else(broken)?;
            if body.len() < 5 + len as usize {
                return Err(broken());
            }
            let payload = body.split_to(5 + len as usize).split_off(5);
            let word = |at: usize| u64_at(&payload, at * 8).ok_or_else(broken);
            match kind {
                ENTRY | ENTRY_1 => {
                    let (kind, tag, data) = entry_parts(kind, &payload).ok_or_else(broken)?;
                    self.entry(path, Entry { index: word(0)?, term: word(1)?, kind, tag, data })?;
                }
                HARD_STATE => self.contents.hard_state = HardState { term: word(0)?, vote: word(1)?, commit: word(2)? },
                CHECKPOINT | CHECKPOINT_1 => {
                    let members = match kind {
                        CHECKPOINT => payload.get(32..).and_then(Members::decode).ok_or_else(broken)?,
                        _ => Members::founded_by(self.member),
                    };
                    let applied = Position { index: word(0)?, term: word(1)? };
                    self.checkpoint(Checkpoint { applied, revision: word(2)?, hash: word(3)?, members });
                }
                RESET => self.reset(Position { index: word(0)?, term: word(1)? }),
                _ => return Err(damaged(path, &format!("it has a record of the unknown type {kind}"))),
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint) {
        if self.is_origin {
            self.contents.origin = Some(checkpoint.clone());
        }
        self.contents.checkpoint = Some(checkpoint);
    }

    fn reset(&mut self, position: Position) {
        self.last_index = position.index;
        self.contents.entries.clear();
        (self.contents.reset, self.contents.first, self.contents.origin) = (Some(position), None, None);
    }

    fn entry(&mut self, path: &Path, entry: Entry) -> Result<(), OpenError> {
        let begun = self.contents.first.is_some() || self.contents.reset.is_some();
        if begun && entry.index > self.last_index + 1 {
            let Entry { index, .. } = entry;
            return Err(damaged(path, &format!("entry {index} follows entry {}", self.last_index)));
        }
        self.contents.first = Some(self.contents.first.map_or(entry.index, |first| first.min(entry.index)));
        self.last_index = entry.index;
        // A new leader's entries replace those that an old one could not get committed.
        while self.contents.entries.last().is_some_and(|last| last.index >= entry.index) {
            self.contents.entries.pop();
        }
        if entry.index > self.after {
            // Copies, for slices would keep the whole segment in memory.
            let (tag, data) = (Bytes::copy_from_slice(&entry.tag), Bytes::copy_from_slice(&entry.data));
            self.contents.entries.push(Entry { tag, data, ..entry });
        }
        Ok(())
    }
}

fn entry_parts(record: u8, payload: &Bytes) -> Option<(EntryKind, Bytes, Bytes)> {
    if record == ENTRY_1 {
        return Some((EntryKind::Normal, Bytes::new(), payload.slice(payload.len().min(16)..)));
    }
    let kind = match *payload.get(16)? {
        NORMAL => EntryKind::Normal,
        MEMBERS => EntryKind::Members,
        _ => return None,
    };
    let data_at = 18 + usize::from(*payload.get(17)?);
    (data_at <= payload.len()).then(|| (kind, payload.slice(18..data_at), payload.slice(data_at..)))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The length of the body and the sequence, if a header stands at `at`.
fn frame_header(bytes: &[u8], at: usize) -> Option<(usize, u64)> {
    let header = bytes.get(at..at + FRAME_HEADER)?;
    let valid = u32_at(header, 0)? == FRAME_MAGIC && u32_at(header, 16)? == crc32c::crc32c(&header[..16]);
    valid.then_some((u32_at(header, 4)? as usize, u64_at(header, 8)?))
}

/// Where the body is, if the frame of this sequence stands whole at `at`. The closing byte may be missing: it only
/// helps to judge a frame that does not check.
fn frame(bytes: &[u8], at: usize, sequence: u64) -> Option<std::ops::Range<usize>> {
    let (len, found) = frame_header(bytes, at)?;
    let start = at + FRAME_HEADER;
    let body = bytes.get(start..start.checked_add(len)?)?;
    (found == sequence && u32_at(bytes, at + 20)? == crc32c::crc32c(body)).then_some(start..start + len)
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Clean,
    Torn,
    Damaged(&'static str),
}

/// What it means that no whole frame of this sequence stands at `at`.
fn judge(bytes: &[u8], at: usize, sequence: u64) -> End {
    let rest = &bytes[at..];
    let Some(used) = rest.iter().rposition(|byte| *byte != 0).map(|last| last + 1) else { return End::Clean };
    if later_frame(bytes, at, sequence) {
        return End::Damaged("a record is unreadable, and later ones follow");
    }
    let Some((len, found)) = frame_header(bytes, at) else {
        let header = &rest[..rest.len().min(FRAME_HEADER)];
        let unwritten = used < FRAME_HEADER || header.iter().all(|byte| *byte == 0);
        let torn = unwritten || has_empty_sector(bytes, at, at + header.len());
        return if torn { End::Torn } else { End::Damaged("the head of the last record does not match its checksum") };
    };
    if found != sequence {
        return End::Damaged("an older record stands where the log ends");
    }
    let end = (at + FRAME_HEADER).saturating_add(len);
    let closed = bytes.get(end).is_some_and(|byte| *byte != 0);
    if closed && !has_empty_sector(bytes, at, end) {
        return End::Damaged("the last record does not match its checksum");
    }
    End::Torn
}

fn later_frame(bytes: &[u8], at: usize, sequence: u64) -> bool {
    let magic = FRAME_MAGIC.to_le_bytes();
    let starts =
        bytes[at..].windows(4).enumerate().filter(|(_, window)| *window == magic).map(|(offset, _)| at + offset);
    starts.into_iter().any(|start| frame_header(bytes, start).is_some_and(|(_, found)| found > sequence))
}

/// Whether a sector's share of `start..end` (to the sector's own end) is all zeros: it was never written.
fn has_empty_sector(bytes: &[u8], start: usize, end: usize) -> bool {
    let mut from = start;
    while from < end {
        let to = (from / SECTOR + 1) * SECTOR;
        if bytes[from.min(bytes.len())..to.min(bytes.len())].iter().all(|byte| *byte == 0) {
            return true;
        }
        from = to;
    }
    false
}

fn wipe(file: &File, from: u64, to: u64) -> io::Result<()> {
    let block = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let part = (to - at).min(block.len() as u64);
        file.write_all_at(&block[..part as usize], at)?;
        at += part;
    }
    file.sync_all()
}
