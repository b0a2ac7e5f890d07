//! One process a data directory.

use crate::error::OpenError;
use crate::wal::failed;
use dhow_files::{Lock, LockError};
use std::path::Path;
use std::time::{Duration, Instant};

/// A process that this one is just starting holds copies of its files for a moment, locks too.
const OWN_CHILDREN: Duration = Duration::from_secs(1);

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(5);

/// Takes a data directory that is there for this process.
pub fn take(dir: &Path) -> Result<Lock, OpenError> {
    let own = std::process::id().to_string();
    let begun = Instant::now();
    loop {
        match Lock::take(dir) {
            Ok(lock) => return Ok(lock),
            Err(LockError::InUse(owner)) if owner == own && begun.elapsed() < OWN_CHILDREN => {
                std::thread::sleep(RETRY);
            }
            Err(LockError::InUse(owner)) => return Err(OpenError::InUse { dir: dir.to_owned(), owner }),
            Err(LockError::Io(error)) => return Err(failed("locking", dir)(error)),
        }
    }
}
