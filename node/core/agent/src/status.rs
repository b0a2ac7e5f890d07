//! What a pod's state looks like from outside: `status`, and when it is worth a write.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use dhow_types::Time;
use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use serde_json::{Map, Value, json};

use crate::agent::Config;
use crate::backoff::Backoff;
use crate::container::{ContainerRun, Part, Step, Terminated, container_id};
use crate::message::Written;
use crate::pod::PodRun;

/// How much longer an intermediate status may wait for each pod that has something to write, and at most: when a
/// thousand pods start together, "is being created" would take half of the API server's time and be old when it is
/// there.
const WAIT_PER_POD_MS: u64 = 10;
const WAIT_MAX_MS: u64 = 10_000;

/// When the status is to be written, and whether a write is under way. Whatever changes meanwhile goes into the next
/// one.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    due: Option<Time>,
    /// When to write what can wait for company.
    due_later: Option<Time>,
    in_flight: bool,
    gone: bool,
    retry: Option<Time>,
    backoff: Backoff,
    /// Of the status that the API server has; the text itself would cost kilobytes a pod.
    written: Option<u64>,
    writing: u64,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            due: None,
            due_later: None,
            in_flight: false,
            gone: false,
            retry: None,
            backoff: Backoff::writes(),
            written: None,
            writing: 0,
        }
    }

    /// Something changed that is to be written at `at`.
    pub(crate) fn touch(&mut self, at: Time) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Something changed that is to be written at `at`, or later if many others wait: it will soon be overtaken.
    pub(crate) fn touch_later(&mut self, at: Time) {
        self.due_later = Some(self.due_later.map_or(at, |due| due.min(at)));
    }

    /// What is to be written at some time is to be written at `at`.
    pub(crate) fn hasten(&mut self, at: Time) {
        if self.due.is_some() || self.due_later.is_some() {
            self.touch(at);
        }
    }

    /// When to write, unless there is nothing to write or a write is under way; `waiting` is how many pods have
    /// something to write.
    pub(crate) fn due(&self, waiting: usize) -> Option<Time> {
        let wait_ms = (waiting as u64).saturating_mul(WAIT_PER_POD_MS).min(WAIT_MAX_MS);
        let later = self.due_later.map(|at| at + wait_ms);
        let due = self.due.into_iter().chain(later).min().filter(|_| !self.in_flight && !self.gone)?;
        Some(self.retry.map_or(due, |retry| due.max(retry)))
    }

    /// Whether the API server has a status of this agent.
    pub(crate) fn told(&self) -> bool {
        self.written.is_some()
    }

    /// Whether all there was to write is written.
    pub(crate) fn settled(&self) -> bool {
        self.gone || (self.due.is_none() && self.due_later.is_none() && !self.in_flight)
    }

    /// A write of `status` begins, unless the API server has just that.
    pub(crate) fn begin(&mut self, status: &Value) -> bool {
        let mut hasher = DefaultHasher::new();
        status.to_string().hash(&mut hasher);
        self.writing = hasher.finish();
        self.due = None;
        self.due_later = None;
        self.in_flight = self.written != Some(self.writing);
        self.in_flight
    }

    /// The API server answered.
    pub(crate) fn written(&mut self, now: Time, outcome: Written) {
        self.in_flight = false;
        match outcome {
            Written::Ok => {
                self.written = Some(self.writing);
                self.retry = None;
                self.backoff.reset();
            }
            Written::Gone => self.gone = true,
            Written::Retry => {
                self.retry = Some(now + self.backoff.fail(now));
                self.touch(now);
            }
        }
    }
}

/// The pod's conditions and since when each has its status.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions(Vec<Condition>);

/// The conditions that this agent writes.
const READY_TO_START: &str = "PodReadyToStartContainers";
const INITIALIZED: &str = "Initialized";
const READY: &str = "Ready";
const CONTAINERS_READY: &str = "ContainersReady";
const SCHEDULED: &str = "PodScheduled";
const DISRUPTED: &str = "DisruptionTarget";
const OWNED: [&str; 5] = [READY_TO_START, INITIALIZED, READY, CONTAINERS_READY, SCHEDULED];

