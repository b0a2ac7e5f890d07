//! Who a node is to a registry: what pull secrets say, in the form of Docker's `config.json`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// One way to show who one is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A token that an authorization server gives access tokens for.
    Identity(String),
    /// A token that the registry itself takes.
    Registry(String),
}

impl std::fmt::Debug for Credential {
    /// Without what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username})"),
            Self::Identity(_) => f.write_str("Identity"),
            Self::Registry(_) => f.write_str("Registry"),
        }
    }
}

impl Credential {
    /// A text that tells it from others and does not give it away.
    pub(crate) fn fingerprint(&self) -> String {
        let (kind, user, secret) = match self {
            Self::Password { username, password } => ("password", username.as_str(), password),
            Self::Identity(token) => ("identity", "", token),
            Self::Registry(token) => ("registry", "", token),
        };
        let mut hash = Sha256::new();
        for part in [kind, user, secret] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Credentials by the registries that they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    entries: Vec<(Place, Credential)>,
}

/// What an entry is for: a host, maybe with a port, and the beginning of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: String,
    port: Option<String>,
    path: String,
}

/// Why a pull secret is of no use.
#[derive(Debug, thiserror::Error)]
#[error("it is not of the form of Docker's `config.json`: {0}")]
pub struct InvalidKeyring(String);

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl Keyring {
    /// Adds what a secret of the type `kubernetes.io/dockerconfigjson` holds.
    pub fn add_config_json(&mut self, text: &[u8]) -> Result<(), InvalidKeyring> {
        let document: Document = serde_json::from_slice(text).map_err(invalid)?;
        self.add(document.auths)
    }

    /// Adds what a secret of the older type `kubernetes.io/dockercfg` holds.
    pub fn add_config(&mut self, text: &[u8]) -> Result<(), InvalidKeyring> {
        self.add(serde_json::from_slice(text).map_err(invalid)?)
    }

    fn add(&mut self, auths: BTreeMap<String, Auth>) -> Result<(), InvalidKeyring> {
        for (place, auth) in auths {
            if let Some(credential) = credential(auth)? {
                self.entries.push((Place::parse(&place), credential));
            }
        }
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The credentials that are meant for a repository at a registry, the most particular ones first.
    pub(crate) fn matching(&self, authority: &str, repository: &str) -> Vec<&Credential> {
        let (host, port) = split_port(authority);
        let mut found: Vec<_> = self.entries.iter().filter(|(place, _)| place.is_for(host, port, repository)).collect();
        found.sort_by_key(|(place, _)| std::cmp::Reverse((place.path.len(), place.host.len())));
        found.into_iter().map(|(_, credential)| credential).collect()
    }
}

fn invalid(error: serde_json::Error) -> InvalidKeyring {
    // The parser's own words could quote a secret.
    InvalidKeyring(format!("line {} column {}", error.line(), error.column()))
}

fn credential(auth: Auth) -> Result<Option<Credential>, InvalidKeyring> {
    let Auth { auth, mut username, mut password, identitytoken, registrytoken } = auth;
    if !registrytoken.is_empty() {
        return Ok(Some(Credential::Registry(registrytoken)));
    }
    if !identitytoken.is_empty() {
        return Ok(Some(Credential::Identity(identitytoken)));
    }
    if !auth.is_empty() {
        let bad = || InvalidKeyring("an `auth` is not the base64 text of `user:password`".to_owned());
        let decoded = STANDARD.decode(auth.trim()).map_err(|_| bad())?;
        let decoded = String::from_utf8(decoded).map_err(|_| bad())?;
        let (user, secret) = decoded.trim_end_matches('\0').split_once(':').ok_or_else(bad)?;
        (username, password) = (user.to_owned(), secret.to_owned());
    }
    Ok((!username.is_empty()).then_some(Credential::Password { username, password }))
}

impl Place {
    /// Reads `host`, `host:port/path`, `https://host/v1/`: the last form is Docker's own for its hub.
    fn parse(text: &str) -> Self {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest).trim_end_matches('/');
        let text = text.strip_suffix("/v1").or_else(|| text.strip_suffix("/v2")).unwrap_or(text);
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let (host, port) = split_port(authority);
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        Self { host: host.to_owned(), port: port.map(str::to_owned), path: path.to_owned() }
    }

    fn is_for(&self, host: &str, port: Option<&str>, repository: &str) -> bool {
        let host = if host == "registry-1.docker.io" { "docker.io" } else { host };
        let below = repository.strip_prefix(&self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        self.port.as_deref() == port && host_matches(host, &self.host) && (self.path.is_empty() || below)
    }
}

/// Whether a host is meant by a pattern in which `*` stands for a label or a part of one.
fn host_matches(host: &str, pattern: &str) -> bool {
    let (host, pattern): (Vec<_>, Vec<_>) = (host.split('.').collect(), pattern.split('.').collect());
    host.len() == pattern.len() && host.iter().zip(&pattern).all(|(label, pattern)| label_matches(label, pattern))
}

fn label_matches(label: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => label == pattern,
        Some((before, after)) => {
            let Some(rest) = label.strip_prefix(before) else { return false };
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && label_matches(&rest[at..], after))
        }
    }
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[after_bracket..].find(':') {
        None => (authority, None),
        Some(at) => (&authority[..after_bracket + at], Some(&authority[after_bracket + at + 1..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(keyring: &Keyring, authority: &str, repository: &str) -> Vec<String> {
        let name = |credential: &Credential| match credential {
            Credential::Password { username, password } => format!("{username}:{password}"),
            other => format!("{other:?}"),
        };
        keyring.matching(authority, repository).into_iter().map(name).collect()
    }

    #[test]
    fn entries_are_for_hosts_ports_and_paths() {
        let mut keyring = Keyring::default();
        let text = r#"{"auths": {
            "a.example": {"auth": "dTpwOnE="},
            "a.example/team": {"username": "team", "password": "x"},
            "a.example:5000": {"username": "port", "password": "x"},
            "*.b.example": {"username": "glob", "password": "x"},
            "r-*-eu.c.example": {"username": "part", "password": "x"},
            "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
            "tok.example": {"identitytoken": "secret"}, "own.example": {"registrytoken": "secret"},
            "empty.example": {}
        }, "credsStore": "desktop"}"#;
        keyring.add_config_json(text.as_bytes()).unwrap();
        for (authority, repository, expected) in [
            ("a.example", "x", &["u:p:q"][..]),
            ("a.example", "team/x", &["team:x", "u:p:q"]),
            ("a.example", "teams/x", &["u:p:q"]),
            ("a.example:5000", "team/x", &["port:x"]),
            ("x.b.example", "y", &["glob:x"]),
            ("x.y.b.example", "y", &[]),
            ("b.example", "y", &[]),
            ("r-1-eu.c.example", "y", &["part:x"]),
            ("r-1-us.c.example", "y", &[]),
            ("registry-1.docker.io", "library/y", &["hub:x"]),
            ("tok.example", "y", &["Identity"]),
            ("own.example", "y", &["Registry"]),
            ("empty.example", "y", &[]),
        ] {
            assert_eq!(users(&keyring, authority, repository), expected, "{authority}/{repository}");
        }
        let mut older = Keyring::default();
        older.add_config(br#"{"a.example": {"username": "u", "password": "p", "email": "e"}}"#).unwrap();
        assert_eq!(users(&older, "a.example", "x"), ["u:p"]);
    }

    #[test]
    fn a_malformed_secret_is_not_quoted() {
        let mut keyring = Keyring::default();
        for text in
            [r#"{"auths": {"a": {"auth": "hunter2"}}}"#, r#"{"auths": {"a": {"auth": ["hunter2"]}}}"#, "hunter2"]
        {
            let error = keyring.add_config_json(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("config.json") && !error.contains("hunter2"), "{error}");
        }
        let secret = Credential::Password { username: "u".to_owned(), password: "hunter2".to_owned() };
        assert!(!format!("{secret:?} {}", secret.fingerprint()).contains("hunter2"));
    }
}
