//! Pods that nobody can end properly any more: bound to a node that does not exist, or deleted before they had one.

use crate::cache::{Cache, Seen};
use crate::plan::{Controller, Ctx, Plan, delete_within};
use crate::views::{Pod, resource};
use crate::wish::Propagation;
use dhow_state::Key;

/// Deletions of one round.
const BURST_MAX: usize = 500;
/// How long a node may be missing before its pods are given up: it may only be registering anew.
const QUARANTINE_MS: u64 = 40_000;

pub(crate) const CONTROLLER: Controller = Controller { name: "pod-garbage-collector", wakes, reconcile };

/// Keys are nodes, existing or not; the pod's own key stands for one without a node.
fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::NODES) && seen.new.is_none() {
        wake(seen.key.clone());
    }
    if let (_, Some(pod)) = seen.pods() {
        match &pod.node {
            Some(node) if cache.node(node.as_str()).is_none() => wake(Key::new(resource::NODES, "", node.as_str())),
            None if pod.deleting() => wake(seen.key.clone()),
            _ => {}
        }
    }
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let give_up = |pod: &Pod| delete_within(&pod.object, Propagation::Background, Some(0));
    if &*key.resource == resource::PODS {
        if let Some(pod) = ctx.cache.pod(key).filter(|pod| pod.deleting() && pod.node.is_none()) {
            plan.write(give_up(pod));
        }
        return plan;
    }
    if ctx.cache.node(&key.name).is_some() {
        return plan;
    }
    let Some(since) = ctx.cache.missing_since(&key.name) else { return plan };
    let until = since + QUARANTINE_MS;
    if until > ctx.now {
        plan.again_in(until.ms_since(ctx.now));
        return plan;
    }
    for pod in ctx.cache.pods_on(&key.name).take(BURST_MAX) {
        plan.write(give_up(pod));
    }
    plan
}
