//! Images: names of programs, how they come into the cluster, and where a node keeps them.
//!
//! [`Reference`] reads a name as Kubernetes users write it. [`Store::pull`] gives the file behind a name: from the
//! node's store, from the cluster's own registry, from any other registry or a mirror of it, or, where that is allowed,
//! from a file on the node. [`Registries`] is what a node was told about registries, [`Keyring`] what pull secrets hold.
//! [`push`] puts a program into the cluster's registry.
//!
//! Invariants:
//! * What lies in the store under a digest has that digest: it was checked when it came and is checked again at its
//!   first use after a start.
//! * A file appears under its name when it is whole.
//! * Where the configuration wants a signature, it was checked before the program was fetched.
//! * What had to be shown to a registry for an image has to be shown again by the next who wants it.
//! * Does not know what is inside a program, nor how it is run.

mod archive;
mod challenge;
mod config;
mod credentials;
mod manifest;
mod pull;
mod push;
mod reference;
mod remote;
mod signature;
mod store;

pub use config::{ConfigError, Registries, Thresholds};
pub use credentials::{Credential, InvalidKeyring, Keyring};
pub use manifest::Defaults;
pub use pull::{PullError, Sources};
pub use push::{PushError, push};
pub use reference::{InvalidReference, Reference};
pub use store::{Image, Kept, Store};

/// The largest program that is taken in, far above the biggest seen (13 MiB).
pub const IMAGE_BYTES_MAX: u64 = 256 << 20;
