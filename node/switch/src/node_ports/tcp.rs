//! TCP through node ports. An accepted connection is not copied through: the socket itself goes to the pod that was
//! chosen, which reads and writes it as its own. Only for a pod on another node a task carries the bytes.

use crate::dial::{Dial, Hop, Reached, Target};
use crate::error::NetError;
use crate::listener::HostIncoming;
use crate::node_ports::NodePort;
use crate::stream::Ends;
use crate::switch::Switch;
use dhow_mesh::Proto;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// The kernel's queue of a listener.
const BACKLOG: u32 = 1024;
/// How long a failing accept (no descriptors left) rests.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// A client that has said nothing for so long is asked whether it is still there: one that has vanished must not hold
/// its share of the connections for ever.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// The size of each buffer between an outside client and a pod on another node.
const RELAY_BYTES: usize = 64 * 1024;

pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Accepts for one port until it is aborted; its relays end with it.
pub(super) async fn accept(switch: Switch, listener: TcpListener, port: u16, limit: Arc<Semaphore>) {
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
    let Some(backends) = switch.node_port(NodePort { proto: Proto::Tcp, number: port }) else {
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
    hop: Hop,
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
                    let ends = Ends { from: client, called: hop.addr, to: hop.addr };
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
