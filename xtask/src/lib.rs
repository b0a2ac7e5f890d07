//! Checks and code generation for the repository, behind `cargo xtask <task>`.
//!
//! [`schema`] makes the table of Kubernetes types that the `api` crate is driven by. It lives in a library so that a
//! test can compare the committed table with a fresh one in the ordinary test run.

pub mod demo;
pub mod samples;
pub mod schema;
