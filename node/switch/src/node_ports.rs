//! Node ports: listeners of the host, kept in line with the services' tables.
//!
//! An accepted connection is not copied through: the socket itself goes to the pod that was chosen, which reads and
//! writes it as its own. Only for a pod on another node a task carries the bytes.

use crate::dial::{Dial, Reached, Target};
use crate::error::NetError;
use crate::listener::HostIncoming;
use crate::switch::Switch;
use socket2::{SockRef, TcpKeepalive};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

/// Connections through all node ports of a node. Beyond it new ones wait in the kernel's queue, and the host keeps
/// descriptors for itself.
const CONNECTIONS_MAX: usize = 16_384;
/// The kernel's queue of a listener.
const BACKLOG: u32 = 1024;
/// When a port that could not be opened is tried again, and how long a failing accept (no descriptors left) rests.
const RETRY: Duration = Duration::from_secs(5);
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// A client that has said nothing for so long is asked whether it is still there: one that has vanished must not hold
/// its share of [`CONNECTIONS_MAX`] for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Events that wait for their reader. An event that finds no room is dropped: it is news, not state.
const EVENTS_MAX: usize = 256;
/// The size of each buffer between an outside client and a pod on another node.
const RELAY_BYTES: usize = 64 * 1024;

/// What happened to a node port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortEvent {
    /// The host listens on it.
    Open {
        /// The port.
        port: u16,
    },
    /// The host cannot listen on it (somebody else does, for one); it is tried again.
    Failed {
        /// The port.
        port: u16,
        /// Why.
        error: String,
    },
    /// No service wants it any more.
    Closed {
        /// The port.
        port: u16,
    },
}

/// The listeners of the host. Dropping it closes them at once.
pub struct NodePorts {
    stop: watch::Sender<bool>,
    keeper: Option<JoinHandle<()>>,
}

impl NodePorts {
    /// Begins to keep listeners on `host_ip` in line with the tables of `switch`. Call it inside a tokio runtime.
    pub fn start(switch: &Switch, host_ip: IpAddr) -> (NodePorts, mpsc::Receiver<NodePortEvent>) {
        let (events, reader) = mpsc::channel(EVENTS_MAX);
        let (stop, stopped) = watch::channel(false);
        let keeper = Keeper {
            switch: switch.clone(),
            host_ip,
            events,
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            tasks: JoinSet::new(),
            limit: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        };
        let keeper = tokio::spawn(keeper.run(stopped));
        (NodePorts { stop, keeper: Some(keeper) }, reader)
    }

    /// Closes all listeners and waits until they are closed. Connections that pods hold stay theirs.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(keeper) = self.keeper.take()
            && let Err(error) = keeper.await
        {
            tracing::error!(%error, "keeper of the node ports did not end in order");
        }
    }
}

