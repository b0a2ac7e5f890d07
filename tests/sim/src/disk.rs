//! A disk that keeps what was synced, and of the rest what it pleases.

use dhow_consensus::{Entry, HardState, Install, Members, Persist, Position, Restored};
use dhow_state::{HistoryMax, Object, State};
use dhow_types::{Revision, Rng};
use std::collections::VecDeque;
use std::sync::Arc;

/// A state as it is flushed, and as it is sent to another member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) position: Position,
    pub(crate) members: Members,
    pub(crate) revision: Revision,
    pub(crate) objects: Vec<Arc<Object>>,
}

impl Image {
    pub(crate) fn of(state: &State, position: Position, members: Members) -> Self {
        Self { position, members, revision: state.revision(), objects: state.iter().cloned().collect() }
    }

    pub(crate) fn state(&self, history_max: HistoryMax) -> State {
        self.state_at(history_max, self.revision)
    }

    /// The state, if the image were of another revision.
    pub(crate) fn state_at(&self, history_max: HistoryMax, revision: Revision) -> State {
        let objects = self.objects.iter().map(|object| (**object).clone());
        State::restore(history_max, self.position.index, revision, objects)
    }
}

/// What goes into the log, in the order in which it was wished for.
#[derive(Debug)]
pub(crate) enum Write {
    Persist(Persist),
    Install(Install, Arc<Image>),
}

impl Write {
    fn number(&self) -> u64 {
        match self {
            Self::Persist(persist) => persist.number,
            Self::Install(install, _) => install.number,
        }
    }
}

/// What one member has written.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    entries: VecDeque<Entry>,
    hard_state: HardState,
    image: Arc<Image>,
    unsynced: VecDeque<Write>,
}

impl Disk {
    /// The disk of a member that is there from the beginning, which is at this position.
    pub(crate) fn founded(position: Position, members: Members) -> Self {
        Self { image: Arc::new(Image { position, members, ..Image::default() }), ..Self::default() }
    }

    pub(crate) fn write(&mut self, write: Write) {
        self.unsynced.push_back(write);
    }

    /// How many writes wait for a sync.
    pub(crate) fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// Makes the oldest `count` writes durable; gives the number of the last of them.
    pub(crate) fn sync(&mut self, count: usize) -> Option<u64> {
        let mut last = None;
        for write in self.unsynced.drain(..count.min(self.unsynced.len())).collect::<Vec<_>>() {
            last = Some(write.number());
            self.keep(write);
        }
        last
    }

    /// The number of the write at this place, which stays unsynced: what a driver reports that forgets to sync.
    pub(crate) fn number(&self, count: usize) -> Option<u64> {
        self.unsynced.get(count.checked_sub(1)?).map(Write::number)
    }

    /// Keeps a state that was flushed, and drops the log that it covers.
    pub(crate) fn flush(&mut self, image: Arc<Image>) {
        // A flush that was begun before another member's image came.
        if image.position.index >= self.image.position.index {
            self.drop_log(image.position.index);
            self.image = image;
        }
    }

    pub(crate) fn drop_log(&mut self, index: u64) {
        while self.entries.front().is_some_and(|entry| entry.index <= index) {
            self.entries.pop_front();
        }
    }

    /// Loses power: a part of what was not synced, from the front, happens to be there.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        let survive = rng.below(self.unsynced.len() as u64 + 1);
        self.sync(survive as usize);
        // An image is there before the log that it replaces is gone.
        if let Some(Write::Install(_, image)) = self.unsynced.front()
            && rng.chance(1, 2)
        {
            self.image = image.clone();
        }
        self.unsynced.clear();
    }

    /// What a start finds.
    pub(crate) fn read(&self) -> (Arc<Image>, Restored) {
        let (applied, members) = (self.image.position, self.image.members.clone());
        let entries = self.entries.iter().filter(|entry| entry.index > applied.index).cloned().collect();
        (self.image.clone(), Restored { members, hard_state: self.hard_state, applied, entries })
    }

    fn keep(&mut self, write: Write) {
        match write {
            Write::Persist(persist) => {
                if let Some(first) = persist.entries.first() {
                    while self.entries.back().is_some_and(|entry| entry.index >= first.index) {
                        self.entries.pop_back();
                    }
                }
                self.entries.extend(persist.entries);
                self.hard_state = persist.hard_state;
            }
            Write::Install(install, image) => {
                self.hard_state = install.hard_state;
                self.image = image;
                self.entries.clear();
            }
        }
    }
}
