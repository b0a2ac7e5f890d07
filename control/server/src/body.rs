//! The body of a request, kept until the answer has gone.
//!
//! A request is often refused before its body was read. Over HTTP/2 to drop the body then is to reset the stream, and
//! there are clients that take a reset for a failure although the whole answer came before. So what nobody has read
//! comes back here when it is dropped, and is read and thrown away while the answer goes out.

use crate::answer::{Answer, Body as AnswerBody, BodyError};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// How much of an unread body is thrown away before the stream is reset after all: some times the largest object.
const UNREAD_BYTES_MAX: usize = 16 << 20;

/// How long that may take.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a body goes that was not read to its end.
type Slot = Arc<Mutex<Option<Incoming>>>;

/// The body of a request.
pub(crate) struct RequestBody {
    body: Option<Incoming>,
    left: Slot,
}

/// What is left of a request's body once the request was handled.
pub(crate) struct Left(Slot);

impl RequestBody {
    pub(crate) fn new(body: Incoming) -> (RequestBody, Left) {
        let left = Slot::default();
        (RequestBody { body: Some(body), left: left.clone() }, Left(left))
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| !body.is_end_stream());
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = unread;
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Left {
    /// The same answer, whose end waits until the rest of the request has come.
    pub(crate) fn drained_by(self, answer: Answer) -> Answer {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => answer,
            Some(unread) => answer.map(|body| {
                let end = Box::pin(tokio::time::sleep(UNREAD_TIMEOUT));
                Draining { body, unread: Some(Unread { body: unread, bytes: 0, end }) }.boxed_unsync()
            }),
        }
    }
}

/// An answer's body, and the request's that is thrown away before it ends.
struct Draining {
    body: AnswerBody,
    unread: Option<Unread>,
}

struct Unread {
    body: Incoming,
    bytes: usize,
    end: Pin<Box<Sleep>>,
}

impl Unread {
    /// Ready once there is nothing more to throw away, or too much.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.bytes < UNREAD_BYTES_MAX {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.bytes += frame.data_ref().map_or(0, Bytes::len),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return self.end.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

impl Body for Draining {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            return Poll::Ready(Some(frame));
        }
        if let Some(unread) = &mut self.unread {
            ready!(unread.poll(cx));
            // Held until the answer has ended: dropped before, it would still be a reset.
        }
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
