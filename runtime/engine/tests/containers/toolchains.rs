//! Guests of other languages, built here where their toolchain is installed; where it is not, the test says so.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use dhow_engine::Program;
use dhow_runtime_contract::{ContainerSpec, ExitReason, Mount};

use crate::rig::{Net, output, rig, run, spec, start};

fn sources(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests").join(language)
}

/// Builds a guest; `None`, and a word about it, where the tool is missing.
async fn build(tool: &str, command: &mut Command, wasm: &Path) -> Option<Program> {
    match command.output() {
        Ok(built) => {
            assert!(built.status.success(), "{tool}: {}", String::from_utf8_lossy(&built.stderr));
            Some(rig().engine.load(wasm, &format!("sha256:{tool}")).await.unwrap())
        }
        Err(error) => {
            // Not by the macro, whose output a test that passes does not show.
            let words = format!("SKIPPED: `{tool}` is not installed ({error}); what it builds was not tested\n");
            std::io::stderr().write_all(words.as_bytes()).unwrap();
            None
        }
    }
}

#[tokio::test]
async fn a_program_in_go_runs_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = dir.path().join("go.wasm");
    let mut go = Command::new("go");
    go.args(["build", "-o"]).arg(&wasm).arg("main.go").current_dir(sources("go"));
    go.envs([("GOOS", "wasip1"), ("GOARCH", "wasm"), ("GOFLAGS", "-mod=mod"), ("GO111MODULE", "off")]);
    let Some(program) = build("go", &mut go, &wasm).await else { return };
    let volume = Some("data".to_owned());
    let mounts = vec![Mount { host: dir.path().to_owned(), guest: "/data".to_owned(), read_only: false, volume }];
    let (exit, said) = run(&program, ContainerSpec { mounts, ..spec(&["go", "/data"]) }, Net::new().pod(2)).await;
    assert_eq!(said, "[/data] value\ntext <nil>\n");
    assert_eq!((exit.code, exit.reason), (7, ExitReason::Error));
}

#[tokio::test]
async fn asyncio_programs_in_python_talk_over_the_pod_network() {
    let dir = tempfile::tempdir().unwrap();
    let wasm = dir.path().join("python.wasm");
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
    let mut python = Command::new("componentize-py");
    python.arg("-d").arg(wit).args(["-w", "dhow:container/command", "componentize", "app", "-o"]).arg(&wasm);
    python.current_dir(sources("python")).env("PYTHONDONTWRITEBYTECODE", "1");
    let Some(program) = build("componentize-py", &mut python, &wasm).await else { return };
    let net = Net::new();
    let server = start(&program, spec(&["python", "serve", "7000"]), net.pod(2));
    server.running().await.unwrap();
    while !output(&server).contains("listening") {
        // A program that ended will never say so.
        tokio::select! {
            exit = server.wait() => panic!("{exit:?}: {}", output(&server)),
            () = tokio::task::yield_now() => {}
        }
    }
    let client = spec(&["python", "call", "10.64.0.2", "7000", "one", "two"]);
    let (exit, said) = run(&program, client, net.pod(3)).await;
    assert_eq!((exit.code, said.as_str()), (0, "ONE\nTWO\n"));
    server.kill();
}
