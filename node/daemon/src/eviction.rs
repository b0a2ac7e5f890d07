//! Looks at what the node and its pods use, and acts on what the deciding part makes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_agent::In;
use dhow_agent::eviction::{ContainerUse, Evictor, Observation, PodUse, Pressure};
use dhow_tasks::Stop;
use dhow_types::Uid;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use crate::clock::now;
use crate::disk_use::{DiskUse, Places, measure};
use crate::host;
use crate::runner::Shared;
use crate::usage::Live;

/// How often everything is looked at.
const EVERY: Duration = Duration::from_secs(5);
/// Pods without a limit on what they store are measured each so many rounds, or when the disk runs short: walking the
/// files of thousands of pods is no small work.
const WALK_ALL_ROUNDS: u32 = 12;
/// How long the containers of a pod that is evicted may take to end; as a kubelet has it.
const GRACE_MS: u64 = 1_000;

/// Evicts until told to stop.
pub(crate) async fn run(shared: Arc<Shared>, mut evictor: Evictor, answers: mpsc::Sender<In>, stop: Stop) {
    let mut round = 0_u32;
    let mut pressed = Pressure::default();
    while stop.or(tokio::time::sleep(EVERY)).await.is_some() {
        let all = pressed.disk || round.is_multiple_of(WALK_ALL_ROUNDS);
        round = round.wrapping_add(1);
        let Some(seen) = stop.or(observe(&shared, all)).await else { return };
        let decision = evictor.observe(now(), &seen);
        if decision.pressure != pressed {
            tracing::info!(pressure = %decision.pressure, "the node is short of something else than before");
            pressed = decision.pressure;
        }
        shared.pressure.send_if_modified(|known| std::mem::replace(known, pressed) != pressed);
        for eviction in decision.evictions {
            tracing::info!(uid = %eviction.uid, message = eviction.message, "evicting a pod");
            let (uid, message, disrupted) = (eviction.uid, eviction.message, eviction.disrupted);
            let sent = answers.send(In::Evict { uid, message, grace_ms: GRACE_MS, disrupted });
            if !matches!(stop.or(sent).await, Some(Ok(()))) {
                return;
            }
        }
    }
}

async fn observe(shared: &Arc<Shared>, all: bool) -> Observation {
    let live = shared.sandboxes.live();
    let mut known = shared.meters.disk();
    let mut found: BTreeMap<Uid, Arc<DiskUse>> =
        live.iter().filter_map(|pod| Some((pod.uid.clone(), known.remove(&pod.uid)?))).collect();
    let due = live.iter().filter(|pod| all || limits_storage(&pod.pod) || !found.contains_key(&pod.uid));
    let work: Vec<(Uid, Places)> = due.filter_map(|pod| Some((pod.uid.clone(), places(shared, pod)?))).collect();
    if !work.is_empty() {
        let walked = tokio::task::spawn_blocking(move || {
            work.into_iter().map(|(uid, places)| (uid, Arc::new(measure(&places)))).collect::<Vec<_>>()
        });
        match walked.await {
            Ok(walked) => found.extend(walked),
            Err(err) => tracing::error!(%err, "measuring the pods' files panicked"),
        }
    }
    let pods = live.iter().map(|live| pod_use(live, found.get(&live.uid))).collect();
    shared.meters.set_disk(found);
    let disk = host::file_system(shared.layout.root()).map(|found| found.bytes);
    Observation { memory: host::memory(), disk, pods }
}

fn pod_use(live: &Live, disk: Option<&Arc<DiskUse>>) -> PodUse {
    let mut containers: BTreeMap<String, ContainerUse> = BTreeMap::new();
    for (name, running) in &live.running {
        containers.entry(name.to_string()).or_default().memory = running.container.usage().memory_bytes;
    }
    let mut volumes = BTreeMap::new();
    if let Some(disk) = disk {
        for (name, taken) in &disk.containers {
            containers.entry(name.clone()).or_default().disk = taken.own.bytes + taken.logs.bytes;
        }
        volumes = disk.volumes.iter().map(|(name, taken)| (name.clone(), taken.bytes)).collect();
    }
    PodUse { pod: live.pod.clone(), containers, volumes }
}

/// Whether a pod says how much it may store.
fn limits_storage(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let sized = |volume: &k8s_openapi::api::core::v1::Volume| {
        volume.empty_dir.as_ref().is_some_and(|dir| dir.size_limit.is_some())
    };
    let limits = |container: &k8s_openapi::api::core::v1::Container| {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        limits.is_some_and(|limits| limits.contains_key("ephemeral-storage"))
    };
    spec.volumes.iter().flatten().any(sized)
        || spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(limits)
}

/// Where a pod's things lie; `None` if its names cannot be those of files.
fn places(shared: &Shared, live: &Live) -> Option<Places> {
    let spec = live.pod.spec.as_ref()?;
    let mut places = Places::default();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let own = shared.layout.private(&live.uid, &container.name, 0)?.parent()?.to_owned();
        let logs = shared.layout.logs(&live.pod, &container.name)?.0;
        places.containers.insert(container.name.clone(), (own, logs));
    }
    let empty = spec.volumes.iter().flatten().filter(|volume| volume.empty_dir.is_some());
    for volume in empty {
        let found = shared.sandboxes.with(&live.uid, |sandbox| sandbox.volumes.get(&volume.name).cloned()).flatten();
        places.volumes.extend(found.map(|path| (volume.name.clone(), path)));
    }
    Some(places)
}
