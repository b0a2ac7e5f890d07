//! Guests of other languages, built here where their toolchain is installed; where it is not, the test says so.
//! `tests/guests/README.md` tells how to get them.

use std::io::Write;
use std::process::Command;

use dhow_engine::{Io, Program};
use dhow_runtime_contract::EntryPoint;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use crate::rig::{Net, guests, output, rig, run, serve, spec, start, with_data};

/// What a guest's build script ends with where its toolchain is missing.
const SKIPPED: i32 = 77;

/// The programs of a language, built.
struct Built {
    language: &'static str,
    dir: TempDir,
}

impl Built {
    async fn load(&self, name: &str) -> Program {
        let path = self.dir.path().join(name).with_extension("wasm");
        rig().engine.load(&path, &format!("sha256:{}-{name}", self.language)).await.unwrap()
    }
}

/// Builds a language's guests; `None`, and a word about it, where that cannot be done here.
fn build(language: &'static str) -> Option<Built> {
    let dir = tempfile::tempdir().unwrap();
    let built = Command::new(guests().join(language).join("build.sh")).arg(dir.path()).output();
    let why = match built {
        Ok(built) if built.status.code() == Some(SKIPPED) => String::from_utf8_lossy(&built.stderr).into_owned(),
        Ok(built) => {
            assert!(built.status.success(), "{language}: {}", String::from_utf8_lossy(&built.stderr));
            return Some(Built { language, dir });
        }
        Err(error) => error.to_string(),
    };
    // Not by the macro, whose output a test that passes does not show.
    let words = format!("SKIPPED: guests in `{language}` were not tested: {}\n", why.trim());
    std::io::stderr().write_all(words.as_bytes()).unwrap();
    None
}

/// Arguments, environment, a file on a mount, standard input, and a code of its own.
async fn is_a_program(program: &Program, args: &[&str], code: i32) {
    assert_eq!(program.entry(), EntryPoint::Command);
    let dir = tempfile::tempdir().unwrap();
    let (guest_stdout, mut stdout) = tokio::io::duplex(1024);
    let (guest_stderr, mut stderr) = tokio::io::duplex(1024);
    let io = Io::Streams {
        stdin: Some(Box::new(b"one\ntwo\n".as_slice())),
        stdout: Box::new(guest_stdout),
        stderr: Box::new(guest_stderr),
        tty: false,
    };
    let container = rig().engine.start(program, with_data(dir.path(), false, args), io, Net::new().pod(2));
    let (mut said, mut errors) = (String::new(), String::new());
    let (out, err) = tokio::join!(stdout.read_to_string(&mut said), stderr.read_to_string(&mut errors));
    out.and(err).unwrap();
    let exit = container.wait().await;
    assert_eq!(said, "/data value\ntext\nONE\nTWO\n", "{args:?}: {exit:?} {errors}");
    assert_eq!(exit.code, code, "{args:?}: {exit:?} {errors}");
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(matches!(files.as_slice(), [file] if std::fs::read_to_string(file).unwrap() == "text"), "{files:?}");
}

/// Answers of an HTTP handler, each by an instance of its own.
async fn answers(program: &Program, cases: &[(&str, &str, u16, &str)]) {
    assert_eq!(program.entry(), EntryPoint::Http);
    let net = Net::new();
    let container = start(program, spec(&[]), net.pod(2));
    container.running().await.unwrap();
    for &(path, body, status, text) in cases {
        let found = net.request("10.64.0.2:8080", path, body).await;
        assert_eq!((found.0, found.1.as_str()), (status, text), "{path}: {}", output(&container));
    }
    container.kill();
    container.wait().await;
}

const FAILED: &str = "the program failed; see its log\n";

#[tokio::test]
async fn programs_in_go() {
    let Some(go) = build("go") else { return };
    is_a_program(&go.load("program").await, &["go", "/data"], 7).await;
}

#[tokio::test]
async fn programs_in_c() {
    let Some(c) = build("c") else { return };
    let program = c.load("program").await;
    // Its libc ends by `exit`, which knows success and failure only.
    is_a_program(&program, &["c", "plain", "/data"], 1).await;
    let net = Net::new();
    let server = serve(&program, &["c", "serve", "7000"], net.pod(2)).await;
    for word in ["first", "second"] {
        let (exit, said) = run(&program, spec(&["c", "call", "10.64.0.2", "7000", word]), net.pod(3)).await;
        assert_eq!((exit.code, said), (0, format!("{word}\n")));
    }
    let (exit, said) = run(&program, spec(&["c", "call", "nobody.default.svc", "7000", "x"]), net.pod(3)).await;
    assert!(exit.code == 1 && said.starts_with("nobody.default.svc: "), "{said}");
    server.kill();
    let cases = [("/path?query", "", 201, "/path?query 1\n"), ("/", "", 201, "/ 1\n"), ("/abort", "", 500, FAILED)];
    answers(&c.load("handler").await, &cases).await;
}

#[tokio::test]
async fn programs_in_python() {
    let Some(python) = build("python") else { return };
    let program = python.load("command").await;
    is_a_program(&program, &["python", "plain", "/data"], 7).await;
    let net = Net::new();
    let server = serve(&program, &["python", "serve", "7000"], net.pod(2)).await;
    let client = spec(&["python", "call", "10.64.0.2", "7000", "one", "two"]);
    let (exit, said) = run(&program, client, net.pod(3)).await;
    assert_eq!((exit.code, said.as_str()), (0, "ONE\nTWO\n"));
    server.kill();
    let cases = [
        ("/path", "", 201, "/path 1"),
        ("/", "", 201, "/ 1"),
        ("/upper", "some text", 201, "SOME TEXT"),
        ("/fetch?10.64.0.2:8080/other", "", 201, "201 /other 1"),
        ("/raise", "", 500, FAILED),
    ];
    answers(&python.load("handler").await, &cases).await;
}

#[tokio::test]
async fn programs_in_javascript() {
    let Some(js) = build("js") else { return };
    is_a_program(&js.load("command").await, &["js", "/data"], 7).await;
    let cases = [
        ("/path", "", 201, "/path 1"),
        ("/", "", 201, "/ 1"),
        ("/upper", "some text", 200, "SOME TEXT"),
        ("/fetch?10.64.0.2:8080/other", "", 200, "201 /other 1"),
        ("/throw", "", 500, ""),
    ];
    answers(&js.load("handler").await, &cases).await;
}
