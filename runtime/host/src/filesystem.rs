//! The files of a container's guests, as `wasmtime-wasi` serves them, with what a container runtime owes its node: a cap on
//! open files, an end to operations that hang, and counts of what was read and written.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout, timeout_at};
use wasmtime::component::{HasData, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemCtxView, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Advice, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, DirectoryEntryStream, ErrorCode, Filesize,
    Host, HostDescriptor, HostDirectoryEntryStream, MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, FsError, FsResult, InputStream, OutputStream, Pollable, StreamError, StreamResult,
};

use crate::guest::Guest;

/// Files and directories that a container may have open, what a Linux process may unless it is told otherwise. The node
/// has a descriptor for each. Beyond it opening fails.
pub(crate) const OPEN_FILES_MAX: usize = 1024;

/// How long one operation on a file may take. A disk that hangs, or a pipe that nobody writes to, is then an error that
/// the guest sees; ordinary disks answer a thousand times as fast.
pub(crate) const OPERATION_MAX: Duration = Duration::from_secs(30);

/// What the guests of one container do with files.
#[derive(Debug, Default)]
pub struct FileAccount {
    open: Mutex<Open>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
}

/// The files that are open, and those that are being opened. A stream keeps its file open after the guest has let go of
/// the descriptor: so it is the files that are counted.
#[derive(Debug, Default)]
struct Open {
    files: Vec<Weak<File>>,
    coming: usize,
}

/// What was read and written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileUse {
    /// Operations that read something.
    pub reads: u64,
    /// Bytes that they read.
    pub read_bytes: u64,
    /// Operations that wrote something.
    pub writes: u64,
    /// Bytes that they wrote.
    pub written_bytes: u64,
}

impl FileAccount {
    /// What was read and written so far.
    pub fn used(&self) -> FileUse {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FileUse {
            reads: count(&self.reads),
            read_bytes: count(&self.read_bytes),
            writes: count(&self.writes),
            written_bytes: count(&self.written_bytes),
        }
    }

    pub(crate) fn count_read(&self, bytes: usize) {
        if bytes > 0 {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_written(&self, bytes: usize) {
        if bytes > 0 {
            self.writes.fetch_add(1, Ordering::Relaxed);
            self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for one more open file; `None` if there are too many.
    pub(crate) fn room(self: &Arc<Self>) -> Option<Room> {
        let mut open = self.open();
        if open.files.len() + open.coming >= OPEN_FILES_MAX {
            open.files.retain(|file| file.strong_count() > 0);
        }
        if open.files.len() + open.coming >= OPEN_FILES_MAX {
            tracing::debug!(max = OPEN_FILES_MAX, "a container has too many open files");
            return None;
        }
        open.coming += 1;
        Some(Room(self.clone()))
    }
}

/// Room for a file that is being opened.
#[derive(Debug)]
pub(crate) struct Room(Arc<FileAccount>);

impl Room {
    /// The file is open, for as long as somebody holds it.
    pub(crate) fn take(self, opened: &Descriptor) {
        let file = match opened {
            Descriptor::File(file) => &file.file,
            Descriptor::Dir(dir) => &dir.dir,
        };
        self.0.open().files.push(Arc::downgrade(file));
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.open().coming -= 1;
    }
}

/// What `wasi:filesystem` acts on.
pub(crate) struct Filesystem;

impl HasData for Filesystem {
    type Data<'a> = FilesystemView<'a>;
}

/// The files of one instance.
pub(crate) struct FilesystemView<'a> {
    pub(crate) inner: WasiFilesystemCtxView<'a>,
    pub(crate) account: Arc<FileAccount>,
}

impl Guest {
    /// Its files, as the container's.
    pub(crate) fn guarded_files(&mut self) -> FilesystemView<'_> {
        let account = self.file_account.clone();
        FilesystemView { inner: self.filesystem(), account }
    }
}

/// Ends an operation that hangs. Its thread stays with it until it comes back; nobody waits for that.
async fn bounded<T>(operation: impl Future<Output = FsResult<T>>) -> FsResult<T> {
    timeout(OPERATION_MAX, operation).await.unwrap_or_else(|_| Err(ErrorCode::Io.into()))
}

impl Host for FilesystemView<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        self.inner.convert_error_code(error)
    }

    fn filesystem_error_code(&mut self, error: Resource<wasmtime::Error>) -> wasmtime::Result<Option<ErrorCode>> {
        self.inner.filesystem_error_code(error)
    }
}

