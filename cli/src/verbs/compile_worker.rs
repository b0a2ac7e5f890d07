//! `dhow compile-worker`: the process in which a node compiles one program. Not for people.

use dhow_engine::{CompileLimits, Compiler, Target, Worker};

/// What it may use.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Bytes of memory, seconds of processor time, seconds
    limits: CompileLimits,
    /// For whom
    target: Target,
}

/// The name of this verb, for those who execute this binary again.
pub(crate) const VERB: &str = "compile-worker";

pub(crate) fn run(args: &Args) -> u8 {
    dhow_engine::compile_worker(args.limits, &args.target)
}

/// Compiles by executing this binary again.
pub(crate) fn compiler() -> Compiler {
    Compiler::Worker(Worker::this_binary(VERB))
}
