//! What a claim needs next: a class, a volume, or the word that it has one.

use super::{PROVISIONED_BY, provision};
use crate::events::Note;
use crate::plan::{Ctx, Plan};
use crate::views::{BIND_COMPLETED, BOUND_BY_CONTROLLER, Claim, Class, Volume};
use crate::wish::Write;
use dhow_api::{Tree, meta};
use serde_json::json;
use std::sync::Arc;

/// Says on a claim who made its volume.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

/// Compares a claim with what there is for it.
pub(super) fn sync(ctx: &Ctx<'_>, claim: &Arc<Claim>, plan: &mut Plan) {
    match (&claim.volume, claim.bind_completed) {
        (Some(name), true) => bound(ctx, claim, name, plan),
        (None, true) => lost(claim, "Bound claim has lost reference to PersistentVolume.", plan),
        // What is on its way out gets nothing new.
        _ if claim.deleting() => {}
        (Some(name), false) => named(ctx, claim, name, plan),
        (None, false) => unbound(ctx, claim, plan),
    }
}

/// A claim that was bound once: its volume must still be there and its own.
fn bound(ctx: &Ctx<'_>, claim: &Arc<Claim>, name: &str, plan: &mut Plan) {
    match ctx.cache.volume(name) {
        None => lost(claim, "Bound claim has lost its PersistentVolume.", plan),
        Some(volume) if volume.is_of(claim) => say_bound(claim, volume, plan),
        // Somebody took the reference away, or never wrote whose it is.
        Some(volume) if volume.claim.is_none() || volume.is_kept_for(claim) => take(claim, volume, plan),
        Some(_) => {
            let words = "Two claims are bound to the same volume, this one is bound incorrectly";
            say_lost(claim, Note::warning(&claim.object, "ClaimMisbound", words), plan);
        }
    }
}

fn lost(claim: &Arc<Claim>, why: &str, plan: &mut Plan) {
    let note = Note::warning(&claim.object, "ClaimLost", format!("{why} Data on the volume is lost!"));
    say_lost(claim, note, plan);
}

fn say_lost(claim: &Arc<Claim>, note: Note, plan: &mut Plan) {
    if claim.phase != "Lost" {
        let mut tree = claim.object.tree();
        meta::set(&mut tree, "status", json!({"phase": "Lost"}));
        plan.write_noted(Write::UpdateStatus { tree }, note);
    }
}

/// The claim's status says what its volume offers.
fn say_bound(claim: &Claim, volume: &Volume, plan: &mut Plan) {
    let mut tree = claim.object.tree();
    let offered = volume.object.tree();
    let part = |path: &str| meta::at(&offered, path).cloned().unwrap_or(Tree::Null);
    let status = json!({
        "phase": "Bound", "accessModes": part("spec.accessModes"), "capacity": part("spec.capacity"),
    });
    if tree.get("status") != Some(&status) {
        meta::set(&mut tree, "status", status);
        plan.write(Write::UpdateStatus { tree });
    }
}

/// A claim that asks for one certain volume.
fn named(ctx: &Ctx<'_>, claim: &Arc<Claim>, name: &str, plan: &mut Plan) {
    let Some(volume) = ctx.cache.volume(name) else {
        let words = format!("volume \"{name}\" not found");
        plan.notes.push(Note::warning(&claim.object, "FailedBinding", words));
        return;
    };
    if volume.is_of(claim) {
        return settle(claim, volume, plan);
    }
    if volume.claim.is_some() && !volume.is_kept_for(claim) {
        let words = format!("volume \"{name}\" already bound to a different claim.");
        plan.notes.push(Note::warning(&claim.object, "FailedBinding", words));
    } else if let Some(why) = volume.misfit(claim) {
        let words = format!("Cannot bind to requested volume \"{name}\": {why}");
        plan.notes.push(Note::warning(&claim.object, "VolumeMismatch", words));
    } else if !volume.deleting() {
        take(claim, volume, plan);
    }
}

