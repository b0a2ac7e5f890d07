//! EndpointSlices: which pods serve a service, in slices of bounded size, so that one pod's change rewrites one slice.
//!
//! Also home of what this controller and `endpoints` share: which pods count and which ports they serve on.

use crate::cache::{Cache, Seen};
use crate::plan::{Controller, Ctx, Plan, controller_ref, delete};
use crate::views::{Pod, Service, Target, resource};
use crate::wish::{Propagation, Write};
use dhow_api::{Tree, meta};
use dhow_state::{Key, Object};
use dhow_types::Rng;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Endpoints in one slice, as Kubernetes has it: a slice stays well below the size limit of an object.
const SLICE_MAX: usize = 100;
/// Between two rounds of writes for a service whose pods are on the move, per endpoint it has: a large service is
/// rewritten less often.
const INTERVAL_PER_ENDPOINT_MS: u64 = 1;
/// The shortest and the longest interval that results.
const INTERVAL_MS: (u64, u64) = (20, 1000);

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const NAME: &str = "endpointslice-controller.k8s.io";
/// On the slices and the endpoints of a service without a cluster IP.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

pub(crate) const CONTROLLER: Controller = Controller { name: "endpointslice-controller", wakes, reconcile };

fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    wakes_of_service(cache, seen, wake);
    // Somebody else's change of a slice is put right.
    if let Some(slice) = seen.latest()
        && &*seen.key.resource == "endpointslices.discovery.k8s.io"
    {
        for uid in &slice.object.index.owners {
            if let Some(owner) = cache.by_uid(uid) {
                wake(owner.key.clone());
            }
        }
    }
}

/// Services whose endpoints a change may move.
pub(super) fn wakes_of_service(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::SERVICES) {
        wake(seen.key.clone());
        return;
    }
    let (old, new) = seen.pods();
    if !(old.is_some() || new.is_some()) || old.zip(new).is_some_and(|(old, new)| serves_alike(old, new)) {
        return;
    }
    for service in cache.services(&seen.key.namespace).filter(|service| service.has_endpoints()) {
        if [old, new].into_iter().flatten().any(|pod| pod.ip.is_some() && service.selects(pod)) {
            wake(service.object.key.clone());
        }
    }
}

fn serves_alike(old: &Pod, new: &Pod) -> bool {
    old.ip == new.ip
        && old.ready() == new.ready()
        && old.deleting() == new.deleting()
        && old.phase.is_terminal() == new.phase.is_terminal()
        && old.node == new.node
        && old.object.index.labels == new.object.index.labels
        && old.object.index.uid == new.object.index.uid
}

/// About what it takes to work out so many endpoints and to compare them.
pub(super) fn cost_us(endpoints: usize) -> u64 {
    (endpoints as u64).saturating_mul(10)
}

/// How long to wait between two writes of a service with so many endpoints.
pub(super) fn interval_ms(endpoints: usize) -> u64 {
    (endpoints as u64).saturating_mul(INTERVAL_PER_ENDPOINT_MS).clamp(INTERVAL_MS.0, INTERVAL_MS.1)
}

/// The pods that a service leads to, by name, each with the ports it serves on.
pub(super) fn backends<'a>(cache: &'a Cache, service: &Service) -> Vec<(&'a Arc<Pod>, Vec<Tree>)> {
    cache
        .pods_in(&service.object.key.namespace)
        .filter(|pod| pod.ip.is_some() && !pod.phase.is_terminal() && service.selects(pod))
        .map(|pod| (pod, ports(service, pod)))
        .collect()
}

/// The ports of a service as this pod serves them; a named target that the pod does not have is left out.
fn ports(service: &Service, pod: &Pod) -> Vec<Tree> {
    let mut ports = Vec::new();
    for port in &service.ports {
        let number = match &port.target {
            Target::Number(number) => Some(*number),
            Target::Name(name) => {
                pod.ports.iter().find(|own| own.name == *name && own.protocol == port.protocol).map(|own| own.port)
            }
        };
        let Some(number) = number else { continue };
        let mut tree = json!({"name": port.name, "port": number, "protocol": port.protocol});
        if let Some(protocol) = &port.app_protocol {
            tree["appProtocol"] = protocol.as_str().into();
        }
        ports.push(tree);
    }
    ports
}

