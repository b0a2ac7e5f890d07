//! What the controllers know of the world: every object by key, parsed views of the kinds they work on, and the
//! indexes that make each reconcile's cost depend on what it looks after, not on the size of the cluster.

use crate::views::{Claim, Class, Deployment, Node, Pod, ReplicaSet, Service, Truth, View, Volume, resource, view};
use dhow_state::{Change, Key, Object};
use dhow_types::{Revision, Time};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Where agents keep their heartbeats.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// A change as the controllers' wake rules see it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) key: Key,
    pub(crate) old: Option<Side>,
    pub(crate) new: Option<Side>,
}

/// An object and its view at one side of a change.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) object: Arc<Object>,
    pub(crate) view: View,
}

impl Seen {
    /// The pod at each side of the change.
    pub(crate) fn pods(&self) -> (Option<&Pod>, Option<&Pod>) {
        (self.old.as_ref().and_then(Side::pod), self.new.as_ref().and_then(Side::pod))
    }

    /// Whether the object is of this resource.
    pub(crate) fn is(&self, resource: &str) -> bool {
        &*self.key.resource == resource
    }

    /// The UID of the object that is no more since this change: deleted, or another one took its name.
    pub(crate) fn ended(&self) -> Option<&str> {
        let old = self.old.as_ref()?.object.index.uid.as_str();
        let lives = self.new.as_ref().is_some_and(|new| new.object.index.uid == old);
        (!lives).then_some(old)
    }

    /// The object as it is, or as it last was.
    pub(crate) fn latest(&self) -> Option<&Side> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

impl Side {
    pub(crate) fn pod(&self) -> Option<&Pod> {
        self.view.pod().map(Arc::as_ref)
    }

    pub(crate) fn pod_view(&self) -> Option<Arc<Pod>> {
        self.view.pod().cloned()
    }

    pub(crate) fn node(&self) -> Option<&Node> {
        self.view.node().map(Arc::as_ref)
    }

    pub(crate) fn node_view(&self) -> Option<Arc<Node>> {
        self.view.node().cloned()
    }

    pub(crate) fn replica_set(&self) -> Option<&ReplicaSet> {
        self.view.replica_set().map(Arc::as_ref)
    }

    pub(crate) fn claim(&self) -> Option<&Claim> {
        self.view.claim().map(Arc::as_ref)
    }

    pub(crate) fn volume(&self) -> Option<&Volume> {
        self.view.volume().map(Arc::as_ref)
    }
}

/// The objects, views and indexes.
#[derive(Default)]
pub(crate) struct Cache {
    revision: Revision,
    /// The keys that changed at exactly `revision`: one transaction can change many objects, and they come one by one.
    at_revision: BTreeSet<Key>,
    objects: BTreeMap<Key, (Arc<Object>, View)>,
    /// Only looked into, never walked through: its order is chance.
    by_uid: HashMap<String, Key>,
    dependents: BTreeMap<String, BTreeSet<Key>>,
    /// The revision of the last change (also a deletion) among an owner's dependents.
    group_revision: BTreeMap<String, Revision>,
    pods_by_controller: BTreeMap<String, BTreeSet<Key>>,
    pods_without_controller: BTreeSet<Key>,
    pods_by_node: BTreeMap<String, BTreeSet<Key>>,
    /// Pods that mount a claim, by the claim, whether it exists or not.
    pods_by_claim: BTreeMap<String, BTreeSet<Key>>,
    /// Volumes that are for a claim, by the claim, whether it exists or not.
    volumes_by_claim: BTreeMap<String, BTreeSet<Key>>,
    /// Claims that have never been bound.
    unbound_claims: BTreeSet<Key>,
    heartbeats: BTreeMap<String, Time>,
    /// Nodes that pods are bound to and that do not exist, since when.
    missing_nodes: BTreeMap<String, Time>,
}

impl Cache {
    /// Takes a change in and tells what it was.
    pub(crate) fn apply(&mut self, now: Time, change: &Change) -> Seen {
        if change.revision > self.revision {
            self.revision = change.revision;
            self.at_revision.clear();
        }
        if change.revision == self.revision {
            self.at_revision.insert(change.key.clone());
        }
        let new = change.new.as_ref().map(|object| Side { object: Arc::clone(object), view: view(object) });
        let old = match &new {
            Some(new) => self.objects.insert(change.key.clone(), (Arc::clone(&new.object), new.view.clone())),
            None => self.objects.remove(&change.key),
        };
        let old = old.map(|(object, view)| Side { object, view });
        if let Some(old) = &old {
            self.unlink(old, change.revision);
        }
        if let Some(new) = &new {
            self.link(new, change.revision);
        }
        let seen = Seen { key: change.key.clone(), old, new };
        self.note_life(now, &seen);
        self.forget(&seen);
        seen
    }

