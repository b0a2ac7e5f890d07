//! What controllers and scheduler need to know of an object, parsed once when it changes.
//!
//! A view keeps the stored object by reference (its bytes are shared with the store), so that an update can parse the
//! whole tree when it has one to write. Views never fail: what is missing or malformed reads as empty, as the API
//! refuses such objects before they are stored.

use dhow_api::Tree;
use dhow_api::meta;
use dhow_api::quantity::Quantity;
use dhow_api::selector::LabelSelector;
use dhow_state::Object;
use dhow_types::{NodeName, Time};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The resource names that the controllers know by heart.
pub(crate) mod resource {
    pub(crate) const PODS: &str = "pods";
    pub(crate) const NODES: &str = "nodes";
    pub(crate) const NAMESPACES: &str = "namespaces";
    pub(crate) const SERVICES: &str = "services";
    pub(crate) const ENDPOINTS: &str = "endpoints";
    pub(crate) const SERVICE_ACCOUNTS: &str = "serviceaccounts";
    pub(crate) const CONFIG_MAPS: &str = "configmaps";
    pub(crate) const LEASES: &str = "leases.coordination.k8s.io";
    pub(crate) const REPLICA_SETS: &str = "replicasets.apps";
    pub(crate) const DEPLOYMENTS: &str = "deployments.apps";
}

/// A parsed object; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum View {
    Pod(Arc<Pod>),
    Node(Arc<Node>),
    ReplicaSet(Arc<ReplicaSet>),
    Deployment(Arc<Deployment>),
    Service(Arc<Service>),
    Other,
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    #[default]
    Pending,
    Unknown,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    /// No container runs and none will.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// Amounts of what a node has and pods ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Resources {
    pub(crate) cpu_m: i64,
    pub(crate) memory: i64,
    pub(crate) ephemeral: i64,
    pub(crate) extended: BTreeMap<String, i64>,
}

impl Resources {
    fn parse(amounts: &BTreeMap<String, Tree>) -> Self {
        let mut sum = Self::default();
        for (name, amount) in amounts {
            match name.as_str() {
                "cpu" => sum.cpu_m = milli(amount),
                "memory" => sum.memory = whole(amount),
                "ephemeral-storage" => sum.ephemeral = whole(amount),
                "pods" => {}
                other => {
                    sum.extended.insert(other.to_owned(), whole(amount));
                }
            }
        }
        sum
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.cpu_m = self.cpu_m.saturating_add(other.cpu_m);
        self.memory = self.memory.saturating_add(other.memory);
        self.ephemeral = self.ephemeral.saturating_add(other.ephemeral);
        for (name, amount) in &other.extended {
            let held = self.extended.entry(name.clone()).or_default();
            *held = held.saturating_add(*amount);
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.cpu_m = self.cpu_m.saturating_sub(other.cpu_m);
        self.memory = self.memory.saturating_sub(other.memory);
        self.ephemeral = self.ephemeral.saturating_sub(other.ephemeral);
        for (name, amount) in &other.extended {
            if let Some(held) = self.extended.get_mut(name) {
                *held = held.saturating_sub(*amount);
            }
        }
    }

    fn at_least(&mut self, other: &Self) {
        self.cpu_m = self.cpu_m.max(other.cpu_m);
        self.memory = self.memory.max(other.memory);
        self.ephemeral = self.ephemeral.max(other.ephemeral);
        for (name, amount) in &other.extended {
            let held = self.extended.entry(name.clone()).or_default();
            *held = (*held).max(*amount);
        }
    }
}

fn quantity(amount: &Tree) -> Option<Quantity> {
    match amount {
        Tree::String(text) => Quantity::parse(text).ok(),
        Tree::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

fn whole(amount: &Tree) -> i64 {
    quantity(amount).map_or(0, |q| i64::try_from(q.value()).unwrap_or(i64::MAX))
}

fn milli(amount: &Tree) -> i64 {
    quantity(amount).map_or(0, |q| i64::try_from(q.milli()).unwrap_or(i64::MAX))
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedPort {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) protocol: String,
}

/// A pod.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) object: Arc<Object>,
    /// The UID of the managing owner.
    pub(crate) controller: Option<String>,
    pub(crate) created: Time,
    pub(crate) node: Option<NodeName>,
    pub(crate) phase: Phase,
    /// Since when the condition `Ready` is true.
    pub(crate) ready_since: Option<Time>,
    /// Whether the condition `PodScheduled` is false with reason `Unschedulable`, and the message it has.
    pub(crate) unschedulable: Option<String>,
    pub(crate) ip: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) subdomain: Option<String>,
    pub(crate) restarts: i64,
    pub(crate) priority: i64,
    pub(crate) deletion_cost: i32,
    /// Whether our scheduler places it: the scheduler's name is the default one and no gate is closed.
    pub(crate) ours_to_schedule: bool,
    pub(crate) requests: Resources,
    pub(crate) ports: Vec<NamedPort>,
}

impl Pod {
    pub(crate) fn uid(&self) -> &str {
        &self.object.index.uid
    }

