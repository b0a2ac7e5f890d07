//! What a pod asks for and does not get: who asked is told, once a pod.

use dhow_types::Time;
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::PodRun;
use crate::message::{EventKind, Out};

/// A reason for programs and a sentence for people.
type Word = (&'static str, String);

impl PodRun {
    /// Tells what of the spec is passed over.
    pub(super) fn say_what_is_ignored(&self, now: Time, out: &mut Vec<Out>) {
        let Some(spec) = self.spec() else { return };
        for (reason, message) in network(spec).into_iter().chain(processes(spec)).chain(devices(spec)) {
            self.event(now, None, EventKind::Warning, reason, message, out);
        }
    }
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// The names of those containers of which something is true, as a list; `None` if it is true of none.
fn those(spec: &PodSpec, is: impl Fn(&Container) -> bool) -> Option<String> {
    let names: Vec<_> = containers(spec).filter(|c| is(c)).map(|c| c.name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Nothing of a pod is in the host's network; there is something else instead.
fn network(spec: &PodSpec) -> Vec<Word> {
    let mut words = Vec::new();
    let instead = "the pod has an address of its own only; use a Service of type NodePort to reach it by the node's";
    let ports: Vec<_> = containers(spec)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| port.host_port.filter(|port| *port != 0))
        .map(|port| port.to_string())
        .collect();
    if spec.host_network == Some(true) {
        // The API server gives each port of such a pod a hostPort, too.
        words.push(("HostNetworkIgnored", format!("hostNetwork is ignored: {instead}")));
    } else if !ports.is_empty() {
        words.push(("HostPortIgnored", format!("hostPort {} is ignored: {instead}", ports.join(", "))));
    }
    if spec.dns_config.is_some() {
        let how = "names are looked up among the cluster's services, then by the node's own resolver; use hostAliases for others";
        words.push(("DNSConfigIgnored", format!("dnsConfig is ignored: {how}")));
    }
    words
}

/// A container is a Wasm instance: there is no process that could be shared or seen.
fn processes(spec: &PodSpec) -> Vec<Word> {
    let asked = [
        (spec.host_pid, "HostPIDIgnored", "hostPID"),
        (spec.host_ipc, "HostIPCIgnored", "hostIPC"),
        (spec.share_process_namespace, "ShareProcessNamespaceIgnored", "shareProcessNamespace"),
    ];
    let word = |(_, reason, field): (_, &'static str, &str)| {
        (
            reason,
            format!(
                "{field} is ignored: a container is a Wasm instance and no process; share files or localhost instead"
            ),
        )
    };
    let mut words: Vec<_> = asked.into_iter().filter(|(asked, ..)| *asked == Some(true)).map(word).collect();
    let signal = |c: &Container| c.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.stop_signal.is_some());
    if let Some(names) = those(spec, signal) {
        let message =
            format!("stopSignal is ignored for {names}: a Wasm instance hears no signals; use a preStop hook");
        words.push(("StopSignalIgnored", message));
    }
    words
}

/// A guest reaches nothing but its volumes and its network.
fn devices(spec: &PodSpec) -> Vec<Word> {
    let mut words = Vec::new();
    let privileged = |c: &Container| c.security_context.as_ref().is_some_and(|s| s.privileged == Some(true));
    if let Some(names) = those(spec, privileged) {
        let message = format!("privileged is ignored for {names}: a Wasm guest cannot be let out of its sandbox");
        words.push(("PrivilegedIgnored", message));
    }
    if let Some(names) = those(spec, |c| c.volume_devices.as_ref().is_some_and(|list| !list.is_empty())) {
        let message = format!("volumeDevices are ignored for {names}: a Wasm guest has files only; use volumeMounts");
        words.push(("VolumeDevicesIgnored", message));
    }
    words
}
