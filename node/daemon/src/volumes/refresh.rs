//! Keeps the content of running pods' volumes as fresh as its sources: ConfigMaps, Secrets, the pod's own labels, tokens.
//!
//! Each ConfigMap and Secret that a volume takes files from is watched once for all pods; one that is immutable is not.
//! What goes wrong is tried again a while later: what a volume had before stays until then, which is better for a
//! running program than nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dhow_agent::env::References;
use dhow_agent::volumes::{self, TokenWish};
use dhow_api::Tree;
use dhow_client::{Client, Event};
use dhow_tasks::Stop;
use dhow_types::Uid;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::set_up::set_up;
use crate::runner::Shared;

/// Pods that wait to be looked at. One that finds no room is looked at with all others, a little later.
const TOLD_MAX: usize = 4096;
/// Objects that are watched at the same time: each is a stream of the one connection to the API server. The others are
/// looked at every [`LOOK_EVERY`].
const WATCHES_MAX: usize = 256;
/// How often what is not watched, and what went wrong, is looked at again, as a kubelet does.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Tells the task which pods have come, gone or changed.
pub(crate) struct Refresh {
    told: mpsc::Sender<Uid>,
}

impl Refresh {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Uid>) {
        let (told, hears) = mpsc::channel(TOLD_MAX);
        (Self { told }, hears)
    }

    /// A pod is set up, changed, or torn down.
    pub(crate) fn tell(&self, uid: &Uid, pod: &Pod) {
        if volumes::changeable(pod) {
            // No room: everything is looked at again before long.
            let _full = self.told.try_send(uid.clone());
        }
    }
}

/// A ConfigMap or Secret: its resource, namespace and name.
type Source = (&'static str, String, String);

/// What is known of one source.
#[derive(Default)]
struct Watched {
    pods: BTreeSet<Uid>,
    task: Option<AbortHandle>,
    /// It cannot change, so that nobody has to look.
    immutable: bool,
}

/// A pod's labels and annotations.
type Shown = (Option<BTreeMap<String, String>>, Option<BTreeMap<String, String>>);

/// What is known of one pod.
struct Known {
    sources: BTreeSet<Source>,
    /// What its downward volumes may show.
    shown: Shown,
    /// The tokens that its volumes show.
    tokens: BTreeSet<TokenWish>,
    /// It could not be refreshed.
    stale: bool,
}

/// What a watch saw.
struct News {
    source: Source,
    immutable: bool,
}

struct Refresher {
    shared: Arc<Shared>,
    pods: BTreeMap<Uid, Known>,
    sources: BTreeMap<Source, Watched>,
    watches: JoinSet<()>,
    news: mpsc::Sender<News>,
}

/// Refreshes volumes until told to stop.
pub(crate) async fn refresh_volumes(shared: Arc<Shared>, mut told: mpsc::Receiver<Uid>, stop: Stop) {
    let (news, mut heard) = mpsc::channel(WATCHES_MAX);
    let (pods, sources, watches) = (BTreeMap::new(), BTreeMap::new(), JoinSet::new());
    let mut refresher = Refresher { shared, pods, sources, watches, news };
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let work = async {
            tokio::select! {
                Some(uid) = told.recv() => refresher.pod(&uid).await,
                Some(news) = heard.recv() => refresher.source(news).await,
                Some(_ended) = refresher.watches.join_next() => {}
                _ = look.tick() => refresher.all().await,
            }
        };
        if stop.or(work).await.is_none() {
            return;
        }
    }
}

