//! A data directory from a backup: what `dhow restore` does before a control node is started in it.

use crate::ServerError;
use crate::start::FOUNDER;
use dhow_store::Restored;
use std::fs::File;
use std::path::Path;

/// Writes the data directory of a control node that begins with what the backup holds, as a cluster of its own: its
/// CA, so that nodes and users go on trusting it, and its objects. The directory may be there if it is empty. A backup
/// that is not whole is refused before anything is written. Blocks.
pub fn restore(backup: &Path, data_dir: &Path) -> Result<Restored, ServerError> {
    let failed = |source| ServerError::Io { path: backup.to_owned(), source };
    let file = File::open(backup).map_err(failed)?;
    let occupied = std::fs::read_dir(data_dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        let why = "is not empty: name a new directory, or move what is there away".to_owned();
        return Err(ServerError::Place { dir: data_dir.to_owned(), why });
    }
    let missing: Vec<&Path> = data_dir.ancestors().take_while(|dir| !dir.exists()).collect();
    let restored = dhow_store::restore(file, &data_dir.join("store"), FOUNDER);
    if restored.is_err() {
        // Nothing is changed: the directories that were made go again. One that holds something is not removed.
        missing.iter().take_while(|dir| std::fs::remove_dir(dir).is_ok()).for_each(drop);
    }
    restored.map_err(|source| ServerError::Restore { backup: backup.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_backup_is_refused_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (backup, data) = (dir.path().join("backup"), dir.path().join("a/b"));
        for (bytes, want) in [(None, "file `"), (Some("no backup"), "restoring the backup")] {
            if let Some(bytes) = bytes {
                std::fs::write(&backup, bytes).unwrap();
            }
            let error = restore(&backup, &data).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
            assert!(!dir.path().join("a").exists());
        }
        std::fs::create_dir_all(data.join("store")).unwrap();
        let error = restore(&backup, &data).unwrap_err().to_string();
        assert!(error.contains("is not empty: name a new directory"), "{error}");
    }
}
