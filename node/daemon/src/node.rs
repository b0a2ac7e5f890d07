//! The running agent: what is started in which order, and stopped in the reverse one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use dhow_agent::EventKind;
use dhow_agent::eviction::Pressure;
use dhow_agent::ipam::Ipam;
use dhow_client::{Client, ClientError};
use dhow_engine::{Compiler, Engine, EngineError};
use dhow_files::{Lock, LockError};
use dhow_image::{PullError, Store};
use dhow_pki::Identity;
use dhow_quic::{Endpoint, Fabric, KubeletStream, QuicError, Tls};
use dhow_switch::{NodePortEvent, NodePorts, Switch};
use dhow_tasks::{Stop, Tasks};
use dhow_types::{Chain, NodeName, Uid};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::compiled::by_control_node;
use crate::config::{Compile, addresses_of};
use crate::control::{ControlNodes, Joined, Links};
use crate::events::{Recorder, tell_of_node};
use crate::images::Images;
use crate::layout::Layout;
use crate::objects::ObjectReader;
use crate::register::{Capacity, Registration, Standing};
use crate::renew::Renewal;
use crate::runner::{DISK_WORK_MAX, Shared, keep_running};
use crate::sandbox::Sandboxes;
use crate::usage::{self, Meters};
use crate::volumes::host_path::HostPaths;
use crate::volumes::reclaim::reclaim_volumes;
use crate::volumes::refresh::{Refresh, refresh_volumes};
use crate::volumes::tokens::Tokens;
use crate::{Config, gc, join, kubelet, network};

