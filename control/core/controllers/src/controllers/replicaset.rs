//! ReplicaSets: as many pods of a template as asked for.

use super::{adoption, condition, set_condition};
use crate::cache::{Cache, Seen};
use crate::events::Note;
use crate::plan::{Controller, Ctx, Plan, Planned, controller_ref, delete, names_from};
use crate::views::{Counts, Phase, Pod, ReplicaSet, resource};
use crate::wish::{Propagation, Write};
use dhow_api::{Tree, meta};
use dhow_state::Key;
use dhow_types::{Rng, Time};
use serde_json::json;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Pods that one round creates or deletes. Large enough that a thousand replicas take a few rounds, small enough that
/// other keys get their turn in between.
const BURST_MAX: usize = 500;
/// Between two status writes of a set while its numbers are on the move: a thousand pods that become ready one by one
/// are told in a few writes. A status that says "done" is never held back.
const STATUS_INTERVAL_MS: u64 = 200;
/// About what looking at one pod costs.
const COST_PER_POD_US: u64 = 1;

pub(crate) const CONTROLLER: Controller = Controller { name: "replicaset-controller", wakes, reconcile };

fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::REPLICA_SETS) {
        wake(seen.key.clone());
        return;
    }
    let (old, new) = seen.pods();
    for pod in [old, new].into_iter().flatten() {
        match &pod.controller {
            Some(uid) => {
                let owner = cache.by_uid(uid).filter(|owner| &*owner.key.resource == resource::REPLICA_SETS);
                if let Some(owner) = owner {
                    wake(owner.key.clone());
                }
            }
            None if pod.active() => {
                for set in cache.replica_sets(&seen.key.namespace).filter(|set| selects(set, pod)) {
                    wake(set.object.key.clone());
                }
            }
            None => {}
        }
    }
}

fn selects(set: &ReplicaSet, pod: &Pod) -> bool {
    set.selector.as_ref().is_some_and(|selector| selector.matches_labels(&pod.object.index.labels))
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(set) = ctx.cache.replica_set(key) else { return plan };
    if set.selector.is_none() {
        return plan;
    }
    if !set.deleting() {
        adopt_and_release(ctx, set, &mut plan);
        if !plan.writes.is_empty() {
            return plan;
        }
    }
    let pods: Vec<&Arc<Pod>> =
        ctx.cache.pods_of(set.uid()).filter(|pod| pod.active() && pod.object.key.namespace == key.namespace).collect();
    if !set.deleting() {
        let wanted = usize::try_from(set.replicas).unwrap_or(0);
        if pods.len() < wanted {
            create(ctx, set, wanted - pods.len(), &mut plan);
        } else if pods.len() > wanted {
            shrink(ctx, set, &pods, pods.len() - wanted, &mut plan);
        }
    }
    write_status(ctx, set, &pods, &mut plan);
    plan.cost_us = (pods.len() as u64).saturating_mul(COST_PER_POD_US);
    plan
}

fn adopt_and_release(ctx: &Ctx<'_>, set: &ReplicaSet, plan: &mut Plan) {
    for pod in ctx.cache.orphans(&set.object.key.namespace).filter(|pod| pod.active() && selects(set, pod)) {
        plan.write(Write::Update { tree: adoption::adopted(&pod.object, &set.object) });
    }
    for pod in ctx.cache.pods_of(set.uid()).filter(|pod| !pod.deleting() && !selects(set, pod)) {
        plan.write(Write::Update { tree: adoption::released(&pod.object, set.uid()) });
    }
    plan.writes.truncate(BURST_MAX);
}

fn create(ctx: &Ctx<'_>, set: &ReplicaSet, missing: usize, plan: &mut Plan) {
    // After a refusal one pod tries the way for the others.
    let burst = if ctx.history.failures > 0 { 1 } else { BURST_MAX };
    let tree = set.object.tree();
    let template = meta::at(&tree, "spec.template").cloned().unwrap_or(Tree::Null);
    let mut names = names(ctx, set);
    let mut taken = BTreeSet::new();
    for _ in 0..missing.min(burst) {
        let name = loop {
            let name = format!("{}-{}", set.name(), names.name_suffix(5));
            let key = Key::new(resource::PODS, &*set.object.key.namespace, name.as_str());
            if ctx.cache.object(&key).is_none() && taken.insert(key) {
                break name;
            }
        };
        let done = Note::normal(&set.object, "SuccessfulCreate", format!("Created pod: {name}"));
        let refused = Note::warning(&set.object, "FailedCreate", "Error creating: ");
        let write = Write::Create { tree: pod_of(set, &template, &name) };
        plan.writes.push(Planned { write, done: Some(done), refused: Some(refused) });
    }
}

