//! `wasi:blobstore`, the draft `0.2.0-draft`: containers of objects on volumes.
//!
//! A container is the volume that the Pod mounts under its name; any other name is a container in the volume `default`,
//! or, without one, among the files of this start of the container. An object's content is on disk before its `finish`
//! returns; one that is not finished never was.

use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Read, Seek, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType};
use wasmtime_wasi::p2::pipe::AsyncReadStream;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, OutputStream, Pollable, StreamError, StreamResult};

use crate::guest::Guest;
use crate::stores::{Dir, Place, Stores, blocking, encode, modified_s};

/// Every interface that is offered.
pub(crate) const INTERFACES: &[&str] = &[
    "wasi:blobstore/blobstore@0.2.0-draft",
    "wasi:blobstore/container@0.2.0-draft",
    "wasi:blobstore/types@0.2.0-draft",
];

/// The largest object that is handed over in one piece; a larger one is read as a stream.
const PIECE_BYTES_MAX: u64 = 32 << 20;
/// The largest object that is written. It lies on the node's disk twice until it is finished.
const OBJECT_BYTES_MAX: u64 = 4 << 30;
/// What a guest may write before it waits for the disk.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// The failures of this interface are prose.
type Result<T> = std::result::Result<T, String>;

fn prose(error: io::Error) -> String {
    error.to_string()
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct ContainerMetadata {
    name: String,
    #[component(name = "created-at")]
    created_at: u64,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct ObjectMetadata {
    name: String,
    container: String,
    #[component(name = "created-at")]
    created_at: u64,
    size: u64,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct ObjectId {
    container: String,
    object: String,
}

/// An open container. Without a directory it is one that may only be read and has never been written.
#[derive(Clone)]
struct Container {
    name: String,
    dir: Option<Arc<Dir>>,
    read_only: bool,
}

/// A value on its way in, and where it goes when it is finished.
struct OutgoingValue {
    body: Body,
    taken: bool,
    to: Vec<(Container, String)>,
}

/// A part of an object, which is there even if the object is removed meanwhile.
struct IncomingValue {
    file: File,
    begin: u64,
    len: u64,
}

/// Names of objects that have not been told yet.
struct Names(std::vec::IntoIter<String>);

/// Where containers of other names than volumes' lie.
const CONTAINERS: &str = "containers";

impl Container {
    /// `make`: it is made if it is not there.
    fn open(stores: &Stores, name: &str, make: bool) -> Result<Option<Self>> {
        let of = |place: Place, dir: Option<Dir>| Self {
            name: name.to_owned(),
            dir: dir.map(Arc::new),
            read_only: place.read_only,
        };
        if let Some(place) = stores.volume(name) {
            let dir = place.dir(&["blobs"]).map_err(prose)?;
            return Ok(Some(of(place, dir)));
        }
        let place = stores.default().ok_or("the container has no place for it")?;
        let Some(all) = place.dir(&[CONTAINERS]).map_err(prose)? else { return Ok(None) };
        let dir = all.enter(&encode(name).map_err(prose)?, make && !place.read_only).map_err(prose)?;
        Ok(dir.map(|dir| of(place, Some(dir))))
    }

    fn existing(stores: &Stores, name: &str) -> Result<Self> {
        Self::open(stores, name, false)?.ok_or_else(|| format!("there is no container `{name}`"))
    }

    fn create(stores: &Stores, name: &str) -> Result<Self> {
        if Self::open(stores, name, false)?.is_some() {
            return Err(format!("the container `{name}` is already there"));
        }
        Self::open(stores, name, true)?.ok_or_else(|| "it may only be read".to_owned())
    }

    fn delete(stores: &Stores, name: &str) -> Result<()> {
        if stores.volume(name).is_some() {
            return Err(format!("the container `{name}` is a volume, which is not the program's to delete"));
        }
        let place = stores.default().filter(|place| !place.read_only).ok_or("it may only be read")?;
        match place.dir(&[CONTAINERS]).map_err(prose)? {
            Some(all) => all.remove_dir(&encode(name).map_err(prose)?).map_err(prose),
            None => Ok(()),
        }
    }

    fn object(&self, name: &str) -> Result<Option<File>> {
        self.dir.as_ref().map_or(Ok(None), |dir| dir.open(name).map_err(prose))
    }

    fn existing_object(&self, name: &str) -> Result<File> {
        self.object(name)?.ok_or_else(|| format!("there is no object `{name}` in `{}`", self.name))
    }

    fn names(&self) -> Result<Vec<String>> {
        self.dir.as_ref().map_or(Ok(Vec::new()), |dir| dir.names().map_err(prose))
    }

    fn writable(&self) -> Result<&Dir> {
        self.dir.as_deref().filter(|_| !self.read_only).ok_or_else(|| format!("`{}` may only be read", self.name))
    }

    fn write(&self, name: &str, content: impl Read) -> Result<()> {
        let dir = self.writable()?;
        let locked = dir.lock().map_err(prose)?;
        dir.write(name, content, &locked).map_err(prose)
    }

    fn remove(&self, names: &[String]) -> Result<()> {
        let dir = self.writable()?;
        let locked = dir.lock().map_err(prose)?;
        names.iter().try_for_each(|name| dir.remove(name, &locked)).map_err(prose)
    }

    /// The bytes from `begin` to `end`, both of them included, as far as they are there.
    fn part(&self, name: &str, begin: u64, end: u64) -> Result<IncomingValue> {
        let file = self.existing_object(name)?;
        let len = file.metadata().map_err(prose)?.len();
        let end = end.saturating_add(1).min(len);
        Ok(IncomingValue { file, begin, len: end.saturating_sub(begin) })
    }

    fn info(&self, name: &str) -> Result<ObjectMetadata> {
        let file = self.existing_object(name)?;
        let (created_at, size) = (modified_s(&file).map_err(prose)?, file.metadata().map_err(prose)?.len());
        Ok(ObjectMetadata { name: name.to_owned(), container: self.name.clone(), created_at, size })
    }
}

fn copy(stores: &Stores, from: &ObjectId, to: &ObjectId) -> Result<()> {
    let source = Container::existing(stores, &from.container)?.existing_object(&from.object)?;
    Container::existing(stores, &to.container)?.write(&to.object, source)
}

impl IncomingValue {
    fn read(mut self) -> Result<Vec<u8>> {
        if self.len > PIECE_BYTES_MAX {
            return Err(format!("it has {} bytes; more than {PIECE_BYTES_MAX} are read as a stream", self.len));
        }
        let mut bytes = Vec::with_capacity(self.len as usize);
        self.file.seek(io::SeekFrom::Start(self.begin)).map_err(prose)?;
        self.file.take(self.len).read_to_end(&mut bytes).map_err(prose)?;
        Ok(bytes)
    }
}

/// What has been written of a value: a file without a name, with one write under way at most.
#[derive(Clone)]
struct Body(Arc<Mutex<Spool>>);

enum Spool {
    /// Nothing has been written yet, so there is no file.
    Empty,
    Idle(File, u64),
    Writing(JoinHandle<io::Result<(File, u64)>>),
    Failed(String),
}

impl Body {
    fn lock(&self) -> MutexGuard<'_, Spool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when no write is under way.
    fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut spool = self.lock();
        if let Spool::Writing(write) = &mut *spool {
            *spool = match std::task::ready!(std::pin::Pin::new(write).poll(cx)) {
                Ok(Ok((file, len))) => Spool::Idle(file, len),
                Ok(Err(error)) => Spool::Failed(error.to_string()),
                Err(error) => Spool::Failed(error.to_string()),
            };
        }
        Poll::Ready(())
    }

    /// Everything that has been written, from its begin; `None` is nothing.
    async fn finish(self) -> Result<Option<File>> {
        poll_fn(|cx| self.poll_settled(cx)).await;
        match std::mem::replace(&mut *self.lock(), Spool::Failed("it is finished".to_owned())) {
            Spool::Empty => Ok(None),
            Spool::Idle(file, _) => Ok(Some(file)),
            Spool::Writing(_) => Err("it is still being written".to_owned()),
            Spool::Failed(why) => Err(why),
        }
    }
}

fn append(spooled: Option<(File, u64)>, stores: &Stores, bytes: &[u8]) -> io::Result<(File, u64)> {
    let (mut file, len) = match spooled {
        Some(spooled) => spooled,
        None => (stores.nameless()?, 0),
    };
    let len = len + bytes.len() as u64;
    if len > OBJECT_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {OBJECT_BYTES_MAX} bytes")));
    }
    file.write_all(bytes)?;
    Ok((file, len))
}

/// The stream that a guest writes a value to.
struct BodyStream {
    body: Body,
    stores: Arc<Stores>,
}

impl OutputStream for BodyStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut spool = self.body.lock();
        let spooled = match std::mem::replace(&mut *spool, Spool::Failed("a write broke off".to_owned())) {
            Spool::Empty => None,
            Spool::Idle(file, len) => Some((file, len)),
            other => {
                *spool = other;
                return Err(StreamError::trap("write of more bytes than `check-write` allowed"));
            }
        };
        let stores = self.stores.clone();
        *spool = Spool::Writing(tokio::task::spawn_blocking(move || append(spooled, &stores, &bytes)));
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        if self.body.poll_settled(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Ok(0);
        }
        match &*self.body.lock() {
            Spool::Failed(why) => Err(StreamError::LastOperationFailed(wasmtime::Error::msg(why.clone()))),
            _ => Ok(WRITE_BYTES_MAX),
        }
    }
}

