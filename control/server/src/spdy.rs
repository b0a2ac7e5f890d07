//! The part of SPDY/3.1 that `kubectl port-forward` speaks: streams with headers, data, and their ends.
//!
//! A connection that is forwarded is two streams with one `requestid`: on `error` the server says why it failed, on
//! `data` the bytes go. Pure framing is in [`Headers`] and [`Frame`]; [`serve`] joins it to sockets. Flow control is not
//! spoken: the clients of this protocol do not speak it either, and a slow pod slows its session down by not reading.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// A frame may be this long. Clients write in pieces of 32 KiB; more would be buffered for a stranger.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// The headers of one stream, unpacked.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Streams of one session: a browser behind a forwarded port opens dozens of connections, two streams each.
const STREAMS_MAX: usize = 2048;
/// Frames that wait to be written: then pods are read no further.
const FRAMES_QUEUE_MAX: usize = 32;
/// Pieces that wait to be written to one pod: then the session is read no further.
const PIECES_QUEUE_MAX: usize = 32;
/// How much is read from a pod at once.
const READ_BYTES: usize = 32 << 10;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;

const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// The header names of the dictionary, each preceded by its length.
const DICTIONARY_WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// What follows them, without lengths.
const DICTIONARY_TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504\
    505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 \
    Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun \
    Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,\
    image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,\
    sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary that both ends start their header compression with; a constant of the protocol.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS {
        bytes.put_u32(u32::try_from(word.len()).unwrap_or(0));
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(DICTIONARY_TAIL.as_bytes());
    bytes
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The header compression of one direction; its state lasts as long as the session.
pub(crate) struct Headers {
    inflate: Decompress,
    deflate: Compress,
    dictionary: Vec<u8>,
}

impl Headers {
    pub(crate) fn new() -> io::Result<Headers> {
        let dictionary = dictionary();
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&dictionary).map_err(|_| broken("the dictionary is refused"))?;
        Ok(Headers { inflate: Decompress::new(true), deflate, dictionary })
    }

    /// Unpacks a block into pairs; names are lower case.
    pub(crate) fn read(&mut self, mut block: &[u8]) -> io::Result<Vec<(String, String)>> {
        let mut plain = Vec::with_capacity(1024);
        while !block.is_empty() {
            if plain.len() >= HEADER_BYTES_MAX {
                return Err(broken("headers are too long"));
            }
            plain.reserve(1024);
            let before = (self.inflate.total_in(), plain.len());
            let result = self.inflate.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let taken = usize::try_from(self.inflate.total_in() - before.0).unwrap_or(0);
            block = block.get(taken..).unwrap_or_default();
            match result {
                Ok(Status::Ok | Status::BufError) if taken > 0 || plain.len() > before.1 => {}
                Ok(_) => break,
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&self.dictionary).map_err(|_| broken("another dictionary"))?;
                }
                Err(_) => return Err(broken("headers cannot be unpacked")),
            }
        }
        read_pairs(&plain)
    }

    /// Packs pairs into a block.
    pub(crate) fn write(&mut self, pairs: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        plain.put_u32(u32::try_from(pairs.len()).unwrap_or(0));
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(u32::try_from(text.len()).unwrap_or(0));
            plain.put_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut rest = plain.as_slice();
        loop {
            block.reserve(256);
            let before = self.deflate.total_in();
            let result = self.deflate.compress_vec(rest, &mut block, FlushCompress::Sync);
            result.map_err(|_| broken("headers cannot be packed"))?;
            let taken = usize::try_from(self.deflate.total_in() - before).unwrap_or(0);
            rest = rest.get(taken..).unwrap_or_default();
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
        }
    }
}

fn read_pairs(plain: &[u8]) -> io::Result<Vec<(String, String)>> {
    let early = || broken("headers end early");
    let mut rest = plain;
    let count = rest.try_get_u32().map_err(|_| early())?;
    let mut text = || {
        let len = rest.try_get_u32().ok().and_then(|len| usize::try_from(len).ok()).ok_or_else(early)?;
        let (text, after) = rest.split_at_checked(len).ok_or_else(early)?;
        rest = after;
        Ok::<_, io::Error>(String::from_utf8_lossy(text).into_owned())
    };
    let mut pairs = Vec::new();
    for _ in 0..count {
        let name = text()?.to_ascii_lowercase();
        pairs.push((name, text()?));
    }
    Ok(pairs)
}

