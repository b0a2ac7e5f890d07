//! `wasi:filesystem` of 0.3: what [`crate::filesystem`] does for 0.2. A stream of a file is that of 0.2 with another
//! outside, so that it is counted and bounded in the same way.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;
use wasmtime::component::{
    Access, Accessor, Destination, FutureReader, Resource, Source, StreamConsumer, StreamProducer, StreamReader,
    StreamResult,
};
use wasmtime::{AsContextMut, StoreContextMut};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::HostDescriptor as FilesOfP2;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, FsResult, StreamError};
use wasmtime_wasi::p3::bindings::filesystem::types::{
    Advice, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode, Filesize, Host, HostDescriptor,
    HostDescriptorWithStore, MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p3::filesystem::{FilesystemError, FilesystemResult};

use crate::filesystem::{Filesystem, FilesystemView, OPERATION_MAX};
use crate::guest::Guest;

/// How much of a file is read or written at a time.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// How a stream ended, for the guest's future.
type Ended = oneshot::Sender<Result<(), ErrorCode>>;

/// Ends an operation that hangs, as in 0.2.
async fn bounded<T>(operation: impl Future<Output = FilesystemResult<T>>) -> FilesystemResult<T> {
    timeout(OPERATION_MAX, operation).await.unwrap_or_else(|_| Err(ErrorCode::Io.into()))
}

impl Host for FilesystemView<'_> {
    fn convert_error_code(&mut self, error: FilesystemError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}

impl HostDescriptor for FilesystemView<'_> {
    fn drop(&mut self, fd: Resource<Descriptor>) -> wasmtime::Result<()> {
        HostDescriptor::drop(&mut self.inner, fd)
    }
}

/// Operations that are `wasmtime-wasi`'s but for their end.
macro_rules! bounded {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {$(
        async fn $name(
            store: &Accessor<Guest, Self>,
            fd: Resource<Descriptor>,
            $($arg: $ty),*
        ) -> FilesystemResult<$ret> {
            let store = store.with_getter::<WasiFilesystem>(Guest::filesystem);
            bounded(WasiFilesystem::$name(&store, fd, $($arg),*)).await
        }
    )*};
}

impl HostDescriptorWithStore<Guest> for Filesystem {
    bounded! {
        advise(offset: Filesize, length: Filesize, advice: Advice) -> ();
        sync_data() -> ();
        get_flags() -> DescriptorFlags;
        get_type() -> DescriptorType;
        set_size(size: Filesize) -> ();
        set_times(accessed: NewTimestamp, modified: NewTimestamp) -> ();
        sync() -> ();
        create_directory_at(path: String) -> ();
        stat() -> DescriptorStat;
        stat_at(flags: PathFlags, path: String) -> DescriptorStat;
        set_times_at(flags: PathFlags, path: String, accessed: NewTimestamp, modified: NewTimestamp) -> ();
        link_at(flags: PathFlags, path: String, to: Resource<Descriptor>, new_path: String) -> ();
        readlink_at(path: String) -> String;
        remove_directory_at(path: String) -> ();
        rename_at(path: String, to: Resource<Descriptor>, new_path: String) -> ();
        symlink_at(target: String, path: String) -> ();
        unlink_file_at(path: String) -> ();
        metadata_hash() -> MetadataHashValue;
        metadata_hash_at(flags: PathFlags, path: String) -> MetadataHashValue;
    }

    async fn open_at(
        store: &Accessor<Guest, Self>,
        fd: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        open_flags: OpenFlags,
        flags: DescriptorFlags,
    ) -> FilesystemResult<Resource<Descriptor>> {
        let room = store.with(|mut access| access.get().account.room()).ok_or(ErrorCode::InsufficientMemory)?;
        let inner = store.with_getter::<WasiFilesystem>(Guest::filesystem);
        let opened = bounded(WasiFilesystem::open_at(&inner, fd, path_flags, path, open_flags, flags)).await?;
        store.with(|mut access| -> FilesystemResult<()> {
            room.take(access.get().inner.table.get(&opened)?);
            Ok(())
        })?;
        Ok(opened)
    }