impl Drop for NodePorts {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

/// The one owner of all listeners.
struct Keeper {
    switch: Switch,
    host_ip: IpAddr,
    events: mpsc::Sender<NodePortEvent>,
    open: BTreeMap<u16, AbortHandle>,
    /// Ports that could not be opened, with what was reported.
    failed: BTreeMap<u16, String>,
    /// One task a listener. Its failure closes the port until the next change; its end closes the listener.
    tasks: JoinSet<()>,
    limit: Arc<Semaphore>,
}

impl Keeper {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut changes = self.switch.changes();
        loop {
            changes.borrow_and_update();
            self.adjust();
            tokio::select! {
                _ = stopped.changed() => break,
                changed = changes.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY), if !self.failed.is_empty() => {}
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "listener of a node port ended");
                        self.open.retain(|_, task| !task.is_finished());
                    }
                }
            }
        }
        self.tasks.shutdown().await;
    }

    /// Opens what is wanted and not open, closes what is open and not wanted.
    fn adjust(&mut self) {
        let wanted = self.switch.node_ports();
        let unwanted: Vec<u16> = self.open.keys().filter(|port| wanted.binary_search(port).is_err()).copied().collect();
        for port in unwanted {
            if let Some(task) = self.open.remove(&port) {
                task.abort();
                self.tell(NodePortEvent::Closed { port });
            }
        }
        self.failed.retain(|port, _| wanted.binary_search(port).is_ok());
        for port in wanted {
            if !self.open.contains_key(&port) {
                self.open_port(port);
            }
        }
    }

    fn open_port(&mut self, port: u16) {
        match listen(SocketAddr::new(self.host_ip, port)) {
            Ok(listener) => {
                let accept = accept(self.switch.clone(), listener, port, self.limit.clone());
                self.open.insert(port, self.tasks.spawn(accept));
                self.failed.remove(&port);
                self.tell(NodePortEvent::Open { port });
            }
            Err(error) => {
                let error = error.to_string();
                if self.failed.get(&port) != Some(&error) {
                    self.failed.insert(port, error.clone());
                    self.tell(NodePortEvent::Failed { port, error });
                }
            }
        }
    }

    fn tell(&self, event: NodePortEvent) {
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(%error, "event of a node port is dropped");
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Accepts for one port until it is aborted; its relays end with it.
async fn accept(switch: Switch, listener: TcpListener, port: u16, limit: Arc<Semaphore>) {
    let mut relays = JoinSet::new();
    let mut failing = false;
    loop {
        while relays.try_join_next().is_some() {}
        let Ok(permit) = limit.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, client)) => {
                failing = false;
                if let Some(relay) = route(&switch, port, Outside { socket, client, permit }) {
                    relays.spawn(relay.run());
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, port, "node port cannot accept");
                }
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// A connection from outside.
struct Outside {
    socket: TcpStream,
    client: SocketAddr,
    permit: OwnedSemaphorePermit,
}

/// Gives a connection to a pod of this node, or says how it has to be relayed. One that nobody takes is reset.
fn route(switch: &Switch, port: u16, outside: Outside) -> Option<Relay> {
    let Outside { socket, client, permit } = outside;
    let local = socket.local_addr().unwrap_or(SocketAddr::new(switch.node_ip(), port));
    let Some(backends) = switch.node_port(port) else {
        refuse(&socket);
        return None;
    };
    let keep_alive = SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEP_ALIVE));
    if let Err(error) = socket.set_nodelay(true).and(keep_alive) {
        tracing::debug!(%error, "socket keeps its defaults");
    }
    let mut dial = Dial::from_outside(switch, client.ip(), local, backends);
    let mut carrier = Carrier::Async(socket, permit);
    loop {
        let Ok(hop) = dial.next() else {
            carrier.refuse();
            return None;
        };
        let Target::Pod(pod) = &hop.target else {
            let (socket, permit) = carrier.into_async()?;
            return Some(Relay { dial, hop, socket, client, _permit: permit });
        };
        let (socket, permit) = carrier.into_std()?;
        let (addr, load, permit) = (hop.addr, hop.load, Some(permit));
        match pod.hand_over(HostIncoming { socket, local: addr, peer: client, load, permit }) {
            None => return None,
            Some(HostIncoming { socket, permit, .. }) => {
                dial.failed(addr, NetError::Refused);
                carrier = Carrier::Std(socket, permit?);
            }
        }
    }
}

/// A socket in one of its two forms.
enum Carrier {
    Async(TcpStream, OwnedSemaphorePermit),
    Std(std::net::TcpStream, OwnedSemaphorePermit),
}

impl Carrier {
    fn into_std(self) -> Option<(std::net::TcpStream, OwnedSemaphorePermit)> {
        match self {
            Carrier::Std(socket, permit) => Some((socket, permit)),
            Carrier::Async(socket, permit) => Some((socket.into_std().ok()?, permit)),
        }
    }

    fn into_async(self) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        match self {
            Carrier::Async(socket, permit) => Some((socket, permit)),
            Carrier::Std(socket, permit) => Some((TcpStream::from_std(socket).ok()?, permit)),
        }
    }

    fn refuse(&self) {
        match self {
            Carrier::Async(socket, _) => refuse(socket),
            Carrier::Std(socket, _) => refuse(socket),
        }
    }
}

/// Lets the client see a reset when the socket is dropped.
fn refuse<'a>(socket: impl Into<SockRef<'a>>) {
    let socket: SockRef<'_> = socket.into();
    if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "socket takes no linger time");
    }
}

/// A connection to an endpoint on another node.
struct Relay {
    dial: Dial,
    hop: crate::dial::Hop,
    socket: TcpStream,
    client: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl Relay {
    async fn run(self) {
        let Relay { mut dial, mut hop, mut socket, client, _permit } = self;
        loop {
            let reached = match &hop.target {
                // A second choice on this node; carrying it is rare enough not to hand it over.
                Target::Pod(pod) => {
                    let ends = crate::stream::Ends { from: client, called: hop.addr, to: hop.addr };
                    pod.connect(ends).map(|stream| Reached::Duplex(Box::new(stream)))
                }
                _ => dial.reach(&hop, client).await,
            };
            let relayed = match reached {
                Ok(Reached::Duplex(mut duplex)) => relay(&mut socket, &mut duplex).await,
                Ok(Reached::Socket(mut other)) => relay(&mut socket, &mut other).await,
                Err(error) => {
                    dial.failed(hop.addr, error);
                    match dial.next() {
                        Ok(next) => hop = next,
                        Err(_) => return refuse(&socket),
                    }
                    continue;
                }
            };
            if let Err(error) = relayed {
                tracing::trace!(%error, "relayed connection broke");
                refuse(&socket);
            }
            return;
        }
    }
}

async fn relay<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    socket: &mut TcpStream,
    other: &mut T,
) -> io::Result<()> {
    tokio::io::copy_bidirectional_with_sizes(socket, other, RELAY_BYTES, RELAY_BYTES).await.map(|_| ())
}
