//! What the tests share: an engine, a Pod network, and containers on both.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use dhow_engine::{Config, Container, Engine, Io, LoadError, Program};
use dhow_runtime_contract::{ContainerSpec, Exit, HttpServing, Mount};
use dhow_switch::{PodIdentity, PodNet, Switch};
use dhow_types::{NodeName, Uid};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// An engine, and the place of its files.
pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) engine: Engine,
}

/// The one that most tests share. Those that load an engine's threads, or end it, make their own.
pub(crate) fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| Rig::new(2))
}

/// The programs of the repository that tests run.
pub(crate) fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests")
}

impl Rig {
    pub(crate) fn new(workers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { workers: Some(workers), ..Config::new(dir.path().join("cache")) };
        Self { engine: Engine::new(config).unwrap(), dir }
    }

    /// A program of [`guests`] by its name; a hostile one is text (`spin.wat`).
    pub(crate) async fn load(&self, name: &str) -> Program {
        if name.ends_with(".wat") {
            return self.load_bytes(&wat::parse_file(guests().join("hostile").join(name)).unwrap()).await.unwrap();
        }
        let path = guests().join(format!("{name}.wasm"));
        self.engine.load(&path, &format!("sha256:{name}")).await.unwrap()
    }

    /// A program that is given as text.
    pub(crate) async fn load_wat(&self, text: &str) -> Result<Program, LoadError> {
        self.load_bytes(&wat::parse_str(text).unwrap()).await
    }

    pub(crate) async fn load_bytes(&self, bytes: &[u8]) -> Result<Program, LoadError> {
        // Another test may load the same bytes at the same time: the file is this call's own.
        let file = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        std::fs::write(&file, bytes).unwrap();
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        self.engine.load(file.path(), &format!("sha256:{digest}")).await
    }

    pub(crate) fn start(&self, program: &Program, spec: ContainerSpec, net: PodNet) -> Container {
        self.engine.start(program, spec, Io::Capture { max_bytes: 64 * 1024 }, net)
    }
}

pub(crate) struct Net {
    pub(crate) switch: Switch,
}

impl Net {
    pub(crate) fn new() -> Self {
        let ip = IpAddr::from([127, 0, 0, 1]);
        Self { switch: Switch::new(dhow_switch::Config::new(NodeName::new("n1"), ip)) }
    }

    pub(crate) fn pod(&self, last: u8) -> PodNet {
        self.switch.add_pod(PodIdentity {
            uid: Uid::new(format!("uid-{last}")),
            namespace: "default".to_owned(),
            name: format!("pod-{last}"),
            ip: IpAddr::from([10, 64, 0, last]),
            hostname: format!("pod-{last}"),
            service_account: "default".to_owned(),
        })
    }

    /// A connection to an HTTP container, and the task that drives it.
    pub(crate) async fn connect(&self, to: &str) -> (SendRequest<Full<bytes::Bytes>>, JoinHandle<hyper::Result<()>>) {
        let stream = self.switch.dial(to.parse::<SocketAddr>().unwrap()).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        (sender, tokio::spawn(connection))
    }

    /// One request on a connection of its own: the answer's status and body.
    pub(crate) async fn request(&self, to: &str, path: &str, body: &str) -> (u16, String) {
        let (mut sender, driver) = self.connect(to).await;
        let response = sender.send_request(request(path, body)).await.unwrap();
        let status = response.status().as_u16();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        (status, String::from_utf8_lossy(&text).into_owned())
    }
}

pub(crate) fn request(path: &str, body: &str) -> http::Request<Full<bytes::Bytes>> {
    http::Request::post(path).header("host", "test").body(Full::from(body.to_owned())).unwrap()
}

pub(crate) fn spec(args: &[&str]) -> ContainerSpec {
    ContainerSpec {
        pod_uid: Uid::new("uid"),
        namespace: "default".to_owned(),
        pod: "pod".to_owned(),
        name: "main".to_owned(),
        attempt: 0,
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![("NAME".to_owned(), "value".to_owned())],
        mounts: Vec::new(),
        foreign_files: false,
        scratch: Vec::new(),
        working_dir: None,
        memory_limit: None,
        cpu_request_m: None,
        cpu_limit_m: None,
        http_ports: Vec::new(),
        http: HttpServing::default(),
        node: "n1".to_owned(),
        labels: [("app".to_owned(), "test".to_owned())].into(),
        stores: None,
        core_dump: None,
        hostname: "pod".to_owned(),
        stdin: false,
        tty: false,
    }
}

/// A container that sees `host` as `/data`.
pub(crate) fn with_data(host: &Path, read_only: bool, args: &[&str]) -> ContainerSpec {
    let volume = Some("data".to_owned());
    let mounts = vec![Mount { host: host.to_owned(), guest: "/data".to_owned(), read_only, volume }];
    ContainerSpec { mounts, ..spec(args) }
}

pub(crate) async fn load(name: &str) -> Program {
    rig().load(name).await
}

pub(crate) fn start(program: &Program, spec: ContainerSpec, net: PodNet) -> Container {
    rig().start(program, spec, net)
}

pub(crate) fn output(container: &Container) -> String {
    String::from_utf8_lossy(&container.captured()).into_owned()
}

/// Runs a command to its end.
pub(crate) async fn run(program: &Program, spec: ContainerSpec, net: PodNet) -> (Exit, String) {
    let container = start(program, spec, net);
    let exit = container.wait().await;
    (exit, output(&container))
}

/// Starts a server and waits for its first line, which says that it listens: an instance runs before that.
pub(crate) async fn serve(program: &Program, args: &[&str], net: PodNet) -> Container {
    let container = start(program, spec(args), net);
    container.running().await.unwrap();
    // A program that ended will never say so.
    tokio::select! {
        exit = container.wait() => panic!("{args:?} has ended: {exit:?}: {}", output(&container)),
        () = until(|| output(&container).contains('\n')) => {}
    }
    container
}

/// Waits until no instance holds memory: an answer may arrive just before its instance is gone.
pub(crate) async fn idle(container: &Container) {
    until(|| container.usage().memory_bytes == 0).await;
}

/// Waits for what no event tells, without keeping a processor busy that the guests need.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
