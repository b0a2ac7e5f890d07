//! Containers from their start to their exit.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use dhow_engine::{Config, Container, Engine, Io, LoadError, Program};
use dhow_mesh::Update;
use dhow_runtime_contract::{ContainerSpec, EntryPoint, Exit, ExitReason, LogConfig, Scratch};
use dhow_switch::{NodePortEvent, NodePorts};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rig::{self, Net, Rig, idle, load, request, rig, serve, spec, start, until, with_data};

/// Runs a command to its end, in a Pod of its own.
async fn run(program: &Program, spec: ContainerSpec) -> (Exit, String) {
    rig::run(program, spec, Net::new().pod(2)).await
}

const PREVIEW1_HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "hello from preview 1\n")
    (data (i32.const 0) "\08\00\00\00\15\00\00\00")
    (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 40)))))"#;

const EXIT_7: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start") (call $exit (i32.const 7))))"#;

const EXIT_3: &str = r#"(component
    (import "wasi:cli/exit@0.2.12" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
    (core func $exit-core (canon lower (func $exit "exit-with-code")))
    (core module $m
        (import "host" "exit" (func $exit (param i32)))
        (func (export "run") (result i32) (call $exit (i32.const 3)) (i32.const 0)))
    (core instance $i (instantiate $m (with "host" (instance (export "exit" (func $exit-core))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $run-instance (export "run" (func $run)))
    (export "wasi:cli/run@0.2.12" (instance $run-instance)))"#;

#[tokio::test]
async fn programs_end_as_a_kubernetes_user_knows_it() {
    let start = |body: &str| format!(r#"(module (memory (export "memory") 1) (func $f (export "_start") {body}))"#);
    let cases = [
        ("hello", PREVIEW1_HELLO.to_owned(), 0, ExitReason::Completed, ""),
        ("nothing", start(""), 0, ExitReason::Completed, ""),
        ("exit3", EXIT_3.to_owned(), 3, ExitReason::Error, ""),
        ("exit7", EXIT_7.to_owned(), 7, ExitReason::Error, ""),
        ("exit0", EXIT_7.replace("const 7", "const 0"), 0, ExitReason::Completed, ""),
        ("unreachable", start("unreachable"), 134, ExitReason::Error, "`unreachable` instruction"),
        ("divide", start("(drop (i32.div_s (i32.const 1) (i32.const 0)))"), 139, ExitReason::Error, "divide by zero"),
        ("out", start("(drop (i32.load (i32.const -8)))"), 139, ExitReason::Error, "out of bounds memory access"),
        ("deep", start("(call $f)"), 139, ExitReason::Error, "call stack exhausted"),
    ];
    for (name, text, code, reason, message) in cases {
        let program = rig().load_wat(&text).await.unwrap();
        let (exit, output) = run(&program, spec(&["x"])).await;
        assert_eq!((exit.code, exit.reason), (code, reason), "{name}: {exit:?}");
        assert!(exit.message.contains(message), "{name}: {}", exit.message);
        assert!(output.contains(&exit.message), "{name}: the log tells it too: {output}");
        assert!(exit.finished_at >= exit.started_at);
        if name == "hello" {
            assert_eq!(output, "hello from preview 1\n");
        }
    }
}

#[tokio::test]
async fn a_backtrace_names_the_functions() {
    let text = r#"(module (memory (export "memory") 1) (func $inner unreachable) (func $outer (export "_start") (call $inner)))"#;
    let (exit, _) = run(&rig().load_wat(text).await.unwrap(), spec(&[])).await;
    assert!(exit.message.contains("0: inner\n  1: outer"), "{}", exit.message);
}

#[tokio::test]
async fn what_cannot_be_loaded_says_why() {
    let not_wasm = rig().load_bytes(b"<html>").await.map(|_| ()).unwrap_err();
    assert!(matches!(not_wasm, LoadError::NotWasm { .. }), "{not_wasm}");
    let unknown = rig().load_wat(r#"(module (import "env" "f" (func)) (func (export "_start")))"#).await;
    let Err(LoadError::UnknownImport { names }) = unknown else { panic!("an unknown import was accepted") };
    assert_eq!(names, ["env.f"]);
    let library = rig().load_wat("(module (func (export \"add\")))").await;
    assert!(matches!(library, Err(LoadError::NoEntryPoint)));
    let invalid = rig().load_wat("(module (func (export \"_start\") (result i32)))").await;
    assert!(matches!(invalid, Err(LoadError::Compile { .. })));
    let missing = rig().engine.load(Path::new("/does/not/exist.wasm"), "sha256:missing").await;
    assert!(matches!(missing, Err(LoadError::Io { .. })));
}

#[tokio::test]
async fn compiled_code_outlives_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.wasm");
    std::fs::write(&file, wat::parse_str(PREVIEW1_HELLO).unwrap()).unwrap();
    let engine = || Engine::new(Config { workers: Some(1), ..Config::new(dir.path().join("cache")) }).unwrap();
    engine().load(&file, "sha256:x").await.unwrap();
    // The source is gone, so what loads now can only come from the cache; half-written files are cleared away.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(dir.path().join("cache/.half.1.0"), b"?").unwrap();
    let program = engine().load(&file, "sha256:x").await.unwrap();
    assert_eq!(program.entry(), EntryPoint::Command);
    assert_eq!(std::fs::read_dir(dir.path().join("cache")).unwrap().count(), 1);
}

#[tokio::test]
async fn arguments_environment_and_exit_codes_reach_the_guest() {
    let tool = load("tool").await;
    let mut spec_env = spec(&["tool", "env"]);
    spec_env.env.push(("NAME".to_owned(), "later".to_owned()));
    let (exit, output) = run(&tool, spec_env).await;
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Completed));
    assert_eq!(output, "arg tool\narg env\nenv NAME=later\n");
    let (exit, output) = run(&tool, spec(&["tool", "panic"])).await;
    assert_eq!((exit.code, exit.reason), (134, ExitReason::Error));
    assert!(output.contains("as I was told"), "{output}");
    let (exit, _) = run(&tool, spec(&["tool", "exit", "3"])).await;
    assert_eq!((exit.code, exit.reason), (1, ExitReason::Error));
}

#[tokio::test]
async fn mounts_are_seen_and_read_only_ones_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("in"), "content").unwrap();
    let tool = load("tool").await;
    let with = |read_only, args: &[&str]| with_data(dir.path(), read_only, args);
    assert_eq!(run(&tool, with(true, &["tool", "read", "/data/in"])).await.1, "content\n");
    assert_eq!(run(&tool, with(false, &["tool", "write", "/data/out", "text"])).await.1, "written\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "text");
    assert!(run(&tool, with(true, &["tool", "write", "/data/no", "text"])).await.1.starts_with("error: "));
    assert!(!dir.path().join("no").exists());
    let mut missing = with(true, &["tool", "env"]);
    missing.mounts[0].host = dir.path().join("in");
    let (exit, _) = run(&tool, missing).await;
    assert_eq!((exit.code, exit.reason), (128, ExitReason::ContainerCannotRun));
    assert!(exit.message.contains("/data"), "{}", exit.message);
}

#[tokio::test]
async fn a_scratch_directory_is_there_for_who_looks_and_not_made_for_who_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let tool = load("tool").await;
    let host = dir.path().join("dev");
    let with = |args: &[&str]| {
        let files = vec![("termination-log".to_owned(), String::new())];
        let scratch = vec![Scratch { host: host.clone(), guest: "/dev".to_owned(), files }];
        ContainerSpec { scratch, ..spec(args) }
    };
    run(&tool, with(&["tool", "env"])).await;
    assert!(!host.exists(), "this guest did not look");
    assert_eq!(run(&tool, with(&["tool", "read", "/dev/termination-log"])).await.1, "\n");
    assert_eq!(run(&tool, with(&["tool", "leave", "/dev/termination-log", "bye"])).await.0.code, 1);
    assert_eq!(std::fs::read_to_string(host.join("termination-log")).unwrap(), "bye");
}

