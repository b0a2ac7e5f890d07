//! Measures the built `dhow` as a process and prints figures and ratios; nothing here passes or fails.
//!
//! `cargo run --release -p dhow-benches -- all` runs every measurement that the machine has the peers for. Each
//! measurement is a file; what it needs beside `target/release/dhow` (built first) stands in its `//!`.

#![expect(clippy::print_stdout, reason = "a benchmark speaks to its user")]

mod cluster;
mod control;
mod pods;
mod runtime;
mod startup;
mod store;

use clap::{Parser, ValueEnum};

/// The binary's: some measurements run a control node in this process.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    /// What to measure
    #[arg(default_value = "all")]
    what: What,
    /// How many single-pod Deployments the latency is taken over
    #[arg(long, default_value_t = 100)]
    rounds: usize,
    /// How many replicas the large Deployment has
    #[arg(long, default_value_t = 1000)]
    replicas: u32,
    /// How many seconds each measurement of a rate lasts
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    All,
    /// Time from an empty data directory to ready, and resident memory when idle
    Startup,
    /// Time from an accepted apply to a Ready pod
    Latency,
    /// Time until a large Deployment is Ready, and memory per pod
    Replicas,
    /// Of `runtime`: requests a second through a node port, beside `wasmtime serve`
    Http,
    /// The agent's size, HTTP, ten thousand idle programs, CPU limits, ends of spinning programs
    Runtime,
    /// Of `runtime`: ten thousand idle programs
    Density,
    /// Of `runtime`: CPU limits, ends of spinning programs
    Limits,
    /// Durable writes, reads and lists of the replicated store, beside etcd
    Store,
    /// Of `store`: memory of a control node with 10,000 pods on 100 nodes
    Nodes,
    /// Of `store`: acknowledged writes after power cuts
    Power,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let wants = |what: What| args.what == What::All || args.what == what;
    if wants(What::Startup) {
        startup::measure().await?;
    }
    if wants(What::Latency) {
        pods::latency(args.rounds).await?;
    }
    if wants(What::Replicas) {
        pods::replicas(args.replicas).await?;
    }
    match args.what {
        What::Http => runtime::http(args.seconds).await?,
        What::Density => runtime::density().await?,
        What::Limits => runtime::limits().await?,
        What::Nodes => store::nodes().await?,
        What::Power => store::power().await?,
        _ => {}
    }
    if wants(What::Runtime) {
        runtime::measure(args.seconds).await?;
    }
    if wants(What::Store) {
        store::measure(args.seconds).await?;
    }
    Ok(())
}

/// Prints one figure in the form of the table in `benches/README.md`.
pub(crate) fn figure(name: &str, value: impl std::fmt::Display) {
    println!("{name:<58} {value}");
}
