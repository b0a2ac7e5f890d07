//! Nodes.

use super::Object;
use super::common::{NONE, age, annotations, labels, list, names, scalar, sorted, text, time};
use super::page::Page;
use dhow_api::quantity::Quantity;
use dhow_api::{Tree, meta};

const ROLE: &str = "node-role.kubernetes.io/";

/// Where a node's pods that have not ended are, and its lease.
pub(super) fn around(node: &Tree) -> Vec<String> {
    let name = meta::name(node);
    vec![
        format!(
            "/api/v1/pods?fieldSelector=spec.nodeName%3D{name}%2Cstatus.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed"
        ),
        format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases?fieldSelector=metadata.name%3D{name}"),
    ]
}

pub(super) fn node(page: &mut Page, object: &Object<'_>) {
    let node = object.tree;
    let (spec, status) = (&node["spec"], &node["status"]);
    names(page, node);
    let mut roles: Vec<&str> = meta::labels(node).filter_map(|(key, _)| key.strip_prefix(ROLE)).collect();
    roles.sort_unstable();
    page.line(0, format!("Roles:\t{}", if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }));
    labels(page, "Labels", &node["metadata"]["labels"]);
    annotations(page, "Annotations", &node["metadata"]["annotations"]);
    page.line(0, format!("CreationTimestamp:\t{}", time(&node["metadata"]["creationTimestamp"])));
    taints(page, &spec["taints"]);
    page.line(0, format!("Unschedulable:\t{}", spec["unschedulable"] == true));
    lease(page, object.related(1).first().unwrap_or(&Tree::Null));
    conditions(page, status);
    page.line(0, "Addresses:");
    for address in list(&status["addresses"]) {
        page.line(1, format!("{}:\t{}", text(&address["type"]), text(&address["address"])));
    }
    for (title, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        page.line(0, format!("{title}:"));
        for (name, amount) in sorted(&status[field]) {
            page.line(1, format!("{name}:\t{}", scalar(amount)));
        }
    }
    system(page, &status["nodeInfo"]);
    if !text(&spec["podCIDR"]).is_empty() {
        page.line(0, format!("PodCIDR:\t{}", text(&spec["podCIDR"])));
    }
    let ranges: Vec<&str> = list(&spec["podCIDRs"]).iter().map(text).collect();
    if !ranges.is_empty() {
        page.line(0, format!("PodCIDRs:\t{}", ranges.join(",")));
    }
    pods(page, object);
}

fn taints(page: &mut Page, taints: &Tree) {
    let written = |taint: &Tree| {
        let [key, value, effect] = ["key", "value", "effect"].map(|field| text(&taint[field]));
        if value.is_empty() { format!("{key}:{effect}") } else { format!("{key}={value}:{effect}") }
    };
    let mut taints: Vec<String> = list(taints).iter().map(written).collect();
    taints.sort_unstable();
    if taints.is_empty() {
        page.line(0, format!("Taints:\t{NONE}"));
    }
    for (index, taint) in taints.iter().enumerate() {
        page.line(0, format!("{}\t{taint}", if index == 0 { "Taints:" } else { "" }));
    }
}

fn lease(page: &mut Page, lease: &Tree) {
    let spec = &lease["spec"];
    page.line(0, "Lease:");
    let holder = spec["holderIdentity"].as_str().unwrap_or("<unset>");
    page.line(1, format!("HolderIdentity:\t{holder}"));
    page.line(1, format!("AcquireTime:\t{}", time(&spec["acquireTime"])));
    page.line(1, format!("RenewTime:\t{}", time(&spec["renewTime"])));
}

fn conditions(page: &mut Page, status: &Tree) {
    let conditions = list(&status["conditions"]);
    if conditions.is_empty() {
        return;
    }
    page.line(0, "Conditions:");
    page.line(1, "Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage");
    page.line(1, "----\t------\t-----------------\t------------------\t------\t-------");
    for condition in conditions {
        let [ty, status, reason, message] =
            ["type", "status", "reason", "message"].map(|field| text(&condition[field]));
        let [heartbeat, transition] = ["lastHeartbeatTime", "lastTransitionTime"].map(|field| time(&condition[field]));
        page.line(1, format!("{ty} \t{status} \t{heartbeat} \t{transition} \t{reason} \t{message}"));
    }
}

