//! Label and field selectors, in both their forms: query text and `matchLabels`/`matchExpressions`.

use std::fmt;

use crate::Tree;
use crate::field::{Fault, Faults, Path, quote};
use crate::kinds::Kind;
use crate::status::ApiError;
use crate::{meta, validate};

/// Which objects are wanted, by their labels. All requirements must hold; none means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    op: Op,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        match &self.op {
            Op::In(values) => value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
            Op::NotIn(values) => value.is_none_or(|value| values.iter().all(|unwanted| unwanted != value)),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::GreaterThan(bound) => number(value).is_some_and(|number| number > *bound),
            Op::LessThan(bound) => number(value).is_some_and(|number| number < *bound),
        }
    }
}

fn number(value: Option<&str>) -> Option<i64> {
    value?.parse().ok()
}

impl LabelSelector {
    /// Everything.
    pub fn everything() -> LabelSelector {
        LabelSelector::default()
    }

    /// Nothing at all.
    pub fn nothing() -> LabelSelector {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    /// Whether it asks for nothing in particular.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Reads `app=web,tier in (a, b),!old,size>3`.
    pub fn parse(text: &str) -> Result<LabelSelector, ApiError> {
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        let requirements = parser
            .requirements()
            .map_err(|why| ApiError::bad_request(format!("unable to parse requirement: {why}")))?;
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// From a `LabelSelector` object; none matches nothing, an empty one everything.
    pub fn from_tree(tree: &Tree) -> Result<LabelSelector, ApiError> {
        if tree.is_null() {
            return Ok(LabelSelector::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in meta::texts(tree, "matchLabels") {
            requirements.push(Requirement { key: key.to_owned(), op: Op::In(vec![value.to_owned()]) });
        }
        for expression in meta::list(tree, "matchExpressions") {
            let values =
                || meta::list(expression, "values").iter().filter_map(Tree::as_str).map(str::to_owned).collect();
            let op = match meta::text(expression, "operator") {
                "In" => Op::In(values()),
                "NotIn" => Op::NotIn(values()),
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                other => {
                    return Err(ApiError::bad_request(format!(
                        "{} is not a valid label selector operator",
                        quote(other)
                    )));
                }
            };
            requirements.push(Requirement { key: meta::text(expression, "key").to_owned(), op });
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// Whether an object with these labels is wanted.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|requirement| requirement.holds(label(&requirement.key)))
    }

    /// Whether an object with these labels is wanted.
    pub fn matches_labels(&self, labels: &[(String, String)]) -> bool {
        self.matches(|key| labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str()))
    }

    /// Whether an object is wanted by its `metadata.labels`.
    pub fn matches_tree(&self, tree: &Tree) -> bool {
        self.matches(|key| meta::label(tree, key))
    }
}

impl fmt::Display for LabelSelector {
    /// Requirements sorted by key, as upstream writes selectors; empty for everything and nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<(&str, String)> =
            self.requirements.iter().map(|requirement| (requirement.key.as_str(), requirement.to_string())).collect();
        parts.sort_by_key(|(key, _)| *key);
        f.write_str(&parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(","))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let sorted = |values: &[String]| {
            let mut values = values.to_vec();
            values.sort_unstable();
            values.join(",")
        };
        match &self.op {
            Op::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0]),
            Op::In(values) => write!(f, "{key} in ({})", sorted(values)),
            Op::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0]),
            Op::NotIn(values) => write!(f, "{key} notin ({})", sorted(values)),
            Op::Exists => f.write_str(key),
            Op::DoesNotExist => write!(f, "!{key}"),
            Op::GreaterThan(bound) => write!(f, "{key}>{bound}"),
            Op::LessThan(bound) => write!(f, "{key}<{bound}"),
        }
    }
}

/// Finds the faults of a `LabelSelector` object.
pub fn validate(path: &Path<'_>, tree: &Tree, faults: &mut Faults) {
    validate::labels(&path.field("matchLabels"), meta::at(tree, "matchLabels"), faults);
    let list = path.field("matchExpressions");
    for (i, expression) in meta::list(tree, "matchExpressions").iter().enumerate() {
        let path = list.index(i);
        let values = meta::list(expression, "values");
        match meta::text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                let words = "must be specified when `operator` is 'In' or 'NotIn'";
                faults.push(Fault::required(path.field("values"), words));
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let words = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                faults.push(Fault::forbidden(path.field("values"), words));
            }
            "Exists" | "DoesNotExist" => {}
            other => faults.push(Fault::invalid(path.field("operator"), other, "not a valid selector operator")),
        }
        let key = meta::text(expression, "key");
        validate::push_all(&path.field("key"), key, validate::qualified_name(key), faults);
        let values_path = path.field("values");
        for (i, value) in values.iter().filter_map(Tree::as_str).enumerate() {
            validate::push_all(&values_path.index(i), value, validate::label_value(value), faults);
        }
    }
}

