//! A registry for one test: ours in this process, or `docker-registry` as a process of its own.

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dhow_pki::{Ca, Identity, San, Subject, Usage};
use dhow_registry::Registry;
use dhow_types::Time;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) const USER: &str = "robot";
pub(crate) const PASSWORD: &str = "secret";
/// Of [`PASSWORD`], by bcrypt.
const HTPASSWD: &str = "robot:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Own,
    Docker,
}

/// Who gets in.
#[derive(Clone, Copy)]
pub(crate) struct Door {
    pub(crate) tls: bool,
    pub(crate) password: bool,
    /// A token is wanted, which the password gives.
    pub(crate) tokens: bool,
}

impl Door {
    pub(crate) const PLAIN: Self = Self { tls: false, password: false, tokens: false };
    pub(crate) const CLOSED: Self = Self { tls: true, password: true, tokens: false };
}

pub(crate) struct TestRegistry {
    pub(crate) authority: String,
    door: Door,
    dir: tempfile::TempDir,
    scopes: Arc<Mutex<Vec<String>>>,
    _server: Server,
}

enum Server {
    Task(JoinHandle<()>),
    Process(Child),
}

impl Drop for Server {
    fn drop(&mut self) {
        match self {
            Self::Task(task) => task.abort(),
            Self::Process(child) => {
                child.kill().ok();
                child.wait().ok();
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The authority that all registries of the tests have their certificates from.
pub(crate) fn ca() -> &'static Ca {
    static CA: LazyLock<Ca> = LazyLock::new(|| Ca::create("test", now()).unwrap());
    &CA
}

fn now() -> Time {
    Time::from_ms(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64)
}

fn identity() -> Identity {
    let subject = Subject { common_name: "registry".to_owned(), organizations: Vec::new() };
    ca().issue(&subject, &[San::Ip([127, 0, 0, 1].into())], Usage::Server, now(), 3_600_000).unwrap()
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

impl TestRegistry {
    /// `None` where there is no such registry on this machine.
    pub(crate) async fn start(kind: Kind, door: Door) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let scopes = Arc::default();
        let (authority, server) = match kind {
            Kind::Own => own(&dir, door, Arc::clone(&scopes)).await,
            Kind::Docker => docker(&dir, door)?,
        };
        Some(Self { authority, door, dir, scopes, _server: server })
    }

    /// What the token server was asked for.
    pub(crate) fn scopes(&self) -> Vec<String> {
        self.scopes.lock().unwrap().clone()
    }

    /// Pushes a blob; gives its descriptor.
    pub(crate) async fn blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"").await;
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let path = location.split_once("://").map_or(location.as_str(), |(_, rest)| &rest[rest.find('/').unwrap()..]);
        let separator = if path.contains('?') { '&' } else { '?' };
        let digest = digest_of(bytes);
        let path = format!("{path}{separator}digest={digest}");
        let put = self.send("PUT", &path, "application/octet-stream", bytes).await;
        assert_eq!(put.status(), StatusCode::CREATED);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Pushes a manifest; gives its digest.
    pub(crate) async fn manifest(&self, repository: &str, tag: &str, media_type: &str, fields: &Value) -> String {
        let mut tree = json!({"schemaVersion": 2, "mediaType": media_type});
        tree.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let text = tree.to_string();
        let put = self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), media_type, text.as_bytes()).await;
        assert_eq!(put.status(), StatusCode::CREATED, "{text}");
        digest_of(text.as_bytes())
    }

    /// Puts a manifest into our own registry that it would not take.
    pub(crate) fn raw_manifest(&self, repository: &str, tag: &str, media_type: &str, tree: &Value) {
        let mut tree = tree.clone();
        tree["mediaType"] = json!(media_type);
        self.overrides().lock().unwrap().push((format!("/v2/{repository}/manifests/{tag}"), tree.to_string()));
    }

    /// From now on the blob has other bytes.
    pub(crate) fn corrupt(&self, digest: &str) {
        let path = format!("/v2/x/blobs/{digest}");
        self.overrides().lock().unwrap().push((path, "\0asm\x0d\0\x01\0 and less".to_owned()));
    }

    fn overrides(&self) -> Overrides {
        OVERRIDES.lock().unwrap().iter().find(|(dir, _)| dir == self.dir.path()).unwrap().1.clone()
    }

