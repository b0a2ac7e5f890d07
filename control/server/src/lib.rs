//! The control node's shell: carries requests from the socket to the pure parts, and their wishes back to the store.
//!
//! [`Server::start`] opens the store, makes or loads the cluster's CA, binds TCP and UDP on one address, and runs a few
//! owned tasks. A request goes `serve` (TLS, HTTP) → `route` (who, what, may they) → `read`, `watch`, `write`, `kubelet`
//! or `plain`. Writes, also those of the controllers (`control`), take one path: the gate plans, the store writes.
//!
//! # Tasks
//!
//! | kind | ends | when it fails |
//! |---|---|---|
//! | accept | at stop | logs, rests, goes on |
//! | connection | with its socket; at stop it drains | the client dials again |
//! | node connections, node connection | at stop or when the node goes | the agent dials again |
//! | controllers | at stop | begin anew from the present state |
//! | event sweep | at stop | the next sweep does it |
//! | stream to a node, port-forward | with their request; at stop | the client asks again |
//!
//! # Invariants
//!
//! * Nothing is decided here that the gate or the controllers could decide.
//! * The store's lock is held for a look-up or a walk, never across an `await` and never while an answer is made.
//! * A GET of stored objects parses nothing unless another shape was asked for.
//! * A stop is ordered: no new connections, watches end, requests drain, controllers rest, the store closes.

mod answer;
mod app;
mod auth;
mod bootstrap;
mod control;
mod kubelet;
mod nodes;
mod pki;
mod plain;
mod read;
mod route;
mod serve;
mod spdy;
mod watch;
mod websocket;
mod write;

use app::App;
use dhow_api::status::ApiError;
use dhow_gate::write::{self as plan, ServiceRanges};
use dhow_pki::token::JoinToken;
use dhow_pki::{Ca, Identity, PkiError};
use dhow_quic::{Endpoint, QuicError, Tls};
use dhow_registry::Registry;
use dhow_store::{Alone, OpenError, Replica};
use dhow_tasks::Tasks;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What a control node must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything lasting lives: `pki/`, `store/`, `registry/`.
    pub data_dir: PathBuf,
    /// Where the API listens (TCP) and agents dial (UDP).
    pub bind: SocketAddr,
    /// The range of ClusterIPs.
    pub service_cidr: String,
    /// The range of pod IPs, cut into one block a node.
    pub cluster_cidr: String,
}

impl Config {
    /// The usual ranges.
    pub fn new(data_dir: impl Into<PathBuf>, bind: SocketAddr) -> Self {
        Self {
            data_dir: data_dir.into(),
            bind,
            service_cidr: "10.43.0.0/16".to_owned(),
            cluster_cidr: "10.64.0.0/10".to_owned(),
        }
    }
}

