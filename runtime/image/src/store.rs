//! The programs that a node has: files by digest, and what names mean which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use dhow_files::{Access, NewFile};
use dhow_runtime_contract::PullPolicy;

use serde::{Deserialize, Serialize};

use crate::config::file_name;
use crate::manifest::{Defaults, digest_of};
use crate::pull::{self, PullError, Sources};
use crate::{IMAGE_BYTES_MAX, Reference};

const BLOBS: &str = "sha256";
const NAMES: &str = "names.json";
/// Where layers lie while programs are taken out of them.
const SCRATCH: &str = "unpacking";
const FILE_SCHEME: &str = "file://";

/// A program that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its full name.
    pub reference: String,
    /// The digest of the program's bytes, `sha256:…`.
    pub digest: String,
    /// The digest that a registry knows the image by: its manifest's; the program's of a file.
    pub manifest: String,
    /// The file that holds exactly these bytes.
    pub path: PathBuf,
    /// How many there are.
    pub size: u64,
    /// Whether it was there before it was asked for.
    pub already_present: bool,
    /// How it is started where its Pod does not say.
    pub defaults: Defaults,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) manifest: String,
    pub(crate) program: String,
    pub(crate) size: u64,
    /// The fingerprint of the key by which it is signed, if that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signed_by: Option<String>,
    /// The fingerprint of what had to be shown to get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shown: Option<String>,
    #[serde(default)]
    pub(crate) defaults: Defaults,
}

/// A program in the store, for those who decide what stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The digest of its bytes.
    pub digest: String,
    /// The names that stand for it, by tag and by digest.
    pub names: Vec<String>,
    /// How many bytes it has.
    pub size: u64,
    /// When it was last asked for.
    pub used: SystemTime,
}

/// A node's store of images. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    state: Mutex<State>,
    /// Counts what came and what went.
    changes: AtomicU64,
    /// One lock a name, so that a name asked for a thousand times at once is fetched once.
    fetching: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct State {
    /// By full name.
    names: BTreeMap<String, Record>,
    /// When programs were last asked for, by digest.
    used: BTreeMap<String, SystemTime>,
    /// Digests whose files have been checked since the start.
    checked: BTreeSet<String>,
    /// Files on the node that were read, and their state then.
    files: BTreeMap<PathBuf, SeenFile>,
}

struct SeenFile {
    modified: Option<SystemTime>,
    size: u64,
    digest: String,
}

