//! Nodes that were cordoned take no pods, except those that tolerate it.

use crate::controllers::node_lifecycle::UNSCHEDULABLE;
use crate::scheduler::account::NodeInfo;
use crate::scheduler::needs::Needs;
use crate::views::Taint;

pub(super) fn check(needs: &Needs, node: &NodeInfo<'_>, reasons: &mut Vec<String>) {
    let cordon = Taint { key: UNSCHEDULABLE.into(), value: String::new(), effect: "NoSchedule".into(), added: None };
    if (node.node.unschedulable || node.node.object.index.deleting) && !needs.tolerates(&cordon) {
        reasons.push("node(s) were unschedulable".into());
    }
}
