//! `exec` and `attach`: a WebSocket of its own, over which both sides send messages of channels (`v5.channel.k8s.io`): the
//! first byte of each message says which.

use crate::conn::{CONNECT_TIMEOUT, CONNECT_TIMEOUT_OF_SEVERAL, Client, ClientError, dial, http_error, refusal};
use crate::target::Server;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde_json::{Value as Tree, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};

/// The only sub-protocol that can end the program's input.
const PROTOCOL: &str = "v5.channel.k8s.io";

/// The channels.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// What a message may be long that we read; servers send 64 KiB.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// What a message is long that we send: as other clients do, and far below what servers take.
const PIECE_BYTES: usize = 32 << 10;

/// A refusal that is longer is none of an API server.
const REFUSAL_BYTES_MAX: usize = 1 << 20;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What comes from a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// The program wrote this to its standard output.
    Stdout(Bytes),
    /// And this to its standard error.
    Stderr(Bytes),
    /// It has ended, or was not started: the `Status` that says how it went. Nothing comes after it.
    Ended(Tree),
}

/// The way to the program.
pub struct SessionInput {
    socket: SplitSink<Socket, Message>,
    server: Arc<Server>,
}

/// The way from the program.
pub struct SessionOutput {
    socket: SplitStream<Socket>,
    server: Arc<Server>,
}

impl Client {
    /// Opens a session at `path`, which ends in `exec` or `attach` and a query. One server after the other is asked while
    /// they cannot be reached or cannot serve; a refusal is [`ClientError::Api`].
    pub async fn session(&self, path: &str) -> Result<(SessionInput, SessionOutput), ClientError> {
        let choice = self.choice();
        let mut tls = ClientConfig::clone(&choice.tls);
        // A connection of HTTP/2 is shared, and cannot be switched.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = Arc::new(tls);
        let timeout = if choice.servers.len() > 1 { CONNECT_TIMEOUT_OF_SEVERAL } else { CONNECT_TIMEOUT };
        let mut failure = None;
        for server in &choice.servers {
            match self.open(server, tls.clone(), path, timeout).await {
                Ok(socket) => {
                    let (sink, stream) = socket.split();
                    let input = SessionInput { socket: sink, server: server.clone() };
                    return Ok((input, SessionOutput { socket: stream, server: server.clone() }));
                }
                Err(error) if error.is(503) || matches!(error, ClientError::Connect { .. }) => {
                    failure = failure.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.expect("there is at least one server"))
    }

    async fn open(
        &self,
        server: &Arc<Server>,
        tls: Arc<ClientConfig>,
        path: &str,
        timeout: Duration,
    ) -> Result<Socket, ClientError> {
        let lost = |source| ClientError::Connect { server: server.url.clone(), source };
        let stream = dial(&server.host, server.port, tls, timeout).await.map_err(lost)?;
        let broken = |source| http_error(server, source);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends when it is switched, or with the request; what broke the request says.
        tokio::spawn(async move { drop(connection.with_upgrades().await) });
        let key = generate_key();
        let mut request = Request::get(path)
            .header(header::HOST, &server.authority)
            .header(header::USER_AGENT, concat!("dhow/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
        if let Some(token) = self.token() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await.map_err(broken)?;
        let status = answer.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let body = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
            let body = body.map_err(|error| unreadable(server, error))?.to_bytes();
            return Err(refusal(status.as_u16(), &body));
        }
        let has = |name, value: &str| answer.headers().get(name).is_some_and(|found| found == value);
        if !has(header::SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()))
            || !has(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        {
            return Err(unreadable(server, format!("it does not speak {PROTOCOL}")));
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(broken)?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await)
    }
}

fn unreadable(server: &Server, what: impl std::fmt::Display) -> ClientError {
    ClientError::Body { server: server.url.clone(), what: what.to_string() }
}

impl SessionInput {
    /// Gives the program something to read.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.send(STDIN, piece).await?;
        }
        Ok(())
    }

    /// Tells that the terminal has this size, in characters.
    pub async fn resize(&mut self, width: u16, height: u16) -> Result<(), ClientError> {
        self.send(RESIZE, json!({"Width": width, "Height": height}).to_string().as_bytes()).await
    }

    /// Ends the program's input.
    pub async fn end(&mut self) -> Result<(), ClientError> {
        self.send(CLOSE, &[STDIN]).await
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), ClientError> {
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(channel);
        message.put_slice(bytes);
        let sent = self.socket.send(Message::Binary(message.freeze())).await;
        sent.map_err(|error| unreadable(&self.server, error))
    }
}

impl SessionOutput {
    /// What comes next; `None` when the server has closed the session, which it does without a [`Heard::Ended`] only if
    /// something broke.
    pub async fn next(&mut self) -> Result<Option<Heard>, ClientError> {
        loop {
            let message = match self.socket.next().await {
                None | Some(Err(tungstenite::Error::ConnectionClosed)) => return Ok(None),
                Some(message) => message.map_err(|error| unreadable(&self.server, error))?,
            };
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => return Ok(None),
                _ => continue,
            };
            if let Some(heard) = read(&bytes) {
                return Ok(Some(heard));
            }
        }
    }
}

/// What a message says. Servers begin with an empty one.
fn read(message: &Bytes) -> Option<Heard> {
    let (channel, bytes) = (*message.first()?, message.slice(1..));
    match channel {
        _ if bytes.is_empty() => None,
        STDOUT => Some(Heard::Stdout(bytes)),
        STDERR => Some(Heard::Stderr(bytes)),
        ERROR => {
            // Old servers say only why it failed.
            let said = || json!({"status": "Failure", "message": String::from_utf8_lossy(&bytes)});
            Some(Heard::Ended(serde_json::from_slice(&bytes).unwrap_or_else(|_| said())))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_messages_first_byte_says_what_it_is() {
        for (message, want) in [
            (&b"\x01"[..], None),
            (b"", None),
            (b"\x01out", Some(Heard::Stdout(Bytes::from_static(b"out")))),
            (b"\x02err", Some(Heard::Stderr(Bytes::from_static(b"err")))),
            (b"\x03{\"status\":\"Success\"}", Some(Heard::Ended(json!({"status": "Success"})))),
            (b"\x03no node", Some(Heard::Ended(json!({"status": "Failure", "message": "no node"})))),
            (b"\x09?", None),
        ] {
            assert_eq!(read(&Bytes::copy_from_slice(message)), want, "{message:?}");
        }
    }
}