#[derive(Clone, Debug)]
struct Condition {
    name: String,
    holds: bool,
    since: Time,
    /// It did not hold once, so that the stored one may have a reason and a message to be taken away.
    failed_once: bool,
}

impl Conditions {
    /// As the stored status has them.
    pub(crate) fn of(status: Option<&PodStatus>) -> Self {
        let stored = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        let list = stored.filter_map(|c| {
            let since = Time::from_ms(c.last_transition_time.as_ref()?.0.as_millisecond());
            let holds = c.status == "True";
            Some(Condition { name: c.type_.clone(), holds, since, failed_once: !holds })
        });
        Self(list.collect())
    }

    /// Whether `stored` has another opinion on a condition that this agent writes. Such a condition is there, since it
    /// was written; who took it away is to see it again.
    pub(crate) fn differ(&self, stored: Option<&PodStatus>) -> bool {
        let stored: Vec<_> = stored.and_then(|s| s.conditions.as_ref()).into_iter().flatten().collect();
        let same = |own: &Condition, c: &PodCondition| c.type_ == own.name && (c.status == "True") == own.holds;
        self.0.iter().filter(|own| OWNED.contains(&own.name.as_str())).any(|own| !stored.iter().any(|c| same(own, c)))
    }

    /// Takes over what `stored` says, so that the next status counts what it changes from now on.
    pub(crate) fn concede(&mut self, stored: Option<&PodStatus>) {
        *self = Self::of(stored);
    }

    /// Whether readiness is claimed.
    pub(crate) fn ready(&self) -> bool {
        self.0.iter().any(|c| c.holds && [READY, CONTAINERS_READY].contains(&c.name.as_str()))
    }

    /// The condition with this status; it has it since `now` if it is new.
    fn set(&mut self, now: Time, name: &str, holds: bool) -> &Condition {
        let at = self.0.iter().position(|c| c.name == name).unwrap_or_else(|| {
            self.0.push(Condition { name: name.to_owned(), holds, since: now, failed_once: false });
            self.0.len() - 1
        });
        let condition = &mut self.0[at];
        if condition.holds != holds {
            condition.holds = holds;
            condition.since = now;
        }
        condition.failed_once |= !holds;
        condition
    }
}

/// A condition that does not hold: why.
struct Unmet {
    reason: &'static str,
    message: String,
}

impl PodRun {
    /// The part of `status` that this agent owns, complete.
    pub(crate) fn status(&mut self, now: Time, config: &Config) -> Value {
        let phase = self.phase();
        let conditions = self.condition_list(now, phase);
        let mut status = Map::new();
        if let Some(generation) = self.pod.metadata.generation {
            status.insert("observedGeneration".to_owned(), json!(generation));
        }
        status.insert("phase".to_owned(), json!(phase));
        status.insert("conditions".to_owned(), Value::Array(conditions));
        if let Some(failure) = &self.failure {
            status.insert("reason".to_owned(), json!(failure.reason));
            status.insert("message".to_owned(), json!(failure.message));
        }
        status.insert("hostIP".to_owned(), json!(config.host_ip.to_string()));
        status.insert("hostIPs".to_owned(), json!([{"ip": config.host_ip.to_string()}]));
        if let Some(ip) = self.ip {
            status.insert("podIP".to_owned(), json!(ip.to_string()));
            status.insert("podIPs".to_owned(), self.pod_ips(&ip.to_string()));
        }
        status.insert("startTime".to_owned(), json!(self.start_time.to_rfc3339()));
        let inits: Vec<_> = self.inits().map(|c| self.container_status(c)).collect();
        if !inits.is_empty() {
            status.insert("initContainerStatuses".to_owned(), Value::Array(inits));
        }
        let mains = self.mains().map(|c| self.container_status(c)).collect();
        status.insert("containerStatuses".to_owned(), Value::Array(mains));
        let ephemerals: Vec<_> = self.ephemerals().map(|c| self.container_status(c)).collect();
        if !ephemerals.is_empty() {
            status.insert("ephemeralContainerStatuses".to_owned(), Value::Array(ephemerals));
        }
        Value::Object(status)
    }

