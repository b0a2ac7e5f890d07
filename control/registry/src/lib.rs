//! The cluster's own image registry: the OCI distribution API (<https://github.com/opencontainers/distribution-spec>,
//! 1.1) over a directory of blobs.
//!
//! [`Registry::handle`] answers one request under `/v2/`; [`disk`] keeps blobs, tags and unfinished uploads; [`error`]
//! words refusals as the specification does.
//!
//! Invariants: a blob or manifest is visible only whole, synced, and under the digest that its bytes have. A tag moves by
//! one rename. Nothing here knows who asks: the server authenticates and authorises before.

mod disk;
mod error;
mod route;

use bytes::{Bytes, BytesMut};
use disk::{Digest, Disk};
use error::{Code, Refusal};
use http::{Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use route::{Reference, Route};
use serde_json::json;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;

/// Why a response body broke off.
pub type BodyError = io::Error;

/// A response body: small documents, or a blob read from disk piece by piece.
pub type RegistryBody = UnsyncBoxBody<Bytes, BodyError>;

/// The largest manifest, as the specification recommends: 4 MiB. A larger one is refused with 413.
const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Blobs are read in pieces of this size: a few per flow-control window.
const PIECE_BYTES: usize = 128 * 1024;

/// A handle to the registry; cheap to clone.
#[derive(Clone)]
pub struct Registry {
    disk: Arc<Disk>,
}

impl Registry {
    /// Opens or makes the registry under `dir`. Uploads that an earlier process left unfinished are dropped.
    pub fn open(dir: impl AsRef<Path>) -> io::Result<Registry> {
        Ok(Registry { disk: Arc::new(Disk::open(dir.as_ref())?) })
    }

    /// Answers one request under `/v2/`.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<RegistryBody>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let head_only = request.method() == Method::HEAD;
        let response = match self.answer(request).await {
            Ok(response) => response,
            Err(refusal) => {
                if refusal.status.is_server_error() {
                    tracing::error!(message = %refusal.message, "the registry failed");
                }
                respond(refusal.status, &[(header::CONTENT_TYPE, "application/json")], refusal.to_json())
            }
        };
        // HTTP/2 takes bytes after a HEAD for a broken stream (RFC 9113 §8.1.1).
        if head_only { response.map(|_body| empty()) } else { response }
    }

    async fn answer<B>(&self, request: Request<B>) -> Result<Response<RegistryBody>, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let (head, body) = request.into_parts();
        let query = head.uri.query().unwrap_or_default();
        let read = matches!(head.method, Method::GET | Method::HEAD);
        match (Route::parse(head.uri.path())?, &head.method) {
            (Route::Base, _) if read => Ok(document(&json!({}))),
            (Route::Catalog, _) if read => Ok(document(&json!({ "repositories": self.disk.repositories().await? }))),
            (Route::Tags { name }, _) if read => match self.disk.tags(&name).await? {
                tags if tags.is_empty() => Err(Refusal::name_unknown(&name)),
                tags => Ok(document(&json!({ "name": name, "tags": tags }))),
            },
            (Route::Manifest { name, reference }, _) if read => self.manifest(&name, &reference).await,
            (Route::Manifest { name, reference }, &Method::PUT) => {
                let media_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let bytes = collect(body, MANIFEST_BYTES_MAX).await?;
                self.put_manifest(&name, &reference, media_type.unwrap_or_default(), bytes).await
            }
            (Route::Manifest { name, reference }, &Method::DELETE) => {
                self.disk.remove_manifest(&name, &reference).await?;
                Ok(respond(StatusCode::ACCEPTED, &[], Vec::new()))
            }
            (Route::Blob { digest }, _) if read => self.blob(&digest).await,
            (Route::Uploads { name }, &Method::POST) => match route::query_value(query, "digest") {
                Some(digest) => {
                    let upload = self.disk.begin().await?;
                    self.append(&upload, body, None).await?;
                    self.finish(&name, &upload, &digest).await
                }
                None => Ok(uploaded(&name, &self.disk.begin().await?, 0, StatusCode::ACCEPTED)),
            },
            (Route::Upload { name, upload }, _) if read => {
                let length = self.disk.upload_length(&upload).await?;
                Ok(uploaded(&name, &upload, length, StatusCode::NO_CONTENT))
            }
            (Route::Upload { name, upload }, &Method::PATCH) => {
                let from = head.headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let length = self.append(&upload, body, from).await?;
                Ok(uploaded(&name, &upload, length, StatusCode::ACCEPTED))
            }
            (Route::Upload { name, upload }, &Method::PUT) => {
                let digest = route::query_value(query, "digest").ok_or_else(|| {
                    Refusal::new(StatusCode::BAD_REQUEST, Code::DigestInvalid, "the query has no `digest`")
                })?;
                self.append(&upload, body, None).await?;
                self.finish(&name, &upload, &digest).await
            }
            (Route::Upload { upload, .. }, &Method::DELETE) => {
                self.disk.abandon(&upload).await?;
                Ok(respond(StatusCode::NO_CONTENT, &[], Vec::new()))
            }
            (_, method) => Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Code::Unsupported,
                format!("`{method}` is not offered for `{}`", head.uri.path()),
            )),
        }
    }

    async fn manifest(&self, name: &str, reference: &Reference) -> Result<Response<RegistryBody>, Refusal> {
        let manifest = self.disk.manifest(name, reference).await?;
        let length = manifest.bytes.len().to_string();
        let fields = [
            (header::CONTENT_TYPE, manifest.media_type.as_str()),
            (header::CONTENT_LENGTH, length.as_str()),
            (error::CONTENT_DIGEST, manifest.digest.as_str()),
        ];
        Ok(respond(StatusCode::OK, &fields, manifest.bytes))
    }

    async fn put_manifest(
        &self,
        name: &str,
        reference: &Reference,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> Result<Response<RegistryBody>, Refusal> {
        let invalid = |why: String| Refusal::new(StatusCode::BAD_REQUEST, Code::ManifestInvalid, why);
        let tree: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|err| invalid(format!("the manifest is not JSON: {err}")))?;
        let media_type = match (media_type, tree["mediaType"].as_str()) {
            ("", None) => return Err(invalid("the manifest has no media type".to_owned())),
            ("", Some(own)) => own,
            (sent, Some(own)) if sent != own => {
                return Err(invalid(format!("the manifest says `{own}`, the request `{sent}`")));
            }
            (sent, _) => sent,
        };
        let config = std::iter::once(&tree["config"]);
        for part in config.chain(tree["layers"].as_array().into_iter().flatten()) {
            let Some(digest) = part["digest"].as_str() else { continue };
            let digest: Digest = digest.parse()?;
            if self.disk.blob(&digest).await?.is_none() {
                let message = format!("the manifest refers to the blob `{digest}`, which is not here: push it first");
                return Err(Refusal::new(StatusCode::NOT_FOUND, Code::ManifestBlobUnknown, message));
            }
        }
        let digest = self.disk.put_manifest(name, reference, media_type, &bytes).await?;
        let location = format!("/v2/{name}/manifests/{digest}");
        let fields = [(header::LOCATION, location.as_str()), (error::CONTENT_DIGEST, digest.as_str())];
        Ok(respond(StatusCode::CREATED, &fields, Vec::new()))
    }

    async fn blob(&self, digest: &Digest) -> Result<Response<RegistryBody>, Refusal> {
        let (file, length) = self.disk.blob(digest).await?.ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, Code::BlobUnknown, format!("the blob `{digest}` is not here"))
        })?;
        let pieces = futures_util::stream::try_unfold(file, |mut file| async move {
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            let read = file.read_buf(&mut piece).await?;
            Ok((read > 0).then(|| (Frame::data(piece.freeze()), file)))
        });
        let body = StreamBody::new(pieces).boxed_unsync();
        Response::builder()
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, length)
            .header(error::CONTENT_DIGEST, digest.as_str())
            .body(body)
            .map_err(|err| Refusal::internal(&err))
    }

    /// Appends a body to an upload; `range` is the `Content-Range` of a chunk, which must begin where the upload ends.
    async fn append<B>(&self, upload: &str, mut body: B, range: Option<&str>) -> Result<u64, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let mut file = self.disk.upload(upload).await?;
        if let Some(range) = range {
            let begins = range.split('-').next().and_then(|begin| begin.trim_start_matches("bytes ").parse().ok());
            if begins != Some(file.length()) {
                let message = format!("the chunk `{range}` does not begin at {}, where the upload ends", file.length());
                return Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, message));
            }
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|err| {
                let message = format!("the upload broke off: {err}");
                Refusal::new(StatusCode::BAD_REQUEST, Code::BlobUploadInvalid, message)
            })?;
            if let Ok(data) = frame.into_data() {
                file.append(&data).await?;
            }
        }
        file.flush().await
    }

    async fn finish(&self, name: &str, upload: &str, digest: &str) -> Result<Response<RegistryBody>, Refusal> {
        let digest: Digest = digest.parse()?;
        self.disk.finish(upload, &digest).await?;
        let location = format!("/v2/{name}/blobs/{digest}");
        let fields = [(header::LOCATION, location.as_str()), (error::CONTENT_DIGEST, digest.as_str())];
        Ok(respond(StatusCode::CREATED, &fields, Vec::new()))
    }
}

