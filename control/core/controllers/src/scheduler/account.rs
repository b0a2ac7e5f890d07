//! What each node has and what is taken of it.

use crate::views::{Node, Pod, Resources};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a pod without requests counts for when nodes are compared: otherwise all of them would go to one node.
const SCORED_CPU_M: i64 = 100;
const SCORED_MEMORY: i64 = 200 * 1024 * 1024;

/// What is taken on one node.
#[derive(Debug, Default)]
struct Taken {
    node: Option<Arc<Node>>,
    used: Resources,
    pods: i64,
    scored_cpu_m: i64,
    scored_memory: i64,
    volume_bytes: i64,
    /// Pods by the UID of their controller.
    owners: BTreeMap<String, i64>,
}

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Account {
    nodes: BTreeMap<String, Taken>,
}

/// A node as rules see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeInfo<'a> {
    pub(super) name: &'a str,
    pub(super) node: &'a Node,
    pub(super) used: &'a Resources,
    pub(super) pods: i64,
    pub(super) scored_cpu_m: i64,
    pub(super) scored_memory: i64,
    /// Bytes of its disk that volumes may fill.
    pub(super) volume_bytes: i64,
    owners: &'a BTreeMap<String, i64>,
}

impl NodeInfo<'_> {
    /// Pods of this controller here.
    pub(super) fn pods_of(&self, controller: &str) -> i64 {
        self.owners.get(controller).copied().unwrap_or(0)
    }
}

/// What a pod counts for when nodes are compared: its requests, or something for nothing.
pub(super) fn scored(requests: &Resources) -> (i64, i64) {
    let cpu = if requests.cpu_m == 0 { SCORED_CPU_M } else { requests.cpu_m };
    let memory = if requests.memory == 0 { SCORED_MEMORY } else { requests.memory };
    (cpu, memory)
}

impl Account {
    /// Sets or removes a node. True when pods may fit now that did not before.
    pub(super) fn set_node(&mut self, name: &str, node: Option<Arc<Node>>) -> bool {
        let Some(node) = node else {
            if let Some(taken) = self.nodes.get_mut(name) {
                taken.node = None;
                if taken.pods == 0 && taken.volume_bytes == 0 {
                    self.nodes.remove(name);
                }
            }
            return false;
        };
        let taken = self.nodes.entry(name.to_owned()).or_default();
        let same = taken.node.as_ref().is_some_and(|old| {
            old.allocatable == node.allocatable
                && old.pods_max == node.pods_max
                && old.taints == node.taints
                && old.unschedulable == node.unschedulable
                && old.ready == node.ready
                && old.object.index.labels == node.object.index.labels
        });
        taken.node = Some(node);
        !same
    }

    pub(super) fn add(&mut self, node: &str, pod: &Pod) {
        let taken = self.nodes.entry(node.to_owned()).or_default();
        taken.used.add(&pod.requests);
        taken.pods += 1;
        let (cpu, memory) = scored(&pod.requests);
        taken.scored_cpu_m = taken.scored_cpu_m.saturating_add(cpu);
        taken.scored_memory = taken.scored_memory.saturating_add(memory);
        if let Some(owner) = &pod.controller {
            *taken.owners.entry(owner.clone()).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, node: &str, pod: &Pod) {
        let Some(taken) = self.nodes.get_mut(node) else { return };
        taken.used.subtract(&pod.requests);
        taken.pods -= 1;
        let (cpu, memory) = scored(&pod.requests);
        taken.scored_cpu_m = taken.scored_cpu_m.saturating_sub(cpu);
        taken.scored_memory = taken.scored_memory.saturating_sub(memory);
        if let Some(owner) = &pod.controller
            && let Some(count) = taken.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                taken.owners.remove(owner);
            }
        }
        if taken.pods == 0 && taken.volume_bytes == 0 && taken.node.is_none() {
            self.nodes.remove(node);
        }
    }

    /// A volume on the node's own disk is there, or gone (a negative number).
    pub(super) fn add_volume(&mut self, node: &str, bytes: i64) {
        let taken = self.nodes.entry(node.to_owned()).or_default();
        taken.volume_bytes = taken.volume_bytes.saturating_add(bytes);
        if taken.pods == 0 && taken.volume_bytes == 0 && taken.node.is_none() {
            self.nodes.remove(node);
        }
    }

    /// How many nodes are known, also those that only pods name.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes that exist, by name.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeInfo<'_>> {
        self.nodes.iter().filter_map(|(name, taken)| {
            Some(NodeInfo {
                name,
                node: taken.node.as_deref()?,
                used: &taken.used,
                pods: taken.pods,
                scored_cpu_m: taken.scored_cpu_m,
                scored_memory: taken.scored_memory,
                volume_bytes: taken.volume_bytes,
                owners: &taken.owners,
            })
        })
    }
}
