//! What the tables are fed with, read from the objects' trees.

use crate::cidr::Cidr;
use dhow_types::NodeName;
use serde_json::Value;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "TCP",
            Proto::Udp => "UDP",
        })
    }
}

/// The namespace and the name of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ServiceId {
    /// From the two names.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One entry of a service's `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The name by which slices refer to the port; empty for the only port of a service.
    pub name: String,
    /// The protocol.
    pub proto: Proto,
    /// The port on the service's addresses.
    pub port: u16,
    /// The port on every node, if the service has one.
    pub node_port: Option<u16>,
}

/// What the network needs to know of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Which service.
    pub id: ServiceId,
    /// Its cluster addresses, and the external ones that it claims; empty for a headless service.
    pub addresses: Vec<IpAddr>,
    /// Where the name points to, for a service of type `ExternalName`.
    pub external_name: Option<String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Whether one client address always gets the same endpoint (`sessionAffinity: ClientIP`).
    pub sticky: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its addresses; all reach the same pod.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`: answers, even while it terminates.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<NodeName>,
    /// The name under which a headless service answers for it alone.
    pub hostname: Option<String>,
}

/// What the network needs to know of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceSpec {
    /// The service it belongs to.
    pub service: ServiceId,
    /// The slice's own name.
    pub name: Arc<str>,
    /// Port name, protocol and number.
    pub ports: Vec<(String, Proto, u16)>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// What the network needs to know of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its name.
    pub name: NodeName,
    /// The ranges of its pods' addresses.
    pub pod_cidrs: Vec<Cidr>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its QUIC endpoint answers.
    pub quic_addr: Option<SocketAddr>,
}

/// One change of the world that the tables take in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// A service is there or has changed.
    Service(ServiceSpec),
    /// A service is gone.
    ServiceGone(ServiceId),
    /// A slice is there or has changed.
    Slice(SliceSpec),
    /// A slice is gone. The fields are its namespace and its name.
    SliceGone(Arc<str>, Arc<str>),
    /// A node is there or has changed.
    Node(NodeSpec),
    /// A node is gone.
    NodeGone(NodeName),
}

/// An object that the network cannot use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeshError {
    /// A field is missing or has a wrong form.
    #[error("`{object}`: field `{field}` is missing or malformed")]
    Field {
        /// Kind, namespace and name of the object.
        object: String,
        /// Path of the field.
        field: &'static str,
    },
}

/// The annotation in which an agent publishes the address of its QUIC endpoint.
const QUIC_ADDRESS: &str = "dhow.dev/quic-address";
/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Update {
    /// From the tree of a Service.
    pub fn service(tree: &Value) -> Result<Update, MeshError> {
        let object = Object::new("service", tree);
        let spec = object.tree.get("spec").unwrap_or(&Value::Null);
        let mut addresses = Vec::new();
        for list in ["clusterIPs", "externalIPs"] {
            for text in texts(spec, list).filter(|text| !text.is_empty() && *text != "None") {
                addresses.push(text.parse().map_err(|_| object.fault("spec.clusterIPs"))?);
            }
        }
        match text(spec, "clusterIP") {
            "" | "None" => {}
            ip => addresses.push(ip.parse().map_err(|_| object.fault("spec.clusterIP"))?),
        }
        addresses.sort();
        addresses.dedup();
        let ports = array(spec, "ports").map(|port| service_port(&object, port)).collect::<Result<_, _>>()?;
        let external_name = (text(spec, "type") == "ExternalName").then(|| text(spec, "externalName").to_owned());
        Ok(Update::Service(ServiceSpec {
            id: object.id()?,
            addresses,
            external_name: external_name.filter(|name| !name.is_empty()),
            ports,
            sticky: text(spec, "sessionAffinity") == "ClientIP",
            internal_local: text(spec, "internalTrafficPolicy") == "Local",
            external_local: text(spec, "externalTrafficPolicy") == "Local",
        }))
    }

    /// The service of that namespace and name is gone.
    pub fn service_gone(namespace: &str, name: &str) -> Update {
        Update::ServiceGone(ServiceId::new(namespace, name))
    }

    /// From the tree of an EndpointSlice. A slice that belongs to no service counts as gone.
    pub fn slice(tree: &Value) -> Result<Update, MeshError> {
        let object = Object::new("endpointslice", tree);
        let id = object.id()?;
        let service = tree.pointer("/metadata/labels").map_or("", |labels| text(labels, SERVICE_NAME));
        if service.is_empty() || text(tree, "addressType") == "FQDN" {
            return Ok(Update::SliceGone(id.namespace, id.name));
        }
        let mut ports = Vec::new();
        for port in array(tree, "ports") {
            // A port without number means "all ports": no service port can be mapped onto it.
            if let Some(number) = number(port, "port") {
                let proto = proto(port).ok_or_else(|| object.fault("ports.protocol"))?;
                ports.push((text(port, "name").to_owned(), proto, number));
            }
        }
        let endpoints = array(tree, "endpoints").map(|e| slice_endpoint(&object, e)).collect::<Result<_, _>>()?;
        let service = ServiceId { namespace: id.namespace, name: service.into() };
        Ok(Update::Slice(SliceSpec { service, name: id.name, ports, endpoints }))
    }

    /// The slice of that namespace and name is gone.
    pub fn slice_gone(namespace: &str, name: &str) -> Update {
        Update::SliceGone(namespace.into(), name.into())
    }

    /// From the tree of a Node: `spec.podCIDRs` (or `podCIDR`), `status.addresses`, and the annotation
    /// `dhow.dev/quic-address`.
    pub fn node(tree: &Value) -> Result<Update, MeshError> {
        let object = Object::new("node", tree);
        let spec = tree.get("spec").unwrap_or(&Value::Null);
        let mut pod_cidrs: Vec<Cidr> = Vec::new();
        for range in texts(spec, "podCIDRs").chain([text(spec, "podCIDR")]).filter(|range| !range.is_empty()) {
            pod_cidrs.push(range.parse().map_err(|_| object.fault("spec.podCIDR"))?);
        }
        pod_cidrs.sort();
        pod_cidrs.dedup();
        let published = tree.pointer("/metadata/annotations").map_or("", |all| text(all, QUIC_ADDRESS));
        let quic_addr = match published {
            "" => None,
            addr => Some(addr.parse().map_err(|_| object.fault("metadata.annotations[dhow.dev/quic-address]"))?),
        };
        // Host names are among a node's addresses too; only numbers matter here.
        let addresses = tree
            .get("status")
            .into_iter()
            .flat_map(|status| array(status, "addresses"))
            .filter_map(|address| text(address, "address").parse().ok())
            .collect();
        let name = object.id()?.name;
        Ok(Update::Node(NodeSpec { name: NodeName::new(name), pod_cidrs, addresses, quic_addr }))
    }

    /// The node of that name is gone.
    pub fn node_gone(name: &str) -> Update {
        Update::NodeGone(NodeName::new(name))
    }
}

fn service_port(object: &Object<'_>, tree: &Value) -> Result<ServicePort, MeshError> {
    Ok(ServicePort {
        name: text(tree, "name").to_owned(),
        proto: proto(tree).ok_or_else(|| object.fault("spec.ports.protocol"))?,
        port: number(tree, "port").ok_or_else(|| object.fault("spec.ports.port"))?,
        node_port: number(tree, "nodePort").filter(|port| *port != 0),
    })
}

fn slice_endpoint(object: &Object<'_>, tree: &Value) -> Result<SliceEndpoint, MeshError> {
    let condition = |name: &str| tree.get("conditions").and_then(|c| c.get(name)).and_then(Value::as_bool);
    // The API's words: an absent `ready` means true, an absent `serving` follows `ready`.
    let ready = condition("ready").unwrap_or(true);
    let addresses = texts(tree, "addresses")
        .map(|text| text.parse().map_err(|_| object.fault("endpoints.addresses")))
        .collect::<Result<_, _>>()?;
    let optional = |name: &str| Some(text(tree, name)).filter(|text| !text.is_empty());
    Ok(SliceEndpoint {
        addresses,
        ready,
        serving: condition("serving").unwrap_or(ready),
        terminating: condition("terminating").unwrap_or(false),
        node: optional("nodeName").map(NodeName::new),
        hostname: optional("hostname").map(str::to_owned),
    })
}

/// A tree and how to name it in an error.
struct Object<'a> {
    kind: &'static str,
    tree: &'a Value,
}

impl<'a> Object<'a> {
    fn new(kind: &'static str, tree: &'a Value) -> Self {
        Self { kind, tree }
    }

    fn meta(&self, field: &str) -> &str {
        self.tree.get("metadata").map_or("", |meta| text(meta, field))
    }

    fn id(&self) -> Result<ServiceId, MeshError> {
        match self.meta("name") {
            "" => Err(self.fault("metadata.name")),
            name => Ok(ServiceId::new(self.meta("namespace"), name)),
        }
    }

    fn fault(&self, field: &'static str) -> MeshError {
        let object = match (self.meta("namespace"), self.meta("name")) {
            ("", name) => format!("{}/{name}", self.kind),
            (namespace, name) => format!("{}/{namespace}/{name}", self.kind),
        };
        MeshError::Field { object, field }
    }
}

fn text<'a>(tree: &'a Value, field: &str) -> &'a str {
    tree.get(field).and_then(Value::as_str).unwrap_or("")
}

fn array<'a>(tree: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    tree.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn texts<'a>(tree: &'a Value, field: &str) -> impl Iterator<Item = &'a str> {
    array(tree, field).filter_map(Value::as_str)
}

fn number(tree: &Value, field: &str) -> Option<u16> {
    tree.get(field).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok())
}

/// `None` for a protocol that no guest can speak (SCTP).
fn proto(tree: &Value) -> Option<Proto> {
    match text(tree, "protocol") {
        "" | "TCP" => Some(Proto::Tcp),
        "UDP" => Some(Proto::Udp),
        _ => None,
    }
}
