//! Our side: one control node inside this process, and further ones as processes that it talks to over loopback QUIC.

use crate::cluster::binary;
use anyhow::{Context as _, bail};
use dhow_client::{Client, Config};
use dhow_server::Server;
use dhow_state::{Expect, Key, Op, Txn};
use dhow_store::Replica;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long joined members may take to become voters.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane of one or more members; the first one, which leads, is in this process.
pub(crate) struct Ours {
    server: Server,
    _others: Vec<Other>,
    kubeconfig: tempfile::NamedTempFile,
    _dir: tempfile::TempDir,
}

struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Ours {
    /// Starts `count` members below `parent` and waits until all of them vote.
    pub(crate) async fn start(count: usize, parent: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(parent).context("making a directory for the members")?;
        let address = "127.0.0.1:0".parse().context("an address")?;
        let server = Server::start(dhow_server::Config::new(dir.path().join("m0"), address)).await?;
        let kubeconfig = tempfile::NamedTempFile::new_in(dir.path())?;
        std::fs::write(kubeconfig.path(), server.admin_kubeconfig())?;
        let mut others = Vec::new();
        for n in 1..count {
            let name = format!("m{n}");
            let token = server.create_member_token(Some(&name)).await?;
            let process = Command::new(binary()?)
                .args(["server", "--bind", "127.0.0.1:0", "--join", &server.url(), "--token", &token, "--data-dir"])
                .arg(dir.path().join(format!("m{n}")))
                .args(["--name", &name])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("starting `dhow server`")?;
            others.push(Other(process));
        }
        let ours = Self { server, _others: others, kubeconfig, _dir: dir };
        ours.all_vote(count).await?;
        Ok(ours)
    }

    async fn all_vote(&self, count: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        let client = self.client()?;
        loop {
            let members = client.get("/dhow/v1/members").await?;
            let roles = members["members"].as_array().into_iter().flatten().map(|member| &member["role"]);
            if roles.filter(|role| *role == "voter" || *role == "leader").count() == count {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("not all members vote: {members}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// An API client of its own connection.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(Config::from_kubeconfig(self.kubeconfig.path())?)?)
    }

    /// The member in this process.
    pub(crate) fn replica(&self) -> Replica {
        self.server.replica().clone()
    }

    /// Ends the member in this process in order; the others are killed.
    pub(crate) async fn stop(self) {
        drop(self._others);
        self.server.stop().await;
    }
}

/// Writes one object of this text, proposed inside the member.
pub(crate) async fn put(replica: &Replica, name: &str, value: &str) -> anyhow::Result<()> {
    let key = Key::new("configmaps", "bench", name);
    let value = format!(r#"{{"metadata":{{"name":"{name}","namespace":"bench"}},"data":{{"v":"{value}"}}}}"#);
    replica.write(Txn { ops: vec![Op::Put { key, value: value.into(), expect: Expect::Any, expires: None }] }).await?;
    Ok(())
}

/// Reads one object, linearizably, inside the member.
pub(crate) async fn get(replica: &Replica, name: &str) -> anyhow::Result<()> {
    replica.barrier().await?;
    let found = replica.state().get(&Key::new("configmaps", "bench", name)).is_some();
    if found { Ok(()) } else { bail!("`{name}` is not there") }
}

/// Creates one ConfigMap through the HTTPS API. What is sent is put together as text: the peer's client does no more.
pub(crate) async fn create(client: &Client, name: &str, value: &str) -> anyhow::Result<()> {
    let body =
        format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"v":"{value}"}}}}"#);
    let body = Some(("application/json", body.into()));
    let path = "/api/v1/namespaces/default/configmaps";
    let answer = client.request(dhow_client::Method::POST, path, "application/json", body).await?;
    if answer.status.is_success() {
        return Ok(());
    }
    bail!("creating a ConfigMap: {}", String::from_utf8_lossy(&answer.body))
}
