//! From a data directory to a running start: the object database's last epoch, then the log behind it.
//!
//! | what is found | what is done |
//! |---|---|
//! | nothing | a new store |
//! | database and log agree | the log behind the database's position is replayed |
//! | the database is older than the log's last checkpoint | the same, with a warning: the log reaches over the gap |
//! | the database is an image from another member, and the log is from before it | the log begins anew behind it |
//! | the database is unreadable or does not hold what its checksum says | rebuilt if the log is complete, else damage |
//! | a database without a log, or a log with a hole behind the database | damage |
//!
//! The first frame of every log says who the members were when it began, so that how a store was started is decided
//! once.

use crate::error::OpenError;
use crate::lock;
use crate::objects::{Image, Objects};
use crate::replica::{Config, Start};
use crate::wal::{Batch, Checkpoint, Contents, Wal, damaged, failed, sync_dir};
use dhow_consensus::{Members, Position, Restored};
use dhow_files::Lock;
use dhow_state::State;
use dhow_types::Revision;
use std::fs;
use std::path::Path;

/// Where the log of a new control plane begins: not at zero, so that a member that has nothing lacks at least this, and
/// gets an image, which tells it who the members are.
const FOUNDED: Position = Position { index: 1, term: 1 };

/// Everything that a replica runs on.
pub(crate) struct Recovered {
    pub(crate) lock: Lock,
    pub(crate) wal: Wal,
    pub(crate) objects: Objects,
    pub(crate) state: State,
    pub(crate) restored: Restored,
}

/// The state and where it stands.
struct Loaded {
    objects: Objects,
    state: State,
    applied: Position,
    /// `None`: nothing was ever flushed.
    members: Option<Members>,
    installed: bool,
}

pub(crate) fn recover(config: &Config) -> Result<Recovered, OpenError> {
    let dir = &config.dir;
    fs::create_dir_all(dir).map_err(failed("creating", dir))?;
    let lock = lock::take(dir)?;
    check_condemned(dir)?;
    Objects::settle(dir)?;
    let (log, database) = (dir.join("wal"), Objects::path(dir));
    let had_log = Wal::exists(&log)?;
    let (loaded, mut wal, contents) = match load(config, &database) {
        Ok(loaded) => {
            if loaded.applied.index > 0 && !had_log {
                return Err(damaged(&log, "it is missing, but there are objects beside it"));
            }
            let (wal, contents) = Wal::open(&log, config.member, config.segment_bytes, loaded.applied.index)?;
            match compare(&loaded, &contents) {
                Ok(()) => (loaded, wal, contents),
                Err(why) => {
                    loaded.objects.forget();
                    drop(wal);
                    rebuild(config, &log, &database, damaged(&database, why))?
                }
            }
        }
        Err(why @ OpenError::Damaged { .. }) => rebuild(config, &log, &database, why)?,
        Err(error) => return Err(error),
    };
    // The directory itself and the names in it, before anything in it is promised.
    for dir in [Some(&**dir), dir.parent().filter(|parent| !parent.as_os_str().is_empty())].into_iter().flatten() {
        sync_dir(dir).map_err(failed("syncing", dir))?;
    }
    let loaded = with_origin(config, loaded, &contents);
    let restored = join_up(&loaded, &mut wal, contents, &log)?;
    let Loaded { objects, state, .. } = loaded;
    Ok(Recovered { lock, wal, objects, state, restored })
}

/// What says in a directory that it must not be used any more, and why.
const CONDEMNED: &str = "condemned";

/// Notes for every later start that the directory has lost what it had promised, and tells the whole story. Without the
/// note, the member would follow until it is told again, and its vote could be counted meanwhile.
pub(crate) fn condemn(dir: &Path, what: String) -> String {
    match dhow_files::write(&dir.join(CONDEMNED), what.as_bytes(), dhow_files::Access::Private) {
        Ok(()) => what,
        Err(error) => format!("{what}; nor can that be noted for the next start: {error}"),
    }
}

fn check_condemned(dir: &Path) -> Result<(), OpenError> {
    let note = dir.join(CONDEMNED);
    match fs::read_to_string(&note) {
        Ok(what) => Err(damaged(dir, &what)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("reading", &note)(error)),
    }
}

/// How the store began, if nothing was flushed since: as the log says, which then still has its beginning, or as the
/// caller wants a new one.
fn with_origin(config: &Config, mut loaded: Loaded, contents: &Contents) -> Loaded {
    if loaded.members.is_some() {
        return loaded;
    }
    let (origin, members) = match (&contents.origin, config.start) {
        (Some(Checkpoint { applied, members, .. }), _) => (*applied, members.clone()),
        // Format 1 knew one member only, and no beginning.
        (None, _) if is_begun(contents) => (Position::default(), Members::founded_by(config.member)),
        (None, Start::New) => (FOUNDED, Members::founded_by(config.member)),
        (None, Start::Join) => (Position::default(), Members::default()),
    };
    (loaded.applied, loaded.members) = (origin, Some(members));
    if loaded.state.index() < origin.index {
        loaded.state.apply_nothing(origin.index);
    }
    loaded
}

