//! Asks by gRPC whether a server is well (`grpc.health.v1.Health/Check`).
//!
//! The two messages have one field each: the name of a service in the question, a status in the answer. That is all of
//! protobuf that is needed here.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dhow_types::Chain;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

/// The longest answer that is read: it has a dozen bytes.
const ANSWER_BYTES_MAX: usize = 4096;
/// What a server says of itself.
const SERVING: u8 = 1;

/// Asks whether a service is well; an empty name means the server itself.
pub(crate) async fn check(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    to: SocketAddr,
    service: &str,
) -> Result<(), String> {
    let lost = |err: hyper::Error| format!("error: health rpc failed: {}", Chain(&err));
    let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(lost)?;
    let request = http::Request::post(format!("http://{to}/grpc.health.v1.Health/Check"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(Full::new(question(service)))
        .map_err(|err| format!("the probe's request is malformed: {err}"))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(lost)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|err| format!("error: health rpc failed: {err}"))?;
        let status = head.headers.get("grpc-status").or_else(|| body.trailers()?.get("grpc-status"));
        let status = status.and_then(|value| value.to_str().ok()).unwrap_or("none").to_owned();
        match (status.as_str(), serving(&body.to_bytes())) {
            ("0", Some(SERVING)) => Ok(()),
            ("0", state) => Err(format!("service unhealthy (responded with status {})", state.unwrap_or(0))),
            (status, _) => Err(format!("error: health rpc failed: grpc-status {status}, http {}", head.status)),
        }
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ended = connection => exchange.await,
    }
}

/// One message, uncompressed.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_length(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(&message);
    framed.freeze()
}

fn put_length(out: &mut BytesMut, mut length: usize) {
    while length >= 0x80 {
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
}

/// The status in an answer; `None` if there is none that can be read. One that is not named is 0.
fn serving(mut body: &[u8]) -> Option<u8> {
    let compressed = body.try_get_u8().ok()? != 0;
    let length = body.try_get_u32().ok()? as usize;
    let message = body.get(..length).filter(|_| !compressed)?;
    match message {
        [] => Some(0),
        [0x08, status] if *status < 0x80 => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use http::{HeaderMap, HeaderValue, Response};
    use http_body_util::StreamBody;
    use hyper::body::{Frame, Incoming};
    use hyper::service::service_fn;
    use tokio::io::duplex;

    /// What a server that gives this message and status is taken for.
    async fn ask(service: &str, message: &'static [u8], status: &'static str) -> Result<(), String> {
        let (client, server) = duplex(4096);
        let expected = question(service);
        let served = tokio::spawn(async move {
            let answer = service_fn(move |request: http::Request<Incoming>| {
                let expected = expected.clone();
                async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), expected);
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static(status));
                    let frames = [Frame::data(Bytes::from_static(message)), Frame::trailers(trailers)];
                    let frames = futures_util::stream::iter(frames.map(Ok::<_, Infallible>));
                    Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.serve_connection(TokioIo::new(server), answer).await.ok();
        });
        let answer = check(client, "10.64.0.2:9000".parse().unwrap(), service).await;
        served.abort();
        answer
    }

    #[tokio::test]
    async fn only_who_says_that_it_serves_is_well() {
        const WELL: &[u8] = &[0, 0, 0, 0, 2, 8, 1];
        assert_eq!(ask("", WELL, "0").await, Ok(()));
        assert_eq!(ask("shop.Cart", WELL, "0").await, Ok(()));
        for (message, status, says) in [
            (&[0, 0, 0, 0, 2, 8, 2][..], "0", "responded with status 2"),
            (&[0, 0, 0, 0, 0], "0", "responded with status 0"),
            (&[0, 0, 0, 0, 9, 8, 1], "0", "responded with status 0"),
            (&[], "12", "grpc-status 12"),
            (WELL, "5", "grpc-status 5"),
        ] {
            let why = ask("", message, status).await.unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }

    #[tokio::test]
    async fn who_does_not_speak_it_is_not_well() {
        let (client, server) = duplex(64);
        drop(server);
        assert!(check(client, "10.64.0.2:9000".parse().unwrap(), "").await.is_err());
    }

    #[test]
    fn a_long_name_has_a_long_length() {
        let name = "x".repeat(200);
        assert_eq!(question(&name)[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
    }
}
