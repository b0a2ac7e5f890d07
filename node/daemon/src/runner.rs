//! Drives the deciding part: one loop that feeds the [`Agent`] and fulfils its wishes.
//!
//! Each wish becomes a task of this loop's own set; what comes of it is fed back. Nothing here decides.
//!
//! | task | its failure | its cancellation (at stop) |
//! |---|---|---|
//! | set up, tear down | told to the agent, which tries again | files stay; the next start goes on or cleans up |
//! | pull, start | told to the agent | the container is ended by the engine; its object is left as it is |
//! | probe, hook | told to the agent | its command ends |
//! | status, delete | told to the agent, which tries again | the next start writes again |

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use dhow_agent::env::{self, Place, ServiceLink};
use dhow_agent::eviction::{Evictor, Pressure, Thresholds};
use dhow_agent::ipam::Ipam;
use dhow_agent::volumes;
use dhow_agent::{
    Agent, ContainerRef, In, Keep, Out, PodRef, ProbeKind, ProbeOutcome, PullFault, StartFault, ephemeral, files, spec,
};
use dhow_client::{Client, Event};
use dhow_engine::{Engine, Io};
use dhow_runtime_contract::{ContainerSpec, Exit, LogConfig, PullPolicy};
use dhow_switch::{PodIdentity, Switch};
use dhow_tasks::Stop;
use dhow_types::{Chain, Machine, NodeName, Uid};
use k8s_openapi::api::core::v1::{Pod, Probe};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::clock::Forward;
use crate::control::ControlNodes;
use crate::events::Recorder;
use crate::hooks::Hook;
use crate::images::{Images, Wanted, apply_defaults};
use crate::last_word::{LastWord, remove_private};
use crate::layout::{self, Layout};
use crate::objects::ObjectReader;
use crate::register::Standing;
use crate::sandbox::{Running, Sandbox, Sandboxes};
use crate::usage::Meters;
use crate::view::View;
use crate::volumes::host_path::HostPaths;
use crate::volumes::refresh::Refresh;
use crate::volumes::tokens::Tokens;
use crate::{api, eviction, exec, hooks, probes, volumes as disk};

/// Answers that wait for the loop. A task that finds it full waits.
const ANSWERS_MAX: usize = 1024;
/// Changes of pods that wait for the loop; then the API server's flow control holds them back.
const PODS_QUEUE_MAX: usize = 256;
/// Pods whose volumes are written at the same time: disk work, so a few dozen.
pub(crate) const DISK_WORK_MAX: usize = 32;
/// Containers that are being started at the same time.
const STARTS_MAX: usize = 64;
/// Writes to the API server that are under way at the same time; they share one HTTP/2 connection.
const WRITES_MAX: usize = 48;
/// Probes that are under way at the same time.
const PROBES_MAX: usize = 256;
/// Where an attempt keeps what its program stores in no volume, among the files of its own.
const STORES: &str = "stores";
/// The pause after a panic of the loop, so that a pod that causes one each time does not keep the node busy.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// A container's log is rotated at this size, as a kubelet does, and so many files are kept.
const LOG_BYTES_MAX: u64 = 10 * 1024 * 1024;
const LOG_FILES_MAX: u32 = 5;

/// Everything that fulfilling wishes needs.
pub(crate) struct Shared {
    pub(crate) node: NodeName,
    pub(crate) host_ip: IpAddr,
    pub(crate) client: Client,
    pub(crate) control: ControlNodes,
    pub(crate) layout: Layout,
    pub(crate) switch: Switch,
    pub(crate) engine: Engine,
    pub(crate) images: Images,
    pub(crate) objects: ObjectReader,
    pub(crate) tokens: Tokens,
    pub(crate) links: RwLock<BTreeMap<String, Arc<ServiceLink>>>,
    pub(crate) sandboxes: Sandboxes,
    /// What the watch of nodes shows of this one.
    pub(crate) standing: watch::Sender<Standing>,
    pub(crate) events: Recorder,
    pub(crate) meters: Meters,
    /// What the node is short of.
    pub(crate) pressure: watch::Sender<Pressure>,
    /// When pods have to leave for the node's sake.
    pub(crate) thresholds: Thresholds,
    /// Held while volumes are written.
    pub(crate) disk: Semaphore,
    pub(crate) host_paths: HostPaths,
    pub(crate) refresh: Refresh,
    pub(crate) allocatable_cpu_m: i64,
    pub(crate) allocatable_memory: i64,
}

