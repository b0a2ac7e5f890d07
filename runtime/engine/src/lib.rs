//! Runs containers: WebAssembly programs under Wasmtime.
//!
//! [`Engine::load`] turns a file into a [`Program`]: it tells components from preview 1 modules, names what is missing,
//! compiles once a digest and keeps the native code on disk. [`Engine::start`] makes a [`Container`] of a program and a
//! specification: a command is one instance that runs to its end, an HTTP program is a listener that makes a fresh
//! instance for each request.
//!
//! ```text
//! program (inspect) → adapt → compile (translate), or elsewhere → cache (map) → engine (two engines, epochs, guests' threads)
//!                                               └→ container → command | serve → meter (share, lane), output → logs
//! ```
//!
//! Invariants:
//! * Guests run on threads of their own, and those that compute at length on others again (`lane`), where containers
//!   have turns by their CPU requests; a guest that spins, floods its log, or traps delays other guests by a tick, once,
//!   and the rest of the node not at all.
//! * A file operation that hangs holds up its own container alone, and not that one's end (`aside`).
//! * Every container ends with exactly one [`Exit`](dhow_runtime_contract::Exit), whatever happens to it.
//! * Code is loaded only from files that this node wrote itself, of what its own compiler made or somebody whom it has
//!   reason to believe (`elsewhere`). Without the feature `compiler` there is nothing but the latter.
//! * Does not know about Pods' life cycle, restarts, images, or Kubernetes.

#[cfg(feature = "compiler")]
mod adapt;
mod aside;
mod cache;
mod command;
mod compile;
mod container;
mod crowd;
mod elsewhere;
mod engine;
mod inspect;
mod instances;
mod lane;
mod linkers;
mod logs;
mod meter;
mod output;
mod priority;
mod program;
mod serve;
mod share;
mod target;
mod ticker;
#[cfg(feature = "compiler")]
mod translate;
mod trap;

pub use compile::{CompileLimits, Compiler, Worker};
pub use container::{Container, Io};
pub use elsewhere::{Delivered, Elsewhere, NotDelivered, Wanted};
pub use engine::{Config, Engine, EngineError, instances_max};
pub use inspect::{Description, check, describe};
pub use program::{LoadError, Program};
pub use target::{Code, CodeSettings, Target};
#[cfg(feature = "compiler")]
pub use translate::compile_worker;

/// The version of Wasmtime that runs the guests, as `Cargo.lock` has it.
pub const RUNTIME_VERSION: &str = env!("DHOW_WASMTIME_VERSION");
