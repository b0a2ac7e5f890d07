//! Addresses and ports of Services: given out here, never given twice. Which of them an update keeps is said in the
//! kind's own file.
//!
//! Two services that are planned at the same moment may choose the same address: what a service has, it claims
//! ([`super::claims`]), so that the state takes only one of them.

use super::{Context, ServiceRanges};
use dhow_api::Tree;
use dhow_api::field::{Fault, Faults};
use dhow_api::kinds::Kind;
use dhow_api::meta;
use dhow_api::status::ApiError;
use dhow_state::Object;
use dhow_types::Rng;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Gives a Service what it needs and has not; refuses what it asks for and cannot have.
pub(super) fn allocate(
    ctx: &Context<'_>,
    kind: &Kind,
    tree: &mut Tree,
    old: Option<&Tree>,
    rng: &mut Rng,
) -> Result<(), ApiError> {
    if !kind.takes_addresses {
        return Ok(());
    }
    let others: Vec<Arc<Object>> = if needs_look(tree, old) { ctx.view.list(&kind.resource()) } else { return Ok(()) };
    let uid = meta::uid(tree);
    let others: Vec<Tree> = others.iter().filter(|o| o.index.uid != uid).map(|o| o.tree()).collect();
    let mut faults = Faults::new();
    if wants_address(tree) {
        allocate_address(&ctx.services, tree, &others, rng, &mut faults);
    }
    if wants_node_ports(tree) {
        allocate_node_ports(&ctx.services, tree, &others, rng, &mut faults);
    }
    if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid(&kind.qualified(), meta::name(tree), &faults)) }
}

/// Whether anything has to be given out or checked: not when addresses and ports are those of before.
fn needs_look(tree: &Tree, old: Option<&Tree>) -> bool {
    let Some(old) = old else { return wants_address(tree) || wants_node_ports(tree) };
    let ports = |tree: &Tree| meta::list(tree, "spec.ports").iter().map(node_port).collect::<Vec<_>>();
    (wants_address(tree)
        && (meta::text(tree, "spec.clusterIP").is_empty()
            || meta::at(tree, "spec.clusterIP") != meta::at(old, "spec.clusterIP")))
        || (wants_node_ports(tree) && (ports(tree).contains(&0) || ports(tree) != ports(old)))
}

/// What of a Service no other may have, as names of claims.
pub(super) fn needs(tree: &Tree) -> BTreeSet<String> {
    let mut needs = BTreeSet::new();
    let address = meta::text(tree, "spec.clusterIP");
    if wants_address(tree) && !address.is_empty() {
        needs.insert(format!("service-ip-{address}"));
    }
    if wants_node_ports(tree) {
        let ports = meta::list(tree, "spec.ports").iter().filter(|port| node_port(port) != 0);
        needs
            .extend(ports.map(|port| format!("node-port-{}-{}", protocol(port).to_ascii_lowercase(), node_port(port))));
    }
    needs
}

fn service_type(tree: &Tree) -> &str {
    meta::text(tree, "spec.type")
}

fn wants_address(tree: &Tree) -> bool {
    service_type(tree) != "ExternalName" && meta::text(tree, "spec.clusterIP") != "None"
}

fn wants_node_ports(tree: &Tree) -> bool {
    match service_type(tree) {
        "NodePort" => true,
        "LoadBalancer" => meta::at(tree, "spec.allocateLoadBalancerNodePorts") != Some(&Tree::Bool(false)),
        _ => false,
    }
}

fn node_port(port: &Tree) -> i64 {
    meta::int(port, "nodePort").unwrap_or(0)
}

fn protocol(port: &Tree) -> &str {
    match meta::text(port, "protocol") {
        "" => "TCP",
        protocol => protocol,
    }
}

