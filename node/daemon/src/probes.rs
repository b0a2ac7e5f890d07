//! Asks containers how they are.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use dhow_agent::ProbeOutcome;
use dhow_switch::{NetError, Stream, Switch};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What an HTTP probe reads of an answer; the rest does not matter to it.
const ANSWER_BYTES_MAX: usize = 10 * 1024;

/// Asks by HTTP or TCP; `None` if the probe is of neither kind.
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
    if probe.grpc.is_some() {
        return Some(ProbeOutcome::Failure(
            "gRPC probes are not supported by this node yet; use httpGet or tcpSocket".to_owned(),
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
    if action.scheme.as_deref() == Some("HTTPS") {
        return Err("HTTPS probes are not supported by this node yet; use scheme HTTP or tcpSocket".to_owned());
    }
    let url = format!("http://{to}{path}");
    let exchange = async {
        let stream = dial(switch, to, timeout).await.map_err(|why| format!("Get \"{url}\": {why}"))?;
        let request = request(action, to, &path)?;
        let lost = |err: hyper::Error| format!("Get \"{url}\": {err}");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(lost)?;
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
    };
    let late = format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
    tokio::time::timeout(timeout, exchange).await.unwrap_or(Err(late))
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
}
