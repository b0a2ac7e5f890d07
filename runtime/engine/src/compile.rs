//! Compiling: in a process of its own, so that a hostile or huge program cannot take the node down.
//!
//! The binary executes itself again with a hidden verb ([`compile_worker`]). The child gets the program as its standard
//! input and a file of the cache as its standard output; it needs no other file, no socket and no secret. It bounds its
//! memory and its time before it reads a byte, is the last that gets a processor, and ends when its parent does. What it
//! found out is one line of JSON on its standard error. A library that has no such verb compiles in its own process.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use dhow_files::{Access, NewFile};
use serde::{Deserialize, Serialize};

use crate::adapt;
use crate::linkers::{Family, settings};
use crate::program::{self, LoadError};

/// The largest program that is read: a guard against filling memory, far above the biggest seen (a JavaScript engine
/// with its program, 13 MiB).
const WASM_BYTES_MAX: u64 = 256 << 20;
/// How long the parent waits beyond the child's own time: then the child hangs, and is killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the child looks whether its parent is there, and at the clock.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// What a child may say; the rest is thrown away.
const WORDS_BYTES_MAX: u64 = 256 << 10;
/// Behind the node and its guests, before what runs only on an idle machine.
const NICE: i32 = 10;
/// The line on standard error that is the child's answer begins so.
const ANSWER: &str = "dhow-compile-worker: ";
/// The child's exit code when its time is over.
const CODE_TIME: i32 = 75;

/// Where programs are compiled.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// In this process, without bounds: for tests and for libraries that cannot be executed.
    InProcess,
    /// In a process of its own.
    Worker(Worker),
}

/// The process that compiles.
#[derive(Clone, Debug)]
pub struct Worker {
    /// What is executed.
    pub program: PathBuf,
    /// Its arguments, before the limits.
    pub args: Vec<OsString>,
    /// What it may use.
    pub limits: CompileLimits,
}

/// What compiling one program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Seconds of processor time.
    pub cpu_s: u64,
    /// Seconds.
    pub wall_s: u64,
}

impl Default for CompileLimits {
    /// 12 MiB, the biggest seen, take 370 MB and 13 s: four times as much, and time for a slow machine.
    fn default() -> Self {
        Self { memory_bytes: 2 << 30, cpu_s: 300, wall_s: 300 }
    }
}

impl Worker {
    /// This very binary, also when its file was replaced meanwhile, with a verb that calls [`compile_worker`].
    pub fn this_binary(verb: &str) -> Self {
        let (program, args) = (PathBuf::from("/proc/self/exe"), vec![verb.into()]);
        Self { program, args, limits: CompileLimits::default() }
    }
}

impl fmt::Display for CompileLimits {
    /// As the child's arguments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.memory_bytes, self.cpu_s, self.wall_s)
    }
}

impl std::str::FromStr for CompileLimits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[memory_bytes, cpu_s, wall_s]) => Ok(Self { memory_bytes, cpu_s, wall_s }),
            _ => Err(format!("`{text}` is not of the form BYTES,SECONDS,SECONDS")),
        }
    }
}

/// What a child found out.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The code is complete; the suffix of its [`Family`].
    Done(String),
    NotWasm(String),
    UnknownImport(Vec<String>),
    NoEntryPoint,
    Compile(String),
}

impl Compiler {
    /// Makes the code of a program and puts it into `target`, whole. Blocks for seconds.
    pub(crate) fn compile(&self, wasm: &Path, target: &Path) -> Result<Family, LoadError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LoadError::Io { path, source }
        };
        let mut from = File::open(wasm).map_err(failed(wasm))?;
        let mut file = NewFile::create(target, Access::Public).map_err(failed(target))?;
        let family = match self {
            Self::InProcess => {
                let (family, code) = translate(&mut from)?;
                file.write_all(&code).map_err(failed(target))?;
                family
            }
            Self::Worker(worker) => {
                let to = file.try_clone().map_err(failed(target))?;
                worker.run(from, to).map_err(failed(&worker.program))??
            }
        };
        file.commit().map_err(failed(target))?;
        Ok(family)
    }
}

impl Worker {
    fn run(&self, from: File, to: File) -> io::Result<Result<Family, LoadError>> {
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .arg(self.limits.to_string())
            .env_clear()
            // Else our allocator takes a GiB before it is asked for anything, which counts against the limit.
            .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
            .current_dir("/")
            .stdin(from)
            .stdout(to)
            .stderr(Stdio::piped())
            .spawn()?;
        let ended = self.attend(&mut child);
        // Whatever went wrong, no child is left behind.
        if ended.is_err() {
            child.kill().ok();
            child.wait().ok();
        }
        let (status, words) = ended?;
        Ok(self.judge(status, &words))
    }

