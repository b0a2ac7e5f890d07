//! Those who watch everything: no gap, no change twice, no step back, on whichever member they are.

use crate::Bug;
use crate::world::{Event, World};
use dhow_state::{Change, Key};
use dhow_types::Revision;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Default)]
pub(crate) struct Watcher {
    /// The member and its life.
    at: Option<(u64, u64)>,
    after: Revision,
    /// What the changes add up to: the revision of each object.
    objects: BTreeMap<Key, Revision>,
}

impl World {
    pub(crate) fn handle_watch(&mut self, n: usize) {
        let pause = 1 + self.rng.below(120);
        self.after(pause, Event::Watch(n));
        let at = self.watchers[n].at.filter(|(id, life)| self.is_running(*id) && self.nodes[id].life == *life);
        let (node, comes_back) = match at {
            // Now and then a watcher turns to another member.
            Some((node, _)) if !self.rng.chance(1, 30) => (node, false),
            _ => {
                let Some(node) = self.random_node().filter(|node| !self.nodes[node].witness) else { return };
                (node, true)
            }
        };
        self.watchers[n].at = Some((node, self.nodes[&node].life));
        self.watch(n, node, comes_back);
    }

    /// Takes what a member has for a watcher.
    pub(crate) fn watch(&mut self, n: usize, node: u64, comes_back: bool) {
        let after = self.watchers[n].after;
        let repeats = self.bug == Bug::RepeatedChange && comes_back && after.0 > 0;
        let from = if repeats { Revision(after.0 - 1) } else { after };
        let state = &self.nodes[&node].running.as_ref().expect("only those who run are watched").state;
        // A member that lags has nothing for it yet.
        if state.revision() < after {
            return;
        }
        let Ok(changes) = state.since(from) else {
            let watcher = &mut self.watchers[n];
            watcher.objects = state.iter().map(|object| (object.key.clone(), object.revision)).collect();
            watcher.after = state.revision();
            self.report.relists += 1;
            return;
        };
        let mut changes: Vec<Arc<Change>> = changes.cloned().collect();
        if self.bug == Bug::DroppedChange && !changes.is_empty() && self.rng.chance(1, 4) {
            changes.remove(self.rng.below(changes.len() as u64) as usize);
        }
        for change in changes {
            self.take_change(n, &change);
        }
        self.check_watcher(n, node);
    }

    fn take_change(&mut self, n: usize, change: &Change) {
        let watcher = &mut self.watchers[n];
        let (after, revision) = (watcher.after, change.revision);
        let seen = watcher.objects.get(&change.key).copied();
        watcher.after = revision;
        match &change.new {
            Some(new) => watcher.objects.insert(change.key.clone(), new.revision),
            None => watcher.objects.remove(&change.key),
        };
        self.report.watched += 1;
        if revision < after || revision.0 > after.0 + 1 {
            self.fail(format!("watcher {n} gets revision {revision} after {after}"));
        }
        if seen != change.old.as_ref().map(|old| old.revision) {
            let key = &change.key;
            self.fail(format!("watcher {n} has `{key}` at {seen:?}, which is not what revision {revision} changed"));
        }
    }

    /// What a watcher got adds up to what there is.
    pub(crate) fn check_watcher(&mut self, n: usize, node: u64) {
        let state = &self.nodes[&node].running.as_ref().expect("only those who run are watched").state;
        let found = state.iter().map(|object| (&object.key, object.revision));
        let watcher = &self.watchers[n];
        let equal = found.eq(watcher.objects.iter().map(|(key, revision)| (key, *revision)));
        if !equal || state.revision() != watcher.after {
            self.fail(format!("watcher {n} does not have what member {node} has"));
        }
    }
}