    async fn is_same_object(
        store: &Accessor<Guest, Self>,
        fd: Resource<Descriptor>,
        other: Resource<Descriptor>,
    ) -> wasmtime::Result<bool> {
        WasiFilesystem::is_same_object(&store.with_getter::<WasiFilesystem>(Guest::filesystem), fd, other).await
    }

    fn read_directory(
        mut store: Access<'_, Guest, Self>,
        fd: Resource<Descriptor>,
    ) -> wasmtime::Result<(StreamReader<DirectoryEntry>, FutureReader<Result<(), ErrorCode>>)> {
        let inner: Access<'_, Guest, WasiFilesystem> =
            Access::new(store.as_context_mut(), |guest: &mut Guest| guest.filesystem());
        WasiFilesystem::read_directory(inner, fd)
    }

    fn read_via_stream(
        mut store: Access<'_, Guest, Self>,
        fd: Resource<Descriptor>,
        offset: Filesize,
    ) -> wasmtime::Result<(StreamReader<u8>, FutureReader<Result<(), ErrorCode>>)> {
        let (ended, end) = oneshot::channel();
        let mut view = store.get();
        let stream = view.read_via_stream(fd, offset).and_then(|stream| Ok(view.inner.table.delete(stream)?));
        let reader = match opened(stream)? {
            Ok(stream) => StreamReader::new(&mut store, Reading { work: Work::Idle(stream), ended: Some(ended) })?,
            Err(code) => {
                tell(&mut Some(ended), Err(code));
                StreamReader::new(&mut store, std::iter::empty())?
            }
        };
        Ok((reader, FutureReader::new(&mut store, end)?))
    }

    fn write_via_stream(
        mut store: Access<'_, Guest, Self>,
        fd: Resource<Descriptor>,
        data: StreamReader<u8>,
        offset: Filesize,
    ) -> wasmtime::Result<FutureReader<Result<(), ErrorCode>>> {
        let mut view = store.get();
        let stream = view.write_via_stream(fd, offset).and_then(|stream| Ok(view.inner.table.delete(stream)?));
        write(store, stream, data)
    }

    fn append_via_stream(
        mut store: Access<'_, Guest, Self>,
        fd: Resource<Descriptor>,
        data: StreamReader<u8>,
    ) -> wasmtime::Result<FutureReader<Result<(), ErrorCode>>> {
        let mut view = store.get();
        let stream = view.append_via_stream(fd).and_then(|stream| Ok(view.inner.table.delete(stream)?));
        write(store, stream, data)
    }
}

/// A stream of 0.2, or why there is none, in the words of 0.3.
fn opened<S>(stream: FsResult<S>) -> wasmtime::Result<Result<S, ErrorCode>> {
    use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode as CodeOfP2;
    match stream {
        Ok(stream) => Ok(Ok(stream)),
        Err(error) => Ok(Err(match error.downcast()? {
            CodeOfP2::IsDirectory => ErrorCode::IsDirectory,
            CodeOfP2::NotPermitted => ErrorCode::NotPermitted,
            CodeOfP2::BadDescriptor => ErrorCode::BadDescriptor,
            _ => ErrorCode::Io,
        })),
    }
}

/// Says how a stream ended, once. Who does not listen any more does not want to know.
fn tell(ended: &mut Option<Ended>, how: Result<(), ErrorCode>) {
    if let Some(ended) = ended.take() {
        ended.send(how).ok();
    }
}

fn code_of(error: &wasmtime::Error) -> ErrorCode {
    error.downcast_ref::<std::io::Error>().map_or(ErrorCode::Io, ErrorCode::from)
}

/// An operation on a stream, which it takes along and gives back.
type Operation<S, T> = Pin<Box<dyn Future<Output = (S, Result<T, StreamError>)> + Send>>;

/// What a stream does.
enum Work<S, T> {
    Idle(S),
    Busy(Operation<S, T>),
    Over,
}

