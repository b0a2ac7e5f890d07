//! Our own client beside `kubectl`: on the same cluster both say the same, and both do the same.

use crate::harness::{Cluster, eventually, text};
use serde_json::{Value as Tree, json};
use std::process::Command;

/// `kubectl`'s descriptions change between versions; ours are those of this minor version.
pub const DESCRIBES_LIKE: u32 = 36;

/// The templates that our own unit tests try, and what they must give.
const TEMPLATES: &str = include_str!("../../cli/core/src/jsonpath/cases.jsonl");
const TEMPLATE_OBJECT: &str = include_str!("../../cli/core/src/jsonpath/object.json");

/// How many `kubectl` run at a time: starting it is most of the work.
const AT_ONCE: usize = 4;

/// What both are asked. Nothing in it prints maps in `kubectl`'s random order.
const QUESTIONS: &[&[&str]] = &[
    &["get", "pods"],
    &["get", "pods", "-o", "wide", "--show-labels"],
    &["get", "all", "-A"],
    &["get", "deploy,svc", "-o", "name"],
    &["get", "deploy/hello-http", "svc/hello-http"],
    &["get", "deploy", "hello-http", "-o", "json"],
    &["get", "pods", "-o", "json"],
    &["get", "pods", "-o", "yaml"],
    &["get", "cm", "-A", "-o", "yaml"],
    &["get", "node", "dhow-1", "-o", "yaml"],
    &["get", "pods", "-l", "app in (hello-http),!gone", "-o", "name"],
    &["get", "cm", "-A", "--sort-by=.metadata.namespace", "-o", "name"],
    &["get", "ns", "--sort-by={.metadata.uid}"],
    &["get", "ns", "--sort-by=.nope", "-o", "name"],
    &["get", "pods", "-n", "nobody"],
    &["get", "pods", "-n", "nobody", "-o", "json"],
    &["get", "pod", "nobody"],
    &["get", "svc", "nobody", "hello-http"],
    &["get", "svc", "nobody", "hello-http", "-o", "json"],
    &["get", "svc", "nobody", "noone", "-o", "yaml"],
    &["get", "svc", ""],
    &["get", "pod", "nobody", "--ignore-not-found", "-o", "json"],
    &["get", "svc", "hello-http", "-o", "jsonpath={.spec.ports[0].port}"],
    &["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"],
    &["get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.name}{\"\\t\"}{.status.phase}{\"\\n\"}{end}"],
    &["get", "pods", "-o", "jsonpath={.items[?(@.status.phase==\"Running\")].metadata.name}"],
    &["get", "pods", "-o", "jsonpath={.items[0].status.conditions[?(@.type==\"Ready\")].status}"],
    &["get", "pods", "-o", "jsonpath={.items[-1:].spec.containers[0]['name','image']}"],
    &["get", "pods", "-o", "jsonpath={.items[99].metadata.name}"],
    &["get", "pods", "-o", "jsonpath={.items[0].metadata.labels}"],
    &["get", "ns", "default", "-o", "jsonpath={.metadata.labels.kubernetes\\.io/metadata\\.name}"],
    &["get", "pods", "-o", "jsonpath-as-json={.items[*].metadata.name}"],
    &["get", "pods", "-o", "jsonpath={.items[*"],
    &["get", "pods", "-o", "custom-columns=NAME:.metadata.name,I:spec.containers[*].image,L:.metadata.labels,N:.nope"],
    &["get", "pods", "--no-headers", "-o", "custom-columns=:.metadata.name,P:{.spec.priority}"],
    &["get", "nodes", "-o", "custom-columns=NAME"],
];

/// What both describe.
const DESCRIBED: &[&[&str]] = &[
    &["pods"],
    &["deployment", "hello-http"],
    &["rs"],
    &["service", "hello-http"],
    &["node", "dhow-1"],
    &["ns"],
    &["configmaps"],
    &["secrets", "-n", "kube-system"],
    &["sa", "default"],
    &["lease", "dhow-1", "-n", "kube-node-lease"],
    &["pod", "nobody"],
];

/// What the real templates give is what our tests expect of ours.
pub fn templates_are_as_recorded(kubectl: &str) {
    let dir = tempfile::tempdir().unwrap();
    let object = dir.path().join("object.json");
    std::fs::write(&object, TEMPLATE_OBJECT).unwrap();
    let lines: Vec<&str> = TEMPLATES.lines().collect();
    std::thread::scope(|scope| {
        for chunk in lines.chunks(lines.len().div_ceil(AT_ONCE)) {
            scope.spawn(|| chunk.iter().for_each(|line| check_template(kubectl, &object, line)));
        }
    });
}

fn check_template(kubectl: &str, object: &std::path::Path, line: &str) {
    let (template, expected): (String, Option<String>) = serde_json::from_str(line).unwrap();
    // A change that changes nothing, made without a cluster, shows the object.
    let output = Command::new(kubectl)
        .args(["label", "--local", "--overwrite", "n=5", "--kubeconfig", "/dev/null", "-o"])
        .arg(format!("jsonpath={template}"))
        .arg("-f")
        .arg(object)
        .output()
        .unwrap();
    let found = output.status.success().then(|| text(&output.stdout));
    // Maps come in random order.
    let in_order = |text: Option<String>| {
        let mut words: Vec<String> = text?.split(' ').map(str::to_owned).collect();
        if template.contains("..") || template.contains(".*") {
            words.sort_unstable();
        }
        Some(words)
    };
    assert_eq!(in_order(found), in_order(expected), "{template}");
}

