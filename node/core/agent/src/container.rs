//! One container of a pod: where it is, and how its stored status is taken up.

use std::sync::Arc;

use dhow_runtime_contract::PullPolicy;
use dhow_types::{Time, Uid};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

use crate::backoff::Backoff;
use crate::ephemeral::is_ephemeral;
use crate::message::ProbeKind;
use crate::probe::ProbeRun;

/// How a container takes part in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// An ordinary container.
    Main,
    /// One that was added while the pod ran, and is started once.
    Ephemeral,
}

/// The end of one attempt of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terminated {
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started_at: Time,
    pub(crate) finished_at: Time,
    pub(crate) container_id: String,
}

/// Where a container is.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// To be started, not before `until`.
    Idle { until: Option<Time> },
    /// Its image is being fetched.
    Pulling,
    /// It is being started.
    Starting,
    /// It runs, and does not count as running until its `postStart` hook has succeeded.
    PostStart { since: Time, halt: Halt },
    /// It runs.
    Running { since: Time, halt: Halt },
    /// It ended and will not be started again.
    Ended(Terminated),
}

/// How far the end of a running container has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// It is not to end.
    No,
    /// Its `preStop` hook is under way. Its grace period ends at `ends`.
    PreStop { ends: Time },
    /// It is to end when its turn has come. Its grace period ends at `ends`.
    Turn { ends: Time },
    /// It was told to end within so much time.
    Told { grace_ms: u64 },
}

/// What `state.waiting` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// One container of a pod.
#[derive(Clone, Debug)]
pub(crate) struct ContainerRun {
    pub(crate) name: Arc<str>,
    pub(crate) part: Part,
    pub(crate) index: usize,
    pub(crate) step: Step,
    pub(crate) waiting: Waiting,
    /// When `ErrImagePull` becomes `ImagePullBackOff`.
    pub(crate) pull_turns: Option<Time>,
    /// The latest attempt that was started; the next one is one more.
    pub(crate) attempt: Option<u32>,
    /// How the attempt before ended.
    pub(crate) last: Option<Terminated>,
    /// The image's name in the pod when the container was started.
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) crash: Backoff,
    pub(crate) pull: Backoff,
    pub(crate) probes: Vec<ProbeRun>,
    /// Start again whatever the restart policy says: its image was changed.
    pub(crate) renewed: bool,
}

impl ContainerRun {
    pub(crate) fn new(name: &str, part: Part, index: usize, waiting: &'static str) -> Self {
        Self {
            name: name.into(),
            part,
            index,
            step: Step::Idle { until: None },
            waiting: Waiting { reason: waiting, message: String::new() },
            pull_turns: None,
            attempt: None,
            last: None,
            image: String::new(),
            image_id: String::new(),
            crash: Backoff::containers(),
            pull: Backoff::containers(),
            probes: Vec::new(),
            renewed: false,
        }
    }

