//! Whose turn it is among containers that compute at length: the one that has used least of its share.
//!
//! Each container has a weight, from its CPU request, and a virtual time that grows by what it uses divided by its
//! weight. The waiting guest of the container with the least virtual time goes first, so that over time containers that
//! all want more than there is get it in proportion to their weights. A container that was idle starts where the others
//! are: it has no claim on what it did not use.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The weight of one whole CPU, as Linux' `cpu.shares` has it.
const CPU_WEIGHT: u64 = 1024;
/// The weight of a container that requests nothing, as a kubelet gives it: it gets what the others leave.
const WEIGHT_MIN: u64 = 2;
/// How much a container may have had more than the others when it comes back, of its own CPU time: a few slices. What it
/// had beyond that is forgiven, so that nobody waits for seconds because of what was long ago.
const LAG_MAX_NS: u64 = 20_000_000;

/// One container's part in the competition.
#[derive(Debug)]
pub(crate) struct Share {
    weight: u64,
    /// CPU nanoseconds, scaled to a weight of one CPU.
    virtual_ns: AtomicU64,
}

impl Share {
    /// The share of a container that requests so many thousandths of a CPU.
    pub(crate) fn new(request_m: Option<u32>) -> Self {
        let weight = request_m.map_or(0, |request| u64::from(request) * CPU_WEIGHT / 1000).max(WEIGHT_MIN);
        Self { weight, virtual_ns: AtomicU64::new(0) }
    }

    /// The container has used CPU time in its turn.
    pub(crate) fn charge(&self, spent_ns: u64) {
        self.virtual_ns.fetch_add(self.scaled(spent_ns), Ordering::Relaxed);
    }

    fn scaled(&self, ns: u64) -> u64 {
        ns.saturating_mul(CPU_WEIGHT) / self.weight
    }

    /// The container comes back when the others are at `floor`.
    fn arrive(&self, floor: u64) {
        let most = floor.saturating_add(self.scaled(LAG_MAX_NS));
        let near = |at: u64| Some(at.clamp(floor, most));
        // The closure never refuses.
        self.virtual_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, near).ok();
    }

    fn virtual_ns(&self) -> u64 {
        self.virtual_ns.load(Ordering::Relaxed)
    }
}

/// Names what waits, until it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(u64);

/// What waits for a turn. Bounded by who puts things in: each guest waits here at most once.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    /// By virtual time, and by arrival among equals.
    waiting: BTreeMap<(u64, u64), Waiting<T>>,
    places: HashMap<Ticket, (u64, u64)>,
    /// The virtual time of whoever had the last turn: nobody who arrives is before it.
    floor: u64,
    arrivals: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    ticket: Ticket,
    arrival: u64,
    share: Arc<Share>,
    item: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), places: HashMap::new(), floor: 0, arrivals: 0 }
    }
}

impl<T> FairQueue<T> {
    /// A name for something that will wait, maybe several times.
    pub(crate) fn ticket(&mut self) -> Ticket {
        self.arrivals += 1;
        Ticket(self.arrivals)
    }

    /// Lets something wait that comes from elsewhere.
    pub(crate) fn enter(&mut self, ticket: Ticket, share: Arc<Share>, item: T) {
        share.arrive(self.floor);
        self.push(ticket, share, item);
    }

    /// Lets something wait for its next turn.
    pub(crate) fn push(&mut self, ticket: Ticket, share: Arc<Share>, item: T) {
        self.arrivals += 1;
        self.insert(Waiting { ticket, arrival: self.arrivals, share, item });
    }

    fn insert(&mut self, waiting: Waiting<T>) {
        let place = (waiting.share.virtual_ns(), waiting.arrival);
        self.places.insert(waiting.ticket, place);
        self.waiting.insert(place, waiting);
    }

