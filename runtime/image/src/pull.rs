//! From a registry into the store.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use dhow_client::{Client, ClientError};
use dhow_files::{Access, NewFile};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::archive::{self, ArchiveError};
use crate::config::{Registries, full_name};
use crate::credentials::{Credential, Keyring};
use crate::manifest::{
    Content, Defaults, Descriptor, ImageConfig, Index, MANIFEST_ACCEPT, MANIFEST_BYTES_MAX, Manifest, digest_of, hex_of,
};
use crate::reference::{InvalidReference, is_digest};
use crate::remote::{Remote, said};
use crate::signature::{self, PAYLOAD_BYTES_MAX, PublicKey};
use crate::store::{Image, Record, Store, blocking, io_at};
use crate::{IMAGE_BYTES_MAX, Reference};

/// How long a manifest may take to come.
const DOCUMENT_MAX: Duration = Duration::from_secs(60);
/// How long a layer may stop coming.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A layer comes at least this fast, on average, once it has been coming for as long as it may be silent: else a few
/// registries that drip would take all the places of a node's pulls.
const BYTES_PER_S_MIN: u64 = 4096;
/// Pieces of a layer that wait for the disk; then the registry is held back.
const PIECES_MAX: usize = 32;

/// Why there is no image. [`reason`](Self::reason) is what a Pod's status says.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name is malformed.
    #[error("`{name}` is not a valid image name: {why}")]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The policy forbids fetching, and the node does not have it.
    #[error("image `{name}` is not on the node and its pull policy is `Never`")]
    NotPresent {
        /// The image.
        name: String,
    },
    /// The cluster's registry has no such image.
    #[error("image `{name}` was not found; push it with `dhow push FILE.wasm NAME:TAG`")]
    NotFound {
        /// The image.
        name: String,
    },
    /// There is no such file on the node.
    #[error("image `{name}` was not found: the node has no such file; check its path")]
    NoSuchFile {
        /// The image.
        name: String,
    },
    /// The registry does not let the node in.
    #[error("the registry refused the node's request for image `{name}`: {detail}")]
    Unauthorized {
        /// The image.
        name: String,
        /// What the registry said.
        detail: String,
    },
    /// `file://` images are off on this node.
    #[error("image `{name}` is a file on the node, which this node does not allow; push it with `dhow push` instead")]
    FilesForbidden {
        /// The image.
        name: String,
    },
    /// A registry outside of the cluster has no such image.
    #[error("the registry `{registry}` has no image `{name}`; check its name, its tag and the pull secret")]
    NotFoundThere {
        /// The image.
        name: String,
        /// The registry's host.
        registry: String,
    },
    /// The node's configuration wants a signature that the image does not have.
    #[error("image `{name}` is refused by the node's signature policy: {detail}")]
    Unsigned {
        /// The image.
        name: String,
        /// What is missing.
        detail: String,
    },
    /// The registry does not answer, or answers with a failure of its own.
    #[error("fetching image `{name}` failed: {detail}")]
    Unreachable {
        /// The image.
        name: String,
        /// What happened.
        detail: String,
    },
    /// What the registry gave is not what it promised.
    #[error("image `{name}` is corrupt: {detail}; push it again")]
    Corrupt {
        /// The image.
        name: String,
        /// What does not fit.
        detail: String,
    },
    /// The image is something else than a program for WebAssembly.
    #[error("image `{name}` holds no WebAssembly program: {found}")]
    NotWasm {
        /// The image.
        name: String,
        /// What it holds instead.
        found: String,
    },
    /// The image is larger than a node takes.
    #[error("image `{name}` has {size} bytes; at most {} are taken", IMAGE_BYTES_MAX)]
    TooLarge {
        /// The image.
        name: String,
        /// Its size.
        size: u64,
    },
    /// A file of the store, or a `file://` image, could not be read or written.
    #[error("reading or writing `{}` failed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl PullError {
    /// The `reason` of a container that waits for this image.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidName { .. } => "InvalidImageName",
            Self::NotPresent { .. } => "ErrImageNeverPull",
            Self::Unsigned { .. } => "SignatureValidationFailed",
            _ => "ErrImagePull",
        }
    }
}

impl From<InvalidReference> for PullError {
    fn from(error: InvalidReference) -> Self {
        Self::InvalidName { name: error.name, why: error.why.to_owned() }
    }
}

/// What one pull may use.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The way to the cluster's own registry, if there is a cluster.
    pub client: Option<&'a Client>,
    /// What the node was told about registries.
    pub registries: &'a Registries,
    /// What the Pod's pull secrets hold.
    pub secrets: &'a Keyring,
    /// Whether `file:///…` names a file on this node or is refused.
    pub allow_files: bool,
}

