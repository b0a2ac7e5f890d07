//! Mistakes that can be planted in how the parts are driven.

/// A mistake to plant. Each is one that a driver could make; the parts themselves stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// None.
    Sound,
    /// A write is acknowledged when it is proposed.
    EarlyAcknowledgement,
    /// A write to the log is reported as durable without a sync.
    SkippedSync,
    /// A vote that comes without entries is reported as durable without a sync.
    ForgottenVote,
    /// The log is dropped up to what is applied, not up to what is flushed.
    EarlyTruncation,
    /// A watcher misses a change now and then.
    DroppedChange,
    /// A watcher that comes back is given the last change once more.
    RepeatedChange,
    /// A member that starts again gives out the last revision once more.
    ReusedRevision,
    /// A read is answered without asking whether the state is up to date.
    StaleRead,
    /// A member answers a read with what it answered the last time, though it has asked whether its state is up to date.
    CachedRead,
    /// A rejected transaction is answered as if it had been done.
    IgnoredRejection,
    /// An image is sent with the position before its own.
    ImageAtWrongPosition,
    /// A member that starts again does not know of the last change of the members.
    ForgottenMembers,
    /// A proposal that was lost is proposed again.
    RepeatedProposal,
}

impl Bug {
    /// All there are.
    pub const ALL: [Bug; 13] = [
        Bug::EarlyAcknowledgement,
        Bug::SkippedSync,
        Bug::ForgottenVote,
        Bug::EarlyTruncation,
        Bug::DroppedChange,
        Bug::RepeatedChange,
        Bug::ReusedRevision,
        Bug::StaleRead,
        Bug::CachedRead,
        Bug::IgnoredRejection,
        Bug::ImageAtWrongPosition,
        Bug::ForgottenMembers,
        Bug::RepeatedProposal,
    ];
}
