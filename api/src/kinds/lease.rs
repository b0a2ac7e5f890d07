//! Lease: a claim that must be renewed, as nodes' heartbeats and leaders' locks are.

use super::{Column, Kind, plain};
use crate::field::{Fault, Path};
use crate::{meta, validate};

/// Lease.
pub static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    schema: "io.k8s.api.coordination.v1.Lease",
    // A lock that could be overwritten unread would be none.
    allow_unconditional_update: false,
    allow_create_on_update: true,
    validate: |tree, faults| {
        let path = Path::root("spec");
        let seconds = meta::int(tree, "spec.leaseDurationSeconds");
        if let Some(seconds) = seconds.filter(|seconds| *seconds <= 0) {
            faults.push(Fault::invalid(path.field("leaseDurationSeconds"), seconds, "must be greater than 0"));
        }
        let transitions = meta::int(tree, "spec.leaseTransitions");
        validate::not_negative(&path.field("leaseTransitions"), transitions, faults);
        if meta::at(tree, "spec.holderIdentity").is_some_and(|holder| holder == "") {
            faults.push(Fault::invalid(path.field("holderIdentity"), "", "must not be empty"));
        }
    },
    columns: &[Column::name(), Column::new("Holder", "Who has the lease."), Column::age()],
    cells: |tree, now| {
        let holder = meta::text(tree, "spec.holderIdentity");
        vec![meta::name(tree).into(), holder.into(), crate::table::age(tree, now)]
    },
    ..plain()
};
