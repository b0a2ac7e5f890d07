//! The patch that a client-side apply sends.
//!
//! Three versions of an object say what it must change: what the manifest said when it was last applied, what it says
//! now, and what the server has. What the manifest says is set; what it said and no longer says goes; what it never
//! spoke of belongs to others and stays. The patch is a strategic merge patch, and a JSON merge patch where the schema
//! table does not know the fields.

use serde_json::{Map, json};

use super::same;
use super::strategic::{DELETE_FROM, Object, PATCH, RETAIN_KEYS, SET_ORDER, Shape};
use crate::Tree;
use crate::schema::table;

/// The three versions of an object, or of a part of it.
#[derive(Clone, Copy, Debug)]
pub struct Versions<'a> {
    /// What was applied last; null if nothing was.
    pub original: &'a Tree,
    /// What is applied now.
    pub wanted: &'a Tree,
    /// What the server has.
    pub current: &'a Tree,
}

/// The patch that brings the current object to what is wanted; an empty one if it is there already. Of a type of the
/// table, or of an unknown one: then it is a JSON merge patch.
pub fn three_way(versions: Versions<'_>, type_name: Option<&str>) -> Tree {
    let shape = type_name.and_then(|name| table().get(name)).map_or(Shape::Unknown, Shape::Object);
    Tree::Object(patch_map(versions, shape))
}

impl<'a> Versions<'a> {
    fn field(self, name: &str) -> Versions<'a> {
        let field = |tree: &'a Tree| tree.get(name).unwrap_or(&Tree::Null);
        Versions { original: field(self.original), wanted: field(self.wanted), current: field(self.current) }
    }
}

fn fields(tree: &Tree) -> impl Iterator<Item = (&String, &Tree)> {
    tree.as_object().into_iter().flatten()
}

