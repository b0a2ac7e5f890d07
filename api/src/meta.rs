//! Looking into and changing the parts that every object has.
//!
//! Readers never fail: what is missing or of the wrong type reads as empty, since trees of wrong types are refused
//! before they are stored.

use dhow_types::Time;
use serde_json::Map;

use crate::Tree;

static NO_ITEMS: Vec<Tree> = Vec::new();

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerRef {
    /// The owner's `apiVersion`.
    pub api_version: String,
    /// The owner's kind.
    pub kind: String,
    /// The owner's name.
    pub name: String,
    /// The owner's UID: what really counts.
    pub uid: String,
    /// Whether this owner is the managing controller.
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

/// The value at a path of field names (`"spec.template.metadata"`); no list indexes, no keys with dots.
pub fn at<'a>(tree: &'a Tree, path: &str) -> Option<&'a Tree> {
    let mut tree = tree;
    for field in path.split('.') {
        tree = tree.as_object()?.get(field)?;
    }
    if tree.is_null() { None } else { Some(tree) }
}

/// The value at a path, to be changed.
pub fn at_mut<'a>(tree: &'a mut Tree, path: &str) -> Option<&'a mut Tree> {
    let mut tree = tree;
    for field in path.split('.') {
        tree = tree.as_object_mut()?.get_mut(field)?;
    }
    if tree.is_null() { None } else { Some(tree) }
}

/// The text at a path, or empty.
pub fn text<'a>(tree: &'a Tree, path: &str) -> &'a str {
    at(tree, path).and_then(Tree::as_str).unwrap_or("")
}

/// The whole number at a path.
pub fn int(tree: &Tree, path: &str) -> Option<i64> {
    at(tree, path).and_then(Tree::as_i64)
}

/// The truth at a path; `false` when it is missing.
pub fn truth(tree: &Tree, path: &str) -> bool {
    at(tree, path).and_then(Tree::as_bool).unwrap_or(false)
}

/// The list at a path, or an empty one.
pub fn list<'a>(tree: &'a Tree, path: &str) -> &'a [Tree] {
    at(tree, path).and_then(Tree::as_array).unwrap_or(&NO_ITEMS)
}

/// The map at a path.
pub fn map<'a>(tree: &'a Tree, path: &str) -> Option<&'a Map<String, Tree>> {
    at(tree, path).and_then(Tree::as_object)
}

/// The entries of a map of texts at a path.
pub fn texts<'a>(tree: &'a Tree, path: &str) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    map(tree, path).into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or("")))
}

/// Puts a value at a path and makes the maps on the way; what stands in the way and is no map is replaced.
pub fn set(tree: &mut Tree, path: &str, value: impl Into<Tree>) {
    let mut tree = tree;
    for field in path.split('.') {
        tree = map_of(tree).entry(field).or_insert(Tree::Null);
    }
    *tree = value.into();
}

/// Puts a value at a path if nothing is there.
pub fn set_default(tree: &mut Tree, path: &str, value: impl Into<Tree>) {
    if at(tree, path).is_none() {
        set(tree, path, value);
    }
}

/// Takes the value at a path out, keeping the order of what stays.
pub fn remove(tree: &mut Tree, path: &str) -> Option<Tree> {
    let (parent, field) = match path.rsplit_once('.') {
        Some((parent, field)) => (at_mut(tree, parent)?, field),
        None => (tree, path),
    };
    parent.as_object_mut()?.shift_remove(field)
}

/// The tree as a map; anything else becomes an empty map first.
pub fn map_of(tree: &mut Tree) -> &mut Map<String, Tree> {
    if !tree.is_object() {
        *tree = Tree::Object(Map::new());
    }
    tree.as_object_mut().expect("the tree was made a map just now")
}

/// `apiVersion`
pub fn api_version(tree: &Tree) -> &str {
    text(tree, "apiVersion")
}

/// `kind`
pub fn kind(tree: &Tree) -> &str {
    text(tree, "kind")
}

/// `metadata.name`
pub fn name(tree: &Tree) -> &str {
    text(tree, "metadata.name")
}

/// `metadata.generateName`
pub fn generate_name(tree: &Tree) -> &str {
    text(tree, "metadata.generateName")
}

/// `metadata.namespace`; empty at cluster scope.
pub fn namespace(tree: &Tree) -> &str {
    text(tree, "metadata.namespace")
}

/// `metadata.uid`
pub fn uid(tree: &Tree) -> &str {
    text(tree, "metadata.uid")
}

/// `metadata.resourceVersion`; empty when it is not set.
pub fn resource_version(tree: &Tree) -> &str {
    text(tree, "metadata.resourceVersion")
}

/// `metadata.generation`; zero when it is not set.
pub fn generation(tree: &Tree) -> i64 {
    int(tree, "metadata.generation").unwrap_or(0)
}

/// `metadata.labels`
pub fn labels(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    texts(tree, "metadata.labels")
}

/// The value of one label.
pub fn label<'a>(tree: &'a Tree, key: &str) -> Option<&'a str> {
    map(tree, "metadata.labels")?.get(key)?.as_str()
}

