//! The links to the other control nodes: what consensus says to them, and whole images for those that lag.
//!
//! Each member has one connection to each other, dialled by whoever has something to say first; a second one that was
//! dialled at the same moment lives on and is served too. Messages go over one ordered stream in each direction. What
//! cannot be sent is dropped and consensus is told: it sends again what matters.
//!
//! | task | ends | when it fails |
//! |---|---|---|
//! | sender, one a peer | at stop | dials again, after a rest that grows |
//! | link, one a connection | with the connection; at stop | the peer or the sender dials again |
//! | snapshot, one an image | when it has arrived or broken off | consensus is told and asks again |

use crate::member::{ClusterId, Member};
use crate::pki::QUIC_SERVER_NAME;
use bytes::{BufMut, Bytes, BytesMut};
use dhow_gate::user::{CONTROL_NODES, CONTROL_USER_PREFIX};
use dhow_quic::{BiStream, Connection, Endpoint, Opened, QuicError, StreamHeader};
use dhow_store::{Peers, Replica, Snapshot};
use dhow_tasks::{Stop, Tasks};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

/// Messages that wait for one peer, and their bytes. A window of appends is far below it; what is more is dropped, for
/// a peer that takes nothing for so long is sent again what it lacks.
const QUEUE_MESSAGES_MAX: usize = 4_096;
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// The longest message: a transaction of 8 MiB, the largest there is, in an append with others.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Small messages are joined into one piece of about this size before they are written.
const PIECE_BYTES: usize = 64 << 10;

/// How long dialling a peer may take: it is on a network where an election takes no longer.
const DIAL: Duration = Duration::from_secs(2);

/// The rest after a dial that failed: doubled until the longest, so that a dead peer costs little and one that has come
/// back is found soon.
const REST_MIN: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_secs(1);

/// How long an image may take that makes no progress at all.
const SNAPSHOT_STALL: Duration = Duration::from_secs(30);

/// The answer to an image that was taken.
const TAKEN: u8 = 0;
/// And to one that was not.
const NOT_TAKEN: u8 = 1;

/// The links of one member. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Links(Arc<Inner>);

struct Inner {
    me: u64,
    cluster: ClusterId,
    peers: Mutex<BTreeMap<u64, Arc<Peer>>>,
    /// Set once the port is open.
    endpoint: OnceLock<Endpoint>,
    /// Set once the store is open; before, nothing is taken from others.
    replica: OnceLock<Replica>,
    /// Sends come from the store's own thread: tasks run where the links were made.
    runtime: Handle,
    tasks: Tasks,
    stop: Stop,
}

struct Peer {
    id: u64,
    /// Where it listens; `None` for one that is not, or no longer, in the list of members.
    address: Mutex<Option<SocketAddr>>,
    connection: Mutex<Option<Connection>>,
    queue: Queue,
}

/// What waits for a peer.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Bytes>,
    bytes: usize,
    /// Something did not fit.
    dropped: bool,
}

