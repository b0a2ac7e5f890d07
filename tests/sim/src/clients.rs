//! Those who write and read, each one thing after the other, through any member; and what they were told.

use crate::Bug;
use crate::linear::{Answer, Call, Judgement, Operation, Value, judge};
use crate::world::{Event, World};
use dhow_consensus::{In, ProposalId, ReadId, Refusal};
use dhow_state::{Applied, Expect, Key, Op, Rejected, State, Txn};
use dhow_types::Revision;
use std::collections::BTreeMap;

/// What clients fight about.
const KEYS: usize = 4;

/// This one is two objects that are always written together.
const PAIR: usize = KEYS - 1;

/// A client that has no answer by then takes it that there will be none.
const PATIENCE_MS: u64 = 1_500;

#[derive(Debug, Default)]
pub(crate) struct Client {
    /// What it last saw of each key.
    beliefs: BTreeMap<usize, (Value, Revision)>,
    waiting: Option<usize>,
}

/// What a client asked, of whom, and what came of it.
#[derive(Debug)]
pub(crate) struct Asked {
    client: usize,
    key: usize,
    operation: Operation,
    /// Which write it is; zero for a read.
    value: Value,
    /// What had been acknowledged to anyone when it was asked.
    floor: Revision,
    /// It has certainly not happened.
    void: bool,
}

/// Whom a proposal is for.
#[derive(Clone, Debug)]
pub(crate) enum Waiting {
    /// An operation of a client, and what it proposed.
    Client(usize, Vec<u8>),
    /// A write that nobody waits for.
    Noise(Value),
    Operator,
}

impl World {
    pub(crate) fn handle_client(&mut self, client: usize) {
        if self.clients[client].waiting.is_some() || self.ends_clients() {
            return;
        }
        let Some(node) = self.random_server() else {
            return self.after(40, Event::Client(client));
        };
        match self.rng.below(40) {
            0 => {
                self.make_noise(node);
                self.after(5, Event::Client(client));
            }
            1..16 => {
                let key = self.rng.below(KEYS as u64) as usize;
                self.ask_read(Some(client), node, key);
            }
            _ => self.ask_write(client, node),
        }
    }

    /// Anyone whom a client can reach.
    fn random_server(&mut self) -> Option<u64> {
        let now = self.now;
        let serves = |(_, node): &(&u64, &crate::node::Node)| {
            node.running.is_some() && !node.witness && node.paused_until <= now
        };
        let servers: Vec<u64> = self.nodes.iter().filter(serves).map(|(id, _)| *id).collect();
        if servers.is_empty() { None } else { Some(servers[self.rng.below(servers.len() as u64) as usize]) }
    }

    fn record(&mut self, client: usize, key: usize, call: Call, value: Value) -> usize {
        let called = self.moment();
        let operation = Operation { call, called, answer: Answer::Unknown, answered: u64::MAX };
        let floor = self.truth.newest();
        self.asked.push(Asked { client, key, operation, value, floor, void: false });
        let at = self.asked.len() - 1;
        if client < self.clients.len() {
            self.clients[client].waiting = Some(at);
            self.after(PATIENCE_MS, Event::GiveUp { operation: at });
        }
        at
    }

    /// A read by a client, or by nobody in particular.
    pub(crate) fn ask_read(&mut self, client: Option<usize>, node: u64, key: usize) {
        let at = self.record(client.unwrap_or(usize::MAX), key, Call::Read, 0);
        self.note(format_args!("operation {at} reads {key} on {node}"));
        if self.bug == Bug::StaleRead {
            return self.answer_read(node, at);
        }
        let id = ReadId(self.fresh_id());
        self.running(node).reading.insert(id, at);
        self.give(node, In::ReadIndex(id));
    }

    /// One of everything on a member, for the end.
    pub(crate) fn ask_all(&mut self, node: u64) {
        (0..KEYS).for_each(|key| self.ask_read(None, node, key));
        let value = self.fresh_value();
        let at = self.record(usize::MAX, 0, Call::Put(value), value);
        self.propose(node, at, put(&[key_of(0)], value, Expect::Any));
    }

    fn ask_write(&mut self, client: usize, node: u64) {
        let key = self.rng.below(KEYS as u64) as usize;
        let value = self.fresh_value();
        let belief = self.clients[client].beliefs.get(&key).copied().filter(|_| key != PAIR);
        let (call, txn) = match (belief, self.rng.below(10)) {
            _ if key == PAIR => (Call::Put(value), put(&[key_of(PAIR), pair_of()], value, Expect::Any)),
            (_, 0..3) => (Call::Put(value), put(&[key_of(key)], value, Expect::Any)),
            (Some((old, revision)), 3..8) => {
                (Call::Replace(old, value), put(&[key_of(key)], value, Expect::At(revision)))
            }
            (Some((old, revision)), _) => {
                let last = Some(object(value).into());
                let op = Op::Delete { key: key_of(key), expect: Expect::At(revision), last };
                (Call::Delete(old), Txn::one(op))
            }
            (None, _) => (Call::Create(value), put(&[key_of(key)], value, Expect::Absent)),
        };
        let at = self.record(client, key, call, value);
        self.note(format_args!("operation {at} is {call:?} of {key} on {node}"));
        self.propose(node, at, txn);
    }

