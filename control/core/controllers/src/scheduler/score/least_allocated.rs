//! Prefers nodes with more left.

use super::{BEST, Case};
use crate::scheduler::account::scored;

pub(super) fn score(case: &Case<'_>) -> Vec<i64> {
    let (cpu, memory) = scored(&case.needs.requests);
    let free = |has: i64, used: i64| {
        let left = has.saturating_sub(used).max(0);
        if has > 0 { i64::try_from(i128::from(left) * i128::from(BEST) / i128::from(has)).unwrap_or(0) } else { 0 }
    };
    case.nodes
        .iter()
        .map(|node| {
            let has = &node.node.allocatable;
            let cpu = free(has.cpu_m, node.scored_cpu_m.saturating_add(cpu));
            let memory = free(has.memory, node.scored_memory.saturating_add(memory));
            i64::midpoint(cpu, memory)
        })
        .collect()
}
