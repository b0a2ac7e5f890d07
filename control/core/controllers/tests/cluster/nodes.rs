//! Nodes that are lost, come back, or never were.

use crate::world::{World, condition, deployment, pod, reason};
use dhow_api::{Tree, meta};
use dhow_controllers::Propagation;
use serde_json::json;
use std::collections::BTreeSet;

fn taints(node: &Tree) -> Vec<String> {
    let taint = |taint: &Tree| format!("{}:{}", meta::text(taint, "key"), meta::text(taint, "effect"));
    meta::list(node, "spec.taints").iter().map(taint).collect()
}

fn on(world: &World, node: &str) -> Vec<Tree> {
    world.pods().into_iter().filter(|pod| meta::text(pod, "spec.nodeName") == node).collect()
}

#[test]
fn each_node_gets_its_own_range() {
    let mut world = World::new(1, &["n1", "n2", "n3"]);
    world.settle();
    world.add_node("n4", json!({"cpu": "1", "memory": "1Gi", "pods": "10"}));
    world.settle();
    let ranges: BTreeSet<String> =
        world.list("nodes").iter().map(|node| meta::text(node, "spec.podCIDR").to_owned()).collect();
    let wanted = ["10.64.0.0/18", "10.64.64.0/18", "10.64.128.0/18", "10.64.192.0/18"];
    assert_eq!(ranges, wanted.map(str::to_owned).into());
    world.delete("nodes", "", "n2", Propagation::Background);
    world.add_node("n5", json!({"cpu": "1", "memory": "1Gi", "pods": "10"}));
    world.settle();
    assert!(ranges.contains(meta::text(&world.get("nodes", "", "n5").unwrap(), "spec.podCIDR")));
}

#[test]
fn a_lost_node_is_marked_and_its_pods_move_after_their_toleration() {
    let mut world = World::new(2, &["n1", "n2"]);
    world.create(deployment("web", 4, "web:1", json!({})));
    world.settle();
    assert_eq!(on(&world, "n2").len(), 2);
    world.dead.insert("n2".into());
    world.pass(30_000);
    assert_eq!(condition(&world.get("nodes", "", "n2").unwrap(), "Ready"), "True");
    world.pass(25_000);
    let node = world.get("nodes", "", "n2").unwrap();
    assert_eq!(condition(&node, "Ready"), "Unknown");
    assert_eq!(reason(&node, "Ready"), "NodeStatusUnknown");
    let unreachable = "node.kubernetes.io/unreachable";
    assert_eq!(taints(&node), [format!("{unreachable}:NoSchedule"), format!("{unreachable}:NoExecute")]);
    assert!(on(&world, "n2").iter().all(|pod| condition(pod, "Ready") == "False"));
    let web = world.get("deployments.apps", "default", "web").unwrap();
    assert_eq!(meta::int(&web, "status.availableReplicas"), Some(2));
    // Nothing is torn down early; after five minutes the pods are replaced elsewhere.
    world.pass(200_000);
    assert!(on(&world, "n2").iter().all(|pod| !meta::is_deleting(pod)));
    world.pass(110_000);
    assert!(on(&world, "n2").iter().all(meta::is_deleting));
    assert_eq!(on(&world, "n1").len(), 4);
    // The agent comes back, ends what it was told to end, and the node serves again.
    world.dead.remove("n2");
    let mut node = world.get("nodes", "", "n2").unwrap();
    node["status"]["conditions"][0]["status"] = "True".into();
    world.update_status(node).unwrap();
    world.settle();
    assert_eq!(taints(&world.get("nodes", "", "n2").unwrap()), Vec::<String>::new());
    assert_eq!(condition(&world.get("nodes", "", "n2").unwrap(), "Ready"), "True");
    assert!(on(&world, "n2").is_empty());
}

