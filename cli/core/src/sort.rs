//! The order in which `--sort-by` shows objects, and the natural order of texts.

use crate::goform;
use crate::jsonpath::{Template, TemplateError};
use dhow_api::quantity::Quantity;
use serde_json::Value as Tree;

/// The places of the objects when they are sorted by what a path leads to: by amount if all of that are amounts, else
/// as texts. What has nothing there comes first.
pub fn order(objects: &[&Tree], path: &Template) -> Result<Vec<usize>, TemplateError> {
    let value = |object: &&Tree| Ok(path.values(object)?.first().filter(|value| !value.is_null()).map(goform::value));
    let values: Vec<Option<String>> = objects.iter().map(value).collect::<Result<_, TemplateError>>()?;
    if !values.is_empty() && values.iter().all(Option::is_none) {
        return Err(path.absent());
    }
    let amounts: Option<Vec<Option<Quantity>>> = values
        .iter()
        .map(|value| {
            value.as_deref().map(|text| Quantity::parse(text).ok()).map_or(Some(None), |amount| amount.map(Some))
        })
        .collect();
    let mut places: Vec<usize> = (0..objects.len()).collect();
    match amounts {
        Some(amounts) => places.sort_by_key(|place| amounts[*place]),
        None => places.sort_by_key(|place| values[*place].as_deref()),
    }
    Ok(places)
}

/// A part of a text, in the order in which they sort: what is no letter, numbers by their value, letters.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Other(char),
    /// Without zeros in front, which count last: the longer one is the larger.
    Number(usize, String, usize),
    Letter(char),
}

/// What a text is sorted by, so that `a2` comes before `a10`.
pub(crate) fn natural(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        if digits.is_empty() {
            parts.push(if first.is_alphabetic() { Part::Letter(first) } else { Part::Other(first) });
            rest = &rest[first.len_utf8()..];
        } else {
            let value = digits.trim_start_matches('0');
            parts.push(Part::Number(value.len(), value.to_owned(), digits.len()));
            rest = after;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_are_sorted_by_amount_or_as_texts() {
        for (values, expected) in [
            (json!([3, 10, null, 2]), vec![2, 3, 0, 1]),
            (json!(["1Gi", "500Mi", "2000000000"]), vec![1, 0, 2]),
            (json!(["pod-10", "pod-9", "pod-1"]), vec![2, 0, 1]),
            (json!(["2026-02-01T00:00:00Z", "2026-01-31T00:00:00Z"]), vec![1, 0]),
            (json!(["b", 3, "a"]), vec![1, 2, 0]),
        ] {
            let objects: Vec<Tree> =
                values.as_array().unwrap().iter().map(|value| json!({"a": {"b": value}})).collect();
            let found = order(&objects.iter().collect::<Vec<_>>(), &Template::parse_relaxed(".a.b").unwrap()).unwrap();
            assert_eq!(found, expected, "{values}");
        }
        let nowhere = order(&[&json!({})], &Template::parse_relaxed(".a.b").unwrap()).unwrap_err();
        assert_eq!(nowhere.to_string(), "none of the objects has a field at `{.a.b}`");
    }
}
