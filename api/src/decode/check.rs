//! Holding a tree against its type. The errors are those of Go's JSON package, word for word, since people search for
//! them; where Go's text names no field (quantities, times, base64), the field is put behind it.

use serde_json::Number;

use super::{base64_bytes, kind_of};
use crate::Tree;
use crate::field::{Path, quote};
use crate::quantity::Quantity;
use crate::schema::{Field, FieldType, Type, table};

/// Gives the unknown fields, as `unknown field "spec.bogus"`, or the first value of a wrong type.
pub(super) fn check(tree: &Tree, expected: &Type) -> Result<Vec<String>, String> {
    let mut walk = Walk { unknown: Vec::new() };
    match tree {
        Tree::Object(_) => walk.object(tree, expected, None)?,
        other => {
            let name = go_name(expected.name);
            return Err(format!("json: cannot unmarshal {} into Go value of type {name}", kind_of(other)));
        }
    }
    Ok(walk.unknown)
}

struct Walk {
    unknown: Vec<String>,
}

/// Where a value stands: Go names the struct, the keys that lead there (without indices), and the type.
#[derive(Clone, Copy)]
struct At<'a> {
    owner: &'static str,
    field: &'a Field,
    path: &'a Path<'a>,
}

impl Walk {
    fn object(&mut self, tree: &Tree, expected: &Type, path: Option<&Path<'_>>) -> Result<(), String> {
        let Tree::Object(map) = tree else { return Ok(()) };
        for (key, value) in map {
            let path = match path {
                Some(path) => path.field(key),
                None => Path::root(key),
            };
            match expected.field(key) {
                Some(field) => {
                    let at = At { owner: expected.short_name(), field, path: &path };
                    self.value(value, &field.ty, at)?;
                }
                None => self.unknown.push(format!("unknown field {}", quote(&path.to_string()))),
            }
        }
        Ok(())
    }

    fn value(&mut self, value: &Tree, ty: &FieldType, at: At<'_>) -> Result<(), String> {
        match (ty, value) {
            // Go leaves a field alone whose value is null.
            (_, Tree::Null) => Ok(()),
            (FieldType::String, Tree::String(_))
            | (FieldType::Bool, Tree::Bool(_))
            | (FieldType::Double, Tree::Number(_))
            | (FieldType::Raw | FieldType::FieldsV1, _) => Ok(()),
            (FieldType::Int32, Tree::Number(number)) => match whole(number) {
                Some(whole) if i32::try_from(whole).is_ok() => Ok(()),
                _ => Err(at.wrong(&format!("number {number}"), ty)),
            },
            (FieldType::Int64, Tree::Number(number)) => match whole(number) {
                Some(_) => Ok(()),
                None => Err(at.wrong(&format!("number {number}"), ty)),
            },
            (FieldType::Bytes, Tree::String(text)) => match base64_bytes(text) {
                Ok(_) => Ok(()),
                Err(byte) => Err(at.unfit(&format!("illegal base64 data at input byte {byte}"))),
            },
            (FieldType::IntOrString, Tree::String(_)) => Ok(()),
            (FieldType::IntOrString, Tree::Number(number)) => match whole(number).map(i32::try_from) {
                Some(Ok(_)) => Ok(()),
                _ => Err(at.unfit(&go_value(&format!("number {number}"), "int32"))),
            },
            (FieldType::IntOrString, other) => Err(at.unfit(&go_value(kind_of(other), "int32"))),
            (FieldType::Quantity, Tree::String(text)) => check_quantity(text, at),
            (FieldType::Quantity, Tree::Number(number)) => check_quantity(&number.to_string(), at),
            (FieldType::Quantity, other) => check_quantity(&other.to_string(), at),
            (FieldType::Time | FieldType::MicroTime, Tree::String(text)) => {
                let micro = *ty == FieldType::MicroTime;
                check_time(text, micro).map_err(|why| at.unfit(&why))
            }
            (FieldType::Duration, Tree::String(text)) => match duration_ns(text) {
                Some(_) => Ok(()),
                None => Err(at.unfit(&format!("time: invalid duration {}", quote(text)))),
            },
            (FieldType::Time | FieldType::MicroTime | FieldType::Duration, other) => {
                Err(at.unfit(&go_value(kind_of(other), "string")))
            }
            (FieldType::Object(name), Tree::Object(_)) => match table().get(name) {
                Some(expected) => self.object(value, expected, Some(at.path)),
                None => Ok(()),
            },
            (FieldType::List(entry), Tree::Array(entries)) => {
                for (index, value) in entries.iter().enumerate() {
                    let path = at.path.index(index);
                    self.value(value, entry, At { path: &path, ..at })?;
                }
                Ok(())
            }
            (FieldType::Map(entry), Tree::Object(entries)) => {
                for (key, value) in entries {
                    let path = at.path.key(key);
                    self.value(value, entry, At { path: &path, ..at })?;
                }
                Ok(())
            }
            (_, other) => Err(at.wrong(kind_of(other), ty)),
        }
    }
}