fn entries(tree: &Tree) -> &[Tree] {
    tree.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn patch_map(versions: Versions<'_>, shape: Shape) -> Object {
    let Versions { original, wanted, current } = versions;
    let mut patch = Map::new();
    for (name, value) in fields(wanted) {
        patch_field(&mut patch, name, value, versions, shape);
    }
    for (name, _) in fields(original).filter(|(_, value)| !value.is_null()) {
        if wanted.get(name).is_none() && current.get(name).is_some() {
            patch.insert(name.clone(), Tree::Null);
        }
    }
    patch
}

fn patch_field(patch: &mut Object, name: &str, wanted: &Tree, versions: Versions<'_>, shape: Shape) {
    let field = shape.field(name);
    let inner = versions.field(name);
    match (wanted, inner.current) {
        (Tree::Null, Tree::Null) => {}
        (Tree::Object(_), Tree::Object(_)) => {
            let mut nested = patch_map(inner, field.inner);
            if !nested.is_empty() {
                if field.retain_keys {
                    nested.insert(RETAIN_KEYS.to_owned(), kept_keys(wanted));
                }
                patch.insert(name.to_owned(), Tree::Object(nested));
            }
        }
        (Tree::Array(_), Tree::Array(_)) if field.merge => {
            let change = match field.merge_key {
                Some(key) if is_keyed(inner, key) => {
                    let element = Element { key, shape: field.inner, retain_keys: field.retain_keys };
                    patch_entries(inner, element)
                }
                Some(_) if is_met_by_place(inner, field.inner) => ListPatch::default(),
                Some(_) => replacement(entries(wanted)),
                None => patch_primitives(inner),
            };
            change.insert_into(patch, name);
        }
        (wanted, current) if same(wanted, current) => {}
        (wanted, _) => {
            patch.insert(name.to_owned(), wanted.clone());
        }
    }
}

/// The fields that an object may keep: those that it is wanted to have.
fn kept_keys(wanted: &Tree) -> Tree {
    fields(wanted).filter(|(_, value)| !value.is_null()).map(|(name, _)| Tree::from(name.as_str())).collect()
}

/// What is known about a list's entries.
#[derive(Clone, Copy)]
struct Element {
    key: &'static str,
    shape: Shape,
    retain_keys: bool,
}

/// What a patch says of a list.
#[derive(Default)]
struct ListPatch {
    entries: Vec<Tree>,
    deleted: Vec<Tree>,
    order: Vec<Tree>,
}

impl ListPatch {
    fn insert_into(self, patch: &mut Object, name: &str) {
        let parts = [(DELETE_FROM, self.deleted), (SET_ORDER, self.order), ("", self.entries)];
        for (directive, list) in parts {
            if !list.is_empty() {
                patch.insert(format!("{directive}{name}"), Tree::Array(list));
            }
        }
    }
}

/// Whether every entry of all versions has a key of its own. Where not, as with two ports of one number and two
/// protocols, entries cannot be told apart by it.
fn is_keyed(versions: Versions<'_>, key: &str) -> bool {
    [versions.original, versions.wanted, versions.current].into_iter().all(|list| {
        let keys: Vec<Option<&Tree>> = entries(list).iter().map(|entry| entry.get(key)).collect();
        keys.iter().enumerate().all(|(index, key)| key.is_some() && !keys[..index].contains(key))
    })
}

/// Whether a list without keys is as wanted, entry by entry in order.
fn is_met_by_place(versions: Versions<'_>, shape: Shape) -> bool {
    let (wanted, current) = (entries(versions.wanted), entries(versions.current));
    let met = |(index, (wanted, current))| {
        let original = entries(versions.original).get(index).unwrap_or(&Tree::Null);
        patch_map(Versions { original, wanted, current }, shape).is_empty()
    };
    wanted.len() == current.len() && wanted.iter().zip(current).enumerate().all(met)
}

/// The list as a whole.
fn replacement(wanted: &[Tree]) -> ListPatch {
    let directive = json!({PATCH: "replace"});
    ListPatch { entries: wanted.iter().cloned().chain([directive]).collect(), ..ListPatch::default() }
}

/// A list of objects, entry by entry.
fn patch_entries(versions: Versions<'_>, element: Element) -> ListPatch {
    let Element { key, shape, retain_keys } = element;
    let find = |list: &'_ Tree, entry: &Tree| entries(list).iter().position(|other| other.get(key) == entry.get(key));
    let only_key = |entry: &Tree| Map::from_iter([(key.to_owned(), entry[key].clone())]);
    let (original, current) = (entries(versions.original), entries(versions.current));
    let mut patch = ListPatch::default();
    let mut places = Vec::new();
    for wanted in entries(versions.wanted) {
        let Some(place) = find(versions.current, wanted) else {
            patch.entries.push(wanted.clone());
            continue;
        };
        places.push(place);
        let original = find(versions.original, wanted).map_or(&Tree::Null, |place| &original[place]);
        let change = patch_map(Versions { original, wanted, current: &current[place] }, shape);
        if !change.is_empty() {
            let mut entry = only_key(wanted);
            entry.extend(change);
            if retain_keys {
                entry.insert(RETAIN_KEYS.to_owned(), kept_keys(wanted));
            }
            patch.entries.push(Tree::Object(entry));
        }
    }
    for gone in original.iter().filter(|entry| find(versions.wanted, entry).is_none()) {
        if find(versions.current, gone).is_some() {
            let mut entry = only_key(gone);
            entry.insert(PATCH.to_owned(), Tree::from("delete"));
            patch.entries.push(Tree::Object(entry));
        }
    }
    if !patch.entries.is_empty() || !places.is_sorted() {
        patch.order = entries(versions.wanted).iter().map(|entry| Tree::Object(only_key(entry))).collect();
    }
    patch
}

/// A list whose entries are their own keys.
fn patch_primitives(versions: Versions<'_>) -> ListPatch {
    let Versions { original, wanted, current } = versions;
    let (original, wanted, current) = (entries(original), entries(wanted), entries(current));
    let mut patch = ListPatch {
        entries: wanted.iter().filter(|value| !current.contains(value)).cloned().collect(),
        deleted: original.iter().filter(|value| !wanted.contains(value) && current.contains(value)).cloned().collect(),
        order: Vec::new(),
    };
    if !patch.entries.is_empty() || !patch.deleted.is_empty() {
        patch.order = wanted.to_vec();
    }
    patch
}

#[cfg(test)]
mod tests;
