//! The endpoints behind one port of a service, and the choice among them.

use crate::update::ServiceId;
use dhow_types::{NodeName, Rng};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many connections an endpoint has open through one service port. Shared by all tables' versions that know the
/// endpoint.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<AtomicU32>);

impl Load {
    /// Counts one more connection until the guard is dropped.
    pub fn begin(&self) -> LoadGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        LoadGuard(self.clone())
    }

    /// How many connections are open.
    pub fn open(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One open connection in its endpoint's [`Load`].
#[derive(Debug)]
pub struct LoadGuard(Load);

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One pod that answers for a service port.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address and target port.
    pub addr: SocketAddr,
    /// The node that it runs on, if the slice says so.
    pub node: Option<NodeName>,
    /// Its open connections.
    pub load: Load,
}

/// Where a connection to a service comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From a pod or the node, to a cluster address.
    Inside,
    /// From outside the cluster, through a NodePort.
    Outside,
}

/// Everything that may answer for one port of a service. Immutable: a change of the world makes a new one.
#[derive(Debug)]
pub struct Backends {
    /// Whose endpoints these are.
    pub service: ServiceId,
    /// The usable endpoints in address order: the ready ones, or, if there are none, those that still serve while
    /// they terminate.
    pub endpoints: Vec<Endpoint>,
    pub(crate) this_node: NodeName,
    pub(crate) sticky: bool,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
}

/// The endpoint that was chosen for a connection.
#[derive(Clone, Debug)]
pub struct Pick {
    /// Where to connect to.
    pub addr: SocketAddr,
    /// Where to count the connection.
    pub load: Load,
}

impl Backends {
    /// Chooses an endpoint for a connection of `client`: the less loaded of two random ones, or always the same one
    /// where the service is sticky. Endpoints in `tried` are left out. `None`: there is nobody to ask.
    pub fn pick(&self, client: IpAddr, origin: Origin, tried: &[SocketAddr], rng: &mut Rng) -> Option<Pick> {
        let only_local = match origin {
            Origin::Inside => self.internal_local,
            Origin::Outside => self.external_local,
        };
        let chosen = if only_local || !tried.is_empty() {
            let usable =
                |e: &&Endpoint| !tried.contains(&e.addr) && (!only_local || e.node.as_ref() == Some(&self.this_node));
            let some: Vec<&Endpoint> = self.endpoints.iter().filter(usable).collect();
            self.choose(&some, client, rng).map(|at| some[at])
        } else {
            self.choose(&self.endpoints, client, rng).map(|at| &self.endpoints[at])
        };
        chosen.map(|endpoint| Pick { addr: endpoint.addr, load: endpoint.load.clone() })
    }

    /// The place of the chosen one in `from`.
    fn choose<E: AsRef<Endpoint>>(&self, from: &[E], client: IpAddr, rng: &mut Rng) -> Option<usize> {
        if self.sticky {
            // The highest draw wins, so that one endpoint's coming or going moves only its own clients.
            return (0..from.len()).max_by_key(|at| draw(client, from[*at].as_ref().addr));
        }
        let count = from.len() as u64;
        match count {
            0 => None,
            1 => Some(0),
            _ => {
                let first = rng.below(count);
                let other = (first + 1 + rng.below(count - 1)) % count;
                let open = |at: u64| from[at as usize].as_ref().load.open();
                Some(if open(other) < open(first) { other } else { first } as usize)
            }
        }
    }
}

impl AsRef<Endpoint> for Endpoint {
    fn as_ref(&self) -> &Endpoint {
        self
    }
}

/// A number that follows from the pair alone (rendezvous hashing).
fn draw(client: IpAddr, endpoint: SocketAddr) -> u64 {
    let fold = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64 ^ v6.to_bits() as u64,
    };
    let client = Rng::new(fold(client)).next_u64();
    let endpoint = Rng::new(fold(endpoint.ip()) ^ (u64::from(endpoint.port()) << 48)).next_u64();
    Rng::new(client ^ endpoint.rotate_left(17)).next_u64()
}
