//! Trees in Kubernetes' protobuf form and back, driven by the schema table.
//!
//! A body is the four bytes `k8s\0` and a `runtime.Unknown` message that holds `apiVersion`, `kind` and the object's
//! own message. Clients written in Go send each scalar that is not a pointer, also when it is empty; such values mean
//! "absent" and are dropped, while an empty value of a pointer (`replicas: 0`, `emptyDir: {}`) is kept.
//!
//! Invariants: what protobuf has no number for (unknown fields) is not encoded, so this is a form for the wire and
//! never for storage. Nesting is bounded by [`DEPTH_MAX`], and no length that a sender names is believed before the
//! bytes are there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dhow_types::Time;
use serde_json::{Map, Number};

use crate::Tree;
use crate::decode::{base64_bytes, duration_ns};
use crate::schema::{Field, FieldType, Type, table};

/// What each body begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// How deep messages may lie in each other; the deepest path of the built-in types has about 20 levels.
const DEPTH_MAX: usize = 64;

/// Bytes that are no message, or a tree that has none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The body does not begin with [`MAGIC`].
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// The bytes end in the middle of a field.
    #[error("unexpected EOF")]
    Truncated,
    /// A field has another wire type than its type has.
    #[error("proto: wrong wireType = {wire_type} for field {field}")]
    WireType {
        /// The field's JSON name.
        field: String,
        /// What was found.
        wire_type: u8,
    },
    /// A text that is not UTF-8, a time out of range, JSON that cannot be read.
    #[error("proto: field {field}: {why}")]
    Value {
        /// The field's JSON name.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// Messages lie too deep in each other.
    #[error("proto: nesting deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// The table has no such kind.
    #[error("no kind `{kind}` is registered for version `{api_version}`")]
    UnknownKind {
        /// The `apiVersion` that was named.
        api_version: String,
        /// The `kind` that was named.
        kind: String,
    },
}

/// Decodes a body; its own `apiVersion` and `kind` say which type it is.
pub fn to_tree(bytes: &[u8]) -> Result<Tree, WireError> {
    to_tree_as(bytes, None)
}

/// Decodes a body whose type is expected to be `expected` if it names none.
pub(crate) fn to_tree_as(bytes: &[u8], expected: Option<&Type>) -> Result<Tree, WireError> {
    envelope(bytes, expected, 0)
}

/// Encodes an object or a list by its `apiVersion` and `kind`.
pub fn from_tree(tree: &Tree) -> Result<Vec<u8>, WireError> {
    let text = |key: &str| tree.get(key).and_then(Tree::as_str).unwrap_or("");
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let found = table()
        .by_kind(api_version, kind)
        .ok_or_else(|| WireError::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned() })?;
    let mut meta = Writer::default();
    meta.bytes(1, api_version.as_bytes());
    meta.bytes(2, kind.as_bytes());
    let mut object = Writer::default();
    if let Tree::Object(map) = tree {
        write_message(&mut object, found, &[], map)?;
    }
    let mut unknown = Writer::default();
    unknown.bytes(1, &meta.0);
    unknown.bytes(2, &object.0);
    unknown.bytes(3, b"");
    unknown.bytes(4, b"");
    let mut body = MAGIC.to_vec();
    body.extend_from_slice(&unknown.0);
    Ok(body)
}

// ----------------------------------------------------------------------------------------------------------- decoding

fn envelope(bytes: &[u8], expected: Option<&Type>, depth: usize) -> Result<Tree, WireError> {
    let mut unknown = Reader(bytes.strip_prefix(MAGIC).ok_or(WireError::Magic)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, value)) = unknown.next()? {
        match (number, value) {
            (1, Value::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, value)) = meta.next()? {
                    match number {
                        1 => api_version = value.text("apiVersion")?,
                        2 => kind = value.text("kind")?,
                        _ => {}
                    }
                }
            }
            (2, Value::Bytes(object)) => raw = object,
            _ => {}
        }
    }
    let found = match expected {
        Some(expected) if kind.is_empty() => expected,
        // A type that belongs to every group (`DeleteOptions`) has no kind of its own to compare with.
        Some(expected) if expected.kind.is_none() && expected.short_name() == kind => expected,
        _ => table()
            .by_kind(&api_version, &kind)
            .ok_or_else(|| WireError::UnknownKind { api_version: api_version.clone(), kind: kind.clone() })?,
    };
    let mut map = read_message(raw, found, depth)?;
    for (key, text) in [("kind", kind), ("apiVersion", api_version)] {
        if !text.is_empty() {
            map.shift_insert(0, key.to_owned(), text.into());
        }
    }
    Ok(Tree::Object(map))
}

