//! Reading JSON and YAML text into trees, with a note of each key that stands twice in one object.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number};

use crate::Tree;
use crate::field::Path;

/// The key under which `serde_json` hands out numbers whose text it keeps.
const NUMBER_KEY: &str = "$serde_json::private::Number";

/// How much a text may grow while it is read, beside four times its own length. JSON never grows; YAML's aliases may
/// repeat what they name, and the YAML reader bounds their number but not what they add up to.
const GROWTH_MAX: usize = 1 << 20;

/// A text that was read.
pub(super) struct Read {
    pub(super) tree: Tree,
    /// The paths of keys that were there more than once; the last value stands.
    pub(super) duplicates: Vec<String>,
}

pub(super) fn json(body: &[u8]) -> Result<Read, String> {
    let mut notes = Notes::new(body);
    let mut reader = serde_json::Deserializer::from_slice(body);
    let tree = Value { path: None, notes: &mut notes }
        .deserialize(&mut reader)
        .and_then(|tree| reader.end().map(|()| tree))
        .map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))?;
    Ok(Read { tree, duplicates: notes.duplicates })
}

pub(super) fn yaml(body: &[u8]) -> Result<Read, String> {
    let mut notes = Notes::new(body);
    let tree = Value { path: None, notes: &mut notes }
        .deserialize(serde_yaml::Deserializer::from_slice(body))
        .map_err(|error| format!("yaml: {error}"))?;
    Ok(Read { tree, duplicates: notes.duplicates })
}

/// What is kept while a text is read.
struct Notes {
    duplicates: Vec<String>,
    /// How many bytes of values may still come.
    budget: usize,
}

impl Notes {
    fn new(body: &[u8]) -> Notes {
        Notes { duplicates: Vec::new(), budget: body.len().saturating_mul(4).saturating_add(GROWTH_MAX) }
    }

    /// Takes a value's size from the budget.
    fn spend<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        self.budget =
            self.budget.checked_sub(bytes + 1).ok_or_else(|| E::custom("document contains excessive aliasing"))?;
        Ok(())
    }
}

/// Reads one value that stands at `path`.
struct Value<'a> {
    path: Option<&'a Path<'a>>,
    notes: &'a mut Notes,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Tree, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Tree, D::Error> {
        self.deserialize(reader)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Tree, E> {
        /// The numbers below are whole in a double without loss.
        const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
        if value.fract() == 0.0 && value.abs() < WHOLE_MAX {
            return Ok((value as i64).into());
        }
        Number::from_f64(value).map(Tree::Number).ok_or_else(|| E::custom(format!("unsupported number {value}")))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Tree, E> {
        self.notes.spend(value.len())?;
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Tree, E> {
        self.notes.spend(value.len())?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut reader: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        loop {
            self.notes.spend(0)?;
            let path = self.path.map(|path| path.index(entries.len()));
            match reader.next_element_seed(Value { path: path.as_ref(), notes: &mut *self.notes })? {
                Some(entry) => entries.push(entry),
                None => return Ok(Tree::Array(entries)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut reader: A) -> Result<Tree, A::Error> {
        let mut map = Map::new();
        while let Some(key) = reader.next_key_seed(Key)? {
            if key == NUMBER_KEY && map.is_empty() {
                let text: String = reader.next_value()?;
                let number: Number = text.parse().map_err(|_| A::Error::custom("a number out of range"))?;
                return Ok(Tree::Number(number));
            }
            self.notes.spend(key.len())?;
            let path = match self.path {
                Some(path) => path.field(&key),
                None => Path::root(&key),
            };
            let value = reader.next_value_seed(Value { path: Some(&path), notes: &mut *self.notes })?;
            if map.contains_key(&key) {
                let path = path.to_string();
                if !self.notes.duplicates.contains(&path) && self.notes.duplicates.len() <= super::NAMED_FIELDS_MAX {
                    self.notes.duplicates.push(path);
                }
            }
            map.insert(key, value);
        }
        Ok(Tree::Object(map))
    }
}

/// Reads a key; YAML's numbers and booleans become text, as in upstream's conversion to JSON.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<String, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key of text")
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }

    fn visit_string<E>(self, value: String) -> Result<String, E> {
        Ok(value)
    }

    fn visit_bool<E>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<String, E> {
        Ok(value.to_string())
    }
}
