//! The rules for names, labels and metadata, with Kubernetes' sentences.
//!
//! A rule takes a text and gives what is wrong with it in words; no words, no fault.

use std::net::IpAddr;

use serde_json::json;

use crate::Tree;
use crate::field::{Fault, Faults, Path, quote};
use crate::kinds::Kind;
use crate::meta;

/// Longest DNS label, as RFC 1035 has it.
pub const DNS_LABEL_MAX: usize = 63;
/// Longest DNS name.
pub const DNS_NAME_MAX: usize = 253;
/// All annotations of one object together.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

const LABEL_FORM: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FORM: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035_FORM: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FORM: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const VALUE_FORM: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const KEY_FORM: &str = "[-._a-zA-Z0-9]+";

const LABEL_WORDS: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                           must start and end with an alphanumeric character";
const SUBDOMAIN_WORDS: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' \
                               or '.', and must start and end with an alphanumeric character";
const LABEL_1035_WORDS: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start \
                                with an alphabetic character, and end with an alphanumeric character";
const QUALIFIED_WORDS: &str =
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const VALUE_WORDS: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                           '.', and must start and end with an alphanumeric character";
const KEY_WORDS: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";

/// How a broken form is told.
fn form_fault(words: &str, form: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{words} (regex used for validation is '{form}')");
    }
    let list: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{words} (e.g. {}regex used for validation is '{form}')", list.join(" or "))
}

fn length_fault(bytes_max: usize) -> String {
    format!("must be no more than {bytes_max} bytes")
}

/// What is said of a number outside of a range.
pub fn range_fault(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inside = bytes.iter().all(|&byte| is_lower(byte) || byte == b'-');
    inside && bytes.first().is_some_and(|&byte| is_lower(byte)) && bytes.last().is_some_and(|&byte| is_lower(byte))
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inside = bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    inside
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// A DNS label: names of namespaces, containers, volumes.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > DNS_LABEL_MAX {
        faults.push(length_fault(DNS_LABEL_MAX));
    }
    if !is_label(text) {
        if is_subdomain(text) {
            faults.push("must not contain dots".to_owned());
        } else {
            faults.push(form_fault(LABEL_WORDS, LABEL_FORM, &["my-name", "123-abc"]));
        }
    }
    faults
}

/// A DNS name: names of most objects.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > DNS_NAME_MAX {
        faults.push(length_fault(DNS_NAME_MAX));
    }
    if !is_subdomain(text) {
        faults.push(form_fault(SUBDOMAIN_WORDS, SUBDOMAIN_FORM, &["example.com"]));
    }
    faults
}

/// A DNS label that begins with a letter: names of services.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > DNS_LABEL_MAX {
        faults.push(length_fault(DNS_LABEL_MAX));
    }
    if !is_label(text) || !text.starts_with(|first: char| first.is_ascii_lowercase()) {
        faults.push(form_fault(LABEL_1035_WORDS, LABEL_1035_FORM, &["my-name", "abc-123"]));
    }
    faults
}

/// A key of labels and annotations: a word with an optional DNS name before a slash.
pub fn qualified_name(text: &str) -> Vec<String> {
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut faults = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        ["", name] => {
            faults.push("prefix part must be non-empty".to_owned());
            name
        }
        [prefix, name] => {
            faults.extend(dns1123_subdomain(prefix).into_iter().map(|fault| format!("prefix part {fault}")));
            name
        }
        _ => {
            let form = form_fault(QUALIFIED_WORDS, QUALIFIED_FORM, EXAMPLES);
            let tail = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            faults.push(format!("a valid label key {form} {tail}"));
            return faults;
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > DNS_LABEL_MAX {
        faults.push(format!("name part {}", length_fault(DNS_LABEL_MAX)));
    }
    if !is_word(name) {
        faults.push(format!("name part {}", form_fault(QUALIFIED_WORDS, QUALIFIED_FORM, EXAMPLES)));
    }
    faults
}

/// The value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > DNS_LABEL_MAX {
        faults.push(length_fault(DNS_LABEL_MAX));
    }
    if !text.is_empty() && !is_word(text) {
        faults.push(form_fault(VALUE_WORDS, VALUE_FORM, &["MyValue", "my_value", "12345"]));
    }
    faults
}

/// The name of an environment variable.
pub fn env_var_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// A key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if text.len() > DNS_NAME_MAX {
        faults.push(length_fault(DNS_NAME_MAX));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        faults.push(form_fault(KEY_WORDS, KEY_FORM, &["key.name", "KEY_NAME", "key-name"]));
    }
    match text {
        "." | ".." => faults.push(format!("must not be '{text}'")),
        text if text.starts_with("..") => faults.push("must not start with '..'".to_owned()),
        _ => {}
    }
    faults
}