fn read_message(bytes: &[u8], of: &Type, depth: usize) -> Result<Map<String, Tree>, WireError> {
    let mut slots: Vec<Option<Tree>> = vec![None; of.fields.len()];
    read_fields(bytes, of, &mut Vec::new(), &mut slots, depth)?;
    let filled = of.fields.iter().zip(slots);
    Ok(filled
        .filter_map(|(field, slot)| Some((field.json.to_owned(), slot?)))
        .filter(|(key, value)| of.field(key).is_none_or(|field| field.pointer || field.required || !is_empty(value)))
        .collect())
}

/// Reads the fields of a message into `slots`, one a field of the type. `prefix` is the path of the embedded message
/// that is being read.
fn read_fields(
    bytes: &[u8],
    of: &Type,
    prefix: &mut Vec<u32>,
    slots: &mut [Option<Tree>],
    depth: usize,
) -> Result<(), WireError> {
    if depth > DEPTH_MAX {
        return Err(WireError::TooDeep);
    }
    let mut reader = Reader(bytes);
    while let Some((number, value)) = reader.next()? {
        prefix.push(number);
        if let Some(index) = of.fields.iter().position(|field| field.numbers == *prefix) {
            read_field(value, &of.fields[index], &mut slots[index], depth)?;
        } else if of.fields.iter().any(|field| field.numbers.starts_with(prefix))
            && let Value::Bytes(embedded) = value
        {
            read_fields(embedded, of, prefix, slots, depth + 1)?;
        }
        prefix.pop();
    }
    Ok(())
}

fn read_field(value: Value<'_>, field: &Field, slot: &mut Option<Tree>, depth: usize) -> Result<(), WireError> {
    match &field.ty {
        FieldType::List(entry) => {
            let list = slot.get_or_insert_with(|| Tree::Array(Vec::new()));
            let Tree::Array(list) = list else { return Ok(()) };
            read_entries(value, entry, field, list, depth)?;
        }
        FieldType::Map(entry) => {
            let (key, value) = read_pair(value, entry, field, depth)?;
            let map = slot.get_or_insert_with(|| Tree::Object(Map::new()));
            if let Tree::Object(map) = map {
                map.insert(key, value);
            }
        }
        ty => {
            if let Some(value) = read_value(value, ty, field, depth)? {
                *slot = Some(value);
            }
        }
    }
    Ok(())
}

/// One entry of a repeated field, or several numbers packed together.
fn read_entries(
    value: Value<'_>,
    entry: &FieldType,
    field: &Field,
    list: &mut Vec<Tree>,
    depth: usize,
) -> Result<(), WireError> {
    let packable = matches!(entry, FieldType::Int32 | FieldType::Int64 | FieldType::Bool);
    if let (true, Value::Bytes(packed)) = (packable, value) {
        let mut packed = Reader(packed);
        while !packed.0.is_empty() {
            let number = Value::Varint(packed.varint()?);
            list.extend(read_value(number, entry, field, depth)?);
        }
        return Ok(());
    }
    list.extend(read_value(value, entry, field, depth)?);
    Ok(())
}

fn read_pair(value: Value<'_>, entry: &FieldType, field: &Field, depth: usize) -> Result<(String, Tree), WireError> {
    let mut reader = Reader(value.bytes(field)?);
    let (mut key, mut found) = (String::new(), None);
    while let Some((number, value)) = reader.next()? {
        match (number, entry) {
            (1, _) => key = value.text(field.json)?,
            // A list inside a map is a message of its own whose only field is the list.
            (2, FieldType::List(inner)) => {
                let mut list = Vec::new();
                let mut items = Reader(value.bytes(field)?);
                while let Some((_, item)) = items.next()? {
                    read_entries(item, inner, field, &mut list, depth)?;
                }
                found = Some(Tree::Array(list));
            }
            (2, _) => found = read_value(value, entry, field, depth)?,
            _ => {}
        }
    }
    let found = found.unwrap_or_else(|| match entry {
        FieldType::String | FieldType::Bytes => "".into(),
        FieldType::Quantity => "0".into(),
        FieldType::List(_) => Tree::Array(Vec::new()),
        _ => Tree::Object(Map::new()),
    });
    Ok((key, found))
}

