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
    let told = with_conditions(ctx, &tree, &content);
    if content.is_empty() {
        // Others may keep the namespace for longer: what it says of its content must be right by then.
        if told != tree {
            plan.write(Write::UpdateStatus { tree: told });
            return plan;
        }
        let kept: Vec<Tree> = finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
        let mut tree = tree;
        if kept.is_empty() {
            meta::remove(&mut tree, "spec.finalizers");
        } else {
            meta::set(&mut tree, "spec.finalizers", kept);
        }
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
    if told != tree {
        match ctx.hold_ms(STATUS_INTERVAL_MS) {
            Some(ms) => plan.again_in(ms),
            None => plan.write(Write::UpdateStatus { tree: told }),
        }
    }
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

/// The namespace with what there is to say about its content. The words are those that tools look for.
fn with_conditions(ctx: &Ctx<'_>, namespace: &Tree, content: &[Remaining<'_>]) -> Tree {
    let mut tree = namespace.clone();
    let mut say = |kind: &str, says: Says| {
        let (status, reason, message) = match says {
            Says::Yes(reason, message) => ("True", reason, message),
            Says::No(reason, message) => ("False", reason, message.to_owned()),
        };
        let old = condition(&tree, kind);
        let since = old
            .filter(|old| meta::text(old, "status") == status)
            .map_or_else(|| ctx.now.to_rfc3339(), |old| meta::text(old, "lastTransitionTime").to_owned());
        let condition =
            json!({"type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message});
        set_condition(&mut tree, condition);
    };
    let discovered = "All resources successfully discovered";
    say("NamespaceDeletionDiscoveryFailure", Says::No("ResourcesDiscovered", discovered));
    let parsed = "All legacy kube types successfully parsed";
    say("NamespaceDeletionGroupVersionParsingFailure", Says::No("ParsedGroupVersions", parsed));
    say("NamespaceDeletionContentFailure", failure(ctx));
    say("NamespaceContentRemaining", remaining(content));
    say("NamespaceFinalizersRemaining", finalizers_remaining(content));
    tree
}

/// What a condition says, why, and in which words.
enum Says {
    Yes(&'static str, String),
    No(&'static str, &'static str),
}

fn failure(ctx: &Ctx<'_>) -> Says {
    match &ctx.history.last_fault {
        Some(why) => {
            Says::Yes("ContentDeletionFailed", format!("Failed to delete all resource types, 1 remaining: {why}"))
        }
        None => Says::No("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
    }
}

fn remaining(content: &[Remaining<'_>]) -> Says {
    if content.is_empty() {
        return Says::No("ContentRemoved", "All content successfully removed");
    }
    // Also a resource of the core group, which has no name, ends in a dot.
    let one = |group: &Remaining<'_>| {
        format!("{}.{} has {} resource instances", group.kind.plural, group.kind.group, group.objects.len())
    };
    let mut all: Vec<String> = content.iter().map(one).collect();
    all.sort();
    Says::Yes("SomeResourcesRemain", format!("Some resources are remaining: {}", all.join(", ")))
}

fn finalizers_remaining(content: &[Remaining<'_>]) -> Says {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for object in content.iter().flat_map(|group| &group.objects) {
        for finalizer in meta::finalizers(&object.tree()) {
            *counts.entry(finalizer.to_owned()).or_default() += 1;
        }
    }
    if counts.is_empty() {
        return Says::No("ContentHasNoFinalizers", "All content-preserving finalizers finished");
    }
    let all: Vec<String> = counts.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    let message = format!("Some content in the namespace has finalizers remaining: {}", all.join(", "));
    Says::Yes("SomeFinalizersRemain", message)
}
