//! HTTP containers: a listener for each port, and an instance for each request: a fresh one, unless the Pod says that
//! they are used again.
//!
//! While nothing is asked of it, such a container is its listeners and a few hundred bytes: no instance, no memory of a
//! guest. An instance that traps costs its own request a 500 and nobody else anything.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dhow_host::{Guest, Template};
use dhow_runtime_contract::{ExitReason, HTTP_PORT_DEFAULT, HttpServing};
use dhow_switch::{Listener, Stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::ProxyPre;

use crate::container::{End, Shared, Wish, killed, wished};
use crate::crowd::Crowd;
use crate::engine::Engine;
use crate::instances::{Answer, Failure, Instances, Reply};
use crate::lane::Lane;
use crate::meter::Metered;
use crate::output::{Sink, lock};
use crate::ticker::Ticker;

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

pub(crate) async fn run(
    engine: &Engine,
    pre: &ProxyPre<Guest>,
    template: Template,
    (ports, serving): (&[u16], HttpServing),
    sink: &Sink,
    shared: &Arc<Shared>,
) -> End {
    let listeners = match listen(&template, ports) {
        Ok(listeners) => listeners,
        Err(end) => return end,
    };
    let instances = Instances::new(pre, template, sink.clone(), serving, engine.places().clone());
    let server = Arc::new(Server {
        instances: instances.clone(),
        crowd: Crowd::default(),
        sink: sink.clone(),
        shared: shared.clone(),
        ticker: engine.ticker().clone(),
        lane: engine.lane().clone(),
    });
    let mut keeper = JoinSet::new();
    if serving.reuse > 1 {
        keeper.spawn(instances.clone().end_idle());
    }
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
            instances.stop_notice().give(deadline);
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
    instances: Arc<Instances>,
    crowd: Crowd,
    sink: Sink,
    shared: Arc<Shared>,
    ticker: Arc<Ticker>,
    lane: Arc<Lane>,
}

impl Server {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>, guests: &Guests) -> Response<WasiBody> {
        if !names_host(&request) {
            return page(StatusCode::BAD_REQUEST, "the request has no valid Host header\n");
        }
        self.shared.requests().asked.fetch_add(1, Ordering::Relaxed);
        let answer = if self.instances.are_shared() {
            self.answer_shared(request).await
        } else {
            self.answer_alone(request, guests).await
        };
        if answer.is_err() {
            self.shared.requests().failed.fetch_add(1, Ordering::Relaxed);
        }
        match answer {
            Ok(response) => response,
            Err(Failure::Late) => page(StatusCode::GATEWAY_TIMEOUT, "the program did not answer in time\n"),
            Err(Failure::NoRoom) => page(StatusCode::SERVICE_UNAVAILABLE, "no room for another instance\n"),
            Err(Failure::NoAnswer | Failure::Again(_)) => {
                page(StatusCode::INTERNAL_SERVER_ERROR, "the program failed; see its log\n")
            }
            Err(Failure::Refused(code)) => {
                self.sink.note(&format!("the program answered a request with the error {code}"));
                page(StatusCode::INTERNAL_SERVER_ERROR, "the program answered with an error; see its log\n")
            }
        }
    }

    /// Asks an instance that works on nothing else meanwhile.
    async fn answer_alone(self: &Arc<Self>, request: Request<Incoming>, guests: &Guests) -> Answer {
        let (reply, mut answer) = Reply::new();
        let mut guest = self.metered(self.instances.clone().work(request, reply));
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
            () = sleep(ANSWER_MAX) => return self.late(),
        };
        answer.unwrap_or(Err(Failure::NoAnswer))
    }

    /// Asks an instance that may work on other requests too.
    async fn answer_shared(self: &Arc<Self>, mut request: Request<Incoming>) -> Answer {
        let _slot = self.instances.slot().await;
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            let (reply, answer) = Reply::new();
            let worker = self.crowd.give(&self.instances, request, reply, |work| self.metered(work));
            match timeout_at(deadline, answer).await {
                Ok(Ok(Err(Failure::Again(again)))) => request = *again,
                Ok(answer) => return answer.unwrap_or(Err(Failure::NoAnswer)),
                Err(_) => {
                    worker.abort();
                    return self.late();
                }
            }
        }
    }

    fn late(&self) -> Answer {
        self.sink.note("ended an instance that did not answer in time");
        Err(Failure::Late)
    }

    fn metered<F: Future<Output = ()> + Send + 'static>(&self, guest: F) -> Metered<F> {
        Metered::new(guest, self.shared.cpu().clone(), self.ticker.clone(), self.lane.clone())
    }
}

/// Whether the request says whom it is for; the guest's interface has no place for one that does not.
fn names_host(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    request.uri().authority().is_some() || host.is_some_and(|host| !host.is_empty())
}

fn page(status: StatusCode, text: &'static str) -> Response<WasiBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
