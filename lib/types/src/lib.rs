//! The words that every crate shares: time, revisions, identities, a seeded source of chance, and the shape of a
//! deciding part.
//!
//! Invariants: nothing here reads a clock, draws a random number, or does I/O. `Time` comes from an edge; an [`Rng`]
//! comes from a seed. A type lives here only when two crates must agree on it.

mod chain;
mod machine;
mod rng;
mod time;

pub use chain::Chain;
pub use machine::Machine;
pub use rng::Rng;
pub use time::{Time, TimeError};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The store's one global revision: it grows by one with every committed change and is what clients see as
/// `metadata.resourceVersion`. Zero means "nothing written yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the text as it is; the API server is what checks names and makes UIDs.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The identity as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

text_id! {
    /// The identity of one life of an object (`metadata.uid`): never used twice.
    Uid
}
text_id! {
    /// The name of a node object.
    NodeName
}
