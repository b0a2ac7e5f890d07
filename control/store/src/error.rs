//! What can go wrong, by what the caller can do about it.

use dhow_consensus::{ChangeError, Refusal};
use dhow_state::Rejected;
use std::io;
use std::path::PathBuf;

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("data directory `{}` is in use by process {owner}; stop that one or choose another directory", dir.display())]
    InUse {
        /// Which directory.
        dir: PathBuf,
        /// The other's process id, as it wrote it.
        owner: String,
    },
    /// The operating system refused.
    #[error("{doing} `{}`", path.display())]
    Io {
        /// `reading`, `creating`…
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Bytes that we wrote are not what we wrote.
    #[error("`{}` is damaged: {what}; this member's data cannot be trusted", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where and how.
        what: String,
    },
    /// Written by a newer version.
    #[error("`{}` has format {found}, this version reads {known}: run a newer dhow", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest one that we read.
        known: u32,
    },
    /// The directory belongs to another member.
    #[error("data directory `{}` belongs to member {found}, not to member {wanted}", dir.display())]
    OtherMember {
        /// Which directory.
        dir: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who wants it.
        wanted: u64,
    },
}

/// Why a running store cannot go on: it answers reads and does nothing else. Its process should end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Failure {
    /// What happened, and what to do if the data is still good.
    pub why: String,
    /// The data cannot be trusted any more, and every later start says so, too.
    pub is_loss: bool,
}

/// Why a snapshot was not taken in, or a backup not restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The stream cannot be read.
    #[error("the snapshot cannot be read")]
    Read(#[source] io::Error),
    /// The bytes are not a whole snapshot; nothing was changed.
    #[error("the snapshot cannot be used")]
    Image(#[from] crate::image::ImageError),
    /// The message ahead of it is larger than any of ours.
    #[error("the message ahead of the snapshot has {0} bytes")]
    Message(usize),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// The directory to restore into is not empty; nothing was changed.
    #[error("`{}` is not empty: name a new directory, or move what is there away", dir.display())]
    Occupied {
        /// Which directory.
        dir: PathBuf,
    },
    /// The directory cannot be written.
    #[error("writing a data directory")]
    Write(#[from] OpenError),
}

/// Why a write was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The state does not allow it; nothing was changed.
    #[error("the write was rejected")]
    Rejected(#[from] Rejected),
    /// Nobody led who could have taken it; nothing was changed. It can be tried again.
    #[error("no member leads; try again when a majority of the members is up")]
    NoLeader,
    /// It was on its way when the leader changed or fell silent: it may have happened, or may still happen.
    #[error("the leader changed while the write was on its way: it may have happened, so look before writing again")]
    Lost,
    /// The members cannot be changed so; nothing was changed.
    #[error("the members cannot be changed: {0}")]
    Change(ChangeError),
    /// The store does not take writes now. If it was on its way already, it may still have happened.
    #[error("the store does not take writes: {0}")]
    Unavailable(String),
    /// An object is larger than 1.5 MiB, or the transaction larger than 8 MiB.
    #[error("an object may have 1.5 MiB and a transaction 8 MiB")]
    TooLarge,
}

impl From<Refusal> for WriteError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoLeader => Self::NoLeader,
            Refusal::Change(why) => Self::Change(why),
            Refusal::Overloaded | Refusal::Removed => Self::Unavailable(refusal.to_string()),
        }
    }
}
