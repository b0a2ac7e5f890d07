//! The annotations of pods that mean something to Dhow, and those that only look so.

use super::serving::{HTTP_CONCURRENCY, HTTP_REUSE};
use crate::field::Path;
use crate::{Tree, meta};

/// What all of them begin with.
const PREFIX: &str = "dhow.dev/";

/// By which a pod asks for core dumps: `true`.
pub const CORE_DUMP: &str = "dhow.dev/core-dump";

const KNOWN: [&str; 3] = [CORE_DUMP, HTTP_CONCURRENCY, HTTP_REUSE];

/// What to say of annotations that nothing here reads; `path` is `metadata.annotations`, `tree` the pod or the template.
pub(in crate::kinds) fn warnings(path: &Path<'_>, tree: &Tree) -> Vec<String> {
    let unknown = meta::annotations(tree).filter(|(key, _)| key.starts_with(PREFIX) && !KNOWN.contains(key));
    unknown.map(|(key, _)| format!("{}: unknown annotation; known are {}", path.key(key), KNOWN.join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_mistyped_is_said_and_others_annotations_are_their_own() {
        let tree = json!({"metadata": {"annotations": {
            CORE_DUMP: "true", HTTP_REUSE: "2", "dhow.dev/http-resue": "2", "example.com/x": "y", "dhow.dev": "z"}}});
        let want = "metadata.annotations[dhow.dev/http-resue]: unknown annotation; known are dhow.dev/core-dump, \
                    dhow.dev/http-concurrency, dhow.dev/http-reuse";
        assert_eq!(warnings(&Path::root("metadata.annotations"), &tree), [want]);
    }
}
