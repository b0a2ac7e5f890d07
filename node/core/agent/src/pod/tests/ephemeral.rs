//! Containers that are added while the pod runs, and a sidecar that others wait for.

use super::*;
use crate::ephemeral::joined;

/// The pod's object is (still) so, with its ephemeral containers where everybody finds them.
fn apply(sim: &mut Sim) {
    let pod: Pod = serde_json::from_value(sim.pod.clone()).unwrap();
    sim.feed(In::Pod(Arc::new(joined(pod))));
}

fn debug(sim: &mut Sim, name: &str) {
    let list = sim.pod["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default();
    let added = json!({"name": name, "image": "toolbox:1", "imagePullPolicy": "IfNotPresent", "stdin": true});
    sim.pod["spec"]["ephemeralContainers"] = json!([list, vec![added]].concat());
    apply(sim);
}

/// The states of the ephemeral containers in the last status.
fn states(sim: &Sim) -> Vec<String> {
    let list = sim.statuses.last().unwrap()["ephemeralContainerStatuses"].as_array().cloned().unwrap_or_default();
    let state = |status: &Value| {
        let (name, state) = status["state"].as_object().unwrap().iter().next().unwrap();
        format!("{} {name} {} {}", text(&status["name"]), state["exitCode"], status["ready"])
    };
    list.iter().map(state).collect()
}

#[test]
fn an_ephemeral_container_is_started_once_and_changes_nothing_for_the_pod() {
    let mut sim = Sim::new(pod(json!({})));
    apply(&mut sim);
    sim.pass(2_000);
    sim.wishes();
    debug(&mut sim, "d1");
    sim.pass(2_000);
    assert_eq!(sim.wishes(), ["start d1 0"]);
    assert_eq!(states(&sim), ["d1 running null false"]);
    assert_eq!((sim.line().as_str(), sim.condition("Ready").as_str()), ("Running true running - 0", "True -"));
    sim.exit("d1", 0, 3);
    debug(&mut sim, "d2");
    sim.pass(60_000);
    assert_eq!(sim.wishes(), ["start d2 0"], "and not the first one again");
    assert_eq!(states(&sim), ["d1 terminated 3 false", "d2 running null false"]);
    sim.delete(30);
    let mut wishes = sim.wishes();
    wishes.sort();
    assert_eq!(wishes, ["stop c 0 30000", "stop d2 0 30000"]);
    sim.exit("c", 0, 143);
    sim.exit("d2", 0, 143);
    assert_eq!(sim.wishes(), ["tear down Nothing", "delete"]);
}

#[test]
fn a_pod_that_is_stuck_can_be_looked_into_and_one_that_is_over_ends_with_its_guests() {
    let init = json!([{"name": "i", "image": "hello:1.0"}]);
    let mut sim = Sim::new(pod(json!({"initContainers": init, "restartPolicy": "Never"})));
    apply(&mut sim);
    debug(&mut sim, "d");
    sim.pass(2_000);
    assert_eq!(sim.wishes(), ["start i 0", "start d 0"]);
    sim.exit("i", 0, 0);
    sim.exit("c", 0, 0);
    assert_eq!(sim.wishes(), ["start c 0", "stop d 0 30000"]);
    sim.exit("d", 0, 137);
    sim.pass(2_000);
    assert_eq!(text(&sim.statuses.last().unwrap()["phase"]), "Succeeded");
}

#[test]
fn after_a_restart_of_the_agent_no_ephemeral_container_runs_again() {
    let mut sim = Sim::new(pod(json!({})));
    apply(&mut sim);
    debug(&mut sim, "d");
    sim.pass(2_000);
    let mut after = Sim::new(sim.pod.clone());
    after.pod["status"] = sim.statuses.last().unwrap().clone();
    apply(&mut after);
    after.pass(2_000);
    assert_eq!(after.wishes(), ["start c 1"]);
    assert_eq!(states(&after), ["d terminated 137 false"]);
}

#[test]
fn the_containers_after_a_sidecar_wait_for_its_startup_probe() {
    let probe = json!({"exec": {"command": ["x"]}, "periodSeconds": 1, "failureThreshold": 30});
    let sidecar = json!({"name": "s", "image": "i", "restartPolicy": "Always", "startupProbe": probe});
    let mut sim = Sim::new(pod(json!({"initContainers": [sidecar, {"name": "i", "image": "i"}]})));
    sim.answer_probes = Some(ProbeOutcome::Failure("not yet".into()));
    sim.apply();
    sim.pass(5_000);
    assert_eq!(sim.wishes(), ["start s 0"]);
    sim.answer_probes = Some(ProbeOutcome::Success);
    sim.pass(1_000);
    assert_eq!(sim.wishes(), ["start i 0"]);
    sim.exit("i", 0, 0);
    assert_eq!(sim.wishes(), ["start c 0"]);
}
