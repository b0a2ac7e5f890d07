//! Images from their registry to their removal, and what a program tells of itself: on the built binary.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::print_stderr)]

mod harness;

use harness::{Cluster, eventually, text};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A pod that traps and wants to be looked at.
const TRAPPING: &str = "
apiVersion: v1
kind: Pod
metadata: {name: trapping, annotations: {dhow.dev/core-dump: 'true'}}
spec:
  restartPolicy: Never
  containers: [{name: c, image: 'tool:1.0', args: [panic]}]
";

#[test]
fn an_image_is_seen_from_its_push_to_its_trap() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &[]);
    let pushed = cluster.dhow(&["push", "tests/guests/tool.wasm", "tool:1.0"]);
    let digest = pushed.split_whitespace().last().unwrap().to_owned();
    cluster.dhow(&["apply", "-f", &cluster.manifest("trapping.yaml", TRAPPING)]);
    let status = eventually(|| {
        let status = status(&cluster, "trapping");
        status.pointer("/state/terminated").map(|_| status.clone()).ok_or(status.to_string())
    });
    assert_eq!(status["imageID"], format!("tool@{digest}"));
    // It was compiled by a process of its own, whose work is in the node's cache.
    let compiled = dir.path().join("nodes/dhow-1/compiled");
    assert_eq!(std::fs::read_dir(compiled).unwrap().count(), 1);
    // Why it ended is in its status; the guest was stripped of its names.
    let message = status["state"]["terminated"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("wasm trap: ") && message.contains("\n  0: function ") && message.len() <= 2048,
        "{message}"
    );
    let core = dir.path().join("core");
    let said = cluster.dhow(&["coredump", "trapping", "-o", core.to_str().unwrap()]);
    let dump = std::fs::read(&core).unwrap();
    assert!(dump.starts_with(b"\0asm") && said.contains(&format!("({} bytes)", dump.len())), "{said}");
    assert!(dump.windows(9).any(|part| part == b"corestack"));
    let none = cluster.refused(env!("CARGO_BIN_EXE_dhow"), &["coredump", "trapping", "-c", "other"]);
    assert!(none.contains("has left no core dump"), "{none}");

    // The news of the pull, and the node's own list.
    let events = cluster.dhow(&["get", "events"]);
    for part in ["Pulling image \"tool:1.0\"", "Successfully pulled image \"tool:1.0\" in ", "Image size: "] {
        assert!(events.contains(part), "{part} in {events}");
    }
    eventually(|| {
        let node: Value = serde_json::from_str(&cluster.dhow(&["get", "node", "dhow-1", "-o", "json"])).unwrap();
        let names = node.pointer("/status/images/0/names").cloned().unwrap_or_default();
        let expected = json!([format!("tool@{digest}"), "tool:1.0"]);
        if names == expected { Ok(()) } else { Err(names.to_string()) }
    });

    // The same program, as it is in the registry and as a file.
    for (program, first) in [
        ("tool:1.0", format!("Image:       tool:1.0\nDigest:      {digest}\n")),
        ("tests/guests/tool.wasm", "File:".to_owned()),
    ] {
        let page = cluster.dhow(&["inspect", program]);
        assert!(page.starts_with(&first), "{page}");
        assert!(page.contains("Entry point: command") && page.contains("  wasi:cli/environment@0.2."), "{page}");
    }
    let toolbox = cluster.dhow(&["inspect", "dhow.dev/toolbox"]);
    assert!(toolbox.starts_with("Image:       dhow.dev/toolbox:latest\nDigest:      sha256:"), "{toolbox}");
    let wasm = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guests/tool.wasm")).unwrap();
    let cut = cluster.file("cut.wasm", &wasm[..wasm.len() / 2]);
    for (args, says) in [
        (&["inspect", "nothing:1.0"][..], "was not found"),
        (&["inspect", "tests/guests"], "`tests/guests` is a directory: name a Wasm file in it, or an image"),
        (&["inspect", "nope.wasm"], "reading `nope.wasm`: No such file or directory"),
        (&["push", &cut, "cut:1.0"], &format!("`{cut}` is not a Wasm program: ")),
        (&["push", "Cargo.toml", "text:1.0"], "`Cargo.toml` is not a Wasm program: it begins with the bytes"),
    ] {
        let refused = cluster.refused(env!("CARGO_BIN_EXE_dhow"), args);
        assert!(refused.contains(says), "{args:?}: {refused}");
    }
}

