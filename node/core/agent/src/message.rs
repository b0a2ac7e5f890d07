//! What the agent is told and what it wishes.

use std::net::IpAddr;
use std::sync::Arc;

use dhow_runtime_contract::{Exit, PullPolicy};
use dhow_types::{Time, Uid};
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod, Probe};
use serde_json::Value;

/// A container of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerRef {
    /// The pod.
    pub uid: Uid,
    /// The container's name.
    pub container: Arc<str>,
}

/// How the API knows a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRef {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's identity.
    pub uid: Uid,
}

/// Which probe of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Holds the other two back until it succeeds once.
    Startup,
    /// Decides whether the pod gets traffic.
    Readiness,
    /// Decides whether the container is restarted.
    Liveness,
}

impl ProbeKind {
    /// As in `Readiness probe failed: …`.
    pub fn title(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
        }
    }
}

/// Which lifecycle hook of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookKind {
    /// After it was started; until then it does not count as running.
    PostStart,
    /// Before it is told to end.
    PreStop,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The container answered as it should.
    Success,
    /// It did not; the text says how.
    Failure(String),
}

/// An image that is on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledImage {
    /// What goes into `imageID`.
    pub image_id: String,
    /// The size in bytes.
    pub size: u64,
    /// Whether it was on the node before.
    pub already_present: bool,
    /// How long the pull took.
    pub took_ms: u64,
}

/// Why an image is not on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullFault {
    /// The name is none: `InvalidImageName`.
    InvalidName(String),
    /// The policy is `Never` and it is not here: `ErrImageNeverPull`.
    NotPresent,
    /// It is not signed as the node wants it: `SignatureValidationFailed`.
    Unsigned(String),
    /// Anything else: `ErrImagePull`.
    Failed(String),
}

/// Why a container could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFault {
    /// A ConfigMap, a Secret or a key is missing: `CreateContainerConfigError`.
    Config(String),
    /// The image cannot be run: `CreateContainerError`.
    Create(String),
    /// The container was made but did not begin: `RunContainerError`.
    Run(String),
}

/// What the API server answered to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is done.
    Ok,
    /// That pod does not exist (any more).
    Gone,
    /// It may succeed later.
    Retry,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum In {
    /// A pod of this node is new or changed.
    Pod(Arc<Pod>),
    /// A pod does not exist any more.
    Gone(Uid),
    /// The pod has an address and its volumes.
    SandboxReady {
        /// Which pod.
        uid: Uid,
        /// Its address.
        ip: IpAddr,
    },
    /// The pod's address or volumes could not be made; the text says why.
    SandboxFailed {
        /// Which pod.
        uid: Uid,
        /// What to tell the user.
        message: String,
    },
    /// What [`Out::TearDown`] asked for is done.
    SandboxRemoved(Uid),
    /// A pull goes on to ask a registry: the image is not on the node, or may be another one now.
    PullBegan {
        /// For which container.
        at: ContainerRef,
    },
    /// A pull ended.
    Pulled {
        /// For which container.
        at: ContainerRef,
        /// How.
        result: Result<PulledImage, PullFault>,
    },
    /// A container runs.
    Started {
        /// Which one.
        at: ContainerRef,
        /// Which attempt.
        attempt: u32,
    },
    /// A container could not be started.
    StartFailed {
        /// Which one.
        at: ContainerRef,
        /// Which attempt.
        attempt: u32,
        /// Why.
        fault: StartFault,
    },
    /// A container ended, after [`In::Started`] or instead of it.
    Exited {
        /// Which one.
        at: ContainerRef,
        /// Which attempt.
        attempt: u32,
        /// How.
        exit: Exit,
    },
    /// A probe ended.
    Probed {
        /// Of which container.
        at: ContainerRef,
        /// Of which attempt.
        attempt: u32,
        /// Which probe.
        kind: ProbeKind,
        /// What it found.
        outcome: ProbeOutcome,
    },
    /// A lifecycle hook ended.
    Hooked {
        /// Of which container.
        at: ContainerRef,
        /// Of which attempt.
        attempt: u32,
        /// Which hook.
        hook: HookKind,
        /// Whether it did what it should, or why not.
        result: Result<(), String>,
    },
    /// The pod has to leave the node: it fails, `Evicted`.
    Evict {
        /// Which pod.
        uid: Uid,
        /// Why, for its status.
        message: String,
        /// How long its containers may take to end.
        grace_ms: u64,
        /// Whether it is for the node's sake, and not for a limit of the pod's own.
        disrupted: bool,
    },
    /// The API server answered [`Out::WriteStatus`].
    StatusWritten {
        /// Of which pod.
        uid: Uid,
        /// What it answered.
        outcome: Written,
    },
    /// The API server answered [`Out::DeletePod`].
    Deleted {
        /// Of which pod.
        uid: Uid,
        /// What it answered.
        outcome: Written,
    },
}

