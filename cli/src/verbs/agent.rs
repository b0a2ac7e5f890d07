//! `dhow agent`: a node that joins a control node.

#[cfg(feature = "compiler")]
use crate::verbs::compile_worker;
use crate::{output, paths, signals};
use anyhow::Context as _;
use dhow_engine::Code;
use dhow_image::Registries;
use dhow_node::{Compile, Node, Thresholds};
use std::path::PathBuf;

/// Which cluster to join, and as whom.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The control node's API address
    #[arg(long, value_name = "https://HOST:PORT")]
    server: String,
    /// A token from `dhow token create`; needed at the first start only
    #[arg(long, env = "DHOW_TOKEN", value_name = "TOKEN")]
    token: Option<String>,
    /// The node's name; the host's by default
    #[arg(long)]
    name: Option<String>,
    /// Where the node keeps its identity, images, logs and volumes
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The address under which other nodes and node ports reach this one
    #[arg(long, default_value = "127.0.0.1")]
    node_ip: std::net::IpAddr,
    /// Let pods name Wasm files of this machine as images (file:///…)
    #[arg(long)]
    allow_file_images: bool,
    /// Let pods mount what lies below this directory of this machine (hostPath); can be given several times
    #[arg(long = "allow-host-path", value_name = "DIR")]
    allow_host_paths: Vec<PathBuf>,
    /// How little memory and disk may be left before pods are evicted, e.g. memory.available<100Mi,nodefs.available<5%
    #[arg(long, value_name = "THRESHOLDS", value_parser = Thresholds::parse)]
    eviction_hard: Option<Thresholds>,
    /// Mirrors, authorities, credentials and keys of registries, and when images are removed (YAML)
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
    /// Who compiles programs: this machine, or the control node, to spare this one
    #[cfg(feature = "compiler")]
    #[arg(long, value_name = "WHERE", default_value = "here")]
    compile: CompileWhere,
    /// Run programs under an interpreter instead of as machine code: 4 to 11 times slower, on any processor
    #[arg(long)]
    pulley: bool,
}

/// Who compiles programs.
#[cfg(feature = "compiler")]
#[derive(Clone, Copy, clap::ValueEnum)]
enum CompileWhere {
    /// This machine
    Here,
    /// The control node
    ControlNode,
}

impl Args {
    #[cfg(feature = "compiler")]
    fn compile(&self) -> Compile {
        match self.compile {
            CompileWhere::Here => Compile::Here(compile_worker::compiler()),
            CompileWhere::ControlNode => Compile::ControlNode,
        }
    }

    #[cfg(not(feature = "compiler"))]
    #[allow(clippy::unused_self, reason = "with a compiler it is asked for")]
    fn compile(&self) -> Compile {
        Compile::ControlNode
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let compile = args.compile();
    let name = args.name.map_or_else(host_name, Ok)?;
    let data_dir = args.data_dir.map_or_else(|| Ok::<_, anyhow::Error>(paths::data_dir()?.join("agent")), Ok)?;
    let joined = dhow_node::join(&args.server, args.token.as_deref(), &name, &data_dir)
        .await
        .with_context(|| format!("joining `{}` as node `{name}`", args.server))?;
    let mut config = dhow_node::Config::new(&name, joined, data_dir, args.node_ip);
    config.node_port_ip = Some(args.node_ip);
    config.allow_file_images = args.allow_file_images;
    config.allow_host_paths = args.allow_host_paths;
    config.eviction = args.eviction_hard.unwrap_or_default();
    config.compile = compile;
    config.code = if args.pulley { Code::Pulley } else { Code::Native };
    if let Some(path) = &args.registry_config {
        config.registries = Registries::load(path)?;
    }
    let node = Node::start(config).await.with_context(|| format!("starting node `{name}`"))?;
    output::line(format!("ready: node {name}"));
    signals::stop_requested().await.context("waiting for signals")?;
    node.stop().await;
    Ok(())
}

fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host's name")?;
    Ok(name.trim().to_lowercase())
}
