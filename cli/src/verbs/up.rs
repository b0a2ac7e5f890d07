//! `dhow up`: a whole cluster in this process.

use crate::kube::{Global, items};
use crate::verbs::{apply, compile_worker, server};
use crate::{output, paths, signals};
use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use dhow_client::{Client, Event};
use dhow_image::Registries;
use dhow_node::{Compile, JoinedIdentity, Node, Thresholds};
use dhow_server::Server;
use serde_json::Value as Tree;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

/// More agents than this in one process show nothing that fewer don't.
const NODES_MAX: u64 = 100;

/// How large a cluster, and where.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the API listens; node ports open on the same address
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "IP:PORT")]
    bind: SocketAddr,
    /// How many node agents run in the process
    #[arg(long, default_value_t = 1, value_parser = RangedU64ValueParser::<u64>::new().range(1..=NODES_MAX))]
    nodes: u64,
    /// Apply these manifests once the cluster is ready
    #[arg(long, value_name = "PATH")]
    apply: Vec<PathBuf>,
    /// Let pods mount what lies below this directory of this machine (hostPath); can be given several times
    #[arg(long = "allow-host-path", value_name = "DIR")]
    allow_host_paths: Vec<PathBuf>,
    /// How little memory and disk may be left before pods are evicted, e.g. memory.available<100Mi,nodefs.available<5%
    #[arg(long, value_name = "THRESHOLDS", value_parser = Thresholds::parse)]
    eviction_hard: Option<Thresholds>,
    /// Mirrors, authorities, credentials and keys of registries, and when images are removed (YAML)
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let data_dir = args.data_dir.clone().map_or_else(paths::data_dir, Ok)?;
    let server = server::start(dhow_server::Config::new(server::state_dir(&data_dir), args.bind)).await?;
    let mut nodes = Vec::new();
    let served = serve(&args, global, &data_dir, &server, &mut nodes).await;
    // The agents go first, so that they can still tell the API server what became of their pods.
    for node in nodes {
        node.stop().await;
    }
    server.stop().await;
    served
}

async fn serve(
    args: &Args,
    global: &Global,
    data_dir: &std::path::Path,
    server: &Server,
    nodes: &mut Vec<Node>,
) -> anyhow::Result<()> {
    let stop = signals::stop_requested();
    tokio::pin!(stop);
    let kubeconfig = global.kubeconfig.clone().unwrap_or_else(|| paths::kubeconfig(data_dir));
    paths::write_private(&kubeconfig, &server.admin_kubeconfig())?;
    output::line(format!("kubeconfig: {}", kubeconfig.display()));
    let session = Global { kubeconfig: Some(kubeconfig.clone()), namespace: global.namespace.clone() }.session()?;
    let names: BTreeSet<String> = (1..=args.nodes).map(|number| format!("dhow-{number}")).collect();
    for name in &names {
        let first = nodes.is_empty();
        nodes.push(start_node(args, server, data_dir, name, first).await?);
    }
    tokio::select! {
        () = all_ready(&session.client, &names) => {}
        stopped = &mut stop => return stopped.context("waiting for signals"),
    }
    output::line(format!("ready: {}", server.url()));
    if !args.apply.is_empty()
        && let Err(err) = apply::apply(&session, &args.apply, apply::DryRun::None).await
    {
        output::error(&err);
    }
    tokio::select! {
        stopped = &mut stop => stopped.context("waiting for signals"),
        () = server::keep_kubeconfig(server, &kubeconfig) => Ok(()),
        why = server.ended() => Err(why.into()),
    }
}

async fn start_node(
    args: &Args,
    server: &Server,
    data_dir: &std::path::Path,
    name: &str,
    first: bool,
) -> anyhow::Result<Node> {
    let identity = server.issue_node_identity(name).with_context(|| format!("the identity of node `{name}`"))?;
    let joined = JoinedIdentity { server: server.url(), ca_pem: server.ca_pem().to_owned(), identity };
    let ip = args.bind.ip();
    let mut config = dhow_node::Config::new(name, joined, data_dir.join("nodes").join(name), ip);
    // All agents of the process share its addresses: one of them opens the node ports for all.
    config.node_port_ip = first.then_some(ip);
    config.allow_file_images = true;
    config.allow_host_paths.clone_from(&args.allow_host_paths);
    config.eviction = args.eviction_hard.clone().unwrap_or_default();
    config.compile = Compile::Here(compile_worker::compiler());
    if let Some(path) = &args.registry_config {
        config.registries = Registries::load(path)?;
    }
    Node::start(config).await.with_context(|| format!("starting node `{name}`"))
}

/// Waits until each of these nodes is Ready, by a watch.
async fn all_ready(client: &Client, names: &BTreeSet<String>) {
    let mut watcher = client.watch("/api/v1/nodes");
    let mut ready: BTreeSet<String> = BTreeSet::new();
    while !names.is_subset(&ready) {
        match watcher.next().await {
            Event::Restarted(nodes) => {
                let list = serde_json::json!({ "items": nodes });
                ready = items(&list).iter().filter(|node| is_ready(node)).map(name).collect();
            }
            Event::Applied(node) if is_ready(&node) => {
                ready.insert(name(&node));
            }
            Event::Applied(node) | Event::Deleted(node) => {
                ready.remove(&name(&node));
            }
        }
    }
}

fn name(node: &Tree) -> String {
    crate::kube::name_of(node).to_owned()
}

fn is_ready(node: &Tree) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
