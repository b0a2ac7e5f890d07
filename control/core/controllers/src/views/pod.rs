//! The view of a pod, read straight from its text: there are very many pods.

use super::read;
use super::resources::Resources;
use dhow_api::Tree;
use dhow_state::Object;
use dhow_types::{NodeName, Time};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// The claims that its volumes are of, by their names in its namespace.
    pub(crate) claims: Vec<String>,
    /// Those of them that it brings along.
    pub(crate) brought: Vec<String>,
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

pub(super) fn pod(object: &Arc<Object>) -> Pod {
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
    let volumes = json.spec.volumes.unwrap_or_default();
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
        claims: claims(&object.key.name, &volumes, |_| true),
        brought: claims(&object.key.name, &volumes, |volume| volume.ephemeral.is_some()),
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

/// A claim that is made for the pod alone has a name that follows from the pod's.
fn claims(pod: &str, volumes: &[VolumeJson], wanted: impl Fn(&VolumeJson) -> bool) -> Vec<String> {
    let one = |volume: &VolumeJson| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{pod}-{}", volume.name)),
        (None, None) => None,
    };
    volumes.iter().filter(|volume| wanted(volume)).filter_map(one).collect()
}

fn controller(owners: Option<Vec<OwnerJson>>) -> Option<String> {
    owners?.into_iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid)
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
    volumes: Option<Vec<VolumeJson>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct VolumeJson {
    name: String,
    persistent_volume_claim: Option<ClaimJson>,
    ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClaimJson {
    claim_name: String,
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
