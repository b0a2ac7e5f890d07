//! Pods on a simulated node: each line of a script is something that happens, each line of the result a wish.

use super::*;

mod ephemeral;
mod ignored;
mod lifecycle;

use crate::Agent;
use crate::message::{PullFault, PulledImage};
use dhow_types::Machine;
use serde_json::{Value, json};

/// A node whose images are there and whose containers start at once, unless a test says otherwise.
struct Sim {
    agent: Agent,
    now: Time,
    pod: Value,
    /// What the agent wished and the simulation did not fulfil by itself, as text.
    seen: Vec<String>,
    statuses: Vec<Value>,
    events: Vec<String>,
    pull: Result<(), PullFault>,
    start: Result<(), StartFault>,
    answer_probes: Option<ProbeOutcome>,
    /// How hooks end; `None`: not by themselves.
    hooks: Option<Result<(), String>>,
    api: Written,
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 1},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "hello:1.0", "imagePullPolicy": "IfNotPresent"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

impl Sim {
    fn new(pod: Value) -> Self {
        let host_ip = "192.0.2.1".parse().unwrap();
        Self {
            agent: Agent::new(Config { host_ip }),
            now: Time::from_secs(1_000_000),
            pod,
            seen: Vec::new(),
            statuses: Vec::new(),
            events: Vec::new(),
            pull: Ok(()),
            start: Ok(()),
            answer_probes: Some(ProbeOutcome::Success),
            hooks: None,
            api: Written::Ok,
        }
    }

    /// The pod's object is (still) so.
    fn apply(&mut self) {
        let pod: Pod = serde_json::from_value(self.pod.clone()).unwrap();
        self.feed(In::Pod(Arc::new(pod)));
    }

