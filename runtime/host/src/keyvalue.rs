//! `wasi:keyvalue`: buckets of keys and values on volumes.
//!
//! A bucket is the volume that the container mounts under its name; `default` is there in any case. Two drafts are
//! offered, `0.2.0-draft2` (Spin) and `0.2.0-draft` (wasmCloud): they differ in numbers, cursors and one list.
//! Changes of one bucket follow one another, whichever containers of the node make them.

use std::io;
use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Linker, LinkerInstance, Lower, Resource, ResourceType};

use crate::guest::Guest;
use crate::stores::{DEFAULT, Dir, Locked, Stores, blocking};

/// Every interface that is offered.
pub(crate) const INTERFACES: &[&str] = &[
    "wasi:keyvalue/atomics@0.2.0-draft",
    "wasi:keyvalue/atomics@0.2.0-draft2",
    "wasi:keyvalue/batch@0.2.0-draft",
    "wasi:keyvalue/batch@0.2.0-draft2",
    "wasi:keyvalue/store@0.2.0-draft",
    "wasi:keyvalue/store@0.2.0-draft2",
];

/// The largest value that is read: host memory holds it until the guest has it. Writing more fails, too.
const VALUE_BYTES_MAX: usize = 32 << 20;
/// Keys that one answer lists; a guest asks again for more.
const KEYS_MAX: usize = 1000;

/// A failure that the guest sees.
#[derive(ComponentType, Debug, Lower, PartialEq)]
#[component(variant)]
enum Error {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::AccessDenied,
            _ => Self::Other(error.to_string()),
        }
    }
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct KeysDraft {
    keys: Vec<String>,
    cursor: Option<u64>,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct KeysDraft2 {
    keys: Vec<String>,
    cursor: Option<String>,
}

#[derive(ComponentType, Lower)]
#[component(variant)]
enum CasError {
    #[component(name = "store-error")]
    Store(Error),
    #[component(name = "cas-failed")]
    Failed(Resource<Cas>),
}

/// An open bucket. Without a directory it is one that may only be read and has never been written.
#[derive(Clone)]
struct Bucket {
    dir: Option<Arc<Dir>>,
    read_only: bool,
}

/// A value as it was seen, to be replaced if it still is the same.
struct Cas {
    bucket: Bucket,
    key: String,
    seen: Option<Vec<u8>>,
}

impl Bucket {
    fn open(stores: &Stores, name: &str) -> Result<Self, Error> {
        let place = if name == DEFAULT { stores.default() } else { stores.volume(name) };
        let place = place.ok_or(Error::NoSuchStore)?;
        Ok(Self { dir: place.dir(&["keyvalue"])?.map(Arc::new), read_only: place.read_only })
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        match &self.dir {
            Some(dir) => Ok(dir.read(key, VALUE_BYTES_MAX)?),
            None => Ok(None),
        }
    }

    fn exists(&self, key: &str) -> Result<bool, Error> {
        match &self.dir {
            Some(dir) => Ok(dir.open(key)?.is_some()),
            None => Ok(false),
        }
    }

    fn keys(&self) -> Result<Vec<String>, Error> {
        match &self.dir {
            Some(dir) => Ok(dir.names()?),
            None => Ok(Vec::new()),
        }
    }

    /// Changes it while nobody else does.
    fn change<T>(&self, work: impl FnOnce(&Dir, &Locked) -> Result<T, Error>) -> Result<T, Error> {
        match &self.dir {
            Some(dir) if !self.read_only => work(dir, &dir.lock()?),
            _ => Err(Error::AccessDenied),
        }
    }

    fn set_many(&self, pairs: &[(String, Vec<u8>)]) -> Result<(), Error> {
        self.change(|dir, locked| pairs.iter().try_for_each(|(key, value)| set(dir, key, value, locked)))
    }

    fn delete_many(&self, keys: &[String]) -> Result<(), Error> {
        self.change(|dir, locked| keys.iter().try_for_each(|key| Ok(dir.remove(key, locked)?)))
    }

    /// Adds to the number that is written in decimal digits; one that is not there is 0.
    fn increment(&self, key: &str, add: impl FnOnce(&str) -> Option<String>) -> Result<String, Error> {
        self.change(|dir, locked| {
            let old = dir.read(key, VALUE_BYTES_MAX)?.unwrap_or_else(|| b"0".to_vec());
            let sum = std::str::from_utf8(&old).ok().and_then(|old| add(old.trim()));
            let sum = sum.ok_or_else(|| Error::Other(format!("`{key}` holds no number, or one that is too large")))?;
            set(dir, key, sum.as_bytes(), locked)?;
            Ok(sum)
        })
    }

    fn swap(&self, key: &str, seen: Option<&[u8]>, value: &[u8]) -> Result<bool, Error> {
        self.change(|dir, locked| {
            let same = dir.read(key, VALUE_BYTES_MAX)?.as_deref() == seen;
            if same {
                set(dir, key, value, locked)?;
            }
            Ok(same)
        })
    }
}

fn set(dir: &Dir, key: &str, value: &[u8], locked: &Locked) -> Result<(), Error> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Error::Other(format!("a value has at most {VALUE_BYTES_MAX} bytes, this has {}", value.len())));
    }
    Ok(dir.write(key, value, locked)?)
}

