//! Claims, volumes, and the pods that wait for them.

use crate::world::{World, pod, reason};
use dhow_api::{Tree, meta};
use dhow_controllers::Propagation;
use dhow_state::State;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

fn class(name: &str, mode: &str, provisioner: &str) -> Tree {
    json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": provisioner, "volumeBindingMode": mode})
}

fn claim(name: &str, spec: Tree) -> Tree {
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    for (field, value) in spec.as_object().unwrap() {
        claim["spec"][field] = value.clone();
    }
    claim
}

/// A volume of the host that was made by hand.
fn by_hand(name: &str, size: &str, spec: Tree) -> Tree {
    let mut volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/mnt"}}});
    for (field, value) in spec.as_object().unwrap() {
        volume["spec"][field] = value.clone();
    }
    volume
}

fn on(node: &str) -> Tree {
    json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}})
}

fn mounting(name: &str, claim: &str) -> Tree {
    pod(name, name, json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}))
}

/// Three nodes, and the classes that tests use.
fn world(seed: u64) -> World {
    let mut world = World::new(seed, &["a", "b", "c"]);
    world.create(class("local", "WaitForFirstConsumer", "dhow.dev/local"));
    world.create(class("now", "Immediate", "dhow.dev/local"));
    world.create(class("hand", "WaitForFirstConsumer", "kubernetes.io/no-provisioner"));
    world.settle();
    world
}

fn node_of(world: &World, name: &str) -> String {
    meta::text(&world.get("pods", "default", name).unwrap(), "spec.nodeName").to_owned()
}

/// Phase and volume of a claim.
fn state_of(world: &World, name: &str) -> (String, String) {
    let claim = world.get("persistentvolumeclaims", "default", name).unwrap();
    (meta::text(&claim, "status.phase").to_owned(), meta::text(&claim, "spec.volumeName").to_owned())
}

fn phase(world: &World, volume: &str) -> String {
    let volume = world.get("persistentvolumes", "", volume);
    volume.map_or_else(String::new, |volume| meta::text(&volume, "status.phase").to_owned())
}

fn node_of_volume(volume: &Tree) -> String {
    let terms = meta::list(volume, "spec.nodeAffinity.required.nodeSelectorTerms");
    terms[0]["matchExpressions"][0]["values"][0].as_str().unwrap().to_owned()
}

/// The agents remove the content of deleted volumes.
fn empty_volumes(world: &mut World) {
    for mut volume in world.list("persistentvolumes") {
        if meta::is_deleting(&volume) && !world.dead.contains(&node_of_volume(&volume)) {
            let kept: Vec<Tree> = meta::finalizers(&volume)
                .into_iter()
                .filter(|one| *one != "dhow.dev/local-volume")
                .map(Tree::from)
                .collect();
            meta::set(&mut volume, "metadata.finalizers", kept);
            world.update(volume).unwrap();
        }
    }
    world.settle();
}

#[test]
fn a_claim_waits_for_its_first_consumer_and_lives_on_without_it() {
    for seed in 0..4 {
        let mut world = world(seed);
        world.create(claim("data", json!({"storageClassName": "local"})));
        world.settle();
        assert_eq!(state_of(&world, "data").0, "Pending");
        let waits = world.events("WaitForFirstConsumer");
        assert_eq!(waits, ["waiting for first consumer to be created before binding"]);

        world.create(mounting("first", "data"));
        world.settle();
        let node = node_of(&world, "first");
        let (phase_now, name) = state_of(&world, "data");
        assert_eq!((phase_now.as_str(), phase(&world, &name).as_str()), ("Bound", "Bound"), "seed {seed}");
        let volume = world.get("persistentvolumes", "", &name).unwrap();
        assert_eq!(node_of_volume(&volume), node);
        assert_eq!(volume["spec"]["csi"], json!({"driver": "dhow.dev/local", "volumeHandle": name}));
        assert_eq!(meta::text(&volume, "spec.persistentVolumeReclaimPolicy"), "Delete");
        let claim = world.get("persistentvolumeclaims", "default", "data").unwrap();
        assert_eq!(claim["status"]["capacity"], json!({"storage": "1Gi"}));
        assert_eq!(meta::annotation(&claim, "volume.kubernetes.io/storage-provisioner"), Some("dhow.dev/local"));

        // Deleted while it is used: it stays until the pod is gone.
        world.delete("persistentvolumeclaims", "default", "data", Propagation::Background);
        world.settle();
        assert_eq!(state_of(&world, "data").0, "Bound");
        world.delete("pods", "default", "first", Propagation::Background);
        world.settle();
        assert!(world.get("persistentvolumeclaims", "default", "data").is_none(), "seed {seed}");
        assert!(meta::is_deleting(&world.get("persistentvolumes", "", &name).unwrap()));
        empty_volumes(&mut world);
        assert_eq!(phase(&world, &name), "", "seed {seed}");
    }
}

