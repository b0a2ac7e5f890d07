//! Compiling: in a process of its own, so that a hostile or huge program cannot take the node down.
//!
//! The binary executes itself again with a hidden verb (`translate`). The child gets the program as its standard
//! input and a file of the cache as its standard output; it needs no other file, no socket and no secret. It bounds its
//! memory and its time before it reads a byte, is the last that gets a processor, and ends when its parent does. What it
//! found out is one line of JSON on its standard error. A library that has no such verb compiles in its own process.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use dhow_files::{Access, NewFile};
use serde::{Deserialize, Serialize};

use crate::elsewhere::Elsewhere;
use crate::linkers::Family;
use crate::program::LoadError;
use crate::target::{Code, CodeSettings, Target};

/// The largest program that is read: a guard against filling memory, far above the biggest seen (a JavaScript engine
/// with its program, 13 MiB).
const WASM_BYTES_MAX: u64 = 256 << 20;
/// How long the parent waits beyond the child's own time: then the child hangs, and is killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a child may say; the rest is thrown away.
const WORDS_BYTES_MAX: u64 = 256 << 10;
/// The line on standard error that is the child's answer begins so.
pub(crate) const ANSWER: &str = "dhow-compile-worker: ";
/// The child's exit code when its time is over.
pub(crate) const CODE_TIME: i32 = 75;

/// Where programs are compiled.
#[derive(Clone, Debug, Default)]
pub enum Compiler {
    /// In this process, without bounds: for tests and for libraries that cannot be executed.
    #[cfg(feature = "compiler")]
    #[default]
    InProcess,
    /// In a process of its own.
    Worker(Worker),
    /// By somebody else.
    Elsewhere(Elsewhere),
    /// Nowhere: only what was compiled before can be run.
    #[cfg_attr(not(feature = "compiler"), default)]
    Nowhere,
}

/// The process that compiles.
#[derive(Clone, Debug)]
pub struct Worker {
    /// What is executed.
    pub program: PathBuf,
    /// Its arguments, before the limits and the target.
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
    /// This very binary, also when its file was replaced meanwhile, with a verb that calls `compile_worker`.
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
pub(crate) enum Answer {
    /// The code is complete; the suffix of its [`Family`].
    Done(String),
    NotWasm(String),
    UnknownImport(Vec<String>),
    NoEntryPoint,
    Compile(String),
}

impl Compiler {
    /// Makes the code of a program that this node itself is to run, and puts it into `target`, whole. Blocks for seconds.
    pub(crate) fn compile(&self, wasm: &Path, to: &Path, code: Code) -> Result<Family, LoadError> {
        self.make(wasm, to, &Target::here(code))
    }

    /// Makes the code of a program for another node, which has asked for such settings, and puts it into the file `to`,
    /// whole. Gives its kind. Blocks for seconds.
    pub fn compile_for(&self, settings: &CodeSettings, wasm: &Path, to: &Path) -> Result<String, LoadError> {
        let target = settings.target();
        let target = target.map_err(|why| LoadError::OtherSettings { settings: settings.to_string(), why })?;
        self.make(wasm, to, &target).map(|family| family.suffix().to_owned())
    }

    fn make(&self, wasm: &Path, to: &Path, target: &Target) -> Result<Family, LoadError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LoadError::Io { path, source }
        };
        let from = File::open(wasm).map_err(failed(wasm))?;
        let file = NewFile::create(to, Access::Public).map_err(failed(to))?;
        let family = match self {
            #[cfg(feature = "compiler")]
            Self::InProcess => {
                let (mut from, mut file) = (from, file.try_clone().map_err(failed(to))?);
                let (family, code) = crate::translate::translate(&mut from, target)?;
                io::Write::write_all(&mut file, &code).map_err(failed(to))?;
                family
            }
            Self::Worker(worker) => {
                let into = file.try_clone().map_err(failed(to))?;
                worker.run(from, into, target).map_err(failed(&worker.program))??
            }
            Self::Elsewhere(_) | Self::Nowhere => return Err(LoadError::NoCompiler),
        };
        file.commit().map_err(failed(to))?;
        Ok(family)
    }
}

impl Worker {
    fn run(&self, from: File, to: File, target: &Target) -> io::Result<Result<Family, LoadError>> {
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .arg(self.limits.to_string())
            .arg(target.to_string())
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
            (Some(Answer::Done(suffix)), Some(0), _) => Family::of_suffix(&suffix)
                .ok_or_else(|| LoadError::Compile { detail: format!("the compiler made `{suffix}`") }),
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

/// Reads a program's file.
pub(crate) fn read_program(path: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    read(&mut file).map_err(|error| LoadError::NotWasm { detail: error.to_string() })
}

/// Reads a program.
pub(crate) fn read(from: &mut File) -> io::Result<Vec<u8>> {
    let len = from.metadata()?.len();
    if len > WASM_BYTES_MAX {
        return Err(io::Error::other(format!("the program has {len} bytes; at most {WASM_BYTES_MAX} are read")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    from.take(WASM_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
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
