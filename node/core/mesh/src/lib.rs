//! The service network's decisions: which endpoint answers for a service address, on which node a pod address
//! lives, what a name means.
//!
//! [`Update`]s are made from the trees of Services, EndpointSlices and Nodes; [`Tables`] takes them in and answers.
//! Every look-up costs at most the logarithm of the table's size, and an answer holds an `Arc` to immutable
//! [`Backends`], so that whoever keeps the tables behind a lock needs it only for the look-up itself.
//!
//! Invariants: nothing here opens a socket, reads a clock or draws from an unseeded source of chance. The tables do
//! not know which pods run on this node: the switch asks its own pods first. A malformed object is refused whole and
//! leaves the tables as they were.

mod backends;
mod cidr;
mod flows;
mod names;
mod tables;
mod update;

pub use backends::{Backends, Endpoint, Load, LoadGuard, Origin, Pick};
pub use cidr::{Cidr, CidrError};
pub use flows::{Caller, Flow, Flows, Mask};
pub use names::Answer;
pub use tables::{Config, Route, Tables};
pub use update::{MeshError, NodeSpec, Proto, ServiceId, ServicePort, ServiceSpec, SliceEndpoint, SliceSpec, Update};
