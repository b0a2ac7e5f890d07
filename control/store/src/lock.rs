//! One process a data directory.

use crate::error::OpenError;
use crate::wal::failed;
use dhow_files::{Lock, LockError};
use std::path::Path;

/// Takes a data directory that is there for this process.
pub(crate) fn take(dir: &Path) -> Result<Lock, OpenError> {
    Lock::take(dir).map_err(|error| match error {
        LockError::InUse(owner) => OpenError::InUse { dir: dir.to_owned(), owner },
        LockError::Io(error) => failed("locking", dir)(error),
    })
}