    /// Takes whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<(Ticket, Arc<Share>, T)> {
        loop {
            let (place, waiting) = self.waiting.pop_first()?;
            // Another guest of its container has had a turn meanwhile: it goes behind, but before that guest. Virtual times only grow while something runs, so
            // this comes to an end: at the latest, everything has been put back once.
            if waiting.share.virtual_ns() > place.0 && !self.waiting.is_empty() {
                self.insert(waiting);
                continue;
            }
            self.places.remove(&waiting.ticket);
            self.floor = self.floor.max(place.0);
            return Some((waiting.ticket, waiting.share, waiting.item));
        }
    }

    /// Takes something out of turn.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let place = self.places.remove(&ticket)?;
        self.waiting.remove(&place).map(|waiting| waiting.item)
    }

    /// Takes everything.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        self.places.clear();
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE_NS: u64 = 5_000_000;

    /// Plays `turns` slices between containers with these requests and so many guests each; gives the slices of each.
    fn play(containers: &[(Option<u32>, usize)], turns: usize) -> Vec<usize> {
        let mut queue = FairQueue::default();
        let mut had = vec![0; containers.len()];
        for (number, &(request, guests)) in containers.iter().enumerate() {
            let share = Arc::new(Share::new(request));
            for _ in 0..guests {
                let ticket = queue.ticket();
                queue.enter(ticket, share.clone(), number);
            }
        }
        for _ in 0..turns {
            let (ticket, share, number) = queue.pop().unwrap();
            had[number] += 1;
            share.charge(SLICE_NS);
            queue.push(ticket, share, number);
        }
        had
    }

    #[test]
    fn turns_follow_the_requests_however_many_guests_a_container_has() {
        for (containers, turns, wanted) in [
            (&[(Some(1000), 1), (Some(1000), 1)][..], 100, &[50, 50][..]),
            (&[(Some(1000), 1), (Some(1000), 50)], 1000, &[500, 500]),
            (&[(Some(300), 1), (Some(100), 1)], 400, &[300, 100]),
            (&[(Some(2000), 1), (Some(500), 3), (Some(500), 1)], 600, &[400, 100, 100]),
            // Without a request: 2 of 1026.
            (&[(Some(1000), 1), (None, 1)], 1026, &[1024, 2]),
            (&[(None, 1), (None, 3)], 100, &[50, 50]),
        ] {
            let had = play(containers, turns);
            let near = had.iter().zip(wanted).all(|(had, wanted)| had.abs_diff(*wanted) <= 1 + turns / 100);
            assert!(near, "{containers:?}: {had:?}, wanted {wanted:?}");
        }
    }

    #[test]
    fn every_guest_of_a_container_has_its_turn() {
        let mut queue = FairQueue::default();
        let share = Arc::new(Share::new(None));
        for guest in 0..5 {
            let ticket = queue.ticket();
            queue.enter(ticket, share.clone(), guest);
        }
        let mut had = [0; 5];
        for _ in 0..50 {
            let (ticket, share, guest) = queue.pop().unwrap();
            had[guest] += 1;
            share.charge(SLICE_NS);
            queue.push(ticket, share, guest);
        }
        assert_eq!(had, [10; 5]);
    }

    #[test]
    fn who_comes_late_has_no_claim_on_the_past() {
        let mut queue = FairQueue::default();
        let (old, new) = (Arc::new(Share::new(Some(1000))), Arc::new(Share::new(Some(1000))));
        let ticket = queue.ticket();
        queue.enter(ticket, old.clone(), "old");
        for _ in 0..1000 {
            let (ticket, share, name) = queue.pop().unwrap();
            share.charge(SLICE_NS);
            queue.push(ticket, share, name);
        }
        let ticket = queue.ticket();
        queue.enter(ticket, new, "new");
        let mut had = Vec::new();
        for _ in 0..10 {
            let (ticket, share, name) = queue.pop().unwrap();
            had.push(name);
            share.charge(SLICE_NS);
            queue.push(ticket, share, name);
        }
        let new = had.iter().filter(|name| **name == "new").count();
        assert!((4..=6).contains(&new), "{had:?}");
    }

    #[test]
    fn nobody_waits_for_what_was_long_ago() {
        let mut queue = FairQueue::default();
        let (old, new) = (Arc::new(Share::new(None)), Arc::new(Share::new(None)));
        // Has had a minute, all alone.
        old.charge(60_000_000_000);
        let ticket = queue.ticket();
        queue.enter(ticket, new, "new");
        let ticket = queue.ticket();
        queue.enter(ticket, old, "old");
        let mut turns = 0;
        while let Some((ticket, share, "new")) = queue.pop() {
            share.charge(SLICE_NS);
            queue.push(ticket, share, "new");
            turns += 1;
        }
        assert!((1..=5).contains(&turns), "{turns}");
    }

    #[test]
    fn what_is_taken_out_of_turn_is_gone() {
        let mut queue = FairQueue::default();
        let share = Arc::new(Share::new(None));
        let (first, second) = (queue.ticket(), queue.ticket());
        queue.enter(first, share.clone(), 1);
        queue.enter(second, share, 2);
        assert_eq!((queue.remove(first), queue.remove(first)), (Some(1), None));
        assert_eq!(queue.pop().map(|(_, _, item)| item), Some(2));
        assert!(queue.pop().is_none());
    }
}
