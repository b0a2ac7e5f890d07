//! Field paths and the faults that validation finds at them, in Kubernetes' wording.

use std::fmt;

use crate::Tree;

/// Where a value stands in an object: `spec.containers[0].image`. A path borrows its parent, so that walking a valid
/// object costs no allocation; text is made only when a fault is found.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    part: Part<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// A path that begins with a field; the text may hold dots (`"metadata.labels"`).
    pub const fn root(field: &'a str) -> Path<'a> {
        Path { parent: None, part: Part::Field(field) }
    }

    /// The path of a field below this one; the text may hold dots.
    pub const fn field<'b>(&'b self, field: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        Path { parent: Some(self), part: Part::Field(field) }
    }

    /// The path of a list's entry.
    pub const fn index<'b>(&'b self, index: usize) -> Path<'b>
    where
        'a: 'b,
    {
        Path { parent: Some(self), part: Part::Index(index) }
    }

    /// The path of a map's entry: `spec.nodeSelector[disk]`.
    pub const fn key<'b>(&'b self, key: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        Path { parent: Some(self), part: Part::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.part {
            Part::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Part::Field(name) => f.write_str(name),
            Part::Index(index) => write!(f, "[{index}]"),
            Part::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// What is wrong with a field; the names are those of `causes[].reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The field must be there.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value is not one of a closed set.
    NotSupported,
    /// The text has too many bytes.
    TooLong,
    /// The list has too many entries.
    TooMany,
    /// The field may not be set here.
    Forbidden,
    /// The value is there twice.
    Duplicate,
    /// What the value refers to is not there.
    NotFound,
    /// The value is of another type.
    TypeInvalid,
    /// We could not find out.
    Internal,
}

impl FaultKind {
    /// The reason of a cause in a `Status`.
    pub fn reason(self) -> &'static str {
        match self {
            FaultKind::Required => "FieldValueRequired",
            FaultKind::Invalid => "FieldValueInvalid",
            FaultKind::NotSupported => "FieldValueNotSupported",
            FaultKind::TooLong => "FieldValueTooLong",
            FaultKind::TooMany => "FieldValueTooMany",
            FaultKind::Forbidden => "FieldValueForbidden",
            FaultKind::Duplicate => "FieldValueDuplicate",
            FaultKind::NotFound => "FieldValueNotFound",
            FaultKind::TypeInvalid => "FieldValueTypeInvalid",
            FaultKind::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            FaultKind::Required => "Required value",
            FaultKind::Invalid | FaultKind::TypeInvalid => "Invalid value",
            FaultKind::NotSupported => "Unsupported value",
            FaultKind::TooLong => "Too long",
            FaultKind::TooMany => "Too many",
            FaultKind::Forbidden => "Forbidden",
            FaultKind::Duplicate => "Duplicate value",
            FaultKind::NotFound => "Not found",
            FaultKind::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(self, FaultKind::Required | FaultKind::Forbidden | FaultKind::TooLong | FaultKind::Internal)
    }
}

/// One fault at one field.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Where: `spec.containers[0].image`.
    pub path: String,
    /// What sort of fault.
    pub kind: FaultKind,
    /// The bad value, for the sorts that show it.
    pub value: Tree,
    /// Why, or empty.
    pub detail: String,
}

/// All the faults of one object.
pub type Faults = Vec<Fault>;

impl Fault {
    /// The field must be there; `detail` may be empty.
    pub fn required(path: impl fmt::Display, detail: impl Into<String>) -> Fault {
        Fault::new(path, FaultKind::Required, Tree::Null, detail)
    }

    /// The value breaks a rule.
    pub fn invalid(path: impl fmt::Display, value: impl Into<Tree>, detail: impl Into<String>) -> Fault {
        Fault::new(path, FaultKind::Invalid, value.into(), detail)
    }

    /// The value is not one of `supported`.
    pub fn not_supported(path: impl fmt::Display, value: impl Into<Tree>, supported: &[&str]) -> Fault {
        let quoted: Vec<String> = supported.iter().map(|text| quote(text)).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Fault::new(path, FaultKind::NotSupported, value.into(), detail)
    }

    /// The text is longer than `bytes_max`.
    pub fn too_long(path: impl fmt::Display, bytes_max: usize) -> Fault {
        let unit = if bytes_max == 1 { "byte" } else { "bytes" };
        Fault::new(path, FaultKind::TooLong, Tree::Null, format!("may not be more than {bytes_max} {unit}"))
    }

    /// The list has more than `items_max` entries.
    pub fn too_many(path: impl fmt::Display, items: usize, items_max: usize) -> Fault {
        let unit = if items_max == 1 { "item" } else { "items" };
        Fault::new(path, FaultKind::TooMany, items.into(), format!("must have at most {items_max} {unit}"))
    }

    /// The field may not be set here.
    pub fn forbidden(path: impl fmt::Display, detail: impl Into<String>) -> Fault {
        Fault::new(path, FaultKind::Forbidden, Tree::Null, detail)
    }

    /// The value is there twice.
    pub fn duplicate(path: impl fmt::Display, value: impl Into<Tree>) -> Fault {
        Fault::new(path, FaultKind::Duplicate, value.into(), "")
    }

    /// What the value refers to is not there.
    pub fn not_found(path: impl fmt::Display, value: impl Into<Tree>) -> Fault {
        Fault::new(path, FaultKind::NotFound, value.into(), "")
    }

    fn new(path: impl fmt::Display, kind: FaultKind, value: Tree, detail: impl Into<String>) -> Fault {
        Fault { path: path.to_string(), kind, value, detail: detail.into() }
    }

    /// The message without the path, as a cause of a `Status` has it.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if self.kind.shows_value() {
            text.push_str(": ");
            match &self.value {
                Tree::String(value) => text.push_str(&quote(value)),
                Tree::Null => text.push_str("null"),
                value => text.push_str(&value.to_string()),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.body());
        }
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// Text in quotes as Go's `%q` writes it.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_faults_read_as_upstream_writes_them() {
        let spec = Path::root("spec");
        let containers = spec.field("containers");
        let first = containers.index(0);
        let selector = spec.field("nodeSelector");
        let cases = [
            (Fault::required(first.field("image"), ""), "spec.containers[0].image: Required value"),
            (
                Fault::invalid(selector.key("disk"), "a b", "bad"),
                "spec.nodeSelector[disk]: Invalid value: \"a b\": bad",
            ),
            (Fault::invalid(spec.field("replicas"), -1, "low"), "spec.replicas: Invalid value: -1: low"),
            (
                Fault::not_supported(spec.field("type"), "x", &["A", "B"]),
                "spec.type: Unsupported value: \"x\": supported values: \"A\", \"B\"",
            ),
            (
                Fault::not_supported("dryRun", serde_json::json!(["foo"]), &["All"]),
                "dryRun: Unsupported value: [\"foo\"]: supported values: \"All\"",
            ),
            (Fault::too_long("metadata.name", 63), "metadata.name: Too long: may not be more than 63 bytes"),
            (Fault::too_many("spec.hosts", 5, 1), "spec.hosts: Too many: 5: must have at most 1 item"),
            (Fault::duplicate(first.field("name"), "a"), "spec.containers[0].name: Duplicate value: \"a\""),
            (Fault::forbidden("force", "no"), "force: Forbidden: no"),
        ];
        for (fault, text) in cases {
            assert_eq!(fault.to_string(), text);
        }
    }
}