/// The number of a port.
pub fn port(number: i64) -> Vec<String> {
    if (1..=65535).contains(&number) { Vec::new() } else { vec![range_fault(1, 65535)] }
}

/// The name of a port (an IANA service name).
pub fn port_name(text: &str) -> Vec<String> {
    const PORT_NAME_MAX: usize = 15;
    let mut faults = Vec::new();
    if text.len() > PORT_NAME_MAX {
        faults.push(length_fault(PORT_NAME_MAX));
    }
    if text.is_empty() || !text.bytes().all(|byte| is_lower(byte) || byte == b'-') {
        faults.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        faults.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        faults.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        faults.push("must not begin or end with a hyphen".to_owned());
    }
    faults
}

/// An IP address.
pub fn ip(text: &str) -> Vec<String> {
    match text.parse::<IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// A field whose text must be one of a closed set; a missing or empty one is no fault here.
pub fn one_of(path: &Path<'_>, value: &str, supported: &[&str], faults: &mut Faults) {
    if !value.is_empty() && !supported.contains(&value) {
        faults.push(Fault::not_supported(path, value, supported));
    }
}

/// A number that must not be below zero.
pub fn not_negative(path: &Path<'_>, value: Option<i64>, faults: &mut Faults) {
    if let Some(value) = value.filter(|value| *value < 0) {
        faults.push(Fault::invalid(path, value, "must be greater than or equal to 0"));
    }
}

/// A value that may not change.
pub fn immutable(path: &Path<'_>, new: Option<&Tree>, old: Option<&Tree>, faults: &mut Faults) {
    if new != old {
        faults.push(Fault::invalid(path, new.cloned().unwrap_or(Tree::Null), "field is immutable"));
    }
}

/// Adds a fault of the value at a path for each sentence.
pub fn push_all(path: &Path<'_>, value: impl Into<Tree>, words: Vec<String>, faults: &mut Faults) {
    if words.is_empty() {
        return;
    }
    let value = value.into();
    faults.extend(words.into_iter().map(|words| Fault::invalid(path, value.clone(), words)));
}

/// A map of labels.
pub fn labels(path: &Path<'_>, tree: Option<&Tree>, faults: &mut Faults) {
    for (key, value) in tree.and_then(Tree::as_object).into_iter().flatten() {
        push_all(path, key.as_str(), qualified_name(key), faults);
        let value = value.as_str().unwrap_or("");
        push_all(path, value, label_value(value), faults);
    }
}

/// A map of annotations.
pub fn annotations(path: &Path<'_>, tree: Option<&Tree>, faults: &mut Faults) {
    let mut bytes = 0;
    for (key, value) in tree.and_then(Tree::as_object).into_iter().flatten() {
        push_all(path, key.as_str(), qualified_name(&key.to_ascii_lowercase()), faults);
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        faults.push(Fault::too_long(path, ANNOTATIONS_BYTES_MAX));
    }
}

/// The metadata of an object of this kind.
pub fn object_meta(kind: &Kind, tree: &Tree, faults: &mut Faults) {
    let path = Path::root("metadata");
    let generate_name = meta::generate_name(tree);
    if !generate_name.is_empty() {
        let words = (kind.name_faults)(&without_trailing_dash(generate_name));
        push_all(&path.field("generateName"), generate_name, words, faults);
    }
    match meta::name(tree) {
        "" => faults.push(Fault::required(path.field("name"), "name or generateName is required")),
        name => push_all(&path.field("name"), name, (kind.name_faults)(name), faults),
    }
    match (meta::namespace(tree), kind.namespaced) {
        ("", true) => faults.push(Fault::required(path.field("namespace"), "")),
        (namespace, true) => push_all(&path.field("namespace"), namespace, dns1123_label(namespace), faults),
        ("", false) => {}
        (_, false) => faults.push(Fault::forbidden(path.field("namespace"), "not allowed on this type")),
    }
    common_meta(&path, tree, faults);
}

/// The metadata of a pod template.
pub fn template_meta(path: &Path<'_>, template: &Tree, faults: &mut Faults) {
    labels(&path.field("labels"), meta::at(template, "metadata.labels"), faults);
    annotations(&path.field("annotations"), meta::at(template, "metadata.annotations"), faults);
}

fn common_meta(path: &Path<'_>, tree: &Tree, faults: &mut Faults) {
    not_negative(&path.field("generation"), meta::int(tree, "metadata.generation"), faults);
    labels(&path.field("labels"), meta::at(tree, "metadata.labels"), faults);
    annotations(&path.field("annotations"), meta::at(tree, "metadata.annotations"), faults);
    owner_references(&path.field("ownerReferences"), tree, faults);
    let finalizers = meta::finalizers(tree);
    let finalizers_path = path.field("finalizers");
    for finalizer in &finalizers {
        push_all(&finalizers_path, *finalizer, qualified_name(finalizer), faults);
    }
    if finalizers.contains(&"foregroundDeletion") && finalizers.contains(&"orphan") {
        let words = "finalizer orphan and foregroundDeletion cannot be both set";
        faults.push(Fault::invalid(finalizers_path, json!(finalizers), words));
    }
}

fn owner_references(path: &Path<'_>, tree: &Tree, faults: &mut Faults) {
    let mut controller: Option<String> = None;
    for owner in meta::owner_refs(tree) {
        let version = owner.api_version.rsplit('/').next().unwrap_or("");
        if version.is_empty() {
            let words = "version must not be empty";
            faults.push(Fault::invalid(path.field("apiVersion"), owner.api_version.as_str(), words));
        }
        for (field, value) in [("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)] {
            if value.is_empty() {
                faults.push(Fault::invalid(path.field(field), "", "must not be empty"));
            }
        }
        if (owner.api_version.as_str(), owner.kind.as_str()) == ("v1", "Event") {
            let words = "/v1, Kind=Event is disallowed from being an owner";
            faults.push(Fault::invalid(path, owner.name.as_str(), words));
        }
        if !owner.controller {
            continue;
        }
        let name = format!("{}/{}", owner.kind, owner.name);
        if let Some(first) = &controller {
            let words = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
            );
            let value = meta::at(tree, "metadata.ownerReferences").cloned().unwrap_or(Tree::Null);
            faults.push(Fault::invalid(path, value, words));
        }
        controller.get_or_insert(name);
    }
}

/// The metadata of an update: the rules above and what may not change.
pub fn object_meta_update(new: &Tree, old: &Tree, faults: &mut Faults) {
    let path = Path::root("metadata");
    if meta::is_deleting(old) {
        let known = meta::finalizers(old);
        let fresh: Vec<String> =
            meta::finalizers(new).into_iter().filter(|name| !known.contains(name)).map(quote).collect();
        if !fresh.is_empty() {
            let words = "no new finalizers can be added if the object is being deleted, found new finalizers";
            let words = format!("{words} []string{{{}}}", fresh.join(", "));
            faults.push(Fault::forbidden(path.field("finalizers"), words));
        }
    }
    let fixed = ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];
    for field in fixed {
        let at = format!("metadata.{field}");
        immutable(&path.field(field), meta::at(new, &at), meta::at(old, &at), faults);
    }
    if meta::generation(new) < meta::generation(old) {
        faults.push(Fault::invalid(path.field("generation"), meta::generation(new), "must not be decremented"));
    }
    common_meta(&path, new, faults);
}

