//! Nodes must be able to use the pod's volumes, and to hold those that are to be made for it.

use crate::scheduler::account::NodeInfo;
use crate::scheduler::needs::Needs;
use crate::scheduler::volumes::{Choice, choose};

pub(super) fn check(needs: &Needs, node: &NodeInfo<'_>, reasons: &mut Vec<String>) {
    let volumes = &needs.volumes;
    if volumes.taken {
        let words = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
        reasons.push(words.into());
        return;
    }
    if !volumes.bound.iter().all(|terms| terms.iter().any(|term| term.matches(node))) {
        reasons.push("node(s) had volume node affinity conflict".into());
    }
    let Some(choices) = choose(volumes, node.node) else {
        reasons.push("node(s) didn't find available persistent volumes to bind".into());
        return;
    };
    let made = choices.iter().filter_map(|choice| match choice {
        Choice::Make(_, made) if made.local => Some(made.bytes),
        _ => None,
    });
    let asked: i64 = made.fold(0, i64::saturating_add);
    let disk = node.node.allocatable.ephemeral;
    // A node that does not say how large its disk is takes what comes.
    let taken = node.volume_bytes.saturating_add(node.used.ephemeral);
    if asked > 0 && disk > 0 && asked > disk.saturating_sub(taken) {
        reasons.push("node(s) did not have enough free storage".into());
    }
}
