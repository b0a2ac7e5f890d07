//! Prefers nodes on which processor and memory would be used to the same degree.

use super::{BEST, Case};
use crate::scheduler::account::scored;

pub(super) fn score(case: &Case<'_>) -> Vec<i64> {
    let (cpu, memory) = scored(&case.needs.requests);
    // In thousandths, so that no floating point decides.
    let share = |has: i64, used: i64| {
        if has > 0 { (i128::from(used) * 1000 / i128::from(has)).clamp(0, 1000) } else { 1000 }
    };
    case.nodes
        .iter()
        .map(|node| {
            let has = &node.node.allocatable;
            let cpu = share(has.cpu_m, node.scored_cpu_m.saturating_add(cpu));
            let memory = share(has.memory, node.scored_memory.saturating_add(memory));
            // The standard deviation of two values is half their distance.
            BEST - i64::try_from((cpu - memory).abs() / 2 / 10).unwrap_or(BEST)
        })
        .collect()
}
