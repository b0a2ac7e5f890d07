//! One process a directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// Held as long as the directory is ours; the system frees it when the process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a directory could not be had.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it; its number, as far as it is known.
    InUse(String),
    /// The lock file cannot be used.
    Io(io::Error),
}

impl Lock {
    /// Takes a directory that is there, by a file `lock` in it.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join("lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // The number is only for the message.
                let _read = file.read_to_string(&mut owner);
                return Err(LockError::InUse(owner.trim().to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        let note = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note(&mut file).map_err(LockError::Io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path()).unwrap();
        match Lock::take(dir.path()) {
            Err(LockError::InUse(owner)) => assert_eq!(owner, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(lock);
        Lock::take(dir.path()).unwrap();
        assert!(matches!(Lock::take(Path::new("/nowhere/at/all")), Err(LockError::Io(_))));
    }
}