/// A single value; nothing for a time that is not set.
fn read_value(value: Value<'_>, ty: &FieldType, field: &Field, depth: usize) -> Result<Option<Tree>, WireError> {
    let bad = |why: String| WireError::Value { field: field.json.to_owned(), why };
    Ok(Some(match ty {
        FieldType::String => value.text(field.json)?.into(),
        FieldType::Bool => (value.varint(field)? != 0).into(),
        // Negative numbers of 32 bits are sent with their sign extended to 64.
        FieldType::Int32 => (value.varint(field)? as i32).into(),
        FieldType::Int64 => (value.varint(field)? as i64).into(),
        FieldType::Double => match value {
            Value::Fixed64(bits) => {
                let number = Number::from_f64(f64::from_bits(bits));
                Tree::Number(number.ok_or_else(|| bad("not a finite number".to_owned()))?)
            }
            other => return Err(other.unfit(field)),
        },
        FieldType::Bytes => BASE64.encode(value.bytes(field)?).into(),
        FieldType::Quantity => {
            let text = find(value.bytes(field)?, 1)?.map_or(Ok(String::new()), |text| text.text(field.json))?;
            if text.is_empty() { "0".into() } else { text.into() }
        }
        FieldType::IntOrString => read_int_or_string(value.bytes(field)?, field)?,
        FieldType::Time | FieldType::MicroTime => return read_time(value.bytes(field)?, ty, field),
        FieldType::Duration => {
            let span = find(value.bytes(field)?, 1)?.map_or(Ok(0), |span| span.varint(field))?;
            go_duration(span as i64).into()
        }
        FieldType::Raw | FieldType::FieldsV1 => {
            let raw = find(value.bytes(field)?, 1)?.map_or(Ok(&[][..]), |raw| raw.bytes(field))?;
            if raw.is_empty() {
                return Ok(None);
            }
            if raw.starts_with(MAGIC) {
                return envelope(raw, None, depth + 1).map(Some);
            }
            serde_json::from_slice(raw).map_err(|error| bad(error.to_string()))?
        }
        FieldType::Object(name) => {
            let bytes = value.bytes(field)?;
            match table().get(name) {
                Some(inner) => Tree::Object(read_message(bytes, inner, depth + 1)?),
                None => return Ok(None),
            }
        }
        FieldType::List(_) | FieldType::Map(_) => return Err(value.unfit(field)),
    }))
}

fn read_int_or_string(bytes: &[u8], field: &Field) -> Result<Tree, WireError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    let mut reader = Reader(bytes);
    while let Some((at, value)) = reader.next()? {
        match at {
            1 => is_text = value.varint(field)? == 1,
            2 => number = value.varint(field)? as i32,
            3 => text = value.text(field.json)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn read_time(bytes: &[u8], ty: &FieldType, field: &Field) -> Result<Option<Tree>, WireError> {
    /// The years 0 to 9999 in seconds from 1970, which RFC 3339 can write.
    const SECONDS: std::ops::Range<i64> = -62_167_219_200..253_402_300_800;
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some((at, value)) = reader.next()? {
        match at {
            1 => seconds = value.varint(field)? as i64,
            2 => nanos = value.varint(field)? as i32,
            _ => {}
        }
    }
    if !SECONDS.contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return Err(WireError::Value { field: field.json.to_owned(), why: format!("no time at {seconds} seconds") });
    }
    let mut text = Time::from_secs(seconds).to_rfc3339();
    if *ty == FieldType::MicroTime {
        text.truncate(text.len() - 1);
        text.push_str(&format!(".{:06}Z", nanos / 1000));
    }
    Ok(Some(text.into()))
}

/// The last field of that number.
fn find(bytes: &[u8], wanted: u32) -> Result<Option<Value<'_>>, WireError> {
    let mut reader = Reader(bytes);
    let mut found = None;
    while let Some((number, value)) = reader.next()? {
        if number == wanted {
            found = Some(value);
        }
    }
    Ok(found)
}