fn system(page: &mut Page, info: &Tree) {
    page.line(0, "System Info:");
    for (title, field) in [
        ("Machine ID", "machineID"),
        ("System UUID", "systemUUID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
    ] {
        page.line(1, format!("{title}:\t{}", text(&info[field])));
    }
}

/// What a node has for pods.
struct Allocatable<'a>(&'a Tree);

impl Allocatable<'_> {
    /// An amount with its share of what the node has: `250m (12%)`.
    fn share(&self, resource: &str, amount: Quantity) -> String {
        let all = self.0.get(resource).and_then(|all| Quantity::parse(&scalar(all)).ok()).unwrap_or(Quantity::ZERO);
        let percent = if all.is_zero() { 0 } else { amount.milli() * 100 / all.milli().max(1) };
        format!("{} ({percent}%)", amount.to_canonical())
    }
}

fn pods(page: &mut Page, object: &Object<'_>) {
    let allocatable = match &object.tree["status"]["allocatable"] {
        allocatable if allocatable.is_object() => Allocatable(allocatable),
        _ => Allocatable(&object.tree["status"]["capacity"]),
    };
    let mut pods: Vec<&Tree> = object.related(0).iter().collect();
    pods.sort_by_key(|pod| (meta::namespace(pod), meta::name(pod)));
    page.line(0, format!("Non-terminated Pods:\t({} in total)", pods.len()));
    page.line(1, "Namespace\tName\t\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge");
    page.line(1, "---------\t----\t\t------------\t----------\t---------------\t-------------\t---");
    for pod in &pods {
        let [cpu, cpu_max, memory, memory_max] =
            [("requests", "cpu"), ("limits", "cpu"), ("requests", "memory"), ("limits", "memory")]
                .map(|(kind, resource)| allocatable.share(resource, of_pod(pod, kind, resource)));
        let age = age(&pod["metadata"]["creationTimestamp"], object.now);
        let (namespace, name) = (meta::namespace(pod), meta::name(pod));
        page.line(1, format!("{namespace}\t{name}\t\t{cpu}\t{cpu_max}\t{memory}\t{memory_max}\t{age}"));
    }
    page.line(0, "Allocated resources:");
    page.line(1, "(Total limits may be over 100 percent, i.e., overcommitted.)");
    page.line(1, "Resource\tRequests\tLimits");
    page.line(1, "--------\t--------\t------");
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        let [requests, limits] = ["requests", "limits"].map(|kind| {
            let sum = pods.iter().fold(Quantity::ZERO, |sum, pod| added(sum, of_pod(pod, kind, resource)));
            allocatable.share(resource, sum)
        });
        page.line(1, format!("{resource}\t{requests}\t{limits}"));
    }
}

/// A sum in the form of its parts: nothing has no form of its own.
fn added(a: Quantity, b: Quantity) -> Quantity {
    if a.is_zero() { b } else { a + b }
}

/// What a pod asks for of a resource: its containers and sidecars together, or its largest other init container.
fn of_pod(pod: &Tree, kind: &str, resource: &str) -> Quantity {
    let amount = |container: &Tree| {
        let amount = container["resources"][kind].get(resource);
        amount.and_then(|amount| Quantity::parse(&scalar(amount)).ok()).unwrap_or(Quantity::ZERO)
    };
    let mut sidecars = Quantity::ZERO;
    let mut largest = Quantity::ZERO;
    for container in list(&pod["spec"]["initContainers"]) {
        if container["restartPolicy"] == "Always" {
            sidecars = added(sidecars, amount(container));
            largest = largest.max(sidecars);
        } else {
            largest = largest.max(added(sidecars, amount(container)));
        }
    }
    let running =
        list(&pod["spec"]["containers"]).iter().fold(sidecars, |sum, container| added(sum, amount(container)));
    running.max(largest)
}