    pub(crate) fn ready(&self) -> bool {
        self.ready_since.is_some()
    }

    pub(crate) fn deleting(&self) -> bool {
        self.object.index.deleting
    }

    /// Counts for its owner: neither ended nor on its way out.
    pub(crate) fn active(&self) -> bool {
        !self.phase.is_terminal() && !self.deleting()
    }

    /// Ready for at least `min_ready_s`.
    pub(crate) fn available(&self, min_ready_s: i64, now: Time) -> bool {
        self.ready_since.is_some_and(|since| {
            min_ready_s <= 0 || now.ms_since(since) >= u64::try_from(min_ready_s).unwrap_or(0).saturating_mul(1000)
        })
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.object.index.label(key)
    }
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) effect: String,
    pub(crate) added: Option<Time>,
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "True" => Self::True,
            "False" => Self::False,
            _ => Self::Unknown,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) object: Arc<Object>,
    pub(crate) allocatable: Resources,
    pub(crate) pods_max: i64,
    pub(crate) taints: Vec<Taint>,
    pub(crate) unschedulable: bool,
    /// The condition `Ready`, if the node ever said so.
    pub(crate) ready: Option<Truth>,
    pub(crate) pod_cidr: Option<String>,
}

/// A replica set.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaSet {
    pub(crate) object: Arc<Object>,
    pub(crate) controller: Option<String>,
    pub(crate) created: Time,
    pub(crate) generation: i64,
    pub(crate) replicas: i64,
    pub(crate) min_ready_s: i64,
    pub(crate) selector: Option<Arc<LabelSelector>>,
    pub(crate) template: Arc<Template>,
    pub(crate) revision: i64,
    pub(crate) desired: Option<i64>,
    pub(crate) max: Option<i64>,
    pub(crate) status: Counts,
}

impl ReplicaSet {
    pub(crate) fn name(&self) -> &str {
        &self.object.key.name
    }

    pub(crate) fn uid(&self) -> &str {
        &self.object.index.uid
    }

    pub(crate) fn deleting(&self) -> bool {
        self.object.index.deleting
    }
}

/// The numbers in the status of a replica set or a deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) observed: i64,
    pub(crate) replicas: i64,
    pub(crate) fully_labeled: i64,
    pub(crate) updated: i64,
    pub(crate) ready: i64,
    pub(crate) available: i64,
    pub(crate) unavailable: i64,
}

impl Counts {
    fn parse(tree: &Tree) -> Self {
        let number = |field: &str| meta::int(tree, field).unwrap_or(0);
        Self {
            observed: number("status.observedGeneration"),
            replicas: number("status.replicas"),
            fully_labeled: number("status.fullyLabeledReplicas"),
            updated: number("status.updatedReplicas"),
            ready: number("status.readyReplicas"),
            available: number("status.availableReplicas"),
            unavailable: number("status.unavailableReplicas"),
        }
    }
}

/// A pod template without the label that tells the replica sets of a deployment apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    /// Keys sorted, nulls left out: equal templates have equal text.
    canonical: String,
}

/// Tells the replica sets of one deployment apart.
pub(crate) const POD_TEMPLATE_HASH: &str = "pod-template-hash";

impl Template {
    pub(crate) fn of(template: &Tree) -> Self {
        let mut template = template.clone();
        if let Some(labels) = meta::at_mut(&mut template, "metadata.labels").and_then(Tree::as_object_mut) {
            labels.shift_remove(POD_TEMPLATE_HASH);
        }
        let mut canonical = String::new();
        write_canonical(&template, &mut canonical);
        Self { canonical }
    }

