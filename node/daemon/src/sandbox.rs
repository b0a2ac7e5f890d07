//! What this node holds of each pod: its place in the network, its volumes, its running containers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dhow_engine::Container;
use dhow_image::Image;
use dhow_switch::PodNet;
use dhow_types::Uid;
use k8s_openapi::api::core::v1::Pod;

use crate::usage::Live;

/// One pod that is set up.
pub(crate) struct Sandbox {
    pub(crate) pod: Arc<Pod>,
    pub(crate) ip: IpAddr,
    pub(crate) net: PodNet,
    /// Where each volume lies.
    pub(crate) volumes: Arc<BTreeMap<String, PathBuf>>,
    /// What was pulled for each container.
    pub(crate) images: BTreeMap<Arc<str>, Image>,
    /// What runs.
    pub(crate) running: BTreeMap<Arc<str>, Running>,
}

/// A running container.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) attempt: u32,
    pub(crate) container: Container,
}

/// What the kubelet API needs to know of a pod, also when it has ended.
struct Known {
    pod: Arc<Pod>,
    /// The latest attempt of each container that this agent started.
    attempts: BTreeMap<Arc<str>, u32>,
}

/// All pods of this node.
#[derive(Default)]
pub(crate) struct Sandboxes {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    set_up: BTreeMap<Uid, Sandbox>,
    known: BTreeMap<Uid, Known>,
    /// By namespace and name, the pod that is to be found under it: the youngest.
    names: BTreeMap<(String, String), Uid>,
}

impl Sandboxes {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod's object is new or changed.
    pub(crate) fn know(&self, uid: &Uid, pod: &Arc<Pod>) {
        let mut inner = self.lock();
        let name = (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
        inner.names.insert(name, uid.clone());
        if let Some(sandbox) = inner.set_up.get_mut(uid) {
            sandbox.pod = pod.clone();
        }
        inner
            .known
            .entry(uid.clone())
            .and_modify(|known| known.pod = pod.clone())
            .or_insert_with(|| Known { pod: pod.clone(), attempts: BTreeMap::new() });
    }

    /// A pod's object is gone.
    pub(crate) fn forget(&self, uid: &Uid) {
        let mut inner = self.lock();
        if let Some(known) = inner.known.remove(uid) {
            let meta = &known.pod.metadata;
            let name = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
            if inner.names.get(&name) == Some(uid) {
                inner.names.remove(&name);
            }
        }
    }

    /// The pod of that name, and its object.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<(Uid, Arc<Pod>)> {
        let inner = self.lock();
        let uid = inner.names.get(&(namespace.to_owned(), name.to_owned()))?;
        Some((uid.clone(), inner.known.get(uid)?.pod.clone()))
    }

    /// The latest attempt of a container that this agent started.
    pub(crate) fn latest_attempt(&self, uid: &Uid, container: &str) -> Option<u32> {
        self.lock().known.get(uid)?.attempts.get(container).copied()
    }

    /// A pod is set up.
    pub(crate) fn insert(&self, uid: Uid, sandbox: Sandbox) {
        self.lock().set_up.insert(uid, sandbox);
    }

    /// A pod is torn down.
    pub(crate) fn remove(&self, uid: &Uid) -> Option<Sandbox> {
        self.lock().set_up.remove(uid)
    }

    /// Forgets everything; gives the pods that were set up.
    pub(crate) fn clear(&self) -> Vec<Uid> {
        let mut inner = self.lock();
        inner.known.clear();
        inner.names.clear();
        std::mem::take(&mut inner.set_up).into_keys().collect()
    }

    /// Whether a pod that is set up has this directory among its volumes.
    pub(crate) fn uses(&self, dir: &Path) -> bool {
        self.lock().set_up.values().any(|sandbox| sandbox.volumes.values().any(|volume| volume == dir))
    }

    /// Looks at a pod that is set up.
    pub(crate) fn with<R>(&self, uid: &Uid, look: impl FnOnce(&mut Sandbox) -> R) -> Option<R> {
        self.lock().set_up.get_mut(uid).map(look)
    }

    /// Notes a started container.
    pub(crate) fn started(&self, uid: &Uid, container: &Arc<str>, running: Running) {
        let mut inner = self.lock();
        if let Some(known) = inner.known.get_mut(uid) {
            known.attempts.insert(container.clone(), running.attempt);
        }
        if let Some(sandbox) = inner.set_up.get_mut(uid) {
            sandbox.running.insert(container.clone(), running);
        }
    }

    /// Notes that an attempt of a container ended.
    pub(crate) fn ended(&self, uid: &Uid, container: &str, attempt: u32) {
        self.with(uid, |sandbox| {
            if sandbox.running.get(container).is_some_and(|r| r.attempt == attempt) {
                sandbox.running.remove(container);
            }
        });
    }

    /// A running container.
    pub(crate) fn running(&self, uid: &Uid, container: &str) -> Option<Running> {
        self.with(uid, |sandbox| sandbox.running.get(container).cloned()).flatten()
    }

    /// The digests of the programs that pods of this node have.
    pub(crate) fn images(&self) -> BTreeSet<String> {
        let inner = self.lock();
        inner.set_up.values().flat_map(|sandbox| sandbox.images.values().map(|image| image.digest.clone())).collect()
    }

    /// The pods that are set up, and what runs in them.
    pub(crate) fn live(&self) -> Vec<Live> {
        let inner = self.lock();
        let live = inner.set_up.iter().map(|(uid, sandbox)| Live {
            uid: uid.clone(),
            pod: sandbox.pod.clone(),
            traffic: sandbox.net.traffic(),
            running: sandbox.running.iter().map(|(name, running)| (name.clone(), running.clone())).collect(),
        });
        live.collect()
    }

    /// The pods that are set up.
    pub(crate) fn set_up(&self) -> Vec<(Uid, Arc<Pod>, IpAddr)> {
        self.lock().set_up.iter().map(|(uid, s)| (uid.clone(), s.pod.clone(), s.ip)).collect()
    }
}
