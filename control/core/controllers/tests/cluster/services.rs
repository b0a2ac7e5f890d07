//! EndpointSlices and Endpoints.

use crate::world::{World, deployment, pod};
use dhow_api::{Tree, meta};
use dhow_controllers::Propagation;
use serde_json::json;
use std::collections::BTreeSet;

fn service(name: &str, app: &str, port: Tree) -> Tree {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default",
        "labels": {"team": "a"}}, "spec": {"selector": {"app": app}, "ports": [port], "clusterIP": "10.43.0.7",
        "clusterIPs": ["10.43.0.7"]}})
}

fn slices(world: &World) -> Vec<Tree> {
    world.list("endpointslices.discovery.k8s.io")
}

fn addresses(world: &World) -> BTreeSet<String> {
    let slices = slices(world);
    let endpoints = slices.iter().flat_map(|slice| meta::list(slice, "endpoints"));
    endpoints
        .filter(|endpoint| meta::truth(endpoint, "conditions.ready"))
        .map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_service_leads_to_the_ready_pods_by_named_port() {
    for seed in 0..5 {
        let mut world = World::new(seed, &["n1"]);
        world.create(service("web", "web", json!({"name": "http", "port": 80, "targetPort": "http"})));
        world.settle();
        assert_eq!(slices(&world).len(), 1, "a slice without endpoints");
        world.create(deployment("web", 3, "web:1", json!({})));
        world.settle();
        let slices = slices(&world);
        assert_eq!(slices.len(), 1);
        let slice = &slices[0];
        assert_eq!(meta::label(slice, "kubernetes.io/service-name"), Some("web"));
        assert_eq!(meta::label(slice, "team"), Some("a"));
        assert_eq!(
            meta::label(slice, "endpointslice.kubernetes.io/managed-by"),
            Some("endpointslice-controller.k8s.io")
        );
        assert_eq!(slice["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
        let pods: BTreeSet<String> =
            world.pods().iter().map(|pod| meta::text(pod, "status.podIP").to_owned()).collect();
        assert_eq!(addresses(&world), pods);
        let endpoints = world.get("endpoints", "default", "web").unwrap();
        assert_eq!(meta::list(&endpoints["subsets"][0], "addresses").len(), 3);
        assert_eq!(endpoints["subsets"][0]["ports"], json!([{"port": 8080, "protocol": "TCP", "name": "http"}]));
    }
}

#[test]
fn what_is_not_ready_or_going_does_not_serve() {
    let mut world = World::new(2, &["n1"]);
    world.broken_images.insert("web:bad".into());
    world.create(service("web", "web", json!({"port": 80, "targetPort": 8080})));
    world.create(deployment("web", 2, "web:bad", json!({})));
    world.create(pod("good", "web", json!({})));
    world.settle();
    let good = world.get("pods", "default", "good").unwrap();
    assert_eq!(addresses(&world), BTreeSet::from([meta::text(&good, "status.podIP").to_owned()]));
    let endpoints = world.get("endpoints", "default", "web").unwrap();
    assert_eq!(meta::list(&endpoints["subsets"][0], "notReadyAddresses").len(), 2);
    // The agent of the node is gone, so that the pod stays on its way out.
    world.dead.insert("n1".into());
    world.delete("pods", "default", "good", Propagation::Background);
    world.pass(2_000);
    assert!(addresses(&world).is_empty());
    let slice = &slices(&world)[0];
    let going = meta::list(slice, "endpoints").iter().find(|one| meta::truth(one, "conditions.terminating")).unwrap();
    assert!(meta::truth(going, "conditions.serving"));
    world.edit("services", "web", |tree| tree["spec"]["publishNotReadyAddresses"] = true.into());
    world.pass(2_000);
    assert_eq!(addresses(&world).len(), 3);
}

#[test]
fn slices_are_bounded_and_one_change_rewrites_one() {
    let mut world = World::new(3, &["n1"]);
    world.create(service("web", "web", json!({"port": 80, "targetPort": 8080})));
    world.create(deployment("web", 250, "web:1", json!({})));
    world.settle();
    let mut sizes: Vec<usize> = slices(&world).iter().map(|slice| meta::list(slice, "endpoints").len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes.iter().sum::<usize>(), 250);
    assert_eq!(sizes.len(), 3);
    assert!(sizes.iter().all(|size| *size <= 100));
    world.forget_counts();
    let victim = meta::name(&world.pods()[17]).to_owned();
    world.delete("pods", "default", &victim, Propagation::Background);
    world.settle();
    assert_eq!(addresses(&world).len(), 250);
    let writes = world.count("endpointslice-controller", "Update");
    assert!(writes <= 4, "{writes} slices rewritten for one pod");
    assert_eq!(world.count("endpointslice-controller", "Create"), 0);
}

#[test]
fn a_deleted_service_leaves_nothing() {
    let mut world = World::new(4, &["n1"]);
    world.create(service("web", "web", json!({"port": 80})));
    world.create(pod("good", "web", json!({})));
    world.settle();
    assert!(world.get("endpoints", "default", "web").is_some());
    world.delete("services", "default", "web", Propagation::Background);
    world.settle();
    assert!(slices(&world).is_empty());
    assert!(world.get("endpoints", "default", "web").is_none());
}

#[test]
fn a_slice_that_somebody_spoiled_is_put_right() {
    let mut world = World::new(5, &["n1"]);
    world.create(service("web", "web", json!({"port": 80, "targetPort": 8080})));
    world.create(pod("good", "web", json!({})));
    world.settle();
    let mut slice = slices(&world).remove(0);
    slice["endpoints"] = json!([]);
    world.update(slice).unwrap();
    world.settle();
    assert_eq!(addresses(&world).len(), 1);
}