/// A frame that matters here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Open {
        id: u32,
        headers: Vec<(String, String)>,
        fin: bool,
    },
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
    Reset {
        id: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// A frame that asks for nothing: settings, windows, replies.
    Other,
}

/// Reads one frame; `None` at the end of the session.
pub(crate) async fn read_frame(io: &mut (impl AsyncRead + Unpin), headers: &mut Headers) -> io::Result<Option<Frame>> {
    let mut head = [0u8; 8];
    match io.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let flags = head[4];
    let len = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
    if len > FRAME_BYTES_MAX {
        return Err(broken("a frame is too long"));
    }
    let mut payload = BytesMut::zeroed(len);
    io.read_exact(&mut payload).await?;
    let fin = flags & FLAG_FIN != 0;
    if first & 0x8000_0000 == 0 {
        return Ok(Some(Frame::Data { id: first, bytes: payload.freeze(), fin }));
    }
    let ty = u16::try_from(first & 0xffff).unwrap_or(0);
    read_control(ty, fin, &payload, headers).map(Some)
}

fn read_control(ty: u16, fin: bool, payload: &[u8], headers: &mut Headers) -> io::Result<Frame> {
    let id = |payload: &[u8]| {
        let mut payload = payload;
        payload.try_get_u32().map(|id| id & 0x7fff_ffff).map_err(|_| broken("a frame ends early"))
    };
    Ok(match ty {
        SYN_STREAM => {
            let block = payload.get(10..).ok_or_else(|| broken("a frame ends early"))?;
            Frame::Open { id: id(payload)?, headers: headers.read(block)?, fin }
        }
        RST_STREAM => Frame::Reset { id: id(payload)? },
        PING => Frame::Ping { id: id(payload)? },
        GOAWAY => Frame::GoAway,
        _ => Frame::Other,
    })
}

/// What is written.
#[derive(Debug)]
pub(crate) enum Out {
    Reply { id: u32 },
    Data { id: u32, bytes: Bytes, fin: bool },
    Reset { id: u32, status: u32 },
    Ping { id: u32 },
}

fn put_control(out: &mut BytesMut, ty: u16, payload: &[u8]) {
    out.put_u16(0x8003);
    out.put_u16(ty);
    out.put_u32(u32::try_from(payload.len()).unwrap_or(0) & 0x00ff_ffff);
    out.put_slice(payload);
}

/// Adds a frame to what is to be written.
pub(crate) fn put(out: &mut BytesMut, send: &Out, headers: &mut Headers) -> io::Result<()> {
    match send {
        Out::Reply { id } => {
            let mut payload = id.to_be_bytes().to_vec();
            payload.extend(headers.write(&[])?);
            put_control(out, SYN_REPLY, &payload);
        }
        Out::Data { id, bytes, fin } => {
            out.put_u32(*id);
            let len = u32::try_from(bytes.len()).unwrap_or(0) & 0x00ff_ffff;
            out.put_u32(u32::from(u8::from(*fin)) << 24 | len);
            out.put_slice(bytes);
        }
        Out::Reset { id, status } => {
            let payload = [id.to_be_bytes(), status.to_be_bytes()].concat();
            put_control(out, RST_STREAM, &payload);
        }
        Out::Ping { id } => put_control(out, PING, &id.to_be_bytes()),
    }
    Ok(())
}

