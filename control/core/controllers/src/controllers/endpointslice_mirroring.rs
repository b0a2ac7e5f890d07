//! Mirrors of Endpoints: what somebody wrote by hand for a service without a selector, as EndpointSlices, since that is
//! where nodes look for what stands behind a service.

use super::endpointslice::{cost_us, interval_ms};
use super::slices::{self, Author, Group, ports_text};
use crate::cache::{Cache, Seen};
use crate::events::Note;
use crate::plan::{Controller, Ctx, Plan, delete};
use crate::views::resource;
use crate::wish::Propagation;
use dhow_api::{Tree, meta};
use dhow_state::{Key, Object};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Addresses of one subset that are mirrored, as Kubernetes has it, and so many stand in one slice: the API takes no
/// larger ones. More are left out, and an event says so.
const ADDRESSES_MAX: usize = 1000;

const NAME: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that carry this are a lock of a leader election, and lead nowhere.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that tell of the Endpoints object itself.
const NOT_COPIED: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

pub(crate) const CONTROLLER: Controller = Controller { name: "endpointslice-mirroring-controller", wakes, reconcile };

/// Keys are those of Endpoints. When these are gone, their slices have lost their owner and are collected.
fn wakes(cache: &Cache, seen: &Seen, wake: &mut dyn FnMut(Key)) {
    if seen.is(resource::ENDPOINTS) {
        wake(seen.key.clone());
    } else if seen.is(resource::SERVICES) {
        wake(Key::new(resource::ENDPOINTS, Arc::clone(&seen.key.namespace), Arc::clone(&seen.key.name)));
    }
    slices::wakes_of_slice(cache, seen, resource::ENDPOINTS, wake);
}

fn reconcile(ctx: &Ctx<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(endpoints) = ctx.cache.object(key).filter(|endpoints| !endpoints.index.deleting) else { return plan };
    let present = slices::present(ctx.cache, endpoints, NAME);
    let service = ctx.cache.service(&Key::new(resource::SERVICES, Arc::clone(&key.namespace), Arc::clone(&key.name)));
    // The tree is made only where it may be needed: most Endpoints are made from a selector.
    let tree = service.filter(|service| service.selector.is_empty()).map(|_| endpoints.tree());
    let Some(tree) = tree.filter(|tree| is_mirrored(endpoints, tree)) else {
        for slice in present {
            plan.write(delete(slice, Propagation::Background));
        }
        return plan;
    };
    let Mirrored { groups, size, skipped } = mirrored(&tree);
    plan.cost_us = cost_us(size);
    for (address_type, wanted) in groups {
        let author = Author {
            owner: endpoints,
            labels: slices::labels(endpoints, NAME),
            annotations: Some(annotations(&tree)),
            address_type,
            endpoints_max: ADDRESSES_MAX,
            identity,
        };
        let of_type = |slice: &&Arc<Object>| meta::text(&slice.tree(), "addressType") == address_type;
        let present: Vec<&Arc<Object>> = present.iter().copied().filter(of_type).collect();
        for write in slices::plan(&author, wanted, &present) {
            plan.write(write);
        }
    }
    if plan.writes.is_empty() {
        return plan;
    }
    if let Some(ms) = ctx.hold_ms(interval_ms(size)) {
        plan.writes.clear();
        plan.again_in(ms);
    } else if skipped > 0 {
        let message = format!(
            "A max of {ADDRESSES_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. \
             {skipped} addresses were skipped"
        );
        plan.notes.push(Note::warning(endpoints, "TooManyAddressesToMirror", message));
    }
    plan
}

fn is_mirrored(endpoints: &Object, tree: &Tree) -> bool {
    endpoints.index.label(SKIP) != Some("true") && meta::annotation(tree, LEADER).is_none()
}

fn annotations(endpoints: &Tree) -> BTreeMap<String, String> {
    meta::annotations(endpoints)
        .filter(|(key, _)| !NOT_COPIED.contains(key))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// An address stands once in the slices of one group.
fn identity(endpoint: &Tree) -> &str {
    meta::list(endpoint, "addresses").first().and_then(Tree::as_str).unwrap_or("")
}

/// What the slices are to hold.
struct Mirrored {
    /// Of each address type, also those without endpoints, by the text of the ports.
    groups: [(&'static str, BTreeMap<String, Group>); 2],
    size: usize,
    skipped: usize,
}

fn mirrored(endpoints: &Tree) -> Mirrored {
    let (mut four, mut six) = (BTreeMap::new(), BTreeMap::new());
    let (mut size, mut skipped) = (0, 0);
    for subset in meta::list(endpoints, "subsets") {
        let ports: Vec<Tree> = meta::list(subset, "ports").iter().map(port).collect();
        let text = ports_text(&ports);
        let ready = meta::list(subset, "addresses").iter().map(|address| (address, true));
        let waiting = meta::list(subset, "notReadyAddresses").iter().map(|address| (address, false));
        for (n, (address, ready)) in ready.chain(waiting).enumerate() {
            if n >= ADDRESSES_MAX {
                skipped += 1;
                continue;
            }
            let Ok(ip) = meta::text(address, "ip").parse::<IpAddr>() else { continue };
            let groups: &mut BTreeMap<String, Group> = if ip.is_ipv4() { &mut four } else { &mut six };
            let new = || Group { ports: ports.clone(), endpoints: BTreeMap::new() };
            let group = groups.entry(text.clone()).or_insert_with(new);
            group.endpoints.insert(ip.to_string(), endpoint(address, ip, ready));
            size += 1;
        }
    }
    Mirrored { groups: [("IPv4", four), ("IPv6", six)], size, skipped }
}

fn port(port: &Tree) -> Tree {
    let mut copy = json!({"name": meta::text(port, "name"), "port": port["port"], "protocol": port["protocol"]});
    if let Some(protocol) = meta::at(port, "appProtocol") {
        copy["appProtocol"] = protocol.clone();
    }
    copy
}

fn endpoint(address: &Tree, ip: IpAddr, ready: bool) -> Tree {
    let mut endpoint = json!({"addresses": [ip.to_string()], "conditions": {"ready": ready}});
    for field in ["hostname", "nodeName", "targetRef"] {
        if let Some(value) = meta::at(address, field) {
            endpoint[field] = value.clone();
        }
    }
    endpoint
}