/// How long the tasks of one group may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long peers are told that the connection closes; those that are gone themselves never answer.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// How long a predecessor that was killed may keep the data directory: the kernel tears a large process down that long.
const PREDECESSOR: Duration = Duration::from_secs(2);
/// The rest between two attempts to take it.
const PREDECESSOR_REST: Duration = Duration::from_millis(50);
/// Kubelet streams that wait to be served; then QUIC's own flow control holds the control node back.
const KUBELET_QUEUE_MAX: usize = 64;

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The data directory could not be used.
    #[error("the data directory `{}` cannot be used", path.display())]
    DataDir {
        /// Which directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another agent runs there: both would run the same pods, and write over each other's files.
    #[error("another agent (process {owner}) uses the data directory `{}`: stop it, or name another directory", path.display())]
    InUse {
        /// Which directory.
        path: PathBuf,
        /// The number of the other agent's process.
        owner: String,
    },
    /// The client for the API server could not be made.
    #[error("the API client cannot be made")]
    Client(#[from] ClientError),
    /// The container runtime could not be made.
    #[error("the container runtime cannot be made")]
    Engine(#[from] EngineError),
    /// The image store could not be opened.
    #[error("the image store cannot be opened")]
    Images(#[source] PullError),
    /// The QUIC endpoint could not be made.
    #[error("the QUIC endpoint cannot be made")]
    Quic(#[from] QuicError),
}

/// A running node agent.
pub struct Node {
    shared: Arc<Shared>,
    /// The loop that runs pods, and what it needs; stopped first.
    pods: Tasks,
    /// The kubelet API and the links to the control nodes.
    serving: Tasks,
    /// Node ports, watches, heartbeat, events; stopped last.
    background: Tasks,
    endpoint: Endpoint,
    fabric: Fabric,
    node_ports: Option<NodePorts>,
    quic: SocketAddr,
    /// Keeps other agents out of the data directory until the last task has ended.
    lock: Lock,
}

impl Node {
    /// Starts the agent and returns; registering the node and running its pods goes on behind. An API server that
    /// cannot be reached is tried for as long as it takes.
    pub async fn start(config: Config) -> Result<Node, NodeError> {
        let Config {
            name,
            client,
            identity,
            ca_pem,
            control_quic,
            data_dir,
            allow_file_images,
            allow_host_paths,
            node_ip,
            node_port_ip,
            eviction,
            registries,
            compile,
            code,
        } = config;
        let layout = Layout::new(&data_dir);
        layout.create().map_err(|source| NodeError::DataDir { path: data_dir.clone(), source })?;
        let lock = own(&data_dir).await?;
        let joined = Joined { url: client.server.clone(), quic: control_quic };
        let control = ControlNodes::new(joined, &layout.servers());
        let client = Client::new(client)?;
        // Before any of them has been reached: the one that the node joined through may be gone.
        client.set_servers(&control.urls())?;
        let compiler = match compile {
            Compile::Here(compiler) => compiler,
            Compile::ControlNode => Compiler::Elsewhere(by_control_node(client.clone(), ca_pem.clone())),
        };
        let engine = dhow_engine::Config { compiler, code, ..dhow_engine::Config::new(layout.compiled()) };
        let engine = Engine::new(engine)?;
        let store = Store::open(layout.images()).map_err(NodeError::Images)?;
        let tls =
            Tls { ca_pem: ca_pem.clone(), cert_pem: identity.cert_pem.clone(), key_pem: identity.key_pem.clone() };
        let endpoint = Endpoint::bind(SocketAddr::new(node_ip, 0), &tls)?;
        let quic = SocketAddr::new(node_ip, endpoint.local_addr().port());
        let switch = Switch::new(switch_config(&name, node_ip, addresses_of(client.server()).await));
        let (kubelet_streams, kubelet_queue) = mpsc::channel::<KubeletStream>(KUBELET_QUEUE_MAX);
        let fabric = Fabric::start(endpoint.clone(), switch.clone(), kubelet_streams);

        let (pods, serving, background) = (Tasks::new("pods"), Tasks::new("serving"), Tasks::new("background"));
        let capacity = Capacity::of_host(&data_dir);
        let (standing, stands) = watch::channel(Standing::default());
        let (refresh, changed) = Refresh::new();
        let (pressure, presses) = watch::channel(Pressure::default());
        let shared = Arc::new(Shared {
            node: name.clone(),
            host_ip: node_ip,
            client: client.clone(),
            control: control.clone(),
            layout,
            switch: switch.clone(),
            engine: engine.clone(),
            images: Images::new(store, client.clone(), engine, (registries, allow_file_images)),
            objects: ObjectReader::new(client.clone()),
            tokens: Tokens::new(client.clone()),
            links: RwLock::new(BTreeMap::new()),
            sandboxes: Sandboxes::default(),
            standing,
            meters: Meters::default(),
            pressure,
            thresholds: eviction,
            events: Recorder::start(&background, client.clone(), name.clone()),
            disk: Semaphore::new(DISK_WORK_MAX),
            host_paths: HostPaths::new(allow_host_paths),
            refresh,
            allocatable_cpu_m: i64::try_from(capacity.cpus.saturating_mul(1000)).unwrap_or(i64::MAX),
            allocatable_memory: i64::try_from(capacity.allocatable_memory()).unwrap_or(i64::MAX),
        });
        let node_ports = node_port_ip.map(|ip| open_node_ports(&switch, ip, (&client, &name), &background));
        let links = Links { endpoint: endpoint.clone(), fabric: fabric.clone(), switch: switch.clone() };
        serving.spawn("control links", control.clone().keep_links(links, serving.stop_token()));
        let published = control.publish(client.clone(), shared.layout.servers(), background.stop_token());
        background.spawn("control nodes", published);
        let kubelet = kubelet::serve(shared.clone(), serving.clone(), kubelet_queue, serving.stop_token());
        serving.spawn("kubelet", kubelet);
        let images = shared.images.store().clone();
        let (refused, refusals) = watch::channel(false);
        let (showing, kept) = ((client.clone(), endpoint.clone()), join::kept(&data_dir));
        let renewal = Renewal::new(showing, identity, ca_pem, kept, refusals);
        background.spawn("certificate", renewal.run(background.stop_token()));
        let (node, standing, pressure) = (name, stands, presses);
        let registration = Registration { client, node, node_ip, quic, capacity, images, standing, pressure, refused };
        let run = run((shared.clone(), changed), registration, pods.clone(), background.clone());
        pods.spawn("start", run);
        Ok(Node { shared, pods, serving, background, endpoint, fabric, node_ports, quic, lock })
    }

    /// Where this node's QUIC endpoint answers.
    pub fn quic_addr(&self) -> SocketAddr {
        self.quic
    }

    /// Stops in order and leaves the pods' objects as they are: they resume at the next start.
    pub async fn stop(self) {
        let Node { shared, pods, serving, background, endpoint, fabric, node_ports, quic: _, lock } = self;
        let began = tokio::time::Instant::now();
        let done = |what| tracing::debug!(what, elapsed = ?began.elapsed(), "stopped");
        // No new work from outside…
        if let Some(node_ports) = node_ports {
            node_ports.stop().await;
        }
        done("node ports");
        // …nobody left who would write that a container ended…
        pods.stop(STOP_DEADLINE).await;
        done("pods");
        // …then the containers end…
        shared.engine.shutdown().await;
        done("containers");
        serving.stop(STOP_DEADLINE).await;
        done("serving");
        background.stop(STOP_DEADLINE).await;
        done("background");
        // …and the network last.
        fabric.stop().await;
        shared.switch.close();
        endpoint.close();
        if tokio::time::timeout(DRAIN_MAX, endpoint.drained()).await.is_err() {
            tracing::debug!("some peers were not told of the stop; their connections time out");
        }
        done("network");
        drop(lock);
    }
}

/// Takes the data directory. An agent that was killed a moment ago may still be on its way out.
async fn own(data_dir: &Path) -> Result<Lock, NodeError> {
    let deadline = tokio::time::Instant::now() + PREDECESSOR;
    loop {
        match Lock::take(data_dir) {
            Ok(lock) => return Ok(lock),
            Err(LockError::InUse(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(PREDECESSOR_REST).await;
            }
            Err(LockError::InUse(owner)) => return Err(NodeError::InUse { path: data_dir.to_owned(), owner }),
            Err(LockError::Io(source)) => return Err(NodeError::DataDir { path: data_dir.to_owned(), source }),
        }
    }
}

/// What this node shows its peers, and whom it believes.
pub(crate) fn tls(ca_pem: &str, identity: &Identity) -> Tls {
    let Identity { cert_pem, key_pem } = identity.clone();
    Tls { ca_pem: ca_pem.to_owned(), cert_pem, key_pem }
}

/// Pods reach the API server by the service `kubernetes`, whose endpoint is this very address; in a cluster on one
/// machine it is one of the host's loopback, which is closed to them else.
fn switch_config(node: &NodeName, node_ip: IpAddr, api_server: Vec<SocketAddr>) -> dhow_switch::Config {
    let mut config = dhow_switch::Config::new(node.clone(), node_ip);
    config.egress.allow.extend(api_server);
    config
}

/// Registers the node, fills the tables, then runs pods and says that the node is ready.
async fn run(
    (shared, changed): (Arc<Shared>, mpsc::Receiver<Uid>),
    registration: Registration,
    pods: Tasks,
    background: Tasks,
) {
    let stop = pods.stop_token();
    let Some(cidr) = stop.or(registration.register()).await else { return };
    let ipam = match Ipam::new(&cidr) {
        Ok(ipam) => ipam,
        Err(err) => {
            tracing::error!(err = %Chain(&err), "the node's range of pod addresses cannot be used");
            return;
        }
    };
    let mut lists = Vec::new();
    for (name, feed, listed) in network::feeds(&shared, &background.stop_token()) {
        background.spawn(name, feed);
        lists.push(listed);
    }
    // Service links are made when a container starts: the services must be known by then.
    for listed in lists {
        if !matches!(stop.or(listed).await, Some(Ok(()))) {
            return;
        }
    }
    pods.spawn("images", gc::run(shared.clone(), stop.clone()));
    background.spawn("samples", usage::sample(shared.clone(), background.stop_token()));
    pods.spawn("volumes", refresh_volumes(shared.clone(), changed, stop.clone()));
    pods.spawn("deleted volumes", reclaim_volumes(shared.clone(), stop.clone()));
    pods.spawn("runner", keep_running(shared, ipam, stop));
    let heartbeat = registration.keep(cidr, background.stop_token());
    background.spawn("heartbeat", heartbeat);
}

/// Opens the services' ports on the node, and tells of those that cannot be opened.
fn open_node_ports(switch: &Switch, ip: IpAddr, (client, node): (&Client, &NodeName), tasks: &Tasks) -> NodePorts {
    let (node_ports, events) = NodePorts::start(switch, ip);
    let news = report_node_ports(events, client.clone(), node.clone(), tasks.stop_token());
    tasks.spawn("node port news", news);
    node_ports
}

async fn report_node_ports(mut events: mpsc::Receiver<NodePortEvent>, client: Client, node: NodeName, stop: Stop) {
    // A port that stays taken is tried again and again, and told of once.
    let mut taken = BTreeSet::new();
    while let Some(Some(event)) = stop.or(events.recv()).await {
        match event {
            NodePortEvent::Open { port } => {
                taken.remove(&port);
                tracing::info!(%port, "opened a node port");
            }
            NodePortEvent::Closed { port } => {
                taken.remove(&port);
                tracing::info!(%port, "closed a node port");
            }
            NodePortEvent::Failed { port, error } => {
                if taken.insert(port) {
                    tracing::warn!(%port, error, "a node port cannot be opened");
                    let message = format!(
                        "node port {port} cannot be opened on this node: {error}; free it or give the service another"
                    );
                    tell_of_node(&client, &node, EventKind::Warning, "NodePortUnavailable", &message).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dhow_mesh::Update;
    use dhow_switch::{NetError, PodIdentity};
    use dhow_types::Uid;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_data_directory_has_one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = own(dir.path()).await.unwrap();
        let refused = own(dir.path()).await.unwrap_err().to_string();
        assert!(refused.contains(&format!("(process {})", std::process::id())), "{refused}");
        let (successor, ()) = tokio::join!(own(dir.path()), async { drop(first) });
        successor.unwrap();
    }

    #[tokio::test]
    async fn a_pod_reaches_the_api_server_by_its_service_and_nothing_else_of_the_host() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addr().unwrap();
        let ports = |port: u16| json!([{"name": "https", "protocol": "TCP", "port": port}]);
        let meta = json!({"name": "kubernetes", "namespace": "default", "uid": "k",
            "labels": {"kubernetes.io/service-name": "kubernetes"}});
        let service = json!({"metadata": meta, "spec": {"type": "ClusterIP", "clusterIP": "10.43.0.1",
            "clusterIPs": ["10.43.0.1"], "ports": ports(443)}});
        let slice = json!({"metadata": meta, "addressType": "IPv4", "ports": ports(addr.port()),
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
        let connect = async |api_server: Vec<SocketAddr>| {
            let switch = Switch::new(switch_config(&NodeName::new("n"), addr.ip(), api_server));
            switch.apply(Update::service(&service).unwrap());
            switch.apply(Update::slice(&slice).unwrap());
            let pod = switch.add_pod(PodIdentity {
                uid: Uid::new("u"),
                namespace: "default".to_owned(),
                name: "p".to_owned(),
                ip: "10.42.0.2".parse().unwrap(),
                hostname: "p".to_owned(),
                service_account: "default".to_owned(),
            });
            pod.connect("10.43.0.1:443".parse().unwrap()).await.err()
        };
        assert_eq!(connect(vec![addr]).await, None);
        let other = SocketAddr::new(addr.ip(), addr.port() ^ 1);
        assert_eq!(connect(vec![other]).await, Some(NetError::Denied));
    }
}
