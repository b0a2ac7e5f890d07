//! Ephemeral containers: added to a pod that runs, by a door of their own, to look into it. They stay for the rest of
//! the pod's life as they are.

use std::collections::BTreeSet;

use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta};

/// What of a pod they are.
pub(super) const FIELD: &str = "spec.ephemeralContainers";

/// What an ordinary container may have and these may not: nothing may be built upon them.
const FORBIDDEN: [&str; 8] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];
const WHY: &str = "cannot be set for an Ephemeral Container";

/// The faults of one that an ordinary container would not have.
pub(super) fn validate(path: &Path<'_>, container: &Tree, others: &BTreeSet<&str>, faults: &mut Faults) {
    let target = meta::text(container, "targetContainerName");
    if !target.is_empty() && !others.contains(target) {
        faults.push(Fault::not_found(path.field("targetContainerName"), target));
    }
    for field in FORBIDDEN {
        let is_empty = |value: &Tree| value.as_object().is_some_and(|map| map.is_empty()) || value.is_null();
        if meta::at(container, field).is_some_and(|value| !is_empty(value)) {
            faults.push(Fault::forbidden(path.field(field), WHY));
        }
    }
    let mounts = path.field("volumeMounts");
    for (i, mount) in meta::list(container, "volumeMounts").iter().enumerate() {
        for field in ["subPath", "subPathExpr"] {
            if !meta::text(mount, field).is_empty() {
                faults.push(Fault::forbidden(mounts.index(i).field(field), WHY));
            }
        }
    }
}

/// A new pod has none.
pub(super) fn validate_create(pod: &Tree, faults: &mut Faults) {
    if !meta::list(pod, FIELD).is_empty() {
        faults.push(Fault::forbidden(FIELD, "cannot be set on create"));
    }
}

/// Those that are there stay as they are.
pub(super) fn validate_update(new: &Tree, old: &Tree, faults: &mut Faults) {
    for before in meta::list(old, FIELD) {
        let name = meta::text(before, "name");
        match meta::list(new, FIELD).iter().find(|container| meta::text(container, "name") == name) {
            None => faults.push(Fault::forbidden(
                FIELD,
                format!("existing ephemeral containers \"{name}\" may not be removed\n"),
            )),
            Some(after) if after != before => faults.push(Fault::forbidden(
                FIELD,
                format!("existing ephemeral containers \"{name}\" may not be changed\n"),
            )),
            Some(_) => {}
        }
    }
}

/// The pod with other ephemeral containers, and otherwise as it was.
pub(super) fn prepare(new: &mut Tree, old: &Tree) {
    let containers = meta::at(new, FIELD).cloned();
    let version = meta::resource_version(new).to_owned();
    *new = old.clone();
    meta::set_resource_version(new, &version);
    match containers {
        Some(containers) => meta::set(new, FIELD, containers),
        None => drop(meta::remove(new, FIELD)),
    }
}
