//! The map of objects and what applying a transaction does to it.

use crate::hash::Hasher;
use crate::history::History;
use crate::object::Parsed;
use crate::{Applied, Change, Compacted, Expect, HistoryMax, Key, Malformed, Object, Op, Prepared, Rejected, Txn};
use dhow_types::{Revision, Time};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::ops::Bound;
use std::sync::Arc;

/// Everything that the members agree on.
#[derive(Debug)]
pub struct State {
    objects: BTreeSet<Entry>,
    /// How many objects each namespace of each resource has. Its keys are the one copy of those names.
    counts: BTreeMap<Arc<str>, BTreeMap<Arc<str>, usize>>,
    /// The objects that expire, by when.
    expiring: BTreeSet<(Time, Key)>,
    history: History,
    revision: Revision,
    index: u64,
    /// The sum of the objects' hashes: order does not matter to it, so a change costs one hash.
    sum: u64,
}

/// An object in the set, found by its own key: a map would keep the key twice.
#[derive(Debug)]
struct Entry(Arc<Object>);

impl Borrow<Key> for Entry {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

impl State {
    /// The state before the first transaction.
    pub fn new(history_max: HistoryMax) -> Self {
        Self::restore(history_max, 0, Revision(0), [])
    }

    /// The state that was left at log position `index`. What happened before it cannot be watched.
    pub fn restore(
        history_max: HistoryMax,
        index: u64,
        revision: Revision,
        objects: impl IntoIterator<Item = Object>,
    ) -> Self {
        let mut state = Self {
            objects: BTreeSet::new(),
            counts: BTreeMap::new(),
            expiring: BTreeSet::new(),
            history: History::new(history_max, revision),
            revision,
            index,
            sum: 0,
        };
        for object in objects {
            state.insert(object);
        }
        state
    }

