//! The object database: sled, which holds the state as of some log position so that a start need not replay the whole
//! log. Never the only copy of the truth: the log holds all that came later, and what it must contain.
//!
//! sled 1.0 alpha is used within the bounds of what was seen to hold:
//!
//! * One database, one thread that writes it, no background flusher: a flush between two commits is atomic over
//!   everything, so objects and the position they belong to never part.
//! * Only `insert`, single `remove`s (batched ones leave empty leaves behind), and open-ended iteration (bounded ranges
//!   walk to the end of the tree).
//! * A failed flush leaves a database whose every further flush, and whose drop, hangs. It is then forgotten, not
//!   dropped, and the replica stops taking writes.
//! * On damaged files it may return an error, panic, or wait for itself for ever. [`Objects::load`] turns all three into
//!   an error.
//! * A damaged metadata log is cut short silently. The position and the state's hash are therefore compared with those
//!   in our log.
//!
//! An image from another member becomes a database of its own beside the present one, and takes its place when it is
//! whole: a directory of the name [`NEXT`] is complete, one of the name [`MAKING`] is not.

use crate::error::OpenError;
use crate::wal::{Checkpoint, damaged, failed, sync_dir};
use bytes::Bytes;
use dhow_consensus::{Members, Position};
use dhow_state::{Key, Object};
use dhow_types::{Revision, Time};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// The format that this version writes and the newest that it reads. Format 1 had no members in its head.
const FORMAT: u64 = 2;

/// Set in an object's revision if the time of its expiry follows: most objects do not expire.
const EXPIRES: u64 = 1 << 63;

/// Of the words in the head: the database came as an image, and the log from before it does not count.
const INSTALLED: u64 = 1;

/// A database that is complete and waits to take the place of the present one.
const NEXT: &str = "objects.next";

/// A database that is being made.
const MAKING: &str = "objects.tmp";

/// Entries in a leaf. Fixed at creation. A dirty leaf is rewritten whole, so small ones write less for scattered
/// updates; 64 was the best of those measured.
const LEAF: usize = 64;

/// The database is read only at a start, so its cache serves writing alone.
const CACHE_BYTES: usize = 16 << 20;

/// Fast compression: objects shrink to a third already at this level.
const COMPRESSION: i32 = 1;

const META: &[u8] = b"meta";
const OBJECT: u8 = b'o';

/// Objects that changed since they were last written; `None` for those that are gone.
pub(crate) type Dirty = BTreeMap<Key, Option<Arc<Object>>>;

/// The open database.
pub(crate) struct Objects {
    db: ManuallyDrop<sled::Db<LEAF>>,
    member: u64,
    usable: bool,
}

/// What the database held when it was last flushed.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) objects: Vec<Object>,
    /// It was an image from another member, and nothing has been flushed since.
    pub(crate) installed: bool,
}

