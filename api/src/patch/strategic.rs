//! Strategic merge patches: merge patches that know which lists are merged entry by entry, and by which key.
//!
//! What a field does comes from the schema table (`patchStrategy`, `patchMergeKey`); a patch can say otherwise with
//! directives: `$patch: replace|delete` in an object or a list's entry, `$retainKeys` beside fields,
//! `$deleteFromPrimitiveList/<field>` and `$setElementOrder/<field>` beside a list. The result's order is upstream's:
//! the patch's entries in the order of the patch (or of `$setElementOrder`), the others in their old order, and what
//! is new comes before what follows it.
//!
//! Fields that the table does not know are merged as a JSON merge patch would.

use serde_json::Map;

use crate::Tree;
use crate::schema::{FieldType, Type, table};
use crate::status::{ApiError, Reason};

pub(super) const PATCH: &str = "$patch";
pub(super) const RETAIN_KEYS: &str = "$retainKeys";
pub(super) const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
pub(super) const SET_ORDER: &str = "$setElementOrder/";

/// Most entries that merge with each other: each is compared with each, and no real list comes near. More is refused.
const ENTRIES_MAX: usize = 10_000;

/// Applies a strategic merge patch to an object of a type of the table. Patches that contradict themselves are 400,
/// those that do not fit the object 422.
pub fn strategic(old: &Tree, patch: &Tree, type_name: &str) -> Result<Tree, ApiError> {
    let Tree::Object(patch) = patch else {
        let found = match patch {
            Tree::Array(_) => "array",
            Tree::String(_) => "string",
            Tree::Number(_) => "number",
            Tree::Bool(_) => "bool",
            Tree::Null | Tree::Object(_) => "null",
        };
        let why = format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}");
        return Err(ApiError::bad_request(why));
    };
    let old = old.as_object().cloned().unwrap_or_default();
    let shape = table().get(type_name).map_or(Shape::Unknown, Shape::Object);
    merge_map(old, patch, shape).map(Tree::Object)
}

/// An object's fields.
pub(super) type Object = Map<String, Tree>;

/// What is known about the place that a patch has come to.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    Object(&'static Type),
    Map(&'static FieldType),
    Unknown,
}

/// What is known about one field there.
pub(super) struct FieldShape {
    /// Of the field's value, or of its entries if it is a list.
    pub(super) inner: Shape,
    pub(super) merge: bool,
    pub(super) merge_key: Option<&'static str>,
    pub(super) retain_keys: bool,
}

impl FieldShape {
    /// What a JSON merge patch would do.
    fn merged_as_map(inner: Shape) -> FieldShape {
        FieldShape { inner, merge: false, merge_key: None, retain_keys: false }
    }
}

impl Shape {
    fn of(ty: &'static FieldType) -> Shape {
        match ty {
            FieldType::Object(name) => table().get(name).map_or(Shape::Unknown, Shape::Object),
            FieldType::Map(entry) => Shape::Map(entry),
            FieldType::List(entry) => Shape::of(entry),
            _ => Shape::Unknown,
        }
    }

    pub(super) fn field(self, name: &str) -> FieldShape {
        match self {
            Shape::Object(of) => match of.field(name) {
                Some(field) => FieldShape {
                    inner: Shape::of(&field.ty),
                    merge: field.patch_strategy.merge,
                    merge_key: field.patch_merge_key,
                    retain_keys: field.patch_strategy.retain_keys,
                },
                None => FieldShape::merged_as_map(Shape::Unknown),
            },
            Shape::Map(entry) => FieldShape::merged_as_map(Shape::of(entry)),
            Shape::Unknown => FieldShape::merged_as_map(Shape::Unknown),
        }
    }
}

// -------------------------------------------------------------------------------------------------------------- objects

fn merge_map(mut old: Object, patch: &Object, shape: Shape) -> Result<Object, ApiError> {
    match patch.get(PATCH) {
        None => {}
        Some(directive) if directive == "replace" => {
            let mut rest = patch.clone();
            rest.shift_remove(PATCH);
            drop_directives(&mut rest);
            return Ok(rest);
        }
        Some(directive) if directive == "delete" => return Ok(Map::new()),
        Some(directive) => return Err(unknown_directive(directive, patch)),
    }
    retain_keys(&mut old, patch)?;
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(SET_ORDER) {
            merge_ordered(&mut old, patch, field, order, shape)?;
        }
    }
    for (key, value) in patch {
        let is_ordered = || patch.contains_key(&format!("{SET_ORDER}{key}"));
        if key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM) || is_ordered() {
            continue;
        }
        merge_field(&mut old, key, value, shape)?;
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            delete_from(&mut old, field, value)?;
        }
    }
    Ok(old)
}

