//! What a node was told about registries: a file in YAML, read once at the start.
//!
//! ```yaml
//! registries:
//!   - prefix: registry.example.com          # a host, or a host and the beginning of a repository; the longest wins
//!     mirrors: [https://mirror.example.com]  # asked first, in this order
//!     caFile: registry-ca.pem                # believed besides the system's authorities
//!     username: node
//!     passwordFile: registry-password
//!     signatureKeys: [cosign.pub]            # images without a signature by one of them are refused
//!   - prefix: localhost:5000
//!     plainHttp: true
//! garbageCollection: { highPercent: 85, lowPercent: 80 }
//! ```
//!
//! The prefix `cluster` means the cluster's own registry, `file` the files of the node, and `*` every image. Each setting
//! is taken from the longest prefix that states it. Relative paths are those beside the file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use dhow_types::Chain;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use crate::Reference;
use crate::credentials::Credential;
use crate::signature::PublicKey;
use crate::store::lock;

/// What the prefixes call the cluster's own registry, and the files of the node.
const CLUSTER: &str = "cluster";
const FILES: &str = "file";
const EVERYTHING: &str = "*";
/// A configuration is a page or two.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that it is, or names, cannot be read.
    #[error("reading `{}`", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not of the form that is expected.
    #[error("the registry configuration `{}` is malformed: {why}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A setting has a value that cannot be.
    #[error("the registry `{prefix}`: {why}")]
    Setting {
        /// The rule that it stands in.
        prefix: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Document {
    registries: Vec<Entry>,
    garbage_collection: Thresholds,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Entry {
    prefix: String,
    mirrors: Vec<String>,
    ca_file: Option<PathBuf>,
    plain_http: Option<bool>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    signature_keys: Option<Vec<PathBuf>>,
}

/// Between which shares of the disk the store is to be: above the first, images that nothing uses are removed until the
/// second is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Thresholds {
    /// Begins above this.
    pub high_percent: u8,
    /// Ends below this.
    pub low_percent: u8,
}

impl Default for Thresholds {
    /// Those of a kubelet.
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80 }
    }
}

/// What holds for the images under one prefix.
#[derive(Debug, Default)]
struct Rule {
    prefix: String,
    mirrors: Vec<Endpoint>,
    ca_pem: Option<Vec<u8>>,
    plain_http: Option<bool>,
    credential: Option<Credential>,
    keys: Option<Vec<PublicKey>>,
}

/// Where a registry answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Whether it is spoken to without TLS.
    pub(crate) plain: bool,
    /// `host`, or `host:port`.
    pub(crate) authority: String,
}

/// What a node was told about registries. Cheap to clone; nothing, by default.
#[derive(Clone, Default)]
pub struct Registries {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The longest prefix first.
    rules: Vec<Rule>,
    thresholds: Thresholds,
    /// The system's authorities, read when a registry is first asked.
    system: OnceLock<Vec<CertificateDer<'static>>>,
    /// TLS settings by the place of the rule that they are made for.
    tls: Mutex<BTreeMap<Option<usize>, Arc<ClientConfig>>>,
}

