//! The line of a pod in `kubectl get pods`.

use dhow_types::Time;

use crate::table::{age, since};
use crate::{Tree, meta};

const NONE: &str = "<none>";

/// What is summed up over the containers.
struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Time>,
}

pub(super) fn cells(tree: &Tree, now: Time) -> Vec<Tree> {
    let summary = summarize(tree);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, since(Some(last), now)),
        _ => summary.restarts.to_string(),
    };
    let ip = meta::list(tree, "status.podIPs").first().map_or("", |entry| meta::text(entry, "ip"));
    let ip = if ip.is_empty() { meta::text(tree, "status.podIP") } else { ip };
    vec![
        meta::name(tree).into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(tree, now),
        or_none(ip).into(),
        or_none(meta::text(tree, "spec.nodeName")).into(),
        or_none(meta::text(tree, "status.nominatedNodeName")).into(),
        gates(tree).into(),
    ]
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

fn gates(tree: &Tree) -> String {
    let gates = meta::list(tree, "spec.readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let passed = gates.iter().filter(|gate| condition_is_true(tree, meta::text(gate, "conditionType"))).count();
    format!("{passed}/{}", gates.len())
}

fn condition<'a>(tree: &'a Tree, name: &str) -> Option<&'a Tree> {
    meta::list(tree, "status.conditions").iter().find(|condition| meta::text(condition, "type") == name)
}

fn condition_is_true(tree: &Tree, name: &str) -> bool {
    condition(tree, name).is_some_and(|condition| meta::text(condition, "status") == "True")
}

