//! Service: one name and one address for many pods.
//!
//! Addresses and node ports are given out by whoever knows what is taken; here stands how they are written, kept and
//! checked.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Map, json};

use super::pod::defaults::{entries, set_text};
use super::{Column, Kind, Subresource, plain};
use crate::field::{Fault, Faults, Path};
use crate::{Tree, meta, validate};

/// How long `ClientIP` affinity lasts when nobody says.
const AFFINITY_SECONDS: i64 = 10_800;
/// The longest that it may last: a day.
const AFFINITY_SECONDS_MAX: i64 = 86_400;
const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

/// Service.
pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Service",
    subresources: &[Subresource::Status],
    allow_create_on_update: true,
    takes_addresses: true,
    returns_deleted: true,
    name_faults: validate::dns1035_label,
    default,
    prepare_create: |tree| {
        normalize(tree);
        meta::set(tree, "status", json!({"loadBalancer": {}}));
    },
    prepare_update: |new, old| {
        super::restore(new, old, "status");
        keep_allocated(new, old);
        normalize(new);
    },
    validate: validate_spec,
    validate_update,
    columns: &[
        Column::name(),
        Column::new("Type", "How the service is reached."),
        Column::new("Cluster-IP", "The address inside of the cluster."),
        Column::new("External-IP", "The address outside of the cluster."),
        Column::new("Port(s)", "The ports, with the node ports behind colons."),
        Column::age(),
        Column::new("Selector", "The labels by which the pods are found.").wide(),
    ],
    cells: |tree, now| {
        vec![
            meta::name(tree).into(),
            service_type(tree).into(),
            shown_ip(tree).into(),
            shown_external(tree).into(),
            shown_ports(tree).into(),
            crate::table::age(tree, now),
            shown_selector(tree).into(),
        ]
    },
    field_labels: &["spec.clusterIP", "spec.type"],
    fields: |tree| {
        ["spec.clusterIP", "spec.type"].into_iter().map(|path| (path, meta::text(tree, path).to_owned())).collect()
    },
    ..plain()
};

fn service_type(tree: &Tree) -> &str {
    meta::text(tree, "spec.type")
}

