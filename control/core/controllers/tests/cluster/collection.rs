//! Garbage collection, namespaces, and what namespaces get.

use crate::world::{World, deployment, pod};
use dhow_api::{Tree, meta};
use dhow_controllers::Propagation;
use serde_json::json;

#[test]
fn what_has_lost_its_owner_goes() {
    for seed in 0..10 {
        let mut world = World::new(seed, &["n1"]);
        world.create(deployment("web", 3, "web:1", json!({})));
        world.create(pod("alone", "alone", json!({})));
        world.settle();
        world.delete("deployments.apps", "default", "web", Propagation::Background);
        world.settle();
        assert!(world.list("replicasets.apps").is_empty());
        assert_eq!(world.pods().len(), 1);
    }
}

#[test]
fn in_the_foreground_the_owner_goes_last() {
    for seed in 0..10 {
        let mut world = World::new(seed, &["n1"]);
        world.invariant = Some(|state| {
            if state.count("deployments.apps", None) == 0 {
                assert_eq!(state.count("pods", None), 0, "the owner went before its pods");
            }
        });
        world.create(deployment("web", 3, "web:1", json!({})));
        world.settle();
        world.delete("deployments.apps", "default", "web", Propagation::Foreground);
        world.settle();
        for resource in ["deployments.apps", "replicasets.apps", "pods"] {
            assert!(world.list(resource).is_empty(), "{resource} with seed {seed}");
        }
    }
}

#[test]
fn orphans_stay_and_forget_their_owner() {
    let mut world = World::new(3, &["n1"]);
    world.create(deployment("web", 2, "web:1", json!({})));
    world.settle();
    let set = meta::name(&world.list("replicasets.apps")[0]).to_owned();
    world.delete("deployments.apps", "default", "web", Propagation::Orphan);
    world.settle();
    assert!(world.list("deployments.apps").is_empty());
    let set = world.get("replicasets.apps", "default", &set).unwrap();
    assert!(meta::owner_refs(&set).is_empty());
    assert_eq!(world.pods().len(), 2);
    // A new deployment with the same selector takes the set over.
    world.create(deployment("web", 2, "web:1", json!({})));
    world.settle();
    let web = world.get("deployments.apps", "default", "web").unwrap();
    let sets = world.list("replicasets.apps");
    assert_eq!(sets.len(), 1);
    assert_eq!(meta::controller_of(&sets[0]).unwrap().uid, meta::uid(&web));
}

#[test]
fn one_owner_is_enough_to_stay() {
    let mut world = World::new(4, &["n1"]);
    let owner = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}});
    world.create(owner("a"));
    world.create(owner("b"));
    let uid = |world: &World, name: &str| meta::uid(&world.get("configmaps", "default", name).unwrap()).to_owned();
    let reference = |name: &str, uid: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid});
    let mut child = owner("child");
    child["metadata"]["ownerReferences"] =
        json!([reference("a", &uid(&world, "a")), reference("b", &uid(&world, "b"))]);
    world.create(child);
    world.settle();
    world.delete("configmaps", "default", "a", Propagation::Background);
    world.settle();
    let child = world.get("configmaps", "default", "child").unwrap();
    assert_eq!(meta::owner_refs(&child).len(), 1);
    world.delete("configmaps", "default", "b", Propagation::Background);
    world.settle();
    assert!(world.get("configmaps", "default", "child").is_none());
}

#[test]
fn an_owner_of_an_unknown_kind_is_not_presumed_dead() {
    let mut world = World::new(5, &[]);
    world.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "default",
        "ownerReferences": [{"apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "uid": "1-2-3"}]}}));
    world.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "y", "namespace": "default",
        "ownerReferences": [{"apiVersion": "v1", "kind": "Secret", "name": "w", "uid": "1-2-3"}]}}));
    world.settle();
    assert!(world.get("configmaps", "default", "x").is_some());
    assert!(world.get("configmaps", "default", "y").is_none());
}

#[test]
fn a_namespace_takes_everything_with_it() {
    for seed in 0..10 {
        let mut world = World::new(seed, &["n1"]);
        world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}));
        for mut tree in [deployment("web", 3, "web:1", json!({})), pod("alone", "alone", json!({}))] {
            meta::set_namespace(&mut tree, "team");
            world.create(tree);
        }
        world.create(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "team"}}));
        world.settle();
        assert!(world.get("serviceaccounts", "team", "default").is_some());
        let map = world.get("configmaps", "team", "kube-root-ca.crt").unwrap();
        assert_eq!(map["data"]["ca.crt"], "PEM");
        // Secrets and the like outlive the pods that may need them.
        world.invariant = Some(|state| {
            let secret = state.count("secrets", Some("team")) > 0;
            assert!(secret || state.count("pods", Some("team")) == 0, "the secret went before the pods");
        });
        world.delete("namespaces", "", "team", Propagation::Background);
        world.settle();
        assert!(world.get("namespaces", "", "team").is_none(), "seed {seed}");
        let left: Vec<String> =
            world.state.iter().filter(|object| &*object.key.namespace == "team").map(|o| o.key.to_string()).collect();
        assert_eq!(left, Vec::<String>::new());
        assert!(world.get("namespaces", "", "default").is_some());
    }
}

/// What a condition of the namespace says: its status, its reason and its message.
fn says(world: &World, kind: &str) -> [String; 3] {
    let namespace = world.get("namespaces", "", "team").unwrap();
    let found = meta::list(&namespace, "status.conditions").iter().find(|one| meta::text(one, "type") == kind);
    ["status", "reason", "message"].map(|field| meta::text(found.unwrap(), field).to_owned())
}

