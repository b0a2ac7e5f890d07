//! The write-ahead log: numbered segments of preallocated zeros, filled from the front by frames.
//!
//! A frame is one group commit: one `pwrite`, one `fdatasync`. Only the last frame can therefore be torn, and a frame is
//! never written before the one before it is durable. That is how reading tells the end of the log from damage:
//!
//! ```text
//! segment  = header (64 bytes: magic, format, member, number, first sequence, crc) frame… zeros
//! frame    = magic u32 | length u32 | sequence u64 | crc of these u32 | crc of the body u32 | body | 0xA5
//! body     = record…          record = type u8 | length u32 | payload          all little endian
//! ```
//!
//! * Sequences grow by one; a hole is damage.
//! * A frame that does not check, with a valid later frame behind it, is damage.
//! * A last frame that does not check is torn if a part of it was never written: a 512-byte sector of zeros, zeros
//!   where the closing byte should be, or the end of the file. It was not acknowledged; it is wiped. If all of it
//!   was written, some of it has changed since, and that is damage.
//!
//! Damage stops the member: it may have been acknowledged.

use crate::error::OpenError;
use bytes::Bytes;
use dhow_consensus::{Entry, HardState, Position};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// The format that this version writes and the newest that it reads.
const FORMAT: u32 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"DHOWWAL\n";
const SEGMENT_HEADER: usize = 64;
const FRAME_MAGIC: u32 = 0x6d72_6664;
const FRAME_HEADER: usize = 24;
const CLOSING: u8 = 0xa5;
const SECTOR: usize = 512;

const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;
const CHECKPOINT: u8 = 3;

/// The first segment of a new store is small, so that a fresh cluster starts without writing 64 MiB of zeros.
const FIRST_SEGMENT_BYTES: u64 = 4 << 20;

/// Closed segments that stay even when the object database covers them: if it silently falls back to an older epoch,
/// the log still reaches over the gap.
const SEGMENTS_KEPT: usize = 1;

/// What the object database held when it was last flushed; written here, outside of it, to be compared at the next
/// start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) applied: Position,
    pub(crate) revision: u64,
    /// The hash of the state.
    pub(crate) hash: u64,
}

/// What the log holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Those behind the index that was asked for.
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: HardState,
    /// The latest one.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// The oldest entry that the log still has; `None` if it has none.
    pub(crate) first: Option<u64>,
    /// The newest entry, if there is one.
    pub(crate) last: u64,
    /// Nothing was ever dropped from the front.
    pub(crate) complete: bool,
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
    /// The next segment, made ahead of its need.
    spare: Option<JoinHandle<io::Result<File>>>,
    frame: Vec<u8>,
    broken: bool,
}

