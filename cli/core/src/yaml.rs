//! YAML as `kubectl` writes it: keys in natural order, lists at their key's depth, quotes only where a text could be
//! taken for something else.

use crate::goform;
use crate::sort::natural;
use serde_json::Value as Tree;

/// Where a line is wide enough to be broken at the next blank.
const WIDTH: usize = 80;

/// A value as a YAML document.
pub fn write(tree: &Tree) -> String {
    let mut out = String::new();
    match tree {
        Tree::Object(map) if !map.is_empty() => fields(tree, 0, &mut out),
        Tree::Array(list) if !list.is_empty() => entries(list, 0, &mut out),
        tree => scalar(tree, 2, &mut out),
    }
    out
}

/// A map's fields; the first stands where the line is, the others on lines of their own.
fn fields(map: &Tree, indent: usize, out: &mut String) {
    let mut fields: Vec<(&String, &Tree)> = map.as_object().into_iter().flatten().collect();
    // Go's YAML sorts about so; where its order contradicts itself, this one does not.
    fields.sort_by_cached_key(|(key, _)| natural(key));
    for (index, (key, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            pad(indent, out);
        }
        out.push_str(&key_text(key));
        out.push(':');
        match value {
            Tree::Object(map) if !map.is_empty() => {
                out.push('\n');
                pad(indent + 2, out);
                self::fields(value, indent + 2, out);
            }
            Tree::Array(list) if !list.is_empty() => {
                out.push('\n');
                pad(indent, out);
                entries(list, indent, out);
            }
            value => {
                out.push(' ');
                scalar(value, indent + 2, out);
            }
        }
    }
}

/// A list's entries; the first stands where the line is, the others on lines of their own.
fn entries(list: &[Tree], indent: usize, out: &mut String) {
    for (index, value) in list.iter().enumerate() {
        if index > 0 {
            pad(indent, out);
        }
        out.push_str("- ");
        match value {
            Tree::Object(map) if !map.is_empty() => fields(value, indent + 2, out),
            Tree::Array(list) if !list.is_empty() => entries(list, indent + 2, out),
            value => scalar(value, indent + 2, out),
        }
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(tree: &Tree, indent: usize, out: &mut String) {
    match tree {
        Tree::String(text) => string(text, indent, out),
        Tree::Array(_) => out.push_str("[]"),
        Tree::Object(_) => out.push_str("{}"),
        other => out.push_str(&goform::print(other)),
    }
    out.push('\n');
}

fn key_text(key: &str) -> String {
    match style(key) {
        Style::Plain => key.to_owned(),
        Style::Single => single(key),
        Style::Double | Style::Literal => double(key),
    }
}

fn string(text: &str, indent: usize, out: &mut String) {
    match style(text) {
        Style::Plain => folded(text, indent, Quote { mark: "", encode: String::from }, out),
        Style::Single => folded(text, indent, Quote { mark: "'", encode: single_encoded }, out),
        Style::Double => folded(text, indent, Quote { mark: "\"", encode: double_encoded }, out),
        Style::Literal => literal(text, indent, out),
    }
}

/// How a text on one line is written.
#[derive(Clone, Copy)]
struct Quote {
    mark: &'static str,
    encode: fn(char) -> String,
}

/// Writes a text, and goes on in the next line at a blank once the line is wide.
fn folded(text: &str, indent: usize, quote: Quote, out: &mut String) {
    let mut column = out.chars().rev().take_while(|c| *c != '\n').count();
    out.push_str(quote.mark);
    column += quote.mark.len();
    let chars: Vec<char> = text.chars().collect();
    let mut after_blank = false;
    for (at, c) in chars.iter().enumerate() {
        let blank_follows = chars.get(at + 1) == Some(&' ');
        // Between quotes the ends are no place for a break, and only double quotes can keep blanks at a line's begin.
        let inside = quote.mark.is_empty() || (at > 0 && at + 1 < chars.len());
        let may_break = *c == ' ' && !after_blank && inside && (!blank_follows || quote.mark == "\"");
        after_blank = *c == ' ';
        if may_break && column > WIDTH {
            out.push('\n');
            pad(indent, out);
            column = indent;
            if blank_follows {
                out.push('\\');
                column += 1;
            }
            continue;
        }
        let written = (quote.encode)(*c);
        column += written.chars().count();
        out.push_str(&written);
    }
    out.push_str(quote.mark);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Single,
    Double,
    Literal,
}

fn style(text: &str) -> Style {
    let special =
        text.chars().any(|c| (c.is_control() && c != '\n') || matches!(c, '\u{feff}' | '\u{2028}' | '\u{2029}'));
    if text.contains('\n') {
        // A blank before a line's end, or at the very end, would be lost in a block.
        let fits = !special && !text.contains(" \n") && !text.ends_with(' ');
        return if fits { Style::Literal } else { Style::Double };
    }
    if special || is_other_type(text) {
        return Style::Double;
    }
    if is_plain(text) { Style::Plain } else { Style::Single }
}

/// Whether a text without quotes would be read as something else: a number, a truth value, nothing, a time.
fn is_other_type(text: &str) -> bool {
    const WORDS: [&str; 11] = ["y", "yes", "true", "on", "n", "no", "false", "off", "null", "~", "<<"];
    let lower = text.to_lowercase();
    let is_word =
        WORDS.contains(&lower.as_str()) && (text == lower || text == text.to_uppercase() || text[1..] == lower[1..]);
    let unsigned = text.trim_start_matches(['+', '-']);
    let is_special_float = matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN");
    text.is_empty() || is_word || is_special_float || is_number(text) || is_sexagesimal(unsigned) || is_time(text)
}

fn is_number(text: &str) -> bool {
    // Digits may be parted, but Go does not look for it in what begins so.
    let text = if text.starts_with(['_', '.']) { text.to_owned() } else { text.replace('_', "") };
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(&text);
    let based = |prefixes: [&str; 2], radix: u32| {
        let digits = prefixes.iter().find_map(|prefix| unsigned.strip_prefix(prefix));
        digits.is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix)))
    };
    let begins = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let is_decimal = unsigned.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    based(["0x", "0X"], 16)
        || based(["0o", "0O"], 8)
        || based(["0b", "0B"], 2)
        || (begins && is_decimal && unsigned.parse::<f64>().is_ok())
}

