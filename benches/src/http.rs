//! Requests a second of the hello sample through a node port, beside `wasmtime serve` with its default settings on
//! the same component, in turns in one run.
//!
//! Needs `wrk`, and `wasmtime` 48 (or the program that `WASMTIME` names); says so where one is missing.

use crate::cluster::{Cluster, root};
use crate::figure;
use anyhow::{Context as _, bail};
use serde_json::Value as Tree;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const COMPONENT: &str = "samples/hello-http/hello-http.wasm";

/// Each server is measured this often, in turns, so that a drift of the machine's speed hits both.
const ROUNDS: usize = 3;

pub(crate) async fn measure(seconds: u32) -> anyhow::Result<()> {
    if !runs("wrk", "--version") {
        println!("SKIPPED: HTTP needs `wrk`");
        return Ok(());
    }
    let cluster = Cluster::start()?;
    cluster.dhow(&["push", COMPONENT, "hello-http:1.0"])?;
    cluster.dhow(&["apply", "-f", "samples/hello-http/hello-http.yaml"])?;
    cluster.dhow(&["rollout", "status", "deployment/hello-http"])?;
    let service = cluster.client()?.get("/api/v1/namespaces/default/services/hello-http").await?;
    let port = port_of(&service).context("the sample's service has a node port")?;
    answering(port)?;

    let program = std::env::var("WASMTIME").unwrap_or_else(|_| "wasmtime".to_owned());
    let peer = if runs(&program, "--version") { Some(Peer::start(&program)?) } else { None };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(wrk(port, seconds)?);
        if let Some(peer) = &peer {
            theirs.push(wrk(peer.port, seconds)?);
        }
    }
    let ours = median(&mut ours);
    figure("hello through a NodePort, wrk -t1 -c32", format!("{ours:.0} requests/s"));
    match peer {
        None => println!("SKIPPED: the peer `wasmtime serve`: install wasmtime 48, or set WASMTIME"),
        Some(_) => {
            let theirs = median(&mut theirs);
            figure("wasmtime serve, default settings, wrk -t1 -c32", format!("{theirs:.0} requests/s"));
            figure("ratio", format!("{:.2}", ours / theirs));
        }
    }
    figure("resident after the load", format!("{:.1} MB", cluster.resident_kib()? as f64 / 1024.0));
    Ok(())
}

/// A `wasmtime serve` of the same component.
struct Peer {
    process: Child,
    port: u16,
}

impl Peer {
    fn start(program: &str) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = Command::new(program)
            .args(["serve", "-Scli", "--addr", &format!("127.0.0.1:{port}"), COMPONENT])
            .current_dir(root())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting `{program} serve`"))?;
        let peer = Self { process, port };
        answering(port)?;
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn port_of(service: &Tree) -> Option<u16> {
    u16::try_from(service["spec"]["ports"][0]["nodePort"].as_u64()?).ok()
}

fn runs(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Waits until something listens.
fn answering(port: u16) -> anyhow::Result<()> {
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if start.elapsed() > Duration::from_secs(20) {
            bail!("nothing listens on port {port}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn wrk(port: u16, seconds: u32) -> anyhow::Result<f64> {
    let output = Command::new("wrk")
        .args(["-t1", "-c32", &format!("-d{seconds}s"), &format!("http://127.0.0.1:{port}/")])
        .output()
        .context("running wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        println!("note: wrk saw errors:\n{text}");
    }
    let line = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    line.with_context(|| format!("wrk said:\n{text}"))?.trim().parse().context("reading wrk's figure")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
