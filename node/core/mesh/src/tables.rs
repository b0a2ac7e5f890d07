//! The tables themselves: fed by updates, asked at every connect.

use crate::backends::{Backends, Endpoint, Load};
use crate::cidr::Cidr;
use crate::update::{NodeSpec, Proto, ServiceId, ServiceSpec, SliceSpec, Update};
use dhow_types::NodeName;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What the tables must know beforehand.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node whose tables these are.
    pub node: NodeName,
    /// The range that all pods' addresses come from.
    pub cluster_cidr: Cidr,
    /// The range that services' addresses come from.
    pub service_cidr: Cidr,
    /// The domain behind all names of the cluster.
    pub domain: String,
}

impl Config {
    /// The cluster's default ranges and domain.
    pub fn new(node: NodeName) -> Self {
        let range = |text: &str| text.parse().expect("the default ranges are well-formed");
        Self {
            node,
            cluster_cidr: range("10.64.0.0/10"),
            service_cidr: range("10.43.0.0/16"),
            domain: "cluster.local".to_owned(),
        }
    }
}

/// Where a connection to an address goes, if no pod of this node has the address.
#[derive(Clone, Debug)]
pub enum Route {
    /// To one of these endpoints.
    Service(Arc<Backends>),
    /// To a pod of that node.
    Node(NodeName),
    /// A service's address, but not one of its ports.
    Refused,
    /// An address of the cluster that nobody has.
    Unreachable,
    /// Out of the cluster.
    External,
}

/// Services, endpoints and nodes as this node knows them.
#[derive(Debug)]
pub struct Tables {
    pub(crate) config: Config,
    services: BTreeMap<ServiceId, Service>,
    /// Slices by service and name. Kept apart from the services: a slice may come before its service.
    slices: BTreeMap<ServiceId, BTreeMap<Arc<str>, SliceSpec>>,
    slice_owners: BTreeMap<(Arc<str>, Arc<str>), ServiceId>,
    fronts: BTreeMap<(SocketAddr, Proto), Arc<Backends>>,
    addresses: BTreeMap<IpAddr, ServiceId>,
    node_ports: BTreeMap<(Proto, u16), Arc<Backends>>,
    nodes: BTreeMap<NodeName, NodeSpec>,
    /// Ranges by their first address.
    pod_ranges: BTreeMap<IpAddr, (Cidr, NodeName)>,
    node_addresses: BTreeMap<IpAddr, NodeName>,
}

/// A service and the backends of its ports, in the ports' order.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) spec: ServiceSpec,
    backends: Vec<Arc<Backends>>,
}