impl Shared {
    pub(crate) fn place(&self, pod_ip: IpAddr) -> Place {
        Place {
            node_name: self.node.as_str().to_owned(),
            host_ip: self.host_ip,
            pod_ip,
            allocatable_cpu_m: self.allocatable_cpu_m,
            allocatable_memory: self.allocatable_memory,
        }
    }

    fn service_links(&self) -> Vec<Arc<ServiceLink>> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// How many things may be under way at once.
struct Limits {
    starts: Semaphore,
    writes: Semaphore,
    probes: Semaphore,
}

/// The loop.
pub(crate) struct Runner {
    shared: Arc<Shared>,
    limits: Arc<Limits>,
    agent: Agent,
    ipam: Ipam,
    answers: mpsc::Sender<In>,
    inbox: mpsc::Receiver<In>,
    work: JoinSet<Option<In>>,
    clock: Forward,
    listed: bool,
}

/// Watches this node's pods. A task of its own: a list that takes its time must not be begun again whenever the loop
/// is woken by something else.
async fn watch_pods(client: Client, node: NodeName, events: mpsc::Sender<Event>, stop: Stop) {
    let mut pods = client.watch(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}"));
    while let Some(event) = stop.or(pods.next()).await {
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Runs pods until told to stop. If the loop panics, that is a fault of ours: everything that it started is ended, and
/// a new loop takes the pods up as after a restart of the agent, so that one bad pod does not leave the others without
/// care.
pub(crate) async fn keep_running(shared: Arc<Shared>, ipam: Ipam, stop: Stop) {
    while !stop.is_stopped() {
        let mut work = JoinSet::new();
        let (events, pods) = mpsc::channel(PODS_QUEUE_MAX);
        work.spawn(watch_pods(shared.client.clone(), shared.node.clone(), events, stop.clone()));
        let runner = Runner::new(shared.clone(), ipam.clone());
        let evictor = Evictor::new(shared.thresholds.clone());
        work.spawn(eviction::run(shared.clone(), evictor, runner.answers.clone(), stop.clone()));
        work.spawn(runner.run(pods, stop.clone()));
        let panicked = matches!(work.join_next().await, Some(Err(_)));
        if !panicked {
            // Told to stop: the other one ends as well.
            while work.join_next().await.is_some() {}
            return;
        }
        work.shutdown().await;
        tracing::error!("the loop that runs pods panicked; all pods of this node are restarted");
        shared.engine.shutdown().await;
        for uid in shared.sandboxes.clear() {
            shared.switch.remove_pod(&uid);
        }
        if stop.or(tokio::time::sleep(AFTER_PANIC)).await.is_none() {
            return;
        }
    }
}

/// What the loop is woken by.
enum Woken {
    Pods(Event),
    Answer(In),
    Work(Result<Option<In>, tokio::task::JoinError>),
    Time,
    Stop,
}

impl Runner {
    pub(crate) fn new(shared: Arc<Shared>, ipam: Ipam) -> Self {
        let (answers, inbox) = mpsc::channel(ANSWERS_MAX);
        let agent = Agent::new(dhow_agent::Config { host_ip: shared.host_ip });
        let limits = Limits {
            starts: Semaphore::new(STARTS_MAX),
            writes: Semaphore::new(WRITES_MAX),
            probes: Semaphore::new(PROBES_MAX),
        };
        Self {
            shared,
            limits: Arc::new(limits),
            agent,
            ipam,
            answers,
            inbox,
            work: JoinSet::new(),
            clock: Forward::default(),
            listed: false,
        }
    }

    /// Runs until told to stop. Its tasks end with it; what they did stays as it is.
    pub(crate) async fn run(mut self, mut pods: mpsc::Receiver<Event>, stop: Stop) {
        let mut out = Vec::new();
        loop {
            let now = self.clock.now();
            let wake = self.agent.next_wake().map(|at| Duration::from_millis(at.ms_since(now)));
            let woken = tokio::select! {
                () = stop.stopped() => Woken::Stop,
                Some(event) = pods.recv() => Woken::Pods(event),
                Some(input) = self.inbox.recv() => Woken::Answer(input),
                Some(done) = self.work.join_next() => Woken::Work(done),
                () = tokio::time::sleep(wake.unwrap_or(Duration::MAX)), if wake.is_some() => Woken::Time,
            };
            match woken {
                Woken::Stop => break,
                Woken::Pods(event) => self.pods(event, &mut out),
                Woken::Answer(input) | Woken::Work(Ok(Some(input))) => self.feed(input, &mut out),
                Woken::Work(Ok(None)) => {}
                Woken::Work(Err(err)) => tracing::error!(%err, "a task of the agent panicked"),
                Woken::Time => {
                    let now = self.clock.now();
                    self.agent.wake(now, &mut out);
                }
            }
            self.fulfil(&mut out);
        }
        self.work.shutdown().await;
    }

    fn pods(&mut self, event: Event, out: &mut Vec<Out>) {
        match event {
            Event::Restarted(list) => self.restarted(&list, out),
            Event::Applied(tree) => {
                if let Some(pod) = parse(&tree) {
                    self.pod(pod, out);
                }
            }
            Event::Deleted(tree) => {
                if let Some(uid) = tree.pointer("/metadata/uid").and_then(|uid| uid.as_str()) {
                    self.gone(&Uid::new(uid), out);
                }
            }
        }
    }

    fn restarted(&mut self, list: &[dhow_api::Tree], out: &mut Vec<Out>) {
        let pods: Vec<_> = list.iter().filter_map(parse).collect();
        let present: BTreeSet<Uid> =
            pods.iter().filter_map(|pod| Some(Uid::new(pod.metadata.uid.as_deref()?))).collect();
        let gone: Vec<Uid> = self.agent.pods().filter(|uid| !present.contains(uid)).cloned().collect();
        for uid in gone {
            self.gone(&uid, out);
        }
        if !self.listed {
            self.listed = true;
            self.take_up(&pods, present);
        }
        for pod in pods {
            self.pod(pod, out);
        }
    }

    /// At the first list: pods keep the addresses that they had, and what deleted pods left goes.
    fn take_up(&mut self, pods: &[Arc<Pod>], present: BTreeSet<Uid>) {
        for pod in pods {
            let status = pod.status.as_ref();
            let ended = matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
            let ip = status.and_then(|s| s.pod_ip.as_deref()?.parse().ok());
            if let (Some(uid), Some(ip), false) = (&pod.metadata.uid, ip, ended) {
                self.ipam.reserve(&Uid::new(uid.as_str()), ip);
            }
        }
        // Found now, before new pods have files, and removed while they start.
        let orphans = self.shared.layout.orphans(&present.iter().map(|uid| uid.as_str().to_owned()).collect());
        self.work.spawn_blocking(move || {
            layout::remove_orphans(&orphans);
            None
        });
    }

    fn pod(&mut self, pod: Arc<Pod>, out: &mut Vec<Out>) {
        if let Some(uid) = pod.metadata.uid.as_deref() {
            self.shared.sandboxes.know(&Uid::new(uid), &pod);
            self.shared.refresh.tell(&Uid::new(uid), &pod);
            self.feed(In::Pod(pod), out);
        }
    }

    fn gone(&mut self, uid: &Uid, out: &mut Vec<Out>) {
        self.shared.sandboxes.forget(uid);
        self.feed(In::Gone(uid.clone()), out);
    }

    fn feed(&mut self, input: In, out: &mut Vec<Out>) {
        match &input {
            In::SandboxRemoved(uid) => self.ipam.free(uid),
            // An address whose pod could not be set up is not kept.
            In::SandboxFailed { uid, .. } => self.ipam.free(uid),
            _ => {}
        }
        let now = self.clock.now();
        self.agent.handle(now, input, out);
    }

    fn fulfil(&mut self, out: &mut Vec<Out>) {
        // A wish that cannot even be begun is answered at once, which may bring new wishes.
        while !out.is_empty() {
            let mut refused = Vec::new();
            for wish in out.drain(..) {
                if let Some(answer) = self.begin(wish) {
                    refused.push(answer);
                }
            }
            for answer in refused {
                self.feed(answer, out);
            }
        }
    }

    /// Begins to fulfil a wish; answers it if that is all.
    fn begin(&mut self, wish: Out) -> Option<In> {
        let (shared, limits) = (self.shared.clone(), self.limits.clone());
        match wish {
            Out::Event(event) => shared.events.record(event),
            Out::SetUp(pod) => return self.begin_set_up(pod),
            Out::Pull { at, image, policy } => {
                let answers = self.answers.clone();
                self.work.spawn(async move { Some(pull(&shared, &answers, at, (&image, policy)).await) });
            }
            Out::Start { at, attempt, pod } => {
                let answers = self.answers.clone();
                self.work.spawn(run_container(shared, limits, answers, at, attempt, pod));
            }
            Out::Stop { at, attempt, grace_ms } => {
                let running = shared.sandboxes.running(&at.uid, &at.container);
                if let Some(running) = running.filter(|r| r.attempt == attempt) {
                    running.container.stop(Duration::from_millis(grace_ms));
                }
            }
            Out::Probe { at, attempt, kind, probe, timeout_ms, pod } => {
                let question = Question { at, attempt, kind, probe, timeout: Duration::from_millis(timeout_ms), pod };
                self.work.spawn(async move {
                    let _permit = limits.probes.acquire().await.expect("the semaphore is never closed");
                    Some(ask(&shared, question).await)
                });
            }
            Out::Hook { at, attempt, hook, handler, timeout_ms, pod } => {
                let timeout = timeout_ms.map(Duration::from_millis);
                let hook = Hook { at, attempt, kind: hook, handler, timeout, pod };
                self.work.spawn(async move { Some(hooks::run(&shared, hook).await) });
            }
            Out::TearDown { pod, keep } => {
                self.work.spawn(async move { Some(tear_down(&shared, pod, keep).await) });
            }
            Out::WriteStatus { pod, status } => {
                self.work.spawn(async move {
                    let _permit = limits.writes.acquire().await.expect("the semaphore is never closed");
                    let outcome = api::write_status(&shared.client, &pod, status).await;
                    Some(In::StatusWritten { uid: pod.uid, outcome })
                });
            }
            Out::DeletePod(pod) => {
                self.work.spawn(async move {
                    let _permit = limits.writes.acquire().await.expect("the semaphore is never closed");
                    let outcome = api::delete_pod(&shared.client, &pod).await;
                    Some(In::Deleted { uid: pod.uid, outcome })
                });
            }
        }
        None
    }

    fn begin_set_up(&mut self, pod: Arc<Pod>) -> Option<In> {
        let uid = Uid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        let ip = match self.ipam.assign(&uid) {
            Ok(ip) => ip,
            Err(err) => return Some(In::SandboxFailed { uid, message: err.to_string() }),
        };
        let shared = self.shared.clone();
        self.work.spawn(async move {
            Some(match set_up(&shared, &uid, pod, ip).await {
                Ok(()) => In::SandboxReady { uid, ip },
                Err(message) => In::SandboxFailed { uid, message },
            })
        });
        None
    }
}

fn parse(tree: &dhow_api::Tree) -> Option<Arc<Pod>> {
    match <Pod as serde::Deserialize>::deserialize(tree) {
        Ok(pod) => Some(Arc::new(ephemeral::joined(pod))),
        Err(err) => {
            let name = tree.pointer("/metadata/name").and_then(|n| n.as_str()).unwrap_or_default();
            tracing::warn!(name, %err, "a pod cannot be understood and is left alone");
            None
        }
    }
}

// ---- sandboxes ----

async fn set_up(shared: &Shared, uid: &Uid, pod: Arc<Pod>, ip: IpAddr) -> Result<(), String> {
    let volumes = disk::set_up::set_up(shared, uid, &pod, ip).await?;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let net = shared.switch.add_pod(PodIdentity {
        uid: uid.clone(),
        namespace: text(&pod.metadata.namespace),
        name: text(&pod.metadata.name),
        ip,
        hostname: env::hostname(&pod),
        service_account: pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
    });
    let hosts = files::host_aliases(&pod);
    if !hosts.is_empty() {
        net.set_hosts(hosts);
    }
    let (images, running) = (BTreeMap::new(), BTreeMap::new());
    let sandbox = Sandbox { pod: pod.clone(), ip, net, volumes: Arc::new(volumes), images, running };
    shared.sandboxes.insert(uid.clone(), sandbox);
    shared.refresh.tell(uid, &pod);
    Ok(())
}

async fn tear_down(shared: &Arc<Shared>, pod: PodRef, keep: Keep) -> In {
    let mut in_memory = false;
    if let Some(sandbox) = shared.sandboxes.remove(&pod.uid) {
        shared.refresh.tell(&pod.uid, &sandbox.pod);
        in_memory = volumes::in_memory(&sandbox.pod);
    }
    shared.switch.remove_pod(&pod.uid);
    if keep == Keep::Nothing || in_memory {
        let (layout, pod) = (shared.layout.clone(), pod.clone());
        let removed = tokio::task::spawn_blocking(move || match keep {
            Keep::Nothing => layout.remove_pod(&pod.namespace, &pod.name, &pod.uid),
            // Memory is not kept for a pod that has ended.
            Keep::Files => layout.free_memory(&pod.uid),
        });
        let removed = removed.await;
        if let Err(err) = removed {
            tracing::error!(%err, "removing a pod's files panicked");
        }
    }
    In::SandboxRemoved(pod.uid)
}

// ---- containers ----

async fn pull(
    shared: &Shared,
    answers: &mpsc::Sender<In>,
    at: ContainerRef,
    (image, policy): (&str, PullPolicy),
) -> In {
    let gone = || PullFault::Failed("the pod is gone".to_owned());
    let Some(pod) = shared.sandboxes.with(&at.uid, |sandbox| sandbox.pod.clone()) else {
        return In::Pulled { at, result: Err(gone()) };
    };
    let began = async {
        // Only a loop that ends does not hear it.
        answers.send(In::PullBegan { at: at.clone() }).await.ok();
    };
    let pulled = shared.images.pull(&shared.objects, Wanted { image, policy, pod: &pod }, began).await;
    let result = pulled.and_then(|(image, pulled)| {
        let kept = shared.sandboxes.with(&at.uid, |sandbox| sandbox.images.insert(at.container.clone(), image));
        kept.map(|_| pulled).ok_or_else(gone)
    });
    In::Pulled { at, result }
}

/// Starts a container, says so, and says when it ended.
async fn run_container(
    shared: Arc<Shared>,
    limits: Arc<Limits>,
    answers: mpsc::Sender<In>,
    at: ContainerRef,
    attempt: u32,
    pod: Arc<Pod>,
) -> Option<In> {
    // In a box of its own, so that a task that only waits for the end stays small.
    let started = Box::pin(start_container(&shared, &limits, &at, attempt, pod)).await;
    drop(limits);
    let (running, last_word) = match started {
        Ok(started) => started,
        Err(Fault::Start(fault)) => return Some(In::StartFailed { at, attempt, fault }),
        Err(Fault::Ended(exit)) => return Some(In::Exited { at, attempt, exit }),
    };
    // By the channel that keeps the order: the end must not overtake the beginning.
    answers.send(In::Started { at: at.clone(), attempt }).await.ok()?;
    let mut exit = running.container.wait().await;
    shared.sandboxes.ended(&at.uid, &at.container, attempt);
    if let Some(last_word) = last_word {
        exit.message = last_word.hear(&exit).await;
    }
    drop((shared, running));
    answers.send(In::Exited { at, attempt, exit }).await.ok()?;
    None
}

enum Fault {
    Start(StartFault),
    Ended(Exit),
}

impl From<StartFault> for Fault {
    fn from(fault: StartFault) -> Self {
        Fault::Start(fault)
    }
}

async fn start_container(
    shared: &Shared,
    limits: &Limits,
    at: &ContainerRef,
    attempt: u32,
    pod: Arc<Pod>,
) -> Result<(Running, Option<Box<LastWord>>), Fault> {
    let gone = || StartFault::Run("the pod is gone".to_owned());
    let (net, ip, volumes, image) = shared
        .sandboxes
        .with(&at.uid, |s| (s.net.clone(), s.ip, s.volumes.clone(), s.images.get(&at.container).cloned()))
        .ok_or_else(gone)?;
    let image = image.ok_or_else(gone)?;
    let private = shared.layout.private(&at.uid, &at.container, attempt).ok_or_else(gone)?;
    // What an attempt of the same number left before the agent was stopped.
    if private.exists() {
        remove_private(private.clone()).await;
    }
    let (mut spec, view) = container_spec(shared, &pod, at, attempt, ip, &volumes).await?;
    if let Some(container) = spec::container(&pod, &at.container) {
        apply_defaults(&image.defaults, container, &mut spec);
    }
    let _permit = limits.starts.acquire().await.expect("the semaphore is never closed");
    let program = shared.images.program(&image).await?;
    let logs = shared.layout.logs(&pod, &at.container).ok_or_else(gone)?;
    if attempt > 1 {
        logs.prune(attempt);
    }
    let log = logs.file(attempt);
    spec.core_dump = spec::wants_core_dump(&pod).then(|| logs.core(attempt));
    let last_word = spec::container(&pod, &at.container).map(|container| LastWord::of(container, &view, private, &log));
    let io = Io::Log(LogConfig { path: log, max_bytes: LOG_BYTES_MAX, max_files: LOG_FILES_MAX });
    let container = shared.engine.start(&program, spec, io, net);
    let running = Running { attempt, container };
    shared.sandboxes.started(&at.uid, &at.container, running.clone());
    if let Err(exit) = running.container.running().await {
        shared.sandboxes.ended(&at.uid, &at.container, attempt);
        return Err(Fault::Ended(exit));
    }
    Ok((running, last_word.map(Box::new)))
}

/// What the engine is told about a container, and what that sees of files.
pub(crate) async fn container_spec(
    shared: &Shared,
    pod: &Pod,
    at: &ContainerRef,
    attempt: u32,
    ip: IpAddr,
    volumes: &Arc<BTreeMap<String, PathBuf>>,
) -> Result<(ContainerSpec, View), StartFault> {
    let container = spec::container(pod, &at.container);
    let container = container.ok_or_else(|| StartFault::Run("the pod has no such container".to_owned()))?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let objects = shared.objects.fetch(namespace, &env::references(container)).await.map_err(StartFault::Config)?;
    let env = env::environment(pod, container, &shared.place(ip), &objects, &shared.service_links())
        .map_err(|err| StartFault::Config(err.to_string()))?;
    let plans = volumes::mounts(pod, container, &env).map_err(|err| StartFault::Config(err.to_string()))?;
    let private = shared.layout.private(&at.uid, &at.container, attempt);
    let private = private.ok_or_else(|| StartFault::Config(format!("bad container name `{}`", at.container)))?;
    let own = files::own_files(pod, container, ip);
    let stores = private.join(STORES);
    let view = if plans.is_empty() {
        look(&private, volumes, &plans, own)
    } else {
        let volumes = volumes.clone();
        let _permit = shared.disk.acquire().await.expect("the semaphore is never closed");
        let looked = tokio::task::spawn_blocking(move || look(&private, &volumes, &plans, own));
        looked.await.unwrap_or_else(|err| Err(format!("mounting broke off: {err}")))
    };
    let view = view.map_err(StartFault::Config)?;
    let files = (view.mounts.clone(), view.scratch.clone());
    let spec = spec::container_spec(pod, container, attempt, env, files);
    Ok((ContainerSpec { stores: Some(stores), ..spec }, view))
}

/// What a container with these mounts sees.
fn look(
    private: &Path,
    volumes: &BTreeMap<String, PathBuf>,
    plans: &[volumes::MountPlan],
    own: Vec<(String, String)>,
) -> Result<View, String> {
    let mount = |plan: &volumes::MountPlan| {
        let volume = volumes.get(&plan.volume).ok_or_else(|| format!("volume \"{}\" is not set up", plan.volume))?;
        disk::mount(volume, plan).map_err(|err| format!("mounting volume \"{}\": {}", plan.volume, Chain(&err)))
    };
    let mounted = plans.iter().map(mount).collect::<Result<Vec<_>, String>>()?;
    View::make(private, mounted, own).map_err(|err| Chain(&err).to_string())
}

// ---- probes ----

struct Question {
    at: ContainerRef,
    attempt: u32,
    kind: ProbeKind,
    probe: Arc<Probe>,
    timeout: Duration,
    pod: Arc<Pod>,
}

async fn ask(shared: &Shared, question: Question) -> In {
    let Question { at, attempt, kind, probe, timeout, pod } = question;
    let outcome = match (spec::container(&pod, &at.container), shared.sandboxes.with(&at.uid, |s| s.ip)) {
        (Some(container), Some(ip)) => match probes::ask(&shared.switch, ip, container, &probe, timeout).await {
            Some(outcome) => outcome,
            None => {
                let command = probe.exec.as_ref().and_then(|e| e.command.clone()).unwrap_or_default();
                match exec::run(shared, &at, &pod, command, timeout).await {
                    Ok(()) => ProbeOutcome::Success,
                    Err(why) => ProbeOutcome::Failure(why),
                }
            }
        },
        _ => ProbeOutcome::Failure("the container is gone".to_owned()),
    };
    In::Probed { at, attempt, kind, outcome }
}
