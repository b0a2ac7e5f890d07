//! One run: everything that there is, what happens next, and what must hold.

use crate::Bug;
use crate::clients::{Asked, Client};
use crate::disk::{Disk, Image};
use crate::network::Network;
use crate::node::{Node, Running};
use crate::operator::Operator;
use crate::trace::Trace;
use crate::truth::Truth;
use crate::watchers::Watcher;
use crate::weather::Weather;
use bytes::Bytes;
use dhow_consensus::{In, Members, Position, ProposalId, Role};
use dhow_types::{Rng, Time};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// How long things go wrong.
const STORM_MS: i64 = 10_000;

/// How long the members may take to recover from it: some elections that come to nothing, and a few images.
const CALM_MS: i64 = 40_000;

const WATCHERS: usize = 2;

/// What happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    Deliver { from: u64, to: u64, bytes: Bytes },
    Unreachable { node: u64, life: u64, member: u64 },
    Capture { from: u64, life: u64, to: u64, message: Bytes },
    Image { from: u64, life: u64, to: u64, message: Bytes, position: Position, image: Arc<Image> },
    Propose { node: u64, life: u64, id: ProposalId, data: Vec<u8> },
    Wake { node: u64, life: u64 },
    Synced { node: u64, life: u64 },
    Apply { node: u64, life: u64 },
    Flush { node: u64, life: u64 },
    Flushed { node: u64, life: u64, image: Arc<Image> },
    Crash { node: u64, life: u64 },
    Restart { node: u64 },
    Client(usize),
    GiveUp { operation: usize },
    Watch(usize),
    Operator,
    Weather,
}

/// What must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In which step.
    pub step: u64,
    /// At which time, in milliseconds.
    pub at_ms: i64,
    /// What is wrong.
    pub what: String,
    /// What happened before, if it was kept.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} at {} ms: {}", self.step, self.at_ms, self.what)
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A hash of each step, in words: equal for equal runs.
    pub trace_hash: u64,
    /// The words themselves, if they were kept.
    pub trace: Vec<String>,
    /// How many things happened.
    pub steps: u64,
    /// Writes that clients were told to be done.
    pub acknowledged: usize,
    /// Writes that were done to no effect.
    pub rejected: usize,
    /// Writes that were certainly not done.
    pub refused: usize,
    /// Operations whose end clients do not know.
    pub unknown: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// Changes that watchers got.
    pub watched: usize,
    /// Watchers that had to begin anew.
    pub relists: usize,
    /// Deaths of processes.
    pub crashes: usize,
    /// Disks that were lost.
    pub wipes: usize,
    /// Images that were installed.
    pub images: usize,
    /// Changes of the members.
    pub changes: usize,
    /// Terms that had a leader.
    pub terms: usize,
    /// Keys whose history was too much to judge.
    pub undecided: usize,
}

impl Report {
    /// The same over several runs. Words are dropped.
    pub fn add(&mut self, other: &Report) {
        self.steps += other.steps;
        self.acknowledged += other.acknowledged;
        self.rejected += other.rejected;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.reads += other.reads;
        self.watched += other.watched;
        self.relists += other.relists;
        self.crashes += other.crashes;
        self.wipes += other.wipes;
        self.images += other.images;
        self.changes += other.changes;
        self.terms += other.terms;
        self.undecided += other.undecided;
    }
}

/// The whole of one run.
pub struct World {
    pub(crate) rng: Rng,
    pub(crate) bug: Bug,
    pub(crate) weather: Weather,
    pub(crate) now: Time,
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) net: Network,
    pub(crate) clients: Vec<Client>,
    pub(crate) asked: Vec<Asked>,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) operator: Operator,
    pub(crate) truth: Truth,
    pub(crate) report: Report,
    trace: Trace,
    queue: BTreeMap<(Time, u64), Event>,
    last_event: u64,
    last_id: u64,
    last_value: u64,
    last_moment: u64,
    clients_end: bool,
    violation: Option<String>,
}

impl World {
    /// A run that follows from `seed`. Its words are kept if someone wants to read them.
    pub fn new(seed: u64, bug: Bug, keep_trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let weather = Weather::draw(&mut rng);
        let clients = 2 + rng.below(4) as usize;
        let mut world = Self {
            rng,
            bug,
            now: Time::from_ms(0),
            nodes: BTreeMap::new(),
            net: Network::default(),
            clients: (0..clients).map(|_| Client::default()).collect(),
            asked: Vec::new(),
            watchers: (0..WATCHERS).map(|_| Watcher::default()).collect(),
            operator: Operator::new(weather.founders),
            truth: Truth::default(),
            report: Report::default(),
            trace: Trace::new(keep_trace),
            queue: BTreeMap::new(),
            last_event: 0,
            last_id: 0,
            last_value: 0,
            last_moment: 0,
            clients_end: false,
            violation: None,
            weather,
        };
        world.note(format_args!("{:?}", world.weather.clone()));
        world.found();
        world
    }

