use super::*;

fn document(path: &str) -> Tree {
    serde_json::from_slice(&v3_document(path).unwrap()).unwrap()
}

/// All texts under a key, anywhere in a tree.
fn find<'a>(tree: &'a Tree, key: &str, found: &mut Vec<&'a Tree>) {
    match tree {
        Tree::Object(map) => {
            found.extend(map.get(key));
            map.values().for_each(|value| find(value, key, found));
        }
        Tree::Array(list) => list.iter().for_each(|value| find(value, key, found)),
        _ => {}
    }
}

#[test]
fn each_group_has_a_document_whose_references_hold() {
    let index = v3_index();
    let paths = index["paths"].as_object().unwrap();
    assert!(paths.contains_key("api/v1") && paths.contains_key("apis/apps/v1"));
    for (path, entry) in paths {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        assert_eq!(url, format!("/openapi/v3/{path}?hash={}", v3_hash(path).unwrap()));
        let document = document(path);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut references = Vec::new();
        find(&document, "$ref", &mut references);
        assert!(!references.is_empty());
        for reference in references {
            let name = reference.as_str().unwrap().strip_prefix("#/components/schemas/").unwrap();
            assert!(schemas.contains_key(name), "{path}: {name}");
        }
        let mut ids = Vec::new();
        find(&document["paths"], "operationId", &mut ids);
        let count = ids.len();
        ids.sort_by_key(|id| id.as_str());
        ids.dedup();
        assert_eq!(ids.len(), count, "{path}: an operationId stands twice");
    }
    assert!(v3_document("apis/none/v1").is_none());
}

#[test]
fn kubectl_finds_what_it_looks_for() {
    let document = document("apis/apps/v1");
    let path = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
    let patch = &path["patch"];
    let kind = json!({"group": "apps", "kind": "Deployment", "version": "v1"});
    assert_eq!(patch["x-kubernetes-group-version-kind"], kind);
    assert_eq!(patch["x-kubernetes-action"], "patch");
    let has = |name: &str| patch["parameters"].as_array().unwrap().iter().any(|parameter| parameter["name"] == name);
    assert!(has("fieldValidation") && has("dryRun") && has("fieldManager"));
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"];
    assert_eq!(scale["put"]["x-kubernetes-group-version-kind"]["kind"], "Scale");

    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"], json!([kind]));
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["items"], json!({"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"}]}));
    let ports = &schemas["io.k8s.api.core.v1.ContainerPort"];
    assert_eq!(ports["required"], json!(["containerPort"]));
    assert_eq!(ports["properties"]["protocol"]["default"], "TCP");
}

#[test]
fn every_type_and_field_has_a_description() {
    let descriptions = Descriptions::unpack();
    assert!(!descriptions.0.is_empty(), "build.rs found no descriptions");
    let mut bare = Vec::new();
    for found in table().types() {
        let schemas = Schemas { descriptions: &descriptions, made: BTreeMap::new(), open: BTreeSet::new() };
        for field in &found.fields {
            if schemas.describe(found, field).is_none() {
                bare.push(format!("{}.{}", found.name, field.json));
            }
        }
    }
    assert!(bare.is_empty(), "{bare:?}");
    let words = descriptions.get("io.k8s.api.core.v1.PodSpec", "containers").unwrap();
    assert!(words.starts_with("List of containers"), "{words}");
    let words = descriptions.get("io.k8s.api.core.v1.ContainerPort", "containerPort").unwrap();
    assert!(!words.contains('\\'), "{words}");
}

#[test]
fn the_v2_document_has_the_same_content() {
    let document: Tree = serde_json::from_slice(&v2()).unwrap();
    let definitions = document["definitions"].as_object().unwrap();
    let mut references = Vec::new();
    find(&document, "$ref", &mut references);
    for reference in references {
        let name = reference.as_str().unwrap().strip_prefix("#/definitions/").unwrap();
        assert!(definitions.contains_key(name), "{name}");
    }
    let spec = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(spec["items"], json!({"$ref": "#/definitions/io.k8s.api.core.v1.Container"}));
    assert_eq!(spec["x-kubernetes-patch-merge-key"], "name");
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    let names: Vec<_> = patch["parameters"].as_array().unwrap().iter().map(|parameter| &parameter["name"]).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force", "body"]);
    assert!(v2_protobuf().starts_with(b"\x0a\x032.0"));
}
