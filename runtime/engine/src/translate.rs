//! The side of compiling that compiles: what a process does that was started for one program, and what it is made of.

use std::fs::File;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::adapt;
use crate::compile::{ANSWER, Answer, CODE_TIME, CompileLimits, read};
use crate::linkers::{Family, settings};
use crate::program::{self, LoadError};
use crate::target::Target;

/// How often the child looks whether its parent is there, and at the clock.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// Behind the node and its guests, before what runs only on an idle machine.
const NICE: i32 = 10;

/// The family of a program and its code.
pub(crate) fn translate(from: &mut File, target: &Target) -> Result<(Family, Vec<u8>), LoadError> {
    let bytes = read(from).map_err(|error| LoadError::NotWasm { detail: error.to_string() })?;
    let shape = program::inspect(&bytes)?;
    let bytes = if shape.adapt { adapt::adapt(&bytes)? } else { bytes };
    // From which allocator instances come makes no difference to the code: a pool need not be made for it.
    let settings = settings(shape.family.wasi, target).map_err(refused)?;
    let engine = wasmtime::Engine::new(&settings).map_err(refused)?;
    let code = engine.precompile_component(&bytes).map_err(refused)?;
    Ok((Family { code: target.code(), ..shape.family }, code))
}

fn refused(error: wasmtime::Error) -> LoadError {
    LoadError::Compile { detail: format!("{error:#}") }
}

/// The child's side: compiles what its standard input holds. Gives its exit code.
pub fn compile_worker(limits: CompileLimits, target: &Target) -> u8 {
    let answer = match bound(limits) {
        Err(error) => Answer::Compile(format!("bounding the compiler: {error}")),
        Ok(()) => match standard_files().map_err(|error| error.to_string()) {
            Err(why) => Answer::Compile(format!("opening the compiler's files: {why}")),
            Ok((from, to)) => work(from, to, target),
        },
    };
    let done = matches!(answer, Answer::Done(_));
    let text = serde_json::to_string(&answer).expect("plain data is JSON");
    let mut stderr = io::stderr().lock();
    // Whoever does not hear it sees the exit code.
    let said = writeln!(stderr, "\n{ANSWER}{text}").and_then(|()| stderr.flush());
    u8::from(!done || said.is_err())
}

fn work(mut from: File, mut to: File, target: &Target) -> Answer {
    let done = translate(&mut from, target);
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
