//! Deployments: replica sets of successive templates, moved from one to the next without losing more, or having more,
//! pods than allowed.
//!
//! `sets` finds and makes the replica sets, `rollout` moves pods between them, `scale` follows a changed number of
//! replicas while a rollout is under way or paused, `status` tells how far it is.

mod rollout;
mod scale;
mod sets;
mod status;

use crate::cache::{Cache, Seen};
use crate::events::Note;
use crate::plan::{Controller, Ctx, Plan};
use crate::views::{Deployment, ReplicaSet, resource};
use crate::wish::Write;
use dhow_api::{Tree, meta};
use dhow_state::Key;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "deployment-controller", wakes, reconcile };

fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::DEPLOYMENTS) {
        wake(seen.key.clone());
        return;
    }
    for set in [&seen.old, &seen.new].into_iter().flatten().filter_map(|side| side.replica_set()) {
        match &set.controller {
            Some(uid) => wake_owner(cache, uid, wake),
            None => {
                for deployment in cache.deployments(&seen.key.namespace) {
                    if selects(deployment, set) {
                        wake(deployment.object.key.clone());
                    }
                }
            }
        }
    }
    // A recreating deployment waits for the last old pod to be gone.
    if let (Some(old), None) = seen.pods()
        && let Some(set) = old.controller.as_ref().and_then(|uid| cache.by_uid(uid))
        && let Some(uid) = cache.replica_set(&set.key).and_then(|set| set.controller.as_ref())
    {
        wake_owner(cache, uid, wake);
    }
}

fn wake_owner(cache: &Cache, uid: &str, wake: &mut dyn FnMut(Key)) {
    if let Some(owner) = cache.by_uid(uid).filter(|owner| &*owner.key.resource == resource::DEPLOYMENTS) {
        wake(owner.key.clone());
    }
}

fn selects(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let matches = |selector: &Arc<dhow_api::selector::LabelSelector>| selector.matches_labels(&set.object.index.labels);
    !deployment.selects_all && deployment.selector.as_ref().is_some_and(matches)
}

/// A deployment with its replica sets, as one round sees and changes them.
struct Rollout<'a> {
    ctx: &'a Ctx<'a>,
    deployment: &'a Deployment,
    /// All of its sets, oldest first.
    sets: Vec<Arc<ReplicaSet>>,
    /// The UID of the set of the present template.
    new: Option<String>,
    /// What this round makes of a set, by UID: at most one write each.
    changes: BTreeMap<String, SetChange>,
    /// The tree of a set that this round creates.
    created: Option<Tree>,
    plan: Plan,
}

/// What a round makes of one replica set.
#[derive(Default)]
struct SetChange {
    replicas: Option<i64>,
    annotations: BTreeMap<&'static str, String>,
    copied: BTreeMap<String, String>,
    min_ready_s: Option<i64>,
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let Some(deployment) = ctx.cache.deployment(key) else { return Plan::default() };
    let mut plan = Plan::default();
    if deployment.selects_all || deployment.selector.is_none() {
        let why = "This deployment is selecting all pods. A non-empty selector is required.";
        if deployment.status.observed < deployment.generation {
            plan.notes.push(Note::warning(&deployment.object, "SelectingAll", why));
            let mut tree = deployment.object.tree();
            meta::set(&mut tree, "status.observedGeneration", deployment.generation);
            plan.write(Write::UpdateStatus { tree });
        }
        return plan;
    }
    if sets::adopt_and_release(ctx, deployment, &mut plan) {
        return plan;
    }
    let mut rollout = Rollout::new(ctx, deployment);
    rollout.plan.cost_us = rollout.sets.iter().map(|set| set.status.replicas.unsigned_abs()).sum();
    if deployment.deleting() {
        return rollout.finish();
    }
    if deployment.recreate && !deployment.paused {
        rollout.recreate();
    } else if deployment.paused || rollout.is_scaling() {
        rollout.find_new(sets::Missing::Leave);
        rollout.scale();
    } else {
        rollout.roll();
    }
    rollout.finish()
}

impl<'a> Rollout<'a> {
    fn new(ctx: &'a Ctx<'a>, deployment: &'a Deployment) -> Self {
        let mut sets: Vec<Arc<ReplicaSet>> = ctx
            .cache
            .replica_sets(&deployment.object.key.namespace)
            .filter(|set| set.controller.as_deref() == Some(deployment.uid()))
            .cloned()
            .collect();
        sets.sort_by(|a, b| (a.created, a.name()).cmp(&(b.created, b.name())));
        let new = sets.iter().find(|set| set.template == deployment.template).map(|set| set.uid().to_owned());
        Self { ctx, deployment, sets, new, changes: BTreeMap::new(), created: None, plan: Plan::default() }
    }

    fn new_set(&self) -> Option<&Arc<ReplicaSet>> {
        let uid = self.new.as_deref()?;
        self.sets.iter().find(|set| set.uid() == uid)
    }

    /// All sets but the new one, oldest first.
    fn old_sets(&self) -> Vec<Arc<ReplicaSet>> {
        self.sets.iter().filter(|set| Some(set.uid()) != self.new.as_deref()).cloned().collect()
    }

    /// How many replicas a set is to have, this round's decisions included.
    fn wanted(&self, set: &ReplicaSet) -> i64 {
        self.changes.get(set.uid()).and_then(|change| change.replicas).unwrap_or(set.replicas)
    }

    /// The sum over all sets.
    fn total(&self) -> i64 {
        self.sets.iter().map(|set| self.wanted(set)).sum()
    }

    /// The pods that all sets have or are to have: those that a set is about to delete still count.
    fn alive(&self) -> i64 {
        let pods = |set: &ReplicaSet| {
            let count = self.ctx.cache.pods_of(set.uid()).filter(|pod| pod.active()).count();
            i64::try_from(count).unwrap_or(i64::MAX)
        };
        self.sets.iter().map(|set| self.wanted(set).max(pods(set))).sum()
    }

    /// The pods of a set that can serve now, as the cache has them; never more than the set is to keep, since those
    /// beyond that are about to go.
    fn available(&self, set: &ReplicaSet) -> i64 {
        let now = self.ctx.now;
        let pods = self.ctx.cache.pods_of(set.uid());
        let available = pods.filter(|pod| pod.active() && pod.available(self.deployment.min_ready_s, now)).count();
        i64::try_from(available).unwrap_or(i64::MAX).min(self.wanted(set))
    }

    /// The writes of this round.
    fn finish(mut self) -> Plan {
        let renumbered = self.renumber();
        let quiet = self.changes.is_empty() && self.created.is_none();
        if quiet {
            self.forget_history();
        }
        self.write_sets();
        // One write an object and round: the status follows when the revision has been written. The annotation goes by
        // the status, as upstream: by the object it would count as a new generation.
        match renumbered {
            Some(tree) => self.plan.write(Write::UpdateStatus { tree }),
            None => self.write_status(),
        }
        self.plan
    }
}
