//! Namespaces on their way out: everything in them is deleted (pods first), then the namespace is let go.

use super::{condition, set_condition};
use crate::cache::{Cache, Seen};
use crate::plan::{Controller, Ctx, Plan, delete};
use crate::views::resource;
use crate::wish::{Propagation, Write};
use dhow_api::kinds::{self, Kind};
use dhow_api::{Tree, meta};
use dhow_state::{Key, Object};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Deletions that one round asks for.
const BURST_MAX: usize = 500;
/// Between two status writes while content goes away.
const STATUS_INTERVAL_MS: u64 = 1_000;
/// What stands in `spec.finalizers` of each namespace: ours to take away.
const FINALIZER: &str = "kubernetes";

pub(crate) const CONTROLLER: Controller = Controller { name: "namespace-controller", wakes, reconcile };

fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::NAMESPACES) {
        wake(seen.key.clone());
    } else if !seen.key.namespace.is_empty() {
        let key = Key::new(resource::NAMESPACES, "", Arc::clone(&seen.key.namespace));
        if cache.object(&key).is_some_and(|namespace| namespace.index.deleting) {
            wake(key);
        }
    }
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(namespace) = ctx.cache.object(key).filter(|object| object.index.deleting) else { return plan };
    let tree = namespace.tree();
    let finalizers = meta::list(&tree, "spec.finalizers");
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return plan;
    }
    let content = content(ctx.cache, &key.name);
    if content.is_empty() {
        let kept: Vec<Tree> = finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
        let mut tree = tree;
        meta::set(&mut tree, "spec.finalizers", kept);
        plan.write(Write::Finalize { tree });
        return plan;
    }
    // Pods may need what stands beside them (secrets, services) until they are gone.
    let pods_only = content.first().is_some_and(|group| group.kind.resource() == resource::PODS);
    let groups = if pods_only { &content[..1] } else { &content[..] };
    for object in groups.iter().flat_map(|group| &group.objects).filter(|object| !object.index.deleting).take(BURST_MAX)
    {
        plan.write(delete(object, Propagation::Background));
    }
    write_conditions(ctx, tree, &content, &mut plan);
    plan
}

/// The objects of one kind that remain.
struct Remaining<'a> {
    kind: &'static Kind,
    objects: Vec<&'a Arc<Object>>,
}

/// What is left in a namespace, pods first.
fn content<'a>(cache: &'a Cache, namespace: &str) -> Vec<Remaining<'a>> {
    let mut content = Vec::new();
    for kind in kinds::all().iter().filter(|kind| kind.namespaced) {
        let resource = kind.resource();
        let objects: Vec<_> = cache.all_of(&resource, namespace);
        if !objects.is_empty() {
            content.push(Remaining { kind, objects });
        }
    }
    content.sort_by_key(|group| group.kind.resource() != resource::PODS);
    content
}

fn write_conditions(ctx: &Ctx<'_>, mut tree: Tree, content: &[Remaining<'_>], plan: &mut Plan) {
    let old = tree.clone();
    let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
    for object in content.iter().flat_map(|group| &group.objects).filter(|object| object.index.deleting) {
        for finalizer in meta::finalizers(&object.tree()) {
            *finalizers.entry(finalizer.to_owned()).or_default() += 1;
        }
    }
    let remaining: Vec<String> = content
        .iter()
        .map(|group| format!("{} has {} resource instances", group.kind.qualified(), group.objects.len()))
        .collect();
    let held: Vec<String> =
        finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    let mut say = |kind: &str, says: (bool, &str, String)| {
        let status = if says.0 { "True" } else { "False" };
        let old = condition(&tree, kind);
        let since = old
            .filter(|old| meta::text(old, "status") == status)
            .map_or_else(|| ctx.now.to_rfc3339(), |old| meta::text(old, "lastTransitionTime").to_owned());
        let condition = json!({"type": kind, "status": status, "lastTransitionTime": since,
            "reason": says.1, "message": says.2});
        set_condition(&mut tree, condition);
    };
    let discovered = "All resources successfully discovered".to_owned();
    say("NamespaceDeletionDiscoveryFailure", (false, "ResourcesDiscovered", discovered));
    let parsed = "All legacy kube types successfully parsed".to_owned();
    say("NamespaceDeletionGroupVersionParsingFailure", (false, "ParsedGroupVersions", parsed));
    let deleted = "All content successfully deleted, may be waiting on finalization".to_owned();
    say("NamespaceDeletionContentFailure", (false, "ContentDeleted", deleted));
    let message = format!("Some resources are remaining: {}", remaining.join(", "));
    say("NamespaceContentRemaining", (true, "SomeResourcesRemain", message));
    if held.is_empty() {
        let message = "All content-preserving finalizers finished".to_owned();
        say("NamespaceFinalizersRemaining", (false, "ContentHasNoFinalizers", message));
    } else {
        let message = format!("Some content in the namespace has finalizers remaining: {}", held.join(", "));
        say("NamespaceFinalizersRemaining", (true, "SomeFinalizersRemain", message));
    }
    if tree == old {
        return;
    }
    match ctx.hold_ms(STATUS_INTERVAL_MS) {
        Some(ms) => plan.again_in(ms),
        None => plan.write(Write::UpdateStatus { tree }),
    }
}
