//! What a container sees of files: the directories of its volumes, single files of volumes, and the small files that
//! every container has.
//!
//! A guest can be given directories only. A single file is therefore put into a directory of its own, which is mounted
//! where the file's parent is to be seen; as a second name of the same file, so that what is written to it reaches the
//! volume.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use dhow_agent::files::MESSAGE_BYTES_MAX;
use dhow_runtime_contract::{Mount, Scratch};

/// What a container sees.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) mounts: Vec<Mount>,
    pub(crate) scratch: Vec<Scratch>,
}

/// Why a view cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ViewError {
    /// A file and a directory want the same place.
    #[error(
        "the file `{file}` cannot be mounted into the volume at `{dir}`: mount it elsewhere, or put it into that volume"
    )]
    Nested {
        /// The file.
        file: String,
        /// The directory.
        dir: String,
    },
    /// A file of another file system cannot have a second name here.
    #[error(
        "the file `{0}` can only be mounted with `readOnly: true`: it lies on another file system than the node's data"
    )]
    OtherFileSystem(String),
    /// The disk said no.
    #[error("the file `{file}` cannot be mounted")]
    Io {
        /// The file.
        file: String,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
}

impl View {
    /// From what the container mounts, directories and files, and the files that it has anyway; `private` is a directory
    /// for what is made for this container alone. What is there of an earlier call stays.
    pub(crate) fn make(private: &Path, mounted: Vec<Mount>, own: Vec<(String, String)>) -> Result<Self, ViewError> {
        let (files, mounts): (Vec<_>, Vec<_>) = mounted.into_iter().partition(|mount| mount.host.is_file());
        let mut view = View { mounts, scratch: Vec::new() };
        let mut groups: BTreeMap<&str, Vec<(&str, &Mount)>> = BTreeMap::new();
        for file in &files {
            let (parent, name) = split(&file.guest);
            if let Some(dir) = view.mounts.iter().find(|mount| same(&mount.guest, parent)) {
                return Err(ViewError::Nested { file: file.guest.clone(), dir: dir.guest.clone() });
            }
            groups.entry(parent).or_default().push((name, file));
        }
        let groups: Vec<Mount> =
            groups.into_iter().map(|(parent, files)| group(private, parent, &files)).collect::<Result<_, _>>()?;
        view.add_own(private, &groups, own)?;
        view.mounts.extend(groups);
        Ok(view)
    }

    /// The files that lie in a volume are the volume's; those that lie beside mounted files go to them.
    fn add_own(&mut self, private: &Path, groups: &[Mount], own: Vec<(String, String)>) -> Result<(), ViewError> {
        for (path, content) in own {
            let (parent, name) = split(&path);
            if self.mounts.iter().any(|mount| inside(&path, &mount.guest).is_some()) {
                continue;
            }
            if let Some(group) = groups.iter().find(|group| same(&group.guest, parent)) {
                let file = group.host.join(name);
                if !file.exists() {
                    fs::write(&file, content).map_err(|source| ViewError::Io { file: path.clone(), source })?;
                }
                continue;
            }
            let file = (name.to_owned(), content);
            match self.scratch.iter_mut().find(|scratch| scratch.guest == parent) {
                Some(scratch) => scratch.files.push(file),
                None => {
                    let host = private.join(encode(parent));
                    self.scratch.push(Scratch { host, guest: parent.to_owned(), files: vec![file] });
                }
            }
        }
        Ok(())
    }

    /// Where a path of the guest lies on the host: the directory that it sees, and what follows.
    pub(crate) fn locate(&self, path: &str) -> Option<Located> {
        let mounts = self.mounts.iter().map(|mount| (&mount.guest, &mount.host));
        let all = mounts.chain(self.scratch.iter().map(|scratch| (&scratch.guest, &scratch.host)));
        let found = all.filter_map(|(guest, host)| Some((guest.len(), host, inside(path, guest)?)));
        let (_, root, rest) = found.max_by_key(|(length, ..)| *length)?;
        Some(Located { root: root.clone(), rest: PathBuf::from(rest) })
    }
}

/// A file that a guest can write.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    root: PathBuf,
    rest: PathBuf,
}

impl Located {
    /// Whether the directory was ever made.
    pub(crate) fn may_exist(&self) -> bool {
        self.root.exists()
    }

    /// The end of the file as text; empty if there is none. A guest may have put links in its place: they are not
    /// followed out of its directory.
    pub(crate) fn read_end(&self) -> String {
        self.try_read_end().unwrap_or_else(|error| {
            tracing::debug!(%error, "a container left no message that can be read");
            String::new()
        })
    }