#[tokio::test]
async fn memory_has_a_limit() {
    let limited = |bytes| ContainerSpec { memory_limit: Some(bytes), ..spec(&["tool", "hog"]) };
    let (exit, _) = run(&load("tool").await, limited(16 << 20)).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled), "{exit:?}");
    assert!(exit.message.contains("memory limit of 16777216 bytes"), "{}", exit.message);
    let (exit, _) = run(&load("tool").await, limited(64 << 10)).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled), "{exit:?}");
}

#[tokio::test]
async fn a_spinning_guest_can_be_killed_and_disturbs_nobody() {
    let net = Net::new();
    let spin = load("spin.wat").await;
    let spinners: Vec<_> = (10..16).map(|last| start(&spin, spec(&[]), net.pod(last))).collect();
    for spinner in &spinners {
        spinner.running().await.unwrap();
    }
    let (exit, output) = run(&rig().load_wat(PREVIEW1_HELLO).await.unwrap(), spec(&[])).await;
    assert_eq!((exit.code, output.as_str()), (0, "hello from preview 1\n"));
    let (last, others) = spinners.split_last().unwrap();
    others.iter().for_each(Container::kill);
    for spinner in others {
        let exit = spinner.wait().await;
        assert_eq!((exit.code, exit.reason), (137, ExitReason::Killed));
    }
    assert!(last.usage().cpu_ns > 0);
    last.stop(Duration::from_secs(30));
    assert_eq!(last.wait().await.code, 143);
}

