//! From the cluster's registry into the store.

use std::error::Error;
use std::path::PathBuf;

use dhow_client::{Client, ClientError};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};

use crate::manifest::{
    Descriptor, INDEX, Index, MANIFEST_ACCEPT, MANIFEST_BYTES_MAX, Manifest, WASM_LAYERS, digest_of,
};
use crate::reference::{InvalidReference, is_digest};
use crate::store::{Image, Store};
use crate::{IMAGE_BYTES_MAX, Reference};

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
    /// There is no such image or file.
    #[error("image `{name}` was not found; push it with `dhow push FILE.wasm NAME:TAG`, or check the file's path")]
    NotFound {
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
    /// The image is in a registry outside of the cluster.
    #[error(
        "image `{name}` is in the registry `{registry}`, and only the cluster's own registry is supported; \
         push it there with `dhow push` and name it without a host"
    )]
    ForeignRegistry {
        /// The image.
        name: String,
        /// The registry's host.
        registry: String,
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
    #[error(
        "image `{name}` holds no WebAssembly program: its layers are {found}; Linux container images do not run here"
    )]
    NotWasm {
        /// The image.
        name: String,
        /// The media types of its layers.
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
            _ => "ErrImagePull",
        }
    }
}

impl From<InvalidReference> for PullError {
    fn from(error: InvalidReference) -> Self {
        Self::InvalidName { name: error.name, why: error.why.to_owned() }
    }
}

/// Asks the registry what the name means and fetches what the store lacks of it.
pub(crate) async fn fetch(store: &Store, client: &Client, reference: &Reference) -> Result<Image, PullError> {
    let name = reference.to_string();
    let layer = wasm_layer(&name, manifest(client, reference, &name).await?)?;
    let already_present = store.whole(&layer.digest).await?.is_some();
    if !already_present {
        let path = format!("/v2/{}/blobs/{}", reference.repository, layer.digest);
        let bytes = get(client, &name, &path, "*/*", layer.size as usize).await?.1;
        let digest = digest_of(&bytes);
        if digest != layer.digest || bytes.len() as u64 != layer.size {
            let detail =
                format!("its layer `{}` came as {} bytes with the digest `{digest}`", layer.digest, bytes.len());
            return Err(PullError::Corrupt { name, detail });
        }
        store.keep(&layer.digest, bytes).await?;
    }
    store.name(&name, &layer.digest).await?;
    Ok(store.image(&name, &layer.digest, layer.size, already_present))
}

async fn manifest(client: &Client, reference: &Reference, name: &str) -> Result<Manifest, PullError> {
    let corrupt = |detail: String| PullError::Corrupt { name: name.to_owned(), detail };
    let path = |what: &str| format!("/v2/{}/manifests/{what}", reference.repository);
    let (media_type, mut bytes) =
        get(client, name, &path(reference.wanted()), MANIFEST_ACCEPT, MANIFEST_BYTES_MAX).await?;
    if let Some(digest) = &reference.digest
        && *digest != digest_of(&bytes)
    {
        return Err(corrupt("its manifest does not have the digest that it was asked by".to_owned()));
    }
    if media_type.starts_with(INDEX) {
        let index: Index = serde_json::from_slice(&bytes).map_err(|e| corrupt(format!("its index: {e}")))?;
        let entry = index.manifests.iter().find(|entry| entry.platform.architecture == "wasm");
        let entry = entry.or(index.manifests.first()).ok_or_else(|| corrupt("its index is empty".to_owned()))?;
        if !is_digest(&entry.digest) {
            return Err(corrupt(format!("its index names the digest `{}`", entry.digest)));
        }
        bytes = get(client, name, &path(&entry.digest), MANIFEST_ACCEPT, MANIFEST_BYTES_MAX).await?.1;
        if digest_of(&bytes) != entry.digest {
            return Err(corrupt("its manifest does not have the digest that its index names".to_owned()));
        }
    }
    serde_json::from_slice(&bytes).map_err(|e| corrupt(format!("its manifest: {e}")))
}

fn wasm_layer(name: &str, manifest: Manifest) -> Result<Descriptor, PullError> {
    let name = || name.to_owned();
    let found = manifest.layers.iter().map(|layer| format!("`{}`", layer.media_type)).collect::<Vec<_>>().join(", ");
    let layer = manifest.layers.into_iter().find(|layer| WASM_LAYERS.contains(&layer.media_type.as_str()));
    let layer = layer.ok_or_else(|| PullError::NotWasm { name: name(), found })?;
    if !is_digest(&layer.digest) {
        return Err(PullError::Corrupt {
            name: name(),
            detail: format!("its layer has the digest `{}`", layer.digest),
        });
    }
    if layer.size > IMAGE_BYTES_MAX {
        return Err(PullError::TooLarge { name: name(), size: layer.size });
    }
    Ok(layer)
}

/// The media type and the body of an answer of at most `max` bytes.
async fn get(
    client: &Client,
    name: &str,
    path: &str,
    accept: &str,
    max: usize,
) -> Result<(String, Vec<u8>), PullError> {
    let unreachable = |detail: String| PullError::Unreachable { name: name.to_owned(), detail };
    let broken = |error: ClientError| unreachable(chain(&error));
    let (head, body) = client.stream(Method::GET, path, accept, None).await.map_err(broken)?.into_parts();
    let body = Limited::new(body, max).collect().await;
    let body = body.map_err(|error| unreachable(format!("the answer broke off or is too long: {error}")))?.to_bytes();
    let said = || String::from_utf8_lossy(&body[..body.len().min(300)]).trim().to_owned();
    match head.status {
        StatusCode::OK => {
            let media_type = head.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
            Ok((media_type.unwrap_or_default().to_owned(), body.to_vec()))
        }
        StatusCode::NOT_FOUND => Err(PullError::NotFound { name: name.to_owned() }),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(PullError::Unauthorized { name: name.to_owned(), detail: said() })
        }
        status => Err(unreachable(format!("the registry answered {status}: {}", said()))),
    }
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
