//! The handle to one container: what it does now, what is wished of it, how it ended.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dhow_host::{About, Accounts, OutOfMemory, SetupError, Template};
use dhow_runtime_contract::{ContainerSpec, EntryPoint, Exit, ExitReason, LogConfig, Usage};
use dhow_switch::PodNet;
use dhow_types::Time;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

use crate::aside::Aside;
use crate::engine::Engine;
use crate::logs::{LogPipe, LogWriter};
use crate::meter::Cpu;
use crate::output::{BUFFER_BYTES_MAX, BytePipe, Capture, Channel, Input, Sink, Tee, lock};
use crate::program::{Pre, Program};
use crate::trap::describe;
use crate::{command, serve};

/// The exit code of a container that was stopped: 128 + SIGTERM.
const CODE_STOPPED: i32 = 143;
/// The exit code of a container that was killed or ran out of memory: 128 + SIGKILL.
const CODE_KILLED: i32 = 137;
/// The exit code of a program that gave up by itself (a Rust panic, `abort`): 128 + SIGABRT.
const CODE_ABORTED: i32 = 134;
/// The exit code of every other trap: 128 + SIGSEGV.
const CODE_TRAPPED: i32 = 139;
/// The exit code of a container that could not be started, as other container runtimes have it.
const CODE_CANNOT_RUN: i32 = 128;
/// How long the last lines of a container may take to reach their log before its end is reported all the same.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// Where a container's output goes to and its input comes from.
pub enum Io {
    /// Lines to a log file, and to those who attach; input from those, if the specification says so.
    Log(LogConfig),
    /// The first bytes of both outputs into memory; no input. For probes.
    Capture {
        /// How many bytes are kept; the rest is dropped.
        max_bytes: usize,
    },
    /// Streams of the caller's, for an interactive command.
    Streams {
        /// What the guest reads; `None` is an input at its end.
        stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
        /// What gets the guest's stdout.
        stdout: Box<dyn AsyncWrite + Send + Unpin>,
        /// What gets the guest's stderr.
        stderr: Box<dyn AsyncWrite + Send + Unpin>,
        /// Whether the guest is told that these are a terminal.
        tty: bool,
    },
}

/// What is wished of a container. Later wishes are never weaker than earlier ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wish {
    Run,
    /// End in order, until then.
    Stop(Instant),
    Kill,
}

#[derive(Clone, Debug)]
enum Phase {
    Starting,
    Running,
    Ended { exit: Exit, ran: bool },
}

/// A container. Handles are cheap to clone; dropping them does not stop it.
#[derive(Clone)]
pub struct Container {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    entry: EntryPoint,
    started_at: Time,
    phase: watch::Sender<Phase>,
    wish: watch::Sender<Wish>,
    cpu: Arc<Cpu>,
    accounts: Accounts,
    /// Threads of its own, while it runs.
    aside: Mutex<Option<Arc<Aside>>>,
    requests: Requests,
    /// Where the lines of a logged container go.
    log: Option<Arc<LogPipe>>,
    capture: Option<Arc<Capture>>,
    /// Whom the output of a logged container reaches besides its log.
    tee: Option<Arc<Tee>>,
    core_dump: Option<PathBuf>,
    /// What those who attach write to; nothing once it is closed.
    stdin: tokio::sync::Mutex<Option<DuplexStream>>,
}

/// The HTTP requests of one container.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) asked: AtomicU64,
    /// Those that the program did not answer.
    pub(crate) failed: AtomicU64,
}

impl Container {
    /// How its program is entered.
    pub fn entry(&self) -> EntryPoint {
        self.shared.entry
    }

    /// Waits until its instance runs, or its HTTP ports listen. `Err` if it ended without ever getting there.
    pub async fn running(&self) -> Result<(), Exit> {
        match self.shared.phase_that(|phase| !matches!(phase, Phase::Starting)).await {
            Phase::Ended { exit, ran: false } => Err(exit),
            _ => Ok(()),
        }
    }