    fn link(&mut self, new: &Side, revision: Revision) {
        let key = &new.object.key;
        self.by_uid.insert(new.object.index.uid.clone(), key.clone());
        for owner in &new.object.index.owners {
            self.dependents.entry(owner.clone()).or_default().insert(key.clone());
            // At the start, objects come in any order.
            let group = self.group_revision.entry(owner.clone()).or_default();
            *group = revision.max(*group);
        }
        if let View::Pod(pod) = &new.view {
            match &pod.controller {
                Some(uid) => {
                    self.pods_by_controller.entry(uid.clone()).or_default().insert(key.clone());
                }
                None => {
                    self.pods_without_controller.insert(key.clone());
                }
            }
            if let Some(node) = &pod.node {
                self.pods_by_node.entry(node.as_str().to_owned()).or_default().insert(key.clone());
            }
        }
        self.link_storage(new);
    }

    fn link_storage(&mut self, new: &Side) {
        let key = &new.object.key;
        match &new.view {
            View::Pod(pod) => {
                for claim in &pod.claims {
                    self.pods_by_claim.entry(path(&key.namespace, claim)).or_default().insert(key.clone());
                }
            }
            View::Volume(volume) => {
                if let Some(of) = &volume.claim {
                    let claim = path(&of.key.namespace, &of.key.name);
                    self.volumes_by_claim.entry(claim).or_default().insert(key.clone());
                }
            }
            View::Claim(claim) if !claim.bind_completed => {
                self.unbound_claims.insert(key.clone());
            }
            _ => {}
        }
    }

    fn unlink_storage(&mut self, old: &Side) {
        let key = &old.object.key;
        match &old.view {
            View::Pod(pod) => {
                for claim in &pod.claims {
                    take(&mut self.pods_by_claim, &path(&key.namespace, claim), key);
                }
            }
            View::Volume(volume) => {
                if let Some(of) = &volume.claim {
                    take(&mut self.volumes_by_claim, &path(&of.key.namespace, &of.key.name), key);
                }
            }
            View::Claim(_) => {
                self.unbound_claims.remove(key);
            }
            _ => {}
        }
    }

    fn unlink(&mut self, old: &Side, revision: Revision) {
        let key = &old.object.key;
        self.by_uid.remove(&old.object.index.uid);
        for owner in &old.object.index.owners {
            take(&mut self.dependents, owner, key);
            if self.by_uid.contains_key(owner) {
                self.group_revision.insert(owner.clone(), revision);
            } else {
                self.group_revision.remove(owner);
            }
        }
        if let View::Pod(pod) = &old.view {
            match &pod.controller {
                Some(uid) => take(&mut self.pods_by_controller, uid, key),
                None => {
                    self.pods_without_controller.remove(key);
                }
            }
            if let Some(node) = &pod.node {
                take(&mut self.pods_by_node, node.as_str(), key);
            }
        }
        self.unlink_storage(old);
    }

    /// Keeps the heartbeats and the list of nodes that pods wait for in vain. Times are our own: the clocks of nodes
    /// are not trusted.
    fn note_life(&mut self, now: Time, seen: &Seen) {
        let name = &*seen.key.name;
        if seen.is(resource::LEASES) && &*seen.key.namespace == LEASE_NAMESPACE && seen.new.is_some() {
            self.heartbeats.insert(name.to_owned(), now);
        } else if seen.is(resource::NODES) {
            if seen.new.is_some() {
                // Only the node itself says that it is ready or not; we only ever write that we do not know.
                let says = |side: &Option<Side>| side.as_ref().and_then(Side::node).and_then(|node| node.ready);
                let (before, after) = (says(&seen.old), says(&seen.new));
                if before != after && matches!(after, Some(Truth::True | Truth::False)) {
                    self.heartbeats.insert(name.to_owned(), now);
                }
                self.heartbeats.entry(name.to_owned()).or_insert(now);
                self.missing_nodes.remove(name);
            } else {
                self.heartbeats.remove(name);
                if self.pods_by_node.contains_key(name) {
                    self.missing_nodes.insert(name.to_owned(), now);
                }
            }
        } else if let (_, Some(pod)) = seen.pods()
            && let Some(node) = &pod.node
            && self.node(node.as_str()).is_none()
        {
            self.missing_nodes.entry(node.as_str().to_owned()).or_insert(now);
        }
    }