#[async_trait::async_trait]
impl Pollable for BodyStream {
    async fn ready(&mut self) {
        poll_fn(|cx| self.body.poll_settled(cx)).await;
    }
}

type Store<'a> = StoreContextMut<'a, Guest>;
type Of = Resource<Container>;

/// Links the draft.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    link_values(&mut linker.instance("wasi:blobstore/types@0.2.0-draft")?)?;
    let mut container = linker.instance("wasi:blobstore/container@0.2.0-draft")?;
    link_container(&mut container)?;
    link_objects(&mut container)?;
    link_names(&mut container)?;
    link_blobstore(&mut linker.instance("wasi:blobstore/blobstore@0.2.0-draft")?)
}

fn dropped<T: Send + 'static>(mut store: Store<'_>, rep: u32) -> wasmtime::Result<()> {
    store.data_mut().table().delete(Resource::<T>::new_own(rep))?;
    Ok(())
}

/// Does something with the stores where that may touch the disk.
fn stored<T, W>(store: &Store<'_>, work: W) -> impl Future<Output = Result<T>> + Send + use<T, W>
where
    T: Send + 'static,
    W: FnOnce(&Stores) -> Result<T> + Send + 'static,
{
    let stores = store.data().stores.clone();
    blocking(move || work(&stores))
}

/// The same with an open container.
async fn contained<T: Send + 'static>(
    store: &mut Store<'_>,
    this: &Of,
    work: impl FnOnce(&Container) -> Result<T> + Send + 'static,
) -> wasmtime::Result<Result<T>> {
    let container = store.data_mut().table().get(this)?.clone();
    Ok(blocking(move || work(&container)).await)
}

