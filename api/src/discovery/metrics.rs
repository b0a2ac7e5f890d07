//! The group `metrics.k8s.io`, which has no kinds in the table: its objects are made when somebody asks, never stored.

use serde_json::json;

use crate::Tree;

/// The group's name.
pub const METRICS_GROUP: &str = "metrics.k8s.io";
/// Its only version.
pub const METRICS_VERSION: &str = "v1beta1";

/// Plural, kind, whether namespaced.
const RESOURCES: [(&str, &str, bool); 2] = [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)];
const VERBS: [&str; 2] = ["get", "list"];

/// An entry of `APIGroupList`.
pub(super) fn group_body() -> Tree {
    let version = json!({"groupVersion": format!("{METRICS_GROUP}/{METRICS_VERSION}"), "version": METRICS_VERSION});
    json!({"name": METRICS_GROUP, "versions": [version], "preferredVersion": version})
}

/// The group's resources, as the plain document names them.
pub(super) fn resource_list() -> Tree {
    let resources = RESOURCES.map(
        |(plural, kind, namespaced)| json!({"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": VERBS}),
    );
    let group_version = format!("{METRICS_GROUP}/{METRICS_VERSION}");
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}

/// The group in an aggregated document.
pub(super) fn aggregated() -> Tree {
    let resources = RESOURCES.map(|(plural, kind, namespaced)| {
        json!({
            "resource": plural,
            "responseKind": {"group": METRICS_GROUP, "version": METRICS_VERSION, "kind": kind},
            "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": "",
            "verbs": VERBS,
        })
    });
    let version = json!({"version": METRICS_VERSION, "resources": resources, "freshness": "Current"});
    json!({"metadata": {"name": METRICS_GROUP, "creationTimestamp": null}, "versions": [version]})
}
