//! What containers cost and how well they are held to their limits: HTTP beside `wasmtime serve`, ten thousand idle
//! programs on one agent, CPU limits, the end of a program that does not stop by itself, and the size of it all.

mod density;
mod http;
mod limits;

use crate::cluster::{binary, post};
use crate::control::{Agent, Control, Resident};
use crate::figure;
use anyhow::{Context as _, bail};
use dhow_client::{Client, Event, Watcher};
use serde_json::{Value as Tree, json};
use std::path::Path;
use std::time::Duration;

pub(crate) use density::measure as density;
pub(crate) use http::measure as http;
pub(crate) use limits::measure as limits;

/// How long an agent is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(15);

/// When waiting for pods is given up.
const PATIENCE: Duration = Duration::from_secs(300);

/// The node of these measurements.
const NODE: &str = "bench";

const PODS: &str = "/api/v1/namespaces/default/pods";

pub(crate) async fn measure(seconds: u32) -> anyhow::Result<()> {
    footprint(&std::env::temp_dir()).await?;
    http(seconds).await?;
    limits().await?;
    density().await
}

/// Resident memory of an agent that has nothing to do, and the size of the binary.
async fn footprint(parent: &Path) -> anyhow::Result<()> {
    let size = std::fs::metadata(binary()?)?.len();
    figure("the binary, with Cranelift", format!("{:.1} MB", size as f64 / 1e6));
    let control = Control::start(parent)?;
    let agent = Agent::start(&control, NODE, parent)?;
    tokio::time::sleep(SETTLE).await;
    figure("an idle agent, resident", Resident::of(agent.pid())?);
    Ok(())
}

/// A control node with one agent, as two processes.
struct Pair {
    agent: Agent,
    client: Client,
    control: Control,
}

impl Pair {
    async fn start(parent: &Path) -> anyhow::Result<Self> {
        let control = Control::start(parent)?;
        let agent = Agent::start(&control, NODE, parent)?;
        let client = control.client()?;
        Ok(Self { agent, client, control })
    }

    /// Makes a pod and waits until it runs.
    async fn run(&self, pod: &Tree) -> anyhow::Result<()> {
        let name = pod["metadata"]["name"].as_str().context("the pod has a name")?;
        let mut watcher = watch(&self.client, name);
        post(&self.client, PODS, pod).await?;
        until(&mut watcher, |event| matches!(event, Event::Applied(pod) if is_running(pod))).await
    }
}

fn watch(client: &Client, name: &str) -> Watcher {
    client.watch(&format!("{PODS}?fieldSelector=metadata.name%3D{name}"))
}

/// Waits for an event of one object.
async fn until(watcher: &mut Watcher, mut is_it: impl FnMut(&Event) -> bool) -> anyhow::Result<()> {
    let wait = async {
        loop {
            let event = match watcher.next().await {
                Event::Restarted(list) => list.into_iter().next().map(Event::Applied),
                event => Some(event),
            };
            if event.as_ref().is_some_and(&mut is_it) {
                return;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        bail!("a pod was not as wanted within {PATIENCE:?}");
    }
    Ok(())
}

/// Its phase says so and each of its containers has been started.
fn is_running(pod: &Tree) -> bool {
    let containers = pod["status"]["containerStatuses"].as_array();
    pod["status"]["phase"] == "Running"
        && containers.is_some_and(|all| all.iter().all(|status| status["state"]["running"].is_object()))
}

/// A pod of one container that is never restarted.
fn pod(name: &str, container: Tree) -> Tree {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    })
}
