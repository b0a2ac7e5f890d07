//! Three control nodes as processes: how long after the leader's SIGKILL a write is accepted again.

use crate::cluster::binary;
use crate::figure;
use anyhow::{Context as _, bail};
use dhow_client::{Client, Config};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two attempts to write.
const RETRY: Duration = Duration::from_millis(5);

struct Member {
    process: Child,
    dir: PathBuf,
    url: String,
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl Member {
    fn start(dir: &Path, bind: &str, more: &[&str]) -> anyhow::Result<Self> {
        let mut process = Command::new(binary()?)
            .args(["server", "--bind", bind, "--data-dir"])
            .arg(dir)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting `dhow server`")?;
        let out = BufReader::new(process.stdout.take().context("the output is piped")?);
        let mut member = Self { process, dir: dir.to_owned(), url: String::new() };
        for line in out.lines() {
            if let Some(url) = line?.strip_prefix("ready: ") {
                url.clone_into(&mut member.url);
                return Ok(member);
            }
        }
        bail!("`dhow server` ended before it was ready")
    }

    fn client(&self) -> anyhow::Result<Client> {
        let mut config = Config::from_kubeconfig(&self.dir.join("dhow.kubeconfig"))?;
        // This member alone: the measurement itself tries the others.
        config.others.clear();
        Ok(Client::new(config)?)
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

pub(crate) async fn measure(kills: usize, parent: &Path) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(parent)?;
    let mut members = vec![Member::start(&dir.path().join("m0"), "127.0.0.1:0", &["--name", "m0"])?];
    for name in ["m1", "m2"] {
        let created = Command::new(binary()?)
            .args(["token", "create"])
            .env("KUBECONFIG", members[0].dir.join("dhow.kubeconfig"))
            .output()?;
        let token = String::from_utf8(created.stdout)?;
        let more = ["--name", name, "--join", &members[0].url, "--token", token.trim()];
        let member = Member::start(&dir.path().join(name), "127.0.0.1:0", &more)?;
        members.push(member);
    }
    let mut times = Vec::new();
    for kill in 0..kills {
        let leader = settled_leader(&members).await?;
        members[leader].kill()?;
        let begun = Instant::now();
        accepted(&members, leader, kill).await?;
        times.push(begun.elapsed());
        let bind = members[leader].url.trim_start_matches("https://").to_owned();
        let dir = members[leader].dir.clone();
        members[leader] = Member::start(&dir, &bind, &[])?;
    }
    times.sort_unstable();
    let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)].as_secs_f64();
    figure(
        &format!("SIGKILL of the leader of three to a write accepted, {kills} kills"),
        format!("p50 {:.2} s   p99 {:.2} s   longest {:.2} s", at(0.5), at(0.99), at(1.0)),
    );
    Ok(())
}

/// Waits until all three vote and none lags, and tells which one leads.
async fn settled_leader(members: &[Member]) -> anyhow::Result<usize> {
    let begun = Instant::now();
    let client = members[0].client()?;
    loop {
        if begun.elapsed() > PATIENCE {
            bail!("the members do not settle");
        }
        if let Ok(answer) = client.get("/dhow/v1/members").await {
            let list: Vec<_> = answer["members"].as_array().into_iter().flatten().collect();
            let votes = list.iter().filter(|m| m["role"] == "leader" || m["role"] == "voter").count();
            let calm = list.iter().all(|m| m["reachable"] == true && m["lag"].as_u64().is_some_and(|lag| lag < 10));
            let leads = list.iter().find(|m| m["role"] == "leader").and_then(|m| m["address"].as_str());
            let found = leads.and_then(|address| members.iter().position(|member| member.url == address));
            if let Some(found) = found.filter(|_| votes == members.len() && calm) {
                return Ok(found);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Tries to write through the members that are left, in turns, until one accepts.
async fn accepted(members: &[Member], dead: usize, number: usize) -> anyhow::Result<()> {
    let left: Vec<Client> = members
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != dead)
        .map(|(_, member)| member.client())
        .collect::<anyhow::Result<_>>()?;
    let begun = Instant::now();
    for attempt in 0.. {
        let tree = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("kill-{number}-{attempt}")},
        });
        let created = left[attempt % left.len()].create("/api/v1/namespaces/default/configmaps", &tree);
        match tokio::time::timeout(Duration::from_millis(500), created).await {
            Ok(Ok(_)) => return Ok(()),
            _ if begun.elapsed() > PATIENCE => bail!("no write is accepted any more"),
            _ => tokio::time::sleep(RETRY).await,
        }
    }
    Ok(())
}
