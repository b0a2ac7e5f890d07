//! Services.

use super::Object;
use super::common::{NONE, annotations, labels, list, names, scalar, sorted, text, text_or_none};
use super::page::Page;
use dhow_api::{Tree, meta};

/// How many endpoints are named one by one.
const ENDPOINTS_MAX: usize = 3;

/// Where its endpoints are.
pub(super) fn slices(service: &Tree) -> Vec<String> {
    let (namespace, name) = (meta::namespace(service), meta::name(service));
    vec![format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}"
    )]
}

pub(super) fn service(page: &mut Page, object: &Object<'_>) {
    let service = object.tree;
    let spec = &service["spec"];
    names(page, service);
    labels(page, "Labels", &service["metadata"]["labels"]);
    annotations(page, "Annotations", &service["metadata"]["annotations"]);
    let selector: Vec<_> =
        sorted(&spec["selector"]).into_iter().map(|(key, value)| format!("{key}={}", text(value))).collect();
    page.line(0, format!("Selector:\t{}", if selector.is_empty() { NONE.to_owned() } else { selector.join(",") }));
    page.line(0, format!("Type:\t{}", text(&spec["type"])));
    if let Some(policy) = spec["ipFamilyPolicy"].as_str() {
        page.line(0, format!("IP Family Policy:\t{policy}"));
    }
    page.line(0, format!("IP Families:\t{}", joined(&spec["ipFamilies"])));
    page.line(0, format!("IP:\t{}", text(&spec["clusterIP"])));
    page.line(0, format!("IPs:\t{}", joined(&spec["clusterIPs"])));
    if !list(&spec["externalIPs"]).is_empty() {
        page.line(0, format!("External IPs:\t{}", joined(&spec["externalIPs"])));
    }
    if let Some(name) = spec["externalName"].as_str() {
        page.line(0, format!("External Name:\t{name}"));
    }
    for port in list(&spec["ports"]) {
        write_port(page, port, object.related(0));
    }
    for (title, field) in [
        ("Session Affinity", "sessionAffinity"),
        ("External Traffic Policy", "externalTrafficPolicy"),
        ("Internal Traffic Policy", "internalTrafficPolicy"),
    ] {
        if let Some(value) = spec[field].as_str() {
            page.line(0, format!("{title}:\t{value}"));
        }
    }
}

fn joined(texts: &Tree) -> String {
    let texts: Vec<&str> = list(texts).iter().map(text).collect();
    if texts.is_empty() { NONE.to_owned() } else { texts.join(",") }
}

fn write_port(page: &mut Page, port: &Tree, slices: &[Tree]) {
    let name = match text(&port["name"]) {
        "" => "<unset>",
        name => name,
    };
    let protocol = text_or_none(&port["protocol"]);
    page.line(0, format!("Port:\t{name}\t{}/{protocol}", scalar(&port["port"])));
    page.line(0, format!("TargetPort:\t{}/{protocol}", scalar(&port["targetPort"])));
    if port["nodePort"].as_i64().is_some_and(|node_port| node_port != 0) {
        page.line(0, format!("NodePort:\t{name}\t{}/{protocol}", scalar(&port["nodePort"])));
    }
    page.line(0, format!("Endpoints:\t{}", endpoints(text(&port["name"]), slices)));
}

/// The ready endpoints of a port.
fn endpoints(port: &str, slices: &[Tree]) -> String {
    if slices.is_empty() {
        return NONE.to_owned();
    }
    let mut found = Vec::new();
    for slice in slices {
        for port in list(&slice["ports"]).iter().filter(|known| text(&known["name"]) == port) {
            let ready = list(&slice["endpoints"]).iter().filter(|endpoint| endpoint["conditions"]["ready"] != false);
            for address in ready.flat_map(|endpoint| list(&endpoint["addresses"])).map(text) {
                let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
                found.push(format!("{host}:{}", scalar(&port["port"])));
            }
        }
    }
    let more = match found.len().saturating_sub(ENDPOINTS_MAX) {
        0 => String::new(),
        more => format!(" + {more} more..."),
    };
    found.truncate(ENDPOINTS_MAX);
    found.join(",") + &more
}
