//! The switch: every pod of the node, the tables of the service network, and the ways out.

use crate::dial::{Dial, Started, Target};
use crate::egress::{Egress, is_open};
use crate::error::NetError;
use crate::node_ports::{NodePort, UdpGate};
use crate::pod::{Pod, PodIdentity, PodNet};
use crate::stream::{Ends, Stream};
use crate::sync::{lock, read, write};
use bytes::Bytes;
use dhow_mesh::{Answer, Backends, Proto, Route, Tables, Update};
use dhow_types::{NodeName, Rng, Uid};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

/// How long the host's resolver may take: guests give up after about as long.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Look-ups that the host's resolver does at once; each holds one of the runtime's blocking threads. Others wait.
const LOOKUPS_MAX: usize = 16;
/// How many `ExternalName`s may point to each other before we call it a circle.
const ALIASES_MAX: usize = 8;

/// A future in a box.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Anything that carries bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The way to the pods of other nodes.
pub trait Remote: Send + Sync {
    /// Connects `from` here with `to` on `node`.
    fn connect(
        &self,
        node: &NodeName,
        from: SocketAddr,
        to: SocketAddr,
    ) -> BoxFuture<Result<Box<dyn Duplex>, NetError>>;

    /// Sends one datagram to a pod on `node`; it may get lost.
    fn send_udp(&self, node: &NodeName, from: SocketAddr, to: SocketAddr, payload: Bytes);
}

/// What a switch must know beforehand.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node.
    pub node: NodeName,
    /// The address from which the node itself connects to pods.
    pub node_ip: IpAddr,
    /// The cluster's ranges and domain.
    pub mesh: dhow_mesh::Config,
    /// What pods may reach outside.
    pub egress: Egress,
}

impl Config {
    /// The default ranges, the default rule for egress.
    pub fn new(node: NodeName, node_ip: IpAddr) -> Self {
        Self { mesh: dhow_mesh::Config::new(node.clone()), node, node_ip, egress: Egress::default() }
    }
}

/// The pod network of one node. Cheap to clone.
#[derive(Clone)]
pub struct Switch(Arc<Inner>);

struct Inner {
    node: NodeName,
    node_ip: IpAddr,
    egress: RwLock<Egress>,
    runtime: Handle,
    /// Held for a look-up or for taking one update in: microseconds both.
    tables: RwLock<Tables>,
    pods: RwLock<Pods>,
    remote: RwLock<Option<Arc<dyn Remote>>>,
    chance: AtomicU64,
    node_port: AtomicU16,
    udp_gate: UdpGate,
    lookups: Arc<Semaphore>,
    /// Connects under way and streams to other nodes. Each ends with the pod's end of the stream, or with the switch.
    tasks: Mutex<JoinSet<()>>,
    /// Grows with every change of the tables.
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct Pods {
    by_uid: BTreeMap<Uid, Arc<Pod>>,
    by_ip: BTreeMap<IpAddr, Arc<Pod>>,
}

impl Switch {
    /// A switch without pods. Its waiting work runs on the tokio runtime from which this is called.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(config: Config) -> Switch {
        let Config { node, node_ip, mesh, egress } = config;
        Switch(Arc::new(Inner {
            node,
            node_ip,
            egress: RwLock::new(egress),
            runtime: Handle::current(),
            tables: RwLock::new(Tables::new(mesh)),
            pods: RwLock::default(),
            remote: RwLock::default(),
            chance: AtomicU64::new(1),
            node_port: AtomicU16::new(0),
            udp_gate: UdpGate::new(),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            tasks: Mutex::default(),
            version: watch::Sender::new(0),
        }))
    }

    /// Lets a pod in. A pod that is there already under this UID is given back as it is; one that held the address
    /// before loses it.
    pub fn add_pod(&self, identity: PodIdentity) -> PodNet {
        let mut pods = write(&self.0.pods);
        let pod = match pods.by_uid.get(&identity.uid) {
            Some(pod) => pod.clone(),
            None => {
                let (uid, ip) = (identity.uid.clone(), identity.ip);
                let pod = Arc::new(Pod::new(identity));
                pods.by_ip.insert(ip, pod.clone());
                pods.by_uid.insert(uid, pod.clone());
                pod
            }
        };
        PodNet { pod, switch: self.clone() }
    }

