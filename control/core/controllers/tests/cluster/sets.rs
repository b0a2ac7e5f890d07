//! ReplicaSets.

use crate::world::{World, condition, numbers, pod, replica_set};
use dhow_api::meta;
use dhow_controllers::Propagation;
use serde_json::json;

#[test]
fn a_thousand_pods_come_in_few_rounds_and_few_status_writes() {
    let mut world = World::new(1, &["n1"]);
    world.edit("nodes", "n1", |_| {});
    world.create(replica_set("many", 1000, "web:1"));
    world.settle();
    assert_eq!(world.pods().len(), 1000);
    let set = world.get("replicasets.apps", "default", "many").unwrap();
    assert_eq!(numbers(&set), [1000, 0, 1000, 1000]);
    assert_eq!(world.count("replicaset-controller", "Create"), 1000);
    let writes = world.count("replicaset-controller", "UpdateStatus");
    assert!(writes <= 30, "{writes} status writes");
    assert!(world.events("SuccessfulCreate").len() <= 11, "a flood is combined");
}

#[test]
fn never_more_pods_than_asked_for() {
    for seed in 0..20 {
        let mut world = World::new(seed, &["n1", "n2"]);
        world.invariant = Some(|state| assert!(state.count("pods", None) <= 7));
        world.create(replica_set("web", 7, "web:1"));
        world.stumble(200);
        for pod in world.pods().iter().take(2) {
            world.delete("pods", "default", meta::name(pod), Propagation::Background);
        }
        world.invariant = None;
        world.settle();
        assert_eq!(world.pods().len(), 7);
        world.edit("replicasets.apps", "web", |tree| tree["spec"]["replicas"] = 3.into());
        world.stumble(50);
        world.settle();
        assert_eq!(world.pods().len(), 3);
        let created = world.count("replicaset-controller", "Create");
        assert_eq!(created, 9, "seven, and one for each that was deleted");
        assert_eq!(world.count("replicaset-controller", "Delete"), 4);
    }
}

#[test]
fn pods_are_adopted_and_released_by_label() {
    let mut world = World::new(4, &["n1"]);
    world.create(pod("stray", "web", json!({})));
    world.settle();
    world.create(replica_set("web", 2, "web:1"));
    world.settle();
    assert_eq!(world.pods().len(), 2);
    let set = world.get("replicasets.apps", "default", "web").unwrap();
    let stray = world.get("pods", "default", "stray").unwrap();
    assert_eq!(meta::controller_of(&stray).unwrap().uid, meta::uid(&set));
    world.edit("pods", "stray", |tree| meta::set_label(tree, "app", "debug"));
    world.settle();
    let stray = world.get("pods", "default", "stray").unwrap();
    assert!(meta::owner_refs(&stray).is_empty());
    assert_eq!(world.pods().len(), 3);
}

#[test]
fn ended_pods_are_replaced() {
    let mut world = World::new(5, &["n1"]);
    world.create(replica_set("web", 2, "web:1"));
    world.settle();
    let mut victim = world.pods().remove(0);
    meta::set(&mut victim, "status.phase", "Failed");
    world.dead.insert("n1".into());
    world.update_status(victim).unwrap();
    world.drain();
    assert_eq!(world.pods().len(), 3);
}

#[test]
fn refused_pods_are_told_about_and_tried_again() {
    let mut world = World::new(6, &["n1"]);
    world.refuse_pods = Some("exceeded quota".into());
    world.create(replica_set("web", 50, "web:1"));
    world.settle();
    let set = world.get("replicasets.apps", "default", "web").unwrap();
    assert_eq!(condition(&set, "ReplicaFailure"), "True");
    assert_eq!(world.events("FailedCreate"), ["Error creating: exceeded quota"]);
    assert!(world.count("replicaset-controller", "Create") < 70, "one pod tries the way for the others");
    world.refuse_pods = None;
    world.pass(60_000);
    assert_eq!(world.pods().len(), 50);
    let set = world.get("replicasets.apps", "default", "web").unwrap();
    assert_eq!(condition(&set, "ReplicaFailure"), "");
}
