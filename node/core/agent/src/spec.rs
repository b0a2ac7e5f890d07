//! What the runtime is told about a container.

use std::collections::BTreeMap;

use dhow_api::kinds::http_serving;
use dhow_api::kinds::pod_annotations::CORE_DUMP;
use dhow_api::quantity::Quantity;
use dhow_runtime_contract::{ContainerSpec, HttpServing, Mount, Scratch};
use dhow_types::Uid;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::env;

/// The container with this name in a pod, init containers first.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name)
}

/// What the runtime is told about one start of a container.
pub fn container_spec(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    env: Vec<(String, String)>,
    (mounts, scratch): (Vec<Mount>, Vec<Scratch>),
) -> ContainerSpec {
    let meta = &pod.metadata;
    let limit = |name: &str| {
        let text = &container.resources.as_ref()?.limits.as_ref()?.get(name)?.0;
        Quantity::parse(text).ok()
    };
    let request = |name: &str| {
        let text = &container.resources.as_ref()?.requests.as_ref()?.get(name)?.0;
        Quantity::parse(text).ok()
    };
    let ports = container.ports.iter().flatten();
    ContainerSpec {
        pod_uid: Uid::new(meta.uid.as_deref().unwrap_or_default()),
        namespace: meta.namespace.clone().unwrap_or_default(),
        pod: meta.name.clone().unwrap_or_default(),
        name: container.name.clone(),
        attempt,
        args: arguments(container, &env),
        mounts,
        foreign_files: mounts_host_path(pod, container),
        scratch,
        working_dir: container.working_dir.clone().filter(|dir| !dir.is_empty()),
        memory_limit: limit("memory").and_then(|q| u64::try_from(q.value()).ok()).filter(|bytes| *bytes > 0),
        cpu_request_m: request("cpu").and_then(|q| u32::try_from(q.milli()).ok()),
        cpu_limit_m: limit("cpu").and_then(|q| u32::try_from(q.milli()).ok()).filter(|milli| *milli > 0),
        http_ports: ports
            .filter(|p| p.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
            .filter_map(|p| u16::try_from(p.container_port).ok())
            .collect(),
        http: serving(meta.annotations.as_ref()),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        labels: meta.labels.clone().unwrap_or_default(),
        stores: None,
        core_dump: None,
        hostname: env::hostname(pod),
        stdin: container.stdin == Some(true),
        tty: container.tty == Some(true),
        env,
    }
}

/// Whether the container sees a directory of the machine that is not the node's own.
fn mounts_host_path(pod: &Pod, container: &Container) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut foreign = volumes.filter(|volume| volume.host_path.is_some());
    foreign.any(|volume| container.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name))
}

/// How the pod says that its HTTP containers serve. The API admits no other values than these; what came by another way
/// and makes no sense counts as not said.
fn serving(annotations: Option<&BTreeMap<String, String>>) -> HttpServing {
    let number = |name: &str| {
        let value = annotations?.get(name)?.parse().ok()?;
        (1..=http_serving::HTTP_NUMBER_MAX).contains(&value).then_some(value)
    };
    let default = HttpServing::default();
    HttpServing {
        reuse: number(http_serving::HTTP_REUSE).unwrap_or(default.reuse),
        concurrency: number(http_serving::HTTP_CONCURRENCY).unwrap_or(default.concurrency),
    }
}

/// Whether the pod wants to be looked at after a trap.
pub fn wants_core_dump(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get(CORE_DUMP)).is_some_and(|value| value == "true")
}

/// The full argument list: an image has no entry point of its own to replace, so that `command` replaces the program's
/// name and `args` follow.
fn arguments(container: &Container, env: &[(String, String)]) -> Vec<String> {
    let value = |name: &str| env.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let command = container.command.iter().flatten();
    let mut arguments: Vec<_> =
        command.chain(container.args.iter().flatten()).map(|text| env::expand(text, value)).collect();
    if container.command.as_ref().is_none_or(Vec::is_empty) {
        arguments.insert(0, program_name(container.image.as_deref().unwrap_or_default()));
    }
    arguments
}

/// `hello` of `registry.example/team/hello:1.0`, `x` of `file:///a/x.wasm`.
fn program_name(image: &str) -> String {
    let path = image.split('@').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    let name = last.split(':').next().unwrap_or_default();
    name.strip_suffix(".wasm").unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_gets_its_arguments_limits_and_ports() {
        let cases = [
            (json!({"name": "c", "image": "r:5000/team/hello:1.0@sha256:ab"}), vec!["hello"]),
            (json!({"name": "c", "image": "file:///a/x.wasm", "args": ["-v", "$(WHO)"]}), vec!["x", "-v", "me"]),
            (
                json!({"name": "c", "image": "i", "command": ["run", "$$(WHO)"], "args": ["$(NO)"]}),
                vec!["run", "$(WHO)", "$(NO)"],
            ),
        ];
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "web"}})).unwrap();
        for (container, expected) in cases {
            let container: Container = serde_json::from_value(container).unwrap();
            let spec = container_spec(&pod, &container, 0, vec![("WHO".into(), "me".into())], Default::default());
            assert_eq!(spec.args, expected);
        }
        let container: Container = serde_json::from_value(json!({
            "name": "c", "image": "i",
            "resources": {"limits": {"memory": "64Mi", "cpu": "250m"}, "requests": {"cpu": "0.1"}},
            "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}],
        }))
        .unwrap();
        let spec = container_spec(&pod, &container, 3, Vec::new(), Default::default());
        assert_eq!((spec.memory_limit, spec.cpu_limit_m, spec.cpu_request_m), (Some(64 << 20), Some(250), Some(100)));
        assert_eq!((spec.http_ports, spec.hostname, spec.attempt), (vec![80], "web".to_owned(), 3));
        assert_eq!(spec.http, HttpServing { reuse: 1, concurrency: 1 });
        let annotated = |reuse: &str, concurrency: &str| {
            let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            let map =
                BTreeMap::from([of(http_serving::HTTP_REUSE, reuse), of(http_serving::HTTP_CONCURRENCY, concurrency)]);
            serving(Some(&map))
        };
        assert_eq!(annotated("128", "16"), HttpServing { reuse: 128, concurrency: 16 });
        assert_eq!(annotated("0", "many"), HttpServing::default());
    }
}
