//! Requests a second of a hello handler through a node port, with CPU and memory limits on, beside `wasmtime serve` on
//! the same component: with its default settings, and with those that served this component fastest. In turns in one
//! run.
//!
//! Needs `wrk`, and `wasmtime` 48 (or the program that `WASMTIME` names); says so where one is missing.

use crate::cluster::{Cluster, post, root};
use crate::figure;
use anyhow::{Context as _, bail};
use serde_json::{Value as Tree, json};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const COMPONENT: &str = "samples/hello-http/hello-http.wasm";

/// Each server is measured this often, in turns, so that a drift of the machine's speed hits all.
const ROUNDS: usize = 3;

/// The settings of `wasmtime serve` with which it answers this component fastest: its pool keeps memory from one
/// request to the next, and an instance answers many.
const PEER_BEST: [&str; 4] =
    ["-Opooling-allocator", "-Opooling-memory-keep-resident=131072", "--max-instance-reuse-count", "128"];

/// Makes an HTTP container keep its instances, as [`PEER_BEST`] does.
const WARM: (&str, &str) = ("dhow.dev/http-reuse", "128");

pub(crate) async fn measure(seconds: u32) -> anyhow::Result<()> {
    if !runs("wrk", "--version") {
        println!("SKIPPED: HTTP needs `wrk`");
        return Ok(());
    }
    let cluster = Cluster::start()?;
    cluster.dhow(&["push", COMPONENT, "hello-http:1.0"])?;
    let mut servers =
        vec![deploy(&cluster, "cold", json!({})).await?, deploy(&cluster, "warm", json!({WARM.0: WARM.1})).await?];
    let program = std::env::var("WASMTIME").unwrap_or_else(|_| "wasmtime".to_owned());
    let mut peers = Vec::new();
    if runs(&program, "--version") {
        peers = vec![Peer::start(&program, &[])?, Peer::start(&program, &PEER_BEST)?];
        servers.extend(peers.iter().map(|peer| peer.port));
    } else {
        println!("SKIPPED: the peer `wasmtime serve`: install wasmtime 48, or set WASMTIME");
    }
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); servers.len()];
    for _ in 0..ROUNDS {
        for (port, rates) in servers.iter().zip(&mut rates) {
            rates.push(wrk(*port, seconds)?);
        }
    }
    let rates: Vec<f64> = rates.iter_mut().map(|rates| median(rates)).collect();
    let say = |name: &str, rate: f64, than: Option<&f64>| {
        let ratio = than.map(|than| format!(", {:.2} times the peer", rate / than)).unwrap_or_default();
        figure(name, format!("{rate:.0} requests/s{ratio}"));
    };
    say("hello through a NodePort, an instance per request", rates[0], rates.get(2));
    say("hello through a NodePort, warm instances", rates[1], rates.get(3));
    if let [_, _, default, best] = rates[..] {
        say("wasmtime serve, default settings", default, None);
        say("wasmtime serve, its best settings, reuse", best, None);
    }
    drop(peers);
    figure("resident after the load", format!("{:.1} MB", cluster.resident_kib()? as f64 / 1024.0));
    Ok(())
}

/// Makes a Deployment with limits behind a node port, and gives the port once something listens there.
async fn deploy(cluster: &Cluster, name: &str, annotations: Tree) -> anyhow::Result<u16> {
    let client = cluster.client()?;
    let labels = json!({"app": name});
    // The limits are on, and not reached: the load has the other core. Without requests, they would be as large.
    let container = json!({
        "name": "hello", "image": "hello-http:1.0", "ports": [{"containerPort": 8080}],
        "resources": {"limits": {"cpu": "2", "memory": "64Mi"}, "requests": {"cpu": "10m"}},
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations}, "spec": {"containers": [container]},
            },
        },
    });
    post(&client, "/apis/apps/v1/namespaces/default/deployments", &deployment).await?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": "NodePort", "selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    post(&client, "/api/v1/namespaces/default/services", &service).await?;
    cluster.dhow(&["rollout", "status", &format!("deployment/{name}")])?;
    let service = client.get(&format!("/api/v1/namespaces/default/services/{name}")).await?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("the service has a node port")?;
    let port = u16::try_from(port)?;
    answering(port)?;
    Ok(port)
}

/// A `wasmtime serve` of the same component.
struct Peer {
    process: Child,
    port: u16,
}

impl Peer {
    fn start(program: &str, settings: &[&str]) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = Command::new(program)
            .args(["serve", "-Scli", "--addr", &format!("127.0.0.1:{port}")])
            .args(settings)
            .arg(COMPONENT)
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
