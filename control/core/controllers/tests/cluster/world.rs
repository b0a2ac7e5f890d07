//! The world: an API over the replicated state, agents, and the controllers that are tested.

use dhow_api::{Tree, kinds, meta};
use dhow_controllers::{Config, Controllers, In, Out, Propagation, Write, WriteFault, WriteId};
use dhow_state::{Change, Expect, HistoryMax, Key, Object, Op, Rejected, State, Txn};
use dhow_types::{Machine, Revision, Rng, Time};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Rounds that [`World::settle`] waits for peace.
const ROUNDS_MAX: usize = 20_000;

/// What a test can turn.
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) controllers: Controllers,
    pub(crate) now: Time,
    rng: Rng,
    index: u64,
    /// Changes that the controllers have not been given, in order.
    changes: Vec<Arc<Change>>,
    /// Writes that have not been carried out, in any order.
    writes: Vec<(WriteId, &'static str, Write)>,
    /// Results that have not been handed back, in any order.
    results: Vec<(WriteId, Result<Option<Revision>, WriteFault>)>,
    /// Nodes whose agents are gone.
    pub(crate) dead: BTreeSet<String>,
    /// Pods of these images never become ready.
    pub(crate) broken_images: BTreeSet<String>,
    /// Creations of pods that are refused, and why.
    pub(crate) refuse_pods: Option<String>,
    /// Deletions of this object's name are refused, and why.
    pub(crate) refuse_deletion: Option<(String, String)>,
    /// How many writes of each kind (`Create`, `UpdateStatus`…) each controller made.
    pub(crate) counts: BTreeMap<(&'static str, &'static str), usize>,
    /// Whether some of a former leader's writes arrive only when the next one acts already.
    pub(crate) late_writes: bool,
    late: Vec<Write>,
    /// The pods that were ever created.
    pub(crate) made: Vec<String>,
    /// Looked at after each change of the state.
    pub(crate) invariant: Option<fn(&State)>,
    heartbeat: Time,
    addresses: u64,
}

impl World {
    /// A world with these nodes, each with room for `pods`.
    pub(crate) fn new(seed: u64, nodes: &[&str]) -> Self {
        let config = Config { ca_pem: Some("PEM".into()), seed, ..Config::default() };
        let mut world = Self {
            state: State::new(HistoryMax::default()),
            controllers: Controllers::new(config),
            now: Time::parse("2026-01-01T00:00:00Z").unwrap(),
            rng: Rng::new(seed),
            index: 0,
            changes: Vec::new(),
            writes: Vec::new(),
            results: Vec::new(),
            dead: BTreeSet::new(),
            broken_images: BTreeSet::new(),
            refuse_pods: None,
            refuse_deletion: None,
            counts: BTreeMap::new(),
            late_writes: false,
            late: Vec::new(),
            made: Vec::new(),
            invariant: None,
            heartbeat: Time::default(),
            addresses: 0,
        };
        for namespace in ["default", "kube-node-lease"] {
            world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        }
        for node in nodes {
            world.add_node(node, json!({"cpu": "4", "memory": "8Gi", "pods": "10000"}));
        }
        world.controllers_hear_all();
        let mut out = Vec::new();
        world.controllers.handle(world.now, In::Synced, &mut out);
        world
    }

    /// Another control node leads from here on: of what is under way some is still carried out and some is lost,
    /// nobody hears of the results, and other controllers begin with the state as it is then.
    pub(crate) fn change_leader(&mut self) {
        for (_, by, write) in std::mem::take(&mut self.writes) {
            if self.late_writes && self.rng.chance(1, 2) {
                self.late.push(write);
            } else if self.rng.chance(1, 2) {
                *self.counts.entry((by, label(&write))).or_default() += 1;
                // A refusal is nobody's any more.
                let _ = self.carry_out(write);
            }
        }
        self.results.clear();
        self.changes.clear();
        let seed = self.rng.next_u64();
        self.controllers = Controllers::new(Config { ca_pem: Some("PEM".into()), seed, ..Config::default() });
        let mut objects: Vec<Arc<Object>> = self.state.iter().cloned().collect();
        // The order is no promise.
        for at in (1..objects.len()).rev() {
            objects.swap(at, self.rng.below(at as u64 + 1) as usize);
        }
        for object in objects {
            let (key, new) = (object.key.clone(), Some(Arc::clone(&object)));
            let change = Change { revision: object.revision, key, old: None, new, last: object };
            self.controllers.handle(self.now, In::Changed(Arc::new(change)), &mut Vec::new());
        }
        self.controllers.handle(self.now, In::Synced, &mut Vec::new());
    }

