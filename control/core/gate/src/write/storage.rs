//! What claims need beyond their kind's file: the class of those that name none.

use super::Context;
use dhow_api::kinds::{self, Kind};
use dhow_api::{Tree, meta};
use std::cmp::Reverse;

const CLASSES: &str = "storageclasses.storage.k8s.io";
/// Where a class was named before it had a field.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Gives a new claim that names no class the default one: the youngest that says so of itself. Without any, the claim
/// gets one when there is one.
pub(super) fn default_class(ctx: &Context<'_>, kind: &Kind, tree: &mut Tree) {
    let named = meta::at(tree, "spec.storageClassName").is_some() || meta::annotation(tree, OLD_CLASS).is_some();
    if kind.resource() != "persistentvolumeclaims" || named {
        return;
    }
    let classes = ctx.view.list(CLASSES).into_iter().map(|class| class.tree()).filter(kinds::is_default_class);
    let rank = |class: &Tree| (meta::creation_timestamp(class), Reverse(meta::name(class).to_owned()));
    if let Some(class) = classes.max_by_key(rank) {
        meta::set(tree, "spec.storageClassName", meta::name(&class));
    }
}
