//! What `kubectl` made of each template; the tests that drive the real one hold the table to it.

use super::*;

#[test]
fn templates_give_what_kubectl_gives() {
    let object: Tree = serde_json::from_str(include_str!("object.json")).unwrap();
    for line in include_str!("cases.jsonl").lines() {
        let (template, expected): (String, Option<String>) = serde_json::from_str(line).unwrap();
        let found = Template::parse(&template).and_then(|parsed| parsed.text(&object));
        match (found, expected) {
            (Ok(found), Some(expected)) => assert_eq!(found, expected, "{template}"),
            (Err(_), None) => {}
            (found, expected) => panic!("{template}: {found:?}, but kubectl: {expected:?}"),
        }
    }
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    let object: Tree = serde_json::from_str(include_str!("object.json")).unwrap();
    for (template, expected) in [
        (
            "{metadata.name}",
            "the jsonpath template `{metadata.name}`: unrecognized identifier `metadata`: a field begins with a dot",
        ),
        (
            "{.metadata[\"name\"]}",
            "the jsonpath template `{.metadata[\"name\"]}`: `\"name\"` is not a list index: a key is written with single quotes, as in `['name']`",
        ),
        ("{.kind", "the jsonpath template `{.kind`: unclosed action: a `}` is missing"),
        ("{.metadata[0]}", "following the jsonpath template `{.metadata[0]}`: a map is not a list"),
        (
            "{.spec.containers[7]}",
            "following the jsonpath template `{.spec.containers[7]}`: the list index 7 is out of bounds: the length is 3",
        ),
    ] {
        let err = Template::parse(template).and_then(|parsed| parsed.text(&object)).unwrap_err();
        assert_eq!(format!("{err:#}"), expected);
    }
}

#[test]
fn results_as_json_are_a_list_a_piece() {
    let object = serde_json::json!({"a": {"b": [1, "x"]}});
    let text = |template: &str| Template::parse(template).unwrap().json(&object).unwrap();
    assert_eq!(text("{.a.b[*]}"), "[\n    1,\n    \"x\"\n]\n");
    assert_eq!(text("{.a.c}"), "[]\n");
}

#[test]
fn a_relaxed_path_needs_no_braces() {
    let object = serde_json::json!({"a": {"b": 1}});
    for path in ["a.b", ".a.b", "{a.b}", "{.a.b}"] {
        assert_eq!(Template::parse_relaxed(path).unwrap().values(&object).unwrap(), [Tree::from(1)], "{path}");
    }
    for path in ["", "{}", "{.a}{.b}", "."] {
        assert!(Template::parse_relaxed(path).is_err(), "{path}");
    }
}
