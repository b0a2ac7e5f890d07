//! The API client: requests, patches and list-watches over one HTTP/2 connection, used by agents and the CLI.
//!
//! A [`Client`] is made of a [`Config`], which a kubeconfig or a node's identity gives. [`Client::watch`] is the
//! list-then-watch loop of every Kubernetes client, for ever: it resumes, backs off, and lists again when its place
//! in history is gone. [`Client::session`] runs a command in a container, or joins its program.
//!
//! Invariants: knows no kind of object; trees go in and come out. One connection at a time, dialled again when it
//! breaks, to another server if there is one. It never retries a write by itself.

mod config;
mod conn;
mod session;
mod target;
mod watch;

pub use config::{Config, ConfigError, SERVERS_EXTENSION};
pub use conn::{Body, Client, ClientError, PatchType, Response, Status, bootstrap_get, escape, refusal, resource_path};
pub use http::Method;
pub use session::{Heard, SessionInput, SessionOutput};
pub use watch::{Event, Watcher};
