//! The binary `dhow`: a cluster in one process, its parts as separate processes, and a client for both.
//!
//! Each verb is one file under `verbs/`. This file parses the command line, sets up logging, and prints errors.

mod clock;
mod kube;
mod output;
mod paths;
mod print;
mod session;
mod signals;
mod terminal;
mod verbs;

use clap::{Parser, Subcommand};
use session::Terminated;
use std::process::ExitCode;

/// Objects are made on one thread and freed on another all the time, which the C library's allocator is slow at: it took
/// a sixth of a busy control node's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Kubernetes for WebAssembly, in one binary.
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: kube::Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a whole cluster in this process
    Up(verbs::up::Args),
    /// Run a control node
    Server(verbs::server::Args),
    /// Run a node agent that joins a control node
    Agent(verbs::agent::Args),
    /// Make tokens with which agents and control nodes join
    Token(verbs::token::Args),
    /// List, add, remove or promote control nodes
    Member(verbs::member::Args),
    /// Show how the control nodes are
    Status(verbs::status::Args),
    /// Write the whole state of the cluster to a file
    Backup(verbs::backup::Args),
    /// Make a control node's data directory from a backup
    Restore(verbs::restore::Args),
    /// List the cluster's certificates
    Certificate(verbs::certificate::Args),
    /// Push a Wasm file into the cluster's registry
    Push(verbs::push::Args),
    /// Show what an image or a Wasm file imports, exports, and needs
    Inspect(verbs::inspect::Args),
    /// Run an image or a Wasm file as a Deployment with a Service
    Run(verbs::run::Args),
    /// Show objects
    Get(verbs::get::Args),
    /// Show an object in full, with its events
    Describe(verbs::describe::Args),
    /// Create or update the objects of manifest files
    Apply(verbs::apply::Args),
    /// Delete objects
    Delete(verbs::delete::Args),
    /// Print a container's log
    Logs(verbs::logs::Args),
    /// Run a command in a container
    Exec(verbs::exec::Args),
    /// Copy files into a container or out of it
    Cp(verbs::cp::Args),
    /// Show what nodes or pods use
    Top(verbs::top::Args),
    /// Fetch the core dump of a container that trapped
    Coredump(verbs::coredump::Args),
    /// Set the number of replicas
    Scale(verbs::scale::Args),
    /// Follow, show, undo or restart a rollout
    Rollout(verbs::rollout::Args),
    #[command(hide = true, name = verbs::compile_worker::VERB)]
    CompileWorker(verbs::compile_worker::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before there are threads or files: this process is to have nothing but its one program.
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
        Err(err) => {
            if let Some(Terminated(code)) = err.downcast_ref() {
                output::note(err.to_string());
                // What is greater than a byte is not zero, and must not look like it.
                return ExitCode::from(u8::try_from(*code).unwrap_or(u8::MAX));
            }
            output::error(&err);
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let global = cli.global;
    match cli.verb {
        Verb::Up(args) => verbs::up::run(args, &global).await,
        Verb::Server(args) => verbs::server::run(args, &global).await,
        Verb::Agent(args) => verbs::agent::run(args).await,
        Verb::Token(args) => verbs::token::run(args, &global).await,
        Verb::Member(args) => verbs::member::run(args, &global).await,
        Verb::Status(args) => verbs::status::run(args, &global).await,
        Verb::Backup(args) => verbs::backup::run(args, &global).await,
        Verb::Restore(args) => verbs::restore::run(args).await,
        Verb::Certificate(args) => verbs::certificate::run(args, &global).await,
        Verb::Push(args) => verbs::push::run(args, &global).await,
        Verb::Inspect(args) => verbs::inspect::run(args, &global).await,
        Verb::Run(args) => verbs::run::run(args, &global).await,
        Verb::Get(args) => verbs::get::run(args, &global).await,
        Verb::Describe(args) => verbs::describe::run(args, &global).await,
        Verb::Apply(args) => verbs::apply::run(args, &global).await,
        Verb::Delete(args) => verbs::delete::run(args, &global).await,
        Verb::Logs(args) => verbs::logs::run(args, &global).await,
        Verb::Exec(args) => verbs::exec::run(args, &global).await,
        Verb::Cp(args) => verbs::cp::run(args, &global).await,
        Verb::Top(args) => verbs::top::run(args, &global).await,
        Verb::Coredump(args) => verbs::coredump::run(args, &global).await,
        Verb::Scale(args) => verbs::scale::run(args, &global).await,
        Verb::Rollout(args) => verbs::rollout::run(args, &global).await,
        Verb::CompileWorker(_) => unreachable!("it was run before"),
    }
}

/// Logs go to standard error; `DHOW_LOG` filters them as `RUST_LOG` does elsewhere.
fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env(paths::LOG_ENV)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
