//! Kinds that nobody described: their fields, with names as people read them.

use super::common::{annotations, labels, names, scalar, sorted};
use super::page::Page;
use dhow_api::Tree;

/// What stands above already, or is for machines.
const TOLD: [&str; 5] = ["managedFields", "name", "namespace", "labels", "annotations"];

pub(super) fn object(page: &mut Page, object: &Tree) {
    names(page, object);
    labels(page, "Labels", &object["metadata"]["labels"]);
    annotations(page, "Annotations", &object["metadata"]["annotations"]);
    for (name, value) in sorted(object) {
        if name != "metadata" {
            field(page, 0, name, value);
            continue;
        }
        page.line(0, "Metadata:");
        for (name, value) in sorted(value).into_iter().filter(|(name, _)| !TOLD.contains(name)) {
            field(page, 1, name, value);
        }
    }
}

fn field(page: &mut Page, level: usize, name: &str, value: &Tree) {
    let name = title(name);
    match value {
        Tree::Object(_) => {
            page.line(level, format!("{name}:"));
            below(page, level + 1, value);
        }
        Tree::Array(list) => {
            page.line(level, format!("{name}:"));
            for entry in list {
                match entry {
                    Tree::Object(_) => below(page, level + 1, entry),
                    other => page.line(level + 1, scalar(other)),
                }
            }
        }
        Tree::Null => page.line(level, format!("{name}:\t<nil>")),
        other => page.line(level, format!("{name}:\t{}", scalar(other))),
    }
}

fn below(page: &mut Page, level: usize, map: &Tree) {
    for (name, value) in sorted(map) {
        field(page, level, name, value);
    }
}

/// `creationTimestamp` as `Creation Timestamp`, `apiVersion` as `API Version`. A name that is no word of the API, such
/// as a label's key, stays.
fn title(name: &str) -> String {
    const ACRONYMS: [&str; 5] = ["API", "URL", "UID", "OSB", "GUID"];
    if !name.chars().all(|c| c.is_alphabetic() || c == '-') {
        return name.to_owned();
    }
    let titled = |word: &str| {
        let upper = word.to_uppercase();
        if ACRONYMS.contains(&upper.as_str()) {
            return upper;
        }
        let mut chars = word.chars();
        chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
    };
    words(name).into_iter().map(titled).collect::<Vec<_>>().join(" ")
}

/// The words of a name in camel case: `podIPs` is `pod`, `I`, `Ps`, for that is what `kubectl` makes of it.
fn words(name: &str) -> Vec<&str> {
    let chars: Vec<(usize, char)> = name.char_indices().collect();
    let mut starts = vec![0];
    for (index, (at, c)) in chars.iter().enumerate().skip(1) {
        let before = chars[index - 1].1;
        let lower_follows = chars.get(index + 1).is_some_and(|(_, next)| next.is_lowercase());
        let begins = if c.is_uppercase() {
            !before.is_uppercase() || lower_follows
        } else {
            !c.is_lowercase() && before.is_alphabetic() || c.is_alphabetic() && !before.is_alphabetic()
        };
        if begins {
            starts.push(*at);
        }
    }
    starts.push(name.len());
    starts.windows(2).map(|pair| &name[pair[0]..pair[1]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_titles() {
        for (name, expected) in [
            ("creationTimestamp", "Creation Timestamp"),
            ("apiVersion", "API Version"),
            ("uid", "UID"),
            ("podIPs", "Pod I Ps"),
            ("kind", "Kind"),
            ("a.b/c", "a.b/c"),
            ("secretURL", "Secret URL"),
        ] {
            assert_eq!(title(name), expected);
        }
    }
}
