//! Volumes on disk.
//!
//! A volume of files is laid out as a kubelet does it, so that all its files change at one moment: the files lie in a
//! directory of their own, `..data` links to it, and each visible name links into `..data`. An update makes a new
//! directory and renames a new `..data` over the old one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use dhow_agent::volumes::{FilePlan, MountPlan};
use dhow_runtime_contract::Mount;

pub(crate) mod host_path;
pub(crate) mod in_memory;
pub(crate) mod reclaim;
pub(crate) mod refresh;
pub(crate) mod set_up;
pub(crate) mod tokens;

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The disk said no. Where a volume lies is not for the pod's owner to know.
    #[error("the volume's directory on the node cannot be used")]
    Io(#[source] io::Error),
    /// A host path is not what the pod says.
    #[error("hostPath type check failed: `{path}` is not a {wanted}")]
    HostPath {
        /// The path.
        path: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// A type of host path that no guest could use.
    #[error("a guest cannot use a host path of type `{0}`; use Directory or File")]
    NoSuchType(String),
    /// Nobody has allowed the path.
    #[error(
        "the host path `{0}` is not allowed on this node; use emptyDir or persistentVolumeClaim, or start the agent with --allow-host-path"
    )]
    NotAllowed(String),
    /// The host has no memory that looks like files.
    #[error("this node cannot keep an emptyDir in memory; use the default medium")]
    NoMemory,
    /// A name that could leave the directory of volumes.
    #[error("`{0}` cannot be the name of a volume's directory")]
    BadName(String),
    /// Nothing is there to be mounted.
    #[error("the subPath `{0}` does not exist in the volume, and is not made where it is mounted read-only")]
    NoSubPath(String),
    /// A link leads out of the volume.
    #[error("the subPath `{0}` leaves its volume")]
    Escapes(String),
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> DiskError + '_ {
    move |source| {
        tracing::debug!(path = %path.display(), %source, "a volume cannot be used");
        DiskError::Io(source)
    }
}

/// Makes the files of a volume be `files`, all at one moment. Does nothing if they are.
pub(crate) fn write_files(dir: &Path, files: &BTreeMap<String, FilePlan>) -> Result<bool, DiskError> {
    fs::create_dir_all(dir).map_err(io_at(dir))?;
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && read_files(&dir.join(current)).is_ok_and(|found| found == contents(files))
    {
        return Ok(false);
    }
    let generation = next_generation(current.as_deref());
    let fresh = dir.join(&generation);
    // What an interrupted update left.
    remove_if_there(fs::remove_dir_all(&fresh), &fresh)?;
    write_generation(&fresh, files)?;
    let next = dir.join(DATA_NEXT);
    remove_if_there(fs::remove_file(&next), &next)?;
    symlink(&generation, &next).map_err(io_at(&next))?;
    fs::rename(&next, dir.join(DATA)).map_err(io_at(&next))?;
    link_names(dir, files)?;
    if let Some(old) = current.filter(|old| *old != Path::new(&generation)) {
        let old = dir.join(old);
        remove_if_there(fs::remove_dir_all(&old), &old)?;
    }
    Ok(true)
}

fn contents(files: &BTreeMap<String, FilePlan>) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(path, file)| (path.clone(), file.bytes.clone())).collect()
}

/// `..gen1`, `..gen2`, …
fn next_generation(current: Option<&Path>) -> String {
    let number = current.and_then(|c| c.to_str()?.strip_prefix("..gen")?.parse::<u64>().ok());
    format!("..gen{}", number.unwrap_or(0) + 1)
}

fn write_generation(dir: &Path, files: &BTreeMap<String, FilePlan>) -> Result<(), DiskError> {
    fs::create_dir_all(dir).map_err(io_at(dir))?;
    for (name, file) in files {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io_at(parent))?;
        }
        fs::write(&path, &file.bytes).map_err(io_at(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)).map_err(io_at(&path))?;
    }
    Ok(())
}

/// Makes a link into `..data` for each visible name, and removes those of names that are gone.
fn link_names(dir: &Path, files: &BTreeMap<String, FilePlan>) -> Result<(), DiskError> {
    let names: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &names {
        let link = dir.join(name);
        match symlink(Path::new(DATA).join(name), &link) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(io_at(&link))?,
        }
    }
    for entry in fs::read_dir(dir).map_err(io_at(dir))?.flatten() {
        let name = entry.file_name();
        let stale = name.to_str().is_some_and(|name| !name.starts_with("..") && !names.contains(name));
        if stale {
            fs::remove_file(entry.path()).map_err(io_at(&entry.path()))?;
        }
    }
    Ok(())
}

fn read_files(dir: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(dir.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                open.push(path);
            } else if let Some(name) = path.to_str() {
                files.insert(name.to_owned(), fs::read(entry.path())?);
            }
        }
    }
    Ok(files)
}

