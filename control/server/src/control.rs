//! Runs the controllers: every change goes in, every wish goes through the same write path as a client's request, and
//! its result goes back in.

use crate::app::{App, Done, now, seed};
use dhow_api::kinds::{self, Kind};
use dhow_api::status::{ApiError, Reason};
use dhow_api::{Tree, meta};
use dhow_controllers::{Config, Controllers, In, Out, Propagation, Write, WriteFault, WriteId};
use dhow_gate::options::{self, DeleteOptions};
use dhow_gate::write::{self as plan, Name};
use dhow_state::{Change, Object};
use dhow_store::WatchItem;
use dhow_types::{Machine, Revision};
use futures_util::FutureExt;
use serde_json::json;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

/// Writes under way at a time: enough to fill the store's group commits, few enough that clients get their turn.
const WRITES_MAX: usize = 128;
/// Without a wish of its own, a machine is woken this often at the latest; it costs nothing and bounds the harm of a
/// forgotten wake-up.
const REST_MAX: Duration = Duration::from_secs(10);

type Written = (WriteId, Result<Option<Revision>, WriteFault>);

/// Controllers that have panicked begin anew after this rest: from the present state, since they keep none of their own.
const PANIC_REST: Duration = Duration::from_secs(1);

/// Runs the controllers whenever this member leads, until told to stop. When they cannot keep up with the changes, they
/// begin anew. Two members that both take themselves for the leader for a moment do no harm: every write names the
/// revision that it was decided on.
pub(crate) async fn run(app: Arc<App>, config: Config) {
    while app.until_leader().await {
        // The state of a new leader may lack what the old one has acknowledged last.
        if app.replica.barrier().await.is_err() {
            app.machines_stop.or(tokio::time::sleep(PANIC_REST)).await;
            continue;
        }
        let mut run = Run {
            machine: Controllers::new(config.clone()),
            waiting: VecDeque::new(),
            writes: JoinSet::new(),
            wishes: Vec::new(),
        };
        if AssertUnwindSafe(run.until_lagged(&app)).catch_unwind().await.is_err() {
            error!("the controllers panicked and begin anew");
            app.machines_stop.or(tokio::time::sleep(PANIC_REST)).await;
        }
    }
}

struct Run {
    machine: Controllers,
    /// Wishes that wait for their turn. Controllers keep at most one write an object in flight, so this is bounded by
    /// the number of objects.
    waiting: VecDeque<(WriteId, &'static str, Write)>,
    writes: JoinSet<Written>,
    wishes: Vec<Out>,
}

/// What the loop wakes up for.
enum Event {
    Stop,
    Watched(Option<WatchItem>),
    Written(Written),
    Wake,
}

impl Run {
    async fn until_lagged(&mut self, app: &Arc<App>) {
        let mut changes = app.replica.watch_all();
        for object in std::mem::take(&mut changes.objects) {
            self.handle(In::Changed(Arc::new(initial(object))));
        }
        self.handle(In::Synced);
        let mut deposed = std::pin::pin!(app.until_deposed());
        loop {
            self.wake_if_due();
            self.start_writes(app);
            let rest = self.rest();
            let event = tokio::select! {
                biased;
                () = &mut deposed => Event::Stop,
                Some(written) = self.writes.join_next(), if !self.writes.is_empty() => {
                    match written {
                        Ok(written) => Event::Written(written),
                        // A panic is logged by the runtime; its controller learns nothing, so all begin anew.
                        Err(_) => return,
                    }
                }
                item = changes.next() => Event::Watched(item),
                () = tokio::time::sleep(rest) => Event::Wake,
            };
            match event {
                Event::Stop | Event::Watched(None) => return,
                Event::Watched(Some(WatchItem::Lagged)) => return warn!("controllers lagged behind and begin anew"),
                Event::Watched(Some(WatchItem::Progress(_))) | Event::Wake => {}
                Event::Watched(Some(WatchItem::Changes(changes))) => {
                    for change in changes {
                        self.handle(In::Changed(change));
                    }
                }
                Event::Written(written) => self.written(written),
            }
            while let Some(Ok(written)) = self.writes.try_join_next() {
                self.written(written);
            }
        }
    }

    fn written(&mut self, (id, result): Written) {
        self.handle(In::Written { id, result });
    }

    fn handle(&mut self, input: In) {
        self.machine.handle(now(), input, &mut self.wishes);
    }

    fn wake_if_due(&mut self) {
        let at = now();
        if self.machine.next_wake().is_some_and(|due| due <= at) {
            self.machine.wake(at, &mut self.wishes);
        }
        for Out::Write { id, by, write } in self.wishes.drain(..) {
            self.waiting.push_back((id, by, write));
        }
    }

    fn rest(&self) -> Duration {
        let at = now();
        self.machine.next_wake().map_or(REST_MAX, |due| Duration::from_millis(due.ms_since(at)).min(REST_MAX))
    }

