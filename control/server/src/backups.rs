//! Backups: one file that holds the whole state, for whoever asks and, now and then, on this member's own disk.

use crate::answer::{self, Answer, BodyError};
use crate::app::{App, now};
use bytes::Bytes;
use dhow_api::status::ApiError;
use dhow_api::{Tree, meta};
use dhow_files::{Access, NewFile};
use dhow_store::Snapshot;
use dhow_types::{Chain, Time};
use futures_util::Stream;
use serde_json::json;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tracing::{info, warn};

/// How backups on this member's disk are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupConfig {
    /// How often; `None` for never.
    pub every: Option<Duration>,
    /// How many are kept; the oldest go.
    pub kept: usize,
}

impl Default for BackupConfig {
    /// One a day, for a week.
    fn default() -> Self {
        Self { every: Some(Duration::from_secs(24 * 3600)), kept: 7 }
    }
}

/// The first one is made so long after a start: a member that is started to try something out needs none.
const FIRST_AFTER: Duration = Duration::from_secs(600);

/// After one that failed, for want of room above all.
const RETRY_AFTER: Duration = Duration::from_secs(600);

const SUFFIX: &str = ".dhow-backup";

/// What tells of the last backup that was fetched, so that a start knows it too.
const FETCHED: &str = "fetched.json";

/// The backups on this member's disk, and when the last one was fetched from it.
pub(crate) struct Backups {
    dir: PathBuf,
    config: BackupConfig,
    /// `{time, bytes}`, or null.
    fetched: Mutex<Tree>,
}

impl Backups {
    pub(crate) fn new(dir: PathBuf, config: BackupConfig) -> Backups {
        // It only informs: one that cannot be read is none.
        let fetched = std::fs::read(dir.join(FETCHED)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Backups { dir, config, fetched: Mutex::new(fetched.unwrap_or_default()) }
    }

    /// `{time, file, bytes}` of the youngest, or null; one that was fetched has no `file` here.
    pub(crate) fn last(&self) -> Tree {
        let (made, fetched) = (self.last_made(), self.fetched.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let time = |backup: &Tree| meta::text(backup, "time").to_owned();
        if time(&fetched) > time(&made) { fetched } else { made }
    }

    /// Notes that a backup has reached the one who asked for it.
    fn note_fetched(&self, at: Time, bytes: u64) {
        let fetched = json!({"time": at.to_rfc3339(), "bytes": bytes});
        *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = fetched.clone();
        let kept = std::fs::create_dir_all(&self.dir)
            .and_then(|()| dhow_files::write(&self.dir.join(FETCHED), fetched.to_string().as_bytes(), Access::Private));
        if let Err(error) = kept {
            warn!(%error, "that a backup was fetched could not be noted");
        }
    }

    fn last_made(&self) -> Tree {
        let Some(last) = self.all().pop() else { return Tree::Null };
        let bytes = std::fs::metadata(&last).map_or(0, |metadata| metadata.len());
        let time = modified(&last).map(|time| time.to_rfc3339());
        json!({"time": time, "file": last.display().to_string(), "bytes": bytes})
    }

    /// All of them, the oldest first: their names say when they were made.
    fn all(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> =
            entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(SUFFIX)).collect();
        files.sort();
        files
    }

    /// Writes one, whole and synced or not at all, and lets the oldest go.
    fn write(&self, snapshot: Snapshot, at: Time) -> io::Result<PathBuf> {
        std::fs::create_dir_all(&self.dir)?;
        let name: String = at.to_rfc3339().chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        let path = self.dir.join(format!("{name}{SUFFIX}"));
        dhow_files::remove_unfinished(&self.dir)?;
        let mut file = NewFile::create(&path, Access::Private)?;
        snapshot.into_iter().try_for_each(|chunk| file.write_all(&chunk))?;
        file.commit()?;
        let all = self.all();
        for old in &all[..all.len().saturating_sub(self.config.kept.max(1))] {
            std::fs::remove_file(old)?;
        }
        Ok(path)
    }

    /// How long until the next one is due.
    fn rest(&self, every: Duration) -> Duration {
        let Some(last) = self.all().pop().and_then(|path| modified(&path)) else { return FIRST_AFTER.min(every) };
        let age = Duration::from_millis(now().ms_since(last));
        every.saturating_sub(age)
    }
}

fn modified(path: &Path) -> Option<Time> {
    let since = std::fs::metadata(path).ok()?.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Time::from_ms(i64::try_from(since.as_millis()).ok()?))
}

