//! What the control node asks of this node: logs, port-forwarding and sessions, over HTTP/1.1 on streams of the QUIC connection.
//!
//! | request | answer |
//! |---|---|
//! | `GET /healthz` | `ok` |
//! | `GET /stats/summary` | what the node and its pods use |
//! | `GET /metrics`, `/metrics/resource`, `/metrics/cadvisor` | the same for Prometheus |
//! | `GET /containerLogs/<ns>/<pod>/<container>?…` | the log, chunked |
//! | `GET /coreDump/<ns>/<pod>/<container>` | the latest core dump |
//! | `GET /portForward/<ns>/<pod>/<port>` with `Upgrade: dhow-portforward` | 101, then the bytes of one connection |
//! | `GET /exec/<ns>/<pod>/<container>?command=…` with `Upgrade: dhow-channels` | 101, then the channels of a command |
//! | `GET /attach/<ns>/<pod>/<container>?…` with `Upgrade: dhow-channels` | 101, then the channels of the program that runs |
//!
//! Only the control node is answered: any other node of the cluster could otherwise read every pod's logs.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use dhow_agent::ContainerRef;
use dhow_quic::KubeletStream;
use dhow_tasks::{Stop, Tasks};
use dhow_types::{Chain, Uid};
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Semaphore, mpsc};

use crate::clock::now;
use crate::logs::{LogOptions, LogReader, decode};
use crate::runner::Shared;
use crate::sessions::{self, Wanted};
use crate::{metrics, stats, toolbox, usage};

/// Streams that are served at the same time: followed logs and forwarded connections. More wait.
pub(crate) const STREAMS_MAX: usize = 512;
/// A core dump is read in pieces of this size.
const DUMP_PIECE_BYTES: usize = 128 * 1024;
/// The protocol that a port-forward is upgraded to.
const PORT_FORWARD: &str = "dhow-portforward";
/// The protocol of sessions: frames of several channels.
const CHANNELS: &str = "dhow-channels";
/// How the certificates of nodes are named; the control node's is not.
const NODE_PREFIX: &str = "system:node:";

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why a request is not fulfilled: what the client gets.
struct Refusal(StatusCode, String);

/// Serves the streams that come in, until told to stop.
pub(crate) async fn serve(shared: Arc<Shared>, tasks: Tasks, mut streams: mpsc::Receiver<KubeletStream>, stop: Stop) {
    let slots = Arc::new(Semaphore::new(STREAMS_MAX));
    while let Some(Some(incoming)) = stop.or(streams.recv()).await {
        if incoming.peer.starts_with(NODE_PREFIX) {
            tracing::warn!(peer = incoming.peer, "a node asked for the kubelet API and was refused");
            continue;
        }
        let Some(Ok(slot)) = stop.or(slots.clone().acquire_owned()).await else { return };
        let (shared, stop, upgrades) = (shared.clone(), stop.clone(), tasks.clone());
        tasks.spawn("kubelet stream", async move {
            let service = service_fn(move |request| answer(shared.clone(), upgrades.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(incoming.stream), service)
                .with_upgrades();
            if let Some(Err(err)) = stop.or(connection).await {
                tracing::debug!(err = %Chain(&err), "a stream of the kubelet API broke");
            }
            drop(slot);
        });
    }
}

async fn answer(shared: Arc<Shared>, tasks: Tasks, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let parts: Vec<String> = path.split('/').skip(1).map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let result = match (request.method(), parts.as_slice()) {
        (&Method::GET, ["healthz"]) => Ok(Response::new(full("ok"))),
        (&Method::GET, ["stats", "summary"]) => stats_summary(&shared, request.uri().query().unwrap_or_default()),
        (&Method::GET, ["metrics", which @ ..]) => metrics_page(&shared, which),
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            container_logs(&shared, (namespace, pod, container), request.uri().query().unwrap_or_default())
        }
        (&Method::GET, ["coreDump", namespace, pod, container]) => {
            core_dump(&shared, (namespace, pod, container)).await
        }
        (&Method::GET, ["portForward", namespace, pod, port]) => {
            port_forward(&shared, &tasks, (namespace, pod, port), request)
        }
        (&Method::GET, ["exec", namespace, pod, container]) => {
            session(&shared, &tasks, Session::Exec, (namespace, pod, container), request)
        }
        (&Method::GET, ["attach", namespace, pod, container]) => {
            session(&shared, &tasks, Session::Attach, (namespace, pod, container), request)
        }
        _ => Err(Refusal(StatusCode::NOT_FOUND, format!("no such path: {path}"))),
    };
    Ok(result.unwrap_or_else(|Refusal(status, why)| {
        let mut response = Response::new(full(&why));
        *response.status_mut() = status;
        response
    }))
}