    fn change(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.pod);
        self.apply();
    }

    fn delete(&mut self, grace_s: i64) {
        self.change(|pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-02T15:04:05Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace_s);
        });
    }

    fn feed(&mut self, input: In) {
        let mut out = Vec::new();
        self.agent.handle(self.now, input, &mut out);
        self.fulfil(out);
    }

    /// Lets time pass, waking the agent whenever it wants.
    fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        for _ in 0..10_000 {
            match self.agent.next_wake().filter(|wake| *wake <= end) {
                None => {
                    self.now = end;
                    return;
                }
                Some(wake) => {
                    self.now = self.now.max(wake);
                    let mut out = Vec::new();
                    self.agent.wake(self.now, &mut out);
                    self.fulfil(out);
                }
            }
        }
        panic!("the agent does not come to rest");
    }

    fn at(&self, container: &str) -> ContainerRef {
        ContainerRef { uid: Uid::new("u1"), container: container.into() }
    }

    fn exit(&mut self, container: &str, attempt: u32, code: i32) {
        let reason = match code {
            0 => ExitReason::Completed,
            137 => ExitReason::OomKilled,
            _ => ExitReason::Error,
        };
        let exit = Exit { code, reason, message: String::new(), started_at: self.now, finished_at: self.now };
        self.feed(In::Exited { at: self.at(container), attempt, exit });
    }

    fn fulfil(&mut self, out: Vec<Out>) {
        for wish in out {
            if let Some(answer) = self.one(wish) {
                self.feed(answer);
            }
        }
    }

    fn one(&mut self, wish: Out) -> Option<In> {
        let uid = Uid::new("u1");
        match wish {
            Out::SetUp(_) => Some(In::SandboxReady { uid, ip: "10.64.0.2".parse().unwrap() }),
            Out::Pull { at, image, policy } => {
                self.seen.push(format!("pull {} {image} {policy:?}", at.container));
                if matches!(self.pull, Err(PullFault::Failed(_) | PullFault::Unsigned(_))) {
                    self.feed(In::PullBegan { at: at.clone() });
                }
                let image = PulledImage { image_id: "id".into(), size: 7, already_present: true, took_ms: 1 };
                Some(In::Pulled { at, result: self.pull.clone().map(|()| image) })
            }
            Out::Start { at, attempt, .. } => {
                self.seen.push(format!("start {} {attempt}", at.container));
                Some(match self.start.clone() {
                    Ok(()) => In::Started { at, attempt },
                    Err(fault) => In::StartFailed { at, attempt, fault },
                })
            }
            Out::Stop { at, attempt, grace_ms } => {
                self.seen.push(format!("stop {} {attempt} {grace_ms}", at.container));
                None
            }
            Out::Probe { at, attempt, kind, .. } => {
                let outcome = self.answer_probes.clone()?;
                Some(In::Probed { at, attempt, kind, outcome })
            }
            Out::Hook { at, attempt, hook, timeout_ms, .. } => {
                let timeout = timeout_ms.map_or("-".to_owned(), |ms| ms.to_string());
                self.seen.push(format!("{hook:?} {} {attempt} {timeout}", at.container));
                let result = self.hooks.clone()?;
                Some(In::Hooked { at, attempt, hook, result })
            }
            Out::TearDown { keep, .. } => {
                self.seen.push(format!("tear down {keep:?}"));
                Some(In::SandboxRemoved(uid))
            }
            Out::WriteStatus { status, .. } => {
                if self.api == Written::Ok {
                    self.store(&status);
                }
                self.statuses.push(status);
                Some(In::StatusWritten { uid, outcome: self.api })
            }
            Out::DeletePod(_) => {
                self.seen.push("delete".into());
                Some(In::Deleted { uid, outcome: self.api })
            }
            Out::Event(event) => {
                self.events.push(format!("{}: {}", event.reason, event.message));
                None
            }
        }
    }

    /// What a strategic merge patch leaves: conditions of others stay, what is null goes.
    fn store(&mut self, written: &Value) {
        let mut status = written.clone();
        let own = status["conditions"].as_array_mut().unwrap();
        for condition in own.iter_mut() {
            condition.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        }
        for other in self.pod["status"]["conditions"].as_array().into_iter().flatten() {
            if own.iter().all(|c| c["type"] != other["type"]) {
                own.push(other.clone());
            }
        }
        self.pod["status"] = status;
    }

    /// Someone else writes a condition, and the agent sees it.
    fn overrule(&mut self, name: &str, status: &str) {
        self.change(|pod| {
            let list = pod["status"]["conditions"].as_array_mut().unwrap();
            list.iter_mut().find(|c| c["type"] == name).unwrap()["status"] = json!(status);
        });
    }

    fn wishes(&mut self) -> Vec<String> {
        let mut seen = std::mem::take(&mut self.seen);
        seen.retain(|wish| !wish.starts_with("pull"));
        seen
    }

    fn status(&self) -> &Value {
        self.statuses.last().expect("a status was written")
    }

    /// `phase ready reason restarts` of the first container.
    fn line(&self) -> String {
        let status = self.status();
        let c = &status["containerStatuses"][0];
        let state = c["state"].as_object().unwrap().iter().next().unwrap();
        let reason = state.1["reason"].as_str().unwrap_or("-");
        format!("{} {} {} {} {}", text(&status["phase"]), c["ready"], state.0, reason, c["restartCount"])
    }

    fn condition(&self, name: &str) -> String {
        let list = self.status()["conditions"].as_array().unwrap();
        let c = list.iter().find(|c| c["type"] == name).unwrap();
        format!("{} {}", text(&c["status"]), c["reason"].as_str().unwrap_or("-"))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[test]
fn a_pod_gets_ready_with_one_write() {
    let mut sim = Sim::new(pod(json!({})));
    sim.apply();
    sim.pass(60_000);
    assert_eq!(sim.seen, ["pull c hello:1.0 IfNotPresent", "start c 0"]);
    assert_eq!(sim.statuses.len(), 1);
    assert_eq!(sim.line(), "Running true running - 0");
    for condition in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(sim.condition(condition), "True -");
    }
    let status = sim.status();
    assert_eq!((text(&status["podIP"]), text(&status["hostIP"])), ("10.64.0.2", "192.0.2.1"));
    assert_eq!(text(&status["containerStatuses"][0]["containerID"]), "dhow://u1/c/0");
    assert_eq!(
        sim.events,
        [
            "Pulled: Container image \"hello:1.0\" already present on machine",
            "Created: Created container: c",
            "Started: Started container c"
        ]
    );
    sim.apply();
    sim.pass(600_000);
    assert_eq!(sim.statuses.len(), 1, "its own write coming back changes nothing");
}

