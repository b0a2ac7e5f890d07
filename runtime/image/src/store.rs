//! The programs that a node has: files by digest, and what names mean which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use dhow_client::Client;
use dhow_files::Access;
use dhow_runtime_contract::PullPolicy;

use crate::manifest::digest_of;
use crate::pull::{self, PullError};
use crate::{IMAGE_BYTES_MAX, Reference};

const BLOBS: &str = "sha256";
const NAMES: &str = "names.json";
const FILE_SCHEME: &str = "file://";

/// A program that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its full name.
    pub reference: String,
    /// The digest of its bytes, `sha256:…`.
    pub digest: String,
    /// The file that holds exactly these bytes.
    pub path: PathBuf,
    /// How many there are.
    pub size: u64,
    /// Whether it was there before it was asked for.
    pub already_present: bool,
}

/// A node's store of images. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    state: Mutex<State>,
    /// One lock a name, so that a name asked for a thousand times at once is fetched once.
    fetching: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct State {
    /// Full name → digest.
    names: BTreeMap<String, String>,
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
        let names = dir.join(NAMES);
        let names = match fs::read(&names) {
            // The map only saves questions: one that cannot be read is forgotten, and names are asked for again.
            Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(io_at(&names)(error)),
        };
        let state = Mutex::new(State { names, ..State::default() });
        Ok(Self { inner: Arc::new(Inner { dir, state, fetching: Mutex::default() }) })
    }

    /// The program that `reference` names. `allow_files` says whether `file:///…` names a file on this node or is
    /// refused.
    pub async fn pull(
        &self,
        reference: &str,
        policy: PullPolicy,
        client: &Client,
        allow_files: bool,
    ) -> Result<Image, PullError> {
        if let Some(path) = reference.strip_prefix(FILE_SCHEME) {
            return self.read_file(reference, path, allow_files).await;
        }
        let parsed = Reference::parse(reference)?;
        let name = parsed.to_string();
        if policy != PullPolicy::Always
            && let Some(image) = self.present(&name).await?
        {
            return Ok(image);
        }
        if policy == PullPolicy::Never {
            return Err(PullError::NotPresent { name });
        }
        if let Some(registry) = &parsed.registry {
            return Err(PullError::ForeignRegistry { name, registry: registry.clone() });
        }
        let turn = lock(&self.inner.fetching).entry(name.clone()).or_default().clone();
        let held = turn.lock().await;
        // Whoever held the turn before has fetched it.
        let fetched = match policy {
            PullPolicy::IfNotPresent => self.present(&name).await?,
            _ => None,
        };
        let image = match fetched {
            Some(image) => Ok(image),
            None => pull::fetch(self, client, &parsed).await,
        };
        drop(held);
        lock(&self.inner.fetching).retain(|_, turn| Arc::strong_count(turn) > 1);
        image
    }

    /// The image under a full name, if it is known and whole.
    async fn present(&self, name: &str) -> Result<Option<Image>, PullError> {
        let Some(digest) = lock(&self.inner.state).names.get(name).cloned() else {
            return Ok(None);
        };
        Ok(self.whole(&digest).await?.map(|size| self.image(name, &digest, size, true)))
    }

    pub(crate) fn image(&self, name: &str, digest: &str, size: u64, already_present: bool) -> Image {
        Image { reference: name.to_owned(), digest: digest.to_owned(), path: self.path(digest), size, already_present }
    }

    /// The size of the file under `digest`, if it is there and has that digest.
    pub(crate) async fn whole(&self, digest: &str) -> Result<Option<u64>, PullError> {
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

    /// Keeps bytes whose digest has been checked.
    pub(crate) async fn keep(&self, digest: &str, bytes: Vec<u8>) -> Result<(), PullError> {
        let path = self.path(digest);
        let target = path.clone();
        blocking(move || dhow_files::write(&target, &bytes, Access::Public)).await.map_err(io_at(&path))?;
        lock(&self.inner.state).checked.insert(digest.to_owned());
        Ok(())
    }

    /// Remembers what a name means.
    pub(crate) async fn name(&self, name: &str, digest: &str) -> Result<(), PullError> {
        let path = self.inner.dir.join(NAMES);
        let store = self.clone();
        let (name, digest, target) = (name.to_owned(), digest.to_owned(), path.clone());
        let write = move || {
            // Written under the lock, so that an older map never replaces a newer one.
            let mut state = lock(&store.inner.state);
            if state.names.get(&name) == Some(&digest) {
                return Ok(());
            }
            state.names.insert(name, digest);
            dhow_files::write(&target, &serde_json::to_vec_pretty(&state.names)?, Access::Public)
        };
        blocking(write).await.map_err(io_at(&path))
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.inner.dir.join(BLOBS).join(format!("{}.wasm", digest.trim_start_matches("sha256:")))
    }

    /// Copies a file of the node into the store, unless it is there as it was. A copy, because the file may change
    /// while containers of it run.
    async fn read_file(&self, name: &str, path: &str, allow_files: bool) -> Result<Image, PullError> {
        let path = PathBuf::from(path);
        if !path.is_absolute() {
            let why = "after `file://` stands an absolute path";
            return Err(PullError::InvalidName { name: name.to_owned(), why: why.to_owned() });
        }
        if !allow_files {
            return Err(PullError::FilesForbidden { name: name.to_owned() });
        }
        let meta = match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return Err(PullError::NotFound { name: name.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PullError::NotFound { name: name.to_owned() });
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
            return Ok(self.image(name, &digest, size, true));
        }
        let from = path.clone();
        let bytes = blocking(move || fs::read(from)).await.map_err(io_at(&path))?;
        let (digest, len) = (digest_of(&bytes), bytes.len() as u64);
        let already_present = self.whole(&digest).await?.is_some();
        if !already_present {
            self.keep(&digest, bytes).await?;
        }
        let seen = SeenFile { modified, size, digest: digest.clone() };
        lock(&self.inner.state).files.insert(path, seen);
        Ok(self.image(name, &digest, len, already_present))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> PullError {
    let path = path.to_owned();
    move |source| PullError::Io { path, source }
}

/// A panic while the lock is held leaves maps behind that are still sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
