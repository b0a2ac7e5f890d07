//! One UDP port that dials and accepts.

use crate::connection::Connection;
use crate::error::QuicError;
use crate::tls::Tls;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

/// A link that says nothing for so long is dead.
const IDLE: Duration = Duration::from_secs(30);
/// How often a quiet link says something: several times within [`IDLE`], and often enough for NATs.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Streams that a peer may have open at first. quinn sets memory aside for each, so that a link begins small and
/// [`Connection`] raises the limit as it is needed.
pub(crate) const STREAMS_START: u32 = 256;
/// Unread bytes: of one stream, of all streams of a link, and unacknowledged ones on the way out.
const STREAM_WINDOW: u32 = 1024 * 1024;
const LINK_WINDOW: u32 = 32 * 1024 * 1024;
const SEND_WINDOW: u64 = 8 * 1024 * 1024;
/// The largest packet that is tried: larger ones than Ethernet's are found on loopback and on networks with jumbo frames,
/// and cost the same work as small ones. quinn hands the kernel up to ten packets at once, which may not take 64 KiB.
const PACKET_BYTES_MAX: u16 = 6_500;
/// The kernel's buffers for the port; it gives less if its own limit is lower.
const SOCKET_BYTES: usize = 4 * 1024 * 1024;
/// A control node that says nothing for so long is given up: a new leader is there by then, and a fresh link tells more
/// than a dead one. How often a quiet link says something is a quarter of it.
const CONTROL_IDLE: Duration = Duration::from_secs(4);
/// How long the last words to the peers may take. They leave with the next turn of each connection's task, and nobody
/// answers them: to wait longer would be to wait for nothing.
const FAREWELL: Duration = Duration::from_millis(50);
/// Handshakes under way. From half of it on a caller must first show that its address is real; beyond it, it is
/// refused.
const HANDSHAKES_MAX: usize = 256;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Made connections that wait to be accepted; more wait in their handshakes.
const ACCEPTED_MAX: usize = 64;

/// One UDP port with an identity. Cheap to clone; [`Endpoint::close`] ends it for all.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    endpoint: quinn::Endpoint,
    addr: SocketAddr,
    /// With what it dials: exchanged when the certificate is renewed.
    client: RwLock<Arc<QuicClientConfig>>,
    accepted: Mutex<mpsc::Receiver<Connection>>,
    strangers: watch::Receiver<u64>,
    acceptor: JoinHandle<()>,
}

impl Endpoint {
    /// Opens the port. Call it inside a tokio runtime.
    pub fn bind(addr: SocketAddr, tls: &Tls) -> Result<Endpoint, QuicError> {
        let socket = UdpSocket::bind(addr).map_err(|error| QuicError::Bind { addr, reason: error.to_string() })?;
        Endpoint::on(socket, tls)
    }

    /// Takes a port that is open already. Call it inside a tokio runtime.
    pub fn on(socket: UdpSocket, tls: &Tls) -> Result<Endpoint, QuicError> {
        let server = server_config(tls)?;
        let client = RwLock::new(Arc::new(tls.client()?));
        let config = endpoint_config(tls);
        let addr = socket.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        let open = || -> io::Result<quinn::Endpoint> {
            let options = socket2::SockRef::from(&socket);
            options.set_recv_buffer_size(SOCKET_BYTES)?;
            options.set_send_buffer_size(SOCKET_BYTES)?;
            quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
        };
        let endpoint = open().map_err(|error| QuicError::Bind { addr, reason: error.to_string() })?;
        let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
        let (count, strangers) = watch::channel(0);
        let acceptor = tokio::spawn(accept(endpoint.clone(), sender, count));
        Ok(Endpoint(Arc::new(Inner { endpoint, addr, client, accepted: Mutex::new(accepted), strangers, acceptor })))
    }

    /// Shows another certificate from now on. Connections that exist go on with the old one.
    pub fn renew(&self, tls: &Tls) -> Result<(), QuicError> {
        let (server, client) = (server_config(tls)?, Arc::new(tls.client()?));
        self.0.endpoint.set_server_config(Some(server));
        *self.0.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        Ok(())
    }

