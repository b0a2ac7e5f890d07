//! A control node as a process with 100 nodes and 10,000 pods: its memory, its store, and its syncs at rest.
//!
//! A node here is what an agent is to a control node: it joins with a token and talks by its own certificate and
//! connection, keeps a QUIC link, renews its lease, follows the objects that an agent follows, and lets the agent's own
//! deciding part run the pods that the scheduler binds to it. Only containers are missing: each start succeeds at once.

use crate::control::{Control, Resident, bytes_below, syncs};
use crate::figure;
use anyhow::{Context as _, bail};
use bytes::Bytes;
use dhow_agent::{Agent, In, Out, PodEvent, PodRef, PulledImage, Written};
use dhow_client::{Client, Event, Method, PatchType};
use dhow_node::JoinedIdentity;
use dhow_pki::Identity;
use dhow_quic::{Connection, Endpoint, Tls};
use dhow_runtime_contract::{Exit, ExitReason};
use dhow_types::{Machine as _, Time, Uid};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value as Tree, json};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const NODES: usize = 100;
const DEPLOYMENTS: usize = 100;
const REPLICAS: usize = 100;

/// The name in a control node's certificate.
const CONTROL_NAME: &str = "dhow-control";

/// As the agent: `node/daemon/src/register.rs` and `events.rs`.
const LEASE_EVERY: Duration = Duration::from_secs(10);
const STATUS_EVERY: Duration = Duration::from_secs(300);
const EVENTS_BURST: u32 = 100;
const EVENTS_PAUSE: Duration = Duration::from_millis(20);
const EVENTS_QUEUE: usize = 8192;

/// Changes that wait for a node; as the agent's.
const PODS_QUEUE: usize = 256;

/// How long everything may take to be Ready.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The last events are on their way for some seconds; then the cluster is at rest.
const SETTLE: Duration = Duration::from_secs(45);
/// Long enough for a flush of the object database, which comes every half minute.
const REST: Duration = Duration::from_secs(60);

pub(crate) async fn measure(parent: &Path) -> anyhow::Result<()> {
    let control = Control::start(parent)?;
    let client = control.client()?;
    figure("a control node alone, resident", Resident::of(control.pid())?);
    let token = control.dhow(&["token", "create"])?;
    // Ends all nodes when it is dropped.
    let mut nodes = JoinSet::new();
    for number in 0..NODES {
        let name = format!("node-{number:03}");
        let dir = tempfile::tempdir()?;
        let joined = dhow_node::join(control.url(), Some(&token), &name, dir.path()).await?;
        let link = link(control.url(), &joined).await?;
        let config = dhow_client::Config {
            server: joined.server,
            others: Vec::new(),
            ca_pem: Some(joined.ca_pem),
            identity: Some(joined.identity),
            token: None,
            namespace: "default".to_owned(),
        };
        nodes.spawn(Node { name, number, client: Client::new(config)?, link }.run());
    }
    until(&client, "/api/v1/nodes", NODES as u64, |node| u64::from(is_ready(node))).await?;
    figure(&format!("with {NODES} nodes, resident"), Resident::of(control.pid())?);

    let begun = Instant::now();
    for number in 0..DEPLOYMENTS {
        let path = "/apis/apps/v1/namespaces/default/deployments";
        crate::cluster::post(&client, path, &deployment(&format!("app-{number:03}"))).await?;
    }
    let pods = DEPLOYMENTS * REPLICAS;
    let ready = |deployment: &Tree| deployment["status"]["readyReplicas"].as_u64().unwrap_or(0);
    until(&client, "/apis/apps/v1/deployments", pods as u64, ready).await?;
    figure(&format!("{pods} pods on {NODES} nodes, all Ready"), format!("{:.1} s", begun.elapsed().as_secs_f64()));
    figure("resident then", Resident::of(control.pid())?);
    tokio::time::sleep(SETTLE).await;
    figure(&format!("resident {} s later", SETTLE.as_secs()), Resident::of(control.pid())?);
    let mb = |path: &str| anyhow::Ok(bytes_below(&control.dir().join(path))? as f64 / 1e6);
    figure("its data directory", format!("{:.1} MB", mb("")?));
    let pid = control.pid();
    match tokio::task::spawn_blocking(move || syncs(pid, REST)).await?? {
        Some(count) => figure("syncs a second at rest", format!("{:.2}", count as f64 / REST.as_secs_f64())),
        None => println!("SKIPPED: counting syncs needs `strace`"),
    }
    figure("resident after that", Resident::of(control.pid())?);
    let events = client.get("/api/v1/events?limit=1").await?;
    let more = events["metadata"]["remainingItemCount"].as_u64().unwrap_or(0);
    figure("events that are kept beside the pods", more + 1);
    if let Some(ended) = nodes.try_join_next() {
        bail!("a node ended: {ended:?}");
    }
    Ok(())
}

