//! How fast pods become Ready: one at a time, and a thousand at once.

use crate::cluster::{Cluster, post};
use crate::figure;
use anyhow::bail;
use dhow_client::{Client, Event};
use serde_json::{Value as Tree, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// How long a cluster is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(5);

/// When waiting is given up.
const PATIENCE: Duration = Duration::from_secs(120);

fn deployment(name: &str, replicas: u32) -> Tree {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "hello-http:1.0"}]},
            },
        },
    })
}

fn is_ready(pod: &Tree) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Time from an accepted create of a one-pod Deployment to the pod's Ready condition, as a watcher sees it.
pub(crate) async fn latency(rounds: usize) -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    cluster.dhow(&["push", "samples/hello-http/hello-http.wasm", "hello-http:1.0"])?;
    let client = cluster.client()?;
    let mut times = Vec::new();
    for round in 0..=rounds {
        let name = format!("one-{round}");
        let mut watcher = client.watch(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{name}"));
        watcher.next().await;
        post(&client, DEPLOYMENTS, &deployment(&name, 1)).await?;
        let start = Instant::now();
        loop {
            match tokio::time::timeout(PATIENCE, watcher.next()).await? {
                Event::Applied(pod) if is_ready(&pod) => break,
                _ => {}
            }
        }
        // The first round pulls and compiles the image.
        if round > 0 {
            times.push(start.elapsed());
        }
    }
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
    figure("create accepted to pod Ready, p50", format!("{:.1} ms", at(50)));
    figure("create accepted to pod Ready, p99", format!("{:.1} ms", at(99)));
    Ok(())
}

/// Time until all pods of a large Deployment are Ready, and the memory that each of them costs.
pub(crate) async fn replicas(count: u32) -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    cluster.dhow(&["push", "samples/hello-http/hello-http.wasm", "hello-http:1.0"])?;
    let client = cluster.client()?;
    post(&client, DEPLOYMENTS, &deployment("first", 1)).await?;
    until_ready(&client, "first", 1).await?;
    tokio::time::sleep(SETTLE).await;
    let before = cluster.resident_kib()?;
    let start = Instant::now();
    post(&client, DEPLOYMENTS, &deployment("many", count)).await?;
    until_ready(&client, "many", count).await?;
    figure(&format!("{count} replicas on one node, all Ready"), format!("{:.2} s", start.elapsed().as_secs_f64()));
    tokio::time::sleep(SETTLE).await;
    let per_pod = cluster.resident_kib()?.saturating_sub(before) as f64 / f64::from(count);
    figure("resident per idle HTTP pod, control node included", format!("{per_pod:.1} KiB"));
    Ok(())
}

async fn until_ready(client: &Client, app: &str, count: u32) -> anyhow::Result<()> {
    let mut watcher = client.watch(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}"));
    let mut ready: BTreeSet<String> = BTreeSet::new();
    let wait = async {
        while ready.len() < count as usize {
            let pods = match watcher.next().await {
                Event::Restarted(pods) => pods,
                Event::Applied(pod) => vec![pod],
                Event::Deleted(_) => continue,
            };
            let names = pods.iter().filter(|pod| is_ready(pod)).filter_map(|pod| pod["metadata"]["name"].as_str());
            ready.extend(names.map(str::to_owned));
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        bail!("{} of {count} pods of `{app}` were Ready within {PATIENCE:?}", ready.len());
    }
    Ok(())
}
