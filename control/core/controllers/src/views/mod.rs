//! What controllers and scheduler need to know of an object, parsed once when it changes.
//!
//! A view keeps the stored object by reference (its bytes are shared with the store), so that an update can parse the
//! whole tree when it has one to write. Views never fail: what is missing or malformed reads as empty, as the API
//! refuses such objects before they are stored.

mod node;
mod pod;
mod resources;
mod service;
mod storage;
mod template;
mod workload;

pub(crate) use node::{Node, Taint, Truth};
pub(crate) use pod::{Phase, Pod};
pub(crate) use resources::Resources;
pub(crate) use service::{Service, Target};
pub(crate) use storage::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, Claim, Class, HOSTNAME, LOCAL_DRIVER, SELECTED_NODE, Volume,
};
pub(crate) use template::POD_TEMPLATE_HASH;
pub(crate) use workload::{Counts, Deployment, ReplicaSet, annotation};

use dhow_state::Object;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The resource names that the controllers know by heart.
pub(crate) mod resource {
    pub(crate) const PODS: &str = "pods";
    pub(crate) const NODES: &str = "nodes";
    pub(crate) const NAMESPACES: &str = "namespaces";
    pub(crate) const SERVICES: &str = "services";
    pub(crate) const ENDPOINTS: &str = "endpoints";
    pub(crate) const SERVICE_ACCOUNTS: &str = "serviceaccounts";
    pub(crate) const CONFIG_MAPS: &str = "configmaps";
    pub(crate) const LEASES: &str = "leases.coordination.k8s.io";
    pub(crate) const REPLICA_SETS: &str = "replicasets.apps";
    pub(crate) const DEPLOYMENTS: &str = "deployments.apps";
    pub(crate) const CLAIMS: &str = "persistentvolumeclaims";
    pub(crate) const VOLUMES: &str = "persistentvolumes";
    pub(crate) const CLASSES: &str = "storageclasses.storage.k8s.io";
}

/// A parsed object; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum View {
    Pod(Arc<Pod>),
    Node(Arc<Node>),
    ReplicaSet(Arc<ReplicaSet>),
    Deployment(Arc<Deployment>),
    Service(Arc<Service>),
    Claim(Arc<Claim>),
    Volume(Arc<Volume>),
    Class(Arc<Class>),
    Other,
}

impl View {
    pub(crate) fn pod(&self) -> Option<&Arc<Pod>> {
        if let Self::Pod(pod) = self { Some(pod) } else { None }
    }

    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        if let Self::Node(node) = self { Some(node) } else { None }
    }

    pub(crate) fn replica_set(&self) -> Option<&Arc<ReplicaSet>> {
        if let Self::ReplicaSet(set) = self { Some(set) } else { None }
    }

    pub(crate) fn deployment(&self) -> Option<&Arc<Deployment>> {
        if let Self::Deployment(deployment) = self { Some(deployment) } else { None }
    }

    pub(crate) fn service(&self) -> Option<&Arc<Service>> {
        if let Self::Service(service) = self { Some(service) } else { None }
    }

    pub(crate) fn claim(&self) -> Option<&Arc<Claim>> {
        if let Self::Claim(claim) = self { Some(claim) } else { None }
    }

    pub(crate) fn volume(&self) -> Option<&Arc<Volume>> {
        if let Self::Volume(volume) = self { Some(volume) } else { None }
    }

    pub(crate) fn class(&self) -> Option<&Arc<Class>> {
        if let Self::Class(class) = self { Some(class) } else { None }
    }
}

/// Parses the view of an object.
pub(crate) fn view(object: &Arc<Object>) -> View {
    match &*object.key.resource {
        resource::PODS => View::Pod(Arc::new(pod::pod(object))),
        resource::NODES => View::Node(Arc::new(node::node(object))),
        resource::REPLICA_SETS => View::ReplicaSet(Arc::new(workload::replica_set(object))),
        resource::DEPLOYMENTS => View::Deployment(Arc::new(workload::deployment(object))),
        resource::SERVICES => View::Service(Arc::new(service::service(object))),
        resource::CLAIMS => View::Claim(Arc::new(storage::claim(object))),
        resource::VOLUMES => View::Volume(Arc::new(storage::volume(object))),
        resource::CLASSES => View::Class(Arc::new(storage::class(object))),
        _ => View::Other,
    }
}

/// Reads a part of an object straight from its bytes, without a tree in between: there are very many pods.
pub(crate) fn read<T: DeserializeOwned + Default>(object: &Object) -> T {
    serde_json::from_slice(object.json()).unwrap_or_default()
}