/// The connection by which a control node asks an agent for logs and the like.
async fn link(url: &str, joined: &JoinedIdentity) -> anyhow::Result<(Endpoint, Connection)> {
    let Identity { cert_pem, key_pem } = joined.identity.clone();
    let tls = Tls { ca_pem: joined.ca_pem.clone(), cert_pem, key_pem };
    let endpoint = Endpoint::bind("127.0.0.1:0".parse()?, &tls)?;
    let address = url.strip_prefix("https://").context("the API is reached by HTTPS")?;
    let connection = endpoint.connect(address.parse()?, CONTROL_NAME).await?;
    Ok((endpoint, connection))
}

fn deployment(name: &str) -> Tree {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": REPLICAS, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "web", "image": "hello-http:1.0",
                    "ports": [{"containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 5},
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                }]},
            },
        },
    })
}

/// Looks at a list until its items add up to `wanted`.
async fn until(client: &Client, path: &str, wanted: u64, count: impl Fn(&Tree) -> u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let list = client.get(path).await?;
        let found: u64 = list["items"].as_array().into_iter().flatten().map(&count).sum();
        if found >= wanted {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("{found} of {wanted} at {path} after {PATIENCE:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn is_ready(object: &Tree) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[derive(Clone)]
struct Node {
    name: String,
    number: usize,
    client: Client,
    link: (Endpoint, Connection),
}

impl Node {
    /// Runs until it fails.
    async fn run(self) -> anyhow::Result<()> {
        self.register().await?;
        // They end with this task.
        let mut tasks = JoinSet::new();
        for path in ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/nodes"] {
            let mut objects = self.client.watch(path);
            tasks.spawn(async move {
                loop {
                    objects.next().await;
                }
            });
        }
        let (sender, pods) = mpsc::channel(PODS_QUEUE);
        let mut watcher = self.client.watch(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.name));
        tasks.spawn(async move {
            while sender.send(watcher.next().await).await.is_ok() {}
            Ok(())
        });
        let (events, news) = mpsc::channel(EVENTS_QUEUE);
        tasks.spawn(tell(self.client.clone(), self.name.clone(), news));
        let host_ip = IpAddr::V4(Ipv4Addr::new(192, 168, 1, self.number as u8));
        let runner = Runner {
            client: self.client.clone(),
            agent: Agent::new(dhow_agent::Config { host_ip }),
            work: JoinSet::new(),
            events,
            subnet: self.number,
            addresses: 0,
        };
        tasks.spawn(runner.run(pods));
        let keeping = self.clone();
        tasks.spawn(async move { keeping.keep().await });
        tasks.spawn(async move { Err(self.link.1.closed().await.into()) });
        tasks.join_next().await.context("there are tasks")??
    }

    async fn register(&self) -> anyhow::Result<()> {
        let labels = json!({
            "kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "dhow.dev/runtime": "wasm",
        });
        let annotations = json!({"dhow.dev/quic-address": format!("192.168.1.{}:7000", self.number)});
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "labels": labels, "annotations": annotations},
        });
        self.client.create("/api/v1/nodes", &node).await?;
        Ok(())
    }

    /// Keeps lease and status up to date.
    async fn keep(self) -> anyhow::Result<()> {
        let since = now();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": now().to_rfc3339_micro()},
        });
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        self.client.create(leases, &lease).await?;
        let mut status_at: Option<Instant> = None;
        loop {
            if status_at.is_none_or(|at| at.elapsed() >= STATUS_EVERY) {
                let path = format!("/api/v1/nodes/{}/status", self.name);
                let status = json!({"status": self.status(since, now())});
                self.client.patch(&path, PatchType::Strategic, &status).await?;
                status_at = Some(Instant::now());
            }
            tokio::time::sleep(LEASE_EVERY).await;
            let renewed = json!({"spec": {"renewTime": now().to_rfc3339_micro()}});
            self.client.patch(&format!("{leases}/{}", self.name), PatchType::Merge, &renewed).await?;
        }
    }

    fn status(&self, since: Time, now: Time) -> Tree {
        let condition = |name: &str, status: &str, reason: &str| {
            json!({
                "type": name, "status": status, "reason": reason, "message": "as a simulated node has it",
                "lastHeartbeatTime": now.to_rfc3339(), "lastTransitionTime": since.to_rfc3339(),
            })
        };
        let resources = json!({"cpu": "16", "memory": "33554432Ki", "ephemeral-storage": "262144000Ki", "pods": "110"});
        json!({
            "capacity": resources, "allocatable": resources,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady"),
            ],
            "addresses": [
                {"type": "InternalIP", "address": format!("192.168.1.{}", self.number)},
                {"type": "Hostname", "address": self.name},
            ],
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "Dhow",
                "containerRuntimeVersion": "wasmtime://48", "kubeletVersion": "v1.36.0+dhow", "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": "amd64",
            },
        })
    }
}