    /// The revision of the last accepted transaction.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The log position of the last transaction, accepted or not.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The object of this name.
    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key).map(|entry| &entry.0)
    }

    /// The objects of a resource, in one namespace or all, in the order of their keys.
    pub fn list<'a>(
        &'a self,
        resource: &str,
        namespace: Option<&str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        self.list_from(resource, namespace, None)
    }

    /// The same list, from just behind the object that `after` names by namespace and name (which need not be there).
    pub fn list_from<'a>(
        &'a self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<(&str, &str)>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let first = Key::new(resource, namespace.unwrap_or_default(), "");
        let start = match after.map(|(namespace, name)| Key::new(resource, namespace, name)) {
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first.clone()),
        };
        let one_namespace = namespace.is_some();
        let inside = move |entry: &&Entry| {
            let key = &entry.0.key;
            key.resource == first.resource && (!one_namespace || key.namespace == first.namespace)
        };
        self.objects.range((start, Bound::Unbounded)).take_while(inside).map(|entry| &entry.0)
    }

    /// [`list_from`](State::list_from) as it was at `revision`: the present list with all that has changed since
    /// undone. The work is that of the changes since, and of the objects that the caller takes.
    pub fn list_at<'a>(
        &'a self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<(&str, &str)>,
        revision: Revision,
    ) -> Result<impl Iterator<Item = &'a Arc<Object>> + use<'a>, Compacted> {
        let inside = |key: &Key| {
            *key.resource == *resource
                && namespace.is_none_or(|namespace| *key.namespace == *namespace)
                && after.is_none_or(|(namespace, name)| (&*key.namespace, &*key.name) > (namespace, name))
        };
        let mut undone: BTreeMap<&Key, Option<&Arc<Object>>> = BTreeMap::new();
        for change in self.history.since(revision)?.filter(|change| inside(&change.key)) {
            undone.entry(&change.key).or_insert(change.old.as_ref());
        }
        let mut past: Vec<_> = undone.values().flatten().copied().collect();
        past.reverse();
        let unchanged = move |object: &&Arc<Object>| !undone.contains_key(&object.key);
        let mut present = self.list_from(resource, namespace, after).filter(unchanged).peekable();
        Ok(iter::from_fn(move || match (present.peek(), past.last()) {
            (Some(now), Some(then)) if now.key < then.key => present.next(),
            (_, Some(_)) => past.pop(),
            (_, None) => present.next(),
        }))
    }

    /// All objects, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.iter().map(|entry| &entry.0)
    }

    /// How many objects there are of a resource, in one namespace or all.
    pub fn count(&self, resource: &str, namespace: Option<&str>) -> usize {
        let Some(namespaces) = self.counts.get(resource) else { return 0 };
        match namespace {
            Some(namespace) => namespaces.get(namespace).copied().unwrap_or(0),
            None => namespaces.values().sum(),
        }
    }

    /// How many objects there are of all resources.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The objects that are to be removed by `now`, the oldest first.
    pub fn expired(&self, now: Time) -> impl Iterator<Item = &Arc<Object>> {
        let due = self.expiring.iter().take_while(move |(expires, _)| *expires <= now);
        due.filter_map(|(_, key)| self.get(key))
    }

    /// When the next object expires.
    pub fn next_expiry(&self) -> Option<Time> {
        self.expiring.first().map(|(expires, _)| *expires)
    }

    /// The changes after a revision, oldest first.
    pub fn since(&self, revision: Revision) -> Result<impl Iterator<Item = &Arc<Change>>, Compacted> {
        self.history.since(revision)
    }

    /// A number that two states share only if they hold the same objects at the same revision.
    pub fn hash(&self) -> u64 {
        let mut hasher = Hasher::new();
        hasher.word(self.sum);
        hasher.word(self.objects.len() as u64);
        hasher.word(self.revision.0);
        hasher.finish()
    }

    /// Takes note of a log position that holds no transaction.
    pub fn apply_nothing(&mut self, index: u64) {
        assert!(index > self.index, "the log is applied in order: {index} after {}", self.index);
        self.index = index;
    }

    /// Does all of `txn` or nothing. `index` is its position in the log and grows with every call.
    pub fn apply(&mut self, index: u64, txn: &Txn) -> Result<Applied, Rejected> {
        self.apply_into(index, txn, &mut Vec::new())
    }

    /// [`apply`](State::apply) that also hands out the changes that it made.
    pub fn apply_into(&mut self, index: u64, txn: &Txn, changes: &mut Vec<Arc<Change>>) -> Result<Applied, Rejected> {
        self.apply_parsed(index, txn, Vec::new(), changes)
    }

    /// [`apply_into`](State::apply_into) for a transaction whose values have been read. It ends in the same state.
    pub fn apply_prepared(
        &mut self,
        index: u64,
        prepared: Prepared,
        changes: &mut Vec<Arc<Change>>,
    ) -> Result<Applied, Rejected> {
        let Prepared { txn, parsed } = prepared;
        self.apply_parsed(index, &txn, parsed, changes)
    }

    fn apply_parsed(
        &mut self,
        index: u64,
        txn: &Txn,
        parsed: Vec<Option<Parsed>>,
        changes: &mut Vec<Arc<Change>>,
    ) -> Result<Applied, Rejected> {
        self.apply_nothing(index);
        if txn.ops.is_empty() {
            return Ok(Applied { revision: self.revision, objects: Vec::new() });
        }
        let revision = Revision(self.revision.0 + 1);
        let planned = self.plan(txn, parsed, revision)?;
        self.revision = revision;
        let mut objects = Vec::with_capacity(planned.len());
        for step in planned {
            let change = Arc::new(self.commit(revision, step));
            objects.push(change.last.clone());
            self.history.push(change.clone());
            changes.push(change);
        }
        self.history.trim(revision);
        Ok(Applied { revision, objects })
    }

    /// Looks at every operation before any is done. `parsed` is empty, or has what was read of each one's value.
    fn plan(&self, txn: &Txn, parsed: Vec<Option<Parsed>>, revision: Revision) -> Result<Vec<Step>, Rejected> {
        let mut seen = BTreeSet::new();
        let mut steps = Vec::with_capacity(txn.ops.len());
        for (op, parsed) in txn.ops.iter().zip(parsed.into_iter().chain(iter::repeat(None))) {
            let malformed = |why: Malformed| Rejected::Malformed { key: op.key().clone(), why };
            if txn.ops.len() > 1 && !seen.insert(op.key()) {
                return Err(malformed(Malformed::Repeated));
            }
            let key = self.shared(op.key().clone());
            let old = self.get(&key);
            check(op, old)?;
            let read = |value| parsed.map_or_else(|| Parsed::read(&op.key().resource, value).map_err(malformed), Ok);
            steps.push(match (op, old) {
                (Op::Put { value, expires, .. }, _) => {
                    Step::Put(Object::at(key, revision, value, read(value)?, *expires))
                }
                (Op::Delete { last: Some(last), .. }, Some(old)) => {
                    Step::Delete(Object::at(old.key.clone(), revision, last, read(last)?, None))
                }
                (Op::Delete { last: None, .. }, Some(old)) => Step::Delete(old.deleted_at(revision)),
                (Op::Delete { .. }, None) => return Err(Rejected::Missing { key }),
            });
        }
        Ok(steps)
    }

    fn commit(&mut self, revision: Revision, step: Step) -> Change {
        match step {
            Step::Put(object) => {
                let (old, new) = self.insert(object);
                Change { revision, key: new.key.clone(), old, last: new.clone(), new: Some(new) }
            }
            Step::Delete(last) => {
                let old = self.remove(&last.key);
                Change { revision, key: last.key.clone(), old, new: None, last: Arc::new(last) }
            }
        }
    }

    fn insert(&mut self, mut object: Object) -> (Option<Arc<Object>>, Arc<Object>) {
        object.key = self.shared(object.key);
        let new = Arc::new(object);
        self.sum = self.sum.wrapping_add(new.hash());
        let old = self.objects.replace(Entry(new.clone())).map(|Entry(old)| old);
        match &old {
            Some(old) => self.forget(old),
            None => self.count_one(&new.key),
        }
        if let Some(expires) = new.expires {
            self.expiring.insert((expires, new.key.clone()));
        }
        (old, new)
    }

    fn count_one(&mut self, key: &Key) {
        let namespaces = self.counts.entry(key.resource.clone()).or_default();
        *namespaces.entry(key.namespace.clone()).or_default() += 1;
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<Object>> {
        let Entry(old) = self.objects.take(key)?;
        self.forget(&old);
        if let Some(namespaces) = self.counts.get_mut(&key.resource)
            && let Some(count) = namespaces.get_mut(&key.namespace)
        {
            *count -= 1;
            if *count == 0 {
                namespaces.remove(&key.namespace);
            }
        }
        Some(old)
    }

    /// Takes an object out of what the set does not say.
    fn forget(&mut self, old: &Object) {
        self.sum = self.sum.wrapping_sub(old.hash());
        if let Some(expires) = old.expires {
            self.expiring.remove(&(expires, old.key.clone()));
        }
    }

    /// The key with the names that the state holds already, so that a thousand pods share one `pods`.
    fn shared(&self, key: Key) -> Key {
        let Some((resource, namespaces)) = self.counts.get_key_value(&key.resource) else { return key };
        let namespace = namespaces.get_key_value(&key.namespace).map_or(&key.namespace, |(namespace, _)| namespace);
        Key { resource: resource.clone(), namespace: namespace.clone(), name: key.name }
    }
}

enum Step {
    Put(Object),
    Delete(Object),
}

fn check(op: &Op, old: Option<&Arc<Object>>) -> Result<(), Rejected> {
    let key = || op.key().clone();
    match (op.expect(), old) {
        (Expect::Any, _) | (Expect::Absent, None) | (Expect::Present, Some(_)) => Ok(()),
        (Expect::At(want), Some(old)) if old.revision == want => Ok(()),
        (Expect::At(_), Some(old)) => Err(Rejected::Conflict { key: key(), current: old.revision }),
        (Expect::Absent, Some(_)) => Err(Rejected::Exists { key: key() }),
        (Expect::Present | Expect::At(_), None) => Err(Rejected::Missing { key: key() }),
    }
}

#[cfg(test)]
mod tests;
