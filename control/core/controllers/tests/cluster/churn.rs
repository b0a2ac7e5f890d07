//! What is gone is forgotten: memory follows what exists, not what has existed.

use crate::world::{World, deployment, pod};
use dhow_api::{Tree, meta};
use dhow_controllers::{Config, Controllers, In, Out, Propagation, Write};
use dhow_state::{Change, Key, Object};
use dhow_types::{Machine, Revision, Time};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

const ROUNDS: usize = 10;
const PODS: usize = 10;
/// Longer than anything waits on purpose: eviction after five minutes, the deadline of a rollout after ten.
const REST_MS: u64 = 700_000;

/// Something of each kind that leaves a trace comes and goes.
fn churn(world: &mut World, round: usize) {
    let name = |what: &str| format!("{what}-{round}");
    let team = name("team");
    world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team}}));
    let mut inside = deployment("inside", 3, "web:1", json!({}));
    meta::set_namespace(&mut inside, &team);
    world.create(inside);
    world.create(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name("web"), "namespace": "default"},
        "spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}}),
    );
    world.create(deployment(&name("web"), i64::try_from(PODS).unwrap(), "web:1", json!({})));
    // A node that comes and goes with its pods, one that never was, and one that evicts.
    world.add_node(&name("spare"), json!({"cpu": "1", "memory": "1Gi", "pods": "10"}));
    world.create(pod("on-spare", "a", json!({"nodeName": name("spare")})));
    world.create(pod("lost", "a", json!({"nodeName": name("never-was")})));
    world.create(pod("nowhere", "a", json!({"nodeSelector": {"no": "node"}})));
    world.add_node(&name("bad"), json!({"cpu": "1", "memory": "1Gi", "pods": "10"}));
    world.create(pod("evicted", "a", json!({"nodeName": name("bad")})));
    world.settle();
    let taint: Tree = json!([{"key": "example.com/broken", "effect": "NoExecute", "timeAdded": null}]);
    world.edit("nodes", &name("bad"), |tree| tree["spec"]["taints"] = taint.clone());
    world.settle();
    world.delete("namespaces", "", &team, Propagation::Background);
    world.delete("services", "default", &name("web"), Propagation::Background);
    world.delete("deployments.apps", "default", &name("web"), Propagation::Background);
    world.delete("pods", "default", "nowhere", Propagation::Background);
    for node in [name("spare"), name("bad")] {
        world.delete("nodes", "", &node, Propagation::Background);
        // The agent did not hear of it at once.
        world.pass(10_000);
        world.delete("leases.coordination.k8s.io", "kube-node-lease", &node, Propagation::Background);
    }
    world.pass(REST_MS);
    // As the control node removes old events.
    for event in world.list("events") {
        world.delete("events", meta::namespace(&event), meta::name(&event), Propagation::Background);
    }
    world.settle();
    assert!(world.pods().is_empty());
}

#[test]
fn what_came_and_went_is_forgotten() {
    let mut world = World::new(1, &["n1", "n2"]);
    world.pass(REST_MS);
    let before = world.controllers.remembered();
    for round in 0..ROUNDS {
        churn(&mut world, round);
        assert_eq!(world.controllers.remembered(), before, "after round {round}");
    }
}

/// Changes and results as a store gives them, without the work of an API in between: there are very many.
struct Feed {
    controllers: Controllers,
    now: Time,
    revision: u64,
    objects: BTreeMap<Key, Arc<Object>>,
}

impl Feed {
    fn put(&mut self, key: &Key, tree: &Tree) -> Revision {
        self.revision += 1;
        let revision = Revision(self.revision);
        let new = Arc::new(Object::restore(key.clone(), revision, tree.to_string().into()).unwrap());
        let old = self.objects.insert(key.clone(), Arc::clone(&new));
        self.change(Change { revision, key: key.clone(), old, new: Some(Arc::clone(&new)), last: new })
    }

    fn remove(&mut self, key: &Key) {
        self.revision += 1;
        let last = self.objects.remove(key).unwrap();
        let revision = Revision(self.revision);
        self.change(Change { revision, key: key.clone(), old: Some(Arc::clone(&last)), new: None, last });
    }

    fn change(&mut self, change: Change) -> Revision {
        let revision = change.revision;
        self.controllers.handle(self.now, In::Changed(Arc::new(change)), &mut Vec::new());
        revision
    }

    /// Lets the controllers act until they want nothing more now; events are taken and thrown away.
    fn run(&mut self) {
        while self.controllers.next_wake().is_some_and(|at| at <= self.now) {
            let mut out = Vec::new();
            self.controllers.wake(self.now, &mut out);
            for Out::Write { id, write, .. } in out {
                let revision = if let Write::Bind { pod, node, .. } = &write {
                    let key = Key::new("pods", "d", &**pod);
                    let mut tree = self.objects[&key].tree();
                    meta::set(&mut tree, "spec.nodeName", node.as_str());
                    Some(self.put(&key, &tree))
                } else {
                    assert!(matches!(write, Write::Event { .. }), "{write:?}");
                    None
                };
                self.controllers.handle(self.now, In::Written { id, result: Ok(revision) }, &mut Vec::new());
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            self.now = (self.now + 1_000).min(until);
            self.run();
        }
    }
}

#[test]
fn ten_thousand_pods_later_nothing_is_left_of_them() {
    const BATCH: usize = 500;
    let mut feed = Feed {
        controllers: Controllers::new(Config::default()),
        now: Time::parse("2026-01-01T00:00:00Z").unwrap(),
        revision: 0,
        objects: BTreeMap::new(),
    };
    feed.put(
        &Key::new("nodes", "", "n1"),
        &json!({"metadata": {"name": "n1", "uid": "n1"}, "spec": {"podCIDR": "10.64.0.0/18"},
            "status": {"allocatable": {"cpu": "9", "memory": "9Gi", "pods": "1000"},
                "conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    feed.controllers.handle(feed.now, In::Synced, &mut Vec::new());
    feed.pass(10_000);
    let before = feed.controllers.remembered();
    for batch in 0..10_000 / BATCH {
        let keys: Vec<Key> = (0..BATCH).map(|n| Key::new("pods", "d", format!("p-{batch}-{n}"))).collect();
        for key in &keys {
            feed.put(key, &json!({"metadata": {"name": &*key.name, "namespace": "d", "uid": &*key.name}}));
        }
        feed.run();
        for key in &keys {
            let mut tree = feed.objects[key].tree();
            assert_eq!(meta::text(&tree, "spec.nodeName"), "n1");
            meta::set(&mut tree, "status.phase", "Running");
            feed.put(key, &tree);
            meta::set(&mut tree, "metadata.deletionTimestamp", feed.now.to_rfc3339());
            feed.put(key, &tree);
        }
        feed.run();
        keys.iter().for_each(|key| feed.remove(key));
        // The node speaks up.
        let lease = Key::new("leases.coordination.k8s.io", "kube-node-lease", "n1");
        feed.put(&lease, &json!({"metadata": {"name": "n1", "namespace": "kube-node-lease", "uid": "l"}}));
        feed.pass(10_000);
        feed.remove(&lease);
        assert_eq!(feed.controllers.remembered(), before, "after batch {batch}");
    }
}