    /// The value of the label `pod-template-hash`: FNV-1a over the template and the number of collisions so far,
    /// in the letters of generated names.
    pub(crate) fn hash(&self, collisions: i64) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut hash: u32 = 0x811c_9dc5;
        let extra = if collisions == 0 { String::new() } else { collisions.to_string() };
        for byte in self.canonical.bytes().chain(extra.bytes()) {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
    }
}

fn write_canonical(tree: &Tree, out: &mut String) {
    match tree {
        Tree::Object(map) => {
            let sorted: BTreeMap<&str, &Tree> =
                map.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value)).collect();
            out.push('{');
            for (key, value) in sorted {
                out.push_str(&Tree::from(key).to_string());
                out.push(':');
                write_canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Tree::Array(items) => {
            out.push('[');
            for item in items {
                write_canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        leaf => out.push_str(&leaf.to_string()),
    }
}

/// A deployment.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    pub(crate) object: Arc<Object>,
    pub(crate) generation: i64,
    pub(crate) replicas: i64,
    pub(crate) paused: bool,
    pub(crate) recreate: bool,
    pub(crate) max_surge: i64,
    pub(crate) max_unavailable: i64,
    pub(crate) min_ready_s: i64,
    pub(crate) history_max: usize,
    /// `None` when the deployment has no deadline.
    pub(crate) deadline_s: Option<u64>,
    pub(crate) selector: Option<Arc<LabelSelector>>,
    /// A selector without terms, which would take every pod of the namespace.
    pub(crate) selects_all: bool,
    pub(crate) template: Arc<Template>,
    pub(crate) collisions: i64,
    pub(crate) status: Counts,
}

impl Deployment {
    pub(crate) fn uid(&self) -> &str {
        &self.object.index.uid
    }

    pub(crate) fn deleting(&self) -> bool {
        self.object.index.deleting
    }
}

/// Where a service's port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Number(u16),
    Name(String),
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
    pub(crate) target: Target,
}

/// A service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) object: Arc<Object>,
    pub(crate) selector: Vec<(String, String)>,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) publish_not_ready: bool,
    pub(crate) headless: bool,
    pub(crate) external: bool,
}

impl Service {
    /// Whether its endpoints are ours to keep.
    pub(crate) fn has_endpoints(&self) -> bool {
        !self.selector.is_empty() && !self.external
    }

    pub(crate) fn selects(&self, pod: &Pod) -> bool {
        self.selector.iter().all(|(key, value)| pod.label(key) == Some(value.as_str()))
    }
}

/// Parses the view of an object.
pub(crate) fn view(object: &Arc<Object>) -> View {
    match &*object.key.resource {
        resource::PODS => View::Pod(Arc::new(pod(object))),
        resource::NODES => View::Node(Arc::new(node(object))),
        resource::REPLICA_SETS => View::ReplicaSet(Arc::new(replica_set(object))),
        resource::DEPLOYMENTS => View::Deployment(Arc::new(deployment(object))),
        resource::SERVICES => View::Service(Arc::new(service(object))),
        _ => View::Other,
    }
}