impl Refresher {
    /// A pod has come, gone or changed.
    async fn pod(&mut self, uid: &Uid) {
        let Some(pod) = self.shared.sandboxes.with(uid, |sandbox| sandbox.pod.clone()) else {
            self.forget(uid);
            return;
        };
        let shown = (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        match self.pods.get_mut(uid) {
            Some(known) if known.shown == shown => {}
            Some(known) => {
                known.shown = shown;
                self.refresh(uid).await;
            }
            None => {
                let (sources, tokens) = sources(&pod);
                for source in &sources {
                    self.watch(source, uid);
                }
                self.pods.insert(uid.clone(), Known { sources, shown, tokens, stale: false });
            }
        }
    }

    fn forget(&mut self, uid: &Uid) {
        self.shared.tokens.forget(uid);
        let Some(known) = self.pods.remove(uid) else { return };
        for source in known.sources {
            let Some(watched) = self.sources.get_mut(&source) else { continue };
            watched.pods.remove(uid);
            if watched.pods.is_empty() {
                watched.task.take().inspect(AbortHandle::abort);
                self.sources.remove(&source);
            }
        }
    }

    fn watch(&mut self, source: &Source, uid: &Uid) {
        let watching = self.sources.values().filter(|watched| watched.task.is_some()).count();
        let watched = self.sources.entry(source.clone()).or_default();
        watched.pods.insert(uid.clone());
        if watched.task.is_none() && !watched.immutable && watching < WATCHES_MAX {
            let task = watch(self.shared.client.clone(), source.clone(), self.news.clone());
            watched.task = Some(self.watches.spawn(task));
        }
    }

    /// A source is there, changed, or gone.
    async fn source(&mut self, news: News) {
        let Some(watched) = self.sources.get_mut(&news.source) else { return };
        if news.immutable {
            watched.immutable = true;
            watched.task.take().inspect(AbortHandle::abort);
        }
        for uid in watched.pods.clone() {
            self.refresh(&uid).await;
        }
    }

    /// Looks at everything that nobody watches, and at what pods have come and gone unheard.
    async fn all(&mut self) {
        let there: BTreeSet<Uid> = self.shared.sandboxes.set_up().into_iter().map(|(uid, ..)| uid).collect();
        let gone: Vec<Uid> = self.pods.keys().filter(|uid| !there.contains(*uid)).cloned().collect();
        for uid in gone {
            self.forget(&uid);
        }
        self.shared.tokens.keep(&there);
        for uid in there {
            let changeable = self.shared.sandboxes.with(&uid, |sandbox| volumes::changeable(&sandbox.pod));
            if changeable != Some(true) {
                continue;
            }
            self.pod(&uid).await;
            if self.pods.get(&uid).is_some_and(|known| self.needs_a_look(&uid, known)) {
                self.refresh(&uid).await;
            }
        }
    }

    fn needs_a_look(&self, uid: &Uid, known: &Known) -> bool {
        let unwatched = |source: &Source| {
            self.sources.get(source).is_none_or(|watched| watched.task.is_none() && !watched.immutable)
        };
        known.stale || known.sources.iter().any(unwatched) || self.shared.tokens.is_due(uid, &known.tokens)
    }

    async fn refresh(&mut self, uid: &Uid) {
        let found = self.shared.sandboxes.with(uid, |sandbox| (sandbox.pod.clone(), sandbox.ip));
        let Some((pod, ip)) = found else { return };
        let result = set_up(&self.shared, uid, &pod, ip).await;
        if let Err(why) = &result {
            tracing::debug!(%uid, why, "a pod's volumes could not be refreshed");
        }
        if let Some(known) = self.pods.get_mut(uid) {
            known.stale = result.is_err();
        }
    }
}

/// The ConfigMaps and Secrets that a pod's volumes take files from, and the tokens.
fn sources(pod: &Pod) -> (BTreeSet<Source>, BTreeSet<TokenWish>) {
    let References { config_maps, secrets, tokens, .. } = volumes::references(pod);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let maps = config_maps.into_iter().map(|name| ("configmaps", name));
    let all = maps.chain(secrets.into_iter().map(|name| ("secrets", name)));
    (all.map(|(resource, name)| (resource, namespace.clone(), name)).collect(), tokens)
}

/// Tells of each change of a source, until nobody listens.
async fn watch(client: Client, source: Source, news: mpsc::Sender<News>) {
    let (resource, namespace, name) = &source;
    let selected = dhow_client::escape(&format!("metadata.name={name}"));
    let path = format!("/api/v1/namespaces/{namespace}/{resource}?fieldSelector={selected}");
    let mut changes = client.watch(&path);
    loop {
        let immutable = match changes.next().await {
            Event::Restarted(list) => list.iter().any(is_immutable),
            Event::Applied(tree) => is_immutable(&tree),
            Event::Deleted(_) => false,
        };
        if news.send(News { source: source.clone(), immutable }).await.is_err() {
            return;
        }
    }
}

fn is_immutable(tree: &Tree) -> bool {
    dhow_api::meta::truth(tree, "immutable")
}
