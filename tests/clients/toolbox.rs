//! A shell in every pod: exec, cp, attach and debug with the toolbox that every node has.

use super::harness::eventually;
use super::{Cluster, Kubectl, find_kubectl, terminal};
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

const POD: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: tool}
spec:
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - {name: c, image: 'tool:1.0', args: [sleep], volumeMounts: [{name: data, mountPath: /data}]}
  - {name: echo, image: 'tool:1.0', args: [echo, '7000'], volumeMounts: [{name: data, mountPath: /shared}]}
---
apiVersion: v1
kind: Pod
metadata: {name: script}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: dhow.dev/toolbox:latest
    command: [sh, -c, 'echo \"$GREETING from $(hostname)\" | tr a-z A-Z; exit 5']
    env: [{name: GREETING, value: hello}]
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec: {containers: [{name: c, image: dhow.dev/toolbox, stdin: true}]}
";

/// What came of a command: its code, output, and complaints.
type Came = (Option<i32>, String, String);

fn run(client: &Kubectl<'_>, sockets: bool, args: &[&str], input: &str) -> Came {
    let mut process = Command::new(&client.program)
        .env("KUBECONFIG", client.cluster.kubeconfig())
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", sockets.to_string())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who has ended before reads nothing.
    let _ended = process.stdin.take().unwrap().write_all(input.as_bytes());
    let output = process.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn kubectl_finds_a_shell_in_every_pod() {
    // Another test says loudly that there is none.
    let Some((program, _)) = find_kubectl() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    let client = Kubectl { cluster: &cluster, program };
    cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    client.ok(&format!("apply -f {}", cluster.manifest("toolbox.yaml", POD)));
    client.ok("wait --for=condition=Ready pod/tool pod/shell --timeout=60s");
    for sockets in [true, false] {
        runs_commands(&client, sockets);
        copies(&client, sockets, &dir.path().join(format!("{sockets}")));
    }
    terminal::is_typed_at(&client);
    is_an_image(&client);
    attaches(&client);
    debugs(&client);
}

/// The same by our own client.
#[test]
fn dhow_finds_a_shell_in_every_pod() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    let client = Kubectl { cluster: &cluster, program: env!("CARGO_BIN_EXE_dhow").to_owned() };
    cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    client.ok(&format!("apply -f {}", cluster.manifest("toolbox.yaml", POD)));
    eventually(|| {
        let pods = client.ok("get pods");
        let ready = |line: &str, pod: &str, count: &str| line.split_whitespace().take(2).eq([pod, count]);
        if pods.lines().any(|line| ready(line, "tool", "2/2")) && pods.lines().any(|line| ready(line, "shell", "1/1")) {
            Ok(())
        } else {
            Err(pods)
        }
    });
    runs_commands(&client, true);
    copies(&client, true, &dir.path().join("files"));
    terminal::is_typed_at(&client);
    refuses(&client, dir.path());
}

fn refuses(client: &Kubectl<'_>, dir: &std::path::Path) {
    let here = dir.join("refused");
    fs::write(&here, "x").unwrap();
    let here = here.to_str().unwrap();
    for (args, says) in [
        (&["exec", "tool", "-c", "none", "--", "ls"][..], "container none is not valid for pod tool"),
        (&["exec", "nobody", "--", "ls"], "pods \"nobody\" not found"),
        (&["cp", here, "/tmp/x"], "are both local"),
        (&["cp", "/no/such/file", "tool:/data/x", "-c", "c"], "reading `/no/such/file`"),
        (&["cp", "tool:/no/such", here, "-c", "c"], "`tar` in the pod ended with exit code 2"),
        (&["cp", here, "tool:/no/such/x", "-c", "c"], "`tar` in the pod ended with exit code"),
    ] {
        let (code, _, err) = run(client, true, args, "");
        assert!(code == Some(1) && err.contains(says), "{args:?}: {code:?} {err}");
    }
    assert_eq!(fs::read_to_string(here).unwrap(), "x", "what cannot be copied leaves what was there");
}

