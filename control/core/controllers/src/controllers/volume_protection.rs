//! Claims and volumes that somebody uses are kept until nobody does, although they were deleted.

use crate::cache::{Cache, Seen, Side};
use crate::plan::{Controller, Ctx, Plan};
use crate::views::resource;
use crate::wish::Write;
use dhow_api::{Tree, meta};
use dhow_state::{Key, Object};
use std::sync::Arc;

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

pub(crate) const CLAIMS: Controller =
    Controller { name: "persistentvolumeclaim-protection-controller", wakes: wakes_of_claim, reconcile: claim };

pub(crate) const VOLUMES: Controller =
    Controller { name: "persistentvolume-protection-controller", wakes: wakes_of_volume, reconcile: volume };

fn wakes_of_claim(_: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::CLAIMS) {
        wake(seen.key.clone());
    } else if seen.is(resource::PODS) {
        for claim in seen.old.iter().chain(&seen.new).filter_map(Side::pod).flat_map(|pod| &pod.claims) {
            wake(Key::new(resource::CLAIMS, Arc::clone(&seen.key.namespace), claim.as_str()));
        }
    }
}

/// A pod uses a claim from when it has a node until it has ended. One that waits for a node will find the claim gone.
fn claim(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(claim) = ctx.cache.claim(key).filter(|claim| claim.deleting()) else { return plan };
    if !ctx.cache.pods_with(key).any(|pod| pod.node.is_some() && !pod.phase.is_terminal()) {
        let_go(&claim.object, CLAIM_FINALIZER, &mut plan);
    }
    plan
}

fn wakes_of_volume(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::VOLUMES) {
        wake(seen.key.clone());
    } else if seen.is(resource::CLAIMS) {
        cache.volumes_of(&seen.key).for_each(|volume| wake(volume.object.key.clone()));
    }
}

fn volume(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(volume) = ctx.cache.volume(&key.name).filter(|volume| volume.deleting()) else { return plan };
    let claim = volume.claim.as_ref().and_then(|of| ctx.cache.claim(&of.key));
    if !claim.is_some_and(|claim| volume.is_of(claim)) {
        let_go(&volume.object, VOLUME_FINALIZER, &mut plan);
    }
    plan
}

fn let_go(object: &Arc<Object>, finalizer: &str, plan: &mut Plan) {
    let mut tree = object.tree();
    let finalizers = meta::finalizers(&tree);
    if finalizers.contains(&finalizer) {
        let kept: Vec<Tree> = finalizers.into_iter().filter(|one| *one != finalizer).map(Tree::from).collect();
        meta::set(&mut tree, "metadata.finalizers", kept);
        plan.write(Write::Update { tree });
    }
}
