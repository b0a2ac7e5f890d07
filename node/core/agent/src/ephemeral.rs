//! Ephemeral containers: those that are added to a pod that runs.
//!
//! Most of what is done with a container is done with these, too, by those who find containers by their name. So that
//! none of them needs to know, [`joined`] puts them behind the ordinary ones once, when a pod comes in. The list that
//! they came in stays, which tells them apart.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

/// The pod with its ephemeral containers behind its ordinary ones.
pub fn joined(mut pod: Pod) -> Pod {
    if let Some(spec) = &mut pod.spec {
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(container);
        spec.containers.extend(ephemeral);
    }
    pod
}

/// Whether a container is an ephemeral one.
pub fn is_ephemeral(pod: &Pod, name: &str) -> bool {
    let spec = pod.spec.as_ref();
    spec.is_some_and(|spec| spec.ephemeral_containers.iter().flatten().any(|container| container.name == name))
}

/// What it may not have (ports, probes, resources…) it has not.
fn container(from: &EphemeralContainer) -> Container {
    let from = from.clone();
    Container {
        args: from.args,
        command: from.command,
        env: from.env,
        env_from: from.env_from,
        image: from.image,
        image_pull_policy: from.image_pull_policy,
        name: from.name,
        security_context: from.security_context,
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        termination_message_path: from.termination_message_path,
        termination_message_policy: from.termination_message_policy,
        tty: from.tty,
        volume_devices: from.volume_devices,
        volume_mounts: from.volume_mounts,
        working_dir: from.working_dir,
        ..Container::default()
    }
}
