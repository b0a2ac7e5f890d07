//! What a controller is given to decide with, and what it decides.

use crate::cache::{Cache, Seen};
use crate::queue::History;
use crate::wish::{Propagation, Write};
use crate::{Config, events::Note};
use dhow_api::{Tree, kinds};
use dhow_state::{Key, Object};
use dhow_types::{Rng, Time, Uid};
use std::sync::Arc;

/// One row of the table of controllers.
pub(crate) struct Controller {
    /// As Kubernetes names it; the `by` of its writes and the source of its events.
    pub(crate) name: &'static str,
    /// Which of its keys a change may matter to.
    pub(crate) wakes: fn(&Cache, &Seen, &mut dyn FnMut(Key)),
    /// Compares what is with what should be.
    pub(crate) reconcile: fn(&Ctx<'_>, &Key) -> Plan,
}

/// What a controller decides with.
pub(crate) struct Ctx<'a> {
    pub(crate) cache: &'a Cache,
    pub(crate) config: &'a Config,
    pub(crate) now: Time,
    pub(crate) history: History,
}

impl Ctx<'_> {
    /// How long to hold a write back so that there are at least `interval_ms` between two of this key; `None` when it
    /// may go out now.
    pub(crate) fn hold_ms(&self, interval_ms: u64) -> Option<u64> {
        let passed = self.now.ms_since(self.history.last_write?);
        (passed < interval_ms).then(|| interval_ms - passed)
    }
}

/// What a controller decides: writes that do not depend on each other's results, and when to look again.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) writes: Vec<Planned>,
    pub(crate) notes: Vec<Note>,
    pub(crate) again_in_ms: Option<u64>,
    /// About how many microseconds the decision took. An estimate from what was looked at: a measured time would make
    /// the decisions depend on the machine.
    pub(crate) cost_us: u64,
}

/// A write with what to say about it.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) write: Write,
    /// Recorded when the write succeeds.
    pub(crate) done: Option<Note>,
    /// Recorded when the write is refused: the reason of the fault is appended to the message.
    pub(crate) refused: Option<Note>,
}

impl From<Write> for Planned {
    fn from(write: Write) -> Self {
        Self { write, done: None, refused: None }
    }
}

impl Plan {
    /// Asks for a write.
    pub(crate) fn write(&mut self, write: Write) {
        self.writes.push(write.into());
    }

    /// Asks for a write and a note when it has been made.
    pub(crate) fn write_noted(&mut self, write: Write, done: Note) {
        self.writes.push(Planned { write, done: Some(done), refused: None });
    }

    /// Asks to be run again after `ms`, or earlier if that was asked already.
    pub(crate) fn again_in(&mut self, ms: u64) {
        self.again_in_ms = Some(self.again_in_ms.map_or(ms, |asked| asked.min(ms)));
    }
}

/// The deletion of an object in this life of it.
pub(crate) fn delete(object: &Object, propagation: Propagation) -> Write {
    delete_within(object, propagation, None)
}

/// The deletion of an object with a grace period of our choice.
pub(crate) fn delete_within(object: &Object, propagation: Propagation, grace_s: Option<i64>) -> Write {
    Write::Delete {
        resource: Arc::clone(&object.key.resource),
        namespace: Arc::clone(&object.key.namespace),
        name: Arc::clone(&object.key.name),
        uid: Uid::new(object.index.uid.as_str()),
        grace_s,
        propagation,
    }
}

/// The key that a write will change.
pub(crate) fn target(write: &Write) -> Option<Key> {
    let of_tree = |tree: &Tree| {
        let kind = kinds::by_kind(dhow_api::meta::api_version(tree), dhow_api::meta::kind(tree))?;
        Some(Key::new(kind.resource(), dhow_api::meta::namespace(tree), dhow_api::meta::name(tree)))
    };
    match write {
        Write::Create { tree }
        | Write::Update { tree }
        | Write::UpdateStatus { tree }
        | Write::Finalize { tree }
        | Write::Event { tree } => of_tree(tree),
        Write::Delete { resource, namespace, name, .. } | Write::Remove { resource, namespace, name, .. } => {
            Some(Key::new(Arc::clone(resource), Arc::clone(namespace), Arc::clone(name)))
        }
        Write::Bind { namespace, pod, .. } => {
            Some(Key::new(crate::views::resource::PODS, Arc::clone(namespace), Arc::clone(pod)))
        }
    }
}

/// Names follow from what was seen: deciding twice on the same sight makes the same names, so that an attempt whose
/// result was lost does not make a second set of objects.
pub(crate) fn names_from(sight: impl Iterator<Item = u8>) -> Rng {
    let mut seed: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in sight {
        seed = (seed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    Rng::new(seed)
}

/// The `apiVersion` and `kind` of the object that a key names.
pub(crate) fn api_type(key: &Key) -> (String, &'static str) {
    kinds::by_group_resource(&key.resource).map_or_else(|| (String::new(), ""), |kind| (kind.api_version(), kind.kind))
}

/// An owner reference that makes `owner` the managing controller.
pub(crate) fn controller_ref(owner: &Object) -> Tree {
    let (api_version, kind) = api_type(&owner.key);
    serde_json::json!({
        "apiVersion": api_version, "kind": kind, "name": &*owner.key.name, "uid": owner.index.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}
