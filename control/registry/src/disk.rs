//! Blobs, tags and uploads as files.
//!
//! ```text
//! blobs/<hex>                                    what every digest names
//! repositories/<name>/_tags/<tag>                the digest that a tag names now
//! repositories/<name>/_manifests/<hex>           the media type of a manifest of that repository
//! uploads/<id>                                   what has come of an unfinished upload
//! ```

use crate::error::{Code, Refusal};
use crate::route::Reference;
use http::StatusCode;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The largest blob: 1 GiB, many times the largest Wasm program that anybody ships. More is refused with 413.
const BLOB_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The most uploads that may be unfinished at a time: bounds what a client that never finishes can leave behind.
/// The next one is refused with 429.
pub(crate) const UPLOADS_MAX: usize = 256;

/// An upload that nothing was added to for this long is dropped when the next one begins: its client is gone.
pub(crate) const UPLOAD_IDLE_MAX: Duration = Duration::from_secs(3600);

/// A SHA-256 digest in its text form, `sha256:<64 hex digits>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::new_with_prefix(bytes))
    }

    fn from_hash(hash: Sha256) -> Self {
        Self(hash.finalize().iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}")))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Self(text.to_owned()));
        }
        let message = format!("`{text}` is no digest of the form sha256:<64 hex digits>");
        Err(Refusal::new(StatusCode::BAD_REQUEST, Code::DigestInvalid, message))
    }
}

/// A manifest as it was pushed.
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// The registry's directory.
pub(crate) struct Disk {
    root: PathBuf,
}

impl Disk {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        for dir in ["blobs", "repositories", "uploads"] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        for entry in std::fs::read_dir(root.join("uploads"))? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// A blob's file and length.
    pub(crate) async fn blob(&self, digest: &Digest) -> Result<Option<(File, u64)>, Refusal> {
        let Some(file) = found(File::open(self.blob_path(digest)).await)? else { return Ok(None) };
        let length = file.metadata().await?.len();
        Ok(Some((file, length)))
    }