/// Operations that are `wasmtime-wasi`'s but for their end.
macro_rules! bounded {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => {$(
        async fn $name(&mut self, fd: Resource<Descriptor>, $($arg: $ty),*) -> FsResult<$ret> {
            bounded(self.inner.$name(fd, $($arg),*)).await
        }
    )*};
}

impl HostDescriptor for FilesystemView<'_> {
    bounded! {
        advise(offset: Filesize, len: Filesize, advice: Advice) -> ();
        sync_data() -> ();
        get_flags() -> DescriptorFlags;
        get_type() -> DescriptorType;
        set_size(size: Filesize) -> ();
        set_times(accessed: NewTimestamp, modified: NewTimestamp) -> ();
        read_directory() -> Resource<DirectoryEntryStream>;
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
        &mut self,
        fd: Resource<Descriptor>,
        path_flags: PathFlags,
        path: String,
        open_flags: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        // WASI has no name for "too many open files"; this is the one for what the host has no more of.
        let room = self.account.room().ok_or(ErrorCode::InsufficientMemory)?;
        let opened = bounded(self.inner.open_at(fd, path_flags, path, open_flags, flags)).await?;
        room.take(self.inner.table.get(&opened)?);
        Ok(opened)
    }

    async fn read(&mut self, fd: Resource<Descriptor>, len: Filesize, offset: Filesize) -> FsResult<(Vec<u8>, bool)> {
        let read = bounded(self.inner.read(fd, len, offset)).await?;
        self.account.count_read(read.0.len());
        Ok(read)
    }

    async fn write(&mut self, fd: Resource<Descriptor>, buffer: Vec<u8>, offset: Filesize) -> FsResult<Filesize> {
        let written = bounded(self.inner.write(fd, buffer, offset)).await?;
        self.account.count_written(usize::try_from(written).unwrap_or(usize::MAX));
        Ok(written)
    }

    fn read_via_stream(&mut self, fd: Resource<Descriptor>, offset: Filesize) -> FsResult<Resource<DynInputStream>> {
        let stream = self.inner.read_via_stream(fd, offset)?;
        let slot = self.inner.table.get_mut(&stream)?;
        let inner = std::mem::replace(slot, Box::new(wasmtime_wasi::p2::pipe::ClosedInputStream));
        *slot = Box::new(Guarded::new(inner, &self.account));
        Ok(stream)
    }

    fn write_via_stream(&mut self, fd: Resource<Descriptor>, offset: Filesize) -> FsResult<Resource<DynOutputStream>> {
        let stream = self.inner.write_via_stream(fd, offset)?;
        self.guard_output(&stream)?;
        Ok(stream)
    }

    fn append_via_stream(&mut self, fd: Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>> {
        let stream = self.inner.append_via_stream(fd)?;
        self.guard_output(&stream)?;
        Ok(stream)
    }

    async fn is_same_object(&mut self, a: Resource<Descriptor>, b: Resource<Descriptor>) -> wasmtime::Result<bool> {
        self.inner.is_same_object(a, b).await
    }

    fn drop(&mut self, fd: Resource<Descriptor>) -> wasmtime::Result<()> {
        HostDescriptor::drop(&mut self.inner, fd)
    }
}

impl FilesystemView<'_> {
    fn guard_output(&mut self, stream: &Resource<DynOutputStream>) -> FsResult<()> {
        let slot = self.inner.table.get_mut(stream)?;
        let inner = std::mem::replace(slot, Box::new(wasmtime_wasi::p2::pipe::ClosedOutputStream));
        *slot = Box::new(Guarded::new(inner, &self.account));
        Ok(())
    }
}

impl HostDirectoryEntryStream for FilesystemView<'_> {
    async fn read_directory_entry(
        &mut self,
        stream: Resource<DirectoryEntryStream>,
    ) -> FsResult<Option<DirectoryEntry>> {
        self.inner.read_directory_entry(stream).await
    }

    fn drop(&mut self, stream: Resource<DirectoryEntryStream>) -> wasmtime::Result<()> {
        HostDirectoryEntryStream::drop(&mut self.inner, stream)
    }
}

/// A file's stream that is counted, and given up when it hangs.
struct Guarded<S> {
    inner: S,
    account: Arc<FileAccount>,
    /// Until when the operation that is waited for has to be done.
    deadline: Option<Instant>,
    overdue: bool,
}

impl<S> Guarded<S> {
    fn new(inner: S, account: &Arc<FileAccount>) -> Self {
        Self { inner, account: account.clone(), deadline: None, overdue: false }
    }

