//! The phase of a volume, and what becomes of it when its claim is gone.

use super::{DATA_FINALIZER, PROVISIONED_BY};
use crate::events::Note;
use crate::plan::{Ctx, Plan, delete};
use crate::views::{BOUND_BY_CONTROLLER, Volume};
use crate::wish::{Propagation, Write};
use dhow_api::{Tree, meta};
use std::sync::Arc;

/// Compares a volume with its claim.
pub(super) fn sync(ctx: &Ctx<'_>, volume: &Arc<Volume>, plan: &mut Plan) {
    if volume.deleting() {
        return let_go(ctx, volume, plan);
    }
    let Some(of) = &volume.claim else { return say(ctx, volume, "Available", None, plan) };
    if of.uid.is_empty() {
        return say(ctx, volume, "Available", None, plan);
    }
    let claim = ctx.cache.claim(&of.key).filter(|claim| claim.uid() == of.uid);
    match claim.map(|claim| claim.volume.as_deref()) {
        None => released(ctx, volume, plan),
        Some(Some(name)) if name == volume.name() => say(ctx, volume, "Bound", None, plan),
        // The claim's turn is next.
        Some(None) => {}
        Some(Some(_)) => other_taken(ctx, volume, plan),
    }
}

/// The claim has got another volume. One that was made for it is of no use any more, one that was taken is given back.
fn other_taken(ctx: &Ctx<'_>, volume: &Arc<Volume>, plan: &mut Plan) {
    let mut tree = volume.object.tree();
    if meta::annotation(&tree, PROVISIONED_BY).is_some() {
        released(ctx, volume, plan);
    } else if meta::annotation(&tree, BOUND_BY_CONTROLLER).is_some() {
        meta::remove(&mut tree, "spec.claimRef");
        if let Some(annotations) = meta::at_mut(&mut tree, "metadata.annotations").and_then(Tree::as_object_mut) {
            annotations.remove(BOUND_BY_CONTROLLER);
        }
        plan.write(Write::Update { tree });
    }
}

/// The claim is gone: the volume is kept, or goes too, as its policy says.
fn released(ctx: &Ctx<'_>, volume: &Arc<Volume>, plan: &mut Plan) {
    if volume.phase != "Released" && volume.phase != "Failed" {
        return say(ctx, volume, "Released", None, plan);
    }
    match volume.reclaim.as_str() {
        "Delete" if volume.ours => plan.write(delete(&volume.object, Propagation::Background)),
        "Delete" | "Recycle" if volume.phase != "Failed" => {
            let why = format!(
                "nobody here can {} volumes of this type; set the policy Retain, and delete the object when its \
                 content is taken care of",
                volume.reclaim.to_lowercase()
            );
            say(ctx, volume, "Failed", Some(("VolumeFailedDelete", why)), plan);
        }
        _ => {}
    }
}

/// Says the phase if it is another one.
fn say(ctx: &Ctx<'_>, volume: &Arc<Volume>, phase: &str, why: Option<(&'static str, String)>, plan: &mut Plan) {
    if volume.phase == phase {
        return;
    }
    let mut tree = volume.object.tree();
    meta::set(&mut tree, "status.phase", phase);
    meta::set(&mut tree, "status.lastPhaseTransitionTime", ctx.now.to_rfc3339());
    for field in ["status.reason", "status.message"] {
        meta::remove(&mut tree, field);
    }
    match why {
        None => plan.write(Write::UpdateStatus { tree }),
        Some((reason, message)) => {
            meta::set(&mut tree, "status.message", message.as_str());
            plan.write_noted(Write::UpdateStatus { tree }, Note::warning(&volume.object, reason, message));
        }
    }
}

/// A volume goes when its node has removed the content. A node that is no more has taken it along.
fn let_go(ctx: &Ctx<'_>, volume: &Volume, plan: &mut Plan) {
    let Some(node) = &volume.local_node else { return };
    let mut tree = volume.object.tree();
    let finalizers = meta::finalizers(&tree);
    if ctx.cache.node(node).is_some() || !finalizers.contains(&DATA_FINALIZER) {
        return;
    }
    let kept: Vec<Tree> = finalizers.into_iter().filter(|one| *one != DATA_FINALIZER).map(Tree::from).collect();
    meta::set(&mut tree, "metadata.finalizers", kept);
    plan.write(Write::Update { tree });
}