impl Objects {
    /// Where the database is in a data directory.
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join("objects")
    }

    /// Ends what a process before has begun: an image that is complete takes its place, one that is not is removed.
    pub(crate) fn settle(dir: &Path) -> Result<(), OpenError> {
        let (making, next, path) = (dir.join(MAKING), dir.join(NEXT), Self::path(dir));
        for gone in [Some(&making), next.exists().then_some(&path)].into_iter().flatten() {
            if gone.exists() {
                fs::remove_dir_all(gone).map_err(failed("removing", gone))?;
            }
        }
        if next.exists() {
            fs::rename(&next, &path).map_err(failed("renaming", &next))?;
        }
        sync_dir(dir).map_err(failed("syncing", dir))
    }

    /// Puts a database of exactly these objects in the place of this one, or of none. After an error, the present
    /// one may be gone, and what is there is what [`settle`](Objects::settle) leaves.
    pub(crate) fn install(
        dir: &Path,
        member: u64,
        present: Option<Objects>,
        objects: &[Arc<Object>],
        checkpoint: &Checkpoint,
    ) -> Result<Self, OpenError> {
        Self::settle(dir)?;
        let making = dir.join(MAKING);
        let made = Self::open(&making, member)?;
        let fill = || -> io::Result<()> {
            objects.iter().try_for_each(|object| made.put(object))?;
            made.flush_head(checkpoint, INSTALLED)
        };
        if let Err(error) = guard(fill) {
            made.forget();
            return Err(failed("writing", &making)(error));
        }
        drop(made);
        // Nobody writes the present one any more, and it is about to be deleted: it need not be flushed.
        drop(present);
        fs::rename(&making, dir.join(NEXT)).map_err(failed("renaming", &making))?;
        sync_dir(dir).map_err(failed("syncing", dir))?;
        Self::settle(dir)?;
        Self::open(&Self::path(dir), member)
    }

    /// Opens or makes the database. sled may panic on files that it does not understand; that is damage, too.
    pub(crate) fn open(path: &Path, member: u64) -> Result<Self, OpenError> {
        let config = sled::Config::new()
            .path(path)
            .flush_every_ms(None)
            .cache_capacity_bytes(CACHE_BYTES)
            .zstd_compression_level(COMPRESSION);
        let db = guard(|| config.open::<LEAF>()).map_err(|error| from_sled("opening", path, error))?;
        // sled does not sync all that it makes when it opens: without its settings, nothing of it can be read again.
        sync_below(path).and_then(|()| sync_dir(path.parent().unwrap_or(path))).map_err(failed("syncing", path))?;
        Ok(Self { db: ManuallyDrop::new(db), member, usable: true })
    }

    /// Opens the database and reads everything, on a thread of its own that is left behind if it makes no progress for
    /// as long as `patience`.
    pub(crate) fn load(path: &Path, member: u64, patience: Duration) -> Result<(Self, Option<Image>), OpenError> {
        let progress = Arc::new(AtomicU64::new(0));
        let (sender, answer) = mpsc::channel();
        let (counter, own_path) = (progress.clone(), path.to_owned());
        let work = move || {
            let loaded = Self::open(&own_path, member).and_then(|objects| match objects.read(&own_path, &counter) {
                Ok(image) => Ok((objects, image)),
                Err(error) => {
                    objects.forget();
                    Err(error)
                }
            });
            // Nobody is there any more if patience ran out just now.
            if let Err(mpsc::SendError(Ok((objects, _)))) = sender.send(loaded) {
                objects.forget();
            }
        };
        std::thread::Builder::new()
            .name("dhow-objects-load".into())
            .spawn(work)
            .map_err(failed("starting a thread for", path))?;
        let mut seen = 0;
        loop {
            match answer.recv_timeout(patience) {
                Ok(loaded) => return loaded,
                Err(RecvTimeoutError::Disconnected) => return Err(damaged(path, "the object database panicked")),
                Err(RecvTimeoutError::Timeout) => {
                    let now = progress.load(Ordering::Relaxed);
                    if now == seen {
                        return Err(damaged(path, &format!("it did not answer within {} s", patience.as_secs())));
                    }
                    seen = now;
                }
            }
        }
    }

    /// Reads everything; `None` if nothing was ever flushed. `progress` counts objects.
    fn read(&self, path: &Path, progress: &AtomicU64) -> Result<Option<Image>, OpenError> {
        let meta = guard(|| self.db.get(META)).map_err(|error| from_sled("reading", path, error))?;
        let Some(meta) = meta else { return Ok(None) };
        let not_ours = || damaged(path, "its head does not have the form of this version");
        let (head, rest) = meta.split_at_checked(48).ok_or_else(not_ours)?;
        let words: Vec<u64> = head.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
        let [format, member, index, term, revision, hash] = words[..] else { return Err(not_ours()) };
        let (flags, members) = match format {
            1 => (0, Some(Members::founded_by(self.member))),
            FORMAT => {
                let (flags, members) = rest.split_first_chunk().ok_or_else(not_ours)?;
                (u64::from_be_bytes(*flags), Members::decode(members))
            }
            0 => return Err(not_ours()),
            found => return Err(OpenError::Newer { path: path.to_owned(), found: found as u32, known: FORMAT as u32 }),
        };
        let members = members.ok_or_else(not_ours)?;
        if member != self.member {
            let dir = path.parent().unwrap_or(path).to_owned();
            return Err(OpenError::OtherMember { dir, found: member, wanted: self.member });
        }
        let objects = guard(|| self.read_objects(progress)).map_err(|error| from_sled("reading", path, error))?;
        let checkpoint = Checkpoint { applied: Position { index, term }, revision, hash, members };
        Ok(Some(Image { checkpoint, objects, installed: flags & INSTALLED != 0 }))
    }

    fn read_objects(&self, progress: &AtomicU64) -> io::Result<Vec<Object>> {
        let mut objects = Vec::new();
        for pair in self.db.range(vec![OBJECT]..) {
            let (key, value) = pair?;
            progress.fetch_add(1, Ordering::Relaxed);
            if key.first() != Some(&OBJECT) {
                break;
            }
            let unreadable =
                || io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is unreadable", key.escape_ascii()));
            objects.push(read_object(&key, &value).ok_or_else(unreadable)?);
        }
        Ok(objects)
    }

    /// Writes what changed and where that leads, and makes it durable. After an error the database is not used again.
    pub(crate) fn flush(&mut self, dirty: &Dirty, checkpoint: &Checkpoint) -> io::Result<()> {
        if !self.usable {
            return Err(io::Error::other("an earlier flush of the object database failed"));
        }
        self.usable = false;
        guard(|| self.write(dirty, checkpoint))?;
        self.usable = true;
        Ok(())
    }

    /// Lets go of a database that cannot be trusted, without flushing it.
    pub(crate) fn forget(mut self) {
        self.usable = false;
    }

    fn write(&self, dirty: &Dirty, checkpoint: &Checkpoint) -> io::Result<()> {
        for (key, object) in dirty {
            match object {
                Some(object) => self.put(object)?,
                None => {
                    self.db.remove(object_key(key))?;
                }
            }
        }
        self.flush_head(checkpoint, 0)
    }

    fn put(&self, object: &Object) -> io::Result<()> {
        let mut value = Vec::with_capacity(16 + object.json().len());
        match object.expires {
            None => value.extend_from_slice(&object.revision.0.to_be_bytes()),
            Some(expires) => {
                value.extend_from_slice(&(object.revision.0 | EXPIRES).to_be_bytes());
                value.extend_from_slice(&expires.as_ms().to_be_bytes());
            }
        }
        value.extend_from_slice(object.json());
        self.db.insert(object_key(&object.key), value)?;
        Ok(())
    }

    /// Puts a head of any form in the place of ours.
    #[cfg(test)]
    pub(crate) fn put_head(&self, head: Vec<u8>) {
        self.db.insert(META, head).expect("the database of a test can be written");
        self.db.flush().expect("the database of a test can be written");
    }

    fn flush_head(&self, checkpoint: &Checkpoint, flags: u64) -> io::Result<()> {
        let Checkpoint { applied, revision, hash, members } = checkpoint;
        let words = [FORMAT, self.member, applied.index, applied.term, *revision, *hash, flags];
        let head = [words.map(u64::to_be_bytes).concat(), members.encode()].concat();
        self.db.insert(META, head)?;
        self.db.flush()?;
        Ok(())
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        if self.usable {
            // SAFETY: this is the only place that drops the database, and nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.db) }
        }
    }
}

