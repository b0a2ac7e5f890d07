//! What goes in and out of the controllers: inputs, results of writes, and the writes themselves.

use dhow_api::Tree;
use dhow_state::Change;
use dhow_types::{NodeName, Revision, Uid};
use std::fmt;
use std::sync::Arc;

/// Names one write, so that its result finds the controller that asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What happened in the world.
#[derive(Clone, Debug)]
pub enum In {
    /// An object changed. Changes come in the order of their revisions, each once. Before [`In::Synced`] each object
    /// that exists comes as a change without `old`, in any order.
    Changed(Arc<Change>),
    /// The initial state has been given completely; from here on the controllers act.
    Synced,
    /// A write has been carried out or refused. Every [`Out::Write`] is answered exactly once.
    Written {
        /// The write that is answered.
        id: WriteId,
        /// The revision that the write made (`None` when nothing had to change), or why it was refused.
        result: Result<Option<Revision>, WriteFault>,
    },
}

/// Why a write was refused: one variant for each thing that a controller does differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteFault {
    /// The object changed since the write was decided.
    #[error("the object changed since the write was decided")]
    Conflict,
    /// The object, or the namespace it would live in, does not exist.
    #[error("the object does not exist")]
    NotFound,
    /// An object of that name exists.
    #[error("an object of that name exists")]
    AlreadyExists,
    /// The API refuses the content; the text is the Status message.
    #[error("{0}")]
    Invalid(String),
    /// Anything else, such as a store without a leader.
    #[error("{0}")]
    Other(String),
}

/// What the controllers wish to happen.
#[derive(Clone, Debug)]
pub enum Out {
    /// Carry out a write through the API's usual path (defaults, admission, validation) and answer with
    /// [`In::Written`].
    Write {
        /// Comes back with the result.
        id: WriteId,
        /// The controller that asks, as Kubernetes names it (`replicaset-controller`).
        by: &'static str,
        /// The write.
        write: Write,
    },
}

/// What happens to the dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are collected afterwards.
    Background,
    /// They lose their owner reference and stay.
    Orphan,
    /// They go first.
    Foreground,
}

/// One write to the API.
#[derive(Clone, Debug)]
pub enum Write {
    /// Create an object; the tree carries `apiVersion`, `kind`, name and namespace.
    Create {
        /// The new object.
        tree: Tree,
    },
    /// Replace an object; the tree carries the `resourceVersion` that the decision was made on.
    Update {
        /// The whole object.
        tree: Tree,
    },
    /// Replace an object's status; the tree carries the `resourceVersion` that the decision was made on.
    UpdateStatus {
        /// The whole object.
        tree: Tree,
    },
    /// Delete an object as a client would: finalizers and grace periods are honoured.
    Delete {
        /// Plural and group, `pods` or `deployments.apps`.
        resource: Arc<str>,
        /// Empty for cluster scope.
        namespace: Arc<str>,
        /// The object's name.
        name: Arc<str>,
        /// Precondition: this life of the object.
        uid: Uid,
        /// Grace period; `None` is the object's own.
        grace_s: Option<i64>,
        /// What happens to dependents.
        propagation: Propagation,
    },
    /// Bind a pod to a node (the `binding` subresource: sets `spec.nodeName` and the condition `PodScheduled`).
    Bind {
        /// The pod's namespace.
        namespace: Arc<str>,
        /// The pod's name.
        pod: Arc<str>,
        /// Precondition: this life of the pod.
        uid: Uid,
        /// The node.
        node: NodeName,
    },
    /// Replace a namespace's `spec.finalizers` (the `finalize` subresource).
    Finalize {
        /// The whole namespace; carries its `resourceVersion`.
        tree: Tree,
    },
    /// Take away an object that is marked for deletion and has no finalizer left.
    Remove {
        /// Plural and group.
        resource: Arc<str>,
        /// Empty for cluster scope.
        namespace: Arc<str>,
        /// The object's name.
        name: Arc<str>,
        /// Precondition: this life of the object.
        uid: Uid,
    },
    /// Record an event: create it, or replace the event of the same name (its `count` has grown). Carries no
    /// `resourceVersion`.
    Event {
        /// A core/v1 Event.
        tree: Tree,
    },
}
