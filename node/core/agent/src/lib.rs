//! What a node does with the pods that are bound to it: the part of a kubelet that decides.
//!
//! [`Agent`] takes what happened (a pod appeared, an image is there, a container ended, a probe answered, time passed)
//! and gives wishes ([`Out`]): set up a sandbox, pull, start, stop, probe, run a hook, write the status, delete the pod. The shell
//! (`dhow-node`) fulfils them and reports back. Inside, `pod` is the state machine of one pod and `container` of one
//! of its containers, `status` turns their state into `status`, [`probe`] schedules probes, [`backoff`] the waits between
//! attempts. [`ephemeral`] makes containers that were added later like the others. [`env`], [`volumes`],
//! [`files`] and [`spec`] compute what a container gets; [`ipam`] picks pod addresses, [`images`] the images
//! that go when the disk is full. [`eviction`] tells who has to leave
//! when something runs short; [`rate`] how fast a container uses what it uses.
//!
//! Invariants: no clock, no chance, no I/O, no task. Every decision follows from the inputs so far. A container that
//! the agent believes to run was reported as started and not yet as ended. A pod is deleted from the API only after
//! each of its containers ended and its sandbox is gone. Deliberately absent: Wasm (an image is a name and a digest
//! here), HTTP, the form of the data directory.

pub mod agent;
pub mod backoff;
mod container;
pub mod env;
pub mod ephemeral;
pub mod eviction;
pub mod files;
pub mod images;
pub mod ipam;
mod message;
mod pod;
pub mod probe;
pub mod rate;
pub mod spec;
mod status;
pub mod volumes;

pub use agent::{Agent, Config};
pub use message::{
    ContainerRef, EventKind, HookKind, In, Keep, Out, PodEvent, PodRef, ProbeKind, ProbeOutcome, PullFault,
    PulledImage, StartFault, Written,
};
