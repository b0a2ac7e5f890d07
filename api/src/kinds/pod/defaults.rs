//! What upstream fills in a pod when it is left out. Templates get less than pods: requests from limits and service
//! links are settled when a pod is made.

use serde_json::{Map, json};

use crate::quantity::Quantity;
use crate::{Tree, meta};

/// How long a pod stays on a node that is not ready or not reachable.
const NODE_FAULT_TOLERATION_SECONDS: i64 = 300;

/// Fills a pod.
pub(in crate::kinds) fn pod(tree: &mut Tree) {
    let spec = meta::map_of(tree).entry("spec").or_insert(Tree::Null);
    meta::map_of(spec);
    meta::set_default(spec, "enableServiceLinks", true);
    let host_network = meta::truth(spec, "hostNetwork");
    pod_spec(spec);
    for containers in ["containers", "initContainers"] {
        for container in entries(spec, containers) {
            requests_from_limits(container);
            if host_network {
                for port in entries(container, "ports") {
                    let number = port.get("containerPort").cloned().unwrap_or(Tree::Null);
                    meta::set_default(port, "hostPort", number);
                }
            }
        }
    }
}

/// Fills the template of a Deployment or ReplicaSet.
pub(in crate::kinds) fn template(owner: &mut Tree) {
    if let Some(template) = meta::at_mut(owner, "spec.template") {
        let spec = meta::map_of(template).entry("spec").or_insert(Tree::Null);
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Tree) {
    for volume in entries(spec, "volumes") {
        volume_defaults(volume);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for entry in entries(spec, list) {
            container(entry);
        }
    }
    set_text(spec, "restartPolicy", "Always");
    meta::set_default(spec, "terminationGracePeriodSeconds", super::GRACE_S);
    set_text(spec, "dnsPolicy", "ClusterFirst");
    // Both spellings of the service account say the same; the newer one rules.
    match (meta::text(spec, "serviceAccountName").to_owned(), meta::text(spec, "serviceAccount").to_owned()) {
        (name, _) if !name.is_empty() => meta::set(spec, "serviceAccount", name),
        (_, name) if !name.is_empty() => meta::set(spec, "serviceAccountName", name),
        _ => {}
    }
    meta::set_default(spec, "securityContext", Map::new());
    set_text(spec, "schedulerName", "default-scheduler");
}

fn container(container: &mut Tree) {
    for port in entries(container, "ports") {
        set_text(port, "protocol", "TCP");
    }
    for variable in entries(container, "env") {
        field_ref(variable, "valueFrom.fieldRef");
    }
    meta::set_default(container, "resources", Map::new());
    canonical(container, "resources.limits");
    canonical(container, "resources.requests");
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = meta::at_mut(container, name) {
            probe_defaults(probe);
        }
    }
    for name in ["lifecycle.postStart", "lifecycle.preStop"] {
        if let Some(handler) = meta::at_mut(container, name) {
            http_defaults(handler);
        }
    }
    set_text(container, "terminationMessagePath", "/dev/termination-log");
    set_text(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(meta::text(container, "image"));
    set_text(container, "imagePullPolicy", policy);
}

fn probe_defaults(probe: &mut Tree) {
    http_defaults(probe);
    if let Some(grpc) = meta::at_mut(probe, "grpc") {
        meta::set_default(grpc, "service", "");
    }
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if meta::int(probe, field).unwrap_or(0) == 0 {
            meta::set(probe, field, value);
        }
    }
}

fn http_defaults(handler: &mut Tree) {
    if let Some(http) = meta::at_mut(handler, "httpGet") {
        set_text(http, "path", "/");
        set_text(http, "scheme", "HTTP");
    }
}

