//! From a file into the cluster's registry, as an OCI artifact in the layout that the CNCF's Wasm working group agreed
//! on.

use bytes::Bytes;
use dhow_client::Client;
use http::{Method, StatusCode, header};

use crate::manifest::{Descriptor, MANIFEST, Manifest, WASM_CONFIG, WASM_LAYER, WasmConfig, digest_of};
use crate::pull::chain;
use crate::{IMAGE_BYTES_MAX, Reference};

/// Why a program did not get into the registry.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The name has a registry's host or a digest.
    #[error("`{name}` cannot be pushed to: {why}")]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file is no program.
    #[error("the file is not a WebAssembly program: {why}")]
    NotWasm {
        /// What was found.
        why: String,
    },
    /// The registry said no.
    #[error("the registry refused the {what} with status {status}: {detail}")]
    Refused {
        /// What was sent: `upload`, `layer`, `configuration`, `manifest`.
        what: &'static str,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        detail: String,
    },
    /// The registry does not answer.
    #[error("sending the {what} failed: {detail}")]
    Unreachable {
        /// What was sent.
        what: &'static str,
        /// What happened.
        detail: String,
    },
}

/// Puts a component, or a preview 1 module, into the cluster's registry. Gives the manifest's digest.
pub async fn push(client: &Client, wasm: impl Into<Bytes>, reference: &Reference) -> Result<String, PushError> {
    let wasm: Bytes = wasm.into();
    let refuse = |why| PushError::InvalidName { name: reference.to_string(), why };
    if reference.registry.is_some() {
        return Err(refuse("only the cluster's own registry is supported; leave the host out"));
    }
    if reference.digest.is_some() {
        return Err(refuse("a digest is the outcome of a push; name a tag"));
    }
    let os = system(&wasm)?;
    let layer = Descriptor::of(WASM_LAYER, &wasm);
    let config = WasmConfig { architecture: "wasm", os, layer_digests: vec![layer.digest.clone()] };
    let config = serde_json::to_vec(&config).expect("plain data is JSON");
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.to_owned(),
        config: Descriptor::of(WASM_CONFIG, &config),
        layers: vec![layer.clone()],
    };
    let registry = Registry { client, repository: &reference.repository };
    registry.put_blob("layer", &layer.digest, wasm).await?;
    registry.put_blob("configuration", &manifest.config.digest, config.into()).await?;
    let manifest = serde_json::to_vec(&manifest).expect("plain data is JSON");
    let digest = digest_of(&manifest);
    let path = format!("/v2/{}/manifests/{}", reference.repository, reference.wanted());
    registry.send("manifest", Method::PUT, &path, Some((MANIFEST, manifest.into()))).await?;
    Ok(digest)
}

/// What the program calls its system: the WASI version of a component, or preview 1 for a bare module.
fn system(wasm: &[u8]) -> Result<&'static str, PushError> {
    if wasm.len() as u64 > IMAGE_BYTES_MAX {
        return Err(PushError::NotWasm { why: format!("it has {} bytes; at most {IMAGE_BYTES_MAX}", wasm.len()) });
    }
    match wasm {
        [0, b'a', b's', b'm', _, _, 0, 0, ..] => Ok("wasip1"),
        [0, b'a', b's', b'm', _, _, 1, 0, ..] => Ok("wasip2"),
        _ => Err(PushError::NotWasm { why: "it does not begin with a module's or a component's header".to_owned() }),
    }
}

struct Registry<'a> {
    client: &'a Client,
    repository: &'a str,
}

impl Registry<'_> {
    async fn put_blob(&self, what: &'static str, digest: &str, bytes: Bytes) -> Result<(), PushError> {
        let path = format!("/v2/{}/blobs/{digest}", self.repository);
        let known = self.request(what, Method::HEAD, &path, None).await?;
        if known.status.is_success() {
            return Ok(());
        }
        let begun = self.send("upload", Method::POST, &format!("/v2/{}/blobs/uploads/", self.repository), None).await?;
        let location = begun.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
        let location = location.ok_or_else(|| PushError::Refused {
            what: "upload",
            status: begun.status.as_u16(),
            detail: "it names no place to upload to".to_owned(),
        })?;
        let path = path_of(location);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={digest}");
        self.send(what, Method::PUT, &path, Some(("application/octet-stream", bytes))).await?;
        Ok(())
    }

    async fn send(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<dhow_client::Response, PushError> {
        let response = self.request(what, method, path, body).await?;
        match response.status {
            StatusCode::OK | StatusCode::CREATED | StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Ok(response),
            status => {
                let said = &response.body[..response.body.len().min(300)];
                let detail = String::from_utf8_lossy(said).trim().to_owned();
                Err(PushError::Refused { what, status: status.as_u16(), detail })
            }
        }
    }

    async fn request(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<dhow_client::Response, PushError> {
        let sent = self.client.request(method, path, "*/*", body).await;
        sent.map_err(|error| PushError::Unreachable { what, detail: chain(&error) })
    }
}

/// A `Location` is a path or a whole address; the client wants the path.
fn path_of(location: &str) -> &str {
    let Some((_, rest)) = location.split_once("://") else { return location };
    rest.find('/').map_or("/", |at| &rest[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_other_files() {
        assert_eq!(system(b"\0asm\x01\0\0\0").unwrap(), "wasip1");
        assert_eq!(system(b"\0asm\x0d\0\x01\0").unwrap(), "wasip2");
        assert!(system(b"\x7fELF").is_err());
        assert!(system(b"\0asm").is_err());
    }

    #[test]
    fn locations_are_paths_or_addresses() {
        for (location, path) in [("/v2/x?y", "/v2/x?y"), ("https://h:1/v2/x", "/v2/x"), ("https://h", "/")] {
            assert_eq!(path_of(location), path);
        }
    }
}
