//! How a connect finds its way: to a pod here, to a pod of another node, out of the cluster; for a service, first to
//! the endpoint that the tables choose, then once more to another one if that refuses.

use crate::error::NetError;
use crate::host_stream::HostStream;
use crate::pod::{Pod, caller_of};
use crate::splice::splice;
use crate::stream::{Ends, Stream};
use crate::switch::{Duplex, Switch};
use dhow_mesh::{Backends, LoadGuard, Origin, Proto, Route};
use dhow_types::NodeName;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How many endpoints of a service one connect tries: a pod that has just gone is still in the table for a moment,
/// two at once are rare.
const ENDPOINTS_TRIED_MAX: usize = 2;
/// How long another node, or a host outside, may take to answer a connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connect on its way.
pub(crate) struct Dial {
    switch: Switch,
    /// The pod that connects; `None` is the node itself.
    pub(crate) source: Option<Arc<Pod>>,
    to: SocketAddr,
    client: IpAddr,
    origin: Origin,
    way: Way,
    tried: Vec<SocketAddr>,
    failure: NetError,
}

enum Way {
    /// To `to` itself.
    Straight(Target),
    /// To an endpoint of a service.
    Service(Arc<Backends>),
}

/// Where an address is.
#[derive(Clone)]
pub(crate) enum Target {
    /// In a pod of this node.
    Pod(Arc<Pod>),
    /// In a pod of that node.
    Node(NodeName),
    /// Outside of the cluster.
    Outside,
}

/// One attempt.
pub(crate) struct Hop {
    pub(crate) target: Target,
    pub(crate) addr: SocketAddr,
    pub(crate) load: Option<LoadGuard>,
}

impl Dial {
    /// A connect of a pod, or of the node, to any address.
    pub(crate) fn to(switch: &Switch, source: Option<&Arc<Pod>>, to: SocketAddr) -> Result<Dial, NetError> {
        if to.port() == 0 {
            return Err(NetError::AddrNotAvailable);
        }
        let own = source.filter(|pod| to.ip().is_loopback() || to.ip() == pod.identity.ip);
        let way = match own.cloned().or_else(|| switch.pod_at(to.ip())) {
            Some(pod) => Way::Straight(Target::Pod(pod)),
            None => match switch.route(to, Proto::Tcp) {
                Route::Service(backends) => Way::Service(backends),
                Route::Refused => return Err(NetError::Refused),
                Route::Unreachable => return Err(NetError::HostUnreachable),
                Route::Node(_) | Route::External => Way::Straight(switch.target(to)?),
            },
        };
        let client = source.map_or(switch.node_ip(), |pod| pod.identity.ip);
        Ok(Dial::new(switch, source, to, Caller { client, origin: Origin::Inside }, way))
    }

    /// A connection from outside to the endpoints of a node port.
    pub(crate) fn from_outside(switch: &Switch, client: IpAddr, to: SocketAddr, backends: Arc<Backends>) -> Dial {
        Dial::new(switch, None, to, Caller { client, origin: Origin::Outside }, Way::Service(backends))
    }

    fn new(switch: &Switch, source: Option<&Arc<Pod>>, to: SocketAddr, caller: Caller, way: Way) -> Dial {
        let Caller { client, origin } = caller;
        let (switch, source) = (switch.clone(), source.cloned());
        Dial { switch, source, to, client, origin, way, tried: Vec::new(), failure: NetError::Refused }
    }

    /// What to try next, or why there is nothing left to try.
    pub(crate) fn next(&mut self) -> Result<Hop, NetError> {
        loop {
            let backends = match &self.way {
                Way::Straight(target) if self.tried.is_empty() => {
                    return Ok(Hop { target: target.clone(), addr: self.to, load: None });
                }
                Way::Service(backends) if self.tried.len() < ENDPOINTS_TRIED_MAX => backends.clone(),
                _ => return Err(self.failure),
            };
            let pick = backends.pick(self.client, self.origin, &self.tried, &mut self.switch.rng());
            let Some(pick) = pick else { return Err(self.failure) };
            match self.switch.target(pick.addr) {
                Ok(target) => return Ok(Hop { target, addr: pick.addr, load: Some(pick.load.begin()) }),
                Err(error) => self.failed(pick.addr, error),
            }
        }
    }

    /// Notes that an attempt has failed.
    pub(crate) fn failed(&mut self, addr: SocketAddr, error: NetError) {
        self.tried.push(addr);
        self.failure = error;
    }

