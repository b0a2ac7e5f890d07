//! The API group `metrics.k8s.io`: what nodes and pods use now, as their agents say when somebody asks.
//!
//! Nothing of it is stored. Each member of the control plane has a connection of every node, so that any of them can ask;
//! what a node said is good for a few seconds, so that a dashboard that asks for every pod costs one question a node.

use crate::answer::{self, Answer};
use crate::app::App;
use crate::kubelet;
use crate::read::settle;
use crate::route::{header, style};
use dhow_api::kinds::{self, Kind};
use dhow_api::quantity::Quantity;
use dhow_api::status::ApiError;
use dhow_api::{Tree, discovery, meta};
use dhow_gate::media::{self, Endpoint};
use dhow_gate::options::{At, list_options};
use dhow_gate::write::{Name, key_of};
use dhow_gate::{Query, ResourceRequest, Verb};
use dhow_state::Object;
use futures_util::{StreamExt, stream};
use http::HeaderMap;
use http::header::ACCEPT;
use http_body_util::{BodyExt, Limited};
use serde_json::{Map, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long what a node said may be told again.
const FRESH: Duration = Duration::from_secs(5);
/// How long a node may take to say it. One that takes longer is left out: the others' figures are worth having.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Nodes that are asked at the same time.
const NODES_AT_ONCE: usize = 16;
/// The most that one node may say: ten thousand pods are some six MiB.
const SUMMARY_BYTES_MAX: usize = 64 << 20;
/// What nodes are asked.
const PATH: &str = "/stats/summary?only_cpu_and_memory=true";

/// What the nodes said lately.
#[derive(Default)]
pub(crate) struct Summaries {
    slots: Mutex<BTreeMap<String, Slot>>,
}

/// Held while a node is asked: who asks meanwhile gets the same answer.
type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Arc<Tree>)>>>;

impl Summaries {
    /// Forgets nodes that are not there any more.
    fn keep(&self, names: &BTreeSet<&str>) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name.as_str()));
    }

    fn slot(&self, node: &str) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(node.to_owned()).or_default().clone()
    }

    /// What a node says; `None` if it does not answer.
    async fn of(&self, app: &App, node: &str) -> Option<Arc<Tree>> {
        let slot = self.slot(node);
        let mut kept = slot.lock().await;
        if let Some((at, summary)) = &*kept
            && at.elapsed() < FRESH
        {
            return Some(summary.clone());
        }
        let summary = match timeout(ANSWER_MAX, ask(app, node)).await {
            Ok(Ok(summary)) => Arc::new(summary),
            Ok(Err(error)) => {
                tracing::debug!(node, error = error.message, "a node does not say what it uses");
                return None;
            }
            Err(_) => {
                tracing::debug!(node, "a node takes too long to say what it uses");
                return None;
            }
        };
        *kept = Some((Instant::now(), summary.clone()));
        Some(summary)
    }

    /// What these nodes say, by name.
    async fn all(&self, app: &App, nodes: BTreeSet<String>) -> BTreeMap<String, Arc<Tree>> {
        let asked = stream::iter(nodes).map(|node| async move { self.of(app, &node).await.map(|said| (node, said)) });
        asked.buffer_unordered(NODES_AT_ONCE).filter_map(std::future::ready).collect().await
    }
}

