//! Runs the lifecycle hooks of containers.

use std::sync::Arc;
use std::time::Duration;

use dhow_agent::{ContainerRef, HookKind, In, spec};
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};

use crate::runner::Shared;
use crate::{exec, probes};

/// One run of a hook.
pub(crate) struct Hook {
    pub(crate) at: ContainerRef,
    pub(crate) attempt: u32,
    pub(crate) kind: HookKind,
    pub(crate) handler: Box<LifecycleHandler>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) pod: Arc<Pod>,
}

/// Runs a hook to its end, or to the end of its container.
pub(crate) async fn run(shared: &Shared, hook: Hook) -> In {
    let running = shared.sandboxes.running(&hook.at.uid, &hook.at.container);
    let result = match running.filter(|running| running.attempt == hook.attempt) {
        None => Err("the container is gone".to_owned()),
        Some(running) => tokio::select! {
            result = act(shared, &hook) => result,
            _exit = running.container.wait() => Err("the container ended before its hook did".to_owned()),
        },
    };
    In::Hooked { at: hook.at, attempt: hook.attempt, hook: hook.kind, result }
}

async fn act(shared: &Shared, hook: &Hook) -> Result<(), String> {
    let Hook { at, handler, pod, .. } = hook;
    let timeout = hook.timeout.unwrap_or(Duration::MAX);
    if let Some(exec) = &handler.exec {
        return exec::run(shared, at, pod, exec.command.clone().unwrap_or_default(), timeout).await;
    }
    if let Some(http) = &handler.http_get {
        let gone = || "the container is gone".to_owned();
        let container = spec::container(pod, &at.container).ok_or_else(gone)?;
        let ip = shared.sandboxes.with(&at.uid, |sandbox| sandbox.ip).ok_or_else(gone)?;
        // As a kubelet has it: the request is what counts, not what is answered to it.
        return probes::get(&shared.switch, ip, container, http, timeout).await.map(drop);
    }
    if let Some(sleep) = &handler.sleep {
        let wanted = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(wanted.min(timeout)).await;
        return Ok(());
    }
    // Kubernetes lets such a hook in and then fails it, too.
    Err("a hook needs `exec`, `httpGet` or `sleep`; `tcpSocket` is not supported in hooks".to_owned())
}
