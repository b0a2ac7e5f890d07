//! The state machine of one pod.
//!
//! Level-based: an input changes what is known, then [`PodRun::advance`] looks at everything and wishes what is due.
//! A container goes `Idle → Pulling → Starting → Running → Ended`, or back to `Idle` when it shall start (again). A
//! sandbox goes `Absent → SettingUp → Ready → Removing → Removed`. A pod is run until it is over (all containers ended
//! for good, an init container failed for good, or its deadline passed), deleted (`deletionTimestamp`) or gone (no
//! object any more); then its containers are stopped, its last status is written, its sandbox torn down, and, if it was
//! deleted, its object removed.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use dhow_runtime_contract::{Exit, ExitReason};
use dhow_types::{Time, Uid};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::agent::Config;
use crate::backoff::Backoff;
use crate::container::{
    ContainerRun, Halt, Part, Step, Terminated, Waiting, added, adopt, container_id, restarts, short_duration, time,
};
use crate::message::{
    ContainerRef, EventKind, HookKind, In, Keep, Out, PodEvent, PodRef, ProbeKind, ProbeOutcome, StartFault, Written,
};
use crate::probe::{Finding, ProbeRun};
use crate::status::{Conditions, Report};

mod halt;
mod ignored;
mod images;

/// How long `ContainerCreating` may stay unwritten: most pods are ready before, and need one write instead of two.
const CREATING_WRITE_MS: u64 = 1_500;
/// How long "running but not ready" may stay unwritten, for the same reason.
const RUNNING_WRITE_MS: u64 = 300;
/// How long a pod that was ready before this agent was started may be called so: most run again before, and need no
/// status that says that they don't.
const REGAIN_MS: u64 = 1_000;
/// How long the stored conditions may differ from the pod's before they are written again: they come by a watch, which
/// may lag behind this agent's own writes.
const AMEND_MS: u64 = 1_000;
/// How long a pod's containers may take to end when its object is gone: nobody waits for them.
const GONE_GRACE_MS: u64 = 1_000;
/// The grace period of a pod that states none.
const GRACE_DEFAULT_S: i64 = 30;

/// Where a pod's address and volumes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sandbox {
    Absent { until: Option<Time> },
    SettingUp,
    Ready,
    Removing(Keep),
    Removed(Keep),
}

/// Where the removal of the pod's object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deletion {
    Open { until: Option<Time> },
    Asked,
    Done,
}

/// Why a pod is not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Its object does not exist.
    Gone,
    /// It is to be deleted.
    Deleted,
    /// It came to its end.
    Over,
}

/// Why a pod failed as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: &'static str,
    pub(crate) message: Cow<'static, str>,
    /// How long its containers may take to end, if not as long as the pod says.
    pub(crate) grace_ms: Option<u64>,
    /// It failed for the node's sake.
    pub(crate) disrupted: bool,
}

/// One pod of this node.
#[derive(Clone, Debug)]
pub(crate) struct PodRun {
    pub(crate) pod: Arc<Pod>,
    pub(crate) uid: Uid,
    pub(crate) containers: Vec<ContainerRun>,
    sandbox: Sandbox,
    pub(crate) ip: Option<IpAddr>,
    volume_backoff: Backoff,
    gone: bool,
    /// It had come to its end before this agent saw it: its stored status stands.
    archived: bool,
    pub(crate) failure: Option<Failure>,
    pub(crate) start_time: Time,
    pub(crate) conditions: Conditions,
    report: Report,
    /// Someone else changed conditions that are this agent's to write.
    overruled: bool,
    amend_backoff: Backoff,
    deletion: Deletion,
    delete_backoff: Backoff,
    wake: Option<Time>,
}