async fn collect<B>(body: B, bytes_max: usize) -> Result<Vec<u8>, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|err| {
            Refusal::new(StatusCode::BAD_REQUEST, Code::ManifestInvalid, format!("the body broke off: {err}"))
        })?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > bytes_max {
                let message = format!("a manifest has at most {bytes_max} bytes");
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, message));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

fn uploaded(name: &str, upload: &str, length: u64, status: StatusCode) -> Response<RegistryBody> {
    let location = format!("/v2/{name}/blobs/uploads/{upload}");
    // The range is inclusive: an empty upload says `0-0` as well, as registries do.
    let range = format!("0-{}", length.saturating_sub(1));
    let fields = [(header::LOCATION, location.as_str()), (header::RANGE, range.as_str()), (error::UPLOAD_ID, upload)];
    respond(status, &fields, Vec::new())
}

fn document(tree: &serde_json::Value) -> Response<RegistryBody> {
    respond(StatusCode::OK, &[(header::CONTENT_TYPE, "application/json")], tree.to_string().into_bytes())
}

fn respond(status: StatusCode, fields: &[(header::HeaderName, &str)], body: Vec<u8>) -> Response<RegistryBody> {
    let body = if body.is_empty() {
        empty()
    } else {
        Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync()
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in fields {
        // Names and digests were checked when they were parsed; a media type comes from the client and may be odd.
        if let Ok(value) = header::HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn empty() -> RegistryBody {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests;