#[tokio::test]
async fn a_cpu_limit_holds_a_spinner_back() {
    let net = Net::new();
    let spin = load("spin.wat").await;
    let free = start(&spin, spec(&[]), net.pod(2));
    let held = start(&spin, ContainerSpec { cpu_limit_m: Some(1), ..spec(&[]) }, net.pod(3));
    // However slow the machine is: when the free one has had 200 ms, the held one has had little more than its burst.
    until(|| free.usage().cpu_ns >= 200_000_000).await;
    let (free_ns, held_ns) = (free.usage().cpu_ns, held.usage().cpu_ns);
    assert!(held_ns * 2 < free_ns, "limited: {held_ns} ns, unlimited: {free_ns} ns");
    free.kill();
    held.kill();
    free.wait().await;
    held.wait().await;
}

#[tokio::test]
async fn guests_talk_over_the_pod_network() {
    let net = Net::new();
    let tool = load("tool").await;
    let server = serve(&tool, &["tool", "echo", "7000"], net.pod(2)).await;
    let client = net.pod(3);
    for (args, answer) in [
        (["tool", "call", "10.64.0.2:7000", "hello"], "hello\n"),
        (["tool", "call", "10.64.0.2:7001", "hello"], "error: ConnectionRefused\n"),
        (["tool", "udp", "10.64.0.3:5000", ""], ""),
    ] {
        let args: Vec<&str> = args.into_iter().filter(|arg| !arg.is_empty()).collect();
        let (_, output) = rig::run(&tool, spec(&args), client.clone()).await;
        let answer = if args[1] == "udp" { "ping from 10.64.0.3:5000\n" } else { answer };
        assert_eq!(output, answer, "{args:?}");
    }
    let mut stream = net.switch.dial("10.64.0.2:7000".parse::<SocketAddr>().unwrap()).await.unwrap();
    let sent = vec![7_u8; 1 << 20];
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut received = vec![0; sent.len()];
    let (written, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
    written.unwrap();
    got.unwrap();
    assert_eq!(sent, received);
    server.kill();
    assert_eq!(server.wait().await.code, 137);
}

#[tokio::test]
async fn a_guest_answers_datagrams_of_clients_outside() {
    let net = Net::new();
    let port = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let meta = json!({"name": "echo", "namespace": "default", "labels": {"kubernetes.io/service-name": "echo"}});
    let ports = json!([{"port": 7000, "protocol": "UDP", "nodePort": port}]);
    for update in [
        Update::node(&json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.64.0.0/18"]}})),
        Update::service(&json!({"metadata": meta, "spec": {"clusterIP": "10.43.0.7", "ports": ports}})),
        Update::slice(&json!({"metadata": meta, "ports": ports, "endpoints": [{"addresses": ["10.64.0.2"]}]})),
    ] {
        net.switch.apply(update.unwrap());
    }
    let (node_ports, mut events) = NodePorts::start(&net.switch, IpAddr::from([127, 0, 0, 1]));
    assert!(matches!(events.recv().await, Some(NodePortEvent::Open { .. })));
    let server = serve(&load("tool").await, &["tool", "udp-echo", "7000"], net.pod(2)).await;
    let mut clients = Vec::new();
    for word in ["one", "two", "three"] {
        let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(("127.0.0.1", port)).await.unwrap();
        client.send(word.as_bytes()).await.unwrap();
        clients.push((client, word));
    }
    for (client, word) in clients {
        let mut buffer = [0; 16];
        let len = client.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], word.as_bytes(), "each client hears its own");
    }
    server.kill();
    server.wait().await;
    node_ports.stop().await;
}

