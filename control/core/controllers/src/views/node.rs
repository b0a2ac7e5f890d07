//! The view of a node.

use super::resources::{Resources, whole};
use dhow_api::{Tree, meta};
use dhow_state::Object;
use dhow_types::Time;
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// Whether it says that it is short of memory, and of disk.
    pub(crate) memory_pressure: bool,
    pub(crate) disk_pressure: bool,
    pub(crate) pod_cidr: Option<String>,
}

pub(super) fn node(object: &Arc<Object>) -> Node {
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
    let condition = |name: &str| -> Option<Truth> {
        let conditions = meta::list(&tree, "status.conditions");
        let found = conditions.iter().find(|condition| meta::text(condition, "type") == name)?;
        Some(Truth::parse(meta::text(found, "status")))
    };
    Node {
        object: Arc::clone(object),
        allocatable: Resources::parse(&amounts),
        pods_max: amounts.get("pods").map_or(0, whole),
        taints: meta::list(&tree, "spec.taints").iter().map(taint).collect(),
        unschedulable: meta::truth(&tree, "spec.unschedulable"),
        ready: condition("Ready"),
        memory_pressure: condition("MemoryPressure") == Some(Truth::True),
        disk_pressure: condition("DiskPressure") == Some(Truth::True),
        pod_cidr: (!cidr.is_empty()).then(|| cidr.to_owned()),
    }
}
