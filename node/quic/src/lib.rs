//! The links between nodes: QUIC with mutual TLS under the cluster's CA.
//!
//! An [`Endpoint`] dials and accepts on one UDP port; a [`Connection`] knows the name in its peer's certificate; a
//! [`BiStream`] begins with a [`StreamHeader`] that says what it carries. [`Fabric`] joins a node's switch to its
//! peers: one kept connection to each, one stream for each TCP connection between pods, datagrams for UDP.
//!
//! Invariants: nobody is talked to without a certificate of the cluster's CA, in either direction. No quinn or rustls
//! type leaves this crate. What a peer sends before it has said what it wants is bounded in bytes and in time. A pod's
//! address is believed only from the node that owns it, and kubelet streams only on connections that this side has
//! dialled to the control node.

pub mod channels;
mod connection;
mod endpoint;
mod error;
mod fabric;
mod header;
mod tls;

pub use connection::{BiStream, Connection, Opened};
pub use endpoint::Endpoint;
pub use error::QuicError;
pub use fabric::{Fabric, KubeletStream};
pub use header::StreamHeader;
pub use tls::Tls;
