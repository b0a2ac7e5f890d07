//! Agreement on the order of log entries among the members of a control plane; Raft behind our own types.
//!
//! [`Consensus`] is a [`Machine`](dhow_types::Machine): it is told of time, proposals, messages, and of what its driver
//! has persisted and applied ([`In`]); it wishes for entries to be persisted, applied and sent ([`Out`]). A single
//! member takes the same path as five: it votes for itself, persists, and commits what it has persisted.
//!
//! Proposals and reads are taken on every member and find the leader by themselves; whoever proposed is answered when
//! its own member commits the entry, which carries the proposer's tag.
//!
//! The driver's duties: take wishes in the order in which they come, also across calls; report as persisted only what is
//! durable; report what is applied; after a start, hand in everything that had been persisted.
//!
//! # Invariants
//!
//! * An entry is committed only after a quorum reported it as persisted, and handed out only after this member did.
//! * Every proposal ends in exactly one of [`Out::Commit`] with its id, [`Out::Lost`] and [`Out::Refused`]; it is
//!   committed at most once. Every read ends in exactly one of [`Out::ReadReady`] and [`Out::Lost`].
//! * Members change one change at a time; two voters or more only by way of joint consensus. A learner is promoted only
//!   when it has caught up.
//! * No clock, no chance of its own: the engine draws election timeouts from the thread's generator, so they are drawn
//!   anew here from the seed whenever the engine may have done so. A seed replays.
//! * This is the only crate that names the engine.
//!
//! Absent on purpose: what entries mean, disks, sockets, and how an image of the state travels.

mod consensus;
mod envelope;
mod io;
mod members;
mod proposals;
mod reads;
mod tail;

pub use consensus::Consensus;
pub use io::{
    Committed, Config, In, Install, LagMax, Message, Out, Persist, Progress, ProposalId, ReadId, Refusal, Restored,
    Role, StartError,
};
pub use members::{ChangeError, MemberChange, Members};
pub use tail::{Entry, EntryKind, HardState, Position};
