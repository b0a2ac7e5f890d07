//! What a node agent must be told before it starts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use dhow_agent::eviction::Thresholds;
use dhow_engine::{Code, Compiler};
use dhow_image::Registries;
use dhow_pki::Identity;
use dhow_types::NodeName;

use crate::JoinedIdentity;

/// How long the start waits for the address of an API server that has a name.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

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
    /// `host:port` at which the control node listens for agents by QUIC.
    pub control_quic: String,
    /// Where this node keeps images, compiled code, volumes and logs.
    pub data_dir: PathBuf,
    /// Whether `file://` images may be run.
    pub allow_file_images: bool,
    /// Directories of the host below which pods may mount what they name.
    pub allow_host_paths: Vec<PathBuf>,
    /// The address under which other nodes reach this one.
    pub node_ip: IpAddr,
    /// The address on which NodePorts are opened; `None` opens none (a further agent of the same process).
    pub node_port_ip: Option<IpAddr>,
    /// How little memory and disk may be left before pods have to leave.
    pub eviction: Thresholds,
    /// What it knows of registries outside of the cluster, and when images are removed.
    pub registries: Registries,
    /// Where programs are compiled.
    pub compile: Compile,
    /// What they are compiled to.
    pub code: Code,
}

/// Who compiles the programs that a node runs.
#[derive(Clone, Debug)]
pub enum Compile {
    /// The node itself.
    Here(Compiler),
    /// Its control nodes. Where those make no code for this node's processor, its programs run under Pulley.
    ControlNode,
}

impl Default for Compile {
    fn default() -> Self {
        match Compiler::default() {
            Compiler::Nowhere => Self::ControlNode,
            compiler => Self::Here(compiler),
        }
    }
}

impl Config {
    /// A node of the cluster that it joined: nothing is allowed that is not needed, no NodePorts are opened. The control
    /// node listens for QUIC at the port of its API.
    pub fn new(name: &str, joined: JoinedIdentity, data_dir: impl Into<PathBuf>, node_ip: IpAddr) -> Self {
        let JoinedIdentity { server, ca_pem, identity } = joined;
        Self {
            name: NodeName::new(name),
            control_quic: authority(&server),
            client: dhow_client::Config {
                server,
                others: Vec::new(),
                ca_pem: Some(ca_pem.clone()),
                identity: Some(identity.clone()),
                token: None,
                namespace: "default".to_owned(),
            },
            identity,
            ca_pem,
            data_dir: data_dir.into(),
            allow_file_images: false,
            allow_host_paths: Vec::new(),
            node_ip,
            node_port_ip: None,
            eviction: Thresholds::default(),
            registries: Registries::default(),
            compile: Compile::default(),
            code: Code::default(),
        }
    }
}

/// The addresses of a server's `host:port`; a name is looked up, for a while.
pub(crate) async fn addresses_of(server: &str) -> Vec<SocketAddr> {
    let authority = authority(server);
    match tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host(&authority)).await {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(err)) => {
            tracing::warn!(authority, %err, "the API server's address is not known");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!(authority, "looking up the API server's address takes too long");
            Vec::new()
        }
    }
}

/// `host:port` of `https://host:port/`; 443 where no port is named.
fn authority(server: &str) -> String {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let after_host = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    if authority[after_host..].contains(':') { authority.to_owned() } else { format!("{authority}:443") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_of_a_server_has_a_port() {
        for (server, expected) in [
            ("https://127.0.0.1:6443", "127.0.0.1:6443"),
            ("https://dhow.example/", "dhow.example:443"),
            ("https://[::1]", "[::1]:443"),
            ("https://[::1]:6443/x", "[::1]:6443"),
        ] {
            assert_eq!(authority(server), expected);
        }
    }

    #[tokio::test]
    async fn a_server_that_is_named_by_its_address_needs_no_look_up() {
        for (server, expected) in [
            ("https://127.0.0.1:6443", "127.0.0.1:6443"),
            ("http://[::1]:80/x", "[::1]:80"),
            ("https://192.0.2.1", "192.0.2.1:443"),
        ] {
            assert_eq!(addresses_of(server).await, [expected.parse().unwrap()]);
        }
    }
}