fn is_begun(contents: &Contents) -> bool {
    contents.origin.is_some() || contents.first.is_some() || contents.reset.is_some()
}

/// What lies in the log behind the state; writes down how a log begins that has nothing yet.
fn join_up(loaded: &Loaded, wal: &mut Wal, contents: Contents, log: &Path) -> Result<Restored, OpenError> {
    let Loaded { state, applied, members, installed, .. } = loaded;
    let (applied, members) = (*applied, members.clone().unwrap_or_default());
    let begun = is_begun(&contents);
    let Contents { mut entries, hard_state, checkpoint, reset, first, last, .. } = contents;
    let here = || {
        let (revision, hash, members) = (state.revision().0, state.hash(), members.clone());
        Checkpoint { applied, revision, hash, members }
    };
    entries.retain(|entry| entry.index > applied.index);
    if *installed && reset != Some(applied) {
        wal.reset(hard_state, here()).map_err(failed("writing", log))?;
        return Ok(Restored { members, hard_state, applied, entries: Vec::new() });
    }
    let last = first.map_or(applied.index, |_| last);
    let follows = entries.first().is_none_or(|entry| entry.index == applied.index + 1);
    let begins_later = reset.is_some_and(|reset| reset.index > applied.index);
    if !follows || begins_later || last < applied.index {
        let what = format!("it does not continue what the objects hold, which is up to entry {}", applied.index);
        return Err(damaged(log, &what));
    }
    if !begun {
        wal.write(Batch { checkpoint: Some(here()), ..Batch::default() }).map_err(failed("writing", log))?;
    }
    if checkpoint.is_some_and(|checkpoint| checkpoint.applied.index > applied.index) {
        let at = applied.index;
        tracing::warn!(at, "the object database fell back to an older state; replaying the log over the gap");
    }
    Ok(Restored { members, hard_state, applied, entries })
}

fn load(config: &Config, database: &Path) -> Result<Loaded, OpenError> {
    let (objects, image) = Objects::load(database, config.member, config.load_patience)?;
    let Some(Image { checkpoint, objects: found, installed }) = image else {
        return Ok(Loaded::empty(objects, config));
    };
    let Checkpoint { applied, revision, hash, members } = checkpoint;
    let state = State::restore(config.history_max, applied.index, Revision(revision), found);
    if state.hash() != hash {
        objects.forget();
        return Err(damaged(database, "the objects do not match the checksum that was stored with them"));
    }
    Ok(Loaded { objects, state, applied, members: Some(members), installed })
}

/// Whether the database can be what the log says it was.
fn compare(loaded: &Loaded, contents: &Contents) -> Result<(), &'static str> {
    let Loaded { state, applied, .. } = loaded;
    if let Some(noted) = contents.checkpoint.as_ref().filter(|noted| noted.applied.index == applied.index)
        && (noted.hash != state.hash() || noted.revision != state.revision().0)
    {
        return Err("the objects do not match the checksum that the log noted");
    }
    let reaches = contents.complete || contents.first.is_some_and(|first| first <= applied.index + 1);
    let expected = contents.checkpoint.as_ref().is_some_and(|noted| noted.applied.index > applied.index);
    if expected && !reaches {
        return Err("it lost what it had flushed, and the log no longer has it");
    }
    Ok(())
}

/// Starts the database anew, if the log still holds everything; else gives `why` back.
fn rebuild(config: &Config, log: &Path, database: &Path, why: OpenError) -> Result<(Loaded, Wal, Contents), OpenError> {
    let (wal, contents) = Wal::open(log, config.member, config.segment_bytes, 0)?;
    if !contents.complete || !is_begun(&contents) {
        return Err(why);
    }
    tracing::warn!(%why, "rebuilding the object database from the log");
    let aside = config.dir.join("objects.damaged");
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(failed("removing", &aside))?;
    }
    fs::rename(database, &aside).map_err(failed("renaming", database))?;
    let objects = Objects::open(database, config.member)?;
    Ok((Loaded::empty(objects, config), wal, contents))
}

impl Loaded {
    fn empty(objects: Objects, config: &Config) -> Self {
        let state = State::new(config.history_max);
        Self { objects, state, applied: Position::default(), members: None, installed: false }
    }
}

#[cfg(test)]
mod tests;
