//! What a pod asks for and does not get: who asked is told, once a pod.

use dhow_types::Time;

use super::PodRun;
use crate::message::{EventKind, Out};

impl PodRun {
    /// Nothing of a pod is in the host's network; who asked for that is told what there is instead.
    pub(super) fn say_what_is_ignored(&self, now: Time, out: &mut Vec<Out>) {
        let Some(spec) = self.spec() else { return };
        let instead =
            "the pod has an address of its own only; use a Service of type NodePort to reach it by the node's";
        if spec.host_network == Some(true) {
            let message = format!("hostNetwork is ignored: {instead}");
            self.event(now, None, EventKind::Warning, "HostNetworkIgnored", message, out);
            // The API server gives each port of such a pod a hostPort.
            return;
        }
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports: Vec<_> = containers
            .flat_map(|c| c.ports.iter().flatten())
            .filter_map(|port| port.host_port.filter(|port| *port != 0))
            .map(|port| port.to_string())
            .collect();
        if !ports.is_empty() {
            let message = format!("hostPort {} is ignored: {instead}", ports.join(", "));
            self.event(now, None, EventKind::Warning, "HostPortIgnored", message, out);
        }
    }
}
