//! What `dhow describe` says of an object, in `kubectl`'s words and columns.
//!
//! Each kind that has something of its own to say is a line in [`DESCRIBERS`] and a function in one of the files here;
//! every other kind is shown field by field. A describer writes lines with tabs onto a [`Page`], which aligns them.
//! What stands around an object (its events, the replica sets of a deployment, the pods of a node) is fetched by the
//! caller: [`related`] says where it is.

mod common;
mod config;
mod containers;
mod fields;
mod node;
mod page;
mod pod;
mod service;
mod volumes;
mod workload;

use common::text;
use dhow_api::Tree;
use dhow_types::Time;
use page::Page;

/// What is particular to one kind.
struct Describer {
    api_version: &'static str,
    kind: &'static str,
    /// The lists of other objects that it speaks of, by their paths.
    related: fn(&Tree) -> Vec<String>,
    /// Writes everything but the events.
    write: fn(&mut Page, &Object<'_>),
    /// Whether there is a line about events.
    tells_events: bool,
}

/// An object and what stands around it.
struct Object<'a> {
    tree: &'a Tree,
    /// The items of the lists that [`related`] has named.
    related: &'a [Vec<Tree>],
    now: Time,
}

impl Object<'_> {
    fn related(&self, index: usize) -> &[Tree] {
        self.related.get(index).map(Vec::as_slice).unwrap_or_default()
    }
}

const fn describer(
    api_version: &'static str,
    kind: &'static str,
    related: fn(&Tree) -> Vec<String>,
    write: fn(&mut Page, &Object<'_>),
) -> Describer {
    Describer { api_version, kind, related, write, tells_events: true }
}

static DESCRIBERS: &[Describer] = &[
    describer("v1", "Pod", |_| Vec::new(), pod::pod),
    describer("apps/v1", "Deployment", workload::replica_sets, workload::deployment),
    describer("apps/v1", "ReplicaSet", workload::pods, workload::replica_set),
    describer("v1", "Service", service::slices, service::service),
    describer("v1", "Node", node::around, node::node),
    describer("v1", "ConfigMap", |_| Vec::new(), config::config_map),
    describer("v1", "ServiceAccount", |_| Vec::new(), config::service_account),
    Describer { tells_events: false, ..describer("v1", "Secret", |_| Vec::new(), config::secret) },
    Describer { tells_events: false, ..describer("v1", "Namespace", |_| Vec::new(), config::namespace) },
];

fn describer_of(object: &Tree) -> Option<&'static Describer> {
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    DESCRIBERS.iter().find(|own| own.api_version == api_version && own.kind == kind)
}

/// The paths of the lists of other objects that an object's description speaks of. Their order is that of the lists
/// in [`Around::related`].
pub fn related(object: &Tree) -> Vec<String> {
    describer_of(object).map_or_else(Vec::new, |own| (own.related)(object))
}

/// What stands around an object.
pub struct Around {
    /// The items of the lists that [`related`] has named.
    pub related: Vec<Vec<Tree>>,
    /// The object's events, if they are to be told.
    pub events: Option<Vec<Tree>>,
    /// For ages.
    pub now: Time,
}

/// The description of an object that says its own kind.
pub fn describe(object: &Tree, around: &Around) -> String {
    let mut page = Page::default();
    let own = Object { tree: object, related: &around.related, now: around.now };
    let describer = describer_of(object);
    match describer {
        Some(describer) => (describer.write)(&mut page, &own),
        None => fields::object(&mut page, object),
    }
    if let Some(events) = around.events.as_ref().filter(|_| describer.is_none_or(|own| own.tells_events)) {
        common::events(&mut page, events, around.now);
    }
    page.aligned()
}

#[cfg(test)]
mod tests;