/// Asks both, and compares what they print and whether they succeed; descriptions only with the version that ours are
/// like.
pub fn answers_are_the_same(cluster: &Cluster, kubectl: &str, minor: u32) {
    for question in QUESTIONS {
        same(cluster, kubectl, question);
    }
    if minor != DESCRIBES_LIKE {
        return;
    }
    for what in DESCRIBED {
        same(cluster, kubectl, &[&["describe"], *what].concat());
    }
}

fn same(cluster: &Cluster, kubectl: &str, args: &[&str]) {
    // Ages grow and controllers write between the two: they are asked again until they meet.
    eventually(|| {
        let answers = [env!("CARGO_BIN_EXE_dhow"), kubectl].map(|program| {
            let output = cluster.run(program, args);
            (text(&output.stdout), output.status.success())
        });
        let [ours, theirs] = answers;
        if ours == theirs { Ok(()) } else { Err(format!("{args:?}\ndhow: {ours:?}\nkubectl: {theirs:?}")) }
    });
}

/// One change to a deployment: applied, or made by somebody else.
enum Change {
    Apply(Tree),
    Others(Tree),
}

fn container(name: &str, more: Tree) -> Tree {
    let mut container = json!({"name": name, "image": "hello-http:1.0"});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    container
}

fn spec(containers: &[Tree], more: Tree) -> Tree {
    let mut spec = json!({
        "replicas": 0, "selector": {"matchLabels": {"app": "twin"}},
        "template": {"metadata": {"labels": {"app": "twin"}}, "spec": {"containers": containers}},
    });
    let (into, from) = (spec.as_object_mut().unwrap(), more.as_object().unwrap().clone());
    into.extend(from);
    spec
}

/// A history of manifests with others in between.
fn history() -> Vec<Change> {
    use Change::{Apply, Others};
    let env = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]);
    let ports = json!([{"containerPort": 8080, "name": "http"}]);
    let volumes = |source: Tree| {
        let mut spec = spec(&[container("main", json!({}))], json!({}));
        let mut volume = json!({"name": "v"});
        volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        spec["template"]["spec"]["volumes"] = json!([volume]);
        spec
    };
    vec![
        Apply(spec(&[container("main", json!({"env": env, "ports": ports, "args": ["x"]}))], json!({}))),
        Others(json!({"metadata": {"labels": {"theirs": "1"}}, "spec": {"template": {"spec": {
            "containers": [{"name": "injected", "image": "sidecar:1"}, {"name": "main", "env": [{"name": "C", "value": "3"}]}]}}}})),
        Apply(spec(&[container("main", json!({"env": [{"name": "B", "value": "4"}], "ports": ports}))], json!({}))),
        Apply(spec(
            &[container("first", json!({})), container("main", json!({"env": [{"name": "B", "value": "4"}]}))],
            json!({"strategy": {"type": "Recreate"}, "minReadySeconds": 3}),
        )),
        Others(json!({"spec": {"minReadySeconds": 9, "revisionHistoryLimit": 4}})),
        Apply(volumes(json!({"emptyDir": {}}))),
        Apply(volumes(json!({"configMap": {"name": "kube-root-ca.crt"}}))),
        Apply(spec(&[container("main", json!({"env": []}))], json!({"replicas": null}))),
    ]
}

/// Each applies the same history to a deployment of its own: the two must come out alike. Then they take turns on one.
pub fn apply_does_the_same(cluster: &Cluster, kubectl: &str) {
    let dhow = env!("CARGO_BIN_EXE_dhow");
    let manifest = |name: &str, spec: &Tree| {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "annotations": {"note": "<a & b>"}}, "spec": spec});
        cluster.manifest(&format!("{name}.json"), &deployment.to_string())
    };
    for (step, change) in history().iter().enumerate() {
        for (name, program) in [("ours", dhow), ("theirs", kubectl)] {
            match change {
                Change::Apply(spec) => drop(cluster.ok(program, &["apply", "-f", &manifest(name, spec)])),
                Change::Others(patch) => {
                    drop(cluster.ok(kubectl, &["patch", "deploy", name, "-p", &patch.to_string()]))
                }
            }
        }
        let shown = |name: &str| {
            let text = cluster.ok(dhow, &["get", "deploy", name, "-o", "json"]);
            let mut deployment: Tree = serde_json::from_str(&text).unwrap();
            let mut annotations = deployment["metadata"]["annotations"].take();
            annotations["kubectl.kubernetes.io/last-applied-configuration"] =
                annotations["kubectl.kubernetes.io/last-applied-configuration"]
                    .as_str()
                    .unwrap()
                    .replace(&format!("\"name\":\"{name}\""), "\"name\":\"x\"")
                    .into();
            annotations.as_object_mut().unwrap().remove("deployment.kubernetes.io/revision");
            json!({"labels": deployment["metadata"]["labels"], "annotations": annotations, "spec": deployment["spec"]})
        };
        assert_eq!(shown("ours"), shown("theirs"), "after step {step}");
        let Change::Apply(spec) = change else { continue };
        // A null asks for the default, which the server puts there again: that is a change each time.
        if spec["replicas"].is_null() {
            continue;
        }
        let said = cluster.ok(dhow, &["apply", "-f", &manifest("theirs", spec)]);
        assert_eq!(said, "deployment.apps/theirs unchanged\n", "step {step}");
        // Once there is a container of others, `kubectl` orders the list anew each time, though that changes nothing.
        if step == 0 {
            let said = cluster.ok(kubectl, &["apply", "-f", &manifest("ours", spec)]);
            assert_eq!(said, "deployment.apps/ours unchanged\n");
        }
    }
    cluster.dhow(&["delete", "deployment", "ours", "theirs"]);
}
