//! The faults of containers: images, ports, environment, mounts, resources, probes.

use std::collections::BTreeSet;

use super::ephemeral;
use crate::field::{Fault, Faults, Path};
use crate::quantity::Quantity;
use crate::{Tree, meta, validate};

/// The fields of a pod that a variable may show.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Which list a container stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Init,
    Main,
    Ephemeral,
}

/// All containers of a spec.
pub(super) fn all(path: &Path<'_>, spec: &Tree, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let mut names = BTreeSet::new();
    let list = path.field("containers");
    let containers = meta::list(spec, "containers");
    if containers.is_empty() {
        faults.push(Fault::required(list, ""));
    }
    for (i, container) in containers.iter().enumerate() {
        one(&list.index(i), container, Role::Main, volumes, &mut names, faults);
        sleeps(&list.index(i), container, spec, faults);
    }
    let list = path.field("initContainers");
    for (i, container) in meta::list(spec, "initContainers").iter().enumerate() {
        one(&list.index(i), container, Role::Init, volumes, &mut names, faults);
        sleeps(&list.index(i), container, spec, faults);
    }
    let others = names.clone();
    let list = path.field("ephemeralContainers");
    for (i, container) in meta::list(spec, "ephemeralContainers").iter().enumerate() {
        one(&list.index(i), container, Role::Ephemeral, volumes, &mut names, faults);
        ephemeral::validate(&list.index(i), container, &others, faults);
    }
    host_ports(path, spec, faults);
}

fn one<'a>(
    path: &Path<'_>,
    container: &'a Tree,
    role: Role,
    volumes: &BTreeSet<&str>,
    names: &mut BTreeSet<&'a str>,
    faults: &mut Faults,
) {
    let name = meta::text(container, "name");
    if name.is_empty() {
        faults.push(Fault::required(path.field("name"), ""));
    } else {
        validate::push_all(&path.field("name"), name, validate::dns1123_label(name), faults);
        if !names.insert(name) {
            faults.push(Fault::duplicate(path.field("name"), name));
        }
    }
    let image = meta::text(container, "image");
    if image.is_empty() {
        faults.push(Fault::required(path.field("image"), ""));
    } else if image.trim() != image {
        faults.push(Fault::invalid(path.field("image"), image, "must not have leading or trailing whitespace"));
    }
    let message = meta::text(container, "terminationMessagePolicy");
    let supported = &["FallbackToLogsOnError", "File"];
    validate::one_of(&path.field("terminationMessagePolicy"), message, supported, faults);
    if role != Role::Ephemeral {
        ports(&path.field("ports"), container, faults);
    }
    environment(&path.field("env"), container, faults);
    environment_sources(&path.field("envFrom"), container, faults);
    mounts(&path.field("volumeMounts"), container, volumes, faults);
    let policy = meta::text(container, "imagePullPolicy");
    validate::one_of(&path.field("imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"], faults);
    // What these may not have at all is no fault of another kind as well.
    if role != Role::Ephemeral {
        resources(&path.field("resources"), container, faults);
        life(path, container, role, faults);
    }
}

fn ports(path: &Path<'_>, container: &Tree, faults: &mut Faults) {
    let mut names = BTreeSet::new();
    for (i, port) in meta::list(container, "ports").iter().enumerate() {
        let path = path.index(i);
        let name = meta::text(port, "name");
        if !name.is_empty() {
            let words = validate::port_name(name);
            let right = words.is_empty();
            validate::push_all(&path.field("name"), name, words, faults);
            if right && !names.insert(name) {
                faults.push(Fault::duplicate(path.field("name"), name));
            }
        }
        match meta::int(port, "containerPort").unwrap_or(0) {
            0 => faults.push(Fault::required(path.field("containerPort"), "")),
            number => validate::push_all(&path.field("containerPort"), number, validate::port(number), faults),
        }
        match meta::int(port, "hostPort").unwrap_or(0) {
            0 => {}
            number => validate::push_all(&path.field("hostPort"), number, validate::port(number), faults),
        }
        match meta::text(port, "protocol") {
            "" => faults.push(Fault::required(path.field("protocol"), "")),
            protocol => validate::one_of(&path.field("protocol"), protocol, &["SCTP", "TCP", "UDP"], faults),
        }
    }
}