fn remove_if_there(result: io::Result<()>, path: &Path) -> Result<(), DiskError> {
    match result {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(io_at(path)),
    }
}

/// The mount of a container, with what it needs on disk: a directory, or a single file.
pub(crate) fn mount(volume: &Path, plan: &MountPlan) -> Result<Mount, DiskError> {
    if !volume.exists() {
        fs::create_dir_all(volume).map_err(io_at(volume))?;
    }
    let host = if plan.sub_path.is_empty() { volume.to_owned() } else { sub_path(volume, plan)? };
    let volume = Some(plan.volume.clone());
    Ok(Mount { host, guest: plan.guest.clone(), read_only: plan.read_only, volume })
}

/// A guest may have made links in a volume: what they lead to must lie inside of it, before anything is made there.
fn sub_path(volume: &Path, plan: &MountPlan) -> Result<PathBuf, DiskError> {
    let (root, path) = (fs::canonicalize(volume).map_err(io_at(volume))?, volume.join(&plan.sub_path));
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(volume);
    let real = fs::canonicalize(there).map_err(io_at(there))?;
    if !real.starts_with(&root) {
        return Err(DiskError::Escapes(plan.sub_path.clone()));
    }
    if there == path {
        return Ok(real);
    }
    if plan.read_only {
        return Err(DiskError::NoSubPath(plan.sub_path.clone()));
    }
    fs::create_dir_all(&path).map_err(io_at(&path))?;
    fs::canonicalize(&path).map_err(io_at(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> BTreeMap<String, FilePlan> {
        let one = |(path, text): &(&str, &str)| {
            ((*path).to_owned(), FilePlan { bytes: text.as_bytes().to_vec(), mode: 0o644 })
        };
        pairs.iter().map(one).collect()
    }

    fn visible(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_change_together() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("v");
        assert!(write_files(&dir, &files(&[("a", "1"), ("sub/b", "2")])).unwrap());
        assert_eq!(visible(&dir), ["..data", "..gen1", "a", "sub"]);
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        let open = fs::read_link(dir.join("a")).unwrap();
        assert_eq!(open, Path::new("..data/a"));

        assert!(!write_files(&dir, &files(&[("a", "1"), ("sub/b", "2")])).unwrap(), "nothing changed");
        assert!(write_files(&dir, &files(&[("a", "3"), ("c", "4")])).unwrap());
        assert_eq!(visible(&dir), ["..data", "..gen2", "a", "c"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
    }

    /// Whoever goes by `..data` finds all files of one content, or, if it is replaced meanwhile, none.
    #[test]
    fn a_reader_never_sees_a_mix() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().to_owned();
        write_files(&dir, &files(&[("a", "0"), ("sub/b", "0")])).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for round in 1..=500 {
                    let word = round.to_string();
                    write_files(&dir, &files(&[("a", &word), ("sub/b", &word)])).unwrap();
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let mut whole = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) || whole == 0 {
                let now = dir.join(fs::read_link(dir.join(DATA)).expect("there is always a content"));
                if let (Ok(a), Ok(b)) = (fs::read(now.join("a")), fs::read(now.join("sub/b"))) {
                    assert_eq!(a, b);
                    whole += 1;
                }
            }
        });
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "500");
    }

    #[test]
    fn an_interrupted_update_is_done_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        write_files(dir, &files(&[("a", "1")])).unwrap();
        fs::create_dir(dir.join("..gen2")).unwrap();
        fs::write(dir.join("..gen2/half"), "x").unwrap();
        symlink("..gen2", dir.join(DATA_NEXT)).unwrap();
        write_files(dir, &files(&[("a", "2")])).unwrap();
        assert_eq!(visible(dir), ["..data", "..gen2", "a"]);
        assert_eq!(visible(&dir.join("..data")), ["a"]);
    }

    #[test]
    fn a_sub_path_is_made_and_cannot_leave_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("pods/v");
        let plan = |sub_path: &str| MountPlan {
            volume: "v".into(),
            sub_path: sub_path.into(),
            guest: "/data".into(),
            read_only: false,
        };
        let made = mount(&volume, &plan("a/b")).unwrap();
        assert!(made.host.is_dir() && made.host.ends_with("a/b"));
        symlink("../..", volume.join("out")).unwrap();
        for sub_path in ["out", "out/made"] {
            assert!(matches!(mount(&volume, &plan(sub_path)), Err(DiskError::Escapes(_))), "{sub_path}");
        }
        assert!(!root.path().join("made").exists(), "nothing is made outside");
        let read_only = MountPlan { read_only: true, ..plan("none") };
        let error = mount(&volume, &read_only).unwrap_err().to_string();
        assert!(error.contains("`none` does not exist") && !error.contains("pods/v"), "{error}");
        fs::write(volume.join("file"), "").unwrap();
        assert!(mount(&volume, &plan("file")).unwrap().host.is_file());
    }
}
