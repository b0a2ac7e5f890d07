//! Moving pods from old replica sets to the new one.

use super::Rollout;
use super::sets::Missing;

impl Rollout<'_> {
    /// RollingUpdate: first grow the new set as far as the surge allows, else shrink old ones as far as availability
    /// allows.
    pub(super) fn roll(&mut self) {
        self.find_new(Missing::Create);
        if self.created.is_some() || !self.plan.writes.is_empty() {
            return;
        }
        if !self.grow_new() {
            self.shrink_old();
        }
    }

    /// Recreate: all old pods go before the first new one comes.
    pub(super) fn recreate(&mut self) {
        let old = self.old_sets();
        for set in old.iter().filter(|set| set.replicas > 0) {
            self.resize(set, 0);
        }
        let running = |uid: &str| self.ctx.cache.pods_of(uid).any(|pod| !pod.phase.is_terminal());
        let waits = old.iter().any(|set| set.replicas > 0 || running(set.uid()));
        self.find_new(if waits { Missing::Leave } else { Missing::Create });
        if let Some(new) = self.new_set().cloned()
            && !waits
        {
            self.resize(&new, self.deployment.replicas);
        }
    }

    /// Brings the new set towards its size. True when that changed something.
    fn grow_new(&mut self) -> bool {
        let Some(new) = self.new_set().cloned() else { return false };
        let replicas = if new.replicas > self.deployment.replicas {
            self.deployment.replicas
        } else {
            self.room_for_new(new.replicas)
        };
        self.resize(&new, replicas);
        replicas != new.replicas
    }

    /// Takes replicas from old sets: first those that do not serve anyway, then those that can be spared.
    fn shrink_old(&mut self) {
        let old = self.old_sets();
        if old.iter().all(|set| set.replicas == 0) {
            return;
        }
        let Some(new) = self.new_set().cloned() else { return };
        let available_min = self.deployment.replicas - self.deployment.max_unavailable;
        let new_unavailable = (new.replicas - self.available(&new)).max(0);
        let removable = self.total() - available_min - new_unavailable;
        if removable <= 0 {
            return;
        }
        let mut left = removable;
        for set in &old {
            let broken = set.replicas - self.available(set);
            let taken = broken.max(0).min(left);
            if taken > 0 {
                self.resize(set, set.replicas - taken);
                left -= taken;
            }
        }
        let available: i64 = self.sets.iter().map(|set| self.available(set)).sum();
        let mut spare = (available - available_min).min(left);
        for set in &old {
            let present = self.wanted(set);
            let taken = present.min(spare);
            if taken > 0 {
                self.resize(set, present - taken);
                spare -= taken;
            }
        }
    }
}