/// Serves one port-forward session. `dial` connects to a port of the pod.
pub(crate) async fn serve<S, D, F, P>(stream: S, dial: D) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send,
    D: Fn(u16) -> F,
    F: Future<Output = Result<P, String>> + Send + 'static,
    P: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(Box::pin(stream));
    let (send, mut sends) = mpsc::channel::<Out>(FRAMES_QUEUE_MAX);
    let write = async move {
        let mut headers = Headers::new()?;
        let mut out = BytesMut::new();
        while let Some(first) = sends.recv().await {
            put(&mut out, &first, &mut headers)?;
            while out.len() < READ_BYTES
                && let Ok(next) = sends.try_recv()
            {
                put(&mut out, &next, &mut headers)?;
            }
            writer.write_all(&out).await?;
            writer.flush().await?;
            out.clear();
        }
        writer.shutdown().await
    };
    let mut session = Session { send, dial, streams: BTreeMap::new(), halves: BTreeMap::new(), tasks: JoinSet::new() };
    let read = async move {
        let mut headers = Headers::new()?;
        while let Some(frame) = read_frame(&mut reader, &mut headers).await? {
            if frame == Frame::GoAway {
                break;
            }
            session.handle(frame).await;
        }
        Ok::<(), io::Error>(())
    };
    // Whoever ends first ends the session: a client that is gone has no use for the rest.
    tokio::select! {
        result = read => result,
        result = write => result,
    }
}

/// One side of a forwarded connection, waiting for the other.
#[derive(Default)]
struct Halves {
    error: Option<u32>,
    data: Option<(u32, u16, Incoming)>,
}

/// What arrives on a data stream.
struct Incoming {
    pieces: mpsc::Receiver<Bytes>,
    reset: oneshot::Receiver<()>,
}

/// Where it is put.
struct Stream {
    /// `None` once the client has said that it sends no more.
    pieces: Option<mpsc::Sender<Bytes>>,
    /// Dropped or used when the client breaks the stream off.
    reset: Option<oneshot::Sender<()>>,
}

struct Session<D> {
    send: mpsc::Sender<Out>,
    dial: D,
    streams: BTreeMap<u32, Stream>,
    halves: BTreeMap<String, Halves>,
    tasks: JoinSet<u32>,
}

impl<D> Session<D> {
    async fn handle<F, P>(&mut self, frame: Frame)
    where
        D: Fn(u16) -> F,
        F: Future<Output = Result<P, String>> + Send + 'static,
        P: AsyncRead + AsyncWrite + Send + 'static,
    {
        while let Some(Ok(id)) = self.tasks.try_join_next() {
            self.streams.remove(&id);
        }
        match frame {
            Frame::Open { id, headers, fin } => self.open(id, &headers, fin).await,
            Frame::Data { id, bytes, fin } => self.data(id, bytes, fin).await,
            Frame::Reset { id } => {
                if let Some(stream) = self.streams.remove(&id)
                    && let Some(reset) = stream.reset
                {
                    // The connection may have ended by itself; then nobody listens.
                    let _gone = reset.send(());
                }
            }
            // The client's pings have odd numbers and want an answer; even ones would answer ours.
            Frame::Ping { id } if id % 2 == 1 => self.put(Out::Ping { id }).await,
            Frame::Ping { .. } | Frame::GoAway | Frame::Other => {}
        }
    }

    /// A writer that is gone has ended the session already.
    async fn put(&self, send: Out) {
        let _gone = self.send.send(send).await;
    }

    async fn open<F, P>(&mut self, id: u32, headers: &[(String, String)], fin: bool)
    where
        D: Fn(u16) -> F,
        F: Future<Output = Result<P, String>> + Send + 'static,
        P: AsyncRead + AsyncWrite + Send + 'static,
    {
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
        let port = header("port").parse::<u16>().ok().filter(|port| *port != 0);
        let ty = header("streamtype");
        let (Some(port), true) = (port, matches!(ty, "error" | "data") && self.streams.len() < STREAMS_MAX) else {
            return self.put(Out::Reset { id, status: REFUSED_STREAM }).await;
        };
        self.put(Out::Reply { id }).await;
        // Clients from before request ids opened the error stream and then, with the next number, its data stream.
        let request = match header("requestid") {
            "" if ty == "error" => format!("#{id}"),
            "" => format!("#{}", id.saturating_sub(2)),
            request => request.to_owned(),
        };
        let halves = self.halves.entry(request.clone()).or_default();
        if ty == "error" {
            halves.error = Some(id);
        } else {
            let (pieces, incoming) = mpsc::channel(PIECES_QUEUE_MAX);
            let (reset, was_reset) = oneshot::channel();
            self.streams.insert(id, Stream { pieces: (!fin).then_some(pieces), reset: Some(reset) });
            halves.data = Some((id, port, Incoming { pieces: incoming, reset: was_reset }));
        }
        if halves.error.is_some() && halves.data.is_some() {
            let halves = self.halves.remove(&request).unwrap_or_default();
            if let (Some(error), Some((data, port, incoming))) = (halves.error, halves.data) {
                self.tasks.spawn(forward((self.dial)(port), error, data, incoming, self.send.clone()));
            }
        }
        if self.halves.len() > STREAMS_MAX {
            self.halves.clear();
        }
    }