#[tokio::test]
async fn who_attaches_talks_to_the_running_program_and_the_log_has_it_all() {
    let (net, dir) = (Net::new(), tempfile::tempdir().unwrap());
    let path = dir.path().join("0.log");
    let io = Io::Log(LogConfig { path: path.clone(), max_bytes: 1 << 20, max_files: 2 });
    let program = ContainerSpec { stdin: true, ..spec(&["tool", "shout"]) };
    let container = rig().engine.start(&load("tool").await, program, io, net.pod(2));
    container.running().await.unwrap();
    container.write_stdin(b"nobody hears\n").await.unwrap();
    // The log says when that is through.
    until(|| std::fs::read_to_string(&path).is_ok_and(|text| text.contains("NOBODY HEARS"))).await;
    let (guest_stdout, mut stdout) = tokio::io::duplex(64);
    let (guest_stderr, mut stderr) = tokio::io::duplex(64);
    let attached = container.attach(Box::new(guest_stdout), Box::new(guest_stderr));
    let session = async {
        container.write_stdin(b"hello\n").await.unwrap();
        let mut line = [0; 6];
        stdout.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"HELLO\n");
        container.close_stdin().await;
        let (mut rest, mut errors) = (String::new(), String::new());
        let (out, err) = tokio::join!(stdout.read_to_string(&mut rest), stderr.read_to_string(&mut errors));
        out.and(err).unwrap();
        assert_eq!((rest.as_str(), errors.as_str()), ("", "done\n"));
    };
    tokio::join!(attached, session);
    assert_eq!(container.wait().await.code, 0);
    assert!(container.write_stdin(b"late").await.is_err());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("stdout F HELLO") && text.contains("stderr F done"), "{text}");
}

#[tokio::test]
async fn an_interactive_command_has_streams() {
    let (mut stdin, guest_stdin) = tokio::io::duplex(64);
    let (guest_stdout, mut stdout) = tokio::io::duplex(64);
    let (guest_stderr, mut stderr) = tokio::io::duplex(64);
    let io = Io::Streams {
        stdin: Some(Box::new(guest_stdin)),
        stdout: Box::new(guest_stdout),
        stderr: Box::new(guest_stderr),
        tty: false,
    };
    let net = Net::new();
    let container = rig().engine.start(&load("tool").await, spec(&["tool", "shout"]), io, net.pod(2));
    let mut line = [0; 6];
    stdin.write_all(b"hello\n").await.unwrap();
    stdout.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"HELLO\n");
    drop(stdin);
    let (mut rest, mut errors) = (String::new(), String::new());
    stdout.read_to_string(&mut rest).await.unwrap();
    stderr.read_to_string(&mut errors).await.unwrap();
    assert_eq!((rest.as_str(), errors.as_str()), ("", "done\n"));
    assert_eq!(container.wait().await.code, 0);
}

#[tokio::test]
async fn http_containers_answer_from_a_fresh_instance_each_time() {
    let net = Net::new();
    let handler = load("http").await;
    assert_eq!(handler.entry(), EntryPoint::Http);
    let log = LogConfig { path: rig().dir.path().join("logs/http.log"), max_bytes: 1 << 20, max_files: 2 };
    let container = rig().engine.start(&handler, spec(&[]), Io::Log(log.clone()), net.pod(2));
    container.running().await.unwrap();
    assert_eq!(container.usage().memory_bytes, 0);
    let at = "10.64.0.2:8080";
    for (path, body, status, answer) in [
        ("/", "", 200, "hello\n"),
        ("/count", "", 200, "1"),
        ("/count", "", 200, "1"),
        ("/env?NAME", "", 200, "value"),
        ("/upper", "some text", 200, "SOME TEXT"),
        ("/log?this", "", 200, "logged\n"),
        ("/panic", "", 500, "the program failed; see its log\n"),
        ("/silent", "", 500, "the program failed; see its log\n"),
        ("/fetch?10.64.0.2:8080/env?NAME", "", 200, "200 value"),
        ("/fetch?10.64.0.2:1/", "", 200, "ErrorCode::ConnectionRefused"),
        ("/", "", 200, "hello\n"),
    ] {
        assert_eq!(net.request(at, path, body).await, (status, answer.to_owned()), "{path}");
    }
    idle(&container).await;
    assert!(container.usage().cpu_ns > 0);
    container.stop(Duration::from_secs(10));
    let exit = container.wait().await;
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Completed), "{exit:?}");
    let text = std::fs::read_to_string(log.path).unwrap();
    for part in ["stdout F to stdout: this", "stderr F to stderr: this", "as I was told", "stderr F a request failed"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test]
