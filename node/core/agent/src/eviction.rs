//! Which pods have to leave the node because of what they use, and how the node stands: as a kubelet decides it.
//!
//! First those that are over a limit of their own (an `emptyDir`'s `sizeLimit`, `ephemeral-storage` of the pod or of a
//! container); all of them at once. If there are none and the node runs short of memory or disk, one pod a round: those
//! that use more than they request first, then by priority, then by how much more they use. A round later is time to
//! see what that has given back. Critical pods stay.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use dhow_api::quantity::Quantity;
use dhow_types::{Time, Uid};
use k8s_openapi::api::core::v1::{Container, Pod};

/// A pod of this priority or more is the system's, and stays.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// How long a node says that it is short of something after it was seen to be, so that the answer does not flap.
const TRANSITION_MS: u64 = 5 * 60 * 1000;

/// What a node can be short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// `memory.available`
    Memory,
    /// `nodefs.available`
    Disk,
}

impl Signal {
    /// The name of a threshold.
    fn parse(text: &str) -> Option<Self> {
        match text {
            "memory.available" => Some(Self::Memory),
            "nodefs.available" => Some(Self::Disk),
            _ => None,
        }
    }

    /// The resource as messages call it.
    fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
        }
    }
}

/// How little of something is too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Least {
    Bytes(u64),
    /// Thousandths of the capacity.
    PerMille(u64),
}

impl Least {
    fn bytes(self, capacity: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::PerMille(share) => (u128::from(capacity) * u128::from(share) / 1000) as u64,
        }
    }
}

/// The thresholds of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds(BTreeMap<Signal, Least>);

/// A threshold that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no eviction threshold: write e.g. `memory.available<100Mi,nodefs.available<10%`")]
pub struct ThresholdFault(String);

impl Default for Thresholds {
    /// A kubelet's defaults; of the disk half as much, since a node may well be a machine that does other things too.
    fn default() -> Self {
        Self(BTreeMap::from([(Signal::Memory, Least::Bytes(100 << 20)), (Signal::Disk, Least::PerMille(50))]))
    }
}

impl Thresholds {
    /// Reads `memory.available<100Mi,nodefs.available<10%`. What is not named has no threshold.
    pub fn parse(text: &str) -> Result<Self, ThresholdFault> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let parse = |part: &str| -> Option<(Signal, Least)> {
            let (signal, value) = part.split_once('<')?;
            Some((Signal::parse(signal.trim())?, least(value.trim())?))
        };
        parts.map(|part| parse(part).ok_or_else(|| ThresholdFault(part.to_owned()))).collect::<Result<_, _>>().map(Self)
    }
}

fn least(text: &str) -> Option<Least> {
    if let Some(percent) = text.strip_suffix('%') {
        let milli = Quantity::parse(percent).ok()?.milli();
        return u64::try_from(milli / 100).ok().filter(|share| *share <= 1000).map(Least::PerMille);
    }
    u64::try_from(Quantity::parse(text).ok()?.value()).ok().map(Least::Bytes)
}

/// How much there is of something, and how much is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stock {
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes that nobody uses.
    pub available: u64,
}

/// What one container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Memory, in bytes.
    pub memory: u64,
    /// Its own files and its logs, in bytes.
    pub disk: u64,
}

/// What one pod uses.
#[derive(Clone, Debug)]
pub struct PodUse {
    /// The pod.
    pub pod: Arc<Pod>,
    /// By name.
    pub containers: BTreeMap<String, ContainerUse>,
    /// Bytes in each `emptyDir`, by the volume's name.
    pub volumes: BTreeMap<String, u64>,
}

/// What the node looks like.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The node's memory, if it is known.
    pub memory: Option<Stock>,
    /// The file system of the node's data directory, if it is known.
    pub disk: Option<Stock>,
    /// The pods that run.
    pub pods: Vec<PodUse>,
}