    /// The network of a pod that has been let in.
    pub fn pod(&self, uid: &Uid) -> Option<PodNet> {
        let pod = read(&self.0.pods).by_uid.get(uid).cloned()?;
        Some(PodNet { pod, switch: self.clone() })
    }

    /// Takes a pod out: its connections break, whoever waits on its sockets is woken with an error.
    pub fn remove_pod(&self, uid: &Uid) {
        let removed = {
            let mut pods = write(&self.0.pods);
            let removed = pods.by_uid.remove(uid);
            if let Some(pod) = &removed {
                let ip = pod.identity.ip;
                if pods.by_ip.get(&ip).is_some_and(|holder| Arc::ptr_eq(holder, pod)) {
                    pods.by_ip.remove(&ip);
                }
            }
            removed
        };
        if let Some(pod) = removed {
            pod.close();
        }
    }

    /// Takes one change of services, endpoints or nodes in.
    pub fn apply(&self, update: Update) {
        write(&self.0.tables).apply(update);
        self.0.version.send_modify(|version| *version += 1);
    }

    /// Lets pods reach an address that may be closed to them by the general rule, until [`Switch::forbid_egress`] was
    /// called as often.
    pub fn allow_egress(&self, to: SocketAddr) {
        write(&self.0.egress).allow.push(to);
    }

    /// Takes back what [`Switch::allow_egress`] allowed once.
    pub fn forbid_egress(&self, to: SocketAddr) {
        let allow = &mut write(&self.0.egress).allow;
        if let Some(at) = allow.iter().rposition(|known| *known == to) {
            allow.remove(at);
        }
    }

    /// Sets the way to other nodes.
    pub fn set_remote(&self, remote: Arc<dyn Remote>) {
        *write(&self.0.remote) = Some(remote);
    }

    /// Connects from the node itself: probes, for one.
    pub fn dial(&self, to: SocketAddr) -> Connecting {
        self.connect_from(None, None, to)
    }

    /// Connects to whatever listens on a pod's port, on its own loopback too, as port-forward does.
    pub fn dial_pod(&self, uid: &Uid, port: u16) -> Result<Stream, NetError> {
        let pod = read(&self.0.pods).by_uid.get(uid).cloned().ok_or(NetError::HostUnreachable)?;
        let to = pod.listening_on(port).ok_or(NetError::Refused)?;
        pod.connect(Ends { from: self.node_from(), called: to, to })
    }

    /// Connects a caller on another node with a pod here. `peer` is the node that the caller's address is believed to
    /// be on: it may not speak for the pods of other nodes.
    pub fn accept_remote(&self, peer: &NodeName, from: SocketAddr, to: SocketAddr) -> Result<Stream, NetError> {
        self.check_claim(peer, from.ip())?;
        let pod = self.pod_at(to.ip()).ok_or(NetError::HostUnreachable)?;
        pod.connect(Ends { from, called: to, to })
    }

    /// Takes a datagram from another node in; one that nobody wants is dropped.
    pub fn accept_remote_udp(&self, peer: &NodeName, from: SocketAddr, to: SocketAddr, payload: Bytes) {
        if self.check_claim(peer, from.ip()).is_err() || self.0.udp_gate.answer(from, to, &payload) {
            return;
        }
        if let Some(mailbox) = self.pod_at(to.ip()).and_then(|pod| pod.mailbox(to)) {
            mailbox.deliver(payload, from);
        }
    }

    /// Where a node's QUIC endpoint answers.
    pub fn quic_addr(&self, node: &NodeName) -> Option<SocketAddr> {
        read(&self.0.tables).quic_addr(node)
    }

    /// The node whose switch this is.
    pub fn node(&self) -> &NodeName {
        &self.0.node
    }

    /// Removes all pods, ends all work, and forgets the way to other nodes.
    pub fn close(&self) {
        let pods = std::mem::take(&mut *write(&self.0.pods));
        pods.by_uid.values().for_each(|pod| pod.close());
        lock(&self.0.tasks).abort_all();
        *write(&self.0.remote) = None;
    }

    /// A node may speak for its own pods and for itself. A range that we do not know yet is let through: our tables
    /// may be a moment behind, and the peer's certificate is the cluster's.
    fn check_claim(&self, peer: &NodeName, from: IpAddr) -> Result<(), NetError> {
        match read(&self.0.tables).node_of(from) {
            Some(owner) if owner != peer => Err(NetError::Denied),
            _ => Ok(()),
        }
    }

