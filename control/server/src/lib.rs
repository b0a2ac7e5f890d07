//! The control node's shell: carries requests from the socket to the pure parts, and their wishes back to the store.
//!
//! [`Server::start`] (`start`) opens the store, makes or loads the cluster's CA or joins a cluster (`join`), binds TCP and
//! UDP on one address, and runs a few owned tasks. Several control nodes are one cluster: consensus talks over `links`,
//! what the leader alone does is in `lead` and `control`, and people manage it by `members`. Newcomers are taken in by
//! `admit`, also those that were members until they lost their data (`rebuild`). A request goes `serve` (TLS, HTTP) →
//! `route` (who, what, may they) → `accounts`, `read`, `watch`, `write`, `kubelet` or `plain`. Writes, also those of the controllers
//! (`control`), take one path: the gate plans, the store writes.
//!
//! # Tasks
//!
//! | kind | ends | when it fails |
//! |---|---|---|
//! | accept | at stop | logs, rests, goes on |
//! | connection | with its socket; at stop it drains | the client dials again |
//! | node connections, node connection | at stop or when the node goes | the agent dials again |
//! | sender, link, snapshot (`links`) | at stop | see there |
//! | controllers, lead | at stop; rest while another member leads | begin anew from the present state |
//! | expiry sweep | at stop | the next sweep does it |
//! | members, removal, strangers, images, backups, certificate, kubeconfig | at stop | try again after a rest |
//! | stream to a node, port-forward | with their request; at stop | the client asks again |
//!
//! # Invariants
//!
//! * Nothing is decided here that the gate or the controllers could decide.
//! * The store's lock is held for a look-up or a walk, never across an `await` and never while an answer is made.
//! * A GET of stored objects parses nothing unless another shape was asked for.
//! * A read shows every write that was acknowledged by any member before it, unless it asks for less.
//! * What the leader alone may do is safe if two members do it: every write names what it expects to find.
//! * A stop is ordered: no new connections, watches end, requests drain, controllers rest, the store closes, links end.

mod accounts;
mod admit;
mod answer;
mod app;
mod auth;
mod backups;
mod body;
mod bootstrap;
mod certs;
mod compiled;
mod control;
mod images;
mod join;
mod kubeconfig;
mod kubelet;
mod lead;
mod links;
mod member;
mod members;
mod node_proxy;
mod nodes;
mod pki;
mod plain;
mod read;
mod rebuild;
mod restore;
mod route;
mod serve;
mod sessions;
mod spdy;
mod start;
mod usage;
mod watch;
mod websocket;
mod witness;
mod write;

pub use backups::BackupConfig;
pub use compiled::{Compile, CompileJob, CompileRefusal};
pub use join::Join;
pub use rebuild::Rebuild;
pub use restore::restore;

use app::App;
use dhow_api::status::ApiError;
use dhow_pki::{Identity, PkiError, San, Usage};
use dhow_quic::{Endpoint, QuicError};
use dhow_store::{OpenError, Replica};
use dhow_tasks::Tasks;
use members::TokenFor;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch as latest;

/// What a control node must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything lasting lives: `member.json`, `pki/`, `store/`, `registry/`, `backups/`,
    /// `compiled/`.
    pub data_dir: PathBuf,
    /// Where the API listens (TCP) and agents and other control nodes dial (UDP).
    pub bind: SocketAddr,
    /// The range of ClusterIPs.
    pub service_cidr: String,
    /// The range of pod IPs, cut into one block a node.
    pub cluster_cidr: String,
    /// What this control node is called among the others; the machine's name if none is given. A data directory keeps
    /// the name that it began with.
    pub name: Option<String>,
    /// The cluster to join, if the data directory does not belong to a member already.
    pub join: Option<Join>,
    /// Vote and hold the end of the log, but no objects. Only who joins can be one.
    pub witness: bool,
    /// Backups on this member's own disk.
    pub backups: BackupConfig,
    /// How long certificates are valid that this member issues. They are renewed after two thirds of it.
    pub certificate_life: Duration,
    /// How programs are compiled for agents that cannot; `None` refuses it.
    pub compile: Option<Compile>,
}

impl Config {
    /// The usual ranges, and a cluster of its own.
    pub fn new(data_dir: impl Into<PathBuf>, bind: SocketAddr) -> Self {
        Self {
            data_dir: data_dir.into(),
            bind,
            service_cidr: "10.43.0.0/16".to_owned(),
            cluster_cidr: "10.64.0.0/10".to_owned(),
            name: None,
            join: None,
            witness: false,
            backups: BackupConfig::default(),
            certificate_life: Duration::from_millis(pki::VALID_MS),
            compile: None,
        }
    }
}

