//! Whether there is an order in which what clients saw could have happened, one after the other.
//!
//! Wing and Gong's search with Lowe's memory, one key at a time (linearizability is local), as Porcupine does it: walk
//! over calls and returns; take an operation whose call is before the first return that is left, if it fits the state;
//! at a return that is not taken yet, go back. What was tried from the same state with the same operations taken is not
//! tried again.

use std::collections::HashSet;

/// The value of a key: which write it is from; zero if there is none.
pub(crate) type Value = u64;

/// What a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read,
    Put(Value),
    /// Only if there is nothing.
    Create(Value),
    /// Only if this is there.
    Replace(Value, Value),
    /// Only if this is there.
    Delete(Value),
}

/// What it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing, for ever: it may have happened, or may yet.
    Unknown,
    Found(Value),
    Done,
    /// Something else is there.
    Conflict,
    /// Something is there.
    Exists,
    /// Nothing is there.
    Missing,
}

/// One operation. The moments are all different.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) call: Call,
    pub(crate) called: u64,
    pub(crate) answer: Answer,
    /// Later than everything if there was no answer.
    pub(crate) answered: u64,
}

/// How many states are tried for one key. Runs of a sound cluster take some per operation; beyond, the key counts as
/// undecided.
const STATES_MAX: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    Linearizable,
    Impossible,
    Undecided,
}

/// The state behind the operation, if it could have been answered so from `state`.
fn step(state: Value, operation: &Operation) -> Option<Value> {
    let fits = |value: bool, next: Value| value.then_some(next);
    match (operation.call, operation.answer) {
        (Call::Read, Answer::Unknown) => Some(state),
        (Call::Read, Answer::Found(value)) => fits(value == state, state),
        (Call::Put(value), Answer::Unknown | Answer::Done) => Some(value),
        (Call::Create(value), Answer::Unknown) => Some(if state == 0 { value } else { state }),
        (Call::Create(value), Answer::Done) => fits(state == 0, value),
        (Call::Replace(old, new), Answer::Unknown) => Some(if state == old { new } else { state }),
        (Call::Replace(old, new), Answer::Done) => fits(state == old, new),
        (Call::Delete(old), Answer::Unknown) => Some(if state == old { 0 } else { state }),
        (Call::Delete(old), Answer::Done) => fits(state == old, 0),
        (Call::Replace(old, _) | Call::Delete(old), Answer::Conflict) => fits(state != old && state != 0, state),
        (Call::Replace(..) | Call::Delete(_), Answer::Missing) => fits(state == 0, state),
        (Call::Create(_), Answer::Exists) => fits(state != 0, state),
        _ => None,
    }
}

/// A call or a return, in a list that forgets and remembers its elements.
struct Event {
    operation: usize,
    is_call: bool,
    before: usize,
    after: usize,
}

const END: usize = usize::MAX;

struct Events {
    list: Vec<Event>,
    first: usize,
    call_of: Vec<usize>,
    return_of: Vec<usize>,
}

impl Events {
    fn new(operations: &[Operation]) -> Self {
        let calls = operations.iter().enumerate().map(|(n, operation)| (operation.called, true, n));
        // Whoever was never answered comes last, in the order of the calls.
        let returns = operations.iter().enumerate().map(|(n, operation)| (operation.answered, false, n));
        let mut order: Vec<(u64, bool, usize)> = calls.chain(returns).collect();
        order.sort_by_key(|(moment, is_call, n)| (*moment, !is_call, *n));
        let count = order.len();
        let (mut call_of, mut return_of) = (vec![0; operations.len()], vec![0; operations.len()]);
        let list = order.into_iter().enumerate().map(|(at, (_, is_call, operation))| {
            if is_call {
                call_of[operation] = at;
            } else {
                return_of[operation] = at;
            }
            Event {
                operation,
                is_call,
                before: at.checked_sub(1).unwrap_or(END),
                after: if at + 1 == count { END } else { at + 1 },
            }
        });
        let list: Vec<Event> = list.collect();
        let first = if list.is_empty() { END } else { 0 };
        Self { list, first, call_of, return_of }
    }

    fn unlink(&mut self, at: usize) {
        let (before, after) = (self.list[at].before, self.list[at].after);
        match before {
            END => self.first = after,
            before => self.list[before].after = after,
        }
        if after != END {
            self.list[after].before = before;
        }
    }

    fn relink(&mut self, at: usize) {
        let (before, after) = (self.list[at].before, self.list[at].after);
        match before {
            END => self.first = at,
            before => self.list[before].after = at,
        }
        if after != END {
            self.list[after].before = at;
        }
    }

    /// Takes an operation out: it has happened.
    fn lift(&mut self, operation: usize) {
        self.unlink(self.call_of[operation]);
        self.unlink(self.return_of[operation]);
    }

    fn unlift(&mut self, operation: usize) {
        self.relink(self.return_of[operation]);
        self.relink(self.call_of[operation]);
    }
}