/// Gives the guest a handle, if there is something to be had.
fn handed<T: Send + 'static>(store: &mut Store<'_>, found: Result<T>) -> wasmtime::Result<(Result<Resource<T>>,)> {
    Ok((match found {
        Ok(found) => Ok(store.data_mut().table().push(found)?),
        Err(why) => Err(why),
    },))
}

fn link_blobstore(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.func_wrap_async("create-container", |mut store: Store<'_>, (name,): (String,)| {
        let made = stored(&store, move |stores| Container::create(stores, &name));
        Box::new(async move { handed(&mut store, made.await) })
    })?;
    l.func_wrap_async("get-container", |mut store: Store<'_>, (name,): (String,)| {
        let found = stored(&store, move |stores| Container::existing(stores, &name));
        Box::new(async move { handed(&mut store, found.await) })
    })?;
    l.func_wrap_async("delete-container", |store: Store<'_>, (name,): (String,)| {
        let deleted = stored(&store, move |stores| Container::delete(stores, &name));
        Box::new(async move { Ok((deleted.await,)) })
    })?;
    l.func_wrap_async("container-exists", |store: Store<'_>, (name,): (String,)| {
        let there = stored(&store, move |stores| Ok(Container::open(stores, &name, false)?.is_some()));
        Box::new(async move { Ok((there.await,)) })
    })?;
    l.func_wrap_async("copy-object", |store: Store<'_>, (from, to): (ObjectId, ObjectId)| {
        let copied = stored(&store, move |stores| copy(stores, &from, &to));
        Box::new(async move { Ok((copied.await,)) })
    })?;
    l.func_wrap_async("move-object", |store: Store<'_>, (from, to): (ObjectId, ObjectId)| {
        let moved = stored(&store, move |stores| {
            copy(stores, &from, &to)?;
            if (&from.container, &from.object) == (&to.container, &to.object) {
                return Ok(());
            }
            Container::existing(stores, &from.container)?.remove(&[from.object])
        });
        Box::new(async move { Ok((moved.await,)) })
    })
}

