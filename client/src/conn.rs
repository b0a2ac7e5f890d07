//! Requests over one HTTP/2 connection that is dialled again when it breaks.

use crate::Config;
use crate::target::{Choice, Server, Target};
use crate::watch::Watcher;
use bytes::Bytes;
use dhow_gather::Gather;
use dhow_pki::{Identity, PkiError};
use http::{Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value as Tree;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long dialling may take, name look-up, TCP and TLS together.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The same where there are other servers to go to.
pub(crate) const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_secs(3);

/// Ping an idle connection this often, so that a dead peer is noticed under a long watch.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The largest answer that [`Client::request`] collects: a list of 10,000 large pods fits many times over.
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Flow-control windows: large lists should not wait for round trips.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// The answer body of [`Client::stream`], read by the caller.
pub type Body = Incoming;

/// A client of one API, which may have several servers: when one cannot be reached, or cannot serve, the next one is
/// called. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    target: RwLock<Target>,
    connection: Mutex<Option<Connection>>,
}

/// An open connection.
#[derive(Clone)]
struct Connection {
    sender: http2::SendRequest<Full<Bytes>>,
    server: Arc<Server>,
    /// The [`Target::version`] that it was made for.
    version: u64,
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: http::StatusCode,
    /// The header fields.
    pub headers: http::HeaderMap,
    /// The body, collected.
    pub body: Bytes,
}

