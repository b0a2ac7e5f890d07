//! Directories in memory, for `emptyDir` volumes of medium `Memory`.
//!
//! An agent has no right to mount a file system of its own, so they lie in the host's `/dev/shm`, in a directory that is
//! the agent's alone. Their size is watched like that of other volumes, not bounded by the kernel: a pod that fills one
//! beyond its limit is evicted.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where Linux has memory that looks like files.
const SHARED_MEMORY: &str = "/dev/shm";

/// The directory that holds those of one agent. Two agents have two data directories.
pub(crate) fn root(data_dir: &Path) -> Option<PathBuf> {
    let shared = Path::new(SHARED_MEMORY);
    let data = fs::canonicalize(data_dir).ok()?;
    let meta = fs::metadata(&data).ok()?;
    // By what it is and not by its name, which may be long.
    shared.is_dir().then(|| shared.join(format!("dhow-{}-{:x}-{:x}", own_uid(), meta.dev(), meta.ino())))
}

/// Makes a directory below that of the agent. Anybody may write to `/dev/shm`: one that somebody else has put there is
/// not taken.
pub(crate) fn make(root: &Path, dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
    let found = fs::symlink_metadata(root)?;
    let ours = found.is_dir() && found.uid() == own_uid() && found.mode() & 0o077 == 0;
    if ours { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

/// Removes what a pod has there, and the agent's directory if that was all.
pub(crate) fn free(root: &Path, dir: &Path) -> io::Result<()> {
    fs::remove_dir_all(dir)?;
    // Others have something there.
    let _kept = fs::remove_dir(root);
    Ok(())
}

fn own_uid() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_directory_that_others_may_have_made_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("own");
        make(&root, &root.join("u1/v")).unwrap();
        make(&root, &root.join("u1/v")).unwrap();
        make(&root, &root.join("u2/v")).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make(&root, &root.join("u1/v")).is_err(), "others may look into it");
        let link = dir.path().join("link");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
        symlink(&root, &link).unwrap();
        assert!(make(&link, &link.join("u1/v")).is_err(), "a link leads elsewhere");
        free(&root, &root.join("u1")).unwrap();
        assert!(root.join("u2/v").is_dir());
        free(&root, &root.join("u2")).unwrap();
        assert!(!root.exists());
    }
}
