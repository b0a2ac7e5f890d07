//! JSON patches (RFC 6902), merge patches (RFC 7386), strategic ones, and the patch of a client-side apply. All keep
//! the order of the keys that stay.

use serde_json::Map;

use crate::Tree;
use crate::status::ApiError;

mod strategic;
mod three_way;
pub use strategic::strategic;
pub use three_way::{Versions, three_way};

/// Most operations in one JSON patch: upstream's limit.
pub const OPERATIONS_MAX: usize = 10_000;
/// How much the operations of one JSON patch may copy and move, in bytes: upstream's limit for copies, which is that of a
/// body. Without it a few operations that copy a map into itself fill the memory.
const CARRIED_BYTES_MAX: usize = 3 << 20;
/// What a value counts for beside its text.
const VALUE_BYTES: usize = 8;
/// How deep a patch may reach, so that a hostile one cannot exhaust the stack: about as deep as the readers take a body.
const DEPTH_MAX: usize = 120;

/// Applies a JSON patch. An operation that cannot be done is a 422, a patch that is none a 400.
pub fn json(old: &Tree, ops: &Tree) -> Result<Tree, ApiError> {
    let Some(ops) = ops.as_array() else {
        let found = go_type(ops);
        return Err(undecodable(&format!(
            "json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
        )));
    };
    if ops.len() > OPERATIONS_MAX {
        let message = format!("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}", ops.len());
        return Err(ApiError::new(413, crate::status::Reason::RequestEntityTooLarge, message));
    }
    let mut tree = old.clone();
    let mut carried = 0;
    for op in ops {
        let Some(op) = op.as_object() else {
            let found = go_type(op);
            return Err(undecodable(&format!(
                "json: cannot unmarshal {found} into Go value of type handlers.jsonPatchOp"
            )));
        };
        apply(&mut tree, op, &mut carried).ok_or_else(ApiError::rejected)?;
    }
    Ok(tree)
}

fn undecodable(why: &str) -> ApiError {
    ApiError::bad_request(format!("error decoding patch: {why}"))
}

fn go_type(tree: &Tree) -> &'static str {
    match tree {
        Tree::Null => "null",
        Tree::Bool(_) => "bool",
        Tree::Number(_) => "number",
        Tree::String(_) => "string",
        Tree::Array(_) => "array",
        Tree::Object(_) => "object",
    }
}

/// Does one operation, or gives nothing when it cannot be done. `carried` is how much was copied and moved so far.
fn apply(tree: &mut Tree, op: &Map<String, Tree>, carried: &mut usize) -> Option<()> {
    let path = pointer(op.get("path")?.as_str()?)?;
    match op.get("op")?.as_str()? {
        "add" => add(tree, &path, op.get("value")?.clone()),
        "remove" => remove(tree, &path).map(drop),
        "replace" => {
            let target = find(tree, &path)?;
            *target = op.get("value")?.clone();
            Some(())
        }
        "move" => {
            let from = pointer(op.get("from")?.as_str()?)?;
            if path.len() > from.len() && path.starts_with(&from) {
                return None;
            }
            let value = remove(tree, &from)?;
            carry(&value, path.len(), carried)?;
            add(tree, &path, value)
        }
        "copy" => {
            let from = pointer(op.get("from")?.as_str()?)?;
            let value = &*find(tree, &from)?;
            carry(value, path.len(), carried)?;
            let value = value.clone();
            add(tree, &path, value)
        }
        "test" => {
            let wanted = op.get("value").unwrap_or(&Tree::Null);
            // A test for null holds for what is not there, as upstream's library has it.
            same(find(tree, &path).map_or(&Tree::Null, |found| &*found), wanted).then_some(())
        }
        _ => None,
    }
}

/// Takes the size of a value from what may be carried, unless it is too much or would stand too deep.
fn carry(value: &Tree, depth: usize, carried: &mut usize) -> Option<()> {
    // A value without text takes its place in memory too.
    *carried += VALUE_BYTES + value.as_str().map_or(0, str::len);
    if *carried > CARRIED_BYTES_MAX || depth > DEPTH_MAX {
        return None;
    }
    match value {
        Tree::Array(list) => list.iter().try_for_each(|value| carry(value, depth + 1, carried)),
        Tree::Object(map) => map.iter().try_for_each(|(key, value)| {
            *carried += key.len();
            carry(value, depth + 1, carried)
        }),
        _ => Some(()),
    }
}

/// Whether two values mean the same: keys in any order, numbers by value.
fn same(a: &Tree, b: &Tree) -> bool {
    match (a, b) {
        (Tree::Number(x), Tree::Number(y)) => x == y || x.as_f64().is_some_and(|x| y.as_f64() == Some(x)),
        (Tree::Array(x), Tree::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Tree::Object(x), Tree::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(key, value)| y.get(key).is_some_and(|other| same(value, other)))
        }
        (a, b) => a == b,
    }
}

fn pointer(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let parts = text.strip_prefix('/')?.split('/');
    Some(parts.map(|part| part.replace("~1", "/").replace("~0", "~")).collect())
}

fn position(part: &str, len: usize) -> Option<usize> {
    if part.is_empty() || (part.len() > 1 && part.starts_with('0')) || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    part.parse().ok().filter(|position| *position <= len)
}

fn find<'a>(tree: &'a mut Tree, path: &[String]) -> Option<&'a mut Tree> {
    let mut tree = tree;
    for part in path {
        tree = match tree {
            Tree::Object(map) => map.get_mut(part)?,
            Tree::Array(list) => {
                let at = position(part, list.len())?;
                list.get_mut(at)?
            }
            _ => return None,
        };
    }
    Some(tree)
}

