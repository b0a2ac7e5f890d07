//! The verbs of a cluster: its control nodes, and its client.

use crate::kube::Global;
use crate::verbs;
use clap::Subcommand;

/// All but the agent's.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Run a whole cluster in this process
    Up(verbs::up::Args),
    /// Run a control node
    Server(verbs::server::Args),
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
}

/// Runs a verb.
pub(crate) async fn dispatch(verb: Verb, global: &Global) -> anyhow::Result<()> {
    match verb {
        Verb::Up(args) => verbs::up::run(args, global).await,
        Verb::Server(args) => verbs::server::run(args, global).await,
        Verb::Token(args) => verbs::token::run(args, global).await,
        Verb::Member(args) => verbs::member::run(args, global).await,
        Verb::Status(args) => verbs::status::run(args, global).await,
        Verb::Backup(args) => verbs::backup::run(args, global).await,
        Verb::Restore(args) => verbs::restore::run(args).await,
        Verb::Certificate(args) => verbs::certificate::run(args, global).await,
        Verb::Push(args) => verbs::push::run(args, global).await,
        Verb::Inspect(args) => verbs::inspect::run(args, global).await,
        Verb::Run(args) => verbs::run::run(args, global).await,
        Verb::Get(args) => verbs::get::run(args, global).await,
        Verb::Describe(args) => verbs::describe::run(args, global).await,
        Verb::Apply(args) => verbs::apply::run(args, global).await,
        Verb::Delete(args) => verbs::delete::run(args, global).await,
        Verb::Logs(args) => verbs::logs::run(args, global).await,
        Verb::Exec(args) => verbs::exec::run(args, global).await,
        Verb::Cp(args) => verbs::cp::run(args, global).await,
        Verb::Top(args) => verbs::top::run(args, global).await,
        Verb::Coredump(args) => verbs::coredump::run(args, global).await,
        Verb::Scale(args) => verbs::scale::run(args, global).await,
        Verb::Rollout(args) => verbs::rollout::run(args, global).await,
    }
}
