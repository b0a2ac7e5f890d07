//! Watches over HTTPS: how soon a change arrives when few of many watchers want it, and how many deliveries a second
//! there are when all of them do.

use super::name;
use super::ours::{self, Ours};
use crate::figure;
use anyhow::{Context as _, bail};
use dhow_client::{Client, Method};
use http_body_util::BodyExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Watches that share one HTTP/2 connection: fewer than a server lets one connection have.
const WATCHES_PER_CONNECTION: usize = 100;

const WATCHERS: usize = 10_000;
const INTERESTED: usize = 10;
const WRITES: u64 = 300;

const EAGER_WATCHERS: usize = 1_000;
const EAGER_WRITES: u64 = 300;
const EAGER_WRITERS: u64 = 4;

/// Pieces that wait to be counted. The watches behind it wait then, as slow clients do.
const TOLD_MAX: usize = 65_536;

/// How long deliveries may take in all.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn measure(dir: &Path) -> anyhow::Result<()> {
    few_of_many(dir).await?;
    all_of_many(dir).await
}

/// Opens a watch and hands over how many events each piece of its stream has; the pieces are counted, not parsed.
async fn watch(client: Client, path: String, told: mpsc::Sender<(Instant, u64)>) -> anyhow::Result<()> {
    let answer = client.stream(Method::GET, &path, "application/json", None).await?;
    if !answer.status().is_success() {
        bail!("the watch is refused: {}", answer.status());
    }
    tokio::spawn(async move {
        let mut body = answer.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            let events = frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
            // The measurement may be over.
            let _ = told.send((Instant::now(), events as u64)).await;
        }
    });
    Ok(())
}

async fn open_all(
    ours: &Ours,
    count: usize,
    path: impl Fn(usize) -> String,
    told: &mpsc::Sender<(Instant, u64)>,
) -> anyhow::Result<()> {
    let mut client = ours.client()?;
    for number in 0..count {
        if number % WATCHES_PER_CONNECTION == 0 {
            client = ours.client()?;
        }
        watch(client.clone(), path(number), told.clone()).await.with_context(|| format!("watch {number}"))?;
    }
    Ok(())
}

async fn few_of_many(dir: &Path) -> anyhow::Result<()> {
    let ours = Ours::start(1, dir).await?;
    let (sender, mut told) = mpsc::channel(TOLD_MAX);
    let path = |number: usize| {
        let node = number / INTERESTED;
        format!("/api/v1/pods?watch=true&resourceVersion=0&fieldSelector=spec.nodeName%3Dnode-{node}")
    };
    open_all(&ours, WATCHERS, path, &sender).await?;
    let client = ours.client()?;
    let mut times = Vec::new();
    for number in 0..WRITES {
        let node = number as usize % (WATCHERS / INTERESTED);
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name(number), "finalizers": ["bench.example.com/keep"]},
            "spec": {"nodeName": format!("node-{node}"), "containers": [{"name": "c", "image": "hello-http:1.0"}]},
        });
        let begun = Instant::now();
        crate::cluster::post(&client, "/api/v1/namespaces/default/pods", &pod).await?;
        let mut left = INTERESTED as u64;
        while left > 0 {
            let next = tokio::time::timeout(PATIENCE, told.recv()).await.context("a watcher was not told")?;
            let (at, events) = next.context("the watches go on")?;
            times.extend((0..events).map(|_| at.duration_since(begun)));
            left = left.saturating_sub(events);
        }
    }
    times.sort_unstable();
    let at = |share: f64| times[(times.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    figure(
        &format!("{WATCHERS} watchers, {INTERESTED} match: create sent to event there"),
        format!("p50 {:.2} ms   p99 {:.2} ms", at(0.5), at(0.99)),
    );
    figure("resident with them (client and server)", format!("{:.0} MB", super::own_resident_mb()?));
    ours.stop().await;
    Ok(())
}

async fn all_of_many(dir: &Path) -> anyhow::Result<()> {
    let ours = Ours::start(1, dir).await?;
    let (sender, mut told) = mpsc::channel(TOLD_MAX);
    let path = |_| "/api/v1/namespaces/bench/configmaps?watch=true&resourceVersion=0".to_owned();
    open_all(&ours, EAGER_WATCHERS, path, &sender).await?;
    let replica = ours.replica();
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    for _ in 0..EAGER_WRITERS {
        let (replica, next) = (replica.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= EAGER_WRITES {
                    return anyhow::Ok(());
                }
                ours::put(&replica, &name(number), &super::load::value(number, 512)).await?;
            }
        });
    }
    let wanted = EAGER_WATCHERS as u64 * EAGER_WRITES;
    let mut seen = 0;
    let mut last = begun;
    while seen < wanted {
        match tokio::time::timeout(PATIENCE, told.recv()).await {
            Ok(Some((at, events))) => (seen, last) = (seen + events, at),
            Ok(None) | Err(_) => bail!("only {seen} of {wanted} events arrived"),
        }
    }
    let rate = wanted as f64 / last.duration_since(begun).as_secs_f64();
    figure(&format!("{EAGER_WATCHERS} watchers that all match"), format!("{rate:.0} deliveries/s"));
    ours.stop().await;
    Ok(())
}
