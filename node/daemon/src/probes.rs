//! Asks containers how they are.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_agent::ProbeOutcome;
use dhow_switch::{NetError, Stream, Switch};
use dhow_types::Chain;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::grpc;

/// What an HTTP probe reads of an answer; the rest does not matter to it.
const ANSWER_BYTES_MAX: usize = 10 * 1024;

/// Asks by HTTP, gRPC or TCP; `None` if the probe is of neither kind.
pub(crate) async fn ask(
    switch: &Switch,
    pod_ip: IpAddr,
    container: &Container,
    probe: &Probe,
    timeout: Duration,
) -> Option<ProbeOutcome> {
    if let Some(http) = &probe.http_get {
        let status = get(switch, pod_ip, container, http, timeout).await;
        return Some(outcome(status.and_then(|status| match status {
            200..400 => Ok(()),
            status => Err(format!("HTTP probe failed with statuscode: {status}")),
        })));
    }
    if let Some(tcp) = &probe.tcp_socket {
        return Some(outcome(
            async {
                let to = target(pod_ip, tcp.host.as_deref(), &tcp.port, container)?;
                dial(switch, to, timeout).await.map(drop)
            }
            .await,
        ));
    }
    if let Some(grpc) = &probe.grpc {
        return Some(outcome(
            async {
                let to = target(pod_ip, None, &IntOrString::Int(grpc.port), container)?;
                let stream = dial(switch, to, timeout).await?;
                let service = grpc.service.as_deref().unwrap_or_default();
                let answer = tokio::time::timeout(timeout, grpc::check(stream, to, service)).await;
                answer.unwrap_or_else(|_| Err(format!("timeout: health rpc did not complete within {timeout:?}")))
            }
            .await,
        ));
    }
    None
}

fn outcome(result: Result<(), String>) -> ProbeOutcome {
    match result {
        Ok(()) => ProbeOutcome::Success,
        Err(why) => ProbeOutcome::Failure(why),
    }
}

/// The status that a container answers to a GET.
pub(crate) async fn get(
    switch: &Switch,
    pod_ip: IpAddr,
    container: &Container,
    action: &HTTPGetAction,
    timeout: Duration,
) -> Result<u16, String> {
    let to = target(pod_ip, action.host.as_deref(), &action.port, container)?;
    let path = action.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let secure = action.scheme.as_deref() == Some("HTTPS");
    let url = format!("{}://{to}{path}", if secure { "https" } else { "http" });
    let exchange = async {
        let failed = |why: String| format!("Get \"{url}\": {why}");
        let stream = dial(switch, to, timeout).await.map_err(failed)?;
        let request = request(action, to, &path)?;
        if secure {
            let stream = secured(stream, to.ip()).await.map_err(|err| failed(err.to_string()))?;
            return exchange(stream, request).await.map_err(|err| failed(Chain(&err).to_string()));
        }
        exchange(stream, request).await.map_err(|err| failed(Chain(&err).to_string()))
    };
    let late = format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
    tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(late))
}

/// Who answers is not checked: a probe asks whether somebody does, as a kubelet's.
async fn secured(stream: Stream, ip: IpAddr) -> io::Result<TlsStream<Stream>> {
    let config = dhow_pki::pinned_client_config(&["http/1.1"]).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(ip.into()), stream).await
}

/// Sends a request and reads the answer, as far as a probe does; gives its status.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: http::Request<Empty<Bytes>>,
) -> Result<u16, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > ANSWER_BYTES_MAX {
                break;
            }
        }
        Ok(status)
    };
    tokio::pin!(answer);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut answer => answer,
        _ended = &mut connection => answer.await,
    }
}

fn request(action: &HTTPGetAction, to: SocketAddr, path: &str) -> Result<http::Request<Empty<Bytes>>, String> {
    let mut request = http::Request::get(path);
    let mut named = (false, false);
    for header in action.http_headers.iter().flatten() {
        named.0 |= header.name.eq_ignore_ascii_case("host");
        named.1 |= header.name.eq_ignore_ascii_case("user-agent");
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    if !named.0 {
        request = request.header(http::header::HOST, to.to_string());
    }
    if !named.1 {
        request = request.header(http::header::USER_AGENT, "kube-probe/1.36");
    }
    request.body(Empty::new()).map_err(|err| format!("the probe's request is malformed: {err}"))
}

fn target(pod_ip: IpAddr, host: Option<&str>, port: &IntOrString, container: &Container) -> Result<SocketAddr, String> {
    let ip = match host.filter(|h| !h.is_empty()) {
        None => pod_ip,
        Some(host) => host.parse().map_err(|_| format!("probe host `{host}` is not an IP address"))?,
    };
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name.as_str()));
            match named {
                Some(port) => port.container_port,
                None => name.parse().map_err(|_| format!("couldn't find port: {name}"))?,
            }
        }
    };
    let number = u16::try_from(number).ok().filter(|n| *n != 0);
    Ok(SocketAddr::new(ip, number.ok_or_else(|| "invalid port number".to_owned())?))
}