    pub(crate) fn connect_from(
        &self,
        source: Option<&Arc<Pod>>,
        bound: Option<SocketAddr>,
        to: SocketAddr,
    ) -> Connecting {
        let to = canonical(to);
        let dial = match Dial::to(self, source, to) {
            Ok(dial) => dial,
            Err(error) => return Connecting(State::Done(Some(Err(error)))),
        };
        let ip = match source {
            Some(_) if to.ip().is_loopback() => to.ip(),
            Some(pod) => pod.identity.ip,
            None => self.0.node_ip,
        };
        let from = match (bound, source) {
            (Some(bound), _) if bound.ip().is_unspecified() => SocketAddr::new(ip, bound.port()),
            (Some(bound), _) => bound,
            (None, Some(pod)) => SocketAddr::new(ip, pod.ephemeral(ip)),
            (None, None) => self.node_from(),
        };
        match dial.start(from) {
            Started::Done(result) => Connecting(State::Done(Some(result))),
            Started::Waits(waiting) => {
                let (done, result) = oneshot::channel();
                self.spawn(waiting.run(done));
                Connecting(State::Waits(result))
            }
        }
    }

    pub(crate) fn resolve_for(&self, pod: &Pod, name: &str) -> Resolving {
        let identity = &pod.identity;
        let known = match name {
            name if !name.is_empty() && name == identity.hostname => Ok(vec![identity.ip]),
            name if !pod.host(name).is_empty() => Ok(pod.host(name)),
            name => match self.resolve_inside(name, &identity.namespace) {
                Resolved::Known(answer) => answer,
                Resolved::Outside(_) if read(&self.0.egress).closed => Err(NetError::NameNotFound),
                Resolved::Outside(name) => {
                    let (done, result) = oneshot::channel();
                    self.spawn(lookup(self.0.lookups.clone(), name, done));
                    return Resolving(Resolution::Waits(result));
                }
            },
        };
        Resolving(Resolution::Done(Some(known)))
    }

    fn resolve_inside(&self, name: &str, namespace: &str) -> Resolved {
        let tables = read(&self.0.tables);
        let mut name = name.to_owned();
        for _ in 0..ALIASES_MAX {
            match tables.resolve(&name, namespace) {
                Answer::Addresses(ips) if ips.is_empty() => return Resolved::Known(Err(NetError::NameNotFound)),
                Answer::Addresses(ips) => return Resolved::Known(Ok(ips)),
                Answer::NotFound => return Resolved::Known(Err(NetError::NameNotFound)),
                Answer::NotOurs => return Resolved::Outside(name),
                // An alias is a full name: the search list is not for it.
                Answer::Alias(alias) => name = format!("{}.", alias.trim_end_matches('.')),
            }
        }
        Resolved::Known(Err(NetError::NameNotFound))
    }