/// Writes a node's events at the agent's pace.
async fn tell(client: Client, node: String, mut news: mpsc::Receiver<PodEvent>) -> anyhow::Result<()> {
    let mut serial = 0;
    while let Some(event) = news.recv().await {
        serial += 1;
        if serial > EVENTS_BURST {
            tokio::time::sleep(EVENTS_PAUSE).await;
        }
        let (pod, at) = (&event.pod, event.at.to_rfc3339());
        let name = format!("{}.{:x}{serial:04x}", pod.name, event.at.as_ms());
        let tree = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": pod.namespace},
            "involvedObject": {
                "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid.as_str(),
                "apiVersion": "v1", "fieldPath": event.field,
            },
            "reason": event.reason, "message": event.message, "source": {"component": "kubelet", "host": node},
            "firstTimestamp": at, "lastTimestamp": at, "count": 1, "type": "Normal",
            "reportingComponent": "kubelet", "reportingInstance": node,
        });
        client.create(&format!("/api/v1/namespaces/{}/events", pod.namespace), &tree).await?;
    }
    Ok(())
}

/// The agent's deciding part between the API and containers that need no time.
struct Runner {
    client: Client,
    agent: Agent,
    work: JoinSet<In>,
    events: mpsc::Sender<PodEvent>,
    subnet: usize,
    addresses: usize,
}

impl Runner {
    async fn run(mut self, mut pods: mpsc::Receiver<Event>) -> anyhow::Result<()> {
        let mut out = Vec::new();
        loop {
            let wake = self.agent.next_wake().map(|at| Duration::from_millis(at.ms_since(now())));
            tokio::select! {
                Some(event) = pods.recv() => self.pods(event, &mut out)?,
                Some(done) = self.work.join_next() => self.agent.handle(now(), done?, &mut out),
                () = tokio::time::sleep(wake.unwrap_or(Duration::MAX)), if wake.is_some() => self.agent.wake(now(), &mut out),
            }
            while !out.is_empty() {
                for wish in std::mem::take(&mut out) {
                    if let Some(answer) = self.begin(wish) {
                        self.agent.handle(now(), answer, &mut out);
                    }
                }
            }
        }
    }

