//! Conversations by datagrams between clients outside and endpoints of the cluster: a datagram says neither that it is
//! the first nor that it is the last, so that who talks to whom is remembered here, for a while.

use crate::backends::{LoadGuard, Pick};
use dhow_types::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// How long a flow is kept after its last datagram: as Linux' connection tracking does, shorter while nobody has
/// answered, since then it may be a mistake or a flood.
const UNANSWERED_MS: u64 = 30_000;
const ANSWERED_MS: u64 = 120_000;
/// The ports under which an endpoint sees clients that have to share one address.
const MASKS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// A client outside, and the node port that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// The node port.
    pub port: u16,
    /// The client's own address.
    pub addr: SocketAddr,
}

/// What the datagrams of one client have in common inside of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where they go.
    pub endpoint: SocketAddr,
    /// Where the endpoint believes that they come from.
    pub seen_as: SocketAddr,
}

/// How an endpoint is to see a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// The address that stands for clients who cannot be seen by their own.
    pub address: IpAddr,
    /// Whether the client's own address may be shown, if nobody else is seen by it.
    pub own: bool,
}

#[derive(Debug)]
struct Entry {
    flow: Flow,
    last: Time,
    answered: bool,
    _load: LoadGuard,
}

/// The flows through a node's ports. Bounded: when it is full, a new client takes the place of the one that has waited
/// longest without an answer; if all are answered, it is turned away.
#[derive(Debug)]
pub struct Flows {
    max: usize,
    callers: BTreeMap<Caller, Entry>,
    /// By endpoint and by what it sees, as its answers name them.
    answers: BTreeMap<(SocketAddr, SocketAddr), Caller>,
    /// The unanswered ones first; among equals, the longest silent one first.
    ages: BTreeSet<(bool, Time, Caller)>,
    next_mask: u16,
}

impl Flows {
    /// None yet, and never more than `max`.
    pub fn new(max: usize) -> Self {
        let (callers, answers, ages) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { max, callers, answers, ages, next_mask: *MASKS.start() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }

    /// A client says something: its flow, if it has one.
    pub fn asked(&mut self, now: Time, caller: Caller) -> Option<Flow> {
        let entry = self.callers.get_mut(&caller)?;
        touch(&mut self.ages, entry, caller, now);
        Some(entry.flow)
    }

    /// An endpoint says something to what it believes to be a client: the client.
    pub fn answered(&mut self, now: Time, endpoint: SocketAddr, to: SocketAddr) -> Option<Caller> {
        let caller = *self.answers.get(&(endpoint, to))?;
        let entry = self.callers.get_mut(&caller)?;
        self.ages.remove(&(entry.answered, entry.last, caller));
        entry.answered = true;
        touch(&mut self.ages, entry, caller, now);
        Some(caller)
    }

    /// A flow from a client to the endpoint that was chosen for it, in place of the one that it had. `None`: there is
    /// no room.
    pub fn open(&mut self, now: Time, caller: Caller, pick: &Pick, mask: Mask) -> Option<Flow> {
        self.close(caller);
        if self.callers.len() >= self.max {
            let (_, _, oldest) = *self.ages.first().filter(|(answered, ..)| !answered)?;
            self.close(oldest);
        }
        let endpoint = pick.addr;
        let own = mask.own && !self.answers.contains_key(&(endpoint, caller.addr));
        let seen_as = if own { caller.addr } else { self.mask(endpoint, mask.address)? };
        let flow = Flow { endpoint, seen_as };
        self.answers.insert((endpoint, seen_as), caller);
        self.ages.insert((false, now, caller));
        self.callers.insert(caller, Entry { flow, last: now, answered: false, _load: pick.load.begin() });
        Some(flow)
    }

    /// Forgets the flow of a client.
    pub fn close(&mut self, caller: Caller) {
        if let Some(Entry { flow, last, answered, _load }) = self.callers.remove(&caller) {
            self.answers.remove(&(flow.endpoint, flow.seen_as));
            self.ages.remove(&(answered, last, caller));
        }
    }

    /// Forgets all flows through a node port.
    pub fn close_port(&mut self, port: u16) {
        let callers: Vec<_> = self.callers.keys().filter(|caller| caller.port == port).copied().collect();
        callers.into_iter().for_each(|caller| self.close(caller));
    }

    /// Forgets those that were silent for too long.
    pub fn expire(&mut self, now: Time) {
        while let Some(caller) = self.silent(now) {
            self.close(caller);
        }
    }

    fn silent(&self, now: Time) -> Option<Caller> {
        let unanswered = self.ages.first().filter(|(answered, ..)| !answered);
        let answered = self.ages.range((true, Time::from_ms(i64::MIN), FIRST)..).next();
        let over = |(_, last, _): &&(bool, Time, Caller), idle_ms| now.ms_since(*last) >= idle_ms;
        let found = unanswered.filter(|entry| over(entry, UNANSWERED_MS));
        found.or_else(|| answered.filter(|entry| over(entry, ANSWERED_MS))).map(|(_, _, caller)| *caller)
    }

    /// An address by which the endpoint sees nobody yet.
    fn mask(&mut self, endpoint: SocketAddr, address: IpAddr) -> Option<SocketAddr> {
        for _ in MASKS {
            let port = self.next_mask;
            self.next_mask = if port == *MASKS.end() { *MASKS.start() } else { port + 1 };
            let mask = SocketAddr::new(address, port);
            if !self.answers.contains_key(&(endpoint, mask)) {
                return Some(mask);
            }
        }
        None
    }
}

/// Sorts before all others.
const FIRST: Caller = Caller { port: 0, addr: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0) };

