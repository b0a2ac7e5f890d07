//! Follows a template through an object.

use super::{Fault, Operator, Segment, Slice, Step, fault};
use serde_json::Value as Tree;
use std::borrow::Cow;
use std::cmp::Ordering;

/// What a path has come to: parts of the object, and literals.
pub(super) type Values<'a> = Vec<Cow<'a, Tree>>;

/// Adds the results of each segment for one object.
pub(super) fn segments<'a>(segments: &[Segment], object: &'a Tree, found: &mut Vec<Values<'a>>) -> Result<(), Fault> {
    within(segments, Cow::Borrowed(object), found)
}

fn within<'a>(segments: &[Segment], object: Cow<'a, Tree>, found: &mut Vec<Values<'a>>) -> Result<(), Fault> {
    for segment in segments {
        match segment {
            Segment::Text(text) => found.push(vec![Cow::Owned(Tree::from(text.as_str()))]),
            Segment::Path(steps) => found.push(follow(steps, vec![object.clone()])?),
            Segment::Range { over, body } => {
                for value in follow(over, vec![object.clone()])? {
                    within(body, value, found)?;
                }
            }
        }
    }
    Ok(())
}

fn follow<'a>(steps: &[Step], from: Values<'a>) -> Result<Values<'a>, Fault> {
    steps.iter().try_fold(from, |values, step| take(step, values))
}

fn take<'a>(step: &Step, values: Values<'a>) -> Result<Values<'a>, Fault> {
    Ok(match step {
        Step::Text(text) => vec![Cow::Owned(Tree::from(text.as_str()))],
        Step::Constant(constant) => values.iter().map(|_| Cow::Owned(constant.clone())).collect(),
        Step::Field(name) => values.into_iter().filter_map(|value| field(value, name)).collect(),
        Step::Wildcard => values.into_iter().flat_map(children).collect(),
        Step::Recursive => {
            let mut found = Vec::new();
            values.into_iter().for_each(|value| descend(value, &mut found));
            found
        }
        Step::Slice(slice) => {
            let mut found = Vec::new();
            for value in values.into_iter().filter(|value| !value.is_null()) {
                found.extend(cut(*slice, list(value)?)?);
            }
            found
        }
        Step::Filter { left, compared } => {
            let mut found = Vec::new();
            for value in values {
                for entry in list(value)? {
                    if passes(entry.clone(), left, compared.as_ref())? {
                        found.push(entry);
                    }
                }
            }
            found
        }
        Step::Union(paths) => {
            let mut found = Vec::new();
            for path in paths {
                found.extend(follow(path, values.clone())?);
            }
            found
        }
    })
}

fn field<'a>(value: Cow<'a, Tree>, name: &str) -> Option<Cow<'a, Tree>> {
    // Literals have no fields: only what belongs to the object is looked into.
    match value {
        Cow::Borrowed(tree) => tree.as_object()?.get(name).map(Cow::Borrowed),
        Cow::Owned(_) => None,
    }
}

/// The values of a map or list, and the bytes of a text.
fn children(value: Cow<'_, Tree>) -> Values<'_> {
    match value {
        Cow::Borrowed(Tree::Object(map)) => map.values().map(Cow::Borrowed).collect(),
        Cow::Borrowed(Tree::Array(list)) => list.iter().map(Cow::Borrowed).collect(),
        value => value.as_str().unwrap_or_default().bytes().map(|byte| Cow::Owned(Tree::from(byte))).collect(),
    }
}

/// A value that is not empty, and all such values below it.
fn descend<'a>(value: Cow<'a, Tree>, found: &mut Values<'a>) {
    let below = children(value.clone());
    if !below.is_empty() {
        found.push(value);
        below.into_iter().for_each(|value| descend(value, found));
    }
}

fn list(value: Cow<'_, Tree>) -> Result<Values<'_>, Fault> {
    match value {
        Cow::Borrowed(Tree::Array(list)) => Ok(list.iter().map(Cow::Borrowed).collect()),
        other => Err(fault!("{} is not a list", kind(&other))),
    }
}

fn kind(tree: &Tree) -> &'static str {
    match tree {
        Tree::Null => "null",
        Tree::Bool(_) => "a truth value",
        Tree::Number(_) => "a number",
        Tree::String(_) => "a text",
        Tree::Array(_) => "a list",
        Tree::Object(_) => "a map",
    }
}

fn cut<'a>(slice: Slice, list: Values<'a>) -> Result<Values<'a>, Fault> {
    let len = i64::try_from(list.len()).unwrap_or(i64::MAX);
    let from_end = |at: i64| if at < 0 { at.saturating_add(len) } else { at };
    let (start, end, step) = match slice {
        Slice::At(at) => (from_end(at), from_end(at).saturating_add(1), 1),
        Slice::Between { start, end, step } => {
            (from_end(start.unwrap_or(0)), end.map_or(len, from_end), step.unwrap_or(1))
        }
    };
    if start == end {
        return Ok(Vec::new());
    }
    if start < 0 || start >= len || end < 0 || end > len {
        let at = if start < 0 || start >= len { start } else { end - 1 };
        return Err(fault!("the list index {at} is out of bounds: the length is {len}"));
    }
    if start >= end {
        return Err(fault!("the first index {start} is greater than the last {end}"));
    }
    if step <= 0 {
        return Err(fault!("a step must be greater than 0, not {step}"));
    }
    // All three are at least 0 here, and none is far beyond the length.
    let [start, end, step] = [start, end, step.min(len)].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    Ok(list.into_iter().take(end).skip(start).step_by(step).collect())
}

fn passes(entry: Cow<'_, Tree>, left: &[Step], compared: Option<&(Operator, Vec<Step>)>) -> Result<bool, Fault> {
    let here = || vec![entry.clone()];
    let Some((operator, right)) = compared else {
        // A path that cannot be followed counts as one that leads somewhere, as with `kubectl`.
        return Ok(follow(left, here()).map_or(true, |found| !found.is_empty()));
    };
    let one = |mut found: Values<'_>| {
        if found.len() > 1 {
            return Err(fault!("a filter compares one value at a time, not {}", found.len()));
        }
        Ok(found.pop().map(Cow::into_owned))
    };
    let (Some(left), Some(right)) = (one(follow(left, here())?)?, one(follow(right, here())?)?) else {
        return Ok(false);
    };
    let order = compare(&left, &right)?;
    let holds = match operator {
        Operator::Equal => order == Some(Ordering::Equal),
        Operator::NotEqual => order != Some(Ordering::Equal),
        _ if left.is_boolean() => return Err(fault!("truth values have no order")),
        Operator::Less => order == Some(Ordering::Less),
        Operator::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Operator::Greater => order == Some(Ordering::Greater),
        Operator::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    };
    Ok(holds)
}

/// The order of two values of one type. Whole numbers and others are two types.
fn compare(left: &Tree, right: &Tree) -> Result<Option<Ordering>, Fault> {
    match (left, right) {
        (Tree::String(left), Tree::String(right)) => Ok(Some(left.cmp(right))),
        (Tree::Bool(left), Tree::Bool(right)) => Ok(Some(left.cmp(right))),
        (Tree::Number(a), Tree::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(Some(a.cmp(&b))),
            (None, None) => Ok(a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b))),
            _ => Err(fault!("`{a}` and `{b}` cannot be compared: one is a whole number, the other is not")),
        },
        _ => Err(fault!("{} cannot be compared with {}", kind(left), kind(right))),
    }
}
