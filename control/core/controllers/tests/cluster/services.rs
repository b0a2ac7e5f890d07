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

/// A service without a selector and the Endpoints that somebody wrote for it.
fn by_hand(world: &mut World, metadata: Tree, subsets: Tree) {
    world.create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "default"},
        "spec": {"ports": [{"port": 5432}], "clusterIP": "10.43.0.8", "clusterIPs": ["10.43.0.8"]}}));
    write_endpoints(world, metadata, subsets);
}

fn write_endpoints(world: &mut World, mut metadata: Tree, subsets: Tree) {
    metadata["name"] = "db".into();
    metadata["namespace"] = "default".into();
    world.create(json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets}));
}

fn port(name: &str, number: u16) -> Tree {
    json!([{"name": name, "port": number, "protocol": "TCP"}])
}

/// Address type, ports and endpoints of each slice, in order.
fn contents(world: &World) -> Vec<(String, Tree, Tree)> {
    let part = |slice: Tree| {
        (meta::text(&slice, "addressType").to_owned(), slice["ports"].clone(), slice["endpoints"].clone())
    };
    let mut all: Vec<(String, Tree, Tree)> = slices(world).into_iter().map(part).collect();
    all.sort_by_key(|(kind, ports, _)| (kind.clone(), ports.to_string()));
    all
}

