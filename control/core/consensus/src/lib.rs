//! Agreement on the order of log entries among the members of a control plane; Raft behind our own types.
//!
//! [`Consensus`] is a [`Machine`](dhow_types::Machine): it is told of time, proposals, messages, and of what its driver
//! has persisted and applied ([`In`]); it wishes for entries to be persisted, applied and sent ([`Out`]). A single
//! member takes the same path as five: it votes for itself, persists, and commits what it has persisted.
//!
//! The driver's duties: take wishes in the order in which they come, also across calls; report as persisted only what is
//! durable; report what is applied; after a start, hand in everything that had been persisted.
//!
//! # Invariants
//!
//! * An entry is committed only after a quorum, this member's own disk included, reported it as persisted.
//! * Every proposal ends in exactly one of [`Out::Commit`] with its id, or [`Out::Lost`].
//! * No clock, no chance of its own: the engine draws election timeouts from the thread's generator, so they are drawn
//!   anew here from the seed whenever the engine may have done so. A seed replays.
//! * This is the only crate that names the engine.
//!
//! Absent on purpose: what entries mean, disks, sockets. Members are those that the driver hands in at the start; a
//! member that lags behind the entries that its leader still holds in memory is not brought back here.

mod consensus;
mod tail;

pub use consensus::{
    Committed, Config, Consensus, In, Message, Out, Persist, ProposalId, ReadId, Restored, Role, StartError,
};
pub use tail::{Entry, HardState, Position};
