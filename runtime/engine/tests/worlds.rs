//! Programs of WASI 0.3, sockets of both WASIs, and instances that are used again: real guests on a real engine and a
//! real Pod network.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::IpAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use dhow_engine::{Config, Container, Engine, Io, LoadError, Program};
use dhow_mesh::Update;
use dhow_runtime_contract::{ContainerSpec, EntryPoint, Exit, ExitReason, HttpServing, Mount};
use dhow_switch::{PodIdentity, PodNet, Switch};
use dhow_types::{NodeName, Uid};
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tempfile::TempDir;

/// What the tests of one process share: an engine, and the place of its files.
struct Rig {
    dir: TempDir,
    engine: Engine,
}

fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(Config { workers: Some(2), ..Config::new(dir.path().join("cache")) }).unwrap();
        Rig { dir, engine }
    })
}

async fn load(name: &str) -> Program {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests").join(format!("{name}.wasm"));
    rig().engine.load(&path, &format!("sha256:{name}")).await.unwrap()
}

struct Net {
    switch: Switch,
}

impl Net {
    fn new() -> Self {
        let ip = IpAddr::from([127, 0, 0, 1]);
        Self { switch: Switch::new(dhow_switch::Config::new(NodeName::new("n1"), ip)) }
    }

    fn pod(&self, last: u8) -> PodNet {
        self.switch.add_pod(PodIdentity {
            uid: Uid::new(format!("uid-{last}")),
            namespace: "default".to_owned(),
            name: format!("pod-{last}"),
            ip: IpAddr::from([10, 64, 0, last]),
            hostname: format!("pod-{last}"),
            service_account: "default".to_owned(),
        })
    }