    fn propose(&mut self, node: u64, at: usize, txn: Txn) {
        let (id, data) = (ProposalId(self.fresh_id()), txn.encode());
        self.running(node).waiting.insert(id, Waiting::Client(at, data.clone()));
        if self.bug == Bug::EarlyAcknowledgement && self.rng.chance(1, 10) {
            let revision = Revision(self.running(node).state.revision().0 + 1);
            self.answer(at, Answer::Done, Some(revision));
        }
        self.give(node, In::Propose(vec![(id, data.into())]));
    }

    /// Many writes at once, so that the log grows.
    fn make_noise(&mut self, node: u64) {
        let count = 5 + self.rng.below(40);
        self.note(format_args!("{count} writes at once on {node}"));
        let mut proposals = Vec::new();
        for _ in 0..count {
            let value = self.fresh_value();
            let key = Key::new("nodes", "", format!("n{}", self.rng.below(5)));
            let id = ProposalId(self.fresh_id());
            self.running(node).waiting.insert(id, Waiting::Noise(value));
            proposals.push((id, put(&[key], value, Expect::Any).encode().into()));
        }
        self.give(node, In::Propose(proposals));
    }

    /// A proposal is done.
    pub(crate) fn finish(&mut self, waiting: Waiting, revision: Revision, ended: Result<Option<Applied>, Rejected>) {
        let Waiting::Client(at, _) = waiting else {
            if let Waiting::Operator = waiting {
                self.operator.end();
                self.report.changes += 1;
            }
            return;
        };
        match ended {
            Ok(_) => self.answer(at, Answer::Done, Some(revision)),
            Err(_) if self.bug == Bug::IgnoredRejection => self.answer(at, Answer::Done, Some(revision)),
            Err(Rejected::Conflict { .. }) => self.answer(at, Answer::Conflict, None),
            Err(Rejected::Exists { .. }) => self.answer(at, Answer::Exists, None),
            Err(Rejected::Missing { .. }) => self.answer(at, Answer::Missing, None),
            Err(error) => self.fail(format!("operation {at} is malformed: {error}")),
        }
    }

    pub(crate) fn lose_all(&mut self, node: u64, proposals: Vec<ProposalId>, reads: Vec<ReadId>) {
        for id in proposals {
            match self.running(node).waiting.remove(&id) {
                Some(Waiting::Client(at, data)) if self.bug == Bug::RepeatedProposal => {
                    let again = ProposalId(self.fresh_id());
                    self.running(node).waiting.insert(again, Waiting::Client(at, data.clone()));
                    let life = self.node(node).life;
                    self.after(1, Event::Propose { node, life, id: again, data });
                }
                Some(waiting) => self.lose(waiting),
                None => self.fail(format!("{id:?} is lost on member {node} and does not wait")),
            }
        }
        for id in reads {
            match self.running(node).reading.remove(&id) {
                Some(operation) => self.answer_nothing(operation),
                None => self.fail(format!("{id:?} is lost on member {node} and does not wait")),
            }
        }
    }