impl Sources<'_> {
    /// What may be shown to a registry, in this order.
    fn credentials(&self, authority: &str, repository: &str) -> Vec<Credential> {
        let secrets = self.secrets.matching(authority, repository).into_iter();
        let own = self.registries.credential(&format!("{authority}/{repository}"));
        secrets.chain(own).cloned().collect()
    }

    /// Whether who asks may have the image that is on the node: it is signed as it must be, and if somebody had to show
    /// something to get it, then the same is shown now.
    pub(crate) fn may_have(&self, reference: &Reference, record: &Record) -> bool {
        let signed = |keys: &[PublicKey]| keys.iter().any(|key| Some(key.fingerprint()) == record.signed_by);
        if !self.registries.keys(&full_name(reference)).is_none_or(signed) {
            return false;
        }
        let (Some(shown), Some(registry)) = (&record.shown, &reference.registry) else { return true };
        let (full, repository) = (full_name(reference), repository(reference));
        let places = self.registries.endpoints(registry, &full);
        places.iter().any(|place| {
            self.credentials(&place.authority, &repository).iter().any(|credential| credential.fingerprint() == *shown)
        })
    }
}

/// The path that a registry knows the image by. Docker's hub keeps what has no owner under `library`.
fn repository(reference: &Reference) -> String {
    match &reference.registry {
        Some(host) if host == "docker.io" && !reference.repository.contains('/') => {
            format!("library/{}", reference.repository)
        }
        _ => reference.repository.clone(),
    }
}

/// Asks the registries what the name means and fetches what the store lacks of it.
pub(crate) async fn fetch(store: &Store, sources: Sources<'_>, reference: &Reference) -> Result<Image, PullError> {
    let (name, full, repository) = (reference.to_string(), full_name(reference), repository(reference));
    let keys = sources.registries.keys(&full);
    let pull = |from| Pull { store, name: &name, reference, repository: &repository, keys, from };
    let Some(registry) = &reference.registry else {
        let nowhere = || PullError::Unreachable { name: name.clone(), detail: "there is no cluster to ask".to_owned() };
        return pull(Source::Cluster(sources.client.ok_or_else(nowhere)?)).run().await;
    };
    let places = sources.registries.endpoints(registry, &full);
    let mut last = None;
    for place in places {
        let credentials = sources.credentials(&place.authority, &repository);
        let authority = place.authority.clone();
        let remote = Remote::new((&name, &full, &repository), place, sources.registries, credentials);
        match pull(Source::Remote(Box::new(remote))).run().await {
            Ok(image) => return Ok(image),
            // Nothing that another place says could help.
            Err(error @ (PullError::NotWasm { .. } | PullError::TooLarge { .. } | PullError::Io { .. })) => {
                return Err(error);
            }
            Err(error) => {
                tracing::debug!(authority, error = chain(&error), "an image did not come from this place");
                last = Some(error);
            }
        }
    }
    Err(last.expect("the registry itself is always asked"))
}

/// One image from one place.
struct Pull<'a> {
    store: &'a Store,
    name: &'a str,
    reference: &'a Reference,
    repository: &'a str,
    keys: Option<&'a [PublicKey]>,
    from: Source<'a>,
}

