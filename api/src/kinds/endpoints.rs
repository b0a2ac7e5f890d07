//! Endpoints: the older list of what stands behind a service.

use super::pod::defaults::{entries, set_text};
use super::{Column, Kind, plain};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

/// How many endpoints a cell names before it only counts.
pub(super) const SHOWN_MAX: usize = 3;

/// Endpoints.
pub static ENDPOINTS: Kind = Kind {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    schema: "io.k8s.api.core.v1.Endpoints",
    allow_create_on_update: true,
    deprecation: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    default: |tree| {
        for subset in entries(tree, "subsets") {
            for port in entries(subset, "ports") {
                set_text(port, "protocol", "TCP");
            }
        }
    },
    validate: validate_subsets,
    columns: &[Column::name(), Column::new("Endpoints", "Addresses and ports that are ready."), Column::age()],
    cells: |tree, now| vec![meta::name(tree).into(), shown(tree).into(), crate::table::age(tree, now)],
    ..plain()
};

fn validate_subsets(tree: &Tree, faults: &mut Faults) {
    let path = Path::root("subsets");
    for (i, subset) in meta::list(tree, "subsets").iter().enumerate() {
        let path = path.index(i);
        let (ready, waiting) = (meta::list(subset, "addresses"), meta::list(subset, "notReadyAddresses"));
        if ready.is_empty() && waiting.is_empty() {
            faults.push(Fault::required(path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for (field, addresses) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            let path = path.field(field);
            for (j, address) in addresses.iter().enumerate() {
                let ip = meta::text(address, "ip");
                let path = path.index(j);
                validate::push_all(&path.field("ip"), ip, validate::ip(ip), faults);
            }
        }
        let ports = meta::list(subset, "ports");
        let path = path.field("ports");
        for (j, port) in ports.iter().enumerate() {
            endpoint_port(&path.index(j), port, ports.len() > 1, faults);
        }
    }
}

fn endpoint_port(path: &Path<'_>, port: &Tree, needs_name: bool, faults: &mut Faults) {
    match meta::text(port, "name") {
        "" if needs_name => faults.push(Fault::required(path.field("name"), "")),
        "" => {}
        name => validate::push_all(&path.field("name"), name, validate::dns1123_label(name), faults),
    }
    let number = meta::int(port, "port").unwrap_or(0);
    validate::push_all(&path.field("port"), number, validate::port(number), faults);
    match meta::text(port, "protocol") {
        "" => faults.push(Fault::required(path.field("protocol"), "")),
        protocol => validate::one_of(&path.field("protocol"), protocol, &["SCTP", "TCP", "UDP"], faults),
    }
}

fn shown(tree: &Tree) -> String {
    let mut list = Vec::new();
    for subset in meta::list(tree, "subsets") {
        let ports = meta::list(subset, "ports");
        for address in meta::list(subset, "addresses") {
            let ip = meta::text(address, "ip");
            if ports.is_empty() {
                list.push(ip.to_owned());
            }
            for port in ports {
                let number = meta::int(port, "port").unwrap_or(0);
                list.push(if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") });
            }
        }
    }
    with_rest(&list, "<none>")
}

/// The first few entries and how many more there are.
pub(super) fn with_rest(list: &[String], none: &str) -> String {
    if list.is_empty() {
        return none.to_owned();
    }
    let first = list[..list.len().min(SHOWN_MAX)].join(",");
    match list.len().saturating_sub(SHOWN_MAX) {
        0 => first,
        more => format!("{first} + {more} more..."),
    }
}