impl PodRun {
    /// Takes up a pod as its object describes it; earlier attempts are read from its stored status.
    pub(crate) fn adopt(now: Time, uid: Uid, pod: Arc<Pod>) -> Self {
        let status = pod.status.as_ref();
        let archived = matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        let start_time = status.and_then(|s| s.start_time.as_ref()).map_or(now, |t| time(&t.0));
        let mut this = Self {
            uid,
            containers: Vec::new(),
            sandbox: Sandbox::Absent { until: None },
            ip: None,
            volume_backoff: Backoff::volumes(),
            gone: false,
            archived,
            failure: None,
            start_time,
            conditions: Conditions::of(status),
            report: Report::new(),
            overruled: false,
            amend_backoff: Backoff::writes(),
            deletion: Deletion::Open { until: None },
            delete_backoff: Backoff::writes(),
            wake: None,
            pod,
        };
        if !archived {
            this.containers = adopt(now, &this.pod);
            this.report.touch_later(now + CREATING_WRITE_MS);
            if this.conditions.ready() {
                this.report.touch(now + REGAIN_MS);
            }
        }
        this
    }

    /// When [`advance`](Self::advance) wants to be called next.
    pub(crate) fn wake(&self) -> Option<Time> {
        self.wake
    }

    /// Whether nothing of the pod is left: neither its object nor anything on this node.
    pub(crate) fn finished(&self) -> bool {
        self.gone && self.sandbox == Sandbox::Removed(Keep::Nothing)
    }

    /// Whether it has a status to write.
    pub(crate) fn waiting(&self) -> bool {
        !self.gone && !self.report.settled()
    }

    /// How the API knows it.
    pub(crate) fn reference(&self) -> PodRef {
        let meta = &self.pod.metadata;
        PodRef {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: self.uid.clone(),
        }
    }

    /// Whether its address is in use.
    pub(crate) fn sandboxed(&self) -> bool {
        self.sandbox == Sandbox::Ready
    }

    /// Whether the pod has come to its end, or comes to it: nothing will be started.
    pub(crate) fn over(&self) -> bool {
        self.archived || self.failure.is_some() || self.completed()
    }

