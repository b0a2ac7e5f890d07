//! Prefers nodes with fewer `PreferNoSchedule` taints that the pod does not tolerate.

use super::{Case, fewer_is_better};

pub(super) fn score(case: &Case<'_>) -> Vec<i64> {
    let disliked = |node: &super::NodeInfo<'_>| {
        let taints = node.node.taints.iter();
        let count = taints.filter(|taint| taint.effect == "PreferNoSchedule" && !case.needs.tolerates(taint)).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    };
    fewer_is_better(case.nodes.iter().map(disliked).collect())
}
