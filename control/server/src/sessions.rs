//! `exec` and `attach`: the client's protocol ends here, the node sees frames of channels after an upgrade. The channels
//! are the same on both sides, so that nothing is decided here.
//!
//! A client speaks WebSocket, one message a piece, its first byte the channel; or SPDY, one stream a channel.

use crate::answer::{self, Answer};
use crate::body::RequestBody;
use crate::kubelet::{self, ask, container_of, escape, pod_of, refusal};
use crate::route::{Call, header};
use crate::spdy::{self, Frame, Headers, Out};
use crate::websocket;
use bytes::{BufMut, Bytes, BytesMut};
use dhow_api::meta;
use dhow_api::status::ApiError;
use dhow_gate::write::Name;
use dhow_quic::channels::{Channel, read_frame, write_frame};
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// The protocol between us and the node.
const NODE_PROTOCOL: &str = "dhow-channels";
/// The sub-protocols of WebSocket that we speak, the best first. The fifth can end the program's input.
const MESSAGES: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// That of SPDY.
const STREAMS: &str = "v4.channel.k8s.io";
/// How long a client may take to open its streams.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client's input is read on after the program's end. A socket that is closed while something unread waits is
/// reset, and the reset overtakes what the client has not read yet: output, exit status, all of it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of it: a client that goes on in spite of the end of its session has no claim to an ordered one.
const LEAVE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What is asked of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Run a command.
    Exec,
    /// Join the program that runs.
    Attach,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Exec => "exec",
            Kind::Attach => "attach",
        }
    }
}

/// The parameters of a session, and how a client says them.
const FLAGS: [(&str, Channel); 3] =
    [("stdin", Channel::Stdin), ("stdout", Channel::Stdout), ("stderr", Channel::Stderr)];

/// GET or POST `/exec` and `/attach`.
pub(crate) async fn open(call: &Call<'_>, kind: Kind, request: Request<RequestBody>) -> Result<Answer, ApiError> {
    let name = Name { namespace: &call.target.namespace, name: &call.target.name };
    let pod = pod_of(call.app, call.kind, name).await?;
    let phase = meta::text(&pod, "status.phase");
    if matches!(phase, "Succeeded" | "Failed") {
        let word = kind.word();
        let message = format!("cannot {word} into a container in a completed pod; current phase is {phase}");
        return Err(ApiError::bad_request(message));
    }
    let container = container_of(&pod, call.query.non_empty("container"))?;
    let node = meta::text(&pod, "spec.nodeName");
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", name.name)));
    }
    let wanted = wanted(call);
    if wanted.is_empty() {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let (protocol, mut switch) = negotiate(call)?;
    let tty = is_set(call, "tty");
    let mut path = format!("/{}/{}/{}/{container}?tty={tty}", kind.word(), name.namespace, name.name);
    for (flag, _) in FLAGS.iter().filter(|(_, channel)| wanted.contains(channel)) {
        path.push_str(&format!("&{flag}=true"));
    }
    for word in call.query.all("command") {
        path.push_str(&format!("&command={}", escape(word)));
    }
    let answer = ask(call.app, node, &path, Some(NODE_PROTOCOL)).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(answer).await);
    }
    let stop = call.app.stop.clone();
    call.app.streams.spawn("session", async move {
        let session = async move {
            let client = TokioIo::new(hyper::upgrade::on(request).await.map_err(io::Error::other)?);
            let node = TokioIo::new(hyper::upgrade::on(answer).await.map_err(io::Error::other)?);
            match protocol {
                Protocol::Messages => messages(client, node, &wanted).await,
                Protocol::Streams => streams(client, node, expected(wanted, tty)).await,
            }
        };
        if let Some(Err(error)) = stop.or(session).await {
            tracing::debug!(%error, "a session ended");
        }
    });
    switch.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(switch)
}

