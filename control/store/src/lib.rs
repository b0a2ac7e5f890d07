//! The durable store of one control node: the replicated state on disks and threads.
//!
//! [`Replica`] is all that others see. Behind it one thread drives consensus (`driver`): writes that wait are proposed
//! together, the write-ahead log (`log`, `wal`) persists them with one `fdatasync` while they are on their way to the
//! other members ([`Peers`]), the state applies them in memory, the writers are answered and the watchers (`watch`)
//! served. A third thread (`flusher`) brings the object database (`objects`, sled) up to date now and then; after that
//! old log segments go. A start (`recover`) reads the database's last epoch and replays the log behind it. A member that
//! lags too far gets an image of the state (`image`), which is also what a backup is (`restore`).
//!
//! # Invariants
//!
//! * Nothing is acknowledged before it is durable in the logs of a majority; nothing is dropped from the log that the
//!   object database has not durably flushed.
//! * Reads are served from memory. No read touches a disk, and an idle store alone writes nothing at all.
//! * Heartbeats never wait for a disk.
//! * Whatever cannot be written is refused with the reason; whatever reads back otherwise than it was written stops the
//!   start. A member that cannot write any more falls silent, so that the others go on, and tells whoever runs it
//!   ([`Replica::failed`]).
//! * This is the only crate that names sled.
//!
//! Absent on purpose: what objects mean, who may write them, HTTP, and how bytes get to other members.
//!
//! | thread | fails | ends |
//! |---|---|---|
//! | `dhow-replica` | the store is closed, and [`Replica::failed`] tells | with `close`, or with the last handle |
//! | `dhow-log` | the replica refuses writes and falls silent until the process restarts; reads and watches go on | with `dhow-replica` |
//! | `dhow-objects-load` | the start fails, or rebuilds the database | when the database is read |
//! | `dhow-objects` | as `dhow-log` | with `dhow-replica` |
//! | `dhow-wal-spare` | the next segment is made when it is needed | when its file of zeros is written |

mod driver;
mod error;
mod flusher;
mod image;
mod lock;
mod log;
mod objects;
mod recover;
mod replica;
mod restore;
mod wal;
mod watch;

pub use dhow_consensus::{ChangeError, MemberChange, Members, Position, Progress, Role};
pub use error::{Failure, OpenError, SnapshotError, WriteError};
pub use image::{ImageError, Snapshot};
pub use lock::take as lock;
pub use replica::{Alone, Config, Peers, Replica, RoleNow, Start, Status};
pub use restore::{Restored, restore};
pub use watch::{AllWatch, Filter, From, Watch, WatchItem};
