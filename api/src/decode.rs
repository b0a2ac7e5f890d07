//! From the body of a request to a tree, with everything refused that Kubernetes refuses, in its words.
//!
//! A body is read ([`read`]: JSON, YAML or protobuf, duplicate keys noted), put into normal form ([`normalize`]: null
//! means absent, quantities are canonical) and checked against its type ([`check`]: a wrong type is an error, an
//! unknown or duplicate field is what [`Validation`] says).
//!
//! Invariants: unknown fields stay in the tree; only the strict mode refuses them. Depth is bounded by the readers
//! (128 levels), YAML's aliases by the YAML reader's repetition limit, size by whoever read the body.

mod check;
mod read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::Tree;
use crate::field::{Fault, quote};
use crate::quantity::Quantity;
use crate::schema::{FieldType, Type, table};
use crate::status::ApiError;

pub(crate) use check::duration_ns;

/// How many bytes of an unreadable body an error shows.
const SHOWN_BYTES_MAX: usize = 30;

/// How many unknown and duplicate fields one answer names; a body of megabytes must not become a header of megabytes.
const NAMED_FIELDS_MAX: usize = 50;

/// The encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// What to do about unknown and duplicate fields (`?fieldValidation=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// Nothing.
    Ignore,
    /// Name them in warnings.
    Warn,
    /// Refuse the body.
    Strict,
}

/// A body that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object.
    pub tree: Tree,
    /// What to say in `Warning` headers.
    pub warnings: Vec<String>,
}

/// Reads a body. With a type name, the object is checked against that type and gets its `apiVersion` and `kind` if it
/// has none; without one, any object is taken as it is.
pub fn decode(body: &[u8], media: Media, type_name: Option<&str>, validation: Validation) -> Result<Decoded, ApiError> {
    let expected = type_name.and_then(|name| table().get(name));
    let read = match media {
        Media::Json => read::json(body),
        Media::Yaml => read::yaml(body),
        Media::Protobuf => match crate::protobuf::to_tree_as(body, expected) {
            Ok(tree) => Ok(read::Read { tree, duplicates: Vec::new() }),
            Err(error) => Err(error.to_string()),
        },
    };
    let read::Read { mut tree, duplicates } = read.map_err(|why| unreadable(&why, body, expected))?;
    let mut strict = Vec::new();
    if let Some(expected) = expected {
        if media == Media::Yaml {
            read_octals_as(&mut tree, expected);
        }
        set_kind(&mut tree, expected)?;
        normalize_as(&mut tree, expected);
        strict = check::check(&tree, expected).map_err(|why| unfit(&tree, expected, &why))?;
    } else if !tree.is_object() {
        let why = format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", kind_of(&tree));
        return Err(ApiError::bad_request(why));
    }
    strict.extend(duplicates.into_iter().map(|path| format!("duplicate field {}", quote(&path))));
    let warnings = judge(strict, validation).map_err(|why| match expected {
        Some(expected) => unfit(&tree, expected, &why),
        None => ApiError::bad_request(why),
    })?;
    Ok(Decoded { tree, warnings })
}

/// Checks a tree against its type, as after a patch: wrong types are errors, unknown fields are what `validation`
/// says. Gives the warnings.
pub fn check(tree: &Tree, type_name: &str, validation: Validation) -> Result<Vec<String>, ApiError> {
    let Some(expected) = table().get(type_name) else { return Ok(Vec::new()) };
    let strict = check::check(tree, expected).map_err(|why| unfit(tree, expected, &why))?;
    judge(strict, validation).map_err(|why| unfit(tree, expected, &why))
}

/// Checks what a patch has made of an object, as [`check`] does. Unknown fields that the object had before are no fault
/// of the patch, and an error is a 422 that shows the patch, as upstream answers here.
pub fn check_patched(
    new: &Tree,
    old: &Tree,
    patch: &Tree,
    type_name: &str,
    validation: Validation,
) -> Result<Vec<String>, ApiError> {
    let Some(expected) = table().get(type_name) else { return Ok(Vec::new()) };
    let unfit = |why: String| ApiError::invalid("", "", &[Fault::invalid("patch", patch.to_string(), why)]);
    let mut strict = check::check(new, expected).map_err(unfit)?;
    if !strict.is_empty() {
        let before = check::check(old, expected).unwrap_or_default();
        strict.retain(|fault| !before.contains(fault));
    }
    judge(strict, validation).map_err(unfit)
}