/// No two containers may want one port of the host.
fn host_ports(path: &Path<'_>, spec: &Tree, faults: &mut Faults) {
    let mut taken = BTreeSet::new();
    let containers = path.field("containers");
    for (i, container) in meta::list(spec, "containers").iter().enumerate() {
        let path = containers.index(i);
        let ports = path.field("ports");
        for (j, port) in meta::list(container, "ports").iter().enumerate() {
            let number = meta::int(port, "hostPort").unwrap_or(0);
            let key = format!("{}/{}/{number}", meta::text(port, "protocol"), meta::text(port, "hostIP"));
            if number != 0 && !taken.insert(key.clone()) {
                let path = ports.index(j);
                faults.push(Fault::duplicate(path.field("hostPort"), key));
            }
        }
    }
}

fn environment(path: &Path<'_>, container: &Tree, faults: &mut Faults) {
    for (i, variable) in meta::list(container, "env").iter().enumerate() {
        let path = path.index(i);
        let name = meta::text(variable, "name");
        if name.is_empty() {
            faults.push(Fault::required(path.field("name"), ""));
        } else {
            validate::push_all(&path.field("name"), name, validate::env_var_name(name), faults);
        }
        if let Some(from) = meta::at(variable, "valueFrom") {
            value_from(&path.field("valueFrom"), variable, from, faults);
        }
    }
}

