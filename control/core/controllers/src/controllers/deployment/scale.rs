//! Following a changed number of replicas while several replica sets have pods: in proportion, so that a rollout under
//! way (or paused) keeps its balance.

use super::Rollout;
use crate::views::ReplicaSet;
use std::cmp::Reverse;
use std::sync::Arc;

impl Rollout<'_> {
    /// Whether the deployment's number of replicas changed since its sets were sized.
    pub(super) fn is_scaling(&self) -> bool {
        let resized = |set: &&Arc<ReplicaSet>| {
            set.replicas > 0 && set.desired.is_some_and(|desired| desired != self.deployment.replicas)
        };
        self.sets.iter().find(resized).is_some()
    }

    /// Sizes the sets for the present number of replicas.
    pub(super) fn scale(&mut self) {
        let replicas = self.deployment.replicas;
        if let Some(only) = self.active_or_latest() {
            self.resize(&only, replicas);
            return;
        }
        if self.new_set().is_some_and(|new| self.is_saturated(new)) {
            for set in self.old_sets().iter().filter(|set| set.replicas > 0) {
                self.resize(set, 0);
            }
            return;
        }
        if !self.deployment.recreate {
            self.scale_in_proportion();
        }
    }

    /// The only set with pods; when none has pods, the new one or the latest.
    fn active_or_latest(&self) -> Option<Arc<ReplicaSet>> {
        let mut active = self.sets.iter().filter(|set| set.replicas > 0);
        match (active.next(), active.next()) {
            (Some(only), None) => Some(Arc::clone(only)),
            (None, _) => self.new_set().or_else(|| self.sets.last()).cloned(),
            _ => None,
        }
    }

    fn is_saturated(&self, set: &ReplicaSet) -> bool {
        let replicas = self.deployment.replicas;
        set.replicas == replicas && set.desired == Some(replicas) && set.status.available == replicas
    }

    fn scale_in_proportion(&mut self) {
        let deployment = self.deployment;
        let allowed = if deployment.replicas > 0 { deployment.replicas + deployment.max_surge } else { 0 };
        let to_add = allowed - self.total();
        let mut active: Vec<Arc<ReplicaSet>> = self.sets.iter().filter(|set| set.replicas > 0).cloned().collect();
        // The largest first; among equals, growth goes to newer sets and loss to older ones.
        if to_add > 0 {
            active.sort_by_key(|set| (Reverse(set.replicas), Reverse(set.created)));
        } else {
            active.sort_by_key(|set| (Reverse(set.replicas), set.created));
        }
        let mut added = 0;
        let mut sizes: Vec<i64> = Vec::new();
        for set in &active {
            let part = if to_add == 0 { 0 } else { self.part(set, allowed, to_add, added) };
            sizes.push(set.replicas + part);
            added += part;
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        for (set, size) in active.iter().zip(sizes) {
            self.resize(set, size);
        }
    }

    /// A set's part of `to_add` replicas: what keeps its share of the whole.
    fn part(&self, set: &ReplicaSet, allowed: i64, to_add: i64, added: i64) -> i64 {
        if self.deployment.replicas == 0 {
            return -set.replicas;
        }
        let before = set.max.filter(|max| *max > 0).unwrap_or(self.deployment.status.replicas).max(1);
        // Rounded half up, in whole numbers.
        let share = (2 * set.replicas * allowed + before) / (2 * before) - set.replicas;
        let left = to_add - added;
        if to_add > 0 { share.clamp(0, left.max(0)) } else { share.clamp(left.min(0), 0) }
    }
}