    fn start_writes(&mut self, app: &Arc<App>) {
        while self.writes.len() < WRITES_MAX {
            let Some((id, by, write)) = self.waiting.pop_front() else { return };
            let app = app.clone();
            self.writes.spawn(async move {
                let result = carry_out(&app, write).await;
                if let Err(error) = &result {
                    debug!(by, code = error.code, message = %error.message, "a controller's write was refused");
                }
                (id, result.map(|done| done.revision).map_err(fault))
            });
        }
    }
}

/// An object that was there before the watch began, as a change.
fn initial(object: Arc<Object>) -> Change {
    Change { revision: object.revision, key: object.key.clone(), old: None, new: Some(object.clone()), last: object }
}

fn fault(error: ApiError) -> WriteFault {
    match error.reason {
        Reason::Conflict => WriteFault::Conflict,
        Reason::AlreadyExists => WriteFault::AlreadyExists,
        Reason::NotFound => WriteFault::NotFound,
        Reason::Invalid | Reason::BadRequest | Reason::Forbidden | Reason::RequestEntityTooLarge => {
            WriteFault::Invalid(error.message)
        }
        _ => WriteFault::Other(error.message),
    }
}

fn kind_of(tree: &Tree) -> Result<&'static Kind, ApiError> {
    kinds::by_kind(meta::api_version(tree), meta::kind(tree)).ok_or_else(ApiError::no_such_path)
}

fn kind_named(resource: &str) -> Result<&'static Kind, ApiError> {
    kinds::by_group_resource(resource).ok_or_else(ApiError::no_such_path)
}

fn name_of(tree: &Tree) -> Name<'_> {
    Name { namespace: meta::namespace(tree), name: meta::name(tree) }
}

/// Carries out one write of a controller, as if a client had asked for it.
async fn carry_out(app: &App, write: Write) -> Result<Done, ApiError> {
    match write {
        Write::Create { tree } => create(app, &tree).await,
        Write::Update { tree } => {
            let kind = kind_of(&tree)?;
            app.write(kind, false, |ctx| plan::update(ctx, kind, name_of(&tree), tree.clone())).await
        }
        Write::UpdateStatus { tree } => {
            let kind = kind_of(&tree)?;
            app.write(kind, false, |ctx| plan::update_status(ctx, kind, name_of(&tree), tree.clone())).await
        }
        Write::Finalize { tree } => {
            let kind = kind_of(&tree)?;
            app.write(kind, false, |ctx| plan::finalize(ctx, kind, name_of(&tree), tree.clone())).await
        }
        Write::Delete { resource, namespace, name, uid, grace_s, propagation } => {
            let kind = kind_named(&resource)?;
            let options = DeleteOptions {
                grace_s,
                uid: Some(uid.as_str().to_owned()),
                propagation: Some(match propagation {
                    Propagation::Background => options::Propagation::Background,
                    Propagation::Orphan => options::Propagation::Orphan,
                    Propagation::Foreground => options::Propagation::Foreground,
                }),
                ..DeleteOptions::default()
            };
            let name = Name { namespace: &namespace, name: &name };
            app.write(kind, false, |ctx| plan::delete(ctx, kind, name, &options)).await
        }
        Write::Bind { namespace, pod, uid, node } => {
            let kind = kind_named("pods")?;
            let binding = json!({
                "metadata": {"name": &*pod, "namespace": &*namespace, "uid": uid.as_str()},
                "target": {"kind": "Node", "name": node.as_str()},
            });
            let name = Name { namespace: &namespace, name: &pod };
            app.write(kind, false, |ctx| plan::bind(ctx, kind, name, &binding)).await
        }
        Write::Remove { resource, namespace, name, uid } => {
            let kind = kind_named(&resource)?;
            let name = Name { namespace: &namespace, name: &name };
            app.write(kind, false, |ctx| plan::remove(ctx, kind, name, &uid)).await
        }
        Write::Event { tree } => record_event(app, tree).await,
    }
}

async fn create(app: &App, tree: &Tree) -> Result<Done, ApiError> {
    let kind = kind_of(tree)?;
    app.write(kind, false, |ctx| plan::create(ctx, kind, meta::namespace(tree), tree.clone())).await
}

/// Creates an event, or replaces the one of the same name whose count has grown.
async fn record_event(app: &App, tree: Tree) -> Result<Done, ApiError> {
    match create(app, &tree).await {
        Err(error) if error.reason == Reason::AlreadyExists => {
            let kind = kind_of(&tree)?;
            app.write(kind, false, |ctx| plan::update(ctx, kind, name_of(&tree), tree.clone())).await
        }
        other => other,
    }
}

/// What the controllers are told.
pub(crate) fn config(cluster_cidr: &str, ca_pem: &str) -> Result<Config, ApiError> {
    Ok(Config {
        cluster_cidr: cluster_cidr.to_owned(),
        ca_pem: Some(ca_pem.to_owned()),
        seed: seed()?,
        ..Config::default()
    })
}
