//! An object at one revision.

use crate::hash::Hasher;
use crate::{Key, json};
use bytes::Bytes;
use dhow_api::Tree;
use dhow_api::index::{Fields, Index, index};
use dhow_api::kinds::Kind;
use dhow_types::{Revision, Time};

/// An object's size ends here (as in Kubernetes, whose store takes 1.5 MiB): beyond, watchers and the log would be slowed
/// down for everyone. Larger ones are refused before they enter the log.
pub const OBJECT_BYTES_MAX: usize = 3 << 19;

/// One object as one revision left it. Always shared behind an `Arc`.
#[derive(Clone, Debug)]
pub struct Object {
    /// What it is called.
    pub key: Key,
    /// The revision that wrote it; the text says the same in `metadata.resourceVersion`.
    pub revision: Revision,
    /// When it may be removed, if its writer said so.
    pub expires: Option<Time>,
    /// What selectors, owners and the garbage collector ask for.
    pub index: Index,
    json: Bytes,
}

/// A value that cannot be an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The text is not JSON.
    #[error("the value is not JSON")]
    Json,
    /// The text is JSON, but not an object with an object `metadata`.
    #[error("the value has no `metadata` object")]
    Metadata,
    /// A transaction names the same object twice.
    #[error("the transaction names the object twice")]
    Repeated,
}

impl Object {
    /// A value that a transaction puts, as it is at `revision`.
    pub(crate) fn at(key: Key, revision: Revision, value: &[u8], parsed: Parsed, expires: Option<Time>) -> Self {
        let json = json::put_revision(value, &parsed.place, revision.0);
        Self { key, revision, expires, index: parsed.index, json: json.into() }
    }

    /// Takes back an object that a store kept: `json` already carries its revision.
    pub fn restore(key: Key, revision: Revision, json: Bytes) -> Result<Self, Malformed> {
        let index = Parsed::read(&key.resource, &json)?.index;
        Ok(Self { key, revision, expires: None, index, json })
    }

    /// The same object with another expiry.
    pub fn expiring(self, expires: Option<Time>) -> Self {
        Self { expires, ..self }
    }

    /// The same content as it was deleted at `revision`.
    pub(crate) fn deleted_at(&self, revision: Revision) -> Self {
        let place = json::revision_place(&self.json).expect("a stored object has metadata");
        let json = json::put_revision(&self.json, &place, revision.0).into();
        Self { key: self.key.clone(), revision, expires: None, index: self.index.clone(), json }
    }

    /// The whole object as JSON text, `metadata.resourceVersion` included.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The whole object as a tree. Made anew by each call.
    pub fn tree(&self) -> Tree {
        serde_json::from_slice(&self.json).expect("the text of a stored object was read once already")
    }

    /// What this object adds to the hash of the state.
    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = Hasher::new();
        hasher.bytes(self.key.resource.as_bytes());
        hasher.bytes(self.key.namespace.as_bytes());
        hasher.bytes(self.key.name.as_bytes());
        hasher.word(self.revision.0);
        hasher.bytes(&self.json);
        // Objects that do not expire count as they did before there was expiry.
        if let Some(expires) = self.expires {
            hasher.word(expires.as_ms() as u64);
        }
        hasher.finish()
    }
}

/// What must be known of a value before it can be put. Reading the text is most of the work of a write, and needs no
/// state: it can be done before the value's turn comes, on another thread.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    index: Index,
    place: json::Place,
}

impl Parsed {
    pub(crate) fn read(resource: &str, value: &[u8]) -> Result<Self, Malformed> {
        let kind = dhow_api::kinds::by_group_resource(resource);
        let tree = match kind {
            Some(kind) if !kind.field_labels.is_empty() => serde_json::from_slice(value),
            _ => serde_json::from_slice::<Head>(value).map(|head| Tree::from_iter([("metadata", head.metadata)])),
        };
        let tree: Tree = tree.map_err(|_| Malformed::Json)?;
        Self::known(index_of(kind, &tree), value)
    }

    /// The same where the index is known already.
    pub(crate) fn known(index: Index, value: &[u8]) -> Result<Self, Malformed> {
        let place = json::revision_place(value).ok_or(Malformed::Metadata)?;
        Ok(Self { index, place })
    }
}

/// All that most kinds' index needs. The rest is read over, which tells that it is JSON and costs a third.
#[derive(serde::Deserialize)]
struct Head {
    #[serde(default)]
    metadata: Tree,
}

/// The index that the kind's file defines; for a resource that the table of kinds does not know, what every object has.
fn index_of(kind: Option<&Kind>, tree: &Tree) -> Index {
    if let Some(kind) = kind {
        return index(kind, tree);
    }
    let metadata = &tree["metadata"];
    let text = |value: &Tree| value.as_str().unwrap_or_default().to_owned();
    let labels = metadata["labels"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), text(v)));
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten().map(|owner| text(&owner["uid"]));
    Index {
        uid: text(&metadata["uid"]),
        labels: labels.collect(),
        fields: Fields::default(),
        owners: owners.collect(),
        deleting: !metadata["deletionTimestamp"].is_null(),
    }
}