    /// Ends it in order. An HTTP container takes no more connections and has `grace` to answer what it has begun, as has a
    /// command that imports `dhow:pod/lifecycle` to end by itself. Any other has no way to hear of it and ends at once.
    pub fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.shared.wish.send_if_modified(|wish| match *wish {
            Wish::Kill => false,
            Wish::Stop(earlier) if earlier <= deadline => false,
            _ => {
                *wish = Wish::Stop(deadline);
                true
            }
        });
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.shared.wish.send_if_modified(|wish| std::mem::replace(wish, Wish::Kill) != Wish::Kill);
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        loop {
            if let Phase::Ended { exit, .. } = self.shared.phase_that(|p| matches!(p, Phase::Ended { .. })).await {
                return exit;
            }
        }
    }

    /// When it was started.
    pub fn started_at(&self) -> Time {
        self.shared.started_at
    }

    /// What it has used so far.
    pub fn usage(&self) -> Usage {
        let Shared { cpu, accounts: Accounts { memory, files }, requests, log, .. } = &*self.shared;
        let (throttling, files) = (cpu.throttling(), files.used());
        Usage {
            cpu_ns: cpu.used_ns(),
            memory_bytes: memory.held(),
            memory_limit: memory.limit(),
            cpu_periods: throttling.periods,
            cpu_throttled_periods: throttling.throttled,
            cpu_throttled_ns: throttling.throttled_ns,
            http_requests: requests.asked.load(Ordering::Relaxed),
            http_failures: requests.failed.load(Ordering::Relaxed),
            log_bytes: log.as_ref().map_or(0, |log| log.written_bytes()),
            fs_reads: files.reads,
            fs_read_bytes: files.read_bytes,
            fs_writes: files.writes,
            fs_written_bytes: files.written_bytes,
        }
    }

    /// Passes on what it writes from now on, until it ends, or until the future is dropped.
    pub async fn attach(&self, stdout: Box<dyn AsyncWrite + Send + Unpin>, stderr: Box<dyn AsyncWrite + Send + Unpin>) {
        let Some(tee) = &self.shared.tee else { return };
        let pipes = [Channel::Stdout, Channel::Stderr].map(|channel| Listening(tee.listen(channel)));
        let [out, err] = &pipes;
        tokio::join!(out.0.clone().pump(stdout), err.0.clone().pump(stderr));
    }

    /// Gives the program something to read; waits while it does not.
    pub async fn write_stdin(&self, bytes: &[u8]) -> io::Result<()> {
        match &mut *self.shared.stdin.lock().await {
            Some(stdin) => stdin.write_all(bytes).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends the program's input.
    pub async fn close_stdin(&self) {
        self.shared.stdin.lock().await.take();
    }

    /// What an [`Io::Capture`] container wrote; complete after [`wait`](Self::wait).
    pub fn captured(&self) -> Vec<u8> {
        self.shared.capture.as_ref().map(|capture| capture.bytes()).unwrap_or_default()
    }
}

impl Shared {
    async fn phase_that(&self, holds: impl FnMut(&Phase) -> bool) -> Phase {
        let mut phases = self.phase.subscribe();
        let phase = phases.wait_for(holds).await.map(|phase| phase.clone());
        // The sender lives in `self`, so the wait cannot fail.
        phase.unwrap_or(Phase::Starting)
    }

    pub(crate) fn set_running(&self) {
        self.phase.send_replace(Phase::Running);
    }

    pub(crate) fn wishes(&self) -> watch::Receiver<Wish> {
        self.wish.subscribe()
    }

    pub(crate) fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Where the memory of an instance that traps is written to, if anywhere.
    pub(crate) fn core_dump(&self) -> Option<&PathBuf> {
        self.core_dump.as_ref()
    }

    pub(crate) fn cpu(&self) -> &Arc<Cpu> {
        &self.cpu
    }

    fn end(&self, end: End) {
        self.phase.send_if_modified(|phase| {
            let ran = match phase {
                Phase::Starting => false,
                Phase::Running => true,
                Phase::Ended { .. } => return false,
            };
            let End { code, reason, message } = end;
            let exit = Exit { code, reason, message, started_at: self.started_at, finished_at: now() };
            *phase = Phase::Ended { exit, ran };
            true
        });
    }
}

/// An [`Exit`] without its times.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) code: i32,
    pub(crate) reason: ExitReason,
    pub(crate) message: String,
}

impl End {
    pub(crate) fn completed() -> Self {
        Self { code: 0, reason: ExitReason::Completed, message: String::new() }
    }

    pub(crate) fn cannot_run(message: String) -> Self {
        Self { code: CODE_CANNOT_RUN, reason: ExitReason::ContainerCannotRun, message }
    }

    pub(crate) fn exited(code: i32) -> Self {
        match code {
            0 => Self::completed(),
            _ => Self { code, reason: ExitReason::Error, message: String::new() },
        }
    }

    /// The end that a wish brought about.
    pub(crate) fn wished(wish: Wish) -> Self {
        let code = if wish == Wish::Kill { CODE_KILLED } else { CODE_STOPPED };
        Self { code, reason: ExitReason::Killed, message: String::new() }
    }

