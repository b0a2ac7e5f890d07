//! What the client verbs decide and write, apart from talking to a cluster and a terminal.
//!
//! `jsonpath` reads and follows `kubectl`'s templates, `columns` makes tables of them, `goform` and `yaml` write values
//! as Go does; `members` shows the control nodes and their certificates, `selector` says which pods an object means; `sort`
//! puts objects in order; `words` are types
//! and names on a command line; `copy`, `session` and `usage` are what `cp`, `exec` and `top` decide; `describe` turns an object and what is around it into the text of `dhow describe`.
//!
//! Invariants: pure, so no clock, no chance, no I/O; `now` is an argument. Trees go in, text comes out. Where
//! `kubectl` has an answer, it is that one.

pub mod columns;
pub mod copy;
pub mod describe;
pub mod goform;
pub mod jsonpath;
pub mod members;
pub mod selector;
pub mod session;
pub mod sort;
pub mod usage;
pub mod words;
pub mod yaml;