    /// Runs a task that ends with the switch at the latest.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.0.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.0.runtime);
    }

    /// Where an address of a pod, or outside, is.
    pub(crate) fn target(&self, to: SocketAddr) -> Result<Target, NetError> {
        if let Some(pod) = self.pod_at(to.ip()) {
            return Ok(Target::Pod(pod));
        }
        let tables = read(&self.0.tables);
        match tables.node_of(to.ip()) {
            Some(node) if *node == self.0.node => Err(NetError::HostUnreachable),
            Some(node) => Ok(Target::Node(node.clone())),
            None if tables.in_pod_range(to.ip()) => Err(NetError::HostUnreachable),
            None => self.check_egress(to).map(|()| Target::Outside),
        }
    }

    pub(crate) fn pod_at(&self, ip: IpAddr) -> Option<Arc<Pod>> {
        read(&self.0.pods).by_ip.get(&ip).cloned()
    }

    pub(crate) fn route(&self, to: SocketAddr, proto: Proto) -> Route {
        read(&self.0.tables).route(to, proto)
    }

    /// The ports that the services want every node to have, in order.
    pub(crate) fn node_ports(&self) -> Vec<NodePort> {
        let tables = read(&self.0.tables);
        let of = |proto| tables.node_ports(proto).map(move |number| NodePort { proto, number });
        of(Proto::Tcp).chain(of(Proto::Udp)).collect()
    }

    pub(crate) fn node_port(&self, port: NodePort) -> Option<Arc<Backends>> {
        read(&self.0.tables).node_port(port.proto, port.number)
    }

    pub(crate) fn udp_gate(&self) -> &UdpGate {
        &self.0.udp_gate
    }

    /// The address by which pods of other nodes see this node.
    pub(crate) fn gateway(&self) -> Option<IpAddr> {
        read(&self.0.tables).gateway()
    }

    /// Whether an address is one of the cluster: a pod's, a service's.
    pub(crate) fn is_inside(&self, ip: IpAddr) -> bool {
        self.pod_at(ip).is_some() || read(&self.0.tables).is_inside(ip)
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    pub(crate) fn remote(&self) -> Option<Arc<dyn Remote>> {
        read(&self.0.remote).clone()
    }

    /// Whether a pod may talk to an address outside.
    pub(crate) fn check_egress(&self, to: SocketAddr) -> Result<(), NetError> {
        read(&self.0.egress).check(to)
    }

    pub(crate) fn node_ip(&self) -> IpAddr {
        self.0.node_ip
    }

    pub(crate) fn runtime(&self) -> Handle {
        self.0.runtime.clone()
    }

    /// A source of chance for one decision.
    pub(crate) fn rng(&self) -> Rng {
        Rng::new(self.0.chance.fetch_add(1, Ordering::Relaxed))
    }

    /// An address for a connection of the node itself.
    pub(crate) fn node_from(&self) -> SocketAddr {
        let port = 32_768 + self.0.node_port.fetch_add(1, Ordering::Relaxed) % 28_232;
        SocketAddr::new(self.0.node_ip, port)
    }
}

/// An IPv4 address in its own form, and "this host" as its loopback, as Linux takes them.
pub(crate) fn canonical(to: SocketAddr) -> SocketAddr {
    let ip = match to.ip().to_canonical() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, to.port())
}

enum Resolved {
    Known(Result<Vec<IpAddr>, NetError>),
    Outside(String),
}

/// Asks the host's resolver; addresses that no pod may reach are left out.
async fn lookup(lookups: Arc<Semaphore>, name: String, mut done: oneshot::Sender<Result<Vec<IpAddr>, NetError>>) {
    let ask = async {
        let _turn = lookups.acquire().await;
        tokio::net::lookup_host((name.as_str(), 0)).await
    };
    let answer = tokio::select! {
        answer = tokio::time::timeout(LOOKUP_TIMEOUT, ask) => answer,
        () = done.closed() => return,
    };
    let result = match answer {
        Err(_) => Err(NetError::ResolverFailure),
        Ok(Err(error)) => {
            tracing::debug!(%error, name, "host's resolver has no answer");
            Err(NetError::NameNotFound)
        }
        Ok(Ok(found)) => {
            let mut ips: Vec<IpAddr> = Vec::new();
            for ip in found.map(|addr| addr.ip()).filter(|ip| is_open(*ip)) {
                if !ips.contains(&ip) {
                    ips.push(ip);
                }
            }
            if ips.is_empty() { Err(NetError::NameNotFound) } else { Ok(ips) }
        }
    };
    drop(done.send(result));
}

/// A connect on its way. Ready at once when the other end is on this node; dropped, it is given up.
pub struct Connecting(State);

enum State {
    Done(Option<Result<Stream, NetError>>),
    Waits(oneshot::Receiver<Result<Stream, NetError>>),
}

impl Future for Connecting {
    type Output = Result<Stream, NetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Done(result) => Poll::Ready(result.take().unwrap_or(Err(NetError::InvalidState))),
            State::Waits(result) => Pin::new(result).poll(cx).map(|done| done.unwrap_or(Err(NetError::Reset))),
        }
    }
}

/// A name on its way to its addresses.
pub struct Resolving(Resolution);

enum Resolution {
    Done(Option<Result<Vec<IpAddr>, NetError>>),
    Waits(oneshot::Receiver<Result<Vec<IpAddr>, NetError>>),
}

impl Future for Resolving {
    type Output = Result<Vec<IpAddr>, NetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Resolution::Done(result) => Poll::Ready(result.take().unwrap_or(Err(NetError::InvalidState))),
            Resolution::Waits(result) => {
                Pin::new(result).poll(cx).map(|done| done.unwrap_or(Err(NetError::ResolverFailure)))
            }
        }
    }
}