/// The names of new pods. A change among the pods, or a refusal, gives new ones.
fn names(ctx: &Ctx<'_>, set: &ReplicaSet) -> Rng {
    let sight = ctx.cache.group_revision(set.uid()).max(set.object.revision);
    let words = [sight.0.to_le_bytes(), u64::from(ctx.history.failures).to_le_bytes()];
    names_from(set.uid().bytes().chain(words.into_iter().flatten()))
}

fn pod_of(set: &ReplicaSet, template: &Tree, name: &str) -> Tree {
    let mut metadata = json!({"name": name, "namespace": &*set.object.key.namespace});
    metadata["generateName"] = format!("{}-", set.name()).into();
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = meta::at(template, "metadata").and_then(|metadata| meta::at(metadata, field)) {
            metadata[field] = value.clone();
        }
    }
    metadata["ownerReferences"] = json!([controller_ref(&set.object)]);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": meta::at(template, "spec").cloned().unwrap_or(Tree::Null),
    })
}

fn shrink(ctx: &Ctx<'_>, set: &ReplicaSet, pods: &[&Arc<Pod>], surplus: usize, plan: &mut Plan) {
    for pod in to_delete(ctx.now, pods, surplus).into_iter().take(BURST_MAX) {
        let note = Note::normal(&set.object, "SuccessfulDelete", format!("Deleted pod: {}", pod.object.key.name));
        plan.write_noted(delete(&pod.object, Propagation::Background), note);
    }
}

/// The pods that are missed least: those without a node, not yet running, not ready, cheap to delete, crowded on one
/// node, ready for the shortest time, often restarted, youngest.
fn to_delete<'a>(now: Time, pods: &[&'a Arc<Pod>], surplus: usize) -> Vec<&'a Arc<Pod>> {
    let mut crowd: BTreeMap<&str, i64> = BTreeMap::new();
    for pod in pods {
        if let Some(node) = &pod.node {
            *crowd.entry(node.as_str()).or_default() += 1;
        }
    }
    let rank = |pod: &&Arc<Pod>| {
        let phase = match pod.phase {
            Phase::Pending => 0,
            Phase::Unknown => 1,
            _ => 2,
        };
        let neighbours = pod.node.as_ref().and_then(|node| crowd.get(node.as_str())).copied().unwrap_or(0);
        let ready_ms = pod.ready_since.map_or(0, |since| now.ms_since(since));
        (
            (pod.node.is_some(), phase, pod.ready(), pod.deletion_cost, Reverse(neighbours)),
            (magnitude(ready_ms), Reverse(pod.restarts), magnitude(now.ms_since(pod.created))),
            pod.object.key.name.clone(),
        )
    };
    let mut ranked: Vec<&Arc<Pod>> = pods.to_vec();
    ranked.sort_by_cached_key(rank);
    ranked.truncate(surplus);
    ranked
}

/// Ages are compared by their order of magnitude, so that the choice among pods of one rollout is not always the same.
fn magnitude(ms: u64) -> u32 {
    u64::BITS - (ms / 1000).leading_zeros()
}

fn write_status(ctx: &Ctx<'_>, set: &ReplicaSet, pods: &[&Arc<Pod>], plan: &mut Plan) {
    let tree = set.object.tree();
    let labels: Vec<(&str, &str)> = meta::texts(&tree, "spec.template.metadata.labels").collect();
    let count = |test: &dyn Fn(&Pod) -> bool| i64::try_from(pods.iter().filter(|pod| test(pod)).count()).unwrap_or(0);
    let counts = Counts {
        observed: set.generation,
        replicas: count(&|_| true),
        fully_labeled: count(&|pod| labels.iter().all(|(key, value)| pod.label(key) == Some(value))),
        ready: count(&|pod| pod.ready()),
        available: count(&|pod| pod.available(set.min_ready_s, ctx.now)),
        ..Counts::default()
    };
    if counts.ready > counts.available {
        plan.again_in(next_available_ms(ctx.now, set.min_ready_s, pods));
    }
    let failure = failure(ctx, &tree);
    if counts == set.status && failure.is_none() {
        return;
    }
    let settled = counts.replicas == set.replicas && counts.available == set.replicas;
    let first = set.status.observed != set.generation;
    if !settled
        && !first
        && failure.is_none()
        && let Some(ms) = ctx.hold_ms(STATUS_INTERVAL_MS)
    {
        plan.again_in(ms);
        return;
    }
    plan.write(Write::UpdateStatus { tree: with_status(tree, counts, failure) });
}

