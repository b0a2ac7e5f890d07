//! Keeps the switch's tables, and what else is made of the same objects, in line with the API.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, PoisonError};

use dhow_agent::env::ServiceLink;
use dhow_api::Tree;
use dhow_client::Event;
use dhow_mesh::{MeshError, Update};
use dhow_tasks::Stop;
use dhow_types::Chain;
use tokio::sync::oneshot;

use crate::register::Standing;
use crate::runner::Shared;

/// One kind of object that the tables are made of.
struct Feed {
    path: &'static str,
    update: fn(&Tree) -> Result<Update, MeshError>,
    gone: fn(&str, &str) -> Update,
    kind: Kind,
}

/// What else than the tables is made of such an object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Service,
    Slice,
    Node,
}

const FEEDS: [(&str, Feed); 3] = [
    (
        "services",
        Feed { path: "/api/v1/services", update: Update::service, gone: Update::service_gone, kind: Kind::Service },
    ),
    (
        "endpointslices",
        Feed {
            path: "/apis/discovery.k8s.io/v1/endpointslices",
            update: Update::slice,
            gone: Update::slice_gone,
            kind: Kind::Slice,
        },
    ),
    (
        "nodes",
        Feed { path: "/api/v1/nodes", update: Update::node, gone: |_, name| Update::node_gone(name), kind: Kind::Node },
    ),
];

/// The tasks that feed the tables, each with what tells that its first list is in.
pub(crate) fn feeds(
    shared: &Arc<Shared>,
    stop: &Stop,
) -> Vec<(&'static str, impl Future<Output = ()> + Send + use<>, oneshot::Receiver<()>)> {
    FEEDS
        .into_iter()
        .map(|(name, feed)| {
            let (listed, first_list) = oneshot::channel();
            (name, follow(shared.clone(), feed, listed, stop.clone()), first_list)
        })
        .collect()
}

async fn follow(shared: Arc<Shared>, feed: Feed, listed: oneshot::Sender<()>, stop: Stop) {
    let mut listed = Some(listed);
    let mut known: BTreeSet<(String, String)> = BTreeSet::new();
    let mut objects = shared.client.watch(feed.path);
    while let Some(event) = stop.or(objects.next()).await {
        match event {
            Event::Restarted(list) => {
                let present: BTreeSet<_> = list.iter().map(name_of).collect();
                for name in known.difference(&present) {
                    remove(&shared, &feed, name);
                }
                for tree in &list {
                    apply(&shared, &feed, tree);
                }
                known = present;
                if let Some(listed) = listed.take() {
                    // Nobody waits any more if the node is being stopped.
                    let _unheard = listed.send(());
                }
            }
            Event::Applied(tree) => {
                known.insert(name_of(&tree));
                apply(&shared, &feed, &tree);
            }
            Event::Deleted(tree) => {
                let name = name_of(&tree);
                remove(&shared, &feed, &name);
                known.remove(&name);
            }
        }
    }
}

fn name_of(tree: &Tree) -> (String, String) {
    let text = |path: &str| tree.pointer(path).and_then(Tree::as_str).unwrap_or_default().to_owned();
    (text("/metadata/namespace"), text("/metadata/name"))
}

fn apply(shared: &Shared, feed: &Feed, tree: &Tree) {
    match (feed.update)(tree) {
        Ok(update) => shared.switch.apply(update),
        Err(err) => tracing::warn!(err = %Chain(&err), "an object cannot be understood and is left out of the network"),
    }
    let (namespace, name) = name_of(tree);
    match feed.kind {
        Kind::Service => {
            let key = format!("{namespace}/{name}");
            edit_links(shared, |links| match ServiceLink::of(tree) {
                Some(link) => links.insert(key, Arc::new(link)),
                None => links.remove(&key),
            });
        }
        Kind::Node if name == shared.node.as_str() => stand(shared, Standing::of(tree)),
        Kind::Slice => shared.control.slice(tree),
        Kind::Node => {}
    }
}

fn remove(shared: &Shared, feed: &Feed, (namespace, name): &(String, String)) {
    shared.switch.apply((feed.gone)(namespace, name));
    match feed.kind {
        Kind::Service => {
            edit_links(shared, |links| links.remove(&format!("{namespace}/{name}")));
        }
        Kind::Node if *name == shared.node.as_str() => stand(shared, Standing::Unknown),
        Kind::Slice => shared.control.slice_gone(namespace, name),
        Kind::Node => {}
    }
}

fn stand(shared: &Shared, standing: Standing) {
    shared.standing.send_replace(standing);
}

fn edit_links<R>(shared: &Shared, edit: impl FnOnce(&mut BTreeMap<String, Arc<ServiceLink>>) -> R) {
    edit(&mut shared.links.write().unwrap_or_else(PoisonError::into_inner));
}
