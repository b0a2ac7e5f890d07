//! A pod on the network of its node: its address, its sockets, its open connections.

use crate::error::NetError;
use crate::listener::{HostIncoming, Incoming, Listener, Queue};
use crate::ports::Ports;
use crate::stream::{Breaker, Ends, Stream};
use crate::switch::{Connecting, Resolving, Switch};
use crate::sync::lock;
use crate::udp::{Mailbox, UdpSocket};
use dhow_mesh::LoadGuard;
use dhow_types::Uid;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Who a pod is. Every connection can be traced to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The pod's address.
    pub ip: IpAddr,
    /// What the pod calls itself.
    pub hostname: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
}

/// A pod's open connections. The limit bounds what one guest can make its node hold (a pipe of two times 64 KiB each,
/// at worst); beyond it, connects are refused.
const CONNECTIONS_MAX: usize = 16_384;

/// Payload bytes that a pod has received and sent, over its loopback too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_bytes: u64,
}

pub(crate) struct Pod {
    pub(crate) identity: PodIdentity,
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
    /// Names that only this pod knows.
    hosts: OnceLock<Vec<(String, IpAddr)>>,
    sockets: Mutex<Sockets>,
}

/// Everything that must be found again when the pod goes. One lock: a pod's sockets change rarely.
struct Sockets {
    /// Once closed, nothing new is let in.
    open: bool,
    /// `None`: bound, but not listening.
    tcp: Ports<Option<Arc<Queue>>>,
    udp: Ports<Arc<Mailbox>>,
    connections: BTreeMap<u64, Breaker>,
    next_connection: u64,
}

impl Pod {
    pub(crate) fn new(identity: PodIdentity) -> Pod {
        let sockets = Sockets {
            open: true,
            tcp: Ports::default(),
            udp: Ports::default(),
            connections: BTreeMap::new(),
            next_connection: 0,
        };
        Pod {
            identity,
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            hosts: OnceLock::new(),
            sockets: Mutex::new(sockets),
        }
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Breaks everything, for good.
    pub(crate) fn close(&self) {
        let (queues, mailboxes, connections) = {
            let mut sockets = lock(&self.sockets);
            sockets.open = false;
            let queues: Vec<_> = sockets.tcp.drain().flatten().collect();
            let mailboxes: Vec<_> = sockets.udp.drain().collect();
            (queues, mailboxes, std::mem::take(&mut sockets.connections))
        };
        queues.iter().for_each(|queue| queue.close());
        mailboxes.iter().for_each(|mailbox| mailbox.close());
        connections.values().for_each(Breaker::reset);
    }

    /// Notes a connection, so that it ends with the pod.
    pub(crate) fn register(self: &Arc<Self>, breaker: Breaker) -> Result<Registration, NetError> {
        let mut sockets = lock(&self.sockets);
        if !sockets.open {
            return Err(NetError::Reset);
        }
        if sockets.connections.len() >= CONNECTIONS_MAX {
            return Err(NetError::Refused);
        }
        let id = sockets.next_connection;
        sockets.next_connection += 1;
        sockets.connections.insert(id, breaker);
        Ok(Registration { pod: self.clone(), id })
    }

    /// A port for an outgoing connection.
    pub(crate) fn ephemeral(&self, ip: IpAddr) -> u16 {
        lock(&self.sockets).tcp.ephemeral(ip)
    }

    /// Connects to whoever listens on `ends.to`, and gives the caller's end.
    pub(crate) fn connect(self: &Arc<Self>, ends: Ends) -> Result<Stream, NetError> {
        let queue = self.queue(ends.to)?;
        let (caller, callee) = Stream::pair(ends);
        let callee = callee_of(self, callee)?;
        match queue.offer(Incoming::Ready(callee)) {
            None => Ok(caller),
            Some(_) => Err(NetError::Refused),
        }
    }

    /// Gives a host's socket to whoever listens on its local address, or back.
    pub(crate) fn hand_over(&self, incoming: HostIncoming) -> Option<HostIncoming> {
        let Ok(queue) = self.queue(incoming.local) else { return Some(incoming) };
        match queue.offer(Incoming::Host(incoming)) {
            Some(Incoming::Host(back)) => Some(back),
            _ => None,
        }
    }

    fn queue(&self, to: SocketAddr) -> Result<Arc<Queue>, NetError> {
        let sockets = lock(&self.sockets);
        if !sockets.open {
            return Err(NetError::HostUnreachable);
        }
        sockets.tcp.find(to).and_then(Clone::clone).ok_or(NetError::Refused)
    }

    /// An address of this pod on which something listens at `port`, its own loopback included.
    pub(crate) fn listening_on(&self, port: u16) -> Option<SocketAddr> {
        let sockets = lock(&self.sockets);
        let mut found: Vec<SocketAddr> =
            sockets.tcp.find_port(port).filter(|(_, queue)| queue.is_some()).map(|(addr, _)| addr).collect();
        found.sort_by_key(|addr| addr.ip().is_loopback());
        let ip = found.first()?.ip();
        Some(SocketAddr::new(if ip.is_unspecified() { self.identity.ip } else { ip }, port))
    }

    /// The addresses of a name that only this pod knows.
    pub(crate) fn host(&self, name: &str) -> Vec<IpAddr> {
        let name = name.trim_end_matches('.');
        let known = self.hosts.get().into_iter().flatten().filter(|(host, _)| host.eq_ignore_ascii_case(name));
        known.map(|(_, ip)| *ip).collect()
    }

    pub(crate) fn mailbox(&self, to: SocketAddr) -> Option<Arc<Mailbox>> {
        lock(&self.sockets).udp.find(to).cloned()
    }

    /// Whether a socket of this pod may have the address.
    fn owns(&self, ip: IpAddr) -> bool {
        ip.is_unspecified() || ip.is_loopback() || ip == self.identity.ip
    }
}

fn callee_of(pod: &Arc<Pod>, callee: Stream) -> Result<Stream, NetError> {
    let registration = pod.register(callee.breaker())?;
    Ok(callee.with_registration(registration))
}

/// A connection's place in its pod's list.
pub(crate) struct Registration {
    pod: Arc<Pod>,
    id: u64,
}

impl Registration {
    pub(crate) fn pod(&self) -> &Pod {
        &self.pod
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let breaker = lock(&self.pod.sockets).connections.remove(&self.id);
        drop(breaker);
    }
}

/// The network as one pod sees it. Cheap to clone; all containers of the pod share it.
#[derive(Clone)]
pub struct PodNet {
    pub(crate) pod: Arc<Pod>,
    pub(crate) switch: Switch,
}

impl PodNet {
    /// The pod's address.
    pub fn ip(&self) -> IpAddr {
        self.pod.identity.ip
    }

