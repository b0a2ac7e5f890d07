//! The node agent: the shell that drives the deciding parts (`dhow-agent`, `dhow-mesh`) with sockets, disks and the
//! runtime. Also the library that devices embed.
//!
//! [`Node::start`] brings everything up (`node` has the order); `runner` is the loop around the agent and fulfils its
//! wishes; `network` feeds the switch; `control` keeps a
//! link to each control node; `register` keeps the Node object
//! and its lease; `renew` the node's certificate; `kubelet` answers the control node (`logs`, port-forward, and
//! `sessions`: exec, attach; `stats`, `metrics`: what all use, read by `usage`); `eviction` ends pods that use too much.
//! [`join`] gives a new node its identity; `compiled` has a control node compile where the agent cannot.
//!
//! Invariants: decides nothing about pods. Every task belongs to a group that [`Node::stop`] ends; every queue is
//! bounded. Stopping leaves the API's objects as they are. A name from the API never leaves the data directory
//! (`layout`), a link in a volume never leaves the volume (`volumes`). Deliberately absent: Wasm (`dhow-engine`), the
//! form of packets (`dhow-switch`), QUIC (`dhow-quic`).

mod api;
mod clock;
mod compiled;
mod config;
mod control;
mod disk_use;
mod events;
mod eviction;
mod exec;
mod flights;
mod gc;
mod grpc;
mod hooks;
mod host;
mod images;
mod join;
mod kubelet;
mod last_word;
mod layout;
mod logs;
mod metrics;
mod network;
mod node;
mod objects;
mod probes;
mod register;
mod renew;
mod runner;
mod sandbox;
mod sessions;
mod stats;
mod toolbox;
mod tty;
mod usage;
mod view;
mod volumes;

pub use config::{Compile, Config};
pub use dhow_agent::eviction::Thresholds;
pub use join::{JoinError, JoinedIdentity, join};
pub use node::{Node, NodeError};