/// `1:30`: a number of YAML 1.1.
fn is_sexagesimal(text: &str) -> bool {
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut rest = parts.peekable();
    first.starts_with(|c: char| c.is_ascii_digit())
        && first.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
        && rest.peek().is_some()
        && rest.all(|part| {
            let whole = part.split_once('.').map_or(part, |(whole, _)| whole);
            digits(whole) && whole.len() <= 2 && whole.parse::<u8>().is_ok_and(|number| number < 60)
        })
}

/// `2026-01-02`, with or without a time of day.
fn is_time(text: &str) -> bool {
    let date = text.get(..text.find(['T', 't', ' ']).unwrap_or(text.len())).unwrap_or_default();
    let mut parts = date.split('-');
    let digits = |part: Option<&str>, most: usize| {
        part.is_some_and(|part| (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let is_date = date.find('-') == Some(4)
        && digits(parts.next(), 4)
        && digits(parts.next(), 2)
        && digits(parts.next(), 2)
        && parts.next().is_none();
    let rest = &text[date.len()..];
    is_date && (rest.is_empty() || rest[1..].starts_with(|c: char| c.is_ascii_digit()) && rest.contains(':'))
}

/// Whether a text on one line needs no quotes where it stands.
fn is_plain(text: &str) -> bool {
    let first = text.chars().next().unwrap_or(' ');
    let blank_follows = text[first.len_utf8()..].starts_with(' ') || text.len() == first.len_utf8();
    !(text.starts_with("---")
        || text.starts_with("...")
        || text.starts_with(' ')
        || text.ends_with(' ')
        || "#,[]{}&*!|>'\"%@`".contains(first)
        || ("?:-".contains(first) && blank_follows)
        || text.contains(": ")
        || text.ends_with(':')
        || text.contains(" #"))
}

fn single(text: &str) -> String {
    format!("'{}'", text.chars().map(single_encoded).collect::<String>())
}

fn single_encoded(c: char) -> String {
    if c == '\'' { "''".to_owned() } else { String::from(c) }
}

fn double(text: &str) -> String {
    format!("\"{}\"", text.chars().map(double_encoded).collect::<String>())
}

fn double_encoded(c: char) -> String {
    let escape = match c {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\0' => "\\0",
        '\u{7}' => "\\a",
        '\u{8}' => "\\b",
        '\t' => "\\t",
        '\n' => "\\n",
        '\u{b}' => "\\v",
        '\u{c}' => "\\f",
        '\r' => "\\r",
        '\u{1b}' => "\\e",
        '\u{85}' => "\\N",
        '\u{2028}' => "\\L",
        '\u{2029}' => "\\P",
        '\u{feff}' => "\\uFEFF",
        c if c.is_control() => return format!("\\x{:02X}", u32::from(c)),
        c => return String::from(c),
    };
    escape.to_owned()
}

/// A text of several lines as a block; a trailing line end is the caller's.
fn literal(text: &str, indent: usize, out: &mut String) {
    out.push('|');
    if text.starts_with([' ', '\n']) {
        out.push('2');
    }
    let body = text.strip_suffix('\n');
    match body {
        None => out.push('-'),
        Some(body) if body.is_empty() || body.ends_with('\n') => out.push('+'),
        Some(_) => {}
    }
    for line in body.unwrap_or(text).split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(indent, out);
            out.push_str(line);
        }
    }
}

#[cfg(test)]
mod tests;