/// Reads a part of an object straight from its bytes, without a tree in between: there are very many pods.
pub(crate) fn read<T: DeserializeOwned + Default>(object: &Object) -> T {
    serde_json::from_slice(object.json()).unwrap_or_default()
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodJson {
    metadata: MetaJson,
    spec: PodSpecJson,
    status: PodStatusJson,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MetaJson {
    creation_timestamp: Option<String>,
    owner_references: Option<Vec<OwnerJson>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OwnerJson {
    uid: String,
    controller: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpecJson {
    node_name: Option<String>,
    scheduler_name: Option<String>,
    scheduling_gates: Option<Vec<Tree>>,
    priority: Option<i64>,
    hostname: Option<String>,
    subdomain: Option<String>,
    containers: Option<Vec<ContainerJson>>,
    init_containers: Option<Vec<ContainerJson>>,
    overhead: Option<BTreeMap<String, Tree>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerJson {
    restart_policy: Option<String>,
    resources: Option<ResourcesJson>,
    ports: Option<Vec<PortJson>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ResourcesJson {
    requests: Option<BTreeMap<String, Tree>>,
    limits: Option<BTreeMap<String, Tree>>,
}

impl ContainerJson {
    /// What it asks for: a limit without a request is also a request.
    fn requests(&self) -> Resources {
        let Some(resources) = &self.resources else { return Resources::default() };
        let mut amounts = resources.limits.clone().unwrap_or_default();
        amounts.extend(resources.requests.clone().unwrap_or_default());
        Resources::parse(&amounts)
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PortJson {
    name: Option<String>,
    container_port: u16,
    protocol: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatusJson {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    conditions: Option<Vec<ConditionJson>>,
    container_statuses: Option<Vec<ContainerStatusJson>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConditionJson {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
    last_transition_time: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerStatusJson {
    restart_count: i64,
}

fn pod(object: &Arc<Object>) -> Pod {
    let json: PodJson = read(object);
    let created = json.metadata.creation_timestamp.as_deref().and_then(|text| Time::parse(text).ok());
    let created = created.unwrap_or_default();
    let conditions = json.status.conditions.unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.kind == "Ready" && condition.status == "True");
    let ready_since = ready.map(|condition| {
        condition.last_transition_time.as_deref().and_then(|text| Time::parse(text).ok()).unwrap_or(created)
    });
    let unschedulable = conditions.into_iter().find(|condition| {
        condition.kind == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    let containers = json.spec.containers.unwrap_or_default();
    let init = json.spec.init_containers.unwrap_or_default();
    let ports = containers
        .iter()
        .chain(init.iter().filter(|container| container.restart_policy.as_deref() == Some("Always")))
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(NamedPort {
                name: port.name.clone().filter(|name| !name.is_empty())?,
                port: port.container_port,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        })
        .collect();
    let scheduler = json.spec.scheduler_name.as_deref().unwrap_or("");
    Pod {
        object: Arc::clone(object),
        controller: controller(json.metadata.owner_references),
        created,
        node: json.spec.node_name.filter(|name| !name.is_empty()).map(NodeName::new),
        phase: match json.status.phase.as_deref() {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some("Unknown") => Phase::Unknown,
            _ => Phase::Pending,
        },
        ready_since,
        unschedulable: unschedulable.map(|condition| condition.message.unwrap_or_default()),
        ip: json.status.pod_ip.filter(|ip| !ip.is_empty()),
        hostname: json.spec.hostname.filter(|name| !name.is_empty()),
        subdomain: json.spec.subdomain.filter(|name| !name.is_empty()),
        restarts: json.status.container_statuses.iter().flatten().map(|status| status.restart_count).max().unwrap_or(0),
        priority: json.spec.priority.unwrap_or(0),
        deletion_cost: json
            .metadata
            .annotations
            .and_then(|annotations| annotations.get("controller.kubernetes.io/pod-deletion-cost")?.parse().ok())
            .unwrap_or(0),
        ours_to_schedule: matches!(scheduler, "" | "default-scheduler")
            && json.spec.scheduling_gates.is_none_or(|gates| gates.is_empty()),
        requests: pod_requests(&containers, &init, json.spec.overhead.as_ref()),
        ports,
    }
}

/// A pod needs the sum of its containers, or more if an init container (with the sidecars started before it) needs
/// more while it runs.
fn pod_requests(
    containers: &[ContainerJson],
    init: &[ContainerJson],
    overhead: Option<&BTreeMap<String, Tree>>,
) -> Resources {
    let (mut sum, mut sidecars, mut peak) = (Resources::default(), Resources::default(), Resources::default());
    for container in containers {
        sum.add(&container.requests());
    }
    for container in init {
        let mut now = container.requests();
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&now);
            now = sidecars.clone();
        } else {
            now.add(&sidecars);
        }
        peak.at_least(&now);
    }
    sum.add(&sidecars);
    sum.at_least(&peak);
    if let Some(overhead) = overhead {
        sum.add(&Resources::parse(overhead));
    }
    sum
}

fn controller(owners: Option<Vec<OwnerJson>>) -> Option<String> {
    owners?.into_iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid)
}

fn node(object: &Arc<Object>) -> Node {
    let tree = object.tree();
    let taint = |taint: &Tree| Taint {
        key: meta::text(taint, "key").to_owned(),
        value: meta::text(taint, "value").to_owned(),
        effect: meta::text(taint, "effect").to_owned(),
        added: meta::time(taint, "timeAdded"),
    };
    let amounts: BTreeMap<String, Tree> = meta::map(&tree, "status.allocatable")
        .or_else(|| meta::map(&tree, "status.capacity"))
        .into_iter()
        .flatten()
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect();
    let cidr = meta::text(&tree, "spec.podCIDR");
    Node {
        object: Arc::clone(object),
        allocatable: Resources::parse(&amounts),
        pods_max: amounts.get("pods").map_or(0, whole),
        taints: meta::list(&tree, "spec.taints").iter().map(taint).collect(),
        unschedulable: meta::truth(&tree, "spec.unschedulable"),
        ready: meta::list(&tree, "status.conditions")
            .iter()
            .find(|condition| meta::text(condition, "type") == "Ready")
            .map(|condition| Truth::parse(meta::text(condition, "status"))),
        pod_cidr: (!cidr.is_empty()).then(|| cidr.to_owned()),
    }
}

/// Written on replica sets by the deployment controller.
pub(crate) mod annotation {
    pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
    pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
    pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
    pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
}

fn selector(tree: &Tree) -> Option<Arc<LabelSelector>> {
    meta::at(tree, "spec.selector").and_then(|selector| LabelSelector::from_tree(selector).ok()).map(Arc::new)
}

fn replica_set(object: &Arc<Object>) -> ReplicaSet {
    let tree = object.tree();
    let number = |key: &str| meta::annotation(&tree, key).and_then(|text| text.parse::<i64>().ok());
    ReplicaSet {
        object: Arc::clone(object),
        controller: meta::controller_of(&tree).map(|owner| owner.uid),
        created: meta::creation_timestamp(&tree).unwrap_or_default(),
        generation: meta::generation(&tree),
        replicas: meta::int(&tree, "spec.replicas").unwrap_or(1),
        min_ready_s: meta::int(&tree, "spec.minReadySeconds").unwrap_or(0),
        selector: selector(&tree),
        template: Arc::new(Template::of(meta::at(&tree, "spec.template").unwrap_or(&Tree::Null))),
        revision: number(annotation::REVISION).unwrap_or(0),
        desired: number(annotation::DESIRED),
        max: number(annotation::MAX),
        status: Counts::parse(&tree),
    }
}

/// The rounding of a percentage of replicas.
#[derive(Clone, Copy)]
enum Round {
    Up,
    Down,
}

/// A number or a percentage of `total`; `default` where nothing usable is given.
fn share(value: Option<&Tree>, total: i64, round: Round, default: &str) -> i64 {
    let percent = |text: &str| -> Option<i64> {
        let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
        let product = percent.checked_mul(total)?;
        Some(match round {
            Round::Up => product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0),
            Round::Down => product.div_euclid(100),
        })
    };
    let given = match value {
        Some(Tree::Number(number)) => number.as_i64(),
        Some(Tree::String(text)) => percent(text).or_else(|| text.parse().ok()),
        _ => None,
    };
    given.or_else(|| percent(default)).unwrap_or(0).max(0)
}

fn deployment(object: &Arc<Object>) -> Deployment {
    let tree = object.tree();
    let replicas = meta::int(&tree, "spec.replicas").unwrap_or(1);
    let recreate = meta::text(&tree, "spec.strategy.type") == "Recreate";
    let rolling = |field: &str, round| {
        let value = meta::at(&tree, "spec.strategy.rollingUpdate").and_then(|rolling| meta::at(rolling, field));
        if recreate { 0 } else { share(value, replicas, round, "25%") }
    };
    let max_surge = rolling("maxSurge", Round::Up);
    let mut max_unavailable = rolling("maxUnavailable", Round::Down);
    // With neither, no pod could ever be replaced; Kubernetes lets one go.
    if !recreate && max_surge == 0 && max_unavailable == 0 {
        max_unavailable = 1;
    }
    let no_terms = |field: &str| {
        meta::at(&tree, field).is_none_or(|terms| terms == &serde_json::json!({}) || terms == &serde_json::json!([]))
    };
    Deployment {
        object: Arc::clone(object),
        generation: meta::generation(&tree),
        replicas,
        paused: meta::truth(&tree, "spec.paused"),
        recreate,
        max_surge,
        max_unavailable: max_unavailable.min(replicas),
        min_ready_s: meta::int(&tree, "spec.minReadySeconds").unwrap_or(0),
        history_max: meta::int(&tree, "spec.revisionHistoryLimit").map_or(10, |n| usize::try_from(n).unwrap_or(0)),
        deadline_s: match meta::int(&tree, "spec.progressDeadlineSeconds") {
            None => Some(600),
            Some(seconds) if seconds >= i64::from(i32::MAX) => None,
            Some(seconds) => Some(u64::try_from(seconds).unwrap_or(0)),
        },
        selector: selector(&tree),
        selects_all: no_terms("spec.selector.matchLabels") && no_terms("spec.selector.matchExpressions"),
        template: Arc::new(Template::of(meta::at(&tree, "spec.template").unwrap_or(&Tree::Null))),
        collisions: meta::int(&tree, "status.collisionCount").unwrap_or(0),
        status: Counts::parse(&tree),
    }
}

fn service(object: &Arc<Object>) -> Service {
    let tree = object.tree();
    let port = |port: &Tree| {
        let number = |tree: &Tree| tree.as_u64().and_then(|n| u16::try_from(n).ok());
        let own = meta::at(port, "port").and_then(number).unwrap_or(0);
        let target = match meta::at(port, "targetPort") {
            Some(Tree::String(text)) => text.parse().map_or_else(|_| Target::Name(text.clone()), Target::Number),
            Some(value) => Target::Number(number(value).filter(|port| *port != 0).unwrap_or(own)),
            None => Target::Number(own),
        };
        ServicePort {
            name: meta::text(port, "name").to_owned(),
            protocol: meta::at(port, "protocol").and_then(Tree::as_str).unwrap_or("TCP").to_owned(),
            app_protocol: meta::at(port, "appProtocol").and_then(Tree::as_str).map(str::to_owned),
            target,
        }
    };
    Service {
        object: Arc::clone(object),
        selector: meta::texts(&tree, "spec.selector").map(|(key, value)| (key.into(), value.into())).collect(),
        ports: meta::list(&tree, "spec.ports").iter().map(port).collect(),
        publish_not_ready: meta::truth(&tree, "spec.publishNotReadyAddresses"),
        headless: meta::text(&tree, "spec.clusterIP") == "None",
        external: meta::text(&tree, "spec.type") == "ExternalName",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shares_round_surge_up_and_unavailability_down() {
        for (value, total, up, down) in [
            (json!("25%"), 10, 3, 2),
            (json!("25%"), 3, 1, 0),
            (json!(2), 10, 2, 2),
            (json!("0%"), 10, 0, 0),
            (json!("100%"), 7, 7, 7),
            (json!("nonsense"), 8, 2, 2),
        ] {
            assert_eq!(share(Some(&value), total, Round::Up, "25%"), up, "{value} of {total} up");
            assert_eq!(share(Some(&value), total, Round::Down, "25%"), down, "{value} of {total} down");
        }
    }

    #[test]
    fn templates_are_equal_whatever_the_key_order_and_the_hash_label() {
        let a = Template::of(&json!({"metadata": {"labels": {"app": "web"}}, "spec": {"a": 1, "b": null}}));
        let b =
            Template::of(&json!({"spec": {"a": 1}, "metadata": {"labels": {"pod-template-hash": "x", "app": "web"}}}));
        assert_eq!(a, b);
        assert_eq!(a.hash(0), b.hash(0));
        assert_ne!(a.hash(0), a.hash(1));
        assert!(a.hash(0).bytes().all(|letter| b"bcdfghjklmnpqrstvwxz2456789".contains(&letter)));
    }

    #[test]
    fn a_pod_needs_the_greater_of_init_and_main_containers() {
        let container = |cpu: &str, policy: Option<&str>| ContainerJson {
            restart_policy: policy.map(str::to_owned),
            resources: Some(ResourcesJson {
                requests: Some(BTreeMap::from([("cpu".into(), json!(cpu))])),
                limits: Some(BTreeMap::from([("memory".into(), json!("1Ki"))])),
            }),
            ports: None,
        };
        let need = pod_requests(
            &[container("100m", None), container("200m", None)],
            &[container("50m", Some("Always")), container("1", None)],
            None,
        );
        assert_eq!((need.cpu_m, need.memory), (1050, 3072));
    }
}
