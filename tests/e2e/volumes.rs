//! What pods find in their volumes, what outlives them, and that nothing leads out: on the built binary, with real
//! guests.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

mod harness;

use harness::{Cluster, eventually, http_get};
use serde_json::Value;
use std::path::Path;

/// Two pods that follow a file of a map: one sees the volume, the other one file of it; and one that follows its own
/// labels.
const FOLLOWING: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {word: first}
---
apiVersion: v1
kind: Pod
metadata: {name: follower, labels: {color: red}}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: conf, configMap: {name: conf}}
  - name: own
    downwardAPI: {items: [{path: color, fieldRef: {fieldPath: 'metadata.labels[''color'']'}}]}
  containers:
  - {name: volume, image: 'tool:1.0', args: [follow, /conf/word], volumeMounts: [{name: conf, mountPath: /conf}]}
  - {name: file, image: 'tool:1.0', args: [follow, /conf/word],
     volumeMounts: [{name: conf, mountPath: /conf/word, subPath: word}]}
  - {name: label, image: 'tool:1.0', args: [follow, /own/color], volumeMounts: [{name: own, mountPath: /own}]}
";

/// Containers, one after the other, that try to get out of their volume.
const ESCAPING: &str = "
apiVersion: v1
kind: Pod
metadata: {name: escaping}
spec:
  restartPolicy: Never
  volumes: [{name: data, emptyDir: {}}]
  initContainers:
  - {name: up, image: 'tool:1.0', args: [link, ../../../../../../../etc/passwd, /data/up], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: out, image: 'tool:1.0', args: [link, .., /data/out], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: absolute, image: 'tool:1.0', args: [link, /etc, /data/absolute], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: in, image: 'tool:1.0', args: [link, file, /data/in], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: write, image: 'tool:1.0', args: [write, /data/in, through a link], volumeMounts: [{name: data, mountPath: /data}]}
  containers:
  - {name: read-up, image: 'tool:1.0', args: [read, /data/up], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: read-out, image: 'tool:1.0', args: [read, /data/out/out/out/etc/passwd], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: read-dots, image: 'tool:1.0', args: [read, /data/../../../../../etc/passwd], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: read-absolute, image: 'tool:1.0', args: [read, /data/absolute/passwd], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: write-out, image: 'tool:1.0', args: [write, /data/out/made, x], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: read-in, image: 'tool:1.0', args: [read, /data/file], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: mount-out, image: 'tool:1.0', args: [read, /part/made], volumeMounts: [{name: data, mountPath: /part, subPath: out}]}
";

const REFUSED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: refused}
spec:
  volumes: [{name: data, configMap: {name: conf, items: [{key: a, path: ../a}]}}]
  containers:
  - {name: c, image: 'tool:1.0', volumeMounts: [{name: data, mountPath: /data, subPath: ../x}]}
";

/// A pod that keeps something in memory, and mounts what its node allows and what it does not.
const OF_THE_HOST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: of-host}
spec:
  restartPolicy: Never
  volumes:
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: OPEN/made, type: DirectoryOrCreate}}
  containers:
  - {name: memory, image: 'tool:1.0', args: [write, /memory/x, y], volumeMounts: [{name: memory, mountPath: /memory}]}
  - {name: host, image: 'tool:1.0', args: [write, /host/x, from a guest], volumeMounts: [{name: host, mountPath: /host}]}
  - {name: read-only, image: 'tool:1.0', args: [write, /host/z, x], volumeMounts: [{name: host, mountPath: /host, readOnly: true}]}
---
apiVersion: v1
kind: Pod
metadata: {name: not-allowed}
spec:
  volumes: [{name: host, hostPath: {path: /etc}}]
  containers: [{name: c, image: 'tool:1.0', args: [sleep], volumeMounts: [{name: host, mountPath: /host}]}]
";

fn get(cluster: &Cluster, what: &[&str]) -> Value {
    let args: Vec<&str> = ["get"].iter().chain(what).chain(&["-o", "json"]).copied().collect();
    serde_json::from_str(&cluster.dhow(&args)).unwrap()
}

/// The log of a container, once it has one.
fn log(cluster: &Cluster, pod: &str, container: &str, wanted: impl Fn(&str) -> bool) -> String {
    eventually(|| {
        let output = cluster.run(env!("CARGO_BIN_EXE_dhow"), &["logs", pod, "-c", container]);
        let log = harness::text(&output.stdout);
        if wanted(&log) { Ok(log) } else { Err(format!("{pod}/{container} says: {log}")) }
    })
}

