//! The built binary as real processes: the samples answer, bad manifests do no harm, and a killed cluster comes back.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod harness;

use harness::{Cluster, eventually, exchange, http_get};
use serde_json::Value as Tree;

#[test]
fn the_samples_answer_through_their_services() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &["--nodes", "2"]);
    cluster.push_samples();
    for sample in ["hello-http/hello-http", "echo-tcp/echo-tcp", "guestbook/guestbook"] {
        let manifest = cluster.sample(&format!("samples/{sample}.yaml"));
        cluster.dhow(&["apply", "-f", &manifest]);
        assert!(!cluster.dhow(&["apply", "-f", &manifest]).contains("configured"), "a second apply changes nothing");
    }
    for deployment in ["hello-http", "echo-tcp", "guestbook-store", "guestbook-frontend"] {
        cluster.dhow(&["rollout", "status", &format!("deployment/{deployment}")]);
    }

    let hello = http_get(cluster.node_port("hello-http"), "/there");
    assert!(hello.contains("Hello from hello-http-") && hello.contains("you asked for /there"), "{hello}");

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

/// A pod that cannot run, and the reason that its container's state must give.
struct Broken {
    name: &'static str,
    container: &'static str,
    reason: &'static str,
    says: &'static str,
}

#[test]
fn what_cannot_run_says_why_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.push_samples();
    cluster.dhow(&["apply", "-f", &cluster.sample("samples/hello-http/hello-http.yaml")]);
    let not_wasm = cluster.manifest("text.wasm", "this is no wasm");
    let unknown_import = cluster.manifest(
        "import.wat.wasm",
        "(component (import \"acme:printer/paper\" (instance (export \"feed\" (func)))))",
    );
    let _ = unknown_import;
    let file = format!("image: 'file://{not_wasm}'");
    let broken = [
        Broken { name: "absent", container: "image: 'no-such-image:1.0'", reason: "ImagePullBackOff", says: "no-such-image" },
        Broken { name: "bad-name", container: "image: 'UPPER:::'", reason: "InvalidImageName", says: "UPPER" },
        Broken {
            name: "no-config",
            container: "image: 'hello-http:1.0', envFrom: [{configMapRef: {name: nowhere}}]",
            reason: "CreateContainerConfigError",
            says: "nowhere",
        },
        Broken { name: "text", container: &file.clone().leak()[..], reason: "", says: "Wasm" },
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