    /// The end of a guest that did not return by itself.
    pub(crate) fn failed(error: &wasmtime::Error, began: bool) -> Self {
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return Self::exited(exit.0);
        }
        if let Some(refusal) = error.downcast_ref::<OutOfMemory>() {
            return Self { code: CODE_KILLED, reason: ExitReason::OomKilled, message: refusal.to_string() };
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::UnreachableCodeReached) => {
                Self { code: CODE_ABORTED, reason: ExitReason::Error, message: describe(error) }
            }
            Some(_) => Self { code: CODE_TRAPPED, reason: ExitReason::Error, message: describe(error) },
            None if began => Self { code: CODE_TRAPPED, reason: ExitReason::Error, message: describe(error) },
            None => Self::cannot_run(with_hint(describe(error))),
        }
    }
}

/// Adds what to do about the one failure to start that is the machine's and not the program's.
fn with_hint(mut message: String) -> String {
    if message.contains("Cannot allocate memory") {
        message.push_str("; raise the node's `vm.max_map_count`, or let it have fewer Pods");
    }
    message
}

/// Waits until something other than running is wished.
pub(crate) async fn wished(wishes: &mut watch::Receiver<Wish>) -> Wish {
    // The reference that the wait gives holds a lock and must be gone before the next wait.
    let wish = wishes.wait_for(|wish| *wish != Wish::Run).await.map(|wish| *wish);
    match wish {
        Ok(wish) => wish,
        // Nobody is left who could wish anything.
        Err(_) => std::future::pending().await,
    }
}

/// Waits until the container is to end at once.
pub(crate) async fn killed(wishes: &mut watch::Receiver<Wish>) {
    let gone = wishes.wait_for(|wish| *wish == Wish::Kill).await.is_err();
    if gone {
        std::future::pending().await
    }
}

pub(crate) fn start(
    engine: &Engine,
    program: &Program,
    spec: ContainerSpec,
    io: Io,
    net: PodNet,
    within: Option<&Container>,
) -> Container {
    let Ends { sink, input, pumps, capture, tee, stdin } = connect(io, engine.logs(), (spec.stdin, spec.tty));
    let aside = aside(engine, &spec, within);
    let (cpu, accounts) = match within {
        Some(Container { shared }) => (shared.cpu.clone(), shared.accounts.clone()),
        None => {
            let handle = aside.as_ref().ok().and_then(Option::as_ref).map(|aside| aside.handle().clone());
            (Cpu::new(spec.cpu_request_m, spec.cpu_limit_m, handle), Accounts::new(spec.memory_limit))
        }
    };
    let shared = Arc::new(Shared {
        entry: program.entry(),
        started_at: now(),
        phase: watch::Sender::new(Phase::Starting),
        wish: watch::Sender::new(Wish::Run),
        cpu,
        accounts,
        aside: Mutex::new(aside.clone().ok().flatten()),
        requests: Requests::default(),
        log: match &sink {
            Sink::Log { pipe, .. } => Some(pipe.clone()),
            Sink::Capture(_) | Sink::Streams { .. } => None,
        },
        capture,
        tee,
        core_dump: spec.core_dump.clone(),
        stdin: tokio::sync::Mutex::new(stdin),
    });
    let container = Container { shared: shared.clone() };
    let id = engine.register(container.clone());
    let (engine_of_task, program) = (engine.clone(), program.clone());
    engine.runtime().spawn(async move {
        let engine = engine_of_task;
        // Whatever happens below, also a panic or the end of the runtime, the container has an end.
        let guard = EndGuard { shared: &shared, engine: &engine, id };
        let pumps: Vec<_> = pumps.into_iter().map(|(pipe, writer)| tokio::spawn(pipe.pump(writer))).collect();
        let end = match &aside {
            Ok(aside) => run(&engine, &program, (spec, net, aside.as_deref()), input, &sink, &shared).await,
            Err(why) => End::cannot_run(why.clone()),
        };
        if end.reason == ExitReason::Error && !end.message.is_empty() {
            sink.note(&end.message);
        }
        if tokio::time::timeout(FLUSH_MAX, sink.flushed()).await.is_err() {
            tracing::warn!("the last output of a container did not reach its destination in time");
        }
        sink.close();
        for pump in pumps {
            if tokio::time::timeout(FLUSH_MAX, pump).await.is_err() {
                tracing::debug!("an output stream was not closed in time");
            }
        }
        guard.end(end);
    });
    container
}

/// Threads of its own for a container that needs them; a command in it shares them.
fn aside(engine: &Engine, spec: &ContainerSpec, within: Option<&Container>) -> Result<Option<Arc<Aside>>, String> {
    if !spec.foreign_files {
        return Ok(None);
    }
    match within {
        Some(Container { shared }) => {
            let aside = lock(&shared.aside).clone();
            aside.map(Some).ok_or_else(|| "the container has ended".to_owned())
        }
        None => {
            let dirs = spec.mounts.iter().map(|mount| mount.host.clone()).collect();
            engine.asides().open(dirs).map(|aside| Some(Arc::new(aside)))
        }
    }
}

