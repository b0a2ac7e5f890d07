//! What every request has at hand, and how a planned write is carried out.

use crate::ServerError;
use crate::accounts::KnownKey;
use crate::admit::Settings;
use crate::backups::Backups;
use crate::certs::Certs;
use crate::compiled::Compiled;
use crate::lead;
use crate::links::Links;
use crate::member::{Member, MemberFile};
use crate::nodes::Nodes;
use crate::rebuild::Rebuild;
use crate::usage::Summaries;
use dhow_api::Tree;
use dhow_api::kinds::Kind;
use dhow_api::status::ApiError;
use dhow_gate::write::{Context, Plan, Reply, ServiceRanges, View, rejection, scale_of};
use dhow_registry::Registry;
use dhow_state::{Applied, Key, Object, Prepared, Txn};
use dhow_store::{Failure, Replica, RoleNow, WriteError};
use dhow_tasks::{Stop, Tasks};
use dhow_types::{Revision, Time};
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::Instant;

/// How often a write is planned anew because the world moved under it. A patch of an object that hundreds write at
/// once can lose that often; then its client hears of the conflict, as in Kubernetes.
const PLANS_MAX: usize = 12;

/// How long a request waits for a leader in all, before its client is told to try again: an election takes a second, a
/// busy machine makes it two, and whoever waits for longer waits for a majority that is not there. Clients try a 503 again
/// by themselves. What consensus has taken on by then may use up its own patience of two seconds.
pub(crate) const LEADER_WAIT: Duration = Duration::from_secs(3);

/// The rest between two attempts while there is a leader that does not answer.
const LEADER_REST: Duration = Duration::from_millis(50);

/// The parts of the control node that requests use.
pub(crate) struct App {
    pub(crate) replica: Replica,
    pub(crate) registry: Registry,
    pub(crate) certs: Certs,
    pub(crate) token_key: KnownKey,
    pub(crate) nodes: Nodes,
    pub(crate) services: ServiceRanges,
    /// What a newcomer must share.
    pub(crate) settings: Settings,
    /// This member, as it is now.
    pub(crate) member: Member,
    pub(crate) links: Links,
    /// All members, as they are known here.
    pub(crate) members: watch::Sender<Vec<Member>>,
    /// Held while the leader changes who the members are.
    pub(crate) member_turn: tokio::sync::Mutex<()>,
    /// What this member is to consensus.
    pub(crate) role: watch::Receiver<RoleNow>,
    pub(crate) backups: Backups,
    /// The code of programs that agents cannot compile.
    pub(crate) compiled: Compiled,
    /// What the nodes use.
    pub(crate) usage: Summaries,
    /// Where the member's file lies, and what it says.
    pub(crate) file: Mutex<(PathBuf, MemberFile)>,
    /// Ends watches and streams.
    pub(crate) stop: Stop,
    /// Ends the controllers, after the last request.
    pub(crate) machines_stop: Stop,
    /// Owns what outlives its request: streams to nodes. Ended after the requests, which may need them to the last.
    pub(crate) streams: Tasks,
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

thread_local! {
    /// Drawn from the system some at a time: a system call for each write is much beside what else a write costs.
    static SEEDS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Chance: it enters the deciding parts here.
pub(crate) fn seed() -> Result<u64, ApiError> {
    SEEDS.with_borrow_mut(|seeds| {
        if let Some(seed) = seeds.pop() {
            return Ok(seed);
        }
        let mut drawn = [[0; 8]; 32];
        getrandom::fill(drawn.as_flattened_mut())
            .map_err(|error| ApiError::internal(format!("no random numbers: {error}")))?;
        let [first, rest @ ..] = drawn.map(u64::from_ne_bytes);
        seeds.extend(rest);
        Ok(first)
    })
}

impl App {
    /// The present state, looked at shortly for each question.
    pub(crate) fn view(&self) -> ReplicaView<'_> {
        ReplicaView(&self.replica)
    }

    /// What to tell of a member that is none any more.
    pub(crate) fn removed(&self) -> ServerError {
        let dir = self.file.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        let why = format!(
            "belongs to the control node `{}`, which was removed from its cluster: {}",
            self.member.name,
            crate::member::AFTER_REMOVAL
        );
        ServerError::Place { dir, why }
    }

    /// What to tell of a store that cannot go on.
    pub(crate) fn failed(&self, failure: Failure) -> ServerError {
        let Failure { why, is_loss } = failure;
        if !is_loss {
            return ServerError::Failed(why);
        }
        let dir = self.file.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        let Member { id, name, witness, .. } = &self.member;
        // Its certificates are as good as before.
        let rebuild = Rebuild { has_certificate: true, ..Rebuild::new(name, *witness, *id, &self.known_members()) };
        ServerError::Lost { dir, why, rebuild }
    }

    /// Whether this member leads.
    pub(crate) fn is_leader(&self) -> bool {
        lead::leads(&self.role.borrow())
    }

    /// Waits until somebody leads, but no longer than that.
    pub(crate) async fn until_led(&self, patience: Duration) {
        let mut role = self.role.clone();
        // Either way, who asks looks for itself.
        let _led = tokio::time::timeout(patience, role.wait_for(|now| now.leader.is_some())).await;
    }

    /// Waits until this member leads; `false` when the server stops instead.
    pub(crate) async fn until_leader(&self) -> bool {
        let mut role = self.role.clone();
        self.machines_stop.or(role.wait_for(lead::leads)).await.is_some_and(|waited| waited.is_ok())
    }

    /// Waits until this member does not lead any more, or the server stops.
    pub(crate) async fn until_deposed(&self) {
        let mut role = self.role.clone();
        // An error means that the store is closed.
        let _ended = self.machines_stop.or(role.wait_for(|now| !lead::leads(now))).await;
    }

    /// All members, as they are known here.
    pub(crate) fn known_members(&self) -> Vec<Member> {
        self.members.borrow().clone()
    }

    /// Keeps the list of members for the next start.
    pub(crate) fn keep_members(&self, members: Vec<Member>) -> Result<(), ServerError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.1.members = members;
        file.1.save(&file.0)
    }