    /// Lets go of what was kept for the sake of an object that is no more.
    fn forget(&mut self, seen: &Seen) {
        let Some(old) = &seen.old else { return };
        if let Some(uid) = seen.ended()
            && !self.dependents.contains_key(uid)
        {
            self.group_revision.remove(uid);
        }
        let name = &*seen.key.name;
        if seen.is(resource::LEASES) && &*seen.key.namespace == LEASE_NAMESPACE && seen.new.is_none() {
            // Of a node without a lease its condition still tells.
            if self.node(name).is_none() {
                self.heartbeats.remove(name);
            }
        }
        // A node that nobody waits for is missed anew if pods come to be bound to it later.
        if let Some(node) = old.pod().and_then(|pod| pod.node.as_ref())
            && !self.pods_by_node.contains_key(node.as_str())
        {
            self.missing_nodes.remove(node.as_str());
        }
    }

    /// Whether a write that made `revision` at `key` has come back.
    pub(crate) fn holds(&self, key: &Key, revision: Revision) -> bool {
        self.revision > revision || (self.revision == revision && self.at_revision.contains(key))
    }

    /// Everything, as changes from nothing.
    pub(crate) fn all_as_new(&self) -> Vec<Seen> {
        let seen = |(key, (object, view)): (&Key, &(Arc<Object>, View))| Seen {
            key: key.clone(),
            old: None,
            new: Some(Side { object: Arc::clone(object), view: view.clone() }),
        };
        self.objects.iter().map(seen).collect()
    }

    pub(crate) fn object(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key).map(|(object, _)| object)
    }

    fn view(&self, key: &Key) -> Option<&View> {
        self.objects.get(key).map(|(_, view)| view)
    }

    pub(crate) fn pod(&self, key: &Key) -> Option<&Arc<Pod>> {
        self.view(key)?.pod()
    }

