//! A change of leader: controllers begin anew on another control node, from the state alone.

use crate::rollouts::{rolling, set_image, within_limits};
use crate::world::{World, condition, deployment, numbers, pod};
use dhow_api::{Tree, meta};
use dhow_controllers::Propagation;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

fn ready(world: &World, node: &str) -> String {
    condition(&world.get("nodes", "", node).unwrap(), "Ready")
}

/// A world in which nothing is left to do, though not everything is well.
fn settled(seed: u64) -> World {
    let mut world = World::new(seed, &["n1", "n2", "n3"]);
    world.create(deployment("web", 3, "web:1", json!({})));
    world.create(deployment("old", 0, "web:1", json!({})));
    let mut slow = deployment("slow", 2, "web:2", json!({}));
    slow["spec"]["minReadySeconds"] = 5.into();
    world.create(slow);
    world.broken_images.insert("web:bad".into());
    let mut stuck = deployment("stuck", 2, "web:bad", json!({}));
    stuck["spec"]["progressDeadlineSeconds"] = 30.into();
    world.create(stuck);
    world.create(pod("nowhere", "a", json!({"nodeSelector": {"no": "node"}})));
    world.create(pod("alone", "a", json!({})));
    for (name, selector) in [("web", json!({"app": "web"})), ("db", json!({}))] {
        world.create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": selector, "ports": [{"port": 80}]}}));
    }
    world.create(json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db", "namespace": "default"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 1, "protocol": "TCP"}]}]}));
    world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}));
    world.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "namespace": "team",
        "finalizers": ["example.com/wait"]}}));
    world.settle();
    world.delete("namespaces", "", "team", Propagation::Background);
    world.edit("nodes", "n2", |tree| tree["spec"]["unschedulable"] = true.into());
    world.dead.insert("n3".into());
    world.pass(700_000);
    assert_eq!(ready(&world, "n3"), "Unknown");
    world
}

#[test]
fn in_a_settled_world_a_new_leader_has_nothing_to_write() {
    for seed in 0..2 {
        let mut world = settled(seed);
        world.forget_counts();
        world.change_leader();
        world.pass(200_000);
        assert_eq!(world.counts, BTreeMap::new(), "seed {seed}");
    }
}

#[test]
fn grace_counts_from_the_start_of_a_new_leader() {
    for seed in 0..2 {
        let mut world = World::new(seed, &["n1", "n2", "n3"]);
        world.create(deployment("web", 6, "web:1", json!({})));
        world.create(pod("p", "p", json!({"nodeName": "never-was"})));
        world.settle();
        // Nobody led for an hour. The agents find the new leader after some time, but for one that does not.
        world.now = world.now + 3_600_000;
        world.dead.extend(["n1", "n2", "n3"].map(str::to_owned));
        world.forget_counts();
        world.change_leader();
        world.pass(30_000);
        world.dead = BTreeSet::from(["n3".to_owned()]);
        world.pass(9_000);
        for node in ["n1", "n2", "n3"] {
            assert_eq!(ready(&world, node), "True", "{node} after 39 s with seed {seed}");
        }
        assert!(world.get("pods", "default", "p").is_some(), "its node may only be registering anew");
        assert_eq!(world.counts, BTreeMap::new(), "seed {seed}");
        world.pass(5_000);
        assert_eq!(["n1", "n2", "n3"].map(|node| ready(&world, node)), ["True", "True", "Unknown"]);
        assert!(world.get("pods", "default", "p").is_none());
        // A lost node stays lost, and its pods go when they would have gone, whoever leads.
        world.pass(150_000);
        world.change_leader();
        world.pass(140_000);
        let on = |world: &World| -> Vec<Tree> {
            world.pods().into_iter().filter(|pod| meta::text(pod, "spec.nodeName") == "n3").collect()
        };
        assert!(on(&world).iter().all(|pod| !meta::is_deleting(pod)));
        world.pass(20_000);
        assert!(!on(&world).is_empty() && on(&world).iter().all(meta::is_deleting), "seed {seed}");
        assert_eq!(ready(&world, "n3"), "Unknown");
        assert_eq!(world.events("NodeNotReady").iter().filter(|message| message.contains("n3")).count(), 1);
    }
}

/// Each thing that happened once is told at most once.
fn nothing_is_told_twice(world: &World) {
    for reason in ["SuccessfulCreate", "SuccessfulDelete", "Scheduled", "ScalingReplicaSet"] {
        let told = world.events(reason);
        let different: BTreeSet<&String> = told.iter().collect();
        assert_eq!(different.len(), told.len(), "{told:?}");
    }
    for event in world.list("events") {
        assert_eq!(event["count"], 1, "{event}");
    }
}

/// Rolls a deployment of four out three times while leaders come and go.
fn rollouts(world: &mut World) {
    world.create(deployment("web", 4, "web:1", rolling(json!("25%"), json!(1))));
    for _ in 0..4 {
        world.stumble(10);
        world.change_leader();
    }
    world.settle();
    world.edit("deployments.apps", "web", |tree| meta::set_annotation(tree, "test/updating", "yes"));
    for (image, steps) in [("web:2", 40), ("web:3", 15)] {
        set_image(world, image);
        for _ in 0..10 {
            world.stumble(steps);
            world.change_leader();
        }
        world.settle();
    }
    let web = world.get("deployments.apps", "default", "web").unwrap();
    assert_eq!(numbers(&web), [4, 4, 4, 4]);
    assert_eq!(meta::annotation(&web, "deployment.kubernetes.io/revision"), Some("3"));
    assert_eq!((world.list("replicasets.apps").len(), world.pods().len()), (3, 4));
}

#[test]
fn a_rollout_goes_on_exactly_under_any_number_of_leaders() {
    for seed in 0..8 {
        let mut world = World::new(seed, &["n1", "n2"]);
        world.invariant = Some(within_limits);
        rollouts(&mut world);
        // Four pods of each image and none besides.
        assert_eq!(world.made.len(), 12, "seed {seed}: {:?}", world.made);
        nothing_is_told_twice(&world);
    }
}

#[test]
fn what_a_former_leader_still_writes_is_put_right() {
    for seed in 0..6 {
        let mut world = World::new(seed, &["n1", "n2"]);
        world.late_writes = true;
        rollouts(&mut world);
    }
}
