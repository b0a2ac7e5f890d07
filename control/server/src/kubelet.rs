//! What is asked of a pod's node: logs and port-forwarding. The client's protocols end here; the node sees one plain
//! HTTP/1.1 request on a stream of its own, and for a forwarded connection raw bytes after an upgrade.

use crate::answer::{self, Answer, BodyError};
use crate::app::App;
use crate::body::RequestBody;
use crate::route::{Call, header};
use crate::{spdy, websocket};
use bytes::Bytes;
use dhow_api::kinds::Kind;
use dhow_api::status::{ApiError, Reason};
use dhow_api::{Tree, meta};
use dhow_gate::write::{Name, key_of};
use futures_util::StreamExt;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{Request, Response};
use http_body_util::{BodyExt, BodyStream, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;

/// A node that has taken a request answers it within this time, or is taken for stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a node's error text is passed on.
const ERROR_BYTES_MAX: usize = 16 << 10;

pub(crate) async fn pod_of(app: &App, kind: &Kind, name: Name<'_>) -> Result<Tree, ApiError> {
    app.barrier().await?;
    let pod = app.replica.state().get(&key_of(kind, name)).cloned();
    Ok(pod.ok_or_else(|| ApiError::not_found(&kind.resource(), name.name))?.tree())
}

/// Sends a request to a node. The connection lives as long as the answer's body or the upgraded stream.
pub(crate) async fn ask(
    app: &App,
    node: &str,
    path: &str,
    upgrade: Option<&'static str>,
) -> Result<Response<Incoming>, ApiError> {
    let stream = app.nodes.kubelet(node).await?;
    let lost = |error: hyper::Error| ApiError::unavailable(format!("node {node} broke the stream off: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let stop = app.streams.stop_token();
    app.streams.spawn("stream to a node", async move {
        if let Some(Err(error)) = stop.or(connection.with_upgrades()).await {
            tracing::debug!(%error, "a stream to a node ended");
        }
    });
    let mut request = Request::get(path).header(HOST, "node");
    if let Some(protocol) = upgrade {
        request = request.header(CONNECTION, "Upgrade").header(UPGRADE, protocol);
    }
    let request =
        request.body(Empty::<Bytes>::new()).map_err(|error| ApiError::internal(format!("path `{path}`: {error}")))?;
    match tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await {
        Ok(answer) => answer.map_err(lost),
        Err(_) => Err(ApiError::timeout(&format!("node {node} does not answer"), 1)),
    }
}

/// A node's refusal as a `Status`.
pub(crate) async fn refusal(answer: Response<Incoming>) -> ApiError {
    let code = answer.status().as_u16();
    let text = text_of(answer).await;
    match code {
        400 => ApiError::bad_request(text),
        404 => ApiError::new(404, Reason::NotFound, text),
        _ => ApiError::internal(text),
    }
}

async fn text_of(answer: Response<Incoming>) -> String {
    match Limited::new(answer.into_body(), ERROR_BYTES_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Parameters of `pods/log` that the node understands.
const LOG_PARAMETERS: [&str; 7] =
    ["follow", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "previous", "limitBytes"];

/// GET `/log`: the node's stream, passed on piece by piece.
pub(crate) async fn log(call: &Call<'_>) -> Result<Answer, ApiError> {
    let name = Name { namespace: &call.target.namespace, name: &call.target.name };
    let pod = pod_of(call.app, call.kind, name).await?;
    let container = container_of(&pod, call.query.non_empty("container"))?;
    let node = meta::text(&pod, "spec.nodeName");
    if node.is_empty() {
        // A pod without a node has said nothing yet.
        return Ok(answer::text(200, ""));
    }
    let mut path = format!("/containerLogs/{}/{}/{container}", name.namespace, name.name);
    let mut separator = '?';
    for key in LOG_PARAMETERS {
        if let Some(value) = call.query.non_empty(key) {
            path.push_str(&format!("{separator}{key}={}", escape(value)));
            separator = '&';
        }
    }
    let answer = ask(call.app, node, &path, None).await?;
    if !answer.status().is_success() {
        return Err(refusal(answer).await);
    }
    let stop = call.app.stop.clone();
    let pieces = BodyStream::new(answer.into_body())
        .filter_map(|frame| {
            std::future::ready(match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(BodyError::from(error))),
            })
        })
        .take_until(async move { stop.stopped().await });
    Ok(answer::answer(200, "text/plain; charset=utf-8", answer::streamed(pieces)))
}

/// The container that is meant: the one that is named, the default one, or the only one.
pub(crate) fn container_of(pod: &Tree, asked: Option<&str>) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        meta::list(pod, list).iter().map(|container| meta::text(container, "name").to_owned()).collect()
    };
    let containers = names("spec.containers");
    let others: Vec<String> = [names("spec.initContainers"), names("spec.ephemeralContainers")].concat();
    let pod_name = meta::name(pod);
    let default = meta::annotation(pod, "kubectl.kubernetes.io/default-container").filter(|name| !name.is_empty());
    match (asked.or(default), containers.as_slice()) {
        (Some(asked), _) if containers.iter().chain(&others).any(|name| name == asked) => Ok(asked.to_owned()),
        (Some(asked), _) => Err(ApiError::bad_request(format!("container {asked} is not valid for pod {pod_name}"))),
        (None, [only]) => Ok(only.clone()),
        (None, _) => {
            let mut message = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                containers.join(" ")
            );
            let init = names("spec.initContainers");
            if !init.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::bad_request(message))
        }
    }
}

