//! Taking and giving up objects by selector: what matches and has no controller is adopted, what is owned and no
//! longer matches is released.

use crate::plan::controller_ref;
use dhow_api::{Tree, meta};
use dhow_state::Object;

/// The object with `owner` as its controller.
pub(crate) fn adopted(object: &Object, owner: &Object) -> Tree {
    let mut tree = object.tree();
    let mut owners = meta::list(&tree, "metadata.ownerReferences").to_vec();
    owners.retain(|entry| meta::text(entry, "uid") != owner.index.uid);
    owners.push(controller_ref(owner));
    meta::set(&mut tree, "metadata.ownerReferences", owners);
    tree
}

/// The object without any reference to the owner with this UID.
pub(crate) fn released(object: &Object, owner_uid: &str) -> Tree {
    let mut tree = object.tree();
    let mut owners = meta::list(&tree, "metadata.ownerReferences").to_vec();
    owners.retain(|entry| meta::text(entry, "uid") != owner_uid);
    if owners.is_empty() {
        meta::remove(&mut tree, "metadata.ownerReferences");
    } else {
        meta::set(&mut tree, "metadata.ownerReferences", owners);
    }
    tree
}