    /// Makes the connection as far as that needs no waiting.
    pub(crate) fn start(mut self, from: SocketAddr) -> Started {
        loop {
            let hop = match self.next() {
                Ok(hop) => hop,
                Err(error) => return Started::Done(Err(error)),
            };
            match self.try_here(hop, from) {
                Tried::Done(stream) => return Started::Done(Ok(stream)),
                Tried::Failed(addr, error) => self.failed(addr, error),
                Tried::Elsewhere(hop) => return Started::Waits(Waiting { dial: self, hop, from }),
            }
        }
    }

    fn try_here(&self, hop: Hop, from: SocketAddr) -> Tried {
        let Target::Pod(pod) = &hop.target else { return Tried::Elsewhere(hop) };
        let addr = hop.addr;
        let made = pod.connect(Ends { from, called: self.to, to: addr });
        match made.and_then(|stream| caller_of(self.source.as_ref(), stream, hop.load)) {
            Ok(stream) => Tried::Done(stream),
            Err(error) => Tried::Failed(addr, error),
        }
    }

    /// Reaches a hop that is not on this node.
    pub(crate) async fn reach(&self, hop: &Hop, from: SocketAddr) -> Result<Reached, NetError> {
        let connect = async {
            match &hop.target {
                Target::Node(node) => {
                    let remote = self.switch.remote().ok_or(NetError::HostUnreachable)?;
                    Ok(Reached::Duplex(remote.connect(node, from, hop.addr).await?))
                }
                Target::Pod(_) | Target::Outside => {
                    self.switch.check_egress(hop.addr)?;
                    let socket = tokio::net::TcpStream::connect(hop.addr).await;
                    socket.map(Reached::Socket).map_err(|error| NetError::of_connect(&error))
                }
            }
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connect).await.unwrap_or(Err(NetError::TimedOut))
    }
}

/// Whose connection it is.
struct Caller {
    client: IpAddr,
    origin: Origin,
}

/// What came of a connect so far.
pub(crate) enum Started {
    Done(Result<Stream, NetError>),
    Waits(Waiting),
}

enum Tried {
    Done(Stream),
    Failed(SocketAddr, NetError),
    Elsewhere(Hop),
}

/// The other end of a connection that is not on this node.
pub(crate) enum Reached {
    Duplex(Box<dyn Duplex>),
    Socket(tokio::net::TcpStream),
}

/// The caller's end, and, for a stream to another node, the two that are left to be carried.
type Made = (Stream, Option<(Stream, Box<dyn Duplex>)>);

/// A connect that has to wait for another machine.
pub(crate) struct Waiting {
    dial: Dial,
    hop: Hop,
    from: SocketAddr,
}

impl Waiting {
    /// Carries the connect on, gives the stream to `done`, and then carries the bytes of a stream to another node until
    /// it ends. Ends early when nobody waits for the result any more.
    pub(crate) async fn run(self, mut done: oneshot::Sender<Result<Stream, NetError>>) {
        let made = tokio::select! {
            made = self.connect() => made,
            () = done.closed() => return,
        };
        let (result, carried) = match made {
            Ok((stream, carried)) => (Ok(stream), carried),
            Err(error) => (Err(error), None),
        };
        // Whoever has gone meanwhile drops the stream, which ends the carrying too.
        drop(done.send(result));
        if let Some((inner, duplex)) = carried
            && let Err(error) = splice(inner, duplex).await
        {
            tracing::trace!(%error, "stream to another node broke");
        }
    }

    async fn connect(self) -> Result<Made, NetError> {
        let Waiting { mut dial, mut hop, from } = self;
        loop {
            let addr = hop.addr;
            match dial.reach(&hop, from).await.and_then(|reached| dial.join(reached, hop.load.take(), from, addr)) {
                Ok(made) => return Ok(made),
                Err(error) => dial.failed(addr, error),
            }
            hop = loop {
                let next = dial.next()?;
                match dial.try_here(next, from) {
                    Tried::Done(stream) => return Ok((stream, None)),
                    Tried::Failed(addr, error) => dial.failed(addr, error),
                    Tried::Elsewhere(hop) => break hop,
                }
            };
        }
    }
}

impl Dial {
    /// Gives the caller its end of what was reached, and what is left to carry.
    fn join(
        &self,
        reached: Reached,
        load: Option<LoadGuard>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Made, NetError> {
        let (stream, carried) = match reached {
            Reached::Duplex(duplex) => {
                let (caller, inner) = Stream::pair(Ends { from, called: self.to, to });
                (caller, Some((inner, duplex)))
            }
            Reached::Socket(socket) => {
                if let Err(error) = socket.set_nodelay(true) {
                    tracing::debug!(%error, "socket keeps its delay");
                }
                (Stream::host(HostStream::new(socket, self.switch.runtime()), from, self.to), None)
            }
        };
        Ok((caller_of(self.source.as_ref(), stream, load)?, carried))
    }
}