impl Queue {
    fn push(&self, message: Bytes) {
        let mut waiting = lock(&self.waiting);
        if waiting.messages.len() >= QUEUE_MESSAGES_MAX || waiting.bytes + message.len() > QUEUE_BYTES_MAX {
            waiting.dropped = true;
        } else {
            waiting.bytes += message.len();
            waiting.messages.push_back(message);
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// Waits until there is something to send.
    async fn ready(&self) {
        while lock(&self.waiting).messages.is_empty() {
            self.wake.notified().await;
        }
    }

    /// All that waits, and whether something was dropped before.
    fn take(&self) -> (VecDeque<Bytes>, bool) {
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        (waiting.messages, waiting.dropped)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers for Links {
    fn send(&self, to: u64, message: Bytes) {
        self.peer(to).queue.push(message);
    }

    fn send_snapshot(&self, to: u64, snapshot: Snapshot) {
        let links = self.clone();
        let _entered = self.0.runtime.enter();
        self.0.tasks.spawn("snapshot", async move {
            let stop = links.0.stop.clone();
            let sent = stop.or(links.stream_snapshot(to, snapshot)).await;
            let ok = match sent {
                Some(Ok(())) => true,
                Some(Err(error)) => {
                    warn!(to, %error, "a snapshot did not arrive");
                    false
                }
                None => false,
            };
            if let Some(replica) = links.0.replica.get() {
                replica.snapshot_sent(to, ok);
            }
        });
    }
}

impl Links {
    /// Links of member `me`. Call it inside a tokio runtime.
    pub(crate) fn new(me: u64, cluster: ClusterId, members: &[Member], tasks: &Tasks) -> Links {
        let links = Links(Arc::new(Inner {
            me,
            cluster,
            peers: Mutex::default(),
            endpoint: OnceLock::new(),
            replica: OnceLock::new(),
            runtime: Handle::current(),
            tasks: tasks.clone(),
            stop: tasks.stop_token(),
        }));
        links.set_members(members);
        links
    }

    /// Begins to dial.
    pub(crate) fn set_endpoint(&self, endpoint: Endpoint) {
        if self.0.endpoint.set(endpoint).is_err() {
            debug!("the endpoint of the links was set before");
        }
    }

    /// Begins to take what others send.
    pub(crate) fn set_replica(&self, replica: Replica) {
        if self.0.replica.set(replica).is_err() {
            debug!("the replica of the links was set before");
        }
    }

    /// Who the others are now and where they listen.
    pub(crate) fn set_members(&self, members: &[Member]) {
        for member in members.iter().filter(|member| member.id != self.0.me) {
            *lock(&self.peer(member.id).address) = Some(member.address);
        }
        for peer in lock(&self.0.peers).values() {
            if !members.iter().any(|member| member.id == peer.id) {
                *lock(&peer.address) = None;
            }
        }
    }

    /// Whether there is a live connection to a member now.
    pub(crate) fn is_linked(&self, id: u64) -> bool {
        let peer = lock(&self.0.peers).get(&id).cloned();
        peer.is_some_and(|peer| lock(&peer.connection).as_ref().is_some_and(|kept| !kept.is_closed()))
    }

    /// The peer of this number, known from now on.
    fn peer(&self, id: u64) -> Arc<Peer> {
        let mut peers = lock(&self.0.peers);
        if let Some(peer) = peers.get(&id) {
            return peer.clone();
        }
        let peer =
            Arc::new(Peer { id, address: Mutex::default(), connection: Mutex::default(), queue: Queue::default() });
        peers.insert(id, peer.clone());
        drop(peers);
        let (links, sending) = (self.clone(), peer.clone());
        let _entered = self.0.runtime.enter();
        self.0.tasks.spawn("sender to a control node", async move {
            let stop = links.0.stop.clone();
            stop.or(links.send_all(&sending)).await;
        });
        peer
    }

    /// Serves a connection that a control node has dialled.
    pub(crate) fn accepted(&self, connection: Connection) {
        let Some(id) = member_of(&connection).filter(|id| *id != self.0.me) else {
            warn!(peer = connection.peer(), "a link of somebody who is no other control node is refused");
            return connection.close();
        };
        self.keep(&self.peer(id), connection);
    }

    /// Makes a connection the one to a peer, and serves what comes over it.
    fn keep(&self, peer: &Arc<Peer>, connection: Connection) {
        *lock(&peer.connection) = Some(connection.clone());
        let (links, id) = (self.clone(), peer.id);
        let _entered = self.0.runtime.enter();
        self.0.tasks.spawn("link to a control node", async move {
            let why = links.0.stop.or(links.serve(id, &connection)).await;
            debug!(id, why = why.map(|why| why.to_string()), "a link to a control node ended");
            connection.close();
        });
    }

    async fn send_all(&self, peer: &Arc<Peer>) {
        let mut rest = REST_MIN;
        let mut told = false;
        loop {
            peer.queue.ready().await;
            let error = match self.open(peer, StreamHeader::Raft { cluster: self.0.cluster.0 }).await {
                Ok((connection, stream)) => {
                    if std::mem::take(&mut told) {
                        info!(member = peer.id, "a control node is reached again");
                    }
                    rest = REST_MIN;
                    self.pump(peer, &connection, stream).await
                }
                Err(error) => error,
            };
            // What waited for the dead link would come late and out of place.
            peer.queue.take();
            if let Some(replica) = self.0.replica.get() {
                replica.unreachable(peer.id);
            }
            if !std::mem::replace(&mut told, true) {
                info!(member = peer.id, %error, "a control node is not reached");
            }
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(REST_MAX);
        }
    }

    /// Writes messages until the link fails, and says why.
    async fn pump(&self, peer: &Peer, connection: &Connection, mut stream: BiStream) -> QuicError {
        let mut piece = BytesMut::new();
        loop {
            let (messages, dropped) = peer.queue.take();
            if dropped && let Some(replica) = self.0.replica.get() {
                replica.unreachable(peer.id);
            }
            for message in messages {
                let Ok(length) = u32::try_from(message.len()) else { continue };
                piece.put_u32(length);
                if message.len() < PIECE_BYTES {
                    piece.put(message);
                    if piece.len() < PIECE_BYTES {
                        continue;
                    }
                    if let Err(error) = stream.write_all(&piece.split()).await {
                        return lost(error);
                    }
                } else if let Err(error) = write_both(&mut stream, &piece.split(), &message).await {
                    return lost(error);
                }
            }
            if !piece.is_empty()
                && let Err(error) = stream.write_all(&piece.split()).await
            {
                return lost(error);
            }
            tokio::select! {
                () = peer.queue.ready() => {}
                why = connection.closed() => return why,
            }
        }
    }

    /// A new stream to a peer, over the kept connection or one that is dialled now.
    async fn open(&self, peer: &Arc<Peer>, header: StreamHeader) -> Result<(Connection, BiStream), QuicError> {
        let kept = lock(&peer.connection).clone().filter(|kept| !kept.is_closed());
        let connection = match kept {
            Some(connection) => connection,
            None => {
                let connection = self.dial(peer).await?;
                self.keep(peer, connection.clone());
                connection
            }
        };
        let stream = tokio::time::timeout(DIAL, connection.open(&header)).await;
        match stream.unwrap_or(Err(QuicError::TimedOut)) {
            Ok(stream) => Ok((connection, stream)),
            Err(error) => {
                connection.close();
                Err(error)
            }
        }
    }

    async fn dial(&self, peer: &Peer) -> Result<Connection, QuicError> {
        let nowhere = || QuicError::Lost(format!("nobody knows where member {} listens", peer.id));
        let address = (*lock(&peer.address)).ok_or_else(nowhere)?;
        let endpoint = self.0.endpoint.get().ok_or_else(|| QuicError::Lost("the port is not open yet".to_owned()))?;
        let dialling = tokio::time::timeout(DIAL, endpoint.connect_control(address, QUIC_SERVER_NAME));
        let connection = dialling.await.unwrap_or(Err(QuicError::TimedOut))?;
        if member_of(&connection) != Some(peer.id) {
            let found = connection.peer().to_owned();
            connection.close();
            return Err(QuicError::Identity(format!("`{found}` answers at {address} for member {}", peer.id)));
        }
        Ok(connection)
    }

    /// Takes what a peer sends over one connection until that ends.
    async fn serve(&self, from: u64, connection: &Connection) -> QuicError {
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                opened = connection.opened() => match opened {
                    Ok(opened) => drop(streams.spawn(self.clone().receive(from, opened))),
                    Err(error) => return error,
                },
                Some(_) = streams.join_next(), if !streams.is_empty() => {}
            }
        }
    }

    async fn receive(self, from: u64, opened: Opened) {
        let (header, stream) = match opened.header().await {
            Ok(accepted) => accepted,
            Err(error) => return debug!(from, %error, "a stream of a control node is refused"),
        };
        let Some(replica) = self.0.replica.get() else { return };
        let ended = match header {
            StreamHeader::Raft { cluster } | StreamHeader::Snapshot { cluster } if cluster != self.0.cluster.0 => {
                return warn!(
                    from,
                    "a member of another cluster is refused: its data came from a backup of this one, or the other way round"
                );
            }
            StreamHeader::Raft { .. } => receive_messages(replica, stream).await,
            StreamHeader::Snapshot { .. } => receive_snapshot(from, replica, stream).await,
            _ => return debug!(from, "a control node opened a stream that is for nodes"),
        };
        if let Err(error) = ended {
            debug!(from, %error, "a stream of a control node broke off");
        }
    }

    async fn stream_snapshot(&self, to: u64, snapshot: Snapshot) -> Result<(), QuicError> {
        let peer = self.peer(to);
        let (_connection, mut stream) = self.open(&peer, StreamHeader::Snapshot { cluster: self.0.cluster.0 }).await?;
        for chunk in snapshot {
            let written = tokio::time::timeout(SNAPSHOT_STALL, stream.write_all(&chunk)).await;
            written.map_err(|_| QuicError::TimedOut)?.map_err(lost)?;
        }
        stream.shutdown().await.map_err(lost)?;
        // It takes as long as the other needs to make the image its own.
        let answer = tokio::time::timeout(SNAPSHOT_STALL, stream.read_u8()).await;
        match answer.map_err(|_| QuicError::TimedOut)?.map_err(lost)? {
            TAKEN => Ok(()),
            _ => Err(QuicError::Lost("the member did not take the image; its log says why".to_owned())),
        }
    }
}

async fn write_both(stream: &mut BiStream, before: &[u8], message: &[u8]) -> io::Result<()> {
    stream.write_all(before).await?;
    stream.write_all(message).await
}

async fn receive_messages(replica: &Replica, mut stream: BiStream) -> io::Result<()> {
    loop {
        let length = stream.read_u32().await? as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(io::Error::other(format!("a message of {length} bytes is too long")));
        }
        let mut message = BytesMut::with_capacity(length);
        while message.len() < length {
            let mut rest = (&mut stream).take((length - message.len()) as u64);
            if rest.read_buf(&mut message).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        replica.receive(message.freeze());
    }
}

async fn receive_snapshot(from: u64, replica: &Replica, mut stream: BiStream) -> io::Result<()> {
    let answer = match replica.receive_snapshot(&mut stream).await {
        Ok(()) => TAKEN,
        Err(error) => {
            warn!(from, error = %dhow_types::Chain(&error), "a snapshot was not taken");
            NOT_TAKEN
        }
    };
    stream.write_u8(answer).await?;
    stream.shutdown().await
}

/// The number in a control node's certificate; both name and organization must be a control node's.
fn member_of(connection: &Connection) -> Option<u64> {
    let id = connection.peer().strip_prefix(CONTROL_USER_PREFIX)?;
    id.parse().ok().filter(|_| connection.is_in(CONTROL_NODES))
}

fn lost(error: io::Error) -> QuicError {
    QuicError::Lost(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_bounded_and_says_what_it_dropped() {
        let queue = Queue::default();
        for _ in 0..QUEUE_MESSAGES_MAX {
            queue.push(Bytes::from_static(b"m"));
        }
        assert!(!lock(&queue.waiting).dropped);
        queue.push(Bytes::from_static(b"m"));
        let (messages, dropped) = queue.take();
        assert_eq!((messages.len(), dropped), (QUEUE_MESSAGES_MAX, true));
        let large = Bytes::from(vec![0; QUEUE_BYTES_MAX / 2]);
        for _ in 0..3 {
            queue.push(large.clone());
        }
        let (messages, dropped) = queue.take();
        assert_eq!((messages.len(), dropped), (2, true));
        assert!(!queue.take().1);
    }
}
