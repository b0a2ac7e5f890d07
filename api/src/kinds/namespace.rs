//! Namespace: a room for names.

use serde_json::json;

use super::{Column, Kind, Subresource, plain};
use crate::field::Path;
use crate::{Tree, meta, validate};

/// The finalizer that keeps a namespace until its content is gone.
const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The namespaces that the cluster itself lives in (upstream's NamespaceLifecycle admission).
const KEPT: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Namespace.
pub static NAMESPACE: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    schema: "io.k8s.api.core.v1.Namespace",
    // A whole collection of namespaces is too much to delete by one slip.
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[Subresource::Finalize, Subresource::Status],
    mark_deleting: |tree| meta::set(tree, "status.phase", "Terminating"),
    // A namespace goes when its content is gone, which the namespace controller says by emptying this list.
    is_held: |tree| !meta::list(tree, "spec.finalizers").is_empty(),
    keeps: |name| KEPT.contains(&name).then_some("this namespace may not be deleted"),
    name_faults: validate::dns1123_label,
    default: name_label,
    prepare_create: |tree| {
        name_label(tree);
        let mut finalizers = meta::list(tree, "spec.finalizers").to_vec();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.into());
        }
        meta::set(tree, "spec.finalizers", finalizers);
        meta::set(tree, "status", json!({"phase": "Active"}));
    },
    prepare_update: |new, old| {
        super::restore(new, old, "spec");
        super::restore(new, old, "status");
    },
    validate: |tree, faults| {
        let path = Path::root("spec.finalizers");
        for finalizer in meta::list(tree, "spec.finalizers").iter().filter_map(Tree::as_str) {
            validate::push_all(&path, finalizer, validate::qualified_name(finalizer), faults);
        }
    },
    columns: &[Column::name(), Column::new("Status", "Active, or Terminating while its content goes."), Column::age()],
    cells: |tree, now| {
        vec![meta::name(tree).into(), meta::text(tree, "status.phase").into(), crate::table::age(tree, now)]
    },
    field_labels: &["status.phase"],
    fields: |tree| vec![("status.phase", meta::text(tree, "status.phase").to_owned())],
    ..plain()
};

fn name_label(tree: &mut Tree) {
    let name = meta::name(tree).to_owned();
    if !name.is_empty() {
        meta::set_label(tree, NAME_LABEL, &name);
    }
}