/// A piece of selector text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Sign(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(word) => word,
            Token::Sign(sign) => sign,
            Token::End => "",
        }
    }
}

/// Longer signs first, so that `==` is not read as two.
const SIGNS: &[&str] = &["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            tokens.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "=!(),><".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        if *self.peek() == Token::End {
            return Ok(requirements);
        }
        loop {
            match self.peek() {
                Token::Word(_) | Token::Sign("!") => requirements.push(self.requirement()?),
                other => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text())),
            }
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Sign(",") => match self.peek() {
                    Token::Word(_) | Token::Sign("!") => {}
                    other => return Err(format!("found '{}', expected: identifier after ','", other.text())),
                },
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = *self.peek() == Token::Sign("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        let words = validate::qualified_name(&key);
        if !words.is_empty() {
            return Err(fault_text("key", &key, &words));
        }
        if absent {
            return Ok(Requirement { key, op: Op::DoesNotExist });
        }
        if matches!(self.peek(), Token::End | Token::Sign(",")) {
            return Ok(Requirement { key, op: Op::Exists });
        }
        let op = self.operation(&key)?;
        Ok(Requirement { key, op })
    }

    fn operation(&mut self, key: &str) -> Result<Op, String> {
        let op = match self.next() {
            Token::Sign("=" | "==") => Op::In(vec![self.exact_value(key)?]),
            Token::Sign("!=") => Op::NotIn(vec![self.exact_value(key)?]),
            Token::Sign(">") => Op::GreaterThan(self.bound(key)?),
            Token::Sign("<") => Op::LessThan(self.bound(key)?),
            Token::Word(word) if word == "gt" => Op::GreaterThan(self.bound(key)?),
            Token::Word(word) if word == "lt" => Op::LessThan(self.bound(key)?),
            Token::Word(word) if word == "in" => Op::In(self.values(key)?),
            Token::Word(word) if word == "notin" => Op::NotIn(self.values(key)?),
            other => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text())),
        };
        Ok(op)
    }

    fn exact_value(&mut self, key: &str) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Sign(",") => return Ok(String::new()),
            _ => {}
        }
        match self.next() {
            Token::Word(value) => checked(key, value),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn bound(&mut self, key: &str) -> Result<i64, String> {
        let value = self.exact_value(key)?;
        value.parse().map_err(|_| {
            let words = "for 'Gt', 'Lt' operators, the value must be an integer";
            fault_text(&format!("values[0][{key}]"), &value, &[words.to_owned()])
        })
    }

    fn values(&mut self, key: &str) -> Result<Vec<String>, String> {
        match self.next() {
            Token::Sign("(") => {}
            other => return Err(format!("found '{}', expected: '('", other.text())),
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(value) => {
                    values.push(checked(key, value)?);
                    match self.next() {
                        Token::Sign(",") => {}
                        Token::Sign(")") => return Ok(values),
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Sign(",") => values.push(String::new()),
                Token::Sign(")") => {
                    values.push(String::new());
                    return Ok(values);
                }
                other => return Err(format!("found '{}', expected: ',', ')' or identifier", other.text())),
            }
        }
    }
}

fn checked(key: &str, value: String) -> Result<String, String> {
    let words = validate::label_value(&value);
    if words.is_empty() { Ok(value) } else { Err(fault_text(&format!("values[0][{key}]"), &value, &words)) }
}

fn fault_text(path: &str, value: &str, words: &[String]) -> String {
    Fault::invalid(path, value, words.join("; ")).to_string()
}

/// Which objects are wanted, by a few of their fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    label: String,
    value: String,
    equal: bool,
}

impl FieldSelector {
    /// Everything.
    pub fn everything() -> FieldSelector {
        FieldSelector::default()
    }

    /// Whether it asks for nothing in particular.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Reads `spec.nodeName=n1,status.phase!=Running`; only fields that the kind knows.
    pub fn parse(text: &str, kind: &Kind) -> Result<FieldSelector, ApiError> {
        let mut terms = Vec::new();
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let term = read_term(part).ok_or_else(|| {
                ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{part}'"))
            })?;
            if !kind.knows_field(&term.label) {
                return Err(ApiError::bad_request(format!("field label not supported: {}", term.label)));
            }
            terms.push(term);
        }
        Ok(FieldSelector { terms })
    }

    /// Whether an object with these field values is wanted; a field that is not there counts as empty.
    pub fn matches<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|term| (value(&term.label).unwrap_or("") == term.value) == term.equal)
    }

    /// The value that a field must have, if the selector asks for exactly one: the way to an index.
    pub fn exact(&self, label: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.label == label).map(|term| term.value.as_str())
    }
}