    /// Waits for a child, and kills it when it hangs. Gives what it said.
    fn attend(&self, child: &mut Child) -> io::Result<(ExitStatus, String)> {
        let mut said = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (sender, words) = mpsc::channel();
        thread::Builder::new().name("compile-words".to_owned()).spawn(move || {
            let mut text = Vec::new();
            let read = (&mut said).take(WORDS_BYTES_MAX).read_to_end(&mut text);
            let rest = io::copy(&mut said, &mut io::sink());
            // A child whose words cannot be read is judged by its end.
            if let Err(error) = read.and(rest) {
                tracing::debug!(%error, "the words of a compiler broke off");
            }
            sender.send(String::from_utf8_lossy(&text).into_owned()).ok();
        })?;
        let deadline = Duration::from_secs(self.limits.wall_s) + PATIENCE;
        let text = match words.recv_timeout(deadline) {
            Ok(text) => text,
            Err(RecvTimeoutError::Timeout) => {
                child.kill()?;
                child.wait()?;
                return Ok((ExitStatus::from_raw(CODE_TIME << 8), String::new()));
            }
            Err(RecvTimeoutError::Disconnected) => String::new(),
        };
        Ok((child.wait()?, text))
    }

    fn judge(&self, status: ExitStatus, words: &str) -> Result<Family, LoadError> {
        let CompileLimits { memory_bytes, cpu_s, wall_s } = self.limits;
        let answer = words.lines().rev().find_map(|line| line.strip_prefix(ANSWER));
        let answer = answer.and_then(|text| serde_json::from_str(text).ok());
        let memory = format!("{} MiB of memory", memory_bytes >> 20);
        let costly = |needs: String| Err(LoadError::TooCostly { needs });
        match (answer, status.code(), status.signal()) {
            (Some(Answer::Done(suffix)), Some(0), _) => {
                let family = Family::ALL.into_iter().find(|family| family.suffix() == suffix);
                family.ok_or_else(|| LoadError::Compile { detail: format!("the compiler made `{suffix}`") })
            }
            (Some(Answer::NotWasm(detail)), ..) => Err(LoadError::NotWasm { detail }),
            (Some(Answer::UnknownImport(names)), ..) => Err(LoadError::UnknownImport { names }),
            (Some(Answer::NoEntryPoint), ..) => Err(LoadError::NoEntryPoint),
            (Some(Answer::Compile(detail)), ..) if out_of_memory(&detail) => costly(memory),
            (Some(Answer::Compile(detail)), ..) => Err(LoadError::Compile { detail }),
            (_, Some(CODE_TIME), _) => costly(format!("{wall_s} s")),
            (_, _, Some(libc::SIGXCPU)) => costly(format!("{cpu_s} s of processor time")),
            _ if out_of_memory(words) => costly(memory),
            (_, _, Some(libc::SIGKILL)) => {
                let detail = "the compiler was killed; the node may be short of memory".to_owned();
                Err(LoadError::Compile { detail })
            }
            _ => {
                tracing::warn!(%status, words = last_line(words), "the compiler broke down");
                Err(LoadError::Compile { detail: format!("the compiler broke down: {status}") })
            }
        }
    }
}

fn last_line(words: &str) -> &str {
    words.lines().last().unwrap_or_default()
}

/// What Rust, and the system in Wasmtime's words, say when there is no more memory.
fn out_of_memory(words: &str) -> bool {
    ["memory allocation of", "Cannot allocate memory", "os error 12"].iter().any(|part| words.contains(part))
}

/// The family of a program and its code.
fn translate(from: &mut File) -> Result<(Family, Vec<u8>), LoadError> {
    let bytes = read(from).map_err(|error| LoadError::NotWasm { detail: error.to_string() })?;
    let shape = program::inspect(&bytes)?;
    let bytes = if shape.adapt { adapt::adapt(&bytes)? } else { bytes };
    // From which allocator instances come makes no difference to the code: a pool need not be made for it.
    let engine = wasmtime::Engine::new(&settings(shape.family.wasi)).map_err(refused)?;
    let code = engine.precompile_component(&bytes).map_err(refused)?;
    Ok((shape.family, code))
}

fn refused(error: wasmtime::Error) -> LoadError {
    LoadError::Compile { detail: format!("{error:#}") }
}

