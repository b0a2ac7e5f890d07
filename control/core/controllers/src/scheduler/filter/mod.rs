//! Where a pod can go: each rule says why not.

mod affinity;
mod fit;
mod taints;
mod unschedulable;
mod volumes;

use super::account::NodeInfo;
use super::needs::Needs;

/// A rule: appends the reasons why the pod cannot go to the node.
type Rule = fn(&Needs, &NodeInfo<'_>, &mut Vec<String>);

/// In the order in which they are asked; the first that objects ends the matter.
const RULES: [Rule; 5] = [unschedulable::check, taints::check, affinity::check, fit::check, volumes::check];

/// Why the pod cannot go to the node; empty when it can.
pub(super) fn reasons(needs: &Needs, node: &NodeInfo<'_>) -> Vec<String> {
    let mut reasons = Vec::new();
    for rule in RULES {
        rule(needs, node, &mut reasons);
        if !reasons.is_empty() {
            break;
        }
    }
    reasons
}