    /// Nobody will know what came of it.
    pub(crate) fn lose(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::Client(at, _) => self.answer_nothing(at),
            Waiting::Operator => self.operator.end(),
            Waiting::Noise(_) => {}
        }
    }

    pub(crate) fn refuse(&mut self, waiting: Waiting, why: Refusal) {
        self.report.refused += 1;
        let value = match waiting {
            Waiting::Operator => {
                self.note(format_args!("the operator is refused: {why}"));
                return self.operator.end();
            }
            Waiting::Noise(value) => value,
            Waiting::Client(at, data) => {
                self.note(format_args!("operation {at} is refused: {why}"));
                if self.asked[at].operation.answer == Answer::Unknown {
                    self.asked[at].void = true;
                }
                self.go_on(at);
                let txn = Txn::decode(data.into()).expect("it was encoded here");
                value_in(txn.ops[0].value().expect("every write carries its value")).expect("every value has a number")
            }
        };
        let refused = self.truth.refuse(value);
        self.check(refused);
    }

    pub(crate) fn answer_nothing(&mut self, at: usize) {
        let client = self.asked[at].client;
        if self.clients.get(client).is_some_and(|client| client.waiting == Some(at)) {
            self.report.unknown += 1;
            self.note(format_args!("operation {at} has no answer"));
        }
        self.go_on(at);
    }

    fn answer(&mut self, at: usize, answer: Answer, revision: Option<Revision>) {
        let moment = self.moment();
        let Asked { client, key, operation, floor, .. } = &mut self.asked[at];
        let (client, key, floor) = (*client, *key, *floor);
        // The client has been told already, or is gone.
        let gone = client < self.clients.len() && self.clients[client].waiting != Some(at);
        if operation.answer != Answer::Unknown || gone {
            return;
        }
        (operation.answer, operation.answered) = (answer, moment);
        let value = match (operation.call, answer) {
            (Call::Put(value) | Call::Create(value) | Call::Replace(_, value), Answer::Done) => Some(value),
            _ => None,
        };
        self.note(format_args!("operation {at} is answered: {answer:?} at {revision:?}"));
        if let Some(client) = self.clients.get_mut(client) {
            match value.zip(revision) {
                Some(belief) => client.beliefs.insert(key, belief),
                None => client.beliefs.remove(&key),
            };
        }
        match answer {
            Answer::Done => self.report.acknowledged += 1,
            _ => self.report.rejected += 1,
        }
        if let Some(revision) = revision {
            let write = value.unwrap_or(Value::MAX - at as u64);
            let known = match value {
                Some(_) => self.truth.acknowledge(write, revision, floor),
                None if revision <= floor => Err(format!("operation {at} got revision {revision} after {floor}")),
                None => Ok(()),
            };
            self.check(known);
        }
        self.go_on(at);
    }

    pub(crate) fn answer_read(&mut self, node: u64, at: usize) {
        let moment = self.moment();
        let key = self.asked[at].key;
        let state = &self.running(node).state;
        let (revision, mut found) = (state.revision(), value_of(state, &key_of(key)));
        let mut other = if key == PAIR { value_of(state, &pair_of()) } else { found };
        if self.bug == Bug::CachedRead && self.rng.chance(1, 4) {
            found = *self.running(node).cache.entry(key).or_insert(found);
            other = found;
        }
        self.running(node).cache.insert(key, found);
        let Asked { client, operation, floor, .. } = &mut self.asked[at];
        let (client, floor) = (*client, *floor);
        if client < self.clients.len() && self.clients[client].waiting != Some(at) {
            return;
        }
        let value = found.map_or(0, |(value, _)| value);
        (operation.answer, operation.answered) = (Answer::Found(value), moment);
        self.report.reads += 1;
        self.note(format_args!("operation {at} finds {found:?} at revision {revision}"));
        if revision < floor {
            self.fail(format!("operation {at} sees revision {revision}, and {floor} was acknowledged before"));
        }
        if other != found {
            self.fail(format!("operation {at} sees half of a transaction: {found:?} and {other:?}"));
        }
        if let Some(client) = self.clients.get_mut(client) {
            match found {
                Some(belief) => client.beliefs.insert(key, belief),
                None => client.beliefs.remove(&key),
            };
        }
        self.go_on(at);
    }

    /// The client turns to the next thing.
    fn go_on(&mut self, at: usize) {
        let client = self.asked[at].client;
        if client < self.clients.len() && self.clients[client].waiting == Some(at) {
            self.clients[client].waiting = None;
            let think = 1 + self.rng.below(40);
            self.after(think, Event::Client(client));
        }
    }

    /// Whether nobody waits for anything.
    pub(crate) fn clients_are_idle(&self) -> bool {
        self.clients.iter().all(|client| client.waiting.is_none())
    }

    /// Looks at all that clients saw. Of a write without an answer it is known here whether it was done and by when,
    /// for all that was on its way has arrived; without that, the search would have to try every time until the end.
    pub(crate) fn judge(&mut self) {
        for key in 0..KEYS {
            let of_key = self.asked.iter().filter(|asked| asked.key == key && !asked.void);
            let operations: Vec<Operation> = of_key
                .filter_map(|asked| match asked.operation {
                    Operation { answer: Answer::Unknown, call: Call::Read, .. } => None,
                    Operation { answer: Answer::Unknown, .. } => {
                        let answered = self.truth.done_at(asked.value)?;
                        Some(Operation { answered, ..asked.operation })
                    }
                    answered => Some(answered),
                })
                .collect();
            match judge(&operations) {
                Judgement::Linearizable => {}
                Judgement::Undecided => self.report.undecided += 1,
                Judgement::Impossible => {
                    self.fail(format!("what clients saw of key {key} cannot have happened in any order"));
                }
            }
        }
    }
}

fn key_of(key: usize) -> Key {
    Key::new("pods", "default", format!("p{key}"))
}

fn pair_of() -> Key {
    Key::new("configmaps", "default", "pair")
}

fn object(value: Value) -> String {
    format!("{{\"metadata\":{{}},\"v\":{value}}}")
}

fn put(keys: &[Key], value: Value, expect: Expect) -> Txn {
    let op = |key: &Key| Op::Put { key: key.clone(), value: object(value).into(), expect, expires: None };
    Txn { ops: keys.iter().map(op).collect() }
}

fn value_of(state: &State, key: &Key) -> Option<(Value, Revision)> {
    let object = state.get(key)?;
    Some((value_in(object.json())?, object.revision))
}

/// The number of the write that an object is from.
pub(crate) fn value_in(json: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(json).ok()?;
    let (_, rest) = text.split_once("\"v\":")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
