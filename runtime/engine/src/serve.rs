//! HTTP containers: a listener for each port, and a fresh instance for each request.
//!
//! While nothing is asked of it, such a container is its listeners and a few hundred bytes: no instance, no memory of a
//! guest. An instance that traps costs its own request a 500 and nobody else anything.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dhow_host::{Guest, OutOfMemory, Template};
use dhow_runtime_contract::{ExitReason, HTTP_PORT_DEFAULT};
use dhow_switch::{Listener, Stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use crate::command::{discard, new_store};
use crate::container::{End, Shared, Wish, describe, killed, wished};
use crate::engine::Engine;
use crate::meter::{Cpu, Metered};
use crate::output::{Channel, Input, Sink, lock};
use crate::ticker::Ticker;

/// Requests that one container works on at a time; more wait in their connections. A quarter of the node's pool of
/// instances, so that one container cannot take it all.
const REQUESTS_MAX: usize = 128;
/// Connections that one container holds at a time; more wait in the listener's backlog and are then refused.
const CONNECTIONS_MAX: usize = 4096;
/// Connections that wait to be accepted.
const BACKLOG: usize = 1024;
/// How long a connection may be silent, or take to send a request's head.
const HEAD_MAX: Duration = Duration::from_secs(75);
/// How long a guest may take to answer a client that waits. A client that goes, or ends its side of the connection,
/// ends its guest at once.
const ANSWER_MAX: Duration = Duration::from_secs(600);
/// How long a guest may go on working when its client has got everything and gone.
const AFTERMATH_MAX: Duration = Duration::from_secs(30);

type Body = HyperOutgoingBody;

pub(crate) async fn run(
    engine: &Engine,
    pre: &ProxyPre<Guest>,
    template: Template,
    ports: &[u16],
    sink: &Sink,
    shared: &Arc<Shared>,
) -> End {
    let listeners = match listen(&template, ports) {
        Ok(listeners) => listeners,
        Err(end) => return end,
    };
    let server = Arc::new(Server {
        pre: pre.clone(),
        template,
        sink: sink.clone(),
        cpu: shared.cpu().clone(),
        ticker: engine.ticker().clone(),
        slots: Semaphore::new(REQUESTS_MAX),
        pool: engine.pool().clone(),
        largest: AtomicU64::new(0),
    });
    let mut ports = JoinSet::new();
    for listener in listeners {
        ports.spawn(accept(server.clone(), listener, shared.wishes()));
    }
    shared.set_running();
    drop(server);

    let mut wishes = shared.wishes();
    tokio::select! {
        _ = wished(&mut wishes) => {}
        () = all(&mut ports) => {}
    }
    // A wish ends the ports too, and may do so before it is seen above.
    let wish = *wishes.borrow();
    if wish == Wish::Run {
        let message = "the Pod's network was taken away".to_owned();
        return End { reason: ExitReason::Error, message, ..End::wished(Wish::Kill) };
    }
    // Leaving this function drops the ports' tasks, and with them connections and guests.
    match wish {
        Wish::Stop(deadline) => {
            tokio::select! {
                drained = timeout_at(deadline, all(&mut ports)) => match drained {
                    Ok(()) => End::completed(),
                    Err(_) => End::wished(Wish::Kill),
                },
                () = killed(&mut wishes) => End::wished(Wish::Kill),
            }
        }
        _ => End::wished(Wish::Kill),
    }
}

fn listen(template: &Template, ports: &[u16]) -> Result<Vec<Listener>, End> {
    let ports = if ports.is_empty() { &[HTTP_PORT_DEFAULT] } else { ports };
    let mut seen = Vec::new();
    let mut listeners = Vec::new();
    for &port in ports {
        if seen.contains(&port) {
            continue;
        }
        seen.push(port);
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = template.net().listen(address, BACKLOG);
        listeners.push(listener.map_err(|error| End::cannot_run(format!("listening on port {port}: {error}")))?);
    }
    Ok(listeners)
}

async fn all(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        report_panic(ended);
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task of an HTTP container panicked");
    }
}

/// Takes connections until something else is wished, then waits for those it has.
async fn accept(server: Arc<Server>, listener: Listener, mut wishes: watch::Receiver<Wish>) {
    let mut connections = JoinSet::new();
    loop {
        let full = connections.len() >= CONNECTIONS_MAX;
        tokio::select! {
            biased;
            _ = wished(&mut wishes) => break,
            Some(ended) = connections.join_next() => report_panic(ended),
            accepted = listener.accept(), if !full => match accepted {
                Ok(stream) => {
                    connections.spawn(converse(server.clone(), stream, wishes.clone()));
                }
                Err(error) => {
                    tracing::debug!(%error, "an HTTP container's listener ended");
                    break;
                }
            },
        }
    }
    drop(listener);
    all(&mut connections).await;
}

/// Answers the requests of one connection. Dropping this future ends its guests.
async fn converse(server: Arc<Server>, stream: Stream, mut wishes: watch::Receiver<Wish>) {
    let guests: Guests = Arc::default();
    let service = service_fn(|request| {
        let (server, guests) = (server.clone(), guests.clone());
        async move { Ok::<_, Infallible>(server.answer(request, &guests).await) }
    });
    let result = {
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_MAX)
                .serve_connection(TokioIo::new(stream), service)
        );
        tokio::select! {
            result = &mut connection => result,
            _ = wished(&mut wishes) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
        // The connection goes here, and with it the guests that nobody waits for any more.
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an HTTP connection broke");
    }
    let mut rest = std::mem::take(&mut *lock(&guests));
    if timeout(AFTERMATH_MAX, all(&mut rest)).await.is_err() {
        server.sink.note("ended an instance that went on long after its response was complete");
    }
}

