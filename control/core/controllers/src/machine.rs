//! The machine that drives controllers, scheduler and events.

use crate::cache::Cache;
use crate::controllers::CONTROLLERS;
use crate::events::{Events, Note, Told};
use crate::plan::{Ctx, Planned, target};
use crate::queue::{ControllerId, Job, Queue};
use crate::scheduler::{self, Attempt, Scheduler};
use crate::wish::{In, Out, Write, WriteFault, WriteId};
use dhow_state::Key;
use dhow_types::{Machine, Revision, Time};
use std::collections::{BTreeMap, VecDeque};

/// Writes that wait for their result at one time. Enough to fill a group commit of the store many times over; when it
/// is reached, no further key is run until results come. One key may go past it by what a single plan holds.
const WRITES_IN_FLIGHT_MAX: usize = 1024;
/// Events among them: they must not keep the writes that matter waiting.
const EVENTS_IN_FLIGHT_MAX: usize = 64;
/// Events that wait to be written, a few hundred bytes each. More are dropped: events are for people, and so many nobody
/// reads.
const EVENTS_WAITING_MAX: usize = 16_384;
/// Keys that one wake runs, so that changes are taken in between.
const RUNS_PER_WAKE_MAX: usize = 256;

/// How often the machine is woken at the least once it acts: what it has not noticed for longer than
/// [`AWAY_MS`], it slept through.
const TICK_MS: u64 = 5_000;
/// A longer silence than this means that we were away (the process was stopped, the machine suspended), and that
/// silent nodes may have been as well: each gets its whole grace period again.
const AWAY_MS: u64 = 15_000;

/// What the controllers are told once.
#[derive(Clone, Debug)]
pub struct Config {
    /// The range that nodes' pod ranges are cut from.
    pub cluster_cidr: String,
    /// The prefix length of one node's pod range.
    pub node_mask: u8,
    /// Seeds the scheduler's choice among equal nodes and the names of events: another one at each start.
    pub seed: u64,
    /// The cluster's CA in PEM: published as the ConfigMap `kube-root-ca.crt` of each namespace.
    pub ca_pem: Option<String>,
    /// How long after its last sign of life a node counts as lost.
    pub node_grace_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { cluster_cidr: "10.64.0.0/10".into(), node_mask: 18, seed: 1, ca_pem: None, node_grace_s: 40 }
    }
}

/// Who asked for a write.
#[derive(Debug)]
enum By {
    Job { job: Job, key: Option<Key>, done: Option<Note>, refused: Option<Note> },
    Scheduler(Attempt),
    Events,
}

/// All controllers and the scheduler.
///
/// [`handle`](Machine::handle) only takes things in; what follows from them is decided in [`wake`](Machine::wake), so
/// a shell that hands over all changes it has before it wakes the machine gets one decision for a burst of changes.
pub struct Controllers {
    config: Config,
    synced: bool,
    cache: Cache,
    queue: Queue,
    scheduler: Scheduler,
    events: Events,
    events_waiting: VecDeque<Told>,
    events_in_flight: usize,
    in_flight: BTreeMap<WriteId, By>,
    last_id: u64,
    now: Time,
}

impl Controllers {
    /// Controllers that know nothing yet; they act after [`In::Synced`].
    pub fn new(config: Config) -> Self {
        Self {
            scheduler: Scheduler::new(config.seed),
            events: Events::new(config.seed),
            config,
            synced: false,
            cache: Cache::default(),
            queue: Queue::default(),
            events_waiting: VecDeque::new(),
            events_in_flight: 0,
            in_flight: BTreeMap::new(),
            last_id: 0,
            now: Time::default(),
        }
    }

