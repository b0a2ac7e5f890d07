//! From a data directory to a running start: the object database's last epoch, then the log behind it.
//!
//! | what is found | what is done |
//! |---|---|
//! | nothing | a new store |
//! | database and log agree | the log behind the database's position is replayed |
//! | the database is older than the log's last checkpoint | the same, with a warning: the log reaches over the gap |
//! | the database is unreadable or does not hold what its checksum says | rebuilt if the log is complete, else damage |
//! | a database without a log, or a log with a hole behind the database | damage |

use crate::error::OpenError;
use crate::lock::Lock;
use crate::objects::{Image, Objects};
use crate::replica::Config;
use crate::wal::{Contents, Wal, damaged, failed};
use dhow_consensus::{Members, Position, Restored};
use dhow_state::State;
use dhow_types::Revision;
use std::fs;
use std::path::Path;

/// Everything that a replica runs on.
pub(crate) struct Recovered {
    pub(crate) lock: Lock,
    pub(crate) wal: Wal,
    pub(crate) objects: Objects,
    pub(crate) state: State,
    pub(crate) restored: Restored,
}

pub(crate) fn recover(config: &Config) -> Result<Recovered, OpenError> {
    let dir = &config.dir;
    fs::create_dir_all(dir).map_err(failed("creating", dir))?;
    let lock = Lock::take(dir)?;
    let (log, database) = (dir.join("wal"), Objects::path(dir));
    let had_log = Wal::exists(&log)?;
    let (objects, state, applied, wal, contents) = match load(config, &database) {
        Ok((objects, state, applied)) => {
            if applied.index > 0 && !had_log {
                return Err(damaged(&log, "it is missing, but there are objects beside it"));
            }
            let (wal, contents) = Wal::open(&log, config.member, config.segment_bytes, applied.index)?;
            match compare(&state, applied, &contents) {
                Ok(()) => (objects, state, applied, wal, contents),
                Err(why) => {
                    objects.forget();
                    drop(wal);
                    rebuild(config, &log, &database, damaged(&database, why))?
                }
            }
        }
        Err(why @ OpenError::Damaged { .. }) => rebuild(config, &log, &database, why)?,
        Err(error) => return Err(error),
    };
    let last = contents.first.map_or(applied.index, |_| contents.last);
    let follows = contents.entries.first().is_none_or(|entry| entry.index == applied.index + 1);
    if !follows || last < applied.index {
        let what = format!("it does not continue what the objects hold, which is up to entry {}", applied.index);
        return Err(damaged(&log, &what));
    }
    if contents.checkpoint.is_some_and(|checkpoint| checkpoint.applied.index > applied.index) {
        let at = applied.index;
        tracing::warn!(at, "the object database fell back to an older state; replaying the log over the gap");
    }
    let restored =
        Restored { members: Members::founded_by(config.member), hard_state: contents.hard_state, applied, entries: contents.entries };
    Ok(Recovered { lock, wal, objects, state, restored })
}

fn load(config: &Config, database: &Path) -> Result<(Objects, State, Position), OpenError> {
    let (objects, image) = Objects::load(database, config.member, config.load_patience)?;
    let Some(Image { checkpoint, objects: found }) = image else {
        return Ok((objects, State::new(config.history_max), Position::default()));
    };
    let state = State::restore(config.history_max, checkpoint.applied.index, Revision(checkpoint.revision), found);
    if state.hash() != checkpoint.hash {
        objects.forget();
        return Err(damaged(database, "the objects do not match the checksum that was stored with them"));
    }
    Ok((objects, state, checkpoint.applied))
}

/// Whether the database can be what the log says it was.
fn compare(state: &State, applied: Position, contents: &Contents) -> Result<(), &'static str> {
    if let Some(noted) = contents.checkpoint.filter(|noted| noted.applied.index == applied.index)
        && (noted.hash != state.hash() || noted.revision != state.revision().0)
    {
        return Err("the objects do not match the checksum that the log noted");
    }
    let reaches = contents.complete || contents.first.is_some_and(|first| first <= applied.index + 1);
    let expected = contents.checkpoint.is_some_and(|noted| noted.applied.index > applied.index);
    if expected && !reaches {
        return Err("it lost what it had flushed, and the log no longer has it");
    }
    Ok(())
}

type Loaded = (Objects, State, Position, Wal, Contents);

/// Starts the database anew, if the log still holds everything; else gives `why` back.
fn rebuild(config: &Config, log: &Path, database: &Path, why: OpenError) -> Result<Loaded, OpenError> {
    let (wal, contents) = Wal::open(log, config.member, config.segment_bytes, 0)?;
    if !contents.complete || contents.first.is_none() {
        return Err(why);
    }
    tracing::warn!(%why, "rebuilding the object database from the log");
    let aside = config.dir.join("objects.damaged");
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(failed("removing", &aside))?;
    }
    fs::rename(database, &aside).map_err(failed("renaming", database))?;
    let objects = Objects::open(database, config.member)?;
    Ok((objects, State::new(config.history_max), Position::default(), wal, contents))
}