fn volume_defaults(volume: &mut Tree) {
    let has_source =
        volume.as_object().is_some_and(|map| map.iter().any(|(key, value)| key != "name" && !value.is_null()));
    if volume.is_object() && !has_source {
        meta::set(volume, "emptyDir", Map::new());
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = meta::at_mut(volume, source) {
            meta::set_default(source, "defaultMode", 420);
        }
    }
    if let Some(path) = meta::at_mut(volume, "hostPath") {
        meta::set_default(path, "type", "");
    }
    if let Some(size) = meta::at_mut(volume, "emptyDir.sizeLimit") {
        canonical_value(size);
    }
    if let Some(image) = meta::at_mut(volume, "image") {
        let policy = pull_policy(meta::text(image, "reference"));
        set_text(image, "pullPolicy", policy);
    }
    if let Some(downward) = meta::at_mut(volume, "downwardAPI") {
        for item in entries(downward, "items") {
            field_ref(item, "fieldRef");
        }
    }
    let Some(projected) = meta::at_mut(volume, "projected") else { return };
    for source in entries(projected, "sources") {
        if let Some(token) = meta::at_mut(source, "serviceAccountToken") {
            meta::set_default(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = meta::at_mut(source, "downwardAPI") {
            for item in entries(downward, "items") {
                field_ref(item, "fieldRef");
            }
        }
    }
}

fn field_ref(tree: &mut Tree, path: &str) {
    if let Some(reference) = meta::at_mut(tree, path) {
        set_text(reference, "apiVersion", "v1");
    }
}

/// `Always` for the tag `latest`, said or meant; a text that names no image counts as tagged, as upstream has it.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let path = name.rsplit('/').next().unwrap_or(name);
    let tag = path.split_once(':').map(|(_, tag)| tag);
    let readable = !name.is_empty() && !name.contains("://") && !name.contains(char::is_whitespace);
    match tag {
        Some("latest") if readable => "Always",
        None if readable && !digest => "Always",
        _ => "IfNotPresent",
    }
}

/// A limit without a request asks for as much as it limits.
fn requests_from_limits(container: &mut Tree) {
    let Some(limits) = meta::map(container, "resources.limits").cloned() else { return };
    let Some(resources) = meta::at_mut(container, "resources") else { return };
    let requests = meta::map_of(meta::map_of(resources).entry("requests").or_insert(Tree::Null));
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

/// Writes the quantities of a map in their canonical form.
pub(in crate::kinds) fn canonical(tree: &mut Tree, path: &str) {
    for (_, value) in meta::at_mut(tree, path).and_then(Tree::as_object_mut).into_iter().flatten() {
        canonical_value(value);
    }
}

fn canonical_value(value: &mut Tree) {
    let text = match &*value {
        Tree::String(text) => text.clone(),
        Tree::Number(number) => number.to_string(),
        _ => return,
    };
    if let Ok(quantity) = Quantity::parse(&text) {
        let canonical = quantity.to_canonical();
        if value.as_str() != Some(canonical.as_str()) {
            *value = canonical.into();
        }
    }
}

/// What built-in admission adds to every new pod.
pub(super) fn admit(tree: &mut Tree) {
    let spec = meta::map_of(tree).entry("spec").or_insert(Tree::Null);
    if meta::text(spec, "serviceAccountName").is_empty() {
        meta::set(spec, "serviceAccountName", "default");
        meta::set(spec, "serviceAccount", "default");
    }
    tolerate(spec, "node.kubernetes.io/not-ready");
    tolerate(spec, "node.kubernetes.io/unreachable");
    if meta::at(spec, "priority").is_none() {
        let priority = priority_of_class(meta::text(spec, "priorityClassName"));
        meta::set(spec, "priority", priority);
    }
    set_text(spec, "preemptionPolicy", "PreemptLowerPriority");
}

/// The priority of the two classes that every cluster has; zero for pods without a class.
fn priority_of_class(class: &str) -> i64 {
    match class {
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        _ => 0,
    }
}

fn tolerate(spec: &mut Tree, taint: &str) {
    let covers = |toleration: &Tree| {
        let key = meta::text(toleration, "key");
        let effect = meta::text(toleration, "effect");
        (key == taint || (key.is_empty() && meta::text(toleration, "operator") == "Exists"))
            && (effect == "NoExecute" || effect.is_empty())
    };
    if meta::list(spec, "tolerations").iter().any(covers) {
        return;
    }
    let tolerations = meta::map_of(spec).entry("tolerations").or_insert(Tree::Null);
    if !tolerations.is_array() {
        *tolerations = Tree::Array(Vec::new());
    }
    if let Some(list) = tolerations.as_array_mut() {
        list.push(json!({"key": taint, "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": NODE_FAULT_TOLERATION_SECONDS}));
    }
}

/// `Guaranteed` if every container limits both cpu and memory to what it requests, `BestEffort` if none asks for
/// anything, `Burstable` otherwise.
pub(super) fn qos_class(tree: &Tree) -> &'static str {
    let containers = || meta::list(tree, "spec.containers").iter().chain(meta::list(tree, "spec.initContainers"));
    let amount = |container: &Tree, map: &str, name: &str| {
        let value = meta::map(container, map)?.get(name)?;
        Quantity::parse(value.as_str()?).ok().filter(|quantity| !quantity.is_zero())
    };
    let names = ["cpu", "memory"];
    let asks = |container: &Tree| {
        let maps = ["resources.requests", "resources.limits"];
        names.iter().any(|name| maps.iter().any(|map| amount(container, map, name).is_some()))
    };
    let settled = |container: &Tree| {
        names.iter().all(|name| {
            let limit = amount(container, "resources.limits", name);
            limit.is_some() && amount(container, "resources.requests", name) == limit
        })
    };
    if !containers().any(asks) {
        "BestEffort"
    } else if containers().all(settled) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// The entries of a list, to be changed.
pub(in crate::kinds) fn entries<'a>(tree: &'a mut Tree, path: &str) -> impl Iterator<Item = &'a mut Tree> {
    meta::at_mut(tree, path).and_then(Tree::as_array_mut).into_iter().flatten().filter(|entry| entry.is_object())
}

/// Puts a text where none or an empty one is.
pub(in crate::kinds) fn set_text(tree: &mut Tree, path: &str, text: &str) {
    if meta::text(tree, path).is_empty() {
        meta::set(tree, path, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies_follow_the_tag() {
        let cases = [
            ("hello", "Always"),
            ("hello:latest", "Always"),
            ("hello:1.0", "IfNotPresent"),
            ("r:5000/a/hello", "Always"),
            ("r:5000/hello:1", "IfNotPresent"),
            ("hello@sha256:aa", "IfNotPresent"),
            ("", "IfNotPresent"),
            ("hello:latest@sha256:aa", "Always"),
            ("file:///tmp/x.wasm", "IfNotPresent"),
        ];
        for (image, policy) in cases {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn qos_follows_requests_and_limits() {
        let pod = |resources: Tree| json!({"spec": {"containers": [{"resources": resources}]}});
        let both = json!({"cpu": "1", "memory": "1Mi"});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(json!({"requests": {"cpu": "1"}}))), "Burstable");
        assert_eq!(qos_class(&pod(json!({"requests": both, "limits": both}))), "Guaranteed");
    }
}