/// Whether Go would leave the value out of JSON.
fn is_empty(value: &Tree) -> bool {
    match value {
        Tree::Null => true,
        Tree::Bool(value) => !value,
        Tree::Number(number) => number.as_f64() == Some(0.0),
        Tree::String(text) => text.is_empty(),
        Tree::Array(list) => list.is_empty(),
        Tree::Object(map) => map.is_empty(),
    }
}

/// A span of time as Go prints it: `1h30m0s`, `1.5s`, `250ms`.
fn go_duration(ns: i64) -> String {
    let sign = if ns < 0 { "-" } else { "" };
    let ns = ns.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let digits = unit.ilog10() as usize;
        let text = format!("{}.{:0digits$}", value / unit, value % unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let text = match ns {
        0 => "0s".to_owned(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(ns, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(ns, 1_000_000)),
        _ => {
            let minutes = ns / 60_000_000_000;
            let seconds = fraction(ns % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// One value as it stands on the wire.
#[derive(Clone, Copy)]
enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

impl<'a> Value<'a> {
    fn text(self, field: &str) -> Result<String, WireError> {
        let Value::Bytes(bytes) = self else {
            return Err(WireError::WireType { field: field.to_owned(), wire_type: self.wire_type() });
        };
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned).map_err(|error| WireError::Value { field: field.to_owned(), why: error.to_string() })
    }

    fn bytes(self, field: &Field) -> Result<&'a [u8], WireError> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(other.unfit(field)),
        }
    }

    fn varint(self, field: &Field) -> Result<u64, WireError> {
        match self {
            Value::Varint(number) => Ok(number),
            other => Err(other.unfit(field)),
        }
    }

    fn unfit(self, field: &Field) -> WireError {
        WireError::WireType { field: field.json.to_owned(), wire_type: self.wire_type() }
    }

    fn wire_type(self) -> u8 {
        match self {
            Value::Varint(_) => 0,
            Value::Fixed64(_) => 1,
            Value::Bytes(_) => 2,
            Value::Fixed32 => 5,
        }
    }
}

/// Reads a message field by field.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u32, Value<'a>)>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| WireError::Truncated)?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| WireError::Truncated)?;
                Value::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(usize::try_from(len).map_err(|_| WireError::Truncated)?)?)
            }
            5 => {
                self.take(4)?;
                Value::Fixed32
            }
            other => return Err(WireError::WireType { field: number.to_string(), wire_type: other as u8 }),
        };
        Ok(Some((number, value)))
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut number = 0u64;
        for index in 0..10 {
            let (&byte, rest) = self.0.split_first().ok_or(WireError::Truncated)?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(WireError::Truncated)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }
}

// ----------------------------------------------------------------------------------------------------------- encoding

/// Writes the fields of `map` that lie in the embedded message at `prefix`, in the order of their numbers.
fn write_message(out: &mut Writer, of: &Type, prefix: &[u32], map: &Map<String, Tree>) -> Result<(), WireError> {
    let depth = prefix.len();
    let inside = |field: &&Field| field.numbers.len() > depth && field.numbers.starts_with(prefix);
    let mut numbers: Vec<u32> = of.fields.iter().filter(inside).map(|field| field.numbers[depth]).collect();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        let mut path = prefix.to_vec();
        path.push(number);
        if let Some(field) = of.fields.iter().find(|field| field.numbers == path) {
            match map.get(field.json) {
                None | Some(Tree::Null) => {}
                Some(value) => write_field(out, number, field, value)?,
            }
            continue;
        }
        let mut embedded = Writer::default();
        write_message(&mut embedded, of, &path, map)?;
        // An empty embedded message says nothing, except that Go's own encoder always sends it.
        out.bytes(number, &embedded.0);
    }
    Ok(())
}

fn write_field(out: &mut Writer, number: u32, field: &Field, value: &Tree) -> Result<(), WireError> {
    match (&field.ty, value) {
        (FieldType::List(entry), Tree::Array(list)) => {
            list.iter().try_for_each(|value| write_value(out, number, entry, field, value))
        }
        (FieldType::Map(entry), Tree::Object(map)) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_unstable_by_key(|(key, _)| *key);
            for (key, value) in pairs {
                let mut pair = Writer::default();
                pair.bytes(1, key.as_bytes());
                match (&**entry, value) {
                    (FieldType::List(inner), Tree::Array(list)) => {
                        let mut items = Writer::default();
                        list.iter().try_for_each(|value| write_value(&mut items, 1, inner, field, value))?;
                        pair.bytes(2, &items.0);
                    }
                    (entry, value) => write_value(&mut pair, 2, entry, field, value)?,
                }
                out.bytes(number, &pair.0);
            }
            Ok(())
        }
        (ty, value) => write_value(out, number, ty, field, value),
    }
}