/// A pod that has to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Which one.
    pub uid: Uid,
    /// Why, for its status.
    pub message: String,
    /// It has to leave for the node's sake, not for a limit of its own.
    pub disrupted: bool,
}

/// How the node stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// `MemoryPressure`
    pub memory: bool,
    /// `DiskPressure`
    pub disk: bool,
}

/// What follows from an observation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Who has to leave.
    pub evictions: Vec<Eviction>,
    /// What to say of the node.
    pub pressure: Pressure,
}

/// Decides, round by round.
#[derive(Clone, Debug)]
pub struct Evictor {
    thresholds: Thresholds,
    /// When the node was last short of it.
    short_at: BTreeMap<Signal, Time>,
}

impl Evictor {
    /// With these thresholds.
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, short_at: BTreeMap::new() }
    }

    /// One round.
    pub fn observe(&mut self, now: Time, seen: &Observation) -> Decision {
        let mut short = Vec::new();
        for (&signal, &least) in &self.thresholds.0 {
            let Some(stock) = seen.stock(signal) else { continue };
            let threshold = least.bytes(stock.capacity);
            if stock.available < threshold {
                self.short_at.insert(signal, now);
                short.push((signal, threshold, stock.available));
            }
        }
        self.short_at.retain(|_, at| now.ms_since(*at) < TRANSITION_MS);
        let says = |signal| self.short_at.contains_key(&signal);
        let pressure = Pressure { memory: says(Signal::Memory), disk: says(Signal::Disk) };
        let mut evictions: Vec<Eviction> = seen.pods.iter().filter_map(over_limit).collect();
        if evictions.is_empty() {
            // Memory first: a node without disk still runs, one without memory does not.
            let found = short.iter().find_map(|(signal, threshold, available)| {
                let victim = victim(*signal, &seen.pods)?;
                let message = shortage(*signal, victim, *threshold, *available);
                Some(Eviction { uid: victim.uid(), message, disrupted: true })
            });
            evictions.extend(found);
        }
        Decision { evictions, pressure }
    }
}

impl Observation {
    fn stock(&self, signal: Signal) -> Option<Stock> {
        match signal {
            Signal::Memory => self.memory,
            Signal::Disk => self.disk,
        }
    }
}

impl PodUse {
    fn uid(&self) -> Uid {
        Uid::new(self.pod.metadata.uid.as_deref().unwrap_or_default())
    }

    fn priority(&self) -> i32 {
        self.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
    }

    /// Bytes of disk: what its containers wrote, and its volumes that are not in memory.
    fn disk(&self) -> u64 {
        let containers: u64 = self.containers.values().map(|container| container.disk).sum();
        let in_memory = |name: &str| empty_dirs(&self.pod).any(|(volume, dir)| volume == name && dir.in_memory);
        let volumes = self.volumes.iter().filter(|(name, _)| !in_memory(name)).map(|(_, bytes)| bytes);
        containers + volumes.sum::<u64>()
    }

    fn used(&self, signal: Signal) -> u64 {
        match signal {
            Signal::Memory => self.containers.values().map(|container| container.memory).sum(),
            Signal::Disk => self.disk(),
        }
    }
}

impl ContainerUse {
    fn of(self, signal: Signal) -> u64 {
        match signal {
            Signal::Memory => self.memory,
            Signal::Disk => self.disk,
        }
    }
}

struct EmptyDir {
    size_limit: Option<(u64, String)>,
    in_memory: bool,
}

fn empty_dirs(pod: &Pod) -> impl Iterator<Item = (&str, EmptyDir)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let limit = source.size_limit.as_ref().and_then(|limit| amount(&limit.0)).filter(|(bytes, _)| *bytes > 0);
        Some((
            volume.name.as_str(),
            EmptyDir { size_limit: limit, in_memory: source.medium.as_deref() == Some("Memory") },
        ))
    })
}

