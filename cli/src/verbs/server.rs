//! `dhow server`: a control node.

use crate::kube::Global;
use crate::{output, paths, signals};
use anyhow::Context as _;
use dhow_server::Server;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a predecessor that was killed a moment ago may keep its address and data directory: the kernel takes
/// that long to tear down a large process.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// How long between two attempts to take them over.
const RETRY: Duration = Duration::from_millis(50);

/// Where the control node keeps its data and listens.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the API listens
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "IP:PORT")]
    bind: SocketAddr,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let data_dir = args.data_dir.map_or_else(paths::data_dir, Ok)?;
    let server = start(data_dir.clone(), args.bind).await?;
    let kubeconfig = global.kubeconfig.clone().unwrap_or_else(|| paths::kubeconfig(&data_dir));
    paths::write_private(&kubeconfig, &server.admin_kubeconfig())?;
    output::line(format!("kubeconfig: {}", kubeconfig.display()));
    output::line(format!("ready: {}", server.url()));
    signals::stop_requested().await.context("waiting for signals")?;
    server.stop().await;
    Ok(())
}

/// Starts the control node of a data directory.
pub(crate) async fn start(data_dir: PathBuf, bind: SocketAddr) -> anyhow::Result<Server> {
    let deadline = Instant::now() + PREDECESSOR;
    let mut told = false;
    loop {
        let started = Server::start(dhow_server::Config::new(data_dir.join("server"), bind)).await;
        match started {
            Err(err) if err.is_in_use() && Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(err = %dhow_types::Chain(&err), "another process is in the way, waiting a moment for it to go");
                }
                tokio::time::sleep(RETRY).await;
            }
            started => {
                return started.with_context(|| format!("starting the control node in `{}`", data_dir.display()));
            }
        }
    }
}
