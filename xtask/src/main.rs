//! Checks and code generation: `cargo xtask <task>`.
fn main() {}
