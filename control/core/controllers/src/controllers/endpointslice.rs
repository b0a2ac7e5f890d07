//! EndpointSlices: which pods serve a service.
//!
//! Also home of what this controller and `endpoints` share: which pods count and which ports they serve on.

use super::slices::{self, Author, Group, ports_text};
use crate::cache::{Cache, Seen};
use crate::plan::{Controller, Ctx, Plan};
use crate::views::{Pod, Service, Target, resource};
use dhow_api::{Tree, meta};
use dhow_state::Key;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Endpoints in one slice, as Kubernetes has it: a slice stays well below the size limit of an object.
const SLICE_MAX: usize = 100;
/// Between two rounds of writes for a service whose pods are on the move, per endpoint it has: a large service is
/// rewritten less often.
const INTERVAL_PER_ENDPOINT_MS: u64 = 1;
/// The shortest and the longest interval that results.
const INTERVAL_MS: (u64, u64) = (20, 1000);

const NAME: &str = "endpointslice-controller.k8s.io";
/// On the slices and the endpoints of a service without a cluster IP.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

pub(crate) const CONTROLLER: Controller = Controller { name: "endpointslice-controller", wakes, reconcile };

fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    wakes_of_service(cache, seen, wake);
    slices::wakes_of_slice(cache, seen, resource::SERVICES, wake);
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
    let present = slices::present(ctx.cache, &service.object, NAME);
    let author = Author {
        owner: &service.object,
        labels: labels(service),
        annotations: None,
        address_type: "IPv4",
        endpoints_max: SLICE_MAX,
        identity: |endpoint| meta::text(endpoint, "targetRef.uid"),
    };
    let writes = slices::plan(&author, wanted, &present);
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

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = slices::labels(&service.object, NAME);
    if service.headless {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}