#[test]
fn a_node_that_is_short_of_something_gets_no_more_pods() {
    let mut world = World::new(7, &["n1", "n2"]);
    world.settle();
    let mut short = |condition: Option<&str>| {
        let mut node = world.get("nodes", "", "n1").unwrap();
        let ready = json!({"type": "Ready", "status": "True"});
        let other = condition.map(|name| json!({"type": name, "status": "True"}));
        node["status"]["conditions"] = [ready].into_iter().chain(other).collect::<Vec<_>>().into();
        world.update_status(node).unwrap();
        world.settle();
        taints(&world.get("nodes", "", "n1").unwrap())
    };
    assert_eq!(short(Some("DiskPressure")), ["node.kubernetes.io/disk-pressure:NoSchedule"]);
    assert_eq!(short(None), Vec::<String>::new());
    assert_eq!(short(Some("MemoryPressure")), ["node.kubernetes.io/memory-pressure:NoSchedule"]);
    world.create(deployment("web", 4, "web:1", json!({})));
    world.settle();
    assert_eq!((on(&world, "n1").len(), on(&world, "n2").len()), (0, 4));
}

#[test]
fn a_control_plane_that_slept_presumes_nobody_dead() {
    let mut world = World::new(6, &["n1", "n2"]);
    world.create(deployment("web", 2, "web:1", json!({})));
    world.settle();
    world.dead.insert("n2".into());
    world.now = world.now + 3_600_000;
    world.pass(30_000);
    for node in world.list("nodes") {
        assert_eq!(condition(&node, "Ready"), "True");
    }
    // One that stays silent after we are awake again is lost all the same.
    world.pass(20_000);
    assert_eq!(condition(&world.get("nodes", "", "n1").unwrap(), "Ready"), "True");
    assert_eq!(condition(&world.get("nodes", "", "n2").unwrap(), "Ready"), "Unknown");
}

#[test]
fn pods_stay_as_long_as_they_tolerate_it() {
    let key = "example.com/broken";
    for (tolerations, gone_after_s) in [
        (json!([]), Some(0)),
        (json!([{"key": key, "operator": "Exists"}]), None),
        (json!([{"key": key, "operator": "Equal", "value": "other"}]), Some(0)),
        (json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]), Some(60)),
    ] {
        let mut world = World::new(3, &["n1"]);
        world.create(pod("p", "p", json!({"tolerations": tolerations})));
        world.settle();
        world.edit("nodes", "n1", |tree| {
            tree["spec"]["taints"] = json!([{"key": key, "value": "yes", "effect": "NoExecute", "timeAdded": null}]);
        });
        let (early, late) = gone_after_s.map_or((200, 0), |seconds| (u64::max(seconds, 10) - 10, 20));
        world.pass(early * 1000);
        let there = world.get("pods", "default", "p").is_some();
        assert!(there || gone_after_s == Some(0), "{tolerations} after {early} s");
        if gone_after_s.is_some() {
            world.pass(late * 1000);
            assert!(world.get("pods", "default", "p").is_none(), "{tolerations} after {late} s more");
        }
    }
}

#[test]
fn pods_of_a_node_that_is_gone_are_given_up() {
    let mut world = World::new(4, &["n1"]);
    world.create(pod("p", "p", json!({})));
    world.create(pod("q", "q", json!({"nodeName": "never-was"})));
    world.settle();
    world.dead.insert("n1".into());
    world.delete("nodes", "", "n1", Propagation::Background);
    world.settle();
    assert_eq!(world.pods().len(), 2);
    world.pass(60_000);
    assert_eq!(world.pods().len(), 0);
}

#[test]
fn a_cordoned_node_keeps_its_pods_and_gets_no_more() {
    let mut world = World::new(5, &["n1", "n2"]);
    world.create(deployment("web", 2, "web:1", json!({})));
    world.settle();
    world.edit("nodes", "n1", |tree| tree["spec"]["unschedulable"] = true.into());
    world.edit("deployments.apps", "web", |tree| tree["spec"]["replicas"] = 6.into());
    world.settle();
    assert_eq!((on(&world, "n1").len(), on(&world, "n2").len()), (1, 5));
    assert_eq!(taints(&world.get("nodes", "", "n1").unwrap()), ["node.kubernetes.io/unschedulable:NoSchedule"]);
    world.edit("nodes", "n1", |tree| tree["spec"]["unschedulable"] = false.into());
    world.settle();
    assert!(taints(&world.get("nodes", "", "n1").unwrap()).is_empty());
}