impl Tables {
    /// Empty tables.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slice_owners: BTreeMap::new(),
            fronts: BTreeMap::new(),
            addresses: BTreeMap::new(),
            node_ports: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pod_ranges: BTreeMap::new(),
            node_addresses: BTreeMap::new(),
        }
    }

    /// Takes one change in. Its cost follows the size of the one service or node that it concerns.
    pub fn apply(&mut self, update: Update) {
        match update {
            Update::Service(spec) => self.put_service(spec),
            Update::ServiceGone(id) => drop(self.take_service(&id)),
            Update::Slice(slice) => self.put_slice(slice),
            Update::SliceGone(namespace, name) => self.remove_slice(&(namespace, name)),
            Update::Node(node) => self.put_node(node),
            Update::NodeGone(name) => self.remove_node(&name),
        }
    }

    /// Where a connection to `to` goes. Ask the node's own pods first.
    pub fn route(&self, to: SocketAddr, proto: Proto) -> Route {
        if let Some(backends) = self.fronts.get(&(to, proto)) {
            return Route::Service(backends.clone());
        }
        if self.addresses.contains_key(&to.ip()) {
            return Route::Refused;
        }
        if let Some(node) = self.node_of(to.ip()) {
            return Route::Node(node.clone());
        }
        if self.in_pod_range(to.ip()) || self.config.service_cidr.contains(to.ip()) {
            return Route::Unreachable;
        }
        match self.node_ports.get(&(proto, to.port())) {
            Some(backends) if self.node_addresses.contains_key(&to.ip()) => Route::Service(backends.clone()),
            _ => Route::External,
        }
    }

    /// The ports of this protocol that every node must listen on, in order.
    pub fn node_ports(&self, proto: Proto) -> impl Iterator<Item = u16> + '_ {
        self.node_ports.range((proto, 0)..=(proto, u16::MAX)).map(|((_, port), _)| *port)
    }

    /// Who answers on a port of every node.
    pub fn node_port(&self, proto: Proto, port: u16) -> Option<Arc<Backends>> {
        self.node_ports.get(&(proto, port)).cloned()
    }

    /// The node whose pods have addresses like `ip`.
    pub fn node_of(&self, ip: IpAddr) -> Option<&NodeName> {
        let (_, (range, node)) = self.pod_ranges.range(..=ip).next_back()?;
        range.contains(ip).then_some(node)
    }

    /// Where a node's QUIC endpoint answers.
    pub fn quic_addr(&self, node: &NodeName) -> Option<SocketAddr> {
        self.nodes.get(node)?.quic_addr
    }

    /// The address of this node's range that no pod gets: it stands for the node itself.
    pub fn gateway(&self) -> Option<IpAddr> {
        let range = self.nodes.get(&self.config.node)?.pod_cidrs.first()?;
        Some(match range.first() {
            IpAddr::V4(first) => IpAddr::V4(first.to_bits().checked_add(1)?.into()),
            IpAddr::V6(first) => IpAddr::V6(first.to_bits().checked_add(1)?.into()),
        })
    }

    /// Whether `ip` can only be a pod's.
    pub fn in_pod_range(&self, ip: IpAddr) -> bool {
        self.config.cluster_cidr.contains(ip) || self.node_of(ip).is_some()
    }

    /// Whether an address is one of the cluster: a pod's, a service's.
    pub fn is_inside(&self, ip: IpAddr) -> bool {
        self.in_pod_range(ip) || self.config.service_cidr.contains(ip) || self.addresses.contains_key(&ip)
    }

    pub(crate) fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.services.get(id)
    }

    /// The addresses of a service's usable endpoints, or only of the one with that host name, in order.
    pub(crate) fn endpoint_ips(&self, id: &ServiceId, hostname: Option<&str>) -> Vec<IpAddr> {
        let all = self.slices.get(id).into_iter().flat_map(BTreeMap::values).flat_map(|slice| &slice.endpoints);
        let mut ips: Vec<IpAddr> = all
            .filter(|endpoint| endpoint.ready)
            .filter(|endpoint| hostname.is_none() || endpoint.hostname.as_deref() == hostname)
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
            .collect();
        ips.sort();
        ips.dedup();
        ips
    }

    fn put_service(&mut self, spec: ServiceSpec) {
        let old = self.take_service(&spec.id);
        let backends: Vec<Arc<Backends>> =
            (0..spec.ports.len()).map(|port| Arc::new(self.backends(&spec, port, old.as_ref()))).collect();
        for ip in &spec.addresses {
            self.addresses.insert(*ip, spec.id.clone());
        }
        for (port, backends) in spec.ports.iter().zip(&backends) {
            for ip in &spec.addresses {
                self.fronts.insert((SocketAddr::new(*ip, port.port), port.proto), backends.clone());
            }
            if let Some(node_port) = port.node_port {
                self.node_ports.insert((port.proto, node_port), backends.clone());
            }
        }
        self.services.insert(spec.id.clone(), Service { spec, backends });
    }

    /// Takes a service out of all tables; entries that another service has claimed since stay.
    fn take_service(&mut self, id: &ServiceId) -> Option<Service> {
        let service = self.services.remove(id)?;
        for ip in &service.spec.addresses {
            if self.addresses.get(ip) == Some(id) {
                self.addresses.remove(ip);
            }
        }
        for port in &service.spec.ports {
            for ip in &service.spec.addresses {
                let key = (SocketAddr::new(*ip, port.port), port.proto);
                if self.fronts.get(&key).is_some_and(|b| b.service == *id) {
                    self.fronts.remove(&key);
                }
            }
            let key = port.node_port.map(|node_port| (port.proto, node_port));
            if let Some(key) = key.filter(|key| self.node_ports.get(key).is_some_and(|b| b.service == *id)) {
                self.node_ports.remove(&key);
            }
        }
        Some(service)
    }

    /// The backends of one port: ready endpoints, or else those that serve to their end. Counts of open connections
    /// are carried over from `old`.
    fn backends(&self, spec: &ServiceSpec, port: usize, old: Option<&Service>) -> Backends {
        let port = &spec.ports[port];
        let mut loads: BTreeMap<SocketAddr, Load> = BTreeMap::new();
        for backends in old.into_iter().flat_map(|old| &old.backends) {
            loads.extend(backends.endpoints.iter().map(|e| (e.addr, e.load.clone())));
        }
        let (mut ready, mut ending) = (BTreeMap::new(), BTreeMap::new());
        for slice in self.slices.get(&spec.id).into_iter().flat_map(BTreeMap::values) {
            let targets = slice.ports.iter().filter(|(name, proto, _)| *name == port.name && *proto == port.proto);
            for (_, _, number) in targets {
                for endpoint in &slice.endpoints {
                    let usable = match (endpoint.ready, endpoint.serving && endpoint.terminating) {
                        (true, _) => &mut ready,
                        (false, true) => &mut ending,
                        (false, false) => continue,
                    };
                    if let Some(ip) = endpoint.addresses.first() {
                        usable.insert(SocketAddr::new(*ip, *number), endpoint.node.clone());
                    }
                }
            }
        }
        let usable = if ready.is_empty() { ending } else { ready };
        Backends {
            service: spec.id.clone(),
            endpoints: usable
                .into_iter()
                .map(|(addr, node)| Endpoint { addr, node, load: loads.remove(&addr).unwrap_or_default() })
                .collect(),
            this_node: self.config.node.clone(),
            sticky: spec.sticky,
            internal_local: spec.internal_local,
            external_local: spec.external_local,
        }
    }

    fn put_slice(&mut self, slice: SliceSpec) {
        let key = (slice.service.namespace.clone(), slice.name.clone());
        if self.slice_owners.get(&key).is_some_and(|owner| *owner != slice.service) {
            self.remove_slice(&key);
        }
        let service = slice.service.clone();
        self.slice_owners.insert(key, service.clone());
        self.slices.entry(service.clone()).or_default().insert(slice.name.clone(), slice);
        self.refresh(&service);
    }

    fn remove_slice(&mut self, key: &(Arc<str>, Arc<str>)) {
        let Some(service) = self.slice_owners.remove(key) else { return };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&key.1);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.refresh(&service);
    }

    /// Makes a service's backends anew after its slices have changed.
    fn refresh(&mut self, id: &ServiceId) {
        if let Some(spec) = self.services.get(id).map(|service| service.spec.clone()) {
            self.put_service(spec);
        }
    }

    fn put_node(&mut self, node: NodeSpec) {
        self.remove_node(&node.name);
        for range in &node.pod_cidrs {
            // Of two nodes that claim one range, the first keeps it until it goes.
            self.pod_ranges.entry(range.first()).or_insert_with(|| (*range, node.name.clone()));
        }
        for ip in &node.addresses {
            self.node_addresses.insert(*ip, node.name.clone());
        }
        self.nodes.insert(node.name.clone(), node);
    }

    fn remove_node(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.remove(name) else { return };
        for range in &node.pod_cidrs {
            if self.pod_ranges.get(&range.first()).is_some_and(|(_, owner)| owner == name) {
                self.pod_ranges.remove(&range.first());
            }
        }
        for ip in &node.addresses {
            if self.node_addresses.get(ip) == Some(name) {
                self.node_addresses.remove(ip);
            }
        }
    }
}

#[cfg(test)]
mod tests;
