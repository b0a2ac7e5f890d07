//! Decides what the control plane wants next: the controllers and the scheduler as one pure machine.
//!
//! Changes of objects come in ([`In::Changed`]), writes go out ([`Out::Write`]), results of writes come back
//! ([`In::Written`]). `cache` keeps what is known, `queue` which key of which controller is looked at next, `plan` is
//! what a controller decides with and what it decides, `controllers` holds one file a controller, `scheduler` one file
//! a rule. `machine` ties them together.
//!
//! Invariants:
//! * Level-triggered: a controller is told which key to look at, never what happened to it.
//! * A key is not looked at before the cache holds the key's own last writes.
//! * Names of created objects follow from what was seen, so a repeated decision makes the same name, not a second
//!   object.
//! * No clock, no chance, no I/O, and nothing in hash order: the same inputs give the same writes.
//!
//! Deliberately absent: retries of single writes (the key is looked at anew), watching (the shell feeds us), defaults
//! and validation (every write takes the API's usual path).

mod cache;
mod controllers;
mod events;
mod machine;
mod plan;
mod queue;
mod scheduler;
mod views;
mod wish;

pub use machine::{Config, Controllers};
pub use wish::{In, Out, Propagation, Write, WriteFault, WriteId};