fn merge_field(old: &mut Object, key: &str, value: &Tree, shape: Shape) -> Result<(), ApiError> {
    if value.is_null() {
        old.shift_remove(key);
        return Ok(());
    }
    let field = shape.field(key);
    match (old.get_mut(key), value) {
        (Some(Tree::Object(there)), Tree::Object(patch)) => {
            *there = merge_map(std::mem::take(there), patch, field.inner)?;
        }
        (Some(Tree::Array(there)), Tree::Array(patch)) if field.merge => {
            *there = merge_list(std::mem::take(there), patch, &field)?;
        }
        (_, value) => {
            if let Some(value) = plain(value) {
                old.insert(key.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// `$retainKeys`: what it does not name goes; what the patch sets must be named.
fn retain_keys(old: &mut Object, patch: &Object) -> Result<(), ApiError> {
    let Some(directive) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let bad = || ApiError::bad_request("invalid patch format of retainKeys");
    let Tree::Array(keys) = directive else { return Err(bad()) };
    let kept = |key: &str| keys.iter().any(|kept| kept == key);
    for (key, value) in patch {
        let is_directive = key == RETAIN_KEYS || key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER);
        if !value.is_null() && !is_directive && !kept(key) {
            return Err(bad());
        }
    }
    old.retain(|key, _| kept(key));
    Ok(())
}

/// `$deleteFromPrimitiveList/<field>`: these values go from the list.
fn delete_from(old: &mut Object, field: &str, gone: &Tree) -> Result<(), ApiError> {
    let Tree::Array(gone) = gone else {
        return Err(ApiError::bad_request("invalid patch format of primitive list"));
    };
    if let Some(Tree::Array(list)) = old.get_mut(field) {
        check_entries(list.len() + gone.len())?;
        list.retain(|value| !gone.contains(value));
    }
    Ok(())
}

// ---------------------------------------------------------------------------------------------------------------- lists

/// A list whose final order the patch names: `$setElementOrder/<field>`.
fn merge_ordered(old: &mut Object, patch: &Object, field: &str, order: &Tree, shape: Shape) -> Result<(), ApiError> {
    let bad = || ApiError::bad_request("invalid patch format of setElementOrder list");
    let list = |tree: Option<&Tree>| match tree {
        None | Some(Tree::Null) => Ok(None),
        Some(Tree::Array(list)) => Ok(Some(list.clone())),
        Some(_) => Err(bad()),
    };
    let Some(order) = list(Some(order))? else { return Err(bad()) };
    let (there, change) = (list(old.get(field))?, list(patch.get(field))?);
    if patch.get(field).is_some_and(Tree::is_null) {
        old.shift_remove(field);
        return Ok(());
    }
    let lens = [Some(&order), there.as_ref(), change.as_ref()].map(|list| list.map_or(0, Vec::len));
    check_entries(lens.iter().sum())?;
    let found = shape.field(field);
    if let Some(change) = &change {
        check_order(change, &order, found.merge_key)?;
    }
    let merged = match (&there, &change) {
        (None, None) => return Ok(()),
        (Some(there), None) => there.clone(),
        (None, Some(change)) => change.iter().filter_map(plain).collect(),
        (Some(there), Some(change)) if found.merge => merge_list(there.clone(), change, &found)?,
        (Some(_), Some(change)) => change.iter().filter_map(plain).collect(),
    };
    let sorted = in_order(merged, &order, there.as_deref().unwrap_or_default(), found.merge_key);
    old.insert(field.to_owned(), Tree::Array(sorted));
    Ok(())
}

/// The patch's entries must stand in the order that it asks for.
fn check_order(change: &[Tree], order: &[Tree], merge_key: Option<&str>) -> Result<(), ApiError> {
    let mut rest = order.iter();
    for entry in change.iter().filter(|entry| entry.get(PATCH).is_none()) {
        if !rest.any(|wanted| same(entry, wanted, merge_key)) {
            let (change, order) = (Tree::from(change.to_vec()), Tree::from(order.to_vec()));
            return Err(ApiError::bad_request(format!(
                "The order in patch list:\n{change}\n doesn't match {} list:\n{order}\n",
                SET_ORDER.trim_end_matches('/')
            )));
        }
    }
    Ok(())
}

fn check_entries(count: usize) -> Result<(), ApiError> {
    if count <= ENTRIES_MAX { Ok(()) } else { Err(unfit(format!("{count} list entries, at most {ENTRIES_MAX} merge"))) }
}

fn merge_list(old: Vec<Tree>, patch: &[Tree], field: &FieldShape) -> Result<Vec<Tree>, ApiError> {
    check_entries(old.len() + patch.len())?;
    let all = || old.iter().chain(patch);
    if all().any(Tree::is_array) {
        return Err(unfit("lists of lists are not supported".to_owned()));
    }
    let objects = all().filter(|entry| entry.is_object()).count();
    if objects == 0 {
        let mut merged = old.clone();
        for value in patch {
            if !merged.contains(value) {
                merged.push(value.clone());
            }
        }
        return Ok(in_order(merged, patch, &old, None));
    }
    if objects != all().count() {
        return Err(unfit("list element types are not identical".to_owned()));
    }
    let Some(merge_key) = field.merge_key else {
        return Err(unfit("cannot merge lists without merge key".to_owned()));
    };
    let (mut merged, changes) = apply_entry_directives(old.clone(), patch, merge_key)?;
    for change in &changes {
        let there = merged.iter_mut().find(|entry| same(entry, &Tree::Object(change.clone()), Some(merge_key)));
        match there {
            Some(Tree::Object(there)) => *there = merge_map(std::mem::take(there), change, field.inner)?,
            _ => merged.extend(plain(&Tree::Object(change.clone()))),
        }
    }
    Ok(in_order(merged, patch, &old, Some(merge_key)))
}

/// Does what the entries with `$patch` say. Gives the list without the deleted entries, and the patch's other entries.
fn apply_entry_directives(
    mut old: Vec<Tree>,
    patch: &[Tree],
    merge_key: &str,
) -> Result<(Vec<Tree>, Vec<Object>), ApiError> {
    let mut changes = Vec::new();
    let mut replace = false;
    for entry in patch {
        let Tree::Object(map) = entry else { continue };
        let has_key = map.contains_key(merge_key);
        match map.get(PATCH) {
            None if has_key => changes.push(map.clone()),
            Some(directive) if directive == "delete" && has_key => {
                old.retain(|there| !same(there, entry, Some(merge_key)));
            }
            Some(directive) if directive == "replace" => replace = true,
            Some(directive) if directive == "merge" => {
                return Err(unfit("merging lists cannot yet be specified in the patch".to_owned()));
            }
            Some(directive) if directive != "delete" => return Err(unknown_directive(directive, map)),
            _ => {
                return Err(unfit(format!("map: {entry} does not contain declared merge key: {merge_key}")));
            }
        }
    }
    if replace {
        // The patch's entries are the whole list, also two of one key.
        return Ok((changes.into_iter().filter_map(|entry| plain(&Tree::Object(entry))).collect(), Vec::new()));
    }
    Ok((old, changes))
}

/// Puts a merged list in order: the entries that `wanted` names in its order, the others in the order of `server`.
/// Where an entry of each could come next, the one that stood first on the server comes first, and a new one at once.
fn in_order(merged: Vec<Tree>, wanted: &[Tree], server: &[Tree], merge_key: Option<&str>) -> Vec<Tree> {
    let place = |list: &[Tree], entry: &Tree| list.iter().position(|other| same(other, entry, merge_key));
    let (mut named, mut others): (Vec<Tree>, Vec<Tree>) =
        merged.into_iter().partition(|entry| place(wanted, entry).is_some());
    named.sort_by_cached_key(|entry| place(wanted, entry));
    others.sort_by_cached_key(|entry| place(server, entry).unwrap_or(usize::MAX));
    let mut sorted = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (None, None) => return sorted,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(named)) => match (place(server, other), place(server, named)) {
                (Some(other), Some(named)) => other < named,
                _ => false,
            },
        };
        sorted.extend(if other_first { others.next() } else { named.next() });
    }
}

/// Whether two entries are the same one: by their key, or by their value.
fn same(a: &Tree, b: &Tree, merge_key: Option<&str>) -> bool {
    match merge_key {
        Some(key) => match (a.get(key), b.get(key)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        },
        None => a == b,
    }
}

// ------------------------------------------------------------------------------------------------------------- new values

/// A value of the patch for a place where nothing was: without nulls and directives. Nothing for an entry that is only
/// a directive.
fn plain(value: &Tree) -> Option<Tree> {
    match value {
        Tree::Object(map) => {
            let is_entry_directive = map.get(PATCH).is_some_and(|directive| directive != "merge");
            if is_entry_directive && map.get(PATCH).is_some_and(|directive| directive == "delete") {
                return None;
            }
            if is_entry_directive && map.len() == 1 {
                return None;
            }
            let mut map = map.clone();
            drop_directives(&mut map);
            Some(Tree::Object(map))
        }
        Tree::Array(list) => Some(list.iter().filter_map(plain).collect()),
        other => Some(other.clone()),
    }
}

fn drop_directives(map: &mut Object) {
    map.retain(|key, value| {
        let is_directive =
            key == PATCH || key == RETAIN_KEYS || key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER);
        !is_directive && !value.is_null()
    });
    for value in map.values_mut() {
        *value = plain(value).unwrap_or_else(|| Tree::Object(Map::new()));
    }
}

// ------------------------------------------------------------------------------------------------------------------ errors

fn unknown_directive(directive: &Tree, map: &Object) -> ApiError {
    let directive = directive.as_str().map_or_else(|| directive.to_string(), str::to_owned);
    ApiError::bad_request(format!("unknown patch type: {directive} in map: {}", Tree::Object(map.clone())))
}

fn unfit(why: String) -> ApiError {
    ApiError::new(422, Reason::Invalid, why)
}

#[cfg(test)]
mod tests;