fn full(text: &str) -> Body {
    Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed_unsync()
}

fn stats_summary(shared: &Shared, query: &str) -> Result<Response<Body>, Refusal> {
    let summary = stats::summary(&shared.node, &usage::read(shared), stats::Extent::of(query));
    Ok(typed("application/json", &summary.to_string()))
}

fn metrics_page(shared: &Shared, which: &[&str]) -> Result<Response<Body>, Refusal> {
    let reading = usage::read(shared);
    let page = match which {
        [] => metrics::agent(&reading, shared.layout.root()),
        ["resource"] => metrics::resource(&reading),
        ["cadvisor"] => metrics::containers(&reading),
        _ => return Err(Refusal(StatusCode::NOT_FOUND, format!("no such metrics: {}", which.join("/")))),
    };
    let page = page.map_err(|err| Refusal(StatusCode::INTERNAL_SERVER_ERROR, err.to_string()))?;
    Ok(typed(metrics::CONTENT_TYPE, &page))
}

fn typed(content_type: &'static str, text: &str) -> Response<Body> {
    let mut response = Response::new(full(text));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

fn container_logs(
    shared: &Arc<Shared>,
    (namespace, name, container): (&str, &str, &str),
    query: &str,
) -> Result<Response<Body>, Refusal> {
    let options = LogOptions::parse(query, now()).map_err(|why| Refusal(StatusCode::BAD_REQUEST, why))?;
    let no_pod = || Refusal(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found on this node"));
    let (uid, pod) = shared.sandboxes.find(namespace, name).ok_or_else(no_pod)?;
    let bad = |why: String| Refusal(StatusCode::BAD_REQUEST, why);
    if dhow_agent::spec::container(&pod, container).is_none() {
        return Err(bad(format!("container {container} is not valid for pod {name}")));
    }
    let logs = shared.layout.logs(&pod, container).ok_or_else(no_pod)?;
    let latest = shared.sandboxes.latest_attempt(&uid, container).or_else(|| logs.latest());
    let latest = latest.ok_or_else(|| {
        let why = waiting_for(&pod, container);
        bad(format!("container \"{container}\" in pod \"{name}\" is waiting to start: {why}"))
    })?;
    let attempt = if options.previous {
        let previous = latest.checked_sub(1);
        previous
            .ok_or_else(|| bad(format!("previous terminated container \"{container}\" in pod \"{name}\" not found")))?
    } else {
        latest
    };
    let reader = LogReader::open(&logs.file(attempt), options)
        .map_err(|err| Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("the log cannot be read: {err}")))?;
    let (shared, container) = (shared.clone(), container.to_owned());
    let running = move || is_running(&shared, &uid, &container, attempt);
    let pieces = stream::try_unfold((reader, running), |(reader, running)| async move {
        let next = reader.next(&running).await?;
        Ok(next.map(|(bytes, reader)| (Frame::data(bytes), (reader, running))))
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// The latest dump of a container, piece by piece.
async fn core_dump(
    shared: &Shared,
    (namespace, name, container): (&str, &str, &str),
) -> Result<Response<Body>, Refusal> {
    let none = |why: String| Refusal(StatusCode::NOT_FOUND, why);
    let (_, pod) =
        shared.sandboxes.find(namespace, name).ok_or_else(|| none(format!("pod \"{name}\" not found on this node")))?;
    let logs = shared.layout.logs(&pod, container);
    let path = logs.and_then(|logs| logs.latest_core()).ok_or_else(|| {
        let how = if dhow_agent::spec::wants_core_dump(&pod) {
            "it has not trapped, or has more memory than is dumped"
        } else {
            "annotate the pod with `dhow.dev/core-dump: \"true\"` before it traps"
        };
        none(format!("container \"{container}\" in pod \"{name}\" has left no core dump: {how}"))
    })?;
    let failed =
        |err: std::io::Error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("the dump cannot be read: {err}"));
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let pieces = stream::try_unfold(file, |mut file| async move {
        let mut piece = bytes::BytesMut::with_capacity(DUMP_PIECE_BYTES);
        let read = file.read_buf(&mut piece).await?;
        Ok((read > 0).then(|| (Frame::data(piece.freeze()), file)))
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    let kind = header::HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// What a container that has never run waits for, as its stored status says; in a kubelet's words.
fn waiting_for(pod: &Pod, container: &str) -> String {
    let status = pod.status.as_ref();
    let mut statuses = status
        .into_iter()
        .flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()))
        .chain(status.into_iter().flat_map(|s| s.ephemeral_container_statuses.iter().flatten()));
    let waiting = statuses.find(|s| s.name == container).and_then(|s| s.state.as_ref()?.waiting.as_ref());
    match waiting.and_then(|waiting| waiting.reason.as_deref()) {
        Some("ErrImagePull") => "image can't be pulled".to_owned(),
        Some("ImagePullBackOff") => "trying and failing to pull image".to_owned(),
        Some(reason) => reason.to_owned(),
        None => "ContainerCreating".to_owned(),
    }
}

fn is_running(shared: &Shared, uid: &Uid, container: &str, attempt: u32) -> bool {
    shared.sandboxes.running(uid, container).is_some_and(|running| running.attempt == attempt)
}

/// What a client joins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Session {
    Exec,
    Attach,
}

fn session(
    shared: &Arc<Shared>,
    tasks: &Tasks,
    kind: Session,
    (namespace, name, container): (&str, &str, &str),
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let switch = switching(&request, CHANNELS)?;
    let wanted = Wanted::parse(request.uri().query().unwrap_or_default());
    let bad = |why: String| Refusal(StatusCode::BAD_REQUEST, why);
    if kind == Session::Exec && wanted.command.is_empty() {
        return Err(bad("you must specify at least one command for the container".to_owned()));
    }
    let no_pod = || Refusal(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found on this node"));
    let (uid, pod) = shared.sandboxes.find(namespace, name).ok_or_else(no_pod)?;
    let spec = dhow_agent::spec::container(&pod, container);
    let spec = spec.ok_or_else(|| bad(format!("container {container} is not valid for pod {name}")))?;
    if kind == Session::Attach && wanted.reads() && spec.stdin != Some(true) {
        return Err(bad(format!("container {container} of pod {name} has no stdin: set `stdin: true` in its spec")));
    }
    let once = wanted.reads() && spec.stdin_once == Some(true);
    let running = shared.sandboxes.running(&uid, container);
    let running =
        running.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")))?;
    let (shared, at) = (shared.clone(), ContainerRef { uid, container: container.into() });
    let stop = tasks.stop_token();
    tasks.spawn("session", async move {
        let work = async {
            let stream = hyper::upgrade::on(&mut request).await.map_err(std::io::Error::other)?;
            match kind {
                Session::Exec => sessions::exec(&shared, &at, &pod, wanted, TokioIo::new(stream)).await,
                Session::Attach => {
                    let is_toolbox = toolbox::runs_in(&pod, &at.container);
                    let joined = sessions::Joined { container: &running.container, is_toolbox };
                    let ended = sessions::attach(joined, wanted, TokioIo::new(stream)).await;
                    if once {
                        running.container.close_stdin().await;
                    }
                    ended
                }
            }
        };
        if let Some(Err(err)) = stop.or(work).await {
            tracing::debug!(%err, "a session broke");
        }
    });
    Ok(switch)
}

/// The answer that switches to a protocol, if that is what the request asks for.
fn switching(request: &Request<Incoming>, protocol: &'static str) -> Result<Response<Body>, Refusal> {
    let asked = request.headers().get(header::UPGRADE).and_then(|v| v.to_str().ok());
    if !asked.is_some_and(|value| value.eq_ignore_ascii_case(protocol)) {
        return Err(Refusal(StatusCode::UPGRADE_REQUIRED, format!("send `Upgrade: {protocol}`")));
    }
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static(protocol));
    Ok(response)
}

fn port_forward(
    shared: &Arc<Shared>,
    tasks: &Tasks,
    (namespace, name, port): (&str, &str, &str),
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let response = switching(&request, PORT_FORWARD)?;
    let port: u16 =
        port.parse().map_err(|_| Refusal(StatusCode::BAD_REQUEST, format!("`{port}` is not a port number")))?;
    let (uid, _) = shared
        .sandboxes
        .find(namespace, name)
        .ok_or_else(|| Refusal(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found on this node")))?;
    // Dialled before the answer, so that "connection refused" can still be said.
    let stream = shared.switch.dial_pod(&uid, port).map_err(|err| {
        let why = format!("failed to connect to localhost:{port} inside of pod \"{name}\": {err}");
        Refusal(StatusCode::BAD_GATEWAY, why)
    })?;
    let stop = tasks.stop_token();
    tasks.spawn("port-forward", async move {
        let work = async {
            match hyper::upgrade::on(&mut request).await {
                Ok(upgraded) => {
                    if let Err(err) = dhow_switch::splice(stream, TokioIo::new(upgraded)).await {
                        tracing::debug!(%err, "a forwarded connection broke");
                    }
                }
                Err(err) => tracing::debug!(err = %Chain(&err), "a port-forward was not upgraded"),
            }
        };
        stop.or(work).await;
    });
    Ok(response)
}
