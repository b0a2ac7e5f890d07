//! Where the API server is and who we are to it: from a kubeconfig, or put together by a node.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dhow_pki::Identity;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The extension of a kubeconfig's cluster that lists the addresses of all its API servers.
pub const SERVERS_EXTENSION: &str = "dhow.dev/servers";

/// Whom to call and as whom.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host:port`.
    pub server: String,
    /// Further addresses of the same API, for when that one cannot be reached.
    pub others: Vec<String>,
    /// The CA that the server's certificate must come from.
    pub ca_pem: Option<String>,
    /// The client certificate to show.
    pub identity: Option<Identity>,
    /// The bearer token to send.
    pub token: Option<String>,
    /// The namespace that commands mean when none is named.
    pub namespace: String,
}

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No file was named and none is in the usual places.
    #[error("no kubeconfig found: set KUBECONFIG, or start a cluster with `dhow up`")]
    NotFound,
    /// The file cannot be read.
    #[error("reading the kubeconfig `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a kubeconfig.
    #[error("the kubeconfig `{}` is malformed", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_yaml::Error,
    },
    /// Something that it refers to is missing or unreadable.
    #[error("the kubeconfig `{}`: {what}", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    clusters: Vec<Named<ClusterBox>>,
    #[serde(default)]
    contexts: Vec<Named<ContextBox>>,
    #[serde(default)]
    users: Vec<Named<UserBox>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(flatten)]
    value: T,
}

#[derive(Deserialize)]
struct ClusterBox {
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    extensions: Vec<Extension>,
}

/// What a tool notes in a kubeconfig for itself.
#[derive(Deserialize)]
struct Extension {
    name: String,
    #[serde(default)]
    extension: serde_yaml::Value,
}

impl Cluster {
    /// The API's further addresses, in the order of the file: `kubectl` knows one address a cluster.
    fn others(&self) -> Vec<String> {
        let noted = self.extensions.iter().filter(|noted| noted.name == SERVERS_EXTENSION);
        let urls = noted.filter_map(|noted| noted.extension.as_sequence()).flatten().filter_map(|url| url.as_str());
        let server = self.server.trim_end_matches('/');
        urls.map(|url| url.trim_end_matches('/')).filter(|url| *url != server).map(str::to_owned).collect()
    }
}

#[derive(Deserialize)]
struct ContextBox {
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct UserBox {
    #[serde(default)]
    user: Option<User>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
}

impl Config {
    /// Reads a kubeconfig file and takes its current context.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// The first existing of: the files that `KUBECONFIG` names, then `fallback`.
    pub fn from_env(fallback: &Path) -> Result<Self, ConfigError> {
        let named = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
        let paths: Vec<PathBuf> = match &named {
            Some(value) => std::env::split_paths(value).collect(),
            None => vec![fallback.to_owned()],
        };
        match paths.iter().find(|path| path.exists()) {
            Some(path) => Self::from_kubeconfig(path),
            None => Err(ConfigError::NotFound),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: File =
            serde_yaml::from_str(text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        let incomplete = |what: String| ConfigError::Incomplete { path: path.to_owned(), what };
        let context = find(&file.contexts, &file.current_context)
            .ok_or_else(|| incomplete(format!("its current-context `{}` is not defined", file.current_context)))?;
        let context = &context.context;
        let cluster = find(&file.clusters, &context.cluster)
            .ok_or_else(|| incomplete(format!("its cluster `{}` is not defined", context.cluster)))?;
        let user = find(&file.users, &context.user)
            .ok_or_else(|| incomplete(format!("its user `{}` is not defined", context.user)))?;
        let none = User::default();
        let (cluster, user) = (&cluster.cluster, user.user.as_ref().unwrap_or(&none));
        let pem = |field: &str, data: &Option<String>, file: &Option<PathBuf>| -> Result<Option<String>, ConfigError> {
            if let Some(data) = data {
                let bytes = STANDARD.decode(data).map_err(|err| incomplete(format!("`{field}-data`: {err}")))?;
                return String::from_utf8(bytes).map(Some).map_err(|err| incomplete(format!("`{field}-data`: {err}")));
            }
            let Some(file) = file else { return Ok(None) };
            let file = path.parent().unwrap_or(Path::new("")).join(file);
            std::fs::read_to_string(&file)
                .map(Some)
                .map_err(|err| incomplete(format!("`{field}`: `{}`: {err}", file.display())))
        };
        let cert = pem("client-certificate", &user.client_certificate_data, &user.client_certificate)?;
        let key = pem("client-key", &user.client_key_data, &user.client_key)?;
        let identity = match (cert, key) {
            (Some(cert_pem), Some(key_pem)) => Some(Identity { cert_pem, key_pem }),
            (None, None) => None,
            _ => return Err(incomplete("a client certificate needs its key, and a key its certificate".to_owned())),
        };
        Ok(Self {
            server: cluster.server.trim_end_matches('/').to_owned(),
            others: cluster.others(),
            ca_pem: pem("certificate-authority", &cluster.certificate_authority_data, &cluster.certificate_authority)?,
            identity,
            token: user.token.clone(),
            namespace: context.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        })
    }
}

fn find<'a, T>(list: &'a [Named<T>], name: &str) -> Option<&'a T> {
    list.iter().find(|entry| entry.name == name).map(|entry| &entry.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
apiVersion: v1
kind: Config
current-context: dhow
clusters: [{name: c, cluster: {server: 'https://127.0.0.1:6443/', certificate-authority-data: Q0E=}}]
contexts: [{name: dhow, context: {cluster: c, user: u, namespace: shop}}]
users: [{name: u, user: {token: t}}]
";

    #[test]
    fn the_current_context_is_taken() {
        let config = Config::parse(Path::new("k"), GOOD).unwrap();
        assert_eq!((config.server.as_str(), config.namespace.as_str()), ("https://127.0.0.1:6443", "shop"));
        assert_eq!((config.ca_pem.as_deref(), config.token.as_deref()), (Some("CA"), Some("t")));
    }

    #[test]
    fn the_other_servers_of_the_cluster_are_known() {
        let urls = "[https://10.0.0.2:6443, 'https://127.0.0.1:6443', https://10.0.0.3:6443/]";
        let extensions = format!(
            "cluster: {{extensions: [{{name: x.y/z, extension: {{a: b}}}}, {{name: {SERVERS_EXTENSION}, extension: {urls}}}], "
        );
        let config = Config::parse(Path::new("k"), &GOOD.replace("cluster: {", &extensions)).unwrap();
        assert_eq!(config.server, "https://127.0.0.1:6443");
        assert_eq!(config.others, ["https://10.0.0.2:6443", "https://10.0.0.3:6443"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (from, to, expected) in [
            ("current-context: dhow", "current-context: x", "its current-context `x` is not defined"),
            ("cluster: c,", "cluster: d,", "its cluster `d` is not defined"),
            ("Q0E=", "'?'", "`certificate-authority-data`"),
            ("token: t", "client-key-data: Q0E=", "a client certificate needs its key"),
        ] {
            let err = Config::parse(Path::new("k"), &GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(err.contains(expected), "{err}");
        }
    }
}