enum Source<'a> {
    Cluster(&'a Client),
    Remote(Box<Remote<'a>>),
}

impl Pull<'_> {
    async fn run(mut self) -> Result<Image, PullError> {
        let (digest, manifest) = self.manifest().await?;
        let signed_by = match self.keys {
            None => None,
            Some(keys) => Some(self.signature(&digest, keys).await?),
        };
        let known = self.store.program_of(&digest).await?;
        let already_present = known.is_some();
        let (program, size, defaults) = match known {
            Some(known) => known,
            None => self.program(&manifest).await?,
        };
        let shown = match &self.from {
            Source::Cluster(_) => None,
            Source::Remote(remote) => remote.shown(),
        };
        let record = Record { manifest: digest, program, size, signed_by, shown, defaults };
        self.store.name(self.name, &record).await?;
        Ok(self.store.image(self.name, &record, already_present))
    }

    /// The digest that the name stands for, and the manifest for WebAssembly under it.
    async fn manifest(&mut self) -> Result<(String, Manifest), PullError> {
        let wanted = self.reference.wanted();
        let bytes = self.bytes(&format!("manifests/{wanted}"), MANIFEST_ACCEPT, MANIFEST_BYTES_MAX).await?;
        let digest = digest_of(&bytes);
        if self.reference.digest.as_ref().is_some_and(|asked| *asked != digest) {
            return Err(self.corrupt("its manifest does not have the digest that it was asked by"));
        }
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|_| self.corrupt("its manifest is neither an image's nor an index"))?;
        let index = match document {
            Document::Manifest(manifest) => return Ok((digest, manifest)),
            Document::Index(index) => index,
        };
        let entry = index.choose().ok_or_else(|| self.corrupt("its index names no image"))?;
        self.check_digest(&entry.digest)?;
        let bytes = self.bytes(&format!("manifests/{}", entry.digest), MANIFEST_ACCEPT, MANIFEST_BYTES_MAX).await?;
        if digest_of(&bytes) != entry.digest {
            return Err(self.corrupt("its manifest does not have the digest that its index names"));
        }
        let manifest = serde_json::from_slice(&bytes).map_err(|err| self.corrupt(format!("its manifest: {err}")))?;
        Ok((digest, manifest))
    }

    /// The fingerprint of the key that signed the image.
    async fn signature(&mut self, digest: &str, keys: &[PublicKey]) -> Result<String, PullError> {
        let unsigned =
            |name: &str, detail: &str| PullError::Unsigned { name: name.to_owned(), detail: detail.to_owned() };
        let tag = signature::tag(digest);
        let bytes = match self.bytes(&format!("manifests/{tag}"), MANIFEST_ACCEPT, MANIFEST_BYTES_MAX).await {
            Err(PullError::NotFound { .. } | PullError::NotFoundThere { .. }) => {
                return Err(unsigned(self.name, "it has no signature; sign it with `cosign sign --key`"));
            }
            bytes => bytes?,
        };
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|err| unsigned(self.name, &format!("its signature is malformed: {err}")))?;
        for claim in signature::claims(&manifest) {
            self.check_digest(&claim.digest)?;
            let payload = self.bytes(&format!("blobs/{}", claim.digest), "*/*", PAYLOAD_BYTES_MAX).await?;
            if let Some(key) = signature::check(&claim, &payload, digest, keys) {
                return Ok(key);
            }
        }
        Err(unsigned(self.name, "none of its signatures is by one of the keys that the node accepts"))
    }

    /// Has the program in the store: its digest, its size, and how it wants to be started.
    async fn program(&mut self, manifest: &Manifest) -> Result<(String, u64, Defaults), PullError> {
        let not_wasm = |found| PullError::NotWasm { name: self.name.to_owned(), found };
        let layers = match manifest.content().map_err(not_wasm)? {
            Content::Bare(layer) => {
                self.check(&layer)?;
                if self.store.whole(&layer.digest).await?.is_none() {
                    let path = self.store.path(&layer.digest);
                    let file = self.download(&layer, &path).await?;
                    self.store.keep(&layer.digest, file).await?;
                }
                return Ok((layer.digest, layer.size, Defaults::default()));
            }
            Content::Files(layers) => layers,
        };
        self.check(&manifest.config)?;
        let config = self.bytes(&format!("blobs/{}", manifest.config.digest), "*/*", MANIFEST_BYTES_MAX).await?;
        if digest_of(&config) != manifest.config.digest {
            return Err(self.corrupt("its configuration does not have its digest"));
        }
        let config: ImageConfig =
            serde_json::from_slice(&config).map_err(|err| self.corrupt(format!("its configuration: {err}")))?;
        let (program, defaults) = config.start();
        let scratch = self.store.scratch().map_err(io_at(&self.store.path("")))?;
        let mut paths = Vec::new();
        let mut total = 0_u64;
        for (number, layer) in layers.iter().enumerate() {
            self.check(layer)?;
            total = total.saturating_add(layer.size);
            if total > IMAGE_BYTES_MAX {
                return Err(PullError::TooLarge { name: self.name.to_owned(), size: total });
            }
            let path = scratch.path().join(number.to_string());
            self.download(layer, &path).await?.commit().map_err(io_at(&path))?;
            paths.push(path);
        }
        let dir = scratch.path().to_owned();
        let taken = blocking(move || Ok(archive::extract(&paths, program.as_deref(), &dir, archive::LIMITS))).await;
        let taken = taken.map_err(io_at(scratch.path()))?;
        let taken = taken.map_err(|error| match error {
            ArchiveError::Image(found) => PullError::NotWasm { name: self.name.to_owned(), found },
            ArchiveError::Io(source) => PullError::Io { path: scratch.path().to_owned(), source },
        })?;
        if self.store.whole(&taken.digest).await?.is_none() {
            self.store.adopt(&taken.digest, taken.file, taken.path).await?;
        }
        Ok((taken.digest, taken.size, defaults))
    }

    fn check(&self, layer: &Descriptor) -> Result<(), PullError> {
        self.check_digest(&layer.digest)?;
        if layer.size > IMAGE_BYTES_MAX {
            return Err(PullError::TooLarge { name: self.name.to_owned(), size: layer.size });
        }
        Ok(())
    }

    fn check_digest(&self, digest: &str) -> Result<(), PullError> {
        if is_digest(digest) { Ok(()) } else { Err(self.corrupt(format!("it names the digest `{digest}`"))) }
    }

    fn corrupt(&self, detail: impl Into<String>) -> PullError {
        PullError::Corrupt { name: self.name.to_owned(), detail: detail.into() }
    }

    fn unreachable(&self, detail: String) -> PullError {
        PullError::Unreachable { name: self.name.to_owned(), detail }
    }

    /// A small document.
    async fn bytes(&mut self, path: &str, accept: &str, max: usize) -> Result<Vec<u8>, PullError> {
        let body = self.open(path, accept).await?;
        let body = timeout(DOCUMENT_MAX, Limited::new(body, max).collect()).await;
        let body = body.map_err(|_| self.unreachable("an answer does not end".to_owned()))?;
        let body = body.map_err(|err| self.unreachable(format!("the answer broke off or is too long: {err}")))?;
        Ok(body.to_bytes().to_vec())
    }

    /// A blob in a file that has not yet its name, with the digest that it should have.
    async fn download(&mut self, layer: &Descriptor, path: &Path) -> Result<NewFile, PullError> {
        let mut body = self.open(&format!("blobs/{}", layer.digest), "*/*").await?;
        let (pieces, mut queue) = mpsc::channel::<Bytes>(PIECES_MAX);
        let target = path.to_owned();
        // Hashing and writing are work for a thread that may block.
        let writer = tokio::task::spawn_blocking(move || {
            let mut file = NewFile::create(&target, Access::Public)?;
            let mut hash = Sha256::new();
            while let Some(piece) = queue.blocking_recv() {
                hash.update(&piece);
                file.write_all(&piece)?;
            }
            Ok((file, hash.finalize()))
        });
        let (mut size, began) = (0_u64, Instant::now());
        let broke = loop {
            let elapsed = began.elapsed();
            if elapsed > SILENCE_MAX && size < elapsed.as_secs() * BYTES_PER_S_MIN {
                break Some(format!("a layer comes too slowly: {size} bytes in {} s", elapsed.as_secs()));
            }
            match timeout(SILENCE_MAX, body.frame()).await {
                Ok(None) => break None,
                Ok(Some(Ok(frame))) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    size += piece.len() as u64;
                    // The writer ends before its queue only if the disk fails, which it says below.
                    if size > layer.size || pieces.send(piece).await.is_err() {
                        break None;
                    }
                }
                Ok(Some(Err(error))) => break Some(format!("a layer broke off after {size} bytes: {}", chain(&error))),
                Err(_) => break Some(format!("a layer stopped coming after {size} bytes")),
            }
        };
        drop(pieces);
        let written = writer.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let (file, hash) = written.map_err(io_at(path))?;
        if let Some(why) = broke {
            return Err(self.unreachable(why));
        }
        let digest = hex_of(&hash);
        if size != layer.size || digest != layer.digest {
            let (promised, bytes) = (&layer.digest, layer.size);
            let got = if size > bytes { "more".to_owned() } else { format!("{size} bytes with the digest `{digest}`") };
            return Err(self.corrupt(format!("its layer `{promised}` of {bytes} bytes came as {got}")));
        }
        Ok(file)
    }

    /// The body of what lies under a path of the repository.
    async fn open(&mut self, path: &str, accept: &str) -> Result<Incoming, PullError> {
        let answer = match &mut self.from {
            Source::Remote(remote) => remote.get(path, accept).await?,
            Source::Cluster(client) => {
                let path = format!("/v2/{}/{path}", self.repository);
                let answer = client.stream(Method::GET, &path, accept, None).await;
                answer.map_err(|error: ClientError| self.unreachable(chain(&error)))?
            }
        };
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer.into_body());
        }
        let body = timeout(DOCUMENT_MAX, Limited::new(answer.into_body(), MANIFEST_BYTES_MAX).collect()).await;
        let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
        let name = self.name.to_owned();
        Err(match (status, &self.from) {
            (StatusCode::NOT_FOUND, Source::Cluster(_)) => PullError::NotFound { name },
            (StatusCode::NOT_FOUND, Source::Remote(remote)) => {
                PullError::NotFoundThere { name, registry: remote.authority().to_owned() }
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                PullError::Unauthorized { name, detail: said(&body) }
            }
            (status, _) => self.unreachable(format!("the registry answered {status}: {}", said(&body))),
        })
    }
}

/// What lies under a manifest's address.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// An error and what caused it, on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