/// `docker-registry` behind a password.
struct Registry {
    process: Child,
    authority: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

const BASIC: &str = "cm9ib3Q6c2VjcmV0";

impl Registry {
    /// `None` where it is not installed.
    fn start(dir: &Path) -> Option<Self> {
        let named = std::env::var_os("DOCKER_REGISTRY").map(PathBuf::from);
        let program =
            named.into_iter().chain([PathBuf::from("/usr/bin/docker-registry")]).find(|path| path.exists())?;
        let htpasswd = dir.join("htpasswd");
        // `robot` and `secret`.
        std::fs::write(&htpasswd, "robot:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n").unwrap();
        let config = json!({"version": "0.1", "log": {"level": "info"}, "http": {"addr": "127.0.0.1:0", "secret": "s"},
            "storage": {"filesystem": {"rootdirectory": dir.join("registry")}},
            "auth": {"htpasswd": {"realm": "test", "path": htpasswd}}});
        let path = dir.join("registry.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        let mut process = Command::new(program)
            .arg("serve")
            .arg(path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let authority = lines.find_map(|line| {
            let rest = line.split_once("listening on ")?.1;
            Some(rest.split(['"', ',', ' ']).next()?.to_owned())
        });
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, authority: authority.unwrap() })
    }

    /// Pushes a program.
    fn push(&self, repository: &str, tag: &str, wasm: &[u8]) {
        let mut blobs =
            [("application/wasm", wasm), ("application/vnd.wasm.config.v0+json", b"{}")].map(|(kind, bytes)| {
                let digest = digest_of(bytes);
                let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), b"");
                let location =
                    begun.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().trim().to_owned();
                let path = &location[location.find("/v2/").unwrap()..];
                self.send("PUT", &format!("{path}&digest={digest}"), bytes);
                json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
            });
        let config = blobs[1].take();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": [blobs[0]]});
        self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), manifest.to_string().as_bytes());
    }

    fn send(&self, method: &str, path: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.authority).unwrap();
        let kind = if path.contains("/manifests/") {
            "application/vnd.oci.image.manifest.v1+json"
        } else {
            "application/octet-stream"
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Basic {BASIC}\r\nContent-Type: {kind}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.authority,
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = text(&answer);
        assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
        answer
    }
}

fn digest_of(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

#[test]
fn a_registry_elsewhere_lets_in_whose_pod_or_account_has_the_secret() {
    let dir = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start(dir.path()) else {
        eprintln!("SKIPPED: `docker-registry` is not installed and DOCKER_REGISTRY does not name it");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    registry.push("team/tool", "1.0", &std::fs::read(root.join("tests/guests/tool.wasm")).unwrap());
    let host = &registry.authority;
    let rules = dir.path().join("registries.yaml");
    std::fs::write(&rules, json!({"registries": [{"prefix": host, "plainHttp": true}]}).to_string()).unwrap();
    let cluster = Cluster::start(&dir.path().join("cluster"), &["--registry-config", rules.to_str().unwrap()]);
    let auths = json!({"auths": {host: {"username": "robot", "password": "secret"}}}).to_string();
    let pod = |name: &str, more: Value| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "c", "image": format!("{host}/team/tool:1.0"), "args": ["exit", "0"]}]}});
        pod["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        pod
    };
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull"}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": auths}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "puller"}, "imagePullSecrets": [{"name": "pull"}]},
        pod("with", json!({"imagePullSecrets": [{"name": "pull"}]})),
        pod("without", json!({"imagePullSecrets": [{"name": "none-such"}]})),
    ]});
    cluster.dhow(&["apply", "-f", &cluster.manifest("objects.json", &objects.to_string())]);
    let completed = |pod: &str| {
        eventually(|| {
            let status = status(&cluster, pod);
            if status.pointer("/state/terminated/exitCode") == Some(&json!(0)) {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
    };
    completed("with");
    let account = json!({"serviceAccountName": "puller"});
    cluster.dhow(&["apply", "-f", &cluster.manifest("account.json", &pod("account", account).to_string())]);
    completed("account");
    // The image is on the node, and still not for everybody.
    let waiting = eventually(|| {
        let status = status(&cluster, "without");
        let waiting = status.pointer("/state/waiting").cloned().unwrap_or_default();
        let pulls = waiting["reason"].as_str().is_some_and(|reason| reason.contains("ImagePull"));
        if pulls { Ok(waiting) } else { Err(status.to_string()) }
    });
    assert!(waiting["message"].as_str().unwrap().contains("refused the node's request"), "{waiting}");
}

fn status(cluster: &Cluster, pod: &str) -> Value {
    let pod: Value = serde_json::from_str(&cluster.dhow(&["get", "pod", pod, "-o", "json"])).unwrap();
    pod.pointer("/status/containerStatuses/0").cloned().unwrap_or_default()
}