#[test]
fn pods_follow_their_data() {
    let mut world = world(5);
    world.create(claim("data", json!({"storageClassName": "local"})));
    world.create(mounting("first", "data"));
    world.settle();
    let node = node_of(&world, "first");
    for round in 0..4 {
        let name = format!("next{round}");
        world.create(mounting(&name, "data"));
        world.settle();
        assert_eq!(node_of(&world, &name), node);
    }
    world.edit("nodes", &node, |tree| tree["spec"]["unschedulable"] = true.into());
    world.create(mounting("late", "data"));
    world.settle();
    assert_eq!(
        why_not(&world, "late"),
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) had volume node affinity conflict."
    );
    world.edit("nodes", &node, |tree| drop(meta::remove(tree, "spec.unschedulable")));
    world.pass(20_000);
    assert_eq!(node_of(&world, "late"), node);
}

fn why_not(world: &World, name: &str) -> String {
    let pod = world.get("pods", "default", name).unwrap();
    assert_eq!(reason(&pod, "PodScheduled"), "Unschedulable", "{name}");
    let condition = meta::list(&pod, "status.conditions").iter().find(|one| meta::text(one, "type") == "PodScheduled");
    let message = meta::text(condition.unwrap(), "message").to_owned();
    assert!(world.events("FailedScheduling").contains(&message));
    message
}

#[test]
fn a_pod_that_cannot_have_its_volumes_says_why() {
    let none = "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind.";
    let cases: [(&str, Vec<Tree>, &str); 5] = [
        ("missing", vec![], "0/3 nodes are available: persistentvolumeclaim \"data\" not found."),
        (
            "immediate",
            vec![claim("data", json!({"storageClassName": ""}))],
            "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
        ),
        ("by hand", vec![claim("data", json!({"storageClassName": "hand"}))], none),
        (
            "elsewhere",
            vec![
                by_hand("d1", "1Gi", json!({"storageClassName": "hand", "nodeAffinity": on("z")})),
                claim("data", json!({"storageClassName": "hand"})),
            ],
            none,
        ),
        (
            "bound elsewhere",
            vec![
                by_hand("d1", "1Gi", json!({"nodeAffinity": on("z")})),
                claim("data", json!({"storageClassName": ""})),
            ],
            "0/3 nodes are available: 3 node(s) had volume node affinity conflict.",
        ),
    ];
    for (name, objects, wanted) in cases {
        let mut world = world(1);
        for object in objects {
            world.create(object);
        }
        world.settle();
        world.create(mounting("p", "data"));
        world.settle();
        assert_eq!(why_not(&world, "p"), wanted, "{name}");
    }
}

#[test]
fn what_was_missing_helps_when_it_comes() {
    let mut world = world(6);
    world.create(mounting("p", "data"));
    world.settle();
    assert_eq!(node_of(&world, "p"), "");
    world.create(claim("data", json!({"storageClassName": "hand"})));
    world.settle();
    world.create(by_hand("disk", "2Gi", json!({"storageClassName": "hand", "nodeAffinity": on("b")})));
    world.pass(20_000);
    assert_eq!(node_of(&world, "p"), "b");
    assert_eq!(state_of(&world, "data"), ("Bound".into(), "disk".into()));
}

