//! Guests that misbehave, and what their neighbours notice of it.

use std::time::{Duration, Instant};

use dhow_engine::{Container, Io};
use dhow_runtime_contract::{ContainerSpec, Exit, ExitReason, LogConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rig::{Net, Rig, guests, output, spec, until, with_data};

/// A node of its own: its threads, its network, its files.
struct Node {
    rig: Rig,
    net: Net,
}

impl Node {
    fn new(workers: usize) -> Self {
        Self { rig: Rig::new(workers), net: Net::new() }
    }

    /// Starts a program in a pod of its own.
    async fn start(&self, name: &str, last: u8, spec: ContainerSpec) -> Container {
        self.rig.start(&self.rig.load(name).await, spec, self.net.pod(last))
    }

    async fn run(&self, name: &str, spec: ContainerSpec) -> (Exit, String) {
        let container = self.start(name, 200, spec).await;
        let exit = container.wait().await;
        (exit, output(&container))
    }

    /// Asks an HTTP container; gives the status.
    async fn ask(&self, last: u8, path: &str) -> u16 {
        self.net.request(&format!("10.64.0.{last}:8080"), path, "").await.0
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
        let error = node.rig.load_bytes(bytes).await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(message), "{name}: {error}");
    }
}

#[tokio::test]
async fn nothing_leads_out_of_a_volume_and_to_the_host() {
    let node = Node::new(2);
    let data = node.rig.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(node.rig.dir.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", data.join("up")).unwrap();
    std::os::unix::fs::symlink(node.rig.dir.path().join("secret"), data.join("absolute")).unwrap();
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
        let (_, output) = node.run("tool", with_data(&data, false, args)).await;
        assert!(output.starts_with("error: "), "{args:?}: {output}");
    }
}

#[tokio::test]
async fn turns_in_the_slow_lane_follow_the_requests() {
    let node = Node::new(1);
    let asks = |request| ContainerSpec { cpu_request_m: Some(request), ..spec(&[]) };
    let (large, small) = (node.start("spin.wat", 2, asks(300)).await, node.start("spin.wat", 3, asks(100)).await);
    // What they had before both were in the lane does not count, nor how slow the machine is: the two share one thread.
    let used = || (large.usage().cpu_ns, small.usage().cpu_ns);
    until(|| used().0.min(used().1) >= 50_000_000).await;
    let before = used();
    until(|| used().0 + used().1 >= before.0 + before.1 + 800_000_000).await;
    let after = used();
    let (large_ns, small_ns) = (after.0 - before.0, after.1 - before.1);
    // Three to one, give or take a slice, which is as long as the machine keeps the ticker waiting.
    let ratio = large_ns as f64 / small_ns as f64;
    assert!((1.5..8.0).contains(&ratio), "{large_ns} ns to {small_ns} ns");
    large.kill();
    small.kill();
    assert_eq!((large.wait().await.code, small.wait().await.code), (137, 137));
}

#[tokio::test]
async fn a_throttled_guest_says_how_often() {
    let node = Node::new(1);
    let held = node.start("spin.wat", 2, ContainerSpec { cpu_limit_m: Some(20), ..spec(&[]) }).await;
    until(|| held.usage().cpu_throttled_periods >= 3).await;
    let usage = held.usage();
    assert!(usage.cpu_periods >= usage.cpu_throttled_periods && usage.cpu_throttled_ns > 0, "{usage:?}");
    held.kill();
    held.wait().await;
}

#[tokio::test]
async fn a_flooded_log_has_a_rate_and_a_size() {
    let node = Node::new(2);
    let path = node.rig.dir.path().join("logs/0.log");
    let io = Io::Log(LogConfig { path: path.clone(), max_bytes: 1 << 20, max_files: 3 });
    let began = Instant::now();
    let program = node.rig.load("flood.wat").await;
    let flood = node.rig.engine.start(&program, spec(&[]), io, node.net.pod(2));
    until(|| flood.usage().log_bytes >= 6 << 20).await;
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
    let web = node.start("http", 2, spec(&[])).await;
    web.running().await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..500 {
        let mut stream = node.net.switch.dial("10.64.0.2:8080".parse().unwrap()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: te").await.unwrap();
        slow.push(stream);
    }
    assert_eq!(node.ask(2, "/").await, 200);
    // No instance is held for a request that is not there yet.
    assert_eq!(web.usage().http_requests, 1);
    assert!(web.usage().memory_bytes < 64 << 20, "{:?}", web.usage());
}

#[tokio::test]
async fn a_client_that_sends_its_body_slowly_holds_its_own_pod_up_only() {
    let node = Node::new(2);
    let web = node.start("http", 2, spec(&[])).await;
    let good = node.start("http", 3, spec(&[])).await;
    web.running().await.unwrap();
    good.running().await.unwrap();
    // More than one container may work on at a time: the others wait in their connections.
    let mut slow = Vec::new();
    for _ in 0..150 {
        let mut stream = node.net.switch.dial("10.64.0.2:8080".parse().unwrap()).await.unwrap();
        let head = b"POST /upper HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 9\r\n\r\nsome";
        stream.write_all(head).await.unwrap();
        slow.push(stream);
    }
    until(|| web.usage().http_requests == 150).await;
    assert_eq!(node.ask(3, "/").await, 200);
    // Nobody is forgotten: the last one has its turn when the first ones are done.
    for mut stream in slow {
        stream.write_all(b" text").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("SOME TEXT"), "{answer}");
    }
}

#[tokio::test]
async fn a_request_that_traps_or_spins_costs_its_own_pod_only() {
    let node = Node::new(2);
    let bad = node.start("http", 2, spec(&[])).await;
    let good = node.start("http", 3, spec(&[])).await;
    bad.running().await.unwrap();
    good.running().await.unwrap();
    assert_eq!(node.ask(2, "/panic").await, 500);
    assert_eq!((bad.usage().http_requests, bad.usage().http_failures), (1, 1));
    // More of them than there are threads of any kind.
    let spinning: Vec<_> = (0..8).map(|_| node.ask(2, "/spin")).collect();
    let spinning = futures_util::future::join_all(spinning);
    let neighbour = async {
        until(|| bad.usage().cpu_ns >= 50_000_000).await;
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

/// Figures, for people: `cargo test -p dhow-engine --test containers figures -- --ignored --nocapture`. They need a machine that
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
    let web = node.start("http", 2, spec(&[])).await;
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
        let io = Io::Log(LogConfig { path: node.rig.dir.path().join("f/0.log"), max_bytes: 1 << 20, max_files: 2 });
        let flood = node.rig.engine.start(&node.rig.load("flood.wat").await, spec(&[]), io, node.net.pod(30));
        let found = latencies(&node, 2, 1000).await;
        let at = |part: usize| found[found.len() * part / 1000].as_micros();
        println!("round {round}, beside a flood: p50 {} us, p99 {} us, p99.9 {} us", at(500), at(990), at(999));
        flood.kill();
        flood.wait().await;
    }
}
