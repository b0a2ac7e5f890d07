//! What a node agent must be told before it starts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use dhow_pki::Identity;
use dhow_types::NodeName;

/// Everything that a node agent needs; parsed and defaulted by the binary.
#[derive(Clone)]
pub struct Config {
    /// The name of this node's object.
    pub name: NodeName,
    /// How to reach the API server with this node's identity.
    pub client: dhow_client::Config,
    /// This node's key and certificate, for QUIC.
    pub identity: Identity,
    /// The cluster's CA, in PEM.
    pub ca_pem: String,
    /// Where the control node listens for agents by QUIC.
    pub control_quic: SocketAddr,
    /// Where this node keeps images, compiled code, volumes and logs.
    pub data_dir: PathBuf,
    /// Whether `file://` images may be run.
    pub allow_file_images: bool,
    /// Whether pods may mount `hostPath` volumes.
    pub allow_host_paths: bool,
    /// The address under which other nodes reach this one.
    pub node_ip: IpAddr,
    /// The address on which NodePorts are opened; `None` opens none (a further agent of the same process).
    pub node_port_ip: Option<IpAddr>,
}
