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
    connections: Arc<Mutex<BTreeMap<String, (u64, Connection)>>>,
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
            self.lock().insert(node.clone(), (id, connection.clone()));
            let nodes = self.clone();
            let stop = stop.clone();
            tasks.spawn("node connection", async move {
                tokio::select! {
                    () = stop.stopped() => connection.close(),
                    why = connection.closed() => info!(%node, %why, "node disconnected"),
                }
                // A node that has dialled again has another id by now.
                let mut connections = nodes.lock();
                if connections.get(&node).is_some_and(|(current, _)| *current == id) {
                    connections.remove(&node);
                }
            });
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (u64, Connection)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream to a node's kubelet API.
    pub(crate) async fn kubelet(&self, node: &str) -> Result<BiStream, ApiError> {
        let connection = self.lock().get(node).map(|(_, connection)| connection.clone());
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
