//! What of a pod may change after it was made.

use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta};

const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate(new: &Tree, old: &Tree, faults: &mut Faults) {
    let spec = Path::root("spec");
    let before = faults.len();
    for list in ["containers", "initContainers"] {
        let at = format!("spec.{list}");
        if meta::list(new, &at).len() != meta::list(old, &at).len() {
            faults.push(Fault::forbidden(spec.field(list), "pod updates may not add or remove containers"));
        }
    }
    if faults.len() > before {
        return;
    }
    deadline(&spec.field("activeDeadlineSeconds"), new, old, faults);
    tolerations(&spec.field("tolerations"), new, old, faults);
    if masked(new, old) != old.get("spec").cloned().unwrap_or(Tree::Null) {
        let fields = changed_fields(new, old);
        faults.push(Fault::forbidden(spec, format!("{ONLY}\nchanged: {}", fields.join(", "))));
    }
}

fn deadline(path: &Path<'_>, new: &Tree, old: &Tree, faults: &mut Faults) {
    let at = "spec.activeDeadlineSeconds";
    match (meta::int(new, at), meta::int(old, at)) {
        (Some(new), Some(old)) if new > old => {
            faults.push(Fault::invalid(path, new, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            faults.push(Fault::invalid(path, Tree::Null, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

/// Old tolerations stay; only how long they last may change.
fn tolerations(path: &Path<'_>, new: &Tree, old: &Tree, faults: &mut Faults) {
    let plain = |toleration: &Tree| {
        let mut toleration = toleration.clone();
        meta::remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let kept: Vec<Tree> = meta::list(new, "spec.tolerations").iter().map(plain).collect();
    if !meta::list(old, "spec.tolerations").iter().all(|toleration| kept.contains(&plain(toleration))) {
        let words = "existing toleration can not be modified except its tolerationSeconds";
        faults.push(Fault::forbidden(path, words));
    }
}

/// The new spec with everything that may change put back to what it was: it must be the old spec then.
fn masked(new: &Tree, old: &Tree) -> Tree {
    let mut tree = serde_json::json!({"spec": new.get("spec").cloned().unwrap_or(Tree::Null)});
    for list in ["spec.containers", "spec.initContainers"] {
        let images: Vec<Option<Tree>> = meta::list(old, list).iter().map(|entry| entry.get("image").cloned()).collect();
        for (container, image) in super::defaults::entries(&mut tree, list).zip(images) {
            match image {
                Some(image) => meta::set(container, "image", image),
                None => drop(meta::remove(container, "image")),
            }
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations"] {
        put_back(&mut tree, old, &format!("spec.{field}"));
    }
    let grace = "spec.terminationGracePeriodSeconds";
    if meta::int(old, grace).is_some_and(|old| old < 0) && meta::int(new, grace) == Some(1) {
        put_back(&mut tree, old, grace);
    }
    // Gates may be taken away, one after the other.
    let gates = "spec.schedulingGates";
    if meta::list(new, gates).iter().all(|gate| meta::list(old, gates).contains(gate)) {
        put_back(&mut tree, old, gates);
    }
    meta::remove(&mut tree, "spec").unwrap_or(Tree::Null)
}

fn put_back(tree: &mut Tree, old: &Tree, path: &str) {
    match meta::at(old, path) {
        Some(value) => meta::set(tree, path, value.clone()),
        None => drop(meta::remove(tree, path)),
    }
}

fn changed_fields(new: &Tree, old: &Tree) -> Vec<String> {
    let (masked, empty) = (masked(new, old), serde_json::Map::new());
    let new = masked.as_object().unwrap_or(&empty);
    let old = meta::map(old, "spec").unwrap_or(&empty);
    let names = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    names.filter(|name| old.get(*name) != new.get(*name)).map(|name| format!("spec.{name}")).collect()
}