fn is_set(call: &Call<'_>, flag: &str) -> bool {
    call.query.non_empty(flag).is_some_and(|value| matches!(value, "true" | "1"))
}

/// The channels that the client asks for. A terminal has no second output.
fn wanted(call: &Call<'_>) -> Vec<Channel> {
    let tty = is_set(call, "tty");
    let asked = FLAGS.iter().filter(|(flag, _)| is_set(call, flag)).map(|(_, channel)| *channel);
    asked.filter(|channel| !tty || *channel != Channel::Stderr).collect()
}

/// The streams that a client of SPDY opens.
fn expected(mut wanted: Vec<Channel>, tty: bool) -> Vec<Channel> {
    wanted.push(Channel::Error);
    if tty {
        wanted.push(Channel::Resize);
    }
    wanted
}

/// The ways in which a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Messages,
    Streams,
}

/// Chooses the protocol and words the answer that switches to it.
fn negotiate(call: &Call<'_>) -> Result<(Protocol, Answer), ApiError> {
    let mut answer = Response::new(answer::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = header(call.headers, UPGRADE).unwrap_or("");
    if upgrade.eq_ignore_ascii_case(kubelet::SPDY) {
        if !kubelet::offered(call, kubelet::STREAM_VERSION).iter().any(|version| version == STREAMS) {
            return Err(ApiError::bad_request(format!("the server speaks only {STREAMS} over {}", kubelet::SPDY)));
        }
        answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(kubelet::SPDY));
        answer.headers_mut().insert(kubelet::STREAM_VERSION, HeaderValue::from_static(STREAMS));
        return Ok((Protocol::Streams, answer));
    }
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let offered = kubelet::offered(call, kubelet::WS_PROTOCOL);
    let spoken = MESSAGES.into_iter().find(|protocol| offered.iter().any(|offer| offer == protocol));
    let spoken =
        spoken.ok_or_else(|| ApiError::bad_request(format!("the server speaks only {}", MESSAGES.join(" and "))))?;
    kubelet::accept_websocket(call, &mut answer, spoken)?;
    Ok((Protocol::Messages, answer))
}

