//! Port-forwarding in WebSocket messages: either as a tunnel for SPDY, or as two channels a port.

use crate::spdy;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use std::future::Future;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// A message may be this long; clients send 32 KiB at most.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How much may be on its way between the messages and the session inside.
const TUNNEL_BYTES: usize = 64 << 10;
/// A channel is one byte, and a port has two.
pub(crate) const PORTS_MAX: usize = 127;
/// Messages that wait to be written: then pods are read no further.
const MESSAGES_QUEUE_MAX: usize = 32;

/// The answer to a client's `Sec-WebSocket-Key`.
pub(crate) fn accept_key(key: &str) -> String {
    tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes())
}

/// The server's end of a connection that was switched.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// SPDY inside of binary messages: a stream of bytes, whatever the messages' boundaries are.
pub(crate) async fn tunnel<S, D, F, P>(stream: S, dial: D) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    D: Fn(u16) -> F,
    F: Future<Output = Result<P, String>> + Send + 'static,
    P: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut messages_out, mut messages_in) = accept(stream).await.split();
    let (inside, outside) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut from_session, mut to_session) = tokio::io::split(outside);
    let down = async {
        let mut buffer = BytesMut::with_capacity(TUNNEL_BYTES);
        while from_session.read_buf(&mut buffer).await? > 0 {
            messages_out.send(Message::Binary(buffer.split().freeze())).await.map_err(io::Error::other)?;
            buffer.reserve(TUNNEL_BYTES);
        }
        messages_out.close().await.map_err(io::Error::other)
    };
    let up = async {
        while let Some(message) = messages_in.next().await {
            match message.map_err(io::Error::other)? {
                Message::Binary(bytes) => to_session.write_all(&bytes).await?,
                Message::Close(_) => break,
                _ => {}
            }
        }
        to_session.shutdown().await
    };
    let session = async { tokio::try_join!(spdy::serve(inside, dial), up).map(drop) };
    tokio::select! {
        result = session => result,
        result = down => result,
    }
}

/// Channel `2n` carries the bytes of the n-th port, channel `2n + 1` what went wrong with it.
pub(crate) async fn channels<S, D, F, P>(stream: S, ports: Vec<u16>, dial: D) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    D: Fn(u16) -> F,
    F: Future<Output = Result<P, String>> + Send + 'static,
    P: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut messages_out, mut messages_in) = accept(stream).await.split();
    let (send, mut sends) = mpsc::channel::<Bytes>(MESSAGES_QUEUE_MAX);
    let mut inputs = Vec::with_capacity(ports.len());
    let mut tasks = JoinSet::new();
    for (channel, port) in (0u8..).step_by(2).zip(ports) {
        // Each channel begins with its port, in two bytes, the lower one first.
        for channel in [channel, channel + 1] {
            let head = message(channel, &port.to_le_bytes());
            messages_out.send(Message::Binary(head)).await.map_err(io::Error::other)?;
        }
        let (input, pieces) = mpsc::channel(MESSAGES_QUEUE_MAX);
        inputs.push(input);
        tasks.spawn(forward(dial(port), channel, pieces, send.clone()));
    }
    drop(send);
    let down = async {
        while let Some(bytes) = sends.recv().await {
            messages_out.send(Message::Binary(bytes)).await.map_err(io::Error::other)?;
        }
        messages_out.close().await.map_err(io::Error::other)
    };
    let up = async {
        while let Some(message) = messages_in.next().await {
            let Message::Binary(bytes) = message.map_err(io::Error::other)? else { continue };
            let Some((channel, bytes)) = bytes.split_first().map(|(channel, _)| (*channel, bytes.slice(1..))) else {
                continue;
            };
            if channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                // A pod that takes no more has said so on its own channel.
                let _closed = input.send(bytes).await;
            }
        }
        Ok(())
    };
    tokio::select! {
        result = up => result,
        result = down => result,
    }
}

fn message(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put_slice(bytes);
    message.freeze()
}

async fn forward<P: AsyncRead + AsyncWrite>(
    dial: impl Future<Output = Result<P, String>>,
    channel: u8,
    mut pieces: mpsc::Receiver<Bytes>,
    send: mpsc::Sender<Bytes>,
) {
    let pod = match dial.await {
        Ok(pod) => pod,
        Err(problem) => {
            // A client that is gone does not want to know.
            let _gone = send.send(message(channel + 1, problem.as_bytes())).await;
            return;
        }
    };
    let (mut reader, mut writer) = tokio::io::split(Box::pin(pod));
    let up = async {
        while let Some(piece) = pieces.recv().await {
            if writer.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; TUNNEL_BYTES / 2];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            if send.send(message(channel, &buffer[..count])).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
