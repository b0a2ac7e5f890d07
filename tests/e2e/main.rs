//! The built binary as real processes: the samples answer, bad manifests do no harm, and a killed cluster comes back.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod compiled;
mod harness;
mod members;

use harness::{Cluster, eventually, exchange, http_get};
use serde_json::Value as Tree;

#[test]
fn the_samples_answer_through_their_services() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &["--nodes", "2"]);
    cluster.push_samples();
    for sample in
        ["hello-http/hello-http", "hello-p3/hello-p3", "counter/counter", "echo-tcp/echo-tcp", "guestbook/guestbook"]
    {
        let manifest = cluster.sample(&format!("samples/{sample}.yaml"));
        cluster.dhow(&["apply", "-f", &manifest]);
        assert!(!cluster.dhow(&["apply", "-f", &manifest]).contains("configured"), "a second apply changes nothing");
    }
    for deployment in ["hello-http", "hello-p3", "counter", "echo-tcp", "guestbook-store", "guestbook-frontend"] {
        cluster.dhow(&["rollout", "status", &format!("deployment/{deployment}")]);
    }

    let hello = http_get(cluster.node_port("hello-http"), "/there");
    assert!(hello.contains("Hello from hello-http-") && hello.contains("you asked for /there"), "{hello}");

    let hello = http_get(cluster.node_port("hello-p3"), "/there");
    assert!(hello.contains("Hello from hello-p3-") && hello.contains("as one of 1 at a time"), "{hello}");

    // It counts on a volume, and knows the name of its pod.
    let counter = cluster.node_port("counter");
    for count in 1..3 {
        let counted = http_get(counter, "/there");
        assert!(counted.contains(&format!("/there was asked for {count} times, now from counter-")), "{counted}");
    }

    let echo = cluster.node_port("echo-tcp");
    assert_eq!(eventually(|| exchange(echo, b"ahoy").and_then(nonempty)), "ahoy");

    let frontend = cluster.node_port("guestbook-frontend");
    http_get(frontend, "/sign?first");
    let book = http_get(frontend, "/sign?second%20entry");
    assert!(book.contains("first\nsecond entry"), "{book}");
    assert!(cluster.dhow(&["logs", "deployment/guestbook-store"]).contains("new entry: second entry"));
    assert!(cluster.stop().success());
}

fn nonempty(answer: String) -> Result<String, String> {
    if answer.is_empty() { Err("no answer yet".to_owned()) } else { Ok(answer) }
}

#[test]
fn a_cluster_killed_at_any_moment_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut names: Vec<String> = Vec::new();
    for round in 0..4 {
        let cluster = Cluster::start(dir.path(), &[]);
        cluster.push_samples();
        let listed = cluster.dhow(&["get", "configmaps", "-o", "name"]);
        for name in &names {
            assert!(listed.contains(&format!("configmap/{name}\n")), "{name} was acknowledged and is gone: {listed}");
        }
        if round == 0 {
            cluster.dhow(&["apply", "-f", &cluster.sample("samples/hello-http/hello-http.yaml")]);
        } else {
            let hello = http_get(cluster.node_port("hello-http"), "/again");
            assert!(hello.contains("Hello from"), "{hello}");
        }
        // Writes go on until the kill: what was acknowledged before it must be there after it.
        for number in 0..5 {
            let name = format!("kept-{round}-{number}");
            let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: b}}\n");
            cluster.dhow(&["apply", "-f", &cluster.manifest("kept.yaml", &text)]);
            names.push(name);
        }
        cluster.kill();
    }
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.dhow(&["rollout", "status", "deployment/hello-http"]);
    assert!(http_get(cluster.node_port("hello-http"), "/last").contains("Hello from"));
}

/// A pod that cannot run, the reason that its container must wait for, and what else its status must say.
struct Broken {
    name: &'static str,
    container: String,
    reason: &'static str,
    says: &'static str,
}

fn broken(name: &'static str, container: &str, reason: &'static str, says: &'static str) -> Broken {
    Broken { name, container: container.to_owned(), reason, says }
}

/// Programs in text form, as files that `dhow up` may run.
struct Guests<'a> {
    cluster: &'a Cluster,
}

impl Guests<'_> {
    fn image(&self, name: &str, bytes: &[u8]) -> String {
        format!("image: 'file://{}'", self.cluster.file(&format!("{name}.wasm"), bytes))
    }

    fn wat(&self, name: &str, text: &str) -> String {
        self.image(name, &wat::parse_str(text).unwrap())
    }
}

/// Imports an interface that nobody offers.
const UNKNOWN_IMPORT: &str = r#"(component
    (import "acme:printer/paper@1.0.0" (instance (export "feed" (func))))
    (core module $m (func (export "run") (result i32) (i32.const 0)))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#;

/// Preview 1 programs: one that traps, one that exits with 3, and one that takes memory until it gets no more.
const TRAP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#;
const EXIT: &str = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 3))))"#;
const HOG: &str = r#"(module (memory (export "memory") 1)
    (func (export "_start") (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable))"#;

#[test]
fn what_cannot_run_says_why_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.push_samples();
    cluster.dhow(&["apply", "-f", &cluster.sample("samples/hello-http/hello-http.yaml")]);
    let files = Guests { cluster: &cluster };
    let broken = [
        broken("absent", "image: 'no-such-image:1.0'", "ImagePullBackOff", "no-such-image"),
        broken("bad-name", "image: 'UPPER:::'", "InvalidImageName", "UPPER"),
        broken(
            "no-config",
            "image: 'hello-http:1.0', envFrom: [{configMapRef: {name: nowhere}}]",
            "CreateContainerConfigError",
            "nowhere",
        ),
        broken("text", &files.image("text", b"this is no wasm"), "CreateContainerError", "not a WebAssembly program"),
        broken("import", &files.wat("import", UNKNOWN_IMPORT), "CreateContainerError", "acme:printer/paper"),
        broken("trap", &files.wat("trap", TRAP), "CrashLoopBackOff", "unreachable"),
        broken("exit", &files.wat("exit", EXIT), "CrashLoopBackOff", "\"exitCode\":3"),
        broken(
            "hog",
            &format!("{}, resources: {{limits: {{memory: 16Mi}}}}", files.wat("hog", HOG)),
            "CrashLoopBackOff",
            "OOMKilled",
        ),
    ];
    for Broken { name, container, .. } in &broken {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, {container}}}]}}\n"
        );
        cluster.dhow(&["apply", "-f", &cluster.manifest("broken.yaml", &text)]);
    }
    for Broken { name, reason, says, .. } in &broken {
        eventually(|| {
            let pod: Tree = serde_json::from_str(&cluster.dhow(&["get", "pod", name, "-o", "json"])).unwrap();
            let state = &pod["status"]["containerStatuses"][0];
            let text = state.to_string();
            if text.contains(reason) && text.contains(says) { Ok(()) } else { Err(format!("{name}: {state}")) }
        });
    }
    cluster.dhow(&["rollout", "status", "deployment/hello-http"]);
    assert!(http_get(cluster.node_port("hello-http"), "/").contains("Hello from"));
}
