//! Programs that somebody else has compiled, on engines that compile nothing.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dhow_engine::{
    Code, Compiler, Config, Container, Delivered, Elsewhere, Engine, Io, LoadError, NotDelivered, Program, Wanted,
};
use dhow_runtime_contract::{ContainerSpec, EntryPoint, ExitReason};
use dhow_switch::PodNet;

use crate::rig::{Net, guests, output, spec, until};

fn guest(name: &str) -> PathBuf {
    guests().join(format!("{name}.wasm"))
}

fn start_on(engine: &Engine, program: &Program, spec: ContainerSpec, net: PodNet) -> Container {
    engine.start(program, spec, Io::Capture { max_bytes: 64 * 1024 }, net)
}

/// What becomes of a program whose code is wanted.
type Compile = dyn Fn(&Wanted) -> Result<Delivered, NotDelivered> + Send + Sync;

/// An engine that has everything compiled by this.
fn engine(dir: &Path, code: Code, compile: Arc<Compile>) -> Engine {
    // SAFETY: what is delivered in these tests was made in them, or is refused before it is run.
    let elsewhere = unsafe { Elsewhere::new(move |wanted| std::future::ready(compile(&wanted))) };
    let compiler = Compiler::Elsewhere(elsewhere);
    Engine::new(Config { workers: Some(2), compiler, code, ..Config::new(dir) }).unwrap()
}

/// Compiles as a control node does: for the first settings that it has no objection to.
fn compile(wanted: &Wanted, accepts: impl Fn(&str) -> bool) -> Result<Delivered, NotDelivered> {
    let settings = wanted.settings.iter().find(|settings| accepts(&settings.to_string()));
    let settings = settings.ok_or_else(|| NotDelivered::Failed("nobody makes such code".to_owned()))?;
    let made = Compiler::InProcess.compile_for(settings, &wanted.wasm, &wanted.to);
    made.map(|kind| Delivered { kind }).map_err(|error| NotDelivered::Refused(error.to_string()))
}

