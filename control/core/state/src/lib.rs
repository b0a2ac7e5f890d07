//! The replicated state of a cluster: every object in its latest form, one revision for all of them, and the recent
//! changes for those who watch.
//!
//! [`Txn`] is what goes through the log: a few puts and deletes, each with what it [`Expect`]s to find. [`State::apply`]
//! does all of a transaction or none of it, gives it the next [`Revision`](dhow_types::Revision), and leaves one [`Change`] an operation in the
//! history. Reads are ranges over one ordered map, so a list in pages is the same walk as a list in one piece.
//!
//! # Invariants
//!
//! * Equal transactions at equal indexes give equal states: no clock, no chance, no hash order. [`State::hash`] is the
//!   proof that members compare.
//! * The revision grows by exactly one with each accepted, non-empty transaction and by nothing else.
//! * Objects are kept as the JSON text that clients gave, plus the few keys that selectors need. A tree is made only
//!   when someone asks; `metadata.resourceVersion` is put into the text without writing the text anew.
//! * There are no old versions beyond the bounded history: an older list is the present one with the changes since undone.
//!
//! Absent on purpose: what a kind means (the gate), how bytes get to a disk (the store), who may do what.
//!
//! # Memory
//!
//! An object costs its JSON text plus about 350 bytes: 210 for the object and its reference count, 11 for its place in
//! the map, the name, the UID, and for each label about 50 and its text.

mod hash;
mod history;
mod json;
mod key;
mod object;
mod state;
mod txn;
mod wire;

pub use history::{Change, Compacted, HistoryMax};
pub use key::Key;
pub use object::{Malformed, OBJECT_BYTES_MAX, Object};
pub use state::State;
pub use txn::{Applied, Expect, Op, Prepared, Rejected, Txn};
pub use wire::DecodeError;
