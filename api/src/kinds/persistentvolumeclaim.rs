//! PersistentVolumeClaim: a wish for storage that outlives pods.

use serde_json::json;

use super::pod::defaults;
use super::{Column, Kind, Subresource, plain, volumes};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, selector};

/// Keeps a claim that pods use.
const FINALIZER: &str = "kubernetes.io/pvc-protection";

/// PersistentVolumeClaim.
pub static PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    schema: "io.k8s.api.core.v1.PersistentVolumeClaim",
    subresources: &[Subresource::Status],
    returns_deleted: true,
    default: |tree| {
        let spec = meta::map_of(tree).entry("spec").or_insert(Tree::Null);
        meta::map_of(spec);
        defaults::set_text(spec, "volumeMode", "Filesystem");
        defaults::canonical(spec, "resources.requests");
        defaults::canonical(spec, "resources.limits");
        defaults::set_text(tree, "status.phase", "Pending");
    },
    prepare_create: |tree| {
        meta::set(tree, "status", json!({"phase": "Pending"}));
        volumes::protect(tree, FINALIZER);
    },
    prepare_update: |new, old| super::restore(new, old, "status"),
    validate: validate_spec,
    validate_update,
    columns: &[
        Column::name(),
        Column::new("Status", "Whether the claim has its volume."),
        Column::new("Volume", "The volume that the claim is bound to."),
        Column::new("Capacity", "How much the volume holds."),
        Column::new("Access Modes", "Who may use the volume at the same time, and how."),
        Column::new("StorageClass", "The class that the volume is of."),
        Column::new("VolumeAttributesClass", "The class of the volume's attributes."),
        Column::age(),
        Column::new("VolumeMode", "What the volume is mounted as.").wide(),
    ],
    cells: |tree, now| {
        let bound = !meta::text(tree, "spec.volumeName").is_empty();
        let if_bound = |text: String| if bound { text } else { String::new() };
        let capacity = meta::text(tree, "status.capacity.storage");
        let capacity = if capacity.is_empty() { "0" } else { capacity };
        vec![
            meta::name(tree).into(),
            volumes::shown_phase(tree).into(),
            meta::text(tree, "spec.volumeName").into(),
            if_bound(capacity.to_owned()).into(),
            if_bound(volumes::shown_modes(tree, "status.accessModes")).into(),
            volumes::class(tree).into(),
            volumes::or_unset(tree, "spec.volumeAttributesClassName").into(),
            crate::table::age(tree, now),
            volumes::or_unset(tree, "spec.volumeMode").into(),
        ]
    },
    ..plain()
};

fn validate_spec(tree: &Tree, faults: &mut Faults) {
    let path = Path::root("spec");
    let spec = meta::at(tree, "spec").unwrap_or(&Tree::Null);
    if let Some(wanted) = meta::at(spec, "selector") {
        selector::validate(&path.field("selector"), wanted, faults);
    }
    volumes::validate_modes(&path, spec, faults);
    let resources = path.field("resources");
    let size = resources.key("storage");
    match meta::map(spec, "resources.requests").and_then(|requests| requests.get("storage")) {
        Some(asked) => volumes::validate_size(&size, asked, faults),
        None => faults.push(Fault::required(size, "")),
    }
}

/// A claim may get its volume and its class once; the rest stays as it was asked for.
fn validate_update(new: &Tree, old: &Tree, faults: &mut Faults) {
    let path = Path::root("spec");
    let requests = |tree| meta::at(tree, "spec.resources.requests").cloned();
    if requests(new) != requests(old) {
        let words = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc \
                     must support resize";
        let resources = path.field("resources");
        faults.push(Fault::forbidden(resources.field("requests"), words));
    }
    let mut kept = meta::at(new, "spec").cloned().unwrap_or(Tree::Null);
    for field in ["volumeName", "storageClassName"] {
        if meta::at(old, &format!("spec.{field}")).is_none_or(|before| before == "" && field == "volumeName") {
            match meta::at(old, &format!("spec.{field}")) {
                Some(before) => meta::set(&mut kept, field, before.clone()),
                None => drop(meta::remove(&mut kept, field)),
            }
        }
    }
    if let Some(before) = meta::at(old, "spec.resources") {
        meta::set(&mut kept, "resources", before.clone());
    }
    if Some(&kept) != meta::at(old, "spec") {
        let words = "spec is immutable after creation except resources.requests and volumeAttributesClassName for \
                     bound claims";
        faults.push(Fault::forbidden(path, words));
    }
}
