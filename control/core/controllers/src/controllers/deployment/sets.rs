//! Finding, adopting, making and changing the replica sets of a deployment, and the revisions on them.

use super::{Rollout, SetChange, selects};
use crate::controllers::adoption;
use crate::events::Note;
use crate::plan::{Ctx, Plan, Planned, controller_ref, delete};
use crate::views::{Deployment, POD_TEMPLATE_HASH, ReplicaSet, annotation, resource};
use crate::wish::{Propagation, Write};
use dhow_api::{Tree, meta};
use dhow_state::Key;
use serde_json::json;
use std::collections::BTreeMap;

/// Annotations of a deployment that its replica sets do not take over.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    annotation::REVISION,
    annotation::REVISION_HISTORY,
    annotation::DESIRED,
    annotation::MAX,
    "deprecated.deployment.rollback.to",
];

/// What to do when there is no set of the present template.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    Leave,
}

/// Takes matching sets without a controller and gives up those that no longer match. True when there is something to
/// write: the round ends with it.
pub(super) fn adopt_and_release(ctx: &Ctx<'_>, deployment: &Deployment, plan: &mut Plan) -> bool {
    if deployment.deleting() {
        return false;
    }
    for set in ctx.cache.replica_sets(&deployment.object.key.namespace).filter(|set| !set.deleting()) {
        match &set.controller {
            None if selects(deployment, set) => {
                plan.write(Write::Update { tree: adoption::adopted(&set.object, &deployment.object) });
            }
            Some(uid) if uid == deployment.uid() && !selects(deployment, set) => {
                plan.write(Write::Update { tree: adoption::released(&set.object, deployment.uid()) });
            }
            _ => {}
        }
    }
    !plan.writes.is_empty()
}