fn runs_commands(client: &Kubectl<'_>, sockets: bool) {
    let exec = |words: &[&str], input: &str| {
        let args = [&["exec", "-i", "tool", "-c", "c", "--"], words].concat();
        run(client, sockets, &args, input)
    };
    for (words, input, code, out) in [
        (&["sh", "-c", "printf 'b\\na\\n' | sort | tr a-z A-Z; exit 7"][..], "", 7, "A\nB\n"),
        (&["/bin/sh", "-c", "echo $0 $1", "me", "you"], "", 0, "me you\n"),
        (&["sh"], "x=20\necho $((x + 1))\nfalse\n", 1, "21\n"),
        (&["sh", "-c", "ls /; cat /etc/hostname"], "", 0, "data\ndev\netc\nrun\ntool\n"),
        (&["sh", "-c", "echo shared >/data/x"], "", 0, ""),
        (&["test", "-d", "/nowhere"], "", 1, ""),
        (&["wc", "-c"], "12345", 0, "5\n"),
        (&["sed", "s/a/b/"], "a\n", 0, "b\n"),
        (&["sh", "-c", "tail -n 1 -f /etc/hostname | head -n 1 | base64"], "", 0, "dG9vbAo=\n"),
        // The other container of the pod, by localhost.
        (&["nc", "-w", "5", "localhost", "7000"], "over there", 0, "over there"),
        // The container's own program gets what is nobody else's.
        (&["tool", "env"], "", 0, "arg tool\narg env\n"),
    ] {
        let (found, said, err) = exec(words, input);
        let same = said == out || (words[0] == "tool" && said.starts_with(out));
        assert!(found == Some(code) && same, "{words:?}: {found:?} {said:?} {err}");
    }
    let (_, said, _) = exec(&["ps"], "");
    assert!(said.contains("echo") && said.contains("running"), "{said}");
    let args = ["exec", "tool", "-c", "echo", "--", "cat", "/shared/x"];
    assert_eq!(run(client, sockets, &args, "").1, "shared\n", "one volume, two containers");
    let (code, _, err) = exec(&["sh", "-c", "echo lost >/nowhere/x"], "");
    assert!(code == Some(1) && err.contains("no volume is mounted there"), "{code:?} {err}");
    let (code, _, err) = exec(&["sh", "-c", "nothing"], "");
    assert!(code == Some(127) && err.contains("nothing: not found"), "{code:?} {err}");
}

fn copies(client: &Kubectl<'_>, sockets: bool, dir: &std::path::Path) {
    let (from, back) = (dir.join("from"), dir.join("back"));
    fs::create_dir_all(from.join("deep/er")).unwrap();
    fs::write(from.join("one"), "1\n").unwrap();
    fs::write(from.join("deep/er/two"), vec![b'x'; 300_000]).unwrap();
    let ok = |args: &[&str]| {
        let (code, out, err) = run(client, sockets, args, "");
        assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    };
    let to = format!("tool:/data/copy-{sockets}");
    ok(&["cp", from.to_str().unwrap(), &to, "-c", "c"]);
    ok(&["cp", &to, back.to_str().unwrap(), "-c", "c"]);
    for file in ["one", "deep/er/two"] {
        assert_eq!(fs::read(from.join(file)).unwrap(), fs::read(back.join(file)).unwrap(), "{file}");
    }
    ok(&["cp", from.join("one").to_str().unwrap(), "tool:/data/file", "-c", "c"]);
    ok(&["cp", "tool:/data/file", back.join("file").to_str().unwrap(), "-c", "c"]);
    assert_eq!(fs::read(back.join("file")).unwrap(), b"1\n");
}

fn is_an_image(client: &Kubectl<'_>) {
    client.ok("wait --for=jsonpath={.status.phase}=Failed pod/script --timeout=60s");
    assert_eq!(client.ok("logs script"), "HELLO FROM SCRIPT\n");
    let code = "get pod script -o jsonpath={.status.containerStatuses[0].state.terminated.exitCode}";
    assert_eq!(client.ok(code), "5");
    let id = client.ok("get pod script -o jsonpath={.status.containerStatuses[0].imageID}");
    assert!(id.starts_with("dhow.dev/toolbox@sha256:"), "{id}");
}

fn attaches(client: &Kubectl<'_>) {
    let input = "echo attached to $(hostname)\nexit 0\n";
    let (_, out, err) = run(client, true, &["attach", "-i", "shell"], input);
    assert!(out.contains("attached to shell"), "{out}{err}");
}

fn debugs(client: &Kubectl<'_>) {
    let script = "echo looked at $(wget -qO- http://localhost:1 2>&1 | grep -c refused); exit 3";
    let args = ["debug", "tool", "--image=dhow.dev/toolbox", "--target=c", "-c", "first", "--", "sh", "-c", script];
    let (code, out, err) = run(client, true, &args, "");
    assert_eq!(code, Some(0), "{out}{err}");
    let at = "get pod tool -o jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
    eventually(|| match client.ok(at) {
        code if code == "3" => Ok(()),
        other => Err(other),
    });
    assert!(client.ok("logs tool -c first").starts_with("looked at "));
    let args = ["debug", "-i", "tool", "--image=dhow.dev/toolbox", "-c", "second", "--", "sh"];
    let (_, out, err) = run(client, true, &args, "echo inside\nexit\n");
    assert!(out.contains("inside"), "{out}{err}");
    assert!(client.ok("get pod tool -o jsonpath={.spec.ephemeralContainers[*].name}").contains("first second"));
    assert_eq!(client.ok("get pod tool -o jsonpath={.status.phase}"), "Running");
    let described = client.ok("describe pod tool");
    assert!(described.contains("Ephemeral Containers:") && described.contains("second:"), "{described}");
}
