//! The durable store of one control node: the replicated state on disks and threads.
//!
//! [`Replica`] is all that others see. Behind it one thread drives consensus (`driver`): writes that wait are proposed
//! together, the write-ahead log (`wal`) persists them with one `fdatasync`, the state applies them in memory, the
//! writers are answered and the watchers (`watch`) served. A second thread (`flusher`) brings the object database
//! (`objects`, sled) up to date every few seconds; after that old log segments go. A start (`recover`) reads the
//! database's last epoch and replays the log behind it.
//!
//! # Invariants
//!
//! * Nothing is acknowledged before it is durable in the log; nothing is dropped from the log that the object database
//!   has not durably flushed.
//! * Reads are served from memory. No read touches a disk, and an idle store writes nothing at all.
//! * Whatever cannot be written is refused with the reason; whatever reads back otherwise than it was written stops the
//!   start.
//! * This is the only crate that names sled.
//!
//! Absent on purpose: what objects mean, who may write them, HTTP. Members beyond the first are not served yet.
//!
//! | thread | fails | ends |
//! |---|---|---|
//! | `dhow-replica` | refuses writes until the process restarts; reads and watches go on | with `close`, or with the last handle |
//! | `dhow-objects-load` | the start fails, or rebuilds the database | when the database is read |
//! | `dhow-objects` | as `dhow-replica` | with `dhow-replica` |
//! | `dhow-wal-spare` | the next segment is made when it is needed | when its file of zeros is written |

mod driver;
mod error;
mod flusher;
mod lock;
mod objects;
mod recover;
mod replica;
mod wal;
mod watch;

pub use error::{OpenError, WriteError};
pub use replica::{Config, Replica};
pub use watch::{AllWatch, Filter, From, Watch, WatchItem};
