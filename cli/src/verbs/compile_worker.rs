//! `dhow compile-worker`: the process in which a node compiles one program. Not for people.

use dhow_engine::CompileLimits;

/// What it may use.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bytes of memory, seconds of processor time, seconds
    limits: CompileLimits,
}

/// The name of this verb, for those who execute this binary again.
pub(crate) const VERB: &str = "compile-worker";

pub(crate) fn run(args: &Args) -> u8 {
    dhow_engine::compile_worker(args.limits)
}
