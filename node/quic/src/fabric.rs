//! Joins a node's switch to the other nodes.
//!
//! One connection is kept to each peer, dialled by whoever needs it first and used by both sides. A TCP connection
//! between pods is one stream on it; a datagram of a pod is a datagram of the connection, or a stream when it is too
//! large for a packet.

use crate::connection::{BiStream, Connection, Opened};
use crate::endpoint::Endpoint;
use crate::error::QuicError;
use crate::header::{StreamHeader, decode_datagram, encode_datagram};
use bytes::Bytes;
use dhow_switch::{BoxFuture, Duplex, NetError, Remote, Switch};
use dhow_types::NodeName;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// What a node's certificate is called before its name.
const NODE_PREFIX: &str = "system:node:";
/// How long dialling a peer may take.
const DIAL: Duration = Duration::from_secs(5);
/// After a failed dial the peer is left alone for so long, so that a thousand connects to a dead node dial it once.
const DIAL_REST: Duration = Duration::from_secs(1);
/// How long a peer may take to answer for a stream on a kept connection. It may have died without a word: then the
/// connection is given up and dialled anew.
const ANSWER: Duration = Duration::from_secs(4);
/// Datagrams that wait for a dial or go as streams; more are lost.
const SLOW_DATAGRAMS_MAX: usize = 256;
/// The longest datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// A stream with the kubelet API, and who opened it.
pub struct KubeletStream {
    /// The common name in the opener's certificate.
    pub peer: String,
    /// The stream, behind its header.
    pub stream: BiStream,
}

/// A node's place among its peers. Cheap to clone; [`Fabric::stop`] ends it for all.
#[derive(Clone)]
pub struct Fabric(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    switch: Switch,
    kubelet: mpsc::Sender<KubeletStream>,
    peers: Mutex<BTreeMap<NodeName, Arc<Peer>>>,
    slow_datagrams: Arc<Semaphore>,
    runtime: Handle,
    /// The acceptor and one task a connection. A connection's task ends with it and takes its streams' tasks along.
    tasks: Mutex<JoinSet<()>>,
}

/// What is known of one peer. Held over a dial, so that there is one dial at a time.
#[derive(Default)]
struct Peer(tokio::sync::Mutex<Link>);

#[derive(Default)]
struct Link {
    connection: Option<Kept>,
    failed: Option<Instant>,
}

struct Kept {
    connection: Connection,
    /// Where it was dialled; `None` if the peer dialled.
    dialled: Option<SocketAddr>,
}

/// Who may open what on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// A node among nodes: pods' traffic.
    Node,
    /// The control node, which we have dialled and whose certificate named it so: the kubelet API too.
    Control,
}

impl Fabric {
    /// Accepts on `endpoint`, becomes the remote of `switch`, and gives streams of the kubelet API to `kubelet`. Call
    /// it inside a tokio runtime.
    pub fn start(endpoint: Endpoint, switch: Switch, kubelet: mpsc::Sender<KubeletStream>) -> Fabric {
        let fabric = Fabric(Arc::new(Inner {
            endpoint,
            switch: switch.clone(),
            kubelet,
            peers: Mutex::default(),
            slow_datagrams: Arc::new(Semaphore::new(SLOW_DATAGRAMS_MAX)),
            runtime: Handle::current(),
            tasks: Mutex::default(),
        }));
        switch.set_remote(Arc::new(Way(Arc::downgrade(&fabric.0))));
        fabric.0.spawn(accept(Arc::downgrade(&fabric.0), fabric.0.endpoint.clone()));
        fabric
    }

    /// Serves what comes in on a connection to the control node until it ends, and says why it did.
    pub async fn serve(&self, connection: Connection) -> QuicError {
        serve(self.0.clone(), connection, Trust::Control).await
    }

    /// Ends all connections and waits until the peers have been told.
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.0.tasks));
        tasks.shutdown().await;
        self.0.endpoint.close();
        self.0.endpoint.drained().await;
    }
}

