//! The real `kubectl` drives the built binary: what a Kubernetes user types works on the samples, unchanged.
//!
//! Uses the program that `DHOW_TEST_KUBECTL` names, else `kubectl` of the PATH; says loudly when there is none.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

mod accounts;
#[path = "../e2e/harness.rs"]
mod harness;
mod terminal;
mod toolbox;
mod twins;

use harness::{Cluster, eventually, http_get};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

/// The oldest minor version that these tests are for.
const MINOR_MIN: u32 = 30;

#[test]
fn kubectl_works_unchanged() {
    let Some((kubectl, minor)) = find_kubectl() else {
        eprintln!(
            "\n!!!!!!!! SKIPPED: no kubectl 1.{MINOR_MIN} or newer: install one, or set DHOW_TEST_KUBECTL !!!!!!!!\n"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    cluster.push_samples();
    let client = Kubectl { cluster: &cluster, program: kubectl };
    twins::templates_are_as_recorded(&client.program);
    applies_and_shows(&client);
    let like = twins::DESCRIBES_LIKE;
    if minor != like {
        eprintln!("\n!!!!!!!! SKIPPED: descriptions are compared with kubectl 1.{like}, this is 1.{minor} !!!!!!!!\n");
    }
    twins::answers_are_the_same(&cluster, &client.program, minor);
    twins::apply_does_the_same(&cluster, &client.program);
    scales_and_rolls_out(&client);
    follows_logs_and_forwards_ports(&client);
    shows_what_is_used(&client);
    keeps_data(&client);
    accounts::speak_for_themselves(&client);
    creates_by_command(&client);
    refuses_bad_input(&client);
    deletes(&client);
}

struct Kubectl<'a> {
    cluster: &'a Cluster,
    program: String,
}

impl Kubectl<'_> {
    #[track_caller]
    fn ok(&self, line: &str) -> String {
        self.cluster.ok(&self.program, &words(line))
    }

    #[track_caller]
    fn refused(&self, line: &str) -> String {
        self.cluster.refused(&self.program, &words(line))
    }

    fn spawn(&self, line: &str) -> Background {
        let mut process = Command::new(&self.program)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .args(words(line))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // The thread ends with the program's output.
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Background { process, lines }
    }
}

