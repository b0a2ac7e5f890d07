//! Sockets: accepts connections, shakes hands, and gives every request to its handler.

use crate::app::App;
use crate::{auth, route};
use dhow_gather::Gather;
use dhow_tasks::{Stop, Tasks};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

/// A handshake that takes longer is somebody who only holds a socket.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests may go on once the server stops; watches end at once.
const DRAIN: Duration = Duration::from_secs(5);
/// Requests at a time on one HTTP/2 connection. An agent or an informer factory has a watch for each kind; a client
/// that creates thousands of objects waits for earlier answers instead.
const STREAMS_MAX: u32 = 1000;
/// What one HTTP/2 connection may have under way towards us, so that uploads are not slowed down by round trips.
const WINDOW_BYTES: u32 = 1 << 20;
/// After an error of `accept` (no more file descriptors) the loop rests for this long instead of spinning.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Connections at a time. Each may cost some hundred KiB of buffers; beyond this number the next client waits in the
/// system's own queue.
const CONNECTIONS_MAX: usize = 10_000;

/// Takes connections until told to stop. Each is one task.
pub(crate) async fn accept(listener: TcpListener, tls: TlsAcceptor, app: Arc<App>, tasks: Tasks, stop: Stop) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Some(Ok(place)) = stop.or(places.clone().acquire_owned()).await else { return };
        let Some(accepted) = stop.or(listener.accept()).await else { return };
        match accepted {
            Ok((socket, _)) => {
                let (tls, app, stop) = (tls.clone(), app.clone(), stop.clone());
                tasks.spawn("connection", async move {
                    connection(socket, tls, app, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn connection(socket: TcpStream, tls: TlsAcceptor, app: Arc<App>, stop: Stop) {
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%error, "the socket keeps Nagle's algorithm");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
        Err(_) => return debug!("TLS handshake timed out"),
    };
    let (_, session) = stream.get_ref();
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    let certificate =
        session.peer_certificates().and_then(|chain| chain.first()).and_then(|cert| auth::certificate_user(cert));
    let certificate = certificate.map(Arc::new);
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (app, certificate) = (app.clone(), certificate.clone());
        // Large, and moved several times on its way into a task.
        Box::pin(async move { Ok::<_, Infallible>(route::handle(app, certificate, request).await) })
    });
    let result = if is_h2 {
        let io = Gather::new(stream);
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(4 * WINDOW_BYTES)
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20));
        let mut serving = Box::pin(builder.serve_connection(TokioIo::new(io.clone()), service));
        let served = async move {
            tokio::select! {
                result = serving.as_mut() => result,
                () = stop.stopped() => {
                    serving.as_mut().graceful_shutdown();
                    drain(serving).await
                }
            }
        };
        io.driving(served).await
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new());
        let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
        tokio::select! {
            result = serving.as_mut() => result,
            () = stop.stopped() => {
                serving.as_mut().graceful_shutdown();
                drain(serving).await
            }
        }
    };
    if let Err(error) = result {
        debug!(%error, "connection ended");
    }
}

async fn drain(serving: impl Future<Output = hyper::Result<()>>) -> hyper::Result<()> {
    tokio::time::timeout(DRAIN, serving).await.unwrap_or(Ok(()))
}