impl Inner {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        // A datagram of a guest comes from the guests' runtime; the links live on their own.
        tasks.spawn_on(task, &self.runtime);
    }

    fn peer(&self, node: &NodeName) -> Arc<Peer> {
        lock(&self.peers).entry(node.clone()).or_default().clone()
    }

    /// The kept connection to a node, dialled now if there is none.
    async fn connection(self: &Arc<Self>, node: &NodeName) -> Result<Connection, QuicError> {
        let addr = self.switch.quic_addr(node);
        let peer = self.peer(node);
        let mut link = peer.0.lock().await;
        if let Some(kept) = &link.connection {
            // A node that has come back elsewhere is not where it was dialled.
            let moved = kept.dialled.is_some_and(|dialled| addr.is_some_and(|addr| addr != dialled));
            if !kept.connection.is_closed() && !moved {
                return Ok(kept.connection.clone());
            }
            link.connection = None;
        }
        if link.failed.is_some_and(|failed| failed.elapsed() < DIAL_REST) {
            return Err(QuicError::TimedOut);
        }
        let addr = addr.ok_or_else(|| QuicError::Lost(format!("node `{node}` has published no address")))?;
        match self.dial(node, addr).await {
            Ok(connection) => {
                *link = Link {
                    connection: Some(Kept { connection: connection.clone(), dialled: Some(addr) }),
                    failed: None,
                };
                drop(link);
                let (inner, served) = (self.clone(), connection.clone());
                self.spawn(async move {
                    serve(inner, served, Trust::Node).await;
                });
                Ok(connection)
            }
            Err(error) => {
                tracing::warn!(%node, %addr, %error, "node cannot be reached");
                link.failed = Some(Instant::now());
                Err(error)
            }
        }
    }

    async fn dial(&self, node: &NodeName, addr: SocketAddr) -> Result<Connection, QuicError> {
        let dial = tokio::time::timeout(DIAL, self.endpoint.connect(addr, node.as_str()));
        let connection = dial.await.map_err(|_| QuicError::TimedOut)??;
        if connection.peer().strip_prefix(NODE_PREFIX) != Some(node.as_str()) {
            connection.close();
            return Err(QuicError::Identity(format!("`{}` answers for node `{node}`", connection.peer())));
        }
        Ok(connection)
    }

    /// Gives a connection up that does not answer, unless another has taken its place.
    async fn give_up(&self, node: &NodeName, connection: &Connection) {
        let peer = self.peer(node);
        let mut link = peer.0.lock().await;
        if link.connection.as_ref().is_some_and(|kept| kept.connection.is(connection)) {
            link.connection = None;
        }
    }

    /// Connects with a pod on another node.
    async fn connect_pod(
        self: Arc<Self>,
        node: NodeName,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<BiStream, NetError> {
        let header = StreamHeader::Tcp { from, to };
        let mut fresh = false;
        loop {
            let connection = self.connection(&node).await.map_err(|error| {
                tracing::debug!(%node, %error, "no link for a connect");
                NetError::HostUnreachable
            })?;
            let asked = async {
                let mut stream = connection.open(&header).await?;
                let answer = stream.read_u8().await.map_err(|error| QuicError::Lost(error.to_string()))?;
                Ok::<_, QuicError>((answer, stream))
            };
            match tokio::time::timeout(ANSWER, asked).await.unwrap_or(Err(QuicError::TimedOut)) {
                Ok((answer, stream)) => return answer_of(answer).map(|()| stream),
                Err(error) if fresh => {
                    tracing::debug!(%node, %error, "peer does not answer for a stream");
                    return Err(NetError::TimedOut);
                }
                Err(_) => {
                    self.give_up(&node, &connection).await;
                    fresh = true;
                }
            }
        }
    }

    /// Sends a datagram the slow way: after a dial, or as a stream.
    async fn send_slowly(self: Arc<Self>, node: NodeName, from: SocketAddr, to: SocketAddr, payload: Bytes) {
        let sent = async {
            let connection = self.connection(&node).await?;
            match connection.send_datagram(encode_datagram(from, to, &payload)) {
                Err(QuicError::TooLarge) => {}
                done => return done,
            }
            let mut stream = connection.open(&StreamHeader::Udp { from, to }).await?;
            let lost = |error: std::io::Error| QuicError::Lost(error.to_string());
            stream.write_all(&payload).await.map_err(lost)?;
            stream.shutdown().await.map_err(lost)
        };
        if let Err(error) = sent.await {
            tracing::debug!(%node, %error, "datagram is lost");
        }
    }
}

/// The switch's way to other nodes. It does not keep the fabric alive: the fabric keeps the switch.
struct Way(Weak<Inner>);

