//! The write path: a request's content and the present state in, a [`Plan`] out. Nothing is written here.
//!
//! A plan carries the revisions that it was decided on, so the store refuses it if the world has moved; then the caller
//! plans again (patches, unconditional updates) or says so to its client.

pub mod claims;
mod create;
mod delete;
mod pod;
mod scale;
mod service;
mod storage;
mod update;

pub use create::create;
pub use delete::{delete, remove};
pub use pod::{bind, evict};
pub use scale::{SCALE_SCHEMA, patch_scale, scale_of, update_scale};
pub use update::{Part, Patch, finalize, patch, update, update_ephemeral, update_status};

use bytes::Bytes;
use dhow_api::Tree;
use dhow_api::index::{Index, index};
use dhow_api::kinds::Kind;
use dhow_api::meta;
use dhow_api::status::{ApiError, Details};
use dhow_state::{Expect, Key, OBJECT_BYTES_MAX, Object, Op, Rejected, State, Txn};
use dhow_types::Time;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// What the write path may ask of the present state.
pub trait View {
    /// The object under a key.
    fn get(&self, key: &Key) -> Option<Arc<Object>>;
    /// All objects of a resource, in all namespaces.
    fn list(&self, resource: &str) -> Vec<Arc<Object>>;
    /// The objects of a resource in one namespace.
    fn list_in(&self, resource: &str, namespace: &str) -> Vec<Arc<Object>>;
}

impl View for State {
    fn get(&self, key: &Key) -> Option<Arc<Object>> {
        State::get(self, key).cloned()
    }

    fn list(&self, resource: &str) -> Vec<Arc<Object>> {
        State::list(self, resource, None).cloned().collect()
    }

    fn list_in(&self, resource: &str, namespace: &str) -> Vec<Arc<Object>> {
        State::list(self, resource, Some(namespace)).cloned().collect()
    }
}

/// The ranges that service addresses and ports come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRanges {
    /// The first address of the range.
    pub network: Ipv4Addr,
    /// The length of the range's prefix.
    pub prefix_len: u8,
    /// The first node port.
    pub node_port_min: u16,
    /// The last node port.
    pub node_port_max: u16,
}

impl ServiceRanges {
    /// Reads `10.43.0.0/16`; node ports are Kubernetes' 30000–32767.
    pub fn parse(cidr: &str) -> Option<ServiceRanges> {
        let (network, prefix_len) = cidr.split_once('/')?;
        let (network, prefix_len) = (network.parse::<Ipv4Addr>().ok()?, prefix_len.parse::<u8>().ok()?);
        // Between 8 and 28 bits there is room for services, and all arithmetic stays within 32 bits.
        (8..=28).contains(&prefix_len).then(|| {
            let mask = u32::MAX << (32 - prefix_len);
            ServiceRanges {
                network: Ipv4Addr::from(u32::from(network) & mask),
                prefix_len,
                node_port_min: 30000,
                node_port_max: 32767,
            }
        })
    }

    /// The address of the `kubernetes` service: the first of the range.
    pub fn api_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    fn size(&self) -> u32 {
        1 << (32 - self.prefix_len)
    }

    fn contains(&self, ip: Ipv4Addr) -> bool {
        let offset = u32::from(ip).wrapping_sub(u32::from(self.network));
        offset > 0 && offset < self.size() - 1
    }
}

/// What every write is decided with.
pub struct Context<'a> {
    /// The present state.
    pub view: &'a dyn View,
    /// The present time.
    pub now: Time,
    /// Seeds names, UIDs, addresses.
    pub seed: u64,
    /// Where service addresses come from.
    pub services: ServiceRanges,
    /// Plan everything, write nothing.
    pub dry_run: bool,
}

/// The object that a write is about.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// Empty for cluster scope.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to write; `None` if nothing has to change.
    pub txn: Option<Txn>,
    /// The index of what its first operation stores, so that the store need not read the text for it.
    pub index: Option<Index>,
    /// What to answer once that is written.
    pub reply: Reply,
    /// The HTTP status of that answer.
    pub code: u16,
    /// Sentences for `Warning` headers.
    pub warnings: Vec<String>,
    /// The write may wait for some seconds to share another one's way to the disk.
    pub lazy: bool,
}

/// What to answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The object as it has been stored by the plan's first operation.
    Stored,
    /// The `Scale` of that object.
    StoredScale,
    /// An object that is stored already.
    Object(Arc<Object>),
    /// A tree: a `Status`, a dry run's result, the last form of a removed object.
    Tree(Tree),
}

impl Plan {
    fn write(first: impl Into<First>, reply: Reply, code: u16) -> Plan {
        let First { op, index } = first.into();
        Plan { txn: Some(Txn::one(op)), index, ..Plan::answer(reply, code) }
    }

    /// The same plan with what else has to happen in the same transaction.
    fn with(mut self, ops: Vec<Op>) -> Plan {
        if let Some(txn) = &mut self.txn {
            txn.ops.extend(ops);
        }
        self
    }

    fn answer(reply: Reply, code: u16) -> Plan {
        Plan { txn: None, index: None, reply, code, warnings: Vec::new(), lazy: false }
    }

    /// The same plan for a dry run: nothing is written, and what would be stored is the answer.
    fn dry(self, would_be: Tree) -> Plan {
        let reply = match self.reply {
            Reply::Stored => Reply::Tree(would_be),
            Reply::StoredScale => Reply::Tree(scale_of(&would_be)),
            other => other,
        };
        Plan { txn: None, reply, ..self }
    }
}

