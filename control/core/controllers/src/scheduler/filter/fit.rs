//! Nodes must have room: for one more pod, and for everything that the pod requests.

use crate::scheduler::account::NodeInfo;
use crate::scheduler::needs::Needs;

pub(super) fn check(needs: &Needs, node: &NodeInfo<'_>, reasons: &mut Vec<String>) {
    if node.pods >= node.node.pods_max {
        reasons.push("Too many pods".into());
    }
    let (asked, has, used) = (&needs.requests, &node.node.allocatable, node.used);
    for (name, asked, has, used) in [
        ("cpu", asked.cpu_m, has.cpu_m, used.cpu_m),
        ("memory", asked.memory, has.memory, used.memory),
        ("ephemeral-storage", asked.ephemeral, has.ephemeral, used.ephemeral.saturating_add(node.volume_bytes)),
    ] {
        lacks(name, asked, has, used, reasons);
    }
    for (name, asked) in &asked.extended {
        let amount = |amounts: &std::collections::BTreeMap<String, i64>| amounts.get(name).copied().unwrap_or(0);
        lacks(name, *asked, amount(&has.extended), amount(&used.extended), reasons);
    }
}

fn lacks(name: &str, asked: i64, has: i64, used: i64, reasons: &mut Vec<String>) {
    if asked > 0 && asked > has.saturating_sub(used) {
        reasons.push(format!("Insufficient {name}"));
    }
}