#[derive(Debug)]
struct Closed {
    path: PathBuf,
    last_index: u64,
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
            let (file, end, capacity) = reader.segment(path, *number, is_last)?;
            let last_index = reader.last_index;
            if is_last {
                current = Some(Current { file, path: path.clone(), number: *number, at: end, capacity, last_index });
            } else {
                closed.push_back(Closed { path: path.clone(), last_index });
            }
        }
        let current = match current {
            Some(current) => current,
            None => {
                let path = segment_path(dir, 1);
                let capacity = segment_bytes.min(FIRST_SEGMENT_BYTES).max(SEGMENT_HEADER as u64);
                make_segment(dir, member, 1, 1, capacity).map_err(failed("creating", &path))?
            }
        };
        let mut contents = reader.contents;
        contents.last = reader.last_index;
        contents.complete = found.first().is_none_or(|(number, _)| *number == 1);
        let wal = Self {
            dir: dir.to_owned(),
            member,
            segment_bytes,
            closed,
            current,
            next_sequence: reader.sequence.unwrap_or(1),
            hard_state: contents.hard_state,
            checkpoint: contents.checkpoint,
            spare: None,
            frame: Vec::new(),
            broken: false,
        };
        Ok((wal, contents))
    }

    /// Makes sure that a frame of this many bytes fits, so that a full disk is found before anything is promised.
    pub(crate) fn reserve(&mut self, body_bytes: usize) -> io::Result<()> {
        self.check()?;
        let need = frame_bytes(body_bytes);
        if self.current.at + need <= self.current.capacity {
            return Ok(());
        }
        self.rotate(need)
    }

    /// Writes entries and hard state durably, in one frame.
    pub(crate) fn append(&mut self, entries: &[Entry], hard_state: HardState) -> io::Result<()> {
        self.hard_state = hard_state;
        self.write(entries, Some(hard_state), None)
    }

    /// Notes durably what the object database has flushed, and drops the segments that nobody needs any more.
    pub(crate) fn checkpoint(&mut self, checkpoint: Checkpoint) -> io::Result<()> {
        self.checkpoint = Some(checkpoint);
        self.write(&[], None, Some(checkpoint))?;
        let mut dropped = false;
        while self.closed.len() > SEGMENTS_KEPT
            && self.closed.front().is_some_and(|first| first.last_index <= checkpoint.applied.index)
        {
            if let Some(first) = self.closed.pop_front() {
                fs::remove_file(&first.path)?;
                dropped = true;
            }
        }
        if dropped { sync_dir(&self.dir) } else { Ok(()) }
    }

    fn check(&self) -> io::Result<()> {
        if self.broken { Err(io::Error::other("an earlier write to the log failed")) } else { Ok(()) }
    }

    fn write(
        &mut self,
        entries: &[Entry],
        hard_state: Option<HardState>,
        checkpoint: Option<Checkpoint>,
    ) -> io::Result<()> {
        let entry_bytes: usize = entries.iter().map(|entry| entry.data.len() + 21).sum();
        self.reserve(entry_bytes + 128)?;
        self.frame.clear();
        self.frame.resize(FRAME_HEADER, 0);
        // The first frame of a segment repeats what the dropped ones before it may have held.
        let is_first = self.current.at == SEGMENT_HEADER as u64;
        if let Some(hard_state) = hard_state.or(is_first.then_some(self.hard_state)) {
            put_record(&mut self.frame, HARD_STATE, &[hard_state.term, hard_state.vote, hard_state.commit], &[]);
        }
        if let Some(checkpoint) = checkpoint.or(self.checkpoint.filter(|_| is_first)) {
            let Checkpoint { applied, revision, hash } = checkpoint;
            put_record(&mut self.frame, CHECKPOINT, &[applied.index, applied.term, revision, hash], &[]);
        }
        for entry in entries {
            put_record(&mut self.frame, ENTRY, &[entry.index, entry.term], &entry.data);
        }
        self.finish_frame();
        // Whatever fails from here on leaves the file in a state that nobody knows.
        self.broken = true;
        self.current.file.write_all_at(&self.frame, self.current.at)?;
        self.current.file.sync_data()?;
        self.broken = false;
        self.current.at += self.frame.len() as u64;
        self.next_sequence += 1;
        self.current.last_index = entries.last().map_or(self.current.last_index, |entry| entry.index);
        self.prepare_spare();
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

    /// Writing zeros takes a while: it is begun when half of the segment is used.
    fn prepare_spare(&mut self) {
        if self.spare.is_none() && self.current.at > self.current.capacity / 2 {
            let (path, bytes) = (self.dir.join("spare.tmp"), self.segment_bytes);
            let work = move || zeros(&path, bytes);
            self.spare = std::thread::Builder::new().name("dhow-wal-spare".into()).spawn(work).ok();
        }
    }

    fn rotate(&mut self, need: u64) -> io::Result<()> {
        let spare = self.spare.take().and_then(|thread| thread.join().ok()).and_then(Result::ok);
        let capacity = self.segment_bytes.max(need + SEGMENT_HEADER as u64);
        let number = self.current.number + 1;
        let made = match spare {
            Some(file) if capacity == self.segment_bytes => {
                name_segment(file, &self.dir, "spare.tmp", self.member, number, self.next_sequence, capacity)
            }
            _ => make_segment(&self.dir, self.member, number, self.next_sequence, capacity),
        };
        let mut next = made.inspect_err(|_| {
            // Half a file would take the room that someone may be about to free.
            let _ = fs::remove_file(self.dir.join("spare.tmp"));
            let _ = fs::remove_file(self.dir.join("next.tmp"));
        })?;
        next.last_index = self.current.last_index;
        let Current { path, last_index, .. } = std::mem::replace(&mut self.current, next);
        self.closed.push_back(Closed { path, last_index });
        Ok(())
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        if let Some(thread) = self.spare.take() {
            let _ = thread.join();
            let _ = fs::remove_file(self.dir.join("spare.tmp"));
        }
    }
}

