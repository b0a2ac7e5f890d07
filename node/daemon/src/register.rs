//! This node as the API knows it: the Node object, its status, and the lease that says "I am here".

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use dhow_agent::EventKind;
use dhow_agent::eviction::Pressure;
use dhow_api::Tree;
use dhow_client::{Client, ClientError, Event, PatchType, resource_path};
use dhow_image::Store;
use dhow_tasks::Stop;
use dhow_types::{Chain, NodeName, Time};
use serde_json::json;
use tokio::sync::watch;

use crate::clock::now;
use crate::events::tell_of_node;
use crate::gc::node_images;
use crate::host;

/// As a kubelet: the lease is renewed each 10 s and holds for 40 s.
const LEASE_EVERY: Duration = Duration::from_secs(10);
const LEASE_S: u32 = 40;
/// The status is written when it changed, and now and then so that nobody takes it for abandoned.
const STATUS_EVERY: Duration = Duration::from_secs(300);
/// Between two writes because the stored status is another, so that a watch that lags, or someone who disagrees, does
/// not cost more.
const AMEND_MIN: Duration = Duration::from_secs(1);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// More pods than this were never measured on one node.
const PODS_MAX: u64 = 10_000;
/// Memory mappings that one container needs at most (measured: 5.9), and the share of the system's limit that pods
/// may use: the rest is for the agent, compiled code and threads.
const MAPPINGS_PER_POD: u64 = 6;
const MAPPINGS_SHARE_PERCENT: u64 = 80;
/// Linux' default for `vm.max_map_count`, where it cannot be read.
const MAX_MAP_COUNT_DEFAULT: u64 = 65_530;
/// Memory that is kept for the agent itself.
const RESERVED_MEMORY: u64 = 100 * 1024 * 1024;

/// What nodes of this kind call themselves, so that charts which ask for `kubernetes.io/os: linux` find a place. What
/// a pod finds in its container is Wasm whatever the host is: that is told by the label `dhow.dev/runtime`.
const OS: &str = "linux";

/// The host's processor, in the words of Kubernetes, which are Go's.
fn arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
}

/// What the host has to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub(crate) cpus: u64,
    pub(crate) memory: u64,
    pub(crate) storage: u64,
    pub(crate) pods: u64,
}

impl Capacity {
    /// Reads it from the host.
    pub(crate) fn of_host(data_dir: &Path) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let memory = host::memory().map_or(1 << 30, |memory| memory.capacity);
        let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|t| t.trim().parse().ok());
        let mappings = mappings.unwrap_or(MAX_MAP_COUNT_DEFAULT);
        let pods = pods_for(mappings);
        if pods < PODS_MAX {
            let more = format!("sysctl -w vm.max_map_count={}", mappings_for(PODS_MAX));
            tracing::info!(pods, mappings, more, "the system's limit of memory mappings bounds the pods of this node");
        }
        Self { cpus, memory, storage: host::file_system(data_dir).map_or(0, |found| found.bytes.capacity), pods }
    }

    /// Bytes of memory that pods may have.
    pub(crate) fn allocatable_memory(&self) -> u64 {
        self.memory.saturating_sub(RESERVED_MEMORY)
    }
}

fn pods_for(max_map_count: u64) -> u64 {
    (max_map_count / MAPPINGS_PER_POD * MAPPINGS_SHARE_PERCENT / 100).clamp(1, PODS_MAX)
}

/// The least limit of mappings with which a node takes so many pods.
fn mappings_for(pods: u64) -> u64 {
    (pods * 100).div_ceil(MAPPINGS_SHARE_PERCENT) * MAPPINGS_PER_POD
}

/// How the API server knows this node, as the watch of nodes shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// As it describes itself, or not seen yet.
    #[default]
    Well,
    /// Not as ready: it was not heard for a while.
    Doubted,
    /// Not at all: its object was deleted.
    Unknown,
}

impl Standing {
    /// What a Node object says.
    pub(crate) fn of(node: &Tree) -> Self {
        let conditions = node.pointer("/status/conditions").and_then(Tree::as_array).into_iter().flatten();
        let ready = conditions.filter(|c| c["type"] == "Ready").any(|c| c["status"] == "True");
        if ready { Standing::Well } else { Standing::Doubted }
    }
}