#[test]
fn a_crash_loop_backs_off_and_counts() {
    let mut sim = Sim::new(pod(json!({})));
    sim.apply();
    let mut lines = Vec::new();
    for attempt in 0..4 {
        sim.pass(1000);
        sim.exit("c", attempt, 3);
        lines.push(sim.line());
        sim.pass(if attempt == 0 { 0 } else { 10_000 << (attempt - 1) });
    }
    assert_eq!(
        lines,
        [
            "Running true running - 1",
            "Running false waiting CrashLoopBackOff 1",
            "Running false waiting CrashLoopBackOff 2",
            "Running false waiting CrashLoopBackOff 3",
        ]
    );
    assert_eq!(sim.wishes(), ["start c 0", "start c 1", "start c 2", "start c 3", "start c 4"]);
    let last = &sim.status()["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(
        (&last["exitCode"], text(&last["reason"]), text(&last["containerID"])),
        (&json!(3), "Error", "dhow://u1/c/3")
    );
    assert!(sim.events.contains(&"BackOff: Back-off restarting failed container c in pod web_default(u1)".to_owned()));
    // Ten minutes of running start the back-off over.
    sim.pass(601_000);
    sim.exit("c", 4, 3);
    assert_eq!(sim.wishes(), ["start c 5"]);
}

#[test]
fn the_restart_policy_decides_about_the_end() {
    for (policy, code, phase, starts) in [
        ("Never", 0, "Succeeded", 1),
        ("Never", 3, "Failed", 1),
        ("OnFailure", 0, "Succeeded", 1),
        ("OnFailure", 3, "Running", 2),
        ("Always", 0, "Running", 2),
    ] {
        let mut sim = Sim::new(pod(json!({"restartPolicy": policy})));
        sim.apply();
        sim.exit("c", 0, code);
        sim.pass(60_000);
        assert_eq!(text(&sim.status()["phase"]), phase, "{policy} {code}");
        let wishes = sim.wishes();
        assert_eq!(wishes.iter().filter(|w| w.starts_with("start")).count(), starts, "{policy} {code}");
        assert_eq!(wishes.contains(&"tear down Files".to_owned()), starts == 1);
        if starts == 1 {
            let reason = if code == 0 { "PodCompleted" } else { "PodFailed" };
            assert_eq!(sim.condition("Ready"), format!("False {reason}"));
        }
    }
}

#[test]
fn out_of_memory_is_named() {
    let mut sim = Sim::new(pod(json!({"restartPolicy": "Never"})));
    sim.apply();
    sim.exit("c", 0, 137);
    assert_eq!(sim.line(), "Failed false terminated OOMKilled 0");
    assert_eq!(sim.status()["containerStatuses"][0]["state"]["terminated"]["exitCode"], 137);
}

#[test]
fn a_failing_pull_turns_into_a_back_off_and_recovers() {
    let mut sim = Sim::new(pod(json!({})));
    sim.pull = Err(PullFault::Failed("manifest unknown".into()));
    sim.apply();
    assert_eq!(sim.line(), "Pending false waiting ErrImagePull 0");
    assert_eq!(sim.condition("Ready"), "False ContainersNotReady");
    sim.pass(3_000);
    assert_eq!(sim.line(), "Pending false waiting ImagePullBackOff 0");
    let message = text(&sim.status()["containerStatuses"][0]["state"]["waiting"]["message"]);
    assert_eq!(message, "Back-off pulling image \"hello:1.0\": ErrImagePull: manifest unknown");
    sim.pass(60_000);
    assert_eq!(sim.seen.len(), 3, "at 0, 10 and 30 seconds: {:?}", sim.seen);
    sim.pull = Ok(());
    sim.pass(300_000);
    assert_eq!(sim.line(), "Running true running - 0");
    for event in [
        "Pulling: Pulling image \"hello:1.0\"",
        "Failed: Failed to pull image \"hello:1.0\": manifest unknown",
        "Failed: Error: ErrImagePull",
        "BackOff: Back-off pulling image \"hello:1.0\"",
        "Failed: Error: ImagePullBackOff",
    ] {
        assert!(sim.events.contains(&event.to_owned()), "{event} in {:?}", sim.events);
    }
}

