//! Logs and port-forwarding, with a node that is only as much of an agent as they need.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use bytes::Bytes;
use dhow_client::{Client, Config as ClientConfig};
use dhow_quic::{Endpoint, StreamHeader, Tls};
use dhow_server::{Config, Server};
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// The kubelet API of a node whose pods say what was asked, and echo in capitals.
async fn kubelet(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let target = request.uri().path_and_query().unwrap().to_string();
    let mut answer = Response::new(Full::new(Bytes::new()));
    if target.starts_with("/portForward/default/p/") && !target.ends_with("/81") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut pod = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = pod.read(&mut buffer).await {
                pod.write_all(&buffer[..count].to_ascii_uppercase()).await.unwrap();
            }
        });
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        answer.headers_mut().insert("upgrade", "dhow-portforward".parse().unwrap());
    } else if target.starts_with("/portForward/") {
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        *answer.body_mut() = Full::new("connection refused".into());
    } else if target.contains("previous") {
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        *answer.body_mut() = Full::new("previous terminated container \"c\" in pod \"p\" not found".into());
    } else {
        *answer.body_mut() = Full::new(format!("asked {target}\n").into());
    }
    Ok(answer)
}

async fn serve_node(endpoint: Endpoint, server: std::net::SocketAddr) {
    let connection = endpoint.connect(server, "dhow-control").await.unwrap();
    while let Ok((header, stream)) = connection.accept().await {
        assert_eq!(header, StreamHeader::Kubelet);
        tokio::spawn(async move {
            let serving = hyper::server::conn::http1::Builder::new();
            let _ended = serving.serve_connection(TokioIo::new(stream), service_fn(kubelet)).with_upgrades().await;
        });
    }
}

struct Cluster {
    server: Server,
    client: Client,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(Config::new(dir.path(), "127.0.0.1:0".parse().unwrap())).await.unwrap();
        let client = Client::new(ClientConfig {
            server: server.url(),
            others: Vec::new(),
            ca_pem: Some(server.ca_pem().to_owned()),
            identity: Some(server.admin_identity().clone()),
            token: None,
            namespace: "default".to_owned(),
        })
        .unwrap();
        let identity = server.issue_node_identity("n1").unwrap();
        let tls = Tls { ca_pem: server.ca_pem().to_owned(), cert_pem: identity.cert_pem, key_pem: identity.key_pem };
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &tls).unwrap();
        tokio::spawn(serve_node(endpoint, server.local_addr()));
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "nodeName": "n1", "containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}],
        }});
        client.create("/api/v1/namespaces/default/pods", &pod).await.unwrap();
        let cluster = Cluster { server, client, _dir: dir };
        // The node dials while we go on; until it is there, the API says so.
        while cluster.log("?container=c").await.0 == 503 {
            tokio::task::yield_now().await;
        }
        cluster
    }

    async fn log(&self, query: &str) -> (u16, String) {
        let path = format!("/api/v1/namespaces/default/pods/p/log{query}");
        let answer = self.client.request(Method::GET, &path, "*/*", None).await.unwrap();
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let message = serde_json::from_str::<Value>(&text).ok().and_then(|s| Some(s["message"].as_str()?.to_owned()));
        (answer.status.as_u16(), message.unwrap_or(text))
    }
}

#[tokio::test]
async fn logs_come_from_the_pods_node() {
    let cluster = Cluster::start().await;
    for (query, code, text) in [
        (
            "?container=c&follow=true&tailLines=5&pretty=true",
            200,
            "asked /containerLogs/default/p/c?follow=true&tailLines=5\n",
        ),
        (
            "?container=c&sinceTime=2026-01-01T00:00:00%2B01:00",
            200,
            "asked /containerLogs/default/p/c?sinceTime=2026-01-01T00:00:00%2B01:00\n",
        ),
        ("", 400, "a container name must be specified for pod p, choose one of: [c d]"),
        ("?container=x", 400, "container x is not valid for pod p"),
        ("?container=c&previous=true", 400, "previous terminated container \"c\" in pod \"p\" not found"),
    ] {
        assert_eq!(cluster.log(query).await, (code, text.to_owned()));
    }
    cluster.server.stop().await;
}

#[tokio::test]
async fn ports_are_forwarded_in_web_socket_channels() {
    let cluster = Cluster::start().await;
    let server = &cluster.server;
    let tls = dhow_pki::client_config(server.ca_pem(), Some(server.admin_identity()), &["http/1.1"]).unwrap();
    let socket = tokio::net::TcpStream::connect(server.local_addr()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let mut stream = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
    let head = "GET /api/v1/namespaces/default/pods/p/portforward?ports=80,81 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
                Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                Sec-WebSocket-Protocol: v5.channel.k8s.io, v4.channel.k8s.io\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(answer.contains("sec-websocket-protocol: v4.channel.k8s.io"), "{answer}");
    assert!(answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
    let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    socket.send(Message::Binary(Bytes::from_static(b"\0hello"))).await.unwrap();
    let mut channels = [const { Vec::new() }; 4];
    while channels[0].len() < 7 || channels[3].len() < 3 {
        let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() else { continue };
        channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
    }
    assert_eq!(channels[0], b"P\0HELLO");
    assert_eq!(channels[1], b"P\0");
    let problem = String::from_utf8_lossy(&channels[3][2..]).into_owned();
    assert_eq!(problem, "error forwarding port 81 to pod p: connection refused");
    cluster.server.stop().await;
}