fn summarize(tree: &Tree) -> Summary {
    let phase = meta::text(tree, "status.phase");
    let own_reason = meta::text(tree, "status.reason");
    let mut reason = if own_reason.is_empty() { phase } else { own_reason }.to_owned();
    if condition(tree, "PodScheduled").is_some_and(|it| meta::text(it, "reason") == "SchedulingGated") {
        reason = "SchedulingGated".to_owned();
    }
    let mut summary = Summary {
        reason,
        ready: 0,
        total: meta::list(tree, "spec.containers").len() + sidecars(tree).count(),
        restarts: 0,
        last_restart: None,
    };
    let mut sidecar_sum = (0, None);
    let initializing = init_containers(tree, &mut summary, &mut sidecar_sum);
    if !initializing || condition_is_true(tree, "Initialized") {
        (summary.restarts, summary.last_restart) = sidecar_sum;
        containers(tree, &mut summary);
    }
    if meta::is_deleting(tree) {
        if own_reason == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if phase != "Succeeded" && phase != "Failed" {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

fn sidecars(tree: &Tree) -> impl Iterator<Item = &Tree> {
    meta::list(tree, "spec.initContainers")
        .iter()
        .filter(|container| meta::text(container, "restartPolicy") == "Always")
}

/// Looks at the init containers up to the first that is not done; whether there is one.
fn init_containers(tree: &Tree, summary: &mut Summary, sidecar_sum: &mut (i64, Option<Time>)) -> bool {
    let total = meta::list(tree, "spec.initContainers").len();
    for (i, status) in meta::list(tree, "status.initContainerStatuses").iter().enumerate() {
        let restarts = meta::int(status, "restartCount").unwrap_or(0);
        let ended = meta::time(status, "lastState.terminated.finishedAt");
        summary.restarts += restarts;
        summary.last_restart = summary.last_restart.max(ended);
        let name = meta::text(status, "name");
        let sidecar = sidecars(tree).any(|container| meta::text(container, "name") == name);
        if sidecar {
            *sidecar_sum = (sidecar_sum.0 + restarts, sidecar_sum.1.max(ended));
        }
        let terminated = meta::at(status, "state.terminated");
        if terminated.is_some_and(|state| meta::int(state, "exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if sidecar && meta::truth(status, "started") {
            summary.ready += usize::from(meta::truth(status, "ready"));
            continue;
        }
        let waiting = meta::text(status, "state.waiting.reason");
        summary.reason = match terminated {
            Some(state) => format!("Init:{}", end_reason(state)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{total}"),
        };
        return true;
    }
    false
}

fn containers(tree: &Tree, summary: &mut Summary) {
    let mut has_running = false;
    for status in meta::list(tree, "status.containerStatuses").iter().rev() {
        summary.restarts += meta::int(status, "restartCount").unwrap_or(0);
        summary.last_restart = summary.last_restart.max(meta::time(status, "lastState.terminated.finishedAt"));
        let waiting = meta::text(status, "state.waiting.reason");
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if let Some(state) = meta::at(status, "state.terminated") {
            summary.reason = end_reason(state);
        } else if meta::truth(status, "ready") && meta::at(status, "state.running").is_some() {
            has_running = true;
            summary.ready += 1;
        }
    }
    // One container that is done does not make the pod done.
    if summary.reason == "Completed" && has_running {
        summary.reason = if condition_is_true(tree, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

fn end_reason(state: &Tree) -> String {
    match (meta::text(state, "reason"), meta::int(state, "signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", meta::int(state, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Time {
        Time::parse("2026-01-02T15:04:05Z").unwrap()
    }

    /// The cells READY, STATUS and RESTARTS.
    fn shown(mut tree: Tree) -> (String, String, String) {
        meta::set_default(&mut tree, "spec.containers", json!([{"name": "a"}, {"name": "b"}]));
        let cells = cells(&tree, now());
        let text = |i: usize| cells[i].as_str().unwrap().to_owned();
        (text(1), text(2), text(3))
    }

    #[test]
    fn statuses_read_as_kubectl_shows_them() {
        let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
        let ended = |reason: &str, code: i64| json!({"state": {"terminated": {"reason": reason, "exitCode": code}}});
        let backoff = json!({"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-02T15:03:55Z"}}});
        let status =
            |phase: &str, containers: Vec<&Tree>| json!({"status": {"phase": phase, "containerStatuses": containers}});
        let deleting = |phase: &str| json!({"metadata": {"deletionTimestamp": "2026-01-02T15:04:00Z"}, "status": {"phase": phase}});
        let init = |status: Tree| {
            json!({"spec": {"containers": [{}], "initContainers": [{"name": "i"}, {"name": "j"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [status]}})
        };
        let done = ended("Completed", 0);
        let cases = [
            (json!({"status": {"phase": "Pending"}}), ("0/2", "Pending", "0")),
            (status("Running", vec![&running, &running]), ("2/2", "Running", "0")),
            (status("Running", vec![&running, &backoff]), ("1/2", "CrashLoopBackOff", "3 (10s ago)")),
            (status("Running", vec![&running, &done]), ("1/2", "NotReady", "0")),
            (status("Succeeded", vec![&done, &done]), ("0/2", "Completed", "0")),
            (status("Failed", vec![&ended("OOMKilled", 137)]), ("0/2", "OOMKilled", "0")),
            (status("Failed", vec![&ended("", 3)]), ("0/2", "ExitCode:3", "0")),
            (json!({"status": {"phase": "Failed", "reason": "Evicted"}}), ("0/2", "Evicted", "0")),
            (deleting("Running"), ("0/2", "Terminating", "0")),
            (deleting("Succeeded"), ("0/2", "Succeeded", "0")),
            (init(json!({"state": {"running": {}}})), ("0/1", "Init:0/2", "0")),
            (init(json!({"state": {"waiting": {"reason": "PodInitializing"}}})), ("0/1", "Init:0/2", "0")),
            (
                init(json!({"restartCount": 1, "state": {"waiting": {"reason": "ImagePullBackOff"}}})),
                ("0/1", "Init:ImagePullBackOff", "1"),
            ),
            (init(ended("Error", 1)), ("0/1", "Init:Error", "0")),
            (init(ended("", 4)), ("0/1", "Init:ExitCode:4", "0")),
        ];
        for (tree, (ready, reason, restarts)) in cases {
            assert_eq!(shown(tree.clone()), (ready.to_owned(), reason.to_owned(), restarts.to_owned()), "{tree}");
        }
    }

    #[test]
    fn the_wide_cells_follow() {
        let tree = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-02T15:00:05Z"},
            "spec": {"nodeName": "n1", "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}]},
            "status": {"podIPs": [{"ip": "10.64.0.2"}], "conditions": [{"type": "x", "status": "True"}]}});
        let cells = cells(&tree, now());
        assert_eq!(Tree::from(cells), json!(["p", "0/0", "", "0", "4m", "10.64.0.2", "n1", "<none>", "1/2"]));
    }
}