    /// The address, with the port that was found.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.addr
    }

    /// Connects to the peer at `addr`, whose certificate must be good for `server_name`.
    pub async fn connect(&self, addr: SocketAddr, server_name: &str) -> Result<Connection, QuicError> {
        self.dial(addr, server_name, transport(IDLE, KEEP_ALIVE)).await
    }

    /// As [`Endpoint::connect`], from control node to control node: a peer that has gone silent is given up sooner.
    pub async fn connect_control(&self, addr: SocketAddr, server_name: &str) -> Result<Connection, QuicError> {
        self.dial(addr, server_name, transport(CONTROL_IDLE, CONTROL_IDLE / 4)).await
    }

    async fn dial(
        &self,
        addr: SocketAddr,
        server_name: &str,
        transport: TransportConfig,
    ) -> Result<Connection, QuicError> {
        let failed = |error: &dyn std::fmt::Display| QuicError::Connect { addr, reason: error.to_string() };
        let crypto = self.0.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut config = quinn::ClientConfig::new(crypto);
        config.transport_config(Arc::new(transport));
        let connecting = self.0.endpoint.connect_with(config, addr, server_name).map_err(|error| failed(&error))?;
        match tokio::time::timeout(HANDSHAKE, connecting).await {
            Err(_) => Err(QuicError::TimedOut),
            Ok(made) => Connection::new(made.map_err(|error| failed(&error))?),
        }
    }

    /// The next connection whose certificate is good; `None` once the endpoint is closed. Cancel-safe.
    pub async fn accept(&self) -> Option<Connection> {
        self.0.accepted.lock().await.recv().await
    }

    /// How many have called so far who believe another CA than this endpoint: they belong to another cluster.
    pub fn strangers(&self) -> watch::Receiver<u64> {
        self.0.strangers.clone()
    }

    /// Ends all connections and accepts none any more.
    pub fn close(&self) {
        self.0.endpoint.close(VarInt::from_u32(0), b"closed");
    }

    /// After [`Endpoint::close`]: waits until the peers have been told; not at all if there are none.
    pub async fn drained(&self) {
        if tokio::time::timeout(FAREWELL, self.0.endpoint.wait_idle()).await.is_err() {
            tracing::trace!("the last words are on their way");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close_all();
    }
}

impl Inner {
    fn close_all(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"closed");
        self.acceptor.abort();
    }
}

/// What lets an endpoint that has come back on its old port tell its peers that their links are dead: the same reset
/// tokens follow from the same identity, though nothing was stored. Without it, peers would wait for [`IDLE`].
fn endpoint_config(tls: &Tls) -> EndpointConfig {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, tls.key_pem.as_bytes());
    let reset_key = hmac::sign(&secret, b"dhow quic stateless reset");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key.as_ref())));
    config.max_udp_payload_size(PACKET_BYTES_MAX).expect("more than the least that QUIC asks for");
    config.cid_generator(|| Box::new(RandomIds(SystemRandom::new())));
    config
}

/// Connection IDs that any endpoint takes for possible. quinn's own carry a mark of the endpoint's life, and packets
/// for a former life would be dropped in silence.
struct RandomIds(SystemRandom);

/// Enough for no two of a node's links to meet.
const ID_BYTES: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        self.0.fill(&mut id).expect("the system has randomness to give");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn server_config(tls: &Tls) -> Result<quinn::ServerConfig, QuicError> {
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls.server()?));
    server.transport_config(Arc::new(transport(IDLE, KEEP_ALIVE)));
    Ok(server)
}

/// The shorter of both sides' `idle` counts.
fn transport(idle: Duration, keep_alive: Duration) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(PACKET_BYTES_MAX);
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("half a minute is a timeout")))
        .keep_alive_interval(Some(keep_alive))
        .max_concurrent_bidi_streams(STREAMS_START.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(LINK_WINDOW.into())
        .send_window(SEND_WINDOW)
        .mtu_discovery_config(Some(discovery));
    transport
}

/// The task that carries handshakes out, many at once, so that a slow one holds up nobody. Ends when the endpoint is
/// closed; aborted with it.
async fn accept(endpoint: quinn::Endpoint, accepted: mpsc::Sender<Connection>, strangers: watch::Sender<u64>) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                let many = handshakes.len();
                if many >= HANDSHAKES_MAX {
                    incoming.refuse();
                } else if many >= HANDSHAKES_MAX / 2 && incoming.may_retry() {
                    if let Err(error) = incoming.retry() {
                        tracing::debug!(%error, "caller is not asked to prove its address");
                    }
                } else {
                    handshakes.spawn(handshake(incoming, accepted.clone(), strangers.clone()));
                }
            }
            Some(_) = handshakes.join_next(), if !handshakes.is_empty() => {}
        }
    }
}

async fn handshake(incoming: quinn::Incoming, accepted: mpsc::Sender<Connection>, strangers: watch::Sender<u64>) {
    let from = incoming.remote_address();
    let made = match tokio::time::timeout(HANDSHAKE, incoming).await {
        Ok(Err(error)) if is_strange(&error) => {
            strangers.send_modify(|count| *count += 1);
            // They call again and again; the owner of the endpoint says it once, in words.
            return tracing::debug!(%from, %error, "link of another cluster is refused");
        }
        Ok(made) => made.map_err(|error| QuicError::Lost(error.to_string())).and_then(Connection::new),
        Err(_) => Err(QuicError::TimedOut),
    };
    match made {
        Ok(connection) => {
            // Nobody to take it: the endpoint is going.
            if accepted.send(connection).await.is_err() {
                tracing::debug!(%from, "link comes too late");
            }
        }
        Err(error) => tracing::warn!(%from, %error, "link is refused"),
    }
}

/// The alerts of TLS for a certificate of a CA that is not believed: another name, or the same with another key.
const OTHER_CA_ALERTS: [u8; 2] = [48, 51];

/// Whether either side did not believe the other's CA.
fn is_strange(error: &quinn::ConnectionError) -> bool {
    let code = match error {
        quinn::ConnectionError::TransportError(error) => error.code,
        quinn::ConnectionError::ConnectionClosed(close) => close.error_code,
        _ => return false,
    };
    OTHER_CA_ALERTS.into_iter().any(|alert| code == quinn::TransportErrorCode::crypto(alert))
}
