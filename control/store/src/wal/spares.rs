//! What the log goes on in: files of zeros, made ahead of their need on a thread of their own, so that no frame waits for
//! them.
//!
//! Where there is a segment that nobody needs any more, a spare is made of it: zeros over what it holds take no new
//! blocks and nothing of the file system's journal, and its blocks need not be freed. A busy log then goes round in
//! the same few files, and its syncs have the disk to themselves.

use super::{Closed, sync_dir};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// How many spares are kept at most, however fast the log grows.
const SPARES_MAX: usize = 4;

/// The name of one that is made anew.
const MADE: &str = "spare.tmp";

/// How many zeros are given to the disk at once.
const ZEROS_BETWEEN_SYNCS: u64 = 1 << 20;

/// A file of zeros that are durable; its name is not.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

/// The spares, and the segments that shall become some or go.
#[derive(Debug)]
pub(super) struct Spares {
    dir: PathBuf,
    segment_bytes: u64,
    ready: VecDeque<Spare>,
    /// Oldest first; the first stays here until it is gone from the disk.
    retired: VecDeque<Closed>,
    work: Option<Work>,
    /// Why the last work failed.
    failed: Option<String>,
    /// How many to keep: as many as were taken between the last two notes, or one less than before.
    wanted: usize,
    taken: usize,
}

#[derive(Debug)]
struct Work {
    /// It deals with the first of those that are retired.
    retires: bool,
    thread: JoinHandle<io::Result<Option<Spare>>>,
}

impl Spares {
    pub(super) fn new(dir: &Path, segment_bytes: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            segment_bytes,
            ready: VecDeque::new(),
            retired: VecDeque::new(),
            work: None,
            failed: None,
            wanted: 1,
            taken: 0,
        }
    }

    /// How many bytes of log fit into those that are there.
    pub(super) fn room(&self) -> u64 {
        self.ready.len() as u64 * self.segment_bytes
    }

    /// What all of it takes on the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.room() + self.retired.iter().map(|segment| segment.bytes).sum::<u64>()
    }

    /// Takes over a segment that nobody needs any more; later ones come later.
    pub(super) fn retire(&mut self, segment: Closed) {
        self.retired.push_back(segment);
    }

    /// The object database has flushed: as many segments as were taken since the last time are likely to be taken
    /// until the next.
    pub(super) fn note(&mut self) {
        self.wanted = self.taken.max(self.wanted - 1).clamp(1, SPARES_MAX);
        self.taken = 0;
    }

    /// Begins what is to be done; makes a new file only if one is `needed`. `true`: look again soon. An error: there is
    /// no room, or a file does not go.
    pub(super) fn tend(&mut self, needed: bool) -> Result<bool, String> {
        if self.work.as_ref().is_some_and(|work| work.thread.is_finished()) {
            self.wait();
        }
        if self.work.is_none() && self.failed.is_none() {
            self.begin(needed);
        }
        match &self.failed {
            Some(why) => Err(why.clone()),
            None => Ok(self.work.is_some()),
        }
    }

    /// Tries again what failed.
    pub(super) fn retry(&mut self) {
        self.failed = None;
    }

    /// One of those that are ready, or about to be.
    pub(super) fn take(&mut self) -> Option<Spare> {
        self.failed = None;
        while self.ready.is_empty() && self.failed.is_none() {
            if self.work.is_none() {
                self.begin(false);
            }
            if self.work.is_none() {
                break;
            }
            self.wait();
        }
        let spare = self.ready.pop_front()?;
        self.taken += 1;
        Some(spare)
    }

    fn begin(&mut self, needed: bool) {
        let (dir, bytes) = (self.dir.clone(), self.segment_bytes);
        if let Some(Closed { path, bytes: size, .. }) = self.retired.front() {
            let old = path.clone();
            if *size == bytes && self.ready.len() < self.wanted {
                self.spawn(true, move || recycle(&dir, &old, bytes));
            } else {
                self.spawn(true, move || remove(&dir, &old).map(|()| None));
            }
        } else if self.ready.is_empty() && needed {
            self.spawn(false, move || make(dir.join(MADE), bytes).map(Some));
        } else if self.ready.len() > self.wanted
            && let Some(Spare { path, .. }) = self.ready.pop_back()
        {
            self.spawn(false, move || fs::remove_file(path).map(|()| None));
        }
    }

    fn spawn(&mut self, retires: bool, work: impl FnOnce() -> io::Result<Option<Spare>> + Send + 'static) {
        match std::thread::Builder::new().name("dhow-wal-spare".into()).spawn(work) {
            Ok(thread) => self.work = Some(Work { retires, thread }),
            Err(error) => self.failed = Some(error.to_string()),
        }
    }

    /// Waits for what is being done, if anything is.
    fn wait(&mut self) {
        let Some(Work { retires, thread }) = self.work.take() else { return };
        let done = thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes segments panicked")));
        match done {
            Ok(spare) => {
                self.ready.extend(spare);
                if retires {
                    self.retired.pop_front();
                }
            }
            Err(error) => self.failed = Some(error.to_string()),
        }
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.wait();
        for Closed { path, .. } in self.retired.drain(..) {
            // What does not go is found again by the next start, with all that came after it.
            if remove(&self.dir, &path).is_err() {
                break;
            }
        }
        for Spare { path, .. } in self.ready.drain(..) {
            let _ = fs::remove_file(path);
        }
    }
}

/// A new file of zeros; none if there is no room for all of it.
pub(super) fn make(path: PathBuf, bytes: u64) -> io::Result<Spare> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    if let Err(error) = zeros(&file, bytes) {
        // Half a file would take the room that someone may be about to free.
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    Ok(Spare { file, path })
}

/// Makes a spare of a segment, or none if it cannot be written. Its name is durably gone before its content goes: a power
/// cut leaves it as it was, or no segment.
fn recycle(dir: &Path, old: &Path, bytes: u64) -> io::Result<Option<Spare>> {
    let path = old.with_extension("tmp");
    fs::rename(old, &path)?;
    let file = sync_dir(dir).and_then(|()| OpenOptions::new().read(true).write(true).open(&path));
    let spare = file.and_then(|file| {
        zeros(&file, bytes)?;
        Ok(Spare { file, path: path.clone() })
    });
    match spare {
        Ok(spare) => Ok(Some(spare)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a segment of the log is not used again");
            remove(dir, &path).map(|()| None)
        }
    }
}

/// One after the other: a power cut that undoes one removal and not a later one would leave a hole.
fn remove(dir: &Path, path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_dir(dir),
    }
}

/// Piece by piece, so that a group commit that comes in between waits for no more than one.
fn zeros(file: &File, bytes: u64) -> io::Result<()> {
    let block = vec![0; ZEROS_BETWEEN_SYNCS.min(bytes) as usize];
    let mut at = 0;
    while at < bytes {
        let part = (bytes - at).min(block.len() as u64);
        file.write_all_at(&block[..part as usize], at)?;
        file.sync_data()?;
        at += part;
    }
    file.sync_all()
}