fn touch(ages: &mut BTreeSet<(bool, Time, Caller)>, entry: &mut Entry, caller: Caller, now: Time) {
    ages.remove(&(entry.answered, entry.last, caller));
    entry.last = now;
    ages.insert((entry.answered, now, caller));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::Load;

    const ENDPOINT: &str = "10.64.0.2:53";

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn caller(last: u16) -> Caller {
        Caller { port: 30_053, addr: SocketAddr::new([192, 0, 2, 9].into(), last) }
    }

    fn pick(load: &Load) -> Pick {
        Pick { addr: addr(ENDPOINT), load: load.clone() }
    }

    fn mask(own: bool) -> Mask {
        Mask { address: [10, 64, 0, 1].into(), own }
    }

    fn at(seconds: i64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn an_answer_finds_its_client_and_clients_are_told_apart() {
        let (mut flows, load) = (Flows::new(8), Load::default());
        let seen: Vec<_> = [(caller(1), true), (caller(2), false), (caller(3), false)]
            .map(|(caller, own)| flows.open(at(0), caller, &pick(&load), mask(own)).unwrap().seen_as)
            .into();
        assert_eq!(seen, [caller(1).addr, addr("10.64.0.1:32768"), addr("10.64.0.1:32769")]);
        for (number, seen) in seen.into_iter().enumerate() {
            assert_eq!(flows.answered(at(1), addr(ENDPOINT), seen), Some(caller(number as u16 + 1)));
        }
        assert_eq!(flows.answered(at(1), addr("10.64.0.3:53"), caller(1).addr), None, "not its endpoint");
        assert_eq!(load.open(), 3);
        // The same client through another node port is another flow, and must not be taken for the first.
        let other = Caller { port: 30_054, ..caller(1) };
        let flow = flows.open(at(1), other, &pick(&load), mask(true)).unwrap();
        assert_ne!(flow.seen_as, caller(1).addr);
        flows.close_port(30_053);
        assert_eq!((flows.asked(at(2), caller(1)), flows.asked(at(2), other)), (None, Some(flow)));
        assert_eq!(load.open(), 1);
    }

    #[test]
    fn silent_flows_end_and_answered_ones_may_be_silent_for_longer() {
        let (mut flows, load) = (Flows::new(8), Load::default());
        let mut open = |caller| flows.open(at(0), caller, &pick(&load), mask(true)).unwrap();
        for number in 1..=3 {
            open(caller(number));
        }
        flows.answered(at(0), addr(ENDPOINT), caller(2).addr);
        flows.asked(at(20), caller(3));
        let mut alive = |now| {
            flows.expire(at(now));
            (1..=3).filter(|number| flows.callers.contains_key(&caller(*number))).collect::<Vec<_>>()
        };
        for (now, expected) in
            [(29, vec![1, 2, 3]), (30, vec![2, 3]), (49, vec![2, 3]), (50, vec![2]), (119, vec![2]), (120, vec![])]
        {
            assert_eq!(alive(now), expected, "after {now} s");
        }
        assert!(flows.is_empty() && flows.answers.is_empty() && flows.ages.is_empty());
        assert_eq!(load.open(), 0);
    }

    #[test]
    fn a_full_table_lets_the_unanswered_go_and_keeps_the_answered() {
        let (mut flows, load) = (Flows::new(2), Load::default());
        for (number, now) in [(1, 0), (2, 1)] {
            flows.open(at(now), caller(number), &pick(&load), mask(true)).unwrap();
        }
        assert!(flows.open(at(2), caller(3), &pick(&load), mask(true)).is_some());
        assert_eq!(flows.asked(at(2), caller(1)), None, "the oldest made room");
        for number in [2, 3] {
            flows.answered(at(3), addr(ENDPOINT), caller(number).addr);
        }
        assert_eq!(flows.open(at(4), caller(4), &pick(&load), mask(true)), None);
        assert!(flows.open(at(5), caller(2), &pick(&load), mask(true)).is_some(), "who has a place keeps it");
        assert_eq!(load.open(), 2);
    }
}
