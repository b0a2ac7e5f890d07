//! Brings claims and volumes together, makes volumes of our own driver, and says what becomes of a volume when its claim
//! is gone.
//!
//! A volume says which claim it is for (`spec.claimRef`), then the claim says which volume it has (`spec.volumeName`);
//! each step is a write of its own that follows from what is stored, so that it goes on wherever a leader stopped.
//! Where a volume of our driver lies is its node's own matter: the object names the node, and its agent makes the
//! directory when a pod mounts it and removes it when the object goes.

pub(crate) mod claim;
mod provision;
mod volume;

use crate::cache::{Cache, Seen, Side};
use crate::plan::{Controller, Ctx, Plan};
use crate::views::{Claim, Volume, resource};
use dhow_state::Key;
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "persistentvolume-controller", wakes, reconcile };

/// Keeps a volume until its node's agent has removed what it held.
const DATA_FINALIZER: &str = "dhow.dev/local-volume";
/// Tells volumes that were made for a claim, and by whom.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Keys are claims and volumes.
fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::CLAIMS) {
        wake(seen.key.clone());
        cache.volumes_of(&seen.key).for_each(|volume| wake(volume.object.key.clone()));
        let named = sides(seen).filter_map(Side::claim).filter_map(|claim| claim.volume.as_deref());
        named.for_each(|name| wake(Key::new(resource::VOLUMES, "", name)));
    } else if seen.is(resource::VOLUMES) {
        wake(seen.key.clone());
        for volume in sides(seen).filter_map(Side::volume) {
            wakes_of_volume(cache, volume, wake);
        }
    } else if seen.is(resource::CLASSES) {
        cache.unbound_claims().for_each(|claim| wake(claim.object.key.clone()));
    } else if seen.is(resource::NODES) && (seen.new.is_none() || seen.old.is_none()) {
        let here = cache.volumes().filter(|volume| volume.local_node.as_deref() == Some(&*seen.key.name));
        here.for_each(|volume| wake(volume.object.key.clone()));
    }
}

fn wakes_of_volume(cache: &Cache, volume: &Volume, wake: &mut dyn FnMut(Key)) {
    match &volume.claim {
        Some(claim) => wake(claim.key.clone()),
        None => {
            let may_get_it = |claim: &&Arc<Claim>| {
                claim.wanted.class == volume.offered.class || claim.volume.as_deref() == Some(volume.name())
            };
            cache.unbound_claims().filter(may_get_it).for_each(|claim| wake(claim.object.key.clone()));
        }
    }
}

fn sides(seen: &Seen) -> impl Iterator<Item = &Side> {
    seen.old.iter().chain(&seen.new)
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    if &*key.resource == resource::CLAIMS {
        if let Some(claim) = ctx.cache.claim(key) {
            claim::sync(ctx, claim, &mut plan);
        }
    } else if let Some(volume) = ctx.cache.volume(&key.name) {
        volume::sync(ctx, volume, &mut plan);
    }
    plan
}
