//! Ten thousand idle programs on one agent: how soon all of them run, and what they cost. Once as a Deployment, with
//! what the control node does until a pod is bound; once with pods that wait for their node when the agent starts.
//!
//! Needs `vm.max_map_count` of 75,000 or more for all of them; with less, there are as many as the node says it takes.

use super::{NODE, Pair, SETTLE, is_running, pod};
use crate::cluster::{post, root};
use crate::control::Resident;
use crate::figure;
use anyhow::{Context as _, bail};
use dhow_client::{Client, Event};
use serde_json::{Value as Tree, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const PODS: u64 = 10_000;

/// When waiting for all of them is given up.
const PATIENCE: Duration = Duration::from_secs(300);

/// Pods are created by so many at a time.
const CALLERS: usize = 32;

/// Two kinds of programs with nothing to do: one that sleeps, and one that waits for connections.
const PROGRAMS: [(&str, &str, &[&str]); 2] =
    [("sleeping", "tests/guests/tool.wasm", &["sleep"]), ("listening", "samples/echo-tcp/echo-tcp.wasm", &[])];

pub(crate) async fn measure() -> anyhow::Result<()> {
    let mut count = 0;
    for program in PROGRAMS {
        count = one(program).await?;
    }
    waiting(count).await
}

/// Gives how many there were.
async fn one((what, file, args): (&str, &str, &[&str])) -> anyhow::Result<u64> {
    let dir = tempfile::tempdir()?;
    let pair = Pair::start(dir.path()).await?;
    let path = root().join(file);
    pair.control.dhow(&["push", path.to_str().context("a path of text")?, "idle:1.0"])?;
    let container = json!({"name": "idle", "image": "idle:1.0", "args": args});
    // The image is on the node and compiled.
    pair.run(&pod("first", container.clone())).await?;
    let count = room(&pair.client).await?;
    let before = Resident::of(pair.agent.pid())?;
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "idle"},
        "spec": {
            "replicas": count, "selector": {"matchLabels": {"app": "idle"}},
            "template": {"metadata": {"labels": {"app": "idle"}}, "spec": {"containers": [container]}},
        },
    });
    let begun = Instant::now();
    post(&pair.client, "/apis/apps/v1/namespaces/default/deployments", &deployment).await?;
    let running = all_running(&pair.client, count).await?;
    let (of, took) = (running.len(), begun.elapsed().as_secs_f64());
    figure(&format!("{of} {what} programs of a Deployment, all Running"), format!("{took:.2} s"));
    tokio::time::sleep(SETTLE).await;
    let after = Resident::of(pair.agent.pid())?;
    let each = (after.now - before.now) * 1e6 / 1024.0 / count as f64;
    figure("the agent with them, resident", format!("{after}; {each:.1} KiB for each"));
    figure("the control node with them, resident", Resident::of(pair.control.pid())?);
    Ok(count)
}

/// Pods that are bound to the node while its agent is away.
async fn waiting(count: u64) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let pair = Pair::start(dir.path()).await?;
    let (what, file, args) = PROGRAMS[0];
    let path = root().join(file);
    pair.control.dhow(&["push", path.to_str().context("a path of text")?, "idle:1.0"])?;
    let container = json!({"name": "idle", "image": "idle:1.0", "args": args});
    pair.run(&pod("first", container.clone())).await?;
    let Pair { agent, client, control } = pair;
    let bound = create_bound(client.clone(), container, count);
    let begun_when = async { bound.await.map(|()| Instant::now()) };
    let (agent, begun) = agent.around(&control, NODE, begun_when).await?;
    let running = all_running(&client, count).await?;
    let (of, took) = (running.len(), begun.elapsed().as_secs_f64());
    figure(&format!("{of} {what} programs that wait for the agent, all Running"), format!("{took:.2} s"));
    drop((agent, control));
    Ok(())
}

async fn create_bound(client: Client, container: Tree, count: u64) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, container, next) = (client.clone(), container.clone(), next.clone());
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                let mut pod = pod(&format!("idle-{number}"), container.clone());
                pod["metadata"]["labels"] = json!({"app": "idle"});
                pod["spec"]["nodeName"] = json!(NODE);
                post(&client, super::PODS, &pod).await?;
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(())
}

/// How many pods more the node takes, but not more than [`PODS`].
async fn room(client: &Client) -> anyhow::Result<u64> {
    let node = client.get(&format!("/api/v1/nodes/{NODE}")).await?;
    let pods = node["status"]["allocatable"]["pods"].as_str().context("a node says how many pods it takes")?;
    // The shortest form of a quantity.
    let pods: u64 = match pods.strip_suffix('k') {
        Some(thousands) => thousands.parse::<u64>()? * 1000,
        None => pods.parse()?,
    };
    let maps = std::fs::read_to_string("/proc/sys/vm/max_map_count")?;
    figure("pods that the node says it takes", format!("{pods}, with vm.max_map_count={}", maps.trim()));
    if pods < PODS {
        println!("note: for {PODS} of them, run `sysctl -w vm.max_map_count=1048576` first");
    }
    if pods == 0 {
        bail!("the node takes no pods");
    }
    // One is there already.
    Ok((pods - 1).min(PODS))
}

/// Waits until so many pods of the Deployment run; gives their names.
async fn all_running(client: &Client, count: u64) -> anyhow::Result<BTreeSet<String>> {
    let mut watcher = client.watch(&format!("{}?labelSelector=app%3Didle", super::PODS));
    let mut running = BTreeSet::new();
    let wait = async {
        while (running.len() as u64) < count {
            let pods = match watcher.next().await {
                Event::Restarted(pods) => pods,
                Event::Applied(pod) => vec![pod],
                Event::Deleted(_) => continue,
            };
            let name = |pod: &Tree| pod["metadata"]["name"].as_str().map(str::to_owned);
            running.extend(pods.iter().filter(|pod| is_running(pod)).filter_map(name));
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        bail!("{} of {count} programs ran within {PATIENCE:?}", running.len());
    }
    Ok(running)
}