/// Percent-encodes all but the letters that need it nowhere.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// One forwarded connection's way into a pod.
#[derive(Clone)]
pub(crate) struct Dial {
    app: Arc<App>,
    node: String,
    namespace: String,
    pod: String,
}

/// The protocol between us and the node.
const NODE_PROTOCOL: &str = "dhow-portforward";

impl Dial {
    /// Connects to a port of the pod; the error is for the user's eyes.
    pub(crate) async fn port(self, port: u16) -> Result<TokioIo<Upgraded>, String> {
        let Dial { app, node, namespace, pod } = self;
        let path = format!("/portForward/{namespace}/{pod}/{port}");
        let failed = |why: &str| format!("error forwarding port {port} to pod {pod}: {why}");
        let answer = ask(&app, &node, &path, Some(NODE_PROTOCOL)).await.map_err(|error| failed(&error.message))?;
        if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(failed(&text_of(answer).await));
        }
        hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(|error| failed(&error.to_string()))
    }
}

pub(crate) const SPDY: &str = "SPDY/3.1";
/// The sub-protocol of raw SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";
/// SPDY inside of WebSocket messages.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Channels in WebSocket messages, as other clients than kubectl have it.
const CHANNELS: &str = "v4.channel.k8s.io";

pub(crate) const STREAM_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
pub(crate) const WS_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const WS_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WS_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// The ways in which a client forwards ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Spdy,
    Tunnel,
    Channels,
}

/// GET or POST `/portforward`.
pub(crate) async fn port_forward(call: &Call<'_>, request: Request<RequestBody>) -> Result<Answer, ApiError> {
    let name = Name { namespace: &call.target.namespace, name: &call.target.name };
    let pod = pod_of(call.app, call.kind, name).await?;
    let node = meta::text(&pod, "spec.nodeName").to_owned();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", name.name)));
    }
    let (protocol, mut switch) = negotiate(call)?;
    let ports = if protocol == Protocol::Channels { channel_ports(call)? } else { Vec::new() };
    let dial = Dial { app: call.app.clone(), node, namespace: name.namespace.to_owned(), pod: name.name.to_owned() };
    let stop = call.app.stop.clone();
    call.app.streams.spawn("port-forward", async move {
        let session = async move {
            let stream = match hyper::upgrade::on(request).await {
                Ok(stream) => TokioIo::new(stream),
                Err(error) => return Err(std::io::Error::other(error)),
            };
            let dial = move |port| dial.clone().port(port);
            match protocol {
                Protocol::Spdy => spdy::serve(stream, dial).await,
                Protocol::Tunnel => websocket::tunnel(stream, dial).await,
                Protocol::Channels => websocket::channels(stream, ports, dial).await,
            }
        };
        if let Some(Err(error)) = stop.or(session).await {
            tracing::debug!(%error, "a port-forward session ended");
        }
    });
    switch.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(switch)
}

/// What a client offers in a header, which may be there several times.
pub(crate) fn offered(call: &Call<'_>, name: HeaderName) -> Vec<String> {
    call.headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .collect()
}

/// Words an answer that switches to a sub-protocol of WebSocket.
pub(crate) fn accept_websocket(call: &Call<'_>, answer: &mut Answer, protocol: &'static str) -> Result<(), ApiError> {
    let key = header(call.headers, WS_KEY).ok_or_else(|| ApiError::bad_request("Sec-WebSocket-Key is missing"))?;
    let accept =
        HeaderValue::from_str(&websocket::accept_key(key)).map_err(|error| ApiError::bad_request(error.to_string()))?;
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.headers_mut().insert(WS_ACCEPT, accept);
    answer.headers_mut().insert(WS_PROTOCOL, HeaderValue::from_static(protocol));
    Ok(())
}

/// Chooses the protocol and words the answer that switches to it.
fn negotiate(call: &Call<'_>) -> Result<(Protocol, Answer), ApiError> {
    let mut answer = Response::new(answer::empty());
    *answer.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = header(call.headers, UPGRADE).unwrap_or("");
    if upgrade.eq_ignore_ascii_case(SPDY) {
        if !offered(call, STREAM_VERSION).iter().any(|version| version == PORT_FORWARD) {
            return Err(ApiError::bad_request(format!("the server speaks only {PORT_FORWARD} over {SPDY}")));
        }
        answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(SPDY));
        answer.headers_mut().insert(STREAM_VERSION, HeaderValue::from_static(PORT_FORWARD));
        return Ok((Protocol::Spdy, answer));
    }
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let offered = offered(call, WS_PROTOCOL);
    let has = |protocol: &str| offered.iter().any(|offer| offer == protocol);
    let (protocol, echo) = if has(TUNNEL) {
        (Protocol::Tunnel, TUNNEL)
    } else if has(CHANNELS) {
        (Protocol::Channels, CHANNELS)
    } else {
        return Err(ApiError::bad_request(format!("the server speaks only {TUNNEL} and {CHANNELS}")));
    };
    accept_websocket(call, &mut answer, echo)?;
    Ok((protocol, answer))
}

/// The ports of `?ports=80,81` or `?ports=80&ports=81`.
fn channel_ports(call: &Call<'_>) -> Result<Vec<u16>, ApiError> {
    let ports: Option<Vec<u16>> = call
        .query
        .all("ports")
        .flat_map(|list| list.split(','))
        .map(|port| port.trim().parse().ok().filter(|port| *port != 0))
        .collect();
    match ports {
        Some(ports) if (1..=websocket::PORTS_MAX).contains(&ports.len()) => Ok(ports),
        _ => Err(ApiError::bad_request("query parameter \"ports\" must name one port or more")),
    }
}
