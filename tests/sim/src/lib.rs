//! The deciding parts of a control node, run from one seed on a virtual clock and a simulated disk.
//!
//! A [`World`] draws what happens next from its generator: a client writes or reads, the disk finishes a sync, the
//! state is flushed, a watcher catches up, the process dies. After each step it checks what must always hold and gives
//! the first [`Violation`]. A seed is the whole run: equal seeds give equal traces.
//!
//! What is checked: no acknowledged write is lost or comes back different; revisions grow by one; a state at a
//! revision is the same whenever it is reached; a read sees what was acknowledged before it was asked for; a watcher
//! gets every change once and in order.
//!
//! [`Bug`]s can be planted in the driving of the parts, to show that the checks are awake. Members, networks and
//! controllers are not simulated here yet.

mod disk;
mod world;

pub use disk::Disk;
pub use world::{Bug, Report, Violation, World};