async fn ask(app: &App, node: &str) -> Result<Tree, ApiError> {
    let answer = kubelet::ask(app, node, PATH, None).await?;
    if !answer.status().is_success() {
        return Err(kubelet::refusal(answer).await);
    }
    let body = Limited::new(answer.into_body(), SUMMARY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| ApiError::internal(error.to_string()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| ApiError::internal(error.to_string()))
}

/// Answers a request of this group.
pub(crate) async fn handle(
    app: &App,
    verb: Verb,
    target: &ResourceRequest,
    query: &Query<'_>,
    headers: &HeaderMap,
) -> Result<Answer, ApiError> {
    let of_nodes = match (target.version.as_str(), target.resource.as_str(), target.subresource.as_str()) {
        (discovery::METRICS_VERSION, "nodes", "") if target.namespace.is_empty() => true,
        (discovery::METRICS_VERSION, "pods", "") => false,
        _ => return Err(ApiError::no_such_path()),
    };
    let accepted = media::negotiate(header(headers, ACCEPT), Endpoint::Plain)?;
    let style = style(query, headers, accepted);
    let kind = kinds::by_resource("", "v1", &target.resource).ok_or_else(ApiError::no_such_path)?;
    let single = !target.name.is_empty();
    let found: Vec<Arc<Object>> = match verb {
        Verb::Get if single && (of_nodes || !target.namespace.is_empty()) => vec![find(app, kind, target).await?],
        Verb::List if !single => select(app, kind, target, query).await?,
        _ => return Err(ApiError::method_not_allowed_here()),
    };
    let node_of = |object: &Object| match of_nodes {
        true => object.key.name.to_string(),
        false => object.index.field("spec.nodeName").unwrap_or_default().to_owned(),
    };
    let nodes: BTreeSet<String> = found.iter().map(|object| node_of(object)).filter(|name| !name.is_empty()).collect();
    if of_nodes && !single {
        app.usage.keep(&nodes.iter().map(String::as_str).collect());
    }
    let said = app.usage.all(app, nodes).await;
    let word = if of_nodes { "Node" } else { "Pod" };
    let api_version = format!("{}/{}", discovery::METRICS_GROUP, discovery::METRICS_VERSION);
    let mut items = Vec::new();
    for object in &found {
        let Some(summary) = said.get(&node_of(object)) else { continue };
        let tree = object.tree();
        items.extend(if of_nodes { node_metrics(&tree, summary) } else { pod_metrics(&tree, summary) });
    }
    if single {
        let resource = if of_nodes { "nodemetrics" } else { "podmetrics" };
        let name = if of_nodes { target.name.clone() } else { format!("{}/{}", target.namespace, target.name) };
        let missing = || ApiError::not_found(&format!("{resource}.{}", discovery::METRICS_GROUP), &name);
        let metrics = items.pop().ok_or_else(missing)?;
        let mut item = json!({"kind": format!("{word}Metrics"), "apiVersion": api_version});
        if let (Tree::Object(item), Tree::Object(metrics)) = (&mut item, metrics) {
            item.extend(metrics);
        }
        return Ok(answer::tree(200, &item, style));
    }
    let kind = format!("{word}MetricsList");
    let list = json!({"kind": kind, "apiVersion": api_version, "metadata": {}, "items": items});
    Ok(answer::tree(200, &list, style))
}

async fn find(app: &App, kind: &'static Kind, target: &ResourceRequest) -> Result<Arc<Object>, ApiError> {
    settle(app, At::Newest).await?;
    let name = Name { namespace: &target.namespace, name: &target.name };
    let found = app.replica.state().get(&key_of(kind, name)).cloned();
    found.ok_or_else(|| ApiError::not_found(&kind.resource(), name.name))
}

/// The nodes or pods that are meant, by the selectors that they themselves are listed by.
async fn select(
    app: &App,
    kind: &'static Kind,
    target: &ResourceRequest,
    query: &Query<'_>,
) -> Result<Vec<Arc<Object>>, ApiError> {
    let mut options = list_options(kind, query)?;
    (options.limit, options.resume) = (0, None);
    settle(app, At::Newest).await?;
    options.at = At::Newest;
    let namespace = Some(target.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let page = dhow_gate::list::list(&app.replica.state(), kind, namespace, &options);
    page.map(|page| page.items).map_err(|error| error.error)
}

fn node_metrics(node: &Tree, summary: &Tree) -> Option<Tree> {
    let said = summary.get("node")?;
    let usage = usage_of(said)?;
    let mut metrics = head(node, said)?;
    metrics.insert("usage".to_owned(), usage);
    Some(Tree::Object(metrics))
}

fn pod_metrics(pod: &Tree, summary: &Tree) -> Option<Tree> {
    let uid = meta::text(pod, "metadata.uid");
    let said = meta::list(summary, "pods").iter().find(|said| meta::text(said, "podRef.uid") == uid)?;
    let containers: Option<Vec<Tree>> = meta::list(said, "containers")
        .iter()
        .map(|container| Some(json!({"name": meta::text(container, "name"), "usage": usage_of(container)?})))
        .collect();
    // One that has just begun has no rate yet, and half of a pod's sum would mislead.
    let containers = containers.filter(|containers| !containers.is_empty())?;
    let mut metrics = head(pod, said)?;
    metrics.insert("containers".to_owned(), containers.into());
    Some(Tree::Object(metrics))
}

/// Metadata, and when and over what time the figures were taken.
fn head(object: &Tree, said: &Tree) -> Option<Map<String, Tree>> {
    let time = meta::text(said, "cpu.time");
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), meta::name(object).into());
    let namespace = meta::text(object, "metadata.namespace");
    if !namespace.is_empty() {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    metadata.insert("creationTimestamp".to_owned(), time.into());
    if let Some(labels) = meta::at(object, "metadata.labels") {
        metadata.insert("labels".to_owned(), labels.clone());
    }
    let window_ms = said.pointer("/cpu/windowMilliseconds")?.as_u64()?;
    let mut metrics = Map::new();
    metrics.insert("metadata".to_owned(), Tree::Object(metadata));
    metrics.insert("timestamp".to_owned(), time.into());
    metrics.insert("window".to_owned(), duration(window_ms).into());
    Some(metrics)
}

/// A length of time as Go writes it.
fn duration(ms: u64) -> String {
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let mut seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    seconds.truncate(seconds.trim_end_matches('0').trim_end_matches('.').len());
    if minutes == 0 { format!("{seconds}s") } else { format!("{minutes}m{seconds}s") }
}

fn usage_of(said: &Tree) -> Option<Tree> {
    let cores = said.pointer("/cpu/usageNanoCores")?.as_u64()?;
    let bytes = said.pointer("/memory/workingSetBytes")?.as_u64()?;
    let cpu = Quantity::parse(&format!("{cores}n")).ok()?.to_canonical();
    let memory = Quantity::from_bytes(i64::try_from(bytes).ok()?).to_canonical();
    Some(json!({"cpu": cpu, "memory": memory}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_as_the_metrics_server_writes_them() {
        let part = |cores: u64, bytes: u64| {
            json!({"cpu": {"time": "2026-01-02T03:04:05Z", "usageNanoCores": cores, "windowMilliseconds": 15_020},
                "memory": {"workingSetBytes": bytes}})
        };
        let mut container = part(12_345_678, 3 << 20);
        container["name"] = "c".into();
        let mut said = part(12_345_678, 3 << 20);
        said["podRef"] = json!({"uid": "u1"});
        said["containers"] = json!([container]);
        let summary = json!({"node": part(1_500_000_000, 1000), "pods": [said]});
        let object = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}}});
        assert_eq!(
            pod_metrics(&object, &summary).unwrap().to_string(),
            r#"{"metadata":{"name":"web","namespace":"shop","creationTimestamp":"2026-01-02T03:04:05Z","labels":{"app":"web"}},"timestamp":"2026-01-02T03:04:05Z","window":"15.02s","containers":[{"name":"c","usage":{"cpu":"12345678n","memory":"3Mi"}}]}"#
        );
        let node = node_metrics(&json!({"metadata": {"name": "n1"}}), &summary).unwrap();
        // As Go has it: what is less than 1 Ki is written in decimal units.
        assert_eq!(node["usage"], json!({"cpu": "1500m", "memory": "1k"}));
        let mut young = summary.clone();
        young["pods"][0]["containers"][0]["cpu"].as_object_mut().unwrap().remove("usageNanoCores");
        assert_eq!(pod_metrics(&object, &young), None);
        assert_eq!(pod_metrics(&json!({"metadata": {"uid": "other"}}), &summary), None);
    }

    #[test]
    fn a_window_is_a_duration_of_go() {
        for (ms, text) in [(15_000, "15s"), (15_020, "15.02s"), (999, "0.999s"), (60_000, "1m0s"), (61_500, "1m1.5s")] {
            assert_eq!(duration(ms), text);
        }
    }
}