fn add_signed(delta: i64) -> impl FnOnce(&str) -> Option<String> {
    move |old| Some(old.parse::<i64>().ok()?.checked_add(delta)?.to_string())
}

fn add_unsigned(delta: u64) -> impl FnOnce(&str) -> Option<String> {
    move |old| Some(old.parse::<u64>().ok()?.checked_add(delta)?.to_string())
}

fn parsed<T: std::str::FromStr>(sum: Result<String, Error>) -> Result<T, Error> {
    sum?.parse().map_err(|_| Error::Other("the sum is no number".to_owned()))
}

type Store<'a> = StoreContextMut<'a, Guest>;
type Of = Resource<Bucket>;

/// Does something with a bucket where that may touch the disk.
async fn with<T: Send + 'static>(
    store: &mut Store<'_>,
    this: &Of,
    work: impl FnOnce(&Bucket) -> Result<T, Error> + Send + 'static,
) -> wasmtime::Result<(Result<T, Error>,)> {
    let bucket = store.data_mut().table().get(this)?.clone();
    Ok((blocking(move || work(&bucket)).await,))
}

/// Links all drafts.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for draft in ["0.2.0-draft", "0.2.0-draft2"] {
        let mut store = linker.instance(&format!("wasi:keyvalue/store@{draft}"))?;
        link_store(&mut store)?;
        if draft == "0.2.0-draft2" {
            link_list_draft2(&mut store)?
        } else {
            link_list_draft(&mut store)?
        }
        let mut batch = linker.instance(&format!("wasi:keyvalue/batch@{draft}"))?;
        link_batch(&mut batch)?;
        if draft == "0.2.0-draft2" {
            link_get_many_draft2(&mut batch)?
        } else {
            link_get_many_draft(&mut batch)?
        }
        let mut atomics = linker.instance(&format!("wasi:keyvalue/atomics@{draft}"))?;
        if draft == "0.2.0-draft2" { link_atomics_draft2(&mut atomics)? } else { link_atomics_draft(&mut atomics)? }
    }
    Ok(())
}

fn link_store(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.resource("bucket", ResourceType::host::<Bucket>(), |mut store, rep| {
        store.data_mut().table().delete(Resource::<Bucket>::new_own(rep))?;
        Ok(())
    })?;
    l.func_wrap_async("open", |mut store: Store<'_>, (name,): (String,)| {
        Box::new(async move {
            let stores = store.data().stores.clone();
            Ok((match blocking(move || Bucket::open(&stores, &name)).await {
                Ok(bucket) => Ok(store.data_mut().table().push(bucket)?),
                Err(error) => Err(error),
            },))
        })
    })?;
    l.func_wrap_async("[method]bucket.get", |mut store: Store<'_>, (this, key): (Of, String)| {
        Box::new(async move { with(&mut store, &this, move |bucket| bucket.get(&key)).await })
    })?;
    l.func_wrap_async("[method]bucket.set", |mut store: Store<'_>, (this, key, value): (Of, String, Vec<u8>)| {
        Box::new(async move { with(&mut store, &this, move |bucket| bucket.set_many(&[(key, value)])).await })
    })?;
    l.func_wrap_async("[method]bucket.delete", |mut store: Store<'_>, (this, key): (Of, String)| {
        Box::new(async move { with(&mut store, &this, move |bucket| bucket.delete_many(&[key])).await })
    })?;
    l.func_wrap_async("[method]bucket.exists", |mut store: Store<'_>, (this, key): (Of, String)| {
        Box::new(async move { with(&mut store, &this, move |bucket| bucket.exists(&key)).await })
    })
}

