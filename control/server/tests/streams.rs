//! HTTP/2 streams that end early, at one side's wish or the other's: the client must see a whole answer.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the message")]

use bytes::Bytes;
use dhow_client::{Client, Config as ClientConfig};
use dhow_pki::Identity;
use dhow_quic::{Endpoint, StreamHeader, Tls};
use dhow_server::{Config, Server};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

async fn start() -> (Server, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(Config::new(dir.path(), "127.0.0.1:0".parse().unwrap())).await.unwrap();
    (server, dir)
}

fn client(server: &Server, identity: Option<Identity>) -> Client {
    Client::new(ClientConfig {
        server: server.url(),
        others: Vec::new(),
        ca_pem: Some(server.ca_pem().to_owned()),
        identity,
        token: None,
        namespace: "default".to_owned(),
    })
    .unwrap()
}

/// A body that counts what was taken of it.
fn counted(pieces: usize, taken: Arc<AtomicUsize>) -> impl http_body::Body<Data = Bytes, Error = Infallible> {
    StreamBody::new(futures_util::stream::iter((0..pieces).map(move |_| {
        taken.fetch_add(1, Ordering::SeqCst);
        Ok(Frame::data(Bytes::from(vec![b' '; 64 << 10])))
    })))
}

/// There are clients that take a reset for a failure even if the whole answer came before it: the server takes what they
/// send until they are done.
#[tokio::test]
async fn who_is_refused_before_the_body_was_read_hears_why_and_is_not_reset() {
    let (server, _dir) = start().await;
    for (identity, path, code) in [
        (Some(server.admin_identity()), "/version", 405),
        (Some(server.admin_identity()), "/api/v1/namespaces/default/nothings", 404),
        (Some(server.admin_identity()), "/api/v1/namespaces/default/configmaps", 413),
        (None, "/api/v1/namespaces/default/configmaps", 401),
    ] {
        let tls = dhow_pki::client_config(server.ca_pem(), identity, &["h2"]).unwrap();
        let socket = tokio::net::TcpStream::connect(server.local_addr()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = connector.connect("localhost".try_into().unwrap(), socket).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let taken = Arc::new(AtomicUsize::new(0));
        // Six MiB: more than a window, and more than any body that is read.
        let request = Request::post(format!("https://localhost{path}")).header("content-type", "application/json");
        let answer = sender.send_request(request.body(counted(96, taken.clone())).unwrap()).await.unwrap();
        assert_eq!(answer.status().as_u16(), code, "{path}");
        let status = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(serde_json::from_slice::<serde_json::Value>(&status).unwrap()["code"] == code, "{path}");
        assert_eq!(taken.load(Ordering::SeqCst), 96, "{path}: all of the body was taken");
    }
    server.stop().await;
}

/// A node whose pods say one line and then nothing more.
async fn kubelet(
    _request: Request<Incoming>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let line = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"line\n")))]);
    Ok(Response::new(StreamBody::new(futures_util::StreamExt::chain(line, futures_util::stream::pending()))))
}

async fn serve_node(endpoint: Endpoint, server: std::net::SocketAddr) {
    let connection = endpoint.connect(server, "dhow-control").await.unwrap();
    while let Ok((header, stream)) = connection.accept().await {
        assert_eq!(header, StreamHeader::Kubelet);
        tokio::spawn(async move {
            let serving = hyper::server::conn::http1::Builder::new();
            let _ended = serving.serve_connection(TokioIo::new(stream), service_fn(kubelet)).await;
        });
    }
}

#[tokio::test]
async fn a_stop_ends_watches_and_logs_in_order_and_soon() {
    let (server, _dir) = start().await;
    let admin = client(&server, Some(server.admin_identity().clone()));
    let identity = server.issue_node_identity("n1").unwrap();
    let tls = Tls { ca_pem: server.ca_pem().to_owned(), cert_pem: identity.cert_pem, key_pem: identity.key_pem };
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &tls).unwrap();
    tokio::spawn(serve_node(endpoint, server.local_addr()));
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    admin.create("/api/v1/namespaces/default/pods", &pod).await.unwrap();
    let log = "/api/v1/namespaces/default/pods/p/log?follow=true";
    let mut followed = loop {
        let answer = admin.stream(Method::GET, log, "*/*", None).await.unwrap();
        if answer.status().is_success() {
            break answer.into_body();
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(followed.frame().await.unwrap().unwrap().into_data().unwrap(), "line\n");
    let mut bodies = vec![followed];
    for _ in 0..20 {
        let path = "/api/v1/namespaces?watch=1&resourceVersion=0";
        let mut watched = admin.stream(Method::GET, path, "*/*", None).await.unwrap().into_body();
        watched.frame().await.unwrap().unwrap();
        bodies.push(watched);
    }
    let stopping = tokio::spawn(server.stop());
    for mut body in bodies {
        // What is on its way may come yet, and then the end: not an error, as it would be for one that was waited for in
        // vain and cut off.
        while let Some(frame) = body.frame().await {
            frame.unwrap();
        }
    }
    stopping.await.unwrap();
}