fn frame_bytes(body: usize) -> u64 {
    (FRAME_HEADER + body + 1) as u64
}

fn put_record(out: &mut Vec<u8>, kind: u8, words: &[u64], data: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&((words.len() * 8 + data.len()) as u32).to_le_bytes());
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    out.extend_from_slice(data);
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

fn zeros(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    let block = vec![0; (1 << 20).min(bytes as usize)];
    let mut at = 0;
    while at < bytes {
        let part = (bytes - at).min(block.len() as u64);
        file.write_all_at(&block[..part as usize], at)?;
        at += part;
    }
    file.sync_all()?;
    Ok(file)
}

fn make_segment(dir: &Path, member: u64, number: u64, first_sequence: u64, capacity: u64) -> io::Result<Current> {
    let file = zeros(&dir.join("next.tmp"), capacity)?;
    name_segment(file, dir, "next.tmp", member, number, first_sequence, capacity)
}

/// Gives a file of zeros its header and its name. A segment with a name therefore has a header.
fn name_segment(
    file: File,
    dir: &Path,
    from: &str,
    member: u64,
    number: u64,
    first_sequence: u64,
    capacity: u64,
) -> io::Result<Current> {
    let mut header = Vec::with_capacity(SEGMENT_HEADER);
    header.extend_from_slice(SEGMENT_MAGIC);
    header.extend_from_slice(&u64::from(FORMAT).to_le_bytes());
    [member, number, first_sequence].iter().for_each(|word| header.extend_from_slice(&word.to_le_bytes()));
    header.resize(SEGMENT_HEADER - 4, 0);
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    file.write_all_at(&header, 0)?;
    file.sync_data()?;
    let path = segment_path(dir, number);
    fs::rename(dir.join(from), &path)?;
    sync_dir(dir)?;
    Ok(Current { file, path, number, at: SEGMENT_HEADER as u64, capacity, last_index: 0 })
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads segments in order.
struct Reader {
    member: u64,
    after: u64,
    contents: Contents,
    /// The one that must come next.
    sequence: Option<u64>,
    last_index: u64,
}

impl Reader {
    fn new(member: u64, after: u64) -> Self {
        Self { member, after, contents: Contents::default(), sequence: None, last_index: 0 }
    }

    /// Takes in a segment; gives it back open, with the end of its frames and its size.
    fn segment(&mut self, path: &Path, number: u64, is_last: bool) -> Result<(File, u64, u64), OpenError> {
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
        Ok((file, at as u64, bytes.len() as u64))
    }

    fn header(&self, path: &Path, bytes: &[u8], number: u64) -> Result<u64, OpenError> {
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
        if format != FORMAT {
            return Err(OpenError::Newer { path: path.to_owned(), found: format, known: FORMAT });
        }
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
                ENTRY => {
                    let (index, term) = (word(0)?, word(1)?);
                    self.entry(path, Entry { index, term, data: payload.slice(16..) })?;
                }
                HARD_STATE => self.contents.hard_state = HardState { term: word(0)?, vote: word(1)?, commit: word(2)? },
                CHECKPOINT => {
                    let applied = Position { index: word(0)?, term: word(1)? };
                    self.contents.checkpoint = Some(Checkpoint { applied, revision: word(2)?, hash: word(3)? });
                }
                _ => return Err(damaged(path, &format!("it has a record of the unknown type {kind}"))),
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, entry: Entry) -> Result<(), OpenError> {
        if self.contents.first.is_some() && entry.index > self.last_index + 1 {
            let Entry { index, .. } = entry;
            return Err(damaged(path, &format!("entry {index} follows entry {}", self.last_index)));
        }
        self.contents.first.get_or_insert(entry.index);
        self.last_index = entry.index;
        // A new leader's entries replace those that an old one could not get committed.
        while self.contents.entries.last().is_some_and(|last| last.index >= entry.index) {
            self.contents.entries.pop();
        }
        if entry.index > self.after {
            // A copy, for a slice would keep the whole segment in memory.
            let data = Bytes::copy_from_slice(&entry.data);
            self.contents.entries.push(Entry { data, ..entry });
        }
        Ok(())
    }
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

pub(crate) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { doing, path, source }
}

pub(crate) fn damaged(path: &Path, what: &str) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), what: what.to_owned() }
}

#[cfg(test)]
mod tests;