/// A cursor of `0.2.0-draft` says how many keys have been told; one of a key that is removed meanwhile is off by one.
fn link_list_draft(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.func_wrap_async("[method]bucket.list-keys", |mut store: Store<'_>, (this, cursor): (Of, Option<u64>)| {
        let page = move |bucket: &Bucket| {
            let begin = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
            let all = bucket.keys()?;
            let keys: Vec<String> = all.iter().skip(begin).take(KEYS_MAX).cloned().collect();
            let end = begin.saturating_add(keys.len());
            Ok(KeysDraft { keys, cursor: (end < all.len()).then_some(end as u64) })
        };
        Box::new(async move { with(&mut store, &this, page).await })
    })
}

/// A cursor of `0.2.0-draft2` is the last key that has been told.
fn link_list_draft2(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.func_wrap_async("[method]bucket.list-keys", |mut store: Store<'_>, (this, cursor): (Of, Option<String>)| {
        let page = move |bucket: &Bucket| {
            let mut keys = bucket.keys()?;
            keys.retain(|key| cursor.as_ref().is_none_or(|told| key > told));
            let more = keys.len() > KEYS_MAX;
            keys.truncate(KEYS_MAX);
            let cursor = keys.last().filter(|_| more).cloned();
            Ok(KeysDraft2 { keys, cursor })
        };
        Box::new(async move { with(&mut store, &this, page).await })
    })
}

fn link_batch(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.func_wrap_async("set-many", |mut store: Store<'_>, (this, pairs): (Of, Vec<(String, Vec<u8>)>)| {
        Box::new(async move { with(&mut store, &this, move |bucket| bucket.set_many(&pairs)).await })
    })?;
    l.func_wrap_async("delete-many", |mut store: Store<'_>, (this, keys): (Of, Vec<String>)| {
        Box::new(async move { with(&mut store, &this, move |bucket| bucket.delete_many(&keys)).await })
    })
}

fn link_get_many_draft(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.func_wrap_async("get-many", |mut store: Store<'_>, (this, keys): (Of, Vec<String>)| {
        let get = move |bucket: &Bucket| {
            let pair = |key: String| Ok(bucket.get(&key)?.map(|value| (key, value)));
            keys.into_iter().map(pair).collect::<Result<Vec<_>, Error>>()
        };
        Box::new(async move { with(&mut store, &this, get).await })
    })
}

fn link_get_many_draft2(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.func_wrap_async("get-many", |mut store: Store<'_>, (this, keys): (Of, Vec<String>)| {
        let get = move |bucket: &Bucket| {
            let pair = |key: String| bucket.get(&key).map(|value| (key, value));
            keys.into_iter().map(pair).collect::<Result<Vec<_>, Error>>()
        };
        Box::new(async move { with(&mut store, &this, get).await })
    })
}

fn link_atomics_draft(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.func_wrap_async("increment", |mut store: Store<'_>, (this, key, delta): (Of, String, u64)| {
        let increment = move |bucket: &Bucket| parsed::<u64>(bucket.increment(&key, add_unsigned(delta)));
        Box::new(async move { with(&mut store, &this, increment).await })
    })
}

