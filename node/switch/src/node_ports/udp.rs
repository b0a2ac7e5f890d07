//! UDP through node ports. A client's datagrams go to the endpoint that was chosen for its first one, as long as that
//! is one; what the endpoint answers leaves by the socket of the port.
//!
//! A pod of this node sees the client's own address where nobody inside of the cluster can have it; else, and on other
//! nodes, whose answers would not come back here, it sees an address that this node answers for.

use crate::dial::Target;
use crate::egress::is_open;
use crate::node_ports::NodePort;
use crate::switch::Switch;
use crate::sync::{lock, read, write};
use bytes::Bytes;
use dhow_mesh::{Caller, Flow, Flows, Mask, Origin, Proto};
use dhow_types::Time;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::Instant;

/// Clients that talk through all node ports of a node at a time; about 300 bytes each. What happens beyond is told at
/// [`Flows`].
const FLOWS_MAX: usize = 16_384;
/// The longest datagram. The kernel cuts what is longer than the buffer.
const PAYLOAD_MAX: usize = 65_535;
/// How often the silent flows are looked for while no datagram comes.
const SWEEP: Duration = Duration::from_secs(10);
/// How long a failing receive rests.
const RECEIVE_REST: Duration = Duration::from_millis(50);
/// How many endpoints are tried for a datagram: as many as for a connection.
const ENDPOINTS_TRIED_MAX: usize = 2;

/// Where the datagrams of clients outside and those of pods meet.
pub(crate) struct UdpGate {
    began: Instant,
    flows: Mutex<Flows>,
    /// Whether there is any flow: pods' datagrams need not look otherwise.
    used: AtomicBool,
    sockets: RwLock<BTreeMap<u16, Arc<UdpSocket>>>,
}

impl UdpGate {
    pub(crate) fn new() -> UdpGate {
        UdpGate {
            began: Instant::now(),
            flows: Mutex::new(Flows::new(FLOWS_MAX)),
            used: AtomicBool::new(false),
            sockets: RwLock::default(),
        }
    }

    /// Sends what an endpoint says to what it believes to be a client. `false`: it is nobody of ours. What the host's
    /// socket has no room for is lost.
    pub(crate) fn answer(&self, endpoint: SocketAddr, to: SocketAddr, payload: &[u8]) -> bool {
        if !self.used.load(Ordering::Relaxed) {
            return false;
        }
        let Some(caller) = lock(&self.flows).answered(self.now(), endpoint, to) else { return false };
        let socket = read(&self.sockets).get(&caller.port).cloned();
        if let Some(Err(error)) = socket.map(|socket| socket.try_send_to(payload, caller.addr)) {
            tracing::trace!(%error, "answer through a node port is lost");
        }
        true
    }

    fn now(&self) -> Time {
        Time::from_ms(i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX))
    }

    /// Does something with the flows, those that were silent for too long having been forgotten.
    fn with<R>(&self, work: impl FnOnce(&mut Flows, Time) -> R) -> R {
        let now = self.now();
        let mut flows = lock(&self.flows);
        flows.expire(now);
        let result = work(&mut flows, now);
        self.used.store(!flows.is_empty(), Ordering::Relaxed);
        result
    }
}

/// The socket of a port, known to the switch as long as it is served.
pub(super) struct Open {
    switch: Switch,
    port: u16,
    socket: Arc<UdpSocket>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let gate = self.switch.udp_gate();
        write(&gate.sockets).remove(&self.port);
        gate.with(|flows, _| flows.close_port(self.port));
    }
}

pub(super) fn open(switch: &Switch, addr: SocketAddr) -> io::Result<Open> {
    let socket = std::net::UdpSocket::bind(addr)?;
    socket.set_nonblocking(true)?;
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    write(&switch.udp_gate().sockets).insert(addr.port(), socket.clone());
    Ok(Open { switch: switch.clone(), port: addr.port(), socket })
}

/// Takes a port's datagrams in until it is aborted.
pub(super) async fn receive(switch: Switch, open: Open, port: u16) {
    let mut buffer = vec![0; PAYLOAD_MAX];
    let mut failing = false;
    loop {
        let received = open.socket.recv_from(&mut buffer);
        let received = if switch.udp_gate().used.load(Ordering::Relaxed) {
            match tokio::time::timeout(SWEEP, received).await {
                Ok(received) => received,
                Err(_) => {
                    switch.udp_gate().with(|_, _| ());
                    continue;
                }
            }
        } else {
            received.await
        };
        match received {
            Ok((len, addr)) => {
                failing = false;
                forward(&switch, Caller { port, addr }, Bytes::copy_from_slice(&buffer[..len]));
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, port, "node port cannot receive");
                }
                tokio::time::sleep(RECEIVE_REST).await;
            }
        }
    }
}

/// Passes a client's datagram on; one that nobody takes is lost.
fn forward(switch: &Switch, caller: Caller, payload: Bytes) {
    let Some((flow, target)) = flow(switch, caller) else { return };
    match target {
        Target::Pod(pod) => {
            if let Some(mailbox) = pod.mailbox(flow.endpoint) {
                mailbox.deliver(payload, flow.seen_as);
            }
        }
        Target::Node(node) => {
            if let Some(remote) = switch.remote() {
                remote.send_udp(&node, flow.seen_as, flow.endpoint, payload);
            }
        }
        Target::Outside => {}
    }
}

/// The client's flow and where its endpoint is: the one that it has, or a new one if that endpoint does not answer for
/// the service any more.
fn flow(switch: &Switch, caller: Caller) -> Option<(Flow, Target)> {
    let (gate, backends) = (switch.udp_gate(), switch.node_port(NodePort { proto: Proto::Udp, number: caller.port })?);
    if let Some(flow) = gate.with(|flows, now| flows.asked(now, caller)) {
        let usable = backends.endpoints.binary_search_by_key(&flow.endpoint, |endpoint| endpoint.addr).is_ok();
        if usable && let Ok(target) = switch.target(flow.endpoint) {
            return Some((flow, target));
        }
        gate.with(|flows, _| flows.close(caller));
    }
    let address = switch.gateway()?;
    let mut tried = Vec::new();
    while tried.len() < ENDPOINTS_TRIED_MAX {
        let pick = backends.pick(caller.addr.ip(), Origin::Outside, &tried, &mut switch.rng())?;
        // An endpoint outside of the cluster would need a socket of the host for each client.
        let target = match switch.target(pick.addr) {
            Ok(target @ (Target::Pod(_) | Target::Node(_))) => target,
            Ok(Target::Outside) | Err(_) => {
                tried.push(pick.addr);
                continue;
            }
        };
        let own = matches!(target, Target::Pod(_)) && is_foreign(switch, caller.addr.ip());
        let opened = gate.with(|flows, now| flows.open(now, caller, &pick, Mask { address, own }));
        if opened.is_none() {
            tracing::debug!(port = caller.port, "too many clients talk through node ports, one is turned away");
        }
        return opened.map(|flow| (flow, target));
    }
    None
}

/// Whether only a client outside can have the address.
fn is_foreign(switch: &Switch, ip: IpAddr) -> bool {
    is_open(ip) && !switch.is_inside(ip)
}