    fn pods(&mut self, event: Event, out: &mut Vec<Out>) -> anyhow::Result<()> {
        let trees = match event {
            Event::Restarted(list) => list,
            Event::Applied(pod) => vec![pod],
            Event::Deleted(pod) => {
                let uid = Uid::new(pod["metadata"]["uid"].as_str().context("a pod has a uid")?);
                self.agent.handle(now(), In::Gone(uid), out);
                return Ok(());
            }
        };
        for tree in trees {
            let pod: Pod = serde_json::from_value(tree).context("reading a pod")?;
            self.agent.handle(now(), In::Pod(Arc::new(pod)), out);
        }
        Ok(())
    }

    /// Fulfils a wish; what takes no time is answered at once.
    fn begin(&mut self, wish: Out) -> Option<In> {
        Some(match wish {
            Out::Event(event) => {
                // As the agent: what comes on top of a full queue is dropped.
                let _dropped = self.events.try_send(event);
                return None;
            }
            Out::SetUp(pod) => {
                self.addresses += 1;
                let ip = Ipv4Addr::new(10, 42, self.subnet as u8, self.addresses as u8);
                In::SandboxReady { uid: Uid::new(pod.metadata.uid.as_deref().unwrap_or_default()), ip: ip.into() }
            }
            Out::Pull { at, .. } => {
                let image_id = format!("registry.dhow.internal/hello-http@sha256:{}", "7c".repeat(32));
                let image = PulledImage { image_id, size: 81_050, already_present: true, took_ms: 0 };
                In::Pulled { at, result: Ok(image) }
            }
            Out::Start { at, attempt, .. } => In::Started { at, attempt },
            Out::Stop { at, attempt, .. } => {
                let (reason, message) = (ExitReason::Killed, String::new());
                let exit = Exit { code: 143, reason, message, started_at: now(), finished_at: now() };
                In::Exited { at, attempt, exit }
            }
            Out::Probe { at, attempt, kind, .. } => {
                In::Probed { at, attempt, kind, outcome: dhow_agent::ProbeOutcome::Success }
            }
            Out::Hook { at, attempt, hook, .. } => In::Hooked { at, attempt, hook, result: Ok(()) },
            Out::TearDown { pod, .. } => In::SandboxRemoved(pod.uid),
            Out::WriteStatus { pod, status } => {
                self.work.spawn(write_status(self.client.clone(), pod, status));
                return None;
            }
            Out::DeletePod(pod) => {
                self.work.spawn(delete(self.client.clone(), pod));
                return None;
            }
        })
    }
}

async fn write_status(client: Client, pod: PodRef, status: Tree) -> In {
    let patch = json!({"metadata": {"uid": pod.uid.as_str()}, "status": status});
    let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace, pod.name);
    let body = Bytes::from(patch.to_string());
    let content = "application/strategic-merge-patch+json";
    let answer = client.request(Method::PATCH, &path, "application/json", Some((content, body))).await;
    In::StatusWritten { uid: pod.uid, outcome: outcome(answer) }
}

async fn delete(client: Client, pod: PodRef) -> In {
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid.as_str()}});
    let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);
    let body = Bytes::from(options.to_string());
    let json = "application/json";
    let answer = client.request(Method::DELETE, &path, json, Some((json, body))).await;
    In::Deleted { uid: pod.uid, outcome: outcome(answer) }
}

fn outcome(answer: Result<dhow_client::Response, dhow_client::ClientError>) -> Written {
    match answer {
        Ok(answer) if answer.status.is_success() => Written::Ok,
        Ok(answer) if answer.status.as_u16() == 404 => Written::Gone,
        Ok(_) | Err(_) => Written::Retry,
    }
}
