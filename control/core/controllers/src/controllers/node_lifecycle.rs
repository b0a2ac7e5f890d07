//! Node life: a node that is not heard of any more is marked, tainted, and its pods are no longer counted as ready.

use super::{condition, set_condition};
use crate::cache::{Cache, Seen};
use crate::events::Note;
use crate::plan::{Controller, Ctx, Plan};
use crate::views::{Node, Truth, resource};
use crate::wish::Write;
use dhow_api::{Tree, meta};
use dhow_state::Key;
use dhow_types::Time;
use serde_json::json;

/// Pod status writes of one round.
const BURST_MAX: usize = 500;

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub(crate) const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
pub(crate) const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
pub(crate) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

pub(crate) const CONTROLLER: Controller = Controller { name: "node-controller", wakes, reconcile };

fn wakes(_: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::NODES) {
        wake(seen.key.clone());
        return;
    }
    // An agent that cannot reach us cannot say that its pods are not ready, but one that comes back may say they are.
    if let (_, Some(pod)) = seen.pods()
        && let Some(node) = pod.node.as_ref().filter(|_| pod.ready())
        && seen.old.as_ref().is_none_or(|old| old.pod().is_some_and(|old| !old.ready() || old.node.is_none()))
    {
        wake(Key::new(resource::NODES, "", node.as_str()));
    }
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = ctx.cache.node(&key.name) else { return plan };
    let heard = ctx.cache.heartbeat(&key.name).unwrap_or(ctx.now);
    let lost_at = heard + ctx.config.node_grace_s.saturating_mul(1000);
    let lost = lost_at <= ctx.now;
    if !lost {
        plan.again_in(lost_at.ms_since(ctx.now).max(1));
    }
    // One write of the node a round: its status first, the taints that follow from it after.
    if lost && node.ready != Some(Truth::Unknown) {
        mark_unknown(ctx, node, &mut plan);
        return plan;
    }
    if let Some(tree) = retainted(node, ctx.now) {
        plan.write(Write::Update { tree });
    }
    if lost {
        mark_pods(ctx, node, &mut plan);
    }
    plan
}

fn mark_unknown(ctx: &Ctx<'_>, node: &Node, plan: &mut Plan) {
    let mut tree = node.object.tree();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let old = condition(&tree, kind).cloned();
        let (reason, message) = match old {
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let now = ctx.now.to_rfc3339();
        let heard = old.as_ref().map(|old| meta::text(old, "lastHeartbeatTime")).filter(|text| !text.is_empty());
        let condition = json!({"type": kind, "status": "Unknown", "lastHeartbeatTime": heard.unwrap_or(&now),
            "lastTransitionTime": now, "reason": reason, "message": message});
        set_condition(&mut tree, condition);
    }
    let message = format!("Node {} status is now: NodeNotReady", node.object.key.name);
    plan.write_noted(Write::UpdateStatus { tree }, Note::normal(&node.object, "NodeNotReady", message));
}

/// The taints that a node's condition asks for, by key and effect.
pub(crate) fn taints_of_condition(node: &Node) -> Vec<(&'static str, &'static str)> {
    let mut taints = match node.ready {
        Some(Truth::True) => Vec::new(),
        Some(Truth::Unknown) => vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
        Some(Truth::False) | None => vec![(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
    };
    // A node that is not heard of has said nothing of late.
    if node.ready != Some(Truth::Unknown) {
        taints.extend(node.memory_pressure.then_some((MEMORY_PRESSURE, "NoSchedule")));
        taints.extend(node.disk_pressure.then_some((DISK_PRESSURE, "NoSchedule")));
    }
    if node.unschedulable {
        taints.push((UNSCHEDULABLE, "NoSchedule"));
    }
    taints
}

/// Whether a taint is ours to put on and take off.
pub(crate) fn is_of_condition(key: &str) -> bool {
    matches!(key, NOT_READY | UNREACHABLE | MEMORY_PRESSURE | DISK_PRESSURE | UNSCHEDULABLE)
}

/// The node with the taints of its condition, if it has others.
fn retainted(node: &Node, now: Time) -> Option<Tree> {
    let wanted = taints_of_condition(node);
    let wants = |taint: &Tree| {
        wanted.iter().any(|(key, effect)| meta::text(taint, "key") == *key && meta::text(taint, "effect") == *effect)
    };
    let mut tree = node.object.tree();
    let old = meta::list(&tree, "spec.taints").to_vec();
    let mut taints: Vec<Tree> =
        old.iter().filter(|taint| !is_of_condition(meta::text(taint, "key")) || wants(taint)).cloned().collect();
    for (key, effect) in wanted {
        let has = |taint: &Tree| meta::text(taint, "key") == key && meta::text(taint, "effect") == effect;
        if !taints.iter().any(has) {
            let mut taint = json!({"key": key, "effect": effect});
            if effect == "NoExecute" {
                taint["timeAdded"] = now.to_rfc3339().into();
            }
            taints.push(taint);
        }
    }
    if taints == old {
        return None;
    }
    if taints.is_empty() {
        meta::remove(&mut tree, "spec.taints");
    } else {
        meta::set(&mut tree, "spec.taints", taints);
    }
    Some(tree)
}

fn mark_pods(ctx: &Ctx<'_>, node: &Node, plan: &mut Plan) {
    for pod in ctx.cache.pods_on(&node.object.key.name).filter(|pod| pod.ready()).take(BURST_MAX) {
        let mut tree = pod.object.tree();
        let Some(mut ready) = condition(&tree, "Ready").cloned() else { continue };
        ready["status"] = "False".into();
        ready["lastTransitionTime"] = ctx.now.to_rfc3339().into();
        set_condition(&mut tree, ready);
        let note = Note::warning(&pod.object, "NodeNotReady", "Node is not ready");
        plan.write_noted(Write::UpdateStatus { tree }, note);
    }
}
