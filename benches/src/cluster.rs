//! A `dhow up` process of its own, ended by its id.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use dhow_client::{Client, Config, Method};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io::BufRead as _, io::BufReader};

/// A running cluster in a directory of its own.
pub(crate) struct Cluster {
    process: Child,
    dir: tempfile::TempDir,
    /// From the start of the process to its `ready:` line.
    pub(crate) ready_after: Duration,
}

impl Cluster {
    /// Starts a cluster with an empty data directory.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("making a data directory")?;
        let start = Instant::now();
        let mut process = Command::new(binary()?)
            .args(["up", "--bind", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting `dhow up`")?;
        let out = BufReader::new(process.stdout.take().context("the output is piped")?);
        let mut cluster = Self { process, dir, ready_after: Duration::ZERO };
        for line in out.lines() {
            if line.context("reading the cluster's output")?.starts_with("ready: ") {
                cluster.ready_after = start.elapsed();
                return Ok(cluster);
            }
        }
        bail!("`dhow up` ended before it was ready")
    }

    /// An API client with the administrator's certificate.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(Config::from_kubeconfig(&self.kubeconfig())?)?)
    }

    /// Runs the command line against the cluster.
    pub(crate) fn dhow(&self, args: &[&str]) -> anyhow::Result<()> {
        let status = Command::new(binary()?)
            .current_dir(root())
            .env("KUBECONFIG", self.kubeconfig())
            .args(args)
            .stdout(Stdio::null())
            .status()
            .context("running `dhow`")?;
        if status.success() { Ok(()) } else { bail!("`dhow {}` ended with {status}", args.join(" ")) }
    }

    /// Resident memory of the process, in KiB.
    pub(crate) fn resident_kib(&self) -> anyhow::Result<u64> {
        resident_kib(self.process.id())
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("dhow.kubeconfig")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Creates or replaces nothing but creates: posts one object.
pub(crate) async fn post(client: &Client, path: &str, json: &serde_json::Value) -> anyhow::Result<()> {
    let body = Bytes::from(serde_json::to_vec(json)?);
    let answer = client.request(Method::POST, path, "application/json", Some(("application/json", body))).await?;
    if answer.status.is_success() {
        return Ok(());
    }
    bail!("creating at {path}: {}", String::from_utf8_lossy(&answer.body))
}

/// The workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading the process's status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has resident memory")?;
    line.trim().trim_end_matches(" kB").trim().parse().context("reading VmRSS")
}

pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let dhow = own.with_file_name("dhow");
    if !dhow.exists() {
        bail!("`{}` is not there: run `cargo build --release` first", dhow.display());
    }
    Ok(dhow)
}