#[test]
fn volumes_made_by_hand_go_to_whom_they_suit_best() {
    for seed in 0..4 {
        let mut world = world(seed);
        world.create(by_hand("small", "1Gi", json!({})));
        world.create(by_hand("middle", "5Gi", json!({})));
        world.create(by_hand("large", "9Gi", json!({"persistentVolumeReclaimPolicy": "Delete"})));
        let of = json!({"namespace": "default", "name": "kept"});
        world.create(by_hand("aside", "2Gi", json!({"claimRef": of})));
        world.settle();
        let size = |size: &str| json!({"storageClassName": "", "resources": {"requests": {"storage": size}}});
        world.create(claim("two", size("2Gi")));
        world.settle();
        world.create(claim("kept", size("1Gi")));
        world.create(claim("huge", size("10Gi")));
        let mut named = claim("named", size("1Gi"));
        named["spec"]["volumeName"] = "large".into();
        world.create(named);
        world.settle();
        for (name, volume) in [("two", "middle"), ("kept", "aside"), ("named", "large")] {
            assert_eq!(state_of(&world, name), ("Bound".into(), volume.into()), "seed {seed}");
        }
        assert_eq!(state_of(&world, "huge"), ("Pending".into(), String::new()));
        assert_eq!(phase(&world, "small"), "Available");
        for name in ["two", "named"] {
            world.delete("persistentvolumeclaims", "default", name, Propagation::Background);
        }
        world.settle();
        assert_eq!(phase(&world, "middle"), "Released", "Retain");
        assert_eq!(phase(&world, "large"), "Failed", "nobody here deletes it");
        // A bound volume that is deleted stays, and so does its claim's word.
        world.delete("persistentvolumes", "", "aside", Propagation::Background);
        world.settle();
        assert_eq!(phase(&world, "aside"), "Bound");
        world.delete("persistentvolumeclaims", "default", "kept", Propagation::Background);
        world.settle();
        assert_eq!(phase(&world, "aside"), "");
    }
}

#[test]
fn a_claim_of_no_class_gets_the_default_one_and_a_volume_at_once_if_the_class_says_so() {
    let mut world = world(7);
    world.create(claim("early", json!({})));
    world.settle();
    assert_eq!(state_of(&world, "early").0, "Pending");
    assert_eq!(
        world.events("FailedBinding"),
        ["no persistent volumes available for this claim and no storage class is set"]
    );
    world.edit("storageclasses.storage.k8s.io", "now", |class| {
        meta::set_annotation(class, "storageclass.kubernetes.io/is-default-class", "true");
    });
    world.settle();
    assert_eq!(state_of(&world, "early").0, "Bound");
    let claim = world.get("persistentvolumeclaims", "default", "early").unwrap();
    assert_eq!(meta::text(&claim, "spec.storageClassName"), "now");
}

#[test]
fn one_pod_at_a_time_if_the_claim_says_so() {
    let mut world = world(8);
    world.create(claim("data", json!({"storageClassName": "local", "accessModes": ["ReadWriteOncePod"]})));
    world.create(mounting("first", "data"));
    world.settle();
    world.create(mounting("second", "data"));
    world.settle();
    assert_eq!(
        why_not(&world, "second"),
        "0/3 nodes are available: 3 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."
    );
    let node = node_of(&world, "first");
    world.delete("pods", "default", "first", Propagation::Background);
    world.pass(20_000);
    assert_eq!(node_of(&world, "second"), node);
}

#[test]
fn a_nodes_disk_is_not_promised_twice() {
    fn promised(state: &State) {
        let mut bytes: BTreeMap<String, usize> = BTreeMap::new();
        for volume in state.list("persistentvolumes", None) {
            *bytes.entry(node_of_volume(&volume.tree())).or_default() += 1;
        }
        assert!(bytes.values().all(|gigabytes| *gigabytes <= 3), "{bytes:?}");
    }
    for seed in 0..4 {
        let mut world = World::new(seed, &[]);
        world.create(class("local", "WaitForFirstConsumer", "dhow.dev/local"));
        for node in ["a", "b"] {
            world.add_node(node, json!({"cpu": "4", "memory": "8Gi", "pods": "100", "ephemeral-storage": "3Gi"}));
        }
        world.invariant = Some(promised);
        for number in 0..8 {
            world.create(claim(&format!("c{number}"), json!({"storageClassName": "local"})));
            world.create(mounting(&format!("p{number}"), &format!("c{number}")));
        }
        world.stumble(300);
        world.pass(30_000);
        let placed: Vec<_> = (0..8).filter(|number| !node_of(&world, &format!("p{number}")).is_empty()).collect();
        assert_eq!(placed.len(), 6, "seed {seed}");
        let waits = (0..8).find(|number| !placed.contains(number)).unwrap();
        let why = why_not(&world, &format!("p{waits}"));
        assert_eq!(why, "0/2 nodes are available: 2 node(s) did not have enough free storage.");
    }
}