/// Carries a session in messages, until either side ends it.
async fn messages<C, N>(client: C, node: N, wanted: &[Channel]) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin + Send,
    N: AsyncRead + AsyncWrite + Send,
{
    let (mut to_client, mut from_client) = websocket::accept(client).await.split();
    let (mut from_node, mut to_node) = tokio::io::split(Box::pin(node));
    // Clients take an empty message on an output for the sign that the session has begun.
    let first = wanted.iter().find(|channel| **channel != Channel::Stdin).unwrap_or(&Channel::Error);
    to_client.send(message(*first, b"")).await.map_err(io::Error::other)?;
    let down = async {
        while let Some((channel, bytes)) = read_frame(&mut from_node).await? {
            to_client.send(message(channel, &bytes)).await.map_err(io::Error::other)?;
        }
        // Clients take every other end for a failure.
        let normal = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
        to_client.send(Message::Close(Some(normal))).await.map_err(io::Error::other)
    };
    let up = async {
        let mut to_node = Input::new(&mut to_node);
        while let Some(message) = from_client.next().await {
            match message.map_err(io::Error::other)? {
                Message::Binary(bytes) => {
                    if let Some((number, bytes)) = bytes.split_first()
                        && let Some(channel) = Channel::of(*number)
                    {
                        to_node.put(channel, bytes).await;
                    }
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        Ok(())
    };
    tokio::select! {
        result = down => result?,
        result = up => return result,
    }
    let leave = async {
        let mut left = LEAVE_BYTES_MAX;
        while let Some(Ok(message)) = from_client.next().await {
            left = left.saturating_sub(message.len() as u64);
            if left == 0 || message.is_close() {
                return;
            }
        }
    };
    // However the client leaves: it has heard everything.
    let _left = tokio::time::timeout(LEAVE_TIMEOUT, leave).await;
    Ok(())
}

/// What the client sends to the program. It is no fault of the session if nobody hears it any more: what the program
/// has said, and how it ended, is still on its way to the client.
struct Input<W> {
    node: Option<W>,
}

impl<W: AsyncWrite + Unpin> Input<W> {
    fn new(node: W) -> Self {
        Self { node: Some(node) }
    }

    async fn put(&mut self, channel: Channel, bytes: &[u8]) {
        let Some(node) = &mut self.node else { return };
        if let Err(error) = write_frame(node, channel, bytes).await {
            tracing::trace!(%error, "a session's program hears no more");
            self.node = None;
        }
    }
}

fn message(channel: Channel, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel as u8);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// What is written to a client of SPDY, frame by frame.
struct Writer<W> {
    io: W,
    headers: Headers,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    async fn put(&mut self, frame: &Out) -> io::Result<()> {
        let mut out = BytesMut::new();
        spdy::put(&mut out, frame, &mut self.headers)?;
        self.io.write_all(&out).await?;
        self.io.flush().await
    }
}

/// Carries a session in streams, until either side ends it.
async fn streams<C, N>(client: C, node: N, expected: Vec<Channel>) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Send,
    N: AsyncRead + AsyncWrite + Send,
{
    let (mut reader, io) = tokio::io::split(Box::pin(client));
    let (mut from_node, mut to_node) = tokio::io::split(Box::pin(node));
    let mut headers = Headers::new()?;
    let mut writer = Writer { io, headers: Headers::new()? };
    let opening = open_streams(&mut reader, &mut headers, &mut writer, &expected);
    let ids = tokio::time::timeout(STREAMS_TIMEOUT, opening).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let writer = Mutex::new(writer);
    let down = async {
        while let Some((channel, bytes)) = read_frame(&mut from_node).await? {
            if let Some(id) = ids.get(&channel) {
                writer.lock().await.put(&Out::Data { id: *id, bytes, fin: false }).await?;
            }
        }
        for id in ids.values() {
            writer.lock().await.put(&Out::Data { id: *id, bytes: Bytes::new(), fin: true }).await?;
        }
        writer.lock().await.io.shutdown().await
    };
    let up = async {
        let mut to_node = Input::new(&mut to_node);
        while let Some(frame) = spdy::read_frame(&mut reader, &mut headers).await? {
            match frame {
                Frame::Data { id, bytes, fin } => {
                    let Some(channel) = ids.iter().find(|(_, known)| **known == id).map(|(channel, _)| *channel) else {
                        continue;
                    };
                    if !bytes.is_empty() {
                        to_node.put(channel, &bytes).await;
                    }
                    if fin && channel == Channel::Stdin {
                        to_node.put(Channel::Close, &[Channel::Stdin as u8]).await;
                    }
                }
                Frame::Ping { id } if id % 2 == 1 => writer.lock().await.put(&Out::Ping { id }).await?,
                Frame::GoAway => break,
                Frame::Open { .. } | Frame::Reset { .. } | Frame::Ping { .. } | Frame::Other => {}
            }
        }
        Ok(())
    };
    tokio::select! {
        result = down => result?,
        result = up => return result,
    }
    // No frames any more: the one that was being read is cut.
    let mut nowhere = tokio::io::sink();
    let leave = async { tokio::io::copy(&mut reader.take(LEAVE_BYTES_MAX), &mut nowhere).await };
    // However the client leaves: it has heard everything.
    let _left = tokio::time::timeout(LEAVE_TIMEOUT, leave).await;
    Ok(())
}

/// Waits until the client has opened its streams; gives their numbers.
async fn open_streams(
    reader: &mut (impl AsyncRead + Unpin),
    headers: &mut Headers,
    writer: &mut Writer<impl AsyncWrite + Unpin>,
    expected: &[Channel],
) -> io::Result<BTreeMap<Channel, u32>> {
    let mut ids = BTreeMap::new();
    while expected.iter().any(|channel| !ids.contains_key(channel)) {
        match spdy::read_frame(reader, headers).await? {
            Some(Frame::Open { id, headers, .. }) => {
                let ty = headers.iter().find(|(name, _)| name == "streamtype").map_or("", |(_, value)| value.as_str());
                let channel = match ty {
                    "error" => Channel::Error,
                    "stdin" => Channel::Stdin,
                    "stdout" => Channel::Stdout,
                    "stderr" => Channel::Stderr,
                    "resize" => Channel::Resize,
                    other => return Err(io::Error::other(format!("a stream of the unknown type `{other}`"))),
                };
                ids.insert(channel, id);
                writer.put(&Out::Reply { id }).await?;
            }
            Some(Frame::Ping { id }) if id % 2 == 1 => writer.put(&Out::Ping { id }).await?,
            Some(Frame::GoAway) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(_) => {}
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    const STATUS: &[u8] = br#"{"status":"Success"}"#;

    /// A node whose program says on stdout what it hears, something on stderr at the end of its input, and then ends.
    async fn node(mut io: DuplexStream) {
        while let Some((channel, bytes)) = read_frame(&mut io).await.unwrap() {
            match channel {
                Channel::Stdin => write_frame(&mut io, Channel::Stdout, &bytes.to_ascii_uppercase()).await.unwrap(),
                Channel::Close => break,
                _ => {}
            }
        }
        write_frame(&mut io, Channel::Stderr, b"done").await.unwrap();
        write_frame(&mut io, Channel::Error, STATUS).await.unwrap();
    }

    #[tokio::test]
    async fn a_session_in_messages_ends_in_order() {
        let ((client, server), (to_node, at_node)) = (duplex(4096), duplex(4096));
        let wanted = [Channel::Stdin, Channel::Stdout, Channel::Stderr];
        let session = tokio::spawn(async move { messages(server, to_node, &wanted).await });
        let node = tokio::spawn(node(at_node));
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        client.send(message(Channel::Stdin, b"hello")).await.unwrap();
        // What is no message of a session is passed over.
        client.send(Message::Binary(Bytes::new())).await.unwrap();
        client.send(Message::Binary(Bytes::from_static(&[9, 9]))).await.unwrap();
        client.send(message(Channel::Close, &[0])).await.unwrap();
        let mut heard = Vec::new();
        let end = loop {
            match client.next().await.unwrap().unwrap() {
                Message::Binary(bytes) => heard.push((bytes[0], bytes.slice(1..))),
                Message::Close(frame) => break frame,
                other => panic!("{other:?}"),
            }
        };
        let expected = [(1, &b""[..]), (1, b"HELLO"), (2, b"done"), (3, STATUS)];
        assert_eq!(heard, expected.map(|(channel, bytes)| (channel, Bytes::copy_from_slice(bytes))));
        assert_eq!(end.unwrap().code, CloseCode::Normal, "clients take every other end for a failure");
        drop(client);
        session.await.unwrap().unwrap();
        node.await.unwrap();
    }

    #[tokio::test]
    async fn a_session_in_streams_waits_for_all_of_them_and_ends_in_order() {
        let ((client, server), (to_node, at_node)) = (duplex(4096), duplex(4096));
        let wanted = expected(vec![Channel::Stdin, Channel::Stdout, Channel::Stderr], false);
        let session = tokio::spawn(async move { streams(server, to_node, wanted).await });
        let node = tokio::spawn(node(at_node));
        let (mut reader, io) = tokio::io::split(client);
        let mut writer = Writer { io, headers: Headers::new().unwrap() };
        for (id, ty) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            let open = spdy::open_frame(id, &[("streamtype", ty)], &mut writer.headers).unwrap();
            writer.io.write_all(&open).await.unwrap();
        }
        writer.put(&Out::Data { id: 3, bytes: Bytes::from_static(b"hello"), fin: true }).await.unwrap();
        let (mut heard, mut ended) = (BTreeMap::<u32, Vec<u8>>::new(), Vec::new());
        let mut headers = Headers::new().unwrap();
        while let Some(frame) = spdy::read_frame(&mut reader, &mut headers).await.unwrap() {
            if let Frame::Data { id, bytes, fin } = frame {
                heard.entry(id).or_default().extend(&bytes);
                ended.extend(fin.then_some(id));
            }
        }
        assert_eq!((&heard[&5][..], &heard[&7][..], &heard[&1][..]), (&b"HELLO"[..], &b"done"[..], STATUS));
        ended.sort_unstable();
        assert_eq!(ended, [1, 3, 5, 7]);
        writer.io.shutdown().await.unwrap();
        session.await.unwrap().unwrap();
        node.await.unwrap();
    }

    /// A node whose program says something and ends without having read its input.
    async fn deaf_node(mut io: DuplexStream) {
        write_frame(&mut io, Channel::Stdout, b"early").await.unwrap();
        write_frame(&mut io, Channel::Error, STATUS).await.unwrap();
    }

    /// More than fits into the pipes between the client and the program.
    const UNREAD: [u8; 4096] = [b'x'; 4096];
    const UNREAD_TIMES: usize = 64;

    #[tokio::test]
    async fn input_that_nobody_reads_does_not_cut_off_messages() {
        let ((client, server), (to_node, at_node)) = (duplex(4096), duplex(4096));
        let session = tokio::spawn(async move { messages(server, to_node, &[Channel::Stdin, Channel::Stdout]).await });
        deaf_node(at_node).await;
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        for _ in 0..UNREAD_TIMES {
            client.send(message(Channel::Stdin, &UNREAD)).await.unwrap();
        }
        let mut heard = Vec::new();
        while let Message::Binary(bytes) = client.next().await.unwrap().unwrap() {
            heard.push(bytes);
        }
        assert_eq!((&heard[1][1..], &heard[2][1..]), (&b"early"[..], STATUS));
        assert!(client.next().await.is_none());
        session.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn input_that_nobody_reads_does_not_cut_off_streams() {
        let ((client, server), (to_node, at_node)) = (duplex(4096), duplex(4096));
        let wanted = expected(vec![Channel::Stdin, Channel::Stdout], false);
        let session = tokio::spawn(async move { streams(server, to_node, wanted).await });
        deaf_node(at_node).await;
        let (mut reader, io) = tokio::io::split(client);
        let mut writer = Writer { io, headers: Headers::new().unwrap() };
        for (id, ty) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
            let open = spdy::open_frame(id, &[("streamtype", ty)], &mut writer.headers).unwrap();
            writer.io.write_all(&open).await.unwrap();
        }
        for _ in 0..UNREAD_TIMES {
            writer.put(&Out::Data { id: 3, bytes: Bytes::from_static(&UNREAD), fin: false }).await.unwrap();
        }
        let (mut heard, mut headers) = (BTreeMap::<u32, Vec<u8>>::new(), Headers::new().unwrap());
        while let Some(frame) = spdy::read_frame(&mut reader, &mut headers).await.unwrap() {
            if let Frame::Data { id, bytes, .. } = frame {
                heard.entry(id).or_default().extend(&bytes);
            }
        }
        assert_eq!((&heard[&5][..], &heard[&1][..]), (&b"early"[..], STATUS));
        writer.io.shutdown().await.unwrap();
        session.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_goes_takes_its_session_along() {
        let ((client, server), (to_node, mut at_node)) = (duplex(4096), duplex(4096));
        let session = tokio::spawn(async move { messages(server, to_node, &[Channel::Stdout]).await });
        drop(client);
        assert!(session.await.unwrap().is_err(), "it broke off");
        assert_eq!(read_frame(&mut at_node).await.unwrap(), None);
    }
}
