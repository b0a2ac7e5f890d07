//! The scheduler: which node a pod goes to.
//!
//! Works on its own account of the nodes, kept up to date by each change, so that placing a pod costs nothing that
//! grows with the pods that run. A decision is assumed at once and the next one counts with it; the binding follows.
//! `filter` says where a pod can go, one file a rule; `score` says where it goes best, one file a rule.

mod account;
mod filter;
mod needs;
mod score;
mod volumes;

pub(crate) use needs::{Term, Toleration, tolerations};

use crate::cache::{Cache, Seen, Side};
use crate::controllers::set_condition;
use crate::events::Note;
use crate::views::{Pod, resource};
use crate::wish::{Write, WriteFault};
use account::Account;
use dhow_state::Key;
use dhow_types::{NodeName, Revision, Rng, Time, Uid};
use needs::Needs;
use serde_json::json;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use volumes::{Binding, Choice, Progress};

/// As Kubernetes names it.
pub(crate) const NAME: &str = "default-scheduler";
/// Pods that one round places. Their bindings fill a group commit; in between, changes are taken in.
const BATCH_MAX: usize = 512;
/// The wait after a failed attempt, doubled up to the longest; a change that may help ends it no earlier.
const BACKOFF_MS: (u64, u64) = (1_000, 10_000);
/// A pod that fits nowhere is tried again after this time even if nothing seems to have changed.
const RETRY_MS: u64 = 300_000;

/// One try to place a pod, or to say why it cannot be placed.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pod: Arc<Pod>,
    act: Act,
}

#[derive(Clone, Debug)]
enum Act {
    /// Bind it to this node.
    Bind(String),
    /// Bind one of its claims, by a change of this object.
    BindVolume(Key),
    Tell,
}

/// What a round decided.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    pub(crate) writes: Vec<(Attempt, Write)>,
    pub(crate) notes: Vec<Note>,
}

/// Higher priority first, then who came first.
type Rank = (Reverse<i64>, Time, Key);

/// A pod that waits for a place.
#[derive(Debug)]
struct Waiting {
    rank: Rank,
    attempts: u32,
    tried: Time,
    /// When it is tried again; `None` while it stands in the line.
    due: Option<Time>,
}

/// The scheduler.
#[derive(Debug)]
pub(crate) struct Scheduler {
    account: Account,
    waiting: BTreeMap<Key, Waiting>,
    line: BTreeSet<Rank>,
    due: BTreeSet<(Time, Key)>,
    /// Pods whose binding is on its way, and where to.
    assumed: BTreeMap<Key, (String, Arc<Pod>)>,
    /// Those of them whose claims have to be bound before.
    binding: Binding,
    /// A claim or a volume changed since they were looked at.
    volumes_changed: bool,
    /// Something changed that may help pods that fitted nowhere.
    eased: bool,
    rng: Rng,
    now: Time,
}

