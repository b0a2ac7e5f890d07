//! The store beside etcd: durable puts of 1 KiB and linearizable reads by so many callers at a time, one member and
//! three, on the same disk in the same run; creates through our HTTPS API; a list of 10,000 pods.
//!
//! Needs `etcd` (or the program that `ETCD` names); says so where it is missing. Data lies in the directory that
//! `BENCH_DIR` names, or below `target`.

mod etcd;
mod failover;
mod load;
mod nodes;
mod ours;
mod power;
mod watch;

use crate::cluster::root;
use crate::figure;
use etcd::Etcd;
use load::{Outcome, closed_loop, median, value};
use ours::Ours;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CALLERS: [usize; 4] = [1, 16, 128, 1024];
const VALUE_BYTES: usize = 1024;

/// Callers that share one HTTP/2 connection, to etcd or to us.
const CALLERS_PER_CONNECTION: usize = 32;
const CONNECTIONS_MAX: usize = 16;

const PODS: u64 = 10_000;

/// How often etcd and we are measured in turns; what is told is the turn of the median rate.
const TURNS: usize = 3;

/// How often the leader of three is killed.
const KILLS: usize = 50;

pub(crate) async fn measure(seconds: u32) -> anyhow::Result<()> {
    let length = Duration::from_secs(seconds.into());
    let dir = bench_dir();
    let etcd = etcd::program();
    if etcd.is_none() {
        println!("SKIPPED: the peer `etcd`: install it, or set ETCD");
    }
    for members in [1, 3] {
        compare(members, etcd.as_deref(), length, &dir).await?;
    }
    list(&dir).await?;
    watch::measure(&dir).await?;
    failover::measure(KILLS, &dir).await?;
    nodes().await?;
    power().await
}

/// A control node with many nodes and pods.
pub(crate) async fn nodes() -> anyhow::Result<()> {
    nodes::measure(&bench_dir()).await
}

/// A control node whose disk is copied while it writes.
pub(crate) async fn power() -> anyhow::Result<()> {
    power::measure(&bench_dir()).await
}

