//! Nodes must have the labels that the pod's node selector and its required node affinity ask for.

use crate::scheduler::account::NodeInfo;
use crate::scheduler::needs::Needs;

pub(super) fn check(needs: &Needs, node: &NodeInfo<'_>, reasons: &mut Vec<String>) {
    let label = |key: &str| node.node.object.index.label(key);
    let selected = needs.selector.iter().all(|(key, value)| label(key) == Some(value));
    let required = needs.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(node)));
    if !selected || !required {
        reasons.push("node(s) didn't match Pod's node affinity/selector".into());
    }
}