async fn dial(switch: &Switch, to: SocketAddr, timeout: Duration) -> Result<Stream, String> {
    let why = |what: &str| format!("dial tcp {to}: {what}");
    match tokio::time::timeout(timeout, switch.dial(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(NetError::Refused)) => Err(why("connect: connection refused")),
        Ok(Err(NetError::HostUnreachable)) => Err(why("connect: no route to host")),
        Ok(Err(err)) => Err(why(&err.to_string())),
        Err(_) => Err(why("i/o timeout")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_are_numbers_or_names() {
        let container: Container = serde_json::from_value(json!({
            "name": "c", "ports": [{"name": "http", "containerPort": 8080}],
        }))
        .unwrap();
        let ip: IpAddr = "10.64.0.2".parse().unwrap();
        let port = |text: &str| IntOrString::String(text.to_owned());
        for (port, expected) in [
            (IntOrString::Int(80), Ok("10.64.0.2:80")),
            (port("http"), Ok("10.64.0.2:8080")),
            (port("9090"), Ok("10.64.0.2:9090")),
            (port("nope"), Err("couldn't find port: nope")),
            (IntOrString::Int(0), Err("invalid port number")),
            (IntOrString::Int(70_000), Err("invalid port number")),
        ] {
            let found = target(ip, None, &port, &container).map(|to| to.to_string());
            assert_eq!(found.as_ref().map(String::as_str).map_err(String::as_str), expected);
        }
    }

    #[test]
    fn a_probe_of_an_object_tree_keeps_its_port() {
        let tree: serde_json::Value =
            serde_json::from_str(r#"{"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 3}"#).unwrap();
        let probe: Probe = serde_json::from_value(tree).unwrap();
        assert_eq!(probe.http_get.unwrap().port, IntOrString::Int(8080));
    }

    /// A pod on a switch, whose server answers one request with a status, by TLS or without.
    async fn ask_pod(scheme: &str, serves_tls: bool) -> ProbeOutcome {
        let node_ip = "192.0.2.1".parse().unwrap();
        let switch = Switch::new(dhow_switch::Config::new(dhow_types::NodeName::new("n1"), node_ip));
        let ip: IpAddr = "10.64.0.2".parse().unwrap();
        let pod = switch.add_pod(dhow_switch::PodIdentity {
            uid: dhow_types::Uid::new("u"),
            namespace: "default".into(),
            name: "p".into(),
            ip,
            hostname: "p".into(),
            service_account: "default".into(),
        });
        let listener = pod.listen("0.0.0.0:8443".parse().unwrap(), 4).unwrap();
        let now = crate::clock::now();
        let subject = dhow_pki::Subject { common_name: "p".into(), organizations: Vec::new() };
        let identity = dhow_pki::Ca::create("someone", now)
            .unwrap()
            .issue(&subject, &[], dhow_pki::Usage::Server, now, 60_000)
            .unwrap();
        let tls = dhow_pki::server_config(&identity, None, &["http/1.1"]).unwrap();
        let served = tokio::spawn(async move {
            let stream = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(|_| async {
                let answer = http::Response::builder().status(204).body(Empty::<Bytes>::new()).unwrap();
                Ok::<_, std::convert::Infallible>(answer)
            });
            let server = hyper::server::conn::http1::Builder::new();
            if serves_tls {
                let stream = tokio_rustls::TlsAcceptor::from(Arc::new(tls)).accept(stream).await.unwrap();
                server.serve_connection(TokioIo::new(stream), service).await.ok();
            } else {
                server.serve_connection(TokioIo::new(stream), service).await.ok();
            }
        });
        let probe: Probe =
            serde_json::from_value(json!({"httpGet": {"scheme": scheme, "path": "healthz", "port": 8443}})).unwrap();
        let container: Container = serde_json::from_value(json!({"name": "c"})).unwrap();
        let outcome = ask(&switch, ip, &container, &probe, Duration::from_secs(10)).await.unwrap();
        served.abort();
        outcome
    }

    #[tokio::test]
    async fn a_probe_speaks_the_scheme_that_it_names_and_believes_any_certificate() {
        assert_eq!(ask_pod("HTTP", false).await, ProbeOutcome::Success);
        assert_eq!(ask_pod("HTTPS", true).await, ProbeOutcome::Success);
        let ProbeOutcome::Failure(why) = ask_pod("HTTPS", false).await else { panic!("plain text is no TLS") };
        assert!(why.starts_with("Get \"https://10.64.0.2:8443/healthz\": "), "{why}");
    }
}