/// Puts a tree into normal form: fields that are null go, quantities get their canonical text. What has the wrong type
/// is left for [`check`] to find.
pub fn normalize(tree: &mut Tree, type_name: &str) {
    if let Some(expected) = table().get(type_name) {
        normalize_as(tree, expected);
    }
}

/// Reads octal numbers of YAML 1.1, such as `defaultMode: 0644`, where the type wants a whole number. The reader is one
/// of YAML 1.2, for which they are texts.
pub fn read_octals(tree: &mut Tree, type_name: &str) {
    if let Some(expected) = table().get(type_name) {
        read_octals_as(tree, expected);
    }
}

fn read_octals_as(tree: &mut Tree, expected: &Type) {
    for (key, value) in tree.as_object_mut().into_iter().flatten() {
        if let Some(field) = expected.field(key) {
            read_octal(value, &field.ty);
        }
    }
}

fn read_octal(value: &mut Tree, ty: &FieldType) {
    match (ty, &mut *value) {
        (FieldType::Int32 | FieldType::Int64, Tree::String(text)) => {
            let digits = text.strip_prefix('0').filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
            if let Some(number) = digits.and_then(|digits| i64::from_str_radix(digits, 8).ok()) {
                *value = number.into();
            }
        }
        (FieldType::Object(name), Tree::Object(_)) => read_octals(value, name),
        (FieldType::List(entry), Tree::Array(values)) => values.iter_mut().for_each(|value| read_octal(value, entry)),
        (FieldType::Map(entry), Tree::Object(values)) => values.values_mut().for_each(|value| read_octal(value, entry)),
        _ => {}
    }
}

fn judge(mut strict: Vec<String>, validation: Validation) -> Result<Vec<String>, String> {
    if strict.len() > NAMED_FIELDS_MAX {
        let more = strict.len() - NAMED_FIELDS_MAX;
        strict.truncate(NAMED_FIELDS_MAX);
        strict.push(format!("and {more} more"));
    }
    match validation {
        Validation::Ignore => Ok(Vec::new()),
        Validation::Warn => Ok(strict),
        Validation::Strict if strict.is_empty() => Ok(strict),
        Validation::Strict => Err(format!("strict decoding error: {}", strict.join(", "))),
    }
}

// ------------------------------------------------------------------------------------------------------------- errors