impl Remote for Way {
    fn connect(
        &self,
        node: &NodeName,
        from: SocketAddr,
        to: SocketAddr,
    ) -> BoxFuture<Result<Box<dyn Duplex>, NetError>> {
        let (inner, node) = (self.0.upgrade(), node.clone());
        Box::pin(async move {
            let inner = inner.ok_or(NetError::HostUnreachable)?;
            let stream = inner.connect_pod(node, from, to).await?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }

    fn send_udp(&self, node: &NodeName, from: SocketAddr, to: SocketAddr, payload: Bytes) {
        let Some(inner) = self.0.upgrade() else { return };
        let peer = inner.peer(node);
        let kept = peer.0.try_lock().ok().and_then(|link| link.connection.as_ref().map(|kept| kept.connection.clone()));
        if let Some(connection) = kept
            && connection.send_datagram(encode_datagram(from, to, &payload)).is_ok()
        {
            return;
        }
        if let Ok(permit) = inner.slow_datagrams.clone().try_acquire_owned() {
            let (sender, node) = (inner.clone(), node.clone());
            inner.spawn(async move {
                sender.send_slowly(node, from, to, payload).await;
                drop(permit);
            });
        }
    }
}

/// The task that accepts connections. Ends when the endpoint is closed.
async fn accept(inner: Weak<Inner>, endpoint: Endpoint) {
    while let Some(connection) = endpoint.accept().await {
        let Some(inner) = inner.upgrade() else { return };
        let Some(node) = connection.peer().strip_prefix(NODE_PREFIX).map(NodeName::new) else {
            tracing::warn!(peer = connection.peer(), "link of somebody who is no node is refused");
            connection.close();
            continue;
        };
        // A connection that the peer has dialled serves our own connects too: it may be the only way to a peer behind
        // a NAT. If we are dialling it this moment, both stay.
        if let Ok(mut link) = inner.peer(&node).0.try_lock()
            && link.connection.as_ref().is_none_or(|kept| kept.connection.is_closed() || kept.dialled.is_none())
        {
            *link = Link { connection: Some(Kept { connection: connection.clone(), dialled: None }), failed: None };
        }
        let serving = inner.clone();
        inner.spawn(async move {
            serve(serving, connection, Trust::Node).await;
        });
    }
}

enum Event {
    Stream(Result<Opened, QuicError>),
    Datagram(Result<Bytes, QuicError>),
    StreamEnded,
}

/// Answers whatever a peer opens on a connection until it ends. The streams' tasks end with it.
async fn serve(inner: Arc<Inner>, connection: Connection, trust: Trust) -> QuicError {
    let mut streams = JoinSet::new();
    loop {
        let event = tokio::select! {
            opened = connection.opened() => Event::Stream(opened),
            datagram = connection.recv_datagram() => Event::Datagram(datagram),
            Some(_) = streams.join_next(), if !streams.is_empty() => Event::StreamEnded,
        };
        match event {
            Event::Stream(Ok(opened)) => {
                let peer = connection.peer().to_owned();
                streams.spawn(serve_stream(inner.clone(), peer, trust, opened));
            }
            Event::Datagram(Ok(datagram)) => deliver(&inner, &node_of(connection.peer()), datagram),
            Event::StreamEnded => {}
            Event::Stream(Err(error)) | Event::Datagram(Err(error)) => return error,
        }
    }
}

fn node_of(peer: &str) -> NodeName {
    NodeName::new(peer.strip_prefix(NODE_PREFIX).unwrap_or(peer))
}

fn deliver(inner: &Inner, node: &NodeName, datagram: Bytes) {
    match decode_datagram(datagram) {
        Ok((from, to, payload)) => inner.switch.accept_remote_udp(node, from, to, payload),
        Err(error) => tracing::debug!(%node, %error, "datagram is refused"),
    }
}

/// Serves one stream to its end.
async fn serve_stream(inner: Arc<Inner>, peer: String, trust: Trust, opened: Opened) {
    let (header, mut stream) = match opened.header().await {
        Ok(accepted) => accepted,
        Err(error) => return tracing::debug!(peer, %error, "stream is refused"),
    };
    match header {
        StreamHeader::Tcp { from, to } => {
            let accepted = inner.switch.accept_remote(&node_of(&peer), from, to);
            // The stream outlives neither the connection nor the pod, whatever the fabric does.
            drop(inner);
            let carried = match accepted {
                Ok(pod) => match stream.write_u8(0).await {
                    Ok(()) => dhow_switch::splice(pod, stream).await,
                    Err(error) => Err(error),
                },
                Err(refusal) => match stream.write_u8(code_of(refusal)).await {
                    Ok(()) => stream.shutdown().await,
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = carried {
                tracing::trace!(peer, %error, "stream broke");
            }
        }
        StreamHeader::Udp { from, to } => {
            let mut payload = Vec::new();
            let mut limited = (&mut stream).take(DATAGRAM_BYTES_MAX as u64);
            let read = limited.read_to_end(&mut payload);
            if matches!(tokio::time::timeout(DIAL, read).await, Ok(Ok(_))) {
                inner.switch.accept_remote_udp(&node_of(&peer), from, to, payload.into());
            }
        }
        StreamHeader::Kubelet if trust == Trust::Control => {
            if inner.kubelet.send(KubeletStream { peer, stream }).await.is_err() {
                tracing::debug!("kubelet stream comes too late");
            }
        }
        StreamHeader::Raft { .. } | StreamHeader::Snapshot { .. } => {
            tracing::warn!(peer, "stream between control nodes is refused: this is an agent")
        }
        StreamHeader::Kubelet => {
            tracing::warn!(peer, "kubelet stream of somebody else than the control node is refused")
        }
    }
}

/// The answer to a connect, as one byte.
fn code_of(refusal: NetError) -> u8 {
    match refusal {
        NetError::Refused => 1,
        NetError::HostUnreachable => 2,
        NetError::Denied => 3,
        _ => 4,
    }
}

fn answer_of(code: u8) -> Result<(), NetError> {
    match code {
        0 => Ok(()),
        1 => Err(NetError::Refused),
        2 => Err(NetError::HostUnreachable),
        3 => Err(NetError::Denied),
        _ => Err(NetError::Reset),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
