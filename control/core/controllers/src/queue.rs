//! The work queue: which key of which controller is to be looked at next, and when.
//!
//! A key stands in the queue once, however often it is woken. It is not run while its own writes are in flight or have
//! not come back through the cache: a controller that acted on a world without its last write would do it twice. After
//! a refused write the key waits, twice as long each time.

use crate::cache::Cache;
use crate::wish::WriteFault;
use dhow_state::Key;
use dhow_types::{Revision, Time};
use std::collections::{BTreeMap, BTreeSet};

/// The first wait after a refused write; doubled by each further one. Long enough for the change that caused a
/// conflict to arrive.
const BACKOFF_FIRST_MS: u64 = 10;
/// The longest wait after refused writes. A fault that lasts costs two attempts a minute.
const BACKOFF_MAX_MS: u64 = 30_000;
/// How long a key waits to see its own write. The change of a write always arrives; if it was lost with a leader, we
/// go on with what we see.
const OWN_WRITE_WAIT_MAX_MS: u64 = 10_000;

/// A controller's place in the table of controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ControllerId(pub(crate) usize);

/// One key of one controller.
pub(crate) type Job = (ControllerId, Key);

#[derive(Debug, Default)]
struct Entry {
    /// When it is to run; `None` while nobody asked.
    due: Option<Time>,
    in_flight: u32,
    /// Own writes that the cache has not shown yet.
    unseen: Vec<(Key, Revision)>,
    unseen_since: Time,
    failures: u32,
    not_before: Time,
    /// The end of its rest after a costly run.
    rested: Time,
    last_write: Option<Time>,
    /// Stands among the fading keys.
    fades: bool,
    round_failed: bool,
    last_fault: Option<String>,
}

impl Entry {
    fn blocked(&self) -> bool {
        self.in_flight > 0 || !self.unseen.is_empty()
    }

    /// Nothing is remembered that a new entry would not have.
    fn is_idle(&self, now: Time) -> bool {
        self.due.is_none()
            && !self.blocked()
            && !self.round_failed
            && self.rested <= now
            && self.last_write.is_none_or(|at| now.ms_since(at) > LAST_WRITE_KEPT_MS)
    }
}

/// A key rests this many times as long as its last run took: large ones leave nine tenths of the time to others.
const REST_FACTOR: u64 = 10;
/// The longest rest, so that even the largest key is looked at in time.
const REST_MAX_MS: u64 = 1_000;
/// How long the time of a key's last write is kept; longer than any interval by which controllers thin out writes.
const LAST_WRITE_KEPT_MS: u64 = 5_000;
/// How long a key is kept after it ran before it is forgotten, if nothing is to be remembered of it then. Until then
/// the time of its last write has passed.
const FADE_MS: u64 = LAST_WRITE_KEPT_MS + 1;

/// What a controller is told about its key beside the world.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// When the key last wrote, if that was a moment ago.
    pub(crate) last_write: Option<Time>,
    /// How many rounds in a row had a refused write.
    pub(crate) failures: u32,
    /// Why the API refused a write of the last round, if it did for a reason that lies in the write itself.
    pub(crate) last_fault: Option<String>,
}

/// The queue of all controllers.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: BTreeMap<Job, Entry>,
    order: BTreeSet<(Time, Job)>,
    /// Keys that wait for their own writes to be seen.
    unseen: BTreeSet<Job>,
    /// Keys that are forgotten at a time if they are idle then, and looked at again later if not. Every key that has
    /// run stands here once: nothing else may ever look at it again, when what it is about is gone.
    fading: BTreeSet<(Time, Job)>,
}

impl Queue {
    /// Asks for a key to be looked at, at `at` or as soon as it may run.
    pub(crate) fn add(&mut self, job: Job, at: Time) {
        let entry = self.entries.entry(job.clone()).or_default();
        let at = at.max(entry.not_before).max(entry.rested);
        if entry.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(due) = entry.due.replace(at) {
            self.order.remove(&(due, job.clone()));
        }
        if !entry.blocked() {
            self.order.insert((at, job));
        }
    }

    /// The next key that may run at `now`.
    pub(crate) fn pop(&mut self, now: Time) -> Option<(Job, History)> {
        if self.order.first()?.0 > now {
            return None;
        }
        let (_, job) = self.order.pop_first()?;
        let entry = self.entries.get_mut(&job)?;
        entry.due = None;
        let last_fault = entry.last_fault.take();
        if !std::mem::take(&mut entry.round_failed) {
            entry.failures = 0;
        }
        let history = History { last_write: entry.last_write, failures: entry.failures, last_fault };
        Some((job, history))
    }