#[test]
fn an_image_without_the_wanted_signature_is_tried_again_as_well() {
    let mut sim = Sim::new(pod(json!({})));
    sim.pull = Err(PullFault::Unsigned("by nobody".into()));
    sim.apply();
    assert_eq!(sim.line(), "Pending false waiting SignatureValidationFailed 0");
    sim.pass(3_000);
    assert_eq!(sim.line(), "Pending false waiting ImagePullBackOff 0");
    assert!(sim.events.contains(&"Failed: Failed to pull image \"hello:1.0\": by nobody".to_owned()));
}

#[test]
fn what_cannot_start_says_why() {
    let cases = [
        (Err(PullFault::NotPresent), Ok(()), "ErrImageNeverPull"),
        (Err(PullFault::InvalidName("bad".into())), Ok(()), "InvalidImageName"),
        (Ok(()), Err(StartFault::Config("configmap \"x\" not found".into())), "CreateContainerConfigError"),
        (Ok(()), Err(StartFault::Create("not Wasm".into())), "CreateContainerError"),
        (Ok(()), Err(StartFault::Run("no memory".into())), "RunContainerError"),
    ];
    for (pull, start, reason) in cases {
        let mut sim = Sim::new(pod(json!({})));
        (sim.pull, sim.start) = (pull, start);
        sim.apply();
        sim.pass(5_000);
        assert_eq!(sim.line(), format!("Pending false waiting {reason} 0"));
        (sim.pull, sim.start) = (Ok(()), Ok(()));
        sim.pass(30_000);
        assert!(sim.line().starts_with("Running true running"), "{reason}: {}", sim.line());
        assert_eq!(sim.condition("Ready"), "True -");
    }
}

#[test]
fn init_containers_run_one_after_the_other() {
    let init = |name: &str| json!({"name": name, "image": "i:1"});
    let mut sim = Sim::new(pod(json!({"initContainers": [init("a"), init("b")], "restartPolicy": "OnFailure"})));
    sim.apply();
    sim.pass(2_000);
    assert_eq!(sim.wishes(), ["start a 0"]);
    assert_eq!(sim.condition("Initialized"), "False ContainersNotInitialized");
    assert_eq!(sim.line(), "Pending false waiting PodInitializing 0");
    sim.exit("a", 0, 1);
    assert_eq!(sim.wishes(), ["start a 1"]);
    sim.exit("a", 1, 0);
    assert_eq!(sim.wishes(), ["start b 0"]);
    sim.exit("b", 0, 0);
    assert_eq!(sim.wishes(), ["start c 0"]);
    sim.pass(2_000);
    assert_eq!(sim.condition("Initialized"), "True -");
    assert_eq!(sim.line(), "Running true running - 0");
    let inits = sim.status()["initContainerStatuses"].as_array().unwrap();
    assert!(inits.iter().all(|c| c["ready"] == true && c["state"]["terminated"]["reason"] == "Completed"));
}

#[test]
fn a_failed_init_container_of_a_never_pod_fails_it() {
    let mut sim = Sim::new(pod(json!({"initContainers": [{"name": "a", "image": "i:1"}], "restartPolicy": "Never"})));
    sim.apply();
    sim.exit("a", 0, 1);
    sim.pass(60_000);
    assert_eq!(text(&sim.status()["phase"]), "Failed");
    assert_eq!(sim.wishes(), ["start a 0", "tear down Files"]);
}

#[test]
fn a_sidecar_runs_beside_and_ends_with_the_pod() {
    let sidecar = json!([{"name": "s", "image": "i:1", "restartPolicy": "Always"}]);
    let mut sim = Sim::new(pod(json!({"initContainers": sidecar, "restartPolicy": "Never"})));
    sim.apply();
    assert_eq!(sim.wishes(), ["start s 0", "start c 0"]);
    sim.exit("s", 0, 1);
    assert_eq!(sim.wishes(), ["start s 1"]);
    sim.exit("c", 0, 0);
    assert_eq!(sim.wishes(), ["stop s 1 30000"]);
    sim.exit("s", 1, 143);
    assert_eq!(sim.wishes(), ["tear down Files"]);
    assert_eq!(text(&sim.status()["phase"]), "Succeeded");
}