/// `o`, then the parts of the key between zeros: names hold none.
fn object_key(key: &Key) -> Vec<u8> {
    let parts = [&*key.resource, &*key.namespace, &*key.name];
    let mut out = vec![OBJECT];
    out.extend_from_slice(parts.join("\0").as_bytes());
    out
}

fn read_object(key: &[u8], value: &[u8]) -> Option<Object> {
    let mut parts = std::str::from_utf8(key.get(1..)?).ok()?.split('\0');
    let key = Key::new(parts.next()?, parts.next()?, parts.next()?);
    let (revision, rest) = value.split_first_chunk()?;
    let revision = u64::from_be_bytes(*revision);
    let (expires, json) = match revision & EXPIRES {
        0 => (None, rest),
        _ => {
            let (expires, json) = rest.split_first_chunk()?;
            (Some(Time::from_ms(i64::from_be_bytes(*expires))), json)
        }
    };
    let object = Object::restore(key, Revision(revision & !EXPIRES), Bytes::copy_from_slice(json)).ok()?;
    Some(object.expiring(expires))
}

fn sync_below(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { sync_below(&path)? } else { fs::File::open(&path)?.sync_all()? }
    }
    sync_dir(dir)
}

/// Runs sled, and turns a panic of it into an error.
fn guard<T>(run: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let ended = catch_unwind(AssertUnwindSafe(run));
    ended.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "the object database panicked")))
}

fn from_sled(doing: &'static str, path: &Path, error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
            damaged(path, own_words(&error.to_string()))
        }
        _ => failed(doing, path)(error),
    }
}

/// What sled says, without the places in its sources that it puts before: `sled:FILE:LINE -> sled:FILE:LINE -> words`.
fn own_words(text: &str) -> &str {
    text.rsplit(" -> ").next().unwrap_or(text)
}