    async fn data(&mut self, id: u32, bytes: Bytes, fin: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(pieces) = &stream.pieces
            && !bytes.is_empty()
            && pieces.send(bytes).await.is_err()
        {
            // The pod takes no more.
            stream.pieces = None;
            return self.put(Out::Reset { id, status: CANCEL }).await;
        }
        if fin && let Some(stream) = self.streams.get_mut(&id) {
            stream.pieces = None;
        }
    }
}

/// One forwarded connection, from dial to end. Answers the number of its data stream.
async fn forward<P>(
    dial: impl Future<Output = Result<P, String>>,
    error: u32,
    data: u32,
    incoming: Incoming,
    send: mpsc::Sender<Out>,
) -> u32
where
    P: AsyncRead + AsyncWrite + Send,
{
    let Incoming { mut pieces, reset } = incoming;
    let problem = match dial.await {
        Err(problem) => Some(problem),
        Ok(pod) => {
            let (mut reader, mut writer) = tokio::io::split(Box::pin(pod));
            let up = async {
                while let Some(piece) = pieces.recv().await {
                    if writer.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                // The pod may have closed before us; both ways the direction is over.
                let _closed = writer.shutdown().await;
            };
            let down = async {
                let mut buffer = BytesMut::with_capacity(READ_BYTES);
                while let Ok(1..) = reader.read_buf(&mut buffer).await {
                    let bytes = buffer.split().freeze();
                    if send.send(Out::Data { id: data, bytes, fin: false }).await.is_err() {
                        return;
                    }
                    buffer.reserve(READ_BYTES);
                }
                let _gone = send.send(Out::Data { id: data, bytes: Bytes::new(), fin: true }).await;
            };
            tokio::select! {
                _ = async { tokio::join!(up, down) } => None,
                Ok(()) = reset => None,
            }
        }
    };
    let failed = problem.is_some();
    let bytes = problem.map(Bytes::from).unwrap_or_default();
    // The client waits for the end of the error stream before it forgets the connection.
    let _gone = send.send(Out::Data { id: error, bytes, fin: true }).await;
    if failed {
        let _gone = send.send(Out::Data { id: data, bytes: Bytes::new(), fin: true }).await;
    }
    data
}

/// The frame by which a client opens a stream.
#[cfg(test)]
pub(crate) fn open_frame(id: u32, pairs: &[(&str, &str)], headers: &mut Headers) -> io::Result<BytesMut> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend([0; 6]);
    payload.extend(headers.write(pairs)?);
    let mut out = BytesMut::new();
    put_control(&mut out, SYN_STREAM, &payload);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    #[test]
    fn the_dictionary_is_the_protocols() {
        let dictionary = dictionary();
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((dictionary.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn headers_survive_packing_one_block_after_the_other() {
        let (mut one, mut other) = (Headers::new().unwrap(), Headers::new().unwrap());
        for round in 0..50 {
            let (port, long) = (round.to_string(), "x".repeat(round * 100));
            let pairs = [("streamtype", "data"), ("port", port.as_str()), ("long", long.as_str())];
            let block = one.write(&pairs).unwrap();
            let want: Vec<(String, String)> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
            assert_eq!(other.read(&block).unwrap(), want);
        }
    }

    #[test]
    fn damaged_headers_are_an_error_and_no_panic() {
        let block = Headers::new().unwrap().write(&[("port", "80"), ("streamtype", "error")]).unwrap();
        for at in 0..block.len() {
            for bit in 0..8 {
                let mut bad = block.clone();
                bad[at] ^= 1 << bit;
                let _ = Headers::new().unwrap().read(&bad);
            }
            let _ = Headers::new().unwrap().read(&block[..at]);
        }
    }

    /// A client of the protocol, as small as can be.
    struct Client {
        io: DuplexStream,
        headers: Headers,
    }

    impl Client {
        async fn open(&mut self, id: u32, ty: &str, fin: bool) {
            let pairs = [("streamtype", ty), ("port", "80"), ("requestid", "0")];
            let mut out = open_frame(id, &pairs, &mut self.headers).unwrap();
            out[4] = u8::from(fin);
            self.io.write_all(&out).await.unwrap();
        }

        async fn data(&mut self, id: u32, bytes: &'static str, fin: bool) {
            let mut out = BytesMut::new();
            put(&mut out, &Out::Data { id, bytes: bytes.into(), fin }, &mut self.headers).unwrap();
            self.io.write_all(&out).await.unwrap();
        }

        /// All that comes on `ids` until each has ended.
        async fn collect(&mut self, ids: [u32; 2]) -> [String; 2] {
            let (mut texts, mut ended) = ([String::new(), String::new()], [false; 2]);
            while ended != [true, true] {
                let frame = read_frame(&mut self.io, &mut self.headers).await.unwrap().unwrap();
                let Frame::Data { id, bytes, fin } = frame else { continue };
                let at = ids.iter().position(|known| *known == id).unwrap();
                texts[at].push_str(std::str::from_utf8(&bytes).unwrap());
                ended[at] |= fin;
            }
            texts
        }
    }

    fn session(
        dial: impl Fn(u16) -> Result<DuplexStream, String> + Send + Sync + 'static,
    ) -> (Client, tokio::task::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let dial = move |port| std::future::ready(dial(port));
        let task = tokio::spawn(async move { serve(theirs, dial).await });
        (Client { io: ours, headers: Headers::new().unwrap() }, task)
    }

    #[tokio::test]
    async fn a_connection_goes_through_and_ends_in_order() {
        let (mut client, session) = session(|port| {
            assert_eq!(port, 80);
            let (pod, io) = tokio::io::duplex(64);
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(pod);
                let mut text = String::new();
                reader.read_to_string(&mut text).await.unwrap();
                writer.write_all(text.to_uppercase().as_bytes()).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            Ok(io)
        });
        client.open(1, "error", true).await;
        client.open(3, "data", false).await;
        client.data(3, "hello ", false).await;
        client.data(3, "pod", true).await;
        assert_eq!(client.collect([1, 3]).await, [String::new(), "HELLO POD".to_owned()]);
        drop(client);
        session.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_refused_port_is_told_on_the_error_stream() {
        let (mut client, _session) = session(|_| Err("connection refused".to_owned()));
        client.open(1, "error", true).await;
        client.open(3, "data", false).await;
        assert_eq!(client.collect([1, 3]).await, ["connection refused".to_owned(), String::new()]);
    }

    #[tokio::test]
    async fn nonsense_ends_a_session_and_never_panics() {
        let mut rng = dhow_types::Rng::new(7);
        for _ in 0..300 {
            let (client, session) = session(|_| Err("no".to_owned()));
            let mut bytes = Vec::new();
            for _ in 0..rng.below(6) {
                let control = rng.chance(1, 2);
                bytes.extend(if control { [0x80, 3, 0, rng.below(10) as u8] } else { [0, 0, 0, rng.below(4) as u8] });
                let len = rng.below(40) as u8;
                bytes.extend([rng.below(2) as u8, 0, 0, len]);
                bytes.extend((0..len).map(|_| rng.below(256) as u8));
            }
            let Client { io, .. } = client;
            let (mut reader, mut writer) = tokio::io::split(io);
            let _closed = writer.write_all(&bytes).await;
            let _closed = writer.shutdown().await;
            let mut answer = Vec::new();
            let _broken = reader.read_to_end(&mut answer).await;
            let _ended = session.await.unwrap();
        }
    }
}
