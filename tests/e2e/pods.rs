//! What a container finds in its pod, and what becomes of it around its life: on the built binary, with real guests.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

mod harness;

use harness::{Cluster, PATIENCE, eventually};
use serde_json::Value;
use std::net::UdpSocket;

/// Pods whose containers come to their end, with what the container's status must say of it.
const ENDING: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {app.conf: words of the map}
---
apiVersion: v1
kind: Pod
metadata: {name: last-word}
spec:
  restartPolicy: Never
  containers: [{name: c, image: 'tool:1.0', args: [leave, /dev/termination-log, it was nice]}]
---
apiVersion: v1
kind: Pod
metadata: {name: last-lines}
spec:
  restartPolicy: Never
  containers: [{name: c, image: 'tool:1.0', args: [panic], terminationMessagePolicy: FallbackToLogsOnError}]
---
apiVersion: v1
kind: Pod
metadata: {name: one-file}
spec:
  restartPolicy: Never
  volumes: [{name: conf, configMap: {name: conf}}]
  containers:
  - name: c
    image: tool:1.0
    args: [leave, /dev/termination-log, $(WORD)]
    env: [{name: WORD, value: from the environment}]
  - name: file
    image: tool:1.0
    args: [read, /etc/app/x.conf]
    volumeMounts: [{name: conf, mountPath: /etc/app/x.conf, subPath: app.conf}]
---
apiVersion: v1
kind: Pod
metadata: {name: no-file}
spec:
  volumes: [{name: conf, configMap: {name: conf}}]
  containers:
  - name: c
    image: tool:1.0
    args: [sleep]
    volumeMounts: [{name: conf, mountPath: /etc/app/x.conf, subPath: nope.conf}]
---
apiVersion: v1
kind: Pod
metadata: {name: names}
spec:
  restartPolicy: Never
  hostAliases: [{ip: 192.0.2.9, hostnames: [db]}]
  containers:
  - {name: c, image: 'tool:1.0', args: [resolve, db]}
  - {name: file, image: 'tool:1.0', args: [read, /etc/hosts]}
";

/// Pods whose hooks leave traces, and one that asks for what no pod gets.
const HOOKED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  hostPID: true
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: c
    image: tool:1.0
    args: [sleep]
    volumeMounts: [{name: data, mountPath: /data}]
    lifecycle:
      postStart: {exec: {command: [tool, write, /data/started, 'yes']}}
      preStop: {exec: {command: [tool, exit, '1']}}
---
apiVersion: v1
kind: Pod
metadata: {name: unhooked}
spec:
  containers: [{name: c, image: 'tool:1.0', args: [sleep], lifecycle: {postStart: {exec: {command: [tool, exit, '1']}}}}]
";

const ECHO: &str = "
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec: {containers: [{name: c, image: 'tool:1.0', args: [udp-echo, '7000']}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {type: NodePort, selector: {app: echo}, ports: [{port: 7000, protocol: UDP}]}
";

#[test]
fn a_container_finds_its_files_and_is_heard_after_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    cluster.dhow(&["apply", "-f", &cluster.manifest("ending.yaml", ENDING)]);
    let ended = |pod: &str| {
        eventually(|| {
            let state = state(&cluster, pod);
            state.pointer("/terminated/message").and_then(Value::as_str).map(str::to_owned).ok_or(state.to_string())
        })
    };
    assert_eq!(ended("last-word"), "it was nice");
    let lines = ended("last-lines");
    assert!(lines.contains("as I was told") && lines.contains("wasm trap"), "{lines}");
    assert_eq!(ended("one-file"), "from the environment");
    let log = |pod: &str, container: &str| {
        eventually(|| match cluster.dhow(&["logs", pod, "-c", container]) {
            log if log.is_empty() => Err(format!("{pod} has said nothing")),
            log => Ok(log),
        })
    };
    assert_eq!(log("one-file", "file"), "words of the map\n");
    assert_eq!(log("names", "c"), "192.0.2.9\n");
    assert!(log("names", "file").contains("192.0.2.9\tdb\n"));
    let waiting = eventually(|| {
        let state = state(&cluster, "no-file");
        state.get("waiting").filter(|w| w["reason"] == "CreateContainerConfigError").cloned().ok_or(state.to_string())
    });
    let message = waiting["message"].as_str().unwrap();
    assert!(message.contains("`nope.conf` does not exist") && !message.contains("/pods/"), "{message}");
}

#[test]
fn hooks_run_and_datagrams_come_in() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    cluster.dhow(&["apply", "-f", &cluster.manifest("hooked.yaml", HOOKED)]);
    cluster.dhow(&["apply", "-f", &cluster.manifest("echo.yaml", ECHO)]);
    let event = |reason: &str| {
        eventually(|| {
            let events = cluster.dhow(&["get", "events"]);
            events.lines().find(|line| line.contains(reason)).map(str::to_owned).ok_or(events)
        })
    };
    event("HostPIDIgnored");
    assert!(event("FailedPostStartHook").contains("unhooked"));
    eventually(|| {
        let state = state(&cluster, "hooked");
        state.get("running").is_some().then_some(()).ok_or(state.to_string())
    });
    let port = cluster.node_port("echo");
    let clients: Vec<_> = ["one", "two", "three"].map(|word| (UdpSocket::bind("127.0.0.1:0").unwrap(), word)).into();
    for (client, word) in &clients {
        client.connect(("127.0.0.1", port)).unwrap();
        // A datagram may get lost, and is until the pod has its socket.
        client.set_read_timeout(Some(PATIENCE / 600)).unwrap();
        eventually(|| {
            let mut answer = [0; 16];
            let exchange = client.send(word.as_bytes()).and_then(|_| client.recv(&mut answer));
            match exchange {
                Ok(len) if &answer[..len] == word.as_bytes() => Ok(()),
                other => Err(format!("{word}: {other:?}")),
            }
        });
    }
    cluster.dhow(&["delete", "pod", "hooked"]);
    assert!(event("FailedPreStopHook").contains("hooked"));
}

/// The state of a pod's first container; empty where there is none yet.
fn state(cluster: &Cluster, pod: &str) -> Value {
    let pod: Value = serde_json::from_str(&cluster.dhow(&["get", "pod", pod, "-o", "json"])).unwrap();
    pod.pointer("/status/containerStatuses/0/state").cloned().unwrap_or_default()
}