impl Scheduler {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            account: Account::default(),
            waiting: BTreeMap::new(),
            line: BTreeSet::new(),
            due: BTreeSet::new(),
            assumed: BTreeMap::new(),
            binding: Binding::default(),
            volumes_changed: false,
            eased: false,
            rng: Rng::new(seed),
            now: Time::default(),
        }
    }

    /// Takes a change into the account.
    pub(crate) fn observe(&mut self, now: Time, seen: &Seen) {
        self.now = now;
        if seen.is(resource::NODES) {
            let node = |side: &Option<Side>| side.as_ref().and_then(Side::node_view);
            self.eased |= self.account.set_node(&seen.key.name, node(&seen.new));
            return;
        }
        if [resource::CLAIMS, resource::VOLUMES, resource::CLASSES].iter().any(|resource| seen.is(resource)) {
            self.observe_storage(seen);
            return;
        }
        if !seen.is(resource::PODS) {
            return;
        }
        let (old, new) = (seen.old.as_ref().and_then(Side::pod_view), seen.new.as_ref().and_then(Side::pod_view));
        if let Some(old) = old.filter(|pod| holds_place(pod))
            && let Some(node) = &old.node
        {
            self.account.remove(node.as_str(), &old);
            self.eased |= !new.as_ref().is_some_and(|pod| holds_place(pod));
        }
        if let Some(pod) = new.as_ref().filter(|pod| holds_place(pod))
            && let Some(node) = &pod.node
        {
            self.account.add(node.as_str(), pod);
        }
        self.queue(now, &seen.key, new);
    }

    fn observe_storage(&mut self, seen: &Seen) {
        (self.eased, self.volumes_changed) = (true, true);
        for (side, sign) in [(&seen.old, -1), (&seen.new, 1)] {
            let volume = side.as_ref().and_then(Side::volume);
            if let Some((volume, node)) = volume.and_then(|volume| Some((volume, volume.local_node.as_deref()?))) {
                self.account.add_volume(node, sign * volume.offered.bytes);
            }
        }
    }

    fn queue(&mut self, now: Time, key: &Key, pod: Option<Arc<Pod>>) {
        let placeable = pod.filter(|pod| pod.node.is_none() && pod.active() && pod.ours_to_schedule);
        let Some(pod) = placeable else {
            self.forget_assumed(key);
            self.leave(key);
            return;
        };
        if self.assumed.get(key).is_some_and(|(_, assumed)| assumed.uid() == pod.uid()) {
            return;
        }
        self.forget_assumed(key);
        let rank = (Reverse(pod.priority), pod.created, key.clone());
        match self.waiting.get(key) {
            // Our own note about it, or anything else that does not change its place in the line.
            Some(waiting) if waiting.rank == rank => {}
            _ => {
                self.leave(key);
                self.line.insert(rank.clone());
                self.waiting.insert(key.clone(), Waiting { rank, attempts: 0, tried: now, due: None });
            }
        }
    }

    fn forget_assumed(&mut self, key: &Key) {
        self.binding.end(key);
        if let Some((node, pod)) = self.assumed.remove(key) {
            self.account.remove(&node, &pod);
            self.eased = true;
        }
    }

    fn leave(&mut self, key: &Key) {
        if let Some(waiting) = self.waiting.remove(key) {
            self.line.remove(&waiting.rank);
            if let Some(due) = waiting.due {
                self.due.remove(&(due, key.clone()));
            }
        }
    }

    /// How many entries each map has.
    pub(crate) fn sizes(&self) -> [(&'static str, usize); 6] {
        [
            ("scheduler's nodes", self.account.len()),
            ("waiting pods", self.waiting.len()),
            ("pods in line", self.line.len()),
            ("pods put off", self.due.len()),
            ("assumed pods", self.assumed.len()),
            ("pods whose claims are bound", self.binding.len()),
        ]
    }

    /// When there is something to do.
    pub(crate) fn next(&self) -> Option<Time> {
        let to_look = self.volumes_changed && self.binding.len() > 0;
        if !self.line.is_empty() || (self.eased && !self.due.is_empty()) || to_look {
            return Some(self.now);
        }
        self.due.first().map(|(at, _)| *at).into_iter().chain(self.binding.next()).min()
    }

    /// Places pods of the line, as many as may be written.
    pub(crate) fn schedule(&mut self, now: Time, cache: &Cache, room: usize) -> Decided {
        self.now = now;
        self.return_to_line(now);
        let mut decided = Decided::default();
        self.bind_ready(now, cache, &mut decided);
        // Pods of one template that fitted nowhere a moment ago fit nowhere now: the nodes only got fuller since.
        let mut hopeless: BTreeMap<Needs, String> = BTreeMap::new();
        for _ in 0..room.min(BATCH_MAX) {
            let Some((.., key)) = self.line.pop_first() else { break };
            let Some(pod) = cache.pod(&key).cloned() else {
                self.leave(&key);
                continue;
            };
            let mut needs = Needs::of(&pod);
            let volumes = volumes::wanted(cache, &self.binding, &pod, &|claim| self.is_used(cache, claim, &pod));
            let placed = match volumes {
                Ok(volumes) => {
                    needs.volumes = volumes;
                    let known = hopeless.get(&needs).cloned();
                    known.map_or_else(|| self.place(cache, &needs, &pod), Err)
                }
                Err(why) => Err(format!("0/{} nodes are available: {why}.", self.account.nodes().count())),
            };
            match placed {
                Ok(place) => self.assume(cache, &pod, place, &mut decided),
                Err(why) => {
                    let attempts = self.put_off(now, &key, RETRY_MS);
                    tell(now, &pod, &why, attempts, &mut decided);
                    hopeless.insert(needs, why);
                }
            }
        }
        decided
    }

    fn return_to_line(&mut self, now: Time) {
        if std::mem::take(&mut self.eased) {
            for (at, key) in std::mem::take(&mut self.due) {
                let Some(waiting) = self.waiting.get_mut(&key) else { continue };
                let earliest = at.min(waiting.tried + backoff_ms(waiting.attempts));
                waiting.due = Some(earliest);
                self.due.insert((earliest, key));
            }
        }
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.due.pop_first()
                && let Some(waiting) = self.waiting.get_mut(&key)
            {
                waiting.due = None;
                self.line.insert(waiting.rank.clone());
            }
        }
    }

    /// Binds the pods whose claims have come to be bound, and takes back those whose never will.
    fn bind_ready(&mut self, now: Time, cache: &Cache, decided: &mut Decided) {
        let overdue = self.binding.next().is_some_and(|at| at <= now);
        if !std::mem::take(&mut self.volumes_changed) && !overdue {
            return;
        }
        for (pod, node, progress) in self.binding.look(cache, now) {
            match progress {
                Progress::Waits => {}
                Progress::Done => {
                    self.binding.end(&pod.object.key);
                    decided.writes.push(binding(&pod, node));
                }
                Progress::Failed(why) => {
                    self.take_back(now, &pod);
                    decided.notes.push(Note::warning(&pod.object, "FailedScheduling", why));
                }
            }
        }
    }

    /// Whether another pod uses a claim, or is about to.
    fn is_used(&self, cache: &Cache, claim: &Key, by_others_than: &Pod) -> bool {
        cache.pods_with(claim).any(|pod| {
            pod.uid() != by_others_than.uid()
                && !pod.phase.is_terminal()
                && (pod.node.is_some() || self.assumed.contains_key(&pod.object.key))
        })
    }

    /// The best node, or why there is none.
    fn place(&mut self, cache: &Cache, needs: &Needs, pod: &Pod) -> Result<Place, String> {
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut fitting = Vec::new();
        let mut nodes = 0;
        for mut node in self.account.nodes() {
            nodes += 1;
            node.volume_bytes = node.volume_bytes.saturating_add(self.binding.promised(cache, node.name));
            let why = filter::reasons(needs, &node);
            if why.is_empty() {
                fitting.push(node);
            }
            for reason in why {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        if nodes == 0 {
            return Err("no nodes available to schedule pods".into());
        }
        if fitting.is_empty() {
            let mut counted: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            counted.sort();
            return Err(format!("0/{nodes} nodes are available: {}.", counted.join(", ")));
        }
        let scores = score::scores(needs, pod, &fitting);
        let best = scores.iter().copied().max().unwrap_or(0);
        let equals: Vec<usize> = (0..fitting.len()).filter(|at| scores[*at] == best).collect();
        let chosen = equals[usize::try_from(self.rng.below(equals.len() as u64)).unwrap_or(0)];
        let node = &fitting[chosen];
        let volumes = volumes::choose(&needs.volumes, node.node).unwrap_or_default();
        Ok(Place { node: node.name.to_owned(), volumes })
    }

    fn assume(&mut self, cache: &Cache, pod: &Arc<Pod>, place: Place, decided: &mut Decided) {
        let (key, Place { node, volumes }) = (&pod.object.key, place);
        self.leave(key);
        self.account.add(&node, pod);
        self.assumed.insert(key.clone(), (node.clone(), Arc::clone(pod)));
        if volumes.is_empty() {
            decided.writes.push(binding(pod, node));
            return;
        }
        for write in self.binding.begin(cache, self.now, pod, &node, volumes) {
            let Some(target) = crate::plan::target(&write) else { continue };
            decided.writes.push((Attempt { pod: Arc::clone(pod), act: Act::BindVolume(target) }, write));
        }
        self.volumes_changed = true;
    }

    /// A pod's node was a wrong choice: it is tried again after a while.
    fn take_back(&mut self, now: Time, pod: &Arc<Pod>) {
        let key = &pod.object.key;
        self.forget_assumed(key);
        self.queue(now, key, Some(Arc::clone(pod)));
        if let Some(rank) = self.waiting.get(key).map(|waiting| waiting.rank.clone()) {
            self.line.remove(&rank);
            self.put_off(now, key, BACKOFF_MS.0);
        }
    }

    /// Lets a pod wait; how often it has been tried.
    fn put_off(&mut self, now: Time, key: &Key, ms: u64) -> u32 {
        let Some(waiting) = self.waiting.get_mut(key) else { return 0 };
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.tried = now;
        let at = now + ms;
        waiting.due = Some(at);
        let attempts = waiting.attempts;
        self.due.insert((at, key.clone()));
        attempts
    }

    /// Takes the result of a binding; what there is to say about it.
    pub(crate) fn written(
        &mut self,
        now: Time,
        attempt: &Attempt,
        result: Result<Option<Revision>, WriteFault>,
    ) -> Option<Note> {
        let (pod, key) = (&attempt.pod, &attempt.pod.object.key);
        let node = match &attempt.act {
            Act::Bind(node) => node,
            Act::BindVolume(target) => return self.written_for_volume(now, pod, target, result),
            Act::Tell => return None,
        };
        let Err(fault) = result else {
            let message = format!("Successfully assigned {}/{} to {node}", key.namespace, key.name);
            return Some(Note::normal(&pod.object, "Scheduled", message));
        };
        // If it is not assumed any more, the pod is gone, or somebody else bound it.
        if self.assumed.get(key).is_some_and(|(_, assumed)| assumed.uid() == pod.uid()) {
            self.take_back(now, pod);
        }
        let quiet = matches!(fault, WriteFault::Conflict | WriteFault::NotFound);
        (!quiet).then(|| Note::warning(&pod.object, "FailedScheduling", format!("binding rejected: {fault}")))
    }

    fn written_for_volume(
        &mut self,
        now: Time,
        pod: &Arc<Pod>,
        target: &Key,
        result: Result<Option<Revision>, WriteFault>,
    ) -> Option<Note> {
        self.volumes_changed = true;
        match result {
            Ok(revision) => self.binding.written(pod, target.clone(), revision),
            Err(fault) if self.binding.has(pod) => {
                self.take_back(now, pod);
                let quiet = matches!(fault, WriteFault::Conflict | WriteFault::NotFound);
                return (!quiet)
                    .then(|| Note::warning(&pod.object, "FailedScheduling", format!("binding volumes: {fault}")));
            }
            Err(_) => {}
        }
        None
    }
}

/// Where a pod goes, and what is to be done for its claims there.
struct Place {
    node: String,
    volumes: Vec<Choice>,
}

/// The write that binds a pod to a node.
fn binding(pod: &Arc<Pod>, node: String) -> (Attempt, Write) {
    let key = &pod.object.key;
    let write = Write::Bind {
        namespace: Arc::clone(&key.namespace),
        pod: Arc::clone(&key.name),
        uid: Uid::new(pod.uid()),
        node: NodeName::new(node.as_str()),
    };
    (Attempt { pod: Arc::clone(pod), act: Act::Bind(node) }, write)
}

/// A pod that takes room on its node.
fn holds_place(pod: &Pod) -> bool {
    pod.node.is_some() && !pod.phase.is_terminal()
}

fn backoff_ms(attempts: u32) -> u64 {
    BACKOFF_MS.0.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(BACKOFF_MS.1)
}

/// Says at the pod, and in an event, why it has no place. At a first attempt the pod may say so already: another
/// scheduler told it, before us.
fn tell(now: Time, pod: &Arc<Pod>, why: &str, attempts: u32, decided: &mut Decided) {
    let said = pod.unschedulable.as_deref() == Some(why);
    if !said || attempts > 1 {
        decided.notes.push(Note::warning(&pod.object, "FailedScheduling", why));
    }
    if said {
        return;
    }
    let mut tree = pod.object.tree();
    let condition = json!({"type": "PodScheduled", "status": "False", "lastProbeTime": null,
        "lastTransitionTime": now.to_rfc3339(), "reason": "Unschedulable", "message": why});
    set_condition(&mut tree, condition);
    decided.writes.push((Attempt { pod: Arc::clone(pod), act: Act::Tell }, Write::UpdateStatus { tree }));
}