    /// Tells how a run ended: how many writes it asked for, and what it cost. Called after each [`pop`](Self::pop).
    ///
    /// A key that is expensive to look at rests for a multiple of that, so that a burst of changes below it is looked
    /// at a few times, not once a change.
    pub(crate) fn ran(&mut self, job: &Job, writes: u32, cost_us: u64, now: Time) {
        let Some(entry) = self.entries.get_mut(job) else { return };
        entry.rested = now + (cost_us.saturating_mul(REST_FACTOR) / 1000).min(REST_MAX_MS);
        if writes == 0 {
            entry.failures = 0;
            if entry.is_idle(now) && !entry.fades {
                self.entries.remove(job);
                return;
            }
        }
        if !std::mem::replace(&mut entry.fades, true) {
            self.fading.insert((now + FADE_MS, job.clone()));
        }
        if writes == 0 {
            return;
        }
        entry.in_flight = writes;
        entry.last_write = Some(now);
        if let Some(due) = entry.due {
            self.order.remove(&(due, job.clone()));
        }
    }

    /// Takes the result of one write; `at` is what it wrote.
    pub(crate) fn written(
        &mut self,
        job: &Job,
        at: Result<Option<(Key, Revision)>, WriteFault>,
        cache: &Cache,
        now: Time,
    ) {
        let Some(entry) = self.entries.get_mut(job) else { return };
        entry.in_flight = entry.in_flight.saturating_sub(1);
        match at {
            Ok(Some((key, revision))) if !cache.holds(&key, revision) => {
                entry.unseen.push((key, revision));
                entry.unseen_since = now;
                self.unseen.insert(job.clone());
            }
            Ok(_) => {}
            Err(fault) => {
                entry.round_failed = true;
                if let WriteFault::Invalid(why) | WriteFault::Other(why) = fault {
                    entry.last_fault = Some(why);
                }
                // Several writes of one round that are refused count once.
                if entry.not_before <= now {
                    let wait = BACKOFF_FIRST_MS.saturating_mul(1 << entry.failures.min(16)).min(BACKOFF_MAX_MS);
                    entry.failures = entry.failures.saturating_add(1);
                    entry.not_before = now + wait;
                }
                let at = entry.not_before;
                entry.due = Some(entry.due.map_or(at, |due| due.max(at)));
            }
        }
        self.release(job);
    }

    /// Whether a key's own writes have all come back since [`settle`](Self::settle) was called.
    pub(crate) fn has_settled(&self, cache: &Cache) -> bool {
        let settled = |entry: &Entry| entry.unseen.iter().all(|(key, revision)| cache.holds(key, *revision));
        self.unseen.iter().filter_map(|job| self.entries.get(job)).any(settled)
    }

    /// Lets keys run whose own writes have come back, or have been waited for long enough.
    pub(crate) fn settle(&mut self, cache: &Cache, now: Time) {
        for job in std::mem::take(&mut self.unseen) {
            let Some(entry) = self.entries.get_mut(&job) else { continue };
            entry.unseen.retain(|(key, revision)| !cache.holds(key, *revision));
            if now.ms_since(entry.unseen_since) >= OWN_WRITE_WAIT_MAX_MS {
                entry.unseen.clear();
            }
            if entry.unseen.is_empty() {
                self.release(&job);
            } else {
                self.unseen.insert(job);
            }
        }
    }

