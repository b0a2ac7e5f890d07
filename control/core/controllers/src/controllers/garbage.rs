//! Garbage collection by owner references: what has lost all its owners goes; what is being deleted in the foreground
//! waits for its dependents; what is being deleted as an orphan maker lets go of them.

use super::adoption::released;
use crate::cache::{Cache, Seen};
use crate::plan::{Controller, Ctx, Plan, delete};
use crate::views::resource;
use crate::wish::{Propagation, Write};
use dhow_api::kinds;
use dhow_api::meta::{self, OwnerRef};
use dhow_api::{Tree, meta::finalizers};
use dhow_state::{Key, Object};
use std::sync::Arc;

/// Writes of one round.
const BURST_MAX: usize = 500;
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

pub(crate) const CONTROLLER: Controller = Controller { name: "generic-garbage-collector", wakes, reconcile };

fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    let old = seen.old.as_ref().map(|side| &side.object);
    let new = seen.new.as_ref().map(|side| &side.object);
    if let Some(new) = new {
        let owners_moved = old.is_none_or(|old| old.index.owners != new.index.owners);
        if (owners_moved && !new.index.owners.is_empty()) || new.index.deleting {
            wake(seen.key.clone());
        }
    }
    let same_life = old.zip(new).is_some_and(|(old, new)| old.index.uid == new.index.uid);
    if let Some(old) = old {
        // A dependent's step may be what its owner waits for.
        for uid in &old.index.owners {
            if let Some(owner) = cache.by_uid(uid).filter(|owner| owner.index.deleting) {
                wake(owner.key.clone());
            }
        }
        let begins_to_go = new.is_some_and(|new| new.index.deleting && !old.index.deleting);
        if !same_life || begins_to_go {
            for dependent in cache.dependents(&old.index.uid) {
                wake(dependent.key.clone());
            }
        }
    }
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(object) = ctx.cache.object(key) else { return plan };
    if object.index.deleting {
        let tree = object.tree();
        let held = finalizers(&tree);
        if held.contains(&ORPHAN) {
            orphan_dependents(ctx.cache, object, &mut plan);
        } else if held.contains(&FOREGROUND) {
            delete_dependents(ctx.cache, object, &mut plan);
        } else if held.is_empty() {
            remove(object, &tree, &mut plan);
        }
    } else if !object.index.owners.is_empty() {
        judge(ctx.cache, object, &mut plan);
    }
    plan.writes.truncate(BURST_MAX);
    plan
}

/// Nothing holds it any more. Pods go when their node lets them, namespaces when they are empty.
fn remove(object: &Object, tree: &Tree, plan: &mut Plan) {
    let held_by_node = &*object.key.resource == resource::PODS;
    if held_by_node || !meta::list(tree, "spec.finalizers").is_empty() {
        return;
    }
    plan.write(Write::Remove {
        resource: Arc::clone(&object.key.resource),
        namespace: Arc::clone(&object.key.namespace),
        name: Arc::clone(&object.key.name),
        uid: dhow_types::Uid::new(object.index.uid.as_str()),
    });
}

fn orphan_dependents(cache: &Cache, owner: &Object, plan: &mut Plan) {
    for dependent in cache.dependents(&owner.index.uid) {
        plan.write(Write::Update { tree: released(dependent, &owner.index.uid) });
    }
    if plan.writes.is_empty() {
        plan.write(Write::Update { tree: without_finalizer(owner, ORPHAN) });
    }
}

fn delete_dependents(cache: &Cache, owner: &Object, plan: &mut Plan) {
    let mut blocked = false;
    for dependent in cache.dependents(&owner.index.uid) {
        let blocks = |reference: &OwnerRef| reference.uid == owner.index.uid && reference.block_owner_deletion;
        blocked |= meta::owner_refs(&dependent.tree()).iter().any(blocks);
        // `judge` deletes the dependents when it is their turn; they are woken when their owner begins to go.
    }
    if !blocked {
        plan.write(Write::Update { tree: without_finalizer(owner, FOREGROUND) });
    }
}

fn without_finalizer(object: &Object, finalizer: &str) -> Tree {
    let mut tree = object.tree();
    let mut kept = meta::list(&tree, "metadata.finalizers").to_vec();
    kept.retain(|entry| entry != finalizer);
    if kept.is_empty() {
        meta::remove(&mut tree, "metadata.finalizers");
    } else {
        meta::set(&mut tree, "metadata.finalizers", kept);
    }
    tree
}

/// What an owner reference leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// It is there, or we cannot know (a kind that is not ours).
    Solid,
    /// It is being deleted in the foreground and waits for this object.
    Waiting,
    Absent,
}

fn owner(cache: &Cache, object: &Object, reference: &OwnerRef) -> Owner {
    let Some(kind) = kinds::by_kind(&reference.api_version, &reference.kind) else { return Owner::Solid };
    if kind.namespaced && object.key.namespace.is_empty() {
        // An object of the cluster cannot be owned by one of a namespace; deleting it would be a guess.
        return Owner::Solid;
    }
    let found = cache.by_uid(&reference.uid).filter(|found| {
        *found.key.resource == *kind.resource()
            && (found.key.namespace.is_empty() || found.key.namespace == object.key.namespace)
    });
    match found {
        None => Owner::Absent,
        Some(found) if found.index.deleting && finalizers(&found.tree()).contains(&FOREGROUND) => Owner::Waiting,
        Some(_) => Owner::Solid,
    }
}

/// Deletes an object that no owner holds, or takes dead references off one that an owner still holds.
fn judge(cache: &Cache, object: &Arc<Object>, plan: &mut Plan) {
    let tree = object.tree();
    let owners: Vec<(String, Owner)> = meta::owner_refs(&tree)
        .into_iter()
        .map(|reference| {
            let is = owner(cache, object, &reference);
            (reference.uid, is)
        })
        .collect();
    let solid = owners.iter().any(|(_, is)| *is == Owner::Solid);
    let waiting = owners.iter().any(|(_, is)| *is == Owner::Waiting);
    let dead: Vec<&str> = owners.iter().filter(|(_, is)| *is != Owner::Solid).map(|(uid, _)| uid.as_str()).collect();
    if dead.is_empty() {
        return;
    }
    if solid {
        let mut tree = tree;
        let mut kept = meta::list(&tree, "metadata.ownerReferences").to_vec();
        kept.retain(|entry| !dead.contains(&meta::text(entry, "uid")));
        meta::set(&mut tree, "metadata.ownerReferences", kept);
        plan.write(Write::Update { tree });
        return;
    }
    let has_dependents = cache.dependents(&object.index.uid).next().is_some();
    let held = finalizers(&tree);
    let propagation = if held.contains(&ORPHAN) {
        Propagation::Orphan
    } else if held.contains(&FOREGROUND) || (waiting && has_dependents) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    plan.write(delete(object, propagation));
}