async fn run(
    engine: &Engine,
    program: &Program,
    (spec, net, aside): (ContainerSpec, PodNet, Option<&Aside>),
    input: InputSource,
    sink: &Sink,
    shared: &Arc<Shared>,
) -> End {
    let (ports, serving) = (spec.http_ports.clone(), spec.http);
    let mut wishes = shared.wishes();
    let template = tokio::select! {
        // A disk that hangs does not keep it from its end.
        () = killed(&mut wishes) => return End::wished(Wish::Kill),
        template = template(spec, net, shared.accounts.clone(), aside) => template,
    };
    let template = match template {
        Ok(template) => template,
        Err(error) => return End::cannot_run(error.to_string()),
    };
    match &program.inner.pre {
        Pre::Command(program) => command::run(engine, program, &template, input.open(), sink, shared).await,
        Pre::Http(pre) => serve::run(engine, pre, template, (&ports, serving), sink, shared).await,
    }
}

/// Opens the mounts, which may touch a slow disk.
async fn template(
    spec: ContainerSpec,
    net: PodNet,
    accounts: Accounts,
    aside: Option<&Aside>,
) -> Result<Template, SetupError> {
    let setup = dhow_host::Setup {
        args: spec.args,
        env: spec.env,
        mounts: spec.mounts,
        scratch: spec.scratch,
        working_dir: spec.working_dir,
        net,
        about: About { node: spec.node, container: spec.name, labels: spec.labels },
        stores: spec.stores,
        accounts,
    };
    if setup.mounts.is_empty() {
        return Template::new(setup);
    }
    let threads = aside.map_or_else(Handle::current, |aside| aside.handle().clone());
    let opened = threads.spawn_blocking(move || Template::new(setup)).await;
    opened.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Reports an end even if the task never comes to it.
struct EndGuard<'a> {
    shared: &'a Shared,
    engine: &'a Engine,
    id: u64,
}

impl EndGuard<'_> {
    fn end(self, end: End) {
        self.shared.end(end);
    }
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        let message = "the node stopped running the container".to_owned();
        self.shared.end(End { code: CODE_KILLED, reason: ExitReason::Killed, message });
        lock(&self.shared.aside).take();
        self.engine.unregister(self.id);
    }
}

/// Stdin before the guest's runtime is there to read it.
struct InputSource {
    reader: Option<Box<dyn AsyncRead + Send + Unpin>>,
    tty: bool,
}

impl InputSource {
    fn open(self) -> Input {
        match self.reader {
            Some(reader) => Input::stream(reader, self.tty),
            None => Input::empty(),
        }
    }
}

type Pump = (Arc<BytePipe>, Box<dyn AsyncWrite + Send + Unpin>);

/// What a container's output and input are connected with.
struct Ends {
    sink: Sink,
    input: InputSource,
    pumps: Vec<Pump>,
    capture: Option<Arc<Capture>>,
    tee: Option<Arc<Tee>>,
    stdin: Option<DuplexStream>,
}

impl Ends {
    fn of(sink: Sink) -> Self {
        let input = InputSource { reader: None, tty: false };
        Self { sink, input, pumps: Vec::new(), capture: None, tee: None, stdin: None }
    }
}

fn connect(io: Io, logs: &LogWriter, (stdin, tty): (bool, bool)) -> Ends {
    match io {
        Io::Log(config) => {
            let (pipe, tee) = (logs.pipe(config), Arc::new(Tee::default()));
            let mut ends = Ends::of(Sink::Log { pipe, tee: tee.clone(), tty });
            ends.tee = Some(tee);
            ends.input.tty = tty;
            if stdin {
                let (reader, writer) = tokio::io::duplex(BUFFER_BYTES_MAX);
                ends.input.reader = Some(Box::new(reader));
                ends.stdin = Some(writer);
            }
            ends
        }
        Io::Capture { max_bytes } => {
            let capture = Capture::new(max_bytes);
            Ends { capture: Some(capture.clone()), ..Ends::of(Sink::Capture(capture)) }
        }
        Io::Streams { stdin, stdout, stderr, tty } => {
            let (out, err) = (BytePipe::new(), BytePipe::new());
            let sink = Sink::Streams { stdout: out.clone(), stderr: err.clone(), tty };
            let input = InputSource { reader: stdin, tty };
            Ends { input, pumps: vec![(out, stdout), (err, stderr)], ..Ends::of(sink) }
        }
    }
}

/// A pipe that nobody listens to any more once this is gone.
struct Listening(Arc<BytePipe>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_ms(since.as_millis() as i64)
}