    pub(crate) fn deleting(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    pub(crate) fn restart_policy(&self) -> &str {
        self.spec().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
    }

    pub(crate) fn mains(&self) -> impl Iterator<Item = &ContainerRun> {
        self.containers.iter().filter(|c| c.part == Part::Main)
    }

    pub(crate) fn inits(&self) -> impl Iterator<Item = &ContainerRun> {
        self.containers.iter().filter(|c| matches!(c.part, Part::Init | Part::Sidecar))
    }

    pub(crate) fn ephemerals(&self) -> impl Iterator<Item = &ContainerRun> {
        self.containers.iter().filter(|c| c.part == Part::Ephemeral)
    }

    fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// Whether every container ended for good, or an init container failed for good.
    fn completed(&self) -> bool {
        let init_failed =
            self.inits().any(|c| c.part == Part::Init && matches!(&c.step, Step::Ended(end) if end.exit_code != 0));
        init_failed || self.mains().all(|c| matches!(c.step, Step::Ended(_)))
    }

    fn ending(&self) -> Option<Ending> {
        if self.gone {
            Some(Ending::Gone)
        } else if self.deleting() {
            Some(Ending::Deleted)
        } else {
            self.over().then_some(Ending::Over)
        }
    }

    fn all_ready(&self) -> bool {
        self.mains().all(ContainerRun::ready)
    }

    /// Takes what happened to this pod.
    pub(crate) fn handle(&mut self, now: Time, input: In, out: &mut Vec<Out>) {
        match input {
            In::Pod(pod) => self.pod_changed(now, pod, out),
            In::Gone(_) => self.gone = true,
            In::Evict { message, grace_ms, disrupted, .. } => self.evicted(now, message, grace_ms, disrupted, out),
            In::SandboxReady { ip, .. } => {
                if self.sandbox == Sandbox::SettingUp {
                    self.sandbox = Sandbox::Ready;
                    self.ip = Some(ip);
                    self.volume_backoff.reset();
                }
            }
            In::SandboxFailed { message, .. } => self.sandbox_failed(now, &message, out),
            In::SandboxRemoved(_) => {
                if let Sandbox::Removing(keep) = self.sandbox {
                    self.sandbox = Sandbox::Removed(keep);
                }
            }
            In::PullBegan { at } => self.pull_began(now, &at, out),
            In::Pulled { at, result } => match result {
                Ok(image) => self.pulled(now, &at, &image, out),
                Err(fault) => self.pull_failed(now, &at, fault, out),
            },
            In::Started { at, attempt } => self.started(now, &at, attempt, out),
            In::StartFailed { at, attempt, fault } => self.start_failed(now, &at, attempt, fault, out),
            In::Exited { at, attempt, exit } => self.exited(now, &at, attempt, exit, out),
            In::Probed { at, attempt, kind, outcome } => self.probed(now, &at, attempt, kind, outcome, out),
            In::Hooked { at, attempt, hook, result } => self.hooked(now, (&at, attempt), hook, result, out),
            In::StatusWritten { outcome, .. } => self.report.written(now, outcome),
            In::Deleted { outcome, .. } => self.deleted(now, outcome),
        }
    }

    /// Looks at everything and wishes what is due at `now`.
    ///
    /// `waiting` is how many pods of the node have a status to write.
    pub(crate) fn advance(&mut self, now: Time, config: &Config, waiting: usize, out: &mut Vec<Out>) {
        self.wake = None;
        self.check_deadline(now, out);
        match self.ending() {
            Some(ending) => self.wind_down(ending, now, out),
            None => self.run(now, out),
        }
        self.write_status(now, config, waiting, out);
    }

    fn note_wake(&mut self, at: Time) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    /// True if `until` has come; else the agent is woken then.
    fn due(&mut self, until: Option<Time>, now: Time) -> bool {
        match until {
            Some(at) if at > now => {
                self.note_wake(at);
                false
            }
            _ => true,
        }
    }

    fn check_deadline(&mut self, now: Time, out: &mut Vec<Out>) {
        let Some(seconds) = self.spec().and_then(|s| s.active_deadline_seconds) else { return };
        if self.over() || self.gone {
            return;
        }
        let deadline = self.start_time + u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        if self.due(Some(deadline), now) {
            let message = "Pod was active on the node longer than the specified deadline";
            let (message_of, grace_ms) = (Cow::Borrowed(message), None);
            let failure = Failure { reason: "DeadlineExceeded", message: message_of, grace_ms, disrupted: false };
            self.failure = Some(failure);
            self.event(now, None, EventKind::Normal, "DeadlineExceeded", message.to_owned(), out);
            self.report.touch(now);
        }
    }

    /// The pod has to leave the node, for a limit of its own or for the node's sake.
    fn evicted(&mut self, now: Time, message: String, grace_ms: u64, disrupted: bool, out: &mut Vec<Out>) {
        if self.gone || self.deleting() || self.over() {
            return;
        }
        self.event(now, None, EventKind::Warning, "Evicted", message.clone(), out);
        let message = Cow::Owned(message);
        self.failure = Some(Failure { reason: "Evicted", message, grace_ms: Some(grace_ms), disrupted });
        self.report.touch(now);
    }

    // ---- running a pod ----

    fn run(&mut self, now: Time, out: &mut Vec<Out>) {
        match self.sandbox {
            Sandbox::Absent { until } => {
                if self.due(until, now) {
                    // Once a pod: not at further attempts, not after a restart of the agent.
                    if until.is_none() && self.pod.status.as_ref().is_none_or(|s| s.start_time.is_none()) {
                        self.say_what_is_ignored(now, out);
                    }
                    self.sandbox = Sandbox::SettingUp;
                    out.push(Out::SetUp(self.pod.clone()));
                }
                return;
            }
            Sandbox::Ready => {}
            Sandbox::SettingUp | Sandbox::Removing(_) | Sandbox::Removed(_) => return,
        }
        self.go_on_halting(now, out);
        let (pod, mut may_start) = (self.pod.clone(), true);
        for at in 0..self.containers.len() {
            // An init container waits for those before it, a main one for all of them. What ended well stays. Who was
            // added to look into the pod waits for nobody: it may be stuck.
            let container = &self.containers[at];
            if may_start || container.exists() || container.part == Part::Ephemeral {
                self.drive(at, now, out);
            }
            let container = &self.containers[at];
            may_start &= (container.part == Part::Main || container.initialized()) && !container.holds_back(&pod);
        }
    }

    fn drive(&mut self, at: usize, now: Time, out: &mut Vec<Out>) {
        match self.containers[at].step {
            Step::Idle { until } => {
                if self.due(until, now) {
                    self.begin_pull(at, out);
                } else {
                    self.turn_into_backoff(at, now, out);
                }
            }
            Step::Running { halt: Halt::No, .. } => self.ask_probes(at, now, out),
            _ => {}
        }
    }

    fn ask_probes(&mut self, at: usize, now: Time, out: &mut Vec<Out>) {
        let starting = self.containers[at].verdict(ProbeKind::Startup) == Some(false);
        for i in 0..self.containers[at].probes.len() {
            let probe = &self.containers[at].probes[i];
            let held = (probe.kind == ProbeKind::Startup) != starting;
            let Some(due) = probe.due() else { continue };
            if held || !self.due(Some(due), now) {
                continue;
            }
            let (reference, attempt, pod) = (self.container_ref(at), self.containers[at].attempt, self.pod.clone());
            let probe = &mut self.containers[at].probes[i];
            probe.ask(now);
            out.push(Out::Probe {
                at: reference,
                attempt: attempt.unwrap_or(0),
                kind: probe.kind,
                timeout_ms: probe.timeout_ms(),
                probe: probe.probe.clone(),
                pod,
            });
        }
    }

    // ---- ending a pod ----

    fn wind_down(&mut self, ending: Ending, now: Time, out: &mut Vec<Out>) {
        let grace_ms = self.grace_ms(ending);
        self.halt_all(grace_ms, now, out);
        if self.containers.iter().any(ContainerRun::busy) || self.sandbox == Sandbox::SettingUp {
            return;
        }
        match ending {
            Ending::Over => {
                if self.sandbox == Sandbox::Ready {
                    self.tear_down(Keep::Files, out);
                }
            }
            Ending::Gone => self.tear_down(Keep::Nothing, out),
            // The last status goes first: who waits for the exit code must be able to see it.
            Ending::Deleted if !self.report.settled() => self.report.hasten(now),
            Ending::Deleted if self.sandbox == Sandbox::Removed(Keep::Nothing) => self.delete(now, out),
            Ending::Deleted => self.tear_down(Keep::Nothing, out),
        }
    }

    fn grace_ms(&self, ending: Ending) -> u64 {
        let seconds = match ending {
            Ending::Gone => return GONE_GRACE_MS,
            Ending::Deleted => self.pod.metadata.deletion_grace_period_seconds,
            Ending::Over => match self.failure.as_ref().and_then(|failure| failure.grace_ms) {
                Some(grace_ms) => return grace_ms,
                None => None,
            },
        };
        let seconds = seconds.or_else(|| self.spec()?.termination_grace_period_seconds).unwrap_or(GRACE_DEFAULT_S);
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
    }

    fn tear_down(&mut self, keep: Keep, out: &mut Vec<Out>) {
        let wanted = match self.sandbox {
            Sandbox::Absent { .. } | Sandbox::Ready => true,
            Sandbox::Removed(kept) => kept != keep,
            Sandbox::SettingUp | Sandbox::Removing(_) => false,
        };
        if wanted {
            self.sandbox = Sandbox::Removing(keep);
            out.push(Out::TearDown { pod: self.reference(), keep });
        }
    }

    fn delete(&mut self, now: Time, out: &mut Vec<Out>) {
        if let Deletion::Open { until } = self.deletion
            && self.due(until, now)
        {
            self.deletion = Deletion::Asked;
            out.push(Out::DeletePod(self.reference()));
        }
    }

    fn deleted(&mut self, now: Time, outcome: Written) {
        self.deletion = match outcome {
            // The watch tells when it is really gone: finalizers may keep it.
            Written::Ok => Deletion::Done,
            Written::Gone => {
                self.gone = true;
                Deletion::Done
            }
            Written::Retry => Deletion::Open { until: Some(now + self.delete_backoff.fail(now)) },
        };
    }

    // ---- what happened ----

    fn pod_changed(&mut self, now: Time, pod: Arc<Pod>, out: &mut Vec<Out>) {
        self.pod = pod;
        if self.archived {
            return;
        }
        if self.spec().is_some_and(|s| s.readiness_gates.as_ref().is_some_and(|g| !g.is_empty())) {
            self.report.touch(now);
        }
        self.compare(now);
        let added = added(&self.pod, &self.containers);
        if !added.is_empty() {
            self.containers.extend(added);
            self.report.touch_later(now + RUNNING_WRITE_MS);
        }
        for at in 0..self.containers.len() {
            self.renew_if_changed(at, now, out);
        }
    }

    /// Who cannot hear this node says that its pods are not ready; that is to be taken back. Two that never agree cost
    /// a write each ten seconds.
    fn compare(&mut self, now: Time) {
        let stored = self.pod.status.as_ref();
        let overruled = self.report.told() && !self.deleting() && self.conditions.differ(stored);
        if overruled && !self.overruled {
            let wait_ms = self.amend_backoff.wait_after_end(now).max(AMEND_MS);
            self.report.touch_later(now + wait_ms);
        }
        self.overruled = overruled;
    }

    /// A running container whose image was changed is restarted.
    fn renew_if_changed(&mut self, at: usize, now: Time, out: &mut Vec<Out>) {
        let container = &self.containers[at];
        let image = container.spec(&self.pod).and_then(|spec| spec.image.as_deref());
        let unchanged = image == Some(container.image.as_str());
        if unchanged || container.renewed || !matches!(container.step, Step::Running { halt: Halt::No, .. }) {
            return;
        }
        let message = format!("Container {} definition changed, will be restarted", container.name);
        self.containers[at].renewed = true;
        self.restart(at, self.grace_ms(Ending::Over), &message, now, out);
    }

    fn sandbox_failed(&mut self, now: Time, message: &str, out: &mut Vec<Out>) {
        if self.sandbox == Sandbox::SettingUp {
            self.sandbox = Sandbox::Absent { until: Some(now + self.volume_backoff.fail(now)) };
            self.event(now, None, EventKind::Warning, "FailedMount", message.to_owned(), out);
            self.report.touch_later(now + RUNNING_WRITE_MS);
        }
    }

    fn started(&mut self, now: Time, at: &ContainerRef, attempt: u32, out: &mut Vec<Out>) {
        let Some(at) = self.find_starting(at, attempt) else { return };
        self.began(at, attempt, now, out);
        if self.wish_hook(at, HookKind::PostStart, None, out) {
            self.containers[at].step = Step::PostStart { since: now, halt: Halt::No };
            self.report.touch_later(now + CREATING_WRITE_MS);
        } else {
            self.running(at, now, now, out);
        }
    }

    /// A container runs, since `since`.
    fn running(&mut self, at: usize, since: Time, now: Time, out: &mut Vec<Out>) {
        let pod = self.pod.clone();
        let container = &mut self.containers[at];
        container.step = Step::Running { since, halt: Halt::No };
        container.probes = container.spec(&pod).map(|spec| ProbeRun::of(spec, now)).unwrap_or_default();
        if self.all_ready() {
            self.report.touch(now);
        } else {
            self.report.touch_later(now + RUNNING_WRITE_MS);
        }
        // It may have been changed while its hook ran.
        self.renew_if_changed(at, now, out);
    }

    /// Notes that an attempt exists.
    fn began(&mut self, at: usize, attempt: u32, now: Time, out: &mut Vec<Out>) {
        let name = self.containers[at].name.clone();
        self.event(now, Some(at), EventKind::Normal, "Created", format!("Created container: {name}"), out);
        self.event(now, Some(at), EventKind::Normal, "Started", format!("Started container {name}"), out);
        let container = &mut self.containers[at];
        container.attempt = Some(attempt);
        container.renewed = false;
        // The first start is no restart: the first crash is followed by a start at once.
        if container.last.is_some() {
            container.crash.attempt(now);
        }
    }

    fn start_failed(&mut self, now: Time, at: &ContainerRef, attempt: u32, fault: StartFault, out: &mut Vec<Out>) {
        let Some(at) = self.find_starting(at, attempt) else { return };
        let container = &mut self.containers[at];
        let (reason, message) = match fault {
            StartFault::Config(why) => ("CreateContainerConfigError", why),
            StartFault::Create(why) => ("CreateContainerError", why),
            StartFault::Run(why) => {
                container.attempt = Some(attempt);
                ("RunContainerError", why)
            }
        };
        // What is missing may be made at any moment, so that is looked for at a steady pace; what cannot be run
        // stays so until someone pushes something else.
        let wait = match reason {
            "CreateContainerConfigError" => 10_000,
            _ => container.crash.fail(now),
        };
        container.step = Step::Idle { until: Some(now + wait) };
        container.waiting = Waiting { reason, message: message.clone() };
        self.event(now, Some(at), EventKind::Warning, "Failed", format!("Error: {message}"), out);
        self.report.touch(now);
    }

    fn exited(&mut self, now: Time, at: &ContainerRef, attempt: u32, exit: Exit, out: &mut Vec<Out>) {
        let runs = |step: &Step| matches!(step, Step::Starting | Step::PostStart { .. } | Step::Running { .. });
        let Some(at) = self.find(at, runs) else { return };
        match self.containers[at].step {
            Step::Starting if self.containers[at].next_attempt() != attempt => return,
            Step::Starting if exit.reason == ExitReason::ContainerCannotRun => {
                self.containers[at].attempt = Some(attempt);
                if self.containers[at].last.is_some() {
                    self.containers[at].crash.attempt(now);
                }
                self.event(now, Some(at), EventKind::Warning, "Failed", format!("Error: {}", exit.message), out);
            }
            Step::Starting => self.began(at, attempt, now, out),
            _ if self.containers[at].attempt != Some(attempt) => return,
            _ => {}
        }
        let end = Terminated {
            exit_code: exit.code,
            reason: exit.reason.as_str().to_owned(),
            message: exit.message,
            started_at: exit.started_at,
            finished_at: exit.finished_at,
            container_id: container_id(&self.uid, &self.containers[at].name, attempt),
        };
        self.containers[at].probes.clear();
        if self.ending().is_none() && self.restarts(at, end.exit_code) {
            self.start_again(at, end, now, out);
        } else {
            self.containers[at].step = Step::Ended(end);
        }
        self.report.touch(now);
    }

    fn restarts(&self, at: usize, exit_code: i32) -> bool {
        let container = &self.containers[at];
        container.renewed || restarts(container.part, self.restart_policy(), exit_code)
    }

    fn start_again(&mut self, at: usize, end: Terminated, now: Time, out: &mut Vec<Out>) {
        let reference = self.reference();
        let container = &mut self.containers[at];
        container.last = Some(end);
        let wait = if container.renewed { 0 } else { container.crash.wait_after_end(now) };
        if wait == 0 {
            container.step = Step::Idle { until: None };
            container.waiting = Waiting { reason: "ContainerCreating", message: String::new() };
            return;
        }
        let id = format!("{}_{}({})", reference.name, reference.namespace, reference.uid);
        let (name, seconds) = (&container.name, short_duration(wait));
        container.step = Step::Idle { until: Some(now + wait) };
        container.waiting = Waiting {
            reason: "CrashLoopBackOff",
            message: format!("back-off {seconds} restarting failed container={name} pod={id}"),
        };
        let message = format!("Back-off restarting failed container {name} in pod {id}");
        self.event(now, Some(at), EventKind::Warning, "BackOff", message, out);
    }

    fn probed(
        &mut self,
        now: Time,
        at: &ContainerRef,
        attempt: u32,
        kind: ProbeKind,
        outcome: ProbeOutcome,
        out: &mut Vec<Out>,
    ) {
        let Some(at) = self.find(at, |step| matches!(step, Step::Running { .. })) else { return };
        let container = &mut self.containers[at];
        if container.attempt != Some(attempt) {
            return;
        }
        let (was_ready, was_started) = (container.ready(), container.started());
        let Some(probe) = container.probes.iter_mut().find(|p| p.kind == kind) else { return };
        let finding = probe.answer(now, outcome);
        let (failed, own_grace) = (probe.failed(), probe.probe.termination_grace_period_seconds);
        let (ready, started, name) = (container.ready(), container.started(), container.name.clone());
        if let Finding::Failed(why) = finding {
            let message = format!("{} probe failed: {why}", kind.title());
            self.event(now, Some(at), EventKind::Warning, "Unhealthy", message, out);
        }
        let stopping = !matches!(self.containers[at].step, Step::Running { halt: Halt::No, .. });
        if failed && kind != ProbeKind::Readiness && !stopping {
            let grace_ms = own_grace
                .map_or_else(|| self.grace_ms(Ending::Over), |s| u64::try_from(s).unwrap_or(0).saturating_mul(1000));
            let message =
                format!("Container {name} failed {} probe, will be restarted", kind.title().to_ascii_lowercase());
            self.restart(at, grace_ms, &message, now, out);
        }
        match (was_ready, ready) {
            (false, true) if !self.all_ready() => self.report.touch_later(now + RUNNING_WRITE_MS),
            (a, b) if a != b => self.report.touch(now),
            _ if was_started != started => self.report.touch_later(now + RUNNING_WRITE_MS),
            _ => {}
        }
    }

    // ---- saying so ----

    fn write_status(&mut self, now: Time, config: &Config, waiting: usize, out: &mut Vec<Out>) {
        if self.gone || self.archived {
            return;
        }
        match self.report.due(waiting) {
            Some(due) if self.due(Some(due), now) => {
                if std::mem::take(&mut self.overruled) {
                    self.amend_backoff.attempt(now);
                    self.conditions.concede(self.pod.status.as_ref());
                }
                let status = self.status(now, config);
                if self.report.begin(&status) {
                    out.push(Out::WriteStatus { pod: self.reference(), status });
                } else if self.deleting() {
                    // Nothing to write after all: the removal may go on at once.
                    self.note_wake(now);
                }
            }
            _ => {}
        }
    }

    fn find(&self, at: &ContainerRef, in_step: impl Fn(&Step) -> bool) -> Option<usize> {
        self.containers.iter().position(|c| c.name == at.container && in_step(&c.step))
    }

    fn find_starting(&self, at: &ContainerRef, attempt: u32) -> Option<usize> {
        let found = self.find(at, |step| matches!(step, Step::Starting))?;
        (self.containers[found].next_attempt() == attempt).then_some(found)
    }

    fn container_ref(&self, at: usize) -> ContainerRef {
        ContainerRef { uid: self.uid.clone(), container: self.containers[at].name.clone() }
    }

    fn event(
        &self,
        now: Time,
        container: Option<usize>,
        kind: EventKind,
        reason: &'static str,
        message: String,
        out: &mut Vec<Out>,
    ) {
        let field = container.map(|at| self.containers[at].field()).unwrap_or_default();
        out.push(Out::Event(PodEvent { pod: self.reference(), field, kind, reason, message, at: now }));
    }
}

#[cfg(test)]
mod tests;
