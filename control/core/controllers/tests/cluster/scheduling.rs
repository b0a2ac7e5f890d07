//! Where pods go.

use crate::world::{World, deployment, pod, reason};
use dhow_api::{Tree, meta};
use dhow_controllers::Propagation;
use dhow_state::State;
use serde_json::json;
use std::collections::BTreeMap;

fn requests(cpu: &str, memory: &str) -> Tree {
    json!({"containers": [{"name": "main", "image": "web:1", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]})
}

fn node_of(world: &World, name: &str) -> String {
    meta::text(&world.get("pods", "default", name).unwrap(), "spec.nodeName").to_owned()
}

fn why_not(world: &World, name: &str) -> String {
    let pod = world.get("pods", "default", name).unwrap();
    assert_eq!(reason(&pod, "PodScheduled"), "Unschedulable", "{name}");
    let condition = meta::list(&pod, "status.conditions").iter().find(|one| meta::text(one, "type") == "PodScheduled");
    let message = meta::text(condition.unwrap(), "message").to_owned();
    assert!(world.events("FailedScheduling").contains(&message));
    message
}

/// Two nodes of four processors: `a` is labelled and `b` tainted.
fn two_nodes(seed: u64) -> World {
    let mut world = World::new(seed, &["a", "b"]);
    world.edit("nodes", "a", |tree| meta::set_label(tree, "disk", "fast"));
    world.edit("nodes", "b", |tree| {
        tree["spec"]["taints"] = json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]);
    });
    world.settle();
    world
}

#[test]
fn a_pod_goes_where_the_rules_let_it_go() {
    let affinity = |operator: &str, values: Tree| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
            [{"matchExpressions": [{"key": "disk", "operator": operator, "values": values}]}]}}}})
    };
    let tolerating = json!({"tolerations": [{"key": "dedicated", "operator": "Equal", "value": "db",
        "effect": "NoSchedule"}], "nodeSelector": {"kubernetes.io/hostname": "b"}});
    let cases: [(&str, Tree, Result<&str, &str>); 9] = [
        ("plain", json!({}), Ok("a")),
        ("tolerating", tolerating, Ok("b")),
        ("fast", json!({"nodeSelector": {"disk": "fast"}}), Ok("a")),
        ("in", affinity("In", json!(["fast", "slow"])), Ok("a")),
        (
            "not-in",
            affinity("NotIn", json!(["fast"])),
            Err(
                "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {dedicated: db}.",
            ),
        ),
        (
            "slow",
            json!({"nodeSelector": {"disk": "slow"}, "tolerations": [{"operator": "Exists"}]}),
            Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
        ),
        (
            "big",
            requests("5", "1Gi"),
            Err("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {dedicated: db}."),
        ),
        (
            "huge",
            requests("5", "9Gi"),
            Err(
                "0/2 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) had untolerated taint {dedicated: db}.",
            ),
        ),
        ("fits", requests("4", "8Gi"), Ok("a")),
    ];
    for (name, spec, wanted) in cases {
        let mut world = two_nodes(1);
        world.create(pod(name, name, spec));
        world.settle();
        match wanted {
            Ok(node) => assert_eq!(node_of(&world, name), node, "{name}"),
            Err(message) => assert_eq!(why_not(&world, name), message),
        }
    }
}

#[test]
fn no_node_is_ever_overbooked() {
    fn booked(state: &State) {
        let mut cpu: BTreeMap<String, i64> = BTreeMap::new();
        for pod in state.list("pods", None) {
            let node = pod.index.field("spec.nodeName").unwrap();
            if !node.is_empty() {
                *cpu.entry(node.to_owned()).or_default() += 300;
            }
        }
        assert!(cpu.values().all(|used| *used <= 4000), "overbooked: {cpu:?}");
    }
    for seed in 0..4 {
        let mut world = World::new(seed, &["a", "b", "c"]);
        world.invariant = Some(booked);
        let mut tree = deployment("web", 60, "web:1", json!({}));
        tree["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "300m"}});
        world.create(tree);
        world.stumble(500);
        world.settle();
        let bound = world.pods().iter().filter(|pod| !meta::text(pod, "spec.nodeName").is_empty()).count();
        assert_eq!(bound, 39, "thirteen to a node");
        // Room that becomes free is used.
        let victim = world.pods().into_iter().find(|pod| !meta::text(pod, "spec.nodeName").is_empty()).unwrap();
        world.delete("pods", "default", meta::name(&victim), Propagation::Background);
        world.pass(20_000);
        let bound = world.pods().iter().filter(|pod| !meta::text(pod, "spec.nodeName").is_empty()).count();
        assert_eq!(bound, 39, "seed {seed}");
    }
}

#[test]
fn replicas_are_spread_over_equal_nodes() {
    let mut world = World::new(3, &["a", "b", "c"]);
    world.create(deployment("web", 9, "web:1", json!({})));
    world.settle();
    for node in ["a", "b", "c"] {
        let here = world.pods().iter().filter(|pod| meta::text(pod, "spec.nodeName") == node).count();
        assert_eq!(here, 3, "{node}");
    }
}

#[test]
fn a_full_node_says_so_and_a_new_one_helps() {
    let mut world = World::new(4, &[]);
    world.create(pod("early", "early", json!({})));
    world.settle();
    assert_eq!(why_not(&world, "early"), "no nodes available to schedule pods");
    world.add_node("small", json!({"cpu": "4", "memory": "8Gi", "pods": "1"}));
    world.pass(20_000);
    assert_eq!(node_of(&world, "early"), "small");
    world.create(pod("late", "late", json!({})));
    world.settle();
    assert_eq!(why_not(&world, "late"), "0/1 nodes are available: 1 Too many pods.");
    world.delete("pods", "default", "early", Propagation::Background);
    world.pass(20_000);
    assert_eq!(node_of(&world, "late"), "small");
}

#[test]
fn higher_priority_goes_first_and_others_schedulers_pods_are_left_alone() {
    let mut world = World::new(5, &[]);
    world.create(pod("low", "low", json!({})));
    let mut high = pod("high", "high", json!({}));
    high["spec"]["priority"] = 100.into();
    world.create(high);
    world.create(pod("foreign", "foreign", json!({"schedulerName": "mine"})));
    world.settle();
    world.add_node("small", json!({"cpu": "4", "memory": "8Gi", "pods": "1"}));
    world.pass(20_000);
    assert_eq!(node_of(&world, "high"), "small");
    assert_eq!(node_of(&world, "low"), "");
    assert_eq!(reason(&world.get("pods", "default", "foreign").unwrap(), "PodScheduled"), "");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let run = |seed| {
        let mut world = World::new(seed, &["a", "b", "c"]);
        world.create(deployment("web", 7, "web:1", json!({})));
        world.settle();
        world.state.hash()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