    pub(crate) fn add_node(&mut self, name: &str, room: Tree) {
        let now = self.now.to_rfc3339();
        self.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name,
            "labels": {"kubernetes.io/hostname": name}}}));
        let mut node = self.get("nodes", "", name).unwrap();
        node["status"] = json!({"allocatable": room, "capacity": room, "conditions": [{"type": "Ready",
            "status": "True", "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now,
            "lastTransitionTime": now}]});
        self.update_status(node).unwrap();
        self.create(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": {"holderIdentity": name,
            "renewTime": self.now.to_rfc3339_micro(), "leaseDurationSeconds": 40}}));
    }

    // ---- the API ----

    pub(crate) fn key(tree: &Tree) -> Key {
        let kind = kinds::by_kind(meta::api_version(tree), meta::kind(tree)).unwrap();
        Key::new(kind.resource(), meta::namespace(tree), meta::name(tree))
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Tree> {
        self.state.get(&Key::new(resource, namespace, name)).map(|object| object.tree())
    }

    pub(crate) fn list(&self, resource: &str) -> Vec<Tree> {
        self.state.list(resource, None).map(|object| object.tree()).collect()
    }

    pub(crate) fn pods(&self) -> Vec<Tree> {
        self.list("pods")
    }

    pub(crate) fn events(&self, reason: &str) -> Vec<String> {
        let about = self.list("events").into_iter().filter(|event| meta::text(event, "reason") == reason);
        about.map(|event| meta::text(&event, "message").to_owned()).collect()
    }

    pub(crate) fn create(&mut self, tree: Tree) {
        let text = tree.to_string();
        self.try_create(tree).unwrap_or_else(|fault| panic!("creating {text}: {fault}"));
    }

    fn try_create(&mut self, mut tree: Tree) -> Result<Option<Revision>, WriteFault> {
        let kind = kinds::by_kind(meta::api_version(&tree), meta::kind(&tree)).unwrap();
        if let (Some(why), "Pod") = (&self.refuse_pods, kind.kind) {
            return Err(WriteFault::Invalid(why.clone()));
        }
        if kind.namespaced {
            let Some(namespace) = self.get("namespaces", "", meta::namespace(&tree)) else {
                return Err(WriteFault::NotFound);
            };
            if meta::is_deleting(&namespace) {
                return Err(WriteFault::Invalid("the namespace is being terminated".into()));
            }
        }
        (kind.default)(&mut tree);
        (kind.prepare_create)(&mut tree);
        let uid = self.rng.uuid();
        meta::set_uid(&mut tree, &uid);
        meta::set_creation_timestamp(&mut tree, self.now);
        kind.check_create(&tree).map_err(|error| WriteFault::Invalid(error.message))?;
        let created = self.put(&tree, Expect::Absent);
        if kind.kind == "Pod" && created.is_ok() {
            self.made.push(meta::name(&tree).to_owned());
        }
        created
    }

    fn expectation(tree: &Tree) -> Expect {
        Expect::At(Revision(meta::resource_version(tree).parse().unwrap()))
    }

    pub(crate) fn update(&mut self, mut tree: Tree) -> Result<Option<Revision>, WriteFault> {
        let key = Self::key(&tree);
        let old = self.state.get(&key).ok_or(WriteFault::NotFound)?.tree();
        let kind = kinds::by_group_resource(&key.resource).unwrap();
        (kind.default)(&mut tree);
        (kind.prepare_update)(&mut tree, &old);
        kind.check_update(&tree, &old).map_err(|error| WriteFault::Invalid(error.message))?;
        if meta::is_deleting(&tree) && meta::finalizers(&tree).is_empty() && !meta::finalizers(&old).is_empty() {
            return self.remove(&key);
        }
        self.put(&tree, Self::expectation(&tree))
    }

    /// Changes an object as a client would.
    pub(crate) fn edit(&mut self, resource: &str, name: &str, change: impl Fn(&mut Tree)) {
        let namespace = if kinds::by_group_resource(resource).unwrap().namespaced { "default" } else { "" };
        let mut tree = self.get(resource, namespace, name).unwrap();
        change(&mut tree);
        self.update(tree).unwrap();
    }

    pub(crate) fn update_status(&mut self, mut tree: Tree) -> Result<Option<Revision>, WriteFault> {
        let key = Self::key(&tree);
        let old = self.state.get(&key).ok_or(WriteFault::NotFound)?.tree();
        let kind = kinds::by_group_resource(&key.resource).unwrap();
        (kind.prepare_status)(&mut tree, &old);
        kind.check_update(&tree, &old).map_err(|error| WriteFault::Invalid(error.message))?;
        self.put(&tree, Self::expectation(&tree))
    }

    fn put(&mut self, tree: &Tree, expect: Expect) -> Result<Option<Revision>, WriteFault> {
        let key = Self::key(tree);
        if let Some(old) = self.state.get(&key) {
            let mut same = old.tree();
            meta::set_resource_version(&mut same, meta::resource_version(tree));
            if same == *tree && expect != Expect::Absent {
                return if Expect::At(old.revision) == expect { Ok(None) } else { Err(WriteFault::Conflict) };
            }
        }
        self.apply(Op::Put { key, value: tree.to_string().into(), expect, expires: None })
    }

    fn remove(&mut self, key: &Key) -> Result<Option<Revision>, WriteFault> {
        self.apply(Op::Delete { key: key.clone(), expect: Expect::Present, last: None })
    }

    fn apply(&mut self, op: Op) -> Result<Option<Revision>, WriteFault> {
        self.index += 1;
        let result = self.state.apply_into(self.index, &Txn::one(op), &mut self.changes);
        if let Some(invariant) = self.invariant {
            invariant(&self.state);
        }
        match result {
            Ok(applied) => Ok(Some(applied.revision)),
            Err(Rejected::Conflict { .. }) => Err(WriteFault::Conflict),
            Err(Rejected::Exists { .. }) => Err(WriteFault::AlreadyExists),
            Err(Rejected::Missing { .. }) => Err(WriteFault::NotFound),
            Err(Rejected::Malformed { .. }) => panic!("a malformed object"),
        }
    }

    /// Deletes as a client would.
    pub(crate) fn delete(&mut self, resource: &str, namespace: &str, name: &str, propagation: Propagation) {
        self.try_delete(&Key::new(resource, namespace, name), None, None, propagation).unwrap();
    }

    fn try_delete(
        &mut self,
        key: &Key,
        uid: Option<&str>,
        grace_s: Option<i64>,
        propagation: Propagation,
    ) -> Result<Option<Revision>, WriteFault> {
        let object = self.state.get(key).cloned().ok_or(WriteFault::NotFound)?;
        if let Some((_, why)) = self.refuse_deletion.as_ref().filter(|(name, _)| **name == *key.name) {
            return Err(WriteFault::Invalid(why.clone()));
        }
        if uid.is_some_and(|uid| uid != object.index.uid) {
            return Err(WriteFault::Conflict);
        }
        let mut tree = object.tree();
        let finalizer = match propagation {
            Propagation::Background => None,
            Propagation::Foreground => Some("foregroundDeletion"),
            Propagation::Orphan => Some("orphan"),
        };
        if let Some(finalizer) = finalizer {
            let mut finalizers: Vec<String> = meta::finalizers(&tree).into_iter().map(str::to_owned).collect();
            if !finalizers.iter().any(|held| held == finalizer) {
                finalizers.push(finalizer.to_owned());
            }
            meta::set(&mut tree, "metadata.finalizers", finalizers);
        }
        let graceful = &*key.resource == "pods" && !meta::text(&tree, "spec.nodeName").is_empty() && grace_s != Some(0);
        let held = !meta::finalizers(&tree).is_empty() || !meta::list(&tree, "spec.finalizers").is_empty();
        if !graceful && !held {
            return self.remove(key);
        }
        if meta::is_deleting(&tree) && finalizer.is_none() {
            return Ok(None);
        }
        meta::set_default(&mut tree, "metadata.deletionTimestamp", self.now.to_rfc3339());
        if &*key.resource == "namespaces" {
            meta::set(&mut tree, "status.phase", "Terminating");
        }
        self.put(&tree, Expect::At(object.revision))
    }

    fn carry_out(&mut self, write: Write) -> Result<Option<Revision>, WriteFault> {
        match write {
            Write::Create { tree } => self.try_create(tree),
            Write::Update { tree } => self.update(tree),
            Write::UpdateStatus { tree } => self.update_status(tree),
            Write::Delete { resource, namespace, name, uid, grace_s, propagation } => {
                self.try_delete(&Key::new(resource, namespace, name), Some(uid.as_str()), grace_s, propagation)
            }
            Write::Remove { resource, namespace, name, .. } => self.remove(&Key::new(resource, namespace, name)),
            Write::Bind { namespace, pod, uid, node } => {
                let object = self.state.get(&Key::new("pods", namespace, pod)).cloned().ok_or(WriteFault::NotFound)?;
                let mut tree = object.tree();
                if object.index.uid != uid.as_str() || !meta::text(&tree, "spec.nodeName").is_empty() {
                    return Err(WriteFault::Conflict);
                }
                meta::set(&mut tree, "spec.nodeName", node.as_str());
                self.put(&tree, Expect::At(object.revision))
            }
            Write::Finalize { tree } => {
                let key = Self::key(&tree);
                let held = !meta::list(&tree, "spec.finalizers").is_empty() || !meta::finalizers(&tree).is_empty();
                if meta::is_deleting(&tree) && !held {
                    return self.remove(&key);
                }
                self.put(&tree, Self::expectation(&tree))
            }
            Write::Event { mut tree } => {
                let kind = kinds::by_kind("v1", "Event").unwrap();
                (kind.default)(&mut tree);
                kind.check_create(&tree).unwrap_or_else(|error| panic!("an event: {}", error.message));
                if self.state.get(&Key::new("namespaces", "", meta::namespace(&tree))).is_none() {
                    return Err(WriteFault::NotFound);
                }
                self.put(&tree, Expect::Any)
            }
        }
    }

    // ---- time ----

    fn controllers_hear_all(&mut self) {
        for change in std::mem::take(&mut self.changes) {
            self.controllers.handle(self.now, In::Changed(change), &mut Vec::new());
        }
    }

    /// One step: something arrives somewhere.
    fn step(&mut self) {
        let mut out = Vec::new();
        if !self.late.is_empty() && self.rng.chance(1, 4) {
            let at = self.rng.below(self.late.len() as u64) as usize;
            let write = self.late.swap_remove(at);
            let _ = self.carry_out(write);
        }
        match self.rng.below(4) {
            0 if !self.changes.is_empty() => {
                let some = 1 + self.rng.below(self.changes.len() as u64) as usize;
                for change in self.changes.drain(..some).collect::<Vec<_>>() {
                    self.controllers.handle(self.now, In::Changed(change), &mut out);
                }
            }
            1 if !self.writes.is_empty() => {
                for _ in 0..=self.rng.below(self.writes.len() as u64) {
                    let at = self.rng.below(self.writes.len() as u64) as usize;
                    let (id, by, write) = self.writes.swap_remove(at);
                    *self.counts.entry((by, label(&write))).or_default() += 1;
                    let result = self.carry_out(write);
                    self.results.push((id, result));
                }
            }
            2 if !self.results.is_empty() => {
                for _ in 0..=self.rng.below(self.results.len() as u64) {
                    let at = self.rng.below(self.results.len() as u64) as usize;
                    let (id, result) = self.results.swap_remove(at);
                    self.controllers.handle(self.now, In::Written { id, result }, &mut out);
                }
            }
            _ => {
                if self.controllers.next_wake().is_some_and(|at| at <= self.now) {
                    self.controllers.wake(self.now, &mut out);
                }
            }
        }
        for Out::Write { id, by, write } in out {
            self.writes.push((id, by, write));
        }
    }

    fn busy(&self) -> bool {
        !self.changes.is_empty()
            || !self.late.is_empty()
            || !self.writes.is_empty()
            || !self.results.is_empty()
            || self.controllers.next_wake().is_some_and(|at| at <= self.now)
    }

    /// Lets what is under way arrive, without time passing.
    pub(crate) fn drain(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if !self.busy() {
                return;
            }
            self.step();
        }
        panic!("no peace within {ROUNDS_MAX} steps: {:?}", self.counts);
    }

    /// Lets `ms` pass, in the machine's own steps and those of the agents.
    pub(crate) fn pass(&mut self, ms: u64) {
        let until = self.now + ms;
        loop {
            self.drain();
            if self.now >= until {
                return;
            }
            let next = self.controllers.next_wake().unwrap_or(until).max(self.now + 1);
            self.now = next.min(until).min(self.now + 100);
            self.run_agents();
        }
    }

    /// Lets ten seconds pass: long enough for everything that does not wait on purpose.
    pub(crate) fn settle(&mut self) {
        self.pass(10_000);
    }

    /// A few writes at a time, so that rollouts are seen in all their states.
    pub(crate) fn stumble(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
            if self.rng.chance(1, 4) {
                self.now = self.now + 20;
                self.run_agents();
            }
        }
    }

    /// The agents start, end and forget pods, some of them each time.
    fn run_agents(&mut self) {
        if self.now.ms_since(self.heartbeat) >= 10_000 {
            self.heartbeat = self.now;
            for mut lease in self.list("leases.coordination.k8s.io") {
                if !self.dead.contains(meta::name(&lease)) {
                    meta::set(&mut lease, "spec.renewTime", self.now.to_rfc3339_micro());
                    self.update(lease).unwrap();
                }
            }
        }
        let pods: Vec<Arc<Object>> = self.state.list("pods", None).cloned().collect();
        for object in pods {
            let node = object.index.field("spec.nodeName").unwrap();
            if node.is_empty() || self.dead.contains(node) || !self.rng.chance(1, 2) {
                continue;
            }
            if object.index.deleting {
                self.end(&object.key);
            } else if object.index.field("status.phase") != Some("Running") {
                self.addresses += 1;
                self.start(object.tree(), self.addresses);
            }
        }
    }

    fn start(&mut self, mut tree: Tree, address: u64) {
        let image = meta::text(&tree["spec"]["containers"][0], "image").to_owned();
        let ready = if self.broken_images.contains(&image) { "False" } else { "True" };
        let ip = format!("10.64.{}.{}", address / 250 % 250, address % 250 + 1);
        meta::set(&mut tree, "status.phase", "Running");
        meta::set(&mut tree, "status.podIP", ip);
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": self.now.to_rfc3339()});
        meta::set(&mut tree, "status.conditions", vec![condition]);
        self.update_status(tree).unwrap();
    }

    /// The agent says that a pod is gone.
    fn end(&mut self, key: &Key) {
        let mut tree = self.state.get(key).unwrap().tree();
        if meta::finalizers(&tree).is_empty() {
            self.remove(key).unwrap();
        } else {
            meta::set(&mut tree, "status.phase", "Succeeded");
            self.put(&tree, Expect::Present).unwrap();
        }
    }

    /// Forgets who wrote how much.
    pub(crate) fn forget_counts(&mut self) {
        self.counts.clear();
    }

    pub(crate) fn count(&self, by: &str, write: &str) -> usize {
        self.counts.iter().filter(|((who, what), _)| *who == by && *what == write).map(|(_, count)| count).sum()
    }
}

