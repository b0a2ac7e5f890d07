//! What `kubectl` wrote, what we write, and that both mean the same.

use super::*;

#[test]
fn a_document_is_written_as_kubectl_writes_it() {
    let object: Tree = serde_json::from_str(include_str!("object.json")).unwrap();
    let (found, expected) = (write(&object), include_str!("object.yaml"));
    let pairs = found.lines().zip(expected.lines());
    let differing: Vec<_> = pairs.filter(|(found, expected)| found != expected).collect();
    assert!(differing.is_empty(), "{differing:#?}");
    assert_eq!(found.lines().count(), expected.lines().count());
}

#[test]
fn what_is_written_is_read_back() {
    let object: Tree = serde_json::from_str(include_str!("object.json")).unwrap();
    let strings = object["strings"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
    // `kubectl` writes the last ones so that they are not read back.
    for text in strings.chain(["del\u{7f}", "\u{2028}", "\u{85}x", "<<"]) {
        for tree in [Tree::from(text), serde_json::json!({"a": [text, {"b": text}]}), serde_json::json!([[text], text])]
        {
            let read: Tree =
                serde_yaml::from_str(&write(&tree)).unwrap_or_else(|err| panic!("{err}: {}", write(&tree)));
            assert_eq!(read, tree, "{}", write(&tree));
        }
    }
}