/// A quantity in bytes, and as it is written.
fn amount(text: &str) -> Option<(u64, String)> {
    let quantity = Quantity::parse(text).ok()?;
    Some((u64::try_from(quantity.value()).ok()?, quantity.to_canonical()))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let always = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    pod.spec
        .iter()
        .flat_map(move |spec| spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(always)))
}

fn limit(container: &Container, resource: &str) -> Option<(u64, String)> {
    amount(&container.resources.as_ref()?.limits.as_ref()?.get(resource)?.0)
}

/// What a container asks for; a limit alone is a request too.
fn request(container: &Container, resource: &str) -> u64 {
    let asked = || amount(&container.resources.as_ref()?.requests.as_ref()?.get(resource)?.0);
    asked().or_else(|| limit(container, resource)).map_or(0, |(bytes, _)| bytes)
}

/// Whether a pod is over a limit of its own; the first that a kubelet would name.
fn over_limit(seen: &PodUse) -> Option<Eviction> {
    let pod = &*seen.pod;
    let message = over_size_limit(seen).or_else(|| over_pod_limit(seen)).or_else(|| {
        let over = |container: &Container| {
            let used = seen.containers.get(&container.name)?.disk;
            let (bytes, text) = limit(container, "ephemeral-storage")?;
            let name = &container.name;
            (used > bytes).then(|| format!("Container {name} exceeded its local ephemeral storage limit \"{text}\". "))
        };
        containers(pod).find_map(over)
    })?;
    Some(Eviction { uid: seen.uid(), message, disrupted: false })
}

fn over_size_limit(seen: &PodUse) -> Option<String> {
    empty_dirs(&seen.pod).find_map(|(name, dir)| {
        let (bytes, text) = dir.size_limit?;
        let used = *seen.volumes.get(name)?;
        (used > bytes).then(|| format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{text}\". "))
    })
}

fn over_pod_limit(seen: &PodUse) -> Option<String> {
    let limits: Vec<u64> =
        containers(&seen.pod).filter_map(|c| limit(c, "ephemeral-storage")).map(|(bytes, _)| bytes).collect();
    let total: u64 = limits.iter().sum();
    let over = !limits.is_empty() && seen.disk() > total;
    over.then(|| {
        let text = binary(total);
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {text}. ")
    })
}

/// The pod that leaves first.
fn victim(signal: Signal, pods: &[PodUse]) -> Option<&PodUse> {
    let may_leave = |seen: &&PodUse| seen.priority() < CRITICAL_PRIORITY && seen.used(signal) > 0;
    pods.iter().filter(may_leave).min_by_key(|seen| {
        let requested: u64 = containers(&seen.pod).map(|c| request(c, signal.resource())).sum();
        let beyond = i128::from(seen.used(signal)) - i128::from(requested);
        (beyond <= 0, seen.priority(), -beyond, seen.uid())
    })
}

fn shortage(signal: Signal, seen: &PodUse, threshold: u64, available: u64) -> String {
    let resource = signal.resource();
    let (threshold, available) = (binary(threshold), binary(available));
    let mut message =
        format!("The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {available}. ");
    for container in containers(&seen.pod) {
        let used = seen.containers.get(&container.name).map_or(0, |used| used.of(signal));
        let requested = request(container, resource);
        if used > requested {
            let (name, used, requested) = (&container.name, binary(used), binary(requested));
            message.push_str(&format!(
                "Container {name} was using {used}, request is {requested}, has larger consumption of {resource}. "
            ));
        }
    }
    message
}

/// Bytes as a kubelet writes them.
fn binary(bytes: u64) -> String {
    Quantity::from_bytes(i64::try_from(bytes).unwrap_or(i64::MAX)).to_canonical()
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.memory, self.disk) {
            (false, false) => "none",
            (true, false) => "memory",
            (false, true) => "disk",
            (true, true) => "memory and disk",
        })
    }
}

#[cfg(test)]
mod tests;
