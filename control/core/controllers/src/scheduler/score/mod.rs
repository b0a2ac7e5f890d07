//! Where a pod goes best: each rule gives every node 0 to 100, weighted and added.

mod affinity;
mod balanced;
mod least_allocated;
mod spread;
mod taints;

use super::account::NodeInfo;
use super::needs::Needs;
use crate::views::Pod;

/// What a rule judges with.
struct Case<'a> {
    needs: &'a Needs,
    pod: &'a Pod,
    nodes: &'a [NodeInfo<'a>],
}

/// A rule: one score for each node of the case.
type Rule = fn(&Case<'_>) -> Vec<i64>;

/// The best that a rule gives.
const BEST: i64 = 100;

/// The rules with their weights: those of Kubernetes' default profile, where it has the rule.
const RULES: [(i64, Rule); 5] =
    [(1, least_allocated::score), (1, balanced::score), (2, spread::score), (2, affinity::score), (3, taints::score)];

/// The score of each node.
pub(super) fn scores(needs: &Needs, pod: &Pod, nodes: &[NodeInfo<'_>]) -> Vec<i64> {
    if nodes.len() == 1 {
        return vec![0];
    }
    let case = Case { needs, pod, nodes };
    let mut sums = vec![0; nodes.len()];
    for (weight, rule) in RULES {
        for (sum, score) in sums.iter_mut().zip(rule(&case)) {
            *sum += weight * score;
        }
    }
    sums
}

/// Scores that count against a node, turned around: the highest count gets 0, none gets the best.
fn fewer_is_better(counts: Vec<i64>) -> Vec<i64> {
    let most = counts.iter().copied().max().unwrap_or(0);
    counts.into_iter().map(|count| if most == 0 { BEST } else { BEST - BEST * count / most }).collect()
}