/// The body is not even JSON, YAML or protobuf.
fn unreadable(why: &str, body: &[u8], expected: Option<&Type>) -> ApiError {
    let must = expected.map_or(String::new(), |expected| format!(" (must be of type {})", expected.short_name()));
    let mut shown: String = body.iter().take(SHOWN_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect();
    if body.is_empty() {
        shown.push_str("<empty>");
    } else if body.len() > SHOWN_BYTES_MAX {
        shown.push_str(" ...");
    }
    ApiError::bad_request(format!("the object provided is unrecognized{must}: {why} ({shown})"))
}

/// The body is an object, but not one of the expected type.
fn unfit(tree: &Tree, expected: &Type, why: &str) -> ApiError {
    let text = |key: &str| tree.get(key).and_then(Tree::as_str).unwrap_or("");
    let (default_version, default_kind) = expected.kind.unwrap_or(("", expected.short_name()));
    let kind = if text("kind").is_empty() { default_kind } else { text("kind") };
    let api_version = if text("apiVersion").is_empty() { default_version } else { text("apiVersion") };
    let version = api_version.rsplit('/').next().unwrap_or("");
    ApiError::bad_request(format!(
        "{kind} in version {} cannot be handled as a {}: {why}",
        quote(version),
        expected.short_name()
    ))
}

/// Fills `apiVersion` and `kind`, or refuses others than the expected ones.
fn set_kind(tree: &mut Tree, expected: &Type) -> Result<(), ApiError> {
    let Some((api_version, kind)) = expected.kind else { return Ok(()) };
    let Tree::Object(map) = &mut *tree else { return Ok(()) };
    for (key, value) in [("kind", kind), ("apiVersion", api_version)] {
        let absent = match map.get(key) {
            None | Some(Tree::Null) => true,
            Some(Tree::String(text)) => text.is_empty(),
            Some(_) => false,
        };
        if absent {
            // In front, where readers look for it.
            map.shift_insert(0, key.to_owned(), value.into());
        }
    }
    let found = |key: &str| map.get(key).and_then(Tree::as_str);
    let (Some(found_version), Some(found_kind)) = (found("apiVersion"), found("kind")) else { return Ok(()) };
    if found_kind != kind {
        let why = format!("no kind {} is registered for version {}", quote(found_kind), quote(found_version));
        return Err(unfit(tree, expected, &why));
    }
    if found_version != api_version {
        let why = format!(
            "the API version in the data ({found_version}) does not match the expected API version ({api_version})"
        );
        return Err(ApiError::bad_request(why));
    }
    Ok(())
}

/// What Go's JSON package calls a value in its errors.
fn kind_of(tree: &Tree) -> &'static str {
    match tree {
        Tree::Null => "null",
        Tree::Bool(_) => "bool",
        Tree::Number(_) => "number",
        Tree::String(_) => "string",
        Tree::Array(_) => "array",
        Tree::Object(_) => "object",
    }
}

// -------------------------------------------------------------------------------------------------------- normal form

fn normalize_as(tree: &mut Tree, expected: &Type) {
    let Tree::Object(map) = tree else { return };
    map.retain(|key, value| !value.is_null() || expected.field(key).is_none());
    for (key, value) in map.iter_mut() {
        if let Some(field) = expected.field(key) {
            normalize_value(value, &field.ty);
        }
    }
}

fn normalize_value(value: &mut Tree, ty: &FieldType) {
    match (ty, &mut *value) {
        (FieldType::Object(name), Tree::Object(_)) => {
            if let Some(expected) = table().get(name) {
                normalize_as(value, expected);
            }
        }
        (FieldType::List(entry), Tree::Array(entries)) => {
            for value in entries {
                normalize_entry(value, entry);
            }
        }
        (FieldType::Map(entry), Tree::Object(entries)) => {
            for value in entries.values_mut() {
                normalize_entry(value, entry);
            }
        }
        (FieldType::Quantity, Tree::String(text)) => {
            if let Ok(quantity) = Quantity::parse(text) {
                *value = quantity.to_canonical().into();
            }
        }
        (FieldType::Quantity, Tree::Number(number)) => {
            if let Ok(quantity) = Quantity::parse(&number.to_string()) {
                *value = quantity.to_canonical().into();
            }
        }
        _ => {}
    }
}

/// A null entry of a list or map is the entry type's empty value.
fn normalize_entry(value: &mut Tree, ty: &FieldType) {
    if value.is_null() {
        *value = match ty {
            FieldType::String | FieldType::Bytes | FieldType::Duration => "".into(),
            FieldType::Quantity => "0".into(),
            FieldType::Bool => false.into(),
            FieldType::Int32 | FieldType::Int64 | FieldType::Double | FieldType::IntOrString => 0.into(),
            FieldType::Object(_) | FieldType::Map(_) | FieldType::FieldsV1 => Tree::Object(serde_json::Map::new()),
            FieldType::List(_) => Tree::Array(Vec::new()),
            FieldType::Raw | FieldType::Time | FieldType::MicroTime => return,
        };
    }
    normalize_value(value, ty);
}

/// Whether a text is base64 as Go's standard decoder takes it, or else where it is not.
pub(crate) fn base64_bytes(text: &str) -> Result<Vec<u8>, usize> {
    // Go skips line ends inside base64 text.
    let joined: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    BASE64.decode(joined.as_bytes()).map_err(|error| match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => joined.len(),
    })
}

#[cfg(test)]
mod tests;
