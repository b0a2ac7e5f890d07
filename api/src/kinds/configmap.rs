//! ConfigMap: settings for pods.

use super::{Column, Kind, plain};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

/// The most that one ConfigMap or Secret may hold: more would crowd out everything else in memory.
pub(super) const BYTES_MAX: usize = 1024 * 1024;
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// ConfigMap.
pub static CONFIG_MAP: Kind = Kind {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    schema: "io.k8s.api.core.v1.ConfigMap",
    validate: validate_data,
    validate_update: |new, old, faults| immutable_data(new, old, &["data", "binaryData"], faults),
    columns: &[Column::name(), Column::new("Data", "How many entries there are."), Column::age()],
    cells: |tree, now| {
        let entries = meta::map(tree, "data").map_or(0, |map| map.len())
            + meta::map(tree, "binaryData").map_or(0, |map| map.len());
        vec![meta::name(tree).into(), entries.to_string().into(), crate::table::age(tree, now)]
    },
    ..plain()
};

fn validate_data(tree: &Tree, faults: &mut Faults) {
    let binary = meta::map(tree, "binaryData");
    let mut bytes = 0;
    let path = Path::root("data");
    for (key, value) in meta::texts(tree, "data") {
        validate::push_all(&path.key(key), key, validate::config_key(key), faults);
        if binary.is_some_and(|binary| binary.contains_key(key)) {
            faults.push(Fault::invalid(path.key(key), key, "duplicate of key present in binaryData"));
        }
        bytes += value.len();
    }
    let path = Path::root("binaryData");
    for (key, value) in meta::texts(tree, "binaryData") {
        validate::push_all(&path.key(key), key, validate::config_key(key), faults);
        bytes += decoded_len(value);
    }
    if bytes > BYTES_MAX {
        faults.push(Fault::too_long("", BYTES_MAX));
    }
}

/// How many bytes a Base64 text stands for.
pub(super) fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take(2).filter(|byte| *byte == b'=').count().min(text.len() / 4 * 3)
}

/// What was once declared immutable stays so, with all its data.
pub(super) fn immutable_data(new: &Tree, old: &Tree, fields: &[&str], faults: &mut Faults) {
    if !meta::truth(old, "immutable") {
        return;
    }
    if !meta::truth(new, "immutable") {
        faults.push(Fault::forbidden("immutable", IMMUTABLE));
    }
    for field in fields {
        let entries = |tree| meta::map(tree, field).cloned().unwrap_or_default();
        if entries(new) != entries(old) {
            faults.push(Fault::forbidden(field, IMMUTABLE));
        }
    }
}
