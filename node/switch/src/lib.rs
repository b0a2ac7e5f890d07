//! The pod network of one node, in user space: no packet of a pod reaches the kernel unless it leaves the cluster.
//!
//! A [`Switch`] holds the node's pods and the service network's tables. Each pod gets a [`PodNet`]: it listens,
//! connects, sends datagrams and resolves names there, and guests' sockets are made of nothing else. A connect asks
//! the switch once and is then out of its way: to a pod here it is a pair of bounded queues in memory
//! ([`Stream`]), to another node a stream of the [`Remote`], outside a socket of the host if [`Egress`] lets it.
//! [`NodePorts`] is the way in from the host.
//!
//! Invariants: every buffer, queue and list is bounded. A stream within the node has no task. Removing a pod breaks
//! all its connections and wakes all who wait on them. A pod never reaches the host's loopback or link-local
//! addresses, nor an address of the cluster that nobody has. Locks are held for look-ups and moves of bytes, never
//! over an await or a waker. Knows nothing about WASI, HTTP or QUIC.

mod dial;
mod egress;
mod error;
mod host_stream;
mod listener;
mod node_ports;
mod pipe;
mod pod;
mod ports;
mod splice;
mod stream;
mod switch;
mod sync;
mod udp;

pub use egress::Egress;
pub use error::{NetError, ReadError, Reset};
pub use listener::Listener;
pub use node_ports::{NodePort, NodePortEvent, NodePorts};
pub use pod::{Bound, PodIdentity, PodNet, Traffic};
pub use splice::splice;
pub use stream::Stream;
pub use switch::{BoxFuture, Config, Connecting, Duplex, Remote, Resolving, Switch};
pub use udp::UdpSocket;
