//! Pod templates, compared by what they say.

use dhow_api::{Tree, meta};
use std::collections::BTreeMap;

/// Tells the replica sets of one deployment apart.
pub(crate) const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// A pod template without the label that tells the replica sets of a deployment apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    /// Keys sorted, nulls left out: equal templates have equal text.
    canonical: String,
}

impl Template {
    pub(crate) fn of(template: &Tree) -> Self {
        let mut template = template.clone();
        if let Some(labels) = meta::at_mut(&mut template, "metadata.labels").and_then(Tree::as_object_mut) {
            labels.shift_remove(POD_TEMPLATE_HASH);
        }
        let mut canonical = String::new();
        write_canonical(&template, &mut canonical);
        Self { canonical }
    }

    /// The value of the label `pod-template-hash`: FNV-1a over the template and the number of collisions so far,
    /// in the letters of generated names.
    pub(crate) fn hash(&self, collisions: i64) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut hash: u32 = 0x811c_9dc5;
        let extra = if collisions == 0 { String::new() } else { collisions.to_string() };
        for byte in self.canonical.bytes().chain(extra.bytes()) {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
    }
}

fn write_canonical(tree: &Tree, out: &mut String) {
    match tree {
        Tree::Object(map) => {
            let sorted: BTreeMap<&str, &Tree> =
                map.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value)).collect();
            out.push('{');
            for (key, value) in sorted {
                out.push_str(&Tree::from(key).to_string());
                out.push(':');
                write_canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Tree::Array(items) => {
            out.push('[');
            for item in items {
                write_canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        leaf => out.push_str(&leaf.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_are_equal_whatever_the_key_order_and_the_hash_label() {
        let a = Template::of(&json!({"metadata": {"labels": {"app": "web"}}, "spec": {"a": 1, "b": null}}));
        let b =
            Template::of(&json!({"spec": {"a": 1}, "metadata": {"labels": {"pod-template-hash": "x", "app": "web"}}}));
        assert_eq!(a, b);
        assert_eq!(a.hash(0), b.hash(0));
        assert_ne!(a.hash(0), a.hash(1));
        assert!(a.hash(0).bytes().all(|letter| b"bcdfghjklmnpqrstvwxz2456789".contains(&letter)));
    }
}