    /// Fails once an operation was given up: what it does is not known.
    fn check(&self) -> StreamResult<()> {
        if self.overdue { Err(overdue()) } else { Ok(()) }
    }
}

fn overdue() -> StreamError {
    StreamError::LastOperationFailed(io::Error::from(io::ErrorKind::TimedOut).into())
}

impl<S: Pollable> Guarded<S> {
    async fn wait(&mut self) {
        if self.overdue {
            return;
        }
        // Who waits may be dropped and come again; the operation has been going on meanwhile.
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + OPERATION_MAX);
        self.overdue = timeout_at(deadline, self.inner.ready()).await.is_err();
        self.deadline = None;
    }
}

#[async_trait::async_trait]
impl Pollable for Guarded<DynInputStream> {
    async fn ready(&mut self) {
        self.wait().await;
    }
}

#[async_trait::async_trait]
impl Pollable for Guarded<DynOutputStream> {
    async fn ready(&mut self) {
        self.wait().await;
    }
}

#[async_trait::async_trait]
impl InputStream for Guarded<DynInputStream> {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.check()?;
        let bytes = self.inner.read(size)?;
        self.account.count_read(bytes.len());
        Ok(bytes)
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.check()?;
        let Ok(read) = timeout(OPERATION_MAX, self.inner.blocking_read(size)).await else {
            self.overdue = true;
            return Err(overdue());
        };
        let bytes = read?;
        self.account.count_read(bytes.len());
        Ok(bytes)
    }

    async fn cancel(&mut self) {
        if !self.overdue {
            // What does not end has nobody waiting for it.
            let _ended = timeout(OPERATION_MAX, self.inner.cancel()).await;
        }
    }
}

#[async_trait::async_trait]
impl OutputStream for Guarded<DynOutputStream> {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.check()?;
        let len = bytes.len();
        self.inner.write(bytes)?;
        self.account.count_written(len);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.check()?;
        self.inner.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.check()?;
        self.inner.check_write()
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.check()?;
        let len = bytes.len();
        let Ok(written) = timeout(OPERATION_MAX, self.inner.blocking_write_and_flush(bytes)).await else {
            self.overdue = true;
            return Err(overdue());
        };
        written?;
        self.account.count_written(len);
        Ok(())
    }

    async fn cancel(&mut self) {
        if !self.overdue {
            // What does not end has nobody waiting for it.
            let _ended = timeout(OPERATION_MAX, self.inner.cancel()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_as_long_as_anybody_holds_them() {
        let account = Arc::new(FileAccount::default());
        let open = || Arc::new(File::open("/dev/null").unwrap());
        let mut held: Vec<_> = (0..OPEN_FILES_MAX - 1).map(|_| open()).collect();
        let coming = account.room().unwrap();
        account.open().files.extend(held.iter().map(Arc::downgrade));
        assert!(account.room().is_none(), "one is being opened");
        drop(coming);
        drop(account.room().unwrap());
        // A stream holds the file on.
        let stream = held[0].clone();
        account.open().files.push(Arc::downgrade(&stream));
        held.swap_remove(0);
        assert!(account.room().is_none());
        drop(stream);
        assert!(account.room().is_some());
    }

    /// A disk that never answers.
    struct Hung;

    #[async_trait::async_trait]
    impl Pollable for Hung {
        async fn ready(&mut self) {
            std::future::pending().await
        }
    }

    impl InputStream for Hung {
        fn read(&mut self, _: usize) -> StreamResult<Bytes> {
            Ok(Bytes::new())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_given_up_and_fails_from_then_on() {
        let began = Instant::now();
        let hung = || Guarded::new(Box::new(Hung) as DynInputStream, &Arc::default());
        let mut stream = hung();
        assert!(matches!(stream.blocking_read(1).await, Err(StreamError::LastOperationFailed(_))));
        assert_eq!(began.elapsed(), OPERATION_MAX);
        assert!(matches!(stream.read(1), Err(StreamError::LastOperationFailed(_))));
        // Who asks again and again gets no more time.
        let (mut stream, began) = (hung(), Instant::now());
        for _ in 0..10 {
            if timeout(OPERATION_MAX / 4, stream.ready()).await.is_ok() {
                break;
            }
        }
        assert_eq!(began.elapsed(), OPERATION_MAX);
        assert!(matches!(stream.read(1), Err(StreamError::LastOperationFailed(_))));
    }
}