/// A reference to a pod.
pub(super) fn target_ref(pod: &Pod) -> Tree {
    let key = &pod.object.key;
    json!({"kind": "Pod", "namespace": &*key.namespace, "name": &*key.name, "uid": pod.uid()})
}

/// The name by which a pod of a headless service is known.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let subdomain = pod.subdomain.as_deref() == Some(&*service.object.key.name);
    pod.hostname.clone().filter(|_| subdomain)
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(service) = ctx.cache.service(key).filter(|service| service.has_endpoints()) else { return plan };
    if service.object.index.deleting {
        return plan;
    }
    let wanted = wanted(ctx.cache, service);
    let size = wanted.values().map(|group| group.endpoints.len()).sum();
    plan.cost_us = cost_us(size);
    let ours = |slice: &&Arc<Object>| slice.index.label(MANAGED_BY) == Some(NAME) && !slice.index.deleting;
    let present: Vec<&Arc<Object>> = ctx.cache.dependents(&service.object.index.uid).filter(ours).collect();
    let writes = plan_slices(service, wanted, &present);
    if writes.is_empty() {
        return plan;
    }
    if let Some(ms) = ctx.hold_ms(interval_ms(size)) {
        plan.again_in(ms);
        return plan;
    }
    for write in writes {
        plan.write(write);
    }
    plan
}

/// Endpoints that serve on the same ports.
struct Group {
    ports: Vec<Tree>,
    /// By the UID of the pod.
    endpoints: BTreeMap<String, Tree>,
}

/// What the slices of a service are to hold together, by the text of the ports. Never empty: a service without pods
/// has one slice without endpoints.
fn wanted(cache: &Cache, service: &Service) -> BTreeMap<String, Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for (pod, ports) in backends(cache, service) {
        let text = ports_text(&ports);
        let group = groups.entry(text).or_insert_with(|| Group { ports, endpoints: BTreeMap::new() });
        group.endpoints.insert(pod.uid().to_owned(), endpoint(service, pod));
    }
    if groups.is_empty() {
        groups.insert(String::new(), Group { ports: Vec::new(), endpoints: BTreeMap::new() });
    }
    groups
}

fn endpoint(service: &Service, pod: &Pod) -> Tree {
    let (serving, terminating) = (pod.ready(), pod.deleting());
    let ready = service.publish_not_ready || (serving && !terminating);
    let mut tree = json!({
        "addresses": [pod.ip],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
    });
    if let Some(name) = hostname(service, pod) {
        tree["hostname"] = name.into();
    }
    if let Some(node) = &pod.node {
        tree["nodeName"] = node.as_str().into();
    }
    tree["targetRef"] = target_ref(pod);
    tree
}

/// The writes that make the present slices hold what is wanted, moving no endpoint from one slice to another.
fn plan_slices(service: &Service, mut wanted: BTreeMap<String, Group>, present: &[&Arc<Object>]) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut open: BTreeMap<String, Vec<Slice>> = BTreeMap::new();
    let mut done: Vec<Slice> = Vec::new();
    for object in present {
        let slice = Slice::read(object);
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
            free.reuse(text, group);
            slices.push(free);
        }
        fill(service, group, &mut slices);
        let keep_empty = group.endpoints.is_empty() && group.ports.is_empty();
        let mut kept = false;
        for slice in slices {
            let empty = slice.endpoints.is_empty() && (!keep_empty || kept);
            kept = true;
            writes.extend(if empty { slice.delete() } else { slice.write(service) });
        }
    }
    writes.extend(done.into_iter().filter_map(Slice::delete));
    writes
}

