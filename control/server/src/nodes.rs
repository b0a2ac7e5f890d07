//! The nodes that are connected: each agent dials every control node once, and what the API asks of its pods goes back
//! over that connection. So a node behind NAT is reached too. Other control nodes dial the same port.

use crate::links::Links;
use dhow_api::status::ApiError;
use dhow_gate::user::{CONTROL_USER_PREFIX, NODE_USER_PREFIX};
use dhow_quic::{BiStream, Connection, Endpoint, StreamHeader};
use dhow_tasks::{Stop, Tasks};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::{debug, info};

/// How long a stream to a node may take to open: a node that is alive answers within one round trip.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections of all nodes.
#[derive(Clone, Default)]
pub(crate) struct Nodes {
    connections: Arc<Mutex<Latest<Connection>>>,
}

/// What each name has, the latest last: a node that dials again has two connections until the old one is known to be
/// dead, and it is not always the old one that ends first.
struct Latest<T>(BTreeMap<String, Vec<(u64, T)>>);

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Clone> Latest<T> {
    fn add(&mut self, name: &str, id: u64, what: T) {
        self.0.entry(name.to_owned()).or_default().push((id, what));
    }

    fn remove(&mut self, name: &str, id: u64) {
        let Some(all) = self.0.get_mut(name) else { return };
        all.retain(|(other, _)| *other != id);
        if all.is_empty() {
            self.0.remove(name);
        }
    }

    fn get(&self, name: &str) -> Option<T> {
        self.0.get(name)?.last().map(|(_, what)| what.clone())
    }
}

impl Nodes {
    /// Takes connections until told to stop. Each is watched by one task that forgets it when it ends.
    pub(crate) async fn accept(self, endpoint: Endpoint, links: Links, tasks: Tasks, stop: Stop) {
        let mut next_id = 0;
        loop {
            let connection = tokio::select! {
                () = stop.stopped() => return,
                connection = endpoint.accept() => connection,
            };
            let Some(connection) = connection else { return };
            if connection.peer().starts_with(CONTROL_USER_PREFIX) {
                links.accepted(connection);
                continue;
            }
            let Some(node) = connection.peer().strip_prefix(NODE_USER_PREFIX).map(str::to_owned) else {
                debug!(peer = connection.peer(), "closed a connection of someone who is no node");
                connection.close();
                continue;
            };
            next_id += 1;
            let id = next_id;
            info!(%node, "node connected");
            self.lock().add(&node, id, connection.clone());
            let nodes = self.clone();
            let stop = stop.clone();
            tasks.spawn("node connection", async move {
                tokio::select! {
                    () = stop.stopped() => connection.close(),
                    why = connection.closed() => info!(%node, %why, "node disconnected"),
                }
                nodes.lock().remove(&node, id);
            });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Latest<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream to a node's kubelet API.
    pub(crate) async fn kubelet(&self, node: &str) -> Result<BiStream, ApiError> {
        let connection = self.lock().get(node);
        let Some(connection) = connection else {
            return Err(ApiError::unavailable(format!("node {node} is not connected to the control plane")));
        };
        match tokio::time::timeout(OPEN_TIMEOUT, connection.open(&StreamHeader::Kubelet)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(ApiError::unavailable(format!("node {node} cannot be reached: {error}"))),
            Err(_) => Err(ApiError::unavailable(format!("node {node} does not answer"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_that_lives_is_taken() {
        let mut latest = Latest::default();
        let mut step = |ended: Option<u64>, begun: Option<u64>| {
            begun.into_iter().for_each(|id| latest.add("n", id, id));
            ended.into_iter().for_each(|id| latest.remove("n", id));
            (latest.get("n"), latest.0.len())
        };
        assert_eq!(step(None, Some(1)), (Some(1), 1));
        assert_eq!(step(None, Some(2)), (Some(2), 1));
        assert_eq!(step(Some(2), None), (Some(1), 1), "the older one lives");
        assert_eq!(step(None, Some(3)), (Some(3), 1));
        assert_eq!(step(Some(1), None), (Some(3), 1));
        assert_eq!(step(Some(3), None), (None, 0), "nothing is left of a node that is gone");
    }
}