/// Why a control node did not start, or could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A range of addresses is none.
    #[error("`{0}` is not a range of service addresses like `10.43.0.0/16` (of 8 to 28 bits)")]
    ServiceCidr(String),
    /// A file cannot be read or written.
    #[error("file `{}`", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address is taken or not ours.
    #[error("listening on {address}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address is taken or not ours, for QUIC.
    #[error("listening on UDP {address}")]
    Quic {
        /// Which address.
        address: SocketAddr,
        /// What QUIC said.
        source: QuicError,
    },
    /// The store does not open.
    #[error("opening the store")]
    Store(#[from] OpenError),
    /// Certificates cannot be made or read.
    #[error("the cluster's certificates")]
    Pki(#[from] PkiError),
    /// The API refused what the server itself needs.
    #[error("{0}")]
    Refused(String),
}

impl ServerError {
    /// Whether another process holds the address or the data directory: one that was killed a moment ago may still
    /// be on its way out.
    pub fn is_in_use(&self) -> bool {
        match self {
            ServerError::Bind { source, .. } => source.kind() == std::io::ErrorKind::AddrInUse,
            ServerError::Store(error) => matches!(error, OpenError::InUse { .. }),
            _ => false,
        }
    }
}

impl From<ApiError> for ServerError {
    fn from(error: ApiError) -> ServerError {
        ServerError::Refused(error.message)
    }
}

/// How long requests and nodes get to end.
const STOP_DEADLINE: Duration = Duration::from_secs(8);
/// How long nodes get to hear that the server stops.
const GOODBYE: Duration = Duration::from_millis(500);
/// A join token is good for a day: long enough to set up machines, short enough to be forgotten.
const TOKEN_VALID_MS: u64 = 24 * 3600 * 1000;

/// A running control node.
pub struct Server {
    app: Arc<App>,
    address: SocketAddr,
    admin: Identity,
    endpoint: Endpoint,
    tasks: Tasks,
    machines: Tasks,
}

impl Server {
    /// Opens the store, makes or loads the cluster's CA, binds the sockets, and starts serving.
    pub async fn start(config: Config) -> Result<Server, ServerError> {
        let Config { data_dir, bind, service_cidr, cluster_cidr } = config;
        let services = ServiceRanges::parse(&service_cidr).ok_or(ServerError::ServiceCidr(service_cidr))?;
        let now = app::now();
        let ca = pki::load_or_create(&data_dir.join("pki"), now)?;
        let (listener, address, endpoint, tls) = bind_sockets(bind, &ca, &services).await?;
        let registry_dir = data_dir.join("registry");
        let registry =
            Registry::open(&registry_dir).map_err(|source| ServerError::Io { path: registry_dir, source })?;
        let store = dhow_store::Config::new(data_dir.join("store"));
        let opening = tokio::task::spawn_blocking(move || Replica::open(store, Arc::new(Alone))).await;
        let replica = opening.map_err(|error| ServerError::Refused(format!("opening the store: {error}")))??;
        let admin = pki::admin_identity(&ca, now)?;
        let (tasks, machines) = (Tasks::new("api"), Tasks::new("controllers"));
        let controllers = control::config(&cluster_cidr, ca.cert_pem())?;
        let app = Arc::new(App {
            replica,
            registry,
            ca,
            nodes: nodes::Nodes::default(),
            services,
            stop: tasks.stop_token(),
            machines_stop: machines.stop_token(),
            tasks: tasks.clone(),
        });
        bootstrap::ensure(&app, address).await?;
        machines.spawn("controllers", control::run(app.clone(), controllers));
        machines.spawn("event sweep", control::sweep_events(app.clone()));
        let stop = tasks.stop_token();
        let nodes = app.nodes.clone().accept(endpoint.clone(), tasks.clone(), stop.clone());
        tasks.spawn("node connections", nodes);
        tasks.spawn("accept", serve::accept(listener, tls, app.clone(), tasks.clone(), stop));
        tracing::info!(%address, "serving the API");
        Ok(Server { app, address, admin, endpoint, tasks, machines })
    }

    /// `https://ip:port`, as clients on this host reach it.
    pub fn url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("https://{address}")
    }

    /// The address that TCP and UDP are bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The cluster CA's certificate.
    pub fn ca_pem(&self) -> &str {
        self.app.ca.cert_pem()
    }

    /// The administrator's certificate and key (group `system:masters`).
    pub fn admin_identity(&self) -> &Identity {
        &self.admin
    }

    /// A kubeconfig for the administrator (group `system:masters`).
    pub fn admin_kubeconfig(&self) -> String {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: dhow\n  cluster:\n    server: {}\n    \
             certificate-authority-data: {}\nusers:\n- name: kubernetes-admin\n  user:\n    \
             client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: dhow\n  context:\n    \
             cluster: dhow\n    user: kubernetes-admin\ncurrent-context: dhow\n",
            self.url(),
            encode(self.ca_pem()),
            encode(&self.admin.cert_pem),
            encode(&self.admin.key_pem),
        )
    }

    /// A certificate for a node that lives in this process.
    pub fn issue_node_identity(&self, name: &str) -> Result<Identity, ServerError> {
        pki::node_identity(&self.app.ca, name, app::now())
    }

    /// A new join token, as text for `dhow agent --token`; valid for a day.
    pub async fn create_join_token(&self) -> Result<String, ServerError> {
        let token = JoinToken::random(&self.app.ca.cert_der_sha256_hex())?;
        let expiration = (app::now() + TOKEN_VALID_MS).to_rfc3339();
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": auth::token_secret_name(&token.id), "namespace": "kube-system"},
            "type": auth::TOKEN_SECRET_TYPE,
            "stringData": {
                "token-id": token.id,
                "token-secret": token.secret,
                "expiration": expiration,
                "usage-bootstrap-authentication": "true",
                "usage-bootstrap-signing": "true",
            },
        });
        if let Some(kind) = dhow_api::kinds::by_group_resource("secrets") {
            self.app.write(kind, false, |ctx| plan::create(ctx, kind, "kube-system", secret.clone())).await?;
        }
        Ok(token.to_string())
    }

    /// Stops in order: no new connections, watches end, requests drain, controllers rest, the store closes.
    pub async fn stop(self) {
        let Server { app, endpoint, tasks, machines, .. } = self;
        tasks.stop(STOP_DEADLINE).await;
        endpoint.close();
        if tokio::time::timeout(GOODBYE, endpoint.drained()).await.is_err() {
            tracing::debug!("some nodes did not hear that the server stops");
        }
        machines.stop(STOP_DEADLINE).await;
        let replica = app.replica.clone();
        drop(app);
        replica.close().await;
    }
}

/// How often a free port is looked for when the system may choose one: TCP's choice may be taken for UDP.
const BIND_ATTEMPTS: usize = 16;

/// Binds TCP and UDP to the same address.
async fn bind_sockets(
    bind: SocketAddr,
    ca: &Ca,
    services: &ServiceRanges,
) -> Result<(TcpListener, SocketAddr, Endpoint, TlsAcceptor), ServerError> {
    let failed = |source| ServerError::Bind { address: bind, source };
    let identity = pki::server_identity(ca, bind, services, app::now())?;
    let tls = dhow_pki::server_config(&identity, Some(ca.cert_pem()), &["h2", "http/1.1"])?;
    let quic_tls =
        Tls { ca_pem: ca.cert_pem().to_owned(), cert_pem: identity.cert_pem.clone(), key_pem: identity.key_pem };
    let mut attempt = 1;
    loop {
        let listener = TcpListener::bind(bind).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        match Endpoint::bind(address, &quic_tls) {
            Ok(endpoint) => return Ok((listener, address, endpoint, TlsAcceptor::from(Arc::new(tls)))),
            Err(_) if bind.port() == 0 && attempt < BIND_ATTEMPTS => attempt += 1,
            Err(source) => return Err(ServerError::Quic { address, source }),
        }
    }
}
