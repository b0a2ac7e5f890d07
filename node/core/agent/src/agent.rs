//! All pods of one node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dhow_types::{Machine, Time, Uid};

use crate::message::{In, Out};
use crate::pod::PodRun;

/// What the agent must know about its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// `status.hostIP` of its pods.
    pub host_ip: IpAddr,
}

/// The life cycle of the pods of one node.
///
/// Inputs about a pod that it does not know (any more) are ignored: what was wished for a pod may be answered after
/// the pod is gone.
#[derive(Clone, Debug)]
pub struct Agent {
    config: Config,
    pods: BTreeMap<Uid, PodRun>,
    wakes: BTreeSet<(Time, Uid)>,
    /// How many pods have a status to write.
    waiting: usize,
}

impl Agent {
    /// An agent without pods.
    pub fn new(config: Config) -> Self {
        Self { config, pods: BTreeMap::new(), wakes: BTreeSet::new(), waiting: 0 }
    }

    /// The pods that it knows.
    pub fn pods(&self) -> impl Iterator<Item = &Uid> {
        self.pods.keys()
    }

    /// How many pods it knows.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether it knows no pod.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn step(&mut self, now: Time, uid: &Uid, input: Option<In>, out: &mut Vec<Out>) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if let Some(at) = pod.wake() {
            self.wakes.remove(&(at, uid.clone()));
        }
        self.waiting -= usize::from(pod.waiting());
        if let Some(input) = input {
            pod.handle(now, input, out);
        }
        pod.advance(now, &self.config, self.waiting, out);
        self.waiting += usize::from(pod.waiting());
        if let Some(at) = pod.wake() {
            self.wakes.insert((at, uid.clone()));
        }
        if pod.finished() {
            if let Some(at) = pod.wake() {
                self.wakes.remove(&(at, uid.clone()));
            }
            self.pods.remove(uid);
        }
    }
}

impl Machine for Agent {
    type In = In;
    type Out = Out;

    fn handle(&mut self, now: Time, input: In, out: &mut Vec<Out>) {
        let Some(uid) = uid_of(&input) else { return };
        if let In::Pod(pod) = &input
            && !self.pods.contains_key(&uid)
        {
            let pod = PodRun::adopt(now, uid.clone(), pod.clone());
            self.waiting += usize::from(pod.waiting());
            self.pods.insert(uid.clone(), pod);
            return self.step(now, &uid, None, out);
        }
        self.step(now, &uid, Some(input), out);
    }

    fn next_wake(&self) -> Option<Time> {
        self.wakes.first().map(|(at, _)| *at)
    }

    fn wake(&mut self, now: Time, out: &mut Vec<Out>) {
        // Each pod is looked at once, so that a pod that wants to be woken at once cannot keep the loop for itself.
        let due: Vec<Uid> = self.wakes.iter().take_while(|(at, _)| *at <= now).map(|(_, uid)| uid.clone()).collect();
        for uid in due {
            self.step(now, &uid, None, out);
        }
    }
}

fn uid_of(input: &In) -> Option<Uid> {
    match input {
        In::Pod(pod) => pod.metadata.uid.as_deref().map(Uid::new),
        In::Gone(uid) | In::SandboxRemoved(uid) => Some(uid.clone()),
        In::SandboxReady { uid, .. }
        | In::SandboxFailed { uid, .. }
        | In::Evict { uid, .. }
        | In::StatusWritten { uid, .. }
        | In::Deleted { uid, .. } => Some(uid.clone()),
        In::PullBegan { at }
        | In::Pulled { at, .. }
        | In::Started { at, .. }
        | In::StartFailed { at, .. }
        | In::Exited { at, .. }
        | In::Probed { at, .. }
        | In::Hooked { at, .. } => Some(at.uid.clone()),
    }
}
