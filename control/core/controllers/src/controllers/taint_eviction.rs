//! Eviction by taint: a pod leaves a node with a `NoExecute` taint that it does not tolerate, or not for so long.

use super::node_lifecycle::{NOT_READY, UNREACHABLE};
use crate::cache::{Cache, Seen};
use crate::events::Note;
use crate::plan::{Controller, Ctx, Plan, delete};
use crate::scheduler::{Toleration, tolerations};
use crate::views::{Pod, Taint};
use crate::wish::Propagation;
use dhow_state::Key;

/// How long a pod that says nothing about it stays on a node that is lost or not ready. Admission writes this into
/// each new pod; here it covers pods that came another way.
const DEFAULT_TOLERATION_S: u64 = 300;

pub(crate) const CONTROLLER: Controller = Controller { name: "taint-eviction-controller", wakes, reconcile };

fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if let Some(new) = seen.new.as_ref().and_then(|side| side.node()) {
        let evicts = |taint: &Taint| taint.effect == "NoExecute";
        let same = seen.old.as_ref().and_then(|side| side.node()).is_some_and(|old| old.taints == new.taints);
        if !same && new.taints.iter().any(evicts) {
            for pod in cache.pods_on(&seen.key.name) {
                wake(pod.object.key.clone());
            }
        }
    }
    if let (old, Some(pod)) = seen.pods()
        && old.is_none_or(|old| old.node != pod.node)
        && let Some(node) = pod.node.as_ref().and_then(|node| cache.node(node.as_str()))
        && node.taints.iter().any(|taint| taint.effect == "NoExecute")
    {
        wake(seen.key.clone());
    }
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(pod) = ctx.cache.pod(key).filter(|pod| !pod.deleting()) else { return plan };
    let Some(node) = pod.node.as_ref().and_then(|node| ctx.cache.node(node.as_str())) else { return plan };
    let taints = node.taints.iter().filter(|taint| taint.effect == "NoExecute");
    let tolerations = tolerations(&pod.object);
    let Some(left_ms) = taints.filter_map(|taint| left_ms(ctx, pod, taint, &tolerations)).min() else { return plan };
    if left_ms > 0 {
        plan.again_in(left_ms);
        return plan;
    }
    let message = format!("Marking for deletion Pod {}/{}", key.namespace, key.name);
    plan.write_noted(
        delete(&pod.object, Propagation::Background),
        Note::normal(&pod.object, "TaintManagerEviction", message),
    );
    plan
}

/// How long the pod may stay under a taint; `None` for ever.
fn left_ms(ctx: &Ctx<'_>, pod: &Pod, taint: &Taint, tolerations: &[Toleration]) -> Option<u64> {
    let fitting: Vec<&Toleration> = tolerations.iter().filter(|toleration| toleration.covers(taint)).collect();
    let seconds = if fitting.is_empty() {
        let by_default = matches!(taint.key.as_str(), NOT_READY | UNREACHABLE);
        if by_default { DEFAULT_TOLERATION_S } else { 0 }
    } else {
        // The shortest one counts; a toleration without a time is for ever, but does not lengthen another.
        fitting.iter().filter_map(|toleration| toleration.seconds).min()?
    };
    let from = taint.added.unwrap_or(pod.created).max(pod.created);
    Some((from + seconds.saturating_mul(1000)).ms_since(ctx.now))
}