/// This node.
#[derive(Clone)]
pub(crate) struct Registration {
    pub(crate) client: Client,
    pub(crate) node: NodeName,
    pub(crate) node_ip: IpAddr,
    pub(crate) quic: SocketAddr,
    pub(crate) capacity: Capacity,
    pub(crate) images: Store,
    pub(crate) standing: watch::Receiver<Standing>,
    /// What the node is short of.
    pub(crate) pressure: watch::Receiver<Pressure>,
    /// Whether the API refuses to know this node.
    pub(crate) refused: watch::Sender<bool>,
}

impl Registration {
    /// Tells whether the API knows this node by its certificate.
    fn note(&self, result: Result<(), &ClientError>) {
        let refused = result.is_err_and(|err| err.is(401) || err.is(403));
        self.refused.send_if_modified(|known| std::mem::replace(known, refused) != refused);
    }

    fn path(&self) -> String {
        resource_path("", "v1", "nodes", None, Some(self.node.as_str()))
    }

    /// Makes the Node object and waits until it has a range of pod addresses. Tries for as long as it takes.
    pub(crate) async fn register(&self) -> String {
        let mut pause = RETRY_MIN;
        while let Err(err) = self.put_object(None).await {
            self.note(Err(&err));
            tracing::warn!(err = %Chain(&err), "registering the node failed, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
        self.note(Ok(()));
        let path = format!("/api/v1/nodes?fieldSelector=metadata.name%3D{}", self.node);
        let mut nodes = self.client.watch(&path);
        loop {
            let found = match nodes.next().await {
                Event::Restarted(list) => list.iter().find_map(pod_cidr),
                Event::Applied(tree) => pod_cidr(&tree),
                Event::Deleted(_) => None,
            };
            if let Some(cidr) = found {
                return cidr;
            }
        }
    }

    /// Makes the object, or renews what this node says of itself in it. One that is made again keeps its range, since
    /// its pods have addresses from it.
    async fn put_object(&self, cidr: Option<&str>) -> Result<(), ClientError> {
        let meta = json!({
            "name": self.node.as_str(),
            "labels": {
                "kubernetes.io/hostname": self.node.as_str(),
                "kubernetes.io/os": OS,
                "kubernetes.io/arch": arch(std::env::consts::ARCH),
                "dhow.dev/runtime": "wasm",
            },
            "annotations": {"dhow.dev/quic-address": self.quic.to_string()},
        });
        let spec = cidr.map_or(json!({}), |cidr| json!({"podCIDR": cidr, "podCIDRs": [cidr]}));
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": spec});
        match self.client.create(&resource_path("", "v1", "nodes", None, None), &object).await {
            Err(err) if err.is(409) => {
                self.client.patch(&self.path(), PatchType::Merge, &json!({ "metadata": meta })).await.map(drop)
            }
            result => result.map(drop),
        }
    }

    /// Keeps lease and status up to date until told to stop. `cidr` is the range that the pods' addresses are from.
    pub(crate) async fn keep(mut self, cidr: String, stop: Stop) {
        let mut since = Since::all(now());
        let mut status_at: Option<tokio::time::Instant> = None;
        let mut images = None;
        let mut pause = RETRY_MIN;
        loop {
            let standing = *self.standing.borrow_and_update();
            if standing != Standing::Well && status_at.is_some() {
                tracing::info!(?standing, "the stored status of this node is another, writing it again");
                since = Since::all(now());
            }
            let pressure = *self.pressure.borrow_and_update();
            let pressed = since.turn(pressure, now());
            let changes = Some(self.images.changes());
            let status_due = standing != Standing::Well
                || pressed
                || images != changes
                || status_at.is_none_or(|at| at.elapsed() >= STATUS_EVERY);
            let work = async {
                if standing == Standing::Unknown {
                    self.put_object(Some(&cidr)).await?;
                }
                if status_due {
                    self.write_status(since).await?;
                }
                self.renew_lease().await
            };
            let wait = match stop.or(work).await {
                None => return,
                Some(Ok(())) => {
                    self.note(Ok(()));
                    if status_at.is_none() || standing != Standing::Well {
                        self.say_ready().await;
                    }
                    if status_due {
                        status_at = Some(tokio::time::Instant::now());
                        images = changes;
                    }
                    pause = RETRY_MIN;
                    LEASE_EVERY
                }
                Some(Err(err)) => {
                    self.note(Err(&err));
                    // A node object that someone deleted is made again.
                    if err.is(404)
                        && let Err(err) = self.put_object(Some(&cidr)).await
                    {
                        tracing::debug!(err = %Chain(&err), "registering the node again failed");
                    }
                    tracing::warn!(err = %Chain(&err), "the heartbeat failed, trying again");
                    status_at = None;
                    pause = (pause * 2).min(RETRY_MAX);
                    pause
                }
            };
            if stop.or(linger(&mut self.standing, &mut self.pressure, wait)).await.is_none() {
                return;
            }
        }
    }

    async fn say_ready(&self) {
        let message = format!("Node {} status is now: NodeReady", self.node);
        tell_of_node(&self.client, &self.node, EventKind::Normal, "NodeReady", &message).await;
    }

    async fn write_status(&self, since: Since) -> Result<(), ClientError> {
        let path = format!("{}/status", self.path());
        let status = self.status(since, now());
        self.client.patch(&path, PatchType::Strategic, &json!({ "status": status })).await.map(drop)
    }

    fn status(&self, since: Since, now: Time) -> Tree {
        let condition = |name: &str, holds: bool, since: Time, (reason, message): (&str, &str)| {
            let status = if holds { "True" } else { "False" };
            json!({
                "type": name, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": now.to_rfc3339(), "lastTransitionTime": since.to_rfc3339(),
            })
        };
        let c = &self.capacity;
        let resources = |memory: u64| {
            json!({
                "cpu": c.cpus.to_string(),
                "memory": format!("{}Ki", memory / 1024),
                "ephemeral-storage": format!("{}Ki", c.storage / 1024),
                "pods": c.pods.to_string(),
            })
        };
        let read = |path: &str| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
        json!({
            "capacity": resources(c.memory),
            "allocatable": resources(c.allocatable_memory()),
            "conditions": [
                condition("MemoryPressure", since.pressure.memory, since.memory, memory_words(since.pressure.memory)),
                condition("DiskPressure", since.pressure.disk, since.disk, disk_words(since.pressure.disk)),
                condition(
                    "PIDPressure",
                    false,
                    since.ready,
                    ("KubeletHasSufficientPID", "dhow agent has sufficient PID available"),
                ),
                condition("Ready", true, since.ready, ("KubeletReady", "dhow agent is ready")),
            ],
            "addresses": [
                {"type": "InternalIP", "address": self.node_ip.to_string()},
                {"type": "Hostname", "address": self.node.as_str()},
            ],
            "images": node_images(&self.images),
            "nodeInfo": {
                "machineID": read("/etc/machine-id"),
                "systemUUID": read("/etc/machine-id"),
                "bootID": read("/proc/sys/kernel/random/boot_id"),
                "kernelVersion": read("/proc/sys/kernel/osrelease"),
                "osImage": "Dhow",
                "containerRuntimeVersion": format!("wasmtime://{}", dhow_engine::RUNTIME_VERSION),
                "kubeletVersion": "v1.36.0+dhow",
                "kubeProxyVersion": "",
                "operatingSystem": OS,
                "architecture": arch(std::env::consts::ARCH),
            },
        })
    }

    async fn renew_lease(&self) -> Result<(), ClientError> {
        let path = |name| resource_path("coordination.k8s.io", "v1", "leases", Some("kube-node-lease"), name);
        let renewed = now().to_rfc3339_micro();
        let patch = json!({"spec": {"renewTime": renewed}});
        match self.client.patch(&path(Some(self.node.as_str())), PatchType::Merge, &patch).await {
            Err(err) if err.is(404) => {}
            result => return result.map(drop),
        }
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.node.as_str(), "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": self.node.as_str(), "leaseDurationSeconds": LEASE_S, "renewTime": renewed},
        });
        self.client.create(&path(None), &lease).await.map(drop)
    }
}