/// Where data directories lie.
fn bench_dir() -> PathBuf {
    std::env::var_os("BENCH_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

async fn compare(members: usize, etcd: Option<&str>, length: Duration, dir: &Path) -> anyhow::Result<()> {
    for callers in CALLERS {
        let (mut their_puts, mut their_gets) = (Vec::new(), Vec::new());
        let (mut puts, mut gets, mut creates) = (Vec::new(), Vec::new(), Vec::new());
        // In turns, for the machine is faster in one minute than in the next. One cluster at a time is up, so that neither
        // idles beside the other's load.
        for _ in 0..TURNS {
            if let Some(program) = etcd {
                let etcd = Etcd::start(program, members, dir).await?;
                their_puts.push(etcd_puts(&etcd, callers, length).await?);
                their_gets.push(etcd_gets(&etcd, callers, length).await?);
            }
            let ours = Ours::start(members, dir).await?;
            puts.push(our_puts(&ours, callers, length).await?);
            gets.push(our_gets(&ours, callers, length).await?);
            ours.stop().await;
            // On another one: the object database has not caught up with those puts, and etcd's found nothing before them.
            let ours = Ours::start(members, dir).await?;
            creates.push(our_creates(&ours, callers, length).await?);
            ours.stop().await;
        }
        let (their_puts, their_gets) = (median(their_puts), median(their_gets));
        let label = |what: &str| format!("{members} members, {callers} callers: {what}");
        row(&label("puts inside a member"), median(puts), their_puts.as_ref());
        row(&label("linearizable reads inside a member"), median(gets), their_gets.as_ref());
        row(&label("ConfigMap creates over HTTPS"), median(creates), their_puts.as_ref());
    }
    Ok(())
}

fn row(name: &str, ours: Option<Outcome>, theirs: Option<&Outcome>) {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => {
            figure(name, format!("{ours}   etcd {theirs}   ratio {:.2}", ours.rate / theirs.rate));
        }
        (Some(ours), None) => figure(name, ours),
        (None, _) => {}
    }
}

async fn etcd_clients(etcd: &Etcd, callers: usize) -> anyhow::Result<Vec<etcd::Client>> {
    let mut clients = Vec::new();
    for _ in 0..connections(callers) {
        clients.push(etcd.connect(0).await?);
    }
    Ok(clients)
}

fn connections(callers: usize) -> usize {
    callers.div_ceil(CALLERS_PER_CONNECTION).min(CONNECTIONS_MAX)
}

async fn etcd_puts(etcd: &Etcd, callers: usize, length: Duration) -> anyhow::Result<Outcome> {
    let clients = etcd_clients(etcd, callers).await?;
    closed_loop(callers, length, move |caller, number| {
        let client = clients[caller % clients.len()].clone();
        async move { client.put(&name(number), &value(number, VALUE_BYTES)).await }
    })
    .await
}

async fn etcd_gets(etcd: &Etcd, callers: usize, length: Duration) -> anyhow::Result<Outcome> {
    let clients = etcd_clients(etcd, callers).await?;
    closed_loop(callers, length, move |caller, _| {
        let client = clients[caller % clients.len()].clone();
        async move { client.get(&name(0)).await }
    })
    .await
}

async fn our_puts(ours: &Ours, callers: usize, length: Duration) -> anyhow::Result<Outcome> {
    let replica = ours.replica();
    closed_loop(callers, length, move |_, number| {
        let replica = replica.clone();
        async move { ours::put(&replica, &name(number), &value(number, VALUE_BYTES)).await }
    })
    .await
}

async fn our_gets(ours: &Ours, callers: usize, length: Duration) -> anyhow::Result<Outcome> {
    let replica = ours.replica();
    closed_loop(callers, length, move |_, _| {
        let replica = replica.clone();
        async move { ours::get(&replica, &name(0)).await }
    })
    .await
}

async fn our_creates(ours: &Ours, callers: usize, length: Duration) -> anyhow::Result<Outcome> {
    let clients: Vec<_> = (0..connections(callers)).map(|_| ours.client()).collect::<anyhow::Result<_>>()?;
    closed_loop(callers, length, move |caller, number| {
        let client = clients[caller % clients.len()].clone();
        async move { ours::create(&client, &name(number), &value(number, VALUE_BYTES)).await }
    })
    .await
}

fn name(number: u64) -> String {
    format!("bench-{number:012}")
}

/// Time from the request to the last byte of a list of pods, over HTTPS on a warm connection.
async fn list(dir: &Path) -> anyhow::Result<()> {
    let ours = Ours::start(1, dir).await?;
    let client = ours.client()?;
    let creators = closed_loop_pods(&client, PODS).await;
    creators?;
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..7 {
        let begun = Instant::now();
        let answer = client.request(dhow_client::Method::GET, "/api/v1/pods", "application/json", None).await?;
        times.push(begun.elapsed());
        bytes = answer.body.len();
    }
    times.sort_unstable();
    figure(
        &format!("list of {PODS} pods over HTTPS, median of 7"),
        format!("{:.1} ms, {:.1} MB", times[times.len() / 2].as_secs_f64() * 1e3, bytes as f64 / 1e6),
    );
    ours.stop().await;
    Ok(())
}

async fn closed_loop_pods(client: &dhow_client::Client, count: u64) -> anyhow::Result<()> {
    let next = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..32 {
        let (client, next) = (client.clone(), next.clone());
        tasks.push(tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                let pod = serde_json::json!({
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": name(number), "labels": {"app": "bench"}},
                    "spec": {"containers": [{"name": "c", "image": "hello-http:1.0"}]},
                });
                crate::cluster::post(&client, "/api/v1/namespaces/default/pods", &pod).await?;
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Resident memory of this process: the member in it and its callers.
fn own_resident_mb() -> anyhow::Result<f64> {
    Ok(crate::cluster::resident_kib(std::process::id())? as f64 / 1024.0)
}