fn of(rebuild: &Rebuild) -> String {
    rebuild.name.as_ref().map_or("a control node".to_owned(), |name| format!("control node `{name}`"))
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
    /// The cluster did not take this control node in; nothing was changed.
    #[error("joining through `{server}` failed: {why}")]
    Join {
        /// Through whom.
        server: String,
        /// What it said, and what to do.
        why: String,
    },
    /// The data directory is another member's, another cluster's, or holds something else already.
    #[error("data directory `{}` {why}", dir.display())]
    Place {
        /// Which directory.
        dir: PathBuf,
        /// What it is instead, and what to do.
        why: String,
    },
    /// The data of a member is damaged or gone. With [`Config::join`] it joins anew instead.
    #[error("the data of {} in `{}` is lost: {why}", of(rebuild), dir.display())]
    Lost {
        /// Which directory.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
        /// How it comes back.
        rebuild: Rebuild,
    },
    /// The store of a control node that runs cannot go on.
    #[error("the store of this control node cannot go on: {0}")]
    Failed(String),
    /// What a data directory says of its member cannot be understood.
    #[error("`{}` is damaged: {why}", path.display())]
    Member {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a newer version.
    #[error("`{}` has format {found}, this version reads {known}: run a newer dhow", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest one that we read.
        known: u32,
    },
    /// A backup cannot be restored; nothing was changed.
    #[error("restoring the backup `{}`", backup.display())]
    Restore {
        /// The file.
        backup: PathBuf,
        /// Why not.
        source: dhow_store::SnapshotError,
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

/// A running control node.
pub struct Server {
    app: Arc<App>,
    bound: SocketAddr,
    admin: Identity,
    kubeconfig: latest::Receiver<String>,
    set_aside: Option<PathBuf>,
    endpoint: Endpoint,
    /// Connections and requests; ended first.
    tasks: Tasks,
    /// What runs by itself.
    machines: Tasks,
    /// Links to nodes and to other control nodes; ended last, for a store that closes hands its lead over.
    links: Tasks,
}

impl Server {
    /// Opens the store, makes or loads the cluster's CA or joins a cluster, binds the sockets, and starts serving.
    pub async fn start(config: Config) -> Result<Server, ServerError> {
        start::start(config).await
    }

    /// `https://ip:port`, as clients on this host reach it.
    pub fn url(&self) -> String {
        kubeconfig::local_url(self.bound)
    }

    /// The address that TCP and UDP are bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.bound
    }

    /// What this control node is called among the others.
    pub fn name(&self) -> &str {
        &self.app.member.name
    }

    /// Waits until this control node has learnt that it was removed from its cluster: there is nothing left for it to
    /// do, and the error says what to do next.
    pub async fn removed(&self) -> ServerError {
        lead::until_removed(&self.app).await;
        self.app.removed()
    }

    /// Waits until this control node cannot go on: it was removed from its cluster, or its store has failed. Its process
    /// should end with the error, which says what to do.
    pub async fn ended(&self) -> ServerError {
        tokio::select! {
            removed = self.removed() => removed,
            failure = self.app.replica.failed() => self.app.failed(failure),
        }
    }

    /// Where the data is that was here before, if this start found it damaged and joined anew. Nothing of it is used.
    pub fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    /// The cluster CA's certificate.
    pub fn ca_pem(&self) -> &str {
        self.app.certs.ca.cert_pem()
    }

    /// The administrator's certificate and key (group `system:masters`).
    pub fn admin_identity(&self) -> &Identity {
        &self.admin
    }

    /// A kubeconfig for the administrator (group `system:masters`): this control node first, the others to fall back on.
    pub fn admin_kubeconfig(&self) -> String {
        self.kubeconfig.borrow().clone()
    }

    /// The same, and every newer one: when control nodes come or go, and when the administrator's certificate was
    /// renewed. Whoever has written it to a file writes it again.
    pub fn kubeconfigs(&self) -> latest::Receiver<String> {
        self.kubeconfig.clone()
    }

    /// A certificate for a node that lives in this process.
    pub fn issue_node_identity(&self, name: &str) -> Result<Identity, ServerError> {
        let certs = &self.app.certs;
        let identity = certs.issue(&pki::node_subject(name), &[San::Dns(name.to_owned())], Usage::Both)?;
        let (app, cert_pem, name) = (self.app.clone(), identity.cert_pem.clone(), name.to_owned());
        self.machines.spawn("record of a certificate", async move { certs::record(&app, &cert_pem, &name).await });
        Ok(identity)
    }

    /// A new join token, as text for `dhow agent --token`; valid for a day.
    pub async fn create_join_token(&self) -> Result<String, ServerError> {
        Ok(members::create_token(&self.app, TokenFor::Agents).await?.to_string())
    }

    /// A new token, as text for `dhow server --join … --token`; valid for a day. With a name it is good for that control
    /// node alone, and once.
    pub async fn create_member_token(&self, name: Option<&str>) -> Result<String, ServerError> {
        Ok(members::create_token(&self.app, TokenFor::Member(name)).await?.to_string())
    }

    /// The store of this member, for those who embed the server or measure it.
    pub fn replica(&self) -> &Replica {
        &self.app.replica
    }

    /// Stops in order: no new connections, watches end, requests drain, controllers rest, the store hands its lead over
    /// and closes, the links end.
    pub async fn stop(self) {
        let Server { app, endpoint, tasks, machines, links, .. } = self;
        tasks.stop(STOP_DEADLINE).await;
        machines.stop(STOP_DEADLINE).await;
        let replica = app.replica.clone();
        drop(app);
        replica.close().await;
        links.stop(STOP_DEADLINE).await;
        endpoint.close();
        endpoint.drained().await;
    }
}