    /// Its part of the pod's spec.
    pub(crate) fn spec<'a>(&self, pod: &'a Pod) -> Option<&'a Container> {
        let spec = pod.spec.as_ref()?;
        let list = match self.part {
            // They stand behind the ordinary ones, see `ephemeral`.
            Part::Main | Part::Ephemeral => Some(&spec.containers),
            Part::Init | Part::Sidecar => spec.init_containers.as_ref(),
        };
        list?.get(self.index)
    }

    pub(crate) fn next_attempt(&self) -> u32 {
        self.attempt.map_or(0, |n| n.saturating_add(1))
    }

    pub(crate) fn running(&self) -> bool {
        matches!(self.step, Step::Running { .. })
    }

    pub(crate) fn verdict(&self, kind: ProbeKind) -> Option<bool> {
        self.probes.iter().find(|p| p.kind == kind).map(|p| p.verdict == Some(true))
    }

    /// Whether it runs and its startup probe, if any, succeeded.
    pub(crate) fn started(&self) -> bool {
        self.running() && self.verdict(ProbeKind::Startup) != Some(false)
    }

    /// Whether it may get traffic; for an init container, whether it did its work.
    pub(crate) fn ready(&self) -> bool {
        match self.part {
            Part::Init => matches!(&self.step, Step::Ended(end) if end.exit_code == 0),
            Part::Ephemeral => false,
            Part::Sidecar | Part::Main => self.started() && self.verdict(ProbeKind::Readiness) != Some(false),
        }
    }

    /// Whether the containers after this init container may go on.
    pub(crate) fn initialized(&self) -> bool {
        match self.part {
            Part::Init => self.ready(),
            Part::Sidecar => self.started() || matches!(self.step, Step::Ended(_)),
            Part::Main | Part::Ephemeral => true,
        }
    }

    /// Whether an operation or a run of it is under way.
    pub(crate) fn busy(&self) -> bool {
        matches!(self.step, Step::Pulling | Step::Starting) || self.exists()
    }

    /// Whether its instance exists.
    pub(crate) fn exists(&self) -> bool {
        matches!(self.step, Step::PostStart { .. } | Step::Running { .. })
    }

    /// How far its end has come, if its instance exists.
    pub(crate) fn halt_mut(&mut self) -> Option<&mut Halt> {
        match &mut self.step {
            Step::PostStart { halt, .. } | Step::Running { halt, .. } => Some(halt),
            Step::Idle { .. } | Step::Pulling | Step::Starting | Step::Ended(_) => None,
        }
    }

    /// Whether those after it must wait for it: a container with a `postStart` hook is started before they are.
    pub(crate) fn holds_back(&self, pod: &Pod) -> bool {
        let hook = self.spec(pod).and_then(|spec| spec.lifecycle.as_ref()?.post_start.as_ref()).is_some();
        let before = matches!(
            self.step,
            Step::Idle { until: None } | Step::Pulling | Step::Starting | Step::PostStart { halt: Halt::No, .. }
        );
        hook && before
    }

    pub(crate) fn field(&self) -> String {
        let list = match self.part {
            Part::Main => "containers",
            Part::Init | Part::Sidecar => "initContainers",
            Part::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.name)
    }
}

pub(crate) fn restarts(part: Part, policy: &str, exit_code: i32) -> bool {
    match (part, policy) {
        (Part::Sidecar, _) => true,
        (Part::Ephemeral, _) => false,
        (Part::Init, "Never") | (Part::Main, "Never") => false,
        (Part::Init, _) | (Part::Main, "OnFailure") => exit_code != 0,
        (Part::Main, _) => true,
    }
}

/// The containers of a pod, as its stored status left them: what ended for good stays so, what ran is to run anew.
pub(crate) fn adopt(now: Time, pod: &Pod) -> Vec<ContainerRun> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let has_inits = spec.init_containers.as_ref().is_some_and(|list| !list.is_empty());
    let waiting = if has_inits { "PodInitializing" } else { "ContainerCreating" };
    let inits = spec.init_containers.iter().flatten().enumerate().map(|(index, c)| {
        let part = if c.restart_policy.as_deref() == Some("Always") { Part::Sidecar } else { Part::Init };
        ContainerRun::new(&c.name, part, index, waiting)
    });
    let mains = spec.containers.iter().enumerate();
    let mains = mains.map(|(index, c)| match is_ephemeral(pod, &c.name) {
        true => ContainerRun::new(&c.name, Part::Ephemeral, index, "ContainerCreating"),
        false => ContainerRun::new(&c.name, Part::Main, index, waiting),
    });
    adopt_stored(now, pod, policy, inits.chain(mains).collect())
}

/// The ephemeral containers that were added to a pod of which `known` are known.
pub(crate) fn added(pod: &Pod, known: &[ContainerRun]) -> Vec<ContainerRun> {
    let containers = pod.spec.iter().flat_map(|spec| spec.containers.iter().enumerate());
    let new = containers.filter(|(_, c)| is_ephemeral(pod, &c.name) && !known.iter().any(|k| *k.name == *c.name));
    new.map(|(index, c)| ContainerRun::new(&c.name, Part::Ephemeral, index, "ContainerCreating")).collect()
}

