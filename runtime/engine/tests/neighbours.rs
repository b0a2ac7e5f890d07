//! Guests that misbehave, and what their neighbours notice of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dhow_engine::{Config, Container, Engine, Io, LoadError, Program};
use dhow_runtime_contract::{ContainerSpec, Exit, ExitReason, HttpServing, LogConfig, Mount};
use dhow_switch::{PodIdentity, PodNet, Switch};
use dhow_types::{NodeName, Uid};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

/// A node: an engine, a network, and a place for files.
struct Node {
    dir: TempDir,
    engine: Engine,
    switch: Switch,
}

fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests")
}

impl Node {
    fn new(workers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { workers: Some(workers), ..Config::new(dir.path().join("cache")) };
        let switch = Switch::new(dhow_switch::Config::new(NodeName::new("n1"), IpAddr::from([127, 0, 0, 1])));
        Self { engine: Engine::new(config).unwrap(), switch, dir }
    }

    /// A program of `tests/guests`: text is assembled.
    async fn load(&self, name: &str) -> Result<Program, LoadError> {
        let path = match name.strip_suffix(".wat") {
            Some(stem) => {
                let wasm = wat::parse_file(guests().join("hostile").join(name)).unwrap();
                let path = self.dir.path().join(format!("{stem}.wasm"));
                std::fs::write(&path, wasm).unwrap();
                path
            }
            None => guests().join(name),
        };
        self.engine.load(&path, &format!("sha256:{name}")).await
    }

    fn net(&self, last: u8) -> PodNet {
        self.switch.add_pod(PodIdentity {
            uid: Uid::new(format!("uid-{last}")),
            namespace: "default".to_owned(),
            name: format!("pod-{last}"),
            ip: IpAddr::from([10, 64, 0, last]),
            hostname: format!("pod-{last}"),
            service_account: "default".to_owned(),
        })
    }

    /// Starts a program in a pod of its own.
    async fn start(&self, name: &str, last: u8, spec: ContainerSpec) -> Container {
        let program = self.load(name).await.unwrap();
        self.engine.start(&program, spec, Io::Capture { max_bytes: 64 * 1024 }, self.net(last))
    }

    async fn run(&self, name: &str, spec: ContainerSpec) -> (Exit, String) {
        let container = self.start(name, 200, spec).await;
        let exit = container.wait().await;
        (exit, String::from_utf8_lossy(&container.captured()).into_owned())
    }

    /// Asks an HTTP container; gives the status.
    async fn ask(&self, last: u8, path: &str) -> u16 {
        let to = SocketAddr::from(([10, 64, 0, last], 8080));
        let stream = self.switch.dial(to).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "test").body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        driver.abort();
        status
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
        env: Vec::new(),
        mounts: Vec::new(),
        scratch: Vec::new(),
        working_dir: None,
        memory_limit: None,
        cpu_request_m: None,
        cpu_limit_m: None,
        http_ports: Vec::new(),
        http: HttpServing::default(),
        node: "n1".to_owned(),
        labels: Default::default(),
        stores: None,
        core_dump: None,
        hostname: "pod".to_owned(),
        stdin: false,
        tty: false,
    }
}

#[tokio::test]
async fn what_cannot_go_on_says_why() {
    let node = Node::new(2);
    let limited = ContainerSpec { memory_limit: Some(16 << 20), ..spec(&[]) };
    for (name, spec, code, reason, message) in [
        ("recursion.wat", spec(&[]), 139, ExitReason::Error, "call stack exhausted"),
        ("trap-in-init.wat", spec(&[]), 134, ExitReason::Error, "`unreachable` instruction"),
        ("memories.wat", spec(&[]), 128, ExitReason::ContainerCannotRun, "memory count too high"),
        ("allocations.wat", limited, 137, ExitReason::OomKilled, "memory limit of 16777216 bytes"),
    ] {
        let (exit, _) = node.run(name, spec).await;
        assert_eq!((exit.code, exit.reason), (code, reason), "{name}: {exit:?}");
        assert!(exit.message.contains(message), "{name}: {}", exit.message);
    }
}

