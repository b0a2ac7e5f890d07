//! Compiling in a process of its own. This test executes itself as that process, so it has its own `main`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail as tests do, and say what runs")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dhow_engine::{CompileLimits, Compiler, Config, Engine, LoadError, Worker, compile_worker};

const VERB: &str = "compile-worker";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, limits, target] = args.as_slice()
        && verb == VERB
    {
        return compile_worker(limits.parse().unwrap(), &target.parse().unwrap()).into();
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        a_child_makes_the_same_code_and_is_not_asked_again().await;
        what_a_child_refuses_is_told_as_by_the_engine().await;
        a_program_that_is_too_costly_ends_its_child_only().await;
    });
    println!("test result: ok. 3 passed");
    ExitCode::SUCCESS
}

/// An engine whose compiler is this very test.
fn engine(dir: &Path, limits: CompileLimits) -> Engine {
    let program = std::env::current_exe().unwrap();
    let worker = Worker { program, args: vec![VERB.into()], limits };
    Engine::new(Config { compiler: Compiler::Worker(worker), ..Config::new(dir.join("compiled")) }).unwrap()
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// The compiled files, without those that are being written.
fn compiled(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("compiled")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn a_child_makes_the_same_code_and_is_not_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = file(
        dir.path(),
        "x.wasm",
        &wat::parse_str("(module (memory (export \"memory\") 1) (func (export \"_start\")))").unwrap(),
    );
    let engine = engine(dir.path(), CompileLimits::default());
    engine.load(&wasm, "sha256:a").await.unwrap();
    let names = compiled(dir.path());
    assert!(matches!(names.as_slice(), [one] if one.starts_with("sha256-a.") && one.ends_with(".command.cwasm")));
    // An engine without a child finds it by the same name, and one whose child cannot be started does not need it.
    let here = Engine::new(Config::new(dir.path().join("here"))).unwrap();
    here.load(&wasm, "sha256:a").await.unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("here")).unwrap().count(), 1);
    let same = std::fs::read(dir.path().join("here").join(&names[0])).unwrap();
    assert_eq!(same, std::fs::read(dir.path().join("compiled").join(&names[0])).unwrap());
    let worker = Worker { program: "/none/such".into(), args: Vec::new(), limits: CompileLimits::default() };
    let config = Config { compiler: Compiler::Worker(worker), ..Config::new(dir.path().join("compiled")) };
    let again = Engine::new(config).unwrap();
    again.load(&wasm, "sha256:a").await.unwrap();
    assert!(matches!(again.load(&wasm, "sha256:b").await, Err(LoadError::Io { .. })));
    // What is removed is compiled again.
    let sizes = engine.compiled().unwrap();
    assert_eq!(sizes.keys().collect::<Vec<_>>(), ["sha256:a"]);
    engine.forget("sha256:a").await;
    assert_eq!(compiled(dir.path()), [""; 0]);
}

async fn what_a_child_refuses_is_told_as_by_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), CompileLimits::default());
    for (text, part) in [
        (r#"(module (import "env" "f" (func)) (func (export "_start")))"#, "imports what no node offers: `env.f`"),
        ("(module)", "exports no entry point"),
    ] {
        let wasm = file(dir.path(), "x.wasm", &wat::parse_str(text).unwrap());
        let error = engine.load(&wasm, "sha256:a").await.err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
    let text = file(dir.path(), "x.wasm", b"text");
    assert!(matches!(engine.load(&text, "sha256:a").await, Err(LoadError::NotWasm { .. })));
    assert_eq!(compiled(dir.path()), [""; 0], "nothing is left of them");
}

async fn a_program_that_is_too_costly_ends_its_child_only() {
    let dir = tempfile::tempdir().unwrap();
    // One function of many branches: small to ship, seconds and hundreds of MiB to compile.
    let branches =
        "(if (i32.eqz (local.get 0)) (then (local.set 0 (i32.mul (local.get 0) (i32.const 3)))))\n".repeat(150_000);
    let text = format!("(module (memory (export \"memory\") 1) (func (export \"_start\") (local i32) {branches}))");
    let wasm = file(dir.path(), "bomb.wasm", &wat::parse_str(text).unwrap());
    let generous = CompileLimits::default();
    for (limits, needs) in [
        (CompileLimits { memory_bytes: 64 << 20, ..generous }, "64 MiB of memory"),
        (CompileLimits { cpu_s: 1, ..generous }, "1 s of processor time"),
        (CompileLimits { wall_s: 0, ..generous }, "0 s"),
    ] {
        let engine = engine(dir.path(), limits);
        let error = engine.load(&wasm, "sha256:bomb").await.err().unwrap().to_string();
        assert_eq!(error, format!("the module needs more than {needs} to compile"));
        assert_eq!(compiled(dir.path()), [""; 0]);
        // The engine goes on.
        let small = file(
            dir.path(),
            "x.wasm",
            &wat::parse_str("(module (memory (export \"memory\") 1) (func (export \"_start\")))").unwrap(),
        );
        let loaded = engine.load(&small, "sha256:small").await;
        assert!(loaded.is_ok() || limits.wall_s == 0, "{:?}", loaded.err());
        drop(loaded);
        engine.forget("sha256:small").await;
    }
}
