//! StorageClass: how volumes of a kind are made.

use super::pod::defaults;
use super::{Column, Kind, plain};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

/// Annotations that make a class the one of claims that name none.
const IS_DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const MODES: &[&str] = &["Immediate", "WaitForFirstConsumer"];

/// StorageClass.
pub static STORAGE_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    namespaced: false,
    schema: "io.k8s.api.storage.v1.StorageClass",
    returns_deleted: true,
    default: |tree| {
        defaults::set_text(tree, "reclaimPolicy", "Delete");
        defaults::set_text(tree, "volumeBindingMode", "Immediate");
    },
    validate: validate_class,
    validate_update,
    columns: &[
        Column::name(),
        Column::new("Provisioner", "Who makes volumes of this class."),
        Column::new("ReclaimPolicy", "What becomes of a volume when its claim is gone."),
        Column::new("VolumeBindingMode", "When a claim gets its volume."),
        Column::new("AllowVolumeExpansion", "Whether claims may grow."),
        Column::age(),
    ],
    cells: |tree, now| {
        let default = if is_default(tree) { " (default)" } else { "" };
        let or = |field: &str, other: &str| -> Tree {
            let text = meta::text(tree, field);
            if text.is_empty() { other } else { text }.into()
        };
        vec![
            format!("{}{default}", meta::name(tree)).into(),
            meta::text(tree, "provisioner").into(),
            or("reclaimPolicy", "Delete"),
            or("volumeBindingMode", "Immediate"),
            meta::truth(tree, "allowVolumeExpansion").into(),
            crate::table::age(tree, now),
        ]
    },
    ..plain()
};

/// Whether a class is the one of claims that name none.
pub fn is_default(class: &Tree) -> bool {
    IS_DEFAULT.iter().any(|name| meta::annotation(class, name) == Some("true"))
}

fn validate_class(tree: &Tree, faults: &mut Faults) {
    let provisioner = meta::text(tree, "provisioner");
    let path = Path::root("provisioner");
    if provisioner.is_empty() {
        faults.push(Fault::required(path, ""));
    } else {
        validate::push_all(&path, provisioner, validate::qualified_name(&provisioner.to_lowercase()), faults);
    }
    let policy = meta::text(tree, "reclaimPolicy");
    validate::one_of(&Path::root("reclaimPolicy"), policy, &["Delete", "Retain"], faults);
    validate::one_of(&Path::root("volumeBindingMode"), meta::text(tree, "volumeBindingMode"), MODES, faults);
}

fn validate_update(new: &Tree, old: &Tree, faults: &mut Faults) {
    for (field, words) in [
        ("parameters", "updates to parameters are forbidden."),
        ("provisioner", "updates to provisioner are forbidden."),
        ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
    ] {
        if meta::at(new, field) != meta::at(old, field) {
            faults.push(Fault::forbidden(field, words));
        }
    }
    let mode = "volumeBindingMode";
    validate::immutable(&Path::root(mode), meta::at(new, mode), meta::at(old, mode), faults);
}
