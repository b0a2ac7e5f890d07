//! Nodes with a taint take only pods that tolerate it.
//!
//! The taints of a node's condition are taken from the condition itself: the controller that writes them may not have
//! come to it yet.

use crate::controllers::node_lifecycle::{UNSCHEDULABLE, is_of_condition, taints_of_condition};
use crate::scheduler::account::NodeInfo;
use crate::scheduler::needs::Needs;
use crate::views::Taint;

pub(super) fn check(needs: &Needs, node: &NodeInfo<'_>, reasons: &mut Vec<String>) {
    let written = node.node.taints.iter().filter(|taint| !is_of_condition(&taint.key)).cloned();
    let of_condition = taints_of_condition(node.node)
        .into_iter()
        .filter(|(key, _)| *key != UNSCHEDULABLE)
        .map(|(key, effect)| Taint { key: key.into(), value: String::new(), effect: effect.into(), added: None });
    let unbearable = written
        .chain(of_condition)
        .find(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute") && !needs.tolerates(taint));
    if let Some(taint) = unbearable {
        reasons.push(format!("node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value));
    }
}
