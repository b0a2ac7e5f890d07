//! EndpointSlices of bounded size, so that the change of one endpoint rewrites one slice. What stands in them, and who
//! owns them, is for the controllers that make them to say.

use crate::cache::{Cache, Seen};
use crate::plan::{controller_ref, delete, names_from};
use crate::wish::{Propagation, Write};
use dhow_api::{Tree, meta};
use dhow_state::{Key, Object};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const SLICES: &str = "endpointslices.discovery.k8s.io";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Whose slices they are, and what is the same in all of them.
pub(super) struct Author<'a> {
    /// Their owner; their names begin with its name.
    pub(super) owner: &'a Arc<Object>,
    pub(super) labels: BTreeMap<String, String>,
    /// `None` leaves annotations as they are.
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) address_type: &'static str,
    /// Endpoints in one slice.
    pub(super) endpoints_max: usize,
    /// What tells the endpoints of a group apart.
    pub(super) identity: fn(&Tree) -> &str,
}

impl Author<'_> {
    fn describe(&self, slice: &mut Tree) {
        meta::set(slice, "metadata.labels", json!(self.labels));
        match &self.annotations {
            None => {}
            Some(annotations) if annotations.is_empty() => {
                meta::remove(slice, "metadata.annotations");
            }
            Some(annotations) => meta::set(slice, "metadata.annotations", json!(annotations)),
        }
    }
}

/// The labels of an owner's slices: its own, and whose they are.
pub(super) fn labels(owner: &Object, managed_by: &str) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = owner.index.labels.iter().cloned().collect();
    labels.insert(MANAGED_BY.into(), managed_by.into());
    labels.insert(SERVICE_NAME.into(), owner.key.name.to_string());
    labels
}

/// The slices that a controller made for an owner.
pub(super) fn present<'a>(cache: &'a Cache, owner: &Object, managed_by: &str) -> Vec<&'a Arc<Object>> {
    let ours = |slice: &&Arc<Object>| {
        &*slice.key.resource == SLICES && slice.index.label(MANAGED_BY) == Some(managed_by) && !slice.index.deleting
    };
    cache.dependents(&owner.index.uid).filter(ours).collect()
}

/// Owners of this resource whose slice somebody changed: it is put right.
pub(super) fn wakes_of_slice(cache: &Cache, seen: &Seen, resource: &str, wake: &mut dyn FnMut(Key)) {
    let slice = seen.latest().filter(|_| seen.is(SLICES));
    for uid in slice.iter().flat_map(|slice| &slice.object.index.owners) {
        if let Some(owner) = cache.by_uid(uid).filter(|owner| *owner.key.resource == *resource) {
            wake(owner.key.clone());
        }
    }
}

/// Endpoints that serve on the same ports.
pub(super) struct Group {
    pub(super) ports: Vec<Tree>,
    /// By their identity.
    pub(super) endpoints: BTreeMap<String, Tree>,
}

/// The writes that make the present slices hold what is wanted, moving no endpoint from one slice to another.
pub(super) fn plan(author: &Author<'_>, mut wanted: BTreeMap<String, Group>, present: &[&Arc<Object>]) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut open: BTreeMap<String, Vec<Slice>> = BTreeMap::new();
    let mut done: Vec<Slice> = Vec::new();
    for object in present {
        let slice = Slice::read(author, object);
        match wanted.get_mut(&slice.ports) {
            Some(group) => {
                let slice = slice.refreshed(group);
                open.entry(slice.ports.clone()).or_default().push(slice);
            }
            // Ports that nobody serves any more: the slice may take those of a group that has none yet.
            None => done.push(slice),
        }
    }
    for (text, group) in &mut wanted {
        let mut slices = open.remove(text).unwrap_or_default();
        if slices.is_empty()
            && let Some(mut free) = done.pop()
        {
            free.reuse(author, text, group);
            slices.push(free);
        }
        fill(author, group, &mut slices);
        let keep_empty = group.endpoints.is_empty() && group.ports.is_empty();
        let mut kept = false;
        for slice in slices {
            let empty = slice.endpoints.is_empty() && (!keep_empty || kept);
            kept = true;
            writes.extend(if empty { slice.delete() } else { slice.write(author) });
        }
    }
    writes.extend(done.into_iter().filter_map(Slice::delete));
    writes
}

/// Puts the endpoints that stand in no slice yet into slices with room, and into new ones.
fn fill(author: &Author<'_>, group: &mut Group, slices: &mut Vec<Slice>) {
    let placed: BTreeSet<String> = slices.iter().flat_map(|slice| slice.endpoints.keys().cloned()).collect();
    let mut rest = group.endpoints.iter().filter(|(uid, _)| !placed.contains(*uid)).peekable();
    let mut number = 0;
    let text = ports_text(&group.ports);
    let mut at = 0;
    while rest.peek().is_some() || slices.is_empty() {
        if at == slices.len() {
            let taken: BTreeSet<String> = slices.iter().map(|slice| slice.name.clone()).collect();
            slices.push(Slice::new(author, &text, &group.ports, &mut number, &taken));
        }
        let slice = &mut slices[at];
        while slice.endpoints.len() < author.endpoints_max
            && let Some((uid, endpoint)) = rest.next()
        {
            slice.endpoints.insert(uid.clone(), endpoint.clone());
        }
        at += 1;
    }
}

