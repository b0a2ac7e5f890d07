//! Images: names of programs, how they come into the cluster, and where a node keeps them.
//!
//! [`Reference`] reads a name as Kubernetes users write it. [`Store::pull`] gives the file behind a name: from the
//! node's store, from the cluster's own registry, or, where that is allowed, from a file on the node. [`push`] puts a
//! program into the registry.
//!
//! Invariants:
//! * What lies in the store under a digest has that digest: it was checked when it came and is checked again at its
//!   first use after a start.
//! * A file appears under its name when it is whole.
//! * Does not know what is inside a program, nor how it is run.

mod manifest;
mod pull;
mod push;
mod reference;
mod store;

pub use pull::PullError;
pub use push::{PushError, push};
pub use reference::{InvalidReference, Reference};
pub use store::{Image, Store};

/// The largest program that is taken in, far above the biggest seen (13 MiB).
pub const IMAGE_BYTES_MAX: u64 = 256 << 20;
