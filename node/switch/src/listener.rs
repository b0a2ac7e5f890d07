//! Listening sockets of pods: a bounded queue of connections that wait to be accepted.

use crate::error::NetError;
use crate::host_stream::HostStream;
use crate::pod::{Bound, Pod};
use crate::stream::Stream;
use crate::sync::lock;
use dhow_mesh::LoadGuard;
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

/// The longest queue a guest can ask for; Linux' `somaxconn`. A connect to a full queue is refused.
pub(crate) const BACKLOG_MAX: usize = 4096;

/// Tasks that wait on one listener. A task that has given up leaves its waker behind; when there are too many, the
/// oldest is woken, which does no harm, and forgotten.
const WAKERS_MAX: usize = 16;

/// A connection before it is accepted.
pub(crate) enum Incoming {
    /// The callee's end, ready for use.
    Ready(Stream),
    /// A socket of the host. It joins the runtime of whoever accepts it, so that no other runtime's threads have to
    /// hand each of its bytes over.
    Host(HostIncoming),
}

/// A host's connection for a pod.
pub(crate) struct HostIncoming {
    pub(crate) socket: TcpStream,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) load: Option<LoadGuard>,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// The queue of one listener.
pub(crate) struct Queue {
    state: Mutex<State>,
    backlog: usize,
}

struct State {
    waiting: VecDeque<Incoming>,
    wakers: Vec<Waker>,
    open: bool,
}

impl Queue {
    pub(crate) fn new(backlog: usize) -> Queue {
        let state = State { waiting: VecDeque::new(), wakers: Vec::new(), open: true };
        Queue { state: Mutex::new(state), backlog: backlog.clamp(1, BACKLOG_MAX) }
    }

    /// Puts a connection at the end, or gives it back if there is no room.
    pub(crate) fn offer(&self, incoming: Incoming) -> Option<Incoming> {
        let wakers = {
            let mut state = lock(&self.state);
            if !state.open || state.waiting.len() >= self.backlog {
                return Some(incoming);
            }
            state.waiting.push_back(incoming);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        None
    }

    /// Nothing more comes in; what waited is dropped.
    pub(crate) fn close(&self) {
        let (waiting, wakers) = {
            let mut state = lock(&self.state);
            state.open = false;
            (std::mem::take(&mut state.waiting), std::mem::take(&mut state.wakers))
        };
        // The callers took the connection for made: an orderly end would look like an answer.
        for incoming in waiting {
            if let Incoming::Ready(stream) = incoming {
                stream.reset();
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    fn take(&self) -> Option<Result<Incoming, NetError>> {
        let mut state = lock(&self.state);
        match state.waiting.pop_front() {
            Some(incoming) => Some(Ok(incoming)),
            None if !state.open => Some(Err(NetError::Reset)),
            None => None,
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let oldest = {
            let mut state = lock(&self.state);
            if !state.waiting.is_empty() || !state.open {
                return Poll::Ready(());
            }
            if state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            let oldest = (state.wakers.len() >= WAKERS_MAX).then(|| state.wakers.remove(0));
            state.wakers.push(cx.waker().clone());
            oldest
        };
        if let Some(waker) = oldest {
            waker.wake();
        }
        Poll::Pending
    }
}

/// A listening socket of a pod. Dropping it resets whoever waits in its queue and frees the address.
pub struct Listener {
    bound: Bound,
    queue: Arc<Queue>,
}

impl Listener {
    pub(crate) fn new(bound: Bound, queue: Arc<Queue>) -> Listener {
        Listener { bound, queue }
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.bound.local_addr()
    }

    /// The next connection, if one waits.
    pub fn try_accept(&self) -> Option<Result<Stream, NetError>> {
        loop {
            let stream = match self.queue.take()? {
                Ok(Incoming::Ready(stream)) => Ok(stream),
                Ok(Incoming::Host(host)) => match adopt(host, self.bound.pod()) {
                    Some(stream) => Ok(stream),
                    None => continue,
                },
                Err(error) => Err(error),
            };
            return Some(stream);
        }
    }

    /// Ready when [`Listener::try_accept`] has something to say; takes nothing.
    pub fn poll_acceptable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.queue.poll_ready(cx)
    }

    /// The next connection. An error means that the pod is gone.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Stream, NetError>> {
        loop {
            ready!(self.poll_acceptable(cx));
            // Another acceptor may have been faster.
            if let Some(accepted) = self.try_accept() {
                return Poll::Ready(accepted);
            }
        }
    }

    /// The next connection; cancel-safe. An error means that the pod is gone.
    pub async fn accept(&self) -> Result<Stream, NetError> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Makes a pod's stream of a host's socket. `None`: the socket is of no use (no runtime here, or the pod is gone).
fn adopt(host: HostIncoming, pod: &Arc<Pod>) -> Option<Stream> {
    let runtime = Handle::try_current().ok()?;
    let socket = tokio::net::TcpStream::from_std(host.socket)
        .inspect_err(|error| tracing::debug!(%error, "accepted socket cannot be served"))
        .ok()?;
    let stream = Stream::host(HostStream::new(socket, runtime), host.local, host.peer);
    let registration = pod.register(stream.breaker()).ok()?;
    Some(stream.with_registration(registration).with_load(host.load).with_permit(host.permit))
}