/// Makes backups for as long as this member runs.
pub(crate) async fn run(app: Arc<App>) {
    let Some(every) = app.backups.config.every else { return };
    let mut rest = app.backups.rest(every);
    while app.machines_stop.or(tokio::time::sleep(rest)).await.is_some() {
        let snapshot = app.replica.snapshot().await;
        let writer = app.clone();
        let written = tokio::task::spawn_blocking(move || writer.backups.write(snapshot, now())).await;
        rest = match written {
            Ok(Ok(file)) => {
                info!(file = %file.display(), "made a backup");
                every
            }
            Ok(Err(error)) => {
                warn!(dir = %app.backups.dir.display(), error = %Chain(&error), "a backup could not be written, tried again");
                RETRY_AFTER.min(every)
            }
            Err(_) => return,
        };
    }
}

/// GET `/dhow/v1/backup`: the state as it is now.
pub(crate) async fn download(app: &Arc<App>) -> Result<Answer, ApiError> {
    app.barrier().await?;
    let pieces = app.replica.snapshot().await;
    let download = Download { pieces, bytes: 0, app: Some(app.clone()) };
    Ok(answer::answer(200, "application/octet-stream", answer::streamed(download)))
}

/// A backup on its way. It counts when its last piece was asked for and there was no more: whoever breaks off has none.
struct Download<I> {
    pieces: I,
    bytes: u64,
    /// Nothing once it is noted.
    app: Option<Arc<App>>,
}

impl<I: Iterator<Item = Bytes> + Unpin> Stream for Download<I> {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = self.pieces.next();
        match &piece {
            Some(piece) => self.bytes += piece.len() as u64,
            None => {
                if let Some(app) = self.app.take() {
                    let bytes = self.bytes;
                    // It is written to the disk: not on a thread that answers requests.
                    drop(tokio::task::spawn_blocking(move || app.backups.note_fetched(now(), bytes)));
                }
            }
        }
        Poll::Ready(piece.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_store::{Alone, Config, Replica};

    #[tokio::test]
    async fn the_youngest_backups_are_kept_and_can_be_restored() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new(dir.path().join("store"));
        let opened = tokio::task::spawn_blocking(|| Replica::open(config, Arc::new(Alone))).await;
        let replica = opened.unwrap().unwrap();
        let config = BackupConfig { every: Some(Duration::from_secs(60)), kept: 2 };
        let backups = Backups::new(dir.path().join("backups"), config);
        assert_eq!(backups.last(), Tree::Null);
        let mut made = Vec::new();
        for day in 1..=4 {
            let at = Time::parse(&format!("2026-01-0{day}T12:00:00Z")).unwrap();
            made.push(backups.write(replica.snapshot().await, at).unwrap());
        }
        assert_eq!(backups.all(), made[2..]);
        assert_eq!(backups.last()["file"], made[3].display().to_string());
        assert!(backups.rest(Duration::from_secs(60)) > Duration::from_secs(30));
        let before = backups.last();
        backups.note_fetched(Time::parse("2026-01-04T11:00:00Z").unwrap(), 7);
        assert_eq!(backups.last(), before, "it is older");
        let later = now().to_rfc3339();
        let again = |backups: &Backups| Backups::new(backups.dir.clone(), config);
        backups.note_fetched(Time::from_ms(now().as_ms() + 60_000), 7);
        assert!(backups.last()["time"].as_str() > Some(&later) && backups.last()["bytes"] == 7);
        assert_eq!(again(&backups).last(), backups.last(), "also after a start");
        replica.close().await;
        let file = std::fs::File::open(&made[3]).unwrap();
        dhow_store::restore(file, &dir.path().join("restored"), 1).unwrap();
    }
}