    async fn send(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> Response<Incoming> {
        let tcp = TcpStream::connect(&self.authority).await.unwrap();
        let stream: Box<dyn Stream> = if self.door.tls {
            let tls = dhow_pki::client_config(ca().cert_pem(), None, &["http/1.1"]).unwrap();
            let name = ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
            Box::new(TlsConnector::from(Arc::new(tls)).connect(name, tcp).await.unwrap())
        } else {
            Box::new(tcp)
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .header("content-type", media_type)
            .header("authorization", basic());
        let answer = sender.send_request(request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()).await.unwrap();
        assert!(answer.status().is_success(), "{method} {path}: {}", answer.status());
        answer
    }
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

/// Paths and what is answered there, against what the registry has.
type Overrides = Arc<Mutex<Vec<(String, String)>>>;
static OVERRIDES: Mutex<Vec<(PathBuf, Overrides)>> = Mutex::new(Vec::new());

async fn own(dir: &tempfile::TempDir, door: Door, scopes: Arc<Mutex<Vec<String>>>) -> (String, Server) {
    let overrides = Overrides::default();
    OVERRIDES.lock().unwrap().push((dir.path().to_owned(), overrides.clone()));
    let registry = Registry::open(dir.path()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    let tls = dhow_pki::server_config(&identity(), None, &["http/1.1"]).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let host = authority.clone();
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let desk = Desk {
                registry: registry.clone(),
                door,
                host: host.clone(),
                overrides: overrides.clone(),
                scopes: scopes.clone(),
            };
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream: Box<dyn Stream> = if door.tls {
                    // A client that does not know our authority goes away here.
                    let Ok(tls) = acceptor.accept(tcp).await else { return };
                    Box::new(tls)
                } else {
                    Box::new(tcp)
                };
                let service = service_fn(move |request| {
                    let desk = desk.clone();
                    async move { Ok::<_, Infallible>(desk.answer(request).await) }
                });
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    });
    (authority, Server::Task(task))
}

#[derive(Clone)]
struct Desk {
    registry: Registry,
    door: Door,
    host: String,
    overrides: Overrides,
    scopes: Arc<Mutex<Vec<String>>>,
}

impl Desk {
    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Response<http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>> {
        let plain = |status: u16, text: String| {
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
            Response::builder().status(status).body(body).unwrap()
        };
        let shown = request.headers().get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let with_password = shown == basic();
        if request.uri().path() == "/token" {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let form = String::from_utf8(request.collect().await.unwrap().to_bytes().to_vec()).unwrap();
            let fields = if form.is_empty() { &query } else { &form };
            let value = |key: &str| {
                let pair = fields.split('&').find_map(|pair| pair.strip_prefix(&format!("{key}=")));
                pair.unwrap_or_default().replace("%3A", ":").replace("%2F", "/")
            };
            self.scopes.lock().unwrap().push(value("scope"));
            let allowed = with_password || value("refresh_token") == PASSWORD;
            return if allowed {
                plain(200, r#"{"token": "granted"}"#.to_owned())
            } else {
                plain(401, "who?".to_owned())
            };
        }
        let allowed = match (self.door.password, self.door.tokens) {
            (false, _) => true,
            (true, false) => with_password,
            // The test itself pushes with the password.
            (true, true) => shown == "Bearer granted" || (with_password && request.method() != "GET"),
        };
        if !allowed {
            let mut refused = plain(401, r#"{"errors": [{"code": "UNAUTHORIZED"}]}"#.to_owned());
            let challenge = if self.door.tokens {
                format!(
                    r#"Bearer realm="https://{}/token",service="test",scope="repository:team/hello:pull""#,
                    self.host
                )
            } else {
                r#"Basic realm="test""#.to_owned()
            };
            refused.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
            return refused;
        }
        let path = request.uri().path();
        let found =
            self.overrides.lock().unwrap().iter().rev().find(|(at, _)| at == path).map(|(_, text)| text.clone());
        match found {
            Some(text) => plain(200, text),
            None => self.registry.handle(request).await,
        }
    }
}

fn docker(dir: &tempfile::TempDir, door: Door) -> Option<(String, Server)> {
    let named = std::env::var_os("DOCKER_REGISTRY").map(PathBuf::from);
    let places = ["/usr/bin/docker-registry", "/usr/local/bin/docker-registry"].map(PathBuf::from);
    let program = named.into_iter().chain(places).find(|path| path.exists())?;
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let mut config = json!({"version": "0.1", "log": {"level": "info", "fields": {}},
        "storage": {"filesystem": {"rootdirectory": dir.path().join("data")}},
        "http": {"addr": "127.0.0.1:0", "secret": "of-a-test"}});
    if door.tls {
        let Identity { cert_pem, key_pem } = identity();
        config["http"]["tls"] = json!({"certificate": file("cert.pem", &cert_pem), "key": file("key.pem", &key_pem)});
    }
    if door.password {
        config["auth"] = json!({"htpasswd": {"realm": "test", "path": file("htpasswd", HTPASSWD)}});
    }
    let config = file("config.yml", &config.to_string());
    let mut child = Command::new(program)
        .args(["serve".as_ref(), config.as_os_str()])
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let listening = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let rest = line.split_once("listening on ")?.1;
        Some(rest.split(['"', ',', ' ']).next()?.to_owned())
    });
    // Its log is read to the end, so that it never waits for us.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    Some((listening.expect("it says where it listens"), Server::Process(child)))
}
