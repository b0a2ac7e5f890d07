//! The binary `dhow`: a cluster in one process, its parts as separate processes, and a client for both.
//!
//! Each verb is one file under `verbs/`. This file parses the command line, sets up logging, and prints errors. Without
//! the feature `control` the binary is an agent and nothing else; without `compiler` it compiles nothing.

#[cfg(feature = "control")]
mod clock;
#[cfg(feature = "control")]
mod cluster;
#[cfg(feature = "control")]
mod kube;
#[cfg_attr(not(feature = "control"), allow(dead_code, reason = "an agent says little"))]
mod output;
#[cfg_attr(not(feature = "control"), allow(dead_code, reason = "an agent has no kubeconfig"))]
mod paths;
#[cfg(feature = "control")]
mod print;
#[cfg(feature = "control")]
mod session;
mod signals;
#[cfg(feature = "control")]
mod terminal;
mod verbs;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Objects are made on one thread and freed on another all the time, which the C library's allocator is slow at: it took
/// a sixth of a busy control node's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Kubernetes for WebAssembly, in one binary.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[cfg(feature = "control")]
    #[command(flatten)]
    global: kube::Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    #[cfg(feature = "control")]
    #[command(flatten)]
    Cluster(cluster::Verb),
    /// Run a node agent that joins a control node
    #[command(display_order = 2)]
    Agent(verbs::agent::Args),
    #[cfg(feature = "compiler")]
    #[command(hide = true, name = verbs::compile_worker::VERB)]
    CompileWorker(verbs::compile_worker::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before there are threads or files: this process is to have nothing but its one program.
    #[cfg(feature = "compiler")]
    if let Verb::CompileWorker(args) = &cli.verb {
        return ExitCode::from(verbs::compile_worker::run(args));
    }
    init_logging();
    // A node holds a log file per container: the usual soft limit of 1,024 files would be its capacity.
    if let Err(err) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%err, "the limit of open files could not be raised");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            output::error(&anyhow::Error::new(err).context("starting the I/O runtime"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => failed(&err),
    }
}

/// Says what went wrong; who ran a command elsewhere ends as that command did.
fn failed(err: &anyhow::Error) -> ExitCode {
    #[cfg(feature = "control")]
    if let Some(session::Terminated(code)) = err.downcast_ref() {
        output::note(err.to_string());
        // What is greater than a byte is not zero, and must not look like it.
        return ExitCode::from(u8::try_from(*code).unwrap_or(u8::MAX));
    }
    output::error(err);
    ExitCode::FAILURE
}

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        #[cfg(feature = "control")]
        Verb::Cluster(verb) => cluster::dispatch(verb, &cli.global).await,
        Verb::Agent(args) => verbs::agent::run(args).await,
        #[cfg(feature = "compiler")]
        Verb::CompileWorker(_) => unreachable!("it was run before"),
    }
}

/// Logs go to standard error; `DHOW_LOG` filters them as `RUST_LOG` does elsewhere, by level and module.
fn init_logging() {
    let wanted = std::env::var(paths::LOG_ENV).ok().and_then(|text| text.parse().ok());
    let filter: Targets = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}