/// The instances that go on working for one connection after their response has begun.
type Guests = Arc<Mutex<JoinSet<()>>>;

/// What all requests of one container share.
struct Server {
    pre: ProxyPre<Guest>,
    template: Template,
    sink: Sink,
    cpu: Arc<Cpu>,
    ticker: Arc<Ticker>,
    slots: Semaphore,
    pool: Arc<Semaphore>,
    /// The most memory that one instance has held: what the next one is expected to need.
    largest: AtomicU64,
}

/// What comes of a request.
type Answer = Result<Response<Body>, Failure>;

enum Failure {
    /// The guest said so itself.
    Refused(ErrorCode),
    /// It returned without an answer, or trapped.
    NoAnswer,
    /// There was no room for an instance.
    NoRoom,
}

impl Server {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>, guests: &Guests) -> Response<Body> {
        if !names_host(&request) {
            return page(StatusCode::BAD_REQUEST, "the request has no valid Host header\n");
        }
        let (sender, mut answer) = oneshot::channel();
        let mut guest = Metered::new(self.clone().work(request, sender), self.cpu.clone(), self.ticker.clone());
        // The guest runs in the connection's own task until it answers: most are done by then, and never need a task
        // or another thread. A connection that breaks before that takes its guest with it.
        let answer = tokio::select! {
            biased;
            answer = &mut answer => {
                let mut guests = lock(guests);
                while let Some(ended) = guests.try_join_next() {
                    report_panic(ended);
                }
                guests.spawn(guest);
                answer
            }
            () = &mut guest => answer.await,
            () = sleep(ANSWER_MAX) => {
                self.sink.note("ended an instance that did not answer in time");
                return page(StatusCode::GATEWAY_TIMEOUT, "the program did not answer in time\n");
            }
        };
        let answer = answer.unwrap_or(Err(Failure::NoAnswer));
        match answer {
            Ok(response) => response,
            Err(Failure::NoRoom) => page(StatusCode::SERVICE_UNAVAILABLE, "no room for another instance\n"),
            Err(Failure::NoAnswer) => page(StatusCode::INTERNAL_SERVER_ERROR, "the program failed; see its log\n"),
            Err(Failure::Refused(code)) => {
                self.sink.note(&format!("the program answered a request with the error {code}"));
                page(StatusCode::INTERNAL_SERVER_ERROR, "the program answered with an error; see its log\n")
            }
        }
    }

    /// One instance, from its start to its end.
    async fn work(self: Arc<Self>, request: Request<Incoming>, sender: oneshot::Sender<Answer>) {
        let sender = Arc::new(Mutex::new(Some(sender)));
        let send = |answer: Answer| {
            if let Some(sender) = lock(&sender).take() {
                // The receiver is gone when the client is; then nobody wants the answer.
                sender.send(answer).ok();
            }
        };
        let _slot = self.slots.acquire().await;
        let memory = self.template.memory().meter(self.largest.load(Ordering::Relaxed)).await;
        let _place = self.pool.acquire().await;

        let guest = self.template.guest(
            memory,
            Input::empty(),
            self.sink.open(Channel::Stdout),
            self.sink.open(Channel::Stderr),
        );
        let mut store = new_store(self.pre.engine(), guest);
        let for_guest = sender.clone();
        let result = async {
            let mut http = store.data_mut().http();
            let request = http.new_incoming_request(Scheme::Http, request)?;
            let out = http.new_response_outparam_from_callback(move |answer| {
                if let Some(sender) = lock(&for_guest).take() {
                    sender.send(answer.map_err(Failure::Refused)).ok();
                }
            })?;
            let proxy = self.pre.instantiate_async(&mut store).await.map_err(Ended::Start)?;
            proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await.map_err(Ended::Guest)
        }
        .await;
        self.largest.fetch_max(store.data().memory.held(), Ordering::Relaxed);
        match result {
            Ok(()) => send(Err(Failure::NoAnswer)),
            Err(Ended::Start(error)) => {
                self.sink.note(&format!("starting an instance failed: {}", describe(&error)));
                send(Err(Failure::NoRoom));
            }
            Err(Ended::Guest(error)) => {
                let what = if error.is::<OutOfMemory>() { "ran out of memory" } else { "failed" };
                self.sink.note(&format!("a request {what}: {}", describe(&error)));
                send(Err(Failure::NoAnswer));
            }
        }
        discard(store).await;
    }
}

/// Where an instance came to its end.
enum Ended {
    Start(wasmtime::Error),
    Guest(wasmtime::Error),
}

impl From<wasmtime::Error> for Ended {
    fn from(error: wasmtime::Error) -> Self {
        Self::Start(error)
    }
}

/// Whether the request says whom it is for; the guest's interface has no place for one that does not.
fn names_host(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    request.uri().authority().is_some() || host.is_some_and(|host| !host.is_empty())
}

fn page(status: StatusCode, text: &'static str) -> Response<Body> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