    fn found(&mut self) {
        let voters: Vec<u64> = (1..=self.weather.founders).collect();
        // A log may begin with its first entry, or behind what everyone had already.
        let index = self.rng.below(2);
        let position = Position { index, term: index };
        for id in &voters {
            let members = Members { voters: voters.clone(), ..Members::default() };
            let witness = self.weather.witness && *id == self.weather.founders;
            self.add_node(*id, Disk::founded(position, members), witness);
        }
        (0..self.clients.len()).for_each(|client| self.after(client as u64, Event::Client(client)));
        (0..WATCHERS).for_each(|n| self.after(n as u64, Event::Watch(n)));
        self.after(1_000, Event::Operator);
        self.after(1_000, Event::Weather);
    }

    /// Runs a seed; also an end of the process that a part asks for is a violation.
    pub fn try_seed(seed: u64, bug: Bug, keep_trace: bool) -> Result<Report, Violation> {
        let run = std::panic::catch_unwind(|| World::new(seed, bug, keep_trace).run());
        run.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let what = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let what = format!("a part panics: {}", what.unwrap_or_default());
            Err(Violation { step: 0, at_ms: 0, what, trace: Vec::new() })
        })
    }

    /// Runs: first everything goes wrong, then nothing, and the members must come to rest.
    pub fn run(mut self) -> Result<Report, Violation> {
        self.run_until(Time::from_ms(STORM_MS), |_| false)?;
        self.clear_up();
        let calm = self.now;
        self.run_until(calm + 500, |_| false)?;
        self.clients_end = true;
        let end = Time::from_ms(STORM_MS + CALM_MS);
        self.run_until(end, Self::is_at_rest)?;
        self.check_rest()?;
        self.ask_everyone();
        self.run_until(end + 5_000, Self::is_at_rest)?;
        self.check_rest()?;
        self.check_end();
        self.verdict()?;
        self.report.trace_hash = self.trace.hash();
        self.report.trace = self.trace.lines().to_vec();
        self.report.terms = self.truth.terms();
        Ok(self.report)
    }

    fn run_until(&mut self, end: Time, done: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        let mut steps = 0_u64;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > end {
                self.at(at, event);
                self.now = end;
                return Ok(());
            }
            self.now = at;
            self.report.steps += 1;
            self.handle(event);
            self.verdict()?;
            steps += 1;
            if steps.is_multiple_of(16) && done(self) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        let Some(event) = self.put_off(event) else { return };
        match event {
            Event::Deliver { from, to, bytes } => self.deliver(from, to, bytes),
            Event::Unreachable { node, member, .. } => self.give(node, In::Unreachable(member)),
            Event::Capture { from, to, message, .. } => self.capture(from, to, message),
            Event::Image { from, life, to, message, position, image } => {
                self.deliver_image((from, life), to, message, position, image);
            }
            Event::Propose { node, id, data, .. } => self.give(node, In::Propose(vec![(id, data.into())])),
            Event::Wake { node, .. } => self.wake(node),
            Event::Synced { node, .. } => self.handle_synced(node),
            Event::Apply { node, .. } => self.handle_apply(node),
            Event::Flush { node, .. } => self.handle_flush(node),
            Event::Flushed { node, image, .. } => self.node(node).disk.flush(image),
            Event::Crash { node, .. } => {
                let rest = self.rng.below(30);
                self.crash(node, rest);
            }
            Event::Restart { node } => self.start(node),
            Event::Client(client) => self.handle_client(client),
            Event::GiveUp { operation } => self.answer_nothing(operation),
            Event::Watch(n) => self.handle_watch(n),
            Event::Operator => self.handle_operator(),
            Event::Weather => self.handle_weather(),
        }
    }

    /// What is meant for a process that is gone comes to nothing; what is meant for one that stands still waits.
    fn put_off(&mut self, event: Event) -> Option<Event> {
        let (id, life) = match &event {
            Event::Deliver { to, .. } | Event::Image { to, .. } => (*to, None),
            Event::Capture { from, life, .. } => (*from, Some(*life)),
            Event::Unreachable { node, life, .. }
            | Event::Propose { node, life, .. }
            | Event::Wake { node, life }
            | Event::Synced { node, life }
            | Event::Apply { node, life }
            | Event::Flush { node, life }
            | Event::Flushed { node, life, .. }
            | Event::Crash { node, life } => (*node, Some(*life)),
            _ => return Some(event),
        };
        let node = self.nodes.get(&id)?;
        if life.is_some_and(|life| life != node.life || node.running.is_none()) {
            return None;
        }
        if node.paused_until > self.now && node.running.is_some() {
            let at = node.paused_until;
            if let Event::Wake { .. } = event {
                self.running(id).planned(at);
            }
            self.at(at, event);
            return None;
        }
        Some(event)
    }

    /// All faults are over.
    fn clear_up(&mut self) {
        self.note(format_args!("calm"));
        self.weather.clear();
        self.net.cut.clear();
        let (now, ids) = (self.now, self.nodes.keys().copied().collect::<Vec<_>>());
        for id in ids {
            let node = self.node(id);
            node.slow_until = now;
            node.paused_until = node.paused_until.min(now);
            if node.running.is_some() {
                // A driver that forgets to sync need not stop for ever.
                self.plan_sync(id);
            }
            self.start(id);
        }
        let faults = |event: &Event| matches!(event, Event::Weather | Event::Operator | Event::Crash { .. });
        self.queue.retain(|_, event| !faults(event));
    }

    /// Those that count in the end.
    fn members_at_rest(&self) -> Option<Vec<u64>> {
        let leader = self.leader()?;
        let members = self.nodes[&leader].running.as_ref()?.consensus.members();
        (!members.is_joint()).then(|| members.ids().into_iter().filter(|id| !self.nodes[id].gone).collect())
    }

    fn is_at_rest(&self) -> bool {
        let (Some(members), Some(leader)) = (self.members_at_rest(), self.leader()) else { return false };
        // Who voted once and asks the one who leads now is told that it is no member any more.
        let knows = |(id, node): (&u64, &Node)| match &node.running {
            Some(running) if !members.contains(id) && running.consensus.members().votes(leader) => {
                running.consensus.role() == Role::Removed || !running.consensus.members().votes(*id)
            }
            _ => true,
        };
        if !self.nodes.iter().all(knows) {
            return false;
        }
        let all = self.nodes.values().filter_map(|node| node.running.as_ref());
        let mut applied: Vec<_> = Vec::new();
        for id in members {
            let Some(running) = &self.nodes[&id].running else { return false };
            let last = running.consensus.last();
            if last != running.applied || running.consensus.leader() != Some(leader) {
                return false;
            }
            applied.push(running.applied);
        }
        applied.windows(2).all(|pair| pair[0] == pair[1])
            && all.into_iter().all(Running::is_idle)
            && self.clients_are_idle()
    }

    fn check_rest(&mut self) -> Result<(), Violation> {
        if !self.is_at_rest() {
            let words: Vec<String> = self.nodes.iter().map(|(id, node)| format!("{id}: {}", describe(node))).collect();
            self.fail(format!("the members do not come to rest: {}", words.join("; ")));
        }
        self.verdict()
    }

    fn ask_everyone(&mut self) {
        for id in self.members_at_rest().unwrap_or_default() {
            if !self.nodes[&id].witness {
                self.ask_all(id);
            }
        }
    }

    fn check_end(&mut self) {
        let members = self.members_at_rest().unwrap_or_default();
        let members: Vec<u64> = members.into_iter().filter(|id| !self.nodes[id].witness).collect();
        let hashes: Vec<u64> = members.iter().map(|id| self.running(*id).state.hash()).collect();
        if hashes.windows(2).any(|pair| pair[0] != pair[1]) {
            self.fail(format!("the states of {members:?} differ"));
        }
        for (n, id) in (0..WATCHERS).zip(members.iter().cycle()) {
            self.watch(n, *id, false);
            self.check_watcher(n, *id);
        }
        let known = self.truth.check_end();
        self.check(known);
        self.judge();
    }

    // ---- what everybody needs

    pub(crate) fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn check(&mut self, known: Result<(), String>) {
        if let Err(what) = known {
            self.fail(what);
        }
    }

    fn verdict(&mut self) -> Result<(), Violation> {
        let Some(what) = self.violation.take() else { return Ok(()) };
        let (step, at_ms, trace) = (self.report.steps, self.now.as_ms(), self.trace.lines().to_vec());
        Err(Violation { step, at_ms, what, trace })
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.last_event += 1;
        self.queue.insert((at, self.last_event), event);
    }

    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now + ms, event);
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("only members that were added are named")
    }

    pub(crate) fn running(&mut self, id: u64) -> &mut Running {
        self.node(id).running.as_mut().expect("only called while the member runs")
    }

    pub(crate) fn is_running(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.running.is_some())
    }

    pub(crate) fn ends_clients(&self) -> bool {
        self.clients_end
    }

    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn fresh_value(&mut self) -> u64 {
        self.last_value += 1;
        self.last_value
    }

    /// Later than all before.
    pub(crate) fn moment(&mut self) -> u64 {
        self.last_moment += 1;
        self.last_moment
    }
}

fn describe(node: &Node) -> String {
    let Some(running) = &node.running else { return if node.gone { "lost".into() } else { "down".into() } };
    let (consensus, applied) = (&running.consensus, running.applied.index);
    let (role, term, last) = (consensus.role(), consensus.term(), consensus.last().index);
    let (writes, reads) = (running.waiting.len(), running.reading.len());
    let voters = &consensus.members().voters;
    format!("{role:?} in term {term} at {applied} of {last}, {writes} writes and {reads} reads wait, voters {voters:?}")
}