/// A slice as it is being changed.
struct Slice {
    name: String,
    object: Option<Arc<Object>>,
    /// What tells its group apart.
    ports: String,
    port_trees: Vec<Tree>,
    endpoints: BTreeMap<String, Tree>,
}

impl Slice {
    fn read(author: &Author<'_>, object: &Arc<Object>) -> Self {
        let tree = object.tree();
        let port_trees: Vec<Tree> = meta::list(&tree, "ports").to_vec();
        let endpoints = meta::list(&tree, "endpoints")
            .iter()
            .map(|endpoint| ((author.identity)(endpoint).to_owned(), endpoint.clone()))
            .collect();
        Self {
            name: object.key.name.to_string(),
            object: Some(Arc::clone(object)),
            ports: ports_text(&port_trees),
            port_trees,
            endpoints,
        }
    }

    /// A new slice; its name follows from the owner and the ports, and steps over names that are taken.
    fn new(author: &Author<'_>, text: &str, ports: &[Tree], number: &mut u64, taken: &BTreeSet<String>) -> Self {
        let name = loop {
            let sight = author.owner.revision.0.to_le_bytes().into_iter().chain(author.owner.index.uid.bytes());
            let mut names =
                names_from(sight.chain(author.address_type.bytes()).chain(text.bytes()).chain(number.to_le_bytes()));
            *number += 1;
            let name = format!("{}-{}", author.owner.key.name, names.name_suffix(5));
            if !taken.contains(&name) {
                break name;
            }
        };
        Self { name, object: None, ports: text.to_owned(), port_trees: ports.to_vec(), endpoints: BTreeMap::new() }
    }

    /// With the endpoints of the group that it had, as they are now.
    fn refreshed(mut self, group: &Group) -> Self {
        self.endpoints = self
            .endpoints
            .into_keys()
            .filter_map(|uid| group.endpoints.get(&uid).map(|endpoint| (uid, endpoint.clone())))
            .collect();
        self
    }

    fn reuse(&mut self, author: &Author<'_>, text: &str, group: &Group) {
        self.ports = text.to_owned();
        self.port_trees = group.ports.clone();
        self.endpoints =
            group.endpoints.iter().take(author.endpoints_max).map(|(uid, tree)| (uid.clone(), tree.clone())).collect();
    }

    fn delete(self) -> Option<Write> {
        self.object.map(|object| delete(&object, Propagation::Background))
    }

    fn write(self, author: &Author<'_>) -> Option<Write> {
        let endpoints: Vec<Tree> = self.endpoints.into_values().collect();
        if let Some(object) = self.object {
            let old = object.tree();
            let mut tree = old.clone();
            author.describe(&mut tree);
            tree["endpoints"] = endpoints.into();
            tree["ports"] = self.port_trees.into();
            return (!alike(author, &tree, &old)).then_some(Write::Update { tree });
        }
        let mut tree = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": self.name, "generateName": format!("{}-", author.owner.key.name),
                "namespace": &*author.owner.key.namespace, "ownerReferences": [controller_ref(author.owner)],
            },
            "addressType": author.address_type, "endpoints": endpoints, "ports": self.port_trees,
        });
        author.describe(&mut tree);
        Some(Write::Create { tree })
    }
}

/// Equal in what we write: what the API's defaults add does not make a difference.
fn alike(author: &Author<'_>, new: &Tree, old: &Tree) -> bool {
    let labels = |tree: &Tree| -> BTreeMap<String, String> {
        meta::labels(tree).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    let endpoints = |tree: &Tree| -> BTreeMap<String, String> {
        meta::list(tree, "endpoints")
            .iter()
            .map(|endpoint| ((author.identity)(endpoint).to_owned(), endpoint_text(endpoint)))
            .collect()
    };
    labels(new) == labels(old)
        && meta::at(new, "metadata.annotations") == meta::at(old, "metadata.annotations")
        && endpoints(new) == endpoints(old)
        && meta::list(new, "endpoints").len() == meta::list(old, "endpoints").len()
        && ports_text(meta::list(new, "ports")) == ports_text(meta::list(old, "ports"))
}

fn endpoint_text(endpoint: &Tree) -> String {
    let conditions = ["ready", "serving", "terminating"]
        .map(|name| meta::at(endpoint, "conditions").is_some_and(|conditions| meta::truth(conditions, name)));
    let [host, node, kind, name, uid] = ["hostname", "nodeName", "targetRef.kind", "targetRef.name", "targetRef.uid"]
        .map(|path| meta::text(endpoint, path));
    format!("{:?} {conditions:?} {host} {node} {kind} {name} {uid}", meta::list(endpoint, "addresses"))
}

/// What tells groups of endpoints apart; empty for no ports.
pub(super) fn ports_text(ports: &[Tree]) -> String {
    let one = |port: &Tree| {
        let number = meta::int(port, "port").unwrap_or(0);
        let [name, protocol, app] = ["name", "protocol", "appProtocol"].map(|field| meta::text(port, field));
        format!("{name} {number}/{protocol} {app};")
    };
    ports.iter().map(one).collect()
}
