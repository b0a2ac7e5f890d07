//! What can go wrong, by what the caller can do about it.

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
    #[error("`{}` is damaged: {what}; this member's data cannot be trusted: restore a backup or rebuild it from another member", path.display())]
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

/// Why a write was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The state does not allow it; nothing was changed.
    #[error("the write was rejected")]
    Rejected(#[from] Rejected),
    /// The store does not take writes now. If it was on its way already, it may still have happened.
    #[error("the store does not take writes: {0}")]
    Unavailable(String),
    /// An object is larger than 1.5 MiB, or the transaction larger than 8 MiB.
    #[error("an object may have 1.5 MiB and a transaction 8 MiB")]
    TooLarge,
}