fn adopt_stored(now: Time, pod: &Pod, policy: &str, mut containers: Vec<ContainerRun>) -> Vec<ContainerRun> {
    let Some(status) = &pod.status else { return containers };
    let stored = |c: &ContainerRun| -> Option<&ContainerStatus> {
        let list = match c.part {
            Part::Main => &status.container_statuses,
            Part::Init | Part::Sidecar => &status.init_container_statuses,
            Part::Ephemeral => &status.ephemeral_container_statuses,
        };
        list.iter().flatten().find(|s| *s.name == *c.name)
    };
    for container in &mut containers {
        let Some(stored) = stored(container) else { continue };
        container.last = stored.last_state.as_ref().and_then(|s| s.terminated.as_ref()).map(terminated);
        let had_run = stored.restart_count > 0 || stored.container_id.is_some() || container.last.is_some();
        container.attempt = had_run.then(|| u32::try_from(stored.restart_count).unwrap_or(0));
        let state = stored.state.as_ref();
        if let Some(running) = state.and_then(|s| s.running.as_ref()) {
            let lost = Terminated {
                exit_code: 137,
                reason: "ContainerStatusUnknown".to_owned(),
                message: "The node agent was stopped while the container ran.".to_owned(),
                started_at: running.started_at.as_ref().map_or(now, |t| time(&t.0)),
                finished_at: now,
                container_id: stored.container_id.clone().unwrap_or_default(),
            };
            if container.part == Part::Ephemeral || (container.part == Part::Main && policy == "Never") {
                container.step = Step::Ended(lost);
            } else {
                container.last = Some(lost);
            }
        } else if let Some(end) = state.and_then(|s| s.terminated.as_ref()).map(terminated) {
            if matches!(container.part, Part::Main | Part::Ephemeral)
                && !restarts(container.part, policy, end.exit_code)
            {
                container.step = Step::Ended(end);
            } else {
                container.last = Some(end);
            }
        }
        if matches!(container.step, Step::Ended(_)) {
            container.image.clone_from(&stored.image);
            container.image_id.clone_from(&stored.image_id);
        }
    }
    containers
}

fn terminated(stored: &k8s_openapi::api::core::v1::ContainerStateTerminated) -> Terminated {
    Terminated {
        exit_code: stored.exit_code,
        reason: stored.reason.clone().unwrap_or_default(),
        message: stored.message.clone().unwrap_or_default(),
        started_at: stored.started_at.as_ref().map_or(Time::from_ms(0), |t| time(&t.0)),
        finished_at: stored.finished_at.as_ref().map_or(Time::from_ms(0), |t| time(&t.0)),
        container_id: stored.container_id.clone().unwrap_or_default(),
    }
}

pub(crate) fn time(stamp: &k8s_openapi::jiff::Timestamp) -> Time {
    Time::from_ms(stamp.as_millisecond())
}

/// `containerID` of an attempt.
pub(crate) fn container_id(uid: &Uid, name: &str, attempt: u32) -> String {
    format!("dhow://{uid}/{name}/{attempt}")
}

pub(crate) fn pull_policy(policy: Option<&str>, image: &str) -> PullPolicy {
    match policy {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        // The API server fills this in; an object that slipped past it is treated alike.
        None if image.ends_with(":latest") => PullPolicy::Always,
        None => PullPolicy::IfNotPresent,
    }
}

/// A length of time as Go prints it: `980ms`, `10s`, `1m20s`, `5m0s`.
pub(crate) fn short_duration(ms: u64) -> String {
    match (ms / 60_000, ms % 60_000) {
        (0, ms) if ms < 1000 => format!("{ms}ms"),
        (0, ms) if ms % 1000 == 0 => format!("{}s", ms / 1000),
        (0, ms) => format!("{}.{:03}s", ms / 1000, ms % 1000),
        (minutes, ms) => format!("{minutes}m{}s", ms / 1000),
    }
}