/// A Kubernetes `Status` that refused a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// The machine-readable reason, such as `NotFound`; empty when the answer was no `Status` object.
    pub reason: String,
    /// The human-readable message.
    pub message: String,
    /// The whole `Status` object, if it was one.
    pub tree: Option<Tree>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server's address or our identity cannot be used.
    #[error("the server address `{0}` is not of the form https://host:port")]
    Address(String),
    /// TLS settings could not be made.
    #[error("the client's certificates")]
    Pki(#[from] PkiError),
    /// The server cannot be reached.
    #[error("connecting to `{server}`")]
    Connect {
        /// The server.
        server: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The connection broke, or the peer does not speak HTTP/2.
    #[error("talking to `{server}`")]
    Http {
        /// The server.
        server: String,
        /// What went wrong.
        source: hyper::Error,
    },
    /// The request could not be put together (a path with forbidden characters).
    #[error("the request path is malformed")]
    Request(#[from] http::Error),
    /// The answer is too large or broke off.
    #[error("reading the answer of `{server}`: {what}")]
    Body {
        /// The server.
        server: String,
        /// What went wrong.
        what: String,
    },
    /// The connection broke under a request that changes something.
    #[error("whether the change was made is not known")]
    Unanswered(#[source] Box<ClientError>),
    /// The answer is not JSON.
    #[error("the answer of `{server}` is not JSON")]
    Json {
        /// The server.
        server: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The server refused.
    #[error("{}", .0.message)]
    Api(Box<Status>),
}

impl ClientError {
    /// The status code and reason, if the server answered at all.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Api(status) => Some(status),
            _ => None,
        }
    }

    /// Whether the server answered with this code.
    pub fn is(&self, code: u16) -> bool {
        self.status().is_some_and(|status| status.code == code)
    }
}

/// How a patch is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' strategic merge patch.
    Strategic,
}

impl PatchType {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

impl Client {
    /// A client for `config`. Connects at the first request.
    pub fn new(config: Config) -> Result<Self, ClientError> {
        let urls = std::iter::once(&config.server).chain(&config.others);
        let servers = urls.map(|url| Server::parse(url)).collect::<Result<Vec<_>, _>>()?;
        let tls = tls(config.ca_pem.as_deref(), config.identity.as_ref())?;
        let target = RwLock::new(Target::new(servers, tls));
        Ok(Self { inner: Arc::new(Inner { target, connection: Mutex::new(None), config }) })
    }

    /// From now on these are the addresses of the API. The connection that is open stays while its address is among
    /// them.
    pub fn set_servers(&self, urls: &[String]) -> Result<(), ClientError> {
        let servers = urls.iter().map(|url| Server::parse(url)).collect::<Result<Vec<_>, _>>()?;
        self.target_mut().set_servers(servers);
        Ok(())
    }

    /// From now on it shows this certificate, and believes this CA. What is under way goes on as it began.
    pub fn set_identity(&self, ca_pem: &str, identity: &Identity) -> Result<(), ClientError> {
        let tls = tls(Some(ca_pem), Some(identity))?;
        self.target_mut().set_tls(tls);
        Ok(())
    }

    fn target_mut(&self) -> std::sync::RwLockWriteGuard<'_, Target> {
        self.inner.target.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn choice(&self) -> Choice {
        self.inner.target.read().unwrap_or_else(PoisonError::into_inner).choice()
    }

    /// The first server's address as given.
    pub fn server(&self) -> &str {
        &self.inner.config.server
    }

    /// The token that it shows, if it has one.
    pub(crate) fn token(&self) -> Option<&str> {
        self.inner.config.token.as_deref()
    }

    /// The namespace that is meant when none is named.
    pub fn namespace(&self) -> &str {
        &self.inner.config.namespace
    }

    /// Sends a request and returns when the head of the answer is there; any status code is an answer.
    /// `body` is a media type and the bytes. `path` begins with `/` and may carry a query.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<http::Response<Body>, ClientError> {
        let connection = self.connection().await?;
        self.send(connection, method, path, accept, body).await
    }

    async fn send(
        &self,
        Connection { mut sender, server, .. }: Connection,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<http::Response<Body>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", server.authority))
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, concat!("dhow/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.inner.config.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let bytes = match body {
            None => Bytes::new(),
            Some((media_type, bytes)) => {
                request = request.header(header::CONTENT_TYPE, media_type);
                bytes
            }
        };
        let request = request.body(Full::new(bytes))?;
        let answer = sender.send_request(request).await;
        // A member that breaks off, or is cut off from the others: it may be long until it can serve again.
        if answer.as_ref().map_or(true, |answer| answer.status() == http::StatusCode::SERVICE_UNAVAILABLE) {
            self.target_mut().pass_over(&server);
        }
        answer.map_err(|source| http_error(&server, source))
    }

    /// Sends a request and collects the answer; any status code is an answer.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Response, ClientError> {
        self.collect(self.stream(method, path, accept, body).await?).await
    }

    async fn collect(&self, answer: http::Response<Body>) -> Result<Response, ClientError> {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|err| ClientError::Body { server: self.server().to_owned(), what: err.to_string() })?;
        Ok(Response { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    /// Reads one object, list, or document.
    pub async fn get(&self, path: &str) -> Result<Tree, ClientError> {
        self.get_as(path, "application/json").await
    }

    /// Reads what is at `path` in another JSON form than the object's own, such as a `Table`.
    pub async fn get_as(&self, path: &str, accept: &str) -> Result<Tree, ClientError> {
        let mut asked: Vec<Arc<Server>> = Vec::new();
        let mut last = None;
        loop {
            let connection = match (self.connection().await, last) {
                (Ok(connection), None) => connection,
                // Reading changes nothing, so another server may be asked at once; writes are for the caller to repeat.
                (Ok(connection), Some(_)) if !asked.contains(&connection.server) => connection,
                (_, Some(answer)) => return self.decode(&answer?),
                (Err(err), None) => return Err(err),
            };
            asked.push(connection.server.clone());
            let answer = match self.send(connection, Method::GET, path, accept, None).await {
                Ok(answer) => self.collect(answer).await,
                Err(err) => Err(err),
            };
            let lost = match &answer {
                Ok(answer) => answer.status == http::StatusCode::SERVICE_UNAVAILABLE,
                Err(err) => matches!(err, ClientError::Http { .. } | ClientError::Body { .. }),
            };
            if !lost {
                return self.decode(&answer?);
            }
            last = Some(answer);
        }
    }

    /// Creates an object in the collection at `path`.
    pub async fn create(&self, path: &str, tree: &Tree) -> Result<Tree, ClientError> {
        self.json(Method::POST, path, Some(("application/json", encode(tree)))).await
    }

    /// Replaces the object at `path`.
    pub async fn update(&self, path: &str, tree: &Tree) -> Result<Tree, ClientError> {
        self.json(Method::PUT, path, Some(("application/json", encode(tree)))).await
    }

    /// Patches the object at `path`.
    pub async fn patch(&self, path: &str, kind: PatchType, patch: &Tree) -> Result<Tree, ClientError> {
        self.json(Method::PATCH, path, Some((kind.content_type(), encode(patch)))).await
    }

    /// Deletes the object or the collection at `path`, with `DeleteOptions` if given.
    pub async fn delete(&self, path: &str, options: Option<&Tree>) -> Result<Tree, ClientError> {
        self.json(Method::DELETE, path, options.map(|tree| ("application/json", encode(tree)))).await
    }

    /// Lists the collection at `path` (selectors in its query), then watches it, for ever.
    pub fn watch(&self, path: &str) -> Watcher {
        Watcher::new(self.clone(), path)
    }

    /// Sends a request and decodes a JSON answer; a refusal is [`ClientError::Api`], a broken connection under what is
    /// no GET is [`ClientError::Unanswered`].
    pub async fn json(&self, method: Method, path: &str, body: Option<(&str, Bytes)>) -> Result<Tree, ClientError> {
        let is_read = method == Method::GET;
        let response = self.request(method, path, "application/json", body).await.map_err(|err| match err {
            ClientError::Http { .. } | ClientError::Body { .. } if !is_read => ClientError::Unanswered(Box::new(err)),
            err => err,
        })?;
        self.decode(&response)
    }

    fn decode(&self, response: &Response) -> Result<Tree, ClientError> {
        if !response.status.is_success() {
            return Err(refusal(response.status.as_u16(), &response.body));
        }
        serde_json::from_slice(&response.body)
            .map_err(|source| ClientError::Json { server: self.server().to_owned(), source })
    }

    /// The open connection, or a new one to the first server that answers.
    async fn connection(&self) -> Result<Connection, ClientError> {
        let mut slot = self.inner.connection.lock().await;
        let choice = self.choice();
        if let Some(open) = slot.as_ref().filter(|open| open.version == choice.version && !open.sender.is_closed()) {
            return Ok(open.clone());
        }
        let timeout = if choice.servers.len() > 1 { CONNECT_TIMEOUT_OF_SEVERAL } else { CONNECT_TIMEOUT };
        let mut failure = None;
        for server in &choice.servers {
            match connect(server, choice.tls.clone(), timeout).await {
                Ok(sender) => {
                    self.target_mut().answered(server);
                    let open = Connection { sender, server: server.clone(), version: choice.version };
                    *slot = Some(open.clone());
                    return Ok(open);
                }
                Err(err) => {
                    if choice.servers.len() > 1 {
                        tracing::debug!(err = %dhow_types::Chain(&err), "a server does not answer, trying the next one");
                    }
                    failure = failure.or(Some(err));
                }
            }
        }
        Err(failure.expect("there is at least one server"))
    }
}

fn tls(ca_pem: Option<&str>, identity: Option<&Identity>) -> Result<ClientConfig, PkiError> {
    dhow_pki::client_config(ca_pem.unwrap_or_default(), identity, &["h2"])
}

async fn connect(
    server: &Arc<Server>,
    tls: Arc<ClientConfig>,
    timeout: Duration,
) -> Result<http2::SendRequest<Full<Bytes>>, ClientError> {
    let lost = |source| ClientError::Connect { server: server.url.clone(), source };
    let tls = dial(&server.host, server.port, tls, timeout).await.map_err(lost)?;
    let io = Gather::new(tls);
    let handshake = http2::Builder::new(Driving(io.clone()))
        .timer(hyper_util::rt::TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 4)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .handshake(TokioIo::new(io));
    let (sender, connection) = handshake.await.map_err(|source| http_error(server, source))?;
    // The connection's task ends by itself when the last sender, kept by the client and by requests, is gone.
    let server = server.url.clone();
    tokio::spawn(async move {
        if let Err(err) = connection.await {
            tracing::debug!(%server, %err, "the connection to the API server ended");
        }
    });
    Ok(sender)
}

/// Runs what hyper runs beside the connection's future, of which one task is the one that writes.
#[derive(Clone)]
struct Driving(Gather<TlsStream<TcpStream>>);

impl<F> hyper::rt::Executor<F> for Driving
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        tokio::spawn(self.0.driving(future));
    }
}

