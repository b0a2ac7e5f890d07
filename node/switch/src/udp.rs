//! Datagrams of pods: a bounded mailbox a socket.

use crate::dial::Target;
use crate::error::NetError;
use crate::pod::PodNet;
use crate::switch::canonical;
use crate::sync::lock;
use bytes::Bytes;
use dhow_mesh::{Origin, Proto, Route};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

/// The longest payload of a datagram over IPv4.
const PAYLOAD_MAX: usize = 65_507;
/// Datagrams that wait in one socket; the newest is dropped when it is full, as a kernel does.
const WAITING_MAX: usize = 256;
/// Bytes that wait in one socket: about a kernel's default receive buffer.
const WAITING_BYTES_MAX: usize = 256 * 1024;
/// Service addresses that one socket talks to, and as many outside. When full, all are forgotten: the next datagram chooses anew.
const FLOWS_MAX: usize = 256;

/// What has come in for a socket.
#[derive(Default)]
pub(crate) struct Mailbox(Mutex<Mail>);

#[derive(Default)]
struct Mail {
    waiting: VecDeque<(Bytes, SocketAddr)>,
    bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

impl Mailbox {
    /// Puts a datagram in, or drops it if there is no room.
    pub(crate) fn deliver(&self, payload: Bytes, from: SocketAddr) {
        let waker = {
            let mut mail = lock(&self.0);
            if mail.closed || mail.waiting.len() >= WAITING_MAX || mail.bytes + payload.len() > WAITING_BYTES_MAX {
                return;
            }
            mail.bytes += payload.len();
            mail.waiting.push_back((payload, from));
            mail.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn close(&self) {
        let waker = {
            let mut mail = lock(&self.0);
            mail.closed = true;
            mail.waiting.clear();
            mail.bytes = 0;
            mail.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn take(&self) -> Option<(Bytes, SocketAddr)> {
        let mut mail = lock(&self.0);
        let taken = mail.waiting.pop_front()?;
        mail.bytes -= taken.0.len();
        Some(taken)
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut mail = lock(&self.0);
        if !mail.waiting.is_empty() || mail.closed {
            return Poll::Ready(());
        }
        mail.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Makes a waiting reader look again.
    fn nudge(&self) {
        let waker = lock(&self.0).waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Whom a socket talks to.
#[derive(Default)]
struct Flows {
    /// Service address to the endpoint that was chosen for it, so that a conversation stays with one.
    services: BTreeMap<SocketAddr, SocketAddr>,
    /// Addresses outside of the cluster.
    outside: BTreeSet<SocketAddr>,
}

/// A UDP socket of a pod. Datagrams to pods, services and outside; what finds no room or no receiver is lost, as UDP
/// allows.
pub struct UdpSocket {
    net: PodNet,
    addr: SocketAddr,
    mailbox: Arc<Mailbox>,
    flows: Mutex<Flows>,
    /// The host's socket for destinations outside, made at the first of them.
    outside: OnceLock<tokio::net::UdpSocket>,
}

impl UdpSocket {
    pub(crate) fn new(net: PodNet, addr: SocketAddr, mailbox: Arc<Mailbox>) -> UdpSocket {
        UdpSocket { net, addr, mailbox, flows: Mutex::default(), outside: OnceLock::new() }
    }

    /// The address that it has taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sends one datagram. `Ok(false)` means "not now": wait for [`UdpSocket::poll_writable`].
    pub fn try_send_to(&self, payload: Bytes, to: SocketAddr) -> Result<bool, NetError> {
        if payload.len() > PAYLOAD_MAX {
            return Err(NetError::MessageTooLarge);
        }
        let to = canonical(to);
        if to.port() == 0 {
            return Err(NetError::AddrNotAvailable);
        }
        let from = self.from(self.net.ip());
        let len = payload.len();
        let sent = self.send(payload, from, to)?;
        if sent {
            self.net.pod.count_sent(len);
        }
        Ok(sent)
    }

    fn send(&self, payload: Bytes, from: SocketAddr, to: SocketAddr) -> Result<bool, NetError> {
        let switch = &self.net.switch;
        if switch.udp_gate().answer(from, to, &payload) {
            return Ok(true);
        }
        if to.ip().is_loopback() || to.ip() == self.net.ip() {
            if let Some(mailbox) = self.net.pod.mailbox(to) {
                mailbox.deliver(payload, self.from(to.ip()));
            }
            return Ok(true);
        }
        // An answer to a client that was forgotten meanwhile.
        if switch.gateway() == Some(to.ip()) {
            return Ok(true);
        }
        let to = self.endpoint(to)?;
        match switch.target(to)? {
            Target::Pod(pod) => {
                if let Some(mailbox) = pod.mailbox(to) {
                    mailbox.deliver(payload, from);
                }
            }
            Target::Node(node) => {
                switch.remote().ok_or(NetError::HostUnreachable)?.send_udp(&node, from, to, payload);
            }
            Target::Outside => return self.send_outside(&payload, to),
        }
        Ok(true)
    }

    /// The next datagram and its sender, if one waits.
    pub fn try_recv(&self) -> Option<(Bytes, SocketAddr)> {
        let (payload, from) = self.mailbox.take().or_else(|| self.recv_outside())?;
        self.net.pod.count_received(payload.len());
        // Whoever asked a service hears the service answer.
        let flows = lock(&self.flows);
        let service = flows.services.iter().find(|(_, endpoint)| **endpoint == from).map(|(service, _)| *service);
        Some((payload, service.unwrap_or(from)))
    }

    /// Ready when [`UdpSocket::try_recv`] has a datagram, or when the pod is gone.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.mailbox.poll_ready(cx).is_ready() {
            return Poll::Ready(());
        }
        match self.outside.get() {
            Some(socket) => socket.poll_recv_ready(cx).map(|_| ()),
            None => Poll::Pending,
        }
    }

    /// Ready when [`UdpSocket::try_send_to`] takes a datagram.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.outside.get() {
            Some(socket) => socket.poll_send_ready(cx).map(|_| ()),
            None => Poll::Ready(()),
        }
    }

    /// The sender's address as the receiver sees it, when it is reached over `ip`.
    fn from(&self, ip: IpAddr) -> SocketAddr {
        let ip = if self.addr.ip().is_unspecified() { ip } else { self.addr.ip() };
        SocketAddr::new(ip, self.addr.port())
    }

    /// For a service address the endpoint that this socket talks to; else the address itself.
    fn endpoint(&self, to: SocketAddr) -> Result<SocketAddr, NetError> {
        let switch = &self.net.switch;
        if switch.pod_at(to.ip()).is_some() {
            return Ok(to);
        }
        let backends = match switch.route(to, Proto::Udp) {
            Route::Service(backends) => backends,
            Route::Refused => return Err(NetError::Refused),
            Route::Unreachable => return Err(NetError::HostUnreachable),
            Route::Node(_) | Route::External => return Ok(to),
        };
        let mut flows = lock(&self.flows);
        if let Some(endpoint) =
            flows.services.get(&to).filter(|known| backends.endpoints.iter().any(|e| e.addr == **known))
        {
            return Ok(*endpoint);
        }
        let pick = backends.pick(self.net.ip(), Origin::Inside, &[], &mut switch.rng()).ok_or(NetError::Refused)?;
        if flows.services.len() >= FLOWS_MAX {
            flows.services.clear();
        }
        flows.services.insert(to, pick.addr);
        Ok(pick.addr)
    }

    fn send_outside(&self, payload: &[u8], to: SocketAddr) -> Result<bool, NetError> {
        let socket = match self.outside.get() {
            Some(socket) => socket,
            None => {
                let made = outside_socket(to).map_err(|error| NetError::of_connect(&error))?;
                let socket = self.outside.get_or_init(|| made);
                self.mailbox.nudge();
                socket
            }
        };
        {
            let mut flows = lock(&self.flows);
            if flows.outside.len() >= FLOWS_MAX && !flows.outside.contains(&to) {
                flows.outside.clear();
            }
            flows.outside.insert(to);
        }
        match socket.try_send_to(payload, to) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(NetError::of_connect(&error)),
        }
    }

    /// Only those who were sent something may answer: the host's socket is open to everyone, the pod's is not.
    fn recv_outside(&self) -> Option<(Bytes, SocketAddr)> {
        let socket = self.outside.get()?;
        // The kernel cuts what is longer than the buffer: offer it all that a datagram can be.
        let mut buffer = vec![0; PAYLOAD_MAX];
        loop {
            let (len, from) = socket.try_recv_from(&mut buffer).ok()?;
            if lock(&self.flows).outside.contains(&from) {
                return Some((Bytes::copy_from_slice(&buffer[..len]), from));
            }
        }
    }
}

/// A socket of the host on any port, of the destination's family.
fn outside_socket(to: SocketAddr) -> std::io::Result<tokio::net::UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    match tokio::runtime::Handle::try_current() {
        Ok(_) => tokio::net::UdpSocket::from_std(socket),
        Err(_) => Err(std::io::ErrorKind::Unsupported.into()),
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.net.udp_release(self.addr);
        self.mailbox.close();
    }
}