fn label(write: &Write) -> &'static str {
    match write {
        Write::Create { .. } => "Create",
        Write::Update { .. } => "Update",
        Write::UpdateStatus { .. } => "UpdateStatus",
        Write::Delete { .. } => "Delete",
        Write::Bind { .. } => "Bind",
        Write::Finalize { .. } => "Finalize",
        Write::Remove { .. } => "Remove",
        Write::Event { .. } => "Event",
    }
}

/// A deployment of `image`.
pub(crate) fn deployment(name: &str, replicas: i64, image: &str, strategy: Tree) -> Tree {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "strategy": strategy,
            "template": template(name, image)}})
}

/// A replica set of `image`.
pub(crate) fn replica_set(name: &str, replicas: i64, image: &str) -> Tree {
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, image)}})
}

/// A pod template.
pub(crate) fn template(app: &str, image: &str) -> Tree {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [
        {"name": "main", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}]}})
}

/// A pod.
pub(crate) fn pod(name: &str, app: &str, spec: Tree) -> Tree {
    let mut pod = template(app, "web:1");
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["namespace"] = "default".into();
    for (field, value) in spec.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    pod
}

/// Whether the condition `Ready` of a pod is true and it is not on its way out.
pub(crate) fn serves(pod: &Tree) -> bool {
    !meta::is_deleting(pod) && condition(pod, "Ready") == "True"
}

/// The status of a condition, or nothing.
pub(crate) fn condition(tree: &Tree, kind: &str) -> String {
    let conditions = meta::list(tree, "status.conditions");
    let found = conditions.iter().find(|condition| meta::text(condition, "type") == kind);
    found.map_or_else(String::new, |condition| meta::text(condition, "status").to_owned())
}

/// The reason of a condition, or nothing.
pub(crate) fn reason(tree: &Tree, kind: &str) -> String {
    let conditions = meta::list(tree, "status.conditions");
    let found = conditions.iter().find(|condition| meta::text(condition, "type") == kind);
    found.map_or_else(String::new, |condition| meta::text(condition, "reason").to_owned())
}

/// The numbers of a status: replicas, updated, ready, available.
pub(crate) fn numbers(tree: &Tree) -> [i64; 4] {
    ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"]
        .map(|field| tree["status"][field].as_i64().unwrap_or(0))
}