fn held(name: &str, finalizers: &[&str]) -> Tree {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "team", "finalizers": finalizers}})
}

/// Takes one finalizer away.
fn let_go(world: &mut World, name: &str, finalizer: &str) {
    let mut held = world.get("configmaps", "team", name).unwrap();
    let mut kept: Vec<Tree> = meta::list(&held, "metadata.finalizers").to_vec();
    kept.retain(|one| one != finalizer);
    if kept.is_empty() {
        meta::remove(&mut held, "metadata.finalizers");
    } else {
        meta::set(&mut held, "metadata.finalizers", kept);
    }
    world.update(held).unwrap();
    world.settle();
}

#[test]
fn a_namespace_says_at_each_moment_what_keeps_it() {
    const CONTENT: &str = "NamespaceContentRemaining";
    const FINALIZERS: &str = "NamespaceFinalizersRemaining";
    for seed in 0..10 {
        let mut world = World::new(seed, &["n1"]);
        world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"},
            "spec": {"finalizers": ["kubernetes", "example.com/last"]}}));
        world.create(held("a", &["example.com/one", "example.com/two"]));
        world.create(held("b", &["example.com/two"]));
        let mut web = deployment("web", 3, "web:1", json!({}));
        meta::set_namespace(&mut web, "team");
        world.create(web);
        world.settle();
        // Its agent is gone: the pods stay for now.
        world.dead.insert("n1".into());
        world.delete("namespaces", "", "team", Propagation::Background);
        world.pass(5_000);
        let [status, reason, message] = says(&world, CONTENT);
        assert_eq!((status.as_str(), reason.as_str()), ("True", "SomeResourcesRemain"));
        let parts = message.strip_prefix("Some resources are remaining: ").unwrap().split(", ");
        let parts: Vec<&str> = parts.filter(|part| !part.starts_with("events.")).collect();
        let kinds = [
            ("configmaps.", 3),
            ("deployments.apps", 1),
            ("pods.", 3),
            ("replicasets.apps", 1),
            ("serviceaccounts.", 1),
        ];
        assert_eq!(parts, kinds.map(|(what, count)| format!("{what} has {count} resource instances")));
        world.dead.clear();
        world.settle();
        let remaining =
            |count: &str| format!("Some resources are remaining: configmaps. has {count} resource instances");
        let waiting = |what: &str| format!("Some content in the namespace has finalizers remaining: {what}");
        let (two, one) = ("example.com/two in 2 resource instances", "example.com/one in 1 resource instances");
        assert_eq!(says(&world, CONTENT), ["True", "SomeResourcesRemain", &remaining("2")]);
        assert_eq!(says(&world, FINALIZERS), ["True", "SomeFinalizersRemain", &waiting(&format!("{one}, {two}"))]);
        let_go(&mut world, "a", "example.com/one");
        assert_eq!(says(&world, FINALIZERS), ["True", "SomeFinalizersRemain", &waiting(two)]);
        let_go(&mut world, "b", "example.com/two");
        assert_eq!(says(&world, CONTENT)[2], remaining("1"));
        assert_eq!(says(&world, FINALIZERS)[2], waiting("example.com/two in 1 resource instances"));
        let_go(&mut world, "a", "example.com/two");
        // Somebody else still keeps the namespace; nothing of its content does.
        assert_eq!(says(&world, CONTENT), ["False", "ContentRemoved", "All content successfully removed"]);
        let done = "All content-preserving finalizers finished";
        assert_eq!(says(&world, FINALIZERS), ["False", "ContentHasNoFinalizers", done]);
        let namespace = world.get("namespaces", "", "team").unwrap();
        assert_eq!(namespace["spec"]["finalizers"], json!(["example.com/last"]));
    }
}

#[test]
fn a_namespace_without_content_waits_for_its_own_finalizers() {
    let mut world = World::new(7, &[]);
    world.create(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "team", "finalizers": ["example.com/last"]}}));
    world.settle();
    world.delete("namespaces", "", "team", Propagation::Background);
    world.settle();
    let mut namespace = world.get("namespaces", "", "team").unwrap();
    assert_eq!(namespace["spec"], json!({}));
    assert_eq!(says(&world, "NamespaceContentRemaining")[1], "ContentRemoved");
    meta::remove(&mut namespace, "metadata.finalizers");
    world.update(namespace).unwrap();
    assert!(world.get("namespaces", "", "team").is_none());
}

#[test]
fn a_namespace_says_that_its_content_cannot_be_deleted() {
    const FAILURE: &str = "NamespaceDeletionContentFailure";
    let mut world = World::new(6, &[]);
    world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}));
    world.create(held("stuck", &[]));
    world.settle();
    world.refuse_deletion = Some(("stuck".into(), "not today".into()));
    world.delete("namespaces", "", "team", Propagation::Background);
    world.settle();
    let message = "Failed to delete all resource types, 1 remaining: not today";
    assert_eq!(says(&world, FAILURE), ["True", "ContentDeletionFailed", message]);
    world.refuse_deletion = None;
    world.pass(60_000);
    assert!(world.get("namespaces", "", "team").is_none());
}

#[test]
fn what_a_namespace_got_comes_back() {
    let mut world = World::new(7, &[]);
    world.settle();
    world.delete("serviceaccounts", "default", "default", Propagation::Background);
    world.edit("configmaps", "kube-root-ca.crt", |tree| tree["data"]["ca.crt"] = "forged".into());
    world.settle();
    assert!(world.get("serviceaccounts", "default", "default").is_some());
    assert_eq!(world.get("configmaps", "default", "kube-root-ca.crt").unwrap()["data"]["ca.crt"], "PEM");
}
