//! The controllers, one file each, and the table that the machine loops over.

mod adoption;
mod deployment;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod ephemeral_volume;
mod garbage;
mod namespace;
mod node_ipam;
pub(crate) mod node_lifecycle;
pub(crate) mod persistent_volume;
mod pod_gc;
mod publisher;
mod replicaset;
mod slices;
mod taint_eviction;
mod volume_protection;

use crate::plan::Controller;

/// All controllers.
pub(crate) static CONTROLLERS: &[Controller] = &[
    deployment::CONTROLLER,
    replicaset::CONTROLLER,
    endpointslice::CONTROLLER,
    endpointslice_mirroring::CONTROLLER,
    endpoints::CONTROLLER,
    namespace::CONTROLLER,
    publisher::SERVICE_ACCOUNTS,
    publisher::ROOT_CA,
    garbage::CONTROLLER,
    node_lifecycle::CONTROLLER,
    node_ipam::CONTROLLER,
    pod_gc::CONTROLLER,
    taint_eviction::CONTROLLER,
    persistent_volume::CONTROLLER,
    volume_protection::CLAIMS,
    volume_protection::VOLUMES,
    ephemeral_volume::CONTROLLER,
];

/// Replaces or adds the entry with the same `type` in `status.conditions`.
pub(crate) fn set_condition(tree: &mut dhow_api::Tree, condition: dhow_api::Tree) {
    use dhow_api::meta;
    let kind = meta::text(&condition, "type").to_owned();
    if meta::at(tree, "status.conditions").is_none_or(|list| !list.is_array()) {
        meta::set(tree, "status.conditions", Vec::<dhow_api::Tree>::new());
    }
    let Some(list) = meta::at_mut(tree, "status.conditions").and_then(dhow_api::Tree::as_array_mut) else { return };
    match list.iter_mut().find(|entry| meta::text(entry, "type") == kind) {
        Some(entry) => *entry = condition,
        None => list.push(condition),
    }
}

/// The entry of `status.conditions` with this `type`.
pub(crate) fn condition<'a>(tree: &'a dhow_api::Tree, kind: &str) -> Option<&'a dhow_api::Tree> {
    dhow_api::meta::list(tree, "status.conditions")
        .iter()
        .find(|condition| dhow_api::meta::text(condition, "type") == kind)
}
