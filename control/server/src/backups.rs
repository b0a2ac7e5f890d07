//! Backups: one file that holds the whole state, for whoever asks and, now and then, on this member's own disk.

use crate::answer::{self, Answer, BodyError};
use crate::app::{App, now};
use bytes::Bytes;
use dhow_api::Tree;
use dhow_api::status::ApiError;
use dhow_store::Snapshot;
use dhow_types::{Chain, Time};
use serde_json::json;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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

/// The backups on this member's disk.
pub(crate) struct Backups {
    dir: PathBuf,
    config: BackupConfig,
}

impl Backups {
    pub(crate) fn new(dir: PathBuf, config: BackupConfig) -> Backups {
        Backups { dir, config }
    }

    /// `{time, file, bytes}` of the youngest, or null.
    pub(crate) fn last(&self) -> Tree {
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
        let fresh = self.dir.join("unfinished");
        let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        let written = snapshot.into_iter().try_for_each(|chunk| file.write_all(&chunk)).and_then(|()| file.sync_all());
        if let Err(error) = written {
            std::fs::remove_file(&fresh)?;
            return Err(error);
        }
        std::fs::rename(&fresh, &path)?;
        std::fs::File::open(&self.dir)?.sync_all()?;
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
pub(crate) async fn download(app: &App) -> Result<Answer, ApiError> {
    app.barrier().await?;
    let snapshot = app.replica.snapshot().await;
    let pieces = futures_util::stream::iter(snapshot.into_iter().map(Ok::<Bytes, BodyError>));
    Ok(answer::answer(200, "application/octet-stream", answer::streamed(pieces)))
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
        replica.close().await;
        let file = std::fs::File::open(&made[3]).unwrap();
        dhow_store::restore(file, &dir.path().join("restored"), 1).unwrap();
    }
}
