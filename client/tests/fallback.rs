//! A client of several servers: who is called when one goes, and as whom.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dhow_client::{Client, ClientError, Config, Method};
use dhow_pki::{Ca, Identity, San, Subject, Usage, subject_of};
use dhow_types::Time;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

const HOUR_MS: u64 = 3_600_000;

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Time::from_ms(i64::try_from(since.as_millis()).unwrap())
}

fn ca() -> Ca {
    Ca::create("test", now()).unwrap()
}

fn identity(ca: &Ca, name: &str) -> Identity {
    let subject = Subject { common_name: name.to_owned(), organizations: Vec::new() };
    ca.issue(&subject, &[San::Ip(IpAddr::from([127, 0, 0, 1]))], Usage::Both, now(), HOUR_MS).unwrap()
}

/// A server that answers with its own name and that of its caller.
struct Server {
    url: String,
    task: JoinHandle<()>,
    calls: Arc<AtomicUsize>,
}

impl Server {
    async fn start(ca: &Ca, name: &'static str, status: StatusCode) -> Self {
        Self::start_with(ca, name, Some(status)).await
    }

    /// Without a status it breaks off what it is asked.
    async fn start_with(ca: &Ca, name: &'static str, status: Option<StatusCode>) -> Self {
        let config = dhow_pki::server_config(&identity(ca, name), Some(ca.cert_pem()), &["h2"]).unwrap();
        let tls = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let task = tokio::spawn(async move {
            // In a set of its own: a server that ends breaks its connections.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (tls, counted) = (tls.clone(), counted.clone());
                connections.spawn(async move {
                    let stream = tls.accept(socket).await.unwrap();
                    let caller = subject_of(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap().common_name;
                    let service = service_fn(move |_| {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let mut answer = Response::new(Full::new(Bytes::from(format!("\"{name} heard {caller}\""))));
                        *answer.status_mut() = status.unwrap_or_default();
                        async move { status.map(|_| answer).ok_or("broken off") }
                    });
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Self { url, task, calls }
    }

    async fn stop(self) {
        self.task.abort();
        self.task.await.ok();
    }
}

fn client(ca: &Ca, name: &str, servers: &[&Server]) -> Client {
    let mut urls = servers.iter().map(|server| server.url.clone());
    Client::new(Config {
        server: urls.next().unwrap(),
        others: urls.collect(),
        ca_pem: Some(ca.cert_pem().to_owned()),
        identity: Some(identity(ca, name)),
        token: None,
        namespace: "default".to_owned(),
    })
    .unwrap()
}

async fn ask(client: &Client) -> Option<String> {
    let answer = client.request(Method::GET, "/", "*/*", None).await.ok()?;
    Some(serde_json::from_slice(&answer.body).unwrap())
}

#[tokio::test]
async fn the_next_server_is_called_when_one_goes() {
    let ca = ca();
    let (one, two) = (Server::start(&ca, "one", StatusCode::OK).await, Server::start(&ca, "two", StatusCode::OK).await);
    let client = client(&ca, "me", &[&one, &two]);
    assert_eq!(ask(&client).await.unwrap(), "one heard me");
    one.stop().await;
    // What was under way may fail: that is for the caller to repeat.
    let answer = match ask(&client).await {
        Some(answer) => answer,
        None => ask(&client).await.unwrap(),
    };
    assert_eq!(answer, "two heard me");
    // Servers that were not known at the start.
    let three = Server::start(&ca, "three", StatusCode::OK).await;
    client.set_servers(&[three.url.clone(), two.url.clone()]).unwrap();
    assert_eq!(ask(&client).await.unwrap(), "two heard me", "it is still one of them");
    client.set_servers(std::slice::from_ref(&three.url)).unwrap();
    assert_eq!(ask(&client).await.unwrap(), "three heard me");
    two.stop().await;
    three.stop().await;
}

#[tokio::test]
async fn a_server_that_cannot_serve_is_passed_over() {
    let ca = ca();
    let one = Server::start(&ca, "one", StatusCode::SERVICE_UNAVAILABLE).await;
    let two = Server::start(&ca, "two", StatusCode::OK).await;
    let client = client(&ca, "me", &[&one, &two]);
    assert_eq!(ask(&client).await.unwrap(), "one heard me", "its answer is an answer");
    for _ in 0..2 {
        assert_eq!(ask(&client).await.unwrap(), "two heard me");
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_read_goes_on_at_the_next_server_and_a_write_does_not() {
    let ca = ca();
    let one = Server::start(&ca, "one", StatusCode::SERVICE_UNAVAILABLE).await;
    let two = Server::start(&ca, "two", StatusCode::OK).await;
    for (servers, write) in [([&one, &two], Some(503)), ([&two, &one], None)] {
        let client = client(&ca, "me", &servers);
        assert_eq!(
            client.create("/", &serde_json::Value::Null).await.err().and_then(|err| Some(err.status()?.code)),
            write
        );
        assert_eq!(self::client(&ca, "me", &servers).get("/").await.unwrap(), "two heard me");
    }
    let gone = Server { url: two.url.clone(), task: tokio::spawn(async {}), calls: Arc::default() };
    let client = client(&ca, "me", &[&one]);
    assert!(client.get("/").await.unwrap_err().is(503), "there is nobody else");
    two.stop().await;
    let client = self::client(&ca, "me", &[&one, &gone]);
    let before = one.calls.load(Ordering::Relaxed);
    assert!(client.get("/").await.unwrap_err().is(503), "the other one is not there");
    assert_eq!(one.calls.load(Ordering::Relaxed) - before, 1, "it is not asked again");
    one.stop().await;
}

#[tokio::test]
async fn a_write_that_is_broken_off_may_have_been_done() {
    let ca = ca();
    let broken = Server::start_with(&ca, "broken", None).await;
    let client = client(&ca, "me", &[&broken]);
    let answer = client.create("/", &serde_json::Value::Null).await;
    assert!(matches!(answer, Err(ClientError::Unanswered(_))), "{answer:?}");
    let answer = client.get("/").await;
    assert!(matches!(answer, Err(ClientError::Http { .. })), "{answer:?}");
    broken.stop().await;
    let answer = self::client(&ca, "me", &[&Server::start(&ca, "refused", StatusCode::CONFLICT).await]);
    let answer = answer.create("/", &serde_json::Value::Null).await;
    assert!(matches!(answer, Err(ClientError::Api(_))), "{answer:?}");
}

#[tokio::test]
async fn a_fresh_certificate_is_shown_from_the_next_request_on() {
    let ca = ca();
    let server = Server::start(&ca, "one", StatusCode::OK).await;
    let client = client(&ca, "old", &[&server]);
    assert_eq!(ask(&client).await.unwrap(), "one heard old");
    client.set_identity(ca.cert_pem(), &identity(&ca, "new")).unwrap();
    assert_eq!(ask(&client).await.unwrap(), "one heard new");
    server.stop().await;
}
