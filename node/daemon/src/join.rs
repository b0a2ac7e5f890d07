//! How a new node gets its identity: it fetches the cluster's CA, compares it with the hash in its join token, and only
//! then sends the token's secret with a certificate request. The private key never leaves the node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use dhow_client::{Client, ClientError};
use dhow_files::Access;
use dhow_pki::token::JoinToken;
use dhow_pki::{Identity, PkiError, new_csr};
use http::Method;
use serde::Deserialize;
use serde_json::json;

const DIR: &str = "identity";

/// What a node holds after it joined.
#[derive(Clone)]
pub struct JoinedIdentity {
    /// The API server, `https://host:port`.
    pub server: String,
    /// The cluster's CA, in PEM.
    pub ca_pem: String,
    /// The node's key and certificate.
    pub identity: Identity,
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The token has not the form of a join token.
    #[error("the join token cannot be used")]
    BadToken(#[from] dhow_pki::token::TokenError),
    /// The first start needs a token, and none was given.
    #[error("this node has not joined yet: it needs a token, as `dhow token create` prints it on the control node")]
    NoToken,
    /// The data directory belongs to a node of another name.
    #[error("`{}` belongs to node `{kept}`, not to `{asked}`", data_dir.display())]
    OtherName {
        /// The data directory.
        data_dir: PathBuf,
        /// The name that it has.
        kept: String,
        /// The name that was asked for.
        asked: String,
    },
    /// The server is another one than the token was made for.
    #[error("the server `{server}` has another CA than the one that the token was made for")]
    WrongCluster {
        /// The server.
        server: String,
    },
    /// The server refused the token, the name or the request.
    #[error("the server refused to let `{name}` join: {message}")]
    Refused {
        /// The node's name.
        name: String,
        /// What the server said.
        message: String,
    },
    /// The server cannot be reached.
    #[error("joining through `{server}` failed")]
    Client {
        /// The server.
        server: String,
        /// What went wrong.
        #[source]
        source: ClientError,
    },
    /// A certificate could not be made or read.
    #[error("a certificate cannot be made or read")]
    Pki(#[from] PkiError),
    /// The identity could not be kept or read.
    #[error("the identity in `{}` cannot be read or written", path.display())]
    Storage {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

#[derive(Deserialize)]
struct Answer {
    certificate: String,
    ca: String,
}

/// The identity for node `name`: the one that an earlier join left in `data_dir`, or else a new one from the cluster at
/// `server`, for a join token; it is kept.
pub async fn join(server: &str, token: Option<&str>, name: &str, data_dir: &Path) -> Result<JoinedIdentity, JoinError> {
    let server = server.trim_end_matches('/');
    if let Some((kept, identity, ca_pem)) = load(data_dir)? {
        if kept != name {
            return Err(JoinError::OtherName { data_dir: data_dir.to_owned(), kept, asked: name.to_owned() });
        }
        return Ok(JoinedIdentity { server: server.to_owned(), ca_pem, identity });
    }
    let token = token.ok_or(JoinError::NoToken)?;
    let (identity, ca_pem) = ask(server, token, name).await?;
    keep(data_dir, name, &identity, &ca_pem)?;
    Ok(JoinedIdentity { server: server.to_owned(), ca_pem, identity })
}

/// The directory of the identity that a join left in a data directory, if it did.
pub(crate) fn kept(data_dir: &Path) -> Option<PathBuf> {
    let dir = data_dir.join(DIR);
    dir.join("name").exists().then_some(dir)
}

/// Name, key and certificate, and CA, as an earlier join left them.
fn load(data_dir: &Path) -> Result<Option<(String, Identity, String)>, JoinError> {
    let dir = data_dir.join(DIR);
    let read = |name: &str| -> Result<Option<String>, JoinError> {
        let path = dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(JoinError::Storage { path, source }),
        }
    };
    // The name is written last: without it, nothing was finished.
    let parts = (read("name")?, read("node.crt")?, read("node.key")?, read("ca.crt")?);
    let (Some(name), Some(cert_pem), Some(key_pem), Some(ca_pem)) = parts else { return Ok(None) };
    Ok(Some((name.trim().to_owned(), Identity { cert_pem, key_pem }, ca_pem)))
}

async fn ask(server: &str, token: &str, name: &str) -> Result<(Identity, String), JoinError> {
    let token: JoinToken = token.trim().parse()?;
    let lost = |source| JoinError::Client { server: server.to_owned(), source };
    let ca = dhow_client::bootstrap_get(server, "/cacerts").await.map_err(lost)?;
    let wrong = || JoinError::WrongCluster { server: server.to_owned() };
    let ca_pem = String::from_utf8(ca.to_vec()).map_err(|_| wrong())?;
    if !token.accepts(&ca_pem)? {
        return Err(wrong());
    }
    let (csr, key_pem) = new_csr(&format!("system:node:{name}"))?;
    let client = Client::new(dhow_client::Config {
        server: server.to_owned(),
        others: Vec::new(),
        ca_pem: Some(ca_pem),
        identity: None,
        token: Some(token.bearer()),
        namespace: "default".to_owned(),
    })
    .map_err(lost)?;
    let body = Bytes::from(json!({"name": name, "csr": csr}).to_string());
    let answer = client.json(Method::POST, "/dhow/v1/join", Some(("application/json", body))).await;
    let answer = answer.map_err(|err| match err.status() {
        Some(status) => JoinError::Refused { name: name.to_owned(), message: status.message.clone() },
        None => lost(err),
    })?;
    let malformed = |err: serde_json::Error| JoinError::Refused {
        name: name.to_owned(),
        message: format!("its answer is malformed: {err}"),
    };
    let Answer { certificate, ca } = serde_json::from_value(answer).map_err(malformed)?;
    // What the server calls the CA must be what the token vouches for.
    if !token.accepts(&ca)? {
        return Err(wrong());
    }
    Ok((Identity { cert_pem: certificate, key_pem }, ca))
}

fn keep(data_dir: &Path, name: &str, identity: &Identity, ca_pem: &str) -> Result<(), JoinError> {
    let dir = data_dir.join(DIR);
    fs::create_dir_all(&dir).map_err(|source| JoinError::Storage { path: dir.clone(), source })?;
    for (file, text) in
        [("ca.crt", ca_pem), ("node.key", &identity.key_pem), ("node.crt", &identity.cert_pem), ("name", name)]
    {
        let path = dir.join(file);
        dhow_files::write(&path, text.as_bytes(), Access::Private)
            .map_err(|source| JoinError::Storage { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_identity_is_kept_and_read_back() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let again = |name: &'static str| join("https://192.0.2.1:6443/", None, name, dir.path());
        assert!(matches!(again("n1").await, Err(JoinError::NoToken)));
        let identity = Identity { cert_pem: "cert".into(), key_pem: "key".into() };
        keep(dir.path(), "n1", &identity, "ca").unwrap();
        let found = again("n1").await.unwrap();
        assert_eq!((found.server.as_str(), found.ca_pem.as_str()), ("https://192.0.2.1:6443", "ca"));
        assert_eq!((found.identity.cert_pem.as_str(), found.identity.key_pem.as_str()), ("cert", "key"));
        assert!(matches!(again("n2").await, Err(JoinError::OtherName { .. })));
        let mode = fs::metadata(dir.path().join("identity/node.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "nobody else reads the key");
    }
}
