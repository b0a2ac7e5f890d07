//! Paths of the host that pods may mount: none, unless whoever runs the node allows them.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{DiskError, io_at};

/// What pods may mount of the host: everything below these directories.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostPaths(Vec<PathBuf>);

impl HostPaths {
    pub(crate) fn new(allowed: Vec<PathBuf>) -> Self {
        Self(allowed)
    }

    /// The path as it really is, made if the pod asks for that; refused if it is not what the pod says, or not allowed.
    /// A pod may have put a link on the way: what counts is where it leads.
    pub(crate) fn open(&self, path: &str, kind: &str) -> Result<PathBuf, DiskError> {
        let asked = Path::new(path);
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_) | Component::CurDir);
        if !asked.is_absolute() || !asked.components().all(plain) {
            return Err(DiskError::NotAllowed(path.to_owned()));
        }
        let there = asked.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let real = fs::canonicalize(there).map_err(io_at(there))?;
        let allowed = |prefix: &PathBuf| fs::canonicalize(prefix).is_ok_and(|prefix| real.starts_with(prefix));
        if !self.0.iter().any(allowed) {
            return Err(DiskError::NotAllowed(path.to_owned()));
        }
        // What is missing is made below what is allowed, without a link in between.
        let missing = asked.strip_prefix(there).ok().filter(|rest| !rest.as_os_str().is_empty());
        let found = missing.map_or(real.clone(), |rest| real.join(rest));
        let wanted = match kind {
            "DirectoryOrCreate" if found.is_dir() || !found.exists() => {
                fs::create_dir_all(&found).map_err(io_at(&found))?;
                return Ok(found);
            }
            "FileOrCreate" if found.is_file() || !found.exists() => {
                fs::OpenOptions::new().create(true).append(true).open(&found).map_err(io_at(&found))?;
                return Ok(found);
            }
            "" if found.is_dir() || found.is_file() => return Ok(found),
            "Directory" if found.is_dir() => return Ok(found),
            "File" if found.is_file() => return Ok(found),
            "" => "file or directory",
            "Directory" | "DirectoryOrCreate" => "directory",
            "File" | "FileOrCreate" => "file",
            // A guest could do nothing with these.
            _ => return Err(DiskError::NoSuchType(kind.to_owned())),
        };
        Err(DiskError::HostPath { path: path.to_owned(), wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_is_allowed_can_be_mounted_and_links_do_not_help() {
        let root = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        for dir in ["open/dir", "closed"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::write(root.join("open/file"), "x").unwrap();
        symlink("../closed", root.join("open/out")).unwrap();
        symlink("dir", root.join("open/in")).unwrap();
        let allowed = HostPaths::new(vec![root.join("open")]);
        let open = |path: &str, kind: &str| {
            let path = format!("{}/{path}", root.display());
            allowed.open(&path, kind).map(|found| found.strip_prefix(&root).unwrap().display().to_string())
        };
        for (path, kind, wanted) in [
            ("open", "", "open"),
            ("open/dir", "Directory", "open/dir"),
            ("open/in", "Directory", "open/dir"),
            ("open/file", "File", "open/file"),
            ("open/new/deep", "DirectoryOrCreate", "open/new/deep"),
            ("open/in/made", "DirectoryOrCreate", "open/dir/made"),
            ("open/log", "FileOrCreate", "open/log"),
        ] {
            assert_eq!(open(path, kind).unwrap(), wanted, "{path} {kind}");
        }
        for (path, kind, wanted) in [
            ("closed", "", "is not allowed"),
            ("open/out", "", "is not allowed"),
            ("open/out/made", "DirectoryOrCreate", "is not allowed"),
            ("open/../closed", "", "is not allowed"),
            ("open/file", "Directory", "is not a directory"),
            ("open/file", "DirectoryOrCreate", "is not a directory"),
            ("open/dir", "File", "is not a file"),
            ("open/none", "", "is not a file or directory"),
            ("open/dir", "Socket", "`Socket`"),
        ] {
            let error = open(path, kind).unwrap_err().to_string();
            assert!(error.contains(wanted), "{path} {kind}: {error}");
        }
        assert!(!root.join("closed/made").exists());
        assert!(HostPaths::default().open("/", "").is_err(), "nothing is allowed unless somebody says so");
    }
}