/// A `kubectl` that runs until it is dropped.
struct Background {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Background {
    /// Waits for a line that contains `text`.
    #[track_caller]
    fn line_with(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(harness::PATIENCE) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(why) => panic!("kubectl did not say `{text}` ({why}), only: {seen:?}"),
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// A program that computes all the time, and is held back.
const BUSY: &str = "
apiVersion: v1
kind: Pod
metadata: {name: busy, labels: {kind: busy}}
spec:
  containers: [{name: c, image: 'spin:1.0', resources: {limits: {cpu: 100m, memory: 16Mi}}}]
";

fn shows_what_is_used(client: &Kubectl<'_>) {
    let wasm = wat::parse_file("../tests/guests/hostile/spin.wat").unwrap();
    let file = client.cluster.file("spin.wasm", &wasm);
    client.cluster.dhow(&["push", &file, "spin:1.0"]);
    client.ok(&format!("apply -f {}", client.cluster.manifest("busy.yaml", BUSY)));
    let top = |line: &str| {
        eventually(|| {
            let output = client.cluster.run(&client.program, &words(line));
            let (out, err) = (harness::text(&output.stdout), harness::text(&output.stderr));
            let row = out.lines().nth(1).map(str::to_owned);
            row.filter(|_| output.status.success()).ok_or_else(|| format!("{out}{err}"))
        })
    };
    let node = top("top node").split_whitespace().next().unwrap().to_owned();
    let pod = top("top pod -l kind=busy");
    assert!(pod.starts_with("busy "), "{pod}");
    let container = top("top pod busy --containers");
    let cells = words(&container);
    assert_eq!(cells[..2], ["busy", "c"], "{container}");
    let milli: u64 = cells[2].trim_end_matches('m').parse().unwrap();
    assert!((1..=130).contains(&milli), "{container}");
    // Our own client shows the same.
    let nodes = client.cluster.dhow(&["top", "node"]);
    assert!(nodes.starts_with("NAME") && nodes.contains("CPU(%)") && nodes.contains(&node), "{nodes}");
    let ours = client.cluster.dhow(&["top", "pod", "busy", "--containers", "--no-headers"]);
    assert_eq!(words(&ours)[..2], ["busy", "c"], "{ours}");
    let summed = client.cluster.dhow(&["top", "pod", "-A", "-l", "kind=busy"]);
    assert!(summed.starts_with("NAMESPACE   NAME") && words(&summed)[4..6] == ["default", "busy"], "{summed}");
    let raw = |path: &str| client.ok(&format!("get --raw /api/v1/nodes/{node}/proxy/{path}"));
    let summary: serde_json::Value = serde_json::from_str(&raw("stats/summary")).unwrap();
    let pods = summary["pods"].as_array().unwrap();
    assert!(pods.iter().any(|pod| pod["podRef"]["name"] == "busy"), "{summary}");
    for (page, line) in [
        ("metrics", "kubelet_running_pods "),
        ("metrics/resource", "pod_memory_working_set_bytes{namespace=\"default\",pod=\"busy\"}"),
        (
            "metrics/cadvisor",
            "container_cpu_cfs_throttled_periods_total{container=\"c\",namespace=\"default\",pod=\"busy\"}",
        ),
    ] {
        let page = raw(page);
        assert!(page.contains(line), "{line} is not in {page}");
    }
    client.refused(&format!("get --raw /api/v1/nodes/{node}/proxy/no/such/path"));
    client.refused("get --raw /api/v1/nodes/nobody/proxy/metrics");
    let groups = client.ok("api-resources --api-group=metrics.k8s.io -o name");
    assert_eq!(words(&groups), ["nodes.metrics.k8s.io", "pods.metrics.k8s.io"]);
    client.ok("delete pod busy --now");
}

fn keeps_data(client: &Kubectl<'_>) {
    let manifest = client.cluster.sample("samples/visits/visits.yaml");
    client.ok(&format!("apply -f {manifest}"));
    client.ok("rollout status deployment/visits --timeout=60s");
    let port = client.cluster.node_port("visits");
    assert!(http_get(port, "/").contains("visit 1\n"));
    let pod = client.ok("get pods -l app=visits -o name");
    client.ok(&format!("delete {pod}"));
    client.ok("wait --for=condition=Available deployment/visits --timeout=60s");
    assert!(http_get(port, "/").contains("visit 2\n"), "another pod finds what the first one left");

    let shown = client.ok("get pv,pvc,sc");
    let line = |start: &str| {
        let found = shown.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no {start} in {shown}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let claim = line("persistentvolumeclaim/visits");
    assert!(claim.contains("Bound pvc-") && claim.contains("10Mi RWO local <unset>"), "{claim}");
    let volume = line("persistentvolume/pvc-");
    assert!(volume.contains("10Mi RWO Delete Bound default/visits local <unset>"), "{volume}");
    let class = line("storageclass.storage.k8s.io/local");
    assert!(class.contains("(default) dhow.dev/local Delete WaitForFirstConsumer false"), "{class}");
    let described = client.ok("describe pvc visits");
    assert!(described.contains("Status:        Bound") && described.contains("ProvisioningSucceeded"), "{described}");
    assert!(described.contains("Used By:       visits-"), "{described}");
    let described = client.ok("describe pv");
    assert!(described.contains("kubernetes.io/hostname in [dhow-1]"), "{described}");
    client.ok("describe sc local");
    client.ok(&format!("delete -f {manifest}"));
    eventually(|| match client.ok("get pv -o name") {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}

fn find_kubectl() -> Option<(String, u32)> {
    let program = std::env::var("DHOW_TEST_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let output = Command::new(&program).args(["version", "--client", "-o", "json"]).output().ok()?;
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let minor = version["clientVersion"]["minor"].as_str()?.trim_end_matches('+').parse::<u32>().ok()?;
    (minor >= MINOR_MIN).then_some((program, minor))
}

fn applies_and_shows(client: &Kubectl<'_>) {
    let manifest = client.cluster.sample("samples/hello-http/hello-http.yaml");
    assert_eq!(
        client.ok(&format!("apply -f {manifest}")),
        "deployment.apps/hello-http created\nservice/hello-http created\n"
    );
    let rollout = client.ok("rollout status deployment/hello-http --timeout=60s");
    assert!(rollout.contains("successfully rolled out"), "{rollout}");
    assert_eq!(
        client.ok(&format!("apply -f {manifest}")),
        "deployment.apps/hello-http unchanged\nservice/hello-http unchanged\n"
    );
    assert_eq!(client.ok(&format!("diff -f {manifest}")), "");

    let pods = client.ok("get pods -o wide");
    assert!(pods.starts_with("NAME") && pods.contains("NOMINATED NODE") && pods.contains("1/1"), "{pods}");
    assert_eq!(pods.matches("Running").count(), 2, "{pods}");
    let deployment = client.ok("get deploy hello-http");
    assert!(deployment.contains("2/2     2            2"), "{deployment}");
    assert!(client.ok("get deploy hello-http -o yaml").contains("image: hello-http:1.0"));
    assert!(client.ok("get svc -o json").contains("\"clusterIP\""));
    assert_eq!(client.ok("get deploy hello-http -o jsonpath={.spec.template.spec.containers[0].name}"), "hello");
    assert_eq!(client.ok("get deploy hello-http -o jsonpath={.metadata.generation}"), "1");
    assert!(client.ok("get nodes").contains("Ready"));
    assert!(client.ok("get all").contains("replicaset.apps/hello-http-"));
    assert!(client.ok("get pods -l app=hello-http --field-selector status.phase=Running -o name").starts_with("pod/"));
    let pod = client.ok("get pods -l app=hello-http -o jsonpath={.items[0].metadata.name}");
    let described = client.ok(&format!("describe pod {pod}"));
    assert!(described.contains("Started container hello") && described.contains("Ready:          True"), "{described}");
    let described = client.ok("describe deployment hello-http");
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    assert!(client.ok("describe service hello-http").contains("Endpoints:"));
    assert!(client.ok("describe node").contains("Non-terminated Pods:"));
    let explained = client.ok("explain pod.spec.containers");
    assert!(explained.contains("image\t<string>") || explained.contains("image"), "{explained}");
    assert!(explained.contains("List of containers belonging to the pod"), "{explained}");
    let resources = client.ok("api-resources");
    assert!(resources.contains("deployments") && resources.contains("deploy"), "{resources}");
    assert!(client.ok("api-versions").contains("apps/v1"));
    assert!(client.ok("version").contains("Server Version: v1."));
    assert!(client.ok("cluster-info").contains("is running at"));
    assert!(client.ok("get events").contains("Scheduled"));
}

fn scales_and_rolls_out(client: &Kubectl<'_>) {
    let mut watch = client.spawn("get pods -w");
    watch.line_with("hello-http-");
    client.ok("scale deployment/hello-http --replicas=3");
    client.ok("rollout status deployment/hello-http --timeout=60s");
    watch.line_with("Pending");
    watch.line_with("Running");
    assert!(client.ok("get deploy hello-http").contains("3/3"));

    client.ok("set env deployment/hello-http COLOR=blue");
    client.ok("rollout status deployment/hello-http --timeout=60s");
    let history = client.ok("rollout history deployment/hello-http");
    assert!(history.contains("REVISION") && history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    assert!(client.ok("get deploy hello-http -o yaml").contains("blue"));
    client.ok("rollout undo deployment/hello-http");
    client.ok("rollout status deployment/hello-http --timeout=60s");
    assert!(!client.ok("get deploy hello-http -o jsonpath={.spec.template.spec}").contains("blue"));
    assert!(client.ok("rollout history deployment/hello-http").contains("\n3 "));
    client.ok("rollout restart deployment/hello-http");
    client.ok("rollout status deployment/hello-http --timeout=60s");
    client.ok("label deployment hello-http fleet=dhow");
    client.ok("annotate deployment hello-http note=x");
    client.ok("patch deployment hello-http --type=json -p [{\"op\":\"remove\",\"path\":\"/metadata/labels/fleet\"}]");
    client.ok("scale deployment/hello-http --replicas=1");
    client.ok("rollout status deployment/hello-http --timeout=60s");
}

/// By WebSocket and, as older versions have it, by SPDY.
#[test]
fn kubectl_runs_commands_in_containers() {
    // The other test says loudly that there is none.
    let Some((kubectl, _)) = find_kubectl() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    let client = Kubectl { cluster: &cluster, program: kubectl };
    client.cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    // What begins with a brace is JSON to older versions.
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: tool}, spec: {volumes: [{name: data, emptyDir: {}}], \
        containers: [{name: c, image: 'tool:1.0', args: [sleep], volumeMounts: [{name: data, mountPath: /data}]}]}}";
    client.ok(&format!("apply -f {}", client.cluster.manifest("tool.yaml", pod)));
    client.ok("wait --for=condition=Ready pod/tool --timeout=60s");
    for sockets in ["true", "false"] {
        let exec = |line: &str, input: &str| {
            let mut process = Command::new(&client.program)
                .env("KUBECONFIG", client.cluster.kubeconfig())
                .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", sockets)
                .args(words(line))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = process.wait_with_output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        assert_eq!(exec("exec tool -- tool write /data/x words", "").1, "written\n");
        assert_eq!(exec("exec tool -- tool read /data/x", ""), (Some(0), "words\n".to_owned(), String::new()));
        let (code, out, errors) = exec("exec -i tool -- tool shout", "one\ntwo\n");
        assert_eq!((code, out.as_str(), errors.as_str()), (Some(0), "ONE\nTWO\n", "done\n"));
        let (code, _, errors) = exec("exec tool -- tool exit 1", "");
        assert_eq!((code, errors.contains("exit code 1")), (Some(1), true), "{errors}");
    }
    assert!(client.refused("exec nobody -- ls").contains("not found"));
}

fn follows_logs_and_forwards_ports(client: &Kubectl<'_>) {
    let manifest = client.cluster.sample("samples/echo-tcp/echo-tcp.yaml");
    client.ok(&format!("apply -f {manifest}"));
    client.ok("rollout status deployment/echo-tcp --timeout=60s");
    assert!(client.ok("logs deployment/echo-tcp").contains("echoing on"));
    let mut follow = client.spawn("logs -f deployment/echo-tcp");
    follow.line_with("echoing on");

    let mut forward = client.spawn("port-forward deployment/echo-tcp :7000");
    let port = forwarded_port(&forward.line_with("Forwarding from 127.0.0.1:"));
    let echoed = eventually(|| {
        harness::exchange(port, b"across").and_then(|got| if got == "across" { Ok(got) } else { Err(got) })
    });
    assert_eq!(echoed, "across");
    follow.line_with(": 6 bytes");

    let mut forward = client.spawn("port-forward service/hello-http :80");
    let port = forwarded_port(&forward.line_with("Forwarding from 127.0.0.1:"));
    assert!(http_get(port, "/forwarded").contains("you asked for /forwarded"));
}

fn forwarded_port(line: &str) -> u16 {
    let rest = line.split_once("127.0.0.1:").unwrap().1;
    rest.split(' ').next().unwrap().parse().unwrap()
}

fn creates_by_command(client: &Kubectl<'_>) {
    client.ok("create namespace harbour");
    client.ok("create configmap cargo -n harbour --from-literal=spice=pepper");
    client.ok("create secret generic chart -n harbour --from-literal=reef=north");
    client.ok("create deployment crew -n harbour --image=hello-http:1.0 --replicas=2");
    client.ok("rollout status deployment/crew -n harbour --timeout=60s");
    client.ok("expose deployment crew -n harbour --port=80 --target-port=8080");
    assert_eq!(client.ok("get cm cargo -n harbour -o jsonpath={.data.spice}"), "pepper");
    assert_eq!(client.ok("get secret chart -n harbour -o jsonpath={.data.reef}"), "bm9ydGg=");
    client.ok("wait --for=condition=Available deployment/crew -n harbour --timeout=60s");
    client.ok("run mate -n harbour --image=hello-http:1.0 --restart=Never");
    client.ok("wait --for=condition=Ready pod/mate -n harbour --timeout=60s");
    client.ok("delete namespace harbour --timeout=60s");
    assert!(client.refused("get namespace harbour").contains("(NotFound)"));
}

fn refuses_bad_input(client: &Kubectl<'_>) {
    let deployment = |spec: &str| {
        let text = format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: bad}}\nspec: {spec}\n");
        client.refused(&format!("apply -f {}", client.cluster.manifest("bad.yaml", &text)))
    };
    let said = deployment("{replicas: many}");
    assert!(said.contains("spec.replicas"), "{said}");
    let said = deployment("{selector: {matchLabels: {a: b}}, bogus: 1}");
    assert!(said.contains("unknown field \"spec.bogus\""), "{said}");
    let said = deployment(
        "{selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c}]}}}",
    );
    assert!(
        said.contains("spec.template.metadata.labels") && said.contains("spec.template.spec.containers[0].image"),
        "{said}"
    );
    assert!(client.refused("get pod nobody").contains("pods \"nobody\" not found"));
    assert!(client.refused("create namespace default").contains("AlreadyExists"));
    let said = client.refused("delete namespace default");
    assert!(said.contains("namespaces \"default\" is forbidden: this namespace may not be deleted"), "{said}");
    assert!(client.refused("get unicorns").contains("the server doesn't have a resource type"));
}

fn deletes(client: &Kubectl<'_>) {
    client.ok("delete deployment hello-http echo-tcp --timeout=60s");
    client.ok("delete service hello-http echo-tcp");
    eventually(|| {
        let pods = client.ok("get pods -o name");
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
}
