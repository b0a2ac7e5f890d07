//! `cargo xtask <task>`: checks and code generation.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks and code generation")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Makes the table of Kubernetes types (`api/schema/table.txt`) from the sources of two dependencies.
    Schema {
        /// Writes nothing; fails if the committed table differs.
        #[arg(long)]
        check: bool,
    },
    /// Checks that the samples' committed binaries belong to their sources.
    Samples {
        /// Writes the record instead, after a build.
        #[arg(long)]
        record: bool,
    },
    /// Builds, starts a cluster, deploys a sample and shows its answer.
    Demo {
        /// Ends the cluster after the answer.
        #[arg(long)]
        once: bool,
    },
}

fn main() -> ExitCode {
    let outcome = match Args::parse().task {
        Task::Schema { check: true } => xtask::schema::check(),
        Task::Schema { check: false } => xtask::schema::write(),
        Task::Samples { record: false } => xtask::samples::check(),
        Task::Samples { record: true } => xtask::samples::record(),
        Task::Demo { once } => xtask::demo::run(once, say),
    };
    match outcome {
        Ok(said) => {
            say(&said);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command-line tool speaks to its user")]
fn say(text: &str) {
    eprintln!("{text}");
}