#[test]
fn endpoints_written_by_hand_are_mirrored() {
    for seed in 0..5 {
        let mut world = World::new(seed, &["n1"]);
        let subsets = json!([
            {"addresses": [{"ip": "192.0.2.1", "hostname": "a", "nodeName": "n9"}, {"ip": "2001:db8::1"}],
                "notReadyAddresses": [{"ip": "192.0.2.2",
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": "p", "uid": "u"}}],
                "ports": port("sql", 5432)},
            {"addresses": [{"ip": "192.0.2.3"}], "ports": port("web", 80)},
        ]);
        let annotations = json!({"example.com/note": "kept", "kubectl.kubernetes.io/last-applied-configuration": "{}"});
        by_hand(&mut world, json!({"labels": {"team": "a"}, "annotations": annotations}), subsets);
        world.settle();
        let owner = world.get("endpoints", "default", "db").unwrap();
        for slice in slices(&world) {
            let label = |key: &str| meta::label(&slice, key).unwrap_or("").to_owned();
            assert_eq!(label("endpointslice.kubernetes.io/managed-by"), "endpointslicemirroring-controller.k8s.io");
            assert_eq!((label("kubernetes.io/service-name"), label("team")), ("db".into(), "a".into()));
            assert_eq!(slice["metadata"]["annotations"], json!({"example.com/note": "kept"}));
            let controller = meta::controller_of(&slice).unwrap();
            assert_eq!((controller.kind.as_str(), controller.uid.as_str()), ("Endpoints", meta::uid(&owner)));
        }
        let first = json!([
            {"addresses": ["192.0.2.1"], "conditions": {"ready": true}, "hostname": "a", "nodeName": "n9"},
            {"addresses": ["192.0.2.2"], "conditions": {"ready": false},
                "targetRef": {"kind": "Pod", "namespace": "default", "name": "p", "uid": "u"}},
        ]);
        let one = |ip: &str| json!([{"addresses": [ip], "conditions": {"ready": true}}]);
        assert_eq!(
            contents(&world),
            [
                ("IPv4".into(), port("sql", 5432), first),
                ("IPv4".into(), port("web", 80), one("192.0.2.3")),
                ("IPv6".into(), port("sql", 5432), one("2001:db8::1")),
            ]
        );
        // One change rewrites one slice, and nothing is made anew.
        let names = |world: &World| -> BTreeSet<String> {
            slices(world).iter().map(|slice| meta::name(slice).to_owned()).collect()
        };
        let before = names(&world);
        world.forget_counts();
        world.edit("endpoints", "db", |tree| tree["subsets"][1]["addresses"][0]["ip"] = "192.0.2.4".into());
        world.settle();
        assert_eq!(contents(&world)[1].2, one("192.0.2.4"));
        assert_eq!(names(&world), before);
        assert_eq!(world.count("endpointslice-mirroring-controller", "Update"), 1);
        // What is spoiled is put right, and what goes takes its slices along.
        let mut slice = slices(&world).remove(0);
        slice["endpoints"] = json!([]);
        world.update(slice).unwrap();
        world.settle();
        assert_eq!(names(&world), before);
        assert!(contents(&world).iter().all(|(.., endpoints)| endpoints != &json!([])));
        world.edit("endpoints", "db", |tree| tree["subsets"] = json!([]));
        world.settle();
        assert!(slices(&world).is_empty());
        world.edit("endpoints", "db", |tree| {
            tree["subsets"] = json!([{"addresses": [{"ip": "192.0.2.9"}], "ports": port("", 1)}]);
        });
        world.settle();
        assert_eq!(addresses(&world), BTreeSet::from(["192.0.2.9".to_owned()]));
        world.delete("endpoints", "default", "db", Propagation::Background);
        world.settle();
        assert!(slices(&world).is_empty());
    }
}

#[test]
fn endpoints_are_mirrored_only_where_that_is_wanted() {
    const SELECTOR: &str = "app";
    let skip = json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}});
    let leader = json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}});
    for metadata in [skip, leader] {
        let mut world = World::new(1, &["n1"]);
        let subsets = json!([{"addresses": [{"ip": "192.0.2.1"}], "ports": port("", 80)}]);
        by_hand(&mut world, metadata.clone(), subsets.clone());
        world.settle();
        assert!(slices(&world).is_empty(), "{metadata}");
        // It follows when that is taken away, and comes back.
        world.edit("endpoints", "db", |tree| {
            meta::remove(tree, "metadata.labels");
            meta::remove(tree, "metadata.annotations");
        });
        world.settle();
        assert_eq!(slices(&world).len(), 1, "{metadata}");
        world.edit("endpoints", "db", |tree| {
            for (field, value) in metadata.as_object().unwrap() {
                tree["metadata"][field] = value.clone();
            }
        });
        world.settle();
        assert!(slices(&world).is_empty(), "{metadata}");
    }
    // Not without a service, and not for one that has a selector.
    let mut world = World::new(2, &["n1"]);
    let subsets = json!([{"addresses": [{"ip": "192.0.2.1"}], "ports": port("", 80)}]);
    write_endpoints(&mut world, json!({}), subsets);
    world.settle();
    assert!(slices(&world).is_empty());
    world.create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "default"},
        "spec": {"ports": [{"port": 80}]}}));
    world.settle();
    assert_eq!(addresses(&world), BTreeSet::from(["192.0.2.1".to_owned()]));
    world.edit("services", "db", |tree| tree["spec"]["selector"] = json!({SELECTOR: "db"}));
    world.settle();
    assert!(addresses(&world).is_empty());
    let mirrors = slices(&world).into_iter().filter(|slice| {
        meta::label(slice, "endpointslice.kubernetes.io/managed-by") == Some("endpointslicemirroring-controller.k8s.io")
    });
    assert_eq!(mirrors.count(), 0);
    world.edit("services", "db", |tree| {
        meta::remove(tree, "spec.selector");
    });
    world.edit("endpoints", "db", |tree| {
        meta::remove(tree, "metadata.labels");
        tree["subsets"] = json!([{"addresses": [{"ip": "192.0.2.7"}], "ports": port("", 80)}]);
    });
    world.settle();
    assert_eq!(addresses(&world), BTreeSet::from(["192.0.2.7".to_owned()]));
    world.delete("services", "default", "db", Propagation::Background);
    world.settle();
    assert!(slices(&world).is_empty(), "its service is gone");
    assert!(world.get("endpoints", "default", "db").is_some());
}

#[test]
fn too_many_addresses_are_left_out_and_told() {
    let mut world = World::new(3, &["n1"]);
    let many: Vec<Tree> = (0..1003).map(|n| json!({"ip": format!("192.0.{}.{}", n / 250, n % 250)})).collect();
    by_hand(&mut world, json!({}), json!([{"addresses": many, "ports": port("", 80)}]));
    world.settle();
    let sizes: Vec<usize> = slices(&world).iter().map(|slice| meta::list(slice, "endpoints").len()).collect();
    assert_eq!(sizes, [1000]);
    let message = "A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. \
                   3 addresses were skipped";
    assert_eq!(world.events("TooManyAddressesToMirror"), [message]);
}