fn compiled(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A program that computes for ever.
fn spin(dir: &Path) -> PathBuf {
    let path = dir.join("spin.wasm");
    std::fs::write(&path, wat::parse_file(guests().join("hostile/spin.wat")).unwrap()).unwrap();
    path
}

/// Runs guests of every kind on an engine.
async fn exercise(engine: &Engine, spin: &Path) {
    for (name, args, code, reason, said) in [
        ("tool", &["tool", "env"][..], 0, ExitReason::Completed, "arg env\nenv NAME=value\n"),
        ("tool", &["tool", "exit", "3"], 1, ExitReason::Error, ""),
        ("tool", &["tool", "panic"], 134, ExitReason::Error, "as I was told"),
        ("tool3", &["tool", "env"], 0, ExitReason::Completed, "arg env\nenv NAME=value\n"),
    ] {
        let program = engine.load(&guest(name), &format!("sha256:{name}")).await.unwrap();
        let container = start_on(engine, &program, spec(args), Net::new().pod(2));
        let exit = container.wait().await;
        assert_eq!((exit.code, exit.reason), (code, reason), "{name} {args:?}: {exit:?}");
        assert!(output(&container).contains(said), "{name} {args:?}: {}", output(&container));
    }
    for name in ["http", "http3"] {
        let net = Net::new();
        let program = engine.load(&guest(name), &format!("sha256:{name}")).await.unwrap();
        assert_eq!(program.entry(), EntryPoint::Http);
        let container = start_on(engine, &program, spec(&[]), net.pod(2));
        container.running().await.unwrap();
        for (path, answer) in [("/", "hello\n"), ("/count", "1"), ("/count", "1")] {
            assert_eq!(net.request("10.64.0.2:8080", path, "").await, (200, answer.to_owned()), "{name} {path}");
        }
        container.kill();
        container.wait().await;
    }
    let program = engine.load(spin, "sha256:spin").await.unwrap();
    let container = start_on(engine, &program, spec(&[]), Net::new().pod(2));
    container.running().await.unwrap();
    until(|| container.usage().cpu_ns > 0).await;
    container.kill();
    assert_eq!(container.wait().await.code, 137);
}

#[tokio::test]
async fn what_others_compiled_runs_natively_and_under_pulley() {
    let dir = tempfile::tempdir().unwrap();
    let spin = spin(dir.path());
    for (code, kinds) in [
        (Code::Native, ["command.cwasm", "command3.cwasm", "http.cwasm", "http3.cwasm"]),
        (Code::Pulley, ["command-pulley.cwasm", "command3-pulley.cwasm", "http-pulley.cwasm", "http3-pulley.cwasm"]),
    ] {
        let cache = dir.path().join(kinds[0]);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let fetch = {
            let asked = asked.clone();
            Arc::new(move |wanted: &Wanted| {
                asked.lock().unwrap().push(wanted.digest.clone());
                compile(wanted, |_| true)
            })
        };
        exercise(&engine(&cache, code, fetch), &spin).await;
        let mut asked = asked.lock().unwrap().clone();
        asked.sort();
        assert_eq!(asked, ["sha256:http", "sha256:http3", "sha256:spin", "sha256:tool", "sha256:tool3"]);
        let names = compiled(&cache);
        assert!(names.len() == 5 && kinds.iter().all(|kind| names.iter().any(|n| n.ends_with(kind))), "{names:?}");
        // An engine that compiles nothing and asks nobody runs what is there.
        let config = Config { compiler: Compiler::Nowhere, code, ..Config::new(&cache) };
        let alone = Engine::new(config).unwrap();
        exercise(&alone, &spin).await;
        assert!(matches!(alone.load(&guest("tool"), "sha256:new").await, Err(LoadError::NoCompiler)));
    }
}

#[tokio::test]
async fn where_the_compiler_is_of_another_processor_programs_run_under_pulley() {
    let dir = tempfile::tempdir().unwrap();
    let said = async |engine: &Engine| {
        let program = engine.load(&guest("tool"), "sha256:tool").await.unwrap();
        let container = start_on(engine, &program, spec(&["tool", "env"]), Net::new().pod(2));
        assert_eq!(container.wait().await.code, 0);
        output(&container)
    };
    let other = engine(dir.path(), Code::Native, Arc::new(|wanted| compile(wanted, |s| s.ends_with("-pulley64"))));
    assert!(said(&other).await.contains("arg env\n"));
    let names = compiled(dir.path());
    assert!(matches!(names.as_slice(), [one] if one.ends_with(".command-pulley.cwasm")), "{names:?}");
    // Once there it is found again, by an engine that would rather have other code.
    let silent = Arc::new(|_: &Wanted| Err(NotDelivered::Failed("nobody answers".to_owned())));
    let again = engine(dir.path(), Code::Native, silent);
    assert!(said(&again).await.contains("arg env\n"));
    let error = again.load(&guest("tool"), "sha256:new").await.err().unwrap();
    assert_eq!(error.to_string(), "the program has to be compiled, and this node has no compiler: nobody answers");
}

#[tokio::test]
async fn code_that_does_not_fit_is_refused_by_name_and_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let made = |suffix: &str, name: &str| {
        let to = dir.path().join(format!("{name}.{suffix}"));
        let all = [Code::Native, Code::Pulley].map(Code::settings);
        let settings = all.iter().find(|settings| settings.to_string().ends_with(suffix)).unwrap();
        Compiler::InProcess.compile_for(settings, &guest(name), &to).unwrap();
        std::fs::read(to).unwrap()
    };
    let native = made(std::env::consts::ARCH, "tool");
    // The engine's version stands before the triple, each behind its length.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let header = [&b"\x0248"[..], &[u8::try_from(triple.len()).unwrap()], triple.as_bytes()].concat();
    let version = native.windows(header.len()).position(|bytes| bytes == header).unwrap() + 1;
    let mut older = native.clone();
    older[version..version + 2].copy_from_slice(b"47");
    for (bytes, kind, part) in [
        (made("pulley64", "tool"), "command.cwasm", "compiled for architecture 'pulley64'"),
        (made(std::env::consts::ARCH, "tool3"), "command.cwasm", "concurrency"),
        (older, "command.cwasm", "incompatible version '47'"),
        (native.clone(), "command-pulley.cwasm", "compiled for architecture"),
        (native.clone(), "http.cwasm", "entry point"),
        (native.clone(), "other.cwasm", "of the kind `other.cwasm`"),
        (native[..native.len() / 2].to_vec(), "command.cwasm", "does not fit"),
        (b"text".to_vec(), "command.cwasm", "does not fit"),
    ] {
        let cache = dir.path().join("cache");
        let fetch = move |wanted: &Wanted| {
            std::fs::write(&wanted.to, &bytes).unwrap();
            Ok(Delivered { kind: kind.to_owned() })
        };
        let engine = engine(&cache, Code::Native, Arc::new(fetch));
        let error = engine.load(&guest("tool"), "sha256:tool").await.err().unwrap().to_string();
        assert!(error.contains(part), "{kind}: {error}");
        assert!(compiled(&cache).iter().all(|name| !name.ends_with(".cwasm")), "{:?}", compiled(&cache));
    }
}

#[tokio::test]
async fn what_cannot_run_is_refused_without_asking_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), Code::Native, Arc::new(|wanted| panic!("{wanted:?} was asked for")));
    let path = dir.path().join("x.wasm");
    std::fs::write(&path, wat::parse_str("(module)").unwrap()).unwrap();
    assert!(matches!(engine.load(&path, "sha256:x").await, Err(LoadError::NoEntryPoint)));
}