#[test]
fn deletion_is_graceful_and_ends_with_the_object() {
    let mut sim = Sim::new(pod(json!({})));
    sim.apply();
    sim.wishes();
    sim.delete(30);
    sim.pass(5_000);
    assert_eq!(sim.wishes(), ["stop c 0 30000"]);
    sim.delete(1);
    assert_eq!(sim.wishes(), ["stop c 0 1000"], "less time than before");
    sim.exit("c", 0, 143);
    assert_eq!(sim.wishes(), ["tear down Nothing", "delete"]);
    assert_eq!(sim.line(), "Failed false terminated Error 0");
    assert!(sim.events.contains(&"Killing: Stopping container c".to_owned()));
    sim.pass(600_000);
    assert!(sim.wishes().is_empty(), "finalizers may keep the object");
    sim.feed(In::Gone(Uid::new("u1")));
    assert!(sim.agent.is_empty());
}

#[test]
fn a_deletion_that_the_api_misses_is_tried_again() {
    let mut sim = Sim::new(pod(json!({})));
    sim.apply();
    sim.wishes();
    sim.delete(0);
    sim.api = Written::Retry;
    sim.exit("c", 0, 137);
    sim.pass(20_000);
    assert_eq!(sim.wishes(), ["stop c 0 0"], "the last status is not written yet");
    sim.api = Written::Ok;
    sim.pass(20_000);
    assert_eq!(sim.wishes(), ["tear down Nothing", "delete"]);
}

#[test]
fn a_pod_whose_object_vanishes_is_stopped_without_a_word_to_the_api() {
    let mut sim = Sim::new(pod(json!({})));
    sim.apply();
    sim.wishes();
    let written = sim.statuses.len();
    sim.feed(In::Gone(Uid::new("u1")));
    assert_eq!(sim.wishes(), ["stop c 0 1000"]);
    sim.exit("c", 0, 143);
    assert_eq!(sim.wishes(), ["tear down Nothing"]);
    assert_eq!(sim.statuses.len(), written);
    assert!(sim.agent.is_empty() && sim.agent.next_wake().is_none());
    sim.exit("c", 0, 143);
    assert!(sim.wishes().is_empty(), "late news of a pod that is gone");
}

#[test]
fn a_pod_that_is_deleted_before_it_starts_leaves_nothing() {
    let mut sim = Sim::new(pod(json!({})));
    sim.pull = Err(PullFault::Failed("no".into()));
    sim.apply();
    sim.delete(30);
    sim.pass(60_000);
    assert_eq!(sim.wishes(), ["tear down Nothing", "delete"]);
}

#[test]
fn probes_decide_about_readiness_and_restarts() {
    let probe = |failures: u32| json!({"httpGet": {"port": 80}, "periodSeconds": 5, "failureThreshold": failures});
    let container = json!([{"name": "c", "image": "hello:1.0", "readinessProbe": probe(1), "livenessProbe": probe(2)}]);
    let mut sim = Sim::new(pod(json!({"containers": container})));
    sim.apply();
    sim.pass(1_000);
    assert_eq!(sim.statuses.len(), 1, "ready at the first question: one write");
    assert_eq!(sim.line(), "Running true running - 0");
    sim.answer_probes = Some(ProbeOutcome::Failure("HTTP probe failed with statuscode: 500".into()));
    sim.pass(5_000);
    assert_eq!(sim.line(), "Running false running - 0");
    assert!(sim.wishes().iter().all(|w| !w.starts_with("stop")));
    sim.pass(5_000);
    assert_eq!(sim.wishes(), ["stop c 0 30000"]);
    for event in [
        "Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 500",
        "Unhealthy: Liveness probe failed: HTTP probe failed with statuscode: 500",
        "Killing: Container c failed liveness probe, will be restarted",
    ] {
        assert!(sim.events.contains(&event.to_owned()), "{event} in {:?}", sim.events);
    }
    sim.answer_probes = Some(ProbeOutcome::Success);
    sim.exit("c", 0, 143);
    sim.pass(1_000);
    assert_eq!(sim.line(), "Running true running - 1");
}