    /// Waits until what is read here holds every write that was acknowledged by any member. While a leader is elected it
    /// waits; a read may be tried again as often as one likes.
    pub(crate) async fn barrier(&self) -> Result<Revision, ApiError> {
        let end = Instant::now() + LEADER_WAIT;
        loop {
            match self.replica.barrier().await {
                Err(WriteError::NoLeader | WriteError::Lost) => {
                    if !self.is_led_before(end).await {
                        return Err(write_error(WriteError::NoLeader));
                    }
                }
                ended => return ended.map_err(write_error),
            }
        }
    }

    /// Whether it is worth the while to try again what failed for want of a leader: somebody leads, in time. Nothing is
    /// tried without one, for consensus would wait for it beyond the end.
    async fn is_led_before(&self, end: Instant) -> bool {
        tokio::time::sleep(LEADER_REST).await;
        self.until_led(end.saturating_duration_since(Instant::now())).await;
        Instant::now() < end && self.role.borrow().leader.is_some()
    }

    /// Writes what no gate has to plan. While a leader is elected it waits.
    pub(crate) async fn write_raw(&self, txn: Txn) -> Result<Applied, ApiError> {
        let prepared = txn.prepare().map_err(|error| write_error(error.into()))?;
        self.try_write(&prepared, false).await.map_err(write_error)
    }

    async fn try_write(&self, prepared: &Prepared, lazy: bool) -> Result<Applied, WriteError> {
        let end = Instant::now() + LEADER_WAIT;
        loop {
            let written = self.replica.write_prepared(prepared.clone(), lazy).await;
            // Nothing was changed: it is as if it had not been tried.
            if !matches!(written, Err(WriteError::NoLeader)) || !self.is_led_before(end).await {
                return written;
            }
        }
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
            let Plan { txn, index, reply, code, warnings, lazy } = {
                let view = self.view();
                plan(&Context { view: &view, now: now(), seed: seed()?, services: self.services, dry_run })?
            };
            let Some(txn) = txn else {
                let shown = shown(reply, None)?;
                return Ok(Done { code, shown, warnings, revision: None });
            };
            plans += 1;
            let prepared = txn.prepare_with(index).map_err(|rejected| rejection(kind, &rejected))?;
            match self.try_write(&prepared, lazy).await {
                Ok(applied) => {
                    let shown = shown(reply, applied.objects.into_iter().next())?;
                    return Ok(Done { code, shown, warnings, revision: Some(applied.revision) });
                }
                Err(WriteError::Rejected(rejected)) if plans >= PLANS_MAX => return Err(rejection(kind, &rejected)),
                Err(WriteError::Rejected(_)) => {}
                Err(error) => return Err(write_error(error)),
            }
        }
    }
}

/// What a write that was not acknowledged means to the client.
pub(crate) fn write_error(error: WriteError) -> ApiError {
    match error {
        WriteError::TooLarge => ApiError::too_large(dhow_state::OBJECT_BYTES_MAX),
        WriteError::Rejected(rejected) => {
            ApiError::conflict(&rejected.key().resource, &rejected.key().name, &rejected.to_string())
        }
        // It may have happened: only the client can know whether to do it again.
        WriteError::Lost => ApiError::timeout(&error.to_string(), 1),
        // It has waited for a leader long enough.
        WriteError::NoLeader => ApiError::unavailable(error.to_string()).at_once(),
        WriteError::Unavailable(_) | WriteError::Change(_) => ApiError::unavailable(error.to_string()),
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
