//! Hooks, and the order in which containers end.

use super::*;

fn exec(words: &[&str]) -> Value {
    json!({"exec": {"command": words}})
}

fn hooked(lifecycle: Value) -> Value {
    pod(json!({"containers": [{"name": "c", "image": "hello:1.0", "lifecycle": lifecycle}]}))
}

fn end_hook(sim: &mut Sim, container: &str, hook: HookKind, result: Result<(), &str>) {
    let at = sim.at(container);
    sim.feed(In::Hooked { at, attempt: 0, hook, result: result.map_err(str::to_owned) });
}

#[test]
fn a_container_runs_when_its_post_start_hook_is_done_and_the_next_one_starts_after_it() {
    let first = json!({"name": "a", "image": "i", "lifecycle": {"postStart": exec(&["warm"])}});
    let mut sim = Sim::new(pod(json!({"containers": [first, {"name": "b", "image": "i"}]})));
    sim.apply();
    sim.pass(60_000);
    assert_eq!(sim.wishes(), ["start a 0", "PostStart a 0 -"]);
    assert_eq!(sim.line(), "Pending false waiting ContainerCreating 0");
    end_hook(&mut sim, "a", HookKind::PostStart, Ok(()));
    sim.pass(1_000);
    assert_eq!(sim.wishes(), ["start b 0"]);
    assert_eq!(sim.line(), "Running true running - 0");
    assert_eq!(sim.condition("Ready"), "True -");
}

#[test]
fn a_failed_post_start_hook_ends_the_container_and_the_restart_policy_decides() {
    for (policy, then) in [("Always", "start c 1"), ("Never", "tear down Files")] {
        let mut sim = Sim::new(hooked(json!({"postStart": exec(&["warm"]), "preStop": exec(&["cool"])})));
        sim.pod["spec"]["restartPolicy"] = json!(policy);
        sim.apply();
        end_hook(&mut sim, "c", HookKind::PostStart, Err("cold"));
        assert!(sim.events.contains(&"FailedPostStartHook: PostStartHook failed: cold".to_owned()));
        assert!(sim.events.contains(&"Killing: FailedPostStartHook".to_owned()));
        sim.pass(2_000);
        assert_ne!(sim.condition("Ready"), "True -");
        end_hook(&mut sim, "c", HookKind::PreStop, Ok(()));
        sim.exit("c", 0, 143);
        let wishes = sim.wishes();
        assert_eq!(wishes[..4], ["start c 0", "PostStart c 0 -", "PreStop c 0 30000", "stop c 0 28000"]);
        assert_eq!(wishes[4], then);
    }
}

#[test]
fn what_ends_during_its_post_start_hook_is_not_run_by_it() {
    let mut sim = Sim::new(hooked(json!({"postStart": exec(&["warm"])})));
    sim.apply();
    sim.exit("c", 0, 3);
    end_hook(&mut sim, "c", HookKind::PostStart, Ok(()));
    sim.pass(2_000);
    assert_eq!(sim.line(), "Running false waiting ContainerCreating 1");
    assert_eq!(sim.wishes(), ["start c 0", "PostStart c 0 -", "start c 1", "PostStart c 1 -"]);
}

#[test]
fn a_pre_stop_hook_has_its_share_of_the_grace_period() {
    let stop = |grace_s: i64, after_ms: u64, result: Option<Result<(), &str>>| {
        let mut sim = Sim::new(hooked(json!({"preStop": exec(&["cool"])})));
        sim.apply();
        sim.wishes();
        sim.delete(grace_s);
        sim.pass(after_ms);
        if let Some(result) = result {
            end_hook(&mut sim, "c", HookKind::PreStop, result);
        }
        let failed = sim.events.iter().find(|event| event.starts_with("FailedPreStopHook")).cloned();
        (sim.wishes(), failed)
    };
    let failed = Some("FailedPreStopHook: PreStopHook failed: no".to_owned());
    for (grace_s, after_ms, result, wishes, event) in [
        (30, 5_000, Some(Ok(())), vec!["PreStop c 0 30000", "stop c 0 25000"], None),
        (30, 5_000, Some(Err("no")), vec!["PreStop c 0 30000", "stop c 0 25000"], failed),
        (30, 29_500, Some(Ok(())), vec!["PreStop c 0 30000", "stop c 0 2000"], None),
        (30, 29_999, None, vec!["PreStop c 0 30000"], None),
        (30, 30_000, None, vec!["PreStop c 0 30000", "stop c 0 2000"], None),
        (0, 0, None, vec!["stop c 0 0"], None),
    ] {
        let (seen, said) = stop(grace_s, after_ms, result);
        assert_eq!((seen, said), (wishes.into_iter().map(str::to_owned).collect(), event), "{grace_s} {after_ms}");
    }
}

#[test]
fn who_deletes_again_with_less_grace_cuts_the_hook_short() {
    let mut sim = Sim::new(hooked(json!({"preStop": exec(&["cool"])})));
    sim.apply();
    sim.delete(30);
    sim.delete(5);
    sim.pass(5_000);
    assert_eq!(sim.wishes(), ["start c 0", "PreStop c 0 30000", "stop c 0 2000"]);
    sim.delete(0);
    assert_eq!(sim.wishes(), ["stop c 0 0"]);
    end_hook(&mut sim, "c", HookKind::PreStop, Ok(()));
    sim.exit("c", 0, 143);
    assert_eq!(sim.wishes(), ["tear down Nothing", "delete"]);
}

#[test]
fn a_failed_liveness_probe_runs_the_pre_stop_hook() {
    let mut sim = Sim::new(hooked(json!({"preStop": exec(&["cool"])})));
    sim.pod["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["x"]}, "failureThreshold": 1});
    sim.answer_probes = Some(ProbeOutcome::Failure("dead".into()));
    sim.apply();
    sim.pass(1_000);
    end_hook(&mut sim, "c", HookKind::PreStop, Ok(()));
    sim.exit("c", 0, 143);
    assert_eq!(sim.wishes()[..4], ["start c 0", "PreStop c 0 30000", "stop c 0 29000", "start c 1"]);
}

#[test]
fn sidecars_end_after_the_containers_that_they_serve_and_in_reverse_order() {
    let sidecar = |name: &str| json!({"name": name, "image": "i", "restartPolicy": "Always"});
    let spec = json!({"initContainers": [sidecar("s1"), sidecar("s2")], "containers": [{"name": "c", "image": "i"}]});
    let mut sim = Sim::new(pod(spec.clone()));
    sim.apply();
    assert_eq!(sim.wishes(), ["start s1 0", "start s2 0", "start c 0"]);
    sim.delete(30);
    assert_eq!(sim.wishes(), ["stop c 0 30000"]);
    sim.pass(4_000);
    sim.exit("c", 0, 143);
    assert_eq!(sim.wishes(), ["stop s2 0 26000"]);
    sim.pass(25_000);
    assert_eq!(sim.wishes(), [""; 0]);
    sim.pass(1_000);
    assert_eq!(sim.wishes(), ["stop s1 0 2000"], "its turn has not come, its time has");
    sim.exit("s2", 0, 137);
    sim.exit("s1", 0, 143);
    assert_eq!(sim.wishes(), ["tear down Nothing", "delete"]);
    // Who wants it gone at once does not want an order.
    let mut sim = Sim::new(pod(spec));
    sim.apply();
    sim.wishes();
    sim.delete(0);
    assert_eq!(sim.wishes(), ["stop s1 0 0", "stop s2 0 0", "stop c 0 0"]);
}
