//! The object model: JSON trees guided by one schema table, and one table of kinds.
//!
//! An object is a [`Tree`]; unknown fields, key order and number forms survive a round trip. `schema` holds the facts
//! of all built-in types: `decode` checks bodies against it, `protobuf` transcodes by it, strategic merge patches and
//! the documents of `openapi` follow from it. `kinds` says what each
//! kind adds by hand (names, defaults, validation, status rule, columns, field selectors); everything else here is
//! generic and loops over that table: `discovery`, `table`, `index`, `selector`, `patch`. `status` and `field` hold
//! the words in which Kubernetes says no.
//!
//! Invariants: pure, so no clock, no chance, no I/O; `now` is an argument. Nothing panics on bad input. Does not know
//! about HTTP, storage or users.

pub mod decode;
pub mod discovery;
pub mod field;
pub mod index;
pub mod kinds;
pub mod meta;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod validate;

/// An object or a part of it: a JSON value that keeps the order of its keys and the form of its numbers.
pub type Tree = serde_json::Value;