fn read(from: &mut File) -> io::Result<Vec<u8>> {
    let len = from.metadata()?.len();
    if len > WASM_BYTES_MAX {
        return Err(io::Error::other(format!("the program has {len} bytes; at most {WASM_BYTES_MAX} are read")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    from.take(WASM_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The child's side: compiles what its standard input holds. Gives its exit code.
pub fn compile_worker(limits: CompileLimits) -> u8 {
    let answer = match bound(limits) {
        Err(error) => Answer::Compile(format!("bounding the compiler: {error}")),
        Ok(()) => match standard_files().map_err(|error| error.to_string()) {
            Err(why) => Answer::Compile(format!("opening the compiler's files: {why}")),
            Ok((from, to)) => work(from, to),
        },
    };
    let done = matches!(answer, Answer::Done(_));
    let text = serde_json::to_string(&answer).expect("plain data is JSON");
    let mut stderr = io::stderr().lock();
    // Whoever does not hear it sees the exit code.
    let said = writeln!(stderr, "\n{ANSWER}{text}").and_then(|()| stderr.flush());
    u8::from(!done || said.is_err())
}

fn work(mut from: File, mut to: File) -> Answer {
    let done = translate(&mut from);
    match done {
        Ok((family, code)) => match to.write_all(&code) {
            Ok(()) => Answer::Done(family.suffix().to_owned()),
            Err(error) => Answer::Compile(format!("writing the code: {error}")),
        },
        Err(LoadError::NotWasm { detail }) => Answer::NotWasm(detail),
        Err(LoadError::UnknownImport { names }) => Answer::UnknownImport(names),
        Err(LoadError::NoEntryPoint) => Answer::NoEntryPoint,
        Err(LoadError::Compile { detail }) => Answer::Compile(detail),
        Err(other) => Answer::Compile(other.to_string()),
    }
}

/// Standard input and output as files, without the buffers and locks of `std::io`.
fn standard_files() -> io::Result<(File, File)> {
    use std::os::fd::AsFd;
    let from = io::stdin().as_fd().try_clone_to_owned()?;
    let to = io::stdout().as_fd().try_clone_to_owned()?;
    Ok((from.into(), to.into()))
}

/// Bounds this process: memory that it writes to, processor time, time, and its parent's life.
fn bound(limits: CompileLimits) -> io::Result<()> {
    let CompileLimits { memory_bytes, cpu_s, wall_s } = limits;
    // Address space that is only reserved does not count; what is written to does.
    limit(libc::RLIMIT_DATA, memory_bytes, memory_bytes)?;
    limit(libc::RLIMIT_CPU, cpu_s, cpu_s.saturating_add(1))?;
    limit(libc::RLIMIT_CORE, 0, 0)?;
    // SAFETY: the call takes three numbers, and 0 means this process.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (parent, began) = (std::os::unix::process::parent_id(), Instant::now());
    thread::Builder::new().name("watch".to_owned()).spawn(move || {
        loop {
            thread::sleep(WATCH_EVERY);
            if began.elapsed() >= Duration::from_secs(wall_s) || std::os::unix::process::parent_id() != parent {
                std::process::exit(CODE_TIME);
            }
        }
    })?;
    Ok(())
}

#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a whole structure that lives as long as the call.
    if unsafe { libc::setrlimit(resource, &raw const limit) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(raw: i32, words: &str) -> String {
        let worker = Worker {
            program: PathBuf::new(),
            args: Vec::new(),
            limits: CompileLimits { memory_bytes: 64 << 20, cpu_s: 3, wall_s: 9 },
        };
        match worker.judge(ExitStatus::from_raw(raw), words) {
            Ok(family) => family.suffix().to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_end_of_a_child_says_why() {
        let answer = |answer: &Answer| format!("noise\n{ANSWER}{}\n", serde_json::to_string(answer).unwrap());
        for (raw, words, part) in [
            (0, answer(&Answer::Done("http.cwasm".to_owned())), "http.cwasm"),
            (0, answer(&Answer::Done("other".to_owned())), "the compiler made `other`"),
            (0, String::new(), "broke down: exit status: 0"),
            (1 << 8, answer(&Answer::NoEntryPoint), "exports no entry point"),
            (1 << 8, answer(&Answer::UnknownImport(vec!["a".to_owned()])), "imports what no node offers: `a`"),
            (1 << 8, answer(&Answer::Compile("bad".to_owned())), "compiling the program failed: bad"),
            (
                1 << 8,
                answer(&Answer::Compile("mmap (os error 12)".to_owned())),
                "more than 64 MiB of memory to compile",
            ),
            (libc::SIGABRT, "memory allocation of 9 bytes failed".to_owned(), "more than 64 MiB of memory to compile"),
            (libc::SIGXCPU, String::new(), "the module needs more than 3 s of processor time to compile"),
            (CODE_TIME << 8, String::new(), "the module needs more than 9 s to compile"),
            (libc::SIGKILL, String::new(), "short of memory"),
            (libc::SIGSEGV, String::new(), "broke down: signal: 11"),
            (101 << 8, "thread panicked".to_owned(), "broke down: exit status: 101"),
        ] {
            let said = judged(raw, &words);
            assert!(said.contains(part), "{words}: {said}");
        }
    }

    #[test]
    fn limits_are_an_argument() {
        let limits = CompileLimits::default();
        assert_eq!(limits.to_string().parse(), Ok(limits));
        for text in ["", "1,2", "1,2,3,4", "1,2,x", "-1,2,3"] {
            assert!(text.parse::<CompileLimits>().is_err(), "{text}");
        }
    }
}