#[test]
fn a_startup_probe_holds_the_others_back() {
    let container = json!([{"name": "c", "image": "hello:1.0",
        "startupProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1, "failureThreshold": 3},
        "livenessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1, "failureThreshold": 1}}]);
    let mut sim = Sim::new(pod(json!({"containers": container})));
    sim.answer_probes = Some(ProbeOutcome::Failure("refused".into()));
    sim.apply();
    sim.pass(2_000);
    assert_eq!(sim.wishes(), ["start c 0"], "the liveness probe does not ask yet");
    assert_eq!(sim.status()["containerStatuses"][0]["started"], false);
    sim.pass(5_000);
    assert_eq!(sim.wishes(), ["stop c 0 30000"]);
    assert!(sim.events.contains(&"Killing: Container c failed startup probe, will be restarted".to_owned()));
    sim.answer_probes = Some(ProbeOutcome::Success);
    sim.exit("c", 0, 143);
    sim.pass(1_000);
    assert_eq!(sim.status()["containerStatuses"][0]["started"], true);
}

#[test]
fn a_changed_image_restarts_the_container() {
    let mut sim = Sim::new(pod(json!({"restartPolicy": "Never"})));
    sim.apply();
    sim.wishes();
    sim.change(|pod| pod["spec"]["containers"][0]["image"] = json!("hello:2.0"));
    assert_eq!(sim.wishes(), ["stop c 0 30000"]);
    sim.exit("c", 0, 143);
    assert_eq!(sim.seen, ["pull c hello:2.0 IfNotPresent", "start c 1"]);
    assert_eq!(sim.status()["containerStatuses"][0]["image"], "hello:2.0");
}

#[test]
fn the_deadline_of_a_pod_fails_it() {
    let mut sim = Sim::new(pod(json!({"activeDeadlineSeconds": 10})));
    sim.apply();
    sim.wishes();
    sim.pass(9_999);
    assert!(sim.wishes().is_empty());
    sim.pass(1);
    assert_eq!(sim.wishes(), ["stop c 0 30000"]);
    assert_eq!((text(&sim.status()["phase"]), text(&sim.status()["reason"])), ("Failed", "DeadlineExceeded"));
    sim.exit("c", 0, 143);
    sim.pass(60_000);
    assert_eq!(sim.wishes(), ["tear down Files"]);
}

#[test]
fn an_evicted_pod_fails_with_the_reason_and_ends_quickly() {
    for disrupted in [false, true] {
        let mut sim = Sim::new(pod(json!({})));
        sim.apply();
        sim.pass(2_000);
        sim.wishes();
        let message = "The node was low on resource: memory. ".to_owned();
        sim.feed(In::Evict { uid: Uid::new("u1"), message: message.clone(), grace_ms: 1_000, disrupted });
        assert_eq!(sim.wishes(), ["stop c 0 1000"]);
        // Once is enough.
        sim.feed(In::Evict { uid: Uid::new("u1"), message: "again".to_owned(), grace_ms: 0, disrupted });
        assert!(sim.wishes().is_empty());
        let status = sim.status().clone();
        let told = (text(&status["phase"]), text(&status["reason"]), text(&status["message"]));
        assert_eq!(told, ("Failed", "Evicted", message.as_str()));
        let conditions = status["conditions"].as_array().unwrap();
        let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget");
        assert_eq!(target.map(|c| text(&c["reason"])), disrupted.then_some("TerminationByKubelet"));
        sim.exit("c", 0, 143);
        sim.pass(60_000);
        assert_eq!(sim.wishes(), ["tear down Files"]);
    }
}

#[test]
fn an_agent_that_starts_again_takes_its_pods_up() {
    let mut first = Sim::new(pod(json!({})));
    first.apply();
    first.exit("c", 0, 3);
    first.pass(1_000);
    let stored = first.status().clone();
    for (policy, expected, phase) in [("Always", vec!["start c 2"], "Running"), ("Never", vec![], "Failed")] {
        let mut pod = pod(json!({"restartPolicy": policy}));
        pod["status"] = stored.clone();
        let mut sim = Sim::new(pod);
        sim.now = first.now + 5_000;
        sim.apply();
        sim.pass(2_000);
        assert_eq!(sim.wishes(), expected as Vec<&str>, "{policy}");
        assert_eq!(text(&sim.status()["phase"]), phase);
        let container = &sim.status()["containerStatuses"][0];
        if policy == "Always" {
            assert_eq!(container["restartCount"], 2);
            assert_eq!(text(&container["lastState"]["terminated"]["reason"]), "ContainerStatusUnknown");
            assert_eq!(sim.status()["startTime"], stored["startTime"]);
        }
    }
}

#[test]
fn a_pod_that_had_ended_is_left_alone_until_it_is_deleted() {
    let mut pod = pod(json!({"restartPolicy": "Never"}));
    pod["status"] = json!({"phase": "Succeeded"});
    let mut sim = Sim::new(pod);
    sim.apply();
    sim.pass(600_000);
    assert!(sim.seen.is_empty() && sim.statuses.is_empty());
    sim.delete(0);
    assert_eq!(sim.wishes(), ["tear down Nothing", "delete"]);
}

#[test]
fn an_api_server_that_is_away_is_written_to_when_it_is_back() {
    let mut sim = Sim::new(pod(json!({})));
    sim.api = Written::Retry;
    sim.apply();
    sim.pass(120_000);
    let tries = sim.statuses.len();
    assert!((10..30).contains(&tries), "{tries} tries in two minutes");
    sim.api = Written::Ok;
    sim.pass(20_000);
    let settled = sim.statuses.len();
    sim.pass(600_000);
    assert_eq!(sim.statuses.len(), settled);
    assert_eq!(sim.line(), "Running true running - 0");
}

#[test]
fn volumes_that_cannot_be_made_are_tried_again() {
    let mut sim = Sim::new(pod(json!({})));
    let mut out = Vec::new();
    let pod: Pod = serde_json::from_value(sim.pod.clone()).unwrap();
    sim.agent.handle(sim.now, In::Pod(Arc::new(pod)), &mut out);
    assert!(matches!(out.as_slice(), [Out::SetUp(_)]));
    sim.feed(In::SandboxFailed { uid: Uid::new("u1"), message: "MountVolume.SetUp failed".into() });
    assert!(sim.wishes().is_empty());
    sim.pass(499);
    assert!(sim.wishes().is_empty());
    assert_eq!(sim.line(), "Pending false waiting ContainerCreating 0");
    sim.pass(1);
    assert_eq!(sim.wishes(), ["start c 0"]);
    assert_eq!(sim.events[0], "FailedMount: MountVolume.SetUp failed");
}

#[test]
fn readiness_gates_hold_readiness_back() {
    let mut sim = Sim::new(pod(json!({"readinessGates": [{"conditionType": "example.com/lb"}]})));
    sim.apply();
    sim.pass(1_000);
    assert_eq!(sim.condition("ContainersReady"), "True -");
    assert_eq!(sim.condition("Ready"), "False ReadinessGatesNotReady");
    sim.change(|pod| pod["status"] = json!({"conditions": [{"type": "example.com/lb", "status": "True"}]}));
    assert_eq!(sim.condition("Ready"), "True -");
}

#[test]
fn late_news_of_an_earlier_attempt_are_ignored() {
    let mut sim = Sim::new(pod(json!({})));
    sim.apply();
    sim.exit("c", 0, 1);
    sim.pass(1_000);
    sim.exit("c", 0, 1);
    assert_eq!(sim.line(), "Running true running - 1");
    let mut probe = sim.at("c");
    sim.feed(In::Probed { at: probe.clone(), attempt: 0, kind: ProbeKind::Liveness, outcome: ProbeOutcome::Success });
    probe.container = "nope".into();
    sim.feed(In::Started { at: probe, attempt: 0 });
    assert_eq!(sim.wishes(), ["start c 0", "start c 1"]);
}

#[test]
fn conditions_that_someone_else_changed_are_written_again() {
    let mut sim = Sim::new(pod(json!({})));
    sim.apply();
    sim.pass(60_000);
    assert_eq!(sim.statuses.len(), 1);
    let since = sim.status()["conditions"][2]["lastTransitionTime"].clone();
    sim.overrule("Ready", "False");
    sim.pass(5_000);
    assert_eq!((sim.statuses.len(), sim.condition("Ready")), (2, "True -".to_owned()));
    assert_ne!(sim.status()["conditions"][2]["lastTransitionTime"], since);
    // The agent's own write comes back by the watch, and a change of something else: no reason to write.
    sim.apply();
    sim.change(|pod| pod["metadata"]["labels"] = json!({"a": "b"}));
    sim.pass(600_000);
    assert_eq!(sim.statuses.len(), 2);
    // A condition of someone else is theirs.
    sim.change(|pod| {
        pod["status"]["conditions"].as_array_mut().unwrap().push(json!({"type": "x/y", "status": "True"}))
    });
    sim.pass(600_000);
    assert_eq!(sim.statuses.len(), 2);
}

#[test]
fn a_watch_that_lags_causes_no_writes() {
    let mut sim = Sim::new(pod(json!({"readinessGates": []})));
    sim.apply();
    let first = sim.pod.clone();
    sim.pass(60_000);
    let written = std::mem::replace(&mut sim.pod, first);
    sim.apply();
    sim.pass(AMEND_MS / 2);
    sim.pod = written;
    sim.apply();
    sim.pass(600_000);
    assert_eq!(sim.statuses.len(), 1);
}

#[test]
fn two_that_never_agree_write_ever_more_rarely() {
    let mut sim = Sim::new(pod(json!({})));
    sim.apply();
    for _ in 0..600 {
        sim.overrule("Ready", "False");
        sim.pass(100);
    }
    let writes = sim.statuses.len();
    assert!((2..=14).contains(&writes), "{writes} writes in a minute");
}

#[test]
fn after_a_restart_of_the_agent_no_pod_is_called_ready_for_long() {
    let ready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True",
        "lastTransitionTime": "2026-01-02T15:04:05Z"}]});
    let mut pod = pod(json!({}));
    pod["status"] = ready;
    // One that runs again at once needs one write.
    let mut sim = Sim::new(pod.clone());
    sim.apply();
    sim.pass(60_000);
    assert_eq!((sim.statuses.len(), sim.condition("Ready")), (1, "True -".to_owned()));
    // One that doesn't is reported as it is.
    let mut sim = Sim::new(pod);
    sim.pull = Err(PullFault::NotPresent);
    let mut out = Vec::new();
    let object: Pod = serde_json::from_value(sim.pod.clone()).unwrap();
    sim.agent.handle(sim.now, In::Pod(Arc::new(object)), &mut out);
    assert!(matches!(out.as_slice(), [Out::SetUp(_)]));
    sim.pass(REGAIN_MS - 1);
    assert!(sim.statuses.is_empty());
    sim.pass(1);
    assert_eq!((sim.statuses.len(), sim.condition("Ready")), (1, "False ContainersNotReady".to_owned()));
}

