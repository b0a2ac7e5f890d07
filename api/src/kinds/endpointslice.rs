//! EndpointSlice: a part of what stands behind a service.

use super::endpoints::with_rest;
use super::pod::defaults::{entries, set_text};
use super::{Column, Kind, plain};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

/// Most endpoints in one slice.
const ENDPOINTS_MAX: usize = 1000;
/// Most ports in one slice.
const PORTS_MAX: usize = 20_000;
/// Most addresses of one endpoint.
const ADDRESSES_MAX: usize = 100;

/// EndpointSlice.
pub static ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    has_generation: true,
    default: |tree| {
        for port in entries(tree, "ports") {
            meta::set_default(port, "name", "");
            set_text(port, "protocol", "TCP");
        }
    },
    prepare_create: |tree| meta::set_generation(tree, 1),
    prepare_update: |new, old| {
        let content = |tree: &Tree| ["endpoints", "ports", "addressType"].map(|field| tree.get(field).cloned());
        let bump = i64::from(content(new) != content(old));
        meta::set_generation(new, meta::generation(old) + bump);
    },
    validate: validate_slice,
    validate_update: |new, old, faults| {
        let path = Path::root("addressType");
        validate::immutable(&path, new.get("addressType"), old.get("addressType"), faults);
    },
    columns: &[
        Column::name(),
        Column::new("AddressType", "Whether addresses are IPv4, IPv6 or names."),
        Column::new("Ports", "The ports of each endpoint."),
        Column::new("Endpoints", "The addresses."),
        Column::age(),
    ],
    cells: |tree, now| {
        let addresses: Vec<String> = meta::list(tree, "endpoints")
            .iter()
            .flat_map(|endpoint| meta::list(endpoint, "addresses"))
            .filter_map(Tree::as_str)
            .map(str::to_owned)
            .collect();
        let ports: Vec<String> = meta::list(tree, "ports").iter().map(port_text).collect();
        vec![
            meta::name(tree).into(),
            meta::text(tree, "addressType").into(),
            with_rest(&ports, "<unset>").into(),
            with_rest(&addresses, "<unset>").into(),
            crate::table::age(tree, now),
        ]
    },
    ..plain()
};

fn port_text(port: &Tree) -> String {
    match (meta::int(port, "port"), meta::at(port, "name").and_then(Tree::as_str)) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => "*".to_owned(),
    }
}

fn validate_slice(tree: &Tree, faults: &mut Faults) {
    let address_type = meta::text(tree, "addressType");
    if address_type.is_empty() {
        faults.push(Fault::required("addressType", ""));
    }
    validate::one_of(&Path::root("addressType"), address_type, &["FQDN", "IPv4", "IPv6"], faults);
    let endpoints = meta::list(tree, "endpoints");
    let path = Path::root("endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        faults.push(Fault::too_many(path, endpoints.len(), ENDPOINTS_MAX));
        return;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(i);
        let path = path.field("addresses");
        let addresses = meta::list(endpoint, "addresses");
        if addresses.is_empty() {
            faults.push(Fault::required(path, "must contain at least 1 address"));
        } else if addresses.len() > ADDRESSES_MAX {
            faults.push(Fault::too_many(path, addresses.len(), ADDRESSES_MAX));
        }
        for (j, address) in addresses.iter().filter_map(Tree::as_str).enumerate() {
            let words = match address_type {
                "FQDN" => validate::dns1123_subdomain(address),
                _ => validate::ip(address),
            };
            validate::push_all(&path.index(j), address, words, faults);
        }
    }
    ports(&Path::root("ports"), meta::list(tree, "ports"), faults);
}

fn ports(path: &Path<'_>, ports: &[Tree], faults: &mut Faults) {
    if ports.len() > PORTS_MAX {
        faults.push(Fault::too_many(path, ports.len(), PORTS_MAX));
        return;
    }
    let mut names = std::collections::BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = meta::text(port, "name");
        if !name.is_empty() {
            validate::push_all(&path.field("name"), name, validate::dns1123_label(name), faults);
        }
        if !names.insert(name) {
            faults.push(Fault::duplicate(path.field("name"), name));
        }
        if let Some(number) = meta::int(port, "port") {
            validate::push_all(&path.field("port"), number, validate::port(number), faults);
        }
        match meta::text(port, "protocol") {
            "" => faults.push(Fault::required(path.field("protocol"), "")),
            protocol => validate::one_of(&path.field("protocol"), protocol, &["SCTP", "TCP", "UDP"], faults),
        }
    }
}
