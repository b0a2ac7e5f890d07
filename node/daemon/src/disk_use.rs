//! How much of the disk a pod takes: what its containers have for themselves, their logs, its `emptyDir` volumes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes and files of a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.files += other.files;
    }
}

/// What one container takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerDisk {
    /// Files of its own.
    pub(crate) own: Taken,
    /// Its logs, also those of earlier runs.
    pub(crate) logs: Taken,
}

/// What one pod takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskUse {
    pub(crate) containers: BTreeMap<String, ContainerDisk>,
    /// By the name of an `emptyDir`.
    pub(crate) volumes: BTreeMap<String, Taken>,
}

impl DiskUse {
    /// Everything.
    pub(crate) fn total(&self) -> Taken {
        let mut total = Taken::default();
        for container in self.containers.values() {
            total += container.own;
            total += container.logs;
        }
        self.volumes.values().for_each(|taken| total += *taken);
        total
    }
}

/// Where a pod's things lie.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// By container: its own files, and its logs.
    pub(crate) containers: BTreeMap<String, (PathBuf, PathBuf)>,
    pub(crate) volumes: BTreeMap<String, PathBuf>,
}

/// Walks all of it. Blocks.
pub(crate) fn measure(places: &Places) -> DiskUse {
    let containers = places.containers.iter().map(|(name, (own, logs))| {
        let disk = ContainerDisk { own: taken(own), logs: taken(logs) };
        (name.clone(), disk)
    });
    let volumes = places.volumes.iter().map(|(name, path)| (name.clone(), taken(path)));
    DiskUse { containers: containers.collect(), volumes: volumes.collect() }
}

/// What a directory takes, links not followed. What vanishes meanwhile, or cannot be read, takes nothing; nor does a
/// directory that was never made.
fn taken(root: &Path) -> Taken {
    let mut taken = Taken::default();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            // Blocks of 512 bytes, whatever the file system's own are: what is really taken, not how long a file says it is.
            taken += Taken { bytes: meta.blocks().saturating_mul(512), files: 1 };
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_directory_counts_and_what_a_link_shows_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (data, elsewhere) = (dir.path().join("data"), dir.path().join("elsewhere"));
        std::fs::create_dir_all(data.join("a/b")).unwrap();
        std::fs::write(data.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        std::fs::write(&elsewhere, vec![1; 4 << 20]).unwrap();
        std::os::unix::fs::symlink(&elsewhere, data.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), data.join("loop")).unwrap();
        // A file with a hole takes what is in it, not what is said of it.
        std::fs::File::create(data.join("hole")).unwrap().set_len(1 << 30).unwrap();
        let places = Places {
            containers: BTreeMap::from([("c".to_owned(), (dir.path().join("never"), data.join("a")))]),
            volumes: BTreeMap::from([("v".to_owned(), data.clone())]),
        };
        let found = measure(&places);
        let (volume, logs) = (found.volumes["v"], found.containers["c"].logs);
        assert_eq!((volume.files, logs.files, found.containers["c"].own), (6, 2, Taken::default()));
        assert!((1 << 20..2 << 20).contains(&volume.bytes) && volume.bytes >= logs.bytes, "{found:?}");
        assert_eq!(found.total().bytes, volume.bytes + logs.bytes);
    }
}
