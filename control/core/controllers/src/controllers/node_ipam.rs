//! Pod ranges: each node gets its own part of the cluster's range.
//!
//! One key stands for all nodes, so that a range is never given twice while a write is on its way.

use crate::cache::{Cache, Seen};
use crate::events::Note;
use crate::plan::{Controller, Ctx, Plan};
use crate::views::resource;
use crate::wish::Write;
use dhow_api::meta;
use dhow_state::Key;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Between two complaints that no range is left.
const COMPLAIN_MS: u64 = 60_000;

pub(crate) const CONTROLLER: Controller = Controller { name: "cidrAllocator", wakes, reconcile };

fn wakes(_: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    let lacks = seen.new.as_ref().and_then(|side| side.node()).is_some_and(|node| node.pod_cidr.is_none());
    let freed = seen.is(resource::NODES) && seen.new.is_none();
    if lacks || freed {
        wake(Key::new(resource::NODES, "", ""));
    }
}

fn reconcile(ctx: &Ctx<'_>, _: &Key) -> Plan {
    let mut plan = Plan::default();
    let taken: BTreeSet<&str> = ctx.cache.nodes().filter_map(|node| node.pod_cidr.as_deref()).collect();
    let mut free = ranges(&ctx.config.cluster_cidr, ctx.config.node_mask).filter(|range| !taken.contains(&**range));
    for node in ctx.cache.nodes().filter(|node| node.pod_cidr.is_none() && !node.object.index.deleting) {
        let Some(range) = free.next() else {
            let message = format!("Node {} status is now: CIDRNotAvailable", node.object.key.name);
            plan.notes.push(Note::normal(&node.object, "CIDRNotAvailable", message));
            plan.again_in(COMPLAIN_MS);
            break;
        };
        let mut tree = node.object.tree();
        meta::set(&mut tree, "spec.podCIDR", range.as_str());
        meta::set(&mut tree, "spec.podCIDRs", vec![range]);
        plan.write(Write::Update { tree });
    }
    plan
}

/// The parts of `mask` bits that a range is cut into; none if the range or the mask makes no sense.
fn ranges(cluster: &str, mask: u8) -> impl Iterator<Item = String> {
    let parsed = cluster.split_once('/').and_then(|(base, bits)| {
        let (base, bits): (Ipv4Addr, u8) = (base.parse().ok()?, bits.parse().ok()?);
        (bits <= mask && mask <= 30).then(|| {
            let keep = u64::from(u32::MAX) << (32 - u32::from(bits));
            (u64::from(u32::from(base)) & keep, 1u64 << (mask - bits))
        })
    });
    let (base, count) = parsed.unwrap_or((0, 0));
    (0..count).filter_map(move |at| {
        let address = u32::try_from(base + (at << (32 - u32::from(mask)))).ok()?;
        Some(format!("{}/{mask}", Ipv4Addr::from(address)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_into_equal_parts() {
        let parts: Vec<String> = ranges("10.64.0.0/10", 18).collect();
        assert_eq!(parts.len(), 256);
        assert_eq!((parts[0].as_str(), parts[255].as_str()), ("10.64.0.0/18", "10.127.192.0/18"));
        for (cluster, mask, count) in
            [("10.0.0.0/24", 24, 1), ("10.0.0.0/24", 16, 0), ("nonsense", 24, 0), ("0.0.0.0/0", 1, 2)]
        {
            assert_eq!(ranges(cluster, mask).count(), count, "{cluster} in parts of {mask}");
        }
    }
}