/// What the store's refusal means to the client.
pub fn rejection(kind: &Kind, rejected: &Rejected) -> ApiError {
    let resource = kind.resource();
    match rejected {
        _ if *rejected.key().resource == *claims::CLAIMS => {
            let why = format!("{} has just been taken by another object; please try again", rejected.key().name);
            ApiError::conflict(&resource, "", &why)
        }
        Rejected::Conflict { key, .. } => ApiError::modified(&resource, &key.name),
        Rejected::Exists { key } => ApiError::already_exists(&resource, &key.name),
        Rejected::Missing { key } => ApiError::not_found(&resource, &key.name),
        Rejected::Malformed { .. } => ApiError::internal(rejected.to_string()),
    }
}

/// The key of an object.
pub fn key_of(kind: &Kind, name: Name<'_>) -> Key {
    Key::new(kind.resource(), name.namespace, name.name)
}

/// The stored object, or 404.
fn existing(ctx: &Context<'_>, kind: &Kind, name: Name<'_>) -> Result<Arc<Object>, ApiError> {
    ctx.view.get(&key_of(kind, name)).ok_or_else(|| ApiError::not_found(&kind.resource(), name.name))
}

/// Most objects are smaller: their text is written without making room again and again.
const TYPICAL_BYTES: usize = 2 << 10;

/// The bytes that the store takes. It puts the revision in, in the place of one that is there.
fn encode(tree: &Tree) -> Result<Bytes, ApiError> {
    let mut bytes = Vec::with_capacity(TYPICAL_BYTES);
    serde_json::to_writer(&mut bytes, tree).map_err(|error| ApiError::internal(error.to_string()))?;
    if bytes.len() > OBJECT_BYTES_MAX {
        return Err(ApiError::too_large(OBJECT_BYTES_MAX));
    }
    Ok(Bytes::from(bytes))
}

/// How long an event is kept after it was written last.
const EVENT_KEPT_MS: u64 = 3600 * 1000;

/// The first operation of a plan.
struct First {
    op: Op,
    /// The index of the value, if it is known.
    index: Option<Index>,
}

impl From<Op> for First {
    fn from(op: Op) -> First {
        First { op, index: None }
    }
}

fn put(ctx: &Context<'_>, kind: &Kind, key: Key, tree: &Tree, expect: Expect) -> Result<First, ApiError> {
    let expires = (kind.kind == "Event").then(|| ctx.now + EVENT_KEPT_MS);
    let op = Op::Put { key, value: encode(tree)?, expect, expires };
    Ok(First { op, index: Some(index(kind, tree)) })
}

/// Whether an update says only that its holder is still there. There is one every few seconds for each node, and nothing
/// is lost if a crash takes the last one back: such a write may wait to share another one's way to the disk.
fn is_heartbeat(kind: &Kind, old: &Tree, new: &Tree) -> bool {
    if kind.kind != "Lease" {
        return false;
    }
    let without_time = |tree: &Tree| {
        let mut tree = tree.clone();
        for path in ["spec.renewTime", "metadata.resourceVersion"] {
            meta::remove(&mut tree, path);
        }
        tree
    };
    without_time(old) == without_time(new)
}

/// The details of a `Status` about an object.
fn details(kind: &Kind, tree: &Tree) -> Details {
    Details { uid: meta::uid(tree).to_owned(), ..Details::of(&kind.resource(), meta::name(tree)) }
}

/// Makes `apiVersion` and `kind` the endpoint's, at the front; refuses another kind's object.
fn settle_type(tree: &mut Tree, kind: &Kind) -> Result<(), ApiError> {
    let (api_version, name) = (kind.api_version(), kind.kind);
    let given = (meta::api_version(tree), meta::kind(tree));
    if !given.1.is_empty() && given.1 != name {
        return Err(ApiError::bad_request(format!(
            "{} in version {} cannot be handled as a {name}: no kind {} is registered for this endpoint",
            given.1,
            dhow_api::field::quote(given.0),
            dhow_api::field::quote(given.1)
        )));
    }
    if !given.0.is_empty() && given.0 != api_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({api_version})",
            given.0
        )));
    }
    if given.0.is_empty() || given.1.is_empty() {
        let mut whole = serde_json::Map::new();
        whole.insert("apiVersion".to_owned(), api_version.into());
        whole.insert("kind".to_owned(), name.into());
        for (key, value) in std::mem::take(meta::map_of(tree)) {
            whole.entry(key).or_insert(value);
        }
        *tree = Tree::Object(whole);
    }
    Ok(())
}

/// Takes the namespace of the path for the object's own, unless they contradict each other.
fn settle_namespace(tree: &mut Tree, kind: &Kind, namespace: &str) -> Result<(), ApiError> {
    if !kind.namespaced {
        return Ok(());
    }
    match meta::namespace(tree) {
        "" => meta::set_namespace(tree, namespace),
        same if same == namespace => {}
        other => {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: {other} is \
                 not {namespace}"
            )));
        }
    }
    Ok(())
}

/// Fields of metadata that the server alone writes; `managedFields` comes with server-side apply.
fn strip_server_fields(tree: &mut Tree) {
    for field in ["metadata.selfLink", "metadata.managedFields"] {
        meta::remove(tree, field);
    }
}

/// Whether something keeps a deleted object.
fn is_held(kind: &Kind, tree: &Tree) -> bool {
    !meta::finalizers(tree).is_empty() || (kind.is_held)(tree)
}

#[cfg(test)]
mod tests;
