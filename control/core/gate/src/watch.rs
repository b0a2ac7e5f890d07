//! What a watcher sees of a change: an object that begins to match its selectors is ADDED, one that ceases to is
//! DELETED, whatever really happened to it.

use crate::options::Selection;
use dhow_api::Tree;
use dhow_api::meta;
use dhow_state::{Change, Object};
use dhow_types::Revision;
use std::sync::Arc;

/// The types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// The object is new to the watcher.
    Added,
    /// The object has another form.
    Modified,
    /// The object is gone for the watcher.
    Deleted,
    /// All changes up to a revision have been shown.
    Bookmark,
    /// The watch is over; the object is a `Status`.
    Error,
}

impl EventType {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
            EventType::Bookmark => "BOOKMARK",
            EventType::Error => "ERROR",
        }
    }
}

/// What of the object is shown.
#[derive(Clone, Debug)]
pub enum Shown {
    /// An object as it is stored.
    Stored(Arc<Object>),
    /// The object as it last matched, at the revision at which it ceased to.
    Left {
        /// The last form that matched.
        old: Arc<Object>,
        /// When that ended.
        revision: Revision,
    },
}

impl Shown {
    /// The object as a tree.
    pub fn tree(&self) -> Tree {
        match self {
            Shown::Stored(object) => object.tree(),
            Shown::Left { old, revision } => {
                let mut tree = old.tree();
                meta::set_resource_version(&mut tree, &revision.to_string());
                tree
            }
        }
    }
}

/// What a watcher with this selection sees of a change, if anything.
pub fn event(selection: &Selection, change: &Change) -> Option<(EventType, Shown)> {
    let matches = |object: &Arc<Object>| selection.matches(&object.key.name, &object.index);
    let old = change.old.as_ref().filter(|old| matches(old));
    let new = change.new.as_ref().filter(|new| matches(new));
    match (old, new) {
        (None, Some(new)) => Some((EventType::Added, Shown::Stored(new.clone()))),
        (Some(_), Some(new)) => Some((EventType::Modified, Shown::Stored(new.clone()))),
        (Some(_), None) if change.new.is_none() => Some((EventType::Deleted, Shown::Stored(change.last.clone()))),
        (Some(old), None) => Some((EventType::Deleted, Shown::Left { old: old.clone(), revision: change.revision })),
        (None, None) => None,
    }
}