#[test]
fn many_pods_that_start_together_need_one_write_each() {
    let mut agent = Agent::new(Config { host_ip: "192.0.2.1".parse().unwrap() });
    let (mut now, mut out) = (Time::from_secs(1_000_000), Vec::new());
    let template = pod(json!({}));
    for n in 0..1000 {
        let mut one = template.clone();
        one["metadata"]["uid"] = json!(format!("u{n}"));
        let one: Pod = serde_json::from_value(one).unwrap();
        agent.handle(now, In::Pod(Arc::new(one)), &mut out);
    }
    let setting_up = std::mem::take(&mut out);
    assert_eq!(setting_up.len(), 1000);
    // The node needs eight seconds; then each gets ready.
    now = now + 8_000;
    agent.wake(now, &mut out);
    assert!(out.is_empty(), "nothing is said about pods that are on their way");
    now = now + 20_000;
    agent.wake(now, &mut out);
    let early = out.iter().filter(|wish| matches!(wish, Out::WriteStatus { .. })).count();
    assert_eq!(early, 1000, "but not for ever");
    let answered = |n: usize| In::StatusWritten { uid: Uid::new(format!("u{n}")), outcome: Written::Ok };
    (0..1000).for_each(|n| agent.handle(now, answered(n), &mut Vec::new()));
    // A single pod is reported soon.
    let mut one = template;
    one["metadata"]["uid"] = json!("single");
    let one: Pod = serde_json::from_value(one).unwrap();
    out.clear();
    agent.handle(now, In::Pod(Arc::new(one)), &mut out);
    assert_eq!(agent.next_wake(), Some(now + 1_500));
}