fn next_available_ms(now: Time, min_ready_s: i64, pods: &[&Arc<Pod>]) -> u64 {
    let wait = u64::try_from(min_ready_s).unwrap_or(0).saturating_mul(1000);
    let left = |pod: &&Arc<Pod>| {
        let at = pod.ready_since? + wait;
        (at > now).then(|| at.ms_since(now))
    };
    pods.iter().filter_map(left).min().unwrap_or(0).max(1)
}

/// What the condition `ReplicaFailure` has to become.
enum Failure {
    Add(Tree),
    Clear,
}

fn failure(ctx: &Ctx<'_>, tree: &Tree) -> Option<Failure> {
    let had = condition(tree, "ReplicaFailure");
    match &ctx.history.last_fault {
        Some(why) if had.is_none() && ctx.history.failures > 1 => Some(Failure::Add(json!({
            "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": why,
            "lastTransitionTime": ctx.now.to_rfc3339(),
        }))),
        None if had.is_some() => Some(Failure::Clear),
        _ => None,
    }
}

fn with_status(mut tree: Tree, counts: Counts, failure: Option<Failure>) -> Tree {
    // Zeroes are left out, as Kubernetes leaves them out; `replicas` is required.
    meta::set(&mut tree, "status.replicas", counts.replicas);
    for (field, number) in [
        ("status.fullyLabeledReplicas", counts.fully_labeled),
        ("status.readyReplicas", counts.ready),
        ("status.availableReplicas", counts.available),
        ("status.observedGeneration", counts.observed),
    ] {
        if number == 0 {
            meta::remove(&mut tree, field);
        } else {
            meta::set(&mut tree, field, number);
        }
    }
    match failure {
        Some(Failure::Add(condition)) => set_condition(&mut tree, condition),
        Some(Failure::Clear) => {
            if let Some(list) = meta::at_mut(&mut tree, "status.conditions").and_then(Tree::as_array_mut) {
                list.retain(|condition| meta::text(condition, "type") != "ReplicaFailure");
            }
        }
        None => {}
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views;
    use bytes::Bytes;
    use dhow_state::Object;
    use dhow_types::Revision;

    fn pod(name: &str, spec: Tree, status: Tree, annotations: Tree) -> Arc<Pod> {
        let tree = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "d", "uid": name,
            "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": annotations}, "spec": spec, "status": status});
        let bytes = Bytes::from(tree.to_string());
        let object = Arc::new(Object::restore(Key::new("pods", "d", name), Revision(1), bytes).unwrap());
        match views::view(&object) {
            views::View::Pod(pod) => pod,
            _ => unreachable!("a pod was parsed"),
        }
    }

    #[test]
    fn the_pods_that_are_missed_least_go_first() {
        let ready = |since: &str| {
            json!({"phase": "Running", "conditions":
                [{"type": "Ready", "status": "True", "lastTransitionTime": since}]})
        };
        let (on, none) = (json!({"nodeName": "n1"}), json!({}));
        let other = json!({"nodeName": "n2"});
        let cheap = json!({"controller.kubernetes.io/pod-deletion-cost": "-5"});
        let restarted = json!({"phase": "Running", "containerStatuses": [{"restartCount": 3}], "conditions":
            [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}]});
        let pods = [
            pod("g-lone", other, ready("2026-01-01T00:00:10Z"), none.clone()),
            pod("f-long-ready", on.clone(), ready("2026-01-01T00:00:10Z"), none.clone()),
            pod("e-restarted", on.clone(), restarted, none.clone()),
            pod("d-cheap", on.clone(), ready("2026-01-01T00:00:10Z"), cheap),
            pod("c-running", on.clone(), json!({"phase": "Running"}), none.clone()),
            pod("b-pending", on, json!({"phase": "Pending"}), none.clone()),
            pod("a-unassigned", none.clone(), json!({"phase": "Pending"}), none),
        ];
        let all: Vec<&Arc<Pod>> = pods.iter().collect();
        let now = Time::parse("2026-01-01T01:00:00Z").unwrap();
        let order: Vec<&str> = to_delete(now, &all, 7).into_iter().map(|pod| &*pod.object.key.name).collect();
        let wanted = ["a-unassigned", "b-pending", "c-running", "d-cheap", "e-restarted", "f-long-ready", "g-lone"];
        assert_eq!(order, wanted);
    }
}