/// What the node's conditions say, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Since {
    ready: Time,
    memory: Time,
    disk: Time,
    pressure: Pressure,
}

impl Since {
    fn all(at: Time) -> Self {
        Self { ready: at, memory: at, disk: at, pressure: Pressure::default() }
    }

    /// The pressure is this now; whether it was another.
    fn turn(&mut self, pressure: Pressure, at: Time) -> bool {
        if pressure.memory != self.pressure.memory {
            self.memory = at;
        }
        if pressure.disk != self.pressure.disk {
            self.disk = at;
        }
        std::mem::replace(&mut self.pressure, pressure) != pressure
    }
}

fn memory_words(pressed: bool) -> (&'static str, &'static str) {
    match pressed {
        true => ("KubeletHasInsufficientMemory", "dhow agent has insufficient memory available"),
        false => ("KubeletHasSufficientMemory", "dhow agent has sufficient memory available"),
    }
}

fn disk_words(pressed: bool) -> (&'static str, &'static str) {
    match pressed {
        true => ("KubeletHasDiskPressure", "dhow agent has disk pressure"),
        false => ("KubeletHasNoDiskPressure", "dhow agent has no disk pressure"),
    }
}

/// Waits for that long, or until the standing is not well or the pressure another, but not less than [`AMEND_MIN`].
async fn linger(standing: &mut watch::Receiver<Standing>, pressure: &mut watch::Receiver<Pressure>, wait: Duration) {
    let least = wait.min(AMEND_MIN);
    tokio::time::sleep(least).await;
    let doubted = async {
        let changed = tokio::select! {
            doubted = standing.wait_for(|standing| *standing != Standing::Well) => doubted.is_ok(),
            pressed = pressure.changed() => pressed.is_ok(),
        };
        if !changed {
            // The feed ended, as it does at the stop.
            std::future::pending::<()>().await;
        }
    };
    // An elapsed time is as good as a doubt: both are the end of the pause.
    let _elapsed = tokio::time::timeout(wait - least, doubted).await;
}

