//! The recent changes, for watchers that resume.

use crate::{Key, Object};
use dhow_types::Revision;
use std::collections::VecDeque;
use std::sync::Arc;

/// What one operation did.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision of its transaction.
    pub revision: Revision,
    /// The object that it is about.
    pub key: Key,
    /// What was there before.
    pub old: Option<Arc<Object>>,
    /// What is there now; `None` if it was deleted.
    pub new: Option<Arc<Object>>,
    /// What a watcher is shown: the new object, or the last form of a deleted one at this change's revision.
    pub last: Arc<Object>,
}

/// The revision asked for is older than the history reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes after revision {asked} are no longer known, only those after {oldest}")]
pub struct Compacted {
    /// What was asked for.
    pub asked: Revision,
    /// The oldest revision after which all changes are still known.
    pub oldest: Revision,
}

/// How much of the past is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryMax {
    /// How many changes.
    pub changes: usize,
    /// How many bytes of JSON (and an allowance for the rest of a change), unless the last transaction alone has more.
    pub bytes: usize,
}

impl Default for HistoryMax {
    /// A client that lost its watch comes back within seconds. 20,000 changes are 10 s of 2,000 writes a second; an
    /// older watcher is told to list again, which is what Kubernetes does after five minutes. 32 MiB is a third of what
    /// an idle control node may take.
    fn default() -> Self {
        Self { changes: 20_000, bytes: 32 << 20 }
    }
}

/// What a change costs besides its text, roughly.
const CHANGE_BYTES: usize = 400;

#[derive(Debug)]
pub(crate) struct History {
    max: HistoryMax,
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// All changes after this one are in `changes`.
    oldest: Revision,
}

impl History {
    pub(crate) fn new(max: HistoryMax, oldest: Revision) -> Self {
        Self { max, changes: VecDeque::new(), bytes: 0, oldest }
    }

    pub(crate) fn push(&mut self, change: Arc<Change>) {
        self.bytes += cost(&change);
        self.changes.push_back(change);
    }

    /// Forgets whole transactions from the front until the limits hold; the one at `newest` stays.
    pub(crate) fn trim(&mut self, newest: Revision) {
        while self.changes.len() > self.max.changes || self.bytes > self.max.bytes {
            let Some(front) = self.changes.front().map(|change| change.revision).filter(|front| *front < newest) else {
                return;
            };
            while self.changes.front().is_some_and(|change| change.revision == front) {
                self.bytes -= self.changes.pop_front().map_or(0, |change| cost(&change));
            }
            self.oldest = front;
        }
    }

    pub(crate) fn since(&self, asked: Revision) -> Result<impl Iterator<Item = &Arc<Change>>, Compacted> {
        if asked < self.oldest {
            return Err(Compacted { asked, oldest: self.oldest });
        }
        let start = self.changes.partition_point(|change| change.revision <= asked);
        Ok(self.changes.range(start..))
    }
}

fn cost(change: &Change) -> usize {
    change.last.json().len() + CHANGE_BYTES
}