impl Registries {
    /// Reads a configuration and all files that it names.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = String::from_utf8(read(path)?)
            .map_err(|_| ConfigError::Malformed { path: path.to_owned(), why: "it is not UTF-8".to_owned() })?;
        let document: Document = match text.trim() {
            "" => Document::default(),
            _ => serde_yaml::from_str(&text)
                .map_err(|err| ConfigError::Malformed { path: path.to_owned(), why: err.to_string() })?,
        };
        Self::build(document, path.parent().unwrap_or(Path::new(".")))
    }

    fn build(document: Document, dir: &Path) -> Result<Self, ConfigError> {
        let Document { registries, garbage_collection } = document;
        let Thresholds { high_percent, low_percent } = garbage_collection;
        if !(low_percent < high_percent && high_percent <= 100) {
            let why = format!("the threshold `lowPercent` {low_percent} is not below `highPercent` {high_percent}");
            return Err(ConfigError::Setting { prefix: "garbageCollection".to_owned(), why });
        }
        let mut rules = registries.into_iter().map(|entry| rule(entry, dir)).collect::<Result<Vec<_>, _>>()?;
        rules.sort_by_key(|rule| std::cmp::Reverse(if rule.prefix == EVERYTHING { 0 } else { rule.prefix.len() }));
        if let Some(twice) = rules.windows(2).find(|pair| pair[0].prefix == pair[1].prefix) {
            let why = "there are two entries with this prefix".to_owned();
            return Err(ConfigError::Setting { prefix: twice[0].prefix.clone(), why });
        }
        Ok(Self { inner: Arc::new(Inner { rules, thresholds: garbage_collection, ..Inner::default() }) })
    }

    /// When images are removed.
    pub fn thresholds(&self) -> Thresholds {
        self.inner.thresholds
    }

    /// The places to ask for an image, in this order; each is to be asked for the same repository.
    pub(crate) fn endpoints(&self, registry: &str, name: &str) -> Vec<Endpoint> {
        let mirrors = self.setting(name, |rule| (!rule.mirrors.is_empty()).then_some(&rule.mirrors));
        let plain = self.setting(name, |rule| rule.plain_http).unwrap_or(false);
        let authority = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let origin = Endpoint { plain, authority: authority.to_owned() };
        mirrors.into_iter().flatten().cloned().chain([origin]).collect()
    }

    /// The node's own credential for what lies under `name`.
    pub(crate) fn credential(&self, name: &str) -> Option<&Credential> {
        self.setting(name, |rule| rule.credential.as_ref())
    }

    /// The keys one of which must have signed the image; `None` if none need to.
    pub(crate) fn keys(&self, name: &str) -> Option<&[PublicKey]> {
        self.setting(name, |rule| rule.keys.as_deref()).filter(|keys| !keys.is_empty())
    }

    /// TLS settings for what lies under `name`.
    pub(crate) fn tls(&self, name: &str) -> Result<Arc<ClientConfig>, rustls::Error> {
        let rules = &self.inner.rules;
        let rule = rules.iter().position(|rule| rule.ca_pem.is_some() && under(name, &rule.prefix));
        if let Some(tls) = lock(&self.inner.tls).get(&rule) {
            return Ok(tls.clone());
        }
        let mut roots = RootCertStore::empty();
        let system = self.inner.system.get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(error = %Chain(error), "a certificate authority of the system cannot be read");
            }
            found.certs
        });
        roots.add_parsable_certificates(system.iter().cloned());
        let own = rule.and_then(|at| rules[at].ca_pem.as_deref()).unwrap_or_default();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(own).flatten());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = Arc::new(tls);
        lock(&self.inner.tls).insert(rule, tls.clone());
        Ok(tls)
    }

    fn setting<'a, T>(&'a self, name: &str, of: impl Fn(&'a Rule) -> Option<T>) -> Option<T> {
        self.inner.rules.iter().filter(|rule| under(name, &rule.prefix)).find_map(of)
    }
}

/// What the rules' prefixes are compared with: `registry/repository`, `cluster/repository`, `file/path`.
pub(crate) fn full_name(reference: &Reference) -> String {
    format!("{}/{}", reference.registry.as_deref().unwrap_or(CLUSTER), reference.repository)
}

/// The same of a file of the node.
pub(crate) fn file_name(path: &Path) -> String {
    format!("{FILES}{}", path.display())
}