    /// How many entries each part remembers, by its name: what must not grow with what is gone.
    pub fn remembered(&self) -> BTreeMap<&'static str, usize> {
        let own = [
            ("writes in flight", self.in_flight.len()),
            ("events that wait", self.events_waiting.len()),
            ("events remembered", self.events.len()),
        ];
        let parts = self.cache.sizes().into_iter().chain(self.queue.sizes()).chain(self.scheduler.sizes());
        parts.chain(own).collect()
    }

    /// Takes note of the time, which never goes back.
    fn advance(&mut self, now: Time) -> Time {
        if self.synced && now.ms_since(self.now) > AWAY_MS {
            self.cache.hear_all(now);
        }
        self.now = self.now.max(now);
        self.now
    }

    fn synced(&mut self, now: Time) {
        self.synced = true;
        for seen in self.cache.all_as_new() {
            self.spread(now, &seen);
        }
    }

    /// Wakes whoever a change may matter to.
    fn spread(&mut self, now: Time, seen: &crate::cache::Seen) {
        for (id, controller) in CONTROLLERS.iter().enumerate() {
            let queue = &mut self.queue;
            (controller.wakes)(&self.cache, seen, &mut |key| queue.add((ControllerId(id), key), now));
        }
        self.scheduler.observe(now, seen);
    }

    fn written(&mut self, now: Time, id: WriteId, result: Result<Option<Revision>, WriteFault>) {
        match self.in_flight.remove(&id) {
            None => {}
            Some(By::Events) => self.events_in_flight -= 1,
            Some(By::Scheduler(attempt)) => {
                let note = self.scheduler.written(now, &attempt, result);
                self.note(now, scheduler::NAME, note);
            }
            Some(By::Job { job, key, done, refused }) => {
                let name = CONTROLLERS[job.0.0].name;
                let result = match result {
                    Ok(revision) => {
                        self.note(now, name, done);
                        Ok(key.zip(revision))
                    }
                    Err(fault) => {
                        let told = !matches!(fault, WriteFault::Conflict | WriteFault::AlreadyExists);
                        let refused = refused.filter(|_| told).map(|mut note| {
                            note.message = format!("{}{fault}", note.message);
                            note
                        });
                        self.note(now, name, refused);
                        Err(fault)
                    }
                };
                self.queue.written(&job, result, &self.cache, now);
            }
        }
    }

    fn note(&mut self, now: Time, by: &'static str, note: Option<Note>) {
        let Some(note) = note else { return };
        let told = self.events.record(now, by, &note);
        let uid = &note.about.index.uid;
        if self.cache.by_uid(uid).is_none() {
            // The result of a write came after the object's end.
            self.events.forget(uid);
        }
        if let Some(told) = told
            && self.events_waiting.len() < EVENTS_WAITING_MAX
        {
            self.events_waiting.push_back(told);
        }
    }

    fn send(&mut self, by: &'static str, write: Write, answer: By, out: &mut Vec<Out>) {
        self.last_id += 1;
        let id = WriteId(self.last_id);
        self.in_flight.insert(id, answer);
        out.push(Out::Write { id, by, write });
    }

    fn run_jobs(&mut self, now: Time, out: &mut Vec<Out>) {
        for _ in 0..RUNS_PER_WAKE_MAX {
            if self.in_flight.len() >= WRITES_IN_FLIGHT_MAX {
                return;
            }
            let Some((job, history)) = self.queue.pop(now) else { return };
            let controller = &CONTROLLERS[job.0.0];
            let ctx = Ctx { cache: &self.cache, config: &self.config, now, history };
            let plan = (controller.reconcile)(&ctx, &job.1);
            self.queue.ran(&job, u32::try_from(plan.writes.len()).unwrap_or(u32::MAX), plan.cost_us, now);
            if let Some(ms) = plan.again_in_ms {
                self.queue.add(job.clone(), now + ms);
            }
            for Planned { write, done, refused } in plan.writes {
                let answer = By::Job { job: job.clone(), key: target(&write), done, refused };
                self.send(controller.name, write, answer, out);
            }
            for note in plan.notes {
                self.note(now, controller.name, Some(note));
            }
        }
    }

    fn run_scheduler(&mut self, now: Time, out: &mut Vec<Out>) {
        let room = WRITES_IN_FLIGHT_MAX.saturating_sub(self.in_flight.len());
        let decided = self.scheduler.schedule(now, &self.cache, room);
        for (attempt, write) in decided.writes {
            self.send(scheduler::NAME, write, By::Scheduler(attempt), out);
        }
        for note in decided.notes {
            self.note(now, scheduler::NAME, Some(note));
        }
    }

    fn send_events(&mut self, out: &mut Vec<Out>) {
        while self.events_in_flight < EVENTS_IN_FLIGHT_MAX
            && let Some(told) = self.events_waiting.pop_front()
        {
            self.events_in_flight += 1;
            self.send(told.source(), told.into_write(), By::Events, out);
        }
    }

    fn may_send_events(&self) -> bool {
        !self.events_waiting.is_empty() && self.events_in_flight < EVENTS_IN_FLIGHT_MAX
    }
}

impl Machine for Controllers {
    type In = In;
    type Out = Out;

    fn handle(&mut self, now: Time, input: In, _out: &mut Vec<Out>) {
        let now = self.advance(now);
        match input {
            In::Changed(change) => {
                let seen = self.cache.apply(now, &change);
                if let Some(uid) = seen.ended() {
                    self.events.forget(uid);
                }
                if self.synced {
                    self.spread(now, &seen);
                }
            }
            In::Synced => self.synced(now),
            In::Written { id, result } => self.written(now, id, result),
        }
    }

    fn next_wake(&self) -> Option<Time> {
        if !self.synced {
            return None;
        }
        if self.may_send_events() || self.queue.has_settled(&self.cache) {
            return Some(self.now);
        }
        let tick = self.now + TICK_MS;
        if self.in_flight.len() >= WRITES_IN_FLIGHT_MAX {
            return Some(tick);
        }
        [self.queue.next(), self.scheduler.next(), Some(tick)].into_iter().flatten().min()
    }

    fn wake(&mut self, now: Time, out: &mut Vec<Out>) {
        let now = self.advance(now);
        if !self.synced {
            return;
        }
        self.queue.settle(&self.cache, now);
        self.queue.forget(now);
        self.run_jobs(now, out);
        self.run_scheduler(now, out);
        self.send_events(out);
    }
}