/// Judges the operations on one key, which has no value at first.
pub(crate) fn judge(operations: &[Operation]) -> Judgement {
    let mut events = Events::new(operations);
    let mut tried: HashSet<(Vec<u64>, Value)> = HashSet::new();
    let mut taken: Vec<(usize, Value)> = Vec::new();
    let mut bits = vec![0u64; operations.len().div_ceil(64)];
    let mut state: Value = 0;
    let mut at = events.first;
    while events.first != END {
        let Event { operation, is_call, after, .. } = events.list[at];
        if is_call {
            let next = step(state, &operations[operation]).filter(|next| {
                let mut with = bits.clone();
                with[operation / 64] |= 1 << (operation % 64);
                tried.insert((with, *next))
            });
            if let Some(next) = next {
                taken.push((operation, state));
                bits[operation / 64] |= 1 << (operation % 64);
                state = next;
                events.lift(operation);
                at = events.first;
            } else {
                at = after;
            }
            if tried.len() > STATES_MAX {
                return Judgement::Undecided;
            }
        } else {
            // It must have happened by now, so something before was taken wrongly.
            let Some((operation, before)) = taken.pop() else { return Judgement::Impossible };
            bits[operation / 64] &= !(1 << (operation % 64));
            state = before;
            events.unlift(operation);
            at = events.list[events.call_of[operation]].after;
        }
    }
    Judgement::Linearizable
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `"call answer from-to"`, one a line; `w1` puts, `c1` creates, `r1>2` replaces, `d1` deletes, `?` reads.
    fn judged(text: &str) -> Judgement {
        let number = |text: &str| text.parse::<u64>().unwrap();
        let operations: Vec<Operation> = text
            .split(',')
            .map(|line| {
                let [call, answer, called, answered] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                    panic!("`{line}` has no four words")
                };
                let call = match call.split_at(1) {
                    ("?", _) => Call::Read,
                    ("w", value) => Call::Put(number(value)),
                    ("c", value) => Call::Create(number(value)),
                    ("d", value) => Call::Delete(number(value)),
                    ("r", pair) => {
                        let (old, new) = pair.split_once('>').unwrap();
                        Call::Replace(number(old), number(new))
                    }
                    _ => panic!("`{call}` is no call"),
                };
                let answer = match answer {
                    "ok" => Answer::Done,
                    "-" => Answer::Unknown,
                    "conflict" => Answer::Conflict,
                    "exists" => Answer::Exists,
                    "missing" => Answer::Missing,
                    value => Answer::Found(number(value)),
                };
                let answered = if answered == "-" { u64::MAX } else { number(answered) };
                Operation { call, called: number(called), answer, answered }
            })
            .collect();
        judge(&operations)
    }

    #[test]
    fn histories_are_judged() {
        use Judgement::{Impossible, Linearizable};
        for (expected, history) in [
            (Linearizable, "w1 ok 1 2, ? 1 3 4"),
            (Impossible, "w1 ok 1 2, ? 0 3 4"),
            (Linearizable, "w1 ok 1 5, ? 0 2 3"),
            (Linearizable, "w1 ok 1 5, ? 1 2 3, ? 1 4 6"),
            (Impossible, "w1 ok 1 9, ? 1 2 3, ? 0 4 5"),
            (Linearizable, "w1 ok 1 2, w2 ok 3 8, ? 1 4 5, ? 2 6 7"),
            (Impossible, "w1 ok 1 2, w2 ok 3 8, ? 2 4 5, ? 1 6 7"),
            // A write without an answer may happen late, but not twice, and not be undone.
            (Linearizable, "w1 - 1 -, ? 0 2 3, ? 1 4 5"),
            (Impossible, "w1 - 1 -, ? 1 2 3, ? 0 4 5"),
            (Impossible, "w1 - 1 -, w2 ok 2 3, ? 1 4 5, ? 2 6 7"),
            (Impossible, "w1 - 1 -, w2 ok 2 3, ? 1 4 5, w3 ok 6 7, ? 1 8 9"),
            (Impossible, "? 7 1 2"),
            (Linearizable, "c1 ok 1 2, r1>2 ok 3 4, c3 exists 5 6, d1 conflict 7 8, d2 ok 9 10, d2 missing 11 12"),
            (Impossible, "c1 ok 1 2, c2 ok 3 4"),
            (Impossible, "c1 ok 1 2, r1>2 ok 3 6, r1>3 ok 4 5"),
            (Linearizable, "c1 ok 1 2, r1>2 ok 3 6, r1>3 conflict 4 5"),
            (Linearizable, "c1 ok 1 2, r1>2 - 3 -, r1>3 ok 4 5, ? 3 6 7"),
            (Impossible, "c1 ok 1 2, d1 ok 3 4, ? 1 5 6"),
            (Impossible, "c1 ok 1 2, d1 missing 3 4"),
        ] {
            assert_eq!(judged(history), expected, "{history}");
        }
    }

    #[test]
    fn many_writes_without_an_answer_do_not_take_for_ever() {
        let unknown: Vec<String> = (1..=10).map(|n| format!("w{n} - {n} -")).collect();
        let reads: Vec<String> = (1..=10).map(|n| format!("? {} {} {}", 11 - n, 100 + 2 * n, 101 + 2 * n)).collect();
        let text = format!("{}, {}", unknown.join(", "), reads.join(", "));
        assert_eq!(judged(&text), Judgement::Linearizable);
        assert_eq!(judged(&format!("{text}, ? 3 900 901")), Judgement::Impossible);
    }
}