fn add(tree: &mut Tree, path: &[String], value: Tree) -> Option<()> {
    let Some((last, parents)) = path.split_last() else {
        *tree = value;
        return Some(());
    };
    match find(tree, parents).filter(|_| path.len() <= DEPTH_MAX)? {
        Tree::Object(map) => {
            map.insert(last.clone(), value);
        }
        Tree::Array(list) if last == "-" => list.push(value),
        Tree::Array(list) => {
            let at = position(last, list.len())?;
            list.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(tree: &mut Tree, path: &[String]) -> Option<Tree> {
    let (last, parents) = path.split_last()?;
    match find(tree, parents)? {
        Tree::Object(map) => map.shift_remove(last),
        Tree::Array(list) => {
            let at = position(last, list.len())?;
            (at < list.len()).then(|| list.remove(at))
        }
        _ => None,
    }
}

/// Applies a merge patch: maps are merged, null takes away, anything else replaces.
pub fn merge(old: &Tree, patch: &Tree) -> Tree {
    let mut tree = old.clone();
    merge_into(&mut tree, patch, 0);
    tree
}

fn merge_into(tree: &mut Tree, patch: &Tree, depth: usize) {
    let Some(patch) = patch.as_object().filter(|_| depth < DEPTH_MAX) else {
        *tree = patch.clone();
        return;
    };
    let map = crate::meta::map_of(tree);
    for (key, value) in patch {
        if value.is_null() {
            map.shift_remove(key);
        } else {
            merge_into(map.entry(key.as_str()).or_insert(Tree::Null), value, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_do_what_the_rfc_says() {
        let old = json!({"a": {"b": [1, 2]}, "c/d": "x", "e": 1.0});
        let cases = [
            (json!([{"op": "add", "path": "/a/n", "value": 1}]), r#"{"a":{"b":[1,2],"n":1},"c/d":"x","e":1.0}"#),
            (json!([{"op": "add", "path": "/a/b/0", "value": 0}]), r#"{"a":{"b":[0,1,2]},"c/d":"x","e":1.0}"#),
            (json!([{"op": "add", "path": "/a/b/-", "value": 3}]), r#"{"a":{"b":[1,2,3]},"c/d":"x","e":1.0}"#),
            (json!([{"op": "remove", "path": "/a"}]), r#"{"c/d":"x","e":1.0}"#),
            (json!([{"op": "replace", "path": "/c~1d", "value": "y"}]), r#"{"a":{"b":[1,2]},"c/d":"y","e":1.0}"#),
            (json!([{"op": "move", "from": "/a/b", "path": "/b"}]), r#"{"a":{},"c/d":"x","e":1.0,"b":[1,2]}"#),
            (json!([{"op": "copy", "from": "/e", "path": "/f"}]), r#"{"a":{"b":[1,2]},"c/d":"x","e":1.0,"f":1.0}"#),
            (json!([{"op": "test", "path": "/e", "value": 1}]), r#"{"a":{"b":[1,2]},"c/d":"x","e":1.0}"#),
        ];
        for (ops, text) in cases {
            assert_eq!(json(&old, &ops).unwrap().to_string(), text, "{ops}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_a_422_and_what_is_no_patch_a_400() {
        let old = json!({"a": {"b": [1]}});
        let impossible = [
            json!({"op": "replace", "path": "/nope/x", "value": 1}),
            json!({"op": "remove", "path": "/nope"}),
            json!({"op": "test", "path": "/a", "value": 1}),
            json!({"op": "add", "path": "/a/b/5", "value": 1}),
            json!({"op": "add", "path": "/a/b/01", "value": 1}),
            json!({"op": "move", "from": "/a", "path": "/a/b/0"}),
            json!({"op": "bogus", "path": "/a"}),
            json!({"op": "add", "path": "a", "value": 1}),
            json!({"path": "/a"}),
            json!({"op": "remove", "path": ""}),
            json!({"op": "remove", "path": "/a/b/1"}),
        ];
        for op in impossible {
            assert_eq!(json(&old, &json!([op])).unwrap_err(), ApiError::rejected(), "{op}");
        }
        let doubling = json!({"op": "copy", "from": "/a/b", "path": "/a/b/-"});
        let wrapping = [("add", "", "/c"), ("move", "/a", "/c/a"), ("move", "/c", "/a")]
            .map(|(op, from, path)| json!({"op": op, "from": from, "path": path, "value": {}}));
        let ever_bigger = Tree::from(vec![doubling; 100]);
        let ever_deeper = Tree::from(wrapping.iter().cycle().take(3 * 200).cloned().collect::<Vec<_>>());
        let wide = json!({"a": {"text": "x".repeat(100_000)}});
        let ever_wider: Vec<_> =
            (0..100).map(|n| json!({"op": "copy", "from": "/a/text", "path": format!("/a/{n}")})).collect();
        for (old, ops) in [(&old, &ever_bigger), (&old, &ever_deeper), (&wide, &Tree::from(ever_wider))] {
            assert_eq!(json(old, ops).unwrap_err(), ApiError::rejected());
        }
        assert_eq!(
            json(&old, &json!({"op": "replace"})).unwrap_err().message,
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
        );
        assert_eq!(json(&old, &json!([1])).unwrap_err().code, 400);
    }

    #[test]
    fn merge_patches_do_what_the_rfc_says() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": [1]}), json!({"a": {"x": 1, "y": null}}), json!({"a": {"x": 1}})),
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": null}}), json!({"a": {"c": 2}})),
            (json!({}), json!({"a": {"b": {"c": null}}}), json!({"a": {"b": {}}})),
            (json!({"a": 1}), json!([2]), json!([2])),
        ];
        for (old, patch, new) in cases {
            assert_eq!(merge(&old, &patch).to_string(), new.to_string(), "{patch}");
        }
    }
}