    pub(crate) fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.view(&Key::new(resource::NODES, "", name))?.node()
    }

    pub(crate) fn replica_set(&self, key: &Key) -> Option<&Arc<ReplicaSet>> {
        self.view(key)?.replica_set()
    }

    pub(crate) fn deployment(&self, key: &Key) -> Option<&Arc<Deployment>> {
        self.view(key)?.deployment()
    }

    pub(crate) fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        self.view(key)?.service()
    }

    pub(crate) fn claim(&self, key: &Key) -> Option<&Arc<Claim>> {
        self.view(key)?.claim()
    }

    pub(crate) fn volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.view(&Key::new(resource::VOLUMES, "", name))?.volume()
    }

    pub(crate) fn class(&self, name: &str) -> Option<&Arc<Class>> {
        self.view(&Key::new(resource::CLASSES, "", name))?.class()
    }

    pub(crate) fn volumes(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.entries(resource::VOLUMES, "").filter_map(|(_, view)| view.volume())
    }

    /// The class of claims that name none: the youngest one that says so of itself.
    pub(crate) fn default_class(&self) -> Option<&Arc<Class>> {
        let classes = self.entries(resource::CLASSES, "").filter_map(|(_, view)| view.class());
        classes.filter(|class| class.default).max_by_key(|class| (class.created, std::cmp::Reverse(class.name())))
    }

    /// Claims that have never been bound.
    pub(crate) fn unbound_claims(&self) -> impl Iterator<Item = &Arc<Claim>> {
        self.unbound_claims.iter().filter_map(|key| self.claim(key))
    }

    /// The volumes that are for a claim.
    pub(crate) fn volumes_of(&self, claim: &Key) -> impl Iterator<Item = &Arc<Volume>> {
        let keys = self.volumes_by_claim.get(&path(&claim.namespace, &claim.name));
        keys.into_iter().flatten().filter_map(|key| self.view(key)?.volume())
    }

    /// The pods that mount a claim.
    pub(crate) fn pods_with(&self, claim: &Key) -> impl Iterator<Item = &Arc<Pod>> {
        let keys = self.pods_by_claim.get(&path(&claim.namespace, &claim.name));
        keys.into_iter().flatten().filter_map(|key| self.pod(key))
    }

    /// The objects of a resource in one namespace, by name.
    pub(crate) fn all_of(&self, resource: &str, namespace: &str) -> Vec<&Arc<Object>> {
        self.entries(resource, namespace).map(|(object, _)| object).collect()
    }

    fn entries<'a, 'b>(
        &'a self,
        resource: &'b str,
        namespace: &'b str,
    ) -> impl Iterator<Item = &'a (Arc<Object>, View)> + use<'a, 'b> {
        self.objects
            .range(Key::new(resource, namespace, "")..)
            .take_while(move |(key, _)| &*key.resource == resource && &*key.namespace == namespace)
            .map(|(_, entry)| entry)
    }

    pub(crate) fn replica_sets<'a, 'b>(
        &'a self,
        namespace: &'b str,
    ) -> impl Iterator<Item = &'a Arc<ReplicaSet>> + use<'a, 'b> {
        self.entries(resource::REPLICA_SETS, namespace).filter_map(|(_, view)| view.replica_set())
    }

    pub(crate) fn deployments<'a, 'b>(
        &'a self,
        namespace: &'b str,
    ) -> impl Iterator<Item = &'a Arc<Deployment>> + use<'a, 'b> {
        self.entries(resource::DEPLOYMENTS, namespace).filter_map(|(_, view)| view.deployment())
    }

    pub(crate) fn services<'a, 'b>(
        &'a self,
        namespace: &'b str,
    ) -> impl Iterator<Item = &'a Arc<Service>> + use<'a, 'b> {
        self.entries(resource::SERVICES, namespace).filter_map(|(_, view)| view.service())
    }

    pub(crate) fn pods_in<'a, 'b>(&'a self, namespace: &'b str) -> impl Iterator<Item = &'a Arc<Pod>> + use<'a, 'b> {
        self.entries(resource::PODS, namespace).filter_map(|(_, view)| view.pod())
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.entries(resource::NODES, "").filter_map(|(_, view)| view.node())
    }

    /// The pods whose managing owner has this UID.
    pub(crate) fn pods_of(&self, uid: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods_by_controller.get(uid).into_iter().flatten().filter_map(|key| self.pod(key))
    }

    /// The pods of a namespace that have no managing owner.
    pub(crate) fn orphans<'a, 'b>(&'a self, namespace: &'b str) -> impl Iterator<Item = &'a Arc<Pod>> + use<'a, 'b> {
        self.pods_without_controller
            .range(Key::new(resource::PODS, namespace, "")..)
            .take_while(move |key| &*key.namespace == namespace)
            .filter_map(|key| self.pod(key))
    }

    /// The pods bound to a node.
    pub(crate) fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods_by_node.get(node).into_iter().flatten().filter_map(|key| self.pod(key))
    }

    pub(crate) fn by_uid(&self, uid: &str) -> Option<&Arc<Object>> {
        self.object(self.by_uid.get(uid)?)
    }

    /// The objects that name this UID among their owners.
    pub(crate) fn dependents(&self, uid: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|key| self.object(key))
    }

    pub(crate) fn group_revision(&self, uid: &str) -> Revision {
        self.group_revision.get(uid).copied().unwrap_or_default()
    }

    /// When a node was last heard of, by our clock.
    pub(crate) fn heartbeat(&self, node: &str) -> Option<Time> {
        self.heartbeats.get(node).copied()
    }

    /// Counts every node as heard of at `now`: we were away and could not have heard it.
    pub(crate) fn hear_all(&mut self, now: Time) {
        for heard in self.heartbeats.values_mut() {
            *heard = now;
        }
    }

    /// How many entries each map has.
    pub(crate) fn sizes(&self) -> [(&'static str, usize); 12] {
        [
            ("objects", self.objects.len()),
            ("uids", self.by_uid.len()),
            ("owners", self.dependents.len()),
            ("groups", self.group_revision.len()),
            ("pod controllers", self.pods_by_controller.len()),
            ("pods without controller", self.pods_without_controller.len()),
            ("nodes with pods", self.pods_by_node.len()),
            ("mounted claims", self.pods_by_claim.len()),
            ("claims with volumes", self.volumes_by_claim.len()),
            ("unbound claims", self.unbound_claims.len()),
            ("heartbeats", self.heartbeats.len()),
            ("missing nodes", self.missing_nodes.len()),
        ]
    }

    /// Since when pods are bound to a node that does not exist.
    pub(crate) fn missing_since(&self, node: &str) -> Option<Time> {
        self.missing_nodes.get(node).copied()
    }
}

/// How the indexes name a claim.
fn path(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn take(index: &mut BTreeMap<String, BTreeSet<Key>>, entry: &str, key: &Key) {
    if let Some(keys) = index.get_mut(entry) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_group_is_as_new_as_its_newest_in_whatever_order_they_come() {
        for order in [[3, 5, 4], [5, 4, 3], [3, 4, 5]] {
            let mut cache = Cache::default();
            for revision in order {
                let key = Key::new("pods", "d", format!("p{revision}"));
                let text = format!(
                    r#"{{"metadata":{{"name":"p{revision}","uid":"{revision}","ownerReferences":[{{"uid":"set"}}]}}}}"#
                );
                let object = Object::restore(key.clone(), Revision(revision), Bytes::from(text)).unwrap();
                let (new, last) = (Some(Arc::new(object.clone())), Arc::new(object));
                cache.apply(Time::default(), &Change { revision: Revision(revision), key, old: None, new, last });
            }
            assert_eq!(cache.group_revision("set"), Revision(5), "{order:?}");
        }
    }
}