fn link_atomics_draft2(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.func_wrap_async("increment", |mut store: Store<'_>, (this, key, delta): (Of, String, i64)| {
        let increment = move |bucket: &Bucket| parsed::<i64>(bucket.increment(&key, add_signed(delta)));
        Box::new(async move { with(&mut store, &this, increment).await })
    })?;
    l.resource("cas", ResourceType::host::<Cas>(), |mut store, rep| {
        store.data_mut().table().delete(Resource::<Cas>::new_own(rep))?;
        Ok(())
    })?;
    l.func_wrap_async("[static]cas.new", |mut store: Store<'_>, (this, key): (Of, String)| {
        Box::new(async move {
            let bucket = store.data_mut().table().get(&this)?.clone();
            let (seen, of) = (key.clone(), bucket.clone());
            Ok((match blocking(move || of.get(&seen)).await {
                Ok(seen) => Ok(store.data_mut().table().push(Cas { bucket, key, seen })?),
                Err(error) => Err(error),
            },))
        })
    })?;
    l.func_wrap("[method]cas.current", |mut store: Store<'_>, (this,): (Resource<Cas>,)| {
        let seen = store.data_mut().table().get(&this)?.seen.clone();
        Ok((Ok::<_, Error>(seen),))
    })?;
    l.func_wrap_async("swap", |mut store: Store<'_>, (this, value): (Resource<Cas>, Vec<u8>)| {
        Box::new(async move {
            let Cas { bucket, key, seen } = store.data_mut().table().delete(this)?;
            let (of, name) = (bucket.clone(), key.clone());
            let swapped = blocking(move || match of.swap(&name, seen.as_deref(), &value)? {
                true => Ok(None),
                // The guest goes on from what is there now.
                false => Ok(Some(of.get(&name)?)),
            });
            Ok((match swapped.await {
                Ok(None) => Ok(()),
                Ok(Some(seen)) => Err(CasError::Failed(store.data_mut().table().push(Cas { bucket, key, seen })?)),
                Err(error) => Err(CasError::Store(error)),
            },))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_runtime_contract::Mount;
    use std::path::Path;

    fn stores(root: &Path, read_only: bool) -> Stores {
        let mount = Mount { host: root.to_owned(), guest: "/x".into(), read_only, volume: Some("data".into()) };
        Stores::new(&[mount], None)
    }

    #[test]
    fn a_bucket_is_a_volume_and_lasts() {
        let root = tempfile::tempdir().unwrap();
        let writable = stores(root.path(), false);
        assert_eq!(Bucket::open(&writable, "other").err(), Some(Error::NoSuchStore));
        assert_eq!(Bucket::open(&writable, "default").err(), Some(Error::NoSuchStore), "there is no place for it");
        let never_written = Bucket::open(&stores(root.path(), true), "data").unwrap();
        assert_eq!((never_written.get("a"), never_written.keys()), (Ok(None), Ok(Vec::new())));
        let bucket = Bucket::open(&writable, "data").unwrap();
        bucket.set_many(&[("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())]).unwrap();
        bucket.delete_many(&["b".into(), "c".into()]).unwrap();
        let again = Bucket::open(&stores(root.path(), true), "data").unwrap();
        assert_eq!((again.get("a"), again.exists("b")), (Ok(Some(b"1".to_vec())), Ok(false)));
        assert_eq!(again.set_many(&[("a".into(), Vec::new())]), Err(Error::AccessDenied));
    }

    #[test]
    fn changes_of_one_key_follow_one_another() {
        let root = tempfile::tempdir().unwrap();
        let stores = stores(root.path(), false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let bucket = Bucket::open(&stores, "data").unwrap();
                    (0..10).for_each(|_| drop(bucket.increment("n", add_signed(1)).unwrap()));
                });
            }
        });
        let bucket = Bucket::open(&stores, "data").unwrap();
        assert_eq!(bucket.get("n"), Ok(Some(b"40".to_vec())));
        assert!(bucket.increment("n", add_signed(i64::MAX)).is_err());
        assert_eq!(bucket.increment("n", add_signed(-50)), Ok("-10".to_owned()));
        assert!(bucket.increment("n", add_unsigned(1)).is_err());
        assert_eq!(bucket.swap("n", Some(b"x"), b"y"), Ok(false));
        assert_eq!(bucket.swap("n", Some(b"-10"), b"y"), Ok(true));
        assert_eq!(bucket.swap("m", None, b"z"), Ok(true));
        assert_eq!(bucket.keys().unwrap(), ["m", "n"]);
    }
}