    pub(crate) async fn manifest(&self, name: &str, reference: &Reference) -> Result<Manifest, Refusal> {
        let unknown = |what: &str| {
            let message = format!("the repository `{name}` has no manifest `{what}`");
            Refusal::new(StatusCode::NOT_FOUND, Code::ManifestUnknown, message)
        };
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(tag) => {
                let text = found(fs::read_to_string(self.tags_dir(name).join(tag)).await)?;
                text.ok_or_else(|| unknown(tag))?.parse()?
            }
        };
        let media_type = found(fs::read_to_string(self.manifests_dir(name).join(digest.hex())).await)?;
        let media_type = media_type.ok_or_else(|| unknown(digest.as_str()))?;
        let (mut file, length) = self.blob(&digest).await?.ok_or_else(|| unknown(digest.as_str()))?;
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        file.read_to_end(&mut bytes).await?;
        Ok(Manifest { digest, media_type, bytes })
    }

    /// Keeps a manifest and, if it is named by a tag, moves the tag to it.
    pub(crate) async fn put_manifest(
        &self,
        name: &str,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, Refusal> {
        let digest = Digest::of(bytes);
        if let Reference::Digest(wanted) = reference
            && *wanted != digest
        {
            return Err(mismatch(wanted, &digest));
        }
        self.write(&self.blob_path(&digest), bytes).await?;
        self.write(&self.manifests_dir(name).join(digest.hex()), media_type.as_bytes()).await?;
        if let Reference::Tag(tag) = reference {
            self.write(&self.tags_dir(name).join(tag), digest.as_str().as_bytes()).await?;
        }
        Ok(digest)
    }

    /// Forgets a tag, or a manifest with all tags that name it.
    pub(crate) async fn remove_manifest(&self, name: &str, reference: &Reference) -> Result<(), Refusal> {
        let manifest = self.manifest(name, reference).await?;
        match reference {
            Reference::Tag(tag) => fs::remove_file(self.tags_dir(name).join(tag)).await?,
            Reference::Digest(digest) => {
                for tag in self.tags(name).await? {
                    let path = self.tags_dir(name).join(tag);
                    if fs::read_to_string(&path).await? == manifest.digest.as_str() {
                        fs::remove_file(path).await?;
                    }
                }
                fs::remove_file(self.manifests_dir(name).join(digest.hex())).await?;
            }
        }
        Ok(())
    }

    /// The tags of a repository, by name.
    pub(crate) async fn tags(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let mut tags = Vec::new();
        if let Some(mut entries) = found(fs::read_dir(self.tags_dir(name)).await)? {
            while let Some(entry) = entries.next_entry().await? {
                tags.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        tags.sort();
        Ok(tags)
    }

    /// All repositories, by name.
    pub(crate) async fn repositories(&self) -> Result<Vec<String>, Refusal> {
        let root = self.root.join("repositories");
        let (mut names, mut dirs) = (Vec::new(), vec![root.clone()]);
        while let Some(dir) = dirs.pop() {
            let mut entries = fs::read_dir(&dir).await?;
            while let Some(entry) = entries.next_entry().await? {
                if entry.file_name() == "_tags" {
                    names.extend(dir.strip_prefix(&root).ok().map(|name| name.to_string_lossy().into_owned()));
                } else if entry.file_name() != "_manifests" && entry.file_type().await?.is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// Begins an upload and names it.
    pub(crate) async fn begin(&self) -> Result<String, Refusal> {
        let mut open = 0;
        let mut entries = fs::read_dir(self.root.join("uploads")).await?;
        while let Some(entry) = entries.next_entry().await? {
            if is_idle(&entry).await {
                // Another request may have finished or dropped it in between; both are as good.
                found(fs::remove_file(entry.path()).await)?;
            } else {
                open += 1;
            }
        }
        if open >= UPLOADS_MAX {
            let message = format!("{UPLOADS_MAX} uploads are unfinished: finish or cancel one");
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, message));
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|err| Refusal::internal(&err))?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        File::create_new(self.upload_path(&id)?).await?;
        Ok(id)
    }

    /// An upload, open at its end.
    pub(crate) async fn upload(&self, id: &str) -> Result<Upload, Refusal> {
        let file = found(OpenOptions::new().append(true).open(self.upload_path(id)?).await)?;
        let file = file.ok_or_else(|| upload_unknown(id))?;
        let length = file.metadata().await?.len();
        Ok(Upload { file, length })
    }

    pub(crate) async fn upload_length(&self, id: &str) -> Result<u64, Refusal> {
        Ok(self.upload(id).await?.length)
    }

    /// Makes an upload the blob that it claims to be; one that is something else is dropped.
    pub(crate) async fn finish(&self, id: &str, digest: &Digest) -> Result<(), Refusal> {
        let path = self.upload_path(id)?;
        let mut file = found(File::open(&path).await)?.ok_or_else(|| upload_unknown(id))?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; crate::PIECE_BYTES];
        loop {
            let read = file.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            hash.update(&piece[..read]);
        }
        let actual = Digest::from_hash(hash);
        if actual != *digest {
            fs::remove_file(&path).await?;
            return Err(mismatch(digest, &actual));
        }
        file.sync_all().await?;
        self.rename(&path, &self.blob_path(digest)).await
    }

    pub(crate) async fn abandon(&self, id: &str) -> Result<(), Refusal> {
        found(fs::remove_file(self.upload_path(id)?).await)?.ok_or_else(|| upload_unknown(id))
    }

    /// Writes a file so that it is there whole and synced, or not at all.
    async fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), Refusal> {
        let temporary = self.upload_path(&self.begin().await?)?;
        let mut file = OpenOptions::new().append(true).open(&temporary).await?;
        file.write_all(bytes).await?;
        file.sync_all().await?;
        self.rename(&temporary, path).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Refusal> {
        let dir = to.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).await?;
        fs::rename(from, to).await?;
        // The rename itself, and the directories made for it, must survive a power cut, or a tag could name a manifest
        // that is gone.
        for dir in dir.ancestors().take_while(|dir| dir.starts_with(&self.root)) {
            File::open(dir).await?.sync_all().await?;
        }
        Ok(())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    fn tags_dir(&self, name: &str) -> PathBuf {
        self.root.join("repositories").join(name).join("_tags")
    }

    fn manifests_dir(&self, name: &str) -> PathBuf {
        self.root.join("repositories").join(name).join("_manifests")
    }

    fn upload_path(&self, id: &str) -> Result<PathBuf, Refusal> {
        if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(upload_unknown(id));
        }
        Ok(self.root.join("uploads").join(id))
    }
}

async fn is_idle(upload: &fs::DirEntry) -> bool {
    let modified = upload.metadata().await.and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > UPLOAD_IDLE_MAX))
}

/// An unfinished upload, open for more.
pub(crate) struct Upload {
    file: File,
    length: u64,
}

impl Upload {
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) async fn append(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.length += bytes.len() as u64;
        if self.length > BLOB_BYTES_MAX {
            let message = format!("a blob has at most {BLOB_BYTES_MAX} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, message));
        }
        Ok(self.file.write_all(bytes).await?)
    }

    pub(crate) async fn flush(mut self) -> Result<u64, Refusal> {
        self.file.flush().await?;
        Ok(self.length)
    }
}

fn mismatch(claimed: &Digest, actual: &Digest) -> Refusal {
    let message = format!("the content has the digest `{actual}`, not `{claimed}`");
    Refusal::new(StatusCode::BAD_REQUEST, Code::DigestInvalid, message)
}

fn upload_unknown(id: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, Code::BlobUploadUnknown, format!("the upload `{id}` is not known"))
}

/// `None` for a file that is not there.
fn found<T>(result: io::Result<T>) -> Result<Option<T>, Refusal> {
    match result {
        Ok(value) => Ok(Some(value)),
        // A name of which only a part is a repository makes a file where a directory is looked for.
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(err) => Err(err.into()),
    }
}