    async fn request(&self, to: &str, path: &str, body: &str) -> (u16, String) {
        let stream = self.switch.dial(to.parse().unwrap()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request =
            http::Request::post(path).header("host", "test").body(Full::<bytes::Bytes>::from(body.to_owned())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        (status, String::from_utf8_lossy(&text).into_owned())
    }
}

fn spec(args: &[&str]) -> ContainerSpec {
    ContainerSpec {
        pod_uid: Uid::new("uid"),
        namespace: "default".to_owned(),
        pod: "pod".to_owned(),
        name: "main".to_owned(),
        attempt: 0,
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![("NAME".to_owned(), "value".to_owned())],
        mounts: Vec::new(),
        scratch: Vec::new(),
        working_dir: None,
        memory_limit: None,
        cpu_request_m: None,
        cpu_limit_m: None,
        http_ports: Vec::new(),
        http: HttpServing::default(),
        node: "n1".to_owned(),
        labels: [("app".to_owned(), "test".to_owned())].into(),
        stores: None,
        hostname: "pod".to_owned(),
        stdin: false,
        tty: false,
    }
}

fn start(program: &Program, spec: ContainerSpec, net: PodNet) -> Container {
    rig().engine.start(program, spec, Io::Capture { max_bytes: 64 * 1024 }, net)
}

fn output(container: &Container) -> String {
    String::from_utf8_lossy(&container.captured()).into_owned()
}

/// Runs a command to its end.
async fn run(program: &Program, spec: ContainerSpec, net: PodNet) -> (Exit, String) {
    let container = start(program, spec, net);
    let exit = container.wait().await;
    (exit, output(&container))
}

/// Starts a server and waits for its first line, which says that it listens.
async fn serve(program: &Program, args: &[&str], net: PodNet) -> Container {
    let container = start(program, spec(args), net);
    container.running().await.unwrap();
    while container.captured().is_empty() {
        tokio::task::yield_now().await;
    }
    container
}

#[tokio::test]
async fn commands_of_0_3_end_as_those_of_0_2_do() {
    let tool = load("tool3").await;
    assert_eq!(tool.entry(), EntryPoint::Command);
    for (args, code, reason, said) in [
        (vec!["tool", "env"], 0, ExitReason::Completed, "arg env\nenv NAME=value\n"),
        (vec!["tool", "fail"], 1, ExitReason::Error, ""),
        (vec!["tool", "exit", "3"], 3, ExitReason::Error, ""),
        (vec!["tool", "panic"], 134, ExitReason::Error, "as I was told"),
        (vec!["tool", "shout"], 0, ExitReason::Completed, ""),
    ] {
        let (exit, output) = run(&tool, spec(&args), Net::new().pod(2)).await;
        assert_eq!((exit.code, exit.reason), (code, reason), "{args:?}: {exit:?}");
        assert!(output.contains(said), "{args:?}: {output}");
    }
    let server = serve(&tool, &["tool", "echo", "7000"], Net::new().pod(2)).await;
    server.kill();
    assert_eq!(server.wait().await.code, 137);
}

#[tokio::test]
async fn files_of_0_3_are_those_of_the_mounts() {
    let dir = tempfile::tempdir().unwrap();
    let tool = load("tool3").await;
    let with = |read_only, args: &[&str]| {
        let volume = Some("data".to_owned());
        let mounts = vec![Mount { host: dir.path().to_owned(), guest: "/data".to_owned(), read_only, volume }];
        ContainerSpec { mounts, ..spec(args) }
    };
    let said = async |read_only, args: &[&str]| run(&tool, with(read_only, args), Net::new().pod(2)).await.1;
    assert_eq!(said(false, &["tool", "write", "out", "text"]).await, "written\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "text");
    assert_eq!(said(true, &["tool", "read", "out"]).await, "text\n");
    assert!(said(true, &["tool", "write", "no", "text"]).await.starts_with("error: "));
    assert!(said(true, &["tool", "read", "../out"]).await.starts_with("error: "));
    assert!(!dir.path().join("no").exists());
}

#[tokio::test]
async fn guests_of_both_wasis_talk_over_the_pod_network() {
    let net = Net::new();
    let (old, new) = (load("tool").await, load("tool3").await);
    let server = serve(&new, &["tool", "echo", "7000"], net.pod(2)).await;
    let pod = net.pod(3);
    for (program, args, answer) in [
        (&new, vec!["tool", "call", "10.64.0.2:7000", "hello"], "hello\n"),
        (&old, vec!["tool", "finish", "10.64.0.2:7000", "hello"], "hello\n"),
        (&new, vec!["tool", "call", "10.64.0.2:7001", "hello"], "error: ErrorCode::ConnectionRefused\n"),
        // The host's own neighbourhood is no place for a guest.
        (&new, vec!["tool", "call", "169.254.169.254:80", "hello"], "error: ErrorCode::AccessDenied\n"),
        (&old, vec!["tool", "call", "169.254.169.254:80", "hello"], "error: PermissionDenied\n"),
        (&new, vec!["tool", "udp", "10.64.0.3:5000"], "ping\n"),
        (&new, vec!["tool", "resolve", "10.64.0.9"], "10.64.0.9\n"),
    ] {
        assert_eq!(run(program, spec(&args), pod.clone()).await.1, answer, "{args:?}");
    }
    server.kill();
}

#[tokio::test]
async fn names_of_services_are_looked_up() {
    let net = Net::new();
    let meta = json!({"name": "web", "namespace": "default"});
    let service = json!({"metadata": meta, "spec": {"clusterIP": "10.43.0.7", "ports": [{"port": 80}]}});
    net.switch.apply(Update::service(&service).unwrap());
    for (program, unknown) in [("tool", "error: "), ("tool3", "error: ErrorCode::NameUnresolvable\n")] {
        let program = load(program).await;
        let pod = net.pod(2);
        for name in ["web", "web.default", "web.default.svc.cluster.local"] {
            let (_, said) = run(&program, spec(&["tool", "resolve", name]), pod.clone()).await;
            assert_eq!(said, "10.43.0.7\n", "{name}");
        }
        let nobody = spec(&["tool", "resolve", "nobody.default.svc.cluster.local"]);
        let (_, said) = run(&program, nobody, pod).await;
        assert!(said.starts_with(unknown), "{said}");
    }
}

#[tokio::test]
async fn one_direction_of_a_connection_ends_before_the_other() {
    let net = Net::new();
    let (old, new) = (load("tool").await, load("tool3").await);
    for (client, action) in [(&old, "finish"), (&new, "call")] {
        let server = serve(&old, &["tool", "collect", "7000"], net.pod(2)).await;
        let (_, said) = run(client, spec(&["tool", action, "10.64.0.2:7000", "some text"]), net.pod(3)).await;
        assert_eq!(said, "9 bytes, the last of them Some('t')\n");
        assert_eq!(server.wait().await.code, 0);
    }
}

#[tokio::test]
async fn who_does_not_read_holds_up_who_writes() {
    let net = Net::new();
    let tool = load("tool").await;
    let server = serve(&tool, &["tool", "stall", "7000"], net.pod(2)).await;
    let (exit, said) = run(&tool, spec(&["tool", "flood", "10.64.0.2:7000"]), net.pod(3)).await;
    assert_eq!(exit.code, 0, "{said}");
    let sent: usize = said.trim().parse().unwrap();
    assert!((4096..=1 << 20).contains(&sent), "{sent} bytes lie between the two");
    server.kill();
}

#[tokio::test]
async fn http_programs_of_0_3_answer_from_a_fresh_instance_each_time() {
    let net = Net::new();
    let handler = load("http3").await;
    assert_eq!(handler.entry(), EntryPoint::Http);
    let container = start(&handler, spec(&[]), net.pod(2));
    container.running().await.unwrap();
    let at = "10.64.0.2:8080";
    let failed = "the program failed; see its log\n";
    for (path, body, status, answer) in [
        ("/", "", 200, "hello\n"),
        ("/count", "", 200, "1"),
        ("/count", "", 200, "1"),
        ("/upper", "some text", 200, "SOME TEXT"),
        ("/panic", "", 500, failed),
        ("/refuse", "", 500, "the program answered with an error; see its log\n"),
        ("/fetch?10.64.0.2:8080/count", "", 200, "200 1"),
        ("/fetch?10.64.0.2:1/", "", 200, "ErrorCode::ConnectionRefused"),
        ("/", "", 200, "hello\n"),
    ] {
        assert_eq!(net.request(at, path, body).await, (status, answer.to_owned()), "{path}");
    }
    assert_eq!(container.usage().memory_bytes, 0);
    container.stop(Duration::from_secs(10));
    let exit = container.wait().await;
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Completed), "{exit:?}");
}

#[tokio::test]
async fn an_instance_is_used_again_if_the_pod_says_so() {
    for program in ["http", "http3"] {
        let net = Net::new();
        let spec = ContainerSpec { http: HttpServing { reuse: 3, concurrency: 1 }, ..spec(&[]) };
        let container = start(&load(program).await, spec, net.pod(2));
        container.running().await.unwrap();
        let count = async || net.request("10.64.0.2:8080", "/count", "").await.1;
        let mut counts = Vec::new();
        for _ in 0..4 {
            counts.push(count().await);
        }
        assert_eq!(counts, ["1", "2", "3", "1"], "{program}: after three requests there is another");
        assert!(container.usage().memory_bytes > 0, "{program}: it waits for the next one");
        assert_eq!(net.request("10.64.0.2:8080", "/panic", "").await.0, 500);
        assert_eq!(count().await, "1", "{program}: what trapped is not used again");
        container.kill();
        container.wait().await;
    }
}

#[tokio::test]
async fn instances_that_wait_leave_room_for_those_that_are_needed() {
    let net = Net::new();
    let http = HttpServing { reuse: 1000, concurrency: 1 };
    let spec = ContainerSpec { http, memory_limit: Some(3 << 20), ..spec(&[]) };
    let container = start(&load("http").await, spec, net.pod(2));
    container.running().await.unwrap();
    // Two of them at a time have room: the others wait for those, not for memory that is never given back.
    for _ in 0..4 {
        for (status, text) in join_all((0..8).map(|_| net.request("10.64.0.2:8080", "/hog?1", ""))).await {
            assert_eq!((status, text.as_str()), (200, "1048576"));
        }
    }
    container.kill();
    container.wait().await;
}

#[tokio::test]
async fn an_instance_of_0_3_answers_several_requests_at_a_time_if_the_pod_says_so() {
    let net = Net::new();
    let handler = load("http3").await;
    let together = async |last, http| {
        let container = start(&handler, ContainerSpec { http, ..spec(&[]) }, net.pod(last));
        container.running().await.unwrap();
        let at = format!("10.64.0.{last}:8080");
        let answers = join_all((0..4).map(|_| net.request(&at, "/together", ""))).await;
        let failed = net.request(&at, "/panic", "").await;
        assert_eq!(failed.0, 500);
        let count = net.request(&at, "/count", "").await.1;
        assert!(http.concurrency == 1 || count == "1", "what trapped is not used again, but this is request {count}");
        container.stop(Duration::from_secs(10));
        assert_eq!(container.wait().await.code, 0);
        let mut counts: Vec<String> = answers.into_iter().map(|(_, count)| count).collect();
        counts.sort();
        counts
    };
    assert_eq!(together(2, HttpServing { reuse: 100, concurrency: 4 }).await, ["4"; 4]);
    assert_eq!(together(3, HttpServing { reuse: 100, concurrency: 1 }).await, ["1"; 4]);
    assert_eq!(together(4, HttpServing { reuse: 2, concurrency: 4 }).await, ["2"; 4]);
}

#[tokio::test]
async fn what_0_3_does_not_have_is_named() {
    let text = r#"(component (import "wasi:cli/nothing@0.3.0" (instance)) (instance $i)
        (export "wasi:cli/run@0.3.0" (instance $i)))"#;
    let path = rig().dir.path().join("nothing.wasm");
    std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
    let Err(LoadError::UnknownImport { names }) = rig().engine.load(&path, "sha256:nothing").await else {
        panic!("an unknown import was accepted")
    };
    assert_eq!(names, ["wasi:cli/nothing@0.3.0"]);
    // A run of another type than 0.3 has.
    let path = rig().dir.path().join("empty.wasm");
    std::fs::write(
        &path,
        wat::parse_str(r#"(component (instance $i) (export "wasi:cli/run@0.3.0" (instance $i)))"#).unwrap(),
    )
    .unwrap();
    assert!(matches!(rig().engine.load(&path, "sha256:empty").await, Err(LoadError::NoEntryPoint)));
}
