//! ReplicaSet: a number of equal pods.

use serde_json::json;

use super::{Column, Kind, Subresource, plain, pod, workload};
use crate::field::{Faults, Path};
use crate::{Tree, meta, validate};

/// ReplicaSet.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    subresources: &[Subresource::Scale, Subresource::Status],
    has_generation: true,
    default: |tree| {
        meta::set_default(tree, "spec.replicas", 1);
        pod::defaults::template(tree);
    },
    prepare_create: |tree| {
        super::begin(tree);
        meta::set(tree, "status", json!({"replicas": 0}));
    },
    prepare_update: super::keep_status,
    validate: validate_spec,
    warnings: workload::warnings,
    validate_update: workload::selector_is_kept,
    columns: &[
        Column::name(),
        Column::new("Desired", "How many pods are wanted.").integer(),
        Column::new("Current", "How many pods there are.").integer(),
        Column::new("Ready", "How many pods are ready.").integer(),
        Column::age(),
        Column::new("Containers", "The names of the containers in the template.").wide(),
        Column::new("Images", "The images in the template.").wide(),
        Column::new("Selector", "The labels by which the pods are found.").wide(),
    ],
    cells: |tree, now| {
        let count = |field: &str| meta::int(tree, field).unwrap_or(0);
        let mut cells = vec![
            meta::name(tree).into(),
            count("spec.replicas").into(),
            count("status.replicas").into(),
            count("status.readyReplicas").into(),
            crate::table::age(tree, now),
        ];
        cells.extend(workload::template_cells(tree));
        cells
    },
    field_labels: &["status.replicas"],
    fields: |tree| vec![("status.replicas", meta::int(tree, "status.replicas").unwrap_or(0).to_string())],
    ..plain()
};

fn validate_spec(tree: &Tree, faults: &mut Faults) {
    let path = Path::root("spec");
    workload::replicas_and_selector(&path, tree, faults);
    let min_ready = meta::int(tree, "spec.minReadySeconds");
    validate::not_negative(&path.field("minReadySeconds"), min_ready, faults);
    workload::template(&path.field("template"), tree, faults);
}