#[test]
fn data_outlives_pods_and_goes_with_its_claim() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.dhow(&["push", "samples/visits/visits.wasm", "visits:1.0"]);
    let classes = cluster.dhow(&["get", "storageclass"]);
    assert!(classes.contains("local (default)") && classes.contains("WaitForFirstConsumer"), "{classes}");
    cluster.dhow(&["apply", "-f", &cluster.sample("samples/visits/visits.yaml")]);
    let port = cluster.node_port("visits");
    let visit = |number: u32| {
        let answer = http_get(port, "/");
        assert!(answer.contains(&format!("visit {number}\n")), "{answer}");
    };
    visit(1);
    visit(2);
    let claim = get(&cluster, &["pvc", "visits"]);
    assert_eq!(claim["status"]["phase"], "Bound");
    let volume = claim["spec"]["volumeName"].as_str().unwrap().to_owned();
    let data = dir.path().join("nodes/dhow-1/volumes").join(&volume);
    assert_eq!(std::fs::read(data.join("visits")).unwrap(), b"..");

    let pods = get(&cluster, &["pods"]);
    let first = pods["items"][0]["metadata"]["name"].as_str().unwrap();
    cluster.dhow(&["delete", "pod", first]);
    visit(3);
    // While a pod uses it, a deleted claim stays.
    let deleted = cluster.dhow(&["delete", "pvc", "visits", "--no-wait"]);
    assert!(deleted.contains("visits"), "{deleted}");
    assert_eq!(get(&cluster, &["pvc", "visits"])["status"]["phase"], "Bound");
    assert!(cluster.dhow(&["get", "pvc"]).contains("Terminating"));
    visit(4);
    cluster.dhow(&["delete", "deployment", "visits"]);
    eventually(|| {
        let left = cluster.dhow(&["get", "pv", "-o", "name"]);
        (left.trim().is_empty() && !data.exists()).then_some(()).ok_or(left)
    });
}

#[test]
fn running_guests_see_new_content_except_in_single_files() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    cluster.dhow(&["apply", "-f", &cluster.manifest("following.yaml", FOLLOWING)]);
    for (container, word) in [("volume", "first\n"), ("file", "first\n"), ("label", "red\n")] {
        log(&cluster, "follower", container, |log| log == word);
    }
    let second = FOLLOWING.replace("first", "second").replace("red", "green");
    cluster.dhow(&["apply", "-f", &cluster.manifest("second.yaml", &second)]);
    for (container, words) in [("volume", "first\nsecond\n"), ("label", "red\ngreen\n")] {
        log(&cluster, "follower", container, |log| log == words);
    }
    let third = second.replace("second", "third");
    cluster.dhow(&["apply", "-f", &cluster.manifest("third.yaml", &third)]);
    log(&cluster, "follower", "volume", |log| log == "first\nsecond\nthird\n");
    // Both changes have come to the node: what was mounted by itself is as it was.
    log(&cluster, "follower", "file", |log| log == "first\n");
}

#[test]
fn nothing_leads_out_of_a_volume() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    let refused =
        cluster.refused(env!("CARGO_BIN_EXE_dhow"), &["apply", "-f", &cluster.manifest("refused.yaml", REFUSED)]);
    assert!(
        refused.contains("items[0].path: Invalid value") && refused.contains("subPath: Invalid value"),
        "{refused}"
    );
    cluster.dhow(&["apply", "-f", &cluster.manifest("escaping.yaml", ESCAPING)]);
    for container in ["read-up", "read-out", "read-dots", "read-absolute", "write-out"] {
        log(&cluster, "escaping", container, |log| log.starts_with("error:"));
    }
    assert_eq!(log(&cluster, "escaping", "read-in", |log| !log.is_empty()), "through a link\n");
    let waiting = eventually(|| {
        let pod = get(&cluster, &["pod", "escaping"]);
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let state = statuses.into_iter().find(|status| status["name"] == "mount-out").unwrap_or_default();
        let waiting = state["state"]["waiting"].clone();
        (waiting["reason"] == "CreateContainerConfigError").then_some(waiting.clone()).ok_or(waiting.to_string())
    });
    let message = waiting["message"].as_str().unwrap();
    assert!(message.contains("the subPath `out` leaves its volume"), "{message}");
    let made = |path: &Path| std::fs::read_dir(path).unwrap().flatten().any(|entry| entry.file_name() == "made");
    let pods = dir.path().join("nodes/dhow-1/pods");
    let pod = std::fs::read_dir(&pods).unwrap().next().unwrap().unwrap().path();
    assert!(!made(&pod) && !made(&pod.join("volumes")));
}

#[test]
fn the_hosts_paths_are_open_only_if_somebody_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    let cluster = Cluster::start(&dir.path().join("cluster"), &["--allow-host-path", open.to_str().unwrap()]);
    cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    let manifest = OF_THE_HOST.replace("OPEN", open.to_str().unwrap());
    cluster.dhow(&["apply", "-f", &cluster.manifest("host.yaml", &manifest)]);
    for (container, word) in
        [("memory", "written\n"), ("host", "written\n"), ("read-only", "error: PermissionDenied\n")]
    {
        log(&cluster, "of-host", container, |log| log == word);
    }
    assert_eq!(std::fs::read_to_string(open.join("made/x")).unwrap(), "from a guest");
    let event = eventually(|| {
        let events = cluster.dhow(&["get", "events"]);
        events.lines().find(|line| line.contains("FailedMount")).map(str::to_owned).ok_or(events)
    });
    assert!(event.contains("not-allowed") && event.contains("--allow-host-path"), "{event}");
}
