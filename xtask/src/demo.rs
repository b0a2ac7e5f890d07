//! The README's first command: builds, starts a cluster, deploys `samples/hello-http` and shows its answer.

use anyhow::{Context as _, bail};
use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The NodePort of `samples/hello-http/hello-http.yaml`.
const SAMPLE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 30080);

/// How long the sample may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the demonstration; with `once` the cluster ends after the answer, else at Ctrl-C.
pub fn run(once: bool, say: impl Fn(&str)) -> anyhow::Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    say("building dhow (the first time takes some minutes)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    check(Command::new(cargo).current_dir(root).args(["build", "--release", "--locked", "--package", "dhow"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let dhow = target.join("release/dhow");
    let data = target.join("demo");
    let kubeconfig = data.join("dhow.kubeconfig");

    let mut cluster = Cluster(
        Command::new(&dhow)
            .args(["up", "--bind", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{}`", dhow.display()))?,
    );
    let out = cluster.0.stdout.take().context("the cluster's output is piped")?;
    wait_until_ready(BufReader::new(out), &say)?;

    let client = |args: &[&str]| {
        let mut command = Command::new(&dhow);
        command.current_dir(root).env("KUBECONFIG", &kubeconfig).args(args);
        check(&mut command)
    };
    client(&["push", "samples/hello-http/hello-http.wasm", "hello-http:1.0"])?;
    client(&["apply", "-f", "samples/hello-http/hello-http.yaml"])?;
    client(&["rollout", "status", "deployment/hello-http"])?;
    client(&["get", "pods"])?;
    say(&format!("GET http://{SAMPLE}/demo"));
    say(answer()?.trim_end());
    if !once {
        say(&format!("the cluster goes on; in another shell:\n  export KUBECONFIG={}", kubeconfig.display()));
        say("  kubectl get pods        # or, without kubectl: dhow get pods\nCtrl-C ends it");
        cluster.0.wait().context("waiting for the cluster")?;
    }
    Ok("done".to_owned())
}

/// Ends the process, by its id, when the demonstration ends in any way.
struct Cluster(Child);

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to end, and nothing to reap.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn check(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("running {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} ended with {status}") }
}

fn wait_until_ready(out: impl std::io::BufRead, say: &impl Fn(&str)) -> anyhow::Result<()> {
    for line in out.lines() {
        let line = line.context("reading the cluster's output")?;
        say(&line);
        if line.starts_with("ready: ") {
            return Ok(());
        }
    }
    bail!("the cluster ended before it was ready")
}

fn answer() -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SAMPLE, ANSWER_TIMEOUT).context("connecting to the sample")?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    // HTTP/1.0: its answers are not cut into chunks, whose lengths would stand between the lines.
    write!(stream, "GET /demo HTTP/1.0\r\nhost: {SAMPLE}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("reading the sample's answer")?;
    if text.split(' ').nth(1) == Some("200") { Ok(text) } else { bail!("the sample answered: {text}") }
}