/// `metadata.annotations`
pub fn annotations(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    texts(tree, "metadata.annotations")
}

/// The value of one annotation.
pub fn annotation<'a>(tree: &'a Tree, key: &str) -> Option<&'a str> {
    map(tree, "metadata.annotations")?.get(key)?.as_str()
}

/// `metadata.ownerReferences`
pub fn owner_refs(tree: &Tree) -> Vec<OwnerRef> {
    let owner = |entry: &Tree| OwnerRef {
        api_version: text(entry, "apiVersion").to_owned(),
        kind: text(entry, "kind").to_owned(),
        name: text(entry, "name").to_owned(),
        uid: text(entry, "uid").to_owned(),
        controller: truth(entry, "controller"),
        block_owner_deletion: truth(entry, "blockOwnerDeletion"),
    };
    list(tree, "metadata.ownerReferences").iter().map(owner).collect()
}

/// The owner that is the managing controller, if there is one.
pub fn controller_of(tree: &Tree) -> Option<OwnerRef> {
    owner_refs(tree).into_iter().find(|owner| owner.controller)
}

/// `metadata.finalizers`
pub fn finalizers(tree: &Tree) -> Vec<&str> {
    list(tree, "metadata.finalizers").iter().filter_map(Tree::as_str).collect()
}

/// `metadata.creationTimestamp`
pub fn creation_timestamp(tree: &Tree) -> Option<Time> {
    time(tree, "metadata.creationTimestamp")
}

/// `metadata.deletionTimestamp`: set once a deletion has begun.
pub fn deletion_timestamp(tree: &Tree) -> Option<Time> {
    time(tree, "metadata.deletionTimestamp")
}

/// Whether a deletion has begun.
pub fn is_deleting(tree: &Tree) -> bool {
    at(tree, "metadata.deletionTimestamp").is_some()
}

/// The time at a path.
pub fn time(tree: &Tree, path: &str) -> Option<Time> {
    Time::parse(text(tree, path)).ok()
}

/// Sets `metadata.name`.
pub fn set_name(tree: &mut Tree, name: &str) {
    set(tree, "metadata.name", name);
}

/// Sets `metadata.namespace`.
pub fn set_namespace(tree: &mut Tree, namespace: &str) {
    set(tree, "metadata.namespace", namespace);
}

/// Sets `metadata.uid`.
pub fn set_uid(tree: &mut Tree, uid: &str) {
    set(tree, "metadata.uid", uid);
}

/// Sets `metadata.resourceVersion`.
pub fn set_resource_version(tree: &mut Tree, version: &str) {
    set(tree, "metadata.resourceVersion", version);
}

/// Sets `metadata.generation`.
pub fn set_generation(tree: &mut Tree, generation: i64) {
    set(tree, "metadata.generation", generation);
}

/// Sets `metadata.creationTimestamp`.
pub fn set_creation_timestamp(tree: &mut Tree, at: Time) {
    set(tree, "metadata.creationTimestamp", at.to_rfc3339());
}

/// Sets one label.
pub fn set_label(tree: &mut Tree, key: &str, value: &str) {
    set_entry(tree, "labels", key, value);
}

/// Sets one annotation.
pub fn set_annotation(tree: &mut Tree, key: &str, value: &str) {
    set_entry(tree, "annotations", key, value);
}

fn set_entry(tree: &mut Tree, field: &str, key: &str, value: &str) {
    let metadata = map_of(tree).entry("metadata").or_insert(Tree::Null);
    let entries = map_of(metadata).entry(field).or_insert(Tree::Null);
    map_of(entries).insert(key.to_owned(), value.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn readers_take_what_is_there_and_nothing_else() {
        let tree = json!({"metadata": {"name": "a", "labels": {"x.y/z": "1"}, "finalizers": ["f"], "generation": 3,
            "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "controller": true}]},
            "spec": {"list": 3, "none": null}});
        assert_eq!((name(&tree), namespace(&tree), generation(&tree)), ("a", "", 3));
        assert_eq!(label(&tree, "x.y/z"), Some("1"));
        assert_eq!(finalizers(&tree), ["f"]);
        assert_eq!(controller_of(&tree).unwrap().uid, "u");
        assert!(list(&tree, "spec.list").is_empty());
        assert!(at(&tree, "spec.none").is_none() && at(&tree, "spec.list.deeper").is_none());
    }

    #[test]
    fn setters_make_the_way_and_keep_order() {
        let mut tree = json!({"a": 1});
        set(&mut tree, "b.c.d", 2);
        set_default(&mut tree, "b.c.d", 3);
        set_label(&mut tree, "k.x/y", "v");
        set(&mut tree, "e", 5);
        remove(&mut tree, "a");
        assert_eq!(tree.to_string(), r#"{"b":{"c":{"d":2}},"metadata":{"labels":{"k.x/y":"v"}},"e":5}"#);
        assert_eq!(remove(&mut tree, "nope.x"), None);
    }
}
