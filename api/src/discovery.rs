//! What the server tells clients about its groups, versions and resources: the plain documents and the aggregated ones.
//! All of it is read off the table of kinds, but for the groups that store nothing.

mod unstored;

pub use unstored::{AUTHENTICATION_GROUP, AUTHENTICATION_VERSION, METRICS_GROUP, METRICS_VERSION};

use serde_json::{Map, json};

use crate::Tree;
use crate::kinds::{self, Kind, Subresource};

/// `GET /api`
pub fn api_versions() -> Tree {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `GET /apis`
pub fn api_group_list() -> Tree {
    let unstored = unstored::GROUPS.iter().map(unstored::Group::body);
    let groups: Vec<Tree> = groups().into_iter().map(group_body).chain(unstored).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/<group>`
pub fn api_group(group: &str) -> Option<Tree> {
    let body = match unstored::GROUPS.iter().find(|known| known.name == group) {
        Some(unstored) => unstored.body(),
        None => group_body(groups().into_iter().find(|known| *known == group)?),
    };
    let mut tree = json!({"kind": "APIGroup", "apiVersion": "v1"});
    tree.as_object_mut()?.extend(body.as_object()?.clone());
    Some(tree)
}

/// `GET /api/v1` and `GET /apis/<group>/<version>`
pub fn resource_list(group: &str, version: &str) -> Option<Tree> {
    if let Some(unstored) = unstored::GROUPS.iter().find(|known| (known.name, known.version) == (group, version)) {
        return Some(unstored.resource_list());
    }
    let kinds = kinds_of(group, version);
    let api_version = kinds.first()?.api_version();
    let resources: Vec<Tree> = kinds.iter().flat_map(|kind| resource_entries(kind)).collect();
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": resources,
    }))
}

/// `GET /api` as an `APIGroupDiscoveryList` of `v2` or `v2beta1`.
pub fn aggregated_core(v: &str) -> Tree {
    aggregated(v, &[""])
}

/// `GET /apis` as an `APIGroupDiscoveryList` of `v2` or `v2beta1`.
pub fn aggregated_groups(v: &str) -> Tree {
    aggregated(v, &groups())
}

/// The named groups, in the table's order.
fn groups() -> Vec<&'static str> {
    let mut groups = Vec::new();
    for kind in kinds::all() {
        if !kind.group.is_empty() && !groups.contains(&kind.group) {
            groups.push(kind.group);
        }
    }
    groups
}

/// The versions of a group, preferred first.
fn versions(group: &str) -> Vec<&'static str> {
    let mut versions = Vec::new();
    for kind in kinds::all().iter().filter(|kind| kind.group == group) {
        if !versions.contains(&kind.version) {
            versions.push(kind.version);
        }
    }
    versions
}

fn kinds_of(group: &str, version: &str) -> Vec<&'static Kind> {
    let mut kinds: Vec<&Kind> =
        kinds::all().iter().copied().filter(|kind| kind.group == group && kind.version == version).collect();
    kinds.sort_by_key(|kind| kind.plural);
    kinds
}

fn group_body(group: &str) -> Tree {
    let versions: Vec<Tree> = versions(group)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn resource_entries(kind: &Kind) -> Vec<Tree> {
    let mut main = Map::new();
    main.insert("name".to_owned(), kind.plural.into());
    main.insert("singularName".to_owned(), kind.singular.into());
    main.insert("namespaced".to_owned(), kind.namespaced.into());
    main.insert("kind".to_owned(), kind.kind.into());
    main.insert("verbs".to_owned(), json!(kind.verbs));
    insert_names(&mut main, kind);
    let mut entries = vec![Tree::Object(main)];
    for subresource in sorted_subresources(kind) {
        let (group, version, name) = subresource.response(kind);
        let mut entry = Map::new();
        entry.insert("name".to_owned(), format!("{}/{}", kind.plural, subresource.name()).into());
        entry.insert("singularName".to_owned(), "".into());
        entry.insert("namespaced".to_owned(), kind.namespaced.into());
        if (group, version) != (kind.group, kind.version) {
            entry.insert("group".to_owned(), group.into());
            entry.insert("version".to_owned(), version.into());
        }
        entry.insert("kind".to_owned(), name.into());
        entry.insert("verbs".to_owned(), json!(subresource.verbs()));
        entries.push(Tree::Object(entry));
    }
    entries
}

fn insert_names(entry: &mut Map<String, Tree>, kind: &Kind) {
    if !kind.short_names.is_empty() {
        entry.insert("shortNames".to_owned(), json!(kind.short_names));
    }
    if !kind.categories.is_empty() {
        entry.insert("categories".to_owned(), json!(kind.categories));
    }
}

fn sorted_subresources(kind: &Kind) -> Vec<Subresource> {
    let mut subresources = kind.subresources.to_vec();
    subresources.sort_by_key(|subresource| subresource.name());
    subresources
}

fn aggregated(v: &str, groups: &[&str]) -> Tree {
    let mut items: Vec<Tree> = groups.iter().map(|group| aggregated_group(group)).collect();
    if !groups.contains(&"") {
        items.extend(unstored::GROUPS.iter().map(unstored::Group::aggregated));
    }
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{v}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &str) -> Tree {
    let mut metadata = Map::new();
    if !group.is_empty() {
        metadata.insert("name".to_owned(), group.into());
    }
    metadata.insert("creationTimestamp".to_owned(), Tree::Null);
    let versions: Vec<Tree> = versions(group)
        .into_iter()
        .map(|version| {
            let resources: Vec<Tree> = kinds_of(group, version).into_iter().map(aggregated_resource).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(kind: &Kind) -> Tree {
    let mut entry = Map::new();
    entry.insert("resource".to_owned(), kind.plural.into());
    entry.insert("responseKind".to_owned(), json!({"group": kind.group, "version": kind.version, "kind": kind.kind}));
    entry.insert("scope".to_owned(), if kind.namespaced { "Namespaced" } else { "Cluster" }.into());
    entry.insert("singularResource".to_owned(), kind.singular.into());
    entry.insert("verbs".to_owned(), json!(kind.verbs));
    insert_names(&mut entry, kind);
    let subresources: Vec<Tree> = sorted_subresources(kind)
        .into_iter()
        .map(|subresource| {
            let (group, version, name) = subresource.response(kind);
            json!({
                "subresource": subresource.name(),
                "responseKind": {"group": group, "version": version, "kind": name},
                "verbs": subresource.verbs(),
            })
        })
        .collect();
    if !subresources.is_empty() {
        entry.insert("subresources".to_owned(), subresources.into());
    }
    Tree::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta;

    #[test]
    fn plain_documents_name_groups_and_resources() {
        let list = api_group_list();
        let names: Vec<&str> = meta::list(&list, "groups").iter().map(|group| meta::text(group, "name")).collect();
        let stored = ["apps", "coordination.k8s.io", "discovery.k8s.io", "storage.k8s.io"];
        assert_eq!(names, [stored.as_slice(), &["authentication.k8s.io", "metrics.k8s.io"]].concat());
        assert_eq!(
            api_group("apps").unwrap().to_string(),
            r#"{"kind":"APIGroup","apiVersion":"v1","name":"apps","versions":[{"groupVersion":"apps/v1","version":"v1"}],"preferredVersion":{"groupVersion":"apps/v1","version":"v1"}}"#
        );
        assert!(api_group("nope").is_none() && resource_list("apps", "v2").is_none());
        let apps = resource_list("apps", "v1").unwrap();
        let entries: Vec<String> = meta::list(&apps, "resources").iter().map(Tree::to_string).collect();
        assert_eq!(
            entries[0],
            r#"{"name":"deployments","singularName":"deployment","namespaced":true,"kind":"Deployment","verbs":["create","delete","deletecollection","get","list","patch","update","watch"],"shortNames":["deploy"],"categories":["all"]}"#
        );
        assert_eq!(
            entries[1],
            r#"{"name":"deployments/scale","singularName":"","namespaced":true,"group":"autoscaling","version":"v1","kind":"Scale","verbs":["get","patch","update"]}"#
        );
        assert_eq!(
            entries[2],
            r#"{"name":"deployments/status","singularName":"","namespaced":true,"kind":"Deployment","verbs":["get","patch","update"]}"#
        );
    }

    #[test]
    fn aggregated_documents_hold_every_kind_once() {
        for v in ["v2", "v2beta1"] {
            let mut seen = 0;
            for document in [aggregated_core(v), aggregated_groups(v)] {
                assert_eq!(meta::text(&document, "apiVersion"), format!("apidiscovery.k8s.io/{v}"));
                for group in meta::list(&document, "items") {
                    for version in meta::list(group, "versions") {
                        seen += meta::list(version, "resources").len();
                    }
                }
            }
            // And the two of each group without kinds.
            assert_eq!(seen, kinds::all().len() + 4);
        }
        let core = aggregated_core("v2");
        let pods = meta::list(&meta::list(&core, "items")[0], "versions")[0]["resources"].as_array().unwrap().clone();
        let pods = pods.iter().find(|entry| entry["resource"] == "pods").unwrap();
        assert_eq!(pods["scope"], "Namespaced");
        let eviction = meta::list(pods, "subresources").iter().find(|sub| sub["subresource"] == "eviction").unwrap();
        assert_eq!(
            eviction.to_string(),
            r#"{"subresource":"eviction","responseKind":{"group":"policy","version":"v1","kind":"Eviction"},"verbs":["create"]}"#
        );
    }
}