    /// The list merges by address: an earlier address must be replaced, not joined.
    fn pod_ips(&self, ip: &str) -> Value {
        let stored = self.pod.status.as_ref().and_then(|s| s.pod_ip.as_deref());
        match stored {
            Some(stored) if stored != ip => json!([{"$patch": "replace"}, {"ip": ip}]),
            _ => json!([{"ip": ip}]),
        }
    }

    /// `status.phase`, by a kubelet's rules.
    pub(crate) fn phase(&self) -> &'static str {
        let init_failed =
            self.inits().any(|c| c.part == Part::Init && matches!(&c.step, Step::Ended(end) if end.exit_code != 0));
        if self.failure.is_some() || init_failed {
            return "Failed";
        }
        let active = ContainerRun::busy;
        if self.deleting() && !self.containers.iter().any(active) {
            let succeeded = |c: &ContainerRun| end_of(c).is_some_and(|end| end.exit_code == 0);
            return if self.mains().all(succeeded) { "Succeeded" } else { "Failed" };
        }
        let never_ran = |c: &ContainerRun| !c.running() && end_of(c).is_none();
        if self.mains().any(never_ran) {
            return "Pending";
        }
        if !self.mains().all(|c| matches!(c.step, Step::Ended(_))) {
            return "Running";
        }
        let succeeded = |c: &ContainerRun| matches!(&c.step, Step::Ended(end) if end.exit_code == 0);
        if self.mains().all(succeeded) { "Succeeded" } else { "Failed" }
    }

    fn condition_list(&mut self, now: Time, phase: &str) -> Vec<Value> {
        let completed = phase == "Succeeded" || phase == "Failed";
        let names = |list: Vec<&ContainerRun>| list.iter().map(|c| &*c.name).collect::<Vec<_>>().join(" ");
        let done = || Unmet {
            reason: if phase == "Succeeded" { "PodCompleted" } else { "PodFailed" },
            message: String::new(),
        };
        let incomplete: Vec<_> = self.inits().filter(|c| !c.initialized()).collect();
        let initialized = (!incomplete.is_empty()).then(|| Unmet {
            reason: "ContainersNotInitialized",
            message: format!("containers with incomplete status: [{}]", names(incomplete)),
        });
        let unready: Vec<_> = self.mains().filter(|c| !c.ready()).collect();
        let containers = if completed {
            Some(done())
        } else {
            (!unready.is_empty()).then(|| Unmet {
                reason: "ContainersNotReady",
                message: format!("containers with unready status: [{}]", names(unready)),
            })
        };
        let ready = match &containers {
            Some(unmet) => Some(Unmet { reason: unmet.reason, message: unmet.message.clone() }),
            None => self.closed_gate(),
        };
        let disruption = self.disruption(now);
        let sandbox = (!self.sandboxed()).then(|| Unmet { reason: "", message: String::new() });
        [
            (READY_TO_START, sandbox),
            (INITIALIZED, initialized),
            (READY, ready),
            (CONTAINERS_READY, containers),
            (SCHEDULED, None),
        ]
        .into_iter()
        .map(|(name, unmet)| condition(&mut self.conditions, now, name, unmet))
        .chain(disruption)
        .collect()
    }

    /// Says that the pod failed for the node's sake, so that a Job need not count it.
    fn disruption(&self, now: Time) -> Option<Value> {
        let failure = self.failure.as_ref().filter(|failure| failure.disrupted)?;
        let stored = self.pod.status.as_ref().and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        let since = stored
            .filter(|c| c.type_ == DISRUPTED && c.status == "True")
            .find_map(|c| Some(Time::from_ms(c.last_transition_time.as_ref()?.0.as_millisecond())));
        Some(json!({
            "type": DISRUPTED,
            "status": "True",
            "reason": "TerminationByKubelet",
            "message": failure.message,
            "lastTransitionTime": since.unwrap_or(now).to_rfc3339(),
        }))
    }

    /// The first readiness gate that is not open.
    fn closed_gate(&self) -> Option<Unmet> {
        let gates = self.pod.spec.as_ref()?.readiness_gates.as_ref()?;
        let conditions = self.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        gates.iter().find_map(|gate| {
            let name = &gate.condition_type;
            let found = conditions.into_iter().flatten().find(|c| c.type_ == *name);
            let message = match found {
                Some(c) if c.status == "True" => return None,
                Some(c) => format!("the status of pod readiness gate \"{name}\" is not \"True\", but {}", c.status),
                None => format!("corresponding condition of pod readiness gate \"{name}\" does not exist."),
            };
            Some(Unmet { reason: "ReadinessGatesNotReady", message })
        })
    }

    fn container_status(&self, c: &ContainerRun) -> Value {
        let spec_image = c.spec(&self.pod).and_then(|spec| spec.image.clone()).unwrap_or_default();
        let attempt = c.attempt.unwrap_or(0);
        let id = container_id(&self.uid, &c.name, attempt);
        let state = match &c.step {
            Step::Running { since, .. } => json!({"running": {"startedAt": since.to_rfc3339()}}),
            Step::Ended(end) => json!({ "terminated": terminated(end) }),
            Step::Idle { .. } | Step::Pulling | Step::Starting | Step::PostStart { .. } => {
                waiting(c.waiting.reason, &c.waiting.message)
            }
        };
        let last = c.last.as_ref().map_or(json!({}), |end| json!({ "terminated": terminated(end) }));
        let mut status = json!({
            "name": &*c.name,
            "state": state,
            "lastState": last,
            "ready": c.ready(),
            "restartCount": attempt,
            "image": if c.image.is_empty() { &spec_image } else { &c.image },
            "imageID": c.image_id,
            "started": c.started(),
        });
        if c.attempt.is_some() {
            status["containerID"] = json!(id);
        }
        status
    }
}

