//! Directories in which the host keeps what guests store by name: on volumes, or among a container's own files.
//!
//! A name is one file, so that what is stored can be looked at and copied with ordinary tools; what is written is there
//! whole or not at all, also after a power cut. A guest that sees the same volume as files may put anything there, links
//! too: none is ever followed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use dhow_runtime_contract::Mount;
use rustix::fs::{self as sys, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// The store that is there without a volume. Unless the Pod mounts a volume of this name, it lasts as long as the start
/// of its container.
pub(crate) const DEFAULT: &str = "default";
/// Where all of this lies in a volume. It is hidden, because it is not the guest's own files.
const HIDDEN: &str = ".dhow";
/// The longest file name of Linux, without room for our marks.
const NAME_BYTES_MAX: usize = 240;
/// The file whose lock makes one change follow the other.
const LOCK: &str = ".lock";
/// What begins the name of a file that is being written.
const UNFINISHED: &str = ".new.";

/// Tells the files apart that one process writes at a time.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// What a container may store in.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    /// Where each mounted volume lies, and whether it may only be read.
    volumes: BTreeMap<String, (PathBuf, bool)>,
    own: Option<PathBuf>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    root: PathBuf,
    pub(crate) read_only: bool,
}

impl Stores {
    /// Of several mounts of one volume the first counts.
    pub(crate) fn new(mounts: &[Mount], own: Option<PathBuf>) -> Self {
        let mut volumes = BTreeMap::new();
        for mount in mounts {
            if let Some(volume) = &mount.volume {
                volumes.entry(volume.clone()).or_insert_with(|| (mount.host.clone(), mount.read_only));
            }
        }
        Self { volumes, own }
    }

    /// The volume that the container mounts under this name.
    pub(crate) fn volume(&self, name: &str) -> Option<Place> {
        self.volumes.get(name).map(|(root, read_only)| Place { root: root.clone(), read_only: *read_only })
    }

    /// The store that is there in any case.
    pub(crate) fn default(&self) -> Option<Place> {
        let own = || Some(Place { root: self.own.clone()?, read_only: false });
        self.volume(DEFAULT).or_else(own)
    }
}

#[cfg(feature = "blobstore")]
impl Stores {
    /// A file without a name, for what is on its way into a store.
    pub(crate) fn nameless(&self) -> io::Result<File> {
        let no_place = || io::Error::other("the container has no place for files of its own");
        let own = self.own.as_ref().ok_or_else(no_place)?;
        std::fs::create_dir_all(own)?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        Ok(sys::open(own, flags, Mode::from_raw_mode(0o600))?.into())
    }
}

