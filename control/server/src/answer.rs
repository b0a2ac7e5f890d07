//! Answers: bodies, encodings, and the headers that every answer shares.

use bytes::{BufMut, Bytes, BytesMut};
use dhow_api::Tree;
use dhow_api::status::ApiError;
use dhow_gate::media::Encoding;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{Stream, StreamExt};
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER, VARY, WARNING,
};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use std::io::Write;

/// What ends a body early.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;
/// Every answer.
pub(crate) type Answer = Response<Body>;

/// Bodies smaller than this are not worth compressing: upstream's threshold.
const GZIP_BYTES_MIN: usize = 128 << 10;

/// How a client wants JSON written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// JSON, YAML, or protobuf.
    pub(crate) encoding: Encoding,
    /// With line breaks.
    pub(crate) pretty: bool,
    /// The client reads gzip.
    pub(crate) gzip: bool,
}

impl Style {
    /// JSON as it is kept.
    pub(crate) const PLAIN: Style = Style { encoding: Encoding::Json, pretty: false, gzip: false };

    /// Whether stored bytes can be sent as they are.
    pub(crate) fn is_as_stored(self) -> bool {
        self.encoding == Encoding::Json && !self.pretty
    }
}

/// Whether the client reads gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| matches!(coding.trim().split(';').next(), Some("gzip")) && !coding.contains("q=0"))
}

/// A body that is there already.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that comes in pieces.
pub(crate) fn streamed(pieces: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static) -> Body {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// An answer with a content type.
pub(crate) fn answer(code: u16, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Text.
pub(crate) fn text(code: u16, text: impl Into<Bytes>) -> Answer {
    let mut answer = answer(code, "text/plain; charset=utf-8", full(text));
    answer.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}

/// A tree in the client's encoding.
pub(crate) fn tree(code: u16, tree: &Tree, style: Style) -> Answer {
    let bytes = match style.encoding {
        Encoding::Json if style.pretty => serde_json::to_vec_pretty(tree).unwrap_or_default(),
        Encoding::Json => serde_json::to_vec(tree).unwrap_or_default(),
        // JSON is YAML; who asks for YAML alone gets it with line breaks.
        Encoding::Yaml => serde_json::to_vec_pretty(tree).unwrap_or_default(),
        Encoding::Protobuf => match dhow_api::protobuf::from_tree(tree) {
            Ok(bytes) => bytes,
            Err(_) => return error(&ApiError::not_acceptable(dhow_gate::media::MEDIA_TYPES)),
        },
    };
    json_bytes(code, bytes.into(), style)
}

/// Bytes that are in the client's encoding already.
pub(crate) fn json_bytes(code: u16, bytes: Bytes, style: Style) -> Answer {
    if !style.gzip || bytes.len() < GZIP_BYTES_MIN {
        return answer(code, style.encoding.content_type(), full(bytes));
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    let zipped = encoder.write_all(&bytes).and_then(|()| encoder.finish());
    let Ok(zipped) = zipped else { return answer(code, style.encoding.content_type(), full(bytes)) };
    let mut answer = answer(code, style.encoding.content_type(), full(zipped));
    answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    answer
}

/// The same answer to a HEAD: how long the body would be, but not the body.
pub(crate) fn head_of(answer: Answer) -> Answer {
    let (mut parts, body) = answer.into_parts();
    if let Some(size) = body.size_hint().exact()
        && size > 0
    {
        parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(size));
    }
    Response::from_parts(parts, empty())
}

/// A `Status` that says what went wrong.
pub(crate) fn error(error: &ApiError) -> Answer {
    let mut answer = answer(error.code, "application/json", full(error.to_tree().to_string()));
    if let Some(seconds) = error.retry_after_seconds() {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

/// Sentences for the user, one `Warning` header each.
pub(crate) fn warn(answer: &mut Answer, warnings: &[String]) {
    for warning in warnings.iter().take(WARNINGS_MAX) {
        let mut text = String::with_capacity(warning.len() + 8);
        text.push_str("299 - \"");
        for c in warning.chars().filter(|c| !c.is_control()) {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            answer.headers_mut().append(WARNING, value);
        }
    }
}

/// More warnings than this would make headers that clients refuse.
const WARNINGS_MAX: usize = 32;

/// A list of stored objects: their bytes are copied once, into pieces of this size, and never parsed.
const LIST_PIECE_BYTES: usize = 64 << 10;

/// Streams `head`, the objects' bytes with commas between, and `]}`.
pub(crate) fn stored_list(
    code: u16,
    head: Bytes,
    items: Vec<std::sync::Arc<dhow_state::Object>>,
    style: Style,
) -> Answer {
    if style.gzip || items.len() < 64 {
        let size = head.len() + items.iter().map(|item| item.json().len() + 1).sum::<usize>() + 2;
        let mut bytes = BytesMut::with_capacity(size);
        bytes.put(head);
        put_items(&mut bytes, &mut items.iter(), 0, usize::MAX);
        bytes.put_slice(b"]}");
        return json_bytes(code, bytes.freeze(), style);
    }
    let pieces = futures_util::stream::unfold((Some(head), items, 0), |(mut head, items, mut at)| async move {
        if at > items.len() {
            return None;
        }
        let mut piece = BytesMut::with_capacity(LIST_PIECE_BYTES + (4 << 10));
        if let Some(head) = head.take() {
            piece.put(head);
        }
        at = put_items(&mut piece, &mut items[at..].iter(), at, LIST_PIECE_BYTES);
        if at == items.len() {
            piece.put_slice(b"]}");
            at += 1;
        }
        Some((Ok(piece.freeze()), (head, items, at)))
    });
    answer(code, style.encoding.content_type(), streamed(pieces))
}

/// Appends objects until the buffer is `full`; answers the index of the first that is not in it.
fn put_items<'a>(
    buffer: &mut BytesMut,
    items: &mut impl Iterator<Item = &'a std::sync::Arc<dhow_state::Object>>,
    first: usize,
    full: usize,
) -> usize {
    let mut at = first;
    while buffer.len() < full {
        let Some(item) = items.next() else { break };
        if at > 0 {
            buffer.put_u8(b',');
        }
        buffer.put_slice(item.json());
        at += 1;
    }
    at
}
