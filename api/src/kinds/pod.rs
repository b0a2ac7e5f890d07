//! Pod: what runs. Its spec's rules also serve the templates of Deployments and ReplicaSets.

use serde_json::json;

use super::{ALL_VERBS, Column, Kind, Subresource, plain};
use crate::field::Path;
use crate::{Tree, meta};

pub mod annotations;
mod container;
pub(super) mod defaults;
mod ephemeral;
mod print;
pub mod serving;
mod update;
mod validate;
mod volumes;

pub(super) use container::port_or_name;
use defaults::qos_class;
pub(super) use validate::template;
pub(super) use volumes::host_path;

/// Pod.
pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Pod",
    verbs: ALL_VERBS,
    subresources: &[
        Subresource::Attach,
        Subresource::Binding,
        Subresource::EphemeralContainers,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Log,
        Subresource::PortForward,
        Subresource::Status,
    ],
    has_generation: true,
    returns_deleted: true,
    grace_s,
    default: defaults::pod,
    prepare_create,
    prepare_update: super::keep_status,
    prepare_status,
    validate: |tree, faults| {
        validate::spec(&Path::root("spec"), tree.get("spec").unwrap_or(&Tree::Null), faults);
        serving::validate(&Path::root("metadata.annotations"), tree, faults);
    },
    warnings: |tree| annotations::warnings(&Path::root("metadata.annotations"), tree),
    validate_update: update::validate,
    validate_create: ephemeral::validate_create,
    prepare_ephemeral: ephemeral::prepare,
    validate_ephemeral: ephemeral::validate_update,
    columns: COLUMNS,
    cells: print::cells,
    field_labels: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ],
    fields,
    ..plain()
};

const COLUMNS: &[Column] = &[
    Column::name(),
    Column::new("Ready", "How many containers of the pod are ready, of how many."),
    Column::new("Status", "What the pod as a whole is doing."),
    Column::new("Restarts", "How often containers of the pod were restarted, and when last."),
    Column::age(),
    Column::new("IP", "The address of the pod.").wide(),
    Column::new("Node", "The node that the pod runs on.").wide(),
    Column::new("Nominated Node", "The node that room is being made on for the pod.").wide(),
    Column::new("Readiness Gates", "How many readiness gates are passed, of how many.").wide(),
];

/// How long a pod has to end when nobody says.
const GRACE_S: i64 = 30;

/// Only a pod that a node is running needs any time to end.
fn grace_s(tree: &Tree) -> Option<i64> {
    let finished = matches!(meta::text(tree, "status.phase"), "Succeeded" | "Failed");
    let running = !finished && !meta::text(tree, "spec.nodeName").is_empty();
    running.then(|| meta::int(tree, "spec.terminationGracePeriodSeconds").unwrap_or(GRACE_S))
}

/// Upstream's strategy together with the built-in admission that every pod goes through: service account, default
/// tolerations, priority.
fn prepare_create(tree: &mut Tree) {
    defaults::admit(tree);
    let qos = qos_class(tree);
    meta::set(tree, "status", json!({"phase": "Pending", "qosClass": qos}));
    meta::set_generation(tree, 1);
}

/// The QoS class follows from the spec and stays.
fn prepare_status(new: &mut Tree, old: &Tree) {
    super::status_only(new, old);
    if let Some(qos) = meta::at(old, "status.qosClass") {
        meta::set(new, "status.qosClass", qos.clone());
    }
}

fn fields(tree: &Tree) -> Vec<(&'static str, String)> {
    let mut fields: Vec<(&'static str, String)> = [
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ]
    .into_iter()
    .map(|path| (path, meta::text(tree, path).to_owned()))
    .collect();
    fields.push(("spec.hostNetwork", meta::truth(tree, "spec.hostNetwork").to_string()));
    let ips: Vec<&str> = meta::list(tree, "status.podIPs").iter().map(|entry| meta::text(entry, "ip")).collect();
    fields.push(("status.podIPs", ips.join(",")));
    fields
}