fn write_value(out: &mut Writer, number: u32, ty: &FieldType, field: &Field, value: &Tree) -> Result<(), WireError> {
    let bad = |why: &str| WireError::Value { field: field.json.to_owned(), why: why.to_owned() };
    match (ty, value) {
        (FieldType::String, Tree::String(text)) => out.bytes(number, text.as_bytes()),
        (FieldType::Bool, Tree::Bool(value)) => out.varint(number, u64::from(*value)),
        (FieldType::Int32 | FieldType::Int64, Tree::Number(value)) => {
            let value: i64 = value.to_string().parse().map_err(|_| bad("not a whole number"))?;
            out.varint(number, value as u64);
        }
        (FieldType::Double, Tree::Number(value)) => {
            out.fixed64(number, value.as_f64().ok_or_else(|| bad("not a number"))?.to_bits());
        }
        (FieldType::Bytes, Tree::String(text)) => {
            out.bytes(number, &base64_bytes(text).map_err(|_| bad("not base64"))?);
        }
        (FieldType::Quantity, Tree::String(text)) => out.message(number, |inner| inner.bytes(1, text.as_bytes())),
        (FieldType::Quantity, Tree::Number(value)) => {
            out.message(number, |inner| inner.bytes(1, value.to_string().as_bytes()));
        }
        (FieldType::IntOrString, Tree::String(text)) => out.message(number, |inner| {
            inner.varint(1, 1);
            inner.varint(2, 0);
            inner.bytes(3, text.as_bytes());
        }),
        (FieldType::IntOrString, Tree::Number(value)) => {
            let value: i32 = value.to_string().parse().map_err(|_| bad("not a whole number"))?;
            out.message(number, |inner| {
                inner.varint(1, 0);
                inner.varint(2, i64::from(value) as u64);
                inner.bytes(3, b"");
            });
        }
        (FieldType::Time | FieldType::MicroTime, Tree::String(text)) => {
            let ms = Time::parse(text).map_err(|_| bad("not a time"))?.as_ms();
            let nanos = if *ty == FieldType::MicroTime { fraction_ns(text) } else { 0 };
            out.message(number, |inner| {
                inner.varint(1, ms.div_euclid(1000) as u64);
                inner.varint(2, nanos);
            });
        }
        (FieldType::Duration, Tree::String(text)) => {
            let ns = duration_ns(text).ok_or_else(|| bad("not a duration"))?;
            out.message(number, |inner| inner.varint(1, ns as u64));
        }
        (FieldType::Raw | FieldType::FieldsV1, value) => {
            out.message(number, |inner| inner.bytes(1, value.to_string().as_bytes()));
        }
        (FieldType::Object(name), Tree::Object(map)) => {
            let mut inner = Writer::default();
            if let Some(of) = table().get(name) {
                write_message(&mut inner, of, &[], map)?;
            }
            out.bytes(number, &inner.0);
        }
        _ => return Err(bad("a value of another type")),
    }
    Ok(())
}

/// The nanoseconds below the second of an RFC 3339 time.
fn fraction_ns(text: &str) -> u64 {
    let digits = text.split_once('.').map_or("", |(_, rest)| rest);
    let mut ns = 0;
    let mut scale = 100_000_000;
    for digit in digits.chars().map_while(|c| c.to_digit(10)) {
        ns += u64::from(digit) * scale;
        scale /= 10;
    }
    ns
}

/// Writes a message field by field.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn key(&mut self, number: u32, wire_type: u8) {
        self.raw_varint(u64::from(number) << 3 | u64::from(wire_type));
    }

    pub(crate) fn varint(&mut self, number: u32, value: u64) {
        self.key(number, 0);
        self.raw_varint(value);
    }

    fn fixed64(&mut self, number: u32, bits: u64) {
        self.key(number, 1);
        self.0.extend_from_slice(&bits.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.key(number, 2);
        self.raw_varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn message(&mut self, number: u32, write: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        write(&mut inner);
        self.bytes(number, &inner.0);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests;