fn link_container(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.resource("container", ResourceType::host::<Container>(), dropped::<Container>)?;
    l.func_wrap("[method]container.name", |mut store: Store<'_>, (this,): (Of,)| {
        Ok((Ok::<_, String>(store.data_mut().table().get(&this)?.name.clone()),))
    })?;
    l.func_wrap_async("[method]container.info", |mut store: Store<'_>, (this,): (Of,)| {
        let info = |container: &Container| {
            let created_at = container.dir.as_ref().map_or(Ok(0), |dir| dir.modified_s()).map_err(prose)?;
            Ok(ContainerMetadata { name: container.name.clone(), created_at })
        };
        Box::new(async move { Ok((contained(&mut store, &this, info).await?,)) })
    })?;
    l.func_wrap_async("[method]container.list-objects", |mut store: Store<'_>, (this,): (Of,)| {
        Box::new(async move {
            let names = contained(&mut store, &this, Container::names).await?;
            handed(&mut store, names.map(|names| Names(names.into_iter())))
        })
    })?;
    l.func_wrap_async("[method]container.clear", |mut store: Store<'_>, (this,): (Of,)| {
        let clear = |container: &Container| container.remove(&container.names()?);
        Box::new(async move { Ok((contained(&mut store, &this, clear).await?,)) })
    })
}

fn link_objects(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    l.func_wrap_async(
        "[method]container.get-data",
        |mut store: Store<'_>, (this, name, begin, end): (Of, String, u64, u64)| {
            Box::new(async move {
                let part = contained(&mut store, &this, move |container| container.part(&name, begin, end)).await?;
                handed(&mut store, part)
            })
        },
    )?;
    l.func_wrap(
        "[method]container.write-data",
        |mut store: Store<'_>, (this, name, value): (Of, String, Resource<OutgoingValue>)| {
            let table = store.data_mut().table();
            let container = table.get(&this)?.clone();
            Ok((match container.writable().map(|_| ()) {
                Ok(()) => {
                    table.get_mut(&value)?.to.push((container, name));
                    Ok(())
                }
                Err(why) => Err(why),
            },))
        },
    )?;
    l.func_wrap_async("[method]container.delete-object", |mut store: Store<'_>, (this, name): (Of, String)| {
        Box::new(async move { Ok((contained(&mut store, &this, move |c| c.remove(&[name])).await?,)) })
    })?;
    l.func_wrap_async("[method]container.delete-objects", |mut store: Store<'_>, (this, names): (Of, Vec<String>)| {
        Box::new(async move { Ok((contained(&mut store, &this, move |c| c.remove(&names)).await?,)) })
    })?;
    l.func_wrap_async("[method]container.has-object", |mut store: Store<'_>, (this, name): (Of, String)| {
        Box::new(async move { Ok((contained(&mut store, &this, move |c| Ok(c.object(&name)?.is_some())).await?,)) })
    })?;
    l.func_wrap_async("[method]container.object-info", |mut store: Store<'_>, (this, name): (Of, String)| {
        Box::new(async move { Ok((contained(&mut store, &this, move |c| c.info(&name)).await?,)) })
    })
}