/// Reads a file for a guest.
struct Reading {
    work: Work<DynInputStream, Bytes>,
    ended: Option<Ended>,
}

impl StreamProducer<Guest> for Reading {
    type Item = u8;
    type Buffer = Bytes;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        _store: StoreContextMut<'a, Guest>,
        mut destination: Destination<'a, u8, Bytes>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = &mut *self;
        let mut operation = match std::mem::replace(&mut this.work, Work::Over) {
            Work::Busy(operation) => operation,
            Work::Idle(mut stream) => Box::pin(async move {
                let read = stream.blocking_read(PIECE_BYTES_MAX).await;
                (stream, read)
            }),
            Work::Over => return Poll::Ready(Ok(StreamResult::Dropped)),
        };
        // What is being read cannot be called back, and what was read must not be lost: also who does not want it any
        // more waits for it.
        let Poll::Ready((stream, read)) = operation.as_mut().poll(cx) else {
            this.work = Work::Busy(operation);
            return Poll::Pending;
        };
        Poll::Ready(match read {
            Ok(bytes) => {
                this.work = Work::Idle(stream);
                destination.set_buffer(bytes);
                Ok(StreamResult::Completed)
            }
            Err(StreamError::Closed) => {
                tell(&mut this.ended, Ok(()));
                Ok(StreamResult::Dropped)
            }
            Err(StreamError::LastOperationFailed(error)) => {
                tell(&mut this.ended, Err(code_of(&error)));
                Ok(StreamResult::Dropped)
            }
            Err(StreamError::Trap(error)) => Err(error),
        })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        tell(&mut self.ended, Ok(()));
    }
}

/// Has a stream of the guest's written to a file.
fn write(
    mut store: Access<'_, Guest, Filesystem>,
    stream: FsResult<DynOutputStream>,
    mut data: StreamReader<u8>,
) -> wasmtime::Result<FutureReader<Result<(), ErrorCode>>> {
    let (ended, end) = oneshot::channel();
    match opened(stream)? {
        Ok(stream) => data.pipe(&mut store, Writing { work: Work::Idle(stream), ended: Some(ended) })?,
        Err(code) => {
            data.close(&mut store)?;
            tell(&mut Some(ended), Err(code));
        }
    }
    FutureReader::new(&mut store, end)
}

/// Writes a file for a guest.
struct Writing {
    work: Work<DynOutputStream, usize>,
    ended: Option<Ended>,
}

impl StreamConsumer<Guest> for Writing {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, Guest>,
        source: Source<'_, u8>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = &mut *self;
        let mut source = source.as_direct(store);
        let mut operation = match std::mem::replace(&mut this.work, Work::Over) {
            Work::Busy(operation) => operation,
            Work::Idle(mut stream) => {
                let piece = source.remaining();
                let piece = Bytes::copy_from_slice(&piece[..piece.len().min(PIECE_BYTES_MAX)]);
                Box::pin(async move {
                    let len = piece.len();
                    let written = stream.blocking_write_and_flush(piece).await;
                    (stream, written.map(|()| len))
                })
            }
            Work::Over => return Poll::Ready(Ok(StreamResult::Dropped)),
        };
        // What is being written cannot be called back: also who does not want it any more waits for it.
        let (stream, written) = match operation.as_mut().poll(cx) {
            Poll::Ready(done) => done,
            Poll::Pending => {
                this.work = Work::Busy(operation);
                return Poll::Pending;
            }
        };
        Poll::Ready(match written {
            Ok(len) => {
                this.work = Work::Idle(stream);
                source.mark_read(len);
                Ok(StreamResult::Completed)
            }
            Err(StreamError::Closed) => {
                tell(&mut this.ended, Ok(()));
                Ok(StreamResult::Dropped)
            }
            Err(StreamError::LastOperationFailed(error)) => {
                tell(&mut this.ended, Err(code_of(&error)));
                Ok(StreamResult::Dropped)
            }
            Err(StreamError::Trap(error)) => Err(error),
        })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        tell(&mut self.ended, Ok(()));
    }
}
