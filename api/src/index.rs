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
    pub fields: Vec<(&'static str, String)>,
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
        self.fields.iter().find(|(name, _)| *name == label).map(|(_, value)| value.as_str())
    }
}

/// Picks the keys out of an object.
pub fn index(kind: &Kind, tree: &Tree) -> Index {
    Index {
        uid: meta::uid(tree).to_owned(),
        labels: meta::labels(tree).map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        fields: kind.field_values(tree),
        owners: meta::owner_refs(tree).into_iter().map(|owner| owner.uid).collect(),
        deleting: meta::deletion_timestamp(tree).is_some(),
    }
}
