//! Endpoints: the older form of a service's backends, one object named like the service.

use super::endpointslice::{HEADLESS, backends, cost_us, hostname, interval_ms, target_ref, wakes_of_service};
use crate::cache::{Cache, Seen};
use crate::plan::{Controller, Ctx, Plan, delete};
use crate::views::{Service, resource};
use crate::wish::{Propagation, Write};
use dhow_api::{Tree, meta};
use dhow_state::Key;
use serde_json::json;
use std::collections::BTreeMap;

/// Addresses in the object, as Kubernetes has it: it must fit in one object. More are left out and said to be.
const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const NAME: &str = "endpoint-controller";

pub(crate) const CONTROLLER: Controller = Controller { name: NAME, wakes, reconcile };

fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    wakes_of_service(cache, seen, wake);
    if seen.is(resource::ENDPOINTS) {
        wake(Key::new(resource::SERVICES, &*seen.key.namespace, &*seen.key.name));
    }
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let present = ctx.cache.object(&Key::new(resource::ENDPOINTS, &*key.namespace, &*key.name));
    let Some(service) = ctx.cache.service(key) else {
        // Endpoints without a service are ours to remove only if we made them.
        if let Some(object) = present.filter(|object| object.index.label(MANAGED_BY) == Some(NAME)) {
            plan.write(delete(object, Propagation::Background));
        }
        return plan;
    };
    if !service.has_endpoints() || service.object.index.deleting || present.is_some_and(|object| object.index.deleting)
    {
        return plan;
    }
    let (subsets, size) = subsets(ctx.cache, service);
    plan.cost_us = cost_us(size);
    let write = match present {
        Some(object) => {
            let old = object.tree();
            let mut tree = old.clone();
            fill(&mut tree, service, subsets, size);
            let same = meta::list(&tree, "subsets") == meta::list(&old, "subsets")
                && meta::at(&tree, "metadata.annotations") == meta::at(&old, "metadata.annotations")
                && label_map(&tree) == label_map(&old);
            if same {
                return plan;
            }
            Write::Update { tree }
        }
        None => {
            let mut tree = json!({"apiVersion": "v1", "kind": "Endpoints",
                "metadata": {"name": &*key.name, "namespace": &*key.namespace}});
            fill(&mut tree, service, subsets, size);
            Write::Create { tree }
        }
    };
    match ctx.hold_ms(interval_ms(size)) {
        Some(ms) => plan.again_in(ms),
        None => plan.write(write),
    }
    plan
}

fn label_map(tree: &Tree) -> BTreeMap<&str, &str> {
    meta::labels(tree).collect()
}

fn fill(tree: &mut Tree, service: &Service, subsets: Vec<Tree>, size: usize) {
    let mut labels: BTreeMap<&str, &str> =
        service.object.index.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    labels.insert(MANAGED_BY, NAME);
    if service.headless {
        labels.insert(HEADLESS, "");
    }
    meta::set(tree, "metadata.labels", json!(labels));
    if size > ADDRESSES_MAX {
        meta::set_annotation(tree, OVER_CAPACITY, "truncated");
    } else if let Some(annotations) = meta::at_mut(tree, "metadata.annotations").and_then(Tree::as_object_mut) {
        annotations.shift_remove(OVER_CAPACITY);
    }
    if subsets.is_empty() {
        meta::remove(tree, "subsets");
    } else {
        tree["subsets"] = subsets.into();
    }
}

#[derive(Default)]
struct Subset {
    ports: Vec<Tree>,
    ready: Vec<Tree>,
    not_ready: Vec<Tree>,
}

/// The subsets and how many addresses there would be without the limit.
fn subsets(cache: &Cache, service: &Service) -> (Vec<Tree>, usize) {
    let mut subsets: BTreeMap<String, Subset> = BTreeMap::new();
    let mut size = 0;
    let mut pods = backends(cache, service);
    pods.retain(|(pod, _)| !pod.deleting() || service.publish_not_ready);
    // Under the limit, those that serve come first.
    pods.sort_by_key(|(pod, _)| !pod.ready());
    for (pod, ports) in pods {
        size += 1;
        if size > ADDRESSES_MAX {
            continue;
        }
        let mut address = json!({"ip": pod.ip});
        if let Some(name) = hostname(service, pod) {
            address["hostname"] = name.into();
        }
        if let Some(node) = &pod.node {
            address["nodeName"] = node.as_str().into();
        }
        address["targetRef"] = target_ref(pod);
        let subset = subsets.entry(Tree::from(ports.clone()).to_string()).or_default();
        subset.ports = ports;
        if pod.ready() || service.publish_not_ready { &mut subset.ready } else { &mut subset.not_ready }.push(address);
    }
    let tree = |mut subset: Subset| {
        let mut tree = json!({});
        for (field, addresses) in [("addresses", &mut subset.ready), ("notReadyAddresses", &mut subset.not_ready)] {
            if !addresses.is_empty() {
                addresses.sort_by(|a, b| meta::text(a, "ip").cmp(meta::text(b, "ip")));
                tree[field] = std::mem::take(addresses).into();
            }
        }
        let named = |mut port: Tree| {
            // An unnamed port has no name here, while a slice's port has an empty one.
            if meta::text(&port, "name").is_empty() {
                meta::remove(&mut port, "name");
            }
            port
        };
        if !subset.ports.is_empty() {
            tree["ports"] = subset.ports.into_iter().map(named).collect::<Vec<_>>().into();
        }
        tree
    };
    (subsets.into_values().map(tree).collect(), size)
}
