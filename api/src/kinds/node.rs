//! Node: a machine, or a part of one, that runs pods.

use std::collections::BTreeSet;

use super::pod::defaults;
use super::{Column, Kind, Subresource, plain};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

/// Node.
pub static NODE: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    schema: "io.k8s.api.core.v1.Node",
    subresources: &[Subresource::Status, Subresource::Proxy],
    default: |tree| {
        defaults::canonical(tree, "status.capacity");
        if meta::at(tree, "status.allocatable").is_none()
            && let Some(capacity) = meta::at(tree, "status.capacity").cloned()
        {
            meta::set(tree, "status.allocatable", capacity);
        }
        defaults::canonical(tree, "status.allocatable");
        // Both spellings of the pod addresses say the same.
        let cidr = meta::text(tree, "spec.podCIDR").to_owned();
        if !cidr.is_empty() && meta::list(tree, "spec.podCIDRs").is_empty() {
            meta::set(tree, "spec.podCIDRs", vec![cidr]);
        }
    },
    // A node comes with its status: the agent makes both at once.
    prepare_update: |new, old| super::restore(new, old, "status"),
    validate: validate_spec,
    validate_update: |new, old, faults| {
        let path = Path::root("spec");
        for (field, words) in [
            ("podCIDR", "node updates may not change podCIDR except from \"\" to valid"),
            ("providerID", "node updates may not change providerID except from \"\" to valid"),
        ] {
            let at = format!("spec.{field}");
            let old = meta::text(old, &at);
            if !old.is_empty() && meta::text(new, &at) != old {
                faults.push(Fault::forbidden(path.field(field), words));
            }
        }
    },
    columns: &[
        Column::name(),
        Column::new("Status", "Whether the node is ready and takes new pods."),
        Column::new("Roles", "What the node is for."),
        Column::age(),
        Column::new("Version", "The version of the node's agent."),
        Column::new("Internal-IP", "The node's address inside of the cluster.").wide(),
        Column::new("External-IP", "The node's address outside of the cluster.").wide(),
        Column::new("OS-Image", "The operating system of the node.").wide(),
        Column::new("Kernel-Version", "The kernel of the node.").wide(),
        Column::new("Container-Runtime", "What runs the containers, and its version.").wide(),
    ],
    cells: |tree, now| {
        let or = |path: &str, other: &str| -> Tree {
            let text = meta::text(tree, path);
            if text.is_empty() { other } else { text }.into()
        };
        vec![
            meta::name(tree).into(),
            status(tree).into(),
            roles(tree).into(),
            crate::table::age(tree, now),
            meta::text(tree, "status.nodeInfo.kubeletVersion").into(),
            address(tree, "InternalIP").into(),
            address(tree, "ExternalIP").into(),
            or("status.nodeInfo.osImage", "<unknown>"),
            or("status.nodeInfo.kernelVersion", "<unknown>"),
            or("status.nodeInfo.containerRuntimeVersion", "<unknown>"),
        ]
    },
    field_labels: &["spec.unschedulable"],
    fields: |tree| vec![("spec.unschedulable", meta::truth(tree, "spec.unschedulable").to_string())],
    ..plain()
};

fn validate_spec(tree: &Tree, faults: &mut Faults) {
    let path = Path::root("spec.taints");
    let mut seen = BTreeSet::new();
    for (i, taint) in meta::list(tree, "spec.taints").iter().enumerate() {
        let path = path.index(i);
        let (key, value, effect) = (meta::text(taint, "key"), meta::text(taint, "value"), meta::text(taint, "effect"));
        validate::push_all(&path.field("key"), key, validate::qualified_name(key), faults);
        validate::push_all(&path.field("value"), value, validate::label_value(value), faults);
        match effect {
            "" => faults.push(Fault::required(path.field("effect"), "")),
            effect => {
                let supported = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
                validate::one_of(&path.field("effect"), effect, supported, faults);
            }
        }
        if !seen.insert((key, effect)) {
            faults.push(Fault::duplicate(path, taint.clone()));
        }
    }
}

fn status(tree: &Tree) -> String {
    let ready = meta::list(tree, "status.conditions").iter().find(|condition| meta::text(condition, "type") == "Ready");
    let mut words = vec![match ready.map(|condition| meta::text(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if meta::truth(tree, "spec.unschedulable") {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(tree: &Tree) -> String {
    let role = |(key, value): (&str, &str)| match key.strip_prefix(ROLE_PREFIX) {
        Some(role) if !role.is_empty() => Some(role.to_owned()),
        None if key == ROLE_LABEL && !value.is_empty() => Some(value.to_owned()),
        _ => None,
    };
    let roles: BTreeSet<String> = meta::labels(tree).filter_map(role).collect();
    if roles.is_empty() { "<none>".to_owned() } else { Vec::from_iter(roles).join(",") }
}

fn address<'a>(tree: &'a Tree, ty: &str) -> &'a str {
    let found = meta::list(tree, "status.addresses").iter().find(|address| meta::text(address, "type") == ty);
    found.map(|address| meta::text(address, "address")).filter(|text| !text.is_empty()).unwrap_or("<none>")
}
