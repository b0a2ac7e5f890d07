//! A disk that keeps what was synced, and of the rest what it pleases.

use dhow_consensus::{Entry, HardState, Persist, Position, Restored};
use dhow_state::{HistoryMax, Object, State};
use dhow_types::{Revision, Rng};
use std::collections::VecDeque;

/// The state as it was flushed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) applied: Position,
    revision: Revision,
    objects: Vec<Object>,
}

impl Image {
    pub(crate) fn of(state: &State, applied: Position) -> Self {
        let objects = state.iter().map(|object| (**object).clone()).collect();
        Self { applied, revision: state.revision(), objects }
    }

    pub(crate) fn state(&self, history_max: HistoryMax) -> State {
        State::restore(history_max, self.applied.index, self.revision, self.objects.iter().cloned())
    }
}

/// What one member has written.
#[derive(Debug, Default)]
pub struct Disk {
    entries: Vec<Entry>,
    hard_state: HardState,
    /// Written in this order, and not synced.
    unsynced: VecDeque<Persist>,
    image: Image,
}

impl Disk {
    pub(crate) fn write(&mut self, persist: Persist) {
        self.unsynced.push_back(persist);
    }

    /// How many writes wait for a sync.
    pub(crate) fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Makes the oldest `count` writes durable; gives the number of the last of them.
    pub(crate) fn sync(&mut self, count: usize) -> Option<u64> {
        let count = count.min(self.unsynced.len());
        let synced: Vec<Persist> = self.unsynced.drain(..count).collect();
        let last = synced.last().map(|persist| persist.number);
        synced.into_iter().for_each(|persist| self.keep(persist));
        last
    }

    /// The number of the newest write, which stays unsynced: what a driver reports that forgets to sync.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.unsynced.back().map(|persist| persist.number)
    }

    /// Flushes the state, which is durable at once, and drops the log that it covers.
    pub(crate) fn flush(&mut self, image: Image) {
        self.drop_log(image.applied.index);
        self.image = image;
    }

    pub(crate) fn drop_log(&mut self, index: u64) {
        self.entries.retain(|entry| entry.index > index);
    }

    /// Loses power: a part of what was not synced, from the front, happens to be there.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        let survive = rng.below(self.unsynced.len() as u64 + 1);
        self.sync(survive as usize);
        self.unsynced.clear();
    }

    /// What a start finds.
    pub(crate) fn read(&self) -> (Image, Restored) {
        let applied = self.image.applied;
        let entries = self.entries.iter().filter(|entry| entry.index > applied.index).cloned().collect();
        (self.image.clone(), Restored { voters: vec![1], hard_state: self.hard_state, applied, entries })
    }

    fn keep(&mut self, persist: Persist) {
        if let Some(first) = persist.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
        }
        self.entries.extend(persist.entries);
        self.hard_state = persist.hard_state;
    }
}