impl Store {
    /// Opens the store in `dir`, making it if need be.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, PullError> {
        let dir = dir.as_ref().to_owned();
        let blobs = dir.join(BLOBS);
        fs::create_dir_all(&blobs).and_then(|()| dhow_files::remove_unfinished(&blobs)).map_err(io_at(&blobs))?;
        match fs::remove_dir_all(dir.join(SCRATCH)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_at(&dir)(error)),
            _ => {}
        }
        let names = dir.join(NAMES);
        let names = match fs::read(&names) {
            // The map only saves questions: one that cannot be read is forgotten, and names are asked for again.
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(io_at(&names)(error)),
        };
        let state = Mutex::new(State { names, ..State::default() });
        Ok(Self { inner: Arc::new(Inner { dir, state, changes: AtomicU64::new(0), fetching: Mutex::default() }) })
    }

    /// The program that `reference` names.
    pub async fn pull(&self, reference: &str, policy: PullPolicy, sources: Sources<'_>) -> Result<Image, PullError> {
        if let Some(path) = reference.strip_prefix(FILE_SCHEME) {
            return self.read_file(reference, path, sources).await;
        }
        let parsed = Reference::parse(reference)?;
        let name = parsed.to_string();
        if policy != PullPolicy::Always
            && let Some(image) = self.present(&parsed, &name, sources).await?
        {
            return Ok(image);
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NotPresent { name });
        }
        let turn = lock(&self.inner.fetching).entry(name.clone()).or_default().clone();
        let held = turn.lock().await;
        // Whoever held the turn before has fetched it.
        let fetched = match policy {
            PullPolicy::IfNotPresent => self.present(&parsed, &name, sources).await?,
            _ => None,
        };
        let image = match fetched {
            Some(image) => Ok(image),
            None => pull::fetch(self, sources, &parsed).await,
        };
        drop(held);
        lock(&self.inner.fetching).retain(|_, turn| Arc::strong_count(turn) > 1);
        image
    }

    /// Whether a pull by this policy would ask a registry.
    pub async fn would_ask(&self, reference: &str, policy: PullPolicy, sources: Sources<'_>) -> bool {
        if reference.starts_with(FILE_SCHEME) || policy == PullPolicy::Never {
            return false;
        }
        let Ok(parsed) = Reference::parse(reference) else { return false };
        policy == PullPolicy::Always || matches!(self.present(&parsed, &parsed.to_string(), sources).await, Ok(None))
    }

    /// The image under a full name, if it is known and whole, and who asks may have it.
    async fn present(
        &self,
        reference: &Reference,
        name: &str,
        sources: Sources<'_>,
    ) -> Result<Option<Image>, PullError> {
        let Some(record) = lock(&self.inner.state).names.get(name).cloned() else {
            return Ok(None);
        };
        if !sources.may_have(reference, &record) {
            return Ok(None);
        }
        Ok(self.whole(&record.program).await?.map(|_| self.image(name, &record, true)))
    }

    pub(crate) fn image(&self, name: &str, record: &Record, already_present: bool) -> Image {
        Image {
            reference: name.to_owned(),
            digest: record.program.clone(),
            manifest: record.manifest.clone(),
            path: self.path(&record.program),
            size: record.size,
            already_present,
            defaults: record.defaults.clone(),
        }
    }

    /// The program of an image with this digest, if it is here under any name: its digest, size and defaults.
    pub(crate) async fn program_of(&self, manifest: &str) -> Result<Option<(String, u64, Defaults)>, PullError> {
        let found = lock(&self.inner.state).names.values().find(|record| record.manifest == manifest).cloned();
        let Some(Record { program, size, defaults, .. }) = found else { return Ok(None) };
        Ok(self.whole(&program).await?.map(|_| (program, size, defaults)))
    }

    /// All programs that are here.
    pub fn list(&self) -> io::Result<Vec<Kept>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.inner.dir.join(BLOBS))? {
            let entry = entry?;
            let name = entry.file_name();
            // What is being written begins with a dot.
            let Some(hex) =
                name.to_str().and_then(|name| name.strip_suffix(".wasm")).filter(|hex| !hex.starts_with('.'))
            else {
                continue;
            };
            let meta = match entry.metadata() {
                // It went meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                meta => meta?,
            };
            found.push((format!("sha256:{hex}"), meta.len(), meta.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
        }
        let state = lock(&self.inner.state);
        let kept = found.into_iter().map(|(digest, size, modified)| {
            let named = state.names.iter().filter(|(_, record)| record.program == digest);
            let mut names = BTreeSet::new();
            for (name, record) in named {
                let repository = without_tag(name);
                names.insert(format!("{repository}@{}", record.manifest));
                names.insert(name.clone());
            }
            let used = state.used.get(&digest).copied().unwrap_or(modified);
            Kept { digest, names: names.into_iter().collect(), size, used }
        });
        Ok(kept.collect())
    }

    /// Takes a program away with all its names, unless it was asked for after `used`. Says whether it is gone.
    pub async fn remove(&self, digest: &str, used: SystemTime) -> Result<bool, PullError> {
        let path = self.path(digest);
        let names = self.inner.dir.join(NAMES);
        let (store, digest, target) = (self.clone(), digest.to_owned(), path.clone());
        let removed = blocking(move || {
            let mut state = lock(&store.inner.state);
            if state.used.get(&digest).is_some_and(|later| *later > used) {
                return Ok(false);
            }
            match fs::remove_file(&target) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            state.names.retain(|_, record| record.program != digest);
            state.files.retain(|_, seen| seen.digest != digest);
            state.checked.remove(&digest);
            state.used.remove(&digest);
            dhow_files::write(&names, &serde_json::to_vec_pretty(&state.names)?, Access::Public)?;
            Ok(true)
        });
        let removed = removed.await.map_err(io_at(&path))?;
        self.changed();
        Ok(removed)
    }

    /// Notes that a program is in use.
    pub fn touch(&self, digest: &str) {
        lock(&self.inner.state).used.insert(digest.to_owned(), SystemTime::now());
    }

    /// A number that is another one after something came or went.
    pub fn changes(&self) -> u64 {
        self.inner.changes.load(Ordering::Relaxed)
    }

    fn changed(&self) {
        self.inner.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Where the store is.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// A directory for the time of one pull.
    pub(crate) fn scratch(&self) -> io::Result<Scratch> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = self.inner.dir.join(SCRATCH).join(number.to_string());
        fs::create_dir_all(&dir)?;
        Ok(Scratch(dir))
    }

    /// The size of the file under `digest`, if it is there and has that digest.
    pub(crate) async fn whole(&self, digest: &str) -> Result<Option<u64>, PullError> {
        self.touch(digest);
        let path = self.path(digest);
        if lock(&self.inner.state).checked.contains(digest)
            && let Ok(meta) = fs::metadata(&path)
        {
            return Ok(Some(meta.len()));
        }
        let (read, expected) = (path.clone(), digest.to_owned());
        let found = blocking(move || match fs::read(&read) {
            Ok(bytes) => Ok(Some((digest_of(&bytes) == expected, bytes.len() as u64))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
        .map_err(io_at(&path))?;
        match found {
            Some((true, size)) => {
                lock(&self.inner.state).checked.insert(digest.to_owned());
                Ok(Some(size))
            }
            Some((false, _)) => {
                tracing::warn!(path = %path.display(), "an image does not have its digest any more; fetching it again");
                fs::remove_file(&path).map_err(io_at(&path))?;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    /// Keeps a file whose digest has been checked.
    pub(crate) async fn keep(&self, digest: &str, file: NewFile) -> Result<(), PullError> {
        blocking(move || file.commit()).await.map_err(io_at(&self.path(digest)))?;
        self.came(digest);
        Ok(())
    }

    /// Keeps a file that is being made elsewhere on the same disk.
    pub(crate) async fn adopt(&self, digest: &str, file: NewFile, at: PathBuf) -> Result<(), PullError> {
        let path = self.path(digest);
        let target = path.clone();
        let moved = blocking(move || {
            file.commit()?;
            fs::rename(at, &target)?;
            fs::File::open(target.parent().unwrap_or(Path::new("/")))?.sync_all()
        });
        moved.await.map_err(io_at(&path))?;
        self.came(digest);
        Ok(())
    }

    fn came(&self, digest: &str) {
        lock(&self.inner.state).checked.insert(digest.to_owned());
        self.changed();
    }

    /// Remembers what a name means.
    pub(crate) async fn name(&self, name: &str, record: &Record) -> Result<(), PullError> {
        let path = self.inner.dir.join(NAMES);
        let store = self.clone();
        let (name, record, target) = (name.to_owned(), record.clone(), path.clone());
        let write = move || {
            // Written under the lock, so that an older map never replaces a newer one.
            let mut state = lock(&store.inner.state);
            if state.names.get(&name) == Some(&record) {
                return Ok(());
            }
            state.names.insert(name, record);
            dhow_files::write(&target, &serde_json::to_vec_pretty(&state.names)?, Access::Public)?;
            store.changed();
            Ok(())
        };
        blocking(write).await.map_err(io_at(&path))
    }

    pub(crate) fn path(&self, digest: &str) -> PathBuf {
        self.inner.dir.join(BLOBS).join(format!("{}.wasm", digest.trim_start_matches("sha256:")))
    }

    /// Copies a file of the node into the store, unless it is there as it was. A copy, because the file may change
    /// while containers of it run.
    async fn read_file(&self, name: &str, path: &str, sources: Sources<'_>) -> Result<Image, PullError> {
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            let why = "after `file://` stands an absolute path";
            return Err(PullError::InvalidName { name: name.to_owned(), why: why.to_owned() });
        }
        if !sources.allow_files {
            return Err(PullError::FilesForbidden { name: name.to_owned() });
        }
        if sources.registries.keys(&file_name(&path)).is_some() {
            let detail = "a file on the node has no signature; push it and sign it".to_owned();
            return Err(PullError::Unsigned { name: name.to_owned(), detail });
        }
        let meta = match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return Err(PullError::NoSuchFile { name: name.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PullError::NoSuchFile { name: name.to_owned() });
            }
            Err(error) => return Err(io_at(&path)(error)),
        };
        let (modified, size) = (meta.modified().ok(), meta.len());
        if size > IMAGE_BYTES_MAX {
            return Err(PullError::TooLarge { name: name.to_owned(), size });
        }
        let seen = lock(&self.inner.state)
            .files
            .get(&path)
            .filter(|seen| seen.modified.is_some() && seen.modified == modified && seen.size == size)
            .map(|seen| seen.digest.clone());
        if let Some(digest) = seen
            && let Some(size) = self.whole(&digest).await?
        {
            return Ok(self.file(name, &digest, size, true));
        }
        let from = path.clone();
        let bytes = blocking(move || fs::read(from)).await.map_err(io_at(&path))?;
        let (digest, len) = (digest_of(&bytes), bytes.len() as u64);
        let already_present = self.whole(&digest).await?.is_some();
        if !already_present {
            let target = self.path(&digest);
            blocking(move || dhow_files::write(&target, &bytes, Access::Public)).await.map_err(io_at(&path))?;
            self.came(&digest);
        }
        let seen = SeenFile { modified, size, digest: digest.clone() };
        lock(&self.inner.state).files.insert(path, seen);
        Ok(self.file(name, &digest, len, already_present))
    }

    fn file(&self, name: &str, digest: &str, size: u64, already_present: bool) -> Image {
        let (manifest, program) = (digest.to_owned(), digest.to_owned());
        let (signed_by, shown, defaults) = (None, None, Defaults::default());
        self.image(name, &Record { manifest, program, size, signed_by, shown, defaults }, already_present)
    }
}

/// A directory that goes when it is dropped.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "an unpacked image could not be removed");
        }
    }
}

/// The name without its tag and its digest.
fn without_tag(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or_default();
    let tag_at = name.rfind(':').filter(|at| *at > name.rfind('/').unwrap_or(0));
    &name[..tag_at.unwrap_or(name.len())]
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

pub(crate) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> PullError {
    let path = path.to_owned();
    move |source| PullError::Io { path, source }
}

/// A panic while the lock is held leaves maps behind that are still sound.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
