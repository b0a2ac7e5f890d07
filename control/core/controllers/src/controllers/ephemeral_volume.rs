//! Claims that a pod brings along: made for it alone, owned by it, and gone with it.

use crate::cache::{Cache, Seen, Side};
use crate::events::Note;
use crate::plan::{Controller, Ctx, Plan, controller_ref};
use crate::views::resource;
use crate::wish::Write;
use dhow_api::{Tree, meta};
use dhow_state::Key;
use serde_json::json;
use std::sync::Arc;

pub(crate) const CONTROLLER: Controller = Controller { name: "ephemeral-volume-controller", wakes, reconcile };

/// Keys are pods.
fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::PODS) {
        if seen.new.as_ref().and_then(Side::pod).is_some_and(|pod| !pod.brought.is_empty()) {
            wake(seen.key.clone());
        }
    } else if seen.is(resource::CLAIMS) && seen.new.is_none() {
        cache.pods_with(&seen.key).for_each(|pod| wake(pod.object.key.clone()));
    }
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(pod) = ctx.cache.pod(key).filter(|pod| pod.active() && !pod.brought.is_empty()) else { return plan };
    let tree = pod.object.tree();
    for volume in meta::list(&tree, "spec.volumes") {
        let Some(template) = meta::at(volume, "ephemeral.volumeClaimTemplate") else { continue };
        let name = format!("{}-{}", key.name, meta::text(volume, "name"));
        let claim = Key::new(resource::CLAIMS, Arc::clone(&key.namespace), name.as_str());
        match ctx.cache.object(&claim) {
            None => {
                let part = |path: &str| meta::at(template, path).cloned().unwrap_or(Tree::Null);
                let metadata = json!({
                    "name": name, "namespace": &*key.namespace, "labels": part("metadata.labels"),
                    "annotations": part("metadata.annotations"), "ownerReferences": [controller_ref(&pod.object)],
                });
                let spec = part("spec");
                plan.write(Write::Create {
                    tree: json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}),
                });
            }
            Some(present) if !present.index.owners.iter().any(|owner| owner == pod.uid()) => {
                let words = format!(
                    "PVC {}/{name} was not created for pod {}/{} (pod is not owner)",
                    key.namespace, key.namespace, key.name
                );
                plan.notes.push(Note::warning(&pod.object, "FailedBinding", words));
            }
            Some(_) => {}
        }
    }
    plan
}