fn allocate_address(ranges: &ServiceRanges, tree: &mut Tree, others: &[Tree], rng: &mut Rng, faults: &mut Faults) {
    let used: BTreeSet<&str> = others.iter().map(|other| meta::text(other, "spec.clusterIP")).collect();
    let asked = match meta::text(tree, "spec.clusterIP") {
        "" => meta::list(tree, "spec.clusterIPs").first().and_then(Tree::as_str).unwrap_or("").to_owned(),
        asked => asked.to_owned(),
    };
    let refuse = |why: String, faults: &mut Faults| {
        let text = format!("failed to allocate IP {asked}: {why}");
        faults.push(Fault::invalid("spec.clusterIPs", json!([asked]), text));
    };
    let address = if asked.is_empty() {
        let free = free_address(ranges, &used, rng);
        let Some(address) = free else {
            let why = "failed to allocate a serviceIP: range is full";
            return faults.push(Fault::invalid("spec.clusterIPs", json!([]), why));
        };
        address.to_string()
    } else {
        let valid = asked.parse::<Ipv4Addr>().is_ok_and(|ip| ranges.contains(ip));
        if !valid {
            let why = format!(
                "the provided IP ({asked}) is not in the valid range. The range of valid IPs is {}/{}",
                ranges.network, ranges.prefix_len
            );
            return refuse(why, faults);
        }
        if used.contains(asked.as_str()) {
            return refuse("provided IP is already allocated".to_owned(), faults);
        }
        asked
    };
    meta::set(tree, "spec.clusterIP", address.as_str());
    meta::set(tree, "spec.clusterIPs", json!([address]));
    meta::set_default(tree, "spec.ipFamilies", json!(["IPv4"]));
    meta::set_default(tree, "spec.ipFamilyPolicy", "SingleStack");
}

/// The first free address from a random place on. The first 256 addresses are left to those who ask by name, in
/// ranges that have more.
fn free_address(ranges: &ServiceRanges, used: &BTreeSet<&str>, rng: &mut Rng) -> Option<Ipv4Addr> {
    let low = if ranges.size() > 512 { 256 } else { 2 };
    let count = ranges.size() - 1 - low;
    let start = u32::try_from(rng.below(u64::from(count))).unwrap_or(0);
    (0..count)
        .map(|step| Ipv4Addr::from(u32::from(ranges.network) + low + (start + step) % count))
        .find(|ip| *ip != ranges.api_address() && !used.contains(ip.to_string().as_str()))
}

fn allocate_node_ports(ranges: &ServiceRanges, tree: &mut Tree, others: &[Tree], rng: &mut Rng, faults: &mut Faults) {
    let mut used: BTreeSet<(String, i64)> = BTreeSet::new();
    for port in others.iter().flat_map(|other| meta::list(other, "spec.ports")) {
        used.insert((protocol(port).to_owned(), node_port(port)));
    }
    let (low, high) = (i64::from(ranges.node_port_min), i64::from(ranges.node_port_max));
    let Some(ports) = meta::at_mut(tree, "spec.ports").and_then(Tree::as_array_mut) else { return };
    // Ports that are asked for go first, so that none of them is given away to a port before it.
    for (at, port) in ports.iter().enumerate().filter(|(_, port)| node_port(port) != 0) {
        let number = node_port(port);
        let path = format!("spec.ports[{at}].nodePort");
        if !(low..=high).contains(&number) {
            let why = format!("provided port is not in the valid range. The range of valid ports is {low}-{high}");
            faults.push(Fault::invalid(path, number, why));
        } else if !used.insert((protocol(port).to_owned(), number)) {
            faults.push(Fault::invalid(path, number, "provided port is already allocated"));
        }
    }
    for (at, port) in ports.iter_mut().enumerate().filter(|(_, port)| node_port(port) == 0) {
        let protocol = protocol(port).to_owned();
        let count = high - low + 1;
        let start = i64::try_from(rng.below(count.unsigned_abs())).unwrap_or(0);
        let free = (0..count)
            .map(|step| low + (start + step) % count)
            .find(|number| !used.contains(&(protocol.clone(), *number)));
        let Some(number) = free else {
            let why = "failed to allocate a nodePort: range is full";
            faults.push(Fault::invalid(format!("spec.ports[{at}].nodePort"), 0, why));
            continue;
        };
        used.insert((protocol, number));
        meta::set(port, "nodePort", number);
    }
}