impl Rollout<'_> {
    /// Brings the annotations of the new set up to date, and makes the set if it is missing and wanted.
    pub(super) fn find_new(&mut self, missing: Missing) {
        let revision = self.next_revision();
        let Some(set) = self.new_set().cloned() else {
            if missing == Missing::Create {
                self.create_set(revision);
            }
            return;
        };
        let mut change = SetChange::default();
        if set.revision < revision {
            change.annotations.insert(annotation::REVISION, revision.to_string());
            let tree = set.object.tree();
            if set.revision > 0 {
                let history = meta::annotation(&tree, annotation::REVISION_HISTORY).unwrap_or("");
                let comma = if history.is_empty() { "" } else { "," };
                let history = format!("{history}{comma}{}", set.revision);
                change.annotations.insert(annotation::REVISION_HISTORY, history);
            }
        }
        change.copied = self.annotations_to_copy(&set.object.tree());
        if set.min_ready_s != self.deployment.min_ready_s {
            change.min_ready_s = Some(self.deployment.min_ready_s);
        }
        if !change.annotations.is_empty() || !change.copied.is_empty() || change.min_ready_s.is_some() {
            self.changes.insert(set.uid().to_owned(), change);
        }
    }

    fn next_revision(&self) -> i64 {
        self.old_sets().iter().map(|set| set.revision).max().unwrap_or(0).saturating_add(1)
    }

    /// The deployment's annotations that the set lacks or has otherwise.
    fn annotations_to_copy(&self, set: &Tree) -> BTreeMap<String, String> {
        let deployment = self.deployment.object.tree();
        meta::annotations(&deployment)
            .filter(|(key, value)| !NOT_COPIED.contains(key) && meta::annotation(set, key) != Some(value))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    fn create_set(&mut self, revision: i64) {
        let deployment = self.deployment;
        let tree = deployment.object.tree();
        let hash = deployment.template.hash(deployment.collisions);
        let name = format!("{}-{hash}", deployment.object.key.name);
        let key = Key::new(resource::REPLICA_SETS, &*deployment.object.key.namespace, name.as_str());
        if self.ctx.cache.object(&key).is_some() {
            // Another template with this hash (or a set that is not ours): status carries the way out of it.
            self.collide();
            return;
        }
        let replicas = self.room_for_new(0);
        let mut template = meta::at(&tree, "spec.template").cloned().unwrap_or(Tree::Null);
        meta::set_label(&mut template, POD_TEMPLATE_HASH, &hash);
        let mut selector = meta::at(&tree, "spec.selector").cloned().unwrap_or(Tree::Null);
        set_entry(&mut selector, "matchLabels", POD_TEMPLATE_HASH, &hash);
        let mut set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": name, "namespace": &*deployment.object.key.namespace,
                "labels": meta::at(&template, "metadata.labels").cloned(),
                "ownerReferences": [controller_ref(&deployment.object)],
            },
            "spec": {"replicas": replicas, "selector": selector, "template": template},
        });
        if deployment.min_ready_s > 0 {
            set["spec"]["minReadySeconds"] = deployment.min_ready_s.into();
        }
        for (key, value) in self.annotations_to_copy(&Tree::Null) {
            meta::set_annotation(&mut set, &key, &value);
        }
        meta::set_annotation(&mut set, annotation::REVISION, &revision.to_string());
        meta::set_annotation(&mut set, annotation::DESIRED, &deployment.replicas.to_string());
        meta::set_annotation(&mut set, annotation::MAX, &(deployment.replicas + deployment.max_surge).to_string());
        self.created = Some(set);
    }

    /// Counts a collision of hashes: the next round hashes with the new number.
    fn collide(&mut self) {
        let mut tree = self.deployment.object.tree();
        meta::set(&mut tree, "status.collisionCount", self.deployment.collisions.saturating_add(1));
        self.plan.write(Write::UpdateStatus { tree });
    }

    /// How many replicas the new set may have, having `present` now.
    pub(super) fn room_for_new(&self, present: i64) -> i64 {
        let deployment = self.deployment;
        if deployment.recreate {
            return deployment.replicas;
        }
        let room = deployment.replicas + deployment.max_surge - self.alive();
        present + room.max(0).min((deployment.replicas - present).max(0))
    }

    /// Decides how many replicas a set is to have.
    pub(super) fn resize(&mut self, set: &ReplicaSet, replicas: i64) {
        let before = self.wanted(set);
        let (desired, max) = (self.deployment.replicas, self.deployment.replicas + self.deployment.max_surge);
        if before == replicas && set.desired == Some(desired) && set.max == Some(max) {
            return;
        }
        let change = self.changes.entry(set.uid().to_owned()).or_default();
        change.replicas = Some(replicas);
        change.annotations.insert(annotation::DESIRED, desired.to_string());
        change.annotations.insert(annotation::MAX, max.to_string());
    }

    /// The deployment with the revision of its new set, if it does not carry it.
    pub(super) fn renumber(&self) -> Option<Tree> {
        let revision = match self.new_set() {
            Some(set) => {
                match self.changes.get(set.uid()).and_then(|change| change.annotations.get(annotation::REVISION)) {
                    Some(revision) => revision.clone(),
                    None => set.revision.to_string(),
                }
            }
            None => meta::annotation(self.created.as_ref()?, annotation::REVISION)?.to_owned(),
        };
        let mut tree = self.deployment.object.tree();
        if self.deployment.deleting()
            || revision == "0"
            || meta::annotation(&tree, annotation::REVISION) == Some(&revision)
        {
            return None;
        }
        meta::set_annotation(&mut tree, annotation::REVISION, &revision);
        Some(tree)
    }

    /// Plans the creation and the changes of sets, each with what it tells about itself.
    pub(super) fn write_sets(&mut self) {
        if let Some(tree) = self.created.take() {
            let replicas = meta::int(&tree, "spec.replicas").unwrap_or(0);
            let about = &self.deployment.object;
            let message = format!("Scaled up replica set {} from 0 to {replicas}", meta::name(&tree));
            let done = (replicas > 0).then(|| Note::normal(about, "ScalingReplicaSet", message));
            let refused = Note::warning(
                about,
                "ReplicaSetCreateError",
                format!("Failed to create new replica set {:?}: ", meta::name(&tree)),
            );
            self.plan.writes.push(Planned { write: Write::Create { tree }, done, refused: Some(refused) });
        }
        let changes = std::mem::take(&mut self.changes);
        for set in &self.sets {
            let Some(change) = changes.get(set.uid()) else { continue };
            let (before, after) = (set.replicas, change.replicas.unwrap_or(set.replicas));
            let direction = if before < after { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {} from {before} to {after}", set.name());
            let note = Note::normal(&self.deployment.object, "ScalingReplicaSet", message);
            let write = Write::Update { tree: changed(set, change) };
            self.plan.writes.push(Planned { write, done: (before != after).then_some(note), refused: None });
        }
    }

    /// Deletes old sets beyond the history limit, once nothing moves.
    pub(super) fn forget_history(&mut self) {
        if !self.is_complete() {
            return;
        }
        let spent = |set: &ReplicaSet| {
            set.replicas == 0 && set.status.replicas == 0 && set.status.observed >= set.generation && !set.deleting()
        };
        let mut old = self.old_sets();
        old.retain(|set| !set.deleting());
        let surplus = old.len().saturating_sub(self.deployment.history_max);
        old.sort_by_key(|set| (set.revision, set.created));
        for set in old.iter().filter(|set| spent(set)).take(surplus) {
            self.plan.write(delete(&set.object, Propagation::Background));
        }
    }
}

fn set_entry(tree: &mut Tree, field: &str, key: &str, value: &str) {
    let entries = meta::map_of(tree).entry(field).or_insert(Tree::Null);
    meta::map_of(entries).insert(key.to_owned(), value.into());
}

fn changed(set: &ReplicaSet, change: &SetChange) -> Tree {
    let mut tree = set.object.tree();
    if let Some(replicas) = change.replicas {
        meta::set(&mut tree, "spec.replicas", replicas);
    }
    if let Some(seconds) = change.min_ready_s {
        meta::set(&mut tree, "spec.minReadySeconds", seconds);
    }
    for (key, value) in &change.copied {
        meta::set_annotation(&mut tree, key, value);
    }
    for (key, value) in &change.annotations {
        meta::set_annotation(&mut tree, key, value);
    }
    tree
}
