//! Watchers: who waits for which changes, and the bounded queue of each.
//!
//! Watchers are found by resource, namespace and node, so that a change touches only those who asked for it. The replica's
//! thread pushes whole batches; a watcher takes all that has gathered at once. A watcher whose queue is full is cut off
//! with [`WatchItem::Lagged`] and has to list again: nobody is buffered for without bound.

use dhow_state::{Change, Object};
use dhow_types::Revision;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// How many changes may wait for one watcher. A watcher that sleeps for a second in a storm of 4,000 changes a second
/// is still served; the memory behind it is that of `Arc`s, for the history holds the objects anyway.
const WATCH_QUEUE_MAX: usize = 4_096;

/// The same for those who watch everything: the controllers of this process, of which there are few and for which to
/// start anew is dear.
const ALL_QUEUE_MAX: usize = 65_536;

/// Which changes a watcher wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// `pods`, `deployments.apps`.
    pub resource: Arc<str>,
    /// One namespace, or all.
    pub namespace: Option<Arc<str>>,
    /// Only changes of objects that are, or were until then, on this node, as their field `spec.nodeName` says.
    pub node: Option<Arc<str>>,
}

impl Filter {
    /// Everything of a resource, in one namespace or all.
    pub fn new(resource: impl Into<Arc<str>>, namespace: Option<&str>) -> Self {
        Self { resource: resource.into(), namespace: namespace.map(Arc::from), node: None }
    }

    /// Whether the change is wanted.
    pub fn wants(&self, change: &Change) -> bool {
        change.key.resource == self.resource
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == change.key.namespace)
            && self.node.as_deref().is_none_or(|node| nodes(change).contains(&Some(node)))
    }
}

/// The field by which agents ask for what is theirs.
const NODE_FIELD: &str = "spec.nodeName";

/// The nodes that a change concerns: where the object was, and where it is, if that is another one.
fn nodes(change: &Change) -> [Option<&str>; 2] {
    let (old, new) = (node(change.old.as_deref()), node(change.new.as_deref()));
    [old, new.filter(|new| Some(*new) != old)]
}

fn node(object: Option<&Object>) -> Option<&str> {
    object?.index.field(NODE_FIELD).filter(|node| !node.is_empty())
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With the first change after this revision.
    After(Revision),
    /// With the next change.
    Now,
}

/// What a watcher receives.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// Changes in the order of their revisions, never empty, never one twice.
    Changes(Vec<Arc<Change>>),
    /// The answer to [`Watch::request_progress`]: all changes up to here have been given.
    Progress(Revision),
    /// The watcher was too slow and has missed changes; nothing follows.
    Lagged,
}

/// One watcher's end.
#[derive(Debug)]
pub struct Watch {
    hub: Arc<Hub>,
    filter: Option<Filter>,
    id: u64,
    queue: Arc<Queue>,
    /// What had happened before the watch began; given first, and not counted against the queue.
    backlog: Vec<Arc<Change>>,
}

/// All objects as they were at one revision, and every change since.
#[derive(Debug)]
pub struct AllWatch {
    /// The objects at `revision`, in the order of their keys.
    pub objects: Vec<Arc<Object>>,
    /// Where the changes begin.
    pub revision: Revision,
    watch: Watch,
}

impl AllWatch {
    /// As [`Watch::next`].
    pub async fn next(&mut self) -> Option<WatchItem> {
        self.watch.next().await
    }

    /// As [`Watch::request_progress`].
    pub fn request_progress(&self) {
        self.watch.request_progress();
    }
}

impl Watch {
    /// Waits for what comes next. `None` once the store is closed, and after [`WatchItem::Lagged`]. A call that is
    /// dropped before it answers loses nothing.
    pub async fn next(&mut self) -> Option<WatchItem> {
        if !self.backlog.is_empty() {
            return Some(WatchItem::Changes(std::mem::take(&mut self.backlog)));
        }
        loop {
            // Read before the queue is looked at: whatever is published was pushed before, so an empty queue then
            // means that all of it has been given.
            let published = Revision(self.hub.published.load(Ordering::Acquire)).max(self.queue.after);
            if let Some(item) = self.queue.take(published) {
                return item;
            }
            self.queue.wake.notified().await;
        }
    }

    /// Asks for a [`WatchItem::Progress`] as soon as all that has happened until now has been given.
    pub fn request_progress(&self) {
        self.queue.lock().asked = true;
        self.queue.wake.notify_one();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hub.remove(self.filter.as_ref(), self.id);
    }
}

#[derive(Debug)]
struct Queue {
    after: Revision,
    max: usize,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    changes: Vec<Arc<Change>>,
    asked: bool,
    end: End,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// Too slow, and not told yet.
    Lagged,
    /// Nothing follows what still waits.
    Closed,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: nothing yet. `Some(None)`: the end.
    fn take(&self, published: Revision) -> Option<Option<WatchItem>> {
        let mut waiting = self.lock();
        if waiting.end == End::Lagged {
            waiting.end = End::Closed;
            return Some(Some(WatchItem::Lagged));
        }
        if !waiting.changes.is_empty() {
            return Some(Some(WatchItem::Changes(std::mem::take(&mut waiting.changes))));
        }
        if waiting.end == End::Closed {
            return Some(None);
        }
        std::mem::take(&mut waiting.asked).then_some(Some(WatchItem::Progress(published)))
    }

    /// Whether the watcher kept up.
    fn push(&self, changes: &[Arc<Change>]) -> bool {
        let mut waiting = self.lock();
        let fresh = &changes[changes.partition_point(|change| change.revision <= self.after)..];
        if fresh.is_empty() {
            return true;
        }
        let fits = waiting.changes.len() + fresh.len() <= self.max;
        if fits {
            waiting.changes.extend_from_slice(fresh);
        } else {
            waiting.changes = Vec::new();
            waiting.end = End::Lagged;
        }
        drop(waiting);
        self.wake.notify_one();
        fits
    }

