//! Prefers nodes with fewer pods of the same controller, so that losing a node loses few replicas.

use super::{Case, fewer_is_better};

pub(super) fn score(case: &Case<'_>) -> Vec<i64> {
    let owner = case.pod.controller.as_deref();
    fewer_is_better(case.nodes.iter().map(|node| owner.map_or(0, |owner| node.pods_of(owner))).collect())
}
