//! The few parsed keys of an object that selectors and reverse look-ups need, kept beside its bytes.

use crate::Tree;
use crate::kinds::Kind;
use crate::meta;

/// What is kept of an object so that a list, a watch or a garbage collector need not parse it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.labels`, in the object's order.
    pub labels: Vec<(String, String)>,
    /// The values that field selectors of this kind may ask for.
    pub fields: Fields,
    /// The UIDs of all owner references.
    pub owners: Vec<String>,
    /// Whether a deletion has begun.
    pub deleting: bool,
}

impl Index {
    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of a selectable field.
    pub fn field(&self, label: &str) -> Option<&str> {
        self.fields.get(label)
    }
}

/// The fields that selectors of every kind may ask for; they come before the kind's own.
const OF_ALL: [&str; 2] = ["metadata.name", "metadata.namespace"];

/// The values of an object's selectable fields in one piece: an event has fifteen of them, and there are far more
/// events than anything else, so that a string each would be most of what the cluster keeps in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    labels: &'static [&'static str],
    text: Box<str>,
    /// Where in the text each value ends, in the order of the labels.
    ends: Box<[u32]>,
}

impl Fields {
    fn of(kind: &Kind, tree: &Tree) -> Fields {
        let given = kind.field_values(tree);
        let mut text = String::new();
        let mut ends = Vec::with_capacity(OF_ALL.len() + kind.field_labels.len());
        for label in OF_ALL.iter().chain(kind.field_labels) {
            text.push_str(given.iter().find(|(name, _)| name == label).map_or("", |(_, value)| value));
            ends.push(u32::try_from(text.len()).expect("an object is smaller than 4 GiB"));
        }
        Fields { labels: kind.field_labels, text: text.into(), ends: ends.into() }
    }

    /// The value of one field; empty where the object has none, and nothing if the kind has no such field.
    pub fn get(&self, label: &str) -> Option<&str> {
        let at = OF_ALL.iter().chain(self.labels).position(|name| *name == label)?;
        let end = usize::try_from(*self.ends.get(at)?).ok()?;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.text.get(start..end)
    }
}

/// Picks the keys out of an object.
pub fn index(kind: &Kind, tree: &Tree) -> Index {
    Index {
        uid: meta::uid(tree).to_owned(),
        labels: meta::labels(tree).map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        fields: Fields::of(kind, tree),
        owners: meta::owner_refs(tree).into_iter().map(|owner| owner.uid).collect(),
        deleting: meta::deletion_timestamp(tree).is_some(),
    }
}
