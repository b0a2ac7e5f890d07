//! What becomes of containers that use too much or misbehave, and of their neighbours: on the built binary, with real guests.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

mod harness;

use harness::{Cluster, eventually, http_get, listen_after};
use serde_json::Value;

/// Guests that misbehave, each in a Pod of its own, beside one that does not.
const HOSTILE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: good, labels: {app: good}}
spec: {containers: [{name: c, image: 'http:1.0'}]}
---
apiVersion: v1
kind: Service
metadata: {name: good}
spec: {type: NodePort, selector: {app: good}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: panics, labels: {app: panics}}
spec: {containers: [{name: c, image: 'http:1.0'}]}
---
apiVersion: v1
kind: Service
metadata: {name: panics}
spec: {type: NodePort, selector: {app: panics}, ports: [{port: 80, targetPort: 8080}]}
";

/// Each of these: the file, and what its container's status says of it: the state, its reason, and a part of its message.
const SAID: [(&str, &str, &str, &str); 7] = [
    ("spin", "running", "", ""),
    ("allocations", "terminated", "OOMKilled", "memory limit of 16777216 bytes"),
    ("recursion", "terminated", "Error", "call stack exhausted"),
    ("trap-in-init", "terminated", "Error", "`unreachable` instruction"),
    ("memories", "terminated", "ContainerCannotRun", "memory count too high"),
    ("half", "waiting", "CreateContainerError", "cut off after"),
    ("compiled", "waiting", "CreateContainerError", "compiled ahead of time"),
];

/// One that stores too much, one that floods its log, and one that takes too much memory.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: stores}
spec:
  restartPolicy: Never
  volumes: [{name: data, emptyDir: {sizeLimit: 64Ki}}]
  containers:
  - {name: c, image: 'tool:1.0', args: [sleep], volumeMounts: [{name: data, mountPath: /data}]}
  initContainers:
  - name: fill
    image: tool:1.0
    args: [write, /data/file, $(TEXT)]
    env: [{name: TEXT, value: '@'}]
    volumeMounts: [{name: data, mountPath: /data}]
---
apiVersion: v1
kind: Pod
metadata: {name: floods}
spec:
  containers: [{name: c, image: 'flood:1.0', resources: {limits: {ephemeral-storage: 1Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  restartPolicy: Never
  containers: [{name: c, image: 'tool:1.0', args: [hog], resources: {limits: {memory: 8Mi}}}]
";

fn json(cluster: &Cluster, args: &[&str]) -> Value {
    let text = cluster.dhow(args);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

#[test]
fn who_uses_too_much_has_to_leave_and_status_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    let flood = cluster.file("flood.wasm", &wat::parse_file("../tests/guests/hostile/flood.wat").unwrap());
    cluster.dhow(&["push", &flood, "flood:1.0"]);
    cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    let manifest = cluster.manifest("pods.yaml", &PODS.replace('@', &"x".repeat(100_000)));
    cluster.dhow(&["apply", "-f", &manifest]);

    let pod = |name: &str| json(&cluster, &["get", "pod", name, "-o", "json"]);
    for (name, message) in [
        ("stores", "Usage of EmptyDir volume \"data\" exceeds the limit \"64Ki\". "),
        ("floods", "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "),
    ] {
        let status = eventually(|| {
            let status = pod(name)["status"].clone();
            if status["phase"] == "Failed" { Ok(status) } else { Err(status.to_string()) }
        });
        assert_eq!((status["reason"].as_str(), status["message"].as_str()), (Some("Evicted"), Some(message)));
    }
    let end = eventually(|| {
        let state = pod("hog")["status"]["containerStatuses"][0]["state"].clone();
        if state["terminated"].is_object() { Ok(state["terminated"].clone()) } else { Err(state.to_string()) }
    });
    assert_eq!((end["reason"].as_str(), end["exitCode"].as_i64()), (Some("OOMKilled"), Some(137)));
}

/// Writes a hostile guest and returns its path.
fn hostile(cluster: &Cluster, name: &str) -> String {
    let bytes = match name {
        "half" => {
            let whole = std::fs::read("../tests/guests/tool.wasm").unwrap();
            whole[..whole.len() / 2].to_vec()
        }
        // As `wasmtime compile` writes it: an ELF file of an operating system of its own.
        "compiled" => [b"\x7fELF\x02\x01\x01\xc8".as_slice(), &[0; 4096]].concat(),
        text => wat::parse_file(format!("../tests/guests/hostile/{text}.wat")).unwrap(),
    };
    cluster.file(&format!("{name}.wasm"), &bytes)
}

#[test]
fn hostile_guests_harm_nobody_and_status_says_why_they_ended() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.dhow(&["push", "tests/guests/http.wasm", "http:1.0"]);
    let pods: String = SAID
        .iter()
        .map(|(name, ..)| {
            let file = hostile(&cluster, name);
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
                 containers: [{{name: c, image: 'file://{file}', resources: {{limits: {{memory: 16Mi}}}}}}]\n"
            )
        })
        .collect();
    cluster.dhow(&["apply", "-f", &cluster.manifest("hostile.yaml", &format!("{HOSTILE}{pods}"))]);
    let (good, panics) = (cluster.node_port("good"), cluster.node_port("panics"));
    assert_eq!(http_get(good, "/"), "hello\n");
    for (name, state, reason, message) in SAID {
        eventually(|| {
            let status = json(&cluster, &["get", "pod", name, "-o", "json"])["status"]["containerStatuses"][0].clone();
            let found = &status["state"][state];
            let says = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
            let same = found.is_object() && says("reason") == reason && says("message").contains(message);
            if same { Ok(()) } else { Err(format!("{name}: {status}")) }
        });
    }
    // A request that panics costs itself an answer, and its program nothing.
    for _ in 0..3 {
        assert_eq!(http_get(panics, "/"), "hello\n");
        let request = b"GET /panic HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = listen_after(panics, request).unwrap();
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    }
    assert_eq!(http_get(good, "/"), "hello\n");
    for name in ["good", "panics"] {
        let status = json(&cluster, &["get", "pod", name, "-o", "json"])["status"]["containerStatuses"][0].clone();
        assert_eq!((status["ready"].as_bool(), status["restartCount"].as_i64()), (Some(true), Some(0)), "{status}");
    }
    let node = json(&cluster, &["get", "nodes", "-o", "json"]);
    let conditions = node["items"][0]["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"), "{node}");
}
