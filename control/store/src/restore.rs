//! A data directory from a snapshot, and getting a damaged one out of the way.

use crate::error::{OpenError, SnapshotError};
use crate::image::{Image, ImageError, Reader};
use crate::objects::Objects;
use crate::wal::{Checkpoint, Wal, failed, sync_dir};
use dhow_consensus::Members;
use dhow_state::{HistoryMax, State};
use dhow_types::Revision;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How far a restored state's revision is ahead of the snapshot's. Clients have seen revisions that came after the
/// snapshot was taken; a revision may not come again with another content, and who resumes from one of the lost ones
/// must be told to list anew. As many writes as a busy cluster makes in weeks.
const REVISIONS_AHEAD: u64 = 1_000_000_000;

/// The first log segment of a restored directory; the next ones are as its store is configured.
const SEGMENT_BYTES: u64 = 4 << 20;

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// How many objects.
    pub objects: usize,
    /// The revision that the snapshot shows.
    pub snapshot: Revision,
    /// The revision at which the restored store goes on.
    pub revision: Revision,
}

/// Writes a data directory that holds what the snapshot shows, as a cluster of one member. The directory may be there
/// if it is empty. Whatever fails, nothing is changed.
pub fn restore(mut snapshot: impl Read, dir: &Path, member: u64) -> Result<Restored, SnapshotError> {
    assert!(member > 0, "members are counted from one");
    check_empty(dir)?;
    let mut reader = Reader::default();
    let mut piece = vec![0; 256 << 10];
    loop {
        let len = match snapshot.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SnapshotError::Read(error)),
        };
        reader.feed(&piece[..len])?;
    }
    let Image { position, state, is_bare, .. } = reader.finish(HistoryMax::default())?;
    if is_bare {
        return Err(ImageError::Bare.into());
    }
    let shown = state.revision();
    let objects: Vec<_> = state.iter().cloned().collect();
    drop(state);
    let revision = Revision(shown.0 + REVISIONS_AHEAD);
    // Beside its place until it is whole.
    let making = beside(dir, "restoring");
    if making.exists() {
        fs::remove_dir_all(&making).map_err(failed("removing", &making))?;
    }
    let kept = objects.iter().map(|object| (**object).clone());
    let hash = State::restore(HistoryMax::default(), position.index, revision, kept).hash();
    let members = Members::founded_by(member);
    let checkpoint = Checkpoint { applied: position, revision: revision.0, hash, members };
    let made = make(&making, member, &objects, checkpoint).and_then(|()| put_in_place(&making, dir));
    if let Err(error) = made {
        // What is left of it would be taken away by the next attempt, too.
        let _ = fs::remove_dir_all(&making);
        return Err(error.into());
    }
    Ok(Restored { objects: objects.len(), snapshot: shown, revision })
}

fn make(
    making: &Path,
    member: u64,
    objects: &[Arc<dhow_state::Object>],
    checkpoint: Checkpoint,
) -> Result<(), OpenError> {
    fs::create_dir_all(making).map_err(failed("creating", making))?;
    drop(Objects::install(making, member, None, objects, &checkpoint)?);
    let log = making.join("wal");
    let (mut wal, _) = Wal::open(&log, member, SEGMENT_BYTES, 0)?;
    wal.reset(Default::default(), checkpoint).map_err(failed("writing", &log))?;
    sync_dir(making).map_err(failed("syncing", making))
}

fn put_in_place(making: &Path, dir: &Path) -> Result<(), OpenError> {
    // An empty directory gives way to a rename.
    fs::rename(making, dir).map_err(failed("renaming", making))?;
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent).map_err(failed("syncing", parent)),
        None => Ok(()),
    }
}

fn check_empty(dir: &Path) -> Result<(), SnapshotError> {
    let read = |error| SnapshotError::Write(failed("reading", dir)(error));
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
            fs::create_dir_all(parent).map_err(|error| SnapshotError::Write(failed("creating", parent)(error)))
        }
        Err(error) => Err(read(error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(SnapshotError::Occupied { dir: dir.to_owned() }),
        },
    }
}

fn beside(dir: &Path, what: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(what);
    dir.with_file_name(name)
}
