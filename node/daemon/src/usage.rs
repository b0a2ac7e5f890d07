//! What the node and its pods use: counters as they are now, how fast they grow, and what lies on the disk.
//!
//! Counters are read when somebody asks, and sampled every few seconds so that a rate can be told. The disk is walked by
//! `eviction`; who asks gets what the last walk found.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dhow_agent::rate::{Rate, SAMPLE_EVERY_MS, Sample, Samples};
use dhow_runtime_contract::Usage;
use dhow_switch::Traffic;
use dhow_tasks::Stop;
use dhow_types::{Time, Uid};
use k8s_openapi::api::core::v1::Pod;

use crate::clock::now;
use crate::disk_use::DiskUse;
use crate::host;
use crate::runner::Shared;
use crate::sandbox::Running;

/// One run of one container.
type Run = (Uid, Arc<str>, u32);

/// What is kept between two questions.
#[derive(Default)]
pub(crate) struct Meters {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    containers: BTreeMap<Run, Samples>,
    node: Option<Samples>,
    disk: BTreeMap<Uid, Arc<DiskUse>>,
}

impl Meters {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk was walked: this is all that was found.
    pub(crate) fn set_disk(&self, found: BTreeMap<Uid, Arc<DiskUse>>) {
        self.lock().disk = found;
    }

    /// What the last walk found of each pod.
    pub(crate) fn disk(&self) -> BTreeMap<Uid, Arc<DiskUse>> {
        self.lock().disk.clone()
    }
}

/// A pod that is set up, and what runs in it.
pub(crate) struct Live {
    pub(crate) uid: Uid,
    pub(crate) pod: Arc<Pod>,
    pub(crate) traffic: Traffic,
    pub(crate) running: Vec<(Arc<str>, Running)>,
}

/// The node and its pods at one moment.
pub(crate) struct Reading {
    pub(crate) at: Time,
    pub(crate) node: NodeReading,
    pub(crate) pods: Vec<PodReading>,
}

/// The node.
pub(crate) struct NodeReading {
    pub(crate) cpu_ns: Option<u64>,
    pub(crate) rate: Option<Rate>,
    pub(crate) memory: Option<dhow_agent::eviction::Stock>,
    pub(crate) file_system: Option<host::FileSystem>,
}

/// A pod.
pub(crate) struct PodReading {
    pub(crate) uid: Uid,
    pub(crate) pod: Arc<Pod>,
    pub(crate) traffic: Traffic,
    pub(crate) containers: Vec<ContainerReading>,
    pub(crate) disk: Arc<DiskUse>,
}

/// A container that runs.
pub(crate) struct ContainerReading {
    pub(crate) name: Arc<str>,
    pub(crate) started_at: Time,
    pub(crate) usage: Usage,
    pub(crate) rate: Option<Rate>,
}

impl PodReading {
    /// Adds something up over the containers.
    pub(crate) fn sum(&self, of: impl Fn(&ContainerReading) -> u64) -> u64 {
        self.containers.iter().map(of).sum()
    }

    /// How much CPU all containers use a second, if it is known of any; and over what time.
    pub(crate) fn rate(&self) -> Option<Rate> {
        let rates = self.containers.iter().filter_map(|container| container.rate);
        rates.reduce(|a, b| Rate { per_s: a.per_s + b.per_s, window_ms: a.window_ms.max(b.window_ms) })
    }
}

/// Reads everything.
pub(crate) fn read(shared: &Shared) -> Reading {
    let (at, live, cpu_ns) = (now(), shared.sandboxes.live(), host::cpu_ns());
    let inner = shared.meters.lock();
    let pods = live.into_iter().map(|pod| pod_reading(&inner, pod, at)).collect();
    let rate = inner.node.as_ref().zip(cpu_ns).and_then(|(samples, count)| samples.rate(Sample { at, count }));
    drop(inner);
    let file_system = host::file_system(shared.layout.root());
    let node = NodeReading { cpu_ns, rate, memory: host::memory(), file_system };
    Reading { at, node, pods }
}

fn pod_reading(inner: &Inner, live: Live, at: Time) -> PodReading {
    let Live { uid, pod, traffic, running, .. } = live;
    let containers = running.into_iter().map(|(name, running)| {
        let usage = running.container.usage();
        let sample = Sample { at, count: usage.cpu_ns };
        let started_at = running.container.started_at();
        let run = (uid.clone(), name, running.attempt);
        let rate = match inner.containers.get(&run) {
            Some(samples) => samples.rate(sample),
            None => Samples::since(started_at).rate(sample),
        };
        ContainerReading { name: run.1, started_at, usage, rate }
    });
    let containers = containers.collect();
    let disk = inner.disk.get(&uid).cloned().unwrap_or_default();
    PodReading { uid, pod, traffic, containers, disk }
}

/// Takes samples until told to stop.
pub(crate) async fn sample(shared: Arc<Shared>, stop: Stop) {
    loop {
        take_samples(&shared);
        if stop.or(tokio::time::sleep(Duration::from_millis(SAMPLE_EVERY_MS))).await.is_none() {
            return;
        }
    }
}

fn take_samples(shared: &Shared) {
    let (at, live) = (now(), shared.sandboxes.live());
    let mut inner = shared.meters.lock();
    if let Some(count) = host::cpu_ns() {
        let sample = Sample { at, count };
        match &mut inner.node {
            Some(samples) => samples.push(sample),
            none => *none = Some(Samples::beginning(sample)),
        }
    }
    // Made anew: what has ended is forgotten with it.
    let mut before = std::mem::take(&mut inner.containers);
    for Live { uid, running, .. } in live {
        for (name, running) in running {
            let run = (uid.clone(), name, running.attempt);
            let known = before.remove(&run);
            let mut samples = known.unwrap_or_else(|| Samples::since(running.container.started_at()));
            samples.push(Sample { at, count: running.container.usage().cpu_ns });
            inner.containers.insert(run, samples);
        }
    }
}
