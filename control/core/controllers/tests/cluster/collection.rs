//! Garbage collection, namespaces, and what namespaces get.

use crate::world::{World, deployment, pod};
use dhow_api::meta;
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

#[test]
fn a_namespace_waits_for_finalizers_and_says_so() {
    let mut world = World::new(6, &[]);
    world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}));
    world.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "namespace": "team",
        "finalizers": ["example.com/wait"]}}));
    world.settle();
    world.delete("namespaces", "", "team", Propagation::Background);
    world.settle();
    let namespace = world.get("namespaces", "", "team").unwrap();
    let message = |kind: &str| {
        let found = meta::list(&namespace, "status.conditions").iter().find(|one| meta::text(one, "type") == kind);
        meta::text(found.unwrap(), "message").to_owned()
    };
    assert_eq!(
        message("NamespaceFinalizersRemaining"),
        "Some content in the namespace has finalizers remaining: example.com/wait in 1 resource instances"
    );
    let mut held = world.get("configmaps", "team", "held").unwrap();
    meta::remove(&mut held, "metadata.finalizers");
    world.update(held).unwrap();
    world.settle();
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
