//! Groups that have no kinds in the table: their objects are made when somebody asks, never stored.

use serde_json::json;

use crate::Tree;

/// What nodes and pods use.
pub const METRICS_GROUP: &str = "metrics.k8s.io";
/// Its only version.
pub const METRICS_VERSION: &str = "v1beta1";

/// Whom the server takes somebody for.
pub const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
/// Its only version.
pub const AUTHENTICATION_VERSION: &str = "v1";

/// One such group.
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    resources: &'static [Resource],
    verbs: &'static [&'static str],
}

struct Resource {
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
}

const fn of_cluster(plural: &'static str, singular: &'static str, kind: &'static str) -> Resource {
    Resource { plural, singular, kind, namespaced: false }
}

/// All of them.
pub(super) const GROUPS: [Group; 2] = [
    Group {
        name: AUTHENTICATION_GROUP,
        version: AUTHENTICATION_VERSION,
        resources: &[
            of_cluster("selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview"),
            of_cluster("tokenreviews", "tokenreview", "TokenReview"),
        ],
        verbs: &["create"],
    },
    Group {
        name: METRICS_GROUP,
        version: METRICS_VERSION,
        resources: &[
            of_cluster("nodes", "", "NodeMetrics"),
            Resource { plural: "pods", singular: "", kind: "PodMetrics", namespaced: true },
        ],
        verbs: &["get", "list"],
    },
];

impl Group {
    fn group_version(&self) -> String {
        format!("{}/{}", self.name, self.version)
    }

    /// An entry of `APIGroupList`.
    pub(super) fn body(&self) -> Tree {
        let version = json!({"groupVersion": self.group_version(), "version": self.version});
        json!({"name": self.name, "versions": [version], "preferredVersion": version})
    }

    /// The group's resources, as the plain document names them.
    pub(super) fn resource_list(&self) -> Tree {
        let resources = self.resources.iter().map(|resource| {
            json!({
                "name": resource.plural,
                "singularName": resource.singular,
                "namespaced": resource.namespaced,
                "kind": resource.kind,
                "verbs": self.verbs,
            })
        });
        let resources: Vec<Tree> = resources.collect();
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": self.group_version(), "resources": resources,
        })
    }

    /// The group in an aggregated document.
    pub(super) fn aggregated(&self) -> Tree {
        let resources = self.resources.iter().map(|resource| {
            json!({
                "resource": resource.plural,
                "responseKind": {"group": self.name, "version": self.version, "kind": resource.kind},
                "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": resource.singular,
                "verbs": self.verbs,
            })
        });
        let resources: Vec<Tree> = resources.collect();
        let version = json!({"version": self.version, "resources": resources, "freshness": "Current"});
        json!({"metadata": {"name": self.name, "creationTimestamp": null}, "versions": [version]})
    }
}