/// A claim that takes what suits it.
fn unbound(ctx: &Ctx<'_>, claim: &Arc<Claim>, plan: &mut Plan) {
    // Begun before: by us, by a former leader, or by the scheduler.
    if let Some(volume) = ctx.cache.volumes_of(&claim.object.key).find(|volume| volume.is_of(claim)) {
        return settle(claim, volume, plan);
    }
    if claim.classless
        && let Some(class) = ctx.cache.default_class()
    {
        let mut tree = claim.object.tree();
        meta::set(&mut tree, "spec.storageClassName", class.name());
        plan.write(Write::Update { tree });
        return;
    }
    let class = ctx.cache.class(&claim.wanted.class);
    let waits = class.is_some_and(|class| class.waits);
    // Whoever waits for its first consumer gets only what was set aside for it: the scheduler chooses among the others.
    let suiting = ctx.cache.volumes().filter(|volume| volume.suits(claim) && (volume.is_kept_for(claim) || !waits));
    let best = suiting.min_by_key(|volume| (!volume.is_kept_for(claim), volume.offered.bytes, volume.name()));
    match best {
        Some(volume) => take(claim, volume, plan),
        None => provide(ctx, claim, class, plan),
    }
}

/// There is no volume for the claim: one is made, or the owner is told why not.
fn provide(ctx: &Ctx<'_>, claim: &Arc<Claim>, class: Option<&Arc<Class>>, plan: &mut Plan) {
    let tell = |note: Note, plan: &mut Plan| plan.notes.push(note);
    match class {
        Some(class) if class.waits && claim.selected_node.is_none() => {
            let pods = ctx.cache.pods_with(&claim.object.key);
            let waiting: Vec<&str> =
                pods.filter(|pod| pod.active() && pod.node.is_none()).map(|pod| &*pod.object.key.name).collect();
            let note = if waiting.is_empty() {
                let words = "waiting for first consumer to be created before binding";
                Note::normal(&claim.object, "WaitForFirstConsumer", words)
            } else {
                let words = format!("waiting for pod {} to be scheduled", waiting.join(","));
                Note::normal(&claim.object, "WaitForPodScheduled", words)
            };
            tell(note, plan);
        }
        Some(class) => provision::provide(ctx, claim, class, plan),
        None if claim.wanted.class.is_empty() => {
            let words = "no persistent volumes available for this claim and no storage class is set";
            tell(Note::normal(&claim.object, "FailedBinding", words), plan);
        }
        None => {
            let words = format!("storageclass.storage.k8s.io \"{}\" not found", claim.wanted.class);
            tell(Note::warning(&claim.object, "ProvisioningFailed", words), plan);
        }
    }
}

/// Writes into the volume whose it is.
fn take(claim: &Claim, volume: &Volume, plan: &mut Plan) {
    plan.write(Write::Update { tree: taken(claim, volume) });
}

/// The volume with the claim that it is for.
pub(crate) fn taken(claim: &Claim, volume: &Volume) -> Tree {
    let mut tree = volume.object.tree();
    // Whom it was set aside for by hand, it is not given back from.
    if volume.claim.is_none() {
        meta::set_annotation(&mut tree, BOUND_BY_CONTROLLER, "yes");
    }
    meta::set(&mut tree, "spec.claimRef", claim_ref(claim));
    tree
}

pub(super) fn claim_ref(claim: &Claim) -> Tree {
    let object = &claim.object;
    json!({
        "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": &*object.key.namespace,
        "name": &*object.key.name, "uid": object.index.uid, "resourceVersion": object.revision.to_string(),
    })
}

/// The volume is the claim's: the claim says so too.
fn settle(claim: &Claim, volume: &Volume, plan: &mut Plan) {
    let mut tree = claim.object.tree();
    if claim.volume.is_none() {
        meta::set_annotation(&mut tree, BOUND_BY_CONTROLLER, "yes");
        meta::set(&mut tree, "spec.volumeName", volume.name());
    }
    meta::set_annotation(&mut tree, BIND_COMPLETED, "yes");
    if let Some(by) = meta::annotation(&volume.object.tree(), PROVISIONED_BY) {
        meta::set_annotation(&mut tree, PROVISIONER, by);
    }
    plan.write(Write::Update { tree });
}