/// What stays on the node when a sandbox is torn down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Volumes and logs: the pod ended but still exists.
    Files,
    /// Nothing: the pod is being removed.
    Nothing,
}

/// What the agent wishes.
#[derive(Clone, Debug)]
pub enum Out {
    /// Give the pod an address and make its volumes; answered by [`In::SandboxReady`] or [`In::SandboxFailed`].
    SetUp(Arc<Pod>),
    /// Have the image on this node; answered by [`In::Pulled`].
    Pull {
        /// For which container.
        at: ContainerRef,
        /// What the pod calls it.
        image: String,
        /// When to ask the registry.
        policy: PullPolicy,
    },
    /// Start the container; answered by [`In::Started`], [`In::StartFailed`] or [`In::Exited`].
    Start {
        /// Which one.
        at: ContainerRef,
        /// Which attempt.
        attempt: u32,
        /// The pod as it is now.
        pod: Arc<Pod>,
    },
    /// End a running container; it is killed after the grace period. Answered by [`In::Exited`].
    Stop {
        /// Which one.
        at: ContainerRef,
        /// Which attempt.
        attempt: u32,
        /// How long it may take to end by itself.
        grace_ms: u64,
    },
    /// Ask a running container; answered by [`In::Probed`] while it runs.
    Probe {
        /// Which one.
        at: ContainerRef,
        /// Which attempt.
        attempt: u32,
        /// Which probe.
        kind: ProbeKind,
        /// How to ask.
        probe: Arc<Probe>,
        /// When to give up.
        timeout_ms: u64,
        /// The pod as it is now, for named ports.
        pod: Arc<Pod>,
    },
    /// Run a lifecycle hook; answered by [`In::Hooked`], which may come too late or, if the container ends, not at all.
    Hook {
        /// Which container's.
        at: ContainerRef,
        /// Of which attempt.
        attempt: u32,
        /// Which hook.
        hook: HookKind,
        /// What it does.
        handler: Box<LifecycleHandler>,
        /// When to give up; `None`: when the container ends.
        timeout_ms: Option<u64>,
        /// The pod as it is now, for named ports.
        pod: Arc<Pod>,
    },
    /// Release the pod's address (and files); answered by [`In::SandboxRemoved`].
    TearDown {
        /// Which pod.
        pod: PodRef,
        /// What stays.
        keep: Keep,
    },
    /// Write this `status`; answered by [`In::StatusWritten`]. At most one a pod is under way.
    WriteStatus {
        /// Which pod.
        pod: PodRef,
        /// The whole status that this agent owns.
        status: Value,
    },
    /// Delete the pod with grace period 0 if it still has this uid; answered by [`In::Deleted`].
    DeletePod(PodRef),
    /// Tell the user.
    Event(PodEvent),
}

/// The two types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// As planned.
    Normal,
    /// Something for the user to look at.
    Warning,
}

/// An event about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// About which pod.
    pub pod: PodRef,
    /// About which part of it, as `spec.containers{web}`; empty for the pod.
    pub field: String,
    /// Its type.
    pub kind: EventKind,
    /// A word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// When it happened.
    pub at: Time,
}
