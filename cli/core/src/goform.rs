//! How Go writes values, for output that must be `kubectl`'s to the byte: its JSON has sorted keys and no `<`, `>`,
//! `&`, and its numbers forms of their own.

use serde_json::{Number, Value as Tree};

/// A value as a template prints it: a text as it is, a map or list as JSON on one line.
pub fn print(tree: &Tree) -> String {
    match tree {
        Tree::String(text) => text.clone(),
        Tree::Number(number) => self::number(number, Exponent::Padded),
        Tree::Null | Tree::Bool(_) | Tree::Array(_) | Tree::Object(_) => json(tree),
    }
}

/// A value as Go's `%v` writes it: `map[a:1 b:[x y]]`.
pub fn value(tree: &Tree) -> String {
    let joined = |parts: Vec<String>| parts.join(" ");
    match tree {
        Tree::Null => "<nil>".to_owned(),
        Tree::Array(list) => format!("[{}]", joined(list.iter().map(value).collect())),
        Tree::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            format!("map[{}]", joined(fields.iter().map(|(key, field)| format!("{key}:{}", value(field))).collect()))
        }
        other => print(other),
    }
}

/// JSON on one line.
pub fn json(tree: &Tree) -> String {
    let mut out = String::new();
    write(tree, None, &mut out);
    out
}

/// JSON, indented by four blanks a level.
pub fn json_pretty(tree: &Tree) -> String {
    let mut out = String::new();
    write(tree, Some(0), &mut out);
    out
}

/// Writes a value; `level` is how deep it stands, if lines are broken.
fn write(tree: &Tree, level: Option<usize>, out: &mut String) {
    let inner = level.map(|level| level + 1);
    match tree {
        Tree::Null => out.push_str("null"),
        Tree::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Tree::Number(value) => out.push_str(&number(value, Exponent::Short)),
        Tree::String(text) => quote(text, out),
        Tree::Array(list) => {
            out.push('[');
            for (index, value) in list.iter().enumerate() {
                separate(index, inner, out);
                write(value, inner, out);
            }
            close(list.is_empty(), level, out);
            out.push(']');
        }
        Tree::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (index, (key, value)) in fields.iter().enumerate() {
                separate(index, inner, out);
                quote(key, out);
                out.push_str(if level.is_some() { ": " } else { ":" });
                write(value, inner, out);
            }
            close(fields.is_empty(), level, out);
            out.push('}');
        }
    }
}

fn separate(index: usize, level: Option<usize>, out: &mut String) {
    if index > 0 {
        out.push(',');
    }
    new_line(level, out);
}

fn close(empty: bool, level: Option<usize>, out: &mut String) {
    if !empty {
        new_line(level, out);
    }
}

fn new_line(level: Option<usize>, out: &mut String) {
    if let Some(level) = level {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", level));
    }
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// How Go writes an exponent: `%v` with two digits at least, JSON with as many as needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exponent {
    Padded,
    Short,
}

fn number(number: &Number, exponent: Exponent) -> String {
    let (Some(value), None) = (number.as_f64(), number.as_i64()) else { return number.to_string() };
    let scientific = format!("{value:e}");
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    let (least, width) = match exponent {
        Exponent::Padded => (-4, 2),
        Exponent::Short => (-6, 1),
    };
    if (least..21).contains(&power) {
        return value.to_string();
    }
    let sign = if power < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:0width$}", power.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_written_as_go_does() {
        let numbers: Tree =
            serde_json::from_str("[1.5, 1e21, 0.0000001, 3.0, 1e20, 0.00001, -2, 18446744073709551615]").unwrap();
        for (tree, printed, by_v) in [
            (
                numbers,
                "[1.5,1e+21,1e-7,3,100000000000000000000,0.00001,-2,18446744073709552000]",
                "[1.5 1e+21 1e-07 3 100000000000000000000 1e-05 -2 18446744073709552000]",
            ),
            (
                json!({"b": [true, null], "a": "x<y>&z"}),
                r#"{"a":"x\u003cy\u003e\u0026z","b":[true,null]}"#,
                "map[a:x<y>&z b:[true <nil>]]",
            ),
            (json!("a\"\\\n"), "a\"\\\n", "a\"\\\n"),
            (json!(["\u{1}\t\u{2028}é"]), "[\"\\u0001\\t\\u2028é\"]", "[\u{1}\t\u{2028}é]"),
            (json!(null), "null", "<nil>"),
        ] {
            assert_eq!((print(&tree).as_str(), value(&tree).as_str()), (printed, by_v));
        }
    }

    #[test]
    fn pretty_json_is_indented_by_four() {
        let tree = json!({"b": [], "a": {"x": [1, {"y": {}}]}});
        let text = "{\n    \"a\": {\n        \"x\": [\n            1,\n            {\n                \"y\": {}\n            }\n        ]\n    },\n    \"b\": []\n}";
        assert_eq!(json_pretty(&tree), text);
    }
}