impl Place {
    /// The directory below the hidden one that these names lead to. `None` if it is not there and may not be made.
    pub(crate) fn dir(&self, path: &[&str]) -> io::Result<Option<Dir>> {
        if !self.read_only {
            std::fs::create_dir_all(&self.root)?;
        }
        let mut dir = Dir::root(&self.root)?;
        for name in [HIDDEN].iter().chain(path) {
            match dir.enter(name, !self.read_only)? {
                Some(below) => dir = below,
                None => return Ok(None),
            }
        }
        if !self.read_only {
            dir.remove_unfinished()?;
        }
        Ok(Some(dir))
    }
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Dir(OwnedFd);

/// While this lives, nobody else changes the directory, on this node.
pub(crate) struct Locked(#[expect(dead_code, reason = "its end is the lock's")] OwnedFd);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Dir {
    fn root(path: &Path) -> io::Result<Self> {
        Ok(Self(sys::open(path, DIRECTORY, Mode::empty())?))
    }

    /// The directory of this name, made if it is to be.
    pub(crate) fn enter(&self, name: &str, make: bool) -> io::Result<Option<Self>> {
        if make {
            match sys::mkdirat(&self.0, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => sys::fsync(&self.0)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match sys::openat(&self.0, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(dir) => Ok(Some(Self(dir))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until nobody else changes the directory.
    pub(crate) fn lock(&self) -> io::Result<Locked> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = sys::openat(&self.0, LOCK, flags, Mode::from_raw_mode(0o644))?;
        loop {
            match sys::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Locked(file)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The file of this name, for reading.
    pub(crate) fn open(&self, name: &str) -> io::Result<Option<File>> {
        // Not to wait for ever at a named pipe that a guest has put there.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match sys::openat(&self.0, encode(name)?, flags, Mode::empty()) {
            Ok(file) if FileType::from_raw_mode(sys::fstat(&file)?.st_mode) == FileType::RegularFile => {
                Ok(Some(file.into()))
            }
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file")),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The content of a file; fails if there is more of it than `bytes_max`.
    #[cfg(any(test, feature = "keyvalue"))]
    pub(crate) fn read(&self, name: &str, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Writes a file, in place of the one that may be there. `content` is copied to its end. The caller holds the lock.
    pub(crate) fn write(&self, name: &str, mut content: impl Read, _: &Locked) -> io::Result<()> {
        let name = encode(name)?;
        let unfinished = format!("{UNFINISHED}{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(sys::openat(&self.0, &unfinished, flags, Mode::from_raw_mode(0o644))?);
        let written = io::copy(&mut content, &mut file).and_then(|_| file.flush()).and_then(|()| file.sync_all());
        let named = written.and_then(|()| Ok(sys::renameat(&self.0, &unfinished, &self.0, &name)?));
        if let Err(error) = named {
            // It is removed at the next start at the latest.
            sys::unlinkat(&self.0, &unfinished, AtFlags::empty()).ok();
            return Err(error);
        }
        Ok(sys::fsync(&self.0)?)
    }

    /// Removes a file; nothing if it is not there.
    pub(crate) fn remove(&self, name: &str, _: &Locked) -> io::Result<()> {
        match sys::unlinkat(&self.0, encode(name)?, AtFlags::empty()) {
            Ok(()) => Ok(sys::fsync(&self.0)?),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(feature = "blobstore")]
    /// Removes a directory below, with the files in it.
    pub(crate) fn remove_dir(&self, name: &str) -> io::Result<()> {
        let Some(dir) = self.enter(name, false)? else { return Ok(()) };
        for file in dir.file_names()? {
            sys::unlinkat(&dir.0, file, AtFlags::empty())?;
        }
        sys::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?;
        Ok(sys::fsync(&self.0)?)
    }

    /// What is stored here, in order.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<String> = self.file_names()?.iter().filter_map(|name| decode(name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    #[cfg(feature = "blobstore")]
    /// When the directory last changed, in seconds since 1970.
    pub(crate) fn modified_s(&self) -> io::Result<u64> {
        Ok(u64::try_from(sys::fstat(&self.0)?.st_mtime).unwrap_or_default())
    }

    fn file_names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in sys::Dir::read_from(&self.0)? {
            let entry = entry?;
            if entry.file_type() != FileType::Directory
                && let Ok(name) = entry.file_name().to_str()
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// What nobody finished: whoever writes holds the lock until the file has its name.
    fn remove_unfinished(&self) -> io::Result<()> {
        let is_unfinished = |name: &String| name.starts_with(UNFINISHED);
        if !self.file_names()?.iter().any(is_unfinished) {
            return Ok(());
        }
        let _locked = self.lock()?;
        for name in self.file_names()?.iter().filter(|name| is_unfinished(name)) {
            sys::unlinkat(&self.0, name.as_str(), AtFlags::empty())?;
        }
        Ok(())
    }
}

#[cfg(feature = "blobstore")]
/// When a file last changed, in seconds since 1970.
pub(crate) fn modified_s(file: &File) -> io::Result<u64> {
    let modified = file.metadata()?.modified()?;
    Ok(modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// A name as that of a file: what might mean something to a file system is written as `%` and two digits.
pub(crate) fn encode(name: &str) -> io::Result<String> {
    let mut file = String::with_capacity(name.len() + 1);
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => file.push(char::from(byte)),
            b'.' if !file.is_empty() => file.push('.'),
            _ => file.push_str(&format!("%{byte:02x}")),
        }
    }
    // A name of nothing is a name, too.
    if file.is_empty() {
        file.push('%');
    }
    if file.len() > NAME_BYTES_MAX {
        let why = format!("a name has at most {NAME_BYTES_MAX} bytes, special characters count three");
        return Err(io::Error::new(io::ErrorKind::InvalidFilename, why));
    }
    Ok(file)
}

fn decode(file: &str) -> Option<String> {
    if file == "%" {
        return Some(String::new());
    }
    if file.starts_with('.') {
        return None;
    }
    let mut bytes = Vec::with_capacity(file.len());
    let mut rest = file.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Runs what touches the disk where that holds up nobody.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn place(root: &Path, read_only: bool) -> Place {
        Place { root: root.to_owned(), read_only }
    }

    #[test]
    fn names_come_back_as_they_were() {
        for name in ["", "a", "a.b", ".", "..", "../../etc/passwd", "a/b", "%", "ü", "A_b-9", "\0\n", "..a"] {
            let file = encode(name).unwrap();
            assert!(!file.contains('/') && !file.starts_with('.') && !file.contains('\0'), "{file}");
            assert_eq!(decode(&file).as_deref(), Some(name), "{file}");
        }
        assert!(encode(&"x".repeat(241)).is_err());
        assert_eq!([decode(".lock"), decode("%zz"), decode("%a"), decode("%ff")], [None, None, None, None]);
    }

    #[test]
    fn what_is_written_is_there_and_what_was_begun_is_not() {
        let root = tempfile::tempdir().unwrap();
        assert!(place(&root.path().join("no"), true).dir(&["kv"]).is_err());
        assert!(place(root.path(), true).dir(&["kv"]).unwrap().is_none(), "what may only be read is not made");
        let dir = place(root.path(), false).dir(&["kv"]).unwrap().unwrap();
        let locked = dir.lock().unwrap();
        dir.write("a/b", &b"one"[..], &locked).unwrap();
        dir.write("a/b", &b"two"[..], &locked).unwrap();
        dir.write("c", &b""[..], &locked).unwrap();
        drop(locked);
        std::fs::write(root.path().join(".dhow/kv/.new.9"), "half").unwrap();
        let dir = place(root.path(), false).dir(&["kv"]).unwrap().unwrap();
        assert_eq!(dir.names().unwrap(), ["a/b", "c"]);
        assert!(!root.path().join(".dhow/kv/.new.9").exists());
        assert_eq!(dir.read("a/b", 3).unwrap().unwrap(), b"two");
        assert!(dir.read("a/b", 2).is_err());
        let locked = dir.lock().unwrap();
        dir.remove("a/b", &locked).unwrap();
        dir.remove("a/b", &locked).unwrap();
        assert_eq!(dir.read("a/b", 3).unwrap(), None);
    }

    #[test]
    fn links_are_not_followed() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        symlink(outside.path(), root.path().join(".dhow")).unwrap();
        assert!(place(root.path(), false).dir(&["kv"]).is_err());
        std::fs::remove_file(root.path().join(".dhow")).unwrap();
        let dir = place(root.path(), false).dir(&["kv"]).unwrap().unwrap();
        symlink(outside.path().join("secret"), root.path().join(".dhow/kv/key")).unwrap();
        assert!(dir.read("key", 100).is_err());
        let locked = dir.lock().unwrap();
        dir.write("key", &b"mine"[..], &locked).unwrap();
        assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
        assert_eq!(dir.read("key", 100).unwrap().unwrap(), b"mine");
    }
}