/// Whether a name lies under a prefix: whole parts of a path, so that `a.b/c` does not stand for `a.b/cd`.
fn under(name: &str, prefix: &str) -> bool {
    prefix == EVERYTHING || name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn rule(entry: Entry, dir: &Path) -> Result<Rule, ConfigError> {
    let Entry { prefix, mirrors, ca_file, plain_http, username, password_file, signature_keys } = entry;
    let prefix = prefix.trim_end_matches('/').to_owned();
    let refuse = |why: String| ConfigError::Setting { prefix: prefix.clone(), why };
    if prefix.is_empty() {
        return Err(refuse("an entry has a `prefix`: a registry's host, `cluster`, `file` or `*`".to_owned()));
    }
    let mirrors = mirrors.iter().map(|url| {
        let bad = || refuse(format!("the mirror `{url}` is not of the form https://host:port"));
        Endpoint::parse(url).ok_or_else(bad)
    });
    let mirrors = mirrors.collect::<Result<Vec<_>, _>>()?;
    let ca_pem = ca_file.map(|path| read(&dir.join(path))).transpose()?;
    if ca_pem.as_ref().is_some_and(|pem| CertificateDer::pem_slice_iter(pem).flatten().next().is_none()) {
        return Err(refuse("the file `caFile` holds no certificate in PEM".to_owned()));
    }
    let credential = match (username, password_file) {
        (None, None) => None,
        (Some(username), Some(path)) => {
            let password = String::from_utf8(read(&dir.join(path))?)
                .map_err(|_| refuse("the file `passwordFile` is not UTF-8".to_owned()))?;
            Some(Credential::Password { username, password: password.trim_end_matches(['\r', '\n']).to_owned() })
        }
        _ => return Err(refuse("`username` and `passwordFile` belong together".to_owned())),
    };
    let key = |path: PathBuf| {
        let path = dir.join(path);
        let pem = read(&path)?;
        PublicKey::from_pem(&pem).map_err(|why| refuse(format!("the key `{}`: {why}", path.display())))
    };
    let keys = signature_keys.map(|paths| paths.into_iter().map(key).collect()).transpose()?;
    Ok(Rule { prefix, mirrors, ca_pem, plain_http, credential, keys })
}

impl Endpoint {
    fn parse(url: &str) -> Option<Self> {
        let (scheme, authority) = url.trim_end_matches('/').split_once("://")?;
        let plain = match scheme {
            "http" => true,
            "https" => false,
            _ => return None,
        };
        let sound = authority.parse::<http::uri::Authority>().is_ok_and(|a| !a.as_str().contains('@'));
        sound.then(|| Self { plain, authority: authority.to_owned() })
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.plain { "http" } else { "https" }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let failed = |source| ConfigError::Io { path: path.to_owned(), source };
    let len = fs::metadata(path).map_err(failed)?.len();
    if len > CONFIG_BYTES_MAX {
        let why = format!("it has {len} bytes; at most {CONFIG_BYTES_MAX} are read");
        return Err(ConfigError::Malformed { path: path.to_owned(), why });
    }
    fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Registries, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("password"), "secret\n").unwrap();
        let path = dir.path().join("registries.yaml");
        fs::write(&path, text).unwrap();
        Registries::load(&path).map_err(|err| Chain(&err).to_string())
    }

    #[test]
    fn the_longest_prefix_that_states_a_setting_gives_it() {
        let registries = load(
            "registries:
            - {prefix: '*', mirrors: ['http://mirror:5000']}
            - {prefix: a.example, plainHttp: true}
            - {prefix: a.example/team, username: u, passwordFile: password, mirrors: ['https://m']}
            - {prefix: a.example/team/open, plainHttp: false}",
        )
        .unwrap();
        let endpoints = |name: &str| {
            let found = registries.endpoints(name.split('/').next().unwrap(), name);
            found.iter().map(|e| format!("{}://{}", e.scheme(), e.authority)).collect::<Vec<_>>()
        };
        assert_eq!(endpoints("b.example/x"), ["http://mirror:5000", "https://b.example"]);
        assert_eq!(endpoints("a.example/x"), ["http://mirror:5000", "http://a.example"]);
        assert_eq!(endpoints("a.example/team"), ["https://m", "http://a.example"]);
        assert_eq!(endpoints("a.example/team/open/x"), ["https://m", "https://a.example"]);
        assert_eq!(endpoints("a.example/teams"), ["http://mirror:5000", "http://a.example"]);
        assert_eq!(endpoints("docker.io/x")[1], "https://registry-1.docker.io");
        let expected = Credential::Password { username: "u".to_owned(), password: "secret".to_owned() };
        assert_eq!(registries.credential("a.example/team/x"), Some(&expected));
        assert_eq!(registries.credential("a.example/x"), None);
        assert_eq!(registries.thresholds(), Thresholds { high_percent: 85, low_percent: 80 });
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, part) in [
            ("registry: []", "unknown field `registry`"),
            ("registries: [{mirrors: []}]", "an entry has a `prefix`"),
            ("registries: [{prefix: a, mirrors: ['m:5000']}]", "the mirror `m:5000`"),
            ("registries: [{prefix: a, mirrors: ['https://u@m']}]", "the mirror `https://u@m`"),
            ("registries: [{prefix: a, username: u}]", "belong together"),
            ("registries: [{prefix: a}, {prefix: a/}]", "two entries"),
            ("registries: [{prefix: a, caFile: none.pem}]", "none.pem"),
            ("registries: [{prefix: a, caFile: password}]", "no certificate"),
            ("registries: [{prefix: a, signatureKeys: [password]}]", "no public key"),
            ("garbageCollection: {highPercent: 50, lowPercent: 60}", "not below"),
        ] {
            let error = load(text).err().unwrap_or_default();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(load("").is_ok());
    }
}