fn waiting(reason: &str, message: &str) -> Value {
    let mut waiting = json!({ "reason": reason });
    if !message.is_empty() {
        waiting["message"] = json!(message);
    }
    json!({ "waiting": waiting })
}

fn condition(conditions: &mut Conditions, now: Time, name: &str, unmet: Option<Unmet>) -> Value {
    let known = conditions.set(now, name, unmet.is_none());
    let mut value = json!({
        "type": name,
        "status": if known.holds { "True" } else { "False" },
        "lastTransitionTime": known.since.to_rfc3339(),
    });
    match unmet {
        Some(unmet) => {
            if !unmet.reason.is_empty() {
                value["reason"] = json!(unmet.reason);
            }
            if !unmet.message.is_empty() {
                value["message"] = json!(unmet.message);
            }
        }
        // A strategic merge patch keeps what is not named.
        None if known.failed_once => {
            value["reason"] = Value::Null;
            value["message"] = Value::Null;
        }
        None => {}
    }
    value
}

fn end_of(c: &ContainerRun) -> Option<&Terminated> {
    match &c.step {
        Step::Ended(end) => Some(end),
        _ => c.last.as_ref(),
    }
}

fn terminated(end: &Terminated) -> Value {
    let mut value = json!({
        "exitCode": end.exit_code,
        "reason": end.reason,
        "startedAt": end.started_at.to_rfc3339(),
        "finishedAt": end.finished_at.to_rfc3339(),
        "containerID": end.container_id,
    });
    if !end.message.is_empty() {
        value["message"] = json!(end.message);
    }
    value
}