fn default(tree: &mut Tree) {
    let spec = meta::map_of(tree).entry("spec").or_insert(Tree::Null);
    for port in entries(spec, "ports") {
        set_text(port, "protocol", "TCP");
        let target = port.get("targetPort");
        if target.is_none_or(|target| target.is_null() || target == "" || target.as_i64() == Some(0)) {
            let number = port.get("port").cloned().unwrap_or(Tree::Null);
            meta::set(port, "targetPort", number);
        }
    }
    set_text(spec, "sessionAffinity", "None");
    if meta::text(spec, "sessionAffinity") == "ClientIP" {
        meta::set_default(spec, "sessionAffinityConfig.clientIP.timeoutSeconds", AFFINITY_SECONDS);
    } else {
        meta::remove(spec, "sessionAffinityConfig");
    }
    set_text(spec, "type", "ClusterIP");
    let ty = meta::text(spec, "type").to_owned();
    let outside = ty == "NodePort" || ty == "LoadBalancer";
    if outside {
        set_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if outside || ty == "ClusterIP" {
        set_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if ty == "LoadBalancer" {
        meta::set_default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// Brings the two spellings of the address together and fills the address families.
fn normalize(tree: &mut Tree) {
    if service_type(tree) == "ExternalName" {
        return;
    }
    let one = meta::text(tree, "spec.clusterIP").to_owned();
    let first = meta::list(tree, "spec.clusterIPs").first().and_then(Tree::as_str).unwrap_or("").to_owned();
    match (one.as_str(), first.as_str()) {
        ("", "") => {}
        ("", first) => meta::set(tree, "spec.clusterIP", first),
        (one, "") => meta::set(tree, "spec.clusterIPs", json!([one])),
        _ => {}
    }
    let ip = meta::text(tree, "spec.clusterIP").parse::<IpAddr>();
    let family = if ip.is_ok_and(|ip| ip.is_ipv6()) { "IPv6" } else { "IPv4" };
    if meta::list(tree, "spec.ipFamilies").is_empty() {
        meta::set(tree, "spec.ipFamilies", json!([family]));
    }
    set_text(tree, "spec.ipFamilyPolicy", "SingleStack");
}

/// A manifest that is applied again does not know what was drawn for it: that stays.
fn keep_allocated(new: &mut Tree, old: &Tree) {
    let has_ip = |tree: &Tree| service_type(tree) != "ExternalName";
    if has_ip(new) && has_ip(old) {
        let empty = meta::text(new, "spec.clusterIP").is_empty() && meta::list(new, "spec.clusterIPs").is_empty();
        for field in ["spec.clusterIP", "spec.clusterIPs"] {
            if let Some(value) = meta::at(old, field).filter(|_| empty) {
                meta::set(new, field, value.clone());
            }
        }
        for field in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
            if let Some(value) = meta::at(old, field) {
                meta::set_default(new, field, value.clone());
            }
        }
    } else if has_ip(old) {
        let unchanged = |field| meta::at(new, field) == meta::at(old, field);
        if unchanged("spec.clusterIP") {
            meta::remove(new, "spec.clusterIP");
            meta::remove(new, "spec.clusterIPs");
        }
        for field in ["spec.ipFamilies", "spec.ipFamilyPolicy", "spec.internalTrafficPolicy"] {
            meta::remove(new, field);
        }
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        keep_node_ports(new, old);
    } else if needs_node_ports(old) {
        drop_node_ports(new, old);
    }
}

fn keep_node_ports(new: &mut Tree, old: &Tree) {
    let known = |port: &Tree| -> Option<i64> {
        let same = |other: &&Tree| ["port", "protocol"].iter().all(|field| other.get(field) == port.get(field));
        meta::list(old, "spec.ports").iter().find(same).and_then(|other| meta::int(other, "nodePort"))
    };
    // One number may serve one port a protocol, as DNS has it.
    let id = |port: &Tree, number: i64| (meta::text(port, "protocol").to_owned(), number);
    let mut used: BTreeSet<(String, i64)> = meta::list(new, "spec.ports")
        .iter()
        .filter_map(|port| meta::int(port, "nodePort").map(|number| id(port, number)))
        .collect();
    for port in entries(new, "spec.ports") {
        if meta::int(port, "nodePort").unwrap_or(0) == 0
            && let Some(number) = known(port).filter(|number| used.insert(id(port, *number)))
        {
            meta::set(port, "nodePort", number);
        }
    }
}

/// A service that turns inward gives back the ports that it does not ask for by other numbers.
fn drop_node_ports(new: &mut Tree, old: &Tree) {
    let old: BTreeSet<i64> =
        meta::list(old, "spec.ports").iter().filter_map(|port| meta::int(port, "nodePort")).collect();
    for port in entries(new, "spec.ports") {
        if meta::int(port, "nodePort").is_some_and(|number| old.contains(&number)) {
            meta::remove(port, "nodePort");
        }
    }
    meta::remove(new, "spec.externalTrafficPolicy");
    meta::remove(new, "spec.allocateLoadBalancerNodePorts");
}

fn validate_spec(tree: &Tree, faults: &mut Faults) {
    let path = Path::root("spec");
    let (ty, empty) = (service_type(tree), Tree::Object(Map::new()));
    let spec = tree.get("spec").unwrap_or(&empty);
    let ports = meta::list(spec, "ports");
    let headless = meta::text(spec, "clusterIP") == "None";
    if ports.is_empty() && !headless && ty != "ExternalName" {
        faults.push(Fault::required(path.field("ports"), ""));
    }
    match ty {
        "LoadBalancer" | "NodePort" if headless => {
            let words = match ty {
                "LoadBalancer" => "may not be set to 'None' for LoadBalancer services",
                _ => "may not be set to 'None' for NodePort services",
            };
            faults.push(Fault::invalid(path.field("clusterIPs[0]"), "None", words));
        }
        "ExternalName" => external_name(&path, spec, faults),
        _ => {}
    }
    check_ports(&path.field("ports"), ports, ty, faults);
    validate::labels(&path.field("selector"), spec.get("selector"), faults);
    affinity(&path, spec, faults);
    match ty {
        "" => faults.push(Fault::required(path.field("type"), "")),
        ty => validate::one_of(&path.field("type"), ty, TYPES, faults),
    }
    addresses(&path, spec, faults);
    let outside = ty == "NodePort" || ty == "LoadBalancer";
    let external = meta::text(spec, "externalTrafficPolicy");
    if !outside && !external.is_empty() {
        let words = "may only be set for externally-accessible services";
        faults.push(Fault::invalid(path.field("externalTrafficPolicy"), external, words));
    } else {
        validate::one_of(&path.field("externalTrafficPolicy"), external, &["Cluster", "Local"], faults);
    }
    let internal = meta::text(spec, "internalTrafficPolicy");
    validate::one_of(&path.field("internalTrafficPolicy"), internal, &["Cluster", "Local"], faults);
}

fn external_name(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    if !meta::text(spec, "clusterIP").is_empty() || !meta::list(spec, "clusterIPs").is_empty() {
        let words = "may not be set when `type` is 'ExternalName'";
        faults.push(Fault::forbidden(path.field("clusterIPs"), words));
    }
    match meta::text(spec, "externalName").trim_end_matches('.') {
        "" => faults.push(Fault::required(path.field("externalName"), "")),
        name => validate::push_all(&path.field("externalName"), name, validate::dns1123_subdomain(name), faults),
    }
}

fn check_ports(path: &Path<'_>, ports: &[Tree], ty: &str, faults: &mut Faults) {
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let before = faults.len();
        match meta::text(port, "name") {
            "" if ports.len() > 1 => faults.push(Fault::required(path.field("name"), "")),
            "" => {}
            name => {
                validate::push_all(&path.field("name"), name, validate::dns1123_label(name), faults);
                if faults.len() == before && !names.insert(name) {
                    faults.push(Fault::duplicate(path.field("name"), name));
                }
            }
        }
        let number = meta::int(port, "port").unwrap_or(0);
        validate::push_all(&path.field("port"), number, validate::port(number), faults);
        let protocol = meta::text(port, "protocol");
        if protocol.is_empty() {
            faults.push(Fault::required(path.field("protocol"), ""));
        }
        validate::one_of(&path.field("protocol"), protocol, &["SCTP", "TCP", "UDP"], faults);
        if port.get("targetPort").is_some_and(|target| !target.is_null()) || ty != "ExternalName" {
            super::pod::port_or_name(&path.field("targetPort"), port.get("targetPort"), faults);
        }
        if !numbers.insert((protocol, number)) {
            faults.push(Fault::duplicate(path, json!({"port": number, "protocol": protocol})));
        }
        let node_port = meta::int(port, "nodePort").unwrap_or(0);
        if node_port != 0 && (ty == "ClusterIP" || ty == "ExternalName") {
            let words = format!("may not be used when `type` is '{ty}'");
            faults.push(Fault::forbidden(path.field("nodePort"), words));
        } else if node_port != 0 {
            validate::push_all(&path.field("nodePort"), node_port, validate::port(node_port), faults);
            if !node_ports.insert((protocol, node_port)) {
                faults.push(Fault::duplicate(path.field("nodePort"), node_port));
            }
        }
    }
}

fn affinity(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    match meta::text(spec, "sessionAffinity") {
        "" => faults.push(Fault::required(path.field("sessionAffinity"), "")),
        affinity => validate::one_of(&path.field("sessionAffinity"), affinity, &["ClientIP", "None"], faults),
    }
    let at = "sessionAffinityConfig.clientIP.timeoutSeconds";
    if let Some(seconds) = meta::int(spec, at).filter(|seconds| !(1..=AFFINITY_SECONDS_MAX).contains(seconds)) {
        let words = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
        faults.push(Fault::invalid(path.field(at), seconds, words));
    }
}

fn addresses(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    let list = meta::list(spec, "clusterIPs");
    let at = path.field("clusterIPs");
    let one = meta::text(spec, "clusterIP");
    let first = list.first().and_then(Tree::as_str).unwrap_or("");
    if !one.is_empty() && !first.is_empty() && one != first {
        let words = "first value must match `clusterIP`";
        faults.push(Fault::invalid(at, Tree::from(list.to_vec()), words));
    }
    for (i, ip) in list.iter().filter_map(Tree::as_str).enumerate() {
        if ip == "None" {
            if list.len() > 1 {
                let words = "'None' must be the first and only value";
                faults.push(Fault::invalid(at.index(i), "None", words));
            }
            continue;
        }
        validate::push_all(&at.index(i), ip, validate::ip(ip), faults);
    }
    for field in ["externalIPs"] {
        let at = path.field(field);
        for (i, ip) in meta::list(spec, field).iter().filter_map(Tree::as_str).enumerate() {
            validate::push_all(&at.index(i), ip, validate::ip(ip), faults);
        }
    }
    let policies = &["SingleStack", "PreferDualStack", "RequireDualStack"];
    validate::one_of(&path.field("ipFamilyPolicy"), meta::text(spec, "ipFamilyPolicy"), policies, faults);
    let families = path.field("ipFamilies");
    for (i, family) in meta::list(spec, "ipFamilies").iter().filter_map(Tree::as_str).enumerate() {
        validate::one_of(&families.index(i), family, &["IPv4", "IPv6"], faults);
    }
}

/// The address of a service that keeps having one may not change.
fn validate_update(new: &Tree, old: &Tree, faults: &mut Faults) {
    let (was, is) = (meta::text(old, "spec.clusterIP"), meta::text(new, "spec.clusterIP"));
    if service_type(new) != "ExternalName" && service_type(old) != "ExternalName" && !was.is_empty() && was != is {
        let value = meta::at(new, "spec.clusterIPs").cloned().unwrap_or_else(|| json!([is]));
        faults.push(Fault::invalid("spec.clusterIPs[0]", value, "may not change once set"));
    }
}

fn shown_ip(tree: &Tree) -> &str {
    let first = meta::list(tree, "spec.clusterIPs").first().and_then(Tree::as_str);
    let ip = first.unwrap_or_else(|| meta::text(tree, "spec.clusterIP"));
    if ip.is_empty() { "<none>" } else { ip }
}

fn shown_external(tree: &Tree) -> String {
    let given: Vec<&str> = meta::list(tree, "spec.externalIPs").iter().filter_map(Tree::as_str).collect();
    let given = given.join(",");
    match service_type(tree) {
        "ClusterIP" | "NodePort" if given.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => given,
        "LoadBalancer" => {
            let ingress = meta::list(tree, "status.loadBalancer.ingress").iter().map(|entry| {
                let ip = meta::text(entry, "ip");
                if ip.is_empty() { meta::text(entry, "hostname") } else { ip }
            });
            let ingress: Vec<&str> = ingress.filter(|text| !text.is_empty()).collect();
            match (ingress.join(","), given) {
                (ingress, given) if ingress.is_empty() && given.is_empty() => "<pending>".to_owned(),
                (ingress, given) if given.is_empty() => ingress,
                (ingress, given) if ingress.is_empty() => given,
                (ingress, given) => format!("{ingress},{given}"),
            }
        }
        "ExternalName" => meta::text(tree, "spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn shown_ports(tree: &Tree) -> String {
    let port = |port: &Tree| {
        let (number, protocol) = (meta::int(port, "port").unwrap_or(0), meta::text(port, "protocol"));
        match meta::int(port, "nodePort").unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node_port => format!("{number}:{node_port}/{protocol}"),
        }
    };
    let ports: Vec<String> = meta::list(tree, "spec.ports").iter().map(port).collect();
    if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") }
}

fn shown_selector(tree: &Tree) -> String {
    let mut labels: Vec<String> =
        meta::texts(tree, "spec.selector").map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort_unstable();
    if labels.is_empty() { "<none>".to_owned() } else { labels.join(",") }
}

/// Whether the ports of the service are opened on nodes.
fn needs_node_ports(tree: &Tree) -> bool {
    match service_type(tree) {
        "NodePort" => true,
        "LoadBalancer" => meta::at(tree, "spec.allocateLoadBalancerNodePorts") != Some(&Tree::Bool(false)),
        _ => false,
    }
}