    /// Where the file lies, without any link on the way to it.
    pub(crate) fn real(&self) -> io::Result<PathBuf> {
        if !self.rest.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let path = self.root.join(&self.rest);
        let parent = fs::canonicalize(path.parent().unwrap_or(&self.root))?;
        if !parent.starts_with(fs::canonicalize(&self.root)?) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        // The files of a ConfigMap are links within their volume.
        let real = fs::canonicalize(parent.join(name))?;
        if real.starts_with(fs::canonicalize(&self.root)?) {
            Ok(real)
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }

    fn try_read_end(&self) -> io::Result<String> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut file = fs::OpenOptions::new().read(true).custom_flags(flags).open(self.real()?)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        file.seek(SeekFrom::Start(metadata.len().saturating_sub(MESSAGE_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A directory with these files. If one of them may be written, those that may not are copies.
fn group(private: &Path, parent: &str, files: &[(&str, &Mount)]) -> Result<Mount, ViewError> {
    let dir = private.join(encode(parent));
    let read_only = files.iter().all(|(_, file)| file.read_only);
    for (name, file) in files {
        let failed = |source| ViewError::Io { file: file.guest.clone(), source };
        fs::create_dir_all(&dir).map_err(failed)?;
        let link = dir.join(name);
        if link.exists() {
            continue;
        }
        if file.read_only && !read_only {
            fs::copy(&file.host, &link).map_err(failed)?;
            continue;
        }
        match fs::hard_link(&file.host, &link) {
            Ok(()) => {}
            Err(_) if file.read_only => drop(fs::copy(&file.host, &link).map_err(failed)?),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                return Err(ViewError::OtherFileSystem(file.guest.clone()));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(Mount { host: dir, guest: parent.to_owned(), read_only, volume: None })
}

/// `/etc/app/x.conf` → `/etc/app`, `x.conf`.
fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None => ("/", path),
    }
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// What of `path` follows the directory `dir`, if it lies in it.
fn inside<'a>(path: &'a str, dir: &str) -> Option<&'a str> {
    path.strip_prefix(dir.trim_end_matches('/'))?.strip_prefix('/').filter(|rest| !rest.is_empty())
}

/// A path as the name of one directory.
fn encode(path: &str) -> String {
    path.replace('%', "%25").replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn own() -> Vec<(String, String)> {
        [("/etc/hosts", "h"), ("/etc/hostname", "n"), ("/dev/termination-log", "")]
            .map(|(path, content)| (path.to_owned(), content.to_owned()))
            .into()
    }

    fn mount(host: &Path, guest: &str, read_only: bool) -> Mount {
        Mount { host: host.to_owned(), guest: guest.to_owned(), read_only, volume: None }
    }

    /// Where the guest sees directories of the container's own, and the files in them.
    fn scratch(view: &View) -> Vec<String> {
        let names = |s: &Scratch| s.files.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
        view.scratch.iter().map(|s| format!("{}: {}", s.guest, names(s))).collect()
    }

    #[test]
    fn a_file_is_mounted_by_a_directory_of_its_own_and_writes_reach_it() {
        let root = tempfile::tempdir().unwrap();
        let (volume, private) = (root.path().join("v"), root.path().join("p"));
        fs::create_dir(&volume).unwrap();
        for name in ["a", "b"] {
            fs::write(volume.join(name), name).unwrap();
        }
        let (a, b) = (volume.join("a"), volume.join("b"));
        let mounted = vec![mount(&a, "/etc/a.conf", false), mount(&b, "/etc/b.conf", true), mount(&volume, "/v", true)];
        let view = View::make(&private, mounted.clone(), own()).unwrap();
        let guests: Vec<_> = view.mounts.iter().map(|m| (m.guest.as_str(), m.read_only)).collect();
        assert_eq!(guests, [("/v", true), ("/etc", false)]);
        assert_eq!(scratch(&view), ["/dev: termination-log"], "the others went to the mounted files");
        let etc = &view.mounts[1].host;
        fs::write(etc.join("a.conf"), "new").unwrap();
        fs::write(etc.join("b.conf"), "new").unwrap();
        assert_eq!(fs::read_to_string(&a).unwrap(), "new");
        assert_eq!(fs::read_to_string(&b).unwrap(), "b", "a read-only one is out of reach");
        assert_eq!(fs::read_to_string(etc.join("hosts")).unwrap(), "h");
        // Another command in the same container sees what is there.
        View::make(&private, mounted, own()).unwrap();
        assert_eq!(fs::read_to_string(etc.join("b.conf")).unwrap(), "new");
    }

    #[test]
    fn a_file_does_not_go_into_another_volume() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("f");
        fs::write(&file, "").unwrap();
        let mounted = vec![mount(root.path(), "/etc/app/", false), mount(&file, "/etc/app/x", false)];
        let error = View::make(&root.path().join("p"), mounted, Vec::new()).unwrap_err().to_string();
        assert!(error.contains("`/etc/app/x`") && error.contains("`/etc/app/`"), "{error}");
    }

    #[test]
    fn what_lies_in_a_volume_is_the_volumes() {
        let root = tempfile::tempdir().unwrap();
        let view = View::make(&root.path().join("p"), vec![mount(root.path(), "/dev", false)], own()).unwrap();
        assert_eq!(scratch(&view), ["/etc: hosts,hostname"]);
        let message = view.locate("/dev/termination-log").unwrap();
        fs::write(root.path().join("termination-log"), "bye").unwrap();
        assert_eq!(message.read_end(), "bye");
        assert!(view.locate("/tmp/x").is_none());
    }

    #[test]
    fn a_message_is_cut_and_links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("dev");
        fs::create_dir(&dir).unwrap();
        fs::write(root.path().join("secret"), "secret").unwrap();
        let view = View { mounts: vec![mount(&dir, "/dev", false)], scratch: Vec::new() };
        let read = |path: &str| view.locate(path).unwrap().read_end();
        fs::write(dir.join("long"), format!("{}end", "x".repeat(5000))).unwrap();
        let long = read("/dev/long");
        assert!(long.len() == 4096 && long.ends_with("end"));
        symlink("../secret", dir.join("link")).unwrap();
        symlink("..", dir.join("up")).unwrap();
        for path in ["/dev/link", "/dev/up/secret", "/dev/../secret", "/dev/none", "/dev/up"] {
            assert_eq!(read(path), "", "{path}");
        }
    }
}