/// Puts the endpoints that stand in no slice yet into slices with room, and into new ones.
fn fill(service: &Service, group: &mut Group, slices: &mut Vec<Slice>) {
    let placed: BTreeSet<String> = slices.iter().flat_map(|slice| slice.endpoints.keys().cloned()).collect();
    let mut rest = group.endpoints.iter().filter(|(uid, _)| !placed.contains(*uid)).peekable();
    let mut number = 0;
    let text = ports_text(&group.ports);
    let mut at = 0;
    while rest.peek().is_some() || slices.is_empty() {
        if at == slices.len() {
            let taken: BTreeSet<String> = slices.iter().map(|slice| slice.name.clone()).collect();
            slices.push(Slice::new(service, &text, &group.ports, &mut number, &taken));
        }
        let slice = &mut slices[at];
        while slice.endpoints.len() < SLICE_MAX
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
    fn read(object: &Arc<Object>) -> Self {
        let tree = object.tree();
        let port_trees: Vec<Tree> = meta::list(&tree, "ports").to_vec();
        let endpoints = meta::list(&tree, "endpoints")
            .iter()
            .map(|endpoint| (meta::text(endpoint, "targetRef.uid").to_owned(), endpoint.clone()))
            .collect();
        Self {
            name: object.key.name.to_string(),
            object: Some(Arc::clone(object)),
            ports: ports_text(&port_trees),
            port_trees,
            endpoints,
        }
    }

    /// A new slice; its name follows from the service and the ports, and steps over names that are taken.
    fn new(service: &Service, text: &str, ports: &[Tree], number: &mut u64, taken: &BTreeSet<String>) -> Self {
        let name = loop {
            let mut seed = 0xcbf2_9ce4_8422_2325 ^ service.object.revision.0;
            for byte in service.object.index.uid.bytes().chain(text.bytes()).chain(number.to_le_bytes()) {
                seed = (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
            *number += 1;
            let name = format!("{}-{}", service.object.key.name, Rng::new(seed).name_suffix(5));
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

    fn reuse(&mut self, text: &str, group: &Group) {
        self.ports = text.to_owned();
        self.port_trees = group.ports.clone();
        self.endpoints =
            group.endpoints.iter().take(SLICE_MAX).map(|(uid, tree)| (uid.clone(), tree.clone())).collect();
    }

    fn delete(self) -> Option<Write> {
        self.object.map(|object| delete(&object, Propagation::Background))
    }

    fn write(self, service: &Service) -> Option<Write> {
        let labels = labels(service);
        let endpoints: Vec<Tree> = self.endpoints.into_values().collect();
        if let Some(object) = self.object {
            let old = object.tree();
            let mut tree = old.clone();
            meta::set(&mut tree, "metadata.labels", labels);
            tree["endpoints"] = endpoints.into();
            tree["ports"] = self.port_trees.into();
            return (!alike(&tree, &old)).then_some(Write::Update { tree });
        }
        let tree = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": self.name, "generateName": format!("{}-", service.object.key.name),
                "namespace": &*service.object.key.namespace, "labels": labels,
                "ownerReferences": [controller_ref(&service.object)],
            },
            "addressType": "IPv4", "endpoints": endpoints, "ports": self.port_trees,
        });
        Some(Write::Create { tree })
    }
}

/// Equal in what we write: what the API's defaults add does not make a difference.
fn alike(new: &Tree, old: &Tree) -> bool {
    let labels = |tree: &Tree| -> BTreeMap<String, String> {
        meta::labels(tree).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    let endpoints = |tree: &Tree| -> BTreeMap<String, String> {
        meta::list(tree, "endpoints")
            .iter()
            .map(|endpoint| (meta::text(endpoint, "targetRef.uid").to_owned(), endpoint_text(endpoint)))
            .collect()
    };
    labels(new) == labels(old)
        && endpoints(new) == endpoints(old)
        && meta::list(new, "endpoints").len() == meta::list(old, "endpoints").len()
        && ports_text(meta::list(new, "ports")) == ports_text(meta::list(old, "ports"))
}

fn endpoint_text(endpoint: &Tree) -> String {
    let conditions = ["ready", "serving", "terminating"]
        .map(|name| meta::at(endpoint, "conditions").is_some_and(|conditions| meta::truth(conditions, name)));
    format!(
        "{:?} {conditions:?} {} {}",
        meta::list(endpoint, "addresses"),
        meta::text(endpoint, "hostname"),
        meta::text(endpoint, "nodeName")
    )
}

/// What tells groups of endpoints apart; empty for no ports.
fn ports_text(ports: &[Tree]) -> String {
    let one = |port: &Tree| {
        let number = meta::int(port, "port").unwrap_or(0);
        let [name, protocol, app] = ["name", "protocol", "appProtocol"].map(|field| meta::text(port, field));
        format!("{name} {number}/{protocol} {app};")
    };
    ports.iter().map(one).collect()
}

fn labels(service: &Service) -> Tree {
    let mut labels: BTreeMap<&str, &str> =
        service.object.index.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    if service.headless {
        labels.insert(HEADLESS, "");
    }
    labels.insert(MANAGED_BY, NAME);
    labels.insert(SERVICE_NAME, &service.object.key.name);
    json!(labels)
}
