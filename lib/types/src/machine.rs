//! The one shape of everything that decides.

use crate::Time;

/// A deciding part of the system. Time comes in, wishes go out; nothing else happens.
///
/// Production drives a machine with sockets and disks, the simulator drives the same value on a virtual clock.
pub trait Machine {
    /// What happened in the world.
    type In;
    /// What the machine wishes to happen.
    type Out;

    /// Takes one input at `now` and appends the wishes that follow from it to `out`. `now` never goes back.
    fn handle(&mut self, now: Time, input: Self::In, out: &mut Vec<Self::Out>);

    /// When [`wake`](Machine::wake) wants to be called next, if nothing else happens before.
    fn next_wake(&self) -> Option<Time>;

    /// Tells the machine that `now` has come; called at or after [`next_wake`](Machine::next_wake).
    fn wake(&mut self, now: Time, out: &mut Vec<Self::Out>);
}