async fn an_http_container_bounds_memory_and_ends_guests_with_their_clients() {
    let net = Net::new();
    let spec = ContainerSpec { memory_limit: Some(20 << 20), http_ports: vec![80, 81], ..spec(&[]) };
    let container = start(&load("http").await, spec, net.pod(2));
    container.running().await.unwrap();
    assert_eq!(net.request("10.64.0.2:80", "/hog?1", "").await.0, 200);
    assert_eq!(net.request("10.64.0.2:81", "/hog?30", "").await.0, 500);
    // Each of these fits, all of them at once do not: once one has been seen to its end, they wait for each other.
    assert_eq!(net.request("10.64.0.2:80", "/hog?8", "").await.0, 200);
    idle(&container).await;
    let all = (0..8).map(|_| net.request("10.64.0.2:80", "/hog?8", ""));
    for (status, text) in futures_util::future::join_all(all).await {
        assert_eq!((status, text.as_str()), (200, "8388608"));
    }
    // A client that leaves takes its spinning guest with it.
    let (mut sender, driver) = net.connect("10.64.0.2:80").await;
    let answer = tokio::spawn(async move { sender.send_request(request("/spin", "")).await.map(|_| ()) });
    until(|| container.usage().memory_bytes > 0).await;
    answer.abort();
    driver.abort();
    idle(&container).await;
    // A guest that never answers does not outlive its container.
    let (mut sender, driver) = net.connect("10.64.0.2:80").await;
    let answer = tokio::spawn(async move { sender.send_request(request("/spin", "")).await.map(|_| ()) });
    let before = container.usage().cpu_ns;
    until(|| container.usage().cpu_ns >= before + 50_000_000).await;
    container.kill();
    assert_eq!(container.wait().await.code, 137);
    assert!(answer.await.unwrap().is_err());
    driver.abort();
    idle(&container).await;
}

#[tokio::test]
async fn a_request_without_host_is_refused_and_a_taken_port_is_told() {
    let net = Net::new();
    let pod = net.pod(2);
    let container = start(&load("http").await, spec(&[]), pod.clone());
    container.running().await.unwrap();
    let mut stream = net.switch.dial("10.64.0.2:8080".parse().unwrap()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let second = start(&load("http").await, spec(&[]), pod);
    let exit = second.running().await.unwrap_err();
    assert_eq!((exit.code, exit.reason), (128, ExitReason::ContainerCannotRun));
    assert!(exit.message.contains("port 8080"), "{}", exit.message);
    container.kill();
}

#[tokio::test]
async fn a_guest_that_floods_its_log_loses_nothing() {
    let net = Net::new();
    let log = LogConfig { path: rig().dir.path().join("logs/flood.log"), max_bytes: 64 << 20, max_files: 1 };
    let container =
        rig().engine.start(&load("tool").await, spec(&["tool", "print", "20000"]), Io::Log(log.clone()), net.pod(2));
    assert_eq!(container.wait().await.code, 0);
    let text = std::fs::read_to_string(log.path).unwrap();
    assert_eq!(text.lines().count(), 20000);
    assert!(text.ends_with(" stdout F line 19999\n"));
}

#[tokio::test]
async fn shutdown_ends_everything() {
    let (rig, net) = (Rig::new(1), Net::new());
    let program = rig.load("http").await;
    let containers: Vec<_> = (2..5).map(|last| rig.start(&program, spec(&[]), net.pod(last))).collect();
    rig.engine.shutdown().await;
    for container in containers {
        assert_eq!(container.wait().await.reason, ExitReason::Killed);
    }
}
