//! A whole control plane in one thread, run from one seed: members, their disks and clocks, the network between them,
//! clients, watchers, and an operator who adds and removes members.
//!
//! A [`World`] draws from its generator what goes wrong in it and what happens next. First there is a storm: messages
//! are lost, late, doubled and out of order; ways are cut, also in one direction; processes die and lose what was not
//! synced, or stand still; disks are slow, fail, or are lost for good; clocks go at their own pace; members come and go,
//! and may be witnesses. Then it is calm, and all must come to rest. A seed is the whole run: equal seeds give equal
//! traces.
//!
//! What is checked after every step: one leader a term; entries, members and the state's hash are the same at the same
//! index, on every member and in every life; no write is done twice, or after it was refused; revisions and reads are
//! not older than what anyone was told before; a watcher gets every change once and in order. At the end: all
//! acknowledged writes are there, nobody waits, all states and watchers agree, and what clients saw of each key is
//! linearizable.
//!
//! [`Bug`]s can be planted in the driving of the parts, to show that the checks are awake.
//!
//! The tests run 200 seeds. For longer, and for one seed in words:
//!
//! ```text
//! cargo run --release -p dhow-sim-tests -- --seeds 100000
//! cargo run --release -p dhow-sim-tests -- --replay 17
//! ```
//!
//! Only the driving is written anew here: consensus and state are those of production. What production's driver does
//! with threads, files and sockets is tested where it is.

mod bug;
mod clients;
mod disk;
mod linear;
mod network;
mod node;
mod operator;
mod trace;
mod truth;
mod watchers;
mod weather;
mod world;

pub use bug::Bug;
pub use world::{Report, Violation, World};
