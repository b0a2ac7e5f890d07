//! The peer: local etcd processes, called over gRPC as its own client does, on kept HTTP/2 connections.

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long etcd may take to answer its first write.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running etcd of one or more members.
pub(crate) struct Etcd {
    members: Vec<Member>,
    _dir: tempfile::TempDir,
}

struct Member {
    process: Child,
    port: u16,
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// The program, if the machine has it: the one that `ETCD` names, or `etcd`.
pub(crate) fn program() -> Option<String> {
    let program = std::env::var("ETCD").unwrap_or_else(|_| "etcd".to_owned());
    let ran = Command::new(&program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success()).then_some(program)
}

impl Etcd {
    /// Starts `count` members below `parent` and waits until they take writes.
    pub(crate) async fn start(program: &str, count: usize, parent: &std::path::Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(parent).context("making a directory for etcd")?;
        let ports: Vec<[u16; 2]> =
            (0..count).map(|_| Ok([free_port()?, free_port()?])).collect::<anyhow::Result<_>>()?;
        let cluster: Vec<String> =
            ports.iter().enumerate().map(|(n, [_, peer])| format!("m{n}=http://127.0.0.1:{peer}")).collect();
        let mut members = Vec::new();
        for (n, [port, peer]) in ports.into_iter().enumerate() {
            let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
            let process = Command::new(program)
                .args(["--name", &format!("m{n}"), "--data-dir"])
                .arg(dir.path().join(format!("m{n}")))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
                .args(["--log-level", "error", "--quota-backend-bytes", "8589934592"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("starting `{program}`"))?;
            members.push(Member { process, port });
        }
        let etcd = Self { members, _dir: dir };
        let begun = Instant::now();
        loop {
            let tried = match etcd.connect(0).await {
                Ok(client) => client.put("ready", "yes").await,
                Err(error) => Err(error),
            };
            match tried {
                Ok(()) => return Ok(etcd),
                Err(error) if begun.elapsed() > PATIENCE => return Err(error.context("etcd does not take writes")),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// A connection to one of the members.
    pub(crate) async fn connect(&self, member: usize) -> anyhow::Result<Client> {
        let port = self.members.get(member).context("the member exists")?.port;
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // Ends with the client; what broke shows in the requests.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Client { sender, authority: format!("127.0.0.1:{port}") })
    }
}

/// One HTTP/2 connection; clones share it.
#[derive(Clone)]
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Client {
    /// `etcdserverpb.KV/Put`: field 1 is the key, field 2 the value.
    pub(crate) async fn put(&self, key: &str, value: &str) -> anyhow::Result<()> {
        self.call("/etcdserverpb.KV/Put", &[(1, key.as_bytes()), (2, value.as_bytes())]).await
    }

    /// `etcdserverpb.KV/Range` of one key; linearizable, which is the default.
    pub(crate) async fn get(&self, key: &str) -> anyhow::Result<()> {
        self.call("/etcdserverpb.KV/Range", &[(1, key.as_bytes())]).await
    }

    async fn call(&self, path: &str, fields: &[(u8, &[u8])]) -> anyhow::Result<()> {
        let request = Request::post(format!("http://{}{path}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(message(fields)))?;
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        let headers_status = answer.headers().get("grpc-status").cloned();
        let body = answer.into_body().collect().await?;
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()).or(headers_status);
        match status {
            Some(status) if status == "0" => Ok(()),
            status => bail!("etcd answered {path} with gRPC status {status:?}"),
        }
    }
}

/// A gRPC frame (not compressed, length) with one protobuf message of byte fields.
fn message(fields: &[(u8, &[u8])]) -> Bytes {
    let mut out = BytesMut::from(&[0; 5][..]);
    for (number, bytes) in fields {
        out.put_u8(number << 3 | 2);
        let mut length = bytes.len();
        while length >= 0x80 {
            out.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        out.put_u8(length as u8);
        out.put_slice(bytes);
    }
    let length = (out.len() - 5) as u32;
    out[1..5].copy_from_slice(&length.to_be_bytes());
    out.freeze()
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
