//! What the tests share: an engine, a Pod network, and containers on both.

use std::net::IpAddr;
use std::path::Path;
use std::sync::OnceLock;

use dhow_engine::{Config, Container, Engine, Io, Program};
use dhow_runtime_contract::{ContainerSpec, Exit, HttpServing};
use dhow_switch::{PodIdentity, PodNet, Switch};
use dhow_types::{NodeName, Uid};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;

/// What the tests of one process share: an engine, and the place of its files.
pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) engine: Engine,
}

pub(crate) fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(Config { workers: Some(2), ..Config::new(dir.path().join("cache")) }).unwrap();
        Rig { dir, engine }
    })
}

pub(crate) async fn load(name: &str) -> Program {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests").join(format!("{name}.wasm"));
    rig().engine.load(&path, &format!("sha256:{name}")).await.unwrap()
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

    pub(crate) async fn request(&self, to: &str, path: &str, body: &str) -> (u16, String) {
        let stream = self.switch.dial(to.parse().unwrap()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request =
            http::Request::post(path).header("host", "test").body(Full::<bytes::Bytes>::from(body.to_owned())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        (status, String::from_utf8_lossy(&text).into_owned())
    }
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

pub(crate) fn start(program: &Program, spec: ContainerSpec, net: PodNet) -> Container {
    rig().engine.start(program, spec, Io::Capture { max_bytes: 64 * 1024 }, net)
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

/// Starts a server and waits for its first line, which says that it listens.
pub(crate) async fn serve(program: &Program, args: &[&str], net: PodNet) -> Container {
    let container = start(program, spec(args), net);
    container.running().await.unwrap();
    while container.captured().is_empty() {
        tokio::task::yield_now().await;
    }
    container
}

/// Waits until no instance holds memory: an answer may arrive just before its instance is gone.
pub(crate) async fn idle(container: &Container) {
    while container.usage().memory_bytes > 0 {
        tokio::task::yield_now().await;
    }
}