#[tokio::test]
async fn half_a_program_and_compiled_code_are_refused_by_name() {
    let node = Node::new(1);
    let whole = std::fs::read(guests().join("tool.wasm")).unwrap();
    // What `wasmtime compile` writes begins with the head of an ELF file of an operating system of its own.
    let mut compiled = b"\x7fELF\x02\x01\x01\xc8".to_vec();
    compiled.resize(4096, 0);
    for (name, bytes, message) in
        [("half", &whole[..whole.len() / 2], "cut off after"), ("compiled", &compiled, "compiled ahead of time")]
    {
        let path = node.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = node.engine.load(&path, &format!("sha256:{name}")).await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(message), "{name}: {error}");
    }
}

#[tokio::test]
async fn nothing_leads_out_of_a_volume_and_to_the_host() {
    let node = Node::new(2);
    let data = node.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(node.dir.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", data.join("up")).unwrap();
    std::os::unix::fs::symlink(node.dir.path().join("secret"), data.join("absolute")).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    for args in [
        ["tool", "read", "/data/../secret"].as_slice(),
        &["tool", "read", "/data/up"],
        &["tool", "read", "/data/absolute"],
        &["tool", "read", "/etc/passwd"],
        &["tool", "call", &host, "hello"],
        &["tool", "call", "169.254.169.254:80", "hello"],
        &["tool", "call", "0.0.0.0:22", "hello"],
    ] {
        let mounts = vec![Mount { host: data.clone(), guest: "/data".to_owned(), read_only: false, volume: None }];
        let (_, output) = node.run("tool.wasm", ContainerSpec { mounts, ..spec(args) }).await;
        assert!(output.starts_with("error: "), "{args:?}: {output}");
    }
}

#[tokio::test]
async fn turns_in_the_slow_lane_follow_the_requests() {
    let node = Node::new(1);
    let asks = |request| ContainerSpec { cpu_request_m: Some(request), ..spec(&[]) };
    let (large, small) = (node.start("spin.wat", 2, asks(300)).await, node.start("spin.wat", 3, asks(100)).await);
    // However slow the machine is: the two share one thread.
    while large.usage().cpu_ns + small.usage().cpu_ns < 800_000_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (large_ns, small_ns) = (large.usage().cpu_ns, small.usage().cpu_ns);
    let ratio = large_ns as f64 / small_ns as f64;
    assert!((2.0..4.5).contains(&ratio), "{large_ns} ns to {small_ns} ns");
    large.kill();
    small.kill();
    assert_eq!((large.wait().await.code, small.wait().await.code), (137, 137));
}

#[tokio::test]
async fn a_throttled_guest_says_how_often() {
    let node = Node::new(1);
    let held = node.start("spin.wat", 2, ContainerSpec { cpu_limit_m: Some(20), ..spec(&[]) }).await;
    while held.usage().cpu_throttled_periods < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let usage = held.usage();
    assert!(usage.cpu_periods >= usage.cpu_throttled_periods && usage.cpu_throttled_ns > 0, "{usage:?}");
    held.kill();
    held.wait().await;
}

#[tokio::test]
async fn a_flooded_log_has_a_rate_and_a_size() {
    let node = Node::new(2);
    let path = node.dir.path().join("logs/0.log");
    let io = Io::Log(LogConfig { path: path.clone(), max_bytes: 1 << 20, max_files: 3 });
    let began = Instant::now();
    let program = node.load("flood.wat").await.unwrap();
    let flood = node.engine.start(&program, spec(&[]), io, node.net(2));
    while flood.usage().log_bytes < 6 << 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A burst of 4 MiB, and 8 MiB a second from then on.
    let (written, elapsed) = (flood.usage().log_bytes, began.elapsed());
    let most = (4 << 20) + (elapsed.as_millis() as u64 + 100) * (8 << 20) / 1000;
    assert!(written <= most, "{written} bytes in {elapsed:?}");
    flood.kill();
    flood.wait().await;
    let files = std::fs::read_dir(path.parent().unwrap()).unwrap().flatten();
    let sizes: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
    assert!(sizes.len() <= 3 && sizes.iter().sum::<u64>() <= 3 << 20, "{sizes:?}");
}

#[tokio::test]
async fn a_client_that_sends_half_a_request_holds_nobody_up() {
    let node = Node::new(2);
    let web = node.start("http.wasm", 2, spec(&[])).await;
    web.running().await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..500 {
        let mut stream = node.switch.dial(SocketAddr::from(([10, 64, 0, 2], 8080))).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: te").await.unwrap();
        slow.push(stream);
    }
    assert_eq!(node.ask(2, "/").await, 200);
    // No instance is held for a request that is not there yet.
    assert_eq!(web.usage().http_requests, 1);
    assert!(web.usage().memory_bytes < 64 << 20, "{:?}", web.usage());
}

#[tokio::test]
async fn a_request_that_traps_or_spins_costs_its_own_pod_only() {
    let node = Node::new(2);
    let bad = node.start("http.wasm", 2, spec(&[])).await;
    let good = node.start("http.wasm", 3, spec(&[])).await;
    bad.running().await.unwrap();
    good.running().await.unwrap();
    assert_eq!(node.ask(2, "/panic").await, 500);
    assert_eq!((bad.usage().http_requests, bad.usage().http_failures), (1, 1));
    // More of them than there are threads of any kind.
    let spinning: Vec<_> = (0..8).map(|_| node.ask(2, "/spin")).collect();
    let spinning = futures_util::future::join_all(spinning);
    let neighbour = async {
        while bad.usage().cpu_ns < 50_000_000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for _ in 0..20 {
            assert_eq!(node.ask(3, "/").await, 200);
        }
    };
    tokio::select! {
        _ = spinning => panic!("endless loops came to an end"),
        () = neighbour => {}
    }
    assert_eq!(good.usage().http_failures, 0);
    bad.kill();
    assert_eq!(bad.wait().await.code, 137);
}

/// What share of a CPU a spinner got that may have so many thousandths, over so long.
async fn got(node: &Node, limit: u32, last: u8) -> f64 {
    let held = node.start("spin.wat", last, ContainerSpec { cpu_limit_m: Some(limit), ..spec(&[]) }).await;
    held.running().await.unwrap();
    // The burst goes first.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, began) = (held.usage().cpu_ns, Instant::now());
    tokio::time::sleep(Duration::from_secs(8)).await;
    let share = (held.usage().cpu_ns - before) as f64 / began.elapsed().as_nanos() as f64 * 1000.0;
    held.kill();
    held.wait().await;
    share
}

/// Latencies of `count` requests to a neighbour, one each 4 ms, sorted.
async fn latencies(node: &Node, last: u8, count: usize) -> Vec<Duration> {
    let mut pace = tokio::time::interval(Duration::from_millis(4));
    let mut found = Vec::new();
    for _ in 0..count {
        pace.tick().await;
        let began = Instant::now();
        assert_eq!(node.ask(last, "/").await, 200);
        found.push(began.elapsed());
    }
    found.sort();
    found
}

/// Figures, for people: `cargo test -p dhow-engine --test neighbours -- --ignored --nocapture`. They need a machine that
/// does nothing else.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; needs a quiet machine and a minute"]
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
async fn figures() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let node = Node::new(cores);
    for limit in [10, 100, 500, 1000] {
        println!("limit {limit}m: got {:.1}m", got(&node, limit, 9).await);
    }
    let web = node.start("http.wasm", 2, spec(&[])).await;
    web.running().await.unwrap();
    latencies(&node, 2, 200).await;
    for round in 0..3 {
        for (what, name, count) in [("nobody", "", 0), ("1 spinner", "spin.wat", 1), ("4 spinners", "spin.wat", 4)] {
            let mut beside = Vec::new();
            for number in 0..count {
                beside.push(node.start(name, 10 + number, spec(&[])).await);
            }
            let found = latencies(&node, 2, 1000).await;
            let at = |part: usize| found[found.len() * part / 1000].as_micros();
            println!("round {round}, beside {what}: p50 {} us, p99 {} us, p99.9 {} us", at(500), at(990), at(999));
            for container in beside {
                container.kill();
                container.wait().await;
            }
        }
        let io = Io::Log(LogConfig { path: node.dir.path().join("f/0.log"), max_bytes: 1 << 20, max_files: 2 });
        let flood = node.engine.start(&node.load("flood.wat").await.unwrap(), spec(&[]), io, node.net(30));
        let found = latencies(&node, 2, 1000).await;
        let at = |part: usize| found[found.len() * part / 1000].as_micros();
        println!("round {round}, beside a flood: p50 {} us, p99 {} us, p99.9 {} us", at(500), at(990), at(999));
        flood.kill();
        flood.wait().await;
    }
}