#[test]
fn a_node_that_is_gone_keeps_no_volume() {
    let mut world = world(9);
    world.create(claim("data", json!({"storageClassName": "local"})));
    world.create(mounting("first", "data"));
    world.settle();
    let (node, (_, volume)) = (node_of(&world, "first"), state_of(&world, "data"));
    world.dead.insert(node.clone());
    world.delete("nodes", "", &node, Propagation::Background);
    world.pass(60_000);
    world.delete("persistentvolumeclaims", "default", "data", Propagation::Background);
    world.pass(60_000);
    assert_eq!(phase(&world, &volume), "", "its content went with the node");
}

#[test]
fn a_pod_may_bring_its_claims_along() {
    let mut world = world(10);
    let template = json!({"spec": claim("x", json!({"storageClassName": "local"}))["spec"]});
    let volume = json!({"name": "v", "ephemeral": {"volumeClaimTemplate": template}});
    world.create(pod("p", "p", json!({"volumes": [volume]})));
    world.pass(20_000);
    assert_eq!(state_of(&world, "p-v").0, "Bound");
    let awaited = "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\"";
    let told = world.events("FailedScheduling");
    assert!(told.iter().all(|message| message.contains(awaited)), "{told:?}");
    assert!(!node_of(&world, "p").is_empty());
    world.delete("pods", "default", "p", Propagation::Background);
    world.settle();
    empty_volumes(&mut world);
    assert!(world.get("persistentvolumeclaims", "default", "p-v").is_none());
    assert!(world.list("persistentvolumes").is_empty());
}

/// Whatever is under way when leaders change: each claim ends with one volume, each volume with one claim, and each pod
/// on the node of its volume.
#[test]
fn leaders_come_and_go_and_nothing_is_bound_twice() {
    for seed in 0..12 {
        let mut world = world(seed);
        world.late_writes = true;
        for number in 0..3 {
            world.create(by_hand(&format!("d{number}"), "1Gi", json!({"storageClassName": "hand"})));
        }
        for number in 0..8 {
            let class = ["local", "now", "hand"][number % 3];
            world.create(claim(&format!("c{number}"), json!({"storageClassName": class})));
            world.create(mounting(&format!("p{number}"), &format!("c{number}")));
        }
        for _ in 0..6 {
            world.stumble(30);
            world.change_leader();
        }
        world.pass(60_000);
        let mut seen = BTreeSet::new();
        for number in 0..8 {
            let (phase_now, name) = state_of(&world, &format!("c{number}"));
            assert_eq!(
                (phase_now.as_str(), phase(&world, &name).as_str()),
                ("Bound", "Bound"),
                "seed {seed} c{number}"
            );
            assert!(seen.insert(name.clone()), "seed {seed}: {name} has two claims");
            let volume = world.get("persistentvolumes", "", &name).unwrap();
            let node = node_of(&world, &format!("p{number}"));
            assert!(!node.is_empty(), "seed {seed} p{number}");
            if meta::at(&volume, "spec.csi").is_some() {
                assert_eq!(node_of_volume(&volume), node, "seed {seed}");
            }
        }
        let spare: Vec<_> =
            world.list("persistentvolumes").into_iter().filter(|volume| !seen.contains(meta::name(volume))).collect();
        assert!(
            spare.iter().all(|volume| meta::at(volume, "spec.claimRef").is_none() || meta::is_deleting(volume)),
            "seed {seed}: {spare:?}"
        );
        world.forget_counts();
        world.change_leader();
        world.pass(20_000);
        assert_eq!(world.counts, BTreeMap::new(), "seed {seed}: in a settled world there is nothing to write");
    }
}
