//! The view of a service.

use super::pod::Pod;
use dhow_api::{Tree, meta};
use dhow_state::Object;
use std::sync::Arc;

/// Where a service's port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Number(u16),
    Name(String),
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
    pub(crate) target: Target,
}

/// A service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) object: Arc<Object>,
    pub(crate) selector: Vec<(String, String)>,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) publish_not_ready: bool,
    pub(crate) headless: bool,
    pub(crate) external: bool,
}

impl Service {
    /// Whether its endpoints are ours to keep.
    pub(crate) fn has_endpoints(&self) -> bool {
        !self.selector.is_empty() && !self.external
    }

    pub(crate) fn selects(&self, pod: &Pod) -> bool {
        self.selector.iter().all(|(key, value)| pod.label(key) == Some(value.as_str()))
    }
}

pub(super) fn service(object: &Arc<Object>) -> Service {
    let tree = object.tree();
    let port = |port: &Tree| {
        let number = |tree: &Tree| tree.as_u64().and_then(|n| u16::try_from(n).ok());
        let own = meta::at(port, "port").and_then(number).unwrap_or(0);
        let target = match meta::at(port, "targetPort") {
            Some(Tree::String(text)) => text.parse().map_or_else(|_| Target::Name(text.clone()), Target::Number),
            Some(value) => Target::Number(number(value).filter(|port| *port != 0).unwrap_or(own)),
            None => Target::Number(own),
        };
        ServicePort {
            name: meta::text(port, "name").to_owned(),
            protocol: meta::at(port, "protocol").and_then(Tree::as_str).unwrap_or("TCP").to_owned(),
            app_protocol: meta::at(port, "appProtocol").and_then(Tree::as_str).map(str::to_owned),
            target,
        }
    };
    Service {
        object: Arc::clone(object),
        selector: meta::texts(&tree, "spec.selector").map(|(key, value)| (key.into(), value.into())).collect(),
        ports: meta::list(&tree, "spec.ports").iter().map(port).collect(),
        publish_not_ready: meta::truth(&tree, "spec.publishNotReadyAddresses"),
        headless: meta::text(&tree, "spec.clusterIP") == "None",
        external: meta::text(&tree, "spec.type") == "ExternalName",
    }
}
