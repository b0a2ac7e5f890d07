//! What consensus is told and what it wishes for.

use crate::members::{ChangeError, MemberChange, Members};
use crate::tail::{Entry, HardState, Position};
use bytes::Bytes;

/// Names a proposal towards the driver that made it; never used twice while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId(pub u64);

/// Names a read towards the driver that asked; never used twice while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// How this member behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which member this is; not zero.
    pub member: u64,
    /// Random for each start: what a former life of this member proposed and asked is never taken for ours.
    pub incarnation: u64,
    /// Where the election timeouts come from.
    pub seed: u64,
    /// The length of a tick. Elections take 10 to 20 of them, a heartbeat 2.
    pub tick_ms: u64,
    /// Votes and keeps the end of the log, and has no state: it leads only until someone better can.
    pub witness: bool,
    /// What stays in memory for members that lag.
    pub lag_max: LagMax,
}

/// How much of the log stays in memory behind what is applied. A member that lags by more gets a snapshot. A member
/// alone keeps nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LagMax {
    /// Applied entries that stay, whoever needs them.
    pub entries: usize,
    /// The bytes of those entries. Small, for an idle member holds them, too.
    pub bytes: usize,
    /// The bytes that stay while a member that answers still needs them, or a snapshot is on its way: without them, a
    /// snapshot of a busy store would be too old when it arrives.
    pub needed_bytes: usize,
}

impl Default for LagMax {
    fn default() -> Self {
        Self { entries: 10_000, bytes: 16 << 20, needed_bytes: 128 << 20 }
    }
}

/// What had been persisted and applied when the member stopped.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The members as of `applied`. None: the member waits until a leader tells it.
    pub members: Members,
    /// As last persisted.
    pub hard_state: HardState,
    /// The last entry that the driver's state holds.
    pub applied: Position,
    /// All persisted entries behind it.
    pub entries: Vec<Entry>,
}

/// Why a member cannot start from what it was handed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The entries do not follow each other, or not the applied one.
    #[error("the log has entry {found} where {expected} must follow")]
    Gap {
        /// The index that must come.
        expected: u64,
        /// The index that comes.
        found: u64,
    },
    /// The engine refuses the configuration.
    #[error("the member cannot start: {0}")]
    Config(String),
}

/// What happened.
#[derive(Clone, Debug)]
pub enum In {
    /// Someone wants these appended. A follower sends them to its leader.
    Propose(Vec<(ProposalId, Bytes)>),
    /// Someone wants other members. It is done when its entry is committed; of several wishes, when the members that
    /// come with a later entry are no longer [joint](Members::is_joint).
    ChangeMembers(ProposalId, Vec<MemberChange>),
    /// Someone else shall lead: this member, or whichever is best. Nothing comes of it if nobody can.
    TransferLeadership {
        /// Whom to hand over to.
        to: Option<u64>,
    },
    /// Another member sent this.
    Message(Bytes),
    /// Another member sent an image of its state, which is whole, checked and held ready. Unless [`Out::Install`]
    /// follows from this very input, nobody wants it.
    Snapshot {
        /// As in [`Out::SendSnapshot`].
        message: Bytes,
        /// What the image holds; not before what the message says.
        position: Position,
        /// The members as of `position`.
        members: Members,
    },
    /// The image for this member has been taken there, or has not.
    SnapshotSent {
        /// Which member.
        to: u64,
        /// Whether it has.
        ok: bool,
    },
    /// What was sent to this member of late may be lost.
    Unreachable(u64),
    /// All [`Persist`]s and installs up to this number are durable.
    Persisted(u64),
    /// All entries up to this index are applied.
    Applied(u64),
    /// Someone wants to read what is committed by now.
    ReadIndex(ReadId),
}

/// What shall happen.
#[derive(Clone, Debug)]
pub enum Out {
    /// Make this durable, then say [`In::Persisted`].
    Persist(Persist),
    /// Send these to other members. They may be lost, doubled and overtake each other.
    Send(Vec<Message>),
    /// Stream `message` and an image of the present state, or a later one, to a member, then say [`In::SnapshotSent`].
    SendSnapshot {
        /// Which member.
        to: u64,
        /// What [`In::Snapshot`] takes there.
        message: Bytes,
    },
    /// Make the image of [`In::Snapshot`] the state and forget the whole log, durably and at once; then say
    /// [`In::Persisted`]. What was handed out to be applied before may be skipped; whoever waits for an entry of it is
    /// answered as if it were [lost](Out::Lost).
    Install(Install),
    /// Apply these, then say [`In::Applied`].
    Commit(Vec<Committed>),
    /// The state has applied all that was committed when the read was asked for.
    ReadReady(ReadId),
    /// These proposals and reads will not be answered. The proposals may still be committed.
    Lost {
        /// The proposals.
        proposals: Vec<ProposalId>,
        /// The reads.
        reads: Vec<ReadId>,
    },
    /// This proposal has not been committed and never will be.
    Refused(ProposalId, Refusal),
    /// The member has another role now, or follows someone else, or in another term.
    Role {
        /// Which one.
        role: Role,
        /// In which term.
        term: u64,
    },
    /// The others know that this member held entries up to `known`, and its log ends before: its disk has lost what
    /// it had synced. It must stop, for its votes are worth nothing; it can join anew under another number.
    Forgot {
        /// What the others know.
        known: u64,
        /// Where the log ends.
        last: u64,
    },
}

/// What must be durable before anyone hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Grows with every wish.
    pub number: u64,
    /// To be appended; they replace what was there from the first one's index on.
    pub entries: Vec<Entry>,
    /// To be kept in the place of the former one.
    pub hard_state: HardState,
}

/// The place of an image in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// Counted together with [`Persist`]'s.
    pub number: u64,
    /// What the image holds. The log begins behind it and is empty.
    pub position: Position,
    /// The members as of `position`.
    pub members: Members,
    /// To be kept in the place of the former one.
    pub hard_state: HardState,
}

/// A message for another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which member.
    pub to: u64,
    /// What [`In::Message`] takes there.
    pub bytes: Bytes,
}

/// An entry that will never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Set if this member proposed it since it started, and still waits for it.
    pub id: Option<ProposalId>,
    /// What was proposed; empty where a term began or the members changed.
    pub data: Bytes,
    /// Set if the entry changed the members: in force from here on, and to be stored along with the applied position.
    pub members: Option<Members>,
}

/// Why a proposal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody led, or nobody who led could take it, for about two election timeouts.
    #[error("no member leads")]
    NoLeader,
    /// Too much waits to be committed already.
    #[error("too many writes wait for a majority of the members")]
    Overloaded,
    /// This member is none any more.
    #[error("this member has been removed")]
    Removed,
    /// The members cannot be changed so.
    #[error("{0}")]
    Change(ChangeError),
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes proposals.
    Leader,
    /// Follows someone, or nobody yet.
    Follower {
        /// Whom.
        leader: Option<u64>,
    },
    /// Asks for votes.
    Candidate,
    /// Is no member any more. It keeps quiet; its data may be deleted.
    Removed,
}

/// How far another member is, as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which member; the leader itself is among them.
    pub member: u64,
    /// It has persisted the log up to here.
    pub matched: u64,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it was heard of within an election timeout.
    pub active: bool,
}
