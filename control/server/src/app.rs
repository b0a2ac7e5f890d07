//! What every request has at hand, and how a planned write is carried out.

use crate::nodes::Nodes;
use dhow_api::Tree;
use dhow_api::kinds::Kind;
use dhow_api::status::ApiError;
use dhow_gate::write::{Context, Plan, Reply, ServiceRanges, View, rejection, scale_of};
use dhow_pki::Ca;
use dhow_registry::Registry;
use dhow_state::{Key, Object};
use dhow_store::{Replica, WriteError};
use dhow_tasks::{Stop, Tasks};
use dhow_types::{Revision, Time};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// How often a write is planned anew because the world moved under it. A patch of an object that hundreds write at
/// once can lose that often; then its client hears of the conflict, as in Kubernetes.
const PLANS_MAX: usize = 12;

/// The parts of the control node that requests use.
pub(crate) struct App {
    pub(crate) replica: Replica,
    pub(crate) registry: Registry,
    pub(crate) ca: Ca,
    pub(crate) nodes: Nodes,
    pub(crate) services: ServiceRanges,
    /// Ends watches and streams.
    pub(crate) stop: Stop,
    /// Ends the controllers, after the last request.
    pub(crate) machines_stop: Stop,
    /// Owns what outlives its request: streams to nodes.
    pub(crate) tasks: Tasks,
}

/// A write that has been carried out.
pub(crate) struct Done {
    /// The HTTP status.
    pub(crate) code: u16,
    /// What to show.
    pub(crate) shown: Shown,
    /// Sentences for `Warning` headers.
    pub(crate) warnings: Vec<String>,
    /// The revision, if anything was written.
    pub(crate) revision: Option<Revision>,
}

/// What a finished write shows.
pub(crate) enum Shown {
    /// A stored object.
    Object(Arc<Object>),
    /// Anything else.
    Tree(Tree),
}

impl Shown {
    /// As a tree.
    pub(crate) fn tree(&self) -> Tree {
        match self {
            Shown::Object(object) => object.tree(),
            Shown::Tree(tree) => tree.clone(),
        }
    }
}

/// The wall clock: time enters the deciding parts here.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Chance: it enters the deciding parts here.
pub(crate) fn seed() -> Result<u64, ApiError> {
    getrandom::u64().map_err(|error| ApiError::internal(format!("no random numbers: {error}")))
}

impl App {
    /// The present state, looked at shortly for each question.
    pub(crate) fn view(&self) -> ReplicaView<'_> {
        ReplicaView(&self.replica)
    }

    /// Plans, writes, and plans again if the world moved in between.
    pub(crate) async fn write(
        &self,
        kind: &Kind,
        dry_run: bool,
        mut plan: impl FnMut(&Context<'_>) -> Result<Plan, ApiError>,
    ) -> Result<Done, ApiError> {
        let mut plans = 0;
        loop {
            let Plan { txn, reply, code, warnings } = {
                let view = self.view();
                plan(&Context { view: &view, now: now(), seed: seed()?, services: self.services, dry_run })?
            };
            let Some(txn) = txn else {
                let shown = shown(reply, None)?;
                return Ok(Done { code, shown, warnings, revision: None });
            };
            plans += 1;
            match self.replica.write(txn).await {
                Ok(applied) => {
                    let shown = shown(reply, applied.objects.into_iter().next())?;
                    return Ok(Done { code, shown, warnings, revision: Some(applied.revision) });
                }
                Err(WriteError::Rejected(rejected)) if plans >= PLANS_MAX => return Err(rejection(kind, &rejected)),
                Err(WriteError::Rejected(_)) => {}
                Err(WriteError::TooLarge) => return Err(ApiError::too_large(dhow_state::OBJECT_BYTES_MAX)),
                Err(error) => return Err(ApiError::unavailable(error.to_string())),
            }
        }
    }
}

fn shown(reply: Reply, stored: Option<Arc<Object>>) -> Result<Shown, ApiError> {
    let stored = || stored.ok_or_else(|| ApiError::internal("the store answered without the object"));
    Ok(match reply {
        Reply::Stored => Shown::Object(stored()?),
        Reply::StoredScale => Shown::Tree(scale_of(&stored()?.tree())),
        Reply::Object(object) => Shown::Object(object),
        Reply::Tree(tree) => Shown::Tree(tree),
    })
}

/// The replica as the gate looks at it: the lock is held for one look-up at a time.
pub(crate) struct ReplicaView<'a>(&'a Replica);

impl View for ReplicaView<'_> {
    fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.0.state().get(key).cloned()
    }

    fn list(&self, resource: &str) -> Vec<Arc<Object>> {
        self.0.state().list(resource, None).cloned().collect()
    }

    fn list_in(&self, resource: &str, namespace: &str) -> Vec<Arc<Object>> {
        self.0.state().list(resource, Some(namespace)).cloned().collect()
    }
}
