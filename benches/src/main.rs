//! Measures the built `dhow` as a process and prints figures and ratios; nothing here passes or fails.
//!
//! `cargo run --release -p dhow-benches -- all` runs every measurement that the machine has the peers for. Each
//! measurement is a file; what it needs beside `target/release/dhow` (built first) stands in its `//!`.

#![expect(clippy::print_stdout, reason = "a benchmark speaks to its user")]

mod cluster;
mod http;
mod pods;
mod startup;
mod store;

use clap::{Parser, ValueEnum};

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
    /// Requests a second through a node port, beside `wasmtime serve`
    Http,
    /// Durable writes, reads and lists of the replicated store, beside etcd
    Store,
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
    if wants(What::Http) {
        http::measure(args.seconds).await?;
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
