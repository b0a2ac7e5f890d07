//! What becomes of containers that use too much: on the built binary, with real guests.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

mod harness;

use harness::{Cluster, eventually};
use serde_json::Value;

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
