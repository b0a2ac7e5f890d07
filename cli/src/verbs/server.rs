//! `dhow server`: a control node.

use crate::kube::Global;
use crate::verbs::compile_worker;
use crate::{output, paths, signals};
use anyhow::Context as _;
use dhow_engine::{CodeSettings, LoadError};
use dhow_server::{BackupConfig, Compile, CompileJob, CompileRefusal, Config, Join, Server, ServerError};
use dhow_types::Chain;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a predecessor that was killed a moment ago may keep its address and data directory: the kernel takes
/// that long to tear down a large process.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// How long between two attempts to take them over.
const RETRY: Duration = Duration::from_millis(50);

/// Where the control node keeps its data and listens, and which cluster it belongs to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the API listens; other control nodes must reach it
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "IP:PORT")]
    bind: SocketAddr,
    /// Join the cluster of this control node, at the first start or when the data is lost; without it the first start
    /// begins a cluster of its own
    #[arg(long, value_name = "https://HOST:PORT")]
    join: Option<String>,
    /// A token from `dhow member add` or `dhow token create`; needed at the first start only
    #[arg(long, env = "DHOW_TOKEN", value_name = "TOKEN")]
    token: Option<String>,
    /// The name among the control nodes; the machine's by default
    #[arg(long)]
    name: Option<String>,
    /// Vote, but hold no objects: for a third site beside two real ones
    #[arg(long)]
    witness: bool,
    /// Make a backup in the data directory every so many hours; 0 makes none
    #[arg(long, default_value_t = 24, value_name = "HOURS")]
    backup_hours: u32,
    /// How many of those backups are kept
    #[arg(long, default_value_t = 7, value_name = "NUMBER")]
    backups_kept: usize,
    /// How long certificates are valid that this control node issues; for tests, which cannot wait for a year
    #[arg(long, hide = true, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(3..))]
    certificate_seconds: Option<u32>,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let Args { data_dir, bind, join, token, name, witness, backup_hours, backups_kept, certificate_seconds } = args;
    let data_dir = data_dir.map_or_else(paths::data_dir, Ok)?;
    let mut config = Config::new(state_dir(&data_dir), bind);
    config.name = name;
    // A control node that has joined needs no token any more: that one is missing is told by the join itself.
    config.join = join.map(|server| Join { server, token: token.unwrap_or_default() });
    config.witness = witness;
    let every = Duration::from_secs(u64::from(backup_hours) * 3600);
    if let Some(seconds) = certificate_seconds {
        config.certificate_life = Duration::from_secs(seconds.into());
    }
    config.backups = BackupConfig { every: (!every.is_zero()).then_some(every), kept: backups_kept };
    let server = start(config).await.map_err(|err| with_hint(err, &data_dir, bind))?;
    let kubeconfig = global.kubeconfig.clone().unwrap_or_else(|| paths::kubeconfig(&data_dir));
    let served = serve(&server, &kubeconfig).await;
    server.stop().await;
    served.map_err(|err| with_hint(err, &data_dir, bind))
}

/// Adds the one command that brings a control node back whose data is lost.
fn with_hint(err: anyhow::Error, data_dir: &Path, bind: SocketAddr) -> anyhow::Error {
    let lost = err.chain().find_map(|cause| match cause.downcast_ref() {
        Some(ServerError::Lost { rebuild, .. }) => Some(rebuild.hint(data_dir, bind)),
        _ => None,
    });
    match lost {
        Some(hint) => anyhow::anyhow!("{err:#}\nhint: {hint}"),
        None => err,
    }
}

async fn serve(server: &Server, kubeconfig: &Path) -> anyhow::Result<()> {
    let stop = signals::stop_requested();
    paths::write_private(kubeconfig, &server.admin_kubeconfig())?;
    if let Some(aside) = server.set_aside() {
        output::line(format!("former data: {} (delete it when nothing in it is needed)", aside.display()));
    }
    output::line(format!("kubeconfig: {}", kubeconfig.display()));
    output::line(format!("ready: {}", server.url()));
    tokio::select! {
        stopped = stop => stopped.context("waiting for signals"),
        () = keep_kubeconfig(server, kubeconfig) => Ok(()),
        why = server.ended() => Err(why.into()),
    }
}

/// Writes the kubeconfig again whenever control nodes come or go, or its certificate was renewed. Never ends.
pub(crate) async fn keep_kubeconfig(server: &Server, path: &Path) {
    let mut kubeconfigs = server.kubeconfigs();
    while kubeconfigs.changed().await.is_ok() {
        let text = kubeconfigs.borrow_and_update().clone();
        if let Err(err) = tokio::task::block_in_place(|| paths::write_private(path, &text)) {
            tracing::warn!(err = format!("{err:#}"), "the kubeconfig could not be brought up to date");
        }
    }
    // The server ends first only when it is stopped, and whoever stops it has dropped this.
    std::future::pending().await
}

/// Where a control node keeps its part of a data directory.
pub(crate) fn state_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("server")
}

/// How a control node compiles for agents that cannot: as an agent does for itself.
fn compile_for_agents(job: &CompileJob) -> Result<String, CompileRefusal> {
    let settings: CodeSettings = job.settings.parse().map_err(CompileRefusal::Settings)?;
    let compiled = compile_worker::compiler().compile_for(&settings, &job.program, &job.code);
    compiled.map_err(|error| match error {
        LoadError::OtherSettings { .. } => CompileRefusal::Settings(Chain(&error).to_string()),
        LoadError::Io { .. } => CompileRefusal::Failed(Chain(&error).to_string()),
        // The agent says the rest.
        LoadError::Compile { detail } => CompileRefusal::Program(detail),
        _ => CompileRefusal::Program(Chain(&error).to_string()),
    })
}

/// Starts a control node.
pub(crate) async fn start(mut config: Config) -> anyhow::Result<Server> {
    config.compile = Some(Compile::new(compile_for_agents));
    let deadline = Instant::now() + PREDECESSOR;
    let mut told = false;
    loop {
        match Server::start(config.clone()).await {
            Err(err) if err.is_in_use() && Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(err = %Chain(&err), "another process is in the way, waiting a moment for it to go");
                }
                tokio::time::sleep(RETRY).await;
            }
            started => {
                return started
                    .with_context(|| format!("starting the control node in `{}`", config.data_dir.display()));
            }
        }
    }
}