    fn cut(&self) {
        let mut waiting = self.lock();
        (waiting.changes, waiting.end) = (Vec::new(), End::Lagged);
        drop(waiting);
        self.wake.notify_one();
    }

    fn close(&self) {
        let mut waiting = self.lock();
        if waiting.end == End::Open {
            waiting.end = End::Closed;
        }
        drop(waiting);
        self.wake.notify_one();
    }
}

/// Where the replica's thread leaves changes for all watchers.
#[derive(Debug)]
pub(crate) struct Hub {
    watchers: Mutex<Watchers>,
    published: AtomicU64,
}

type Group = BTreeMap<u64, Arc<Queue>>;

/// A namespace and a node; `None`: all of them.
type Scope = (Option<Arc<str>>, Option<Arc<str>>);

#[derive(Debug, Default)]
struct Watchers {
    next_id: u64,
    /// By resource, then by namespace and node.
    by_resource: BTreeMap<Arc<str>, BTreeMap<Scope, Group>>,
    all: Group,
    closed: bool,
}

impl Hub {
    pub(crate) fn new(revision: Revision) -> Arc<Self> {
        Arc::new(Self { watchers: Mutex::default(), published: AtomicU64::new(revision.0) })
    }

    fn lock(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a watcher that has been given all changes up to `after`, `backlog` being the last of them. The caller
    /// holds the state's read lock, so that nothing is applied between its look at the state and this.
    pub(crate) fn add(self: &Arc<Self>, filter: Option<Filter>, after: Revision, backlog: Vec<Arc<Change>>) -> Watch {
        let max = if filter.is_some() { WATCH_QUEUE_MAX } else { ALL_QUEUE_MAX };
        let queue = Arc::new(Queue { after, max, waiting: Mutex::default(), wake: Notify::new() });
        let mut watchers = self.lock();
        let id = watchers.next_id;
        watchers.next_id += 1;
        if watchers.closed {
            queue.close();
        }
        watchers.group(filter.as_ref()).insert(id, queue.clone());
        Watch { hub: self.clone(), filter, id, queue, backlog }
    }

    /// All watchers together with the objects they began with.
    pub(crate) fn add_all(self: &Arc<Self>, revision: Revision, objects: Vec<Arc<Object>>) -> AllWatch {
        AllWatch { objects, revision, watch: self.add(None, revision, Vec::new()) }
    }

    fn remove(&self, filter: Option<&Filter>, id: u64) {
        let mut watchers = self.lock();
        watchers.group(filter).remove(&id);
        let Some(filter) = filter else { return };
        if let Some(scopes) = watchers.by_resource.get_mut(&filter.resource) {
            scopes.retain(|_, group| !group.is_empty());
            if scopes.is_empty() {
                watchers.by_resource.remove(&filter.resource);
            }
        }
    }

    /// Gives changes, in order, to those who asked; `revision` is where they lead.
    pub(crate) fn publish(&self, changes: &[Arc<Change>], revision: Revision) {
        let mut watchers = self.lock();
        let Watchers { by_resource, all, .. } = &mut *watchers;
        all.retain(|_, queue| queue.push(changes));
        let mut batches: BTreeMap<(&Arc<str>, Scope), Vec<Arc<Change>>> = BTreeMap::new();
        for change in changes {
            let Some(scopes) = by_resource.get(&change.key.resource) else { continue };
            // Changes of resources that nobody watches by node are not asked for their node.
            let by_node = scopes.keys().any(|(_, node)| node.is_some());
            let nodes = if by_node { nodes(change).map(|node| node.map(Arc::from)) } else { [None, None] };
            for node in [None].into_iter().chain(nodes.into_iter().flatten().map(Some)) {
                for namespace in [None, Some(change.key.namespace.clone())] {
                    let scope = (namespace, node.clone());
                    if scopes.contains_key(&scope) {
                        batches.entry((&change.key.resource, scope)).or_default().push(change.clone());
                    }
                }
            }
        }
        for ((resource, scope), batch) in batches {
            if let Some(group) = by_resource.get_mut(resource).and_then(|scopes| scopes.get_mut(&scope)) {
                group.retain(|_, queue| queue.push(&batch));
            }
        }
        self.published.store(revision.0, Ordering::Release);
    }

    /// Another state has taken the place of the former one: what lies between is not known, so all have to list again.
    pub(crate) fn cut(&self, revision: Revision) {
        let mut watchers = self.lock();
        let Watchers { by_resource, all, .. } = &mut *watchers;
        let groups = by_resource.values_mut().flat_map(BTreeMap::values_mut).chain([all]);
        groups.flat_map(|group| std::mem::take(group).into_values()).for_each(|queue| queue.cut());
        self.published.store(revision.0, Ordering::Release);
    }

    /// Lets every watcher take what waits and then end.
    pub(crate) fn close(&self) {
        let mut watchers = self.lock();
        watchers.closed = true;
        let groups = watchers.by_resource.values().flat_map(BTreeMap::values).chain([&watchers.all]);
        groups.flat_map(BTreeMap::values).for_each(|queue| queue.close());
    }
}

impl Watchers {
    fn group(&mut self, filter: Option<&Filter>) -> &mut Group {
        match filter {
            None => &mut self.all,
            Some(Filter { resource, namespace, node }) => {
                let scopes = self.by_resource.entry(resource.clone()).or_default();
                scopes.entry((namespace.clone(), node.clone())).or_default()
            }
        }
    }
}