/// A name prefix is judged as if something followed its last dash.
fn without_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rule = fn(&str) -> Vec<String>;

    #[test]
    fn rules_accept_and_refuse_what_upstream_does() {
        let long = "a".repeat(64);
        let cases: &[(Rule, &[&str], &[&str])] = &[
            (dns1123_label, &["a", "a-b", "1"], &["", "A", "-a", "a-", "a.b", "a_b", "ä", &long]),
            (dns1123_subdomain, &["a", "a.b", "1-2.x", &long], &["", ".", "a.", "a..b", "A.b", "a.-b"]),
            (dns1035_label, &["a", "a-1"], &["1a", "", "a.b", "a-"]),
            (qualified_name, &["a", "A_b.c-1", "x.y/z"], &["", "/a", "a/", "a/b/c", "X/a", "_a", "a b"]),
            (label_value, &["", "A_b.c"], &["-a", "a-", "a b", &long]),
            (env_var_name, &["A", "a.b-c", "1", "a b"], &["", "a=b", "ä", "a\n"]),
            (config_key, &["a", ".a", "A_b-c.d"], &["", ".", "..", "..a", "a b", "a/b"]),
            (port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "a-", "HTTP", "abcdefghijklmnop"]),
            (ip, &["10.0.0.1", "::1"], &["", "10.0.0", "a"]),
        ];
        for (rule, good, bad) in cases {
            for text in *good {
                assert_eq!(rule(text), Vec::<String>::new(), "{text:?}");
            }
            for text in *bad {
                assert!(!rule(text).is_empty(), "{text:?}");
            }
        }
    }

    #[test]
    fn sentences_are_those_of_upstream() {
        assert_eq!(
            dns1123_subdomain("A_b"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
              start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            dns1123_label("A"),
            ["a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
              and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]
        );
        assert_eq!(port(0), ["must be between 1 and 65535, inclusive"]);
    }
}