/// Splits at commas that no backslash stands before.
fn split_terms(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut begin, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            ',' if !escaped => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
        escaped = false;
    }
    parts.push(&text[begin..]);
    parts
}

fn read_term(part: &str) -> Option<Term> {
    let at = part.find(['=', '!'])?;
    let (label, rest) = part.split_at(at);
    let (equal, value) = match rest.strip_prefix("!=") {
        Some(value) => (false, value),
        None => (true, rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?),
    };
    Some(Term { label: label.trim().to_owned(), value: unescape(value)?, equal })
}

/// Takes the backslashes away; nothing for an escape that no writer makes.
fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('\\' | ',' | '=') => plain.push(c),
                _ => return None,
            },
            ',' | '=' => return None,
            c => plain.push(c),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::POD;
    use serde_json::json;

    #[test]
    fn label_selectors_match() {
        let labels = [("app", "web"), ("tier", "a"), ("size", "4"), ("empty", ""), ("x.y/z", "1")];
        let labels: Vec<(String, String)> = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let yes = [
            "",
            "app=web",
            "app==web",
            "app = web , tier=a",
            "app!=db",
            "none!=x",
            "tier in (a,b)",
            "tier in (a, b),app",
            "tier notin (c)",
            "none notin (c)",
            "app",
            "!none",
            "size>3",
            "size<5",
            "size gt 3",
            "empty=",
            "empty in ()",
            "x.y/z=1",
            "empty",
            "size in (4)",
            "tier in (,a)",
        ];
        let no = ["app=db", "app!=web", "none", "!app", "tier in (b)", "tier notin (a)", "size>4", "app>1", "none=x"];
        for text in yes {
            assert!(LabelSelector::parse(text).unwrap().matches_labels(&labels), "{text}");
        }
        for text in no {
            assert!(!LabelSelector::parse(text).unwrap().matches_labels(&labels), "{text}");
        }
    }

    #[test]
    fn broken_label_selectors_say_what_was_expected() {
        let cases = [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a,", "unable to parse requirement: found '', expected: identifier after ','"),
            ("a in", "unable to parse requirement: found '', expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("=a", "unable to parse requirement: found '=', expected: !, identifier, or 'end of string'"),
            ("a=b c", "unable to parse requirement: found 'c', expected: ',' or 'end of string'"),
            ("a=b=c", "unable to parse requirement: found '=', expected: ',' or 'end of string'"),
        ];
        for (text, message) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap_err().message, message, "{text}");
        }
        for text in ["a=_", "-a", "a>b", "a/b/c", "!"] {
            assert_eq!(LabelSelector::parse(text).unwrap_err().code, 400, "{text}");
        }
    }

    #[test]
    fn selector_objects_match() {
        let tree = |labels| json!({"metadata": {"labels": labels}});
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [
            {"key": "b", "operator": "In", "values": ["x", "y"]}, {"key": "c", "operator": "DoesNotExist"}]});
        let selector = LabelSelector::from_tree(&selector).unwrap();
        assert!(selector.matches_tree(&tree(json!({"a": "1", "b": "y"}))));
        assert!(!selector.matches_tree(&tree(json!({"a": "1", "b": "z"}))));
        assert!(!selector.matches_tree(&tree(json!({"a": "1", "b": "y", "c": ""}))));
        assert!(LabelSelector::from_tree(&json!({})).unwrap().is_everything());
        assert!(LabelSelector::from_tree(&json!({"matchExpressions": [{"key": "a", "operator": "X"}]})).is_err());
    }

    #[test]
    fn field_selectors_match() {
        let value = |label: &str| (label == "metadata.name").then_some("a,b");
        let matches = |text| FieldSelector::parse(text, &POD).map(|selector| selector.matches(value));
        assert!(matches("metadata.name=a\\,b,spec.nodeName=").unwrap());
        assert!(matches("spec.nodeName!=n1").unwrap() && matches("").unwrap());
        assert!(!matches("spec.nodeName==n1").unwrap());
        assert_eq!(matches("spec.bogus=1").unwrap_err().message, "field label not supported: spec.bogus");
        assert_eq!(
            matches("spec.nodeName").unwrap_err().message,
            "invalid selector: 'spec.nodeName'; can't understand 'spec.nodeName'"
        );
        assert_eq!(FieldSelector::parse("spec.nodeName=n1", &POD).unwrap().exact("spec.nodeName"), Some("n1"));
    }
}