impl At<'_> {
    /// Go's words for a value of another type.
    fn wrong(&self, found: &str, ty: &FieldType) -> String {
        let of = go_type(ty, self.field);
        format!("json: cannot unmarshal {found} into Go struct field {}.{} of type {of}", self.owner, self.keys())
    }

    /// The words of a type that reads its own text.
    fn unfit(&self, why: &str) -> String {
        format!("{why} (at {})", self.path)
    }

    /// The keys that lead here as Go gives them: no indices, and nothing of what is inside a map.
    fn keys(&self) -> String {
        let mut keys = String::new();
        let mut brackets = 0;
        let text = self.path.to_string();
        for c in text.chars() {
            match c {
                '[' => brackets += 1,
                ']' if brackets > 0 => brackets -= 1,
                c if brackets == 0 => keys.push(c),
                _ => {}
            }
        }
        keys
    }
}

/// The whole number that Go's integer parser would take: no fraction, no exponent.
fn whole(number: &Number) -> Option<i64> {
    number.to_string().parse().ok()
}

fn go_value(found: &str, of: &str) -> String {
    format!("json: cannot unmarshal {found} into Go value of type {of}")
}

/// `v1.PodSpec`
fn go_name(name: &str) -> String {
    let mut parts = name.rsplit('.');
    let (short, version) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    format!("{version}.{short}")
}

/// The Go type of a field's value or of one of its entries.
fn go_type(ty: &FieldType, field: &Field) -> String {
    let scalar = |plain: &str| field.go_type.unwrap_or(plain).to_owned();
    match ty {
        FieldType::String => scalar("string"),
        FieldType::Bool => scalar("bool"),
        FieldType::Int32 => scalar("int32"),
        FieldType::Int64 => scalar("int64"),
        FieldType::Double => "float64".to_owned(),
        FieldType::Bytes => "[]uint8".to_owned(),
        FieldType::Quantity => "resource.Quantity".to_owned(),
        FieldType::IntOrString => "intstr.IntOrString".to_owned(),
        FieldType::Time => "v1.Time".to_owned(),
        FieldType::MicroTime => "v1.MicroTime".to_owned(),
        FieldType::Duration => "v1.Duration".to_owned(),
        FieldType::Raw => "runtime.RawExtension".to_owned(),
        FieldType::FieldsV1 => "v1.FieldsV1".to_owned(),
        FieldType::Object(name) => go_name(name),
        FieldType::List(entry) => format!("[]{}", go_type(entry, field)),
        FieldType::Map(entry) if **entry == FieldType::Quantity => "v1.ResourceList".to_owned(),
        FieldType::Map(entry) => format!("map[string]{}", go_type(entry, field)),
    }
}

fn check_quantity(text: &str, at: At<'_>) -> Result<(), String> {
    match Quantity::parse(text) {
        Ok(_) => Ok(()),
        Err(_) => {
            let pattern = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$";
            Err(at.unfit(&format!("quantities must match the regular expression '{pattern}'")))
        }
    }
}

/// Checks an RFC 3339 time, naming the part at which Go's parser gives up.
fn check_time(text: &str, micro: bool) -> Result<(), String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let stop = |rest: &str, part: &str| {
        format!("parsing time {} as {}: cannot parse {} as {}", quote(text), quote(layout), quote(rest), quote(part))
    };
    let range = |what: &str| format!("parsing time {}: {what} out of range", quote(text));
    let mut rest = text;
    let mut values = [0u32; 6];
    let parts = [("2006", 4, "-"), ("01", 2, "-"), ("02", 2, "T"), ("15", 2, ":"), ("04", 2, ":"), ("05", 2, "")];
    for (value, (part, digits, then)) in values.iter_mut().zip(parts) {
        let number = rest.get(..digits).filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(number) = number else { return Err(stop(rest, part)) };
        *value = number.parse().map_err(|_| stop(rest, part))?;
        rest = &rest[digits..];
        rest = rest.strip_prefix(then).ok_or_else(|| stop(rest, then))?;
    }
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return Err(stop(rest, "Z07:00"));
        }
        rest = &fraction[digits..];
    } else if micro {
        return Err(stop(rest, ".000000"));
    }
    check_zone(rest).ok_or_else(|| stop(rest, "Z07:00"))?;
    let [year, month, day, hour, minute, second] = values;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return Err(range("month")),
    };
    match () {
        () if day == 0 || day > days => Err(range("day")),
        () if hour > 23 => Err(range("hour")),
        () if minute > 59 => Err(range("minute")),
        () if second > 59 => Err(range("second")),
        () => Ok(()),
    }
}

fn check_zone(zone: &str) -> Option<()> {
    if zone == "Z" {
        return Some(());
    }
    let (hours, minutes) = zone.strip_prefix(['+', '-'])?.split_once(':')?;
    let number = |text: &str, max: u32| {
        let fits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|number| fits && *number <= max)
    };
    number(hours, 24)?;
    number(minutes, 59).map(|_| ())
}

/// The nanoseconds of a span as Go writes it: `1h30m`, `-1.5s`, `0`.
pub(crate) fn duration_ns(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0i128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i64>().ok().map(i128::from) };
        total += digits(whole)? * scale;
        let fraction = fraction.get(..fraction.len().min(15))?;
        total += digits(fraction)? * scale / 10i128.pow(u32::try_from(fraction.len()).ok()?);
        rest = tail;
    }
    i64::try_from(total * sign).ok()
}