fn value_from(path: &Path<'_>, variable: &Tree, from: &Tree, faults: &mut Faults) {
    let sources: Vec<(&String, &Tree)> =
        from.as_object().into_iter().flatten().filter(|(_, it)| !it.is_null()).collect();
    if sources.is_empty() {
        let words =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        faults.push(Fault::invalid(path, "", words));
    } else if !meta::text(variable, "value").is_empty() {
        faults.push(Fault::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if sources.len() > 1 {
        faults.push(Fault::invalid(path, "", "may not have more than one field specified at a time"));
    }
    for (name, source) in sources {
        let path = path.field(name);
        match name.as_str() {
            "fieldRef" => field_ref(&path, source, ENV_FIELDS, faults),
            "resourceFieldRef" => resource_ref(&path, source, faults),
            "configMapKeyRef" | "secretKeyRef" => key_ref(&path, source, faults),
            _ => {}
        }
    }
}

/// A reference to a field of the pod itself; single labels and annotations may always be shown.
pub(super) fn field_ref(path: &Path<'_>, source: &Tree, supported: &[&str], faults: &mut Faults) {
    let field = meta::text(source, "fieldPath");
    let path = path.field("fieldPath");
    if field.is_empty() {
        faults.push(Fault::required(path, ""));
        return;
    }
    let subscript = ["metadata.labels['", "metadata.annotations['"].iter().find_map(|begin| field.strip_prefix(begin));
    match subscript.and_then(|rest| rest.strip_suffix("']")) {
        Some(key) => validate::push_all(&path, field, validate::qualified_name(key), faults),
        None => validate::one_of(&path, field, supported, faults),
    }
}

fn resource_ref(path: &Path<'_>, source: &Tree, faults: &mut Faults) {
    let resource = meta::text(source, "resource");
    let known = [
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
    ];
    if resource.is_empty() {
        faults.push(Fault::required(path.field("resource"), ""));
    } else if !resource.contains(".hugepages-") {
        let mut sorted = known;
        sorted.sort_unstable();
        validate::one_of(&path.field("resource"), resource, &sorted, faults);
    }
}

fn key_ref(path: &Path<'_>, source: &Tree, faults: &mut Faults) {
    if meta::text(source, "name").is_empty() {
        faults.push(Fault::required(path.field("name"), ""));
    }
    match meta::text(source, "key") {
        "" => faults.push(Fault::required(path.field("key"), "")),
        key => validate::push_all(&path.field("key"), key, validate::config_key(key), faults),
    }
}

fn environment_sources(path: &Path<'_>, container: &Tree, faults: &mut Faults) {
    for (i, source) in meta::list(container, "envFrom").iter().enumerate() {
        let path = path.index(i);
        let prefix = meta::text(source, "prefix");
        if !prefix.is_empty() {
            validate::push_all(&path.field("prefix"), prefix, validate::env_var_name(prefix), faults);
        }
        let found: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|name| meta::at(source, name).is_some()).collect();
        match found.as_slice() {
            [] => faults.push(Fault::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
            [_] => {}
            _ => faults.push(Fault::invalid(path, "", "may not have more than one field specified at a time")),
        }
        for name in found {
            if source.get(name).is_some_and(|reference| meta::text(reference, "name").is_empty()) {
                let path = path.field(name);
                faults.push(Fault::required(path.field("name"), ""));
            }
        }
    }
}

fn mounts(path: &Path<'_>, container: &Tree, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let mut points = BTreeSet::new();
    for (i, mount) in meta::list(container, "volumeMounts").iter().enumerate() {
        let path = path.index(i);
        let name = meta::text(mount, "name");
        if name.is_empty() {
            faults.push(Fault::required(path.field("name"), ""));
        } else if !volumes.contains(name) {
            faults.push(Fault::not_found(path.field("name"), name));
        }
        let point = meta::text(mount, "mountPath");
        if point.is_empty() {
            faults.push(Fault::required(path.field("mountPath"), ""));
        } else if !points.insert(point) {
            faults.push(Fault::invalid(path.field("mountPath"), point, "must be unique"));
        }
        let sub_path = meta::text(mount, "subPath");
        if !sub_path.is_empty() {
            super::volumes::relative(&path.field("subPath"), sub_path, faults);
        }
        let template = meta::text(mount, "subPathExpr");
        if !template.is_empty() {
            if !sub_path.is_empty() {
                let words = "subPathExpr and subPath are mutually exclusive";
                faults.push(Fault::invalid(path.field("subPathExpr"), template, words));
            }
            super::volumes::relative(&path.field("subPathExpr"), template, faults);
        }
    }
}

fn resources(path: &Path<'_>, container: &Tree, faults: &mut Faults) {
    let limits = meta::map(container, "resources.limits");
    amounts(&path.field("limits"), limits, faults);
    let requests = meta::map(container, "resources.requests");
    amounts(&path.field("requests"), requests, faults);
    for (name, request) in requests.into_iter().flatten() {
        let limit = limits.and_then(|limits| limits.get(name)).and_then(amount);
        let (Some(request), Some(limit)) = (amount(request), limit) else { continue };
        if request > limit {
            let words = format!("must be less than or equal to {name} limit of {limit}");
            faults.push(Fault::invalid(path.field("requests"), request.to_canonical(), words));
        }
    }
}

fn amount(value: &Tree) -> Option<Quantity> {
    match value {
        Tree::String(text) => Quantity::parse(text).ok(),
        Tree::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

fn amounts(path: &Path<'_>, map: Option<&serde_json::Map<String, Tree>>, faults: &mut Faults) {
    for (name, value) in map.into_iter().flatten() {
        let path = path.key(name);
        let words = validate::qualified_name(name);
        let named = words.is_empty();
        validate::push_all(&path, name.as_str(), words, faults);
        let standard =
            matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if named && !standard && !name.contains('/') {
            faults.push(Fault::invalid(path, name.as_str(), "must be a standard resource type or fully qualified"));
            faults.push(Fault::invalid(path, name.as_str(), "must be a standard resource for containers"));
        }
        match amount(value) {
            Some(quantity) if quantity.is_negative() => {
                let words = "must be greater than or equal to 0";
                faults.push(Fault::invalid(path, quantity.to_canonical(), words));
            }
            Some(quantity) if name.contains('/') && !quantity.is_whole() => {
                faults.push(Fault::invalid(path, quantity.to_canonical(), "must be an integer"));
            }
            Some(_) => {}
            None => {
                let words = crate::quantity::QuantityError::Form.to_string();
                faults.push(Fault::invalid(path, value.clone(), words));
            }
        }
    }
}

/// Probes and life-cycle hooks. An ordinary init container runs once, so it can have none of them.
fn life(path: &Path<'_>, container: &Tree, role: Role, faults: &mut Faults) {
    let restart = meta::text(container, "restartPolicy");
    let once = role == Role::Init && restart != "Always";
    if role == Role::Main && !restart.is_empty() {
        faults.push(Fault::forbidden(path.field("restartPolicy"), "may not be set for non-init containers"));
    } else if !restart.is_empty() {
        validate::one_of(&path.field("restartPolicy"), restart, &["Always"], faults);
    }
    if let Some(hooks) = meta::at(container, "lifecycle") {
        let path = path.field("lifecycle");
        if once {
            faults.push(Fault::forbidden(path, "may not be set for init containers without restartPolicy=Always"));
        }
        for name in ["postStart", "preStop"] {
            if let Some(hook) = meta::at(hooks, name) {
                handler(&path.field(name), hook, &["exec", "httpGet", "tcpSocket", "sleep"], faults);
            }
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(it) = meta::at(container, name) else { continue };
        let path = path.field(name);
        if once {
            faults.push(Fault::forbidden(path, "may not be set for init containers without restartPolicy=Always"));
            continue;
        }
        probe(&path, it, faults);
        let threshold = meta::int(it, "successThreshold").unwrap_or(1);
        if name != "readinessProbe" && threshold != 1 {
            faults.push(Fault::invalid(path.field("successThreshold"), threshold, "must be 1"));
        }
    }
}

/// Hooks that sleep have to be over before the pod is killed.
fn sleeps(path: &Path<'_>, container: &Tree, spec: &Tree, faults: &mut Faults) {
    // A grace period that is no number of seconds has a fault of its own.
    let grace = meta::int(spec, "terminationGracePeriodSeconds").filter(|grace| *grace >= 0);
    let Some((hooks, grace)) = meta::at(container, "lifecycle").zip(grace) else { return };
    let path = path.field("lifecycle");
    for name in ["postStart", "preStop"] {
        let Some(sleep) = meta::at(hooks, name).and_then(|hook| meta::at(hook, "sleep")) else { continue };
        let seconds = meta::int(sleep, "seconds").unwrap_or(0);
        if !(0..=grace).contains(&seconds) {
            let words = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            faults.push(Fault::invalid(path.field(name).field("sleep"), seconds, words));
        }
    }
}

fn probe(path: &Path<'_>, probe: &Tree, faults: &mut Faults) {
    handler(path, probe, &["exec", "httpGet", "tcpSocket", "grpc"], faults);
    let fields = ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    for field in fields {
        validate::not_negative(&path.field(field), meta::int(probe, field), faults);
    }
    let grace = meta::int(probe, "terminationGracePeriodSeconds");
    if let Some(grace) = grace.filter(|grace| *grace <= 0) {
        faults.push(Fault::invalid(path.field("terminationGracePeriodSeconds"), grace, "must be greater than 0"));
    }
}

fn handler(path: &Path<'_>, tree: &Tree, kinds: &[&str], faults: &mut Faults) {
    let found: Vec<&str> = kinds.iter().copied().filter(|name| meta::at(tree, name).is_some()).collect();
    if found.is_empty() {
        faults.push(Fault::required(path, "must specify a handler type"));
    }
    for (i, name) in found.into_iter().enumerate() {
        let at = path.field(name);
        if i > 0 {
            faults.push(Fault::forbidden(at, "may not specify more than 1 handler type"));
            continue;
        }
        let action = &tree[name];
        match name {
            "exec" if meta::list(action, "command").is_empty() => {
                faults.push(Fault::required(at.field("command"), ""));
            }
            "httpGet" => http_get(&at, action, faults),
            "tcpSocket" => port_or_name(&at.field("port"), action.get("port"), faults),
            "grpc" => {
                let number = meta::int(action, "port").unwrap_or(0);
                validate::push_all(&at.field("port"), number, validate::port(number), faults);
            }
            _ => {}
        }
    }
}

fn http_get(path: &Path<'_>, action: &Tree, faults: &mut Faults) {
    if meta::text(action, "path").is_empty() {
        faults.push(Fault::required(path.field("path"), ""));
    }
    port_or_name(&path.field("port"), action.get("port"), faults);
    validate::one_of(&path.field("scheme"), meta::text(action, "scheme"), &["HTTP", "HTTPS"], faults);
    let headers = path.field("httpHeaders");
    for (i, header) in meta::list(action, "httpHeaders").iter().enumerate() {
        let name = meta::text(header, "name");
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            let words = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', \
                         regex used for validation is '[-A-Za-z0-9]+')";
            let path = headers.index(i);
            faults.push(Fault::invalid(path.field("name"), name, words));
        }
    }
}

/// A port by number or by name.
pub(in crate::kinds) fn port_or_name(path: &Path<'_>, value: Option<&Tree>, faults: &mut Faults) {
    match value {
        Some(Tree::String(name)) => validate::push_all(path, name.as_str(), validate::port_name(name), faults),
        value => {
            let number = value.and_then(Tree::as_i64).unwrap_or(0);
            validate::push_all(path, number, validate::port(number), faults);
        }
    }
}