fn pod_cidr(node: &Tree) -> Option<String> {
    let cidr = node.pointer("/spec/podCIDR")?.as_str()?;
    (!cidr.is_empty()).then(|| cidr.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_pods_follows_from_the_memory_mappings() {
        for (mappings, pods) in [(65_530, 8736), (1_048_576, 10_000), (0, 1)] {
            assert_eq!(pods_for(mappings), pods);
        }
        assert_eq!((mappings_for(PODS_MAX), pods_for(75_000), pods_for(74_999)), (75_000, 10_000, 9_999));
    }

    #[test]
    fn the_processor_has_the_name_that_charts_select_by() {
        for (rust, go) in [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64"), ("s390x", "s390x")] {
            assert_eq!(arch(rust), go);
        }
    }

    #[test]
    fn a_node_that_is_not_stored_as_ready_is_doubted() {
        let node = |status: &str| {
            json!({"status": {"conditions": [
            {"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": status}]}})
        };
        for (node, standing) in [
            (node("True"), Standing::Well),
            (node("Unknown"), Standing::Doubted),
            (node("False"), Standing::Doubted),
            (json!({}), Standing::Doubted),
        ] {
            assert_eq!(Standing::of(&node), standing, "{node}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubt_ends_the_pause_but_not_at_once() {
        let (doubt, mut standing) = watch::channel(Standing::Well);
        let (press, mut pressure) = watch::channel(Pressure::default());
        let began = tokio::time::Instant::now();
        linger(&mut standing, &mut pressure, LEASE_EVERY).await;
        assert_eq!(began.elapsed(), LEASE_EVERY);
        press.send(Pressure { memory: true, disk: false }).unwrap();
        linger(&mut standing, &mut pressure, LEASE_EVERY).await;
        assert_eq!(began.elapsed(), LEASE_EVERY + AMEND_MIN);
        doubt.send(Standing::Unknown).unwrap();
        linger(&mut standing, &mut pressure, LEASE_EVERY).await;
        assert_eq!(began.elapsed(), LEASE_EVERY + AMEND_MIN * 2);
    }

    #[test]
    fn a_condition_turns_when_its_pressure_does() {
        let [first, second] = [1, 2].map(Time::from_secs);
        let mut since = Since::all(first);
        assert!(!since.turn(Pressure::default(), second));
        assert!(since.turn(Pressure { memory: true, disk: false }, second));
        assert_eq!((since.memory, since.disk, since.ready), (second, first, first));
    }
}