    /// What the pod has received and sent so far.
    pub fn traffic(&self) -> Traffic {
        let Pod { rx_bytes, tx_bytes, .. } = &*self.pod;
        Traffic { rx_bytes: rx_bytes.load(Ordering::Relaxed), tx_bytes: tx_bytes.load(Ordering::Relaxed) }
    }

    /// Gives this pod alone names for addresses, once: `hostAliases`. They come before all other names.
    pub fn set_hosts(&self, hosts: Vec<(String, IpAddr)>) {
        self.pod.hosts.get_or_init(|| hosts);
    }

    /// Who the pod is.
    pub fn identity(&self) -> &PodIdentity {
        &self.pod.identity
    }

    /// Takes a TCP address: all of the pod's (`0.0.0.0`), its own, or its loopback; port 0 means any free one.
    pub fn bind(&self, addr: SocketAddr) -> Result<Bound, NetError> {
        if !self.pod.owns(addr.ip()) {
            return Err(NetError::AddrNotAvailable);
        }
        let mut sockets = lock(&self.pod.sockets);
        if !sockets.open {
            return Err(NetError::Reset);
        }
        let addr = sockets.tcp.take(addr, None)?;
        Ok(Bound { net: self.clone(), addr })
    }

    /// Binds and listens.
    pub fn listen(&self, addr: SocketAddr, backlog: usize) -> Result<Listener, NetError> {
        Ok(self.bind(addr)?.listen(backlog))
    }

    /// Connects to a pod, a service, or an address outside of the cluster.
    pub fn connect(&self, to: SocketAddr) -> Connecting {
        self.switch.connect_from(Some(&self.pod), None, to)
    }

    /// Takes a UDP address.
    pub fn udp_bind(&self, addr: SocketAddr) -> Result<UdpSocket, NetError> {
        if !self.pod.owns(addr.ip()) {
            return Err(NetError::AddrNotAvailable);
        }
        let mailbox = Arc::new(Mailbox::default());
        let mut sockets = lock(&self.pod.sockets);
        if !sockets.open {
            return Err(NetError::Reset);
        }
        let addr = sockets.udp.take(addr, mailbox.clone())?;
        Ok(UdpSocket::new(self.clone(), addr, mailbox))
    }

    pub(crate) fn udp_release(&self, addr: SocketAddr) {
        let mut sockets = lock(&self.pod.sockets);
        if sockets.open {
            sockets.udp.release(addr);
        }
    }

    /// The addresses behind a name, as a pod of this namespace resolves it.
    pub fn resolve(&self, name: &str) -> Resolving {
        self.switch.resolve_for(&self.pod, name)
    }
}

/// A TCP address that a pod's socket has taken, to listen on it or to connect from it. Dropping it frees the address.
pub struct Bound {
    net: PodNet,
    addr: SocketAddr,
}

impl Bound {
    /// The address, with the port that was found.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Lets up to `backlog` connections wait to be accepted.
    pub fn listen(self, backlog: usize) -> Listener {
        let queue = Arc::new(Queue::new(backlog));
        let kept = {
            let mut sockets = lock(&self.net.pod.sockets);
            sockets.tcp.get_mut(self.addr).map(|slot| *slot = Some(queue.clone())).is_some()
        };
        if !kept {
            // The pod has gone meanwhile.
            queue.close();
        }
        Listener::new(self, queue)
    }

    /// Connects from this address. The address is free again once the connection is made.
    pub fn connect(self, to: SocketAddr) -> Connecting {
        self.net.switch.connect_from(Some(&self.net.pod), Some(self.addr), to)
    }

    pub(crate) fn pod(&self) -> &Arc<Pod> {
        &self.net.pod
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let mut sockets = lock(&self.net.pod.sockets);
        if sockets.open {
            sockets.tcp.release(self.addr);
        }
    }
}

/// Gives the caller's end what lives as long as it.
pub(crate) fn caller_of(pod: Option<&Arc<Pod>>, stream: Stream, load: Option<LoadGuard>) -> Result<Stream, NetError> {
    let stream = stream.with_load(load);
    match pod {
        Some(pod) => Ok({
            let registration = pod.register(stream.breaker())?;
            stream.with_registration(registration)
        }),
        None => Ok(stream),
    }
}
