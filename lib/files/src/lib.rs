//! Files that are there whole or not at all, also after a power cut.
//!
//! What is written goes to a file beside the one that is meant, is synced, and takes its name in one step; then the
//! directory is synced. A reader finds the old content or the new, never a part. [`write`] is for what fits into memory, [`NewFile`]
//! for what comes in pieces. [`Lock`] keeps a second process out of a directory.
//!
//! Invariants: a file never has more access rights than it is to have, not even for a moment. Blocks: callers of async
//! code use a blocking thread. Knows nothing about what is written.

mod lock;

pub use lock::{Lock, LockError};

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells the files apart that one process writes at a time.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner only: keys, tokens, backups.
    Private,
    /// Everybody.
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Writes a file, in place of the one that may be there.
pub fn write(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let mut file = NewFile::create(path, access)?;
    file.write_all(bytes)?;
    file.commit()
}

/// A file that is being written, and not there yet. Dropped, it never was.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// Where it is until it is complete; nothing once it has its name.
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl NewFile {
    /// Begins a file in a directory that is there.
    pub fn create(path: &Path, access: Access) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = directory(path).join(format!(".{}.{}.{number}", name.to_string_lossy(), std::process::id()));
        // What a killed process of the same number left: its access rights may be others.
        match std::fs::remove_file(&temporary) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(&temporary)?;
        Ok(Self { file, temporary: Some(temporary), path: path.to_owned() })
    }

    /// The same file for somebody else to write to, such as another process; [`commit`](Self::commit) is for when they
    /// have.
    pub fn try_clone(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Syncs the file and gives it its name.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, &self.path)?;
        }
        self.temporary = None;
        sync_directory(directory(&self.path))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // What cannot be removed is found and removed by the next process of this number, and harms nobody.
            let _removed = std::fs::remove_file(temporary);
        }
    }
}

/// Removes what killed processes left of files that they never completed. Only for a directory that one process at a
/// time writes to.
pub fn remove_unfinished(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_temporary) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether [`NewFile`] gives such a name: `.<name>.<process>.<number>`.
fn is_temporary(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = name.rsplitn(3, '.');
    let numbered = [parts.next(), parts.next()].into_iter().all(|part| part.is_some_and(number));
    numbered && parts.next().is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
}

/// Makes names in a directory last: those that were added, and those that were removed.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_is_replaced_with_its_rights_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (text, access, mode) in [("one", Access::Public, 0o644), ("two", Access::Private, 0o600)] {
            write(&path, text.as_bytes(), access).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            // The process's mask may take rights away.
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !mode, 0);
        }
        assert_eq!(names(dir.path()), ["key"]);
    }

    #[test]
    fn a_file_that_is_not_completed_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        write(&path, b"old", Access::Private).unwrap();
        let mut file = NewFile::create(&path, Access::Private).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!((names(dir.path()), std::fs::read(&path).unwrap()), (vec!["backup".to_owned()], b"old".to_vec()));
    }

    #[test]
    fn what_a_killed_process_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = NewFile::create(&dir.path().join("a.wasm"), Access::Public).unwrap();
        // As if the process had been killed.
        std::mem::forget(file);
        for name in ["a.wasm", ".hidden", "a.1.2", ".1.2", ".a.1.x"] {
            write(&dir.path().join(name), b"", Access::Public).unwrap();
        }
        remove_unfinished(dir.path()).unwrap();
        let mut left = names(dir.path());
        left.sort();
        assert_eq!(left, [".1.2", ".a.1.x", ".hidden", "a.1.2", "a.wasm"]);
    }

    #[test]
    fn two_writers_of_one_file_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut files = ["a", "b"].map(|text| (text, NewFile::create(&path, Access::Private).unwrap()));
        for _ in 0..2 {
            files.iter_mut().for_each(|(text, file)| file.write_all(text.as_bytes()).unwrap());
        }
        for (text, file) in files {
            file.commit().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text.repeat(2));
        }
    }

    #[test]
    fn a_path_without_a_name_or_directory_is_refused() {
        assert!(write(Path::new("/"), b"", Access::Private).is_err());
        assert!(write(Path::new("/nowhere/at/all"), b"", Access::Private).is_err());
    }
}