fn link_names(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    type This = Resource<Names>;
    l.resource("stream-object-names", ResourceType::host::<Names>(), dropped::<Names>)?;
    let take = |names: &mut Names, max: u64| {
        let taken: Vec<String> = names.0.by_ref().take(usize::try_from(max).unwrap_or(usize::MAX)).collect();
        (taken, names.0.len() == 0)
    };
    l.func_wrap(
        "[method]stream-object-names.read-stream-object-names",
        move |mut store: Store<'_>, (this, max): (This, u64)| {
            Ok((Ok::<_, String>(take(store.data_mut().table().get_mut(&this)?, max)),))
        },
    )?;
    l.func_wrap(
        "[method]stream-object-names.skip-stream-object-names",
        move |mut store: Store<'_>, (this, max): (This, u64)| {
            let (skipped, ended) = take(store.data_mut().table().get_mut(&this)?, max);
            Ok((Ok::<_, String>((skipped.len() as u64, ended)),))
        },
    )
}

fn link_values(l: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    type Outgoing = Resource<OutgoingValue>;
    type Incoming = Resource<IncomingValue>;
    l.resource("outgoing-value", ResourceType::host::<OutgoingValue>(), dropped::<OutgoingValue>)?;
    l.resource("incoming-value", ResourceType::host::<IncomingValue>(), dropped::<IncomingValue>)?;
    l.func_wrap("[static]outgoing-value.new-outgoing-value", |mut store: Store<'_>, (): ()| {
        let body = Body(Arc::new(Mutex::new(Spool::Empty)));
        Ok((store.data_mut().table().push(OutgoingValue { body, taken: false, to: Vec::new() })?,))
    })?;
    l.func_wrap("[method]outgoing-value.outgoing-value-write-body", |mut store: Store<'_>, (this,): (Outgoing,)| {
        let stores = store.data().stores.clone();
        let table = store.data_mut().table();
        let value = table.get_mut(&this)?;
        if std::mem::replace(&mut value.taken, true) {
            return Ok((Err(()),));
        }
        let stream: DynOutputStream = Box::new(BodyStream { body: value.body.clone(), stores });
        Ok((Ok(table.push_child(stream, &this)?),))
    })?;
    l.func_wrap_async("[static]outgoing-value.finish", |mut store: Store<'_>, (this,): (Outgoing,)| {
        Box::new(async move {
            let OutgoingValue { body, to, .. } = store.data_mut().table().delete(this)?;
            let file = match body.finish().await {
                Ok(file) => file,
                Err(why) => return Ok((Err(why),)),
            };
            let written = blocking(move || {
                to.iter().try_for_each(|(container, name)| match &file {
                    Some(file) => {
                        let mut from_begin: &File = file;
                        from_begin.rewind().map_err(prose)?;
                        container.write(name, from_begin)
                    }
                    None => container.write(name, io::empty()),
                })
            });
            Ok((written.await,))
        })
    })?;
    l.func_wrap("[method]incoming-value.size", |mut store: Store<'_>, (this,): (Incoming,)| {
        Ok((store.data_mut().table().get(&this)?.len,))
    })?;
    l.func_wrap_async(
        "[static]incoming-value.incoming-value-consume-sync",
        |mut store: Store<'_>, (this,): (Incoming,)| {
            Box::new(async move {
                let value = store.data_mut().table().delete(this)?;
                Ok((blocking(move || value.read()).await,))
            })
        },
    )?;
    l.func_wrap("[static]incoming-value.incoming-value-consume-async", |mut store: Store<'_>, (this,): (Incoming,)| {
        let mut value = store.data_mut().table().delete(this)?;
        // Within the file: no disk is touched.
        if let Err(error) = value.file.seek(io::SeekFrom::Start(value.begin)) {
            return Ok((Err(prose(error)),));
        }
        let reader = tokio::fs::File::from_std(value.file).take(value.len);
        let stream: DynInputStream = Box::new(AsyncReadStream::new(reader));
        Ok((Ok(store.data_mut().table().push(stream)?),))
    })
}
