//! Prefers nodes that match more of the pod's preferred node affinity.

use super::{BEST, Case};

pub(super) fn score(case: &Case<'_>) -> Vec<i64> {
    let weights = |node| {
        case.needs.preferred.iter().filter(|(_, term)| term.matches(node)).map(|(weight, _)| *weight).sum::<i64>()
    };
    let sums: Vec<i64> = case.nodes.iter().map(weights).collect();
    let most = sums.iter().copied().max().unwrap_or(0);
    sums.into_iter().map(|sum| if most > 0 { BEST * sum / most } else { 0 }).collect()
}
