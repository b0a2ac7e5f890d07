//! Tells users what happens to their pods: Event objects, paced and counted as a kubelet does it, so that a node that
//! starts a thousand pods does not drown the API server in news.

use std::collections::BTreeMap;
use std::time::Duration;

use dhow_agent::{EventKind, PodEvent};
use dhow_api::Tree;
use dhow_client::{Client, PatchType, resource_path};
use dhow_tasks::{Stop, Tasks};
use dhow_types::{Chain, NodeName, Time, Uid};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::clock::now;

/// Events that wait to be written: the start of 1,000 pods makes about 3,000. What comes on top is dropped: events are
/// for reading, nothing depends on them.
const QUEUE_MAX: usize = 8192;
/// A kubelet's pace: so many a second in the long run…
const PER_SECOND: u32 = 50;
/// …and so many at once.
const BURST_MAX: u32 = 100;
/// Events that are remembered so that a repetition counts up instead of making another object. When it is full it
/// starts over: a repetition then makes a new object.
const REMEMBERED_MAX: usize = 4096;

/// Takes events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<PodEvent>,
}

impl Recorder {
    /// Starts the task that writes them.
    pub(crate) fn start(tasks: &Tasks, client: Client, node: NodeName) -> Self {
        let (queue, events) = mpsc::channel(QUEUE_MAX);
        let stop = tasks.stop_token();
        let writer = Writer { client, node, known: BTreeMap::new(), serial: 0 };
        tasks.spawn("events", writer.run(events, stop));
        Self { queue }
    }

    /// Takes an event, or drops it if too many wait.
    pub(crate) fn record(&self, event: PodEvent) {
        if self.queue.try_send(event).is_err() {
            tracing::debug!("too many events wait, one was dropped");
        }
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    uid: Uid,
    field: String,
    reason: &'static str,
    message: String,
}

struct Known {
    name: String,
    count: u32,
}

struct Writer {
    client: Client,
    node: NodeName,
    known: BTreeMap<Key, Known>,
    serial: u64,
}

impl Writer {
    async fn run(mut self, mut events: mpsc::Receiver<PodEvent>, stop: Stop) {
        let mut pace = Pace::new(Instant::now());
        while let Some(Some(event)) = stop.or(events.recv()).await {
            if stop.or(tokio::time::sleep(pace.take(Instant::now()))).await.is_none() {
                return;
            }
            if stop.or(self.write(event)).await.is_none() {
                return;
            }
        }
    }

    async fn write(&mut self, event: PodEvent) {
        let key = Key {
            uid: event.pod.uid.clone(),
            field: event.field.clone(),
            reason: event.reason,
            message: event.message.clone(),
        };
        if self.known.contains_key(&key) && self.count_up(&key, &event).await {
            return;
        }
        self.serial += 1;
        let name = format!("{}.{:x}{:04x}", event.pod.name, event.at.as_ms(), self.serial & 0xffff);
        let path = resource_path("", "v1", "events", Some(&event.pod.namespace), None);
        match self.client.create(&path, &object(&event, &name, &self.node)).await {
            Ok(_) => {
                if self.known.len() >= REMEMBERED_MAX {
                    self.known.clear();
                }
                self.known.insert(key, Known { name, count: 1 });
            }
            // An event that cannot be written is not worth a second attempt.
            Err(err) => tracing::debug!(err = %Chain(&err), "an event could not be written"),
        }
    }

    async fn count_up(&mut self, key: &Key, event: &PodEvent) -> bool {
        let Some(known) = self.known.get_mut(key) else { return false };
        known.count = known.count.saturating_add(1);
        let path = resource_path("", "v1", "events", Some(&event.pod.namespace), Some(&known.name));
        let patch = json!({"count": known.count, "lastTimestamp": event.at.to_rfc3339()});
        match self.client.patch(&path, PatchType::Merge, &patch).await {
            Ok(_) => true,
            Err(err) => {
                tracing::debug!(err = %Chain(&err), "an event could not be counted up");
                self.known.remove(key);
                false
            }
        }
    }
}

fn object(event: &PodEvent, name: &str, node: &NodeName) -> Tree {
    let at = event.at.to_rfc3339();
    let mut involved = json!({
        "kind": "Pod",
        "namespace": event.pod.namespace,
        "name": event.pod.name,
        "uid": event.pod.uid.as_str(),
        "apiVersion": "v1",
    });
    if !event.field.is_empty() {
        involved["fieldPath"] = json!(event.field);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": event.pod.namespace},
        "involvedObject": involved,
        "reason": event.reason,
        "message": event.message,
        "source": {"component": "kubelet", "host": node.as_str()},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
        "type": word(event.kind),
        "reportingComponent": "kubelet",
        "reportingInstance": node.as_str(),
    })
}

/// A token bucket.
struct Pace {
    tokens: f64,
    at: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { tokens: f64::from(BURST_MAX), at: now }
    }

    /// Takes a token and says how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(PER_SECOND);
        self.tokens = (self.tokens + gained).min(f64::from(BURST_MAX)) - 1.0;
        self.at = now;
        if self.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.tokens / f64::from(PER_SECOND)) }
    }
}

fn word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Normal => "Normal",
        EventKind::Warning => "Warning",
    }
}

/// Writes an event about this node itself. One that cannot be written is let go: what it tells goes on without it.
pub(crate) async fn tell_of_node(client: &Client, node: &NodeName, kind: EventKind, reason: &str, message: &str) {
    let path = resource_path("", "v1", "events", Some("default"), None);
    if let Err(err) = client.create(&path, &node_event(node, kind, reason, message, now())).await {
        tracing::debug!(err = %Chain(&err), "an event could not be written");
    }
}

fn node_event(node: &NodeName, kind: EventKind, reason: &str, message: &str, now: Time) -> Tree {
    let at = now.to_rfc3339();
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": format!("{node}.{:x}", now.as_ms()), "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": node.as_str(), "uid": node.as_str(), "apiVersion": "v1"},
        "reason": reason,
        "message": message,
        "source": {"component": "kubelet", "host": node.as_str()},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
        "type": word(kind),
        "reportingComponent": "kubelet",
        "reportingInstance": node.as_str(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hundred_go_at_once_and_then_fifty_a_second() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!((0..100).all(|_| pace.take(now).is_zero()));
        assert_eq!(pace.take(now).as_millis(), 20);
        assert!(pace.take(now + Duration::from_secs(1)).is_zero());
    }

    #[test]
    fn an_event_names_pod_container_and_node() {
        let event = PodEvent {
            pod: dhow_agent::PodRef { namespace: "ns".into(), name: "web".into(), uid: Uid::new("u1") },
            field: "spec.containers{c}".into(),
            kind: EventKind::Warning,
            reason: "BackOff",
            message: "m".into(),
            at: Time::from_secs(0),
        };
        let tree = object(&event, "web.1", &NodeName::new("n1"));
        assert_eq!(tree["involvedObject"]["fieldPath"], "spec.containers{c}");
        assert_eq!(tree["source"]["host"], "n1");
        assert_eq!(tree["firstTimestamp"], "1970-01-01T00:00:00Z");
    }
}