    /// Forgets keys that nothing is to be remembered of.
    pub(crate) fn forget(&mut self, now: Time) {
        while self.fading.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, job)) = self.fading.pop_first() else { return };
            if self.entries.get(&job).is_some_and(|entry| entry.is_idle(now)) {
                self.entries.remove(&job);
            } else {
                self.fading.insert((now + FADE_MS, job));
            }
        }
    }

    fn release(&mut self, job: &Job) {
        if let Some(entry) = self.entries.get(job)
            && !entry.blocked()
            && let Some(due) = entry.due
        {
            self.order.insert((due, job.clone()));
        }
    }

    /// How many entries each set has.
    pub(crate) fn sizes(&self) -> [(&'static str, usize); 4] {
        [
            ("keys", self.entries.len()),
            ("keys in order", self.order.len()),
            ("keys with unseen writes", self.unseen.len()),
            ("keys that fade", self.fading.len()),
        ]
    }

    /// When [`pop`](Self::pop) or [`settle`](Self::settle) has something to do next.
    pub(crate) fn next(&self) -> Option<Time> {
        let unseen = self.unseen.iter().filter_map(|job| self.entries.get(job));
        let overdue = unseen.map(|entry| entry.unseen_since + OWN_WRITE_WAIT_MAX_MS).min();
        let due = self.order.first().map(|(due, _)| *due);
        [due, overdue].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use dhow_state::{Change, Object};
    use std::sync::Arc;

    fn job() -> Job {
        (ControllerId(0), Key::new("configmaps", "d", "a"))
    }

    /// A cache that has seen one object at a revision.
    fn cache_at(revision: u64, name: &str) -> Cache {
        let key = Key::new("configmaps", "d", name);
        let bytes = Bytes::from(format!(r#"{{"metadata":{{"name":"{name}","namespace":"d","uid":"{name}"}}}}"#));
        let object = Arc::new(Object::restore(key.clone(), Revision(revision), bytes).unwrap());
        let mut cache = Cache::default();
        let (new, last) = (Some(Arc::clone(&object)), object);
        cache.apply(Time::default(), &Change { revision: Revision(revision), key, old: None, new, last });
        cache
    }

    fn at(ms: i64) -> Time {
        Time::from_ms(ms)
    }

    #[test]
    fn a_key_waits_for_its_own_write_to_come_back() {
        let mut queue = Queue::default();
        let behind = cache_at(5, "other");
        queue.add(job(), at(0));
        assert!(queue.pop(at(0)).is_some());
        queue.ran(&job(), 1, 0, at(0));
        queue.add(job(), at(1));
        assert!(queue.pop(at(1)).is_none(), "its write is in flight");
        queue.written(&job(), Ok(Some((job().1, Revision(6)))), &behind, at(2));
        queue.settle(&behind, at(3));
        assert!(queue.pop(at(3)).is_none(), "its write has not come back");
        let sibling = cache_at(6, "sibling");
        queue.settle(&sibling, at(4));
        assert!(queue.pop(at(4)).is_none(), "another change of the same revision is not its own");
        let seen = cache_at(6, "a");
        assert!(queue.has_settled(&seen));
        queue.settle(&seen, at(5));
        assert!(queue.pop(at(5)).is_some());
    }

    #[test]
    fn a_write_that_never_comes_back_does_not_stop_its_key_for_ever() {
        let mut queue = Queue::default();
        let behind = cache_at(5, "other");
        queue.add(job(), at(0));
        queue.pop(at(0)).unwrap();
        queue.ran(&job(), 1, 0, at(0));
        queue.written(&job(), Ok(Some((job().1, Revision(6)))), &behind, at(0));
        queue.add(job(), at(0));
        let overdue = queue.next().unwrap();
        assert_eq!(overdue, at(0) + OWN_WRITE_WAIT_MAX_MS);
        queue.settle(&behind, overdue);
        assert!(queue.pop(overdue).is_some());
    }

    #[test]
    fn refusals_double_the_wait_and_success_ends_it() {
        let mut queue = Queue::default();
        let cache = cache_at(1, "a");
        let mut now = at(0);
        queue.add(job(), now);
        for wait in [10, 20, 40, 80] {
            let (_, history) = queue.pop(now).unwrap();
            assert_eq!(history.last_fault.is_some(), wait > 10);
            queue.ran(&job(), 2, 0, now);
            // Two refusals of one round count once.
            for _ in 0..2 {
                queue.written(&job(), Err(WriteFault::Invalid("no".into())), &cache, now);
            }
            assert_eq!(queue.next(), Some(now + wait));
            now = now + wait;
        }
        let (_, history) = queue.pop(now).unwrap();
        assert_eq!(history.failures, 4);
        queue.ran(&job(), 1, 0, now);
        queue.written(&job(), Ok(None), &cache, now);
        queue.add(job(), now);
        let (_, history) = queue.pop(now).unwrap();
        assert_eq!((history.failures, history.last_fault), (0, None));
    }

    #[test]
    fn a_costly_key_rests_and_an_idle_one_is_forgotten() {
        let mut queue = Queue::default();
        queue.add(job(), at(0));
        queue.pop(at(0)).unwrap();
        queue.ran(&job(), 0, 2_000, at(0));
        queue.add(job(), at(1));
        assert_eq!(queue.next(), Some(at(20)), "ten times two milliseconds");
        queue.pop(at(20)).unwrap();
        queue.ran(&job(), 0, 0, at(20));
        queue.forget(at(0) + FADE_MS);
        assert!(queue.sizes().iter().all(|(_, size)| *size == 0), "nothing is to be remembered: {:?}", queue.sizes());
    }

    #[test]
    fn a_key_that_nobody_asks_for_after_its_write_is_forgotten() {
        for result in [Ok(None), Ok(Some((job().1, Revision(6)))), Err(WriteFault::NotFound)] {
            let mut queue = Queue::default();
            let seen = cache_at(6, "a");
            queue.add(job(), at(0));
            queue.pop(at(0)).unwrap();
            queue.ran(&job(), 1, 0, at(0));
            queue.forget(at(0) + FADE_MS);
            assert_eq!(queue.entries.len(), 1, "its write is in flight");
            queue.written(&job(), result.clone(), &seen, at(6_000));
            if result.is_err() {
                let again = queue.next().unwrap();
                queue.pop(again).unwrap();
                queue.ran(&job(), 0, 0, again);
            }
            queue.forget(at(0) + 2 * FADE_MS);
            queue.forget(at(0) + 3 * FADE_MS);
            assert!(queue.sizes().iter().all(|(_, size)| *size == 0), "after {result:?}: {:?}", queue.sizes());
        }
    }
}