pub(crate) fn http_error(server: &Server, source: hyper::Error) -> ClientError {
    ClientError::Http { server: server.url.clone(), source }
}

/// Fetches `path` from a server whose CA is not known yet; the caller must check what it gets. Sends no secret.
pub async fn bootstrap_get(server: &str, path: &str) -> Result<Bytes, ClientError> {
    let bad = || ClientError::Address(server.to_owned());
    let uri: Uri = server.parse().map_err(|_| bad())?;
    let (Some("https"), Some(host), Some(authority)) = (uri.scheme_str(), uri.host(), uri.authority()) else {
        return Err(bad());
    };
    let tls = Arc::new(dhow_pki::pinned_client_config(&["http/1.1"])?);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = dial(host, uri.port_u16().unwrap_or(443), tls, CONNECT_TIMEOUT)
        .await
        .map_err(|source| ClientError::Connect { server: server.to_owned(), source })?;
    let http = |source| ClientError::Http { server: server.to_owned(), source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let request = Request::get(path).header(header::HOST, authority.as_str()).body(Full::new(Bytes::new()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|err| ClientError::Body { server: server.to_owned(), what: err.to_string() })?
            .to_bytes();
        if status == 200 { Ok(body) } else { Err(refusal(status, &body)) }
    };
    tokio::pin!(exchange);
    let connection = async move {
        // The exchange reports what broke; the connection itself just ends.
        let _ended = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = &mut exchange => answer,
        () = connection => unreachable!("the connection's future never ends"),
    }
}

/// The path of a collection, or of one object in it. Each name becomes one segment whatever is in it, and an object's
/// path is never that of its collection.
pub fn resource_path(group: &str, version: &str, plural: &str, namespace: Option<&str>, name: Option<&str>) -> String {
    let mut path = if group.is_empty() {
        format!("/api/{}", segment(version))
    } else {
        format!("/apis/{}/{}", segment(group), segment(version))
    };
    if let Some(namespace) = namespace {
        path.push_str("/namespaces/");
        path.push_str(&segment(namespace));
    }
    path.push('/');
    path.push_str(&segment(plural));
    if let Some(name) = name {
        path.push('/');
        path.push_str(&segment(name));
    }
    path
}

/// A part of a path. Servers skip an empty one, and dots step up, which would name something else than is meant: those
/// are written so that no object has the name, and the server answers that there is none.
fn segment(text: &str) -> String {
    match text {
        "" => "%20".to_owned(),
        "." | ".." => text.replace('.', "%2E"),
        text => escape(text),
    }
}

/// Percent-encodes what may not stand in a query value or a part of a path.
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

pub(crate) async fn dial(
    host: &str,
    port: u16,
    tls: Arc<ClientConfig>,
    timeout: Duration,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = match host.parse::<IpAddr>() {
        Ok(ip) => ServerName::IpAddress(ip.into()),
        Err(_) => ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?,
    };
    let connect = async {
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(tls).connect(name, tcp).await
    };
    tokio::time::timeout(timeout, connect).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

/// What a server's refusal says.
pub fn refusal(code: u16, body: &[u8]) -> ClientError {
    let tree: Option<Tree> = serde_json::from_slice(body).ok().filter(|tree: &Tree| tree["kind"] == "Status");
    let text = |field: &str| tree.as_ref().and_then(|tree| tree[field].as_str()).unwrap_or_default().to_owned();
    let message = match &tree {
        Some(_) => text("message"),
        None => format!("the server answered {code}: {}", String::from_utf8_lossy(&body[..body.len().min(500)])),
    };
    ClientError::Api(Box::new(Status { code, reason: text("reason"), message, tree }))
}

fn encode(tree: &Tree) -> Bytes {
    Bytes::from(serde_json::to_vec(tree).expect("a JSON tree has string keys"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api_conventions() {
        assert_eq!(resource_path("", "v1", "pods", Some("a"), Some("b")), "/api/v1/namespaces/a/pods/b");
        assert_eq!(resource_path("apps", "v1", "deployments", None, None), "/apis/apps/v1/deployments");
    }

    #[test]
    fn a_name_is_one_segment_whatever_is_in_it() {
        for (namespace, name, expected) in [
            ("a", "", "a/pods/%20"),
            ("", "b", "%20/pods/b"),
            ("a", " ", "a/pods/%20"),
            ("a", "b?dryRun=All", "a/pods/b%3FdryRun%3DAll"),
            ("a/pods?", "b#", "a%2Fpods%3F/pods/b%23"),
            ("..", ".", "%2E%2E/pods/%2E"),
            ("a", "%2e", "a/pods/%252e"),
            ("a", "é", "a/pods/%C3%A9"),
            ("a", "b.c-1", "a/pods/b.c-1"),
        ] {
            let path = resource_path("", "v1", "pods", Some(namespace), Some(name));
            assert_eq!(path, format!("/api/v1/namespaces/{expected}"));
        }
    }

    #[test]
    fn a_refusal_keeps_reason_and_message() {
        let err = refusal(404, br#"{"kind":"Status","reason":"NotFound","message":"pods \"x\" not found"}"#);
        assert!(err.is(404));
        assert_eq!(err.to_string(), "pods \"x\" not found");
        assert_eq!(refusal(502, b"bad gateway").to_string(), "the server answered 502: bad gateway");
    }
}
