//! The gate: what a request means, who may make it, and what it does to the stored state.
//!
//! [`request`] reads method, path and query; [`authorize`](mod@authorize) says whether the [`user`] may;
//! [`media`] chooses encodings; [`options`] reads parameters; [`token`] says what the tokens of service accounts mean. Then either [`list`](mod@list) and [`watch`] read, or
//! [`write`] plans: defaults, checks, addresses, grace periods, finalizers, all as one value that the store takes or
//! refuses as a whole.
//!
//! # Invariants
//!
//! * Pure: no socket, no clock, no chance. Time and seeds are arguments; the same inputs give the same plan.
//! * A plan names the revisions that it was decided on. Nothing is decided twice and nothing is written here.
//! * Kinds are data (`dhow_api::kinds`). Where a kind needs more than its file can say (addresses that no other object
//!   may have, verbs of its own), it is in one place: `write/service.rs`, `write/pod.rs`.
//!
//! Absent on purpose: HTTP, sockets, certificates (the server), and what objects mean to each other (the controllers).

pub mod authorize;
pub mod list;
pub mod media;
pub mod options;
pub mod request;
pub mod token;
pub mod user;
pub mod watch;
pub mod write;

pub use authorize::authorize;
pub use request::{Query, RequestInfo, ResourceRequest, Target, Verb};
pub use user::User;
